"""What `ldvc segment` writes: index PNGs with their names, overlays, COCO RLE and npz, each aside and renamed.

One folder holds the results of one class list, named in its `names.json`; a run with other names into the same folder
is refused, since ids would change their meaning.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from files_ldvc import pixel_limit
from pictures_ldvc import class_colors, draw_overlay, save_label_map


if TYPE_CHECKING:  # this import takes seconds
    from inference_ldvc import Segmentation


NAMES_FILE, COCO_FILE, COCO_JOURNAL = "names.json", "coco.json", "coco.json.part"
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


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path` that takes its place when the block ends well, and is deleted when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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


def coco_annotations(label_map: np.ndarray, best_scores: np.ndarray, num_classes: int) -> list[dict[str, Any]]:
    """Encode every class of a label map as COCO's compressed run lengths, by pycocotools.

    Args:
        label_map: (height, width) ids; the id `num_classes` is "other".
        best_scores: (height, width), probability of each pixel's best class.
        num_classes: Classes without "other".

    Returns:
        One annotation per class present; `score` is the mean probability inside the mask (of "other": the mean of what
        the best class lacks of 1), `category_id` the id of the label map.
    """
    from pycocotools import mask as coco_mask

    annotations = []
    for class_id in np.unique(label_map).tolist():
        is_class = label_map == class_id
        rle = coco_mask.encode(np.asfortranarray(is_class, dtype=np.uint8))
        mean = float(best_scores[is_class].mean(dtype=np.float64))
        annotations.append(
            {
                "category_id": class_id,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                "area": int(coco_mask.area(rle)),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "iscrowd": 0,
                "score": round(1 - mean if class_id == num_classes else mean, 6),
            }
        )
    return annotations


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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none or it is damaged."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


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
        self._coco: dict[str, dict[str, Any]] = {}  # name -> {"image": ..., "annotations": [...]}
        self._journal: IO[str] | None = None

    def paths(self, name: PurePath) -> list[Path]:
        """Files of one picture, COCO's apart, which is one for all."""
        return [self.folder / name.with_name(name.name + SUFFIXES[kind]) for kind in self.formats if kind in SUFFIXES]

    def start(self, pictures: Mapping[PurePath, Path], existing: Existing = Existing.REFUSE) -> list[PurePath]:
        """Check the folder before any work is done, and write `names.json`.

        Args:
            pictures: Name -> file of everything that will be saved.
            existing: What to do with results that are there.

        Returns:
            The names still to do, in order: with `Existing.SKIP` those without whole results.

        Raises:
            ValueError: If results would overwrite a picture or each other, results are there already, or the folder
                belongs to another class list.
            OSError: If the folder cannot be written.
            ModuleNotFoundError: If pycocotools is needed and missing.
        """
        has_coco = Format.COCO_RLE in self.formats
        if has_coco:
            importlib.import_module("pycocotools.mask")  # known to be missing now, not at the first picture
        self._check_writable()
        planned = self._plan(pictures)
        is_same = self._check_names(planned, existing)
        known = self._read_coco() if is_same else {}
        there = sorted(path for path in planned if path.exists())
        coco_file = self.folder / COCO_FILE
        if has_coco and coco_file.exists() and (not is_same or any(name.as_posix() in known for name in pictures)):
            there.append(coco_file)
        if there and existing is Existing.REFUSE:
            raise ValueError(
                f"{str(there[0])!r} is there already ({len(there)} results in all); use --overwrite, or "
                "--skip-existing to make only what is missing."
            )
        if not is_same:  # with --overwrite: results of other names must not outlive a picture that fails this time
            for path in there:
                path.unlink()
        self._coco = known
        with written_aside(self.folder / NAMES_FILE) as file:
            file.write((json.dumps(self.description, indent=1, ensure_ascii=False) + "\n").encode())
        todo = list(pictures)
        if existing is Existing.SKIP:
            todo = [name for name in pictures if not self._is_done(name)]
        if has_coco:
            self._journal = (self.folder / COCO_JOURNAL).open("a" if is_same else "w", encoding="utf-8")
            self._journal.write("\n")  # a stopped run may have left half a line
        return todo

    def save(self, name: PurePath, source: Path, image: Image.Image, result: Segmentation) -> None:
        """Write everything that was asked for of one picture.

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
            record = {
                "name": name.as_posix(),
                "image": {"file_name": source.as_posix(), "width": width, "height": height},
                "annotations": annotations,
            }
            # A stopped run loses nothing: the journal is read by the next one, and a torn last line is left out.
            self._journal.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._journal.flush()
            self._coco[record["name"]] = record

    def finish(self) -> None:
        """Write COCO's file from all pictures of the folder, those of earlier runs too."""
        if self._journal is None:
            return
        self._journal.close()
        images, annotations = [], []
        for image_id, (name, record) in enumerate(sorted(self._coco.items()), 1):
            images.append({"id": image_id, **record["image"], "name": name})
            annotations += [
                {"id": len(annotations) + offset, "image_id": image_id, **annotation}
                for offset, annotation in enumerate(record["annotations"], 1)
            ]
        categories = [{"id": class_id, "name": name} for class_id, name in enumerate(self.class_names)]
        info = {"description": "LDVC; category ids are the ids of names.json and of the PNG and npz label maps"}
        content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
        with written_aside(self.folder / COCO_FILE) as file:
            file.write(json.dumps(content, ensure_ascii=False).encode())
        (self.folder / COCO_JOURNAL).unlink()

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
            strays += [path for path in (self.folder / COCO_FILE, self.folder / COCO_JOURNAL) if path.exists()]
        if existing is Existing.OVERWRITE and not strays:
            return False
        raise ValueError(
            f"{str(path)!r} says that this folder was made with other settings ({', '.join(changed)}); choose another "
            "folder with --output, or empty this one."
        )

    def _is_done(self, name: PurePath) -> bool:
        has_coco = Format.COCO_RLE not in self.formats or name.as_posix() in self._coco
        return has_coco and all(is_whole(path) for path in self.paths(name))

    def _read_coco(self) -> dict[str, dict[str, Any]]:
        """Records of earlier runs, finished or not, by name."""
        records: dict[str, dict[str, Any]] = {}
        content = read_json(self.folder / COCO_FILE)
        if content:
            by_id = {image["id"]: image for image in content["images"]}
            for image in by_id.values():
                kept = {key: image[key] for key in ("file_name", "width", "height")}
                records[image["name"]] = {"image": kept, "annotations": []}
            for annotation in content["annotations"]:
                kept = {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
                records[by_id[annotation["image_id"]]["name"]]["annotations"].append(kept)
        with suppress(OSError):
            for line in (self.folder / COCO_JOURNAL).read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError):
                    record = json.loads(line)
                    records[record["name"]] = record
        return records
