"""`make gpu`: what it finds, in which time, and that its programs run (a rehearsal on the CPU)."""

import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from benchmarks import gpu, measure

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, ROOT / "benchmarks" / "gpu.py"]


def outcome(*arguments, program=PROGRAM, **variables):
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, cwd=ROOT, env=os.environ | variables)
    return done.returncode, done.stdout, done.stderr


def made(*arguments):
    """Of `make gpu`, by the Python that runs the tests."""
    return outcome(f"PYTHON={sys.executable}", *arguments, program=["make", "--silent", "gpu"])


@pytest.mark.slow
def test_a_rehearsal_of_the_first_part(tmp_path):
    code, out, err = made("DEVICE=cpu", "GPU_PARTS=1", f"OUT={tmp_path / 'the results'}")
    assert code == 0, out + err
    _, found, first, *_ = out.splitlines()
    assert found.startswith("the CPU, as a rehearsal") and first.startswith("torch ")
    (result,) = (tmp_path / "the results").glob("first-run_cpu_*.md")
    rows = [line.split(" | ") for line in result.read_text().splitlines() if line.count(" | ") == 4]
    assert [row[3] for row in rows if row[2] not in ("", "goal", "---")] == ["yes"] * 4
    assert "`make gpu GPU_PARTS=1 DEVICE=cpu`" in result.read_text()
    assert result.read_text().splitlines()[0] == "# A first run on this device, and the same run on the CPU"
    log = (tmp_path / "the results" / "log.txt").read_text()
    assert first in log and "1 first_run: begins, " in log and "\n1 first_run: done, " in log


@pytest.mark.slow
def test_the_whole_rehearsal_takes_four_minutes_at_most_and_writes_at_most_eight_files(tmp_path):
    code, out, err = made("DEVICE=cpu", f"OUT={tmp_path}")
    assert code == 0, out + err
    *_, ended = out.split("\n\n")
    *parts, last = ended.splitlines()
    assert [re.fullmatch(r"(\d) \w+: done, \d+ s", part)[1] for part in parts] == list("123456")
    assert int(re.fullmatch(r"results in .*, (\d+) s in all", last)[1]) < 240
    assert len(list(tmp_path.iterdir())) == 7
    for path in tmp_path.glob("*.md"):
        assert re.fullmatch(r"[\w.-]+", path.name) and len(path.read_text().splitlines()) > 5


def test_no_part_can_end_later_than_five_minutes():
    assert gpu.START + sum(part.seconds for part in gpu.PARTS.values()) + 3 * gpu.GRACE <= 300


