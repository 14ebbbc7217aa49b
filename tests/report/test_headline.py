"""The first sentences: what loading a layer did, with numbers by hand."""

import re

import pytest
from tests.report.made import design_of, no_graft, rows, runs_of

from layergraft.report import page
from layergraft.report.headline import headline
from layergraft.report.loading import loadings
from layergraft.stats import mean_difference

DIGITS = {"host_from": "pretrained on digits_a", "host_network": "n", "head": "kept"}
BEFORE, AFTER = 90.0, {0: 92.0, 1: 93.0, 2: 92.0}
COSTS = {"early": (-16, -17, -15), "middle": (0.5, -0.5, 0.3), "late": (4, 6, 5)}


def told(groups, **columns):
    return [row | columns for row in groups]


def intact(host="resnet20", after=AFTER, before=BEFORE, **columns):
    return told(no_graft(after, host=host), **{"step0/acc": before} | DIGITS | columns)


def grafted(site, gains, host="resnet20", **columns):
    strategy = columns.pop("strategy", "full")
    accuracies = {seed: AFTER[seed] + gain for seed, gain in enumerate(gains)}
    return told(rows(accuracies, site=site, host=host, strategy=strategy), **DIGITS | columns)


def headlines(*groups):
    return [headline(loading) for loading in loadings(design_of(*groups))]


def test_the_answer_has_a_number_and_an_interval_for_each_site():
    control = told(
        rows(AFTER, donor="random", site="early", host="resnet20"), **DIGITS
    )  # costs nothing, and does not count
    (found,) = headlines(intact(), *(grafted(site, gains) for site, gains in COSTS.items()), control)
    half = mean_difference(COSTS["early"]).half_width
    assert found.answer.startswith(
        "Loading a layer trained on its own into a ResNet pretrained on digits_a costs 16.0 points of test accuracy early "
        f"(95% CI {16 - half:.1f} to {16 + half:.1f}, n = 3), and changes it by +0.1 points in the middle (95% CI "
    )
    at_most = mean_difference(COSTS["middle"]).most(-1)
    said = re.search(
        r"n = 3; not significant, costs at most (\S+)\), and gains 5\.0 points late \(95% CI", found.answer
    )
    assert at_most <= float(said[1]) < at_most + 0.1
    assert "(95% CI 2.5 to 7.5, n = 3), compared with" in found.answer
    assert found.answer.endswith("the same host without a graft: in resnet20 with strategy full.")


def test_an_interval_that_excludes_0_alone_is_said_to_be_not_significant_after_the_correction():
    (found,) = headlines(intact(), grafted("a", (1, 2, 1.4)), *(grafted(site, (0.5, -0.5, 0.3)) for site in "bcd"))
    assert re.search(
        r"gains 1\.5 points of test accuracy at a \([^)]*; not significant after Holm correction\)", found.answer
    )


def test_it_is_a_mean_over_strategies_and_hosts_of_each_seed():
    groups = [intact(host) for host in ("resnet20", "resnet32")]
    for number, (strategy, host) in enumerate((s, h) for s in ("full", "freeze") for h in ("resnet20", "resnet32")):
        groups.append(grafted("early", (-number, -2.0 * number, -number), host, strategy=strategy))
    loading = loadings(design_of(*groups))[0]
    assert str(loading.sites[0].difference) == str(mean_difference([-1.5, -3.0, -1.5]))
    assert headline(loading).answer.endswith("mean over 2 strategies and 2 hosts.")


def test_of_many_sites_the_worst_the_best_and_the_mean_are_told():
    gains = {f"layer{n}": (-n, -n - 0.2, -n + 0.2) for n in range(1, 7)}
    (found,) = headlines(intact(), *(grafted(site, gain) for site, gain in gains.items()))
    named = re.findall(
        r"([\d.]+) (?:points of test accuracy )?(on average over 6 sites|at the \w+ site, layer\d)", found.answer
    )
    assert named == [
        ("3.5", "on average over 6 sites"), ("6.0", "at the worst site, layer6"), ("1.0", "at the best site, layer1"),
    ]  # fmt: skip


def test_one_seed_has_numbers_and_no_interval():
    (found,) = headlines(intact(after={0: 92.0}), grafted("early", (-16,)), grafted("late", (2,)))
    assert "costs 16.0 points of test accuracy early, and gains 2.0 points late, compared" in found.answer
    assert found.answer.endswith("; one seed, so no interval.") and "CI" not in found.answer


