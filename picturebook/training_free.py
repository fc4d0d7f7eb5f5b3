"""CLIP without training on Picturebook: every method, settings chosen on the tuning split, scored on held-out pages.

python -m picturebook.training_free        writes results/picturebook_training_free.json, which `ldvc report` renders

Nothing is trained. What can be chosen (depth and weight of a path, middle blocks, smoothing) is chosen by hIoU on
pages of the validation split under the vocabulary picturebook_tuning, whose unseen classes are others; the test split
is only scored.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel

from ldvc.data.provenance import code_version, trace_to, write_json
from ldvc.data.samples import load_split, read_sample
from ldvc.data.vocabularies import Vocabulary, get_vocabulary
from ldvc.model.inference_ldvc import InferenceSettings, encode_classes, prepare_image
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.model.weights_ldvc import weights_fingerprint
from ldvc.scoring.evaluate import METRIC_PATH, finish_table, image_areas, mean_iou
from ldvc.segmenters.smoothing import pamr, propagate
from ldvc.segmenters.training_free import TrainingFreeCLIP
from picturebook.clip_folder import CLIP_FOLDER
from picturebook.vocabulary import CLASS_GROUPS


PAGE_SIZE = 128
PAGES_PER_BATCH = 10
SMOOTHING_PAGES = 20  # of the tuning pages, to choose smoothing on: it takes longer than all else


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Short.
        title: For people.
        method: Of [`TrainingFreeCLIP`].
        settings: Of the method, always.
        choices: Further settings, of which the tuning split chooses one.
    """

    name: str
    title: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Sequence[Mapping[str, Any]] = ({},)


# The published depths and blocks are those of towers of 12 blocks; this one has 6.
DEPTHS = [{"num_blocks": depth} for depth in (3, 4, 5, 6)]
MIDDLE = [{"middle_blocks": blocks} for blocks in ((3,), (3, 4), (4, 5))]
WEIGHTS = [{"attention_weight": weight} for weight in (1.0, 1.5, 2.0, 3.0)]
PATH = [
    {"affinity": affinity, **depth, "attention_weight": weight}
    for affinity in ("kk+gaussian", "rotated", "qq+kk")
    for depth in DEPTHS
    for weight in (1.0, 2.0)
]
SINGLE = [{"affinity": affinity, **weight} for affinity in ("value", "qq", "qq+kk", "rotated") for weight in WEIGHTS]
ROWS = (
    Row("tokens", "CLIP's own tokens", "tokens"),
    Row("value", "value path alone", "value"),
    Row("maskclip", "MaskCLIP, its authors' form", "maskclip"),
    Row("sclip", "SCLIP", "sclip"),
    Row("clearclip", "ClearCLIP", "clearclip"),
    Row("naclip", "NACLIP", "naclip"),
    Row("clip_surgery", "CLIP Surgery", "clip_surgery", choices=DEPTHS),
    Row("gem", "GEM", "gem", choices=DEPTHS),
    Row("resclip", "ResCLIP on NACLIP", "resclip", choices=MIDDLE),
    Row("pearl", "PEARL", "pearl", choices=[{"rotation": "newton_schulz"}, {"rotation": "svd"}]),
    Row("residual", "residual and weighted attention of one block", "value", {"residual": 1.0}, SINGLE),
    Row("path", "one affinity along a path of blocks", "value", {"residual": 1.0}, PATH),
)
PAMR = [{"dilations": reach} for reach in ((1, 2), (4, 8), (8, 16))]  # pages are small
PROPAGATION = [{"softmax_scale": scale} for scale in (20.0, 100.0)]
# Smoothing -> choices.
SMOOTHINGS: dict[str, Sequence[Mapping[str, Any]]] = {
    "none": ({},),
    "pamr": PAMR,
    "propagation": PROPAGATION,
}


@dataclass(frozen=True)
class Pages:
    """Pages of a split.

    Attributes:
        pixels: (num_pages, 3, height, width), normalised.
        labels: (height, width) class ids of each.
        dataset: They come from.
    """

    pixels: Tensor
    labels: Sequence[np.ndarray]
    dataset: Any

    def first(self, count: int) -> "Pages":
        """The first pages."""
        return Pages(self.pixels[:count], self.labels[:count], self.dataset)


def load_pages(split: str, num_pages: int, processor: LDVCProcessor) -> Pages:
    """Draw the first pages of a split."""
    dataset, statistics = load_split("picturebook", split, num_images=num_pages), processor.image_processor
    samples = [read_sample(dataset, row) for row in range(len(dataset))]
    settings = InferenceSettings(PAGE_SIZE, 0)
    pixels = [prepare_image(image, settings, statistics.image_mean, statistics.image_std) for image, _ in samples]
    return Pages(torch.stack(pixels), [label.astype(np.int64) for _, label in samples], dataset)


@torch.no_grad()
def find_cosines(clip: CLIPModel, row: Row, settings: Mapping[str, Any], pages: Pages, embeds: Tensor) -> Tensor:
    """Cosines of every page on the token grid, (num_pages, num_classes, grid_height, grid_width).

    Args:
        clip: The tiny CLIP.
        row: Its method.
        settings: Of the row's choices.
        pages: To be read.
        embeds: (num_classes, projection_dim).
    """
    model = TrainingFreeCLIP(clip, row.method, softmax_scale=None, **row.settings, **settings)
    return torch.cat([model(pixels, embeds).logits for pixels in pages.pixels.split(PAGES_PER_BATCH)])


