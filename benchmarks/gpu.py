"""A CUDA device: LDVC against the bare tower by dtype, attention backend and compilation, long lists, training steps.

    python -m benchmarks gpu                       on a machine with a CUDA device
    python -m benchmarks gpu --device cpu --quick  tiny sizes anywhere, to see that the code runs

A combination that the device or an installation lacks has a row with the reason.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPVisionModel

from benchmarks.clipseg import SIDE as CLIPSEG_SIDE
from benchmarks.memory import peak_bytes
from benchmarks.models import (
    ATTENTION,
    build_bare_tower,
    build_model,
    make_class_embeds,
    make_labels,
    make_pixels,
    make_prompts,
)
from benchmarks.segmenters import build_jobs as build_segmenter_jobs
from benchmarks.segmenters import build_models
from benchmarks.timing import Settings, ratio, spread, spreads, time_rounds
from benchmarks.training import build_step
from ldvc.data.vocabularies import get_vocabulary
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.training.recipe import read_recipe


TITLE = "GPU: LDVC / bare tower, memory, class counts to 10,000, training steps at batch 16"
GOALS: dict[str, tuple[str, float]] = {}
DEVICE = "cuda"
SIDE, NUM_CLASSES = 512, 20
BATCHES, QUICK_BATCHES = (1, 16), (2,)
COUNTS, QUICK_COUNTS = (20, 171, 1000, 10000), (2, 5)
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
TRAINED_BY = ("voc2012_inductive", "coco_stuff_inductive")


@dataclass(frozen=True)
class Variant:
    """A way to run the model.

    Attributes:
        dtype: Of weights and pixels, as PyTorch names it.
        attention: The library's name of the backend.
        flash_only: Whether SDPA must take its flash kernel; else it chooses.
        compiled: Whether `torch.compile` comes before.
    """

    dtype: str = "bfloat16"
    attention: str = ATTENTION
    flash_only: bool = False
    compiled: bool = False

    def kernels(self) -> AbstractContextManager:
        """The context that calls run in."""
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if self.flash_only else nullcontext()


VARIANTS = (
    Variant("float32"),
    Variant("float32", compiled=True),
    Variant(attention="eager"),
    Variant(),
    Variant(flash_only=True),
    Variant(compiled=True),
    Variant(attention="flash_attention_2"),  # of the package flash-attn, where it is installed
)


def measure(settings: Settings) -> dict[str, Any]:
    """Inference by variant and batch, then by class count, then training; ratios are those to the bare tower.

    Raises:
        ValueError: If full sizes are asked of a CPU, where they would take hours.
    """
    if torch.device(settings.device).type != "cuda" and not settings.quick:
        raise ValueError(f"full sizes are measured on a CUDA device, not on {settings.device}; add --quick.")
    inference = [row for variant in VARIANTS for row in measure_variant(variant, settings)]
    ratios = {
        f"{row['dtype']} {row['attention']}"
        + (" flash" if row["flash_only"] else "")
        + (" compiled" if row["compiled"] else "")
        + f", batch {row['batch']}": row["ratio"]
        for row in inference
        if "skipped" not in row
    }
    training = [row for name in TRAINED_BY for row in measure_training(name, settings)]
    return {
        "ratios": ratios,
        "inference": inference,
        "classes": measure_classes(settings),
        "segmenters": measure_segmenters(settings),
        "training": training,
        "dtype": "dtypes by row",
        "attention": "by row",
    }


def measure_variant(variant: Variant, settings: Settings) -> Iterator[dict[str, Any]]:
    """LDVC and the bare tower in turn, one row per batch size, or one that says why there is none."""
    settings = replace(settings, dtype=getattr(torch, variant.dtype))
    try:
        for batch in QUICK_BATCHES if settings.quick else BATCHES:
            yield {**asdict(variant), "batch": batch, **time_variant(variant, batch, settings)}
    except (RuntimeError, ImportError, ValueError) as error:  # no such kernel, package, compiler, or too little memory
        yield {**asdict(variant), "skipped": (str(error).strip() or repr(error)).splitlines()[0]}


@torch.inference_mode()
def time_variant(variant: Variant, batch: int, settings: Settings) -> dict[str, Any]:
    """Seconds, images per second, memory beside the weights, and how far logits are from float32's."""
    model = build_model(settings, attention=variant.attention)
    tower = build_bare_tower(model)
    pixels, embeds = make_pixels(settings, SIDE, batch), make_class_embeds(model, NUM_CLASSES)
    expected = reference_logits(settings, pixels, embeds)
    ldvc, bare = (compile_model(part, settings) if variant.compiled else part for part in (model, tower))
    jobs = build_jobs(ldvc, bare, pixels, embeds, variant)
    logits = jobs["ldvc"]().float()
    seconds = time_rounds(jobs, settings)
    peaks = {name: peak_bytes(job, settings.device) for name, job in jobs.items()}
    return {
        "ratio": ratio(seconds, "ldvc", "bare"),
        "seconds": spreads(seconds),
        "images_per_second": {name: spread([batch / time for time in times]) for name, times in seconds.items()},
        "peak_megabytes": {name: peak / 1e6 for name, peak in peaks.items()},
        "weights_megabytes": {name: weight_bytes(part) / 1e6 for name, part in (("bare", tower), ("ldvc", model))},
        "largest_difference": float((logits - expected).abs().max()),
        "same_class": float((logits.argmax(dim=1) == expected.argmax(dim=1)).float().mean()),
    }


