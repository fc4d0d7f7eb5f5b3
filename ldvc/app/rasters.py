"""Rasters too large for memory: windows from the file, through the model, to the file, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldvc.masks.formats import OutputFolder
from ldvc.masks.geo import Block
from ldvc.masks.rasters import RasterPicture, RasterReader


if TYPE_CHECKING:
    from ldvc.masks.files import Picture

Segmenter = Any  # that of ldvc/app/batch.py, which imports this module


class RasterImage:
    """As much of a Pillow picture as cutting windows takes, read from an open raster.

    Args:
        reader: Open.
    """

    def __init__(self, reader: RasterReader):
        self.reader, (self.height, self.width) = reader, reader.size

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Read left, top, right and bottom."""
        left, top, right, bottom = box
        return Image.fromarray(self.reader.read(slice(top, bottom), slice(left, right)))


def is_streamed(picture: Picture, segmenter: Segmenter, folder: OutputFolder) -> bool:
    """Whether a picture need not be held whole: a raster, cut into windows at its own size, for writers of blocks."""
    settings = segmenter.settings
    is_cut = settings is not None and settings.window > 0 and settings.short_side == 0
    return isinstance(picture, RasterPicture) and is_cut and folder.takes_blocks


def segment_raster(picture: RasterPicture, segmenter: Segmenter, folder: OutputFolder) -> None:
    """Segment and save a raster, in memory that grows with its width and the window only."""
    with picture.opened() as reader:
        folder.save_blocks(picture, reader.size, raster_blocks(reader, segmenter))


def raster_blocks(reader: RasterReader, segmenter: Segmenter) -> Iterator[Block]:
    """Yield the label map of a raster from top to bottom."""
    blocks = segmenter.way.read_blocks(RasterImage(reader), reader.size, segmenter.names, segmenter)
    for rows, columns, ids, best in blocks:
        yield Block(rows, columns, ids, best, reader.is_valid(rows, columns))
