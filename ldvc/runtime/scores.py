"""Logits on the token grid to label maps, in numpy: what `ldvc/model/image_processing_ldvc.py` does in PyTorch.

Here classes are the last axis: (rows, columns, num_classes). Then a pixel is resized, compared and sorted as one piece
of memory, in blocks that stay in the processor's cache, and one thread takes a fraction of the time of PyTorch's two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


__all__ = ["PixelClasses", "Segmentation", "Taps", "bilinear_taps", "blend", "sigmoid", "upsampled_part"]

SCORES_PER_BLOCK = 2**17  # half a megabyte of float32: resizing and comparing a block happens in the cache
SORTED_FROM = 8  # best classes per pixel, from which on one sort of all takes less time than a maximum for each


@dataclass(frozen=True)
class Segmentation:
    """What is found in a picture; every array has the size of the upright picture.

    Attributes:
        label_map: (height, width) int64, positions in `class_names`.
        class_names: In the order of the ids; with a threshold the name of "other" comes last.
        scores: (num_classes, height, width) float32 probabilities, "other" not among them; `None` if not asked for.
        top_ids: (top_k, height, width) int64, the best classes of every pixel, best first; `None` if not asked for.
        top_scores: (top_k, height, width) float32, their probabilities.
    """

    label_map: np.ndarray
    class_names: list[str]
    scores: np.ndarray | None = None
    top_ids: np.ndarray | None = None
    top_scores: np.ndarray | None = None


class Taps(NamedTuple):
    """What pixels of a side are made of when it is resized bilinearly.

    Attributes:
        span: The source pixels that are read at all.
        before: (pixels,) int64, the source pixel before each pixel, counted from the start of the span.
        after: (pixels,) int64, the one after it.
        weights: (pixels,) float32, the share of the latter.
    """

    span: slice
    before: np.ndarray
    after: np.ndarray
    weights: np.ndarray


def bilinear_taps(source: int, target: int, part: slice) -> Taps:
    """Find where pixels of a side of `target` pixels lie on one of `source` pixels; corners are not aligned.

    Args:
        source: Pixels to read from.
        target: Pixels of the whole resized side.
        part: The pixels of it that are wanted, start and stop given.
    """
    pixels = np.arange(part.start, part.stop, dtype=np.float32)
    positions = np.maximum((pixels + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5), 0)
    before = np.minimum(positions.astype(np.int64), source - 1)
    after = np.minimum(before + 1, source - 1)
    first = int(before[0])
    return Taps(slice(first, int(after[-1]) + 1), before - first, after - first, positions - before)


def blend(scores: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """Resize bilinearly: (height, width, num_classes) scores of both spans to (rows, columns, num_classes)."""
    # Bilinear resizing is separable: widths first, at the few source rows, then rows.
    scores = mixed(scores[:, columns.before], scores[:, columns.after], columns.weights[:, None])
    return mixed(scores[rows.before], scores[rows.after], rows.weights[:, None, None])


def mixed(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`first` with a share of `second` in its place; both are fresh arrays, and are written to."""
    second -= first
    second *= share
    first += second
    return first


