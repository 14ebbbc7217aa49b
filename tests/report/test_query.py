"""The language of conditions."""

import re

import pandas as pd
import pytest

from layergraft.errors import UserError
from layergraft.report.query import columns_of, select

TABLE = pd.DataFrame(
    {"site": ["early", "late", "conv1+layer1"], "seed": [0, 1, 2], "host.width": ["4", "16", "8"], "skips": ["true", "false", "-"]}
)  # fmt: skip


@pytest.mark.parametrize(
    "text, kept",
    [
        ("site=early", [0]),
        ("site=early|conv1+layer1", [0, 2]),
        ("site!=early", [1, 2]),
        ("seed<2,site!=early", [1]),
        ("host.width>=8", [1, 2]),
        ("host.width=16, seed=1", [1]),
        ("skips=true", [0]),
    ],
)
def test_kept(text, kept):
    assert list(TABLE.index[select(TABLE, text, list(TABLE))]) == kept


@pytest.mark.parametrize(
    "text, message",
    [
        ("sit=early", "unknown axis 'sit'; did you mean 'site'?"),
        (
            "site=erly",
            "unknown site among these runs: 'erly'; did you mean 'early'? There are: conv1+layer1, early, late",
        ),
        ("early", "'early' is no condition; write AXIS=VALUE"),
        ("seed<two", "< compares with a number, not with 'two'"),
    ],
)
def test_refused(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        select(TABLE, text, list(TABLE))


def test_columns():
    assert columns_of("site=a|b,seed<3") == ["site", "seed"]


def test_numbers_are_compared_as_numbers_and_a_choice_by_its_group():
    table = pd.DataFrame(
        {"surgery.gate": ["-", "0.0", "null", "0.5"], "surgery.name": ["replace", "insert", "insert", "parallel"]}
    )
    assert select(table, "surgery.gate=0", list(table)).tolist() == [False, True, False, False]
    assert select(table, "surgery.gate!=0|.5", list(table)).tolist() == [True, False, True, False]
    assert select(table, "surgery=insert", list(table)).tolist() == [False, True, True, False]
