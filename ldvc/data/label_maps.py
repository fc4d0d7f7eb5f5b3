"""The one reader of label maps: training, evaluation, `ldvc check` and `ldvc prepare` read ids here, by one rule.

A label map is a picture whose stored pixel values are ids. Files can look like one and not be one:

| file | what is done |
|---|---|
| grey of 1, 8, 16 or 32 bits; palette of colours | values, or indices, are the ids |
| grey of 2 or 4 bits (PNG, TIFF), PGM with a maximum of its own | Pillow stretches the values; that is undone |
| palette of greys that are not their own index | refused: optimisers and GIF writers store grey ids so |
| palettes in which a colour changes its id from file to file, or an id its colour | refused: ids mean nothing |
| JPEG, AVIF, JPEG 2000, lossy WebP, JPEG inside TIFF | refused: ids change at every border |
| several pages or frames | refused: the others would be dropped |
| RGB in greys, RGB in colours, a band of alpha, floats | refused |

`LABEL_PROBLEMS` says it in words, and which `mend` of `ldvc check` writes such files anew.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from io import BytesIO
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets import Dataset, Image
from datasets.utils.file_utils import xopen

from ldvc.model.image_processing_ldvc import load_pixels


__all__ = [
    "LABEL_PROBLEMS",
    "LabelImage",
    "LabelMapError",
    "PaletteLedger",
    "check_palettes",
    "decode_label",
    "open_cell",
    "palette_of",
    "read_ids",
    "to_label_map",
    "voc_colours",
]

LOSSY_FORMATS = ("JPEG", "MPO", "AVIF", "JPEG2000")
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # compressions, as Pillow calls them
ID_MODES = ("P", "L", "1", "I", "I;16", "I;16B", "I;16L")
NUM_PALETTES_COMPARED = 32  # label maps of a split; a palette of its own in each file shows in the first two
NUM_COLOURS_LISTED = 8
WRITE_ANEW = "ldvc check says how to write such files anew"


class LabelProblem(NamedTuple):
    """What can be wrong with the file of a label map.

    Attributes:
        text: What the files are, in the plural.
        advice: What to do, where no program can do it.
        mends: Values of `ldvc check --mend` that write them anew -> when this one is right.
    """

    text: str
    advice: str = ""
    mends: Mapping[str, str] = MappingProxyType({})


LABEL_PROBLEMS = {
    "coloured label map": LabelProblem(
        "label maps that show colours instead of ids",
        "store them as palette PNG (mode P) or grey PNG (mode L) whose pixel values are the ids",
        {"colours": 'with the colours of all ids as --colours "{0: [0, 0, 0], 1: [220, 20, 60]}"'},
    ),
    "grey label map in RGB": LabelProblem("label maps stored as grey RGB pictures", mends={"first_channel": ""}),
    "label map with alpha": LabelProblem(
        "label maps with a band of alpha beside the ids", mends={"first_channel": "if that band means nothing"}
    ),
    "label map of floats": LabelProblem(
        "label maps that hold floats",
        "export ids if they are probabilities or distances",
        {"whole_numbers": "if all are whole numbers"},
    ),
    "palette of greys": LabelProblem(
        "label maps whose palette shows greys that are not their own index, as optimisers (optipng, oxipng, pngquant) "
        "and GIF writers store grey label maps",
        mends={"shown_greys": "if the greys are the ids", "indices": "if the indices are, and greys only for the eye"},
    ),
    "palette of its own": LabelProblem(
        "label maps whose palettes contradict those of other files, as where a program makes one for each file",
        mends={
            "colours": 'if colours mean classes, with all of them as --colours "{0: [0, 0, 0], 1: [220, 20, 60]}"',
            "indices": "if the indices are the ids, and colours only for the eye",
        },
    ),
    "label map as JPEG": LabelProblem(
        "label maps stored as JPEG, whose compression changes ids at every border",
        "export them again as PNG; converting the JPEG keeps the damage",
    ),
    "label map in a lossy format": LabelProblem(
        "label maps in a format that may change ids at every border",
        "export them again as PNG; converting the files keeps the damage",
    ),
    "label map of several pages": LabelProblem(
        "label maps of several pages or frames, of which one alone would be read",
        "export one page whose values are ids; how several pages become classes cannot be known here",
    ),
}


class LabelMapError(ValueError):
    """A file that is no label map.

    Attributes:
        kind: Key of `LABEL_PROBLEMS`.
        detail: Of this file, such as its mode.
    """

    def __init__(self, kind: str, detail: str, message: str = ""):
        problem = LABEL_PROBLEMS[kind]
        remedy = problem.advice or WRITE_ANEW
        self.kind, self.detail = kind, detail
        super().__init__(message or f"{detail}: it is one of the {problem.text}: {remedy}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Data workers send errors to their parent."""
        return type(self), (self.kind, self.detail, str(self))


