"""Pictures to the numbers that a program reads, equal to the last bit to those of `LDVCImageProcessor`.

A pixel's value depends on its 8 bits and its channel alone: 256 values per channel are computed once, with the
arithmetic of whichever way they replace, and looked up.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldvc.model.options_ldvc import InferenceSettings
from ldvc.model.pixels_ldvc import ValueRange, array_to_rgb, read_source, resize_short_side, to_rgb


__all__ = ["PictureReader", "PreparedPicture"]


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as a program takes it.

    Attributes:
        size: (height, width) of the upright picture.
        pixels: (3, height, width) normalised pixels at the program's own size or, where the settings cut windows, the
            upright RGB picture at the size that they are cut from.
    """

    size: tuple[int, int]
    pixels: np.ndarray | Image.Image


class PictureReader:
    """Opens pictures and makes pixels of them.

    Args:
        image: What the image processor of the exported model does: `size`, `resample`, `mean`, `std`,
            `rescale_factor`, `value_range`.

    Raises:
        ValueError: If it does something else than to resize, rescale and normalise.
    """

    def __init__(self, image: Mapping[str, Any]):
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if not image.get(step, True):
                raise ValueError(
                    f"the image processor has {step}=False, which this runtime does not know; use PyTorch."
                )
        self.size, self.resample = image["size"], image.get("resample", Image.Resampling.BILINEAR)
        self.value_range = image.get("value_range")
        mean, std = np.float32(image["mean"]), np.float32(image["std"])
        values = np.arange(256)[:, None]
        factor = image.get("rescale_factor", 1 / 255)
        # As the library's rescale and normalize, and as `normalise` of ldvc/model/inference_ldvc.py: (3, 256).
        self._whole = (((values.astype(np.float64) * factor).astype(np.float32) - mean) / std).T.copy()
        self._window = ((values.astype(np.float32) / 255 - mean) / std).T.copy()

    def open(self, image: Any, value_range: ValueRange = None, input_data_format: str | None = None) -> Image.Image:
        """Open one picture as upright 8-bit RGB.

        Args:
            image: PIL image, array, path or URL.
            value_range: The values that are black and white; `None` is the exported processor's own.
            input_data_format: `"channels_first"` or `"channels_last"`, for arrays whose shape does not say it.

        Raises:
            ValueError: If it cannot be read, or nothing says what its values mean.
        """
        value_range = self.value_range if value_range is None else value_range
        if isinstance(image, (str, Path)):
            try:
                image = Image.open(image if Path(image).is_file() else io.BytesIO(read_source(str(image))))
            except Exception as error:  # of PIL, or of the network
                raise ValueError(
                    f"{str(image)[:200]!r} cannot be read as an image: {str(error)[:200]}; give a PNG, JPEG or "
                    "another file that Pillow reads."
                ) from error
        if isinstance(image, Image.Image):
            return to_rgb(image, value_range)
        return array_to_rgb(image, input_data_format, value_range)

    def prepare(self, picture: Image.Image, settings: InferenceSettings | None = None) -> PreparedPicture:
        """Resize a picture that is open, upright and RGB, and without settings normalise it."""
        size = (picture.height, picture.width)
        if settings is not None:
            return PreparedPicture(size, resize_short_side(picture, settings.short_side))
        height, width = self.target_size(*size)
        return PreparedPicture(size, look_up(self._whole, picture.resize((width, height), self.resample)))

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture of so many pixels is resized to.

        Raises:
            ValueError: If the exported processor's size is of another kind.
        """
        if {"height", "width"} <= set(self.size):
            return self.size["height"], self.size["width"]
        if set(self.size) == {"shortest_edge"}:  # as `get_resize_output_image_size` of the library
            short, longest = (
                self.size["shortest_edge"],
                int(self.size["shortest_edge"] * max(height, width) / min(height, width)),
            )
            return (longest, short) if width <= height else (short, longest)
        raise ValueError(
            f"the image processor has the size {self.size!r}, which this runtime does not know; use PyTorch."
        )

    def normalise(self, window: Image.Image) -> np.ndarray:
        """Make an RGB picture (3, height, width) float32 normalised pixels."""
        return look_up(self._window, window)


def look_up(table: np.ndarray, picture: Image.Image) -> np.ndarray:
    """(3, 256) values of every channel at the pixels of an RGB picture: (3, height, width) float32."""
    return np.stack([values[np.asarray(channel)] for values, channel in zip(table, picture.split(), strict=True)])
