"""Class scores of whole pictures: resizing, sliding windows, averaging.

Source: the inference of ZegCLIP on mmsegmentation 0.x: short side to 512 pixels, windows of 512 every 426 pixels, the
last one flush with the border, sigmoid probabilities averaged where windows overlap.
"""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_processing_ldvc import best_classes, to_rgb


__all__ = ["InferenceSettings", "class_scores", "prepare_image", "segment_image", "window_starts"]


@dataclass(frozen=True)
class InferenceSettings:
    """How a picture goes through the model.

    Attributes:
        short_side: The picture's shorter side is resized to so many pixels, aspect kept; 0 keeps the size.
        window: Side of the sliding window in pixels; 0 takes the whole picture at once.
        stride: Pixels from one window to the next.
        window_batch_size: Windows per call of the model.

    Raises:
        ValueError: If a number is negative, or the stride is not 1 to `window`.
    """

    short_side: int = 512
    window: int = 512
    stride: int = 426
    window_batch_size: int = 4

    def __post_init__(self) -> None:
        for field in ("short_side", "window"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)}; use pixels, or 0 for none.")
        if self.window and not 1 <= self.stride <= self.window:
            raise ValueError(f"stride is {self.stride}; with a window of {self.window} use 1 to {self.window} pixels.")
        if self.window_batch_size < 1:
            raise ValueError(f"window_batch_size is {self.window_batch_size}; use at least 1.")


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last window ends flush with the border."""
    if window >= side:
        return [0]
    count = -(-(side - window) // stride) + 1
    return [min(index * stride, side - window) for index in range(count)]


def prepare_image(image: PIL.Image.Image, settings: InferenceSettings, mean: list[float], std: list[float]) -> Tensor:
    """Resize and normalise a picture.

    Args:
        image: RGB, upright; see `to_rgb`.
        settings: Decides the size.
        mean: Per RGB channel, as a fraction of full range.
        std: Per RGB channel, as a fraction of full range.

    Returns:
        (3, height, width) float32.
    """
    if settings.short_side:
        scale = settings.short_side / min(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], PIL.Image.Resampling.BILINEAR)
    pixels = (np.asarray(image, dtype=np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous()


@torch.no_grad()
def class_scores(model: nn.Module, pixels: Tensor, class_embeds: Tensor, settings: InferenceSettings) -> Tensor:
    """Probability of every class at every pixel, averaged over windows.

    Args:
        model: Called as `model(pixel_values=..., class_embeds=...)`, gives `logits`.
        pixels: (3, height, width), normalised.
        class_embeds: (num_classes, projection_dim).
        settings: Window, stride and batch size.

    Returns:
        (num_classes, height, width) float32, 0 to 1; without a window at the resolution of the logits, which covers
        the same picture.
    """
    if not settings.window:
        return model(pixel_values=pixels[None], class_embeds=class_embeds).logits[0].float().sigmoid()
    height, width = pixels.shape[-2:]
    size = (min(settings.window, height), min(settings.window, width))
    corners = [
        (top, left)
        for top in window_starts(height, size[0], settings.stride)
        for left in window_starts(width, size[1], settings.stride)
    ]
    totals = pixels.new_zeros(len(class_embeds), height, width)
    counts = pixels.new_zeros(height, width)
    for first in range(0, len(corners), settings.window_batch_size):
        batch = corners[first : first + settings.window_batch_size]
        windows = torch.stack([pixels[:, top : top + size[0], left : left + size[1]] for top, left in batch])
        logits = model(pixel_values=windows, class_embeds=class_embeds).logits.float()
        for (top, left), window_logits in zip(batch, logits, strict=True):
            # one window at a time: (num_classes, grid) -> (num_classes, window)
            scores = F.interpolate(window_logits[None], size=size, mode="bilinear", align_corners=False)[0].sigmoid()
            totals[:, top : top + size[0], left : left + size[1]] += scores
            counts[top : top + size[0], left : left + size[1]] += 1
    return totals / counts


def segment_image(
    model: nn.Module,
    image: PIL.Image.Image,
    class_embeds: Tensor,
    settings: InferenceSettings,
    mean: list[float],
    std: list[float],
    offsets: Tensor | None = None,
) -> np.ndarray:
    """Label every pixel of a picture.

    Args:
        model: See `class_scores`.
        image: Any picture.
        class_embeds: (num_classes, projection_dim).
        settings: Size and windows.
        mean: See `prepare_image`.
        std: See `prepare_image`.
        offsets: (num_classes,), subtracted from the probabilities.

    Returns:
        (height, width) int64 class ids at the picture's own size.
    """
    image = to_rgb(image)  # upright, so that its size is the label map's
    pixels = prepare_image(image, settings, mean, std).to(class_embeds.device)
    scores = class_scores(model, pixels, class_embeds, settings)
    if offsets is not None:
        scores = scores - offsets.to(scores)[:, None, None]
    return best_classes(scores, (image.height, image.width)).cpu().numpy()
