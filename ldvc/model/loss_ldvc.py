# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""The loss of LDVC: sigmoid focal + dice, each class an independent binary mask. Pure functions.

Source: LDVC (arXiv 2403.08426) names "focal + dice"; the exact semantics are those of ZegCLIP's criterion:
no softmax across classes, no background channel, absent classes count in the focal term and not in the dice term, and
an unlabelled pixel is a negative of every class.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.configuration_utils import PreTrainedConfig


# (class, pixel) pairs whose loss is computed at a time: 4 MB per tensor, which stays in the cache of a CPU, so that it
# takes no longer than all classes at once (benchmarks/loss.py); an accelerator wants fewer and larger kernels, 256 MB.
PIXELS_PER_BLOCK = 2**20
PIXELS_PER_BLOCK_ON_DEVICE = 2**26


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that a label map holds class ids and `ignore_index` only; skipped while compiling.

    Raises:
        ValueError: If not.
    """
    if torch.compiler.is_compiling():
        return
    stray = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_classes))]
    if stray.numel():
        raise ValueError(
            f"`labels` holds the id {stray[0].item()}, but there are {num_classes} classes (ids 0 to "
            f"{num_classes - 1}) and {ignore_index} for unlabelled pixels; map the ids to the order of the names."
        )


def one_hot_targets(labels: Tensor, num_classes: int, ignore_index: int = 255, first_class: int = 0) -> Tensor:
    """Turn a label map into one binary mask per class; unlabelled pixels are 0 in every mask.

    Args:
        labels: (batch_size, height, width) integer class ids; `ignore_index` is unlabelled.
        num_classes: Number of classes.
        ignore_index: The label of unlabelled pixels.
        first_class: The id of the first of these classes.

    Returns:
        (batch_size, num_classes, height, width) bool.
    """
    last = first_class + num_classes
    class_ids = torch.arange(first_class, last, dtype=torch.int32, device=labels.device).view(1, -1, 1, 1)
    # an id is unlabelled even where the class list is longer than it
    return labels.int().masked_fill(labels == ignore_index, -1).unsqueeze(1) == class_ids


def count_present(labels: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count present (image, class) pairs of (batch_size, height, width) labels: a float scalar tensor."""
    is_present = torch.zeros(labels.shape[0], 1 + num_classes, device=labels.device)
    columns = (labels.long() + 1).masked_fill(labels == ignore_index, 0)  # column 0: unlabelled
    return is_present.scatter(1, columns.flatten(1), 1.0)[:, 1:].sum()


