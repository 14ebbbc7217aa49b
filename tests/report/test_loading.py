"""Shock, recovery, costs and calibration: which runs count, and how they are paired."""

import math

import pytest
from tests.report.made import design_of, no_graft, rows, runs_of

from layergraft.report.contrasts import design
from layergraft.report.curves import recovery_curves, validation_accuracies
from layergraft.report.findings import find
from layergraft.report.loading import calibration, shocks

TRAINED = {"host_from": "pretrained on d", "host_network": "n", "head": "kept"}


def shocked(site, acc, **axes):
    """Runs whose shock is `acc` by seed."""
    return [row | TRAINED | {"shock/acc": acc[row["seed"]], "shock/loss": -acc[row["seed"]] / 10, "steps_to/recover": 10.0}
            for row in rows(dict.fromkeys(acc, 50.0), site=site, **axes)]  # fmt: skip


def test_the_strategy_has_no_part_in_the_shock():
    groups = [shocked("early", {0: -20.0, 1: -30.0}, strategy=name) for name in ("full", "freeze")]
    groups.append(shocked("early", {0: -40.0, 1: -41.0}, donor="random"))
    table = shocks(design_of(no_graft({0: 50, 1: 50}), *groups))
    assert [(row.kind, row.difference.mean, row.difference.n) for row in table.itertuples()] == [
        ("trained", -25, 2),
        ("random", -40.5, 2),
    ]


def test_what_calibration_recovers_is_paired_by_seed():
    levels = {"moments": {0: -10.0, 1: -22.0, 2: -15.0}, "none": {0: -20.0, 1: -30.0, 2: -26.0}}
    groups = [shocked("early", acc, **{"surgery.calibrate": name}) for name, acc in levels.items()]
    groups.append(shocked("early", levels["none"], donor="random", **{"surgery.calibrate": "none"}))
    none, moments = calibration(design_of(no_graft({0: 50, 1: 50, 2: 50}), *groups)).to_dict("records")
    assert (none["calibrate"], none["acc_to_none"]) == ("none", None)
    assert none["acc"].mean == pytest.approx(-76 / 3)  # random layers do not count
    found = moments["acc_to_none"]
    assert (found.n, found.mean, found.family) == (3, pytest.approx(29 / 3), 1) and found.significant
    assert moments["loss_to_none"].mean == pytest.approx(-2.9 / 3)


def test_there_is_no_table_of_calibration_where_it_was_not_swept():
    assert len(calibration(design_of(no_graft({0: 50, 1: 50}), shocked("early", {0: -20.0, 1: -30.0})))) == 0


def test_costs_by_arm():
    def with_costs(runs, parameters, seconds):
        return [row | {"trained_parameters": parameters + row["seed"], "fit_seconds": s, "peak_memory": 3 * 2**20}
                for row, s in zip(runs, seconds, strict=True)]  # fmt: skip

    arm = shocked("early", {0: -20.0, 1: 0.0, 2: -30.0})
    arm[2]["steps_to/recover"] = math.inf
    found = find(runs_of(with_costs(no_graft({0: 50, 1: 51, 2: 52}), 900, (9, 9, 9)), with_costs(arm, 100, (1, 5, 2))))
    without, grafted = found.costs.to_dict("records")
    assert (without["arm"], without["difference"], without["recovery"]) == ("no graft", None, None)
    assert (grafted["parameters"], grafted["seconds"], grafted["memory"]) == ((100, 102), 2, 3)
    assert (grafted["shocked"], grafted["recovery"].recovered, grafted["recovery"].median) == (2, 2, 10)
    assert grafted["difference"].mean == -1


def test_recovery_curves_begin_before_the_first_step_beside_the_intact_host(tmp_path):
    def starting(runs, acc):
        return [row | TRAINED | {"step0/acc": acc + row["seed"]} for row in runs]

    runs = runs_of(
        *(starting(no_graft({0: 50, 1: 50}, host=host), 90.0) for host in "ab"),
        *(starting(rows({0: 50, 1: 50}, site=site, host=host), 20.0) for site in ("early", "late") for host in "ab"),
        rows({0: 50, 1: 50}, site="late", host="a", strategy="freeze"),  # not looked at before the first step
    )
    (tmp_path / "curves.csv").write_text("epoch,val/acc\n0,50\n1,60\n")
    runs.table = runs.table.assign(folder=str(tmp_path), host_from="pretrained on d")
    table = recovery_curves(design(runs), validation_accuracies(runs.table))
    assert set(zip(table.panel, table.arm, strict=True)) == {(site, arm) for site in ("early", "late") for arm in ("no graft", "full, trained")}  # fmt: skip
    late = table[(table.panel == "late") & (table.arm == "full, trained")]
    assert late["mean"].tolist() == [20.5, 50, 60] and late.epoch.tolist() == [0, 1, 2] and set(late.n) == {2}
    assert set(table.intact) == {90.5}
