"""MedMNIST's sets by name, loaded by the medmnist package: 2D, 28 to 224 pixels a side, multi-class, multi-label or
ordinal as each set is.

Source: Yang et al., MedMNIST v2, Scientific Data, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from layergraft.config.data_schema import PARTS
from layergraft.config.registry import one_of, register
from layergraft.data.data_set import DataSet, FullData
from layergraft.data.npz import require_fits, whole_of
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
    size: int = one_of(28, (28, 64, 128, 224), "MedMNIST has 28, 64, 128 and 224")
    """Pixels a side: 28, 64, 128 or 224."""
    root: str = "data"
    """The folder of the files, such as pathmnist.npz; what is not there is downloaded."""

    location_fields: ClassVar[tuple[str, ...]] = ("root",)

    def read(self) -> FullData:
        try:
            import medmnist
        except ImportError as error:
            raise UserError("data=medmnist needs the medmnist package: pip install 'layergraft[medical]'") from error
        flat = [name for name, facts in medmnist.INFO.items() if not name.endswith("3d")]
        if self.set not in flat:
            raise unknown("MedMNIST set in data.set:", self.set, flat)
        facts = medmnist.INFO[self.set]
        root = Path(self.root)
        file = root / f"{self.set}{'' if self.size == 28 else f'_{self.size}'}.npz"
        there = file.is_file()
        if there:
            require_fits(file)
        root.mkdir(parents=True, exist_ok=True)
        make = getattr(medmnist, facts["python_class"])
        arrays: dict[str, np.ndarray] = {}
        try:
            for part in PARTS:
                split = make(part, root=str(root), size=self.size, download=not there)
                arrays |= {f"{part}_images": split.imgs, f"{part}_labels": split.labels}
        except Exception as error:
            missing = f"data=medmnist data.set={self.set}: {file.name} is not in {root} and could not be downloaded"
            raise UserError(
                f"{file} cannot be read: {str(error).splitlines()[0]}"
                if file.is_file()
                else f"{missing}; put it there, from {facts['url']}"
            ) from error
        names = tuple(facts["label"][str(label)] for label in range(len(facts["label"])))
        return whole_of(arrays, str(file), TASKS[facts["task"]], names)
