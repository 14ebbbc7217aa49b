"""The command line, fuzzed: whatever is asked for ends in a run with a whole record, or in one clear line."""

import faulthandler
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from layergraft.cli.commands import main
from layergraft.config.compose import conf_dir
from layergraft.donors.donor_cache import PROVENANCE
from layergraft.store.records import STATUSES

# What makes a run of a second; what is drawn comes after it, and wins.
TINY = ["host=resnet8", "host.width=2", "donor.data.train_size=20", "donor.schedule.epochs=1", "donor.optim.batch_size=10",
        "data.train_size=20", "optim.batch_size=10", "schedule.epochs=2", "exec=cpu", "exec.threads=1",
        "exec.similarity.resamples=1", "exec.similarity.images=16", "exec.probe.images=8", "surgery.images=16"]  # fmt: skip
GOOD = [
    "seed=7", "site=late", "site=layer2.0", "site=[conv1,layer2.0.conv1]", "surgery=insert", "surgery=parallel", "donor=gabor",
    "surgery.channel_matching=project", "surgery.calibrate=moments", "host.norm=group", "host.skips=false", "host=resnet20", "optim=sgd",
    "optim=adamw", "optim.lr=0.1", "optim.lr=1e30", "optim.clip_norm=1", "optim.accumulate=2", "schedule=cosine", "donor=pca",
    "schedule.warmup=0.5", "schedule.epochs=1", "schedule.epochs=3", "regularizer.mixup=0.2", "regularizer.ema=0.9",
    "regularizer.swa=0.5", "regularizer.label_smoothing=0.1", "data=digits", "data.flip=true", "data.shift=2", "data.half=A",
    "data.corrupt.noise=3", "data.corrupt.labels=0.5", "data.corrupt.blocks=4", "data.train_size=30", "strategy=low_lr",
    "strategy=full", "strategy=hybrid", "strategy=l2_sp", "strategy=auto_rgn", "+optim.options={betas:[0.5,0.9]}",
    "exec.probe.epochs=[]", "exec.probe.epochs=[0,1,-1]", "exec.checkpoint_seconds=0", "exec.features_gib=0",
    "exec.data_gib=0", "exec.rerun=true", "exec.outputs=outputs/more", "exec.sweep=x", "precision=bf16_mixed",
]  # fmt: skip
GROUPS = {
    group: sorted({path.stem for path in (conf_dir() / group).glob("*.yaml")} - {"food101", "flowers102"})
    for group in ("donor", "exec", "optim", "schedule", "strategy", "surgery", "data")
} | {"host": ["resnet8", "resnet20", "resnet18"], "donor.data": ["digits", "digits_0_to_4", "digits_5_to_9"]}
# No number but 0 to 3 is drawn for these: a run of hours is no error. What is absurd is drawn: 1e9 and above.
LONG = re.compile(r"epochs|images|resamples|width|train_size|train_per_class|patience|warmup|gradual_unfreeze|aux_depth|reader_threads|workers"
                  r"|threads|devices|size$|channels|kernel|padding|num_trials|checkpoint_seconds")  # fmt: skip
