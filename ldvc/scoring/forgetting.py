"""What fine-tuning cost: a model before and after, on the labels that trained it, on others, and on absent ones.

`ldvc forgetting --help` says how the three groups are scored.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset, disable_progress_bars
from torch import Tensor, nn

from ldvc.data.check import choose_vocabulary, parse_names
from ldvc.data.class_lists import check_label_convention
from ldvc.data.folders import read_class_names
from ldvc.data.provenance import check_writable, provenance, write_json
from ldvc.data.samples import IGNORE_INDEX, load_stated_split, map_labels
from ldvc.data.vocabularies import Vocabulary
from ldvc.model.image_processing_ldvc import best_classes
from ldvc.model.inference_ldvc import InferenceSettings, class_scores, encode_classes
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.model.weights_ldvc import weights_fingerprint
from ldvc.processes import process_state
from ldvc.scoring.evaluate import (
    image_areas,
    interval,
    load_checkpoint,
    mean_iou,
    read_share,
    resample,
    share,
)


__all__ = ["Checkpoint", "Measurement", "compare", "format_report", "group_names", "measure"]

CLAIM_PROBABILITY = 0.5  # where post-processing would draw a mask
NUM_WORST_CLASSES = 10  # in the printed table; the JSON has all
ABSENT_ROWS = {
    "taken": "absent names among the right ones: pixels taken",
    "claimed_on_seen": "absent names alone: pixels of seen classes claimed",
    "claimed_elsewhere": "absent names alone: other pixels claimed",
}


@dataclass(frozen=True)
class Checkpoint:
    """A model, its processor, and what trained it.

    Attributes:
        path: Folder or Hub id.
        model: [`LDVCForSemanticSegmentation`], or a `TrainingFreeCLIP`.
        processor: Class prompts and pixel statistics.
        is_training_free: Whether it is CLIP as it is, whose scores are no probabilities.
    """

    path: str
    model: nn.Module
    processor: LDVCProcessor
    is_training_free: bool = False

    @property
    def seen_classes(self) -> list[str] | None:
        """Names whose masks trained it; `None` if nobody wrote them down."""
        return [] if self.is_training_free else self.model.config.seen_classes


@dataclass(frozen=True)
class Measurement:
    """One checkpoint on one dataset.

    Attributes:
        areas: (num_images, num_classes, 3) pixels: intersection, predicted, labelled.
        absent: (num_images, 3, 2) pixels per row of `ABSENT_ROWS`: wrong, and counted.
    """

    areas: np.ndarray
    absent: np.ndarray


def load(path: str, device: Any, training_free: bool = False, image_stats: str = "imagenet") -> Checkpoint:
    """Load a checkpoint, or a CLIP as the training-free baseline."""
    model, processor = load_checkpoint(path, training_free, image_stats)
    return Checkpoint(path, model.to(device).eval(), processor, training_free)


def check_pair(before: Checkpoint, after: Checkpoint) -> None:
    """Refuse two checkpoints that are not one model before and after.

    Raises:
        ValueError: If their CLIPs differ, or nobody knows what trained AFTER.
    """
    fingerprints = [weights_fingerprint(checkpoint.model.clip.state_dict()) for checkpoint in (before, after)]
    if fingerprints[0] != fingerprints[1]:
        raise ValueError(
            f"{before.path!r} and {after.path!r} hold different CLIPs, which no training changes: they are not one "
            "model before and after. Compare checkpoints of the same CLIP."
        )
    if not after.seen_classes:
        raise ValueError(
            f"{after.path!r} does not say which classes trained it (seen_classes of its configuration): give a "
            "checkpoint written by train.py."
        )


def check_vocabulary(vocabulary: Vocabulary, after: Checkpoint) -> None:
    """Refuse a class list that contradicts what trained AFTER.

    Raises:
        ValueError: Names the classes at fault.
    """
    missing = [name for name in after.seen_classes if name not in vocabulary.class_names]
    if missing:
        raise ValueError(
            f"{after.path!r} was trained on {missing}, which the class list lacks: give the list of its own training "
            "set, in the order of the ids."
        )
    trained = [name for name in vocabulary.unseen_names if name in after.seen_classes]
    if trained:
        raise ValueError(
            f"{trained} are named unseen, but their masks trained {after.path!r}: take them out of --unseen_classes."
        )


def group_names(vocabulary: Vocabulary, before: Checkpoint, after: Checkpoint) -> dict[str, list[str]]:
    """Sort the class list into groups by what trained the checkpoints; empty groups are left out."""
    names = vocabulary.class_names
    unseen = [name for name in names if name not in after.seen_classes]
    groups = {
        "seen": [name for name in names if name in after.seen_classes],
        "unseen": unseen,
        "unseen, trained before": [name for name in unseen if name in (before.seen_classes or ())],
    }
    return {title: members for title, members in groups.items() if members}


# ---- measuring


@dataclass(frozen=True)
class Picture:
    """A picture that a checkpoint can be asked about, again and again with other names.

    Attributes:
        checkpoint: Whom to ask.
        pixels: (3, height, width), normalised.
        size: (height, width) of the answers.
        embeds: (num_names, projection_dim) of all names.
        settings: Windows.
    """

    checkpoint: Checkpoint
    pixels: Tensor
    size: tuple[int, int]
    embeds: Tensor
    settings: InferenceSettings

    def winners(self, ids: Sequence[int], floor: float | None = None) -> np.ndarray:
        """Ask for some names: (height, width) positions in `ids`, or `len(ids)` where none reaches `floor`."""
        scores = class_scores(self.checkpoint.model, self.pixels, self.embeds[list(ids)], self.settings)
        if floor is not None:  # one more class of constant score, which resizing leaves as it is
            scores = torch.cat([scores, torch.full_like(scores[:1], floor)])
        return best_classes(scores, self.size).cpu().numpy()


def read_pictures(
    checkpoint: Checkpoint, dataset: Dataset, names: Sequence[str], settings: InferenceSettings, show_progress: bool
) -> Iterator[tuple[int, Picture, np.ndarray]]:
    """Yield this process's share of a split.

    Args:
        checkpoint: Whom to ask.
        dataset: A map-style split as given by `load_stated_split`.
        names: Names to ask for.
        settings: Size and windows.
        show_progress: Draw a progress bar on the first process.

    Yields:
        Row, picture, and label map (height, width) with the ids of its file.
    """
    _, embeds = encode_classes(checkpoint.model, checkpoint.processor, names)
    title = f"score {checkpoint.path}" if show_progress else None
    for row, pixels, label_map in read_share(dataset, checkpoint.processor, settings, embeds.device, title):
        yield row, Picture(checkpoint, pixels, label_map.shape, embeds, settings), label_map


def measure(
    checkpoint: Checkpoint,
    dataset: Dataset,
    vocabulary: Vocabulary,
    trained_names: Sequence[str],
    settings: InferenceSettings,
    *,
    absent_names: Sequence[str] = (),
    reduce_labels: bool = False,
    show_progress: bool = True,
) -> Measurement:
    """Score a checkpoint on a labelled split; every process takes every n-th picture and returns the same result.

    Args:
        checkpoint: Whom to ask.
        dataset: A map-style split as given by `load_stated_split`.
        vocabulary: Class names in the order of the ids.
        trained_names: Names whose masks trained AFTER; never asked for as absent.
        settings: Size and windows.
        absent_names: Further names of things that no picture shows.
        reduce_labels: Label maps count from 1, with 0 for background.
        show_progress: Draw a progress bar on the first process.

    Raises:
        ValueError: If a sample cannot be read or its ids do not fit the class list.
    """
    num_classes, names = len(vocabulary.class_names), [*vocabulary.class_names, *absent_names]
    trained = [i for i, name in enumerate(names) if name in trained_names]
    counts = []
    for row, picture, label_map in read_pictures(checkpoint, dataset, names, settings, show_progress):
        reference = map_labels(label_map, num_classes, reduce_labels=reduce_labels)
        areas = image_areas(picture.winners(range(num_classes)), reference, num_classes)
        counts.append((row, areas, absent_areas(picture, reference, len(names), trained)))
    counts = sorted(gather_object(counts), key=lambda count: count[0])
    return Measurement(np.stack([areas for _, areas, _ in counts]), np.stack([absent for *_, absent in counts]))


def absent_areas(picture: Picture, reference: np.ndarray, num_names: int, trained: Sequence[int]) -> np.ndarray:
    """Ask a picture for what is not in it; only labelled pixels count, as only they are known to show something else.

    Args:
        picture: What to ask.
        reference: (height, width) class ids or 255.
        num_names: Names that can be asked for.
        trained: Those whose masks trained AFTER.

    Returns:
        (3, 2) pixels per row of `ABSENT_ROWS`: claimed, and counted. Nothing is counted alone for CLIP without
        training, whose cosines are no probabilities.
    """
    result = np.zeros((len(ABSENT_ROWS), 2), dtype=np.int64)
    is_labelled = reference != IGNORE_INDEX
    present = np.unique(reference[is_labelled]).tolist()
    absent = [i for i in range(num_names) if i not in present and i not in trained]
    if not absent or not present:
        return result
    taken = picture.winners([*present, *absent]) >= len(present)
    result[0] = (taken & is_labelled).sum(), is_labelled.sum()
    if not picture.checkpoint.is_training_free:
        claimed = picture.winners(absent, floor=CLAIM_PROBABILITY) < len(absent)
        is_seen = np.isin(reference, trained)
        for position, region in enumerate((is_seen, is_labelled & ~is_seen), start=1):
            result[position] = (claimed & region).sum(), region.sum()
    return result


def measure_claims(
    checkpoint: Checkpoint,
    dataset: Dataset,
    groups: Mapping[str, Sequence[str]],
    settings: InferenceSettings,
    show_progress: bool = True,
) -> np.ndarray:
    """Ask pictures that show none of the names for each group of them; all pixels count, label maps are not used.

    Returns:
        (num_images, num_groups, 2) pixels: claimed at a probability of 0.5, and counted; none counted for CLIP
        without training.
    """
    names = [name for members in groups.values() for name in members]
    ids = [[names.index(name) for name in members] for members in groups.values()]
    counts = []
    for row, picture, label_map in read_pictures(checkpoint, dataset, names, settings, show_progress):
        claims = np.zeros((len(groups), 2), dtype=np.int64)
        if not checkpoint.is_training_free:
            for position, members in enumerate(ids):
                winners = picture.winners(members, floor=CLAIM_PROBABILITY)
                claims[position] = (winners < len(members)).sum(), label_map.size
        counts.append((row, claims))
    return np.stack([claims for _, claims in sorted(gather_object(counts), key=lambda count: count[0])])


# ---- comparing


def compare(
    before: Measurement, after: Measurement, vocabulary: Vocabulary, groups: Mapping[str, Sequence[str]], seed: int = 0
) -> dict[str, Any]:
    """Scores of both checkpoints and their differences.

    Args:
        before: Counts of the first checkpoint.
        after: Counts of the second on the same images.
        vocabulary: Class names in the order of the ids.
        groups: From `group_names`.
        seed: Of the resampling.

    Returns:
        `groups`, `absent`: title -> `before`, `after`, `difference` (fractions, or `None`) and `interval`, the 95 %
        interval of the difference; `per_class`: name -> `before`, `after`, `difference`.
    """
    draws = resample(len(before.areas), seed)
    result: dict[str, Any] = {"groups": {}, "absent": {}, "per_class": {}}
    for title, members in groups.items():
        ids = [vocabulary.class_names.index(name) for name in members]
        result["groups"][title] = difference(*(mean_iou(m.areas[:, ids], draws) for m in (before, after)))
    for position, row in enumerate(ABSENT_ROWS):
        result["absent"][row] = difference(*(share(m.absent[:, position], draws) for m in (before, after)))
    for class_id, name in enumerate(vocabulary.class_names):
        scores = [mean_iou(m.areas[:, [class_id]], draws[:1]) for m in (before, after)]
        result["per_class"][name] = {key: value for key, value in difference(*scores).items() if key != "interval"}
    return result


def difference(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Two scores (the first value of each) and the interval of their paired difference (the others)."""
    gain = after - before
    values = {"before": before[0], "after": after[0], "difference": gain[0]}
    result: dict[str, Any] = {key: float(value) if np.isfinite(value) else None for key, value in values.items()}
    result["interval"] = interval(gain) or None
    return result


