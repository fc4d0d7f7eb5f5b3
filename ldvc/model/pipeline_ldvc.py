# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""The pipeline "zero-shot-image-segmentation": pictures and class names in, a mask per class found out.

Transformers has no such task; the calls follow its zero-shot object detection pipeline. Differences: all names of a
list go through the model in one pass per picture, and without names the model's default vocabulary is used.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .compat_ldvc import REQUIREMENT  # noqa: F401 - compat_ldvc says why


# isort: split
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModelForSemanticSegmentation, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_ldvc import LDVCConfig  # noqa: F401 - compat_ldvc says why
from .dense_ldvc import block_at  # noqa: F401 - compat_ldvc says why
from .dense_settings_ldvc import LDVCDenseSettings  # noqa: F401 - compat_ldvc says why
from .image_processing_ldvc import check_threshold
from .inference_ldvc import (
    InferenceSettings,
    Threshold,
    check_eval_mode,
    check_text_tower,
    encode_classes,
    grouped,
    segment,
    threshold_per_class,
)
from .options_ldvc import check_options
from .pixels_ldvc import ValueRange
from .processing_ldvc import LDVCProcessor, check_distinct, read_classes
from .prompts_ldvc import LDVCTextPrompts  # noqa: F401 - compat_ldvc says why
from .regions_ldvc import ceil_div  # noqa: F401 - compat_ldvc says why
from .segmenter_ldvc import Rivals, ask, check_segmenter, default_vocabulary, read_rivals, seen_queries, text_state
from .vocabulary_ldvc import DefaultVocabulary
from .weights_ldvc import quiet_loading  # noqa: F401 - compat_ldvc says why


TASK = "zero-shot-image-segmentation"
PARTS = ("tokenizer", "image_processor", "feature_extractor", "video_processor")  # what `pipeline` would hand on
LISTS_KEPT = 8  # class embeddings of the label lists used last

PIPELINE_OPTIONS = (
    *("image", "candidate_labels", "threshold", "top_k", "window", "stride", "short_side", "show_progress", "timeout"),
    *("value_range", "input_data_format", "batch_size", "num_workers"),
)
# What other tasks and models call these options.
PIPELINE_NAMES = {
    **dict.fromkeys(("images", "inputs"), "image"),
    **dict.fromkeys(("class_labels", "class_names", "classes", "labels", "prompts", "queries"), "candidate_labels"),
    **dict.fromkeys(("text", "text_labels", "text_prompt", "text_queries", "texts"), "candidate_labels"),
    **dict.fromkeys(("hypothesis_template", "prompt_template", "template"), "`prompt_templates` of the processor,"),
    **dict.fromkeys(("prompt_templates", "templates"), "`prompt_templates` of the processor,"),
    **dict.fromkeys(("box_threshold", "mask_threshold", "score_threshold", "text_threshold"), "threshold"),
}

# Classes of a call, hashable: the name and words of each, or the model's default vocabulary as it was then.
Labels = tuple[tuple[str, ...], ...] | DefaultVocabulary


@dataclass
class Question:
    """One picture and what to look for; no dict, list or tensor, so that the library's batching leaves it alone.

    Attributes:
        labels: The classes.
        class_names: Their names.
        size: (height, width) of the picture.
        pixel_values: (3, height, width) for the model, or `None` where windows are to be cut from `picture`.
        picture: Upright RGB, or `None`.
        has_own_labels: Whether they are this picture's own, so that the call may name classes of other pictures.
        rivals: What competes with the classes.
    """

    labels: Labels
    class_names: list[str]
    size: tuple[int, int]
    pixel_values: Tensor | None = None
    picture: Image.Image | None = None
    has_own_labels: bool = False
    rivals: Rivals = field(default_factory=lambda: Rivals({}))

    @property
    def asked(self) -> tuple:
        """Equal where questions have the same classes and rivals."""
        return self.labels, as_labels(self.rivals.words), self.rivals.num_background


@dataclass
class Answer:
    """What the model says to a question, on the CPU: logits, or of windows the best class and score of each pixel.

    Attributes:
        class_names: Names of the ids.
        size: (height, width) of the picture.
        has_own_labels: See `Question`.
        logits: (1, num_classes, grid_height, grid_width) float32.
        offsets: (1, num_classes), what the model takes from probabilities, or `None`.
        label_map: (height, width) int64.
        best_scores: (height, width) float32.
        class_ids: (num_channels,) where logits have other channels than the classes, see [`Rivals`].
    """

    class_names: list[str]
    size: tuple[int, int]
    has_own_labels: bool
    logits: Tensor | None = None
    offsets: Tensor | None = None
    label_map: Tensor | None = None
    best_scores: Tensor | None = None
    class_ids: Tensor | None = None


