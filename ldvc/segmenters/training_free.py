"""CLIP without any training as a segmenter: the similarity of its patch tokens with the class embeddings."""

import difflib
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPModel

from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation, LDVCImageFeatures
from ldvc.model.regions_ldvc import fit_to_image


__all__ = ["METHODS", "TrainingFreeCLIP"]

METHODS = ("value", "tokens")


class TrainingFreeCLIP(nn.Module):
    """CLIP as it is, with the calls of a segmenter.

    Args:
        clip: A `CLIPModel`, or the one inside an LDVC model.
        method: "value" as in MaskCLIP (arXiv 2112.01071), or "tokens", see [`LDVCConfig`].
        settings: Of the method; these two have none.

    Raises:
        ValueError: If there is no such method.
        TypeError: If a setting is none of the method's.
    """

    def __init__(self, clip: CLIPModel, method: str = "value", **settings: Any):
        super().__init__()
        if method not in METHODS:
            near = difflib.get_close_matches(str(method), METHODS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(METHODS)}."
            raise ValueError(f"`method` is {method!r}, which does not exist; {hint}")
        if settings:
            raise TypeError(f"`{next(iter(settings))}` is no setting of the method {method!r}, which has none.")
        # An LDVC model without prompts is the unchanged CLIP, with positions of any size and text features.
        self.encoder = LDVCForSemanticSegmentation.from_clip_pretrained(
            clip, num_vision_prompts=0, num_text_prompts=0, patch_features=method, dtype=clip.dtype
        )
        self.eval()

    @classmethod
    def from_pretrained(cls, clip: str | os.PathLike, method: str = "value", **settings: Any) -> "TrainingFreeCLIP":
        """Load a CLIP from a folder or Hub id."""
        return cls(CLIPModel.from_pretrained(clip), method, **settings)

    @property
    def config(self) -> Any:
        """Of the encoder."""
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.encoder.dtype

    def _vocabulary_state(self) -> tuple | None:
        return self.encoder._vocabulary_state()

    def get_class_embeds(self, *args: Any, **kwargs: Any) -> Tensor:
        """As [`LDVCForSemanticSegmentation.get_class_embeds`]."""
        return self.encoder.get_class_embeds(*args, **kwargs)

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor) -> LDVCImageFeatures:
        """As [`LDVCForSemanticSegmentation.get_image_features`]."""
        return self.encoder.get_image_features(pixel_values)

    @torch.no_grad()
    def forward(
        self,
        pixel_values: Tensor | None = None,
        class_embeds: Tensor | None = None,
        image_features: LDVCImageFeatures | None = None,
    ) -> "TrainingFreeCLIP.Output":
        """Compare patch tokens with class embeddings: cosines (batch_size, num_classes, grid_height, grid_width).

        CLIP's temperature is left out: times 100, cosines would saturate the sigmoid of `class_scores` and tie.
        """
        features = self.get_image_features(pixel_values) if image_features is None else image_features
        logits = torch.einsum("bdhw,cd->bchw", features.feature_map, class_embeds.to(features.feature_map))
        patch_size = self.encoder.config.vision_config.patch_size
        return self.Output(logits=fit_to_image(logits, features.image_size, patch_size))

    @dataclass
    class Output:
        """Logits, (batch_size, num_classes, grid_height, grid_width)."""

        logits: Tensor