# ---- reporting


def format_report(report: Mapping[str, Any]) -> str:
    """Render a report as Markdown: a table of groups per dataset, and the classes that lost most."""
    lines = [f"# {report['before']} -> {report['after']}", ""]
    for section in report["sections"]:
        lines += [f"## {section['title']}", "", f"{section['num_images']} images of {section['dataset']}.", ""]
        lines += ["| in percent | before | after | difference | 95 % interval |", "|---|---|---|---|---|"]
        for title, row in section["groups"].items():
            lines.append(_format_row(f"{title}: mIoU over {len(section['group_names'][title])}", row))
        lines += [_format_row(ABSENT_ROWS[title], row) for title, row in section["absent"].items()]
        lines += ["", *_worst_classes(section), ""]
    if report.get("other_pictures"):
        lines += ["## Pictures that show none of the names", ""]
        lines += ["| in percent | before | after | difference | 95 % interval |", "|---|---|---|---|---|"]
        rows = report["other_pictures"]["groups"].items()
        lines += [_format_row(f"{title} names alone: pixels claimed", row) for title, row in rows] + [""]
    return "\n".join([*lines, *_verdict(report)])


def _format_row(title: str, row: Mapping[str, Any]) -> str:
    cells = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("before", "after")]
    cells.append("-" if row["difference"] is None else f"{100 * row['difference']:+.1f}")
    cells.append(" to ".join(f"{100 * edge:+.1f}" for edge in row["interval"]) if row["interval"] else "-")
    return "| " + " | ".join([title, *cells]) + " |"


