"""Labels of transductive training: the masks of seen classes, and the model's own guess where a label is withheld.

Source: the self-training of ZegCLIP (arXiv 2212.03588), released code: in the same forward pass as the loss, without a
threshold, arg-max over the unseen classes alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


__all__ = ["PSEUDO_REGIONS", "WITHHELD", "pseudo_labels", "withhold_labels"]

# What stands in a batch where the model must guess; no class and no ignored pixel ever has it.
WITHHELD = -1
PSEUDO_REGIONS = ("unseen_pixels", "all_unlabelled")


def withhold_labels(
    label_map: np.ndarray,
    seen_class_ids: Sequence[int],
    pseudo_region: str = "unseen_pixels",
    ignore_index: int = 255,
) -> np.ndarray:
    """Keep the ids of seen classes and hide those of all others, before a batch leaves the data side.

    Args:
        label_map: (height, width) class ids or `ignore_index`, without padding.
        seen_class_ids: Classes that may be trained with masks.
        pseudo_region: "unseen_pixels" hides the pixels of unseen classes, which tells *where* some unseen class is;
            "all_unlabelled" hides unlabelled pixels too, so that nothing tells them apart.
        ignore_index: Id of pixels without a label.

    Returns:
        int64, same shape: seen ids, `ignore_index`, or `WITHHELD`.

    Raises:
        ValueError: If `pseudo_region` is unknown.
    """
    if pseudo_region not in PSEUDO_REGIONS:
        raise ValueError(f"pseudo_region is {pseudo_region!r}; use one of {', '.join(PSEUDO_REGIONS)}.")
    is_given = np.isin(label_map, list(seen_class_ids))
    if pseudo_region == "unseen_pixels":
        is_given |= label_map == ignore_index
    return np.where(is_given, label_map, WITHHELD).astype(np.int64)


@torch.no_grad()
def pseudo_labels(
    logits: Tensor,
    labels: Tensor,
    unseen_class_ids: Sequence[int],
    threshold: float | None = None,
    ignore_index: int = 255,
) -> Tensor:
    """Write the most likely unseen class wherever a label is withheld, and nowhere else.

    Args:
        logits: (batch_size, num_classes, grid_height, grid_width) of the same forward pass; no gradient flows.
        labels: (batch_size, height, width) ids, `ignore_index` or `WITHHELD`.
        unseen_class_ids: The only classes that are guessed.
        threshold: Guesses of a lower probability become `ignore_index`; `None` takes every guess.
        ignore_index: Id of pixels without a label.

    Returns:
        (batch_size, height, width) ids or `ignore_index`.
    """
    class_ids = torch.tensor(list(unseen_class_ids), device=logits.device)
    # at the resolution and in the precision in which the loss compares them; logits have the order of their sigmoids
    scores = F.interpolate(logits[:, class_ids].float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    best, rank = scores.max(dim=1)
    guesses = class_ids[rank]
    if threshold is not None:
        guesses = guesses.masked_fill(best.sigmoid() < threshold, ignore_index)
    return torch.where(labels == WITHHELD, guesses, labels)
