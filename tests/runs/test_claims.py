"""Claims: one owner at a time, and a dead one's is taken over."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from layergraft.files import Claimed, claim, forget, once

HOLD = """
import sys, time
from pathlib import Path
from layergraft.files import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def count_up(marker, counter, times):
    """Add 1 to a number in a file, in a way that loses counts unless one process at a time does it."""
    for _ in range(times):
        with claim(marker):
            number = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(number + 1))


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "claim")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_four_processes_one_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "claim", tmp_path / "count", 25)
    processes = [context.Process(target=count_up, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "100"
    assert not (tmp_path / "claim").exists()


def test_a_living_owners_claim_is_respected_and_a_dead_ones_taken_over(tmp_path, holder):
    with pytest.raises(Claimed, match="another process is at claim"), claim(tmp_path / "claim", wait=False):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with claim(tmp_path / "claim", wait=False) as ours:
        assert ours()


def test_an_owner_on_another_machine_that_does_not_renew_loses_its_claim(tmp_path, holder, monkeypatch):
    monkeypatch.setattr("layergraft.files.LEASE_SECONDS", 2.0)
    marker = tmp_path / "claim"
    text = marker.read_text()
    marker.write_text("".join("host=elsewhere\n" if line.startswith("host=") else
                              "duration=2.0\n" if line.startswith("duration=") else line
                              for line in text.splitlines(keepends=True)))  # fmt: skip
    os.kill(holder.pid, signal.SIGSTOP)  # so that nobody renews it, and here nobody can tell whether it lives
    with pytest.raises(Claimed), claim(marker, wait=False):
        pass
    start = time.monotonic()
    with claim(marker):
        assert time.monotonic() - start >= 2.0
    os.kill(holder.pid, signal.SIGCONT)


def test_an_owner_whose_claim_was_taken_knows(tmp_path, monkeypatch):
    monkeypatch.setattr("layergraft.files.LEASE_SECONDS", 0.3)
    with claim(tmp_path / "claim") as ours:
        assert ours()
        (tmp_path / "claim").unlink()
        for _ in range(100):
            if not ours():
                break
            time.sleep(0.05)
        assert not ours()


def test_once_makes_it_once_clears_what_the_dead_left_and_can_forget(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "content").write_text("whole")

    (tmp_path / ".thing.dead.unfinished").mkdir()
    for _ in range(2):
        once(tmp_path / "thing", make)
    assert len(made) == 1 and [p.name for p in tmp_path.iterdir()] == ["thing"]
    forget(tmp_path / "thing", older_than=0.0)
    assert (tmp_path / "thing").exists()
    forget(tmp_path / "thing", older_than=time.time() + 60)
    assert list(tmp_path.iterdir()) == []