class Rows(Dataset):
    """Anything with a length and an index as a dataset of torch, which is what the library streams."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Stream(IterableDataset):
    """A generator as a dataset of torch: until 5.13 the library reads generators to their end first."""

    def __init__(self, rows: Iterable):
        self.rows = rows

    def __iter__(self) -> Iterator:
        return iter(self.rows)


def read_labels(candidate_labels: Any) -> Labels | None:
    """Check one list of labels.

    Args:
        candidate_labels: "cat, sofa|couch, grass", classes by commas and synonyms by bars; a list of names, each taken
            as it is; a dict of names and synonyms; or `None`.

    Raises:
        ValueError: If there are none, or one is empty, repeated or holds control characters.
        TypeError: If they are something else.
    """
    if candidate_labels is None:
        return None
    if isinstance(candidate_labels, str):
        entries = [[word.strip() for word in entry.split("|")] for entry in candidate_labels.split(",")]
        check_distinct([words[0] for words in entries])  # a dict would drop the first of two equal names
        candidate_labels = {words[0]: words for words in entries}
    if not isinstance(candidate_labels, (list, tuple, Mapping)):
        raise TypeError(
            f"`candidate_labels` is {candidate_labels!r:.100}, a {type(candidate_labels).__name__}; give a string of "
            "labels with commas between them, a list of strings, or a dict of labels and synonyms."
        )
    if not candidate_labels:
        raise ValueError(
            "`candidate_labels` is empty; give at least one label, or leave it out for the model's own vocabulary."
        )
    return as_labels(read_classes(candidate_labels))


def as_labels(classes: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Checked names and words, hashable."""
    return tuple((name, *words) for name, words in classes.items())


def as_classes(labels: Labels) -> dict[str, list[str]]:
    """Name -> words of checked labels."""
    if not isinstance(labels, tuple):  # the default vocabulary, whose class may come from another copy of its file
        return {name: [name] for name in labels.class_names}
    return {name: words for name, *words in labels}


def are_per_image(candidate_labels: Any) -> bool:
    """Whether this is a list with the labels of one picture in each place."""
    return isinstance(candidate_labels, (list, tuple)) and any(
        isinstance(labels, (list, tuple, Mapping)) for labels in candidate_labels
    )


def pair(images: Any, candidate_labels: Sequence[Any]) -> list[dict[str, Any]]:
    """Put each picture together with its own labels.

    Raises:
        ValueError: If there is not one list of labels per picture.
    """
    if not isinstance(images, (list, tuple)):
        raise ValueError(
            "`candidate_labels` holds a list per picture, which goes with a list of pictures only; let a dataset or "
            'generator give {"image": ..., "candidate_labels": ...}.'
        )
    if len(images) != len(candidate_labels):
        raise ValueError(
            f"`candidate_labels` holds {len(candidate_labels)} lists for {len(images)} pictures; give one each, or "
            "one list of strings for all."
        )
    rows = [image if isinstance(image, Mapping) else {"image": image} for image in images]
    return [{"candidate_labels": labels, **row} for row, labels in zip(rows, candidate_labels, strict=True)]


def as_stream(images: Any) -> Any:
    """Bring datasets and iterables of other libraries to what the base class streams; leave single pictures."""
    if isinstance(images, tuple):
        return list(images)
    is_picture = isinstance(images, (str, bytes, Mapping, Image.Image, np.ndarray, Tensor))
    if is_picture or isinstance(images, (list, Dataset)) or not isinstance(images, Iterable):
        return images
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        return Rows(images)
    return Stream(images)


def check_top_k(top_k: Any) -> None:
    """Check a number of masks.

    Raises:
        ValueError: If it is no positive whole number.
    """
    if top_k is not None and (not isinstance(top_k, (int, np.integer)) or top_k < 1):
        raise ValueError(f"`top_k` is {top_k!r}; it is the number of masks to return at most, 1 or more.")


