"""The arrows of the design: which part of the package may import which. Imports inside functions count."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "layergraft"
EVERYONE = {"specs", "recipes", "schema", "errors", "files", "seeds", "claims"}
ARROWS = {
    "specs": set(),
    "recipes": set(),
    "schema": set(),
    "errors": set(),
    "claims": set(),
    "files": {"claims"},
    "seeds": set(),
    "activations": {"tasks"},
    "distances": set(),
    "checkpoints": set(),
    "data": {"gabor", "tasks"},
    "gabor": set(),
    "hosts": {"checkpoints"},
    "tasks": set(),
    "schedules": set(),
    "strategies": {"schedules"},
    "timeline": {"strategies"},
    "store": set(),
    "stats": set(),
    "packages": set(),
    "training": {"activations", "distances", "strategies", "tasks"},
    "donors": {"checkpoints", "data", "gabor", "hosts", "strategies", "training"},
    "surgery": {"activations", "hosts", "donors"},
    "runs": {
        "activations",
        "distances",
        "tasks",
        "explain",
        "packages",
        "data",
        "donors",
        "hosts",
        "surgery",
        "strategies",
        "timeline",
        "training",
        "store",
    },
    "report": {"store", "stats", "timeline"},
    "catalogue": {"hosts", "packages", "runs"},
    "explain": set(),
    "__main__": {"cli"},
    "__init__": {"api"},
    "api": {"explain", "report", "runs", "store", "surgery"},
    "cli": {"runs", "report", "catalogue", "explain"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "layergraft"
                else [node.module]
            )
        yield from (name.split(".")[1] for name in names if name.startswith("layergraft."))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows(path):
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert set(imported(path)) <= ARROWS[part] | EVERYONE | {part}


@pytest.mark.parametrize(
    "module",
    [
        "layergraft.cli",
        "layergraft.report.page",
        "layergraft.timeline",
        "layergraft.store",
        "layergraft.runs.compose",
        "layergraft.runs.memory",
        "layergraft.runs.status",
        "layergraft.catalogue",
    ],
)
def test_these_start_without_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_file_past_400_lines():
    assert [str(path) for path in SOURCE.rglob("*.py") if len(path.read_text().splitlines()) > 400] == []
