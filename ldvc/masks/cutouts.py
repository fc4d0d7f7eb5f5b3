"""Results of one PNG per class: soft masks of 8-bit probabilities, and cut-outs on nothing.

A picture gets a folder, whose index.json is written last: it tells whether the others are all there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ldvc.masks.coco import read_json
from ldvc.masks.parts import written_aside
from ldvc.masks.writer import INDEX_FILE, Result, Writer, is_whole, write_json


MAX_NAME = 40  # letters of a class name in a file name
OWN_FILE = re.compile(r"\d+(-[\w-]*)?\.png")


def class_file(class_id: int, names: list[str]) -> str:
    """File name of a class: its id, with as many digits as the last has, and what a file name can hold of its name."""
    slug = re.sub(r"\W+", "-", names[class_id]).strip("-")[:MAX_NAME]
    return f"{class_id:0{len(str(len(names) - 1))}}{f'-{slug}' if slug else ''}.png"


class ClassFilesWriter(Writer):
    """One PNG per class, in a folder per picture."""

    def pictures(self, result: Result) -> Iterator[tuple[int, Image.Image]]:
        """Yield id and picture of every class to write.

        Raises:
            NotImplementedError: If a kind has none of its own.
        """
        raise NotImplementedError

    def write(self, result: Result) -> None:
        """Write a picture's folder anew."""
        self.remove(result.picture.name)
        (index,) = self.paths(result.picture.name)
        files = {}
        for class_id, picture in self.pictures(result):
            files[str(class_id)] = class_file(class_id, self.classes.names)
            with written_aside(index.with_name(files[str(class_id)])) as file:
                picture.save(file, format="PNG")
        with written_aside(index) as file:
            write_json(file, {"files": files, "names": {key: self.classes.names[int(key)] for key in files}}, indent=1)

    def is_done(self, name: PurePath, known: set[str] | None) -> bool:
        """Whether the index and all files that it names are whole."""
        (index,) = self.paths(name)
        files = read_json(index).get("files")
        return isinstance(files, dict) and all(is_whole(index.with_name(Path(file).name)) for file in files.values())

    def remove(self, name: PurePath) -> None:
        """Delete a picture's files, the index first."""
        super().remove(name)
        (index,) = self.paths(name)
        for path in index.parent.glob("*.png"):
            if OWN_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with suppress(OSError):  # nothing there, or files of someone else
            index.parent.rmdir()


class SoftWriter(ClassFilesWriter):
    """Probability of every class at every pixel: 0 to 1 as 0 to 255."""

    places = ("{}.soft/" + INDEX_FILE,)
    needs_scores = True

    def pictures(self, result: Result) -> Iterator[tuple[int, Image.Image]]:
        """Yield the probabilities of each class; "other" has none."""
        for class_id, scores in enumerate(result.found.scores):
            yield class_id, Image.fromarray((np.clip(np.asarray(scores), 0, 1) * 255).round().astype(np.uint8))


class CutoutWriter(ClassFilesWriter):
    """The picture's own pixels where a class is, transparent elsewhere, for every class that is there."""

    places = ("{}.cutout/" + INDEX_FILE,)

    def pictures(self, result: Result) -> Iterator[tuple[int, Image.Image]]:
        """Yield an RGBA picture per class; where it is transparent, it is black, too, so that nothing is hidden."""
        pixels = np.asarray(result.image)
        for class_id in np.unique(result.label_map).tolist():
            is_class = (result.label_map == class_id)[..., None]
            yield class_id, Image.fromarray(np.concatenate([pixels * is_class, np.uint8(255) * is_class], axis=-1))
