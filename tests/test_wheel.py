"""Installed as a wheel, outside of the checkout: the choices are there, and folders of one's own are added."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import TINY

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Function: arguments of `layergraft`, folder -> the process that has ended; what is imported is the wheel's."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    def run(*arguments, cwd):
        return subprocess.run([sys.executable, "-m", "layergraft", *arguments], cwd=cwd, env={**os.environ, "PYTHONPATH": str(site)},
                              capture_output=True, text=True)  # fmt: skip

    run.site = site
    return run


def test_it_holds_all_of_conf_and_src_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
    source = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*") if p.suffix in (".py", ".j2")}
    files = (p for p in (ROOT / "conf").rglob("*") if p.suffix in (".yaml", ".json"))
    choices = {f"layergraft/conf/{p.relative_to(ROOT / 'conf')}" for p in files}
    assert names == source | choices
    assert len(licences) == 1


def test_a_sweep_in_an_empty_folder_with_choices_of_ones_own(installed, tmp_path):
    (tmp_path / "mine/strategy").mkdir(parents=True)
    (tmp_path / "mine/strategy/gentle.yaml").write_text(
        "# all at half the rate\nname: gentle\ngroups: {all: ['.*']}\nphases:\n  all: {epoch: 0, train: {all: 0.5}}\n"
    )
    small = ["host=resnet8", *(o for o in TINY if "donor" not in o), "donor=random"]
    done = installed(
        "train", "--config-dir", "mine", "-m", "strategy=gentle,freeze", "exec.sweep=two", *small, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/sweeps/two/report.html").is_file()
    assert len(list((tmp_path / "outputs/runs").iterdir())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "outputs"]
    code = "import layergraft, layergraft.config.compose as c; print(layergraft.__file__, c.conf_dir())"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed.site)},
                          capture_output=True, text=True)  # fmt: skip
    assert all(Path(path).is_relative_to(installed.site) for path in said.stdout.split())
