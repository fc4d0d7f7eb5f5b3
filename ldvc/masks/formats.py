"""What `ldvc segment` writes: index PNGs with their names, overlays, COCO RLE and npz, each aside and renamed.

One folder holds the results of one class list, named in its `names.json`; a run with other names into the same folder
is refused, since ids would change their meaning. Several processes may write into it at once.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ldvc.masks.coco import (
    COCO_FILE,
    Journal,
    coco_annotations,
    find_journals,
    known_names,
    read_json,
    remove_journals,
    write_coco,
)
from ldvc.masks.drawing import class_colors, draw_overlay, save_label_map
from ldvc.masks.files import pixel_limit
from ldvc.masks.parts import remove_left_over, written_aside
from ldvc.shares import Share


if TYPE_CHECKING:  # this import takes seconds
    from ldvc.model.inference_ldvc import Segmentation


NAMES_FILE = "names.json"
MAX_PALETTE_IDS, MAX_IDS = 256, 65536  # of an 8-bit and of a 16-bit PNG
OVERLAY_SIDE = 2560  # pixels of the longer side; overlays are for looking at, and blending needs 60 bytes a pixel


class Format(StrEnum):
    """Kinds of results."""

    PNG = "png"
    OVERLAY = "overlay"
    COCO_RLE = "coco-rle"
    NPZ = "npz"


SUFFIXES = {Format.PNG: ".png", Format.OVERLAY: ".overlay.png", Format.NPZ: ".npz"}


class Existing(StrEnum):
    """What to do where results are there already."""

    REFUSE = "refuse"
    OVERWRITE = "overwrite"
    SKIP = "skip"


def write_png(file: IO[bytes], label_map: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a label map whose pixel values are the ids: up to 256 ids with a palette, more as 16-bit grey.

    Args:
        file: Open for bytes.
        label_map: (height, width) ids.
        class_names: Name of every id.

    Raises:
        ValueError: If there are more ids than 16 bits hold.
    """
    if len(class_names) <= MAX_PALETTE_IDS:
        save_label_map(label_map, file, class_names)
    elif len(class_names) <= MAX_IDS:
        Image.fromarray(label_map.astype(np.uint16)).save(file, format="PNG")
    else:
        raise ValueError(f"{len(class_names)} classes: a PNG holds {MAX_IDS} ids at most; use --format npz.")


