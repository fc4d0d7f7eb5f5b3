"""Post-processing of class scores by the picture, for any segmenter: PAMR, and propagation along the picture's edges.

Both take scores, cosines or logits, on the token grid or at the picture's size, and the picture's pixels, normalised
or not; every picture of a batch is smoothed by itself. Whatever the number of classes, memory grows with the picture
and a block of classes (PAMR), or with the coarse grid of the propagation.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


__all__ = ["PEARL_AS_SHIPPED", "SMOOTHERS", "pamr", "propagate", "smooth_logits", "smooth_probabilities"]

CLASSES_PER_BLOCK = 32
DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
GREY = (0.299, 0.587, 0.114)
TEXT_TERMS = ("full", "diagonal", "none")
# PEARL's code: an index written twice takes the diagonal of the text matrix, cosines go without a temperature, and
# gradients are divided by their mean over the whole batch, so that a picture alone and in a batch differ.
PEARL_AS_SHIPPED = {"text_term": "diagonal", "softmax_scale": 1.0, "gradients_of_batch": True}


# ---- PAMR


def shifted(maps: Tensor, dilations: tuple[int, ...]) -> list[Tensor]:
    """The maps moved by every direction and dilation, edges replicated: views of (..., height, width) each."""
    reach, (height, width) = max(dilations), maps.shape[-2:]
    padded = F.pad(maps, (reach, reach, reach, reach), mode="replicate")
    return [
        padded[..., reach + d * dy : reach + d * dy + height, reach + d * dx : reach + d * dx + width]
        for d in dilations
        for dy, dx in DIRECTIONS
    ]


def pixel_affinity(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """How alike each pixel is to its neighbours: (batch_size, 8 * len(dilations), height, width), summing to 1.

    Args:
        image: (batch_size, num_channels, height, width).
        dilations: Distances of the neighbours in pixels.
    """
    neighbours = torch.stack(shifted(image, dilations), dim=2)  # (batch, channels, neighbours, height, width)
    centre = image.unsqueeze(2)
    deviation = torch.cat([neighbours, *[centre] * len(dilations)], dim=2).std(dim=2, keepdim=True)
    return (-(neighbours - centre).abs() / (1e-8 + 0.1 * deviation)).mean(dim=1).softmax(dim=1)


@torch.no_grad()
def pamr(scores: Tensor, image: Tensor, num_steps: int = 10, dilations: tuple[int, ...] = (8, 16)) -> Tensor:
    """Pixel-adaptive mask refinement: scores become, step by step, those of the pixels nearby that look alike.

    Source: PAMR (arXiv 2005.08104), as ResCLIP and NACLIP use it: the pixel itself has no weight.

    Args:
        scores: (batch_size, num_classes, grid_height, grid_width); resized to the image with aligned corners.
        image: (batch_size, num_channels, height, width).
        num_steps: 0 only resizes.
        dilations: Distances of the neighbours in pixels.

    Returns:
        (batch_size, num_classes, height, width).

    Raises:
        ValueError: If shapes do not fit, or a number is impossible.
    """
    check_pair(scores, image)
    if num_steps < 0 or not dilations or min(dilations) < 1:
        raise ValueError(
            f"`num_steps` is {num_steps} and `dilations` {dilations}; use 0 or more steps, and distances of 1 or more."
        )
    affinity = pixel_affinity(image.to(scores.dtype), tuple(dilations))
    smoothed = []
    for block in scores.split(CLASSES_PER_BLOCK, dim=1):
        maps = F.interpolate(block, size=image.shape[-2:], mode="bilinear", align_corners=True)
        for _ in range(num_steps):
            moved = shifted(maps, tuple(dilations))
            maps = torch.zeros_like(maps)
            for index, neighbour in enumerate(moved):
                maps.addcmul_(affinity[:, index : index + 1], neighbour)
        smoothed.append(maps)
    return torch.cat(smoothed, dim=1)


def check_pair(scores: Tensor, image: Tensor) -> None:
    """Check that scores and image belong together.

    Raises:
        ValueError: If they are not both of four dimensions with one batch size.
    """
    if scores.dim() != 4 or image.dim() != 4 or len(scores) != len(image):
        raise ValueError(
            f"`scores` has shape {tuple(scores.shape)} and `image` {tuple(image.shape)}; give (batch_size, "
            "num_classes, grid_height, grid_width) and (batch_size, num_channels, height, width)."
        )


# ---- propagation along the picture's edges


def text_agreement(text_embeds: Tensor, text_term: str) -> Tensor:
    """How much classes mean the same: (num_classes, num_classes), rows summing to 1 before the term is chosen.

    Args:
        text_embeds: (num_classes, projection_dim), unit length.
        text_term: "full" keeps the matrix, "diagonal" its diagonal alone.
    """
    similar = (text_embeds @ text_embeds.T / 0.5).softmax(dim=-1)
    similar = similar + 10 * torch.eye(len(similar), device=similar.device, dtype=similar.dtype)
    similar = similar / similar.sum(dim=-1, keepdim=True)
    return torch.diag(similar.diagonal()) if text_term == "diagonal" else similar


def edge_weights(image: Tensor, axis: int, agreement: Tensor | float, gradients_of_batch: bool) -> Tensor:
    """Weight of the bond between each pixel and the next along an axis: 1 where nothing changes, 0 across an edge.

    Args:
        image: (batch_size, num_channels, height, width).
        axis: -2 or -1.
        agreement: (batch_size, 1, height, width) less one along the axis, or 0.
        gradients_of_batch: Divide by the mean over the batch, not over each image.

    Returns:
        (batch_size, 1, height, width) less one along the axis.
    """
    if image.shape[1] == len(GREY):
        image = (image * image.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)
    gradient = image.mean(dim=1, keepdim=True).diff(dim=axis).abs()
    mean = gradient.mean() if gradients_of_batch else gradient.mean(dim=(1, 2, 3), keepdim=True)
    return (torch.exp(-5 * gradient / (mean + 1e-6)) * (1 + agreement)).clamp_max(1)


def bonds(
    probabilities: Tensor, image: Tensor, similar: Tensor | None, gradients_of_batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """How much each pixel holds on to its own scores, and how strongly neighbours are bound.

    Args:
        probabilities: (batch_size, num_classes, height, width).
        image: (batch_size, num_channels, height, width).
        similar: (num_classes, num_classes) from `text_agreement`; `None` for no text term.
        gradients_of_batch: See `edge_weights`.

    Returns:
        Trust, (batch_size, 1, height, width); bonds with the next row, one row less; with the next column, one less.
    """
    weighted = None if similar is None else torch.einsum("ij,bjhw->bihw", similar, probabilities)

    def agreement(rows: slice, columns: slice, next_rows: slice, next_columns: slice) -> Tensor | float:
        if weighted is None:
            return 0.0
        product = probabilities[:, :, rows, columns] * weighted[:, :, next_rows, next_columns]
        return product.sum(dim=1, keepdim=True).clamp(0, 1)

    everything, first, second = slice(None), slice(None, -1), slice(1, None)
    own = agreement(everything, everything, everything, everything)
    trust = probabilities.amax(dim=1, keepdim=True).clamp_min(0.05) ** 2 * (1 + own)
    vertical = agreement(first, everything, second, everything)
    horizontal = agreement(everything, first, everything, second)
    below = edge_weights(image, -2, vertical, gradients_of_batch)
    return trust, below, edge_weights(image, -1, horizontal, gradients_of_batch)


def laplacian(maps: Tensor, below: Tensor, right: Tensor) -> Tensor:
    """Apply the graph Laplacian of the bonds: what leaves each pixel, (batch_size, num_classes, height, width).

    Args:
        maps: (batch_size, num_classes, height, width).
        below: (batch_size, 1, height - 1, width) bonds with the next row.
        right: (batch_size, 1, height, width - 1) bonds with the next column.
    """
    down, across = below * maps.diff(dim=-2), right * maps.diff(dim=-1)
    return -(F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0))) - (F.pad(across, (0, 1)) - F.pad(across, (1, 0)))


def solve(scores: Tensor, trust: Tensor, below: Tensor, right: Tensor, num_steps: int) -> Tensor:
    """Solve (trust + Laplacian) F = trust * scores by so many conjugate-gradient steps, each image by itself.

    Args:
        scores: (batch_size, num_classes, height, width), where the steps start.
        trust: (batch_size, 1, height, width).
        below: See `laplacian`.
        right: See `laplacian`.
        num_steps: PEARL takes 25, which are not enough to converge.

    Returns:
        (batch_size, num_classes, height, width).
    """

    def inner(first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum(dim=(1, 2, 3), keepdim=True)

    found = scores
    rest = trust * scores - (trust * found + laplacian(found, below, right))
    step, power = rest, inner(rest, rest)
    for _ in range(num_steps):
        pushed = trust * step + laplacian(step, below, right)
        length = power / (inner(step, pushed) + 1e-12)
        found, rest = found + length * step, rest - length * pushed
        new_power = inner(rest, rest)
        step, power = rest + new_power / (power + 1e-12) * step, new_power
    return found


@torch.no_grad()
def propagate(
    scores: Tensor,
    image: Tensor,
    text_embeds: Tensor | None = None,
    *,
    text_term: str = "full",
    softmax_scale: float = 40.0,
    grid: int = 80,
    num_steps: int = 25,
    gradients_of_batch: bool = False,
) -> Tensor:
    """Let scores spread between pixels, but not across the picture's edges, and less where a class is sure.

    Source: the Laplacian propagation of PEARL (arXiv 2603.21528), section by section in docs/training_free.md.
    Departures of the defaults, see `PEARL_AS_SHIPPED` for what its code does: the whole matrix of the classes' text
    similarity as its paper says, probabilities by a temperature, and gradients scaled within each picture.

    Args:
        scores: (batch_size, num_classes, grid_height, grid_width); resized to the image bilinearly.
        image: (batch_size, num_channels, height, width).
        text_embeds: (num_classes, projection_dim), unit length; without them there is no text term.
        text_term: "full", "diagonal" (what PEARL's code computes), or "none".
        softmax_scale: Factor on the scores that makes them the logits of probabilities: 40 for cosines, 1 for logits.
        grid: Sides of the coarse picture on which the equation is solved, about so many pixels.
        num_steps: Of conjugate gradients.
        gradients_of_batch: Scale gradients by their mean over the whole batch.

    Returns:
        (batch_size, num_classes, height, width).

    Raises:
        ValueError: If shapes do not fit, or a setting is impossible.
    """
    check_pair(scores, image)
    if text_term not in TEXT_TERMS:
        raise ValueError(f"`text_term` is {text_term!r}; use one of {', '.join(map(repr, TEXT_TERMS))}.")
    if grid < 1 or num_steps < 0 or not softmax_scale > 0:
        raise ValueError(
            f"`grid` is {grid}, `num_steps` {num_steps} and `softmax_scale` {softmax_scale}; use at least 1 pixel, 0 "
            "or more steps, and a scale above 0."
        )
    size = tuple(image.shape[-2:])
    factors = tuple(max(1, round(side / grid)) for side in size)
    full = F.interpolate(scores.float(), size=size, mode="bilinear", align_corners=False)
    coarse, pixels = (F.avg_pool2d(maps, factors, factors) for maps in (full, image.float()))
    probabilities = (softmax_scale * coarse).softmax(dim=1)
    similar = None
    if text_embeds is not None and text_term != "none":
        similar = text_agreement(text_embeds.float().to(coarse.device), text_term)
    trust, below, right = bonds(probabilities, pixels, similar, gradients_of_batch)
    found = solve(coarse, trust, below, right, num_steps)
    return F.interpolate(found, size=size, mode="bilinear", align_corners=False).to(scores.dtype)


# ---- probabilities, and what `ldvc segment --smoothing` does with them


@torch.no_grad()
def smooth_probabilities(
    probabilities: Tensor,
    image: Tensor,
    class_embeds: Tensor | None = None,
    *,
    dilations: tuple[int, ...] | None = None,
    softmax_scale: float | None = None,
) -> Tensor:
    """Smooth probabilities of independent classes: by PAMR, by the propagation, or by both in this order.

    Args:
        probabilities: (batch_size, num_classes, height, width), 0 to 1.
        image: (batch_size, num_channels, height, width).
        class_embeds: (num_classes, projection_dim) of any length, or `None`, see `propagate`.
        dilations: Of PAMR; `None` leaves it out.
        softmax_scale: Of the propagation; `None` leaves it out.

    Returns:
        (batch_size, num_classes, height, width).
    """
    if dilations is not None:
        probabilities = pamr(probabilities, image, dilations=dilations)
    if softmax_scale is not None:
        unit = None if class_embeds is None else F.normalize(class_embeds.float(), dim=-1)
        probabilities = propagate(probabilities, image, unit, softmax_scale=softmax_scale)
    return probabilities


# PAMR's distances are its papers', for pictures of about 500 pixels; `picturebook.smoothing` chose the scales.
SMOOTHERS: dict[str, dict[str, Any]] = {
    "pamr": {"dilations": (8, 16)},
    "propagation": {"softmax_scale": 2.0},
    "pamr-propagation": {"dilations": (8, 16), "softmax_scale": 10.0},
}
SMALLEST = 1e-6  # probability that has a logit


def smooth_logits(logits: Tensor, pixels: Tensor, class_embeds: Tensor | None, smoothing: str) -> Tensor:
    """Smooth one picture's logits, as the argument `refine` of `segment`.

    Args:
        logits: (num_classes, grid_height, grid_width), whose sigmoid is a probability.
        pixels: (num_channels, height, width), as the model read them.
        class_embeds: See `smooth_probabilities`.
        smoothing: Of `SMOOTHERS`.

    Returns:
        (num_classes, height, width) logits.

    Raises:
        ValueError: If there is no such smoothing.
    """
    if smoothing not in SMOOTHERS:
        raise ValueError(f"smoothing is {smoothing!r}; use one of {', '.join(map(repr, SMOOTHERS))}.")
    full = F.interpolate(logits[None].float(), size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    image = pixels[None].to(full)
    smoothed = smooth_probabilities(full.sigmoid(), image, class_embeds, **SMOOTHERS[smoothing])
    return smoothed[0].clamp(SMALLEST, 1 - SMALLEST).logit()
