"""docs/extend.md, to the letter: its files are written, its package is installed, its commands are run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
TITLED = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in CONSOLE.findall(PAGE.read_text()) for line in block.splitlines()]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Function: a command of the page -> what became of it, in a folder with the page's files and its package installed."""
    folder = tmp_path_factory.mktemp("extend")
    for name, content in TITLED.findall(PAGE.read_text()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    # --no-deps and --no-build-isolation: what it depends on is here, and tests have no network.
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    subprocess.run([sys.executable, *install, "./my_layers"], cwd=folder, check=True)
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}

    def run(command):
        words = shlex.split(command)
        assert words[0] in ("layergraft", "python")
        arguments = [sys.executable, *(["-m", "layergraft"] if words[0] == "layergraft" else []), *words[1:]]
        return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)

    run.folder = folder
    return run


def command(line):
    is_short = line == "layergraft sites host=regnet"
    return pytest.param(line, marks=[] if is_short else [pytest.mark.slow])


@pytest.mark.parametrize("command", [command(line) for line in COMMANDS if not re.match("pip|.*worst_recall", line)])
def test_every_command_of_the_page_does_what_it_is_there_for(command, there):
    done = there(command)
    assert done.returncode == 0, done.stderr
    if " train " in command:
        assert re.search(r"completed|outputs/runs/", done.stderr + done.stdout)


def test_what_is_added_is_in_help_and_checked(there):
    text = there("layergraft train --help").stdout
    for line in ("regnet           torchvision's RegNetX, two stages", "cosines          kernels of the discrete",
                 "stripes          stripes that lie", "first_third      the one a third",
                 "normed           the donor stands beside"):  # fmt: skip
        assert line in text
    done = there("layergraft plan host=regnet host.depth=0")
    assert (done.returncode, done.stderr) == (2, "error: host.depth is 0; it must be 1 or more\n")
    assert "did you mean 'stripes'?" in there("layergraft plan data=stripe").stderr


@pytest.mark.slow
def test_an_added_metric_is_recorded_stops_training_and_is_compared(there):
    train, compare = (line for line in COMMANDS if "worst_recall" in line)
    done = there(train)
    assert done.returncode == 0, done.stderr
    (sweep,) = there.folder.glob("outputs/sweeps/worst")
    runs = pd.read_csv(sweep / "runs.csv")
    assert len(runs) == 4 and runs[["val/worst_recall", "test/worst_recall"]].notna().all(axis=None)
    assert "| test/worst_recall | % | higher |" in (sweep / "report.md").read_text()
    lengths = []
    for key in runs.key:
        recall = pd.read_csv(there.folder / "outputs/runs" / key / "curves.csv")["val/worst_recall"]
        assert (recall.cummax().diff()[1:-1] > 0).all()  # the first epoch that is no better is the last
        lengths.append(len(recall))
    assert min(lengths) < 15, lengths
    done = there(compare)
    assert done.stdout.startswith("strategy=freeze less strategy=full, test/worst_recall, points: "), done.stderr


TINY = "host=regnet host.width=4 host.depth=1 schedule.epochs=2 optim.batch_size=25 data.train_size=50 donor.schedule.epochs=1 exec.threads=1 exec.device=cpu exec.similarity.resamples=0"
BLOCK = "trunk_output.block2.block2-0"


