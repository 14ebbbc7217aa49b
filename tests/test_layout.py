"""The arrows of the design: which part of the package may import which. Imports inside functions count."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "layergraft"
FILES = sorted(SOURCE.rglob("*.py"))
# Part -> what it may import, a line each from the top of the package to the bottom: the arrows go down.
ARROWS = {
    "hydra_plugins": {"sweeps", "config"},
    "__main__": {"cli"},
    "__init__": {"api"},
    "cli": {"sweeps", "report", "runs", "surgery", "donors", "training", "strategies", "hosts", "data"},
    "api": {"report", "runs", "surgery", "hosts"},
    "sweeps": {"report", "runs", "donors", "training", "hosts", "stats"},
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
    "seeds": set(),
    "errors": set(),
}
BELOW = (
    "config",
    "store",
    "seeds",
    "errors",
)  # what every part above them may import; of one another, those further down


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


def part_of(path):
    top, *rest = path.relative_to(SOURCE).parts
    return "hydra_plugins" if top == "hydra_plugins" else rest[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows(path):
    part = part_of(path)
    below = BELOW[BELOW.index(part) + 1 :] if part in BELOW else BELOW
    assert set(imported(path)) <= ARROWS[part] | {*below, part}


def test_the_arrows_go_down():
    parts = list(ARROWS)
    assert all(parts.index(below) > parts.index(part) for part, allowed in ARROWS.items() for below in allowed)
    assert {part_of(path) for path in FILES} == set(ARROWS)


def test_few_files_at_the_top_and_thin_plugins():
    assert len(list(PACKAGE.glob("*.py"))) <= 8
    assert all(len(path.read_text().splitlines()) <= 45 for path in (SOURCE / "hydra_plugins").rglob("*.py"))


def test_classes_of_networks_are_known_to_the_hosts_alone():
    known = {str(path.relative_to(PACKAGE)) for path in FILES if "torchvision.models.resnet" in path.read_text()}
    assert known == {"hosts/resnet_blocks.py", "hosts/resnet_modules.py", "hosts/resnets.py"}
    named = [
        str(path)
        for path in FILES
        if path.parent.name != "hosts" and re.search(r"BasicBlock|Bottleneck", path.read_text())
    ]
    assert named == []


@pytest.mark.parametrize(
    "module",
    [
        "layergraft.cli",
        "layergraft.report.page",
        "layergraft.strategies.timeline",
        "layergraft.store.records",
        "layergraft.sweeps.grid",
        "layergraft.sweeps.advise",
        "layergraft.config.compose",
        "layergraft.sweeps.manifest",
        "layergraft.sweeps.status",
        "layergraft.cli.help",
    ],
)
def test_these_start_without_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_only_looks_at_a_run_starts_without_lightning():
    code = "import layergraft.cli.inspection_commands, sys; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_file_past_400_lines():
    assert [str(path) for path in FILES if len(path.read_text().splitlines()) > 400] == []


def test_no_two_files_of_one_name():
    names = [path.name for path in FILES if path.name not in ("__init__.py", "__main__.py")]
    assert sorted(names) == sorted(set(names))
