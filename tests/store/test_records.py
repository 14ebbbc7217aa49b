"""Records of runs: written and read whole, of this version or refused."""

import json

import pytest

from conftest import TINY
from layergraft.errors import UserError
from layergraft.store.records import (
    RECORD_VERSION,
    GraftRecord,
    RunRecord,
    is_done,
    read_record,
    run_folder,
    status_of,
    write_record,
)


def record(**fields):
    graft = GraftRecord("conv1", "conv, 1 -> 4", ["stride 2 made 1"], {"": "conv1.donor"}, ["conv1.affine"], ["conv1"])
    return RunRecord("full.early.seed0.abc", "completed", {"seed": 0}, {"data": {}}, grafts=[graft],
                     metrics={"test/acc": 50.0, "steps_to/90": None}, units={"test/acc": "%", "steps_to/90": "steps"}, **fields)  # fmt: skip


def test_what_is_written_is_what_is_read(tmp_path):
    for given in (record(), record(similarity={"fixed": {}}, steps_per_epoch=4), RunRecord("a", "failed", error="x")):
        write_record(tmp_path, given)
        assert read_record(tmp_path) == given and status_of(tmp_path) == given.status
    assert read_record(tmp_path / "none") is None and status_of(tmp_path / "none") is None


def test_a_status_follows_the_file(tmp_path):
    write_record(tmp_path, record())
    assert is_done(tmp_path) and not is_done(tmp_path, newer_than=2e10)
    write_record(tmp_path, RunRecord("a", "failed"))
    assert not is_done(tmp_path)


@pytest.mark.parametrize("version", [None, RECORD_VERSION - 1, RECORD_VERSION + 1])
def test_a_record_of_another_version_is_refused_in_one_line(tmp_path, version):
    write_record(tmp_path, record(environment={"packages": {"layergraft": "0.9.1"}}))
    plain = json.loads((tmp_path / "record.json").read_text()) | {"version": version}
    (tmp_path / "record.json").write_text(
        json.dumps({name: value for name, value in plain.items() if value is not None})
    )
    for ask in (read_record, status_of, is_done):
        with pytest.raises(UserError) as refused:
            ask(tmp_path)
        line = str(refused.value)
        assert line.startswith(f"{tmp_path / 'record.json'} is a record of version {version or 'unknown'}, ")
        assert "layergraft that wrote it (0.9.1)" in line and line.endswith("exec.rerun=true") and "\n" not in line


@pytest.mark.parametrize(
    "text", ['{"version": 8, "key": ', "[]", f'{{"version": {RECORD_VERSION}, "key": "a", "state": "x"}}']
)
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match="record.json is damaged: "):
        read_record(tmp_path)


def test_what_the_refusal_advises_works(command, tmp_path):
    arguments = ["host=resnet8", "donor=random", "strategy=freeze", *TINY[:2], *TINY[3:], f"exec.outputs={tmp_path}"]
    assert command("train", *arguments)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    path = run_folder(tmp_path, folder.name) / "record.json"
    old = json.loads(path.read_text())
    del old["version"]
    path.write_text(json.dumps(old))
    for more in ([], ["seed=0", "-m"]):
        code, _, err = command("train", *arguments, *more)
        assert code == 2 and "is a record of version unknown" in err and err.count("error: ") == 1
    code, _, err = command("report", str(tmp_path / "runs"))
    assert code == 2 and "is a record of version unknown" in err
    code, _, err = command("train", *arguments, "seed=0", "exec.rerun=true", "-m")
    assert code == 0, err
    assert read_record(folder).status == "completed"
