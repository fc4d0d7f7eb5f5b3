"""The text tower on prompts padded to 77 tokens against prompts cut at the longest name, as LDVC encodes them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import build_model, check_equal, make_prompts
from benchmarks.timing import Settings, ratio, spreads, time_rounds


TITLE = "text tower padded to 77 tokens / trimmed, 156 names"
GOALS = {"forward": ("at least", 4.0), "forward_backward": ("at least", 4.0)}
NUM_CLASSES = 156  # COCO-Stuff's seen classes
TOLERANCE = 1e-5  # unit vectors; and the gradient of their mean


def encode_padded(model: nn.Module, prompts: Tensor) -> Tensor:
    """Class embeddings from all 77 positions: what encoding without trimming is."""
    ends = prompts.argmax(dim=-1)  # the end token has the highest id; the first of them ends the prompt
    states = model._encode_text(prompts, ends)
    return F.normalize(model.clip.text_projection(states), dim=-1)


def measure(settings: Settings) -> dict[str, Any]:
    """Time both ways in turn, without and with the gradient of the text prompts."""
    model = build_model(settings)
    prompts = make_prompts(model, 3 if settings.quick else NUM_CLASSES)
    ways = {"padded": lambda: encode_padded(model, prompts), "trimmed": lambda: model.get_class_embeds(prompts)}
    anchors = torch.randn(len(prompts), model.config.projection_dim, device=model.device)

    def backward(name: str) -> Tensor:
        model.zero_grad()
        (ways[name]() * anchors).mean().backward()
        return model.text_prompts.tokens.grad

    with torch.no_grad():
        difference = check_equal("class embeddings", ways["padded"](), ways["trimmed"](), TOLERANCE)
        forward = time_rounds(ways, settings)
    gradient = check_equal("gradients", backward("padded"), backward("trimmed"), TOLERANCE)
    both = time_rounds({name: lambda name=name: backward(name) for name in ways}, settings)
    return {
        "ratios": {
            "forward": ratio(forward, "padded", "trimmed"),
            "forward_backward": ratio(both, "padded", "trimmed"),
        },
        "seconds": {"forward": spreads(forward), "forward_backward": spreads(both)},
        "largest_difference": max(difference, gradient),
    }
