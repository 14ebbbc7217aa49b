"""The command line as people meet it: help, errors, single runs, donors, reports, completion."""

import os
import re
import subprocess

import pytest
import torch

from conftest import LAYERGRAFT, TINY
from layergraft.cli.commands import COMMANDS, main
from layergraft.config.compose import conf_dir

BAD = {
    "strategy=hybird": "unknown strategy 'hybird'; did you mean 'hybrid'? There are: auto_rgn, bn_only",
    "host=resnet19": "unknown host 'resnet19'; did you mean 'resnet18'?",
    "data=digit": "unknown data 'digit'; did you mean 'digits'?",
    "donor=traind": "unknown donor 'traind'; did you mean 'trained'? There are: conv7x7, covariance, end_to_end",
    "+experiment=quikstart": "unknown experiment 'quikstart'; did you mean 'quickstart'?",
    "experiment=quickstart": "an experiment is added with a +: +experiment=quickstart",
    "size=digits": "a size goes with an experiment: +experiment=location size=digits",
    "site=erly": "unknown site in resnet18: 'erly'; did you mean 'early'? There are: early, middle, late, 0.0 to 1.0, conv1",
    "site=layer4.2.conv1": "unknown site in resnet18: 'layer4.2.conv1'; did you mean 'layer4.1.conv1'?",
    "donor.control=permute": "unknown donor.control 'permute'; did you mean 'permuted'?",
    "donor.data=digit": "unknown data 'digit'; did you mean 'digits'?",
    "donor.out_channels=32": "the donor does not fit conv1: it takes 1 channels and gives 32, where 1 and 64 are needed. The donor is a conv, 1 -> 32",
    "donor.kind=stme": "unknown donor.kind 'stme'; did you mean 'stem'?",
    "donor=extracted": "donor.path is not set",
    "+optim=[[adam]]": "a group takes the name of a choice, such as optim=adam, and no number, list or dictionary",
    "hydra.verbose={}": "hydra.verbose takes true, false, the name of a logger or a list of names",
    "optim=3": "a group takes the name of a choice, such as optim=adam, and no number, list or dictionary",
    "surgery=replac": "unknown surgery 'replac'; did you mean 'replace'?",
    "surgery.channel_matching=strct": "unknown surgery.channel_matching 'strct'; did you mean 'strict'?",
    "surgery.gate=0": "surgery.gate is a key of surgery=insert and surgery=parallel, not of the surgery chosen",
    "strategy.l2_sp.graft=0.1": "strategy.l2_sp has no graft; +strategy.l2_sp.graft=VALUE adds it",
    "schedule.early_stopping.metric=val/ece": "schedule.early_stopping.patience is null, so nothing is watched",
    "surgery.name=insert": "surgery.name is insert, but the operation is replace; surgery=insert chooses the other",
    "site=[conv1,early]": "the site conv1 is given twice",
    "site=[layer1,layer1.0.conv1]": "the site layer1.0.conv1 is inside layer1, which is a site itself",
    "site=[]": "site is an empty list",
    "site=1.5": "site=1.5 is not a relative depth",
    "site=depth=0.5": "a relative depth is a number: site=0.5",
    "site=layer1": "layer1 is a stage, and donor=trained trains a single layer",
    "host.weights=IMAGENET1K_V9": "'IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'?",
    "host.weights=nowhere.pt": "there is no file nowhere.pt",
    "host.in_channels=4": "host.in_channels is 4; it must be 1, 3 or null",
    "strategy.groups.early=[layer9]": "matches no parameter): 'layer9'; did you mean 'layer4'?",
    "strategy.phases.thaw.epoch=30": "phase thaw starts at epoch 30, but training ends after 30 epochs",
    "strategy.phases.thaw.epoch=-1": "phase thaw starts at epoch -1; epochs count from 0",
    "strategy.phases.thaw.epoch=soon": "strategy.phases.thaw.epoch: Value 'soon'",
    "optim.lr=-1": "optim.lr is -1.0; a learning rate must be above 0",
    "donor.optim.lr=0": "donor.optim.lr is 0.0",
    "optim.lr=inf": "optim.lr is inf",
    "optim.batch_size=1": "optim.batch_size is 1; it must be 2 or more",
    "+foo=1": "unknown key: 'foo'",
    "+optim.lrr=1": "unknown key in optim: 'lrr'; did you mean 'lr'?",
    "optim.lrr=1": "unknown key in optim: 'lrr'; did you mean 'lr'?",
    "stratgy=freeze": "unknown key 'stratgy'; did you mean 'strategy'?",
    "optim.name=adan": "unknown optimizer in optim.name: 'adan'; did you mean 'adam'?",
    "schedule.name=cosin": "did you mean 'cosine'?",
    "schedule.epochs=0": "schedule.epochs is 0",
    "exec=cuda": "torch sees no CUDA device here; exec=auto or exec=cpu does without",
    "exec.device=gpu": "unknown exec.device 'gpu'; did you mean 'cpu'? There are: auto, cuda, cpu",
    "exec.sweep=../../etc": "exec.sweep is '../../etc'",
    "precision=fp16": "unknown precision 'fp16'. There are: auto, float32, bf16_mixed",
    "seed=-1": "seed is -1",
    "seed=many": "seed: Value 'many'",
    "data.train_size=1000": "data.train_size is 1000, which takes 200 images of class 0 of digits",
    "data.classes=[0,11]": "'11'",
    "data.classes=[0,0]": "names a class twice",
    "donor.data.classes=[7]": "donor: data.classes is [7]",
    "optim.batch_size=101": "optim.batch_size is 101, but there are 100 training images",
    "host.stem=smal": "unknown host.stem 'smal'; did you mean 'small'?",
    "strategy=freeze,full": "several values are a sweep and need -m",
    "strategy": "cannot read the override 'strategy'",
    "~site": "site is not set",
    "--config-dir=nowhere": "nowhere' not found",
    "exec.outputs=/proc/nowhere": "/proc/nowhere: No such file or directory",
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_one_clear_line_before_any_training(bad, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = command("train", bad)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and BAD[bad] in err and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.*"))  # no record, no donor; an empty outputs/ at most


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["trian"],
            "unknown command 'trian'; did you mean 'train'? There are: train, plan, pretrain, donate, surgery, similarity, sites, advise, status, report, compare, export",
        ),
        (["report"], "report: the following arguments are required: DIR"),
        (["report", "--wher", "x"], "unknown option of report '--wher'; did you mean '--where'?"),
        (["report", "--to"], "report: argument --to: expected one argument"),
        (["report", "x", "--to"], "report: argument --to: expected one argument"),
        (["compare", "strategy=freeze"], "compare: the following arguments are required: B"),
        (["status", "a", "b"], "status: one argument too many: b"),
        (["export"], "export: the following arguments are required: KEY"),
        (["export", "x", "--format", "onx"], "unknown format 'onx'; did you mean 'onnx'?"),
        (["report", "outputs/sweeps/nope"], "'outputs/sweeps/nope'"),
        (["train", "-m", "+experiment=examples", "hydra/sweeper=optuna"], "only hydra/sweeper=layergraft has"),
        (["donate", "donor=none"], "donor=none is no donor"),
        (["donate", "-m", "seed=1,2"], "donate takes one run and no -m"),
        (["surgery", "-m", "seed=1,2"], "surgery takes one run and no -m"),
        (["surgery", "donor=none", "strategy=full"], "donor=none puts nothing in"),
    ],
)
def test_other_bad_commands(arguments, message, command):
    code, _, err = command(*arguments)
    assert code == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_traceback_where_it_is_asked_for(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="unknown site"):
        command("train", "site=erly")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_a_donor_that_cannot_be_is_not_trained(command, tmp_path):
    commands = [
        ("train", "donor.out_channels=5"),
        ("train", "strategy.phases.thaw.epoch=9"),
        ("donate", "donor.data.classes=[5]"),
    ]
    for name, bad in commands:
        code, out, err = command(name, *TINY, bad, f"exec.outputs={tmp_path}/o")
        assert code == 2 and out == "" and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))
    code, _, err = command("donate", *TINY, "donor.optim.lr=1e30", f"exec.outputs={tmp_path}/o")
    assert code == 1 and "the training of conv3x3-1-4.digits_a.seed0." in err and "diverged" in err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_own_choices_with_a_mistake_in_them(command, tmp_path):
    (tmp_path / "strategy").mkdir()
    path = tmp_path / "strategy" / "mine.yaml"
    for text, message in (("name: [", "mine.yaml, line 2"), ("phases: {a: {epoch: 0, trian: {x: 1}}}", "'trian'")):
        path.write_text(text + "\n")
        code, _, err = command("train", "--config-dir", str(tmp_path), "strategy=mine")
        assert code == 2 and message in err and err.count("\n") == 1


