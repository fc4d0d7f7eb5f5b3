"""Label maps from logits: upsampling all classes and taking the best against LDVC's post-processing."""

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.memory import peak_bytes
from benchmarks.timing import Settings, ratio, spreads, time_rounds
from ldvc.model.image_processing_ldvc import LDVCImageProcessor


TITLE = "post-processing 171 classes to 2048 x 2048: interpolate, then argmax / ours"
GOALS = {"memory": ("at least", 10.0), "time": ("at least", 1.0)}
NUM_CLASSES, SIDE, GRID = 171, 2048, 32


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Compare the maps, then peak memory, then time in turn.

    Raises:
        ValueError: If more than one pixel in a million differs; such pixels lie where two classes tie in float32.
    """
    torch.manual_seed(0)
    num_classes, side, grid = (5, 64, 4) if settings.quick else (NUM_CLASSES, SIDE, GRID)
    logits = torch.randn(1, num_classes, grid, grid, device=settings.device)
    processor, size = LDVCImageProcessor(), (side, side)

    def plain() -> torch.Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1)[0]

    def ours() -> torch.Tensor:
        return processor.post_process_semantic_segmentation({"logits": logits}, target_sizes=[size])[0]

    num_different = int((plain() != ours()).sum())
    if num_different > side * side / 1e6:
        raise ValueError(f"{num_different} of {side * side} pixels differ; no ratio is given.")
    peaks = {name: peak_bytes(way, settings.device) for name, way in (("plain", plain), ("ours", ours))}
    seconds = time_rounds({"plain": plain, "ours": ours}, settings)
    return {
        "ratios": {"memory": peaks["plain"] / peaks["ours"], "time": ratio(seconds, "plain", "ours")},
        "seconds": spreads(seconds),
        "peak_megabytes": {name: peak / 1e6 for name, peak in peaks.items()},
        "different_pixels": num_different,
    }