WORDS = {
    "site": ["early", "middle", "late", "0.5", "conv1", "layer2.0", "layer3", "[conv1,layer2.0]", "[early,late]", "fc"],
    "surgery.name": ["replace", "insert", "parallel"],
    "surgery.position": ["before", "after"],
    "surgery.channel_matching": ["strict", "project", "slice", "tile", "sum", "average"],
    "surgery.adapter_init": ["least_squares", "identity", "random"],
    "surgery.bias": ["keep", "drop", "fold"],
    "surgery.calibrate": ["none", "batch_norm", "moments", "lsuv"],
    "host.norm": ["batch", "group"],
    "host.stem": ["small", "imagenet", "auto"],
    "optim.name": ["sgd", "adam", "adamw", "rmsprop", "lbfgs", "adafactor", "muon", "sparseadam", "asgd", "rprop"],
    "optim.options": ["{betas:[0.5,0.9]}", "{nesterov:true}", "{lr:3}", "{foo:1}", "{params:[]}", "{betas:x}", "[]"],
    "schedule.name": ["constant", "cosine", "step", "one_cycle"],
    "donor.control": ["none", "moments", "permuted", "covariance"],
    "donor.kind": ["conv", "stem", "block", "null"],
    "data.classes": ["[0,1]", "[1,0,2]", "[0,0]", "[-1,0]", "[0,99]", "[0]"],
    "data.half": ["A", "B", "null"],
    "data.corrupt.channels": ["[0]", "[1,0,2]", "[0,0]", "[-1]"],
    "exec.sweep": ["x", "..", "a/b", ".", "a b", "'-'"],
    "exec.probe.epochs": ["[]", "[0]", "[0,1,-1]", "[-2]", "[9]", "[0,0]"],
    "precision": ["auto", "float32", "bf16_mixed"],
    "strategy.groups": ["{}", "{a:[.*]}", "{a:['(']}", "{a:[]}", "{a:['*']}", "{a:[graft],b:[.*]}", "{'':[x]}"],
    "strategy.phases": ["{}", "{a:{epoch:0}}", "{a:{epoch:0,train:{all:1}}}", "{a:null}", "{a:{epoch:1,freeze:[x]}}"],
}
KEYS = sorted(set(WORDS)) + [
    "seed", "exec.data_gib", "exec.features_gib", "exec.rerun", "exec.retries", 
    "exec.compile", "exec.channels_last", "exec.threads", "exec.devices", "exec.workers", "exec.reader_threads", "exec.device",
    "exec.checkpoint_seconds", "exec.jobs_per_gpu", "exec.probe.images", "exec.probe.thresholds", "exec.similarity.images",
    "exec.similarity.resamples", "data.name", "data.shift", "data.flip", "data.train_size", "data.train_per_class",
    "data.val_share", "data.test_share", "data.split_seed", "data.halves", "data.halves_seed", "data.corrupt.noise",
    "data.corrupt.blur", "data.corrupt.contrast", "data.corrupt.blocks", "data.corrupt.labels", "data.path", "data.size", "data.skip_corrupt", "data.window", "data.labels", "data.set", "data.task", "host.name",
    "host.width", "host.skips", "host.in_channels", "host.weights", "donor.name", "donor.seed", "donor.aux_depth", "donor.path",
    "donor.layer", "donor.in_channels", "donor.out_channels", "donor.kernel_size", "donor.stride", "donor.padding",
    "donor.bias", "donor.data.classes", "donor.data.half", "donor.optim.lr", "donor.optim.name", "donor.schedule.epochs",
    "donor.schedule.name", "donor", "data", "host", "surgery", "strategy", "optim", "schedule", "exec",
    "surgery.gate", "surgery.images", "strategy.name", "strategy.graft", "strategy.tensor_lr", "strategy.split",
    "strategy.weight_decay", "strategy.l2_sp", "strategy.phases.start.epoch", "strategy.phases.start.train",
    "strategy.phases.start.warmup", "strategy.phases.start.plateau.patience", "strategy.phases.start.batch_norm_statistics",
    "optim.lr", "optim.momentum", "optim.weight_decay", "optim.decay_1d", "optim.batch_size", "optim.accumulate",
    "optim.clip_norm", "schedule.epochs", "schedule.warmup", "schedule.step_epochs", "schedule.gamma",
    "schedule.pct_start", "schedule.early_stopping.metric", "schedule.early_stopping.patience",
    "schedule.early_stopping.min_delta", "regularizer.label_smoothing", "regularizer.mixup", "regularizer.ema",
    "regularizer.swa", "regularizer",
]  # fmt: skip
# Where to write is the user's to say, so no word for exec.outputs, exec.data, data.cache or food101's data.path is wrong.
HYDRA = [
    "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.chdir", "hydra.output_subdir", "hydra.mode",
    "hydra.job.name", "hydra.job.env_set.LAYERGRAFT_FUZZ_SET", "hydra.callbacks.x._target_", "hydra.launcher._target_",
    "hydra.sweeper._target_", "hydra.sweeper.params", "hydra.sweeper.controls", "hydra.searchpath", "hydra.verbose",
    "hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/hydra_logging", "hydra.job_logging.root", "hydra.help",
]  # fmt: skip
HYDRA_VALUES = ["elsewhere", "true", "null", "os.system", "{}", "[]", "[file://elsewhere]", "[pkg://this]", "default",
                "stdout", "MULTIRUN", "{_target_:os.mkdir,_args_:[elsewhere]}", "{a:{_target_:os.mkdir,path:elsewhere}}"]  # fmt: skip
