"""The protocols by which training-free segmentation is scored, for any segmenter: `ldvc evaluate --protocol voc21`.

Source: the evaluation settings that the authors of SCLIP, of NACLIP (ResCLIP and PEARL follow them) and of ClearCLIP
published, section by section in docs/training_free.md, with what differs here. They do not compare with each other:
sizes, windows, thresholds and names move scores more than methods do, so that a result states all of them.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import PartialState
from torch import Tensor, nn
from tqdm import tqdm

from ldvc import loading
from ldvc.data.class_lists import check_label_convention
from ldvc.data.names import NameFile, read_name_file
from ldvc.data.provenance import code_version, provenance, write_json
from ldvc.data.samples import read_sample
from ldvc.data.vocabularies import Vocabulary
from ldvc.model.image_processing_ldvc import SCORES_PER_BLOCK, bilinear_taps, blend
from ldvc.model.inference_ldvc import InferenceSettings, WindowScores, encode_classes, image_blocks, prepare_image
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.processes import process_state
from ldvc.scoring.evaluate import (
    METRIC_PATH,
    choose_templates,
    finish_table,
    format_table,
    image_areas,
    load_images,
    stored_config,
)
from ldvc.segmenters.smoothing import PEARL_AS_SHIPPED, pamr, propagate
from ldvc.segmenters.training_free import DEFAULT_METHOD, TrainingFreeCLIP


__all__ = ["AUTHORS", "BENCHMARKS", "SMOOTHINGS", "DenseProtocol", "WindowLogits", "choose_protocol", "label_picture"]

COLUMNS = {"pixel_accuracy": "pAcc", "miou": "mIoU"}
CLIP_KINDS = ("clip", "clip_vision_model")

SMOOTHINGS = ("none", "pamr", "propagation", "propagation_as_shipped")
LONGEST_SIDE = 2048
IGNORED = 255


def id_table(pairs: Mapping[int, int]) -> np.ndarray:
    """Stored id -> class id, (256,) int64; ids that are not named are not scored."""
    table = np.full(256, IGNORED)
    table[list(pairs)] = list(pairs.values())
    return table


@dataclass(frozen=True)
class Benchmark:
    """A data set's classes, as its label maps hold them.

    Attributes:
        title: For people.
        num_classes: That are scored.
        stored_classes: Of the data set that `ldvc prepare` makes, or of the official label maps.
        reduce_labels: Whether its id 0 is background or "other".
        ids: Stored id -> class id.
    """

    title: str
    num_classes: int
    stored_classes: int
    reduce_labels: bool
    ids: np.ndarray

    def map_labels(self, label_map: np.ndarray) -> np.ndarray:
        """Turn stored ids into class ids, (height, width) int64; 255 is not scored.

        Raises:
            ValueError: If an id is not one of the data set's.
        """
        highest = self.stored_classes - 1 + self.reduce_labels
        outside = label_map[(label_map != IGNORED) & ((label_map < 0) | (label_map > highest))]
        if outside.size:
            raise ValueError(
                f"label id {outside.max()} is outside those of {self.title}, 0 to {highest} and {IGNORED}; give label "
                "maps as docs/training_free.md says."
            )
        return self.ids[label_map.astype(np.int64)]


def _shifted(count: int, by: int, start: int = 0) -> dict[int, int]:
    return {index: index + by for index in range(start, start + count)}


BENCHMARKS = {
    "voc20": Benchmark("PASCAL VOC 2012, 20 classes", 20, 20, True, id_table(_shifted(20, -1, 1))),
    "voc21": Benchmark("PASCAL VOC 2012, 20 classes and background", 21, 20, True, id_table(_shifted(21, 0))),
    "context59": Benchmark("PASCAL Context, 59 classes", 59, 59, False, id_table(_shifted(59, 0))),
    # `ldvc prepare` writes 255 for the background
    "context60": Benchmark(
        "PASCAL Context, 59 classes and background", 60, 59, False, id_table(_shifted(59, 1) | {IGNORED: 0})
    ),
    # the 80 things of COCO-Stuff's 171 classes; all stuff is background
    "coco_object": Benchmark(
        "COCO-Object, 80 things and background",
        81,
        171,
        False,
        id_table(_shifted(80, 1) | dict.fromkeys(range(80, 171), 0)),
    ),
    "coco_stuff": Benchmark("COCO-Stuff, 171 classes", 171, 171, False, id_table(_shifted(171, 0))),
    "ade20k": Benchmark("ADE20K, 150 classes", 150, 150, True, id_table(_shifted(150, -1, 1))),
    "cityscapes": Benchmark("Cityscapes, 19 classes", 19, 19, False, id_table(_shifted(19, 0))),
}


@dataclass(frozen=True)
class DenseProtocol:
    """How a benchmark is scored.

    Attributes:
        benchmark: A name of `BENCHMARKS`.
        authors: Whose protocol it is, a name of `AUTHORS`.
        short_side: Pixels, unless the long side would pass 2048.
        window: Pixels; 0 takes the whole picture.
        stride: Pixels.
        softmax_scale: Factor on cosines.
        threshold: Pixels whose best class is less probable become class 0.
        area_threshold: Classes but the first with no more than this share of the pixels that are not class 0 go.
        smoothing: Of `SMOOTHINGS`, on the words' scores at the picture's size.
        names: "usual" or "plain", or a file.
        prompt_templates: A name of `PROMPT_TEMPLATES`.
        settings: Of the method, where its authors set them by benchmark.

    Raises:
        ValueError: If a value is impossible.
    """

    benchmark: str
    authors: str
    short_side: int
    window: int
    stride: int
    softmax_scale: float
    threshold: float = 0.0
    area_threshold: float = 0.0
    smoothing: str = "none"
    names: str = "usual"
    prompt_templates: str = "ensemble80"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.smoothing not in SMOOTHINGS:
            raise ValueError(f"smoothing is {self.smoothing!r}; use one of {', '.join(SMOOTHINGS)}.")
        if not self.softmax_scale > 0 or not 0 <= self.threshold <= 1 or not 0 <= self.area_threshold <= 1:
            raise ValueError(
                f"softmax_scale is {self.softmax_scale}, threshold {self.threshold} and area_threshold "
                f"{self.area_threshold}; use a scale above 0, and shares of 0 to 1."
            )
        self.inference()  # checks sizes

    def inference(self, size: tuple[int, int] | None = None, batch_size: int = 4) -> InferenceSettings:
        """Size and windows for a picture of (height, width) pixels; without one, as the protocol states them."""
        short_side = self.short_side
        if size is not None and short_side:
            short_side = min(short_side, int(LONGEST_SIDE * min(size) / max(size)))
        return InferenceSettings(short_side, self.window, self.stride if self.window else None, batch_size)


# ---- the published settings

# Authors -> benchmark -> what differs from the first row.
AUTHORS: dict[str, dict[str, dict[str, Any]]] = {
    "sclip": {
        "": {"short_side": 336, "window": 224, "stride": 112, "softmax_scale": 40.0},
        "cityscapes": {"short_side": 560},
        "coco_stuff": {"short_side": 448},
        "voc21": {"softmax_scale": 65.0, "threshold": 0.1, "area_threshold": 0.1},
        "context60": {"softmax_scale": 50.0, "threshold": 0.1},
        "coco_object": {"softmax_scale": 50.0, "threshold": 0.1},
    },
    "naclip": {
        "": {"short_side": 336, "window": 224, "stride": 112, "softmax_scale": 40.0},
        "cityscapes": {"short_side": 560},
        "voc20": {"window": 0},
        "voc21": {"window": 0, "threshold": 0.1},
        "context60": {"threshold": 0.1},
        "coco_object": {"threshold": 0.1},
    },
    # Their own name files are not ours to carry: "background" alone, no synonyms, which plain names come near to.
    "clearclip": {
        "": {"short_side": 448, "window": 448, "stride": 224, "softmax_scale": 50.0, "names": "plain"},
        "cityscapes": {"window": 224},
        "voc21": {"threshold": 0.5},
        "context60": {"threshold": 0.15},
        "coco_object": {"threshold": 0.4},
    },
}
OF_METHOD = {"sclip": "sclip", "clearclip": "clearclip"}  # every other method is scored as NACLIP
SMOOTHING_OF_METHOD = {"naclip": "pamr", "pearl": "propagation_as_shipped"}
# ResCLIP's threshold at first sight, share of middle blocks, scale and share of the feedback.
RESCLIP = {
    "voc21": (0.5, 0.3, 2.2, 0.7),
    "context60": (0.3, 0.3, 1.8, 0.7),
    "coco_object": (0.11, 0.4, 1.8, 0.7),
    "voc20": (0.1, 0.6, 2.1, 0.6),
    "context59": (0.25, 0.4, 1.8, 0.7),
    "coco_stuff": (0.11, 0.4, 1.8, 0.7),
    "cityscapes": (0.1, 0.2, 2.1, 0.6),
    "ade20k": (0.25, 0.3, 2.1, 0.7),
}
RESCLIP_FIELDS = ("feedback_threshold", "middle_weight", "feedback_scale", "feedback_weight")


def settings_of(method: str | None, benchmark: str) -> dict[str, Any]:
    """What a method's authors set by benchmark."""
    if method == "resclip":
        return dict(zip(RESCLIP_FIELDS, RESCLIP[benchmark], strict=True))
    if method == "pearl" and benchmark in ("ade20k", "cityscapes"):
        return {"rotated_key_weight": 0.3}
    return {}


