# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Pure functions on the token grid: regions, routes between them, and logits of padded images. No learned weights.

Source: routing after BiFormer (arXiv 2303.08810), Sec. 3.2, which LDVC's route attention (arXiv 2403.08426) follows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ceil_div(size: int, part: int) -> int:
    """How many parts cover a size; in this form an exporter sees that a multiple of the part needs no rounding."""
    return (size + -size % part) // part


def partition_regions(
    tokens: Tensor, grid_size: tuple[int, int], region_size: tuple[int, int], offset: tuple[int, int] = (0, 0)
) -> Tensor:
    """Cut the token grid into regions; the grid is padded with zeros to whole regions.

    Args:
        tokens: (batch_size, grid_height * grid_width, dim).
        grid_size: (height, width) in tokens.
        region_size: (height, width) of a region in tokens.
        offset: Zero tokens put above and to the left, which shifts the cut lines.

    Returns:
        (batch_size, num_regions, region_height * region_width, dim), regions and tokens in row-major order.
    """
    batch_size, _, dim = tokens.shape
    (height, width), (region_height, region_width), (top, left) = grid_size, region_size, offset
    rows, columns = ceil_div(height + top, region_height), ceil_div(width + left, region_width)
    bottom, right = rows * region_height - top - height, columns * region_width - left - width
    grid = F.pad(tokens.view(batch_size, height, width, dim), (0, 0, left, right, top, bottom))
    # (batch, rows * region_height, columns * region_width, dim) -> (batch, rows * columns, region area, dim)
    grid = grid.view(batch_size, rows, region_height, columns, region_width, dim).transpose(2, 3)
    return grid.reshape(batch_size, rows * columns, region_height * region_width, dim)


def merge_regions(
    regions: Tensor, grid_size: tuple[int, int], region_size: tuple[int, int], offset: tuple[int, int] = (0, 0)
) -> Tensor:
    """Undo `partition_regions`: (batch_size, num_regions, region_area, dim) -> (batch_size, num_patches, dim)."""
    batch_size, _, _, dim = regions.shape
    (height, width), (region_height, region_width), (top, left) = grid_size, region_size, offset
    rows, columns = ceil_div(height + top, region_height), ceil_div(width + left, region_width)
    grid = regions.view(batch_size, rows, columns, region_height, region_width, dim).transpose(2, 3)
    grid = grid.reshape(batch_size, rows * region_height, columns * region_width, dim)
    return grid[:, top : top + height, left : left + width].reshape(batch_size, height * width, dim)


def real_tokens(
    grid_size: tuple[int, int], region_size: tuple[int, int], offset: tuple[int, int], device: torch.device
) -> Tensor:
    """Tell the grid's tokens from padding: (1, num_regions, region_area, 1) bool."""
    return partition_regions(
        torch.ones(1, grid_size[0] * grid_size[1], 1, device=device), grid_size, region_size, offset
    ).bool()


def select_routes(queries: Tensor, keys: Tensor, is_real: Tensor, top_k: int) -> Tensor:
    """Pick, for each region, the `top_k` regions whose mean key is nearest to its mean query.

    Source: BiFormer (arXiv 2303.08810), Sec. 3.2, Eq. (3)-(4); LDVC's route attention. The means are detached: routing
    is shared by all heads and has no gradient.

    Args:
        queries: (batch_size, num_regions, region_area, dim).
        keys: Same shape.
        is_real: (1, num_regions, region_area, 1) bool; padding does not enter the means.
        top_k: Regions kept per region, 1 to num_regions.

    Returns:
        (batch_size, num_regions, top_k) int64 region indices, best first.
    """
    weights = is_real.to(queries.dtype) / is_real.sum(dim=2, keepdim=True)
    query_means = (queries.detach() * weights).sum(dim=2)
    key_means = (keys.detach() * weights).sum(dim=2)
    return (query_means @ key_means.transpose(-1, -2)).topk(top_k, dim=-1).indices


def gather_regions(regions: Tensor, routes: Tensor) -> Tensor:
    """Collect the tokens of the routed regions.

    Args:
        regions: (batch_size, num_regions, region_area, dim).
        routes: (batch_size, num_routed, top_k) region indices, of all regions or of some.

    Returns:
        (batch_size, num_routed, top_k * region_area, dim).
    """
    batch_size, num_regions, region_area, dim = regions.shape
    first_region = torch.arange(batch_size, device=routes.device).view(-1, 1, 1) * num_regions
    gathered = regions.reshape(batch_size * num_regions, -1).index_select(0, (routes + first_region).flatten())
    return gathered.view(batch_size, routes.shape[1], routes.shape[-1] * region_area, dim)


def fit_to_image(logits: Tensor, image_size: tuple[int, int], patch_size: int) -> Tensor:
    """Crop logits of a padded image back, so that the grid covers the image and nothing else.

    Args:
        logits: (batch_size, num_classes, grid_height, grid_width), covering the image padded to whole patches.
        image_size: (height, width) in pixels before padding.
        patch_size: Pixels per side of a patch.

    Returns:
        Same shape; bilinear samples at the centres of the grid laid over the image alone. Equal to the input where
        the image has whole patches.
    """
    height, width = image_size
    grid_height, grid_width = logits.shape[-2:]
    scale_y, scale_x = height / (grid_height * patch_size), width / (grid_width * patch_size)
    if scale_y == scale_x == 1:
        return logits
    theta = logits.new_tensor([[scale_x, 0, scale_x - 1], [0, scale_y, scale_y - 1]], dtype=torch.float32)
    grid = F.affine_grid(theta.expand(logits.shape[0], 2, 3), list(logits.shape), align_corners=False)
    sampled = F.grid_sample(logits.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.to(logits.dtype)


__all__ = [
    "ceil_div",
    "fit_to_image",
    "gather_regions",
    "merge_regions",
    "partition_regions",
    "real_tokens",
    "select_routes",
]
