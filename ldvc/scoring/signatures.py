"""Failure signatures: what scores look like when zero-shot training goes wrong, named with the figures that show it.

overfitting     seen classes rise while unseen ones fall: the class embeddings left the place where CLIP put them
fragmentation   objects fall into many pieces: image tokens do not agree with their neighbours
both_low        seen and unseen alike: names and image do not meet; look at prompts, statistics and class order
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


__all__ = [
    "FRAGMENTS_PER_REFERENCE",
    "LOW_MIOU",
    "SEEN_RISE",
    "UNSEEN_FALL",
    "Signature",
    "describe_signatures",
    "find_signatures",
    "read_log",
]

# Fall of mIoU(U) from its best step to the last. Published spreads over seeds are one point (Cascade-CLIP, VOC and
# COCO-Stuff: +-1.0), so that two points are more than chance.
UNSEEN_FALL = 0.02
# Rise of mIoU(S) over the same steps. Half of the spread published for seen classes (+-0.5 to 1.0): if they do not
# rise at all, the run diverges or its rate is too high, which is no overfitting.
SEEN_RISE = 0.005
# Connected components per class and image, relative to the labels' own. Twice as many pieces as objects is what the
# eye calls torn; perfect predictions at token resolution have fewer than the labels (the embedded world's oracle).
FRAGMENTS_PER_REFERENCE = 2.0
# Predictions cover unlabelled pixels too, where labels have no component to compare with: below this share of labelled
# pixels (VOC, without its background) the ratio says nothing.
LEAST_LABELLED_SHARE = 0.9
# mIoU that both groups stay under when no training-free floor is known. In the embedded world CLIP without training
# has twice that; a trained model below it does not match names with pixels.
LOW_MIOU = 0.10


@dataclass(frozen=True)
class Signature:
    """One signature that was seen.

    Attributes:
        name: "overfitting", "fragmentation" or "both_low".
        message: One sentence with the figures.
        figures: The figures, fractions as in the score tables.
    """

    name: str
    message: str
    figures: dict[str, float]


def read_log(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """Records of a run's log up to `last_step`; a last line cut off by a kill is left out; empty without a log."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [record for record in records if record["step"] <= last_step]


def find_signatures(
    scores: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]] = (),
    floor: Mapping[str, Any] | None = None,
) -> list[Signature]:
    """Name the failure signatures that scores show.

    Args:
        scores: A score table of `evaluate_model`, or a record of the log; what it lacks is not judged.
        history: Records with `step`, `miou_seen` and `miou_unseen`, in order, the last one of `scores`; others are
            left out.
        floor: Score table of the training-free CLIP on the same images, if known.

    Returns:
        The signatures seen; empty is good.
    """
    found = [_overfitting(history), _fragmentation(scores), _both_low(scores, floor)]
    return [signature for signature in found if signature is not None]


def describe_signatures(signatures: Sequence[Signature]) -> list[dict[str, Any]]:
    """For result files and logs."""
    return [asdict(signature) for signature in signatures]


def _overfitting(history: Sequence[Mapping[str, Any]]) -> Signature | None:
    """Seen up while unseen falls, from the best unseen score to the last one."""
    points = [
        record for record in history if _is_number(record.get("miou_seen")) and _is_number(record.get("miou_unseen"))
    ]
    if len(points) < 2:
        return None
    best, last = max(points, key=lambda record: record["miou_unseen"]), points[-1]
    fall = best["miou_unseen"] - last["miou_unseen"]
    rise = last["miou_seen"] - best["miou_seen"]
    if fall < UNSEEN_FALL or rise < SEEN_RISE:
        return None
    message = (
        f"overfitting: from step {best['step']} to {last['step']}, mIoU(U) fell from {_percent(best['miou_unseen'])} "
        f"to {_percent(last['miou_unseen'])} while mIoU(S) rose from {_percent(best['miou_seen'])} to "
        f"{_percent(last['miou_seen'])}; train shorter, or with fewer prompts or blocks."
    )
    return Signature("overfitting", message, {"unseen_fall": fall, "seen_rise": rise, "best_step": best["step"]})


def _fragmentation(scores: Mapping[str, Any]) -> Signature | None:
    """Many more connected components than the labels have."""
    fragmentation = scores.get("fragmentation") or {}
    predicted = fragmentation.get("components_per_class_and_image")
    reference = fragmentation.get("reference_components_per_class_and_image")
    if not (_is_number(predicted) and _is_number(reference)) or predicted < FRAGMENTS_PER_REFERENCE * reference:
        return None
    if scores.get("labelled_share", 1.0) < LEAST_LABELLED_SHARE:
        return None
    message = (
        f"fragmentation: {predicted:.2f} connected components per class and image, the labels have {reference:.2f}; "
        "let tokens attend to more of the image (route_top_k), or train longer."
    )
    figures = {"components_per_class_and_image": predicted, "reference_components_per_class_and_image": reference}
    return Signature("fragmentation", message, figures)


def _both_low(scores: Mapping[str, Any], floor: Mapping[str, Any] | None) -> Signature | None:
    """Seen and unseen classes both below CLIP without training, or below `LOW_MIOU` where that is not known."""
    keys = ("miou_seen", "miou_unseen")
    if not all(_is_number(scores.get(key)) for key in keys):
        return None
    is_known = floor is not None and all(_is_number(floor.get(key)) for key in keys)
    limits = {key: floor[key] if is_known else LOW_MIOU for key in keys}
    if any(scores[key] >= limits[key] for key in keys):
        return None
    against = (
        f"CLIP without training has {_percent(limits['miou_seen'])} and {_percent(limits['miou_unseen'])}"
        if is_known
        else f"both under {_percent(LOW_MIOU)}"
    )
    message = (
        f"both_low: mIoU(S) {_percent(scores['miou_seen'])} and mIoU(U) {_percent(scores['miou_unseen'])}, {against}; "
        "check class order, prompt template and pixel statistics, then the learning rate."
    )
    return Signature("both_low", message, {key: scores[key] for key in keys} | {f"{k}_limit": limits[k] for k in keys})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