def _worst_classes(section: Mapping[str, Any]) -> list[str]:
    """The classes that lost most IoU, if any did."""
    losses = {name: row for name, row in section["per_class"].items() if (row["difference"] or 0) < 0}
    if not losses:
        return ["No class lost."]
    worst = sorted(losses, key=lambda name: losses[name]["difference"])[:NUM_WORST_CLASSES]
    listed = (f"{name} {100 * losses[name]['before']:.1f} to {100 * losses[name]['after']:.1f}" for name in worst)
    return ["Lost most (IoU): " + "; ".join(listed) + "."]


def _verdict(report: Mapping[str, Any]) -> list[str]:
    """Say what changed for the worse beyond chance."""
    found = []
    for section in report["sections"]:
        rows = [(title, row, -1) for title, row in section["groups"].items()]
        rows += [(ABSENT_ROWS[title], row, 1) for title, row in section["absent"].items()]
        for title, row, worse in rows:
            if row["interval"] and min(worse * edge for edge in row["interval"]) > 0:
                found.append(f"- {section['title']}, {title}: {100 * row['difference']:+.1f} points")
    for title, row in (report.get("other_pictures") or {"groups": {}})["groups"].items():
        if row["interval"] and min(row["interval"]) > 0:
            found.append(f"- Other pictures, {title} names alone: {100 * row['difference']:+.1f} points")
    if not found:
        return ["Nothing got worse beyond chance."]
    remedy = "A lower learning_rate, fewer max_steps, or pictures of the old classes in the training set keep more."
    return ["Worse beyond chance:", *found, "", remedy]


