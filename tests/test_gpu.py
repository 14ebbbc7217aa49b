"""`make gpu`: what it finds, in which time, and that its programs run (a rehearsal on the CPU)."""

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from benchmarks import gpu

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, ROOT / "benchmarks" / "gpu.py"]


def outcome(*arguments, **variables):
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, env=os.environ | variables)
    return done.returncode, done.stdout, done.stderr


def test_a_rehearsal_of_the_first_part(tmp_path):
    code, out, err = outcome("--device", "cpu", "--parts", "1", "--to", tmp_path / "out")
    assert code == 0, out + err
    found, first, *_ = out.splitlines()
    assert found.startswith("the CPU, as a rehearsal") and first.startswith("torch ")
    (result,) = (tmp_path / "out").glob("first-run_cpu_*.md")
    rows = [line.split(" | ") for line in result.read_text().splitlines() if line.startswith("| the ")]
    assert [row[3] for row in rows if row[2]] == ["yes"] * len([row for row in rows if row[2]]) != []
    assert "`make gpu GPU_PARTS=1 DEVICE=cpu`" in result.read_text() and "1 first_run      done" in out
    assert result.read_text().splitlines()[0][2:] == "A first run on this device, and the same run on the CPU"


@pytest.mark.slow
def test_the_whole_rehearsal_takes_less_than_its_limits_and_writes_at_most_eight_files(tmp_path):
    code, out, err = outcome("--device", "cpu", "--to", tmp_path)
    assert code == 0, out + err
    assert re.findall(r"^(\d) \w+ +done, \d+ s$", out, re.M) == list("123456")
    assert len(list(tmp_path.iterdir())) == 7 <= 8
    for path in tmp_path.glob("*.md"):
        assert re.fullmatch(r"[\w.-]+", path.name) and len(path.read_text().splitlines()) > 5
    assert gpu.RELAXED * sum(part.seconds for part in gpu.PARTS.values()) < 600


def test_all_parts_fit_in_five_minutes():
    assert (
        sum(part.seconds for part in gpu.PARTS.values()) <= 285
    )  # what was found, wheels and the last words take a few


def test_without_a_gpu_it_says_so(tmp_path):
    code, out, err = outcome("--to", tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert (code, err) == (2, "error: torch sees no CUDA device here; make gpu DEVICE=cpu rehearses on the CPU\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("parts", ["7", "1,x", ""])
def test_parts_that_are_none(parts):
    code, _, err = outcome("--parts", parts)
    assert code == 2 and f"'{parts}'; there are the parts 1, 2, 3, 4, 5, 6: --parts 1,2" in err


def test_what_is_missing_is_named_or_taken_from_the_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr(gpu, "NEEDED", {"torch": "torch", "not-there": "not_there_at_all"})
    (tmp_path / "wheels").mkdir()
    for wheels in (None, tmp_path / "wheels", tmp_path / "none"):
        with pytest.raises(LookupError, match="has no not-there, and .* has it either; make gpu GPU_WHEELS=FOLDER"):
            gpu.require_packages(wheels, tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "wheels" / "not_there-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("not_there_at_all/__init__.py", "")
    gpu.require_packages(tmp_path / "wheels", tmp_path / "site")
    assert gpu.missing() == []
    assert os.environ["PYTHONPATH"].split(os.pathsep)[:2] == [str(ROOT / "src"), str(tmp_path / "site")]


def test_a_part_that_takes_too_long_is_cut_off_with_what_it_has_started(tmp_path, monkeypatch):
    program = tmp_path / "gpu.py"
    child = f"import pathlib, os, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(60)"
    program.write_text(f"import subprocess, sys\nprint('begun')\nsubprocess.run([sys.executable, '-c', {child!r}])\n")
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    log = io.StringIO()
    assert gpu.ran(1, "cpu", tmp_path, log, 3.0) == "cut off: it was not done after 3 s"
    assert log.getvalue().startswith("begun\n")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_one_that_fails_stops_none_of_the_next(tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu.py").write_text("import sys\nsys.exit(sys.argv[2] == '1')\n")
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    assert gpu.every([1, 2], "cpu", tmp_path) == 1
    assert "1 first_run      failed: exit code 1" in capsys.readouterr().out
    assert "2 cuda_tests     done" in (tmp_path / "log.txt").read_text()
    assert gpu.every([2], "cpu", tmp_path) == 0