def choose_protocol(
    benchmark: str, method: str | None = None, authors: str | None = None, **changes: Any
) -> DenseProtocol:
    """The published protocol of a benchmark.

    Args:
        benchmark: A name of `BENCHMARKS`.
        method: Of a training-free CLIP: decides whose protocol, smoothing and settings, where they are not given.
        authors: A name of `AUTHORS`.
        changes: Fields of [`DenseProtocol`] in place of the published ones; `None` leaves them.

    Raises:
        ValueError: If there is no such benchmark or protocol, or a value is impossible.
    """
    for what, name, known in (("protocol", benchmark, BENCHMARKS), ("protocol_of", authors or "naclip", AUTHORS)):
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}."
            raise ValueError(f"--{what} is {name!r}; {hint}")
    authors = authors or OF_METHOD.get(method, "naclip")
    fields = AUTHORS[authors][""] | AUTHORS[authors].get(benchmark, {})
    fields |= {"smoothing": SMOOTHING_OF_METHOD.get(method, "none"), "settings": settings_of(method, benchmark)}
    protocol = DenseProtocol(benchmark, authors, **fields)
    return replace(protocol, **{name: value for name, value in changes.items() if value is not None})


# ---- from scores of words to labels


class WindowLogits(WindowScores):
    """As [`WindowScores`], but logits (here cosines) themselves are averaged where windows overlap."""

    @staticmethod
    def activate(logits: Tensor) -> Tensor:
        """Leave (num_classes, rows, columns) as they are."""
        return logits


