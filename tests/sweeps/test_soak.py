"""500 tiny runs in one sweep: the memory of the parent and of the workers stays flat, and nothing is left behind."""

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

RUNS = 500
MIB = 2**20
SWEEP = ["-m", "host.pretrain.data=none", "donor=random", "strategy=freeze", "host=resnet8", "host.width=4", "schedule.epochs=1", "optim.batch_size=25",
         "data.train_size=50", "exec=cpu", "exec.sweep=soak", f"seed=range({RUNS})"]  # fmt: skip


def family(parent):
    """Process ids of `parent` and all that descend from it."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
        except OSError:
            continue
    found = [parent]
    for process in found:
        found += children[process]
    return found


def looked_at(process):
    """Its memory (bytes), its share of the memory of all (what several have counts in parts), and its open files."""
    smaps = Path(f"/proc/{process}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in smaps.splitlines()[1:]}
    return sizes["Rss"], sizes["Pss"], len(os.listdir(f"/proc/{process}/fd"))


def early_and_late(rows, column):
    """The largest value between a fifth and two fifths of the runs, and towards the end."""
    parts = ((0.2, 0.4), (0.75, 0.95))
    return [max(row[column] for row in rows if RUNS * low <= row[0] <= RUNS * high) for low, high in parts]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="counts memory by Linux's /proc")
def test_a_long_sweep_neither_grows_nor_leaves_anything(tmp_path):
    shared_before = set(os.listdir("/dev/shm"))
    said = tmp_path / "said"
    with said.open("w") as file:
        sweep = subprocess.Popen([sys.executable, "-m", "layergraft", "train", *SWEEP], cwd=tmp_path, stderr=file)
    seen = defaultdict(list)  # process -> (runs done, memory, files)
    total = []  # (runs done, memory of all)
    while sweep.poll() is None:
        done, together = len(list(tmp_path.glob("outputs/runs/*/record.json"))), 0
        for process in family(sweep.pid):
            try:
                own, share, files = looked_at(process)
            except OSError:  # it has just ended
                continue
            seen[process].append((done, own, files))
            together += share
        total.append((done, together))
        time.sleep(0.5)
    assert sweep.returncode == 0 and f"{RUNS} of {RUNS} runs completed" in said.read_text()

    long_lived = {p: rows for p, rows in seen.items() if rows[0][0] < RUNS * 0.2 and rows[-1][0] > RUNS * 0.9}
    assert len(long_lived) >= 3  # parent, server, a worker
    grown = {name: early_and_late(rows, 1) for name, rows in {**long_lived, "all": total}.items()}
    files = {process: early_and_late(rows, 2) for process, rows in long_lived.items()}
    for name, (early, late) in grown.items():
        print(f"memory of {name}: {early / MIB:.0f} -> {late / MIB:.0f} MiB")
    print(f"open files: {files}")
    # Of all together more: pages that a worker shares with the server it was forked from become its own when they are written to.
    allowed = {name: 32 * MIB if name == "all" else 16 * MIB for name in grown}
    assert [name for name, (early, late) in grown.items() if late > early + allowed[name]] == []
    assert [process for process, (early, late) in files.items() if late > early + 2] == []
    for _ in range(100):  # the server of the workers ends when it sees that nobody is left
        left = [process for process in seen if Path(f"/proc/{process}").exists()]
        if not left:
            break
        time.sleep(0.1)
    assert left == []
    assert set(os.listdir("/dev/shm")) - shared_before == set()
    assert list((tmp_path / "outputs/leases").iterdir()) == []
    folders = list((tmp_path / "outputs/runs").iterdir())
    disk = [sum(f.stat().st_blocks * 512 for f in folder.rglob("*")) for folder in folders]
    assert len(folders) == RUNS and not [f for folder in folders for f in folder.rglob(".*")]
    print(f"disk: {sum(disk) / RUNS / 1024:.0f} KiB a run, {max(disk) / 1024:.0f} at most")
    assert max(disk) < 2 * MIB