# ---- command line


def choose_labels(arguments: argparse.Namespace, prefix: str, checkpoint: Checkpoint) -> Vocabulary:
    """Class list of `--dataset` (no prefix) or of `--old_dataset`: stated, in its folder, or the checkpoint's own.

    Raises:
        ValueError: If there is no class list, or two.
    """
    dataset, class_names, vocabulary = (
        getattr(arguments, prefix + key) for key in ("dataset", "class_names", "vocabulary")
    )
    unseen = None if prefix else arguments.unseen_classes
    if class_names or vocabulary or read_class_names(dataset):
        return choose_vocabulary(dataset, class_names, unseen, vocabulary)
    if checkpoint.is_training_free:
        raise ValueError(f"{checkpoint.path!r} is a CLIP and has no class list: give --{prefix}class_names.")
    names = tuple(checkpoint.model.config.id2label.values())
    return Vocabulary("own", names, tuple(parse_names(unseen)) if unseen else ())


def load_data(arguments: argparse.Namespace, prefix: str = "") -> Dataset:
    """Load the split that is scored, of `--dataset` or of another by the prefix of its options."""
    given = {key.removeprefix(prefix): value for key, value in vars(arguments).items() if key.startswith(prefix)}
    return load_stated_split(argparse.Namespace(**given), given["split"], num_images=arguments.num_images)


