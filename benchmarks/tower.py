"""LDVC with kept class embeddings against the bare `CLIPVisionModel`: what the decoder and the prompts add."""

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.flops import count_multiply_adds
from benchmarks.models import build_bare_tower, build_model, check_equal, make_class_embeds, make_pixels
from benchmarks.timing import Settings, ratio, spreads, time_rounds


TITLE = "LDVC with kept class embeddings / bare CLIPVisionModel, 512 x 512, 20 classes"
GOALS = {"time": ("at most", 1.10), "multiply_adds": ("at most", 1.10)}
SIDE, NUM_CLASSES = 512, 20
TOLERANCE = {torch.float32: 1e-4}  # unit vectors


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Time both in turn and count their multiply-adds.

    The two do different work, so what is checked is that they run the same tower: without its prompts, LDVC's image
    features are those of the bare one, normed and projected.
    """
    model = build_model(settings, position_interpolation="bicubic")  # as the library's tower has it
    tower = build_bare_tower(model)
    pixels, embeds = make_pixels(settings, SIDE), make_class_embeds(model, NUM_CLASSES)
    jobs = {
        "bare": lambda: tower(pixels, interpolate_pos_encoding=True).last_hidden_state,
        "ldvc": lambda: model(pixel_values=pixels, class_embeds=embeds).logits,
    }
    difference = compare_towers(model, jobs["bare"](), pixels)
    counts = {name: count_multiply_adds(job)[0] for name, job in jobs.items()}
    seconds = time_rounds(jobs, settings)
    ratios = {"time": ratio(seconds, "ldvc", "bare"), "multiply_adds": counts["ldvc"] / counts["bare"]}
    return {
        "ratios": ratios,
        "seconds": spreads(seconds),
        "giga_multiply_adds": {name: count / 1e9 for name, count in counts.items()},
        "largest_difference": difference,
    }


def compare_towers(model: torch.nn.Module, hidden_states: torch.Tensor, pixels: torch.Tensor) -> float:
    """Largest difference of LDVC's features without prompts from the bare tower's."""
    kept = model.vision_prompts, model.prompt_norm
    model.vision_prompts = model.prompt_norm = None
    features = model.get_image_features(pixels).feature_map.flatten(2).transpose(1, 2)
    model.vision_prompts, model.prompt_norm = kept
    norm, projection = model.clip.vision_model.post_layernorm, model.clip.visual_projection
    expected = F.normalize(projection(norm(hidden_states[:, 1:])), dim=-1)
    return check_equal("image features", features, expected, TOLERANCE.get(model.dtype, 1e-1))
