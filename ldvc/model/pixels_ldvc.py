# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""What the numbers of a picture mean: modes, channels and value ranges; pictures of any kind to upright 8-bit RGB.

One rule for every way in. Which values are black and which are white is known of 8 bits, of 16 bits that are used to
the top, of truth values and of whole numbers from 0 to 255; of everything else the caller says it (`value_range`), or
the picture is refused. Nothing is guessed from the largest value, and nothing is cut off unless that was asked for.
"""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageOps


if TYPE_CHECKING:  # the runtime without PyTorch and Transformers reads pictures by this file too
    from torch import Tensor
    from transformers.image_utils import ChannelDimension

logger = logging.getLogger(__name__)

# The values that are black and white; what lies beyond is cut off. `None` is what the picture itself says.
ValueRange = Sequence[float] | None

NUMBERS_OF_CHANNELS = (1, 2, 3, 4)  # grey, grey with alpha, RGB, RGB with alpha
WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def load_pixels(image: Image.Image) -> Image.Image:
    """Read the pixels of a picture now, so that a damaged file is known by its name.

    Raises:
        ValueError: If the file behind the picture cannot be read.
    """
    try:
        image.load()
    except Exception as error:  # decoders raise nearly anything at damaged files
        name = getattr(image, "filename", "") or "the image"
        raise ValueError(f"{name} cannot be decoded ({error}); it is truncated or damaged, copy it again.") from error
    return image


def to_rgb(image: Image.Image, value_range: ValueRange = None) -> Image.Image:
    """Bring a picture of any mode to upright 8-bit RGB.

    Args:
        image: Any PIL image: L, LA, P, RGBA, CMYK, 16-bit, float, ...
        value_range: The values that are black and white, for modes of more than 8 bits whose range is not known; of
            modes of 8 bits, the levels (0 to 255) that are stretched to full range.

    Returns:
        A picture in mode RGB, EXIF orientation applied, transparency on white; 16 bits are scaled by their range
        (65,535), floats from 0 to 1 by 1, never by their content.

    Raises:
        ValueError: If the file behind the picture cannot be read, or nothing says what its values mean.
    """
    name = getattr(image, "filename", "") or "the image"
    image = ImageOps.exif_transpose(load_pixels(image))
    if image.mode in WIDE_MODES:
        values = np.asarray(image)
        if image.mode != "F" and values.min(initial=0) >= 0 and values.max(initial=0) <= 65535:
            values = values.astype(np.uint16)  # Pillow opens some files of 16 bits in mode I, of 32
        if image.mode == "F" and value_range is None and values.min(initial=0) >= 0 and values.max(initial=0) <= 1:
            value_range = (0, 1)  # what picture files of floats mean; an array may also have been divided before
        return Image.fromarray(to_8_bits(values, value_range, name)).convert("RGB")
    image = on_white(image, name)
    return image if value_range is None else Image.fromarray(to_8_bits(np.asarray(image), value_range, name))


def on_white(image: Image.Image, name: str) -> Image.Image:
    """Put a picture of at most 8 bits and any mode on white, in mode RGB; warns where alpha seems to be a band."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if not is_transparency(np.asarray(image.getchannel("A"))):
            logger.warning(
                f"{name} has a fourth channel, which is read as transparency, yet most of its pixels are neither "
                "clear nor solid; if it is another band, such as near infrared, give the three others alone."
            )
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # `exif_transpose` has made a copy


def is_transparency(alpha: np.ndarray) -> bool:
    """Whether a (height, width) channel of 8 bits can be transparency: even, or clear or solid in half of its pixels.

    A band of a satellite picture hardly ever is; neither is a mask of 0 and 1, which would clear all.
    """
    if alpha.size == 0 or (alpha == alpha.flat[0]).all():
        return alpha.size == 0 or alpha.flat[0] != 1
    return 2 * ((alpha == 0) | (alpha == 255)).sum() >= alpha.size


