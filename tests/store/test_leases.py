"""Leases: one owner at a time, and a dead one's is taken over."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from layergraft.store.files import create_once, discard
from layergraft.store.leases import LeaseHeld, lease

HOLD = """
import sys, time
from pathlib import Path
from layergraft.store.leases import lease
with lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def count_up(marker, counter, times):
    """Add 1 to a number in a file, in a way that loses counts unless one process at a time does it."""
    for _ in range(times):
        with lease(marker):
            number = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(number + 1))


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lease")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_four_processes_one_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "lease", tmp_path / "count", 25)
    processes = [context.Process(target=count_up, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_living_owners_claim_is_respected_and_a_dead_ones_taken_over(tmp_path, holder):
    with pytest.raises(LeaseHeld, match="another process is at lease"), lease(tmp_path / "lease", wait=False):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lease(tmp_path / "lease", wait=False) as ours:
        assert ours()


def test_an_owner_on_another_machine_that_does_not_renew_loses_its_claim(tmp_path, holder, monkeypatch):
    monkeypatch.setattr("layergraft.store.leases.LEASE_SECONDS", 2.0)
    marker = tmp_path / "lease~1"
    _, _, rest = marker.read_text().partition(" ")
    marker.write_text(f"elsewhere {rest}")  # so that nobody here can tell whether it lives; it renews every 15 s
    with pytest.raises(LeaseHeld), lease(tmp_path / "lease", wait=False):
        pass
    start = time.monotonic()
    with lease(tmp_path / "lease"):
        assert time.monotonic() - start >= 2.0


def test_a_claim_that_is_renewed_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("layergraft.store.leases.LEASE_SECONDS", 1.0)
    with lease(tmp_path / "lease") as ours:
        first = (tmp_path / "lease~1").stat().st_mtime_ns
        time.sleep(1.5)
        assert (tmp_path / "lease~1").stat().st_mtime_ns > first and ours()
    assert list(tmp_path.iterdir()) == []


def test_an_owner_whose_claim_was_taken_knows(tmp_path):
    with lease(tmp_path / "lease") as ours:
        assert ours()
        (tmp_path / "lease~1").rename(tmp_path / "lease~2")
        assert not ours()
    assert (tmp_path / "lease~2").exists()  # it is not its own to remove


def test_a_claim_that_was_never_written_whole_runs_out(tmp_path, monkeypatch):
    monkeypatch.setattr("layergraft.store.leases.LEASE_SECONDS", 0.5)
    (tmp_path / "lease~7").write_text("")  # its owner was killed just then
    with pytest.raises(LeaseHeld), lease(tmp_path / "lease", wait=False):
        pass
    with lease(tmp_path / "lease"):
        assert [path.name for path in tmp_path.iterdir()] == ["lease~8"]


def test_who_took_over_slowly_withdraws(tmp_path, monkeypatch):
    """A has seen a dead lease, and stands still; B takes over meanwhile, or a new owner comes: A must not take part."""
    from layergraft.store import leases

    dead = "elsewhere 1 1 dead"
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.0)
    look = leases._others
    for other in ("lease~1", "lease~9"):  # lower: the old one is gone and one is new; higher: taken over twice

        def slow(marker, other=other):
            found = look(marker)
            if found == [("lease~5", dead, found[0][2])]:
                (tmp_path / "lease~5").unlink()
                (tmp_path / other).write_text("elsewhere 2 2 living")
            return found

        (tmp_path / "lease~5").write_text(dead)
        monkeypatch.setattr(leases, "_others", slow)
        with pytest.raises(LeaseHeld), lease(tmp_path / "lease", wait=False):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [other]
        (tmp_path / other).unlink()


def test_once_makes_it_once_clears_what_the_dead_left_and_can_forget(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "content").write_text("whole")

    (tmp_path / ".thing.dead.unfinished").mkdir()
    for _ in range(2):
        create_once(tmp_path / "thing", make)
    assert len(made) == 1 and [p.name for p in tmp_path.iterdir()] == ["thing"]
    discard(tmp_path / "thing", older_than=0.0)
    assert (tmp_path / "thing").exists()
    discard(tmp_path / "thing", older_than=time.time() + 60)
    assert list(tmp_path.iterdir()) == []