def count_masks(labels: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count present (image, class) pairs: summed over processes, at least 1, divided by the number of processes.

    The sum is what has a least value, not each process's part of it: gradients are averaged over processes, so that a
    step with one mask weighs the same whether one process takes it or several.

    Args:
        labels: (batch_size, height, width) integer class ids; `ignore_index` is unlabelled.
        num_classes: Number of classes.
        ignore_index: The label of unlabelled pixels.

    Returns:
        A float scalar tensor.
    """
    num_masks, num_processes = count_present(labels, num_classes, ignore_index), 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(num_masks)
        num_processes = dist.get_world_size()
    return num_masks.clamp(min=1.0) / num_processes


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    num_masks: Tensor | float,
    alpha: float = 0.25,
    gamma: float = 2.0,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    """Focal loss: mean over pixels, sum over all images and classes (absent ones included), divided by `num_masks`.

    Source: Lin et al. 2017, Focal Loss, Eq. (5), normalised as in ZegCLIP's criterion.

    Args:
        logits: (batch_size, num_classes, height, width).
        targets: Same shape, bool.
        num_masks: Number of present (image, class) pairs, see `count_masks`.
        alpha: Weight of positives; negatives weigh `1 - alpha`.
        gamma: Focusing exponent.
        pixel_mask: (batch_size, 1, height, width) bool, pixels that count; `None` is all of them.

    Returns:
        A scalar tensor.
    """
    wrong_side = torch.where(targets, -logits, logits)  # logit of the false answer: p_t is 1 - its sigmoid
    loss = torch.where(targets, alpha, 1 - alpha) * wrong_side.sigmoid() ** gamma * F.softplus(wrong_side)
    if pixel_mask is None:
        return loss.mean(dim=(-2, -1)).sum() / num_masks
    num_pixels = pixel_mask.sum(dim=(-2, -1)).clamp(min=1)
    return ((loss * pixel_mask).sum(dim=(-2, -1)) / num_pixels).sum() / num_masks


def dice_loss(logits: Tensor, targets: Tensor, num_masks: Tensor | float, pixel_mask: Tensor | None = None) -> Tensor:
    """Dice loss over present (image, class) pairs: `1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1)`, over `num_masks`.

    Source: ZegCLIP's criterion, after Milletari et al. 2016 (V-Net) with MaskFormer's +1.

    Args:
        logits: (batch_size, num_classes, height, width).
        targets: Same shape, bool.
        num_masks: Number of present (image, class) pairs, see `count_masks`.
        pixel_mask: (batch_size, 1, height, width) bool, pixels that count; `None` is all of them.

    Returns:
        A scalar tensor; 0 when no class is present.
    """
    probabilities = logits.sigmoid()
    if pixel_mask is not None:
        probabilities = probabilities * pixel_mask
    present = targets.flatten(2).any(dim=-1)
    intersection = (probabilities * targets).sum(dim=(-2, -1))
    total = probabilities.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    return ((1 - (2 * intersection + 1) / (total + 1)) * present).sum() / num_masks


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    focal_weight: float = 100.0,
    dice_weight: float = 1.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    ignore_index: int = 255,
    unlabeled_pixels: str = "negative",
    num_masks: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """LDVC's loss, `focal_weight * focal + dice_weight * dice`, computed in float32 at the labels' resolution.

    Source: ZegCLIP's criterion, used unchanged. Both terms are sums over classes, so they are computed for some
    classes at a time and again for the gradient: masks and logits of all classes at that resolution never exist.

    Args:
        logits: (batch_size, num_classes, grid_height, grid_width), before the sigmoid; upsampled bilinearly
            (`align_corners=False`) to the labels. A channel at -1e4, as of padded classes, is off.
        labels: (batch_size, height, width) integer ids of positions on the class axis; `ignore_index` is unlabelled.
        focal_weight: Weight of the focal term.
        dice_weight: Weight of the dice term.
        focal_alpha: Focal weight of positives, 0 to 1.
        focal_gamma: Focusing exponent.
        ignore_index: The label of unlabelled pixels.
        unlabeled_pixels: `"negative"`: they are negatives of every class (ZegCLIP); `"ignore"`: they do not count.
        num_masks: Normaliser; `None` counts present (image, class) pairs over all processes.

    Returns:
        The weighted loss and `{"focal": ..., "dice": ...}`, the two terms before weighting; scalars.

    Raises:
        ValueError: If shapes do not fit, a label is no class id, or `unlabeled_pixels` is unknown.
    """
    if logits.dim() != 4 or labels.dim() != 3 or len(logits) != len(labels):
        raise ValueError(
            f"`logits` must be (batch_size, num_classes, height, width) and `labels` (batch_size, height, width); "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if unlabeled_pixels not in ("negative", "ignore"):
        raise ValueError(f"`unlabeled_pixels` is {unlabeled_pixels!r}; use 'negative' or 'ignore'.")
    check_labels(labels, logits.shape[1], ignore_index)
    num_masks = count_masks(labels, logits.shape[1], ignore_index) if num_masks is None else num_masks

    def block_terms(block: Tensor, first_class: int) -> tuple[Tensor, Tensor]:
        block = F.interpolate(block.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        targets = one_hot_targets(labels, block.shape[1], ignore_index, first_class)
        pixel_mask = (labels != ignore_index).unsqueeze(1) if unlabeled_pixels == "ignore" else None
        focal = sigmoid_focal_loss(block, targets, num_masks, focal_alpha, focal_gamma, pixel_mask)
        return focal, dice_loss(block, targets, num_masks, pixel_mask)

    pixels_per_block = PIXELS_PER_BLOCK if logits.device.type == "cpu" else PIXELS_PER_BLOCK_ON_DEVICE
    size = max(1, pixels_per_block // labels.numel())
    with torch.autocast(logits.device.type, enabled=False):
        terms = [
            checkpoint(block_terms, block, index * size, use_reentrant=False, preserve_rng_state=False)
            for index, block in enumerate(logits.split(size, dim=1))
        ]
    focal, dice = (torch.stack(term).sum() for term in zip(*terms, strict=True))
    return focal_weight * focal + dice_weight * dice, {"focal": focal, "dice": dice}


def loss_options(config: PreTrainedConfig) -> dict[str, Any]:
    """The keyword arguments of `segmentation_loss` that an `LDVCConfig` decides."""
    return {
        "focal_weight": config.focal_weight,
        "dice_weight": config.dice_weight,
        "focal_alpha": config.focal_alpha,
        "focal_gamma": config.focal_gamma,
        "ignore_index": config.semantic_loss_ignore_index,
        "unlabeled_pixels": config.unlabeled_pixels,
    }


__all__ = [
    "count_masks",
    "count_present",
    "dice_loss",
    "loss_options",
    "one_hot_targets",
    "segmentation_loss",
    "sigmoid_focal_loss",
]
