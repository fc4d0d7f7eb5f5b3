"""ResCLIP's second look: patches that showed the same class at first sight attend to each other more.

Source: semantic feedback refinement of ResCLIP (CVPR 2025), by the description in docs/training_free.md. Where its
code does other than one would guess (uncertain pixels become the first name, smoothing runs along the patches' number,
half precision), this does the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldvc.segmenters.smoothing import pamr


__all__ = ["patch_labels", "patch_similarity"]

FIRST_LOOK_SCALE = 40.0
SMOOTHING_STD, LONGEST_KERNEL = 5.0, 31


def patch_labels(cosines: Tensor, image: Tensor, patch_size: int, threshold: float) -> Tensor:
    """The most frequent class among each patch's pixels, (batch_size, grid_height, grid_width) int64.

    Args:
        cosines: (batch_size, num_classes, grid_height, grid_width).
        image: (batch_size, num_channels, height, width) normalised pixels, of whole patches.
        patch_size: Pixels per side of a patch.
        threshold: Pixels whose best class is less probable become class 0, whatever that is.
    """
    size = tuple(image.shape[-2:])
    pixels = pamr(F.interpolate(cosines.float(), size=size, mode="bilinear", align_corners=False), image.float())
    best, labels = (FIRST_LOOK_SCALE * pixels).softmax(dim=1).max(dim=1)
    labels = labels.masked_fill(best < threshold, 0)
    # (batch, height, width) -> (batch, grid_height, grid_width, pixels of the patch)
    blocks = labels.unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size)).transpose(2, 3).flatten(3)
    num_classes = cosines.shape[1]
    counts = torch.zeros(*blocks.shape[:3], num_classes, dtype=torch.long, device=labels.device)
    counts.scatter_add_(3, blocks, torch.ones_like(blocks))
    # of equal counts the smallest class
    return (counts * num_classes - torch.arange(num_classes, device=labels.device)).argmax(dim=3)


def open_paths(labels: Tensor) -> Tensor:
    """How near two patches of one class are, by a straight walk from the one to the other.

    With n the larger of the distances in rows and columns and m the grid's longer side less one, the walk takes the
    first n of m equal steps, so that it ends n / m of the way.

    Args:
        labels: (batch_size, grid_height, grid_width).

    Returns:
        (batch_size, num_patches, num_patches): 1 for one class, exp(-n / m) where the walk leaves the class, 0 for two
        classes.
    """
    height, width = labels.shape[-2:]
    last = max(height, width) - 1
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten().to(labels.device), columns.flatten().to(labels.device)
    down, across = rows[None] - rows[:, None], columns[None] - columns[:, None]  # from p (first axis) to q
    distance = torch.maximum(down.abs(), across.abs())
    flat = labels.flatten(1)
    is_same = flat[:, :, None] == flat[:, None, :]
    is_open = torch.ones_like(is_same)
    for step in range(1, last + 1):
        row = rows[:, None] + (down * step / last)
        column = columns[:, None] + (across * step / last)
        visited = (row.round().long() * width + column.round().long())[None].expand(len(flat), -1, -1)
        met = flat.gather(1, visited.flatten(1)).view_as(is_same)
        is_open &= (met == flat[:, :, None]) | (step > distance)
    near = torch.exp(-distance / max(last, 1))
    return torch.where(is_open, 1.0, near) * is_same


def patch_similarity(labels: Tensor, num_tokens: int) -> Tensor:
    """The feedback of a labelled grid on the affinity: (batch_size, num_tokens, num_tokens), 0 to 1.

    Args:
        labels: (batch_size, grid_height, grid_width).
        num_tokens: With those before the patches, whose rows and columns are 0.
    """
    similarity = open_paths(labels)
    num_patches = similarity.shape[-1]
    length = min(num_patches, LONGEST_KERNEL)
    length -= length % 2 == 0
    offsets = torch.arange(length, device=labels.device) - length // 2
    kernel = torch.exp(-(offsets**2) / (2 * SMOOTHING_STD**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    # (batch, patches, patches): each row by itself, along the running number
    smoothed = F.conv1d(similarity.flatten(0, 1)[:, None], kernel, padding=length // 2)[:, 0].view_as(similarity)
    smoothed = smoothed / (smoothed.sum(dim=-1, keepdim=True) + 1e-8)
    smoothed = smoothed / smoothed.amax(dim=(1, 2), keepdim=True)
    others = num_tokens - num_patches
    return F.pad(smoothed.half().float(), (others, 0, others, 0))