def test_without_a_gpu_it_says_so(tmp_path):
    code, out, err = outcome("--to", tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert (code, err) == (2, "error: torch sees no CUDA device here; make gpu DEVICE=cpu rehearses on the CPU\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "asked, line",
    [
        ("GPU_PARTS=7", "no part '7'; choose from 1 to 6, such as GPU_PARTS=1,2"),
        ("GPU_PARTS=1 x", "no part 'x'; choose from 1 to 6, such as GPU_PARTS=1,2"),
        ("GPU_MINUTES=0", "GPU_MINUTES is 0; it must be more than 0"),
        ("DEVICE=gpu", "DEVICE is 'gpu'; it must be cuda or cpu"),
        ("OUT=/dev/null/out", "[Errno 20] Not a directory: '/dev/null/out'"),
    ],
)
def test_wrong_words_end_in_a_line(asked, line):
    code, out, err = made("DEVICE=cpu", asked)
    assert (code, out) == (2, "") and err.splitlines()[0] == f"error: {line}"


def test_what_is_missing_is_named_or_taken_from_the_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr(gpu, "NEEDED", {"torch": "torch", "not-there": "not_there_at_all"})
    monkeypatch.setattr(gpu, "IN_WHEELS", ("not-there",))
    (tmp_path / "wheels").mkdir()
    for wheels in (None, tmp_path / "wheels", tmp_path / "none"):
        with pytest.raises(
            LookupError, match="^not-there not found, neither installed for .*; run `make gpu-wheels` where"
        ):
            gpu.require_packages(wheels, tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "wheels" / "not_there-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("not_there_at_all/__init__.py", "")
    (tmp_path / "wheels" / "torch-99-py3-none-any.whl").write_bytes(b"left alone: torch is installed")
    gpu.require_packages(tmp_path / "wheels", tmp_path / "site")
    assert gpu.missing() == []
    assert os.environ["PYTHONPATH"].split(os.pathsep)[:2] == [str(ROOT / "src"), str(tmp_path / "site")]


SLOW = """import pathlib, subprocess, sys, time
print("begun", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[0]).with_name("pid").write_text(str(child.pid))
child.wait()
"""


def ends(pid):
    """Returns once the process is gone: who ended it need not be who takes note of its end."""
    process = Path(f"/proc/{pid}")
    for _ in range(600):
        if not process.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} goes on")


def test_a_part_that_takes_too_long_is_cut_off_with_what_it_has_started(tmp_path, monkeypatch):
    (tmp_path / "gpu.py").write_text(SLOW)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    log = io.StringIO()
    assert gpu.run_part(1, "cpu", tmp_path, log, 3.0) == "cut off after 3 s"
    assert log.getvalue().startswith("begun\n")
    ends((tmp_path / "pid").read_text())


def test_a_driver_that_is_ended_ends_its_part(tmp_path):
    """As `timeout` does it."""
    (tmp_path / "gpu.py").write_text(SLOW)
    driver = f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r})\nfrom benchmarks import gpu\ngpu.HERE = pathlib.Path({str(tmp_path)!r})\n"
    arguments = ["--device", "cpu", "--parts", "1", "--to", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", f"{driver}sys.exit(gpu.main({arguments}))"], stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    ends((tmp_path / "pid").read_text())


def test_one_that_fails_stops_none_of_the_next(tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu.py").write_text("import sys\nsys.exit(sys.argv[2] == '1')\n")
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    log = io.StringIO()
    assert gpu.run_parts([1, 2], "cpu", tmp_path, log, "found", time.monotonic(), 5) == 1
    assert capsys.readouterr().out == log.getvalue()
    assert "1 first_run: failed with exit code 1, " in log.getvalue() and "2 cuda_tests: done, " in log.getvalue()
    assert gpu.run_parts([2], "cpu", tmp_path, log, "found", time.monotonic(), 5) == 0


@pytest.mark.parametrize("server", ["4711", ""])
def test_what_is_called_under_mps_was_served_by_it(tmp_path, monkeypatch, server):
    """A daemon that starts no server leaves CUDA to go on without, in silence."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    side_by_side = importlib.import_module("side_by_side")
    daemon = tmp_path / side_by_side.CONTROL
    daemon.write_text(
        f'#!/bin/sh\necho "$CUDA_MPS_PIPE_DIRECTORY" "$@" >> {tmp_path}/asked\n[ "$1" = -d ] || cat >> {tmp_path}/asked\necho {server}\n'
    )
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(side_by_side, "CUDA", True)
    monkeypatch.setattr(
        side_by_side, "in_a_process", lambda at_once, *_: [(number, 8.0 / number, 1.0) for number in at_once]
    )
    *_, last = found = list(side_by_side.figures())
    assert len(found) == (5 if server else 4) and (last.value == "not measured") == (not server)
    asked = (tmp_path / "asked").read_text()
    assert "pipe -d\n" in asked and "get_server_list\n" in asked and asked.endswith("quit -t 2\n")
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_what_was_measured_before_a_failure_is_kept(tmp_path):
    def figures():
        yield measure.Figure("the first", "1.0")
        raise RuntimeError("the second")

    with pytest.raises(RuntimeError, match="the second"):
        measure.publish(tmp_path, "a_topic", "make gpu", "A title\n\nHow.", figures())
    (result,) = tmp_path.iterdir()
    assert result.name.startswith("a-topic_") and "| the first | 1.0 |" in result.read_text()
