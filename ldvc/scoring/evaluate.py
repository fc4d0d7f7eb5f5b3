"""The generalised zero-shot protocol, on one or several processes with the same numbers: `ldvc evaluate`.

All classes compete in one arg-max; unlabelled pixels do not count. Scores are given without and with 0.1 subtracted
from the probability of seen classes, as the literature does.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm
from transformers.configuration_utils import PreTrainedConfig

from ldvc import loading
from ldvc.data.check import choose_vocabulary
from ldvc.data.class_lists import check_label_convention
from ldvc.data.folders import read_class_names
from ldvc.data.provenance import check_writable, code_version, provenance, stored_bytes, write_json
from ldvc.data.samples import load_stated_split, map_labels, read_sample
from ldvc.data.vocabularies import PROMPT_TEMPLATES, SEEN_SCORE_OFFSETS, VOCABULARIES, Vocabulary, may_read
from ldvc.model.image_processing_ldvc import best_classes
from ldvc.model.inference_ldvc import InferenceSettings, class_scores, encode_classes, prepare_image
from ldvc.model.processing_ldvc import LDVCProcessor, check_templates
from ldvc.model.weights_ldvc import ADAPTER_CONFIG, weights_fingerprint
from ldvc.places import shipped
from ldvc.processes import process_state
from ldvc.scoring.labels import count_labels, missing_labels
from ldvc.scoring.predictions import KeptPredictions, code_fingerprint
from ldvc.scoring.protocol import (
    PROTOCOL_FILE,
    SCORED_ON_TRAINING_IMAGES,
    checkpoint_fingerprints,
    describe_audit,
    is_of_training_split,
    names_trained_with_masks,
    protocol_mismatches,
    read_protocol,
    shared_names,
)
from ldvc.scoring.signatures import describe_signatures, find_signatures, read_log
from ldvc.segmenters.training_free import TrainingFreeCLIP


METRIC_PATH = str(shipped("metrics/zero_shot_miou"))
BOOTSTRAP_RESAMPLES = 1000
FLOOR_METHOD = "value"  # the training-free CLIP that training must beat
REPORTED = ("pixel_accuracy", "miou_seen", "miou_unseen", "hiou")
COLUMNS = {"pixel_accuracy": "pAcc", "miou_seen": "mIoU(S)", "miou_unseen": "mIoU(U)", "hiou": "hIoU"}
# On another data set no name is "seen": those whose masks trained the model stand beside the new ones.
CROSS_COLUMNS = {
    "pixel_accuracy": "pAcc",
    "miou": "mIoU",
    "miou_seen": "mIoU, names in training",
    "miou_unseen": "mIoU, new names",
}


def permute_names(vocabulary: Vocabulary) -> list[str]:
    """Class names with the unseen ones moved round by one: a control in which every unseen name is wrong.

    Raises:
        ValueError: If there are fewer than two unseen names to exchange.
    """
    names, unseen = list(vocabulary.class_names), vocabulary.scored_unseen_class_ids
    if len(unseen) < 2:
        raise ValueError(f"{vocabulary.name!r} has {len(unseen)} unseen names; at least 2 can change places.")
    for index, class_id in enumerate(unseen):
        names[class_id] = vocabulary.class_names[unseen[(index + 1) % len(unseen)]]
    return names


def image_areas(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> np.ndarray:
    """Count (num_classes, 3) pixels of one image: intersection, predicted, labelled; enough for every score."""
    is_labelled = reference != 255
    prediction, reference = prediction[is_labelled], reference[is_labelled]
    hits = reference[prediction == reference]
    counts = [np.bincount(ids, minlength=num_classes) for ids in (hits, prediction, reference)]
    return np.stack(counts, axis=1).astype(np.int32)


def resample(num_images: int, seed: int = 0) -> np.ndarray:
    """How often each image counts: (1 + 1000 + num_images, num_images) whole numbers, as float64.

    Once each in the first row; then drawn with replacement; then all but one, each left out in turn. A single image
    tells nothing of others and is not resampled: its scores have no interval.
    """
    whole = np.ones((1, num_images))
    if num_images == 1:
        return whole
    shares = np.full(num_images, 1 / num_images)
    draws = np.random.default_rng(seed).multinomial(num_images, shares, size=BOOTSTRAP_RESAMPLES)
    return np.concatenate([whole, draws, 1 - np.eye(num_images)])


def mean_iou(areas: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Mean IoU of some classes for each row of `draws`; NaN where none has a labelled pixel, as in the metric.

    Args:
        areas: (num_images, num_classes, 3) from `image_areas`.
        draws: (num_draws, num_images) from `resample`.

    Returns:
        (num_draws,) fractions.
    """
    totals = (draws @ areas.reshape(len(areas), -1).astype(np.float64)).reshape(len(draws), *areas.shape[1:])
    hits, union = totals[..., 0], totals[..., 1] + totals[..., 2] - totals[..., 0]
    is_there = union > 0
    ious = np.where(is_there, hits / np.maximum(union, 1), 0.0)
    is_labelled = (totals[..., 2] > 0).any(1)
    return np.where(is_labelled, ious.sum(1) / np.maximum(is_there.sum(1), 1), np.nan)


