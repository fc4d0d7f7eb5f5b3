"""Results for annotation tools: Label Studio, CVAT and LabelMe.

Every picture has a file of its own, so that a stopped run loses none; Label Studio and CVAT import one file of all
pictures, which is joined from these at the end.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from ldvc.masks.drawing import class_colors
from ldvc.masks.parts import written_aside
from ldvc.masks.writer import Result, Writer, write_json


# ---- run lengths


def run_lengths(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length and value of every run.

    Args:
        values: (count,) of any type, at least one.

    Returns:
        Two (runs,) arrays.
    """
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return np.diff(np.r_[starts, len(values)]), values[starts]


LENGTH_BITS = (3, 4, 8, 16)  # of a run's length, the four choices that the format allows


def encode_brush(is_class: np.ndarray) -> list[int]:
    """Encode a mask as Label Studio's brush does: run lengths of RGBA bytes, all 0 or 255, packed into bits.

    Format: `label_studio_sdk/converter/brush.py`, after the package rle-pack. An alpha of 1 in place of 255 would be a
    mask that nobody sees.

    Args:
        is_class: (height, width) bool.

    Returns:
        Bytes, each 0 to 255.
    """
    lengths, values = run_lengths(is_class.ravel())
    lengths = 4 * lengths  # one value per channel
    longest = 1 << LENGTH_BITS[-1]
    parts = -(-lengths // longest)  # a long run is written as several
    values, whole = np.repeat(values, parts), np.repeat(lengths, parts)
    ends = np.cumsum(parts)
    is_last = np.zeros(len(values), dtype=bool)
    is_last[ends - 1] = True
    lengths = np.where(is_last, whole - longest * (np.repeat(parts, parts) - 1), longest)
    choice = np.searchsorted([1 << bits for bits in LENGTH_BITS], lengths)
    bits = np.array(LENGTH_BITS)[choice]
    # a 1 for "a run", the choice, the length less one, the byte
    words = (((0b100 | choice) << bits | (lengths - 1)) << 8) | np.where(values, 255, 0)
    widths = 3 + bits + 8
    position = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    body = (np.repeat(words, widths) >> (np.repeat(widths, widths) - 1 - position)) & 1
    head = f"{4 * is_class.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in LENGTH_BITS)
    return np.packbits(np.r_[np.array(list(head), dtype=np.uint8), body.astype(np.uint8)]).tolist()


def bounding_box(is_class: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that a mask reaches.

    Args:
        is_class: (height, width) bool, not empty.
    """
    rows, columns = (np.flatnonzero(is_class.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


# ---- writers


class CollectedWriter(Writer):
    """A file per picture, and one of all."""

    def parts(self) -> list[Path]:
        """All pictures' files of the folder, those of earlier runs too, sorted."""
        end = self.places[0].removeprefix("{}")
        return sorted(path for path in self.folder.rglob(f"*{end}") if not path.name.startswith("."))

    def colors(self) -> list[tuple[str, str]]:
        """Name and colour of every id."""
        colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in class_colors(self.classes.names).tolist()]
        return list(zip(self.classes.names, colors, strict=True))


class LabelStudioWriter(CollectedWriter):
    """Label Studio's pre-annotations: a task per picture with a brush per class, and the labelling configuration."""

    places = ("{}.label-studio.json",)
    shared = ("label-studio.json", "label-studio.xml")
    needs_best_scores = True

    def write_file(self, file: IO[bytes], result: Result) -> None:
        """Write a list of one task."""
        regions = list(self.regions(result))
        prediction = {
            "model_version": str(self.classes.settings.get("model", "LDVC")),
            "score": float(np.mean([region["score"] for region in regions])),
            "result": regions,
        }
        place = f"{self.classes.settings.get('image_url', '')}{result.picture.file_name}"
        write_json(file, [{"data": {"image": place}, "predictions": [prediction]}])

    def regions(self, result: Result) -> Iterator[dict[str, Any]]:
        """Yield a brush per class that is there."""
        height, width = result.label_map.shape
        for class_id in np.unique(result.label_map).tolist():
            is_class = result.label_map == class_id
            labels = [self.classes.names[class_id]]
            yield {
                "id": f"class{class_id}",
                "type": "brushlabels",
                "from_name": "class",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {"format": "rle", "rle": encode_brush(is_class), "brushlabels": labels},
                "score": result.class_score(class_id, is_class, self.classes),
            }

    def finish(self, journals: Sequence[Path]) -> None:
        """Join all tasks, and write the configuration that a project needs."""
        with written_aside(self.folder / self.shared[0]) as file:
            for position, path in enumerate(self.parts()):
                task = json.dumps(json.loads(path.read_bytes())[0], ensure_ascii=False)
                file.write(f"{',' if position else '['}\n{task}".encode())
            file.write(b"\n]\n" if self.parts() else b"[]\n")
        labels = "".join(
            f"    <Label value={quoteattr(name)} background={quoteattr(color)}/>\n" for name, color in self.colors()
        )
        with written_aside(self.folder / self.shared[1]) as file:
            file.write(
                '<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="class" toName="image">\n'
                f"{labels}  </BrushLabels>\n</View>\n".encode()
            )


class CvatWriter(CollectedWriter):
    """CVAT for images 1.1: a mask per class, and the labels for the constructor of a task."""

    places = ("{}.cvat.xml",)
    shared = ("cvat.xml", "cvat.labels.json")

    def write_file(self, file: IO[bytes], result: Result) -> None:
        """Write the element of one picture."""
        height, width = result.label_map.shape
        name = quoteattr(result.picture.file_name)
        lines = [f'  <image id="0" name={name} width="{width}" height="{height}">']
        for class_id in np.unique(result.label_map).tolist():
            rows, columns = bounding_box(result.label_map == class_id)
            inside = (result.label_map[rows, columns] == class_id).ravel()
            lengths, values = run_lengths(inside)
            counts = ", ".join(map(str, ([0] if values[0] else []) + lengths.tolist()))  # begins with what is not
            label = quoteattr(self.classes.names[class_id])
            place = f'left="{columns.start}" top="{rows.start}" width="{columns.stop - columns.start}"'
            place += f' height="{rows.stop - rows.start}"'
            lines.append(f'    <mask label={label} source="auto" occluded="0" rle="{counts}" {place} z_order="0"/>')
        file.write("\n".join([*lines, "  </image>", ""]).encode())

    def finish(self, journals: Sequence[Path]) -> None:
        """Join all pictures, numbered in order, and write the labels."""
        labels = "".join(
            f"        <label><name>{escape(name)}</name><color>{color}</color><attributes/></label>\n"
            for name, color in self.colors()
        )
        with written_aside(self.folder / self.shared[0]) as file:
            file.write(
                b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n'
                b"    <task>\n      <labels>\n" + labels.encode() + b"      </labels>\n    </task>\n  </meta>\n"
            )
            for number, path in enumerate(self.parts()):
                file.write(path.read_bytes().replace(b'id="0"', f'id="{number}"'.encode(), 1))
            file.write(b"</annotations>\n")
        with written_aside(self.folder / self.shared[1]) as file:
            write_json(file, [{"name": name, "color": color, "attributes": []} for name, color in self.colors()])


class LabelMeWriter(Writer):
    """LabelMe's files, one per picture, in a folder for its option --output: a mask per class."""

    places = ("labelme/{}.json",)

    def write_file(self, file: IO[bytes], result: Result) -> None:
        """Write a picture's file; the picture itself stays where it is."""
        height, width = result.label_map.shape
        (path,) = self.paths(result.picture.name)
        shapes = []
        for class_id in np.unique(result.label_map).tolist():
            is_class = result.label_map == class_id
            rows, columns = bounding_box(is_class)
            mask = io.BytesIO()
            Image.fromarray(is_class[rows, columns]).save(mask, format="PNG")
            shapes.append(
                {
                    "label": self.classes.names[class_id],
                    "points": [[columns.start, rows.start], [columns.stop - 1, rows.stop - 1]],  # the last ones inside
                    "group_id": None,
                    "description": "",
                    "shape_type": "mask",
                    "flags": {},
                    "mask": base64.b64encode(mask.getvalue()).decode("ascii"),
                }
            )
        content = {
            "version": "5.5.0",  # the first whose files these are is 5.3
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(os.path.relpath(result.picture.path, path.parent)).as_posix(),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_json(file, content, indent=1)
