"""CLIP without any training as a segmenter: the baseline that LDVC must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPModel

from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.regions_ldvc import fit_to_image


__all__ = ["TrainingFreeCLIP"]


class TrainingFreeCLIP(nn.Module):
    """CLIP as it is: the similarity of its patch tokens with the class embeddings; the floor that training must beat.

    Args:
        clip: A `CLIPModel`, or the one inside an LDVC model.
        patch_features: "value" as in MaskCLIP (arXiv 2112.01071), or "tokens", see [`LDVCConfig`].
    """

    def __init__(self, clip: CLIPModel, patch_features: str = "value"):
        super().__init__()
        # An LDVC model without prompts is the unchanged CLIP, with positions of any size and text features.
        self.encoder = LDVCForSemanticSegmentation.from_clip_pretrained(
            clip, num_vision_prompts=0, num_text_prompts=0, patch_features=patch_features
        )

    def get_class_embeds(self, *args, **kwargs) -> Tensor:
        """As [`LDVCForSemanticSegmentation.get_class_embeds`]."""
        return self.encoder.get_class_embeds(*args, **kwargs)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, class_embeds: Tensor) -> "TrainingFreeCLIP.Output":
        """Compare patch tokens with class embeddings: cosines (batch_size, num_classes, grid_height, grid_width).

        CLIP's temperature is left out: times 100, cosines would saturate the sigmoid of `class_scores` and tie.
        """
        features = self.encoder.get_image_features(pixel_values)
        logits = torch.einsum("bdhw,cd->bchw", features.feature_map, class_embeds)
        patch_size = self.encoder.config.vision_config.patch_size
        return self.Output(logits=fit_to_image(logits, features.image_size, patch_size))

    @dataclass
    class Output:
        """Logits of the training-free baseline, (batch_size, num_classes, grid_height, grid_width)."""

        logits: Tensor