def share(counts: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Share of the counted pixels, (num_draws,), from (num_images, 2) hits and counts; NaN where none is counted."""
    hits, counted = (draws @ counts.astype(np.float64)).T
    return np.where(counted > 0, hits / np.maximum(counted, 1), np.nan)


def interval(values: np.ndarray) -> list[float]:
    """95 % interval of a score, bias-corrected and accelerated; empty where the score or all draws are no numbers.

    Plain quantiles of the draws lie too low for mIoU(U), the mean of few classes, by more than the draws' own chance.

    Args:
        values: The score at each row of `resample`.

    Source: B. Efron, "Better bootstrap confidence intervals", 1987; ties count half, as in SciPy.
    """
    from scipy.stats import norm

    score, draws, without_one = values[0], *np.split(values[1:], [BOOTSTRAP_RESAMPLES])
    draws, without_one = draws[np.isfinite(draws)], without_one[np.isfinite(without_one)]
    if not (np.isfinite(score) and draws.size):
        return []
    share_below = ((draws < score).mean() + (draws <= score).mean()) / 2
    bias = norm.ppf(np.clip(share_below, 0.5 / draws.size, 1 - 0.5 / draws.size))
    influence = without_one.mean() - without_one
    acceleration = (influence**3).sum() / max(6 * (influence**2).sum() ** 1.5, 1e-300)
    shifted = bias + norm.ppf([0.025, 0.975])
    return np.quantile(draws, norm.cdf(bias + shifted / (1 - acceleration * shifted))).tolist()


def bootstrap_intervals(
    areas: np.ndarray, unseen_ids: Sequence[int], left_out_ids: Sequence[int] = (), seed: int = 0
) -> dict[str, list[float]]:
    """95 % intervals of the scores over images, by resampling images with replacement, see `interval`.

    Args:
        areas: (num_images, num_classes, 3) from `image_areas`.
        unseen_ids: Ids of unseen classes.
        left_out_ids: Ids of classes that are neither seen nor unseen.
        seed: Seed of the resampling.

    Returns:
        Score name -> [low, high], fractions; empty where there is none.
    """
    draws = resample(len(areas), seed)
    is_unseen, is_left_out = (np.isin(np.arange(areas.shape[1]), list(ids)) for ids in (unseen_ids, left_out_ids))
    seen, unseen = mean_iou(areas[:, ~is_unseen & ~is_left_out], draws), mean_iou(areas[:, is_unseen], draws)
    both = seen + unseen
    scores = {
        "pixel_accuracy": share(areas[..., [0, 2]].sum(axis=1), draws),
        "miou_seen": seen,
        "miou_unseen": unseen,
        "hiou": np.where(both > 0, 2 * seen * unseen / np.maximum(both, 1e-12), 0 * both),
    }
    return {name: interval(values) for name, values in scores.items()}


def group_scores(
    per_class_iou: Sequence[float],
    unseen_ids: Sequence[int],
    groups: Mapping[str, Sequence[int]],
    labelled_ids: Sequence[int],
    left_out_ids: Sequence[int] = (),
) -> dict:
    """Mean IoU of seen and unseen classes inside groups of classes, such as things and stuff.

    Args:
        per_class_iou: NaN where a class is neither there nor predicted.
        unseen_ids: Ids of unseen classes.
        groups: Ids of classes by title.
        labelled_ids: Classes with a labelled pixel; a group without one has no score, whatever was predicted.
        left_out_ids: Ids of classes that are neither seen nor unseen.
    """
    table = {}
    for group, ids in groups.items():
        for kind, members in (
            ("seen", [i for i in ids if i not in unseen_ids and i not in left_out_ids]),
            ("unseen", [i for i in ids if i in unseen_ids]),
        ):
            present = [per_class_iou[i] for i in members if np.isfinite(per_class_iou[i])]
            has_score = not set(members).isdisjoint(labelled_ids)
            table[f"{group}_{kind}"] = float(np.mean(present)) if has_score else None
    return table


def read_share(
    dataset: Any, processor: LDVCProcessor, settings: InferenceSettings, device: Any, title: str | None = None
) -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """Read every n-th image of a split, as one of n processes.

    Args:
        dataset: A map-style split as given by `load_stated_split`.
        processor: Pixel statistics.
        settings: Size.
        device: Where the pixels go.
        title: Of the progress bar on the first process; `None` draws none.

    Yields:
        Row; (3, height, width) normalised pixels; (height, width) label map with the ids of its file.
    """
    state, statistics = PartialState(), processor.image_processor
    rows = range(state.process_index, len(dataset), state.num_processes)
    for row in tqdm(rows, desc=title, unit="image", disable=title is None or not state.is_main_process):
        image, label_map = read_sample(dataset, row)
        yield row, prepare_image(image, settings, statistics.image_mean, statistics.image_std).to(device), label_map


def evaluate_model(
    model: nn.Module,
    processor: LDVCProcessor,
    dataset: Any,
    vocabulary: Vocabulary,
    settings: InferenceSettings,
    *,
    reduce_labels: bool = False,
    offsets: Sequence[float] = SEEN_SCORE_OFFSETS,
    class_names: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    kept: KeptPredictions | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Score a model on a labelled split; every process takes every n-th image and returns the same result.

    Args:
        model: [`LDVCForSemanticSegmentation`], or a [`TrainingFreeCLIP`].
        processor: Its processor: class prompts and pixel statistics.
        dataset: A map-style split as given by `load_stated_split`.
        vocabulary: Class list and unseen names.
        settings: Size and windows.
        reduce_labels: Label maps count from 1, with 0 for background.
        offsets: What to subtract from the probability of seen classes; one score table for each.
        class_names: Names to encode in place of the vocabulary's, one per class.
        groups: Groups of class ids that are reported apart.
        kept: Predictions that are there already; those that are not are made and kept.
        show_progress: Draw a progress bar on the first process.

    Returns:
        `{"num_images": ..., "scores": {"0.0": {...}, "0.1": {...}}}`; fractions, see the metric's card.

    Raises:
        ValueError: If a sample cannot be read or its ids do not fit the class list.
    """
    was_training = model.training
    model.eval()
    num_classes = len(vocabulary.class_names)
    device = next(model.parameters()).device
    _, embeds = encode_classes(model, processor, class_names or vocabulary.class_names)
    is_seen = torch.isin(torch.arange(num_classes), torch.tensor(vocabulary.seen_class_ids, dtype=torch.long))
    metrics = {offset: evaluate.load(METRIC_PATH) for offset in offsets}
    areas: dict[float, list] = {offset: [] for offset in offsets}
    title = "evaluate" if show_progress else None
    for index, pixels, label_map in read_share(dataset, processor, settings, device, title):
        reference = map_labels(label_map, num_classes, reduce_labels=reduce_labels)
        predictions = kept.read(index, reference.shape) if kept else None
        if predictions is None:
            predictions = predict(class_scores(model, pixels, embeds, settings), is_seen, offsets, reference.shape)
            if kept:
                kept.write(index, predictions)
        for offset, prediction in zip(offsets, predictions, strict=True):
            metrics[offset].add(prediction=prediction, reference=reference)
            areas[offset].append((index, image_areas(prediction, reference, num_classes), reference.size))
    model.train(was_training)
    scores = {str(offset): finish_table(metrics[offset], areas[offset], vocabulary, groups) for offset in offsets}
    return {"num_images": len(dataset), "scores": scores}


def reported_offsets(config: Any) -> list[float]:
    """Offsets of seen scores that a model is scored with: none, the literature's, and its own where it has one."""
    return sorted({*SEEN_SCORE_OFFSETS, float(getattr(config, "seen_score_offset", 0.0))})


def predict(scores: Tensor, is_seen: Tensor, offsets: Sequence[float], size: tuple[int, int]) -> list[np.ndarray]:
    """Take the best class of every pixel, once for each offset of the seen classes.

    A constant per class stays the same under averaging and resizing, so that one pass of the model serves all offsets.

    Args:
        scores: (num_classes, height, width) probabilities.
        is_seen: (num_classes,) bool.
        offsets: What to subtract from the probability of seen classes.
        size: (height, width) of the result.

    Returns:
        One (height, width) int64 map per offset.
    """
    shift = is_seen.to(scores)[:, None, None]
    return [best_classes(scores - offset * shift, size).cpu().numpy() for offset in offsets]


def finish_table(
    metric: evaluate.Metric, areas: list, vocabulary: Vocabulary, groups: Mapping[str, Sequence[int]] | None
) -> dict[str, Any]:
    """Sum one score table over all processes, which must all call this, and add intervals and groups.

    Args:
        metric: This process's counts.
        areas: This process's image indices, each with `image_areas` and the pixels of the image.
        vocabulary: Class list and unseen names.
        groups: Groups of class ids that are reported apart.
    """
    kinds = {"unseen_ids": vocabulary.scored_unseen_class_ids, "left_out_ids": vocabulary.left_out_class_ids}
    table = metric.compute(num_labels=len(vocabulary.class_names), **kinds, across_processes=True)
    everywhere = sorted(gather_object(areas), key=lambda image: image[0])
    counts = np.stack([counts for _, counts, _ in everywhere])
    table["labelled_share"] = float(counts[..., 2].sum() / sum(size for *_, size in everywhere))
    table["intervals"] = bootstrap_intervals(counts, **kinds)
    if groups:
        labelled_ids = np.flatnonzero(counts[..., 2].sum(axis=0)).tolist()
        table["groups"] = group_scores(table["per_class_iou"], groups=groups, labelled_ids=labelled_ids, **kinds)
    return table


def format_table(rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str] = COLUMNS) -> str:
    """Render score tables as Markdown, in percent with one decimal.

    Args:
        rows: Row title -> scores of `evaluate_model` for one offset.
        columns: Score -> title of its column.
    """
    if any("miou_left_out" in scores for scores in rows.values()):
        columns = {**columns, "miou_left_out": "mIoU(left out)"}
    groups = sorted({group for scores in rows.values() for group in scores.get("groups", {})})
    heads = ["", *columns.values(), *(group.replace("_", " ") for group in groups), "fragments"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for title, scores in rows.items():
        values = [scores.get(name) for name in columns] + [scores.get("groups", {}).get(group) for group in groups]
        cells = ["-" if value is None or not np.isfinite(value) else f"{100 * value:.1f}" for value in values]
        fragments = scores["fragmentation"]["components_per_class_and_image"]
        lines.append("| " + " | ".join([title, *cells, f"{fragments:.2f}"]) + " |")
    return "\n".join(lines)


def stored_config(checkpoint: str) -> dict[str, Any]:
    """The configuration of a checkpoint or adapter as written; fields at their default may be left out.

    Raises:
        OSError: If there is no such checkpoint.
    """
    adapter = Path(checkpoint) / ADAPTER_CONFIG
    if adapter.is_file():
        return json.loads(adapter.read_text())["config"]
    try:
        return PreTrainedConfig.get_config_dict(checkpoint)[0]
    except OSError as error:
        reason = loading.one_line(error)
        raise OSError(
            f"no LDVC checkpoint can be read from {checkpoint!r}; give a folder or Hub id ({reason})"
        ) from error


def load_checkpoint(
    path: str, training_free: bool = False, image_stats: str = "imagenet", **config_fields: Any
) -> tuple[nn.Module, LDVCProcessor]:
    """Load an LDVC checkpoint with its processor, or a CLIP as the training-free baseline.

    A folder that holds an adapter alone (`save_adapter_only`) is put on the CLIP that it names.

    Args:
        path: Folder or Hub id.
        training_free: It is a CLIP.
        image_stats: Pixel statistics of a CLIP.
        config_fields: Fields of `LDVCConfig` to change in an LDVC checkpoint; of a CLIP, settings of
            [`TrainingFreeCLIP`], whose logits are cosines here.

    Raises:
        OSError: If there is no such checkpoint.
        ValueError: If it is of the wrong kind, or not whole.
    """
    is_adapter = (Path(path) / ADAPTER_CONFIG).is_file()
    kind = "ldvc" if is_adapter else stored_config(path).get("model_type")
    expected = "clip" if training_free else "ldvc"
    if kind == "clipseg" and not training_free:
        return loading.load(path, "cpu", "float32")
    if kind != expected:
        raise ValueError(
            f"{path!r} holds a {kind!r} model, not {expected!r}; --training_free scores a CLIP, without it an LDVC "
            "checkpoint is scored."
        )
    if training_free:
        clip = TrainingFreeCLIP.from_pretrained(
            path, **{"method": FLOOR_METHOD, "softmax_scale": None} | config_fields
        )
        return clip, LDVCProcessor.from_clip_pretrained(path, image_stats=image_stats)
    model, processor = loading.load_checkpoint(path, "cpu", **config_fields)
    return model.float(), processor


def choose_classes(arguments: argparse.Namespace) -> Vocabulary:
    """Choose the class list: stated, or that in the dataset's folder, or VOC's; held against the dataset's own ids.

    Raises:
        ValueError: If there are two lists, or the dataset was made for another one.
    """
    vocabulary = arguments.vocabulary
    if not (vocabulary or arguments.class_names):
        listed = read_class_names(arguments.dataset)
        vocabulary = next((v.name for v in VOCABULARIES.values() if listed in (None, list(v.class_names))), None)
    if vocabulary and not may_read(vocabulary, arguments.split):
        raise ValueError(
            f"--split {arguments.split} with the vocabulary {vocabulary!r}, by which settings are chosen: use --split "
            "validation, or the vocabulary whose scores are reported."
        )
    chosen = choose_vocabulary(arguments.dataset, arguments.class_names, arguments.unseen_classes, vocabulary)
    chosen = chosen.with_seen_share(arguments.seen_share)
    check_label_convention(
        arguments.dataset,
        chosen.class_names,
        reduce_labels=arguments.reduce_labels,
        revision=arguments.dataset_revision,
    )
    return chosen


def choose_templates(given: Sequence[str]) -> list[str]:
    """Prompt templates, or those of a name in `PROMPT_TEMPLATES`."""
    named = PROMPT_TEMPLATES.get(given[0]) if len(given) == 1 else None
    return check_templates(named or given)


def audit_checkpoint(arguments: argparse.Namespace, vocabulary: Vocabulary, model: nn.Module) -> dict[str, Any]:
    """Hold a checkpoint's audit against the protocol it is to be scored under.

    Args:
        arguments: Of the command line.
        vocabulary: Classes and split.
        model: The checkpoint, loaded.

    Returns:
        `status`: "matches", "mismatch", "unaudited" (nobody counted all that trained the weights) or
        "training_free"; `findings`: sentences; the `setting` of the scores, the setting it was `trained` in, the
        names trained with masks, and the `seed` of the training.

    Raises:
        ValueError: If they do not match and `--allow_protocol_mismatch` is not given, or protocol.json is damaged.
    """
    audit = {"status": "training_free", "setting": arguments.setting, "trained": None, "findings": []}
    if arguments.training_free:
        return audit | {"names_trained_with_masks": []}
    seen_classes = getattr(model.config, "seen_classes", None)  # a CLIPSeg does not say
    protocol = read_protocol(arguments.checkpoint)
    if protocol is None:
        finding = f"{arguments.checkpoint!r} has no {PROTOCOL_FILE}: which masks trained it, nobody counted"
        audit |= {"status": "unaudited", "findings": [finding], "names_trained_with_masks": seen_classes or []}
        holds_out = arguments.setting in ("inductive", "transductive")
        saw = shared_names(vocabulary.unseen_names, seen_classes or []) if holds_out else []
        findings = [f"its configuration says that masks of the unseen classes {saw} trained it"] if saw else []
    else:
        fingerprints = checkpoint_fingerprints(model)
        findings = protocol_mismatches(protocol, arguments.setting, vocabulary, seen_classes, fingerprints)
    if findings and not arguments.allow_protocol_mismatch:
        raise ValueError(
            f"{arguments.checkpoint!r} cannot be scored as {arguments.setting}: {'; '.join(findings)}. Choose the "
            "--setting, --vocabulary and --seen_share that it was trained with, or mark the result with "
            "--allow_protocol_mismatch."
        )
    if protocol is None:
        return audit | {"status": "mismatch", "findings": findings} if findings else audit
    return {
        **({"status": "mismatch", "findings": findings} if findings else describe_audit(protocol)),
        "setting": arguments.setting,
        "trained": protocol["setting"],
        "names_trained_with_masks": names_trained_with_masks(protocol),
        "training_data_fingerprint": protocol.get("dataset_fingerprint"),
        "seed": protocol.get("seed"),
    }


def check_offsets(offsets: Sequence[float]) -> None:
    """Check that every offset is a number and has a table of its own.

    Raises:
        ValueError: If not.
    """
    repeated = sorted({offset for offset in offsets if list(offsets).count(offset) > 1})
    if repeated or not np.isfinite(offsets).all():
        what = f"repeat {repeated[0]}" if repeated else "are not all finite"
        raise ValueError(f"--offsets {' '.join(map(str, offsets))} {what}: give each number once.")


FLOOR_SPLIT = ("seen_share", "unseen_classes")  # arguments that decide which classes a mean is of


def load_floor(arguments: argparse.Namespace, vocabulary: Vocabulary, fingerprint: str) -> dict[str, Any]:
    """Read the score table of a training-free result.

    Args:
        arguments: Of this run; `floor` is the file.
        vocabulary: Of this run.
        fingerprint: Of its images.

    Raises:
        ValueError: If the file is no result, or one of other images, classes or split.
    """
    path, split = arguments.floor, tuple(getattr(arguments, key) for key in FLOOR_SPLIT)
    try:
        result = json.loads(Path(path).read_text())
        scores = result["scores"]["0.0"]
        found = (result["vocabulary"], result["dataset_fingerprint"])
        their_split = tuple(result["protocol"][key] for key in FLOOR_SPLIT)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--floor {path!r} is no result of this command ({error!r}); write it with --output."
        ) from error
    if found != (vocabulary.name, fingerprint):
        raise ValueError(
            f"--floor {path!r} was scored on {found[0]!r}, data {found[1]}, this run on {vocabulary.name!r}, data "
            f"{fingerprint}; score CLIP on the same images with --training_free."
        )
    if their_split != split:
        raise ValueError(
            f"--floor {path!r} was scored with {dict(zip(FLOOR_SPLIT, their_split, strict=True))}, this run with "
            f"{dict(zip(FLOOR_SPLIT, split, strict=True))}; score CLIP with the same ones."
        )
    return scores