def test_trained_hosts_come_before_untrained_ones_which_have_no_shock():
    shock = {"shock/acc": -50.0, "shock/loss": 2.0, "steps_to/recover": float("inf")}
    fresh = {"host_from": "untrained", "host_network": float("nan"), "head": "new", "host.pretrain": "no"}
    groups = [intact(**fresh), grafted("early", (1.9, 2, 2.1), **fresh, **shock)]
    groups += [
        intact(**{"host.pretrain": "yes"}),
        grafted("early", (-1.9, -2, -2.1), **shock, **{"host.pretrain": "yes"}),
    ]
    trained, untrained = headlines(*groups)
    assert "into a ResNet pretrained on digits_a costs 2.0" in trained.answer
    assert "into an untrained ResNet gains 2.0" in untrained.answer
    assert any("Before the first step" in line for line in trained.more)
    assert not any("Before the first step" in line or "reached again" in line for line in untrained.more)
    assert not any("new" in line or "same trained host" in line for line in untrained.warnings)


def test_shock_and_recovery_by_site():
    groups = [intact()]
    for site, steps in {"early": (float("inf"), 40.0, float("inf")), "late": (0.0, 20.0, 30.0)}.items():
        runs = grafted(site, (-1, 1, 0))
        groups.append([row | {"shock/acc": -10.0 - row["seed"], "shock/loss": 1.0, "steps_to/recover": n} for row, n in zip(runs, steps, strict=True)])  # fmt: skip
    loading = loadings(design_of(*groups))[0]
    assert [(r.runs, r.recovered, r.median) for r in (site.recovery for site in loading.sites)] == [
        (3, 1, float("inf")),
        (3, 3, 20),
    ]
    shock, recovered = headline(loading).more[:2]
    assert shock.startswith("Before the first step, the graft had changed the host's validation accuracy by -11.0 points early (95% CI -13.5 to -8.5, n = 3)")  # fmt: skip
    assert recovered == (
        "The intact host's validation loss was reached again by 1 of 3 runs early (the median run never did) and "
        "3 of 3 runs late (median 20 steps)."
    )


def test_the_best_strategy_of_a_site_is_picked_by_validation_and_its_gain_by_the_other_seeds():
    groups = [intact(), grafted("early", (-4, -5, -4), strategy="freeze"), grafted("early", (-1, -2, -1))]
    (found,) = headlines(*groups)
    (line,) = (line for line in found.more if line.startswith("The best strategy"))
    assert "difference to no graft in points of test accuracy: full early (-1.3 ± " in line


@pytest.mark.parametrize("before, warned", [(91.5, True), (60.0, False)])
def test_the_room_is_told_and_little_of_it_is_warned_of(before, warned):
    columns = {"donor_acc": 98.0, "host_acc": 97.0}
    (found,) = headlines(intact(before=before), grafted("early", (-1, -2, -1), **columns))
    assert f"Tuning without a graft took the validation accuracy of resnet20 from {before}% to 92.3% (test accuracy after it: 92.3%)." in found.more  # fmt: skip
    donors = "On their own task, donors had 98.0% test accuracy (mean of all runs; lowest 98.0%); hosts had 97.0% on the data they were pretrained on."  # fmt: skip
    assert donors in found.more
    assert (
        any("improved validation accuracy by less than 1 point (resnet20 +0.8)" in line for line in found.warnings)
        == warned
    )


def test_hosts_that_all_seeds_share_and_new_heads_are_warned_of():
    def warnings(network, head="kept"):
        runs = grafted("early", (-1, -2, -1), head=head)
        return " ".join(
            headlines(intact(before=50.0), [row | {"host_network": network(row["seed"])} for row in runs])[0].warnings
        )

    assert "say nothing about other hosts" in warnings(lambda seed: "n")
    assert warnings(lambda seed: f"n{seed}") == ""  # a host for each seed
    assert warnings(lambda seed: f"n{seed}", "new") == "the host's head is new, as its classes are others, so shock and recovery are not reported"  # fmt: skip


def test_without_runs_of_no_graft_nothing_is_claimed():
    assert headlines(grafted("early", (1, 2, 3))) == []
    assert headlines(intact(), told(rows(AFTER, donor="random", host="resnet20"), **DIGITS)) == []


def test_the_answer_is_the_first_sentence_of_report_and_page(tmp_path):
    runs = runs_of(intact(), grafted("early", (-16, -17, -15)))
    runs.table = runs.table.assign(folder=str(tmp_path), seconds=1.0, error="")
    runs.warned = {runs.table.key[0]: ["the donor's test images leak"], "filtered out": ["of no run here"]}
    html = page.write_report(runs, tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text().splitlines()
    assert markdown[2] == "**Warning**: the donor's test images leak."
    assert html.index("test images leak") < html.index('<p class="headline">') and "of no run here" not in html
    assert markdown[4].startswith(
        "Loading a layer trained on its own into a ResNet pretrained on digits_a costs 16.0 points"
    )
    assert html.index('<p class="headline">Loading a layer') < html.index('<p class="lead">') < html.index("<h2>")