@torch.no_grad()
def find_labels(
    cosines: Tensor, pages: Pages, smoothing: str, settings: Mapping[str, Any], embeds: Tensor
) -> np.ndarray:
    """Label maps of every page, (num_pages, height, width) int64.

    Args:
        cosines: (num_pages, num_classes, grid_height, grid_width).
        pages: They are of.
        smoothing: Of `SMOOTHINGS`.
        settings: Of the smoothing.
        embeds: (num_classes, projection_dim).
    """
    maps = []
    for scores, pixels in zip(cosines.split(1), pages.pixels.split(1), strict=True):  # smoothing is fastest so
        full = F.interpolate(scores, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        if smoothing == "pamr":
            full = pamr(full, pixels, **settings)
        elif smoothing == "propagation":
            full = propagate(full, pixels, embeds, **settings)
        maps.append(full.argmax(dim=1))
    return torch.cat(maps).numpy()


def measure_hiou(maps: np.ndarray, pages: Pages, vocabulary: Vocabulary) -> float:
    """HIoU alone, a fraction, without what takes time.

    Args:
        maps: (num_pages, height, width).
        pages: With labels.
        vocabulary: Which classes are unseen.
    """
    count = len(vocabulary.class_names)
    areas = np.stack([image_areas(*pair, count) for pair in zip(maps, pages.labels, strict=True)])
    is_unseen = np.isin(np.arange(count), vocabulary.unseen_class_ids)
    once = np.ones((1, len(areas)), dtype=np.int64)
    seen, unseen = (float(mean_iou(areas[:, chosen], once)[0]) for chosen in (~is_unseen, is_unseen))
    return 2 * seen * unseen / max(seen + unseen, 1e-12)


def score_table(maps: np.ndarray, pages: Pages, vocabulary: Vocabulary) -> dict[str, Any]:
    """The whole table, with fragments and intervals, as `ldvc evaluate` gives it.

    Args:
        maps: (num_pages, height, width).
        pages: With labels.
        vocabulary: Which classes are unseen.
    """
    metric, areas = evaluate.load(METRIC_PATH), []
    for row, (prediction, reference) in enumerate(zip(maps, pages.labels, strict=True)):
        metric.add(prediction=prediction, reference=reference)
        areas.append((row, image_areas(prediction, reference, len(vocabulary.class_names)), reference.size))
    return finish_table(metric, areas, vocabulary, CLASS_GROUPS)


def run_row(clip: CLIPModel, row: Row, tuning: Pages, test: Pages, embeds: Tensor) -> dict[str, Any]:
    """Choose a row's settings on the tuning pages, then score them on the test pages, with every smoothing.

    Args:
        clip: The tiny CLIP.
        row: To be scored.
        tuning: Pages to choose on.
        test: Pages to score on.
        embeds: (num_classes, projection_dim).
    """
    choosing, scoring = get_vocabulary("picturebook_tuning"), get_vocabulary("picturebook")
    tried = []
    for settings in row.choices:
        cosines = find_cosines(clip, row, settings, tuning, embeds)
        maps = find_labels(cosines, tuning, "none", {}, embeds)
        tried.append((measure_hiou(maps, tuning, choosing), settings, cosines))
    best, settings, cosines = max(tried, key=lambda item: item[0])
    held_out = find_cosines(clip, row, settings, test, embeds)
    cosines, tuning, scores = cosines[:SMOOTHING_PAGES], tuning.first(SMOOTHING_PAGES), {}
    for smoothing, choices in SMOOTHINGS.items():
        rated = [
            (measure_hiou(find_labels(cosines, tuning, smoothing, choice, embeds), tuning, choosing), index)
            for index, choice in enumerate(choices)
        ]
        rate, index = max(rated)
        table = score_table(find_labels(held_out, test, smoothing, choices[index], embeds), test, scoring)
        scores[smoothing] = {"settings": choices[index], "tuning_hiou": rate, "scores": table}
    described = {"title": row.title, "method": row.method, "settings": {**row.settings, **settings}}
    tried_settings = [{"settings": dict(settings), "tuning_hiou": rate} for rate, settings, _ in tried]
    model = TrainingFreeCLIP(clip, row.method, **row.settings, **settings)
    described["all_settings"] = asdict(model.settings) | asdict(model.feedback)
    return described | {"tuning_hiou": best, "tried": tried_settings, "smoothing": scores}


def main(argv: Sequence[str] | None = None) -> None:
    """Choose, score, write."""
    parser = argparse.ArgumentParser(
        prog="python -m picturebook.training_free",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--num_images", type=int, default=250, help="pages of the test split")
    parser.add_argument("--num_tuning_images", type=int, default=60, help="pages of the validation split")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in ROWS], help="some rows")
    parser.add_argument("--output", default="results/picturebook_training_free.json")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    code_version()  # as it is now, not when the result is written
    clip = CLIPModel.from_pretrained(CLIP_FOLDER, dtype=torch.float32)
    processor = LDVCProcessor.from_clip_pretrained(CLIP_FOLDER, image_stats="clip", size=PAGE_SIZE)
    names = list(get_vocabulary("picturebook").class_names)
    embeds = encode_classes(TrainingFreeCLIP(clip), processor, names)[1]
    tuning = load_pages("validation", arguments.num_tuning_images, processor)
    test = load_pages("test", arguments.num_images, processor)
    rows = [row for row in ROWS if row.name in (arguments.only or [row.name])]
    results = {row.name: run_row(clip, row, tuning, test, embeds) for row in tqdm(rows, unit="row")}
    result = {
        "num_images": arguments.num_images,
        "num_tuning_images": arguments.num_tuning_images,
        "num_smoothing_images": min(SMOOTHING_PAGES, arguments.num_tuning_images),
        "prompt_templates": list(processor.prompt_templates),
        "clip_fingerprint": weights_fingerprint(clip.state_dict()),
        "rows": results,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(result | trace_to(test.dataset, seed=0), arguments.output)


if __name__ == "__main__":
    main()
