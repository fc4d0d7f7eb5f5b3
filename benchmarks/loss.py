"""The loss and its gradient: the formula on all classes at once against LDVC's, which takes some classes at a time."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import peak_bytes
from benchmarks.models import check_equal, make_labels
from benchmarks.timing import Settings, ratio, spreads, time_rounds
from ldvc.model.loss_ldvc import count_masks, one_hot_targets, segmentation_loss


TITLE = "loss + backward, 156 classes at 512 x 512 from 32 x 32 tokens: plain formula / ours"
GOALS = {"memory": ("at least", 4.0), "time": ("at least", 1.0)}
NUM_CLASSES, SIDE, GRID = 156, 512, 32
TOLERANCE = 1e-5


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal and dice as they are usually written: masks and logits of all classes at the labels' size."""
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    targets = one_hot_targets(labels, logits.shape[1]).float()
    num_masks = count_masks(labels, logits.shape[1])
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weights = 0.25 * targets + 0.75 * (1 - targets)
    focal = (weights * (1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy).mean(dim=(-2, -1)).sum()
    probabilities, is_present = logits.sigmoid(), targets.flatten(2).any(dim=-1)
    intersection = (probabilities * targets).sum(dim=(-2, -1))
    total = probabilities.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    dice = ((1 - (2 * intersection + 1) / (total + 1)) * is_present).sum()
    return (100 * focal + dice) / num_masks


def measure(settings: Settings) -> dict[str, Any]:
    """Compare values and gradients, then peak memory, then time in turn."""
    torch.manual_seed(0)
    num_classes, side, grid = (3, 32, 4) if settings.quick else (NUM_CLASSES, SIDE, GRID)
    logits = torch.randn(1, num_classes, grid, grid, device=settings.device, requires_grad=True)
    labels = make_labels(num_classes, side).to(settings.device)
    ways = {"plain": plain_loss, "ours": lambda logits, labels: segmentation_loss(logits, labels)[0]}

    def backward(way: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        logits.grad = None
        way(logits, labels).backward()
        return logits.grad

    with torch.no_grad():
        plain, ours = (way(logits, labels) for way in ways.values())
    check_equal("losses", plain / plain, ours / plain, TOLERANCE)
    difference = check_equal("gradients", *(backward(way) for way in ways.values()), TOLERANCE)
    peaks = {name: peak_bytes(lambda way=way: backward(way), settings.device) for name, way in ways.items()}
    seconds = time_rounds({name: lambda way=way: backward(way) for name, way in ways.items()}, settings)
    return {
        "ratios": {"memory": peaks["plain"] / peaks["ours"], "time": ratio(seconds, "plain", "ours")},
        "seconds": spreads(seconds),
        "peak_megabytes": {name: peak / 1e6 for name, peak in peaks.items()},
        "largest_difference": difference,
    }
