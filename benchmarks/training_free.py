"""A training-free CLIP against the bare `CLIPVisionModel`: its last block is cheaper than CLIP's own."""

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.flops import count_multiply_adds
from benchmarks.models import build_bare_tower, build_model, check_equal, make_class_embeds, make_pixels
from benchmarks.timing import Settings, ratio, spreads, time_rounds
from ldvc.model.dense_settings_ldvc import DENSE_METHODS
from ldvc.segmenters.training_free import DEFAULT_METHOD, TrainingFreeCLIP


TITLE = "training-free CLIP with kept class embeddings / bare CLIPVisionModel, 512 x 512, 20 classes"
# Of the default method; the others' ratios stand beside it.
GOALS = {DEFAULT_METHOD: ("at most", 1.00), "multiply_adds": ("at most", 1.00)}
SIDE, NUM_CLASSES = 512, 20
TOLERANCE = 1e-4  # unit vectors in float32; other dtypes 0.1
QUICK = {  # the tiny tower has two blocks
    "clip_surgery": {"num_blocks": 2},
    "gem": {"num_blocks": 2},
    "resclip": {"middle_blocks": (1,)},
}


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Time every method and the bare tower in turn, and count their multiply-adds.

    The method "tokens", CLIP's own last block, is checked against the bare tower. ResCLIP's second look, whose cost
    grows with the classes and the picture, is left out.
    """
    model = build_model(settings, position_interpolation="bicubic")  # as the library's tower has it
    tower = build_bare_tower(model)
    pixels, embeds = make_pixels(settings, SIDE), make_class_embeds(model, NUM_CLASSES)
    jobs = {"bare": lambda: tower(pixels, interpolate_pos_encoding=True).last_hidden_state}
    for method in DENSE_METHODS:
        options = dict(QUICK.get(method, {}) if settings.quick else {})
        options |= {"feedback": False} if method == "resclip" else {}
        segmenter = TrainingFreeCLIP(model.clip, method, position_interpolation="bicubic", **options)
        jobs[method] = lambda segmenter=segmenter: segmenter(pixels, embeds).logits
    clip = TrainingFreeCLIP(model.clip, "tokens", position_interpolation="bicubic")
    found = clip.get_image_features(pixels).feature_map.flatten(2).transpose(1, 2)
    projected = model.clip.visual_projection(model.clip.vision_model.post_layernorm(jobs["bare"]()[:, 1:]))
    tolerance = TOLERANCE if model.dtype == torch.float32 else 0.1
    difference = check_equal("image features", found, F.normalize(projected, dim=-1), tolerance)
    counts = {name: count_multiply_adds(job)[0] for name, job in jobs.items()}
    seconds = time_rounds(jobs, settings)
    ratios: dict[str, Any] = {method: ratio(seconds, method, "bare") for method in DENSE_METHODS}
    ratios["multiply_adds"] = counts[DEFAULT_METHOD] / counts["bare"]
    return {
        "ratios": ratios,
        "seconds": spreads(seconds),
        "giga_multiply_adds": {name: count / 1e9 for name, count in counts.items()},
        "largest_difference": difference,
    }
