"""Are the label maps of a folder still those that were written? `ldvc check masks FOLDER`.

Programs that make PNG files smaller, or open and save them, may sort the palette: ids then mean other classes though
every viewer shows the right colours. Compared are the files with `names.json`, and the files of one picture with each
other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ldvc.masks.coco import read_json
from ldvc.masks.files import pixel_limit
from ldvc.masks.folders import IMAGES, MASKS, PLACE
from ldvc.masks.parts import written_aside
from ldvc.masks.writer import MAX_PALETTE_IDS, write_json


NAMES_FILE = "names.json"
GREY_END, NPZ_END = ".grey.png", ".npz"
OTHER_ENDS = (".overlay.png",)  # no label maps
GREY_MODES = ("L", "I;16", "I", "1")


def read_names(folder: Path) -> tuple[list[str], np.ndarray]:
    """Read the names and the (num_classes, 3) uint8 RGB colours of a folder's ids.

    Raises:
        ValueError: If there is no `names.json` that says so.
    """
    path = folder / NAMES_FILE
    content = read_json(path)
    names, colors = content.get("names"), content.get("colors")
    ids = [str(class_id) for class_id in range(len(names))] if isinstance(names, dict) else []
    if not ids or not isinstance(colors, dict) or not set(ids) <= names.keys() & colors.keys():
        raise ValueError(
            f"{str(path)!r} is missing or says no names and colours of ids; give a folder that `ldvc segment` wrote."
        )
    values = [bytes.fromhex(str(colors[class_id]).lstrip("#")) for class_id in ids]
    return [names[class_id] for class_id in ids], np.array([list(value) for value in values], dtype=np.uint8)


def check_colours(image: Image.Image, ids: np.ndarray, names: list[str], colors: np.ndarray) -> str | None:
    """Compare the colours of a palette file's ids with those of the names; returns what is wrong, if anything."""
    palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
    owner_of = {tuple(color): class_id for class_id, color in reversed(list(enumerate(colors.tolist())))}
    moved = []
    for pixel in ids.tolist():
        shown = tuple(palette[pixel].tolist()) if pixel < len(palette) else None
        if pixel < len(names) and shown == tuple(colors[pixel].tolist()):
            continue
        if shown not in owner_of:
            color = "none" if shown is None else "#{:02x}{:02x}{:02x}".format(*shown)
            return f"id {pixel} has a colour of no class ({color}): an editor has changed it; write the file again"
        moved.append((pixel, owner_of[shown]))
    if not moved:
        return None
    pairs = ", ".join(f"{pixel} shows {names[owner]!r}, which is {owner}" for pixel, owner in moved[:3])
    return (
        f"a program has permuted the palette ({pairs}{', ...' if len(moved) > 3 else ''}): an optimiser such as "
        "oxipng, zopflipng or pngquant has been there; write the file again and keep these away from it (oxipng "
        "leaves the ids of --format grey alone)"
    )


def check_picture(path: Path, names: list[str], colors: np.ndarray) -> tuple[np.ndarray | None, str | None]:
    """Read one label map and compare it with the names; returns it, where it can be read, and what is wrong with it.

    Args:
        path: A PNG file.
        names: Name of every id.
        colors: (num_classes, 3) uint8 RGB of every id.

    Returns:
        (height, width) ids as stored, and a line, each `None` where there is none.
    """
    try:
        with pixel_limit(None), Image.open(path) as image:
            label_map = np.asarray(image)
    except Exception as error:  # decoders raise nearly anything at damaged files
        return None, f"cannot be read ({type(error).__name__}); write it again"
    is_grey = path.name.endswith(GREY_END) or f"{PLACE}/{MASKS}/" in path.as_posix() or len(names) > MAX_PALETTE_IDS
    if image.mode not in ("P", *GREY_MODES):
        return (
            None,
            f"holds colours in place of ids (mode {image.mode}): a program has opened and saved it; write it again",
        )
    ids = np.unique(label_map)
    if not is_grey and image.mode == "P":
        return label_map, check_colours(image, ids, names, colors)
    if not is_grey or image.mode == "P":
        kinds = ("a palette", "grey") if image.mode != "P" else ("grey", "a palette")
        return None, f"had {kinds[0]} and has {kinds[1]} now (mode {image.mode}), so ids mean nothing; write it again"
    if ids[-1] >= len(names):
        return label_map, f"holds id {ids[-1]}, but names.json ends at {len(names) - 1}: it belongs to another folder"
    return label_map, None


def check_maps(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Compare every label map of a folder with its `names.json`, and the files of one picture with each other.

    Yields:
        Path below the folder, and what is wrong with it; `None` where nothing is.

    Raises:
        ValueError: If the folder has no names, or no label map.
    """
    names, colors = read_names(folder)
    paths = [path for path in sorted(folder.rglob("*.png")) if is_label_map(path.relative_to(folder))]
    if not paths:
        raise ValueError(f"{str(folder)!r} holds no label map in PNG; make some with ldvc segment --format png.")
    for path in paths:
        label_map, problem = check_picture(path, names, colors)
        twin = path.with_name(path.name.removesuffix(".png") + GREY_END)
        if problem is None and label_map is not None and twin.is_file():
            other = check_picture(twin, names, colors)[0]
            if other is not None and not np.array_equal(other, label_map):
                problem = f"holds other ids than {twin.name}: one of them was changed; write both again"
        yield path.relative_to(folder).as_posix(), problem


def is_label_map(relative: Path) -> bool:
    """Whether a PNG file of a folder is a label map, by its place."""
    is_part = any(part.startswith(".") or part.endswith((".soft", ".cutout")) for part in relative.parts)
    is_photo = relative.parts[:2] == (PLACE, IMAGES)
    return not is_part and not is_photo and not relative.name.endswith(OTHER_ENDS)


def run(arguments: argparse.Namespace) -> int:
    """Check a folder and print what is wrong, a line per file; returns 0, or 2 if anything is."""
    found = dict(check_maps(Path(arguments.folder)))
    wrong = {name: problem for name, problem in found.items() if problem}
    for name, problem in wrong.items():
        sys.stdout.write(f"{name}: {problem}.\n")
    sys.stdout.write(f"{len(found) - len(wrong)} of {len(found)} label maps agree with names.json\n")
    if arguments.json:
        with written_aside(Path(arguments.json)) as file:
            write_json(file, {"folder": str(arguments.folder), "maps": len(found), "wrong": wrong}, indent=2)
    return 2 if wrong else 0
