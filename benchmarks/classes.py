"""Latency of LDVC by the number of classes, class embeddings kept: what a long vocabulary costs."""

from functools import partial
from typing import Any

import torch

from benchmarks.models import build_model, check_equal, make_class_embeds, make_pixels
from benchmarks.timing import Settings, ratio, spreads, time_rounds


TITLE = "171, 1,000 and 10,000 classes / 20 classes, 512 x 512, class embeddings kept"
GOALS = {"171": ("at most", 1.03), "1000": ("at most", 1.10), "10000": ("at most", 2.0)}
SIDE, COUNTS, QUICK_COUNTS = 512, (20, 171, 1000, 10000), (2, 3, 5, 9)
TOLERANCE = 1e-3  # logits of random weights reach tens


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Time all counts in turn.

    Image tokens look at every class, so more classes change all logits; what is checked is that the first classes of
    a longer list, the others masked out, have the logits of the shortest.
    """
    model, counts = build_model(settings), QUICK_COUNTS if settings.quick else COUNTS
    pixels, embeds = make_pixels(settings, SIDE), make_class_embeds(model, counts[-1])

    def logits(num_classes: int, num_kept: int | None = None) -> torch.Tensor:
        mask = None if num_kept is None else (torch.arange(num_classes, device=pixels.device) < num_kept)[None]
        return model(pixel_values=pixels, class_embeds=embeds[:num_classes], class_mask=mask).logits

    few, masked = logits(counts[0]), logits(counts[1], counts[0])[:, : counts[0]]
    difference = check_equal("logits of the first classes", few, masked, TOLERANCE)
    seconds = time_rounds({str(count): partial(logits, count) for count in counts}, settings)
    ratios = {str(count): ratio(seconds, str(count), str(counts[0])) for count in counts[1:]}
    return {"ratios": ratios, "seconds": spreads(seconds), "largest_difference": difference}