def test_help(command):
    code, out, _ = command("--help")
    assert code == 0 and set(COMMANDS) <= set(re.findall(r"layergraft (\w+)", out))
    for name in COMMANDS:
        code, out, _ = command(name, "--help")
        assert code == 0 and f"layergraft {name}" in out


def test_cfg_shows_the_composed_config(command):
    code, out, _ = command("train", "--cfg", "job", "strategy=low_lr", "optim.lr=0.5")
    assert code == 0 and "name: low_lr" in out and "lr: 0.5" in out


def test_a_single_run_and_its_donor(command, tmp_path):
    common = [*TINY, "site=late", "exec.threads=1", f"exec.outputs={tmp_path}"]
    code, out, err = command("donate", *common)
    key = out.strip()
    assert code == 0 and (tmp_path / "donors" / key / "donor.safetensors").exists() and "on its own task" in err
    stamp = (tmp_path / "donors" / key / "donor.safetensors").stat().st_mtime_ns
    code, _, err = command("train", *common)
    assert code == 0 and re.search(r"accuracy: +test \d+\.\d%", err) and f"--logdir {tmp_path}/runs" in err
    assert (tmp_path / "donors" / key / "donor.safetensors").stat().st_mtime_ns == stamp  # the run took that donor


def test_a_run_that_diverges_says_so(command, tmp_path):
    arguments = [*TINY[:2], "donor=none", "strategy=full", "optim=sgd", "optim.lr=1e30", "optim.batch_size=25"]
    code, _, err = command("train", *arguments, f"exec.outputs={tmp_path}")
    assert code == 1 and "the run diverged: the training loss is" in err


