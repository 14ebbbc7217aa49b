"""The report: the numbers in it, the page, TensorBoard's events."""

import json
import re
import shutil

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from layergraft import report
from layergraft.errors import UserError
from layergraft.report import contrasts
from layergraft.report.table import read_records, tidy
from layergraft.stats import difference


def rows(accuracies, **axes):
    """Runs by seed of one arm, as `tidy` gives them."""
    base = {"strategy": "full", "site": "early", "host": "h", "donor": "trained", "data": "d"} | axes
    return [
        {"key": str(i), "status": "completed", **base, "seed": seed, "test/acc": a}
        for i, (seed, a) in enumerate(accuracies.items())
    ]


def table(*groups):
    return contrasts.with_arms(pd.DataFrame([row for group in groups for row in group]))


def test_arms_are_paired_by_seed_within_each_cell():
    runs = table(
        rows({0: 50, 1: 60}, donor="none", site="-"),
        rows({0: 52, 1: 64}, site="early"),
        rows({0: 51, 1: 59}, site="late"),
    )
    (only,) = contrasts.compare(runs, "test/acc", contrasts.sites_of(runs))
    assert (only.arm, only.baseline, only.num_cells) == ("full, trained", "scratch", 2)
    assert only.difference == difference({0: 51.5, 1: 61.5}, {0: 50, 1: 60})
    cells = contrasts.against(runs, "test/acc", "scratch")["h"]
    assert (cells.loc["full, trained", "early"].mean, cells.loc["full, trained", "late"].mean) == (3.0, 0.0)


def test_a_seed_that_misses_a_cell_is_left_out():
    runs = table(rows({0: 50, 1: 60, 2: 99}, strategy="freeze"), rows({0: 51, 1: 62}))
    (only,) = contrasts.compare(runs, "test/acc", contrasts.sites_of(runs))
    assert (only.difference.n, only.difference.mean) == (2, -1.5)


def test_what_else_was_swept_tells_arms_and_settings_apart():
    swept = [
        {**row, "optim.lr": lr, "strategy.phases.thaw.epoch": e}
        for lr in (0.1, 0.2)
        for e in (1, 2)
        for row in rows({0: 1})
    ]
    frame = pd.DataFrame(
        [{k: v for k, v in row.items() if k != "test/acc"} | {"test/acc": row["test/acc"]} for row in swept]
    )
    runs = contrasts.with_arms(frame)
    assert set(runs.arm) == {
        "full, trained, strategy.phases.thaw.epoch=1",
        "full, trained, strategy.phases.thaw.epoch=2",
    }
    assert set(runs.setting) == {"h, optim.lr=0.1", "h, optim.lr=0.2"}


def test_tidy_finds_what_was_swept(sweep):
    runs = tidy(read_records(sweep / "sweeps" / "small"))
    assert len(runs) == 14 and not [name for name in runs if "." in name]  # nothing but the axes
    records = read_records(sweep / "sweeps" / "small")
    for record in records[::2]:
        record["config"]["optim"]["lr"] = 0.5
    assert [name for name in tidy(records) if "." in name] == ["optim.lr"]


def test_a_swept_name_or_donor_seed_is_an_axis(sweep):
    records = read_records(sweep / "sweeps" / "small")
    for record in records[::2]:
        record["config"]["schedule"]["name"] = "cosine"
        record["config"]["donor"]["seed"] = 99
    assert [name for name in tidy(records) if "." in name] == ["donor.seed", "schedule.name"]


def test_a_damaged_record_is_named(sweep, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(sweep, outputs)
    key = read_records(outputs / "sweeps" / "small")[0]["key"]
    (outputs / "runs" / key / "record.json").write_text("{")
    with pytest.raises(UserError, match=f"{key}/record.json is damaged"):
        report.write(outputs / "sweeps" / "small")


def test_page_shows_the_figures_of_the_records(sweep):
    page = (sweep / "sweeps" / "small" / "report.html").read_text()
    runs = contrasts.with_arms(tidy(read_records(sweep / "sweeps" / "small")))
    assert "14 of 14 runs completed; 2 seeds" in page
    scopes = [["early", "late"], ["early"], ["late"]]
    compared = [contrast for sites in scopes for contrast in contrasts.compare(runs, "test/acc", sites)]
    assert len(compared) == 3 * 6  # pairs of the 4 arms
    for contrast in compared:
        assert (
            f'<td>{contrast.arm}</td><td>{contrast.baseline}</td><td class="number">{contrast.difference}</td>' in page
        )
    mean = runs[runs.arm == "scratch"]["test/acc"].mean()
    assert re.search(rf'<td>scratch</td><td>-</td><td class="number">{mean:.1f}</td>', page)
    assert page.count("<svg") == 3 + 3  # and the plans of three strategies
    assert not re.search(r'(src|href)="http', page)  # works offline


def test_csv_holds_a_row_a_run(sweep):
    csv = pd.read_csv(sweep / "sweeps" / "small" / "runs.csv")
    assert len(csv) == 14 and {
        "key",
        "strategy",
        "site",
        "host",
        "donor",
        "seed",
        "test/acc",
        "val/aulc",
        "arm",
    } <= set(csv)


def test_missing_and_failed_runs_are_shown(sweep, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(sweep, outputs)
    lost = read_records(outputs / "sweeps" / "small")[0]["key"]
    (outputs / "runs" / lost / "record.json").unlink()
    page = report.write(outputs / "sweeps" / "small").read_text()
    assert "13 of 14 runs completed" in page and f"missing: <code>{lost}</code>" in page


@pytest.mark.parametrize("name", ["hybrid.late", "full.resnet18.none"])
def test_tensorboard_has_curves_and_hparams(sweep, name):
    folder = next(path for path in (sweep / "runs").glob(f"{name}*") if path.is_dir())
    events = EventAccumulator(str(folder)).Reload()
    curves = pd.read_csv(folder / "curves.csv")
    assert [event.value for event in events.Scalars("val/acc")] == pytest.approx(list(curves["val/acc"]))
    assert [event.step for event in events.Scalars("train/loss")] == list(curves.epoch)
    metrics = json.loads((folder / "record.json").read_text())["metrics"]
    (final,) = events.Scalars("final/test_acc")
    assert final.value == pytest.approx(metrics["test/acc"])
    (start,) = [v for k, v in events.summary_metadata.items() if k == "_hparams_/session_start_info"]
    for axis in (b"strategy", b"site", b"host", b"donor", b"seed"):
        assert axis in start.plugin_data.content


def test_swept_surgery_tells_arms_apart_and_scratch_has_none(sweep):
    records = read_records(sweep / "sweeps" / "small")
    for number, record in enumerate(records):
        record["config"]["surgery"]["calibrate"] = ["none", "moments"][number % 2]
    runs = contrasts.with_arms(tidy(records))
    assert [name for name in runs if "." in name] == ["surgery.calibrate"]
    assert {arm for arm in runs.arm if arm.startswith("hybrid")} == {
        "hybrid, trained, surgery.calibrate=none",
        "hybrid, trained, surgery.calibrate=moments",
    }
    assert [arm for arm in runs.arm.unique() if arm.startswith("scratch")] == ["scratch"]


def test_what_a_donor_takes_over_from_the_run_is_no_axis(sweep):
    records = read_records(sweep / "sweeps" / "small")
    for number, record in enumerate(records):
        record["config"]["host"]["width"] = [4, 8][number % 2]
        if "seed" in record["config"]["donor"]:
            record["config"]["donor"]["host"] = dict(record["config"]["host"])  # as donor=self has it
    assert [name for name in tidy(records) if "." in name] == ["host.width"]