# ---- reading one file


def to_label_map(label: PIL.Image.Image | np.ndarray) -> np.ndarray:
    """Read the class ids out of a label image, without any conversion of its mode.

    Args:
        label: PIL image of mode P, L, I, I;16 or 1, or an integer array (height, width).

    Returns:
        (height, width) int64 ids as stored.

    Raises:
        LabelMapError: If it is no label map by the rules of this module.
        ValueError: If its file is damaged.
    """
    if isinstance(label, PIL.Image.Image):
        return read_ids(decode_label(label)).astype(np.int64)
    ids, mode = np.asarray(label), f"array {np.shape(label)} of {np.asarray(label).dtype}"
    if ids.ndim != 2:
        raise LabelMapError("coloured label map", mode, _one_id_per_pixel(mode))
    if ids.dtype.kind not in "iub":
        raise LabelMapError("label map of floats", mode, _integers(mode))
    return ids.astype(np.int64)


def decode_label(label: PIL.Image.Image) -> PIL.Image.Image:
    """Read the pixels of a label file; what only the unread file tells is told now.

    Args:
        label: A picture, best not yet loaded: the bits of a pixel are forgotten then.

    Returns:
        The same picture, or one whose values are the stored ones where Pillow has stretched them.

    Raises:
        LabelMapError: If it has several pages, or its format is lossy.
        ValueError: If the file is damaged.
    """
    if label.format in ("JPEG", "MPO"):
        raise LabelMapError("label map as JPEG", label.format)
    compression = label.info.get("compression") if label.format == "TIFF" else None
    if label.format in LOSSY_FORMATS or compression in LOSSY_TIFF or _is_lossy_webp(label):
        raise LabelMapError("label map in a lossy format", f"{label.format} {compression or ''}".rstrip())
    if (pages := getattr(label, "n_frames", 1)) > 1:
        raise LabelMapError("label map of several pages", f"{pages} pages")
    stored_maximum = _stored_maximum(label)
    load_pixels(label)
    if "exif" in label.info:  # pictures are turned as their EXIF data say, and so are label maps that have any
        label = PIL.ImageOps.exif_transpose(label)
    if stored_maximum is None:
        return label
    shown_maximum = 65535 if label.mode == "I" else 255
    ids = (np.asarray(label).astype(np.int64) * stored_maximum + shown_maximum // 2) // shown_maximum
    return PIL.Image.fromarray(ids.astype(np.uint8 if stored_maximum < 256 else np.int32))


def _stored_maximum(label: PIL.Image.Image) -> int | None:
    """The value that Pillow will show as the largest of its mode; `None` where it keeps values."""
    if not (tiles := getattr(label, "tile", ())) or label.mode not in ("L", "I"):
        return None
    arguments = tiles[0].args
    if tiles[0].codec_name.startswith("ppm") and isinstance(arguments, tuple) and len(arguments) == 2:
        return int(arguments[1])
    raw_mode = arguments if isinstance(arguments, str) else next(iter(arguments or ()), "")
    return {"L;2": 3, "L;4": 15}.get(str(raw_mode)[:3])


def _is_lossy_webp(label: PIL.Image.Image) -> bool:
    """Whether a WebP file that is still open says that it was compressed with losses."""
    file = getattr(label, "fp", None)
    if label.format != "WEBP" or file is None:
        return False
    place = file.tell()
    file.seek(12)
    while len(head := file.read(8)) == 8 and head[:4] not in (b"VP8 ", b"VP8L", b"ANMF"):
        file.seek(int.from_bytes(head[4:], "little") + 1 & ~1, 1)  # chunks begin at even places
    file.seek(place)
    return head[:4] == b"VP8 "


def read_ids(label: PIL.Image.Image) -> np.ndarray:
    """Read ids as stored, in the few bits of the file: (height, width) integers.

    Args:
        label: As `decode_label` gives it.

    Raises:
        LabelMapError: If its pixels are no ids.
    """
    mode = label.mode
    if mode == "F":
        raise LabelMapError("label map of floats", "mode F", _integers(mode))
    if mode in ("LA", "La", "PA"):
        raise LabelMapError("label map with alpha", f"mode {mode}")
    if mode not in ID_MODES:
        raise LabelMapError(*_what_it_shows(label), _one_id_per_pixel(mode))
    if (palette := palette_of(label)) and not _shows_ids(label, palette):
        raise LabelMapError("palette of greys", f"mode P with greys {_used_colours(label, palette)}")
    return np.asarray(label)


def _what_it_shows(label: PIL.Image.Image) -> tuple[str, str]:
    """Kind of problem of a picture with several channels, and its mode with the first colours if they are few."""
    channels = np.atleast_3d(np.asarray(label))[..., :3]
    if label.mode in ("RGB", "RGBA", "RGBX") and bool((channels == channels[..., :1]).all()):
        return "grey label map in RGB", f"mode {label.mode}"
    shown = label.convert("RGB").getcolors(NUM_COLOURS_LISTED)
    listed = " with " + ", ".join(str(colour) for _, colour in sorted(shown, reverse=True)) if shown else ""
    return "coloured label map", f"mode {label.mode}{listed}"


def _one_id_per_pixel(mode: str) -> str:
    return (
        f"a label map must have one id per pixel, got {mode}. If it shows classes as colours, store it as a palette "
        "PNG (mode P) or grey PNG (mode L) whose pixel values are the ids."
    )


def _integers(mode: str) -> str:
    return f"a label map must hold integers, got {mode}: store ids in mode P, L or I."


class LabelImage(Image):
    """The feature of a column of label maps: an `Image` that decodes by the rules of this module.

    It is written and compared as an `Image`; only reading differs.
    """

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> PIL.Image.Image:
        """Decode one label map.

        Raises:
            ValueError: If its file is damaged, or no label map as a file.
        """
        if isinstance(value, dict) and (value["bytes"] is not None or value["path"] is not None):
            return decode_label(open_cell(value))
        return decode_label(super().decode_example(value, token_per_repo_id))


def open_cell(cell: Mapping[str, Any]) -> PIL.Image.Image:
    """Open the picture of an undecoded cell, `{"bytes": ..., "path": ...}`; its pixels are not read yet."""
    if cell["bytes"] is not None:
        return PIL.Image.open(BytesIO(cell["bytes"]))
    if "://" in cell["path"]:  # of a stream
        with xopen(cell["path"], "rb") as file:
            return PIL.Image.open(BytesIO(file.read()))
    return PIL.Image.open(cell["path"])


# ---- palettes


def palette_of(label: PIL.Image.Image) -> bytes:
    """RGB of every index, three bytes each; empty without a palette."""
    return bytes(label.getpalette("RGB") or ()) if label.mode == "P" else b""


def colour_at(palette: bytes, index: int) -> tuple[int, ...]:
    """RGB of an index; empty past the end of the palette."""
    return tuple(palette[3 * index : 3 * index + 3])


def voc_colours(label_ids: Iterable[int]) -> dict[int, tuple[int, int, int]]:
    """Give the RGB colours of PASCAL VOC, which spread the bits of an id over the three channels, high bits first.

    Args:
        label_ids: Ids from 0 to 255.

    Returns:
        {id: (red, green, blue)}, each 0 to 255.
    """

    def channel(label_id: int, offset: int) -> int:
        return sum(((label_id >> (3 * bit + offset)) & 1) << (7 - bit) for bit in range(8))

    return {label_id: tuple(channel(label_id, offset) for offset in range(3)) for label_id in label_ids}


@lru_cache(maxsize=1024)
def _greys_elsewhere(palette: bytes) -> dict[int, int]:
    """Index -> grey that it shows, of a palette whose greys may be the ids; empty if none of them is elsewhere.

    A palette that is VOC's has greys of its own (class 7 is 128), which mean nothing.
    """
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    if palette == _voc_palette()[: len(palette)]:
        return {}
    greys = {index: int(colour[0]) for index, colour in enumerate(colours) if colour.min() == colour.max()}
    return greys if any(index != grey for index, grey in greys.items()) else {}


@lru_cache(maxsize=1)
def _voc_palette() -> bytes:
    return bytes(value for colour in voc_colours(range(256)).values() for value in colour)


def _shows_ids(label: PIL.Image.Image, palette: bytes) -> bool:
    greys = _greys_elsewhere(palette)
    if not greys:
        return True
    used = _used_indices(label)
    if all(greys.get(index) == index for index in used) or any(index not in greys for index in used):
        return True
    # a single grey among colours is a class like others: the wall of ADE20K
    return len(used) == 1 and 3 * len(greys) < len(palette)


def _used_indices(label: PIL.Image.Image) -> list[int]:
    return [index for index, count in enumerate(label.histogram()) if count]


def _used_colours(label: PIL.Image.Image, palette: bytes) -> str:
    used = _used_indices(label)
    listed = ", ".join(f"{palette[3 * index]} at {index}" for index in used[:NUM_COLOURS_LISTED])
    return listed + (", ..." if len(used) > NUM_COLOURS_LISTED else "")


class PaletteLedger:
    """The colours of ids over many files, to find files that number their colours each in its own way.

    Between two files with palettes, an id that changes its colour or a colour that changes its id says that either
    ids or colours mean nothing. Two ids of one colour within a palette say nothing: unused entries are often black.
    """

    def __init__(self) -> None:
        self._used: dict[bytes, set[int]] = {}  # palette -> ids
        self._first: dict[tuple[int, tuple[int, ...]], tuple[bytes, str]] = {}  # id and colour -> palette and file

    def add(self, palette: bytes, used: Iterable[int], name: str) -> str:
        """Enter one file.

        Args:
            palette: See `palette_of`.
            used: Ids that occur in the file.
            name: Of the file.

        Returns:
            How it contradicts a file before it; empty if it does not.
        """
        known = self._used.get(palette, set())
        new = {label_id: colour_at(palette, label_id) for label_id in set(used) - known}
        for label_id, colour in sorted(new.items()):
            for (other_id, other_colour), (other_palette, other_name) in self._first.items():
                is_recoloured = other_id == label_id and other_colour != colour
                is_moved = other_colour == colour != colour_at(other_palette, label_id)
                if is_recoloured or (is_moved and colour_at(palette, other_id) != colour):
                    return (
                        f"{name} shows id {label_id} as {colour}, {other_name} shows id {other_id} as {other_colour}"
                    )
        # only what agrees is remembered: at most one colour for each id
        self._used[palette] = known | new.keys()
        for pair in new.items():
            self._first.setdefault(pair, (palette, name))
        return ""

    def check(self, label: PIL.Image.Image, name: str) -> None:
        """Enter a label map, if it has a palette.

        Args:
            label: As `decode_label` gives it.
            name: Of its file or sample.

        Raises:
            LabelMapError: If it contradicts one before it.
        """
        palette = palette_of(label)
        if palette and (conflict := self.add(palette, _used_indices(label), name)):
            problem = LABEL_PROBLEMS["palette of its own"]
            message = f"{conflict}: they are {problem.text}; {WRITE_ANEW}."
            raise LabelMapError("palette of its own", conflict, message)


def check_palettes(dataset: Dataset, column: str = "label") -> None:
    """Compare the palettes of label maps spread evenly over a split; their pixels are read only if palettes differ.

    Args:
        dataset: With a column of label maps, decoded or not.
        column: Its name.

    Raises:
        LabelMapError: If they contradict each other.
    """
    rows = np.linspace(0, max(len(dataset) - 1, 0), min(len(dataset), NUM_PALETTES_COMPARED)).astype(int)
    undecoded = dataset.select_columns([column]).cast_column(column, Image(decode=False))
    labels = {int(row): label for row in rows if (label := _open_palette(undecoded[int(row)][column])) is not None}
    if len({label.palette.palette for label in labels.values()}) < 2:
        return
    ledger = PaletteLedger()
    for row, label in labels.items():
        try:
            label = decode_label(label)
            read_ids(label)
        except ValueError:  # damaged, or refused for another reason: its turn to be read says so
            continue
        ledger.check(label, f"sample {row}")


def _open_palette(cell: Mapping[str, Any] | None) -> PIL.Image.Image | None:
    """Open a file with a palette; `None` for any other, and for one that cannot be opened here."""
    try:
        label = open_cell(cell)
    except Exception:  # a damaged, missing or empty cell; its turn to be read says so
        return None
    return label if label.mode == "P" else None
