"""What `ldvc segment` writes: the table of all kinds of results, and the folder that holds those of one class list.

A folder's class list is named in its `names.json`; a run with other names into the same folder is refused, since ids
would change their meaning. Several processes may write into it at once, each file aside and then renamed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ldvc.masks.coco import FIRST_CATEGORY_ID, CocoWriter, find_journals, read_json
from ldvc.masks.collected import CvatWriter, LabelMeWriter, LabelStudioWriter
from ldvc.masks.cutouts import CutoutWriter, SoftWriter
from ldvc.masks.drawing import class_colors
from ldvc.masks.files import Picture
from ldvc.masks.folders import DatasetWriter
from ldvc.masks.geo import Block, GeoJsonWriter, GeoTiffWriter, RasterWriter, write_all_blocks
from ldvc.masks.parts import remove_left_over, written_aside
from ldvc.masks.pixels import GreyWriter, NpzWriter, OverlayWriter, PngWriter
from ldvc.masks.polygons import PolygonWriter
from ldvc.masks.writer import INDEX_FILE, Classes, Result, Writer, write_json
from ldvc.shares import Share


if TYPE_CHECKING:  # these imports take seconds
    from PIL import Image

    from ldvc.model.inference_ldvc import Segmentation


NAMES_FILE = "names.json"


class Format(StrEnum):
    """Kinds of results."""

    PNG = "png"
    OVERLAY = "overlay"
    COCO_RLE = "coco-rle"
    NPZ = "npz"
    GREY = "grey"
    SOFT = "soft"
    CUTOUT = "cutout"
    POLYGONS = "polygons"
    LABEL_STUDIO = "label-studio"
    CVAT = "cvat"
    LABELME = "labelme"
    GEOTIFF = "geotiff"
    GEOJSON = "geojson"
    HF = "hf"


# A further kind is one more class, its member above and its line here.
WRITERS: dict[Format, type[Writer]] = {
    Format.PNG: PngWriter,
    Format.OVERLAY: OverlayWriter,
    Format.COCO_RLE: CocoWriter,
    Format.NPZ: NpzWriter,
    Format.GREY: GreyWriter,
    Format.SOFT: SoftWriter,
    Format.CUTOUT: CutoutWriter,
    Format.POLYGONS: PolygonWriter,
    Format.LABEL_STUDIO: LabelStudioWriter,
    Format.CVAT: CvatWriter,
    Format.LABELME: LabelMeWriter,
    Format.GEOTIFF: GeoTiffWriter,
    Format.GEOJSON: GeoJsonWriter,
    Format.HF: DatasetWriter,
}


class Existing(StrEnum):
    """What to do where results are there already."""

    REFUSE = "refuse"
    OVERWRITE = "overwrite"
    SKIP = "skip"


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
        description: Content of `names.json`, from `describe_names`; COCO's category ids are added.
        num_classes: Classes without "other".
        unseen_names: Classes that get a star in overlays.
        first_category_id: COCO's category id of id 0.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[Format],
        description: Mapping[str, Any],
        num_classes: int,
        unseen_names: Sequence[str] = (),
        first_category_id: int = FIRST_CATEGORY_ID,
    ):
        self._arguments = (folder, formats, description, num_classes, unseen_names, first_category_id)
        self.folder, self.formats = folder, list(dict.fromkeys(formats))
        class_names = list(description["names"].values())
        category_ids = {str(class_id): class_id + first_category_id for class_id in range(len(class_names))}
        self.description = {**description, "category_ids": category_ids}
        self.classes = Classes(class_names, num_classes, unseen_names, first_category_id, self.description)
        self.writers = [WRITERS[kind](folder, self.classes) for kind in self.formats]

    def __reduce__(self) -> tuple[type[OutputFolder], tuple]:
        return type(self), self._arguments  # in another process, nothing is open yet

    def paths(self, name: PurePath) -> list[Path]:
        """Files of one picture, those that all pictures share apart."""
        return [path for writer in self.writers for path in writer.paths(name)]

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
            ModuleNotFoundError: If a kind of results needs a package that is missing.
        """
        share = share or Share()
        for package in {package for writer in self.writers for package in writer.packages}:
            if find_spec(package) is None:  # known to be missing now, not at the first picture
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        share.main_first(lambda: self._prepare(pictures, existing))
        todo = share.of(list(pictures))
        if existing is Existing.SKIP:
            known = [(writer, writer.known_names()) for writer in self.writers]
            todo = [name for name in todo if not all(writer.is_done(name, names) for writer, names in known)]
        self.join()
        return todo

    def join(self) -> None:
        """Begin in this process; one that works for another, which has checked the folder, calls this alone."""
        for writer in self.writers:
            writer.start()

    def save(self, picture: Picture, image: Image.Image, found: Segmentation) -> None:
        """Write everything that was asked for of one picture; threads may save pictures at once.

        Args:
            picture: Whose name came from `start`.
            image: RGB picture, upright.
            found: Its label map; with `top_scores` and `scores` where a kind of results needs them.
        """
        result = Result(picture, image, found)
        for writer in self.writers:
            writer.write(result)

    @property
    def takes_blocks(self) -> bool:
        """Whether a picture can be saved block by block, by `save_blocks`."""
        return all(isinstance(writer, RasterWriter) for writer in self.writers)

    def save_blocks(self, picture: Picture, size: tuple[int, int], blocks: Iterator[Block]) -> None:
        """Write everything that was asked for of one picture as it is segmented.

        Args:
            picture: Whose name came from `start`.
            size: (height, width) in pixels.
            blocks: From top to bottom.
        """
        write_all_blocks(self.writers, picture, size, blocks)

    def close(self) -> list[Path]:
        """End this process's part of the work; returns the files that `finish` needs of it."""
        return [path for writer in self.writers for path in writer.close()]

    def finish(self, journals: Sequence[Path] | None = None) -> None:
        """Write what all pictures of the folder share, those of earlier runs too.

        Args:
            journals: What `close` returned in all processes; `None` closes the only one.
        """
        journals = self.close() if journals is None else journals
        for writer in self.writers:
            writer.finish(journals)

    def _prepare(self, pictures: Mapping[PurePath, Path], existing: Existing) -> None:
        """Do what `start` does once for all processes.

        Raises:
            ValueError: See `start`.
        """
        self._check_writable()
        planned = self._plan(pictures)
        is_same = self._check_names(planned, existing)
        there = sorted(path for path in planned if path.exists())
        shared = [path for writer in self.writers for path in self._shared_there(writer, pictures, is_same)]
        if (there or shared) and existing is Existing.REFUSE:
            raise ValueError(
                f"{str([*there, *shared][0])!r} is there already ({len(there) + len(shared)} results in all); use "
                "--overwrite, or --skip-existing to make only what is missing."
            )
        if (there or shared) and not is_same and existing is Existing.SKIP:
            raise ValueError(
                f"{str([*there, *shared][0])!r} is there already, but no {NAMES_FILE} says what it shows; choose "
                "another folder with --output, or replace it with --overwrite."
            )
        if not is_same:  # with --overwrite: results of other names must not outlive a picture that fails this time
            for writer in self.writers:
                writer.remove_shared()
                for name in pictures:
                    writer.remove(name)
        remove_left_over(self.folder)
        with written_aside(self.folder / NAMES_FILE) as file:
            write_json(file, self.description, indent=1)

    def _shared_there(self, writer: Writer, pictures: Mapping[PurePath, Path], is_same: bool) -> list[Path]:
        """Files of a writer that all pictures share and that hold one of these, or results of other names."""
        there = [path for name in writer.shared if (path := self.folder / name).exists()]
        known = writer.known_names() if there and is_same else None
        return there if not is_same or any(name.as_posix() in (known or ()) for name in pictures) else []

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
        # folders that were made before there was a choice
        before = {"runtime": "torch", "precision": "float32"} if "runtime" in self.description else {}
        before |= read_json(path)
        now = json.loads(json.dumps(self.description))
        changed = [key for key in {**now, **before} if now.get(key) != before.get(key)]
        if not changed:
            return True
        if existing is Existing.OVERWRITE and not self._strays(planned):
            return False
        raise ValueError(
            f"{str(path)!r} says that this folder was made with other settings ({', '.join(changed)}); choose another "
            "folder with --output, or empty this one."
        )

    def _strays(self, planned: set[Path]) -> list[Path]:
        """Results of any kind that this run would not replace."""
        kept = [path for path in self.folder.rglob("*") if path.is_file() and path not in planned]
        kept = [path for path in kept if path.with_name(INDEX_FILE) not in planned]
        strays = [p for p in kept if any(kind.owns(p.relative_to(self.folder)) for kind in WRITERS.values())]
        for kind in set(WRITERS) - set(self.formats):
            for name in WRITERS[kind].shared:
                strays += [*self.folder.glob(name), *find_journals(self.folder, name)]
        return strays
