"""Predicted label maps of an evaluation on disk: one that was stopped goes on where it was, and they can be looked at.

A folder holds `made_by.json`, which says what the maps depend on, and for each offset of the seen classes one PNG per
row of the split: `offset_0.1/0000012.png`, whose pixel values are ids of the vocabulary.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from PIL import Image

from ldvc.masks.coco import read_json
from ldvc.masks.parts import written_aside
from ldvc.masks.pixels import write_png
from ldvc.places import PACKAGE


__all__ = ["KeptPredictions", "code_fingerprint"]

MADE_BY = "made_by.json"


def code_fingerprint() -> str:
    """SHA-256 of all modules: after a change to any of them, kept maps may be those of another model."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


class KeptPredictions:
    """A folder of label maps; each is written aside and renamed, so that one that is there is whole.

    With several processes, all of them must make one; they then write and read different rows.

    Args:
        folder: Made where it is missing.
        made_by: Everything that the maps depend on, fit for JSON.
        class_names: Name of every id.
        offsets: There is one map of a row for each.

    Raises:
        ValueError: If the folder holds the maps of another evaluation; names the first thing that differs.
    """

    def __init__(
        self, folder: str | Path, made_by: Mapping[str, Any], class_names: Sequence[str], offsets: Sequence[float]
    ):
        self.folder, self.class_names, self.offsets = Path(folder), class_names, offsets
        state, now = PartialState(), json.loads(json.dumps(made_by))
        before = read_json(self.folder / MADE_BY)
        for key in sorted(now.keys() | before.keys()) if before else ():
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{str(folder)!r} holds the predictions of another evaluation: {key} was {before.get(key)!r} and "
                    f"is {now.get(key)!r}; name another folder, or delete this one."
                )
        if not before and any(self.folder.glob("offset_*/*.png")):
            raise ValueError(
                f"{str(folder)!r} holds label maps, but no {MADE_BY} that can be read says of which evaluation; name "
                "another folder, or delete this one."
            )
        state.wait_for_everyone()  # all have looked before one writes
        if state.is_main_process:
            with written_aside(self.folder / MADE_BY) as file:
                file.write((json.dumps(now, indent=2) + "\n").encode())

    def path(self, row: int, offset: float) -> Path:
        """File of one map."""
        return self.folder / f"offset_{offset}" / f"{row:07}.png"

    def read(self, row: int, size: tuple[int, int]) -> list[np.ndarray] | None:
        """Read the maps of a row.

        Args:
            row: Of the split.
            size: (height, width) that they must have.

        Returns:
            One (height, width) int64 map per offset; `None` where one is missing or damaged.
        """
        maps = []
        for offset in self.offsets:
            try:
                with Image.open(self.path(row, offset)) as picture:
                    maps.append(np.asarray(picture).astype(np.int64))
            except (OSError, ValueError, SyntaxError):  # as Pillow says that a PNG is broken
                return None
            if maps[-1].shape != tuple(size) or maps[-1].max() >= len(self.class_names):
                return None
        return maps

    def write(self, row: int, maps: Sequence[np.ndarray]) -> None:
        """Write the maps of a row.

        Args:
            row: Of the split.
            maps: One (height, width) map of ids per offset.
        """
        for offset, label_map in zip(self.offsets, maps, strict=True):
            with written_aside(self.path(row, offset)) as file:
                write_png(file, label_map, self.class_names)