def test_own_choices_from_a_folder(command, tmp_path):
    (tmp_path / "strategy").mkdir()
    text = 'name: mine\ngroups: {all: [".*"]}\nphases: {start: {epoch: 0, train: {all: 0.5}}}\n'
    (tmp_path / "strategy" / "mine.yaml").write_text(text)
    code, out, _ = command("train", "--config-dir", str(tmp_path), "strategy=mine", "--cfg", "job")
    assert code == 0 and "name: mine" in out


@pytest.mark.parametrize(
    "line, expected",
    [
        ("layergraft tr", {"train"}),
        ("layergraft ", set(COMMANDS)),
        ("layergraft train strategy=", {f"strategy={path.stem}" for path in (conf_dir() / "strategy").iterdir()}),
        (
            "layergraft train host=resnet18 strategy=fr",
            {"strategy=freeze", "strategy=freeze_early", "strategy=freeze_thaw"},
        ),
    ],
)
def test_completion(line, expected, command, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    code, out, _ = command("-sc", "query=bash")
    assert code == 0 and set(out.split()) == expected


def test_completion_in_a_real_bash():
    script = f"""
    PATH={LAYERGRAFT.parent}:$PATH
    eval "$(layergraft train -sc install=bash)"
    COMP_LINE='layergraft train donor=p' COMP_WORDS=(layergraft train donor=p) COMP_CWORD=2 COMP_POINT=${{#COMP_LINE}}
    hydra_bash_completion
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["donor=pca", "donor=permuted"], done.stderr


def test_sites_prints_every_place_with_its_shapes(command):
    code, out, err = command("sites", "host=resnet50", "host.width=8")
    lines = out.splitlines()
    assert code == 0 and not err and len(lines) == 3 + 1 + 53 + 16 + 4
    assert lines[0].startswith("resnet50, width 8: ") and "middle layer3.0.conv3" in lines[1]
    assert lines[3].split() == ["path", "kind", "in", "out", "stride", "parameters", "depth", "norm", "after", "it"]
    (row,) = [line for line in lines if line.startswith("layer2.0.conv2 ")]
    assert row.split() == "layer2.0.conv2 conv 16 x 8 x 8 16 x 4 x 4 2 2,304 0.23 layer2.0.bn2".split()
    assert "in a skip" in next(line for line in lines if line.startswith("layer2.0.downsample.0"))


def test_surgery_is_read_before_any_training(command, tmp_path):
    arguments = ["host=resnet8", "donor=random", "site=layer2.0", "surgery=parallel", "surgery.channel_matching=project", "strategy=full",
                 "exec.device=cpu", f"exec.outputs={tmp_path}"]  # fmt: skip
    code, out, _ = command("surgery", *arguments)
    assert code == 0 and "the donor stands beside layer2.0, behind a gate that starts at 0" in out
    assert "adapters  layer2.0.donor.after, layer2.0.gate" in out and "parameters added: +14,977" in out
    parts = {
        match[1].strip(): int(match[2].replace(",", ""))
        for match in re.finditer(r"^(\S.{11}) *\d+ tensors +([\d,]+)", out, re.MULTILINE)
    }
    assert parts["adapter"] == 32 * 32 + 1 and parts["head"] == 64 * 5 + 5 and len(parts) == 6
    assert "layer2.0.donor differs from the intact host by " in out
    loss = re.search(r"loss +host (\S+), grafted (\S+)", out)
    assert loss[1] == loss[2]  # behind a zero gate nothing has changed yet
    assert not (tmp_path / "runs").exists()
    code, out, _ = command("surgery", *arguments, "surgery.gate=1", "surgery.channel_matching=strict")
    loss = re.search(r"loss +host (\S+), grafted (\S+)", out)
    assert code == 0 and loss[1] != loss[2] and re.search(r"^layer3 .*%$", out, re.MULTILINE)


def test_donate_says_what_it_cut(command, tmp_path):
    torch.save(
        {"state_dict": {"model.conv1.weight": torch.randn(16, 1, 3, 3), "model.fc.weight": torch.zeros(2)}},
        tmp_path / "net.ckpt",
    )
    code, out, err = command(
        "donate",
        "host=resnet20",
        "donor=extracted",
        f"donor.path={tmp_path / 'net.ckpt'}",
        "strategy=freeze",
        f"exec.outputs={tmp_path}",
    )
    assert (
        code == 0
        and out.startswith("conv3x3-1-16.extracted.")
        and (tmp_path / "donors" / out.strip() / "donor.safetensors").exists()
    )
    assert "matched: weight (16, 1, 3, 3); 1 other tensors left; prefixes taken off: model." in err


def test_a_pipe_that_closes_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"{LAYERGRAFT} sites host=resnet110 | head -1"], capture_output=True, text=True
    )
    assert done.stdout.startswith("resnet110, width 16: 1,72") and done.stderr == ""


def test_a_donors_key_changes_the_donor_alone(config):
    mine = config("donor=self", "donor.schedule.epochs=3", "donor.optim.lr=0.5", "schedule.epochs=7", "strategy=freeze")
    assert (mine.schedule.epochs, mine.donor.schedule.epochs) == (7, 3)
    assert (mine.optim.lr, mine.donor.optim.lr, mine.donor.optim.batch_size) == (1e-3, 0.5, mine.optim.batch_size)
    assert mine.donor.host == mine.host and mine.donor.host is not mine.host and mine.donor.data == mine.data
    other = config("donor=end_to_end", "+host@donor.host=resnet20", "donor.host.width=8", "strategy=freeze")
    assert (other.host.name, other.donor.host.name, other.donor.host.width) == ("resnet18", "resnet20", 8)


def test_self_takes_over_every_field_of_the_runs_optimizer_and_schedule(config):
    from layergraft.config.registry import canonical

    mine = config(
        "donor=self",
        "optim=sgd",
        "optim.momentum=0.3",
        "optim.weight_decay=0.2",
        "optim.batch_size=7",
        "optim.accumulate=3",
        "optim.clip_norm=2",
        "optim.decay_1d=false",
        "+optim.options={nesterov: true}",
        "schedule=step",
        "schedule.epochs=9",
        "schedule.warmup=2.5",
        "schedule.early_stopping={metric: val/acc, patience: 4, min_delta: 0.1}",
        "strategy=freeze",
    )
    assert canonical(mine.donor.optim) == canonical(mine.optim) and canonical(mine.donor.schedule) == canonical(
        mine.schedule
    )


# The plan


def test_plan_prints_groups_rates_and_what_is_frozen_when(command):
    code, out, err = command("plan", "strategy=hybrid", "schedule.epochs=6", "host=resnet8", "optim.batch_size=50")
    assert code == 0 and err == ""
    lines = [line.split() for line in out.splitlines()]
    assert ["graft", "1", "144", "0-2", "conv1.*"] in lines
    assert ["early", "8", "4,704", "0-5", "bn1.*,", "layer1.*"] in lines
    assert ["epochs", "phase", "graft", "early", "rest"] in lines
    assert ["0-2", "start", "frozen", "frozen", "0.001"] in lines and [
        "3-5",
        "thaw",
        "0.0001",
        "frozen",
        "0.001",
    ] in lines
    assert "phase thaw starts at epoch 3; norm statistics move in: graft, rest" in out
    assert "strategy hybrid: 6 epochs of 2 steps" in out


def test_plan_says_when_a_phase_may_come_sooner_and_what_is_not_there(command):
    code, out, _ = command(
        "plan", "strategy=hybrid", "schedule.epochs=8", "strategy.phases.thaw.plateau.patience=2", "host=resnet8"
    )
    assert code == 0 and "phase thaw starts at epoch 4, or as soon as val/loss has not been better for 2 epochs" in out
    code, out, _ = command("plan", "strategy=l2_sp", "host=resnet8", "strategy.groups.new=[adapter]")
    assert code == 0 and re.search(r"new +0 +0 +never +none in this network", out)


def test_plan_refuses_what_train_would(command):
    for override, message in {
        "strategy.phases.thaw.epoch=99": "phase thaw starts at epoch 99, but training ends after 30 epochs",
        "strategy.phases.thaw.train.rest=0": "trains rest at 0.0 times the learning rate; it must be above 0",
        "strategy.groups.early=[layer9]": "unknown pattern in strategy hybrid, group early (it matches no parameter): 'layer9'; did you mean 'layer",
        "strategy.groups.rest=[head]": "is in no group; its groups: graft, early, rest",
        "schedule.epochs=1": "is schedule.epochs=1 too short for a share of it?",
        "strategy.groups.early=layer1": "a list is needed, such as [A,B]",
        "strategy.phases.thaw.plateau.metric=acc": "unknown strategy.phases.thaw.plateau.metric 'acc'; did you mean 'val/acc'?",
    }.items():
        code, out, err = command("plan", override)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err


def test_site_and_surgery_do_not_act_without_a_graft(config):
    from layergraft.runs.plan import plan_run

    runs = [
        plan_run(config("donor=none", "strategy=full", *more))
        for more in ([], ["site=late"], ["surgery=insert", "surgery.gate=0"])
    ]
    assert len({run.key for run in runs}) == 1 and runs[0].grafts == ()
    assert runs[0].key.startswith("full.resnet18.none.seed0.")


def test_a_strategys_key_in_a_sweep_is_about_that_strategy(tmp_path, command):
    arguments = ["-m", "strategy=freeze,hybrid", "strategy.phases.thaw.epoch=1", "donor=random", 'hydra.sweeper.controls=[["donor=none","strategy=full"]]', "host=resnet8", "host.width=4",
                 "schedule.epochs=2", "optim.batch_size=25", "exec.device=cpu", "exec.sweep=thaws", "site=early,late"]  # fmt: skip
    code, _, err = command("train", *arguments, f"exec.outputs={tmp_path}")
    assert code == 0 and "5 of 5 runs completed" in err  # no graft does not depend on the site
    page = (tmp_path / "sweeps" / "thaws" / "report.html").read_text()
    assert "What learned when" in page and "hybrid, resnet8, donor at early" in page
    assert {path.name for path in (tmp_path / "sweeps" / "thaws" / "figures").glob("plan.*.png")} == {
        "plan.freeze.png", "plan.hybrid.png", "plan.full.png"}  # fmt: skip


def test_error_on_the_way_up_of_an_interrupt_is_an_interrupt(monkeypatch, capsys):
    def half_done(arguments):
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("left half made")

    monkeypatch.setitem(COMMANDS, "status", half_done)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 130 and "interrupted" in capsys.readouterr().err


def test_version_and_a_file_before_an_option(command):
    from importlib.metadata import version

    assert command("--version") == (0, f"layergraft {version('layergraft')}\n", "")
    code, out, err = command("train", "donor.path=mine.pt", "--cfg", "job")  # which means donor=extracted
    assert code == 0 and "path: mine.pt" in out, err