def reference_logits(settings: Settings, pixels: Tensor, embeds: Tensor) -> Tensor:
    """Logits of the same weights in float32."""
    model = build_model(replace(settings, dtype=torch.float32))
    return model(pixel_values=pixels.float(), class_embeds=embeds.float()).logits


def compile_model(model: nn.Module, settings: Settings) -> Callable:
    """The model as one graph; a quick run traces it and leaves the kernels as they are."""
    return torch.compile(model, fullgraph=True, backend="eager" if settings.quick else "inductor")


def build_jobs(
    ldvc: LDVCForSemanticSegmentation | Callable,
    bare: CLIPVisionModel | Callable,
    pixels: Tensor,
    embeds: Tensor,
    variant: Variant,
) -> dict[str, Callable[[], Tensor]]:
    """Name -> call in the variant's context."""

    def run_bare() -> Tensor:
        with variant.kernels():
            return bare(pixels, interpolate_pos_encoding=True).last_hidden_state

    def run_ldvc() -> Tensor:
        with variant.kernels():
            return ldvc(pixel_values=pixels, class_embeds=embeds).logits

    return {"bare": run_bare, "ldvc": run_ldvc}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights; LDVC's count its text tower."""
    return sum(weight.nbytes for weight in model.parameters())


@torch.inference_mode()
def measure_classes(settings: Settings) -> list[dict[str, Any]]:
    """Time and memory by class count, in bfloat16."""
    settings = replace(settings, dtype=torch.bfloat16)
    counts = QUICK_COUNTS if settings.quick else COUNTS
    model = build_model(settings)
    pixels, embeds = make_pixels(settings, SIDE), make_class_embeds(model, counts[-1])
    jobs = {str(count): partial(model, pixel_values=pixels, class_embeds=embeds[:count]) for count in counts}
    seconds = time_rounds(jobs, settings)
    return [
        {
            "classes": int(name),
            "seconds": spread(seconds[name]),
            "ratio": ratio(seconds, name, str(counts[0])),
            "peak_megabytes": peak_bytes(job, settings.device) / 1e6,
        }
        for name, job in jobs.items()
    ]


@torch.inference_mode()
def measure_segmenters(settings: Settings) -> list[dict[str, Any]]:
    """Every kind of segmenter beside the bare tower, in bfloat16, one picture of 352 x 352 pixels and 20 labels."""
    settings = replace(settings, dtype=torch.bfloat16)
    models = build_models(settings)
    tower, pixels = build_bare_tower(models["ldvc"]), make_pixels(settings, CLIPSEG_SIDE)
    jobs = build_segmenter_jobs(3 if settings.quick else NUM_CLASSES, settings, models)
    names = ("ldvc", "training_free", "clipseg", "library")
    jobs = {"bare": lambda: tower(pixels, interpolate_pos_encoding=True).last_hidden_state} | {
        name: jobs[name] for name in names
    }
    seconds = time_rounds(jobs, settings)
    return [
        {
            "segmenter": name,
            "seconds": spread(seconds[name]),
            "ratio": ratio(seconds, name, "bare"),
            "peak_megabytes": peak_bytes(jobs[name], settings.device) / 1e6,
        }
        for name in names
    ]


def measure_training(name: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """A recipe's step at its own batch, crop, prompts and seen classes, in float32 and in bfloat16 autocast."""
    recipe = read_recipe([str(RECIPES / f"{name}.yaml")])
    num_seen = len(get_vocabulary(recipe.vocabulary).seen_class_ids)
    batch, side, num_classes = (2, 32, 3) if settings.quick else (recipe.batch_size, recipe.crop_size, num_seen)
    fields = {"num_vision_prompts": recipe.model["num_vision_prompts"]} if settings.quick else recipe.model
    for precision in (None, torch.bfloat16):
        row = {"recipe": name, "precision": "float32" if precision is None else "bfloat16 autocast"}
        row |= {"batch": batch, "side": side, "classes": num_classes}
        try:
            model = build_model(replace(settings, dtype=torch.float32), **fields)
            pixels, prompts = make_pixels(settings, side, batch).float(), make_prompts(model, num_classes, length=12)
            labels = make_labels(num_classes, side, batch).to(settings.device)
            step = build_step(model, pixels, prompts, labels, precision)
            [seconds] = time_rounds({"step": step}, settings).values()
            row |= {
                "seconds": spread(seconds),
                "images_per_second": spread([batch / time for time in seconds]),
                "peak_megabytes": peak_bytes(step, settings.device) / 1e6,
                "weights_megabytes": weight_bytes(model) / 1e6,
            }
        except RuntimeError as error:  # too little memory
            row["skipped"] = (str(error).strip() or repr(error)).splitlines()[0]
        yield row
