"""Which runs: `site=early|late,strategy=freeze,seed<3`, one language for filters and contrasts. Imports no torch."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence

import pandas as pd

from layergraft.config.renamed import renamed
from layergraft.errors import UserError, require, unknown

ORDER = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
TERM = re.compile(r"^([^=<>!]+?)(!=|<=|>=|=|<|>)(.*)$")  # column, sign, values


def columns_of(text: str) -> list[str]:
    """The columns that a condition names."""
    return [column for column, _, _ in _parsed(text)]


def select(table: pd.DataFrame, text: str, columns: Sequence[str], nowhere: str | None = None) -> pd.Series:
    """Which rows of `table` meet all terms of `text`, each COLUMN=VALUE|VALUE or with !=, <, >, <=, >=.

    A row that has `nowhere` for an axis meets whatever is asked of it. Raises UserError for a column that is not among
    `columns`, and for a value that no row has.
    """
    kept = pd.Series(True, index=table.index)
    for column, sign, values in _parsed(text):
        if f"{column}.name" in columns:  # surgery=insert
            column = f"{column}.name"
        if column not in columns:
            require(renamed(column) is None, str(renamed(column)))
            raise unknown("axis", column, columns)
        there = table[column].astype(str)
        free = there.isin([] if nowhere is None else [nowhere, "<NA>"])
        if sign in ORDER:
            numbers = pd.to_numeric(table[column], errors="coerce")
            try:
                kept &= free | ORDER[sign](numbers, float(values)).fillna(False).astype(bool)
            except ValueError:
                raise UserError(f"{text}: {sign} compares with a number, not with '{values}'") from None
            continue
        asked = [values] if values in set(there) else values.split("|")
        wanted = [_as_it_is_there(value, there) for value in asked]
        for value in wanted:
            if value not in set(there):
                old = renamed(f"{column}={value}")
                require(old is None, str(old))
                raise unknown(f"{column} among these runs:", value, sorted(set(there)))
        kept &= free | (there.isin(wanted) != (sign == "!="))
    return kept


def _as_it_is_there(value: str, there: pd.Series) -> str:
    """`0` as the table's `0.0`."""
    numbers = pd.to_numeric(there.drop_duplicates(), errors="coerce")
    same = there[numbers.index[numbers == pd.to_numeric(value, errors="coerce")]]
    return value if value in set(there) or same.empty else str(same.iloc[0])


def _parsed(text: str) -> list[tuple[str, str, str]]:
    found = []
    for term in re.split(r",(?=[^,=<>]+[=<>!])", text):
        match = TERM.match(term.strip())
        if match is None:
            raise UserError(f"'{term}' is no condition; write AXIS=VALUE, such as site=early|late,strategy=freeze")
        found.append((match[1].strip(), match[2], match[3].strip()))
    return found
