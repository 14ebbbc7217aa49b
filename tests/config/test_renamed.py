"""A key's old name gets one line with the new one, and what the line advises works."""

import re

import pandas as pd
import pytest

from layergraft.config.error_messages import explain
from layergraft.config.renamed import RENAMED
from layergraft.errors import UserError
from layergraft.report.query import select

# What was written before -> what the line says to write instead.
OVERRIDES = {
    "donor.k=3": ["donor.aux_depth=3"],
    "surgery.fit=project": ["surgery.channel_matching=project"],
    "surgery.start=random": ["surgery.adapter_init=random"],
    "surgery.where=before": ["surgery=insert", "surgery.position=before"],
    "+strategy.anchor.rest=0.1": ["+strategy.l2_sp.rest=0.1"],
    "strategy.auto=rgn": ["strategy.tensor_lr=rgn"],
    "strategy.phases.start.top_down={all:2}": ["strategy=gradual", "strategy.phases.start.gradual_unfreeze={all:2}"],
    "strategy.phases.start.statistics=[]": ["strategy.phases.start.batch_norm_statistics=[]"],
    "strategy=scratch": ["donor=none", "strategy=full"],
    "strategy.graft=false": ["donor=none", "strategy=full"],
    "exec.readers=2": ["exec.reader_threads=2"],
}


def test_every_old_name_is_tried_here():
    written = [override.lstrip("+") for override in OVERRIDES]
    assert all(any(re.match(pattern, override) for override in written) for pattern in RENAMED)


@pytest.mark.parametrize("old", OVERRIDES)
def test_an_old_name_is_told_the_new_one_which_works(old, config):
    with pytest.raises(Exception) as error:  # noqa: B017  Hydra's own, which the command line explains
        config(old)
    line = explain(error.value)
    assert line is not None and " was renamed; use " in line
    new = [override.lstrip("+") for override in OVERRIDES[old]]
    for part in line.partition("; use ")[2].split(" and "):
        assert any(override.startswith(part) for override in new), line
    config(*OVERRIDES[old])


@pytest.mark.parametrize("added", ["++donor.k=3", "++surgery.fit=project", "++exec.readers=2"])
def test_an_old_name_that_is_added_is_refused_likewise(added, config):
    with pytest.raises(UserError, match="was renamed; use "):
        config(added)


@pytest.mark.parametrize(
    "old", ["exec.resume=x.ckpt", "exec.traceback=true", "strategy=auto_snr", "strategy.split.all.min_scale=0.1"]
)
def test_what_was_removed_is_told_why(old, config):
    chosen = ["strategy=discriminative"] if "split" in old else []
    with pytest.raises(Exception) as error:  # noqa: B017
        config(*chosen, old)
    line = explain(error.value)
    assert line is not None and " was removed; " in line


def test_conditions_know_old_names_too():
    table = pd.DataFrame({"strategy": ["full"], "donor": ["none"]})
    with pytest.raises(UserError, match="surgery.fit was renamed; use surgery.channel_matching"):
        select(table, "surgery.fit=project", list(table))
    with pytest.raises(UserError, match="strategy=scratch was renamed; use donor=none and strategy=full"):
        select(table, "strategy=scratch", list(table))
    with pytest.raises(UserError, match="unknown strategy among these runs: 'scratches'"):
        select(table, "strategy=scratches", list(table))


@pytest.mark.parametrize("inside", ["statistics: []", "top_down: {all: 1}"])
def test_an_old_key_in_a_yaml_of_ones_own_is_told_with_the_file(inside, command, tmp_path):
    (tmp_path / "strategy").mkdir()
    phases = f"phases: {{start: {{epoch: 0, train: {{all: 1.0}}, {inside}}}}}"
    (tmp_path / "strategy/mine.yaml").write_text(f"name: mine\ngroups: {{all: ['.*']}}\n{phases}\n")
    code, _, err = command("plan", "--config-dir", str(tmp_path), "strategy=mine")
    old = f"strategy.phases.start.{inside.partition(':')[0]}"
    assert code == 2 and err.startswith(f"error: strategy/mine.yaml: {old} was renamed; use ") and err.count("\n") == 1