def score_section(
    arguments: argparse.Namespace, prefix: str, before: Checkpoint, after: Checkpoint, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Both checkpoints on `--dataset` or `--old_dataset`."""
    name, reduce_labels = getattr(arguments, f"{prefix}dataset"), getattr(arguments, f"{prefix}reduce_labels")
    revision = getattr(arguments, f"{prefix}dataset_revision")
    check_label_convention(name, vocabulary.class_names, reduce_labels=reduce_labels, revision=revision)
    dataset = load_data(arguments, prefix)
    absent = parse_names(arguments.absent_names) if arguments.absent_names else []
    measured = [
        measure(
            checkpoint,
            dataset,
            vocabulary,
            after.seen_classes,
            inference_settings(arguments),
            absent_names=[other for other in absent if other not in vocabulary.class_names],
            reduce_labels=reduce_labels,
        )
        for checkpoint in (before, after)
    ]
    groups = group_names(vocabulary, before, after)
    return {
        "title": "Old labels" if prefix else "New labels",
        "dataset": name,
        "num_images": len(dataset),
        "class_names": list(vocabulary.class_names),
        "group_names": groups,
        **compare(*measured, vocabulary, groups),
        **provenance(after.model.config, dataset),
    }


def score_other_pictures(
    arguments: argparse.Namespace, before: Checkpoint, after: Checkpoint, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Both checkpoints on pictures that show none of the names."""
    dataset = load_data(arguments, "absent_")
    groups = {title: names for title, names in group_names(vocabulary, before, after).items() if "," not in title}
    settings, draws = inference_settings(arguments), resample(len(dataset))
    claims = [measure_claims(checkpoint, dataset, groups, settings) for checkpoint in (before, after)]
    rows = {
        title: difference(*(share(counts[:, position], draws) for counts in claims))
        for position, title in enumerate(groups)
    }
    return {"dataset": arguments.absent_dataset, "num_images": len(dataset), "groups": rows}


def inference_settings(arguments: argparse.Namespace) -> InferenceSettings:
    """Size and windows, as `ldvc evaluate` takes them."""
    return InferenceSettings(arguments.short_side, arguments.window, arguments.stride, arguments.window_batch_size)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load everything, score, print and write the report.

    Raises:
        ValueError: If the checkpoints or class lists do not fit together.
    """
    if Path(arguments.output or "x.json").suffix == ".md":
        raise ValueError(f"--output {arguments.output!r} is for the figures: name a .json file; tables go beside it.")
    check_writable(arguments.output)
    state = process_state()
    disable_progress_bars()  # one bar, ours
    inference_settings(arguments)
    before = load(arguments.before, state.device, arguments.training_free_before, arguments.image_stats)
    after = load(arguments.after, state.device)
    check_pair(before, after)
    vocabulary = choose_labels(arguments, "", after)
    check_vocabulary(vocabulary, after)
    report: dict[str, Any] = {
        "before": arguments.before,
        "after": arguments.after,
        "trained_before": before.seen_classes,
        "trained_after": after.seen_classes,
        "arguments": vars(arguments) | {"inference": asdict(inference_settings(arguments))},
        "num_processes": state.num_processes,
    }
    old_vocabulary = choose_labels(arguments, "old_", before) if arguments.old_dataset else None
    report["sections"] = [score_section(arguments, "", before, after, vocabulary)]
    if old_vocabulary:
        report["sections"].append(score_section(arguments, "old_", before, after, old_vocabulary))
    if arguments.absent_dataset:
        report["other_pictures"] = score_other_pictures(arguments, before, after, vocabulary)
    if state.is_main_process:
        text = format_report(report)
        sys.stdout.write(text + "\n")
        if arguments.output:
            write_json(report, arguments.output)
            Path(arguments.output).with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return report