class ZeroShotImageSegmentationPipeline(Pipeline):
    """Segment pictures into classes that are given by name.

    Each result is a list of `{"label", "score", "mask"}`, best score first: the mask a PIL image in mode L, 255 inside
    and 0 outside, of the size of the upright picture; the score the mean probability inside it. Masks do not overlap:
    every pixel belongs to its best class, however low its probability. Where the labels do not cover the picture, and
    all the more with a single label, give a `threshold`: pixels below it are "other" and belong to no mask.

    Class embeddings are computed once per label list and kept for the lists used last, for as long as the text weights
    stay the same.

    Example:
    ```python
    >>> from transformers import pipeline

    >>> segmenter = pipeline("zero-shot-image-segmentation", model=folder, trust_remote_code=True)
    >>> segmenter("street.jpg", candidate_labels=["car", "road", "sky"], threshold=0.3)
    >>> segmenter("street.jpg", candidate_labels="car, road, sky|heaven")  # a string; synonyms by bars
    >>> segmenter([first, second], candidate_labels=[["cat"], ["dog", "grass"]], batch_size=2)  # a list per picture
    >>> segmenter("satellite.png", candidate_labels=["roof", "river"], window=512)  # large: sliding windows
    >>> segmenter("street.jpg")  # the model's default vocabulary
    ```
    """

    _load_processor = True
    _load_image_processor = _load_tokenizer = _load_feature_extractor = _load_video_processor = False

    def __new__(cls, model: Any = None, **kwargs: Any):
        """The pipeline that the model's own code brings, where the task was registered by that of another folder."""
        own = getattr(model, "pipeline_class", cls)
        return super().__new__(cls) if issubclass(cls, own) else own(model, **kwargs)

    def __init__(self, model: Any, **kwargs: Any):
        for part in PARTS:
            if kwargs.get(part) is not None:
                raise ValueError(
                    f"`{part}` is no argument of its own here but part of the processor; put it there, as in "
                    "`LDVCProcessor(image_processor, tokenizer)`, and give `processor=`."
                )
        self._kept: tuple[tuple | None, dict[tuple, Tensor]] = (None, {})  # for which text weights, lists used last
        super().__init__(model, **kwargs)
        check_segmenter(self.model)
        own, kind = self.processor, type(self.processor).__name__
        if kind in ("CLIPProcessor", "CLIPSegProcessor"):  # of a checkpoint that is none of LDVC's
            settings, is_clipseg = own.image_processor.to_dict(), kind == "CLIPSegProcessor"
            self.processor = LDVCProcessor.from_preprocessing(own.tokenizer, settings, is_clipseg)
            self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.model.dtype}, {self.device})"

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without kept embeddings: what they are kept for are places of these very weights."""
        return {**self.__dict__, "_kept": (None, {})}

    def __call__(self, image: Any = None, candidate_labels: Any = None, **kwargs: Any) -> Any:
        """Segment one picture or many.

        Args:
            image: A PIL image, path, URL or array; a list of them; a generator; a dataset of torch or of `datasets`.
                In place of any picture, `{"image": ..., "candidate_labels": ...}`, as rows of a dataset are; labels
                there take precedence.
            candidate_labels: `str` with commas, `list[str]` or a dict of synonyms for all pictures; or a list of
                lists or dicts, one per picture. `None` is the model's default vocabulary.
            kwargs: Any of these, here or at construction.

                - `negative_labels`: As `candidate_labels`: names that compete with them and get no mask.
                - `background`: A list of words that are one class together, "background".
                - `threshold`: A probability, or one per class: a list in order, or a dict by name. `None` is none.
                - `top_k`: Return at most so many masks, the best.
                - `window`: Side in pixels of windows that slide over large pictures; 0 takes pictures whole, at the
                  processor's size.
                - `stride`: Pixels from one window to the next, 5/6 of a window by default; probabilities are averaged
                  where windows overlap.
                - `short_side`: Pixels to which the shorter side is resized before windows are cut; the size is kept by
                  default.
                - `show_progress`: Draw a progress bar over the windows of each picture.
                - `timeout`: Seconds to wait for a URL.
                - `value_range`: The values of the pictures that are black and white, where they have no 8 bits.
                - `input_data_format`: `"channels_first"` or `"channels_last"`, for arrays whose shape does not say it.
                - `batch_size`, `num_workers`: As in every pipeline.

        Returns:
            A list of masks for one picture, a list of lists for a list, an iterator for a generator or dataset.

        Raises:
            ValueError: If a picture cannot be read, nothing says what its values mean, labels are empty, repeated, too
                long or missing, or a number is out of range.
            TypeError: If there is no picture, labels are no strings, or an option is unknown.
        """
        if image is None:
            check_options(kwargs, PIPELINE_OPTIONS, "this pipeline", PIPELINE_NAMES)
            raise TypeError("there is no picture; pass it first, or as `image`.")
        if are_per_image(candidate_labels):
            image, candidate_labels = pair(image, candidate_labels), None
        if isinstance(image, (list, tuple)) and not image:
            return []
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        return super().__call__(as_stream(image), **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels: Any = None,
        negative_labels: Any = None,
        background: Sequence[str] | None = None,
        timeout: float | None = None,
        threshold: Threshold = None,
        top_k: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        short_side: int | None = None,
        show_progress: bool | None = None,
        value_range: ValueRange = None,
        input_data_format: str | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], ...]:
        """Sort options into those of the three steps; called at construction and by every call.

        Raises:
            TypeError: If one is unknown; names ours for it.
        """
        check_options(unknown, PIPELINE_OPTIONS, "this pipeline", PIPELINE_NAMES)
        check_top_k(top_k)
        preprocess = {"labels": read_labels(candidate_labels), "timeout": timeout, "window": window}
        preprocess |= {"negative_labels": read_labels(negative_labels), "background": background}
        preprocess |= {"value_range": value_range, "input_data_format": input_data_format}
        forward = {"window": window, "stride": stride, "short_side": short_side, "show_progress": show_progress}
        postprocess = {"threshold": threshold, "top_k": top_k}
        steps = (preprocess, forward, postprocess)
        return tuple({name: value for name, value in step.items() if value is not None} for step in steps)

    def preprocess(
        self,
        inputs: Any,
        labels: Labels | None = None,
        timeout: float | None = None,
        window: int | None = None,
        value_range: ValueRange = None,
        input_data_format: str | None = None,
        negative_labels: Any = None,
        background: Sequence[str] | None = None,
    ) -> dict[str, Question]:
        """Open a picture and bring it to the processor's size, or leave it as it is where windows will be cut.

        Raises:
            ValueError: If a dict holds no picture, the picture cannot be read, or there are no labels.
        """
        image, has_own_labels = inputs, False
        if isinstance(inputs, Mapping):
            if "image" not in inputs:
                raise ValueError(
                    f'an input has the keys {", ".join(map(repr, inputs))}; it needs "image", and may have '
                    '"candidate_labels".'
                )
            image = inputs["image"]
            if inputs.get("candidate_labels") is not None:
                labels, has_own_labels = read_labels(inputs["candidate_labels"]), True
        if labels is None:
            labels = default_vocabulary(self.model)
        negative = None if negative_labels is None else as_classes(negative_labels)
        rivals = read_rivals(as_classes(labels), negative, background)
        names = rivals.names(list(as_classes(labels)))
        picture = self.processor.image_processor.load_rgb(image, timeout, value_range, input_data_format)
        size = (picture.height, picture.width)
        question = Question(labels, names, size, has_own_labels=has_own_labels, rivals=rivals)
        if window:
            question.picture = picture
        else:
            question.pixel_values = self.processor.image_processor.prepare_rgb(picture)
        return {"question": question}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        window: int | None = None,
        stride: int | None = None,
        short_side: int | None = None,
        show_progress: bool = False,
    ) -> dict[str, Any]:
        """Ask the model: one question, or a batch of them.

        Raises:
            ValueError: If options of windows come without a window.
        """
        check_eval_mode(self.model)
        for name, value in (("stride", stride), ("short_side", short_side)):
            if window is None and value is not None:
                raise ValueError(f"`{name}` is {value}, but there is no `window`; give its side in pixels too.")
        questions = model_inputs["question"]
        batch = questions if isinstance(questions, list) else [questions]
        if window:
            settings = InferenceSettings(short_side or 0, window, stride)
            answers = [self._answer_by_windows(question, settings, show_progress) for question in batch]
        else:
            answers = self._answer_at_once(batch)
        return {"answer": answers if isinstance(questions, list) else answers[0]}

    def _answer_at_once(self, batch: list[Question]) -> list[Answer]:
        """Encode pictures of one size together, then ask for each label list among them."""
        answers: dict[int, Answer] = {}
        for _, members in grouped(question.pixel_values.shape for question in batch):
            pixel_values = torch.stack([batch[member].pixel_values for member in members]).to(self.device)
            features = self.model.get_image_features(pixel_values)
            for _, places in grouped(batch[member].asked for member in members):
                question = batch[members[places[0]]]
                seen = seen_queries(self.model, as_classes(question.labels), question.rivals)
                chosen = features.select(places)
                logits, offsets = ask(self.model, self._embeds(question), seen, image_features=chosen)
                logits, offsets = logits.float().cpu(), None if offsets is None else offsets.float().cpu()
                for row, place in enumerate(places):
                    own = None if offsets is None else offsets[row : row + 1]
                    found = {"logits": logits[row : row + 1], "offsets": own}
                    answers[members[place]] = self._answer(batch[members[place]], **found)
        return [answers[index] for index in range(len(batch))]

    def _answer_by_windows(self, question: Question, settings: InferenceSettings, show_progress: bool) -> Answer:
        """Slide windows over one picture."""
        names, rivals, words = as_classes(question.labels), question.rivals, list(question.rivals.words)
        options = {"settings": settings, "top_k": 1, "show_progress": show_progress}
        options["negative_labels"] = {name: rivals.words[name] for name in words[rivals.num_background :]} or None
        options["background"] = words[: rivals.num_background] or None
        embeds = self._embeds(question)
        found = segment(self.model, self.processor, question.picture, names, class_embeds=embeds, **options)
        return self._answer(question, label_map=found.label_map, best_scores=found.top_scores[0])

    @staticmethod
    def _answer(question: Question, **found: Tensor | None) -> Answer:
        """Put what was found beside what it is an answer to."""
        num_named = len(question.class_names) - (question.rivals.num_background > 0)
        identity = (question.class_names, question.size, question.has_own_labels)
        return Answer(*identity, class_ids=question.rivals.class_ids(num_named), **found)

    def _embeds(self, question: Question) -> Tensor:
        """(num_channels, projection_dim) embeddings of a question's classes and rivals, as `_class_embeds`."""
        lists = (question.labels, as_labels(question.rivals.words))
        return torch.cat([self._class_embeds(labels) for labels in lists if labels])

    def _class_embeds(self, labels: Labels) -> Tensor:
        """(num_classes, projection_dim) embeddings of a label list, kept while text weights and templates stay."""
        if not isinstance(labels, tuple):
            return self.model.vocabulary_embeds(labels)  # kept by the model
        check_text_tower(self.model)
        state, key = text_state(self.model), (labels, tuple(self.processor.prompt_templates))
        kept_for, kept = self._kept
        kept = dict(kept) if state is not None and state == kept_for else {}
        embeds = kept.pop(key, None)
        if embeds is None:
            embeds = encode_classes(self.model, self.processor, as_classes(labels))[1]
        # Put there as a whole: another thread reads what was before or what comes now, nothing half done.
        kept = {**dict(list(kept.items())[1 - LISTS_KEPT :]), key: embeds}
        self._kept = (state, kept) if state is not None else (None, {})
        return embeds

    def postprocess(
        self, model_outputs: dict[str, Answer], threshold: Threshold = None, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """Turn an answer into masks, best first."""
        answer = model_outputs["answer"]
        label_map, best_scores = answer.label_map, answer.best_scores
        if answer.logits is not None:
            outputs = {"logits": answer.logits, "class_score_offsets": answer.offsets}
            post_process = self.processor.image_processor.post_process_semantic_segmentation
            (found,) = post_process(outputs, target_sizes=[answer.size], top_k=1, class_ids=answer.class_ids)
            label_map, best_scores = found["segmentation"], found["top_scores"][0]
        num_classes = len(answer.class_names)
        if threshold is not None:
            if isinstance(threshold, Mapping) and answer.has_own_labels:  # it may name classes of other pictures
                threshold = {name: value for name, value in threshold.items() if name in answer.class_names}
            limits = check_threshold(threshold_per_class(threshold, answer.class_names), num_classes)
            limits = limits if limits.dim() == 0 else torch.cat([limits, limits.new_zeros(1)])[label_map]
            label_map = label_map.masked_fill((best_scores < limits) & (limits > 0), num_classes)
        sums = torch.bincount(label_map.flatten(), best_scores.flatten().double(), minlength=num_classes + 1)
        counts = torch.bincount(label_map.flatten(), minlength=num_classes + 1)
        found_ids = counts[:num_classes].nonzero().flatten().tolist()
        scores = {index: (sums[index] / counts[index]).item() for index in found_ids}
        best_ids = sorted(found_ids, key=scores.get, reverse=True)[:top_k]
        label_map = label_map.numpy()
        return [
            {
                "label": answer.class_names[index],
                "score": scores[index],
                "mask": Image.fromarray((label_map == index).astype(np.uint8) * 255),
            }
            for index in best_ids
        ]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model, code and processor; the library's own would leave the processor's prompt templates behind."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


# Remote code too: the library finds it by `custom_pipelines` of a folder, but not for a model that is loaded already.
if TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=ZeroShotImageSegmentationPipeline,
        pt_model=AutoModelForSemanticSegmentation,
        type="multimodal",
    )

__all__ = ["ZeroShotImageSegmentationPipeline"]