def to_array(image: np.ndarray | Tensor) -> np.ndarray:
    """An array of numbers, in any shape, from a tensor on any device and in any dtype.

    Raises:
        ValueError: If it holds no real numbers, or NaN or infinite ones.
    """
    if hasattr(image, "detach"):  # a tensor
        image = image.detach().cpu()
        image = (image.float() if "bfloat16" in str(image.dtype) else image).numpy()
    if image.dtype.kind not in "biuf":
        raise ValueError(f"an image is an array of {image.dtype}; pass numbers, such as uint8 from 0 to 255.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError("an image holds NaN or infinite pixels; clean it first.")
    return image


def channels_last(array: np.ndarray, input_data_format: str | ChannelDimension | None = None) -> np.ndarray:
    """Bring a picture to (height, width, channels).

    Args:
        array: (height, width), or with 1 to 4 channels on the first or last axis.
        input_data_format: Which axis that is; needed where both could be, as in a strip of three rows.

    Raises:
        ValueError: If no axis can hold the channels, both can, or the one that is named cannot.
    """
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise ValueError(
            f"an image of shape {array.shape} cannot be read; pass a PIL image or an array of 1, 3 or 4 channels on "
            "its first or last axis."
        )
    could_be = {"channels_first": array.shape[0], "channels_last": array.shape[-1]}
    could_be = {axis: number for axis, number in could_be.items() if number in NUMBERS_OF_CHANNELS}
    if input_data_format is None:
        if not could_be:
            raise ValueError(
                f"an image of shape {array.shape} cannot be read; pass a PIL image or an array of 1, 3 or 4 channels "
                "on its first or last axis."
            )
        if len(could_be) == 2:
            raise ValueError(
                f"an image of shape {array.shape} may have its channels on the first axis or on the last; say which "
                "with input_data_format='channels_first' or 'channels_last', or pass a PIL image."
            )
        (input_data_format,) = could_be
    axis = str(getattr(input_data_format, "value", input_data_format))
    if axis not in could_be:
        number = array.shape[0 if axis == "channels_first" else -1]
        raise ValueError(
            f"an image of shape {array.shape} has {number} channels by `input_data_format` {axis!r}; leave that out, "
            "or name the axis that has 1, 3 or 4."
        )
    return np.moveaxis(array, 0, -1) if axis == "channels_first" else array


def array_to_rgb(
    array: np.ndarray | Tensor,
    input_data_format: str | ChannelDimension | None = None,
    value_range: ValueRange = None,
    name: str = "the image",
) -> Image.Image:
    """Bring an array, (height, width) with or without channels, to 8-bit RGB, as `to_rgb` does a picture.

    Args:
        array: See `channels_last`.
        input_data_format: See `channels_last`.
        value_range: See `find_range`.
        name: What it is called in errors.

    Raises:
        ValueError: If its channels, its range or its transparency are not known.
    """
    pixels = to_8_bits(channels_last(to_array(array), input_data_format), value_range, name)
    if 0 in pixels.shape:
        raise ValueError(f"an image has shape {(pixels.shape[-1], *pixels.shape[:-1])}; it needs at least one pixel.")
    channels = [Image.fromarray(np.ascontiguousarray(pixels[..., index])) for index in range(pixels.shape[-1])]
    if len(channels) in (2, 4) and not is_transparency(pixels[..., -1]):
        raise ValueError(
            f"{name} has {len(channels)} channels, the last of which is neither clear nor solid in most of its "
            "pixels; if it is no transparency but another band, pass the others alone, such as array[..., :3]."
        )
    return on_white(Image.merge(("L", "LA", "RGB", "RGBA")[len(channels) - 1], channels), name)


def to_8_bits(values: np.ndarray, value_range: ValueRange = None, name: str = "the image") -> np.ndarray:
    """Scale numbers to 0 to 255.

    Args:
        values: Finite numbers, any shape.
        value_range: See `find_range`.
        name: See `find_range`.

    Returns:
        uint8, same shape.

    Raises:
        ValueError: See `find_range` and `check_value_range`.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinite pixels; clean it first.")
    low, high = find_range(values, name) if value_range is None else check_value_range(value_range)
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    return (np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)


def check_value_range(value_range: ValueRange) -> tuple[float, float]:
    """Check what a caller says of black and white.

    Raises:
        ValueError: If it is no two finite numbers, the first less than the second.
    """
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(
            f"`value_range` is {value_range!r}; it is the values that are black and white, such as (0, 1) or "
            "(0, 4095), the first below the second."
        )
    return low, high


def find_range(values: np.ndarray, name: str = "the image") -> tuple[float, float]:
    """The values of a picture that are black and white, where they are known.

    Args:
        values: Finite numbers, any shape.
        name: What it is called in errors.

    Raises:
        ValueError: If they are not: fractions, negative numbers, 16 bits of which only the lower are used, and whole
            numbers beyond 255 or none beyond 1; names the values and the remedy.
    """
    if values.dtype == np.uint8 or not values.any():  # black is black in any range
        return 0, 255
    if values.dtype == bool:
        return 0, 1
    low, high = values.min(), values.max()
    # many cameras and microscopes put 10 or 12 bits into 16; 257 times 8 bits is how programs widen them
    if values.dtype == np.uint16 and (high >= 2**15 or not (values % 257).any()):
        return 0, 65535
    is_whole = values.dtype.kind in "iu" or (values == np.round(values)).all()
    if values.dtype != np.uint16 and is_whole and low >= 0 and 1 < high <= 255:
        return 0, 255
    kind = "floats" if values.dtype.kind == "f" else f"{values.dtype} numbers"
    hint = " (the processor takes do_rescale=False too)" if low >= 0 and high <= 1 else ""
    if low < 0 and kind == "floats":
        hint = " (the processor takes normalised values with do_rescale=False, do_normalize=False)"
    raise ValueError(
        f"{name} holds {kind} from {low:.5g} to {high:.5g}, and nothing says which values are black and white; say it "
        f"with value_range=(low, high), such as (0, 1) or (0, 4095){hint}, on the command line with --value-range, or "
        "give 8 bits, 0 to 255."
    )


def with_channel_axis(image: Any) -> Any:
    """Give a (height, width) array its one channel, on the side where its shape leaves no doubt; others pass."""
    if getattr(image, "ndim", 3) != 2:
        return image
    return image[None] if image.shape[1] not in NUMBERS_OF_CHANNELS else image[..., None]


def check_fractions(array: np.ndarray, name: str) -> None:
    """Check that an image that is to be normalised but not rescaled holds values from 0 to 1.

    Raises:
        ValueError: If not.
    """
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"{name} holds values from {array.min():.5g} to {array.max():.5g}, but do_rescale=False says that all lie "
            "between 0 and 1; leave it out, pass value_range=(0, 1) in its place to cut them off, or "
            "do_normalize=False where they are normalised already."
        )


def resize_nearest(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map by picking nearest pixels, equal to PIL's NEAREST, for ids of any size.

    Args:
        label_map: (height, width) integers.
        size: (height, width) of the result.
    """
    rows, columns = (nearest_indices(source, target) for source, target in zip(label_map.shape, size, strict=True))
    return label_map[rows[:, None], columns]


def nearest_indices(source: int, target: int) -> np.ndarray:
    """Pixels of a side of `source` pixels that PIL's NEAREST picks for `target` pixels: (target,) int64."""
    step = np.full(target, source / target)
    # PIL adds up steps from half a step on; only the same running sum rounds ties as PIL does.
    return np.cumsum(np.concatenate([step[:1] / 2, step[1:]])).astype(np.int64)


# ---- windows and blocks of a picture


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last window ends flush with the border."""
    if window >= side:
        return [0]
    count = -(-(side - window) // stride) + 1
    return [min(index * stride, side - window) for index in range(count)]


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Bring the shorter side of a picture to so many pixels, aspect kept; 0 keeps the size."""
    if not short_side:
        return image
    scale = short_side / min(image.size)
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)


