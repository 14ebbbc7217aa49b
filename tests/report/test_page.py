"""The page, as a browser shows it, and what it says."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.report.made import no_graft, rows, runs_of

from layergraft import report
from layergraft.errors import UserError
from layergraft.report import page
from layergraft.report.contrasts import between, design
from layergraft.report.curves import learning_curves, validation_accuracies
from layergraft.report.findings import find
from layergraft.report.narrative import describe_difference, describe_metric, sentences
from layergraft.report.table import read
from layergraft.stats import mean_difference

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def opened(sweep):
    """The report of the small sweep in headless Chromium, and all that went wrong there or asked for a network."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        tab.goto((sweep / "sweeps" / "small" / "report.html").as_uri())
        tab.wait_for_selector("body[data-ready=drawn]")
        yield tab, wrong
        browser.close()


def shown(tab):
    return int(re.search(r"of (\d+) entr", tab.inner_text(".dt-info"))[1])


def test_opens_without_a_network_and_without_an_error(opened):
    tab, wrong = opened
    charts = tab.eval_on_selector_all(".chart", "all => all.map(at => [at.id, at.querySelectorAll('svg').length])")
    assert charts and all(number == 1 for _, number in charts) and wrong == []
    assert {"chart-contrasts", "chart-gain", "chart-speed", "chart-learning_curves", "chart-shares"} <= {
        name for name, _ in charts
    }
    assert shown(tab) == 14


