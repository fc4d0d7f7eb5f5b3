# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Images and label maps to tensors, logits to label maps, without torchvision; all that the stock pipeline loads."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .compat_ldvc import ImageBackend, SemanticSegmentationPostProcessorOutput


# isort: split
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # the real one: see compat_ldvc
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType

from .configuration_ldvc import LDVCConfig
from .dense_settings_ldvc import LDVCDenseSettings  # noqa: F401 - compat_ldvc says why
from .options_ldvc import SAVED_BESIDE, check_options, check_supported, loading_options
from .pixels_ldvc import (
    ValueRange,
    array_to_rgb,
    channels_last,
    check_fractions,
    load_pixels,
    nearest_indices,  # noqa: F401
    read_source,
    resize_nearest,
    to_8_bits,
    to_array,
    to_rgb,
    with_channel_axis,
)


# Post-processing works on this many scores at a time, whatever the size of the picture.
SCORES_PER_BLOCK = 2**22
SORTED_FROM = 8  # best classes per pixel, from which on one sort of all takes less time than a maximum for each


class LDVCImageProcessorKwargs(ImagesKwargs, total=False):
    r"""Options of [`LDVCImageProcessor`] beside the library's.

    reduce_labels (`bool`, *optional*, defaults to `False`):
        Label maps count from 1 with 0 for background: 0 becomes `ignore_index`, every other id one less.
    do_reduce_labels (`bool`, *optional*):
        The library's name for `reduce_labels`.
    ignore_index (`int`, *optional*, defaults to 255):
        The label of unlabelled pixels.
    value_range (pair of `float`, *optional*):
        The values that are black and white, where images are no 8 bits; what lies beyond is cut off.
    """

    reduce_labels: bool
    do_reduce_labels: bool | None
    ignore_index: int
    value_range: tuple | list | None


class BilinearTaps(NamedTuple):
    """What pixels of a side are made of when it is resized bilinearly.

    Attributes:
        span: The source pixels that are read at all.
        before: (pixels,) int64, the source pixel before each pixel, counted from the start of the span.
        after: (pixels,) int64, the one after it.
        weights: (pixels,) float32, the share of the latter.
    """

    span: slice
    before: Tensor
    after: Tensor
    weights: Tensor


def bilinear_taps(source: int, target: int, part: slice) -> BilinearTaps:
    """Find where pixels of a side of `target` pixels lie on one of `source` pixels, as `F.interpolate` does.

    Args:
        source: Pixels to read from.
        target: Pixels of the whole resized side.
        part: The pixels of it that are wanted, start and stop given.
    """
    pixels = torch.arange(part.start, part.stop, dtype=torch.float32)
    positions = ((pixels + 0.5) * (source / target) - 0.5).clamp(min=0)
    before = positions.long().clamp(max=source - 1)
    after = (before + 1).clamp(max=source - 1)
    first = int(before[0])
    return BilinearTaps(slice(first, int(after[-1]) + 1), before - first, after - first, positions - before)


def blend(scores: Tensor, rows: BilinearTaps, columns: BilinearTaps) -> Tensor:
    """Resize bilinearly: (num_classes, height, width) scores of both spans to (num_classes, rows, columns)."""
    # Bilinear resizing is separable: widths first, at the few source rows, then rows.
    before, after, weights = (tensor.to(scores.device) for tensor in columns[1:])
    size = (*scores.shape[:2], -1)  # `index_select` on the last axis would take twenty times as long as `gather`
    scores = torch.lerp(scores.gather(2, before.expand(size)), scores.gather(2, after.expand(size)), weights)
    before, after, weights = (tensor.to(scores.device) for tensor in rows[1:])
    return torch.lerp(scores.index_select(1, before), scores.index_select(1, after), weights[:, None])


