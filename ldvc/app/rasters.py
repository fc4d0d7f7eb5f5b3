"""Rasters too large for memory: windows from the file, through the model, to the file, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ldvc.masks.formats import OutputFolder
from ldvc.masks.geo import Block
from ldvc.masks.rasters import RasterPicture, RasterReader
from ldvc.model.image_processing_ldvc import PixelClasses
from ldvc.model.inference_ldvc import open_windows, resized_blocks
from ldvc.model.segmenter_ldvc import seen_queries


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


@torch.no_grad()
def segment_raster(picture: RasterPicture, segmenter: Segmenter, folder: OutputFolder) -> None:
    """Segment and save a raster, in memory that grows with its width and the window only."""
    with picture.opened() as reader:
        folder.save_blocks(picture, reader.size, raster_blocks(reader, segmenter))


def raster_blocks(reader: RasterReader, segmenter: Segmenter) -> Iterator[Block]:
    """Yield the label map of a raster from top to bottom."""
    names, rivals = segmenter.names, segmenter.rivals
    class_ids = rivals.class_ids(len(segmenter.named))
    seen = seen_queries(segmenter.model, segmenter.classes or segmenter.named, rivals)
    arguments = (segmenter.class_embeds, segmenter.settings, False, seen)
    num_channels = len(names) if class_ids is None else len(class_ids)
    with open_windows(segmenter.model, segmenter.processor, RasterImage(reader), *arguments) as scores:
        for rows, columns, block in resized_blocks(scores, reader.size, num_channels):
            pixels = PixelClasses(
                len(names), tuple(block.shape[1:]), segmenter.thresholds, top_k=1, class_ids=class_ids
            )
            pixels.add(slice(None), slice(None), block)
            ids, best = pixels.label_map.numpy(), pixels.top_scores[0].numpy()
            yield Block(rows, columns, ids, best, reader.is_valid(rows, columns))
