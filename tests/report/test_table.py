"""The tidy table: from records to rows."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from layergraft import report
from layergraft.errors import UserError
from layergraft.report.contrasts import design
from layergraft.report.table import read, tidy
from layergraft.store.records import read_record, run_folder, write_record
from layergraft.store.sweep_folder import read_sweep


@pytest.fixture
def records(sweep):
    keys = read_sweep(sweep / "sweeps" / "small")["runs"]
    return [(read_record(run_folder(sweep, key)), run_folder(sweep, key)) for key in keys]


def test_finds_what_was_swept(records):
    runs = tidy(records)
    assert len(runs.table) == 14 and runs.swept == []  # nothing but the axes
    for record, _ in records[::2]:
        record.config["optim"]["lr"] = 0.5
    assert tidy(records).swept == ["optim.lr"]


def test_a_swept_name_or_donor_seed_is_an_axis(records):
    for record, _ in records[::2]:
        record.config["schedule"]["name"] = "cosine"
        record.config["donor"]["seed"] = 99
    assert set(tidy(records).swept) == {"donor.seed", "schedule.name"}


def test_what_a_donor_takes_over_from_the_run_is_no_axis(records):
    for number, (record, _) in enumerate(records):
        record.config["host"]["width"] = [4, 8][number % 2]
        if "seed" in record.config["donor"]:
            record.config["donor"]["host"] = dict(record.config["host"])  # as donor=self has it
    assert tidy(records).swept == ["host.width"]


def test_what_hosts_and_donors_were_and_what_runs_cost_are_columns_and_no_axes(records):
    for number, (record, _) in enumerate(records):
        if number % 2:
            where = {"network": "n", "data": "digits_a", "seed": 7, "num_train": 9, "metrics": {"test/acc": 97.0}}
            record.host = {"head": "kept", **where}
        record.costs = {"trained_parameters": 100 + number}
    records[0][0].host = {"head": "new", "weights": "a/b.th"}
    records[0][0].config["host"]["weights"] = "a/b.th"
    runs = tidy(records)
    table = runs.table
    assert runs.swept == ["host.weights"]  # which is a key of the config
    assert list(table.host_from[:3]) == ["with trained weights", "pretrained on digits_a", "untrained"]
    assert table.host_network[:2].tolist() == ["a/b.th", "n"] and table["head"][:2].tolist() == ["new", "kept"]
    assert table.host_acc[1] == 97 and table.trained_parameters[1] == 101 and table.peak_memory.isna().all()
    assert (table.donor_acc.notna() == (table.donor == "trained")).all() and table.donor_acc.max() <= 100
    assert (table.fit_seconds < table.seconds).all()


def test_swept_surgery_tells_arms_apart_and_no_graft_has_none(records):
    for number, (record, _) in enumerate(records):
        record.config["surgery"]["calibrate"] = ["none", "moments"][number % 2]
    runs = tidy(records)
    assert runs.swept == ["surgery.calibrate"]
    arms = set(design(runs).runs.arm)
    assert {arm for arm in arms if arm.startswith("hybrid")} == {"hybrid, trained, calibrate=none", "hybrid, trained, calibrate=moments"}  # fmt: skip
    assert [arm for arm in arms if arm.startswith("no graft")] == ["no graft"]


def test_values_are_written_as_people_write_them(records):
    for number, (record, _) in enumerate(records):
        record.config["data"]["corrupt"]["blocks"] = [None, 4][number % 2]
        record.config["host"]["skips"] = number % 2 == 0
        record.config["data"]["classes"] = [[0, 1], [2, 3]][number % 2]
    table = tidy(records).table
    assert set(table["data.corrupt.blocks"]) == {"null", "4"} and set(table["host.skips"]) == {"true", "false"}
    assert set(table["data.classes"]) == {"0+1", "2+3"}


def test_a_row_a_run_whatever_became_of_it(sweep, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(sweep, outputs)
    lost, failed, lonely = read_sweep(outputs / "sweeps" / "small")["runs"][:3]
    (outputs / "runs" / lost / "record.json").unlink()
    record = read_record(run_folder(outputs, failed))
    record.status, record.error, record.metrics = "failed", "RuntimeError: <b>bad</b>", {}
    write_record(run_folder(outputs, failed), record)
    page = report.write([outputs / "sweeps" / "small"]).read_text()
    for name in ("csv", "parquet"):
        table = getattr(pd, f"read_{name}")(outputs / "sweeps" / "small" / f"runs.{name}")
        assert table.status.value_counts().to_dict() == {"completed": 12, "failed": 1, "missing": 1}
        assert {"key", "strategy", "site", "host", "donor", "seed", "test/acc", "val/aulc", "arm", "record"} <= set(
            table
        )
    assert "12 of 14 runs completed" in page and f"missing: <code>{lost}</code>" in page
    assert f"failed: <code>{failed}</code> RuntimeError: &lt;b&gt;bad&lt;/b&gt;" in page


def test_a_run_without_partner_is_told(sweep, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(sweep, outputs)
    for folder in (outputs / "runs").glob("full.*none.seed1*"):  # no graft with seed 1
        shutil.rmtree(folder)
    page = report.write([outputs / "sweeps" / "small"]).read_text()
    assert (
        "without a partner of the same seed in &#39;no graft&#39;, so in no difference to it: 6 runs, such as" in page
    )


def test_several_sweeps_or_all_runs_filtered(sweep, tmp_path):
    small = sweep / "sweeps" / "small"
    both = read([small, sweep / "runs"])
    assert len(both.table) == 14  # a run of both counts once
    assert set(read([small], "site=early").table.site) == {"early", "-"}  # no graft is in those of every site
    page = report.write([sweep / "runs"], "strategy=freeze,seed<1", tmp_path / "frozen")
    assert len(pd.read_csv(tmp_path / "frozen" / "runs.csv")) == 4 and page.parent == tmp_path / "frozen"
    assert report.write([sweep / "runs"], "site=early").parent.parent == sweep / "reports"


def test_what_is_no_folder_of_runs_is_refused(sweep, tmp_path):
    with pytest.raises(UserError, match="unknown sweep"):
        read([tmp_path])
    with pytest.raises(UserError, match="no run of runs has seed<0"):
        read([sweep / "runs"], "seed<0")


@pytest.mark.parametrize(
    "path", ["strategy.weight_decay.graft", "strategy.l2_sp.graft", "strategy.split.rest.by", "optim.options.eps"]
)
def test_a_key_that_some_lack_tells_runs_apart(path, records):
    *parents, name = path.split(".")
    for record, _ in records[::2]:
        there = record.config
        for parent in parents:
            there = there.setdefault(parent, {})
        there[name] = 0.1
    runs = tidy(records)
    assert (
        runs.swept == [path]
        and set(runs.table[path]) <= {"0.1", "unset", "-"}
        and {"0.1", "unset"} <= set(runs.table[path])
    )


def test_a_donor_seed_that_only_some_fix_does_not_split_the_others(records):
    for record, _ in records[::2]:
        if "seed" in record.config["donor"]:
            record.config["donor"]["seed"] = 99
    levels = set(tidy(records).table["donor.seed"])
    assert {"99", "as the run's"} <= levels <= {"99", "as the run's", "-"}


def test_what_goes_with_a_host_alone_is_told(records):
    for record, _ in records[::2]:
        record.axes["host"] = record.config["host"]["name"] = "resnet34"
        record.config["host"]["width"] = 64
    runs = tidy(records)
    assert runs.swept == []
    assert runs.notes == ["host.width goes with the host: resnet34 has 64, resnet18 has 4"]


def test_runs_alike_in_everything_are_told(records):
    again = [(replace(record, key=f"{record.key}-again"), folder) for record, folder in records[:2]]
    (note,) = tidy([*records, *again]).notes
    assert note.startswith("4 runs are alike in every axis, seed included, and count as their mean, such as ")


def test_a_damaged_record_and_one_that_lacks_fields_are_runs_all_the_same(sweep, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(sweep, outputs)
    damaged, sparse, *_ = sorted((outputs / "runs").glob("hybrid.*"))
    (damaged / "record.json").write_text('{"key": ')
    record = json.loads((sparse / "record.json").read_text())
    for name in ("plan", "data", "similarity", "timings", "donors", "grafts"):
        record.pop(name, None)
    record["environment"] = {"device": "CPU"}
    (sparse / "record.json").write_text(json.dumps(record))
    (sparse / "curves.csv").write_text("epoch\n1\n")
    text = report.write([outputs / "sweeps" / "small"]).read_text()
    assert f"damaged: <code>{damaged.name}</code>" in text and "13 of 14 runs completed" in text


def test_what_was_never_reached_is_told_from_what_does_not_apply(records):
    for record, _ in records:
        record.metrics["steps_to/90"] = None
    table = tidy(records).table
    assert (table["steps_to/90"] == float("inf")).all()
    assert "steps_to/recover" not in table  # of hosts with initial weights
    assert set(table.steps) == {records[0][0].data["images"]["train"] // 25 * 2}


def test_conditions_that_differ_in_their_sign_alone_have_reports_of_their_own(sweep):
    from layergraft.report.table import target

    folders = [target([sweep / "runs"], where) for where in ("seed<1", "seed>1", "seed=1")]
    assert len(set(folders)) == 3 and all(folder.parent == sweep / "reports" for folder in folders)


def test_contrasts_of_the_same_name_stay_apart(sweep, tmp_path):
    folders = [tmp_path / name / "sweeps" / "small" for name in "abc"]
    for number, folder in enumerate(folders):
        shutil.copytree(sweep, folder.parents[1])
        plan = json.loads((folder / "sweep.json").read_text())
        plan["contrasts"] = {"gain": {"of": [f"+seed={number % 2}", "-strategy=full"], "metric": "test/acc"}}
        (folder / "sweep.json").write_text(json.dumps(plan))
    assert list(read([*folders, folders[0]]).contrasts) == ["gain", "gain (small)", "gain (2)"]
