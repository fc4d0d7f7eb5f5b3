"""A training step against an inference forward on the same picture; CLIP is frozen."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import build_model, check_equal, make_labels, make_pixels, make_prompts
from benchmarks.timing import Settings, ratio, spreads, time_rounds


TITLE = "training step / inference forward, 512 x 512, 15 classes, frozen CLIP"
GOALS = {"time": ("at most", 3.0)}
NUM_CLASSES, SIDE = 15, 512  # VOC's seen classes
TOLERANCE = 1e-4


def build_step(
    model: nn.Module, pixels: Tensor, prompts: Tensor, labels: Tensor, precision: torch.dtype | None = None
) -> Callable[[], None]:
    """A whole training step: text tower, forward, loss, backward, AdamW.

    Args:
        model: Whose trainable weights are moved.
        pixels: (batch_size, 3, height, width).
        prompts: (num_classes, length) token ids.
        labels: (batch_size, height, width) class positions or 255.
        precision: Dtype of autocast; `None` leaves the model's own.

    Returns:
        The step; after it no gradient is held.
    """
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-6)

    @torch.enable_grad()
    def step() -> None:
        model.train()
        with torch.autocast(pixels.device.type, dtype=precision, enabled=precision is not None):
            loss = model(pixel_values=pixels, input_ids=prompts, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(settings: Settings) -> dict[str, Any]:
    """Time a whole step (text tower, forward, loss, backward, AdamW) and a forward with kept embeddings in turn.

    Before the first step, the forward that will be differentiated gives the logits of the other.
    """
    model = build_model(settings)
    pixels, prompts = make_pixels(settings, SIDE), make_prompts(model, NUM_CLASSES, length=12)
    labels = make_labels(NUM_CLASSES, pixels.shape[-1]).to(settings.device)
    with torch.no_grad():
        embeds = model.get_class_embeds(prompts)

    @torch.inference_mode()
    def infer() -> torch.Tensor:
        model.eval()
        return model(pixel_values=pixels, class_embeds=embeds).logits

    with torch.enable_grad():
        logits = model(pixel_values=pixels, input_ids=prompts, labels=labels).logits.detach()
    difference = check_equal("logits", logits, infer(), TOLERANCE)
    step = build_step(model, pixels, prompts, labels)
    seconds = time_rounds({"inference": infer, "step": step}, settings)
    ratios = {"time": ratio(seconds, "step", "inference")}
    return {"ratios": ratios, "seconds": spreads(seconds), "largest_difference": difference}
