"""Sliding windows in numpy: what `WindowScores` of `ldvc/model/inference_ldvc.py` does in PyTorch, classes last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ldvc.model.options_ldvc import InferenceSettings
from ldvc.model.pixels_ldvc import image_blocks, overlap, window_starts
from ldvc.runtime.scores import SCORES_PER_BLOCK, bilinear_taps, blend, sigmoid, upsampled_part


__all__ = ["WindowScores", "resized_blocks"]

# (num_windows, 3, height, width) pixels to (num_windows, grid_height, grid_width, num_channels) logits.
Predict = Callable[[np.ndarray], np.ndarray]


class WindowScores:
    """Class probabilities of a picture, to be read from top to bottom.

    Windows go through the program when they are first needed and are dropped when the reading has passed them.

    Args:
        predict: See `Predict`.
        read_window: From the top and left pixel of a window to its (3, height, width) normalised pixels.
        size: (height, width) of the picture.
        settings: Window, stride and batch size; a window of 0 is the whole picture.
        offsets: (num_channels,), what is taken from probabilities, or `None`.
    """

    def __init__(
        self,
        predict: Predict,
        read_window: Callable[[int, int], np.ndarray],
        size: tuple[int, int],
        settings: InferenceSettings,
        offsets: np.ndarray | None = None,
    ):
        self.size = size
        self.window_size = tuple(min(settings.window or side, side) for side in size)
        tops, lefts = (window_starts(size[axis], self.window_size[axis], settings.stride) for axis in (0, 1))
        self._waiting = [(top, left) for top in tops for left in lefts]
        self._scored: dict[tuple[int, int], np.ndarray] = {}
        self._predict, self._read_window, self._offsets = predict, read_window, offsets
        self._batch_size = settings.window_batch_size

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the scores of one block, averaged over windows.

        Args:
            rows: Must not start above the rows of an earlier call.
            columns: Any.

        Returns:
            (rows, columns, num_channels) float32: probabilities, less the offset of seen classes.
        """
        height, width = self.window_size
        while self._waiting and self._waiting[0][0] < rows.stop:
            run_windows([(self, corner) for corner in self._waiting[: self._batch_size]])
        for corner in [corner for corner in self._scored if corner[0] + height <= rows.start]:
            del self._scored[corner]
        logits = next(iter(self._scored.values()))
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        totals, counts = np.zeros((*shape, logits.shape[-1]), np.float32), np.zeros((*shape, 1), np.float32)
        for (top, left), logits in self._scored.items():
            vertical, horizontal = overlap(rows, top, height), overlap(columns, left, width)
            if vertical and horizontal:
                scores = sigmoid(upsampled_part(logits, self.window_size, vertical[0], horizontal[0]))
                if self._offsets is not None:
                    scores -= self._offsets
                totals[vertical[1], horizontal[1]] += scores
                counts[vertical[1], horizontal[1]] += 1
        totals /= counts
        return totals

    @staticmethod
    def run_together(pictures: Sequence[WindowScores]) -> None:
        """Send pictures of few windows through the program, windows of several in one call.

        Pictures whose windows fill a batch by themselves are left as they are.

        Args:
            pictures: Of one program, list of classes and batch size.
        """
        groups: dict[tuple[int, int], list[tuple[WindowScores, tuple[int, int]]]] = {}
        for picture in pictures:
            if len(picture._waiting) < picture._batch_size:
                windows = [(picture, corner) for corner in picture._waiting]
                groups.setdefault(picture.window_size, []).extend(windows)
        for waiting in groups.values():
            step = waiting[0][0]._batch_size
            for start in range(0, len(waiting), step):
                run_windows(waiting[start : start + step])


def run_windows(windows: Sequence[tuple[WindowScores, tuple[int, int]]]) -> None:
    """Send windows of one size through the program and keep their logits on the token grid.

    Args:
        windows: Picture and corner of each; of every picture those that come next.
    """
    pixels = np.stack([picture._read_window(*corner) for picture, corner in windows])
    all_logits = windows[0][0]._predict(pixels)
    for (picture, corner), logits in zip(windows, all_logits, strict=True):
        # a copy, so that dropping a window frees its memory whatever becomes of its batch
        picture._scored[corner] = logits.copy()
        picture._waiting.remove(corner)


def resized_blocks(
    scores: WindowScores, size: tuple[int, int], num_channels: int
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Read all scores of a picture at another size, resized bilinearly, a block at a time.

    Args:
        scores: Not read before.
        size: (height, width) of the result.
        num_channels: Decides how many pixels make a block.

    Yields:
        Rows and columns of a block, and its (rows, columns, num_channels) scores.
    """
    shrinkage = max(1.0, scores.size[0] * scores.size[1] / (size[0] * size[1]))  # a block must fit before resizing too
    for rows, columns in image_blocks(size, max(1, int(SCORES_PER_BLOCK / num_channels / shrinkage))):
        if size == scores.size:
            yield rows, columns, scores.read(rows, columns)
        else:
            row_taps = bilinear_taps(scores.size[0], size[0], rows)
            column_taps = bilinear_taps(scores.size[1], size[1], columns)
            yield rows, columns, blend(scores.read(row_taps.span, column_taps.span), row_taps, column_taps)
