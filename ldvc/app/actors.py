"""Tables of pictures: a class whose objects keep a model and add label maps to batches of rows.

For Ray Data, whose actors are such objects; retries, progress and files are the engine's. Pictures in files are for
`ldvc segment --engine ray` (`ldvc/app/engine.py`), which writes every kind of result.

    rows = ray.data.read_parquet("photos")
    masks = rows.map_batches(
        RowSegmenter, fn_constructor_kwargs={"model": "...", "labels": "cat, sofa|couch"}, concurrency=2, batch_size=8
    )
    masks.write_parquet("masks")

Nothing of Ray is imported here: `datasets.map(RowSegmenter(...), batched=True)` works alike.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from ldvc.app.batch import Job, Segmenter, make_settings
from ldvc.app.labels import as_classes, parse_labels
from ldvc.loading import EMBEDDED_CHECKPOINT, one_line, read_settings
from ldvc.masks.files import MAX_PIXELS, Picture, decode_picture, pixel_limit
from ldvc.masks.pixels import write_grey
from ldvc.model.pixels_ldvc import check_value_range


if TYPE_CHECKING:
    from PIL import Image


__all__ = ["RowSegmenter"]


@dataclass(frozen=True)
class CellPicture(Picture):
    """A picture in a cell of a table.

    Attributes:
        cell: Encoded bytes, a path, or both in a dict as `datasets` keeps them.
    """

    cell: Any = field(repr=False, compare=False, default=None)

    def read(self, max_pixels: int, value_range: Sequence[float] | None = None) -> Image.Image:
        """Decode it, under a `pixel_limit`.

        Raises:
            ValueError: If the cell holds no picture.
        """
        cell = self.cell
        if isinstance(cell, Mapping):
            cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
        if isinstance(cell, (bytes, bytearray)):
            return decode_picture(io.BytesIO(cell), max_pixels, value_range)
        if isinstance(cell, str):
            return decode_picture(Path(cell), max_pixels, value_range)
        raise ValueError(f"holds no picture but {type(cell).__name__}; encoded bytes, a path or both are read.")


class RowSegmenter:
    """Adds a label map to every row, in memory of one batch.

    Args:
        model: Folder or Hub id.
        labels: As `--labels`; `None` is the checkpoint's own vocabulary.
        device: As `--device`.
        image_column: Of encoded pictures, or their paths.
        label_column: Of the result: a grey PNG of ids as bytes, empty where a picture cannot be read.
        error_column: Why not; empty where all is well.
        window: As `--window`.
        stride: As `--stride`.
        short_side: As `--short-side`.
        threshold: As `--threshold`.
        other: As `--other`.
        negative: As `--not`.
        background: As `--background`.
        method: As `--method`.
        setting: As `--setting`, "NAME=VALUE" each.
        seen_score_offset: As `--seen-score-offset`.
        vocabulary: As `--vocabulary`, in place of `labels`.
        smoothing: As `--smoothing`.
        batch_size: Pictures, or windows, per call of the model.
        max_pixels: Refuse larger pictures.
        value_range: The values that are black and white; `None` is what each picture says itself.

    Attributes:
        names: Name of every id.

    Raises:
        ValueError: If options exclude each other, or the command would refuse them.
    """

    def __init__(
        self,
        model: str = str(EMBEDDED_CHECKPOINT),
        labels: str | None = None,
        device: str = "auto",
        image_column: str = "image",
        label_column: str = "label",
        error_column: str = "error",
        window: int | None = None,
        stride: int | None = None,
        short_side: int | None = None,
        threshold: str | None = None,
        other: str | None = None,
        negative: str | None = None,
        background: str | None = None,
        method: str | None = None,
        setting: Sequence[str] = (),
        seen_score_offset: float | None = None,
        vocabulary: str | Path | None = None,
        smoothing: str | None = None,
        batch_size: int = 1,
        max_pixels: int = MAX_PIXELS,
        value_range: tuple[float, float] | None = None,
    ):
        if labels is not None and vocabulary is not None:
            raise ValueError("labels and vocabulary both name the classes; give one of them.")
        texts = (labels, negative, background)
        classes, rivals, words = (None if text is None else as_classes(parse_labels(text)) for text in texts)
        self.segmenter = Segmenter(
            *(model, device, classes, None if vocabulary is None else Path(vocabulary)),
            *(make_settings(short_side, window, stride), threshold, other),
            batch_size=batch_size or None,
            seen_score_offset=seen_score_offset,
            negative=rivals,
            background=words and [word for own in words.values() for word in own],
            load_settings=read_settings(method, setting),
            value_range=None if value_range is None else check_value_range(value_range),
            smoothing=smoothing,
        )
        self.columns, self.max_pixels = (image_column, label_column, error_column), max_pixels
        self.names = self.segmenter.names + ([self.segmenter.other] if self.segmenter.other else [])

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Segment a batch of rows.

        Args:
            batch: Column -> values.

        Returns:
            The same columns, the label maps and the errors, row by row.

        Raises:
            ValueError: If there is no column of pictures.
        """
        image_column, label_column, error_column = self.columns
        if image_column not in batch:
            raise ValueError(f"rows have no column {image_column!r} but {sorted(batch)}; pass image_column.")
        cells = list(batch[image_column])
        labels, errors = [b""] * len(cells), [""] * len(cells)
        with pixel_limit(self.max_pixels):
            for job in self.segmenter.run(self.jobs(cells)):
                index = int(job.picture.name.name)
                if job.error is not None:
                    errors[index] = one_line(job.error)
                    continue
                file = io.BytesIO()
                write_grey(file, job.result.label_map.cpu().numpy(), len(self.names))
                labels[index] = file.getvalue()
        as_column = {label_column: np.array(labels, dtype=object), error_column: np.array(errors, dtype=object)}
        return {**batch, **as_column}

    def jobs(self, cells: list[Any]) -> Iterator[Job]:
        """Yield the pictures of a batch, read and resized, named by row."""
        for index, cell in enumerate(cells):
            job = Job(CellPicture(Path(f"row {index}"), PurePath(str(index)), cell))
            try:
                self.segmenter.load(job, self.max_pixels)
            except Exception as error:  # the others are still to be done
                job.error = error
            yield job
