"""Predictions of runs: `predictions.parquet` in a run's folder, a row for each test image. Only this module writes and reads them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from layergraft.errors import UserError, require
from layergraft.store.files import write_atomic

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PREDICTIONS = "predictions.parquet"


def write_predictions(folder: Path, row_N: np.ndarray, y_N: np.ndarray, logits_NC: np.ndarray) -> None:
    """Write which row of the data set each test image is, its label, or several (N, labels), and its logits, float32."""
    import pyarrow
    from pyarrow import parquet

    labels = {"label": y_N} if y_N.ndim == 1 else {f"label_{k}": y_N[:, k] for k in range(y_N.shape[1])}
    logits = {f"logit_{k}": logits_NC[:, k] for k in range(logits_NC.shape[1])}
    content = io.BytesIO()
    # Hardly a logit is there twice: a dictionary of them would be as large again.
    parquet.write_table(pyarrow.table({"row": row_N, **labels, **logits}), content, use_dictionary=False)
    write_atomic(folder / PREDICTIONS, content.getvalue())


def read_predictions(folder: Path) -> pd.DataFrame:
    """The predictions in a run's folder: `row`, `label` (or `label_0`, `label_1`, ...), `logit_0`, `logit_1`, ...

    Raises UserError where there are none, or they cannot be read.
    """
    import pandas as pd

    path = folder / PREDICTIONS
    require(path.exists(), f"{path} is not there; exec.rerun=true does the run again, which writes it")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # what pyarrow raises is one of them
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def labels_and_logits(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(N,) labels, or (N, labels) of a multi-label set, and (N, C) logits, as metrics take them."""
    logits_NC = predictions.filter(regex=r"^logit_\d+$").to_numpy(copy=True)  # pandas' own cannot be written to
    labels = predictions["label"] if "label" in predictions else predictions.filter(regex=r"^label_\d+$")
    return labels.to_numpy(copy=True), logits_NC