def find_history(checkpoint: str) -> list[dict[str, Any]]:
    """Scores over training, from the log beside a checkpoint; empty without one."""
    return [record for record in read_log(Path(checkpoint) / "log.jsonl") if "miou_unseen" in record]


def load_images(arguments: argparse.Namespace) -> Any:
    """Load the split that the command line names."""
    return load_stated_split(arguments, arguments.split, num_images=arguments.num_images)


def images_fingerprint(dataset: Any) -> str:
    """SHA-256 of all pictures as they are stored: scores are traced by labels, kept maps depend on pictures."""
    from datasets import Image

    digest = hashlib.sha256()
    for row in dataset.select_columns("image").cast_column("image", Image(decode=False)):
        digest.update(stored_bytes(row["image"]))
    return digest.hexdigest()


def describe_predictions(
    arguments: argparse.Namespace,
    model: nn.Module,
    processor: LDVCProcessor,
    settings: InferenceSettings,
    trace: Mapping[str, Any],
    dataset: Any,
) -> dict[str, Any]:
    """Say what label maps depend on, classes aside, so that none of another evaluation is taken for one of this."""
    pixels = processor.image_processor
    return {
        "weights_sha256": weights_fingerprint(model.state_dict()),
        "images_sha256": images_fingerprint(dataset),
        "code_sha256": code_fingerprint(),
        "prompt_templates": processor.prompt_templates,
        "image_mean_and_std": [pixels.image_mean, pixels.image_std],
        "inference": asdict(settings),
        **{name: getattr(arguments, name) for name in ("dataset", "dataset_config", "dataset_revision")},
        **{name: getattr(arguments, name) for name in ("split", "image_column")},
        **{name: trace[name] for name in ("config_sha256", "dataset_fingerprint", "versions")},
    }


