"""`layergraft advise` on tiny runs: what is tried, what is left out, what is printed and kept."""

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import save_file

from conftest import TINY

SMALL = ["data=digits_0_to_4", "host=resnet8", *TINY, "data.train_size=50"]
ASKED = ["site=early,late", "strategy=freeze,full", "--epochs=2", "--seeds=2", "--finalists=2", *SMALL]


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """Function: arguments -> what `layergraft advise` prints; its outputs folder."""
    import contextlib
    import io

    from layergraft.cli.commands import main

    outputs = tmp_path_factory.mktemp("advice") / "outputs"

    def ask(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(["advise", *arguments, f"exec.outputs={outputs}"])
        return out.getvalue(), err.getvalue()

    return ask, outputs


@pytest.fixture(scope="module")
def first(advised):
    ask, outputs = advised
    return *ask(*ASKED, "exec.sweep=first"), json.loads((outputs / "sweeps" / "first" / "advice.json").read_text())


def test_the_rounds_are_those_that_were_announced(first, advised):
    _, err, advice = first
    assert "4 arms: 4 x 1 seed of 1 epoch, 2 x 2 seeds of 2 epochs: as much as 8.0 runs of 2" in err
    short, long = advice["rounds"]
    assert (short["epochs"], short["seeds"], len(short["arms"])) == (1, [2], 4)
    assert (long["epochs"], long["seeds"], len(long["arms"])) == (2, [0, 1], 3)
    assert long["arms"][-1]["arm"] == "donor=none strategy=full"
    record = json.loads((advised[1] / "runs" / long["arms"][0]["runs"][1] / "record.json").read_text())
    assert record["config"]["seed"] == 1 and record["config"]["schedule"]["epochs"] == 2
    assert record["metrics"]["val/acc"] == long["arms"][0]["val/acc"][1]


def test_where_no_finalist_came_to_its_end_the_reason_is_told(command, tmp_path):
    asked = ["site=early", "strategy=freeze", "--seeds=2", "--finalists=1", *SMALL, "optim.lr=1e30"]
    code, _, err = command("advise", *asked, f"exec.outputs={tmp_path}")
    assert code == 1 and re.search(
        r"^error: no finalist was completed: the (training|test) loss is .* has the runs", err, re.M
    )


def test_no_round_is_shorter_than_an_arm_takes(command, tmp_path, monkeypatch):
    told = "2 arms: 2 x 1 seed of 2 epochs, 1 x 2 seeds of 2 epochs"  # hybrid thaws halfway
    asked = ["site=early,late", "strategy=hybrid", "--seeds=2", "--finalists=1", *SMALL]  # 2 epochs
    from layergraft.sweeps.advise import AdviseSweeper

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AdviseSweeper, "_measured", stop)
        code, _, err = command("advise", *asked, f"exec.outputs={tmp_path}")
    assert code == 130 and told in err, err


def test_the_best_of_a_round_go_on(first):
    short, long = first[2]["rounds"]
    ranked = sorted(short["arms"], key=lambda row: -row["val/acc"][0])
    assert {row["arm"] for row in long["arms"][:-1]} == {row["arm"] for row in ranked[:2]}


def test_the_command_it_prints_is_the_run_it_advises(first, command, advised):
    out, _, advice = first
    line = next(line for line in out.splitlines() if re.match("layergraft train (?!-m)", line))
    assert all(choice in shlex.split(line) for choice in advice["take"])
    code, plan, _ = command("plan", *shlex.split(line)[2:])
    assert code == 0 and plan
    sweep = next(line for line in out.splitlines() if line.startswith("layergraft train -m"))
    (strategy,) = (o for o in advice["take"] if o.startswith("strategy="))
    assert {strategy, 'hydra.sweeper.controls=[["donor=none", "strategy=full"]]'} <= set(shlex.split(sweep))
    assert out.startswith(f"take {' '.join(advice['take'])}: test accuracy")


def test_asked_again_nothing_is_trained(advised, first):
    ask, outputs = advised
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("record.json")}
    out, err = ask(*ASKED, "exec.sweep=first")
    assert out == first[0] and "in the store already" in err
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("record.json")} == before


def test_a_layer_from_a_file_goes_where_it_fits(advised, tmp_path):
    """8 -> 16 channels at stride 2: one convolution of this host, none of early, middle, late."""
    save_file({"weight": torch.randn(16, 8, 3, 3)}, tmp_path / "mine.safetensors")
    ask, _ = advised
    small = [o for o in SMALL if not o.startswith("donor.")]
    out, _ = ask(f"donor.path={tmp_path / 'mine.safetensors'}", "strategy=freeze", "--epochs=1", "--seeds=2", *small)
    assert re.match(r"take site=layer3\.0\.conv1", out), out


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--seeds=1"], "--seeds is 1; one seed tells nothing, it must be 2 or more"),
        (["--finalists", "0"], "--finalists is 0; it must be 1 or more"),
        (["--epochs=0"], "--epochs is 0; it must be 1 or more"),
        (["--epochs=many"], "advise: argument --epochs: invalid int value: 'many'"),
        (["--seeds"], "advise: argument --seeds: "),
        (["-m"], "advise takes no -m; lists of values are what it chooses from"),
        (["seed=0,1"], "neither can be swept"),
        (["strategy=hybird"], "unknown strategy 'hybird'; did you mean 'hybrid'?"),
        (["site=layer9"], "unknown site in resnet8: 'layer9'"),
        (["exec.rerun=true"], "advise takes what the store has"),
    ],
)
def test_bad_input_is_one_line(arguments, line, command, tmp_path):
    code, out, err = command("advise", *SMALL, *arguments, f"exec.outputs={tmp_path / 'outputs'}")
    assert (code, out) == (2, "") and err.startswith("error: ") and line in err and err.count("\n") == 1
    assert not (tmp_path / "outputs" / "runs").exists()


@pytest.mark.slow
def test_in_a_trained_host_the_loss_before_any_training_leaves_half_of_the_sites(command, tmp_path):
    host = [
        "data=digits_b_blurred",
        "host.pretrain.data=digits_a",
        "host.pretrain.schedule.epochs=8",
        "host=resnet8",
        "host.width=4",
    ]
    run = [*host, "donor=random", "site=early,middle,late", "strategy=freeze,full", "optim.batch_size=50", "schedule.epochs=2",
           "exec.device=cpu", "exec.similarity.resamples=0", f"exec.outputs={tmp_path}", "exec.sweep=advice"]  # fmt: skip
    code, out, err = command("advise", *run, "--epochs", "1", "--seeds", "2", "--finalists", "4")
    assert code == 0 and "by the loss before any training, 2 of 3 sites and surgeries go on" in err, err
    told = json.loads((tmp_path / "sweeps" / "advice" / "advice.json").read_text())["rounds"]
    losses = {re.search(r"site=\w+", row["arm"])[0]: row["step0/loss"] for row in told[0]["arms"]}
    assert len(losses) == 3 and [len(at["arms"]) for at in told] == [
        3,
        5,
    ]  # then both strategies at two sites, and no graft
    worst = max(losses, key=losses.get)
    assert not any(worst in row["arm"] for row in told[1]["arms"])