def upsampled_part(scores: Tensor, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """Upsample bilinearly, a part only: `F.interpolate(scores, size, align_corners=False)[:, rows, columns]`.

    Args:
        scores: (num_classes, height, width) float32.
        size: (height, width) of the whole target.
        rows: Rows of the target, start and stop given.
        columns: Columns of the target, start and stop given.
    """
    row_taps = bilinear_taps(scores.shape[1], size[0], rows)
    column_taps = bilinear_taps(scores.shape[2], size[1], columns)
    return blend(scores[:, row_taps.span, column_taps.span], row_taps, column_taps)


def upsampled_rows(scores: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Upsample bilinearly, a block of rows at a time: all of `F.interpolate(..., align_corners=False)`, never at once.

    Args:
        scores: (num_classes, height, width) float32.
        size: (height, width) of the target.

    Yields:
        Row slices of the target and their (num_classes, rows, width) values.
    """
    height, width = size
    block = max(1, SCORES_PER_BLOCK // (len(scores) * width))
    for start in range(0, height, block):
        rows = slice(start, min(start + block, height))
        yield rows, upsampled_part(scores, size, rows, slice(0, width))


def best_scores(block: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest scores of every pixel and their classes, best first; of equal scores the lower id comes first.

    `topk` leaves open which of equals it takes, so that the best class would depend on how many are asked for.

    Args:
        block: (num_classes, rows, columns) floats.
        count: 1 to num_classes.

    Returns:
        Two tensors, (count, rows, columns): scores, and int64 ids.
    """
    if count > SORTED_FROM:
        scores, ids = block.sort(dim=0, descending=True, stable=True)
        return scores[:count], ids[:count]
    # With classes as neighbours in memory, a maximum over many of them takes a quarter of the time.
    rest, found = block.flatten(1).T.contiguous(), []
    if count > 1:
        rest = rest.clamp(min=torch.finfo(rest.dtype).min)  # what was taken is lower still
    for rank in range(count):
        found.append(rest.max(dim=1))  # the first of equals
        if rank < count - 1:
            rest.scatter_(1, found[-1].indices[:, None], -torch.inf)
    scores, ids = (torch.stack(tensors) for tensors in zip(*found, strict=True))
    return scores.view(count, *block.shape[1:]), ids.view(count, *block.shape[1:])


class PixelClasses:
    """Label map, best classes and scores of one picture, filled block by block from the scores of its classes.

    Args:
        num_classes: Channels of each block.
        size: (height, width) of the picture.
        threshold: See `check_threshold`; pixels whose best class is below its own threshold become `other_label`, so
            that a threshold never turns one class into another.
        other_label: Id of "other"; `None` is `num_classes`.
        top_k: Keep so many best classes of every pixel, whatever the threshold; more than there are means all.
        keep_scores: Keep the scores of all classes, which takes `num_classes` floats per pixel.
        device: Where the results are kept.
        class_ids: (num_channels,) where a block holds more channels than classes: the class of each, whose score is
            that of its best channel, or -1 for what competes and comes back as `other_label`.

    Attributes:
        label_map: (height, width) int64.
        top_ids: (top_k, height, width) int64, best first, or `None`.
        top_scores: (top_k, height, width) float32, probabilities, or `None`.
        scores: (num_classes, height, width) float32, probabilities, or `None`.

    Raises:
        ValueError: If the threshold is no probability, or `top_k` is not positive.
        TypeError: If `other_label` is no integer.
    """

    def __init__(
        self,
        num_classes: int,
        size: tuple[int, int],
        threshold: float | Sequence[float] | Tensor | None = None,
        other_label: int | None = None,
        top_k: int | None = None,
        keep_scores: bool = False,
        device: torch.device | str = "cpu",
        class_ids: Sequence[int] | Tensor | None = None,
    ):
        if not isinstance(other_label, (int, np.integer, type(None))):
            raise TypeError(
                f"`other_label` is {other_label!r}; it is an integer id, by default one past the last class. Give "
                "that id a name with set_vocabulary(class_names, processor, other_label=...)."
            )
        if top_k is not None and (not isinstance(top_k, (int, np.integer)) or top_k < 1):
            raise ValueError(f"`top_k` is {top_k!r}; it is how many classes to keep per pixel, 1 or more.")
        self.threshold = None if threshold is None else check_threshold(threshold, num_classes).to(device)
        self.other_label = num_classes if other_label is None else other_label
        self.num_classes = num_classes
        self.class_ids = None if class_ids is None else torch.as_tensor(class_ids)
        top = None if top_k is None else min(top_k, num_classes)
        self.label_map = torch.empty(size, dtype=torch.int64, device=device)
        self.top_ids = None if top is None else torch.empty(top, *size, dtype=torch.int64, device=device)
        self.top_scores = None if top is None else torch.empty(top, *size, device=device)
        self.scores = torch.empty(num_classes, *size, device=device) if keep_scores else None

    def add(
        self,
        rows: slice,
        columns: slice,
        block: Tensor,
        to_probabilities: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Fill one block.

        Args:
            rows: Where it lies.
            columns: Where it lies.
            block: (num_classes, rows, columns), with `class_ids` (num_channels, rows, columns); the highest wins.
            to_probabilities: Element by element and rising; `None` where the block holds probabilities. Logits are
                compared as they are, since they do not saturate.
        """
        rival = None
        if self.class_ids is not None:
            block, rival = best_channels(block, self.class_ids.to(block.device), self.num_classes)
        best, labels = best_scores(block, 1 if self.top_ids is None else len(self.top_ids))
        is_other = None if rival is None else (rival > best[0]).to(self.label_map.device)
        if to_probabilities is not None and not (self.threshold is None and self.top_ids is None):
            best = to_probabilities(best)
        best, labels = best.to(self.label_map.device), labels.to(self.label_map.device)
        label_map = labels[0]
        if self.top_ids is not None:
            self.top_ids[:, rows, columns], self.top_scores[:, rows, columns] = labels, best
        if self.threshold is not None:
            threshold = self.threshold if self.threshold.dim() == 0 else self.threshold[label_map]
            # less an offset, scores may be negative; 0 is no threshold all the same
            label_map = label_map.masked_fill((best[0] < threshold) & (threshold > 0), self.other_label)
        if is_other is not None:
            label_map = label_map.masked_fill(is_other, self.other_label)
        self.label_map[rows, columns] = label_map
        if self.scores is not None:
            block = block if to_probabilities is None else to_probabilities(block)
            self.scores[:, rows, columns] = block.to(self.scores.device)

    def add_upsampled(self, logits: Tensor, offsets: Tensor | None = None) -> None:
        """Fill the whole picture from the logits of one pass of the model.

        Args:
            logits: (num_classes, grid_height, grid_width), upsampled bilinearly.
            offsets: (num_classes,), what the model takes from probabilities, or `None`.
        """
        for rows, block in upsampled_rows(logits.float(), tuple(self.label_map.shape)):
            if offsets is None:
                self.add(rows, slice(None), block, torch.sigmoid)
            else:
                self.add(rows, slice(None), block.sigmoid() - offsets.float()[:, None, None])

    def as_output(self) -> Tensor | SemanticSegmentationPostProcessorOutput:
        """The label map alone, or an object with everything that was asked for beside it."""
        data = {"segmentation_scores": self.scores, "top_ids": self.top_ids, "top_scores": self.top_scores}
        data = {name: value for name, value in data.items() if value is not None}
        if not data:
            return self.label_map
        return SemanticSegmentationPostProcessorOutput(data={"segmentation": self.label_map, **data})


def best_channels(block: Tensor, class_ids: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Score of each class, that of its best channel, and of what is no class.

    Args:
        block: (num_channels, rows, columns).
        class_ids: (num_channels,) from 0, or -1.
        num_classes: Classes.

    Returns:
        (num_classes, rows, columns), and (rows, columns) of the best channel with -1, minus infinity without one.
    """
    best = block.new_full((num_classes + 1, *block.shape[1:]), -torch.inf)
    places = class_ids.remainder(num_classes + 1)[:, None, None].expand_as(block)  # -1 goes to the last
    best.scatter_reduce_(0, places, block, "amax")
    return best[:-1], best[-1]


def check_threshold(threshold: float | Sequence[float] | Tensor, num_classes: int) -> Tensor:
    """Check a probability, or one per class, and return it as a float32 scalar or (num_classes,).

    Raises:
        ValueError: If it is none, or their number is not that of the classes.
    """
    try:
        values = torch.as_tensor(threshold, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`threshold` is {threshold!r}; it is a probability, 0 to 1, or a list of one per class."
        ) from error
    if values.dim() and values.shape != (num_classes,):
        raise ValueError(
            f"`threshold` has shape {tuple(values.shape)} for {num_classes} classes; give one probability, or one per "
            "class in their order."
        )
    is_wrong = ~((values >= 0) & (values <= 1))  # true for NaN
    if is_wrong.any():
        value = threshold if values.dim() == 0 else values[is_wrong][0].item()
        raise ValueError(f"`threshold` is {value}; it is a probability, 0 to 1.")
    return values


def read_outputs(outputs: Any) -> tuple[Tensor, Tensor | None]:
    """The (batch_size, num_classes, height, width) logits of a model's output, and what it takes from probabilities.

    Raises:
        TypeError: If it is no output.
        ValueError: If its logits have another shape.
    """
    if not isinstance(outputs, Mapping):
        raise TypeError(
            f"`outputs` is a {type(outputs).__name__}; pass the model's whole output, which also says what "
            "`seen_score_offset` takes from probabilities (not .logits, and no tuple of return_dict=False), or "
            '{"logits": logits}.'
        )
    logits = outputs.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        shape = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
        raise ValueError(
            f"the `logits` of `outputs` have {shape}; they are a tensor (batch_size, num_classes, height, width)."
        )
    return logits, outputs.get("class_score_offsets")


def best_classes(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample class scores and take the best class of every pixel, in memory that does not grow with the picture.

    Args:
        scores: (num_classes, height, width); logits or probabilities.
        size: (height, width) of the result.

    Returns:
        (height, width) int64.
    """
    pixels = PixelClasses(len(scores), size, device=scores.device)
    for rows, block in upsampled_rows(scores.float(), size):
        pixels.add(rows, slice(None), block)
    return pixels.label_map


class LDVCPostProcessing:
    """Logits back to label maps, for the image processor and the processor alike."""

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        threshold: float | Sequence[float] | Tensor | None = None,
        other_label: int | None = None,
        return_segmentation_scores: bool = False,
        top_k: int | None = None,
        class_ids: Sequence[int] | Tensor | None = None,
    ) -> list:
        """Turn the model's output into label maps.

        No (num_classes, height, width) float tensor is made at target size, unless scores are asked for.

        Args:
            outputs: Output of [`LDVCForSemanticSegmentation`].
            target_sizes: (height, width) per image, or a (batch_size, 2) tensor; `None` keeps the token grid.
            threshold: A probability, 0 to 1, or one per class; pixels whose best class is below its threshold become
                `other_label`.
            other_label: Id of "other"; `None` is one past the last class, see the model's `set_vocabulary`.
            return_segmentation_scores: Return probabilities too.
            top_k: Return so many best classes of every pixel too, at most all.
            class_ids: (num_channels,) class of each channel, where several make one class; -1 for channels that
                compete and are "other". `None` is a channel per class.

        Returns:
            Per image a (height, width) int64 tensor; with scores or `top_k` an object that has it as `segmentation`,
            beside `segmentation_scores`, (num_classes, height, width), or `top_ids` and `top_scores`, (top_k, height,
            width), best first, "other" not among them. Scores are probabilities less the offset of seen classes.

        Raises:
            ValueError: If sizes and images differ in number, a size is none, the threshold is no probability or not
                one per class, or `top_k` is not positive.
            TypeError: If `other_label` is no integer, or `outputs` no output of a model.
        """
        logits, offsets = read_outputs(outputs)
        if target_sizes is None:
            target_sizes = [logits.shape[-2:]] * len(logits)
        if len(target_sizes) != len(logits):
            raise ValueError(f"there are {len(target_sizes)} target sizes for {len(logits)} images; give one each.")
        num_classes, results = logits.shape[1] if class_ids is None else int(max(class_ids)) + 1, []
        for index, size in enumerate(target_sizes):
            size = tuple(int(side) for side in size)
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"a target size is {size}; it is (height, width) in pixels, at least 1 each.")
            pixels = PixelClasses(
                *(num_classes, size, threshold, other_label, top_k, return_segmentation_scores, logits.device),
                class_ids,
            )
            pixels.add_upsampled(logits[index], None if offsets is None else offsets[index])
            results.append(pixels.as_output())
        return results


class LDVCImageProcessor(LDVCPostProcessing, ImageBackend):
    """Images to normalised tensors of one size, label maps beside them, and logits back to label maps.

    Images are resized to `size`; by default a square of 512 pixels, aspect not kept, so that an image gives the same
    tensor alone and in any batch. `size={"shortest_edge": 512}` keeps the aspect: then the images of one call must
    come out alike. Normalisation is ImageNet's, as in ZegCLIP's published configurations, not CLIP's.

    Example:
    ```python
    >>> processor = LDVCImageProcessor(size={"height": 512, "width": 512})
    >>> batch = processor([image], segmentation_maps=[label_map], return_tensors="pt")  # pixel_values, labels
    ```
    """

    valid_kwargs = LDVCImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 512, "width": 512}  # noqa: RUF012
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    rescale_factor = 1 / 255
    reduce_labels = False
    ignore_index = 255
    value_range = None

    def __init__(self, **kwargs: Any):
        known = {*self.valid_kwargs.__annotations__, *SAVED_BESIDE}
        check_options([name for name in kwargs if kwargs[name] is not None], known, type(self).__name__)
        super().__init__(**kwargs)
        check_supported(vars(self))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As the library's; an argument that nothing knows raises a `TypeError`."""
        kwargs = loading_options(kwargs, cls.valid_kwargs.__annotations__, cls.__name__)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def _standardize_kwargs(self, do_reduce_labels: bool | None = None, **kwargs: Any) -> dict[str, Any]:
        """As the library's; its own name for `reduce_labels` is read as ours."""
        if do_reduce_labels is not None:
            kwargs["reduce_labels"] = do_reduce_labels
        return {**super()._standardize_kwargs(**kwargs), "do_reduce_labels": None}

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare images, and label maps beside them.

        Args:
            images: An image or a list: PIL, array or tensor (channels first or last), path or URL; any mode. Values
                are 8 bits, whole numbers from 0 to 255 or full 16 bits; others need `value_range`, or
                `do_rescale=False` for floats from 0 to 1.
            segmentation_maps: Label maps of the same sizes: PIL (P, L, I; not RGB) or integer arrays (height, width).
            kwargs: `size`, `value_range`, `reduce_labels`, `ignore_index`, `return_tensors` and the library's usual
                options.

        Returns:
            `pixel_values` (batch_size, 3, height, width) float32 and, with maps, `labels` (batch_size, height, width)
            int64; resized by nearest neighbour only.

        Raises:
            ValueError: If a picture cannot be read or is empty, nothing says what its values mean, a map is no integer
                map or not of its image's size, sizes differ after resizing and tensors were asked for, or pictures are
                to be cropped, padded or laid out otherwise than the model reads them.
            TypeError: If an option is unknown.
        """
        check_options(kwargs, [*self.valid_kwargs.__annotations__, "image_like_kwargs"], type(self).__name__)
        check_supported({**vars(self), **kwargs})
        return super().preprocess(images, segmentation_maps, **kwargs)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = True,
        value_range: ValueRange = None,
        name: str = "the image",
        **kwargs: Any,
    ) -> np.ndarray:
        """Bring one image to a (channels, height, width) array; of any mode or number of channels to 8-bit RGB.

        Without `do_rescale`, arrays keep their numbers; without `do_convert_rgb`, images keep their channels.

        Raises:
            ValueError: If the image is damaged, empty or not finite, or its channels or its range cannot be told.
        """
        if isinstance(image, Image.Image):
            image = to_rgb(image, value_range) if do_convert_rgb else load_pixels(image)
            array = np.asarray(image)
            array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        elif do_convert_rgb and do_rescale:
            array = np.moveaxis(np.asarray(array_to_rgb(image, input_data_format, value_range, name)), -1, 0)
        else:
            array = np.moveaxis(channels_last(to_array(image), input_data_format), -1, 0)
            if do_convert_rgb and len(array) != 3:
                if len(array) != 1:
                    raise ValueError(
                        f"{name} has {len(array)} channels; without `do_rescale`, pass 3 of RGB or 1 of grey."
                    )
                array = array.repeat(3, axis=0)
        if 0 in array.shape:
            raise ValueError(f"an image has shape {array.shape}; it needs at least one pixel.")
        return array

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list:
        """Make a flat list; a (height, width) array among `images` is a grey picture.

        Raises:
            ValueError: If it holds something that is no image.
        """
        images = self.fetch_images(images)
        if expected_ndims == 3:
            is_list = isinstance(images, (list, tuple))
            images = [with_channel_axis(image) for image in (images if is_list else [images])]
            images = images if is_list else images[0]
        try:
            return super()._prepare_images_structure(images, expected_ndims)
        except (ValueError, TypeError) as error:
            kind = type(images[0] if isinstance(images, (list, tuple)) and images else images).__name__
            raise ValueError(
                f"a {kind} is no image; give PIL images, arrays, tensors, paths or URLs, alone or in a list."
            ) from error

    def load_rgb(
        self,
        image: Any,
        timeout: float | None = None,
        value_range: ValueRange = None,
        input_data_format: str | ChannelDimension | None = None,
    ) -> Image.Image:
        """Open one picture of any kind that a call takes, as upright 8-bit RGB.

        Args:
            image: PIL image, array or tensor, path or URL.
            timeout: Seconds to wait for a URL; `None` waits for ever.
            value_range: The values that are black and white, where they are not known; `None` is the processor's own.
            input_data_format: `"channels_first"` or `"channels_last"`, for arrays whose shape does not say it.

        Raises:
            ValueError: If it cannot be read as one picture.
        """
        value_range = self.value_range if value_range is None else value_range
        image = self.fetch_images(image, timeout)
        if isinstance(image, Image.Image):
            return to_rgb(image, value_range)
        images = self._prepare_images_structure(image)
        if len(images) != 1:
            raise ValueError(f"there are {len(images)} pictures where one is expected; give them one at a time.")
        return array_to_rgb(images[0], input_data_format or self.input_data_format, value_range)

    def prepare_rgb(self, picture: Image.Image) -> Tensor:
        """The (3, height, width) `pixel_values` of what `load_rgb` gives; its range has been dealt with."""
        return self(picture, value_range=(0, 255), return_tensors="pt")["pixel_values"][0]

    def fetch_images(self, image_url_or_urls: Any, timeout: float | None = None) -> Any:
        """Open paths and URLs, in the file's own mode, so that palette label maps keep their ids.

        Raises:
            ValueError: If one cannot be read as an image.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image, timeout) for image in image_url_or_urls]
        if not isinstance(image_url_or_urls, (str, Path)):
            return image_url_or_urls
        source = image_url_or_urls
        if os.path.isdir(source):
            raise ValueError(f"{str(source)[:200]!r} is a folder; give its files one by one, or use `ldvc segment`.")
        try:
            return Image.open(source if os.path.isfile(source) else io.BytesIO(read_source(str(source), timeout)))
        except Exception as error:  # of PIL, or of the network
            reason = f"{str(error)[:200]}; give a PNG, JPEG or another file that Pillow reads."
            if isinstance(error, Image.DecompressionBombError):
                reason = f"{str(error)[:200]} Resize it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
            if not os.path.exists(source) and not str(source).startswith(("http://", "https://", "data:")):
                reason = "no such file; check the path."
            raise ValueError(f"{str(source)[:200]!r} cannot be read as an image: {reason}") from error

    def _preprocess_image_like_inputs(
        self,
        images: Any,
        segmentation_maps: Any,
        do_convert_rgb: bool | None,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Resize and normalise images; resize label maps by nearest neighbour.

        Raises:
            ValueError: If there are no images, nothing says what their values mean, or sizes differ and a tensor was
                asked for.
        """
        value_range, do_rescale = kwargs.pop("value_range"), kwargs.get("do_rescale")
        if value_range is not None and not do_rescale:
            raise ValueError("`value_range` and `do_rescale=False` both say what values mean; give one of them.")
        images = [
            self.process_image(image, do_convert_rgb, input_data_format, do_rescale, value_range, f"image {index}")
            for index, image in enumerate(self._prepare_images_structure(images))
        ]
        if not images:
            raise ValueError("`images` is an empty list; give at least one image.")
        for index, array in enumerate(images):
            if do_rescale:
                images[index] = to_8_bits(array, value_range if not do_convert_rgb else None, f"image {index}")
            elif kwargs.get("do_normalize"):
                check_fractions(array, f"image {index}")
        reduce_labels, ignore_index = kwargs.pop("reduce_labels"), kwargs.pop("ignore_index")
        pixel_values = self._preprocess(images, return_tensors=None, **kwargs)["pixel_values"]
        sizes = {array.shape[1:] for array in pixel_values}
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"after resizing, the images have sizes {sorted(sizes)}, which no tensor holds; pass them one at a "
                "time or use a size of fixed height and width."
            )
        data = {"pixel_values": [array.astype(np.float32, copy=False) for array in pixel_values]}
        if segmentation_maps is not None:
            maps = self._prepare_label_maps(segmentation_maps, images, reduce_labels, ignore_index)
            data["labels"] = [
                resize_nearest(label_map, array.shape[1:]) for label_map, array in zip(maps, pixel_values, strict=True)
            ]
        return BatchFeature(data=data, tensor_type=TensorType(return_tensors) if return_tensors else None)

    def _prepare_label_maps(
        self, segmentation_maps: Any, images: list[np.ndarray], reduce_labels: bool, ignore_index: int
    ) -> list[np.ndarray]:
        """Read label maps as (height, width) int64 and check them against their images.

        Raises:
            ValueError: If a map is no integer map, or not of its image's size.
        """
        prepared = self._prepare_image_like_inputs(
            images=segmentation_maps,
            expected_ndims=2,
            do_convert_rgb=False,
            input_data_format=ChannelDimension.FIRST,
        )
        if len(prepared) != len(images):
            raise ValueError(f"there are {len(images)} images and {len(prepared)} segmentation maps; give one each.")
        maps = []
        for index, (array, image) in enumerate(zip(prepared, images, strict=True)):
            if len(array) != 1 or array.dtype.kind not in "iub":
                raise ValueError(
                    f"segmentation map {index} has {len(array)} channels of {array.dtype}; it must hold one integer "
                    "id per pixel (a palette or grey PNG, never RGB colours)."
                )
            if array.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"segmentation map {index} is {array.shape[1:]} pixels (height, width), its image "
                    f"{image.shape[1:]}; they must be of one size."
                )
            label_map = array[0].astype(np.int64)
            if reduce_labels:
                is_unlabelled = (label_map == 0) | (label_map == ignore_index)
                label_map = np.where(is_unlabelled, ignore_index, label_map - 1)
            maps.append(label_map)
        return maps


LDVCImageProcessor.register_for_auto_class()
if not __name__.startswith("transformers_modules."):  # remote code is found through `auto_map`
    AutoImageProcessor.register(LDVCConfig, image_processor_classes={"pil": LDVCImageProcessor}, exist_ok=True)

__all__ = [
    "LDVCImageProcessor",
    "LDVCImageProcessorKwargs",
    "LDVCPostProcessing",
    "PixelClasses",
    "best_classes",
    "to_rgb",
]