@pytest.mark.slow
def test_a_family_of_networks_in_its_own_package_does_what_the_resnets_do(there):
    page = dict(TITLED.findall(PAGE.read_text()))
    package = [
        content
        for name, content in page.items()
        if name.endswith(("regnet.py", "regnet.yaml", "pyproject.toml", "__init__.py"))
    ]
    assert len(package) == 4 and sum(len(content.splitlines()) for content in package) < 120

    table = there(f"layergraft sites {TINY}").stdout
    assert re.search(rf"^{BLOCK} +block +4 x 4 x 4 +8 x 2 x 2 +2 ", table, re.MULTILINE)
    assert re.search(rf"^{BLOCK}.proj.0 +conv .* in a skip ", table, re.MULTILINE)
    assert re.search(r"^trunk_output.block1 +stage ", table, re.MULTILINE)

    sweep = f"layergraft train -m {TINY} site=late,{BLOCK} donor=random,end_to_end strategy=freeze exec.sweep=regnet"
    more = (
        """'hydra.sweeper.controls=[["strategy=gradual","donor=random"],["strategy=discriminative","donor=random"]]'"""
    )
    done = there(f"{sweep} {more} exec.workers=1 exec.outputs=of_a_family")
    assert done.returncode == 0, done.stderr
    runs = {
        json.loads(path.read_text())["key"]: path.parent
        for path in (there.folder / "of_a_family/runs").glob("*/record.json")
    }
    assert len(runs) == 8
    for key, folder in runs.items():
        record = json.loads((folder / "record.json").read_text())
        assert record["status"] == "completed" and record["probes"] and record["metrics"]["test/acc"] > 0
        groups, (donor,) = list(record["plan"]["groups"]), record["donors"]
        if not key.startswith("freeze"):  # the parts by depth are the family's stages
            assert groups == ["all.stem", "all.trunk_output.block1", "all.trunk_output.block2", "all.head"]
            continue
        trained, kept = (
            load_file(path)
            for path in (
                folder / "model.safetensors",
                there.folder / f"of_a_family/donors/{donor['key']}/donor.safetensors",
            )
        )
        (site,) = record["grafts"][0]["donor_paths"].values()
        assert kept and all(torch.equal(trained[f"{site}.{name}"], tensor) for name, tensor in kept.items())
        is_block = donor["architecture"]["kind"] == "block"
        assert donor["architecture"].get("family") == ("regnet" if is_block else None)
    page = (there.folder / "of_a_family/sweeps/regnet/report.html").read_text()
    assert all(name in page for name in ("regnet", "gradual", "discriminative", "end_to_end", BLOCK))

    done = there(
        f"layergraft train {TINY} site={BLOCK} donor=trained surgery=parallel surgery.gate=0.1 strategy=hybrid exec.outputs=of_a_family"
    )
    assert done.returncode == 0, done.stderr
    (key,) = re.findall(r"of_a_family/runs/(\S+)", done.stderr)
    for form, file in (
        ("safetensors", "regnet.safetensors"),
        ("torch.export", "regnet.pt2"),
    ):  # both read it again, and compare
        done = there(f"layergraft export {key} --format {form} --to {file} --outputs of_a_family")
        assert (done.returncode, done.stdout) == (0, f"{file}\n"), done.stderr


ADDED_OPERATION = """
import json, torch
from pathlib import Path
from layergraft import Host, Surgery, fit, graft
from layergraft.runs.export import export

arm = dict(donor="random", site="layer2.0.conv1", data="digits_0_to_4", exec={"outputs": "of_an_operation"})
operation = Surgery("normed", channel_matching="project", calibrate="moments", scale=0.5)
made = graft(Host("resnet8", width=4), **arm, surgery=operation)
x = torch.randn(2, 1, 8, 8)
undone = made.undone().state_dict()
arm |= dict(strategy="freeze", schedule={"epochs": 1})
run = fit(Host("resnet8", width=4), **arm, surgery=operation)
first, last = run.record.probes
(done,) = run.record.grafts
print(json.dumps({
    "undone": all(torch.equal(t, undone[n]) for n, t in made.host.state_dict().items()) and len(undone) == len(made.host.state_dict()),
    "parts": {part: names for part, names in made.parts.items() if part in ("donor", "adapter", "calibration")},
    "did": done.did, "adapters": done.adapter_paths, "replaced": done.replaced, "kind": run.record.kinds["surgery"],
    "drift": [first["drift"], last["drift"]], "shocked": first["loss"] != first["intact/loss"],
    "seen": "cka/layer2.0.conv1/out" in last, "exported": str(export(Path("of_an_operation"), run.key)),
}))
"""


def test_an_added_operation_has_what_the_own_ones_have(there, tmp_path):
    """Adapters, calibration, a strategy by role, probes, `undone`, and an export that puts the network together again."""
    (tmp_path / "added.py").write_text(ADDED_OPERATION)
    done = there(f"python {tmp_path / 'added.py'}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    at = "layer2.0.conv1.donor"
    assert found["parts"]["donor"] == [f"{at}.donor.donor.weight"]
    adapters = [f"{at}.donor.after", f"{at}.norm"]
    assert found["adapters"] == adapters
    assert {name.rpartition(".")[0] for name in found["parts"]["adapter"]} == set(adapters)
    assert found["parts"]["calibration"] == [f"{at}.donor.affine.weight", f"{at}.donor.affine.bias"]
    assert "the donor stands beside layer2.0.conv1, behind a batch norm whose scales start at 0.5" in found["did"]
    assert (found["replaced"], found["kind"]) == (["layer2.0.conv1"], "normed")
    assert found["undone"] and found["shocked"] and found["seen"]
    assert found["drift"] == [0, 0]  # frozen, byte for byte
    assert found["exported"].endswith(".safetensors")


def test_a_package_that_cannot_be_imported_is_named(tmp_path):
    (tmp_path / "broken-1.dist-info").mkdir()
    (tmp_path / "broken-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (tmp_path / "broken-1.dist-info" / "entry_points.txt").write_text("[layergraft]\nbroken = not_there\n")
    done = subprocess.run(
        [sys.executable, "-m", "layergraft", "plan"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: the package broken, which adds to layergraft, cannot be imported: ModuleNotFoundError: No module named 'not_there'\n"
    )