def look_at_split(
    arguments: argparse.Namespace, dataset: Any, vocabulary: Vocabulary, fingerprint: str
) -> dict[str, Any]:
    """Say of a split, before it is scored, what its scores can be of.

    Args:
        arguments: Of the command line.
        dataset: The split.
        vocabulary: Classes and split.
        fingerprint: `dataset_fingerprint` of the split.

    Returns:
        `labelled_pixels` by class name, `missing_labels` in one line, and whether these pictures trained the model.
    """
    labelled = count_labels(dataset, vocabulary, arguments.reduce_labels, arguments.split)
    protocol = None if arguments.training_free else read_protocol(arguments.checkpoint)
    return {
        "labelled_pixels": labelled,
        "missing_labels": missing_labels(labelled, vocabulary),
        "scored_on_training_images": protocol is not None
        and is_of_training_split(protocol, arguments.dataset, arguments.split, fingerprint),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load everything, score, print the table, write the result."""
    check_offsets(arguments.offsets or ())
    check_writable(arguments.output)
    code_version()  # as it is now, not when the result is written
    state, started, vocabulary = process_state(), time.perf_counter(), choose_classes(arguments)
    settings = InferenceSettings(arguments.short_side, arguments.window, arguments.stride, arguments.window_batch_size)
    fields = {"method": arguments.method} if arguments.training_free else {}
    model, processor = load_checkpoint(arguments.checkpoint, arguments.training_free, arguments.image_stats, **fields)
    audit = audit_checkpoint(arguments, vocabulary, model)
    is_cross = arguments.setting == "cross_dataset"
    offsets = arguments.offsets or reported_offsets(model.config)
    offsets = [0.0] if arguments.training_free else offsets  # of cosines it would take every seen class
    if is_cross:  # one list without a split, so that an offset would lower all alike
        known = shared_names(vocabulary.class_names, audit["names_trained_with_masks"])
        new = tuple(name for name in vocabulary.class_names if name not in known)
        vocabulary, offsets = Vocabulary(vocabulary.name, vocabulary.class_names, new), [0.0]
    dataset = load_images(arguments)
    trace = provenance(model.config, dataset, audit.get("seed"))
    looked_at = look_at_split(arguments, dataset, vocabulary, trace["dataset_fingerprint"])
    floor = load_floor(arguments, vocabulary, trace["dataset_fingerprint"]) if arguments.floor else None
    if arguments.prompt_templates:
        processor.prompt_templates = choose_templates(arguments.prompt_templates)
    names = permute_names(vocabulary) if arguments.permute_unseen_names else list(vocabulary.class_names)
    kept = None
    if arguments.predictions:
        made_by = describe_predictions(arguments, model, processor, settings, trace, dataset)
        made_by |= {"class_names": names, "seen_class_ids": list(vocabulary.seen_class_ids), "offsets": offsets}
        kept = KeptPredictions(arguments.predictions, made_by, vocabulary.class_names, offsets)
    result = looked_at | evaluate_model(
        model.to(state.device),
        processor,
        dataset,
        vocabulary,
        settings,
        reduce_labels=arguments.reduce_labels,
        offsets=offsets,
        class_names=names,
        kept=kept,
    )
    history = [] if is_cross or arguments.training_free else find_history(arguments.checkpoint)
    signatures = find_signatures(next(iter(result["scores"].values())), history, floor)
    result |= {
        "checkpoint": arguments.checkpoint,
        "vocabulary": vocabulary.name,
        "setting": arguments.setting,
        "audit": audit,
        "signatures": describe_signatures(signatures),
        "protocol": vars(arguments) | {"inference": asdict(settings)},
        "num_processes": state.num_processes,
        "seconds": round(time.perf_counter() - started, 1),
        **trace,
    }
    if is_cross:
        result["names"] = {"in_training": known, "new": list(new)}
    if state.is_main_process:
        print_result(result)
        if arguments.output:
            write_json(result, arguments.output)
    return result


def print_result(result: Mapping[str, Any]) -> None:
    """Show the table, and under it everything that a reader of the numbers must know."""
    is_cross = result["setting"] == "cross_dataset"
    rows = {f"offset {offset}": scores for offset, scores in result["scores"].items()}
    lines = [format_table(rows, CROSS_COLUMNS if is_cross else COLUMNS)]
    if is_cross:
        names = result["names"]
        lines.append(f"names with masks in training: {', '.join(names['in_training']) or 'none'}")
        lines.append(f"new names: {', '.join(names['new']) or 'none'}")
        lines.append("names are compared by spelling: a synonym of a trained name (couch, sofa) counts as new")
    audit = result["audit"]
    if audit["status"] in ("mismatch", "unaudited"):
        lines.append(f"{audit['status'].upper()}: {'; '.join(audit['findings'])}")
    if result["missing_labels"]:
        lines.append(result["missing_labels"])
    if result["scored_on_training_images"]:
        lines.append(SCORED_ON_TRAINING_IMAGES)
    lines += [signature["message"] for signature in result["signatures"]]
    sys.stdout.write("\n".join([*lines, ""]))
