"""The benchmarks' shape: peers that owe layergraft nothing, topics that say what they measure."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCH = ast.parse((FOLDER / "bench.py").read_text())
TOPICS = [
    topic
    for node in BENCH.body
    if isinstance(node, ast.Assign) and node.targets[0].id in ("TOPICS", "ON_CUDA")
    for topic in ast.literal_eval(node.value)
]


@pytest.mark.parametrize("path", sorted((FOLDER / "peers").glob("*.py")), ids=lambda path: path.name)
def test_a_peer_imports_nothing_of_layergraft(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.split(".")[0] in ("layergraft", "hydra_plugins") for name in names)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_says_what_it_measures_and_gives_figures(topic):
    module = ast.parse((FOLDER / f"{topic}.py").read_text())
    about = ast.get_docstring(module).splitlines()
    assert about[0] and about[1:2] == [""] and len(about) > 2  # a title, then how
    assert topic in ast.get_docstring(BENCH)
    (figures,) = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "figures")
    assert len(figures.args.defaults) == len(figures.args.args)  # `bench.py` gives it none
