"""What every kind of segmenter costs by number of labels, and CLIPSeg as the library runs it against ours.

ViT-B/16 of the published sizes, random weights (time does not depend on their values), one picture of 352 x 352
pixels, float32. Class embeddings are kept in all: what is compared is the forward. CLIPSeg is timed with its prompts
encoded within the call, too, by the same text tower in both. The jobs take turns in one process.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel

from benchmarks.clipseg import SIDE, build_clipseg, make_prompts
from benchmarks.memory import peak_bytes
from benchmarks.models import build_config, build_model, check_equal, make_class_embeds, make_pixels
from benchmarks.timing import Settings, ratio, read_clock, spread, spreads, time_rounds
from ldvc.segmenters.clipseg import CLIPSegSegmenter
from ldvc.segmenters.training_free import TrainingFreeCLIP


TITLE = "CLIPSegForImageSegmentation / CLIPSegSegmenter by number of labels, 352 x 352"
GOALS = {
    "1": ("at least", 1.0),
    "20": ("at least", 14.0),
    "171": ("at least", 60.0),
    "memory, 171 labels": ("at least", 10.0),
}
LABEL_COUNTS, QUICK_COUNTS = (1, 20, 171), (1, 3)
TOLERANCE = 1e-4  # of logits by their largest: those of random weights are hundreds


def build_models(settings: Settings) -> dict[str, Any]:
    """The library's CLIPSeg, and one model of each kind."""
    library, ldvc = build_clipseg(settings), build_model(settings)
    torch.manual_seed(0)
    clip = TrainingFreeCLIP(CLIPModel(build_config(settings)).to(settings.device, settings.dtype).eval())
    return {"library": library, "clipseg": CLIPSegSegmenter(library), "training_free": clip.eval(), "ldvc": ldvc}


def build_jobs(num_labels: int, settings: Settings, models: Mapping[str, Any]) -> dict[str, Callable[[], Tensor]]:
    """Name -> call that gives the logits of all labels for one picture."""
    library, clipseg, pixels = models["library"], models["clipseg"], make_pixels(settings, SIDE)
    prompts = make_prompts(num_labels, library.config.text_config.vocab_size).to(settings.device)
    conditions, embeds = clipseg.get_class_embeds(prompts), make_class_embeds(models["ldvc"], num_labels)
    copies = pixels.expand(num_labels, -1, -1, -1)
    return {
        "library": lambda: library(pixel_values=copies, conditional_embeddings=conditions).logits,
        "clipseg": lambda: clipseg(pixel_values=pixels, class_embeds=conditions).logits[0],
        "library_with_text": lambda: library(pixel_values=copies, input_ids=prompts).logits,
        "clipseg_with_text": lambda: clipseg(pixel_values=pixels, input_ids=prompts).logits[0],
        "training_free": lambda: models["training_free"](pixel_values=pixels, class_embeds=embeds).logits[0],
        "ldvc": lambda: models["ldvc"](pixel_values=pixels, class_embeds=embeds).logits[0],
    }


def time_long(job: Callable[[], Tensor], settings: Settings) -> tuple[float, int, Tensor]:
    """Seconds, peak bytes and logits of one call, of which there is one only: it takes minutes."""
    found = {}

    def run() -> Tensor:
        started = read_clock(settings)
        found["logits"] = job()
        found["seconds"] = read_clock(settings) - started
        return found["logits"]

    peak = peak_bytes(run, settings.device)  # whose record of some hundred operations is nothing beside minutes
    return found["seconds"], peak, found["logits"]


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Time and weigh every label count; CLIPSeg's logits must be the library's."""
    models, rows, ratios, largest = build_models(settings), [], {}, 0.0
    counts = QUICK_COUNTS if settings.quick else LABEL_COUNTS
    for num_labels in counts:
        jobs = build_jobs(num_labels, settings, models)
        once, peak, theirs = time_long(jobs["library"], settings)
        is_long = num_labels == counts[-1]  # the library's one call must do
        if is_long:
            jobs = {name: job for name, job in jobs.items() if not name.startswith("library")}
        ours = jobs["clipseg"]()
        theirs, scale = theirs.view_as(ours), max(1.0, float(theirs.abs().max()))
        largest = max(largest, check_equal("logits", theirs / scale, ours / scale, TOLERANCE))
        del theirs, ours
        seconds = time_rounds(jobs, settings)
        seconds["library"] = [once] * settings.repeats if is_long else seconds["library"]
        memory = {"library": peak}
        for name in ("clipseg", "training_free", "ldvc"):
            memory[name] = peak_bytes(jobs[name], settings.device)
        ratios[str(num_labels)] = ratio(seconds, "library", "clipseg")
        ratios[f"memory, {num_labels} labels"] = spread([memory["library"] / memory["clipseg"]])
        if not is_long:
            ratios[f"{num_labels}, with text"] = ratio(seconds, "library_with_text", "clipseg_with_text")
        rows.append({"labels": num_labels, "seconds": spreads(seconds), "peak_bytes": memory})
    return {"ratios": ratios, "rows": rows, "image_size": SIDE, "largest_difference": largest}