def write_overlay(
    file: IO[bytes],
    image: Image.Image,
    label_map: np.ndarray,
    class_names: Sequence[str],
    unseen_names: Sequence[str] = (),
) -> None:
    """Write the picture under its classes' colours, with a legend, at most 2,560 pixels wide and high.

    Args:
        file: Open for bytes.
        image: RGB picture.
        label_map: (height, width) ids.
        class_names: Name of every id.
        unseen_names: Classes trained without masks, which get a star.
    """
    if max(image.size) > OVERLAY_SIDE:
        scale = OVERLAY_SIDE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        rows = np.arange(height) * label_map.shape[0] // height
        label_map = label_map[rows[:, None], np.arange(width) * label_map.shape[1] // width]
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    # No pixel is without a class here, so no id may be taken for "no label".
    overlay = draw_overlay(image, label_map, class_names, unseen_names=unseen_names, ignore_index=-1)
    overlay.save(file, format="PNG", compress_level=3)  # a tenth larger than by default, in half the time


def write_npz(
    file: IO[bytes], label_map: np.ndarray, class_names: Sequence[str], scores: np.ndarray | None = None
) -> None:
    """Write `label_map` (smallest unsigned type), `class_names` and, where given, `scores`, compressed.

    Args:
        file: Open for bytes.
        label_map: (height, width) ids.
        class_names: Name of every id.
        scores: (num_classes, height, width) float32 probabilities; "other" has none.
    """
    arrays = {
        "label_map": label_map.astype(np.min_scalar_type(max(len(class_names) - 1, 0))),
        "class_names": np.array(class_names, dtype=str),
    }
    if scores is not None:
        arrays["scores"] = scores
    np.savez_compressed(file, **arrays)


def is_whole(path: Path) -> bool:
    """Whether a result is there and can be read to its end."""
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None and "label_map.npy" in archive.namelist()
        with pixel_limit(None), Image.open(path) as image:
            image.verify()
    except Exception:  # whatever is wrong with it, it is made again
        return False
    return True


def describe_names(class_names: Sequence[str], **settings: Any) -> dict[str, Any]:
    """Make the content of `names.json`: name and colour of every id, and what the results depend on."""
    colors = class_colors(class_names).tolist()
    return {
        "names": {str(class_id): name for class_id, name in enumerate(class_names)},
        "colors": {str(class_id): "#{:02x}{:02x}{:02x}".format(*color) for class_id, color in enumerate(colors)},
        **settings,
    }


class OutputFolder:
    """The results of one class list.

    Args:
        folder: Made where it is missing.
        formats: What to write.
        description: Content of `names.json`, from `describe_names`.
        num_classes: Classes without "other".
        unseen_names: Classes that get a star in overlays.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[Format],
        description: Mapping[str, Any],
        num_classes: int,
        unseen_names: Sequence[str] = (),
    ):
        self.folder, self.formats, self.description = folder, list(dict.fromkeys(formats)), dict(description)
        self.class_names = list(self.description["names"].values())
        self.num_classes, self.unseen_names = num_classes, unseen_names
        self._journal: Journal | None = None

    def paths(self, name: PurePath) -> list[Path]:
        """Files of one picture, COCO's apart, which is one for all."""
        return [self.folder / name.with_name(name.name + SUFFIXES[kind]) for kind in self.formats if kind in SUFFIXES]

    def start(
        self, pictures: Mapping[PurePath, Path], existing: Existing = Existing.REFUSE, share: Share | None = None
    ) -> list[PurePath]:
        """Check the folder before any work is done, and write `names.json`.

        Args:
            pictures: Name -> file of everything that will be saved, by all processes.
            existing: What to do with results that are there.
            share: Of this process, where there are several.

        Returns:
            The names that this process is to do, in order: with `Existing.SKIP` those without whole results.

        Raises:
            ValueError: If results would overwrite a picture or each other, results are there already, or the folder
                belongs to another class list.
            OSError: If the folder cannot be written.
            ModuleNotFoundError: If pycocotools is needed and missing.
        """
        share = share or Share()
        has_coco = Format.COCO_RLE in self.formats
        if has_coco:
            importlib.import_module("pycocotools.mask")  # known to be missing now, not at the first picture
        share.main_first(lambda: self._prepare(pictures, existing))
        todo = share.of(list(pictures))
        if existing is Existing.SKIP:
            known = known_names(self.folder) if has_coco else set()
            todo = [name for name in todo if not self._is_done(name, known)]
        if has_coco:
            self._journal = Journal(self.folder)
        return todo

    def save(self, name: PurePath, source: Path, image: Image.Image, result: Segmentation) -> None:
        """Write everything that was asked for of one picture; threads may save pictures at once.

        Args:
            name: From `start`.
            source: The picture's file, for COCO's `file_name`.
            image: RGB picture, upright.
            result: Its label map; with `top_scores` for COCO, and `scores` where they are to be saved.
        """
        label_map = result.label_map.cpu().numpy()
        writers: dict[Format, Callable[[IO[bytes]], None]] = {
            Format.PNG: lambda file: write_png(file, label_map, self.class_names),
            Format.OVERLAY: lambda file: write_overlay(file, image, label_map, self.class_names, self.unseen_names),
            Format.NPZ: lambda file: write_npz(
                file, label_map, self.class_names, None if result.scores is None else result.scores.cpu().numpy()
            ),
        }
        kinds = [kind for kind in self.formats if kind in SUFFIXES]
        for kind, path in zip(kinds, self.paths(name), strict=True):
            with written_aside(path) as file:
                writers[kind](file)
        if self._journal is not None:
            height, width = label_map.shape
            annotations = coco_annotations(label_map, result.top_scores[0].cpu().numpy(), self.num_classes)
            described = {"file_name": source.as_posix(), "width": width, "height": height}
            self._journal.add(name.as_posix(), described, annotations)

    def close(self) -> list[Path]:
        """End this process's part of the work; returns the files that `finish` needs of it."""
        if self._journal is None:
            return []
        self._journal.close()
        return [self._journal.path]

    def finish(self, journals: Sequence[Path] | None = None) -> None:
        """Write COCO's file from all pictures of the folder, those of earlier runs too.

        Args:
            journals: What `close` returned in all processes; `None` closes the only one.
        """
        if Format.COCO_RLE in self.formats:
            write_coco(self.folder, self.class_names, self.close() if journals is None else journals)

    def _prepare(self, pictures: Mapping[PurePath, Path], existing: Existing) -> None:
        """Do what `start` does once for all processes.

        Raises:
            ValueError: See `start`.
        """
        self._check_writable()
        planned = self._plan(pictures)
        is_same = self._check_names(planned, existing)
        there = sorted(path for path in planned if path.exists())
        coco_file = self.folder / COCO_FILE
        if Format.COCO_RLE in self.formats and coco_file.exists():
            known = known_names(self.folder) if is_same else set()
            if not is_same or any(name.as_posix() in known for name in pictures):
                there.append(coco_file)
        if there and existing is Existing.REFUSE:
            raise ValueError(
                f"{str(there[0])!r} is there already ({len(there)} results in all); use --overwrite, or "
                "--skip-existing to make only what is missing."
            )
        if there and not is_same and existing is Existing.SKIP:
            raise ValueError(
                f"{str(there[0])!r} is there already, but no {NAMES_FILE} says what it shows; choose another folder "
                "with --output, or replace it with --overwrite."
            )
        if not is_same:  # with --overwrite: results of other names must not outlive a picture that fails this time
            remove_journals(self.folder)
            for path in there:
                path.unlink(missing_ok=True)
        remove_left_over(self.folder)
        with written_aside(self.folder / NAMES_FILE) as file:
            file.write((json.dumps(self.description, indent=1, ensure_ascii=False) + "\n").encode())

    def _check_writable(self) -> None:
        """Try to write.

        Raises:
            OSError: If that fails.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(
                f"output folder {str(self.folder)!r} cannot be written ({error.strerror}); choose another with "
                "--output."
            ) from error

    def _plan(self, pictures: Mapping[PurePath, Path]) -> set[Path]:
        """Paths that will be written.

        Raises:
            ValueError: If one is a picture that is read, or two are the same.
        """
        sources = {os.path.realpath(source) for source in pictures.values()}
        owners: dict[str, Path] = {}
        planned = set()
        for name, source in pictures.items():
            for path in self.paths(name):
                if os.path.realpath(path) in sources:
                    raise ValueError(
                        f"{str(path)!r} would be overwritten by the result of {str(source)!r}; choose another folder "
                        "with --output."
                    )
                other = owners.setdefault(str(path).casefold(), source)
                if other is not source:
                    raise ValueError(
                        f"the results of {str(other)!r} and {str(source)!r} would both be {str(path)!r}; segment them "
                        "into two output folders."
                    )
                planned.add(path)
        return planned

    def _check_names(self, planned: set[Path], existing: Existing) -> bool:
        """Whether the folder holds results of this class list and these settings.

        Raises:
            ValueError: If it holds others that would stay, under names that are not theirs.
        """
        path = self.folder / NAMES_FILE
        if not path.exists():
            return False
        before = read_json(path)
        now = json.loads(json.dumps(self.description))
        changed = [key for key in {**now, **before} if now.get(key) != before.get(key)]
        if not changed:
            return True
        strays = [
            file
            for file in self.folder.rglob("*")
            if file not in planned and file.name.endswith((*SUFFIXES.values(),))
        ]
        if Format.COCO_RLE not in self.formats:
            strays += [*self.folder.glob(COCO_FILE), *find_journals(self.folder)]
        if existing is Existing.OVERWRITE and not strays:
            return False
        raise ValueError(
            f"{str(path)!r} says that this folder was made with other settings ({', '.join(changed)}); choose another "
            "folder with --output, or empty this one."
        )

    def _is_done(self, name: PurePath, known: Collection[str]) -> bool:
        has_coco = Format.COCO_RLE not in self.formats or name.as_posix() in known
        return has_coco and all(is_whole(path) for path in self.paths(name))
