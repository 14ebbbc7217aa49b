"""Check and measure layergraft on one NVIDIA GPU, in five minutes and without a network (`make gpu`)

    python benchmarks/gpu.py [--device cuda|cpu] [--parts 1,2] [--wheels FOLDER] [--to FOLDER]

Runs six parts (PARTS), each in a process of its own. Each part has a time limit; unused time goes to later parts. A part that
fails or is cut off does not stop the next. Each writes TOPIC_GPU_DATE.md, anew after each figure or test; log.txt has all that
was printed. With --device cpu the same programs run at toy sizes, as a rehearsal.

Nothing is installed: layergraft is imported from the source tree that this file is in, and packages that the Python lacks are
taken from a folder of wheels, which `make gpu-wheels` makes where there is a network.
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
# Package -> the module that shows that it is installed.
NEEDED = {"torch": "torch", "torchvision": "torchvision", "pytorch-lightning": "pytorch_lightning", "tensorboard": "tensorboard",
          "scikit-learn": "sklearn", "pandas": "pandas", "matplotlib": "matplotlib", "rich": "rich", "safetensors": "safetensors",
          "pytest": "pytest", "hydra-core": "hydra", "omegaconf": "omegaconf", "antlr4-python3-runtime": "antlr4"}  # fmt: skip
IN_WHEELS = ("hydra-core", "omegaconf", "antlr4-python3-runtime")  # what `make gpu-wheels` makes
START = 15.0  # seconds until the first part begins, at most, on a GPU: importing torch from a cold disk
GRACE = 5.0  # seconds for an interrupted part to end by itself
MINUTES = {"cuda": 5.0, "cpu": 10.0}  # all told; a rehearsal may be on two slow cores


@dataclass(frozen=True)
class Part:
    topic: str
    """A module in this folder; of the tests only a name."""
    seconds: int
    """Its time limit, of five minutes in all."""
    gpu: dict[str, Any] = field(default_factory=dict)
    """Arguments of the module's `figures` on a GPU, such that it fits in the limit."""
    toy: dict[str, Any] = field(default_factory=dict)
    """Arguments in a rehearsal."""


TESTS = "cuda_tests"
PARTS = {
    1: Part("first_run", 60, toy={"overrides": ["host.width=8", "donor.schedule.epochs=2"]}),
    2: Part(TESTS, 85),
    3: Part("side_by_side", 50, toy={"at_once": [1, 2], "runs": 2, "overrides": ["schedule.epochs=4"]}),
    4: Part("matmul_rate", 40, {"images": 25_600, "repeats": 2},
            {"size": 256, "images": 128, "batch": 64, "epochs": 2, "width": 4, "repeats": 1}),
    5: Part("packed", 17, {"seconds": 0.5, "repeats": 1},
            {"batch": 32, "seconds": 0.2, "threads": [2], "stacks": [2], "repeats": 1}),
    6: Part("run_time", 18, {"shrink": 10, "repeats": 2}, {"shrink": 2, "repeats": 1, "cases": 1}),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 if every part was done, 1 if one failed or was cut off, 2 if it could not start."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--parts", default=" ".join(map(str, PARTS)), help="such as 1,2; all by default")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels of packages that are not installed")
    parser.add_argument("--to", type=Path, default=ROOT / "outputs" / "gpu", help="the folder of the results")
    parser.add_argument("--minutes", type=float, help="all told; 5, and 10 on a CPU: the parts' limits grow with it")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # the part that this process is
    args = parser.parse_args(argv)
    to = args.to.resolve()
    if args.only:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a shell started this in the background
        return run_here(args.only, args.device, to)
    for name in (signal.SIGTERM, signal.SIGHUP):  # so that the part which runs is ended, too
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory() as unpacked:
            parts = numbers(args.parts)
            require(args.device in ("cuda", "cpu"), f"DEVICE is '{args.device}'; it must be cuda or cpu")
            require_packages(args.wheels, Path(unpacked))
            minutes = MINUTES[args.device] if args.minutes is None else args.minutes
            require(minutes > 0, f"GPU_MINUTES is {minutes:g}; it must be more than 0")
            if args.device == "cpu":
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            found = machine(args.device)
            to.mkdir(parents=True, exist_ok=True)
            with open(to / "log.txt", "a") as log:
                return run_parts(parts, args.device, to, log, found, begun, minutes)
    except (LookupError, OSError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is in {to}", file=sys.stderr)
        return 130


def require(condition: bool, message: str) -> None:
    if not condition:
        raise LookupError(message)


def numbers(text: str) -> list[int]:
    """Return the numbers of the parts in `1,2` or `1 2`, sorted. Raises LookupError for a part that does not exist."""
    given = text.replace(",", " ").split()
    for part in given or [""]:
        require(
            part.isdigit() and int(part) in PARTS,
            f"no part '{part}'; choose from 1 to {max(PARTS)}, such as GPU_PARTS=1,2",
        )
    return sorted({int(part) for part in given})


def missing() -> list[str]:
    return [package for package, module in NEEDED.items() if importlib.util.find_spec(module) is None]


def require_packages(wheels: Path | None, unpacked: Path) -> None:
    """Put layergraft, and the wheels of what is not installed, on the path of this process and of those that it starts. Raises
    LookupError if something is still missing, BadZipFile for a damaged wheel."""
    path = [str(ROOT / "src")]
    lacking = missing()
    for wheel in sorted(wheels.glob("*.whl")) if wheels is not None else []:
        if wheel.name.partition("-")[0].replace("_", "-") in lacking:
            with zipfile.ZipFile(wheel) as content:
                content.extractall(unpacked)
            path[1:] = [str(unpacked)]
    sys.path[:0] = path
    importlib.invalidate_caches()
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])
    if still := missing():
        others = [package for package in still if package not in IN_WHEELS]
        advice = (
            "choose a Python that has PyTorch and Lightning with PYTHON=..."
            if others
            else "run `make gpu-wheels` where there is a network, copy its folder here and pass GPU_WHEELS=FOLDER"
        )
        raise LookupError(
            f"{', '.join(still)} not found, neither installed for {sys.executable} nor in {wheels}; {advice}"
        )


