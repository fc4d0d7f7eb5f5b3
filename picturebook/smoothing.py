"""What smoothing does to LDVC's scores on Picturebook: fragments, mIoU and time, without and with it.

python -m picturebook.smoothing CHECKPOINT ... --tuned CHECKPOINT        writes results/picturebook_smoothing.json

Settings are chosen by hIoU on pages of the validation split, with the checkpoint of a tuning run, whose unseen
classes are others; the checkpoints of the record are scored on the test split with what was chosen.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldvc.data.provenance import code_version, trace_to, write_json
from ldvc.data.vocabularies import Vocabulary, get_vocabulary
from ldvc.loading import load_checkpoint
from ldvc.model.inference_ldvc import encode_classes
from ldvc.scoring.protocol import WEIGHTS_FIELD, checkpoint_fingerprints
from ldvc.segmenters.smoothing import smooth_probabilities
from picturebook.training_free import PAGES_PER_BATCH, Pages, load_pages, measure_hiou, score_table


REACHES = ((1, 2), (4, 8))  # pages are small
SCALES = (2.0, 5.0, 10.0)
# Row -> its choices: dilations of PAMR, and the scale that makes the propagation's probabilities; `None` is without.
ROWS: dict[str, Sequence[tuple[tuple[int, ...] | None, float | None]]] = {
    "none": ((None, None),),
    "pamr": [(reach, None) for reach in REACHES],
    "propagation": [(None, scale) for scale in SCALES],
    "pamr, then propagation": [(reach, scale) for reach in REACHES for scale in SCALES],
}


@torch.no_grad()
def read_pages(folder: str, pages: Pages, vocabulary: Vocabulary) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Probabilities of a checkpoint on every page, less nothing: (num_pages, num_classes, height, width).

    Args:
        folder: Of the checkpoint.
        pages: To be read.
        vocabulary: Whose names are asked for.

    Returns:
        The probabilities, the class embeddings, and the checkpoint's fingerprints.
    """
    model, processor = load_checkpoint(folder, "cpu")
    _, embeds = encode_classes(model, processor, list(vocabulary.class_names))
    none_seen = torch.zeros(len(embeds), dtype=torch.bool)
    logits = torch.cat(
        [
            model(pixel_values=pixels, class_embeds=embeds, seen_class_mask=none_seen).logits
            for pixels in pages.pixels.split(PAGES_PER_BATCH)
        ]
    )
    full = F.interpolate(logits, size=pages.pixels.shape[-2:], mode="bilinear", align_corners=False)
    return full.sigmoid(), embeds, checkpoint_fingerprints(model)


def label(probabilities: Tensor, pages: Pages, step: Callable[[Tensor, Tensor], Tensor]) -> tuple[np.ndarray, float]:
    """Label maps of all pages after a step for each, and the seconds that it took per page."""
    started = time.perf_counter()
    pairs = zip(probabilities.split(1), pages.pixels.split(1), strict=True)
    maps = torch.cat([step(scores, pixels).argmax(dim=1) for scores, pixels in pairs])
    return maps.numpy(), (time.perf_counter() - started) / len(maps)


def choose(folder: str, pages: Pages) -> dict[str, dict[str, Any]]:
    """Choose the settings of each row on tuning pages, without an offset of seen scores."""
    vocabulary = get_vocabulary("picturebook_tuning")
    probabilities, embeds, fingerprints = read_pages(folder, pages, vocabulary)
    chosen = {}
    for name, choices in ROWS.items():
        rated = []
        for reach, scale in choices:
            step = partial(smooth_probabilities, class_embeds=embeds, dilations=reach, softmax_scale=scale)
            maps, _ = label(probabilities, pages, step)
            rated.append({"dilations": reach, "scale": scale, "tuning_hiou": measure_hiou(maps, pages, vocabulary)})
        best = max(rated, key=lambda row: row["tuning_hiou"])
        chosen[name] = {**best, "tried": rated, WEIGHTS_FIELD: fingerprints[WEIGHTS_FIELD]}
    return chosen


def score(folder: str, pages: Pages, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Score a checkpoint on test pages with every row's settings."""
    vocabulary = get_vocabulary("picturebook")
    probabilities, embeds, fingerprints = read_pages(folder, pages, vocabulary)
    rows = {}
    for name, settings in chosen.items():
        choice = {"dilations": settings["dilations"], "softmax_scale": settings["scale"]}
        step = partial(smooth_probabilities, class_embeds=embeds, **choice)
        maps, seconds = label(probabilities, pages, step)
        rows[name] = {"scores": score_table(maps, pages, vocabulary), "seconds_per_page": round(seconds, 4)}
    return {"checkpoint": Path(folder).name, WEIGHTS_FIELD: fingerprints[WEIGHTS_FIELD], "rows": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Choose, score, write."""
    parser = argparse.ArgumentParser(
        prog="python -m picturebook.smoothing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="+", help="folders of the record's runs")
    parser.add_argument("--tuned", required=True, help="folder of a tuning run, to choose settings with")
    parser.add_argument("--num_images", type=int, default=250, help="pages of the test split")
    parser.add_argument("--num_tuning_images", type=int, default=60, help="pages of the validation split")
    parser.add_argument("--output", default="results/picturebook_smoothing.json")
    arguments = parser.parse_args(argv)
    code_version()  # as it is now, not when the result is written
    _, processor = load_checkpoint(arguments.tuned, "cpu")
    chosen = choose(arguments.tuned, load_pages("validation", arguments.num_tuning_images, processor))
    pages = load_pages("test", arguments.num_images, processor)
    result = {
        "num_images": arguments.num_images,
        "num_tuning_images": arguments.num_tuning_images,
        "chosen": chosen,
        "runs": [score(folder, pages, chosen) for folder in arguments.checkpoints],
    }
    write_json(result | trace_to(pages.dataset, seed=0), arguments.output)


if __name__ == "__main__":
    main()