def overlap(part: slice, start: int, length: int) -> tuple[slice, slice] | None:
    """Where the window of `length` pixels from `start` meets a part of the side, or `None` where it does not.

    Returns:
        The pixels in common, counted in the window and counted in the part.
    """
    first, last = max(part.start, start), min(part.stop, start + length)
    if first >= last:
        return None
    return slice(first - start, last - start), slice(first - part.start, last - part.start)


def image_blocks(size: tuple[int, int], pixels_per_block: int) -> Iterator[tuple[slice, slice]]:
    """Cut a picture of (height, width) pixels into blocks, from top to bottom: rows and columns of each.

    Blocks are about square, so that each meets few windows.
    """
    height, width = size
    num_columns = min(width, max(1, math.isqrt(pixels_per_block)))
    num_rows = max(1, pixels_per_block // num_columns)
    for top in range(0, height, num_rows):
        for left in range(0, width, num_columns):
            yield slice(top, min(top + num_rows, height)), slice(left, min(left + num_columns, width))


# ---- addresses


def read_source(source: str, timeout: float | None = None) -> bytes:
    """Bytes behind a URL, a data URL or base64 text; the library's `load_image` would drop mode and transparency.

    Args:
        source: Where.
        timeout: Seconds to wait for a server.
    """
    if source.startswith(("http://", "https://")):
        with urlopen(source, timeout=timeout) as answer:
            return answer.read()
    return base64.decodebytes((source.partition(",")[2] if source.startswith("data:") else source).encode())


__all__ = [
    "ValueRange",
    "array_to_rgb",
    "channels_last",
    "check_fractions",
    "check_value_range",
    "find_range",
    "image_blocks",
    "load_pixels",
    "nearest_indices",
    "overlap",
    "read_source",
    "resize_nearest",
    "resize_short_side",
    "to_8_bits",
    "to_array",
    "to_rgb",
    "window_starts",
    "with_channel_axis",
]
