"""Seeds are added to the contrasts whose intervals are too wide, to their arms alone, and never by what came out."""

import json
from types import SimpleNamespace

import pytest

from layergraft.report.contrasts import contrast, design, named
from layergraft.report.table import read
from layergraft.stats import widening
from layergraft.store.records import RunRecord
from layergraft.sweeps import seed_rounds

ASKED = [
    "-m", "data=digits_0_to_4", "host=resnet8", "host.width=2", "schedule.epochs=2", "optim.batch_size=25", "exec.device=cpu",
    "exec.probe.epochs=[]", "exec.similarity.resamples=0", "donor=random", "strategy=freeze,full", "site=early", "seed=range(3)",
    'hydra.sweeper.controls=[["donor=none","strategy=full"]]', "exec.sweep=precise",
    '+hydra.sweeper.contrasts.full={of:["+strategy=full,donor=random","-donor=none"]}',
    '+hydra.sweeper.contrasts.freeze={of:["+strategy=freeze","-donor=none"]}',
    '+hydra.sweeper.contrasts.loss={metric:test/loss,of:["+strategy=full,donor=random","-donor=none"]}',
    "hydra.sweeper.max_seeds=6",
]  # fmt: skip


def _runs(outputs):
    sweep = json.loads((outputs / "sweeps" / "precise" / "sweep.json").read_text())
    return sweep, read([outputs / "sweeps" / "precise"])


@pytest.mark.slow
def test_wide_contrasts_have_seeds_added_and_precise_ones_have_not(tmp_path, command):
    code, _, err = command("train", *ASKED, f"exec.outputs={tmp_path}")
    assert code == 0, err
    _, runs = _runs(tmp_path)
    before = {c.name: c.difference.half_width for c in named(design(runs), runs.contrasts)[0]}
    widths = {name: before[name] * widening(3) for name in ("full", "freeze")}
    wide, narrow = max(widths, key=widths.get), min(widths, key=widths.get)
    assert widths[narrow] < widths[wide]
    asked = (widths[narrow] + widths[wide]) / 2
    code, _, err = command("train", *ASKED, f"hydra.sweeper.precision={asked}", f"exec.outputs={tmp_path}")
    assert code == 0, err
    sweep, runs = _runs(tmp_path)
    seeds = {name: spec["seeds"] for name, spec in sweep["contrasts"].items()}
    assert seeds[narrow] == [0, 1, 2] and seeds[wide] == list(range(len(seeds[wide]))) and 3 < len(seeds[wide]) <= 6
    by_strategy = runs.completed[runs.completed.donor == "random"].groupby("strategy").seed.nunique().to_dict()
    assert by_strategy == {name: len(seeds[name]) for name in ("full", "freeze")}  # the arms of the wide one alone
    found = {c.name: c.difference for c in named(design(runs), runs.contrasts)[0]}
    whole = design(runs)
    terms = sweep["contrasts"][wide]["of"]
    plain = contrast(whole, wide, terms).difference
    assert plain.n == found[wide].n and found[wide].half_width == pytest.approx(plain.half_width * widening(plain.n))
    assert found[wide].half_width <= asked or found[wide].n == 6
    assert (
        seeds["loss"] == [0, 1, 2] and found["loss"].half_width == before["loss"]
    )  # in nats: neither added to nor widened
    assert f"{wide}: ± " in err and f"{narrow}: ± " not in err
    report = (tmp_path / "sweeps" / "precise" / "report.md").read_text()
    assert "All else in this report is of seeds 0 to 2" in report
    code, _, err = command("train", *ASKED, f"hydra.sweeper.precision={asked}", f"exec.outputs={tmp_path}")
    assert code == 0 and f"{len(sweep['runs'])} of {len(sweep['runs'])} runs in the store already" in err


def test_arms_at_rates_of_their_own_are_compared(monkeypatch, tmp_path):
    """A tuned rate is no setting: arms whose rates differ share their cells."""
    accuracies = {"full": [70.0, 72.0, 76.0], "freeze": [60.0, 61.0, 60.5]}
    plans, records = [], {}
    for strategy, lr in (("full", 0.01), ("freeze", 0.001)):
        for seed, accuracy in enumerate(accuracies[strategy]):
            key = f"{strategy}{seed}"
            axes = {"strategy": strategy, "site": "early", "host": "h", "donor": "trained", "data": "d", "seed": seed}
            config = {"optim": {"lr": lr}, "schedule": {"epochs": 1}, "seed": seed}
            metrics = {"test/acc": accuracy, "val/acc": accuracy}
            records[key] = RunRecord(key, "completed", axes, config, metrics=metrics, units=dict.fromkeys(metrics, "%"))
            run = SimpleNamespace(seed=seed)
            plans.append(
                SimpleNamespace(key=key, folder=key, overrides=(f"strategy={strategy}", f"optim.lr={lr}"), config=run)
            )
    monkeypatch.setattr(seed_rounds, "read_record", records.get)
    specs = {"full less freeze": {"of": ["+strategy=full", "-strategy=freeze"], "metric": "test/acc"}}
    rounds = seed_rounds.SeedRounds(1.0, 5, specs, (3,), ("optim.lr",))
    rounds.begin(plans)
    more = rounds.next(plans)
    assert rounds.contrasts["full less freeze"]["seeds"] == [0, 1, 2, 4, 5]  # 3 is the tuning's
    rates = {"full": 0.01, "freeze": 0.001}
    assert sorted(more.combinations) == sorted(
        [f"strategy={name}", f"optim.lr={lr}", f"seed={seed}"] for name, lr in rates.items() for seed in (4, 5)
    )
    assert rounds.contrasts["full less freeze"]["by_width"] is True


@pytest.mark.parametrize(
    "more, message",
    [
        (["hydra.sweeper.precision=0"], "hydra.sweeper.precision is 0.0; it is a half-width above 0"),
        (["hydra.sweeper.precision=1", "seed=0,1"], "takes 3 seeds or more to begin with; the sweep has 2"),
        (["hydra.sweeper.precision=1", "seed=range(9)"], "hydra.sweeper.max_seeds is 6, and the sweep has 9 seeds"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_runs(more, message, tmp_path, command):
    code, _, err = command("train", *ASKED, *more, f"exec.outputs={tmp_path}/o")
    assert code == 2 and message in err.splitlines()[-1] and not (tmp_path / "o").exists()


def test_a_sweep_without_contrasts_has_nothing_to_be_precise(tmp_path, command):
    none = [argument for argument in ASKED if "contrasts" not in argument]
    code, _, err = command("train", *none, "hydra.sweeper.precision=1", f"exec.outputs={tmp_path}/o")
    assert code == 2 and "this sweep names none" in err.splitlines()[-1]