MILD = ["null", "true", "false", "0", "1", "2", "3", "7", "0.5", "0.1", "x", "[]", "{}"]
HOSTILE = [
    "", "null", "true", "-1", "0", "1", "2", "3", "0.5", "-0.0", "1e30", "nan", "inf", "-inf", "1000000000", "1e9", "x", "'1'",
    "1000000000000000000000000000", "''", "' '", "[]", "{}", "[1,2]", "[null]", "{a:1}", "{a:{b:[c]}}", "ä€", "\u202e", "\U0001f600",
    "${seed}", "${nowhere}", "${oc.env:HOME}", "${oc.env:NOWHERE}", "${exec}", "${share:0.5,3}", "${share:x,y}", "${now:%Y}",
    "${hydra:runtime.cwd}", "${oc.create:{a:1}}", "${", "}", "[", "]", "{", "'", '"', "a'b", "\\", "a=b", "a,b", "range(3)",
    "choice(1,2)", "interval(0,1)", "glob(*)", "shuffle(1,2)", "???", "..", "../..", "/", "/dev/null", "/dev/zero", ".", "~", "%s",
    "{x}", "\x1b[31m", "a\nb", "\t", "!!python/object:os.system", "__class__", "*", "0x10", "1_000", "True", "None", "x" * 3000,
    "[[[[[[[[]]]]]]]]", "conf", "outputs",
]  # fmt: skip
JUNK = ["", " ", "=", "==", "a", "=1", "+", "~", "+=1", "~=1", "++", "@", "@=1", "a@=1", "a@b=1", "a@b@c=1", "/", "/=1", ".=1",
        "a..b=1", "seed..=1", "seed.=1", ".seed=1", "seed[0]=1", "--", "-", "--cfg", "--foo", "-x", "--info", "--resolve",
        "--package", "--config-name", "--config-name=x", "--config-path=/", "--config-dir", "--config-dir=/dev/null", "-cn",
        "--experimental-rerun=x", "--run", "--version", "--cfg=job", "--cfg=x", "@file", "$(id)", "`id`", "hydra", "hydra=",
        "hydra.=1", "\x00", "a\x00=1", "seed=1 seed=2", "-cp", "--multi", "+experiment=quickstart", "+size=smoke"]  # fmt: skip


def _spoilt(key, place, how):
    place %= max(1, len(key))
    return key[:place] + {"drop": "", "twice": key[place : place + 1] * 2, "other": "_"}[how] + key[place + 1 :]


def override(pick, mild):
    """One argument: mostly a real key or choice with a real value, or with a hostile one."""
    mildly, wildly = ["good"] * 12 + ["choice", "word", "value"], ["value"] * 6 + ["spoilt", "text", "hydra", "junk"]
    kind = pick(mildly if mild else wildly)
    if kind == "good":
        return pick(GOOD)
    if kind == "junk":
        return pick(JUNK)
    if kind == "text":
        return "".join(
            chr(pick([pick(range(32, 127)), pick(range(0xD800)), pick(range(128))])) for _ in range(pick(range(20)))
        )
    if kind == "hydra":
        return f"{pick(['', '+', '++', '~'])}{pick(HYDRA)}={pick(HYDRA_VALUES)}"
    if kind in ("choice", "word"):
        known = GROUPS if kind == "choice" else WORDS
        key = pick(sorted(known))
        return f"{key}={pick(known[key])}"
    key, value = pick(KEYS), pick(MILD if mild else HOSTILE)
    if value in ("0.5", "3", "7") and LONG.search(key):
        value = "1"
    if kind == "spoilt":
        key = _spoilt(key, pick(range(40)), pick(["drop", "twice", "other"]))
    prefix = pick([""] * 6 + ["+", "++", "~"])
    return prefix + key + ("" if prefix == "~" and pick([True, False]) else f"={value}")


