"""Results that are one picture or array: index PNGs in colour and grey, overlays, npz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import numpy as np
from PIL import Image

from ldvc.masks.drawing import draw_overlay, save_label_map
from ldvc.masks.writer import MAX_IDS, MAX_PALETTE_IDS, Result, Writer


OVERLAY_SIDE = 2560  # pixels of the longer side; overlays are for looking at, and blending needs 60 bytes a pixel


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
    else:
        write_grey(file, label_map, len(class_names))


def write_grey(file: IO[bytes], label_map: np.ndarray, num_ids: int) -> None:
    """Write a label map as plain grey, which every reader takes for ids: 8 bits up to 256 ids, else 16.

    Args:
        file: Open for bytes.
        label_map: (height, width) ids.
        num_ids: How many there may be.

    Raises:
        ValueError: If there are more ids than 16 bits hold.
    """
    if num_ids > MAX_IDS:
        raise ValueError(f"{num_ids} classes: a PNG holds {MAX_IDS} ids at most; use --format npz.")
    dtype = np.uint8 if num_ids <= MAX_PALETTE_IDS else np.uint16
    Image.fromarray(label_map.astype(dtype)).save(file, format="PNG")


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


class PngWriter(Writer):
    """Ids with a palette, which viewers show in the classes' colours."""

    places = ("{}.png",)

    def write_file(self, file: IO[bytes], result: Result) -> None:
        """Write it."""
        write_png(file, result.label_map, self.classes.names)


class GreyWriter(Writer):
    """Plain ids."""

    places = ("{}.grey.png",)

    def write_file(self, file: IO[bytes], result: Result) -> None:
        """Write it."""
        write_grey(file, result.label_map, len(self.classes.names))


class OverlayWriter(Writer):
    """The picture under its classes' colours."""

    places = ("{}.overlay.png",)

    def write_file(self, file: IO[bytes], result: Result) -> None:
        """Write it."""
        write_overlay(file, result.image, result.label_map, self.classes.names, self.classes.unseen_names)


class NpzWriter(Writer):
    """Ids and names, and all probabilities where the run keeps them."""

    places = ("{}.npz",)

    def write_file(self, file: IO[bytes], result: Result) -> None:
        """Write it."""
        scores = result.found.scores if self.classes.settings.get("scores", True) else None
        write_npz(file, result.label_map, self.classes.names, None if scores is None else np.asarray(scores))
