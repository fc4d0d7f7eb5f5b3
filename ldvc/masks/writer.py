"""What every writer of results is: where its files lie, what it needs, how it begins, writes a picture and ends.

A writer is one kind of results of one folder. `ldvc/masks/formats.py` has the table of them all.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ldvc.masks.files import Picture, pixel_limit
from ldvc.masks.parts import written_aside


if TYPE_CHECKING:  # this import takes seconds
    from ldvc.model.inference_ldvc import Segmentation


INDEX_FILE = "index.json"  # of results that are a folder per picture
MAX_PALETTE_IDS, MAX_IDS = 256, 65536  # of an 8-bit and of a 16-bit picture


@dataclass(frozen=True)
class Classes:
    """What the ids of a folder mean.

    Attributes:
        names: Name of every id, "other" the last where there is one.
        num_classes: Classes without "other".
        unseen_names: Classes trained without masks.
        first_category_id: COCO's category id of id 0.
        settings: Content of `names.json`.
    """

    names: list[str]
    num_classes: int
    unseen_names: Sequence[str]
    first_category_id: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What was found in one picture.

    Attributes:
        picture: Which.
        image: RGB, upright.
        found: Its label map, and scores where a writer needs them.
    """

    picture: Picture
    image: Image.Image
    found: Segmentation

    @cached_property
    def label_map(self) -> np.ndarray:
        """(height, width) ids."""
        return np.asarray(self.found.label_map)

    @cached_property
    def best_scores(self) -> np.ndarray:
        """(height, width) float32, probability of every pixel's best class."""
        return np.asarray(self.found.top_scores[0])

    def class_score(self, class_id: int, is_class: np.ndarray, classes: Classes) -> float:
        """Mean probability inside a part of a class; of "other", the mean of what the best class lacks of 1.

        Args:
            class_id: Of the label map.
            is_class: (height, width) bool, not empty.
            classes: What the ids mean.
        """
        mean = float(self.best_scores[is_class].mean(dtype=np.float64))
        return round(1 - mean if class_id == classes.num_classes else mean, 6)


class Writer:
    """One kind of results; the base writes one file per picture with `write_file`.

    Args:
        folder: Where results go.
        classes: What the ids mean.

    Attributes:
        places: Of a picture's files below the folder; {} is the picture's name.
        shared: Names of files that all pictures share.
        packages: Modules that must be there, known to be missing before the first picture.
        needs_scores: Whether it takes the probabilities of all classes.
        needs_best_scores: Whether it takes the probability of every pixel's best class.
    """

    places: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    needs_scores: ClassVar[bool] = False
    needs_best_scores: ClassVar[bool] = False

    def __init__(self, folder: Path, classes: Classes):
        self.folder, self.classes = folder, classes

    def paths(self, name: PurePath) -> list[Path]:
        """Files of one picture that must be whole, those that all pictures share apart."""
        return [self.folder / place.format(name.as_posix()) for place in self.places]

    @classmethod
    def owns(cls, relative: PurePath) -> bool:
        """Whether a path below the folder is one that this kind of results may have."""
        parts = (place.split("{}") for place in cls.places)
        text = relative.as_posix()
        return any(text.startswith(start) and text.endswith(end) for start, end in parts)

    def known_names(self) -> set[str] | None:
        """Names of pictures that shared files hold already; `None` where each picture has files of its own."""
        return None

    def is_done(self, name: PurePath, known: set[str] | None) -> bool:
        """Whether a picture's results are there and whole, by its files, or by what `known_names` gave."""
        return all(is_whole(path) for path in self.paths(name)) and (known is None or name.as_posix() in known)

    def start(self) -> None:
        """Begin; called once in every process, when the folder has been checked."""

    def write(self, result: Result) -> None:
        """Write a picture's results; threads may write different pictures at once."""
        for path in self.paths(result.picture.name):
            with written_aside(path) as file:
                self.write_file(file, result)

    def write_file(self, file: IO[bytes], result: Result) -> None:
        """Write a picture's one file.

        Raises:
            NotImplementedError: If a kind has neither this nor a `write` of its own.
        """
        raise NotImplementedError

    def close(self) -> list[Path]:
        """End this process's part; returns the files that `finish` needs of it."""
        return []

    def finish(self, journals: Sequence[Path]) -> None:
        """Write what all pictures share, those of earlier runs too; called once for all processes.

        Args:
            journals: What `close` returned in all processes.
        """

    def remove(self, name: PurePath) -> None:
        """Delete a picture's results, of other class names."""
        for path in self.paths(name):
            path.unlink(missing_ok=True)

    def remove_shared(self) -> None:
        """Delete what all pictures share, of other class names."""
        for name in self.shared:
            (self.folder / name).unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a result is there and can be read to its end."""
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None and "label_map.npy" in archive.namelist()
        if path.suffix in (".json", ".geojson"):
            json.loads(path.read_bytes())
        elif path.suffix == ".xml":
            ElementTree.parse(path)
        else:
            with pixel_limit(None), Image.open(path) as image:
                image.verify()
    except Exception:  # whatever is wrong with it, it is made again
        return False
    return True


def write_json(file: IO[bytes], content: Any, indent: int | None = None) -> None:
    """Write JSON as UTF-8, with a line end."""
    file.write((json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode())