def read_words(
    model: nn.Module, pixels: Tensor, embeds: Tensor, settings: InferenceSettings, size: tuple[int, int]
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Scores of every word, read from windows and resized to the picture, a block at a time.

    Args:
        model: Cosines of a [`TrainingFreeCLIP`] are averaged over windows, of other models the probabilities.
        pixels: (3, height, width), resized and normalised.
        embeds: (num_words, projection_dim).
        settings: Windows.
        size: (height, width) of the picture.

    Yields:
        Rows, columns, and (num_words, rows, columns).
    """
    height, width = pixels.shape[-2:]
    side = settings.window or max(height, width)

    def read_window(top: int, left: int) -> Tensor:
        return pixels[:, top : top + side, left : left + side]

    kind = WindowLogits if isinstance(model, TrainingFreeCLIP) else WindowScores
    scores = kind(model, read_window, (height, width), embeds, settings)
    shrinkage = max(1.0, height * width / (size[0] * size[1]))
    for rows, columns in image_blocks(size, max(1, int(SCORES_PER_BLOCK / len(embeds) / shrinkage))):
        row_taps, column_taps = bilinear_taps(height, size[0], rows), bilinear_taps(width, size[1], columns)
        yield rows, columns, blend(scores.read(row_taps.span, column_taps.span), row_taps, column_taps)


def smooth_words(scores: Tensor, pixels: Tensor, embeds: Tensor, protocol: DenseProtocol) -> Tensor:
    """Smooth by the picture: (num_words, height, width) at its size.

    Args:
        scores: (num_words, height, width).
        pixels: (3, any height, any width), normalised; resized to the picture.
        embeds: (num_words, projection_dim).
        protocol: Which smoothing.
    """
    image = F.interpolate(pixels[None], size=scores.shape[-2:], mode="bilinear", align_corners=False)
    if protocol.smoothing == "pamr":
        return pamr(scores[None], image)[0]
    grid = 224 if protocol.benchmark == "cityscapes" else 80
    options = {"softmax_scale": protocol.softmax_scale}
    options = PEARL_AS_SHIPPED if protocol.smoothing == "propagation_as_shipped" else options
    return propagate(scores[None], image, embeds, grid=grid, **options)[0]


def class_probabilities(scores: Tensor, class_ids: Tensor, softmax_scale: float | None) -> Tensor:
    """From words to classes: the best of a class's words speaks for it.

    Args:
        scores: (num_words, rows, columns).
        class_ids: (num_words,), ascending.
        softmax_scale: Of cosines, for a softmax over words; `None` for probabilities.

    Returns:
        (num_classes, rows, columns).
    """
    if softmax_scale is not None:
        scores = (softmax_scale * scores).softmax(dim=0)
    counts = torch.bincount(class_ids).tolist()
    if max(counts) == 1:
        return scores
    return torch.stack([words.amax(dim=0) for words in scores.split(counts)])


@torch.no_grad()
def label_picture(
    model: nn.Module,
    pixels: Tensor,
    embeds: Tensor,
    class_ids: Tensor,
    protocol: DenseProtocol,
    size: tuple[int, int],
    batch_size: int = 4,
) -> np.ndarray:
    """Label every pixel of a picture by a protocol: (height, width) int64.

    Args:
        model: Any segmenter; a [`TrainingFreeCLIP`] with `softmax_scale=None`, whose logits are cosines.
        pixels: (3, height, width), resized and normalised.
        embeds: (num_words, projection_dim).
        class_ids: (num_words,), ascending: the class of each word.
        protocol: Windows, smoothing, scale and thresholds.
        size: (height, width) of the picture.
        batch_size: Windows per call of the model.
    """
    scale = protocol.softmax_scale if isinstance(model, TrainingFreeCLIP) else None
    settings = replace(protocol.inference(batch_size=batch_size), short_side=0)
    is_whole = protocol.smoothing != "none" or protocol.area_threshold > 0
    if is_whole:
        words = pixels.new_empty(len(embeds), *size)
        for rows, columns, block in read_words(model, pixels, embeds, settings, size):
            words[:, rows, columns] = block
        if protocol.smoothing != "none":
            words = smooth_words(words, pixels, embeds, protocol)
        classes = drop_small(class_probabilities(words, class_ids, scale), protocol.area_threshold)
        return best_class(classes, protocol.threshold).cpu().numpy()
    label_map = np.empty(size, dtype=np.int64)
    for rows, columns, block in read_words(model, pixels, embeds, settings, size):
        classes = class_probabilities(block, class_ids, scale)
        label_map[rows, columns] = best_class(classes, protocol.threshold).cpu().numpy()
    return label_map


def drop_small(classes: Tensor, area_threshold: float) -> Tensor:
    """Take classes of little area out: the next best class gets their pixels, not the background.

    Args:
        classes: (num_classes, height, width) probabilities.
        area_threshold: See [`DenseProtocol`].

    Returns:
        Same shape, 0 where a class was taken out.
    """
    if not area_threshold:
        return classes
    counts = torch.bincount(classes.argmax(dim=0).flatten(), minlength=len(classes))
    counts[0] = 0
    is_small = counts <= area_threshold * counts.sum()
    is_small[0] = False
    return classes.masked_fill(is_small[:, None, None], 0.0)


def best_class(classes: Tensor, threshold: float) -> Tensor:
    """The best class of every pixel, the first of equal ones; 0 where it is less probable than the threshold.

    Args:
        classes: (num_classes, height, width) probabilities.
        threshold: See [`DenseProtocol`].

    Returns:
        (height, width) int64.
    """
    best = classes.argmax(dim=0)
    return best.masked_fill(classes.gather(0, best[None])[0] < threshold, 0) if threshold else best


# ---- the command


def read_settings(given: Sequence[str]) -> dict[str, Any]:
    """Read settings of a method from the command line, each `name=value`.

    Raises:
        ValueError: If one is not of this form.
    """
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--settings {text!r} is not of the form name=value, as residual=1 attention_weight=2.")
        settings[name.strip()] = yaml.safe_load(value)
    return settings


def load_segmenter(
    path: str, protocol: DenseProtocol, method: str | None, settings: Mapping[str, Any], image_stats: str | None
) -> tuple[nn.Module, LDVCProcessor]:
    """Load what is to be scored, with its processor.

    Args:
        path: Folder or Hub id of a CLIP or an LDVC checkpoint.
        protocol: Its settings of the method are taken where none are given.
        method: Of a CLIP.
        settings: Of the method.
        image_stats: Pixel statistics of a CLIP; its own by default.

    Raises:
        ValueError: If a method, its settings or statistics are given for something else than a CLIP, or loading fails.
    """
    if stored_config(path).get("model_type") in CLIP_KINDS:
        own = {k: v for k, v in protocol.settings.items() if settings.get("feedback", True) or "feedback" not in k}
        options = {"softmax_scale": None, "position_interpolation": "bicubic"} | own | dict(settings)
        model = TrainingFreeCLIP.from_pretrained(path, method or DEFAULT_METHOD, **options)
        return model, LDVCProcessor.from_clip_pretrained(path, image_stats=image_stats or "clip")
    for name, value in {"method": method, "settings": settings, "image_stats": image_stats}.items():
        if value:
            raise ValueError(f"--{name} is of a CLIP without training, which {path!r} is not; leave it out.")
    model, processor = loading.load_checkpoint(path, "cpu")
    return model.float(), processor


def encode_words(model: nn.Module, processor: LDVCProcessor, names: NameFile) -> tuple[Tensor, Tensor]:
    """Embeddings of all words of a name file, (num_words, projection_dim), and the (num_words,) class of each.

    A word that stands under two classes is encoded once and keeps both places, as in COCO-Object's usual file.
    """
    words = list(dict.fromkeys(names.words))
    embeds = encode_classes(model, processor, words)[1]
    rows = torch.tensor([words.index(word) for word in names.words], device=embeds.device)
    return embeds[rows], torch.tensor(names.class_ids, device=embeds.device)


def protocol_of(arguments: argparse.Namespace) -> tuple[DenseProtocol, NameFile]:
    """The protocol that the command line names, with its changes, and its names.

    Raises:
        ValueError: If it does not exist, a change is impossible, or the names are not as many as the classes.
    """
    changes = {name: getattr(arguments, name) for name in ("short_side", "window", "stride", "smoothing", "names")}
    changes |= {name: getattr(arguments, name) for name in ("softmax_scale", "threshold", "area_threshold")}
    templates = arguments.prompt_templates
    changes["prompt_templates"] = templates[0] if templates and len(templates) == 1 else templates
    if changes["window"] and changes["stride"] is None:
        changes["stride"] = changes["window"] // 2  # the share of all published ones
    protocol = choose_protocol(arguments.protocol, arguments.method, arguments.protocol_of, **changes)
    is_kind = protocol.names in ("usual", "plain")
    names = read_name_file(arguments.protocol if is_kind else protocol.names, protocol.names if is_kind else "usual")
    num_classes = BENCHMARKS[arguments.protocol].num_classes
    if len(names.classes) != num_classes:
        raise ValueError(f"{names.source} names {len(names.classes)} classes, {arguments.protocol} has {num_classes}.")
    return protocol, names


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load everything, score by the protocol, print the table, write the result."""
    state, started = process_state(), time.perf_counter()
    code_version()  # as it is now, not when the result is written
    protocol, names = protocol_of(arguments)
    benchmark = BENCHMARKS[protocol.benchmark]
    settings = read_settings(arguments.settings or [])
    model, processor = load_segmenter(
        arguments.checkpoint, protocol, arguments.method, settings, arguments.image_stats
    )
    if isinstance(model, TrainingFreeCLIP) or arguments.prompt_templates:
        given = protocol.prompt_templates
        processor.prompt_templates = choose_templates([given] if isinstance(given, str) else given)
    model = model.to(state.device).eval()
    check_label_convention(
        arguments.dataset,
        benchmark.stored_classes,
        reduce_labels=benchmark.reduce_labels,
        revision=arguments.dataset_revision,
    )
    dataset = load_images(arguments)
    embeds, class_ids = encode_words(model, processor, names)
    table = score(model, processor, dataset, protocol, names, embeds, class_ids, arguments.window_batch_size)
    is_training_free = isinstance(model, TrainingFreeCLIP)
    result = {
        "num_images": len(dataset),
        "scores": {"0.0": table},
        "checkpoint": arguments.checkpoint,
        "benchmark": protocol.benchmark,
        "method": model.method if is_training_free else None,
        "method_settings": asdict(model.settings) | asdict(model.feedback) if is_training_free else None,
        "position_interpolation": model.config.position_interpolation,
        "names": {"source": names.source, "sha256": names.sha256, "words": len(names.words)},
        "protocol": asdict(protocol) | {"prompt_templates": list(processor.prompt_templates)},
        "arguments": vars(arguments),
        "num_processes": state.num_processes,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(model.config, dataset, None),
    }
    if state.is_main_process:
        print_result(result)
        if arguments.output:
            write_json(result, arguments.output)
    return result


def score(
    model: nn.Module,
    processor: LDVCProcessor,
    dataset: Any,
    protocol: DenseProtocol,
    names: NameFile,
    embeds: Tensor,
    class_ids: Tensor,
    batch_size: int,
) -> dict[str, Any]:
    """Score a split; every process takes every n-th picture and returns the same table.

    Args:
        model: See `label_picture`.
        processor: Pixel statistics.
        dataset: A map-style split as given by `load_split`.
        protocol: Of the labels.
        names: Of the classes.
        embeds: (num_words, projection_dim).
        class_ids: (num_words,).
        batch_size: Windows per call of the model.

    Returns:
        The table of `finish_table`.
    """
    state, benchmark, pixels_of = PartialState(), BENCHMARKS[protocol.benchmark], processor.image_processor
    vocabulary = Vocabulary(protocol.benchmark, names.class_names)
    metric, areas = evaluate.load(METRIC_PATH), []
    rows = range(state.process_index, len(dataset), state.num_processes)
    for row in tqdm(rows, desc=protocol.benchmark, unit="image", disable=not state.is_main_process):
        image, label_map = read_sample(dataset, row)
        reference = benchmark.map_labels(label_map)
        size = (image.height, image.width)
        settings = protocol.inference(size)
        pixels = prepare_image(image, settings, pixels_of.image_mean, pixels_of.image_std).to(embeds.device)
        prediction = label_picture(model, pixels, embeds, class_ids, protocol, size, batch_size)
        metric.add(prediction=prediction, reference=reference)
        areas.append((row, image_areas(prediction, reference, benchmark.num_classes), reference.size))
    return finish_table(metric, areas, vocabulary, None)


def print_result(result: Mapping[str, Any]) -> None:
    """Show the table, and under it what the numbers depend on."""
    protocol, names = result["protocol"], result["names"]
    table = format_table({result["method"] or "trained": result["scores"]["0.0"]}, COLUMNS)
    window = f"windows of {protocol['window']} every {protocol['stride']}" if protocol["window"] else "whole pictures"
    lines = [
        table,
        f"{BENCHMARKS[protocol['benchmark']].title}; protocol of {protocol['authors']}: short side "
        f"{protocol['short_side']}, {window}, threshold {protocol['threshold']}, smoothing {protocol['smoothing']}, "
        f"{len(protocol['prompt_templates'])} template(s)",
        f"names: {names['source']}, {names['words']} words, sha256 {names['sha256'][:16]}",
    ]
    sys.stdout.write("\n".join([*lines, ""]))