def upsampled_part(scores: np.ndarray, size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """Upsample bilinearly, a part only.

    Args:
        scores: (height, width, num_classes) float32.
        size: (height, width) of the whole target.
        rows: Rows of the target, start and stop given.
        columns: Columns of the target, start and stop given.
    """
    row_taps = bilinear_taps(scores.shape[0], size[0], rows)
    column_taps = bilinear_taps(scores.shape[1], size[1], columns)
    return blend(scores[row_taps.span, column_taps.span], row_taps, column_taps)


def upsampled_rows(scores: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
    """Upsample bilinearly, a block of rows at a time.

    Args:
        scores: (height, width, num_classes) float32.
        size: (height, width) of the target.

    Yields:
        Row slices of the target and their (rows, width, num_classes) values.
    """
    height, width = size
    columns = bilinear_taps(scores.shape[1], width, slice(0, width))
    block = max(1, SCORES_PER_BLOCK // (scores.shape[2] * width))
    for start in range(0, height, block):
        rows = slice(start, min(start + block, height))
        taps = bilinear_taps(scores.shape[0], height, rows)
        yield rows, blend(scores[taps.span], taps, columns)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Probabilities of logits, in place; `exp` of the smallest logits overflows to infinity, which divides to 0."""
    np.negative(values, out=values)
    with np.errstate(over="ignore"):
        np.exp(values, out=values)
    values += 1
    return np.reciprocal(values, out=values)


def best_scores(block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest scores of every pixel and their classes, best first; of equal scores the lower id comes first.

    Args:
        block: (rows, columns, num_classes) floats.
        count: 1 to num_classes.

    Returns:
        Two arrays, (rows, columns, count): scores, and int64 ids.
    """
    if count > SORTED_FROM:
        ids = np.argsort(-block, axis=-1, kind="stable")[..., :count]
        return np.take_along_axis(block, ids, -1), ids
    rest, found = (block.copy() if count > 1 else block), []
    for _ in range(count):
        found.append(rest.argmax(axis=-1, keepdims=True))
        if count > 1:
            np.put_along_axis(rest, found[-1], -np.inf, -1)
    ids = np.concatenate(found, axis=-1)
    return np.take_along_axis(block, ids, -1), ids


class PixelClasses:
    """Label map, best classes and scores of one picture, filled block by block from the scores of its classes.

    Args:
        num_classes: Classes of the answer.
        size: (height, width) of the picture.
        threshold: A probability, or one per class; pixels whose best class is below its own become "other", which has
            the id `num_classes`.
        top_k: Keep so many best classes of every pixel, whatever the threshold; more than there are means all.
        keep_scores: Keep the scores of all classes, which takes `num_classes` floats per pixel.
        class_ids: (num_channels,) in rising order where a block holds more channels than classes: the class of each,
            whose score is that of its best channel; the last may be -1, for what competes and comes back as "other".

    Raises:
        ValueError: If the threshold is no probability, or `top_k` is not positive.
    """

    def __init__(
        self,
        num_classes: int,
        size: tuple[int, int],
        threshold: Any = None,
        top_k: int | None = None,
        keep_scores: bool = False,
        class_ids: Sequence[int] | None = None,
    ):
        if top_k is not None and (not isinstance(top_k, (int, np.integer)) or top_k < 1):
            raise ValueError(f"`top_k` is {top_k!r}; it is how many classes to keep per pixel, 1 or more.")
        self.num_classes = num_classes
        self.threshold = None if threshold is None else check_threshold(threshold, num_classes)
        self.label_map = np.empty(size, np.int64)
        top = None if top_k is None else min(top_k, num_classes)
        self.top_ids = None if top is None else np.empty((top, *size), np.int64)
        self.top_scores = None if top is None else np.empty((top, *size), np.float32)
        self.scores = np.empty((num_classes, *size), np.float32) if keep_scores else None
        ids = [] if class_ids is None else list(class_ids)
        self.starts = [place for place, own in enumerate(ids) if place == 0 or own != ids[place - 1]]

    def add(self, rows: slice, columns: slice, block: np.ndarray, is_logits: bool = False) -> None:
        """Fill one block.

        Args:
            rows: Where it lies.
            columns: Where it lies.
            block: (rows, columns, num_channels); the highest wins. It may be written to.
            is_logits: Whether it holds logits, which are compared as they are, since they do not saturate.
        """
        rival = None
        if self.starts:
            block = np.maximum.reduceat(block, self.starts, axis=-1)
            block, rival = block[..., : self.num_classes], block[..., self.num_classes :]
        best, ids = best_scores(block, 1 if self.top_ids is None else len(self.top_ids))
        labels = ids[..., 0]
        is_other = (rival > best[..., :1]).any(axis=-1) if rival is not None else None  # none at all is no rival
        if is_logits and not (self.threshold is None and self.top_ids is None):
            best = sigmoid(best)
        if self.top_ids is not None:
            self.top_ids[:, rows, columns] = np.moveaxis(ids, -1, 0)
            self.top_scores[:, rows, columns] = np.moveaxis(best, -1, 0)
        if self.threshold is not None:
            threshold = self.threshold if self.threshold.ndim == 0 else self.threshold[labels]
            # less an offset, scores may be negative; 0 is no threshold all the same
            labels = np.where((best[..., 0] < threshold) & (threshold > 0), self.num_classes, labels)
        if is_other is not None:
            labels = np.where(is_other, self.num_classes, labels)
        self.label_map[rows, columns] = labels
        if self.scores is not None:
            block = sigmoid(np.ascontiguousarray(block)) if is_logits else block
            self.scores[:, rows, columns] = np.moveaxis(block, -1, 0)

    def add_upsampled(self, logits: np.ndarray, offsets: np.ndarray | None = None) -> None:
        """Fill the whole picture from the logits of one pass of the program.

        Args:
            logits: (grid_height, grid_width, num_channels), upsampled bilinearly.
            offsets: (num_channels,), what is taken from probabilities, or `None`.
        """
        for rows, block in upsampled_rows(logits, self.label_map.shape):
            if offsets is None:
                self.add(rows, slice(None), block, is_logits=True)
            else:
                self.add(rows, slice(None), sigmoid(block) - offsets)

    def as_segmentation(self, class_names: list[str]) -> Segmentation:
        """Everything that was asked for."""
        return Segmentation(self.label_map, class_names, self.scores, self.top_ids, self.top_scores)


def check_threshold(threshold: Any, num_classes: int) -> np.ndarray:
    """Check a probability, or one per class, and return it as a float32 scalar or (num_classes,).

    Raises:
        ValueError: If it is none, or their number is not that of the classes.
    """
    try:
        values = np.asarray(threshold, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`threshold` is {threshold!r}; it is a probability, 0 to 1, or a list of one per class."
        ) from error
    if values.ndim and values.shape != (num_classes,):
        raise ValueError(
            f"`threshold` has shape {values.shape} for {num_classes} classes; give one probability, or one per class "
            "in their order."
        )
    is_wrong = ~((values >= 0) & (values <= 1))  # true for NaN
    if is_wrong.any():
        raise ValueError(f"`threshold` is {values[is_wrong][0]:.6g}; it is a probability, 0 to 1.")
    return values
