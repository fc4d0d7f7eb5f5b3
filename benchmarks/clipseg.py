"""The same job with CLIPSeg and with LDVC: masks for a list of class names, in seconds and as a ratio.

Both models have ViT-B/16 and random weights (time does not depend on their values), 352 x 352 pixels, float32. CLIPSeg
takes one prompt at a time, so a list of labels is a batch of copies of the picture; LDVC takes the list. Both encode
their text within the timed call; LDVC is timed with kept class embeddings too. The models take turns in one process.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from benchmarks.models import TINY_TOWER, TINY_VISION, build_model, check_equal, make_pixels
from benchmarks.timing import Settings, ratio, spreads, time_rounds
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation


TITLE = "CLIPSegForImageSegmentation / LDVC by number of labels, 352 x 352"
GOALS = {"20": ("at least", 15.0)}
SIDE, NAME_TOKENS = 352, 8  # pixels; tokens of a prompt such as "a photo of a cat" with its two ends
LABEL_COUNTS, QUICK_COUNTS = (1, 5, 20), (1, 2)
TOLERANCE = 1e-3


def make_prompts(num_labels: int, vocab_size: int) -> torch.Tensor:
    """(num_labels, 8) token ids of prompts that differ in one word."""
    ids = torch.full((num_labels, NAME_TOKENS), 320)
    ids[:, -2] = torch.arange(num_labels) + 1000
    ids[:, 0], ids[:, -1] = vocab_size - 2, vocab_size - 1  # CLIP's begin and end, the highest ids
    return ids


def build_clipseg(settings: Settings) -> CLIPSegForImageSegmentation:
    """CLIPSeg of the published size, or a tiny one."""
    torch.manual_seed(0)
    # of "CIDAS/clipseg-rd64-refined"; the library's default has patches of 32 pixels
    config = CLIPSegConfig(vision_config={"patch_size": 16}, reduce_dim=64, use_complex_transposed_convolution=True)
    if settings.quick:
        config = CLIPSegConfig(
            text_config=dict(TINY_TOWER),
            vision_config=dict(TINY_VISION),
            projection_dim=32,
            reduce_dim=16,
            extract_layers=[0, 1],
        )
    return CLIPSegForImageSegmentation(config).to(settings.device, settings.dtype).eval()


def build_jobs(
    num_labels: int, settings: Settings, ldvc: LDVCForSemanticSegmentation, clipseg: CLIPSegForImageSegmentation
) -> dict[str, Callable[[], torch.Tensor]]:
    """Name -> call that gives logits of all labels for one picture."""
    pixels = make_pixels(settings, SIDE)
    prompts = make_prompts(num_labels, ldvc.config.text_config.vocab_size).to(settings.device)
    embeds = ldvc.get_class_embeds(prompts)
    return {
        "clipseg": lambda: clipseg(pixel_values=pixels.expand(num_labels, -1, -1, -1), input_ids=prompts).logits,
        "ldvc": lambda: ldvc(pixel_values=pixels, input_ids=prompts).logits,
        "ldvc_kept_embeds": lambda: ldvc(pixel_values=pixels, class_embeds=embeds).logits,
    }


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Time every label count.

    The two are different models: what is checked is that each call gives all its labels, and that LDVC with kept
    embeddings gives what LDVC gives.
    """
    # The prompts of LDVC add nothing to the time of its text tower: they replace tokens.
    ldvc, clipseg = build_model(settings, num_text_prompts=0), build_clipseg(settings)
    patch_sizes = [model.config.vision_config.patch_size for model in (ldvc, clipseg)]
    check_equal("patch size", *patch_sizes, 0)
    rows, ratios, difference = [], {}, 0.0
    for num_labels in QUICK_COUNTS if settings.quick else LABEL_COUNTS:
        jobs = build_jobs(num_labels, settings, ldvc, clipseg)
        logits = {name: job() for name, job in jobs.items()}
        if num_labels > 1:
            check_equal("number of masks", len(logits["clipseg"]), num_labels, 0)
        check_equal("number of masks", logits["ldvc"].shape[1], num_labels, 0)
        equal = check_equal("logits", logits["ldvc"], logits["ldvc_kept_embeds"], TOLERANCE)
        difference = max(difference, equal)
        seconds = time_rounds(jobs, settings)
        ratios[str(num_labels)] = ratio(seconds, "clipseg", "ldvc")
        rows.append({"labels": num_labels, "seconds": spreads(seconds)})
    return {"ratios": ratios, "rows": rows, "image_size": SIDE, "largest_difference": difference}
