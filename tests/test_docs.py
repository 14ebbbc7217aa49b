"""What README and docs show: every command is understood (and, slowly, run), every key has its line and is read, the notebook runs,
pages name each strategy and surgery. docs/extend.md has tests of its own."""

import ast
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from conftest import write_public_files
from layergraft.cli import inspection_commands, training_commands
from layergraft.cli.commands import COMMANDS
from layergraft.cli.help import groups, keys
from layergraft.config.compose import conf_dir
from layergraft.sweeps import optuna_study

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "extend.md")]
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:layergraft [a-z]|make |pip install |python benchmarks)[^`\n]*)`")
STANDS_FOR = {"NAME": "controls", "DIR": "data"}
TRAINS = ("train", "advise", "donate", "similarity", "surgery")


def shown():
    """Page -> commands, in order, without comments; those with a part left out (...) are no commands."""
    for page in PAGES:
        text = page.read_text()
        lines = [
            line
            for kind, block in BLOCK.findall(text)
            if kind in ("", "console", "bash")
            for line in re.sub(r"\\\n\s*", " ", block).splitlines()
        ]
        for line in [*lines, *INLINE.findall(text)]:
            line = line.removeprefix("$ ")
            if re.match(r"(layergraft|make|pip|python|tensorboard) ", line) and "..." not in line.partition("#")[0]:
                yield pytest.param(page, line, id=f"{page.stem}: {line.partition('  ')[0][:90]}")


SHOWN = list(shown())
OURS = [p for p in SHOWN if p.values[1].startswith("layergraft")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with what the commands speak of: sweeps and runs, a layer, images, weights of torchvision's."""
    from layergraft.cli.commands import main

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["train", "-m", "data=digits_0_to_4", "strategy=freeze,hybrid", "donor=trained,random", "site=late", "host=resnet20", "host.width=4", "seed=0,1",
              "schedule.epochs=2", "donor.schedule.epochs=1", 'hydra.sweeper.controls=[["donor=none","strategy=full"]]', "exec.sweep=quickstart"])  # fmt: skip
    for name in ("eight_seeds", "location", "controls"):
        shutil.copytree(folder / "outputs/sweeps/quickstart", folder / "outputs/sweeps" / name)
    torch.save(torch.nn.Conv2d(3, 64, 7).state_dict(), folder / "conv.pt")
    torch.save({"conv1.weight": torch.randn(64, 3, 7, 7)}, folder / "my.pt")
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "my_images" / name).mkdir(parents=True)
        for number in range(40):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(
                folder / "my_images" / name / f"{number}.png"
            )
    (folder / "mine/experiment").mkdir(parents=True)
    (experiment,) = re.findall(
        r'^```yaml title="mine/experiment/early_or_late.yaml"\n(.*?)^```$',
        (ROOT / "docs/experiments.md").read_text(),
        re.M | re.S,
    )
    (folder / "mine/experiment/early_or_late.yaml").write_text(experiment)
    (folder / "data").mkdir()
    write_public_files(folder / "data", width=16, train=20000, test=2000)
    (folder / "resnet20-12fca82f.th").symlink_to("data/resnet20.th")
    shutil.copytree(folder / "outputs/sweeps", folder / "sweeps")
    shutil.copytree(folder / "outputs", folder / "first/outputs")
    return folder


@pytest.fixture
def there(store, monkeypatch):
    monkeypatch.chdir(store)
    monkeypatch.setenv("TORCH_HOME", str(store))
    file = store / "hub" / "checkpoints" / torchvision.models.ResNet50_Weights.IMAGENET1K_V2.url.rsplit("/", 1)[-1]
    if not file.exists():
        file.parent.mkdir(parents=True)
        torch.save(torchvision.models.resnet50().state_dict(), file)
    return store


@pytest.fixture
def without_training(there, monkeypatch):
    """Runs, sweeps, searches and advice go as far as to what they would train."""
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports them anew, once
    import layergraft.runs.preload_imports  # noqa: F401
    from layergraft.runs.plan import plan_run
    from layergraft.sweeps import advise, grid, launchers, search, tuning

    shutil.rmtree(there / "outputs/sweeps")  # where a sweep of the same name was planned and not run
    shutil.copytree(there / "sweeps", there / "outputs/sweeps")
    planned = []
    for name in ("train_one", "pretrain_one", "donate_one"):
        monkeypatch.setattr(training_commands, name, lambda config: planned.append(plan_run(config)))
    monkeypatch.setattr(launchers.LocalLauncher, "launch", lambda self, jobs, **_: planned.extend(jobs) or [])
    for module in (grid, advise):
        monkeypatch.setattr(module, "finish", lambda *_: None)
    monkeypatch.setattr(tuning.Tuning, "_judge", lambda *_: None)
    monkeypatch.setattr(optuna_study.Search, "run", lambda self, *_: planned.append(self.distributions))
    monkeypatch.setattr(search.SearchSweeper, "show", lambda *_: None)

    def measured(self, names, combinations, at, metrics=("val/acc", "test/acc")):
        planned.extend(self._plans(combinations, at))
        self.sweep_folder.mkdir(parents=True, exist_ok=True)
        figures = np.arange(len(combinations) * len(at.seeds)).reshape(len(combinations), -1) * 1.0
        self.told.append({"arms": []})
        return [figures] * len(metrics)

    monkeypatch.setattr(advise.AdviseSweeper, "_measured", measured)
    monkeypatch.setattr(inspection_commands, "print_similarity", lambda config: planned.append(plan_run(config)))
    return planned


def arguments_of(line):
    words = shlex.split(line, comments=True)[1:]
    return [STANDS_FOR.get(w, re.sub(r"\b(NAME|DIR)$", lambda m: STANDS_FOR[m[0]], w)) for w in words]


