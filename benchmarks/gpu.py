"""`make gpu`: what one NVIDIA GPU tells of layergraft in five minutes, without a network

    python benchmarks/gpu.py [--device cuda|cpu] [--parts 1,2] [--wheels FOLDER] [--to FOLDER]

Six parts (PARTS), each a process of its own that has to be done by a certain time, what earlier parts have left over included;
none stops the next. A part writes TOPIC_GPU_DATE.md as soon as it has a figure, the tests as each of them ends; log.txt has
all that was printed. With --device cpu the same programs run at toy sizes, as a rehearsal.

It needs no installation: layergraft is imported from the source tree that this file is in, and what the machine lacks is taken
from a folder of wheels (`make gpu-wheels` makes one where there is a network).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Package -> the module that shows it is there.
NEEDED = {"torch": "torch", "torchvision": "torchvision", "pytorch-lightning": "pytorch_lightning", "tensorboard": "tensorboard",
          "scikit-learn": "sklearn", "pandas": "pandas", "matplotlib": "matplotlib", "rich": "rich", "safetensors": "safetensors",
          "pytest": "pytest", "hydra-core": "hydra", "omegaconf": "omegaconf", "antlr4-python3-runtime": "antlr4"}  # fmt: skip
GRACE = 5.0  # seconds for what was interrupted to end by itself
RELAXED = 2  # a rehearsal, on two slow cores, may take so many times as long


@dataclass(frozen=True)
class Part:
    topic: str
    """A module beside this; of the tests only a name."""
    seconds: int
    """At most."""
    gpu: dict[str, Any] = field(default_factory=dict)
    """What `figures` of the module is given on a GPU, so that it fits."""
    toy: dict[str, Any] = field(default_factory=dict)
    """The same in a rehearsal."""


TESTS = "cuda_tests"
DONE = "done"
PARTS = {
    1: Part("first_run", 50, toy={"overrides": ["host.width=8", "donor.schedule.epochs=2"]}),
    2: Part(TESTS, 80),
    3: Part("side_by_side", 55, toy={"at_once": [1, 2], "runs": 2, "overrides": ["schedule.epochs=4"]}),
    4: Part("matmul_rate", 45, {"images": 25_600, "repeats": 2},
            {"size": 256, "images": 128, "batch": 64, "epochs": 2, "width": 4, "repeats": 1}),
    5: Part("packed", 25, {"steps": 100, "repeats": 1}, {"batch": 32, "steps": 4, "threads": [2], "stacks": [2], "repeats": 1}),
    6: Part("run_time", 25, {"shrink": 10, "repeats": 2}, {"shrink": 2, "repeats": 1, "cases": 1}),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 where every part was done, 1 where one failed or was cut off, 2 where nothing could begin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", type=numbers, default=list(PARTS), help=f"of {', '.join(map(str, PARTS))}; all")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, for packages that are not installed")
    parser.add_argument("--to", type=Path, default=ROOT / "outputs" / "gpu", help="the folder of the results")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # the part that this process is
    args = parser.parse_args(argv)
    if args.only:
        return done(PARTS[args.only], args.only, args.device, args.to)
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            require_packages(args.wheels, Path(unpacked))
            if args.device == "cpu":
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            print(machine(args.device), flush=True)
        except LookupError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        args.to.mkdir(parents=True, exist_ok=True)
        return every(args.parts, args.device, args.to)


def numbers(text: str) -> list[int]:
    given = text.replace(",", " ").split()
    if not given or any(not part.isdigit() or int(part) not in PARTS for part in given):
        raise argparse.ArgumentTypeError(f"'{text}'; there are the parts {', '.join(map(str, PARTS))}: --parts 1,2")
    return sorted({int(part) for part in given})


def missing() -> list[str]:
    return [package for package, module in NEEDED.items() if importlib.util.find_spec(module) is None]


def require_packages(wheels: Path | None, unpacked: Path) -> None:
    """Put layergraft, and the content of `wheels` where something is not installed, on the path of this process and of those
    that it starts. Raises LookupError where something is still missing."""
    path = [str(ROOT / "src")]
    if missing() and wheels is not None and wheels.is_dir():
        for wheel in sorted(wheels.glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(unpacked)
        path.append(str(unpacked))
    sys.path[:0] = path
    importlib.invalidate_caches()
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])
    if lacking := missing():
        raise LookupError(
            f"{sys.executable} has no {', '.join(lacking)}, and {wheels or 'no folder of wheels'} has it either; make gpu "
            "GPU_WHEELS=FOLDER takes a folder that `make gpu-wheels` has made where there is a network; make gpu PYTHON=... another Python"
        )


def machine(device: str) -> str:
    """What was found, in lines. Raises LookupError where CUDA is asked for and torch sees none."""
    import torch

    packages = ", ".join(f"{name} {version(name)}" for name in ("pytorch-lightning", "hydra-core", "pytest"))
    lines = [f"torch {torch.__version__}, Python {platform.python_version()}, {packages}"]
    if device == "cpu":
        return f"the CPU, as a rehearsal, {os.cpu_count()} cores\n{lines[0]}"
    if not torch.cuda.is_available():
        raise LookupError("torch sees no CUDA device here; make gpu DEVICE=cpu rehearses on the CPU")
    from measure import hardware, nvidia_smi

    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    memory = f"{nvidia_smi('memory.free')} of {nvidia_smi('memory.total')} free"
    lines.insert(
        0, f"{hardware()}, compute capability {capability}, CUDA {torch.version.cuda}, {memory}, {os.cpu_count()} cores"
    )
    return "\n".join(lines)


def every(parts: Sequence[int], device: str, to: Path) -> int:
    begun, allowed, outcomes, rows = time.monotonic(), 0.0, [], []
    with open(to / "log.txt", "w") as log:
        for number in parts:
            part = PARTS[number]
            allowed += part.seconds * (RELAXED if device == "cpu" else 1)
            start = time.monotonic()
            left = begun + allowed - start
            print(f"\n{number} {part.topic}, {left:.0f} s at most", flush=True)
            outcomes.append(ran(number, device, to, log, left))
            rows.append(f"{number} {part.topic:<14} {outcomes[-1]}, {time.monotonic() - start:.0f} s")
        rows.append(f"results in {to}, {time.monotonic() - begun:.0f} s in all")
        text = "\n" + "\n".join(rows)
        print(text, flush=True)
        log.write(f"{text}\n")
    return int(any(outcome != DONE for outcome in outcomes))


def ran(number: int, device: str, to: Path, log: IO[str], seconds: float) -> str:
    """Run a part for so many seconds at most; what became of it: `done`, or `failed: ...`, `cut off: ...`."""
    command = [sys.executable, str(HERE / "gpu.py"), "--only", str(number), "--device", device, "--to", str(to)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})  # fmt: skip
    reader = threading.Thread(target=copy, args=(process.stdout, log), daemon=True)
    reader.start()
    try:
        code = process.wait(seconds)
        return DONE if code == 0 else f"failed: exit code {code}"
    except subprocess.TimeoutExpired:
        return f"cut off: it was not done after {seconds:.0f} s"
    finally:
        for name in (signal.SIGINT, signal.SIGKILL):  # a daemon that it has started is ended by the first
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, name)
                process.wait(GRACE)
        reader.join(GRACE)


def copy(lines: IO[str], log: IO[str]) -> None:
    """Print the lines, and write them to `log`, as they come; ends, and closes them, when nobody can write more."""
    with lines:
        for line in lines:
            print(line, end="", flush=True)
            log.write(line)
            log.flush()


def done(part: Part, number: int, device: str, to: Path) -> int:
    """Do the part, in this process; the exit code."""
    import warnings

    from measure import CUDA, hardware, publish, result_path, table

    if CUDA != (device == "cuda"):
        print(
            f"error: --device {device}, and torch {'sees' if CUDA else 'does not see'} a CUDA device", file=sys.stderr
        )
        return 2
    command = f"make gpu GPU_PARTS={number}" + ("" if CUDA else " DEVICE=cpu")
    if part.topic == TESTS:
        with open(result_path(to, part.topic), "w") as file:
            file.write(f"# The tests marked cuda\n\n`{command}`: {hardware()}\n\n```\n")
            file.flush()
            code = tested(device, file)
            file.write("```\n")
        return code
    warnings.filterwarnings("ignore")
    module = importlib.import_module(part.topic)
    path, figures = publish(
        to, part.topic, command, module.__doc__ or "", module.figures(**(part.gpu if CUDA else part.toy))
    )
    print(f"\n{table(figures)}\n\nin {path}", flush=True)
    return 0


def tested(device: str, file: IO[str]) -> int:
    """The tests marked `cuda`, a line for each as it ends, to `file` and to standard output; pytest's exit code. Warnings are no
    errors here, as they are in `make test`: this machine's packages are of other versions."""
    command = ["-m", "pytest", "tests/cuda", "-m", "cuda", f"--device={device}", "-vv", "--tb=short", "--durations=5", "-W", "default", "-p", "no:cacheprovider"]  # fmt: skip
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:  # fmt: skip
        assert tests.stdout is not None
        copy(tests.stdout, file)
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