@st.composite
def command_lines(draw):
    pick = draw(st.randoms(use_true_random=True)).choice  # hypothesis itself repeats what it has drawn before
    mild = pick([True, False])
    others = ["plan", "surgery", "sites", "donate", "similarity"]
    command = pick(["train"] * 6 + others + ["advise"] * (not mild))  # it starts processes
    start = pick([["strategy=freeze"], ["strategy=full", "donor=none"], ["strategy=freeze", "donor=random"]])
    own = [o for o in TINY if not o.startswith("donor.") or len(start) == 1]
    drawn = [override(pick, mild) for _ in range(pick([1, 1, 2, 2, 3, 4]))]
    twice = pick([[]] * 5 + [drawn[:1]])
    # A sweep starts processes: most of those that are drawn are refused before.
    many = pick([[]] * 19 + [["-m", "seed=0,1,x"]]) if command == "train" else []
    return [command, *many, *start, *own, *drawn, *twice]


def _there(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[1:2] != ("outputs",)
    )


def _look_at_the_store(outputs):
    for folder in [run for runs in outputs.rglob("runs") for run in runs.iterdir()]:
        record = json.loads((folder / "record.json").read_text())
        assert record["status"] in STATUSES and record["key"] == folder.name
        if record["status"] == "completed":
            assert (folder / "model.safetensors").exists() and (folder / "curves.csv").exists()
    for folder in (outputs / "donors").iterdir() if (outputs / "donors").is_dir() else ():
        assert folder.name.startswith(".") or (folder / PROVENANCE).exists()
    kept = (".gitkeep", ".layergraft")  # the latter says whose figures are in a folder
    left = [p for p in outputs.rglob(".*") if p.name not in kept]
    assert not left, f"left over: {left}"
    leases = outputs / "leases"
    assert not leases.exists() or not list(leases.iterdir())


@pytest.fixture
def here(tmp_path, monkeypatch, no_network):
    """An empty folder to run in, in another to look for what is written beside it; no network."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def check(arguments, here, capsys):
    """Do it and look: the exit code, what was said, what was written."""
    note(f"layergraft {arguments}")
    before, threads = _there(here.parent), torch.get_num_threads()
    faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)  # a hang is told, not waited for
    code = 0
    try:
        main(list(arguments))
    except SystemExit as error:
        code = error.code or 0
    finally:
        faulthandler.cancel_dump_traceback_later()
        torch.set_num_threads(threads)
    out, err = capsys.readouterr()
    note(err)
    assert code in (0, 1, 2) and "Traceback" not in out + err
    if code == 2:
        *before_it, line = err.splitlines()
        assert line.startswith("error: ") and line.isprintable() and len(line) < 5000
        assert not before_it or arguments[0] == "advise" or "-m" in arguments, f"more than one line: {before_it}"
    assert code != 1 or err.splitlines()[-1].startswith("error: ")
    assert "LAYERGRAFT_FUZZ_SET" not in os.environ and Path.cwd() == here
    new = [name for name in _there(here.parent) if name not in before and name.split("/")[:2] != ["here", "data"]]
    assert not new, f"written: {new}"
    _look_at_the_store(here / "outputs")
    if code == 0 and arguments[0] == "train" and "accuracy:" in err:
        (folder,) = re.findall(r"^run: +(.+)$", err, re.MULTILINE)
        assert json.loads((here / folder / "record.json").read_text())["status"] == "completed"
    return code


def fuzzed(number, derandomize):
    """Function: the folder, capsys -> how often each exit code came of `number` command lines."""

    def run(here, capsys):
        codes = Counter()

        @settings(max_examples=number, derandomize=derandomize, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(arguments=command_lines())
        def cases(arguments):
            codes[arguments[0] == "train", check(arguments, here, capsys)] += 1

        cases()
        return codes

    return run


@pytest.mark.slow
def test_a_few_command_lines(here, capsys):
    codes = fuzzed(40, True)(here, capsys)
    assert codes[True, 0] > 2 and codes[True, 2] > 2, codes


@pytest.mark.slow
def test_hundreds_of_command_lines(here, capsys):
    """Others each time; `--hypothesis-seed=N` gives the same again."""
    codes = fuzzed(600, False)(here, capsys)
    print(codes)
    assert codes[True, 0] > 60 and codes.total() >= 500, codes
