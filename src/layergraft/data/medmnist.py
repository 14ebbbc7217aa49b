"""MedMNIST's sets by name, loaded by the medmnist package: 2D, 28 to 224 pixels a side, multi-class, multi-label or
ordinal as each set is.

Source: Yang et al., MedMNIST v2, Scientific Data, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from layergraft.config.registry import chosen, register
from layergraft.data.npz import require_fits, whole_of
from layergraft.data.sets import PARTS, DataSet, Whole
from layergraft.errors import UserError, unknown
from layergraft.metrics.tasks import Task

TASKS = {
    "multi-class": Task.multi_class,
    "binary-class": Task.multi_class,
    "multi-label, binary-class": Task.multi_label,
    "ordinal-regression": Task.ordinal,
}


@register("data", "medmnist")
@dataclass
class MedMnist(DataSet):
    """`set` is pathmnist, chestmnist, retinamnist, ...; the package is in the extra `layergraft[medical]`."""

    name: str = "medmnist"
    set: str = "pathmnist"
    """Which of MedMNIST's 2D sets."""
    size: int = chosen(28, (28, 64, 128, 224), "MedMNIST has 28, 64, 128 and 224")
    """Pixels a side: 28, 64, 128 or 224."""
    root: str = "data"
    """The folder of the files, such as pathmnist.npz; what is not there is downloaded."""

    places: ClassVar[tuple[str, ...]] = ("root",)

    def read(self) -> Whole:
        try:
            import medmnist
        except ImportError as error:
            raise UserError("data=medmnist needs the medmnist package: pip install 'layergraft[medical]'") from error
        flat = [name for name, facts in medmnist.INFO.items() if not name.endswith("3d")]
        if self.set not in flat:
            raise unknown("MedMNIST set in data.set:", self.set, flat)
        facts = medmnist.INFO[self.set]
        root = Path(self.root)
        file = f"{self.set}{'' if self.size == 28 else f'_{self.size}'}.npz"
        options: dict[str, Any] = {"root": str(root), "size": None if self.size == 28 else self.size}
        if not (root / file).is_file():
            root.mkdir(parents=True, exist_ok=True)
            options["download"] = True
        else:
            require_fits(root / file)
        arrays: dict[str, np.ndarray] = {}
        for part in PARTS:
            try:
                split = getattr(medmnist, facts["python_class"])(split=part, **options)
            except Exception as error:
                raise UserError(
                    f"data=medmnist data.set={self.set}: {file} is not in {root} and could not be downloaded; put it there, from {facts['url']}"
                    if not (root / file).is_file()
                    else f"{root / file} cannot be read: {str(error).splitlines()[0]}"
                ) from error
            arrays |= {f"{part}_images": split.imgs, f"{part}_labels": split.labels}
        names = tuple(facts["label"][str(label)] for label in range(len(facts["label"])))
        return whole_of(arrays, str(root / file), TASKS[facts["task"]], names)