def test_filters_everything_and_back(opened):
    tab, wrong = opened
    marks = "document.querySelectorAll('#chart-gain svg .mark-text.role-mark text').length"
    places = "document.querySelectorAll('[data-axes]:not(.hidden)').length"
    before = tab.evaluate(f"[{marks}, {places}]")
    tab.select_option("#filters label:has-text('site') select", "late")
    tab.wait_for_selector("body[data-ready=filtered]")
    assert tab.evaluate(f"[{marks}, {places}]") == [before[0] // 2, before[1] // 2]
    lines = "[...document.querySelectorAll('#chart-learning_curves svg .mark-line path')].length"
    assert tab.evaluate(lines) == 4  # three arms at the site, and no graft
    assert "Shown: site late" in tab.inner_text("#filtered")
    assert shown(tab) == 8  # 6 of the site, and no graft, which has none
    tab.select_option("#filters label:has-text('seed') select", "1")
    tab.wait_for_function("document.querySelector('.dt-info').textContent.includes(' 4 entr')")
    tab.click("#reset")
    tab.wait_for_function("document.querySelector('.dt-info').textContent.includes(' 14 entr')")
    assert tab.evaluate(f"[{marks}, {places}]") == before and wrong == []


def test_a_choice_that_no_run_meets_is_said_and_no_error(opened):
    tab, wrong = opened
    tab.select_option("#filters label:has-text('strategy') select", "full")
    tab.select_option("#filters label:has-text('site') select", "late")
    tab.wait_for_function("document.querySelector('#chart-gain').classList.contains('none')")
    assert shown(tab) == 2 and wrong == []  # no graft, which has no site
    tab.click("#reset")
    tab.wait_for_function("!document.querySelector('#chart-gain').classList.contains('none')")


def test_sorts_and_shows_a_run_with_its_record(opened, sweep):
    tab, wrong = opened
    tab.click("#runs th:has-text('test/acc')")
    accuracies = pd.read_csv(sweep / "sweeps" / "small" / "runs.csv")["test/acc"]
    column = tab.eval_on_selector_all(
        "#runs thead th", "all => all.findIndex(at => at.textContent.includes('test/acc'))"
    )
    first = tab.inner_text(f"#runs tbody tr:first-child td:nth-child({column + 1})")
    assert float(first) == pytest.approx(accuracies.min(), abs=0.001)
    tab.click("#runs tbody tr:first-child")
    link = tab.get_attribute("#run a", "href")
    record = json.loads((sweep / "sweeps" / "small" / link).read_text())
    assert record["metrics"]["test/acc"] == pytest.approx(accuracies.min())
    tab.click("#run button")
    assert wrong == []


def test_fits_a_phone(opened):
    tab, _ = opened
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    cards = "[...document.querySelectorAll('table.stack td')].every(at => at.getBoundingClientRect().right <= 390)"
    assert tab.evaluate(cards)  # no figure of the answers is cut off
    tab.set_viewport_size({"width": 1200, "height": 900})


def test_prints_all_of_it(opened):
    tab, _ = opened
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("[...document.querySelectorAll('details')].every(at => at.open)")
    assert tab.pdf()[:4] == b"%PDF"


def test_says_what_the_runs_say(sweep):
    folder = sweep / "sweeps" / "small"
    found = find(read([folder]))
    text = {name: (folder / f"report.{name}").read_text() for name in ("html", "md")}
    assert len(found.contrasts) == 3 and len(found.answers) == 2
    for told in text.values():
        for contrast in found.contrasts:
            assert contrast.name in told and describe_difference(contrast.difference) in told
        for answer in found.answers:
            assert describe_difference(answer.gains["no graft"]) in told
        for row in found.across.to_dict("records"):
            assert str(row["iqm"]) in told
        varied = "the split into training, validation and test images; the few-shot images; the donors; the host's initial weights"
        assert varied in told.replace("&#39;", "'")
    assert (
        "layergraft train -m host.pretrain.data=none data=digits_0_to_4 strategy=freeze,hybrid" in text["md"]
        and "CPU" in text["md"]
    )


def test_every_figure_is_there_as_png_and_svg(sweep):
    folder = sweep / "sweeps" / "small" / "figures"
    for name in (
        "contrasts",
        "gain",
        "speed",
        "learning_curves",
        "shares",
        "plan.hybrid",
        "filters.hybrid--trained.early.resnet18",
    ):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG", name
        assert "<svg" in (folder / f"{name}.svg").read_text()
    for picture in re.findall(r"\((figures/[\w.-]+)\)", (folder.parent / "report.md").read_text()):
        assert (folder.parent / picture).exists()


def test_across_places_each_seed_has_one_figure():
    groups = [no_graft({0: 50, 1: 50})]
    for site, gains in {"a": (1, 2), "b": (2, 3), "c": (3, -1), "d": (100, 0)}.items():
        groups.append(rows({0: 50 + gains[0], 1: 50 + gains[1]}, site=site))
    (row,) = find(runs_of(*groups)).across.to_dict("records")
    assert str(row["iqm"]) == str(mean_difference([2.5, 1.0]))  # the middle half of 1 2 3 100 and of -1 0 2 3
    assert str(row["better"]) == str(mean_difference([50.0, 12.5]))  # beyond 50%; a tie counts half
    assert (row["cells"], row["n"], row["lost"]) == (4, 2, ())


def test_the_ladder_takes_the_gain_apart():
    rng = np.random.default_rng(0)
    levels = {"random": 1, "moment_matched": 3, "covariance": 6, "trained": 10, "end_to_end": 11}
    noise = rng.normal(0, 0.1, (len(levels), 3))
    groups = [rows({s: 50 + level + e for s, e in enumerate(errors)}, donor=donor, strategy="freeze")
              for (donor, level), errors in zip(levels.items(), noise, strict=True)]  # fmt: skip
    found = find(runs_of(no_graft({0: 50, 1: 50, 2: 50}), *groups))
    assert list(found.ladder.donor) == list(levels)
    assert [round(d.mean) for d in found.steps.difference] == [2, 3, 4, 9, 1]
    assert {d.family for d in found.steps.difference} == {5}  # corrected together
    (line,) = (line for line in sentences(found) if line.startswith("With freeze"))
    assert re.search(
        r"trained layer gains \+8.9.* of it scale \+2\.\d \(significant\), spectrum \+3.*, learned structure \+3.9",
        line,
    )


def of_sources(gains_by_distance, sites=("a", "b"), by_site=0):
    """Sources at distances, at sites of which each later one gains less and is `by_site` further."""
    groups = [no_graft({0: 50, 1: 50, 2: 50})]
    for number, site in enumerate(sites):
        for source, (distance, gain) in enumerate(gains_by_distance):
            axes = {"site": site, "donor.data.dial": str(source)}
            for row in rows({seed: 50 + gain - 10 * number + seed % 2 for seed in range(3)}, **axes):
                groups.append([row | {"similarity/site/frechet": distance + by_site * number + row["seed"] / 10}])
    return find(runs_of(*groups)).similar


def test_similarity_is_ranked_over_sources():
    (row,) = of_sources([(1, 9), (2, 6), (3, 7), (4, 1), (5, -3), (6, -4)]).to_dict("records")
    found = row["association"]
    assert (row["measure"], found.n) == ("site/frechet", 6)
    assert found.rho == pytest.approx(-0.943, abs=1e-3) and found.significant  # one exchange of 6
    few = of_sources([(1, 9), (2, 6), (3, 1), (4, 0)]).association[0]
    assert few.rho == -1 and few.p == pytest.approx(2 / 24) and not few.decidable


def of_factors(shapes, blocks, control=False):
    """Sources of shapes x blocks whose distance and gain are those of their blocks, and a control beside them."""
    groups = [no_graft({0: 50, 1: 50, 2: 50})]
    sources = [(shape, block, "0") for shape in range(shapes) for block in range(blocks)] + [(0, 0, "5")] * control
    for shape, block, blur in sources:
        axes = {
            "donor.data.classes": f"c{shape}",
            "donor.data.corrupt.blocks": f"b{block}",
            "donor.data.corrupt.blur": blur,
        }
        for row in rows({seed: 60 - 2 * block - shape / 10 + seed for seed in range(3)}, **axes):
            groups.append([row | {"similarity/site/frechet": float(block * 2 + shape) / 10}])
    return find(runs_of(*groups))


def test_sources_of_factors_are_relabelled_within_them():
    found = of_factors(2, 3)
    (row,) = found.similar.association
    assert (row.n, row.p, row.decidable) == (6, pytest.approx(2 / 12), False)
    said = sentences(found)[-1]
    assert said.startswith(
        "Over 6 sources, these sources cannot show whether similarity predicts the gain: p after Holm"
    )
    assert said.endswith("correction would be 0.17 at best.")
    (row,) = of_factors(2, 5, control=True).similar.association
    assert (row.n, row.p, row.significant) == (10, pytest.approx(2 / 240), True)  # without the control


def test_what_sites_differ_in_is_no_similarity():
    """One source, and a second alike: gains fall and distances grow from site to site, which says nothing of sources."""
    assert len(of_sources([(1, 9)], sites="abcdef", by_site=5)) == 0
    (found,) = of_sources([(1, 5), (2, 1), (3, 4), (4, 2), (5, 3)], sites="abcdef", by_site=50).association
    assert found.n == 5 and not found.significant


def test_sources_that_are_held_against_none_do_not_count():
    groups = [no_graft({0: 50, 1: 50}, data=f"t{number}") for number in range(6)]
    for number in range(6):
        for source in [number, 9] if number == 0 else [number]:
            for row in rows({0: 50 + number, 1: 51}, data=f"t{number}", **{"donor.data.dial": str(source)}):
                groups.append([row | {"similarity/fixed/leep": float(source)}])
    assert len(find(runs_of(*groups)).similar) == 0  # two sources that share a target, and five alone


def test_curves_of_a_host_without_a_swept_key_are_there(tmp_path):
    groups = [rows({0: 50, 1: 51}, host=host, **axes) for host, axes in (("a", {"host.width": "4"}), ("a", {"host.width": "8"}), ("b", {}))]  # fmt: skip
    groups += [no_graft({0: 50, 1: 51}, host="b")]
    runs = runs_of(*groups)
    (tmp_path / "curves.csv").write_text("epoch,val/acc\n0,50\n1,60\n")
    runs.table = runs.table.assign(folder=str(tmp_path))
    assert {"a, host.width=4", "a, host.width=8", "b"} == set(
        learning_curves(design(runs), validation_accuracies(runs.table)).setting
    )


def test_a_cell_that_failed_in_every_seed_changes_no_population():
    rng = np.random.default_rng(0)
    groups = [rows(dict(enumerate(rng.normal(50, 1, 3))), strategy=s, donor=d, **{"optim.lr": lr, "optim.momentum": 2 * lr})
              for s in ("full", "freeze") for d in ("trained", "random") for lr in (1, 2)]  # fmt: skip
    runs = runs_of(*groups)
    whole = find(runs)
    assert whole.shares.balanced and whole.shares_of == "all runs with a donor"  # lr and momentum are one factor
    runs.table.loc[runs.table.key.isin([row["key"] for row in groups[0]]), "status"] = "diverged"
    part = find(runs)
    assert part.shares_of == whole.shares_of and part.shares.num_lost_cells == 1 and part.shares.num_runs == 21


def test_shares_are_of_what_was_planned_whatever_became_of_it():
    """A run that is missing changes neither whose variance it is nor what effects are judged against."""
    rng = np.random.default_rng(0)
    groups = [rows(dict(enumerate(rng.normal(50, 1, 4))), strategy=s, site=p) for s in ("full", "freeze") for p in "ab"]
    control = rows({0: 40, 1: 41, 2: 42, 3: 41}, strategy="freeze", donor="random", site="a")
    for parts, seeds in ((groups, 4), ([groups[0][:3], *groups[1:]], 3)):
        found = find(runs_of(*parts, control))
        assert found.shares.balanced and found.shares.num_runs == 4 * seeds and "learned" in found.shares_of
        assert found.shares.lost_seeds == (3,) * (seeds == 3)


def test_one_seed_says_so(tmp_path):
    table = runs_of(no_graft({0: 50}), rows({0: 60}))
    table.table = table.table.assign(folder=str(tmp_path), seconds=1.0, error="")
    text = page.write_report(table, tmp_path).read_text()
    assert (
        "One seed gives no intervals" in text
        and "data-label" in text
        and between(design(table), "full, trained", "no graft").difference.n == 1
    )


def test_a_sweep_without_baseline_still_has_its_report(tmp_path):
    table = runs_of(rows({0: 50, 1: 51}), rows({0: 60, 1: 62}, donor="permuted"))
    table.table = table.table.assign(folder=str(tmp_path), seconds=1.0, error="")
    text = Path(page.write_report(table, tmp_path)).read_text()
    assert "Every pair of arms" in text and "full, trained less full, permuted" in text


def test_figures_that_are_somebodys_own_stay(sweep, tmp_path):
    (tmp_path / "figures").mkdir()
    own = tmp_path / "figures" / "mine.tex"
    own.write_text("mine")
    report.write([sweep / "sweeps" / "small"], to=tmp_path)
    assert (tmp_path / "figures" / "filters.hybrid--trained.early.resnet18.png").exists()
    report.write([sweep / "sweeps" / "small"], "strategy=freeze,donor=random", to=tmp_path)
    assert own.read_text() == "mine"
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert not any(name.startswith("filters.hybrid") for name in names)  # of the report before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".figures")]


def test_markdown_stands_what_a_name_may_have(tmp_path):
    table = runs_of(no_graft({0: 50, 1: 51}), rows({0: 60, 1: 62}, **{"strategy.groups.tuned": "conv1|layer1"}))
    failed = table.table.iloc[-1:].assign(key="k", status="failed", error="a | b\nc <b>")
    table.table = pd.concat([table.table, failed]).assign(
        folder=str(tmp_path), seconds=1.0, error=[*[""] * 4, "a | b\nc <b>"]
    )
    page.write_report(table, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "- failed: `k` a \\| b c &lt;b>" in lines
    columns = {line.count("|") - line.count("\\|") for line in lines if line.startswith("|") and "tuned" in line}
    assert columns == {12, 7, 6}  # of what an arm costs in all, of the contrasts, of the answers


def test_the_table_of_contrasts_has_p_of_equivalence_where_one_has_a_margin(tmp_path):
    runs = runs_of(no_graft({0: 50, 1: 51, 2: 50}), rows({0: 50.1, 1: 50.9, 2: 50}))
    runs.table = runs.table.assign(folder=str(tmp_path), seconds=1.0, error="")
    runs.contrasts = {"full": {"of": ["+strategy=full", "-donor=none"], "metric": "test/acc", "margin": 1.0}}
    page.write_report(runs, tmp_path)
    head, rule, row = (tmp_path / "report.md").read_text().partition("| contrast |")[2].splitlines()[:3]
    assert head.endswith("| p, Holm | p of equivalence, Holm |") and rule.count("---") == 7
    assert "equivalent within ±1 (n = 3" in row and row.endswith("| 0.002 |"), row
    assert "p of equivalence, Holm</th>" in (tmp_path / "report.html").read_text()


def test_any_metric_of_the_runs_is_compared_and_listed(sweep):
    small = sweep / "sweeps" / "small"
    sides = ("strategy=freeze,donor=trained", "strategy=hybrid")
    told = {name: report.compare(*sides, [small], name).splitlines()[0] for name in ("test/ece", "val/loss", "drift")}
    assert "less strategy=hybrid, test/ece, points, lower is better: " in told["test/ece"]
    assert "less strategy=hybrid, val/loss, nats, lower is better: " in told["val/loss"]
    assert "less strategy=hybrid, drift, relative: " in told["drift"]
    with pytest.raises(UserError, match="'val/eec'; did you mean 'val/ece'.*val/balanced_acc"):
        report.compare(*sides, [small], "val/eec")
    lines = (small / "report.md").read_text().splitlines()
    assert "| test/balanced_acc | % | higher |" in lines and "| val/ece | % | lower |" in lines
    assert "| drift | relative |  |" in lines
    assert {"test/ece", "val/balanced_acc"} <= set(pd.read_csv(small / "runs.csv"))


def test_a_metric_of_a_package_that_is_gone_is_told_without_a_direction():
    assert describe_metric("test/f2", {"test/f2": "%"}) == "test/f2, %"


def test_compare_says_what_counts(sweep, tmp_path):
    small = sweep / "sweeps" / "small"
    told = report.compare("strategy=freeze,donor=trained", "strategy=hybrid", [small])
    accuracies = pd.read_csv(small / "runs.csv").groupby(["strategy", "donor", "seed"])["test/acc"].mean()
    delta = accuracies["freeze", "trained"] - accuracies["hybrid", "trained"]
    first, second = told.splitlines()
    assert first.startswith(
        f"strategy=freeze,donor=trained less strategy=hybrid, points of test accuracy: {delta.mean():+.1f} ± "
    )
    assert second.startswith("2 seeds (0, 1), 2 cells, p = ")
    told = report.compare("strategy=freeze,donor=trained", "strategy=hybrid", [small], margin=1e6)
    assert "equivalent within ±1e+06 (n = 2; costs at most " in told and ", p of equivalence = " in told
    shutil.copytree(sweep, tmp_path / "outputs")
    shutil.rmtree(next((tmp_path / "outputs" / "runs").glob("hybrid.late*seed1*")))
    told = report.compare(
        "strategy=freeze,donor=trained", "strategy=hybrid", [tmp_path / "outputs" / "sweeps" / "small"], "val/acc"
    )
    assert "less strategy=hybrid, val/acc, points: " in told
    assert "one seed, so no interval" in told and "seeds that lack a cell: 1" in told
    assert told.splitlines()[-1] == "not counted, as missing: 1 run"
