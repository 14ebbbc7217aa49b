"""The arrows of the design: which part of the package may import which. Imports inside functions count."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "layergraft"
BELOW = {"errors", "seeds", "config", "store"}  # what every part may import
# Part -> what else it may import. The arrows go down this list.
ARROWS = {
    "__init__": {"api"},
    "__main__": {"cli"},
    "cli": {"sweeps", "report", "runs", "surgery", "donors", "training", "strategies", "hosts", "data"},
    "api": {"report", "runs", "surgery"},
    "hydra_plugins": {"sweeps"},
    "sweeps": {"report", "runs", "donors", "training", "hosts"},
    "report": {"strategies", "stats"},
    "runs": {"surgery", "donors", "networks", "training", "strategies", "hosts", "data", "metrics"},
    "surgery": {"donors", "training", "hosts"},
    "donors": {"networks", "training", "hosts", "data"},
    "networks": {"training", "strategies", "hosts", "data"},
    "training": {"strategies", "hosts", "metrics"},
    "strategies": set(),
    "hosts": set(),
    "data": {"metrics"},
    "metrics": set(),
    "stats": set(),
    "store": set(),
    "config": set(),
    "errors": set(),
    "seeds": set(),
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
    assert set(imported(path)) <= ARROWS[part] | BELOW | {part}


@pytest.mark.parametrize(
    "module",
    [
        "layergraft.cli",
        "layergraft.report.page",
        "layergraft.strategies.timeline",
        "layergraft.store.records",
        "layergraft.config.compose",
        "layergraft.sweeps.manifest",
        "layergraft.sweeps.status",
        "layergraft.cli.help",
    ],
)
def test_these_start_without_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_file_past_400_lines():
    assert [str(path) for path in SOURCE.rglob("*.py") if len(path.read_text().splitlines()) > 400] == []
