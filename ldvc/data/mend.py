"""Write a dataset anew with its pictures or label maps mended: `ldvc check --mend`, which findings name as a remedy.

Nothing is overwritten: the new dataset is a plain folder beside the old one, whatever that was stored as.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import yaml
from datasets import Image
from PIL.ExifTags import Base
from tqdm import tqdm

from ldvc.data.folders import MissingSplitError, read_class_names
from ldvc.data.label_maps import open_cell
from ldvc.data.samples import IGNORE_INDEX, load_stated_splits


__all__ = ["IMAGE_MENDS", "LABEL_MENDS", "mend_dataset"]

Mend = Callable[[PIL.Image.Image], PIL.Image.Image]


# ---- what can be mended


def _stored_indices(label: PIL.Image.Image) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.asarray(label))


def _whole_numbers(label: PIL.Image.Image) -> PIL.Image.Image:
    values = np.asarray(label)
    if not ((values >= 0) & (values <= 65535) & (values == values.round())).all():
        raise ValueError(
            f"its values, {values.min():g} to {values.max():g}, are not all whole numbers from 0 to 65535."
        )
    return PIL.Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16))


def _white_is_1(label: PIL.Image.Image) -> PIL.Image.Image:
    values = np.asarray(label).astype(int)
    if not np.isin(values, (0, 1, IGNORE_INDEX)).all():
        raise ValueError(f"it holds {values.max()}, and black-and-white masks hold 0 and 1 or 0 and 255 alone.")
    return PIL.Image.fromarray((values > 0).astype(np.uint8))


def _colours(label: PIL.Image.Image, colours: Mapping[int, tuple[int, ...]]) -> PIL.Image.Image:
    shown = np.asarray(label.convert("RGB")).astype(int)
    ids, is_known = np.zeros(shown.shape[:2], np.uint8), np.zeros(shown.shape[:2], bool)
    for label_id, colour in colours.items():
        is_shown = (shown == colour).all(-1)
        ids[is_shown], is_known = label_id, is_known | is_shown
    if not is_known.all():
        colour = tuple(shown[~is_known][0].tolist())
        raise ValueError(f"it holds the colour {colour}, which --colours gives no id to: add it.")
    return PIL.Image.fromarray(ids)


def _stretch(bits: int) -> Mend:
    def stretch(image: PIL.Image.Image) -> PIL.Image.Image:
        values = np.asarray(image).astype(int)
        if values.max() >= 2**bits:
            raise ValueError(f"its largest value is {values.max()}, more than {bits} bits hold.")
        return PIL.Image.fromarray((values * 65535 // (2**bits - 1)).astype(np.uint16))

    return stretch


# What Pillow does to a TIFF of an orientation as it reads it -> what undoes that; it leaves other formats to callers.
UNDO = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_270,
}


def _stored_pixels(image: PIL.Image.Image) -> PIL.Image.Image:
    orientation = image.getexif().get(Base.Orientation, 1) if image.format == "TIFF" else 1
    pixels = image.convert("RGBA" if image.mode == "P" else image.mode)
    pixels = pixels.transpose(UNDO[orientation]) if orientation in UNDO else pixels
    pixels.info.clear()  # of the orientation, too
    return pixels


LABEL_MENDS: dict[str, Mend] = {
    "first_channel": lambda label: label.getchannel(0),
    "shown_greys": lambda label: label.convert("L"),
    "indices": _stored_indices,
    "whole_numbers": _whole_numbers,
    "white_is_1": _white_is_1,
}
IMAGE_MENDS: dict[str, Mend] = {
    "first_bands": lambda image: image.convert("L" if image.mode in ("LA", "La") else "RGB"),
    "stored_pixels": _stored_pixels,
    **{f"from_{bits}_bits": _stretch(bits) for bits in (10, 12, 14)},
}
MENDS = (*LABEL_MENDS, "colours", *IMAGE_MENDS)


def parse_colours(text: str | None) -> dict[int, tuple[int, ...]]:
    """Read "{0: [0, 0, 0], 1: [220, 20, 60]}".

    Raises:
        ValueError: If it is no such object.
    """
    try:
        colours = yaml.safe_load(text or "")
        parsed = {label_id: tuple(colour) for label_id, colour in colours.items()}
    except (yaml.YAMLError, AttributeError, TypeError):
        parsed = {}
    numbers = [value for label_id, colour in parsed.items() for value in (label_id, *colour)]
    is_rgb = all(len(colour) == 3 for colour in parsed.values())
    if not parsed or not is_rgb or not all(type(value) is int and 0 <= value <= 255 for value in numbers):
        raise ValueError(
            f"--colours is {text!r}: with --mend colours, write every id with its red, green and blue, 0 to 255, such "
            'as "{0: [0, 0, 0], 1: [220, 20, 60]}".'
        )
    return parsed


# ---- writing


def mend_dataset(arguments: argparse.Namespace) -> None:
    """Write all splits anew as a plain folder; pictures that are not mended are copied byte for byte.

    Args:
        arguments: Of `ldvc check`: `mend` is a name of `MENDS`, `output` the folder to make.

    Raises:
        FileExistsError: If the output exists and is not empty.
        MissingSplitError: If there is no first split.
        ValueError: If there is no output, or a sample cannot be mended; the message names it.
    """
    if not arguments.output:
        raise ValueError("--mend writes a new dataset: name its folder with --output.")
    output = Path(arguments.output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists: name a new folder with --output; nothing is overwritten.")
    label_mend, image_mend = LABEL_MENDS.get(arguments.mend), IMAGE_MENDS.get(arguments.mend)
    if arguments.mend == "colours":
        colours = parse_colours(arguments.colours)

        def label_mend(label: PIL.Image.Image) -> PIL.Image.Image:
            return _colours(label, colours)

    for split, dataset in load_stated_splits(arguments):
        if isinstance(dataset, MissingSplitError):
            continue
        for column in ("image", "label"):
            dataset = dataset.cast_column(column, Image(decode=False))
        _write_split(dataset, output / split, label_mend, image_mend)
    if names := read_class_names(arguments.dataset):
        (output / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def _write_split(dataset: Any, folder: Path, label_mend: Mend | None, image_mend: Mend | None) -> None:
    taken: set[str] = set()
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for row, cells in enumerate(tqdm(dataset, desc=f"mend {folder.name}", unit="image")):
        name = Path((cells["image"] or {}).get("path") or f"{row:06d}").stem
        name = f"{name}_{row:06d}" if name.casefold() in taken else name
        taken.add(name.casefold())
        try:
            _write_cell(cells["image"], folder / "images" / name, image_mend)
            _write_cell(cells["label"], folder / "masks" / name, label_mend)
        except Exception as error:  # decoders raise nearly anything at damaged files
            raise ValueError(f"Row {row} ({name}) of {folder.name} cannot be written anew: {error}") from error


def _write_cell(cell: Mapping[str, Any], path: Path, mend: Mend | None) -> None:
    """Write one picture: mended, as PNG, or with the bytes and the format that it has."""
    with open_cell(cell) as picture:
        if mend is not None:
            encoded = BytesIO()  # whole before the file is there
            mend(picture).save(encoded, "PNG")
            path.with_name(f"{path.name}.png").write_bytes(encoded.getvalue())
            return
        target = path.with_name(f"{path.name}.{(picture.format or 'png').lower()}")
    if cell["bytes"] is not None:
        target.write_bytes(cell["bytes"])
    else:
        shutil.copyfile(cell["path"], target)
