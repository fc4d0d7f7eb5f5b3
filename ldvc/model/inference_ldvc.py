# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Class scores of whole pictures: resizing, sliding windows, averaging; and `segment`, one call for one picture.

Source: the inference of ZegCLIP on mmsegmentation 0.x: short side to 512 pixels, windows of 512 every 426 pixels, the
last one flush with the border, sigmoid probabilities averaged where windows overlap. Departure: pictures are resized
with antialiasing (Pillow) in place of OpenCV's bilinear, as in training; a resized picture is then free of moire.

Memory: a window leaves behind its logits on the token grid, some 256 times fewer numbers than its scores, and these
only until the picture has been read past it. Scores are upsampled from there, a block at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from transformers.utils import logging

from .image_processing_ldvc import (
    SCORES_PER_BLOCK,
    PixelClasses,
    best_classes,
    bilinear_taps,
    blend,
    to_rgb,
    upsampled_part,
)
from .options_ldvc import ClassNames, InferenceSettings, Rivals, read_classes, read_rivals, threshold_per_class
from .pixels_ldvc import ValueRange, image_blocks, overlap, resize_short_side, window_starts
from .processing_ldvc import LDVCProcessor
from .segmenter_ldvc import (
    Segmenter,
    ask,
    check_eval_mode,
    check_text_tower,
    compute_device,
    default_vocabulary,
    own_names,
    seen_queries,
)


# Class names go through the text tower this many at a time, so that memory does not grow with their number.
NAMES_PER_CALL = 256

Refine = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# A probability for all classes, one per class in order, or some by name.
Threshold = float | Sequence[float] | Mapping[str, float] | Tensor | None


@dataclass(frozen=True)
class Segmentation:
    """What `segment` finds in a picture; every tensor is on the CPU and has the size of the upright picture.

    Attributes:
        label_map: (height, width) int64, positions in `class_names`.
        class_names: In the order of the ids; with a threshold the name of "other" comes last.
        scores: (num_classes, height, width) float32 probabilities, "other" not among them; `None` if not asked for.
        top_ids: (top_k, height, width) int64, the best classes of every pixel, best first; `None` if not asked for.
        top_scores: (top_k, height, width) float32, their probabilities.
    """

    label_map: Tensor
    class_names: list[str]
    scores: Tensor | None = None
    top_ids: Tensor | None = None
    top_scores: Tensor | None = None


