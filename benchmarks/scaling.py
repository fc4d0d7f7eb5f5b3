"""Cost against image side, class count, batch and processes, each as a series and as a fitted law."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.models import build_model, make_class_embeds
from benchmarks.timing import Seconds, Settings, ratio, spread, time_rounds
from benchmarks.workers import Workers
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation


TITLE = "cost against image side, class count, batch and processes"
GOALS: dict[str, tuple[str, float]] = {}
NUM_CLASSES = 20
SIDES, QUICK_SIDES = (224, 352, 512, 640, 768), (32, 48, 64, 80)
COUNTS, QUICK_COUNTS = (20, 171, 1000, 3000, 10000), (2, 5, 9)
BATCHES, QUICK_BATCHES = (1, 2, 4, 8), (1, 2, 3)
CLASS_SIDE, BATCH_SIDE, PROCESS_SIDE = 512, 224, 352  # pixels
PROCESSES, PICTURES_PER_ROUND = (1, 2), 6


def measure(settings: Settings) -> dict[str, Any]:
    """Measure the four series; ratios are those of the ends of each."""
    with torch.inference_mode():
        model = build_model(settings)
        series = {name: job(model, settings) for name, job in SWEEPS.items()}
    series["processes"] = sweep_processes(settings)
    return {"ratios": {name: found.pop("ratio") for name, found in series.items()}, "series": series}


def noise(model: LDVCForSemanticSegmentation, side: int, batch_size: int = 1) -> torch.Tensor:
    """(batch_size, 3, side, side) pixels."""
    return torch.randn(batch_size, 3, side, side).to(model.device, model.dtype)


def sweep_sides(model: LDVCForSemanticSegmentation, settings: Settings) -> dict[str, Any]:
    """The whole model on square images: a constant, a part per token, and a part per pair of tokens."""
    sides, embeds = QUICK_SIDES if settings.quick else SIDES, make_class_embeds(model, NUM_CLASSES)
    images = {str(side): noise(model, side) for side in sides}
    jobs = {side: partial(model, pixel_values=image, class_embeds=embeds) for side, image in images.items()}
    tokens = [(side // model.config.vision_config.patch_size) ** 2 for side in sides]
    return describe(time_rounds(jobs, settings), fit_to={"tokens": tokens, "tokens_squared": [n * n for n in tokens]})


def sweep_classes(model: LDVCForSemanticSegmentation, settings: Settings) -> dict[str, Any]:
    """Text adapter, decoder and logits on kept image features: the only part that sees classes."""
    counts = QUICK_COUNTS if settings.quick else COUNTS
    features = model.get_image_features(noise(model, QUICK_SIDES[0] if settings.quick else CLASS_SIDE))
    embeds = make_class_embeds(model, counts[-1])
    jobs = {str(n): partial(model, image_features=features, class_embeds=embeds[:n]) for n in counts}
    return describe(time_rounds(jobs, settings), fit_to={"classes": counts})


def sweep_batches(model: LDVCForSemanticSegmentation, settings: Settings) -> dict[str, Any]:
    """The whole model on several images at once."""
    batches, side = (QUICK_BATCHES, QUICK_SIDES[0]) if settings.quick else (BATCHES, BATCH_SIDE)
    embeds, images = make_class_embeds(model, NUM_CLASSES), noise(model, side, batches[-1])
    jobs = {str(n): partial(model, pixel_values=images[:n], class_embeds=embeds) for n in batches}
    return describe(time_rounds(jobs, settings), fit_to={"images": batches})


def sweep_processes(settings: Settings) -> dict[str, Any]:
    """Independent pictures through one process with all threads, and through two that share them.

    Raises:
        ValueError: If a run did not do all its pictures.
    """
    threads = torch.get_num_threads()
    pictures = 2 if settings.quick else PICTURES_PER_ROUND
    with ExitStack() as stack:
        teams = {str(n): stack.enter_context(Workers(n, settings, PROCESS_SIDE, threads)) for n in PROCESSES}
        for name, team in teams.items():
            if (done := team.run(pictures)) != pictures:
                raise ValueError(f"{name} process(es) did {done} of {pictures} pictures; no ratio is given.")
        # the work is done elsewhere, so that this process's own time says nothing
        seconds = time_rounds(
            {name: partial(team.run, pictures) for name, team in teams.items()}, replace(settings, clock="wall")
        )
        result = describe(seconds)
        result["threads_of_each"] = {name: team.threads for name, team in teams.items()}
    result["pictures"] = pictures
    return result


SWEEPS: dict[str, Callable[[LDVCForSemanticSegmentation, Settings], dict[str, Any]]] = {
    "sides": sweep_sides,
    "classes": sweep_classes,
    "batches": sweep_batches,
}


def describe(seconds: Seconds, fit_to: Mapping[str, Sequence[float]] | None = None) -> dict[str, Any]:
    """Points of a series, the ratio of its last to its first, and the law where one is asked for."""
    points = [{"at": int(name), "seconds": spread(times)} for name, times in seconds.items()]
    names = list(seconds)
    result = {"points": points, "ratio": ratio(seconds, names[-1], names[0])}
    if fit_to is not None:
        result["law"] = fit(fit_to, [point["seconds"]["median"] for point in points])
        result["law"]["columns"] = {name: list(column) for name, column in fit_to.items()}
    return result


def fit(columns: Mapping[str, Sequence[float]], seconds: Sequence[float]) -> dict[str, Any]:
    """Seconds as a constant and a multiple of each column, by least squares of the relative errors.

    Relative, since the series span two orders of magnitude: absolute errors would leave the small sizes to chance.

    Args:
        columns: Name -> values, one per measurement.
        seconds: Of each measurement.

    Returns:
        `coefficients`, in seconds per unit of a column, `constant` among them; `largest_error`, relative.
    """
    wanted = np.asarray(seconds, dtype=float)
    matrix = np.column_stack([np.ones_like(wanted), *(np.asarray(column, dtype=float) for column in columns.values())])
    weighted = matrix / wanted[:, None]
    scale = np.abs(weighted).max(axis=0)  # squares of tokens beside ones would cost the solution its digits
    solution = np.linalg.lstsq(weighted / scale, np.ones_like(wanted), rcond=None)[0] / scale
    coefficients = dict(zip(("constant", *columns), solution.tolist(), strict=True))
    return {"coefficients": coefficients, "largest_error": float(np.abs(matrix @ solution / wanted - 1).max())}