def machine(device: str) -> str:
    """Return what was found, in lines. Raises LookupError if CUDA is asked for and torch sees no GPU."""
    import torch

    packages = ", ".join(f"{name} {version(name)}" for name in ("pytorch-lightning", "hydra-core", "pytest"))
    lines = [f"torch {torch.__version__}, Python {platform.python_version()}, {packages}"]
    if device == "cpu":
        return f"the CPU, as a rehearsal, {os.cpu_count()} cores\n{lines[0]}"
    require(torch.cuda.is_available(), "torch sees no CUDA device here; make gpu DEVICE=cpu rehearses on the CPU")
    from measure import hardware, nvidia_smi

    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    memory = f"{nvidia_smi('memory.free')} of {nvidia_smi('memory.total')} free"
    lines.insert(
        0, f"{hardware()}, compute capability {capability}, CUDA {torch.version.cuda}, {memory}, {os.cpu_count()} cores"
    )
    return "\n".join(lines)


def run_parts(
    parts: Sequence[int], device: str, to: Path, log: IO[str], found: str, begun: float, minutes: float
) -> int:
    """Run the parts one after another; return the exit code. `begun` is when the `minutes` began."""
    factor, outcomes, failed = minutes / MINUTES["cuda"], [], False

    def say(text: str) -> None:
        print(text, flush=True)
        print(text, file=log, flush=True)

    say(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{found}")
    allowed = START * factor
    for number in parts:
        allowed += PARTS[number].seconds * factor
        start = time.monotonic()
        left = begun + allowed - start
        say(f"\n{number} {PARTS[number].topic}: begins, {left:.0f} s at most")
        outcome = run_part(number, device, to, log, left)
        outcomes.append(f"{number} {PARTS[number].topic}: {outcome or 'done'}, {time.monotonic() - start:.0f} s")
        say(outcomes[-1])
        failed |= outcome is not None
    say("\n".join(["", *outcomes, f"results in {to}, {time.monotonic() - begun:.0f} s in all"]))
    return int(failed)


def run_part(number: int, device: str, to: Path, log: IO[str], seconds: float) -> str | None:
    """Run a part in a process of its own, for so many seconds at most. Return None if it was done, else what became of it."""
    command = [sys.executable, str(HERE / "gpu.py"), "--only", str(number), "--device", device, "--to", str(to)]
    # A process group, to be ended whole, in the same session: what ends this session's processes ends it, too.
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               process_group=0, env=os.environ | {"PYTHONUNBUFFERED": "1"})  # fmt: skip
    reader = threading.Thread(target=copy, args=(process.stdout, log), daemon=True)
    reader.start()
    try:
        code = process.wait(max(0.0, seconds))
        return f"failed with exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        return f"cut off after {seconds:.0f} s"
    finally:
        for name in (signal.SIGINT, signal.SIGKILL):  # at the first a part ends the daemons that it has started
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, name)
                process.wait(GRACE)
        reader.join(GRACE)


def copy(lines: IO[str], log: IO[str]) -> None:
    """Show the lines, and write them to `log`, as they come; ends, and closes them, when nobody can write more."""
    with lines:
        for line in lines:
            print(line, end="", flush=True)
            log.write(line)
            log.flush()


def run_here(number: int, device: str, to: Path) -> int:
    """Do a part in this process; return its exit code."""
    import warnings

    from measure import CUDA, hardware, printed, publish, result_path

    if CUDA != (device == "cuda"):
        print(
            f"error: --device {device}, and torch {'sees' if CUDA else 'does not record_activations'} a CUDA device",
            file=sys.stderr,
        )
        return 2
    part = PARTS[number]
    command = f"make gpu GPU_PARTS={number}" + ("" if CUDA else " DEVICE=cpu")
    if part.topic == TESTS:
        with open(result_path(to, part.topic), "w") as file:
            print(f"# The tests marked cuda\n\n`{command}`: {hardware()}\n\n```", file=file, flush=True)
            code = run_tests(device, file)
            file.write("```\n")
        return code
    warnings.filterwarnings("ignore")
    module = importlib.import_module(part.topic)
    figures = module.figures(**(part.gpu if CUDA else part.toy))
    publish(to, part.topic, command, module.__doc__ or "", printed(figures))
    return 0


def run_tests(device: str, file: IO[str]) -> int:
    """Run the tests marked `cuda`; return pytest's exit code. A line for each goes to `file` and to standard output as it ends.
    Warnings are not errors here, as they are in `make test`: this machine's packages are of other versions."""
    files = ["tests/cuda/test_training.py", "tests/cuda/test_sweeps.py"]  # workers last: they may hang
    options = f"-m cuda --device={device} -vv --tb=short --durations=5 -W default -p no:cacheprovider".split()
    command = [sys.executable, "-m", "pytest", *files, *options]
    signal.signal(signal.SIGINT, lambda *_: None)  # pytest gets it, too, and tells what has failed so far
    variables = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # of plugins the machine may have any
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          env=variables) as tests:  # fmt: skip
        assert tests.stdout is not None
        copy(tests.stdout, file)
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