def planned(line):
    """The arguments of a command, of an experiment at a size whose data are here: tests/contract has every size."""
    arguments = arguments_of(line)
    if any(a in ("+experiment=controls", "+experiment=examples") for a in arguments):
        return (*(a for a in arguments if not a.startswith(("size=", "exec.data="))), "size=digits")
    return tuple(a.replace("strategy=controls", "strategy=freeze") for a in arguments)


def at_once(shown):
    """Of README and the page on one's own, less the experiments; the rest is run, slowly, below."""
    page, line = shown.values
    quick = page.stem in ("README", "own") and "+experiment=" not in line
    return pytest.param(page, line, id=shown.id, marks=() if quick else (pytest.mark.slow,))


@pytest.mark.parametrize("page, line", {planned(p.values[1]): at_once(p) for p in reversed(OURS)}.values())  # each once
def test_every_command_is_understood(page, line, there, command, without_training):
    arguments = planned(line)
    code, out, err = command(*arguments, plain=False)
    if "strategy=hybird" in line:
        said = re.search(r"^error: unknown strategy.*$", page.read_text(), re.M)[0].removesuffix("...")
        assert code == 2 and err.startswith(said)
        return
    assert code == 0, err
    assert out or without_training or (there / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page, line", [p for p in OURS if p.values[0].stem not in ("slurm", "ray", "results")])
def test_every_command_does_what_it_is_shown_for(page, line, there, command, monkeypatch):
    """For real, in the order of the pages; shorter where it trains."""
    arguments = arguments_of(line)
    if arguments[0] in TRAINS and not {"--help", "--cfg"} & set(arguments) and "strategy=hybird" not in line:
        untrained = any(a.startswith("donor.path") or a == "donor=none" for a in arguments)
        donor = [] if untrained else ["donor.schedule.epochs=1"]
        sized = any(a.startswith("+experiment=") for a in arguments) and "--config-dir" not in arguments
        arguments += ["size=smoke"] if sized else ["schedule.epochs=2", *donor]
        arguments = [a for a in arguments if a not in ("size=cifar10_subset", "size=digits")]
        arguments += ["hydra.sweeper.max_seeds=3"] if any("sweeper.precision" in a for a in arguments) else []
    arguments = [
        a.replace("strategy=controls", "strategy=freeze").replace("num_trials=50", "num_trials=4") for a in arguments
    ]
    # The workers' server may have been started before TORCH_HOME was set.
    if "-m" in arguments or arguments[0] == "advise":
        (weights,) = (there / "hub/checkpoints").iterdir()
        arguments = [a.replace("host.weights=IMAGENET1K_V2", f"host.weights={weights}") for a in arguments]
    if arguments[0] == "export":
        monkeypatch.chdir(there / "first")  # where a run's name is that of no other: here pages have several of it
    code, out, err = command(*arguments, plain=False)
    assert code == (2 if "strategy=hybird" in line else 0), err
    assert "Traceback" not in err


@pytest.mark.parametrize("page, line", [p for p in SHOWN if not p.values[1].startswith("layergraft")])
def test_every_other_command_is_there(page, line):
    words = shlex.split(line, comments=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[0] == "pip":
        assert (
            words[2].startswith("layergraft-")
            or words[2].partition("[")[2].rstrip("]") in project["optional-dependencies"]
        )
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[:2] == ["tensorboard", "--logdir"] and words[2] == "outputs/runs"


def test_tensorboard_listens_to_this_machine_alone():
    (line,) = re.findall(r"^\t.*/tensorboard .*$", (ROOT / "Makefile").read_text(), re.M)
    assert line.endswith(" --host 127.0.0.1")


def test_every_command_of_the_program_is_shown():
    text = " ".join(p.values[1] for p in OURS)
    assert [name for name in COMMANDS if f"layergraft {name} " not in text] == []


def test_every_strategy_and_surgery_has_its_section_and_picture():
    for group, page in {"strategy": "strategies", "surgery": "surgeries"}.items():
        text = (ROOT / "docs" / f"{page}.md").read_text()
        for name in groups([conf_dir()])[group]:
            assert re.search(rf"^##+ {name}$", text, re.M) and f"<!-- picture: {group} {name} -->" in text


def test_every_choice_is_named_in_the_docs():
    text = " ".join(page.read_text() for page in PAGES)
    for group, names in groups([conf_dir()]).items():
        for name in names:
            short = re.sub(r"^resnet(\d+)$", r"\1", name)
            assert re.search(rf"\b{name}\b", text) or re.search(rf"resnet[\d/]*\b{short}\b", text), f"{group}={name}"


def test_every_key_has_a_line_and_is_read():
    """A key that no code looks at would be an option that does nothing."""
    read = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)  # getattr(spec, "train_size")
    every = [key for found in keys().values() for key in found]
    assert len(every) > 100
    assert [key.path for key in every if len(key.meaning) < 5] == []
    assert [key.path for key in every if key.path.rpartition(".")[2] not in read] == []


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", 4)
    kept = [cell.get("outputs") for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()  # raises
    for before, cell in zip(kept, notebook.cells, strict=True):  # the same kind of answer in each
        assert [o.output_type for o in before or []] == [o.output_type for o in cell.get("outputs") or []]
    assert len(list((tmp_path / "outputs" / "runs").iterdir())) == 9


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md"], ids=lambda page: page.name)
def test_python_of_the_readme_runs(page, there, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    names: dict = {}
    exec(compile(code, page.name, "exec"), names)
    assert "layer3.2.conv2" in capsys.readouterr().out and names["run"].key in set(names["load_runs"]().key)