def grouped(keys: Iterable) -> Iterator[tuple[Any, list[int]]]:
    """Yield each distinct key with the positions that hold it."""
    groups: dict[Any, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    yield from groups.items()


# ---- pictures and windows


def normalise(image: PIL.Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Make an RGB picture a (3, height, width) float32 tensor of normalised pixels."""
    pixels = (np.asarray(image, dtype=np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous()


def prepare_image(
    image: PIL.Image.Image, settings: InferenceSettings, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Resize and normalise a picture.

    Args:
        image: RGB, upright; see `to_rgb`.
        settings: Decides the size.
        mean: Per RGB channel, as a fraction of full range.
        std: Per RGB channel, as a fraction of full range.

    Returns:
        (3, height, width) float32.
    """
    return normalise(resize_short_side(image, settings.short_side), mean, std)


class WindowScores:
    """Class probabilities of a picture, to be read from top to bottom.

    Windows go through the model when they are first needed and are dropped when the reading has passed them.

    Args:
        model: Called as `model(pixel_values=..., class_embeds=...)`, gives `logits`.
        read_window: From the top and left pixel of a window to its (3, height, width) normalised pixels.
        size: (height, width) of the picture.
        class_embeds: (num_classes, projection_dim), or `None` for the model's default vocabulary.
        settings: Window, stride and batch size; a window of 0 is the whole picture.
        show_progress: Draw a progress bar over the windows.
        seen_class_mask: (num_classes,) for the model, where it is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        read_window: Callable[[int, int], Tensor],
        size: tuple[int, int],
        class_embeds: Tensor | None,
        settings: InferenceSettings,
        show_progress: bool = False,
        seen_class_mask: Tensor | None = None,
    ):
        self.size = size
        self.window_size = tuple(min(settings.window or side, side) for side in size)
        tops, lefts = (window_starts(size[axis], self.window_size[axis], settings.stride) for axis in (0, 1))
        self._waiting = [(top, left) for top in tops for left in lefts]
        self._scored: dict[tuple[int, int], tuple[Tensor, Tensor | None]] = {}
        self._model, self._read_window = model, read_window
        self._classes = {"class_embeds": class_embeds}
        if seen_class_mask is not None:
            self._classes["seen_class_mask"] = seen_class_mask
        self._batch_size = settings.window_batch_size
        self._progress = logging.tqdm(total=len(self._waiting), desc="windows", disable=not show_progress)

    def __enter__(self) -> "WindowScores":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()

    @staticmethod
    def activate(logits: Tensor) -> Tensor:
        """Turn upsampled logits into what is averaged over windows, in place: (num_classes, rows, columns)."""
        return logits.sigmoid_()

    def read(self, rows: slice, columns: slice) -> Tensor:
        """Return the scores of one block, averaged over windows.

        Args:
            rows: Must not start above the rows of an earlier call.
            columns: Any.

        Returns:
            (num_classes, rows, columns) float32: probabilities, less the offset of seen classes where the model has
            one.
        """
        height, width = self.window_size
        while self._waiting and self._waiting[0][0] < rows.stop:
            self._run_windows([(self, corner) for corner in self._waiting[: self._batch_size]])
        for corner in [corner for corner in self._scored if corner[0] + height <= rows.start]:
            del self._scored[corner]
        logits = next(iter(self._scored.values()))[0]
        totals = logits.new_zeros(len(logits), rows.stop - rows.start, columns.stop - columns.start)
        counts = torch.zeros_like(totals[0])
        for (top, left), (logits, offset) in self._scored.items():
            vertical, horizontal = overlap(rows, top, height), overlap(columns, left, width)
            if vertical and horizontal:
                scores = self.activate(upsampled_part(logits, self.window_size, vertical[0], horizontal[0]))
                totals[:, vertical[1], horizontal[1]] += scores if offset is None else scores.sub_(offset)
                counts[vertical[1], horizontal[1]] += 1
        return totals.div_(counts)

    @staticmethod
    def run_together(pictures: Sequence["WindowScores"]) -> None:
        """Send pictures of few windows through the model, windows of several in one call; scores are read as always.

        Pictures whose windows fill a batch by themselves are left as they are.

        Args:
            pictures: Of one model, list of classes and batch size.
        """
        small = [picture for picture in pictures if len(picture._waiting) < picture._batch_size]
        for _, members in grouped(picture.window_size for picture in small):
            waiting = [(small[member], corner) for member in members for corner in small[member]._waiting]
            for start in range(0, len(waiting), small[0]._batch_size):
                WindowScores._run_windows(waiting[start : start + small[0]._batch_size])

    @staticmethod
    def _run_windows(windows: Sequence[tuple["WindowScores", tuple[int, int]]]) -> None:
        """Send windows of one size through the model and keep their logits on the token grid.

        Args:
            windows: Picture and corner of each; of every picture those that come next.
        """
        pixels = torch.stack([picture._read_window(*corner) for picture, corner in windows])
        all_logits, offsets = ask(windows[0][0]._model, pixel_values=pixels, **windows[0][0]._classes)
        for index, (picture, corner) in enumerate(windows):
            # a copy, so that dropping a window frees its memory whatever becomes of its batch
            logits = all_logits[index].float().clone()
            picture._scored[corner] = (logits, None if offsets is None else offsets[index].float()[:, None, None])
            picture._waiting.remove(corner)
            picture._progress.update()


def resized_blocks(
    scores: WindowScores, size: tuple[int, int], num_classes: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Read all scores of a picture at another size, resized bilinearly, a block at a time.

    Args:
        scores: Not read before.
        size: (height, width) of the result.
        num_classes: Decides how many pixels make a block.

    Yields:
        Rows and columns of a block, and its (num_classes, rows, columns) scores.
    """
    shrinkage = max(1.0, scores.size[0] * scores.size[1] / (size[0] * size[1]))  # a block must fit before resizing too
    for rows, columns in image_blocks(size, int(SCORES_PER_BLOCK / num_classes / shrinkage)):
        if size == scores.size:
            yield rows, columns, scores.read(rows, columns)
        else:
            row_taps = bilinear_taps(scores.size[0], size[0], rows)
            column_taps = bilinear_taps(scores.size[1], size[1], columns)
            yield rows, columns, blend(scores.read(row_taps.span, column_taps.span), row_taps, column_taps)


@torch.no_grad()
def class_scores(model: nn.Module, pixels: Tensor, class_embeds: Tensor, settings: InferenceSettings) -> Tensor:
    """Probability of every class at every pixel, averaged over windows; no `seen_score_offset` is taken from it.

    Args:
        model: Called as `model(pixel_values=..., class_embeds=...)`, gives `logits`.
        pixels: (3, height, width), normalised.
        class_embeds: (num_classes, projection_dim).
        settings: Window, stride and batch size.

    Returns:
        (num_classes, height, width) float32, 0 to 1.
    """
    height, width = pixels.shape[-2:]
    side = settings.window or max(height, width)  # 0 is the whole picture

    def read_window(top: int, left: int) -> Tensor:
        return pixels[:, top : top + side, left : left + side]

    has_offset = bool(getattr(getattr(model, "config", None), "seen_score_offset", 0.0))
    none_seen = torch.zeros(len(class_embeds), dtype=torch.bool) if has_offset else None
    scores = WindowScores(model, read_window, (height, width), class_embeds, settings, seen_class_mask=none_seen)
    result = pixels.new_empty(len(class_embeds), height, width)
    for rows, columns, block in resized_blocks(scores, (height, width), len(class_embeds)):
        result[:, rows, columns] = block
    return result


def segment_image(
    model: nn.Module,
    image: PIL.Image.Image,
    class_embeds: Tensor,
    settings: InferenceSettings,
    mean: Sequence[float],
    std: Sequence[float],
    offsets: Tensor | None = None,
) -> np.ndarray:
    """Label every pixel of a picture.

    Args:
        model: See `class_scores`.
        image: Any picture.
        class_embeds: (num_classes, projection_dim).
        settings: Size and windows.
        mean: See `prepare_image`.
        std: See `prepare_image`.
        offsets: (num_classes,), subtracted from the probabilities.

    Returns:
        (height, width) int64 class ids at the picture's own size.
    """
    image = to_rgb(image)  # upright, so that its size is the label map's
    pixels = prepare_image(image, settings, mean, std).to(class_embeds.device)
    scores = class_scores(model, pixels, class_embeds, settings)
    if offsets is not None:
        scores = scores - offsets.to(scores)[:, None, None]
    return best_classes(scores, (image.height, image.width)).cpu().numpy()


# ---- one call for one picture, or for several


@torch.no_grad()
def encode_classes(
    model: nn.Module, processor: LDVCProcessor, class_names: ClassNames, show_progress: bool = False
) -> tuple[list[str], Tensor]:
    """Encode class names for `class_embeds`, in memory that does not grow with their number.

    Args:
        model: Any [`Segmenter`].
        processor: Its processor, whose templates are used.
        class_names: List of names, or dict of synonyms.
        show_progress: Draw a progress bar.

    Returns:
        The names, and their (num_classes, projection_dim) embeddings.

    Raises:
        ValueError: If names are empty, repeated or too long, or the model has a baked vocabulary.
        TypeError: If they are neither list nor dict, or a name is no string.
    """
    check_text_tower(model)
    classes = read_classes(class_names)
    names, device = list(classes), compute_device(model)
    starts = range(0, len(names), NAMES_PER_CALL)
    embeds = []
    for start in logging.tqdm(starts, desc="class names", disable=not show_progress or len(starts) == 1):
        part = {name: classes[name] for name in names[start : start + NAMES_PER_CALL]}
        encoded = processor(class_names=part, return_tensors="pt").to(device)
        embeds.append(model.get_class_embeds(**encoded))
    return names, torch.cat(embeds)


def resolve_classes(
    model: nn.Module,
    processor: LDVCProcessor,
    class_names: ClassNames,
    class_embeds: Tensor | None,
    show_progress: bool = False,
) -> tuple[list[str], Tensor, str]:
    """Turn the classes of a call into names, (num_classes, projection_dim) embeddings and the name of "other".

    All three are of one moment: the default vocabulary of a model may be another before the answer is there.

    Raises:
        ValueError: If there are neither names nor a default vocabulary, or names and embeddings do not fit.
    """
    if class_names is None and class_embeds is not None:
        raise ValueError("`class_embeds` came without `class_names`; give both, in the same order.")
    if class_names is None:
        vocabulary = default_vocabulary(model)
        return list(vocabulary.class_names), model.vocabulary_embeds(vocabulary), vocabulary.other_label or "other"
    if class_embeds is None:
        return *encode_classes(model, processor, class_names, show_progress), "other"
    names = list(read_classes(class_names))
    if len(names) != len(class_embeds):
        raise ValueError(
            f"there are {len(names)} class names for {len(class_embeds)} class embeddings; give one each."
        )
    return names, class_embeds, "other"


def resolve_queries(
    model: Segmenter,
    processor: LDVCProcessor,
    class_names: ClassNames,
    class_embeds: Tensor | None,
    rivals: Rivals,
    show_progress: bool = False,
) -> tuple[list[str], Tensor | None, str]:
    """As `resolve_classes`; the (num_channels, projection_dim) embeddings are of classes and of what competes."""
    if not rivals.words:
        return resolve_classes(model, processor, class_names, class_embeds, show_progress)
    own = None if class_embeds is None else class_embeds[: -len(rivals.words)]
    names, own, other = resolve_classes(model, processor, class_names, own, show_progress)
    if class_embeds is None:
        others = encode_classes(model, processor, rivals.words, show_progress)[1]
        class_embeds = torch.cat([own, others])
    return names, class_embeds, other


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as `segment_batch` takes it.

    Attributes:
        size: (height, width) of the upright picture.
        pixels: What the model reads: (3, height, width) normalised pixels at the processor's own size or, where the
            settings cut windows, the upright RGB picture at the size that they are cut from.
    """

    size: tuple[int, int]
    pixels: Tensor | PIL.Image.Image


def prepare_picture(
    processor: LDVCProcessor,
    image: Any,
    settings: InferenceSettings | None = None,
    value_range: ValueRange = None,
    input_data_format: str | None = None,
) -> PreparedPicture:
    """Open and resize a picture: what of `segment` needs no model, to be done in another thread, for example.

    Args:
        processor: The model's [`LDVCProcessor`].
        image: What the image processor opens: PIL image, array, tensor, path or URL.
        settings: As for `segment`.
        value_range: As for `segment`.
        input_data_format: As for `segment`.

    Raises:
        ValueError: If the picture cannot be read, or nothing says what its values mean.
    """
    picture = processor.image_processor.load_rgb(image, None, value_range, input_data_format)
    size = (picture.height, picture.width)
    if settings is not None:
        return PreparedPicture(size, resize_short_side(picture, settings.short_side))
    return PreparedPicture(size, processor.image_processor.prepare_rgb(picture))


def open_windows(
    model: nn.Module,
    processor: LDVCProcessor,
    picture: PIL.Image.Image,
    class_embeds: Tensor | None,
    settings: InferenceSettings,
    show_progress: bool = False,
    seen_class_mask: Tensor | None = None,
) -> WindowScores:
    """Cut a picture that is resized already into windows; other arguments as in `segment`."""
    image_processor, device = processor.image_processor, compute_device(model)
    height, width = (min(settings.window or side, side) for side in (picture.height, picture.width))

    def read_window(top: int, left: int) -> Tensor:
        window = picture.crop((left, top, left + width, top + height))
        return normalise(window, image_processor.image_mean, image_processor.image_std).to(device)

    size = (picture.height, picture.width)
    return WindowScores(model, read_window, size, class_embeds, settings, show_progress, seen_class_mask)


def whole_logits(
    model: nn.Module,
    pixels: Sequence[Tensor],
    class_embeds: Tensor | None,
    seen_class_mask: Tensor | None,
    refine: Refine | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Send pictures through the model, those of one size together; other arguments as in `segment`.

    Yields:
        Of each its (num_classes, grid_height, grid_width) logits, refined when they are asked for, and (num_classes,)
        offsets, `None` without any.
    """
    device = compute_device(model)
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for _, members in grouped(tensor.shape for tensor in pixels):
        pixel_values = torch.stack([pixels[member].to(device, non_blocking=True) for member in members])
        logits, offsets = ask(model, class_embeds, seen_class_mask, pixel_values=pixel_values)
        for row, member in enumerate(members):
            found[member] = logits[row], None if offsets is None else offsets[row]
    for index, read in enumerate(pixels):
        logits, offsets = found.pop(index)
        yield logits if refine is None else refine(logits, read.to(device), class_embeds), offsets


def segment(
    model: nn.Module,
    processor: LDVCProcessor,
    image: Any,
    class_names: ClassNames = None,
    *,
    class_embeds: Tensor | None = None,
    settings: InferenceSettings | None = None,
    threshold: Threshold = None,
    other_label: str | None = None,
    return_scores: bool = False,
    top_k: int | None = None,
    show_progress: bool = False,
    negative_labels: ClassNames = None,
    background: Sequence[str] | None = None,
    value_range: ValueRange = None,
    input_data_format: str | None = None,
    refine: Refine | None = None,
) -> Segmentation:
    """Label every pixel of one picture of any size; memory is bounded by the window, unless a `short_side` resizes it.

    Args:
        model: Any [`Segmenter`] in eval mode: LDVC, or what `ldvc.load` gives.
        processor: Its [`LDVCProcessor`].
        image: What the image processor opens: PIL image, array, tensor, path or URL.
        class_names: List of names, or dict of synonyms; `None` is the model's default vocabulary.
        class_embeds: (num_channels, projection_dim) for the classes, then words of the background, negative labels.
        settings: Size and sliding windows, averaged where they overlap; `None`: whole, at the processor's own size.
        threshold: A probability, or one per class: a list in order, or a dict by name, 0 where left out. Pixels whose
            best class is below its threshold become "other", id `num_classes`; none becomes another class.
        other_label: Name of "other"; `None` is that of the default vocabulary, or "other".
        return_scores: Return the probabilities of all classes too: `num_classes` floats per pixel.
        top_k: Return so many best classes of every pixel too, at most all.
        show_progress: Draw progress bars over class names and windows.
        negative_labels: Names, or names and synonyms, that compete and are not returned: their pixels are "other".
        background: Words that are one class together, "background", behind the others; its score is its best word's.
        value_range: The values of the picture that are black and white, where it has no 8 bits.
        input_data_format: `"channels_first"` or `"channels_last"`, for arrays whose shape does not say it.
        refine: Called with a picture's (num_channels, grid_height, grid_width) logits, the pixels that the model read,
            (3, height, width), and `class_embeds`; gives logits on any grid. Not with `settings`.

    Returns:
        The [`Segmentation`].

    Raises:
        ValueError: If the picture cannot be read, nothing says what its values mean, names are bad or missing, the
            threshold is no probability, "other" is a class, the model is in training mode, or `refine` came with
            `settings`.
    """
    check_eval_mode(model)
    pictures = [prepare_picture(processor, image, settings, value_range, input_data_format)]
    names = {"class_embeds": class_embeds, "negative_labels": negative_labels, "background": background}
    results = {"threshold": threshold, "other_label": other_label, "return_scores": return_scores, "top_k": top_k}
    way = {"settings": settings, "show_progress": show_progress, "refine": refine}
    (found,) = segment_batch(model, processor, pictures, class_names, **names, **results, **way)
    return found


@torch.no_grad()
def segment_batch(
    model: nn.Module,
    processor: LDVCProcessor,
    pictures: Sequence[PreparedPicture],
    class_names: ClassNames = None,
    *,
    class_embeds: Tensor | None = None,
    settings: InferenceSettings | None = None,
    threshold: Threshold = None,
    other_label: str | None = None,
    return_scores: bool = False,
    top_k: int | None = None,
    show_progress: bool = False,
    negative_labels: ClassNames = None,
    background: Sequence[str] | None = None,
    refine: Refine | None = None,
) -> Iterator[Segmentation]:
    """Label every pixel of several pictures: one call of the model for those whose pixels have one size.

    Windows of several pictures fill a call together, `settings.window_batch_size` of them. The pictures come from
    `prepare_picture`, with the same settings; all other arguments are those of `segment`, so that `class_embeds`,
    (num_classes, projection_dim), may be encoded once for all batches.

    Yields:
        The [`Segmentation`] of each picture, in order, made when it is asked for.

    Raises:
        ValueError: As `segment`.
    """
    check_eval_mode(model)
    if refine is not None and settings is not None:
        raise ValueError("`refine` takes pictures whole, at the processor's own size; leave `settings` out.")
    rivals = read_rivals(own_names(model) if class_names is None else class_names, negative_labels, background)
    queries = (class_names, class_embeds, rivals, show_progress)
    names, class_embeds, default_other = resolve_queries(model, processor, *queries)
    classes = names if class_names is None else class_names
    class_ids, seen = rivals.class_ids(len(names)), seen_queries(model, classes, rivals)
    names = rivals.names(names)
    threshold = threshold_per_class(threshold, names)
    other = [] if threshold is None and not rivals.has_other else [other_label or default_other]
    if other and other[0] in names:
        raise ValueError(f"{other[0]!r} is a class of this call; pass another `other_label` for what is no class.")
    with ExitStack() as stack:
        if settings is None:
            scores = whole_logits(model, [picture.pixels for picture in pictures], class_embeds, seen, refine)
        else:
            arguments = (class_embeds, settings, show_progress, seen)
            windows = (open_windows(model, processor, picture.pixels, *arguments) for picture in pictures)
            scores = [stack.enter_context(opened) for opened in windows]
            WindowScores.run_together(scores)
        for picture, own in zip(pictures, scores, strict=True):
            pixels = PixelClasses(len(names), picture.size, threshold, None, top_k, return_scores, class_ids=class_ids)
            if settings is None:
                pixels.add_upsampled(*own)
            else:
                for rows, columns, block in resized_blocks(own, picture.size, len(class_ids or names)):
                    pixels.add(rows, columns, block)
            yield Segmentation(pixels.label_map, names + other, pixels.scores, pixels.top_ids, pixels.top_scores)
            del pixels  # its scores, before there are those of the next


__all__ = [
    "InferenceSettings",
    "PreparedPicture",
    "Segmentation",
    "class_scores",
    "encode_classes",
    "prepare_image",
    "prepare_picture",
    "segment",
    "segment_batch",
    "segment_image",
    "window_starts",
]
