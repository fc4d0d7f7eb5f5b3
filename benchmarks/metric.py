"""The library's `mean_iou`, which stores all maps until the end, against the streaming metric of this repository.

`evaluate.load("mean_iou")` is a script on the Hub. Where it cannot be had, `StoredMeanIoU` below is measured in its
place: its public source (huggingface/evaluate, metrics/mean_iou) restated step by step. Maps are stored as pictures,
read again at the end, and go one by one through three NumPy histograms over the pixels that are not ignored. The
result says which of the two ran. Ours is timed twice: for the same figures, and as it comes, with the connected
components that `mean_iou` does not count.
"""

import logging
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np

from benchmarks.models import check_equal
from benchmarks.timing import Settings, ratio, spreads, time_rounds


TITLE = "metric over 200 maps of 512 x 512: the library's mean_iou / ours"
GOALS = {"time": ("at least", 20.0), "memory_growth": ("at most", 1.1)}
METRIC = Path(__file__).resolve().parent.parent / "metrics" / "zero_shot_miou"
NUM_CLASSES, SIDE, NUM_MAPS, IGNORE = 20, 512, 200, 255
TOLERANCE = 1e-9


RESTATED = "mean_iou of evaluate, restated from its public source (the Hub was not at hand)"
FROM_HUB = "mean_iou of evaluate, from the Hub"


class StoredMeanIoU(evaluate.Metric):
    """What `mean_iou` computes, the way it does: from maps that are stored as pictures until `compute`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions: list, references: list, num_labels: int, ignore_index: int) -> dict[str, Any]:
        def areas(values: np.ndarray) -> np.ndarray:
            return np.histogram(values, bins=num_labels, range=(0, num_labels - 1))[0]

        intersection, union, labelled = np.zeros(num_labels), np.zeros(num_labels), np.zeros(num_labels)
        for picture, label_picture in zip(predictions, references, strict=True):
            prediction, reference = np.array(picture), np.array(label_picture)
            is_counted = reference != ignore_index
            prediction, reference = prediction[is_counted], reference[is_counted]
            both, predicted, wanted = areas(prediction[prediction == reference]), areas(prediction), areas(reference)
            intersection += both
            union += predicted + wanted - both
            labelled += wanted
        with np.errstate(invalid="ignore"):  # a class that never occurs has no IoU
            ious, accuracies = intersection / union, intersection / labelled
        return {
            "mean_iou": float(np.nanmean(ious)),
            "mean_accuracy": float(np.nanmean(accuracies)),
            "overall_accuracy": float(intersection.sum() / labelled.sum()),
            "per_category_iou": ious,
            "per_category_accuracy": accuracies,
        }


def load_stored_metric(folder: str) -> evaluate.Metric:
    """The library's metric from the Hub or its cache, or its restatement."""
    try:
        return evaluate.load("mean_iou", cache_dir=folder)
    except Exception as error:  # no network, offline mode, or a Hub that answers otherwise
        logging.getLogger(__name__).info("mean_iou is not at hand (%s); its restatement is measured.", error)
        return StoredMeanIoU(cache_dir=folder)


def make_maps(num_maps: int, side: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of prediction (int64, as post-processing gives it) and reference (uint8, as files hold it).

    References are blocks with an unlabelled border; predictions are them, shifted, with other classes in some blocks.
    """
    rng, block = np.random.default_rng(0), side // 8
    pairs = []
    for _ in range(num_maps):
        classes = rng.integers(0, NUM_CLASSES, 6)[rng.integers(0, 6, (8, 8))]
        reference = np.kron(classes, np.ones((block, block))).astype(np.uint8)
        prediction = np.roll(np.where(rng.random((8, 8)) < 0.2, classes[0, 0], classes), 1, axis=0)
        prediction = np.roll(np.kron(prediction, np.ones((block, block))), block // 4 - block, axis=0)
        reference[: side // 32] = IGNORE
        pairs.append((prediction.astype(np.int64), reference))
    return pairs


def growth(job: Callable[[list], Any], pairs: list) -> float:
    """Peak memory of NumPy and Python on all maps by that on a tenth of them."""
    peaks = []
    for part in (pairs[: max(1, len(pairs) // 10)], pairs):
        tracemalloc.start()
        job(part)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peaks[1] / peaks[0]


def measure(settings: Settings) -> dict[str, Any]:
    """Compare the scores, then time both in turn, then see whether ours grows with the number of maps."""
    pairs = make_maps(*((4, 64) if settings.quick else (NUM_MAPS, SIDE)))
    with tempfile.TemporaryDirectory() as folder:
        library = load_stored_metric(folder)
        same_figures = evaluate.load(str(METRIC), cache_dir=folder, fragmentation=False)
        with_fragments = evaluate.load(str(METRIC), cache_dir=folder)

        def run_library(some: list) -> float:
            for prediction, reference in some:
                library.add(prediction=prediction, reference=reference)
            return library.compute(num_labels=NUM_CLASSES, ignore_index=IGNORE)["mean_iou"]

        def run_ours(metric: evaluate.Metric, some: list) -> float:
            for prediction, reference in some:
                metric.add(prediction=prediction, reference=reference)
            return metric.compute(num_labels=NUM_CLASSES, ignore_index=IGNORE)["miou"]

        difference = check_equal("mean IoU", run_library(pairs), run_ours(same_figures, pairs), TOLERANCE)
        jobs = {
            "library": lambda: run_library(pairs),
            "ours": lambda: run_ours(same_figures, pairs),
            "ours_with_fragments": lambda: run_ours(with_fragments, pairs),
        }
        seconds = time_rounds(jobs, settings)
        memory = growth(lambda some: run_ours(with_fragments, some), pairs)
    return {
        "ratios": {
            "time": ratio(seconds, "library", "ours"),
            "time_with_fragments": ratio(seconds, "library", "ours_with_fragments"),
            "memory_growth": memory,
        },
        "seconds": spreads(seconds),
        "compared_with": RESTATED if isinstance(library, StoredMeanIoU) else FROM_HUB,
        "num_maps": len(pairs),
        "largest_difference": difference,
    }
