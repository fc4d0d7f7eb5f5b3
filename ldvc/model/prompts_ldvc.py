# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""What LDVC adds to the two CLIP towers: vision prompts, text prompts and the text adapter behind them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from .configuration_ldvc import LDVCConfig


def resize_positions(
    positions: Tensor, side: int, grid_size: tuple[int, int], mode: Literal["bilinear", "bicubic"]
) -> Tensor:
    """Resize CLIP's position embeddings from its own grid to an image's: (1, 1 + num_patches, hidden_size).

    Args:
        positions: (1, 1 + side * side, hidden_size), the class token's first.
        side: Of CLIP's own grid, in patches.
        grid_size: (height, width) of the image in patches.
        mode: Bilinear as in ZegCLIP, or bicubic as in the library.
    """
    # (1, side * side, hidden_size) -> (1, hidden_size, side, side), resized, and back
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=grid_size, mode=mode, align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class LDVCVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch embeddings for any image size: positions resized bilinearly (ZegCLIP) or bicubically (library)."""

    interpolation_mode = "bilinear"

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Resize the position embeddings to the image's grid: (1, 1 + num_patches, hidden_size)."""
        positions = self.position_embedding(self.position_ids)
        grid_size = (height // self.patch_size, width // self.patch_size)
        return resize_positions(positions, self.image_size // self.patch_size, grid_size, self.interpolation_mode)


def embed_patches(
    embeddings: CLIPVisionEmbeddings, pixel_values: Tensor, mode: Literal["bilinear", "bicubic"]
) -> Tensor:
    """Embed images of any size by a CLIP's own embeddings, as [`LDVCVisionEmbeddings`] does by its.

    Args:
        embeddings: Of the CLIP; not changed.
        pixel_values: (batch_size, num_channels, height, width), of whole patches.
        mode: See `resize_positions`.

    Returns:
        (batch_size, 1 + num_patches, hidden_size).
    """
    patches = embeddings.patch_embedding(pixel_values.to(embeddings.patch_embedding.weight.dtype))
    grid_size, side = tuple(patches.shape[-2:]), embeddings.image_size // embeddings.patch_size
    class_tokens = embeddings.class_embedding.expand(patches.shape[0], 1, -1)
    tokens = torch.cat([class_tokens, patches.flatten(2).transpose(1, 2)], dim=1)
    positions = embeddings.position_embedding(embeddings.position_ids)
    return tokens + resize_positions(positions, side, grid_size, mode)


class LDVCVisionPrompts(nn.Module):
    """Deep visual prompts: fresh prompt tokens between summary token and patches, in front of every layer.

    Source: VPT-Deep (arXiv 2203.12119) as in ZegCLIP: one shared projection, dropout, no position embedding, and a
    trained LayerNorm over all tokens after the last layer.
    """

    def __init__(self, config: LDVCConfig):
        super().__init__()
        width = config.vision_config.hidden_size
        self.depth = config.vision_prompt_depth or config.vision_config.num_hidden_layers
        self.num_prompts = config.num_vision_prompts
        # VPT's range: Xavier-uniform of the patch embedding
        patch_inputs = config.vision_config.num_channels * config.vision_config.patch_size**2
        self.init_range = (6 / (patch_inputs + width)) ** 0.5
        self.tokens = nn.Parameter(torch.empty(self.depth, self.num_prompts, width))
        self.projection = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.vision_prompt_dropout)

    def forward(self, hidden_states: Tensor, layer: int) -> Tensor:
        """Put layer `layer`'s prompts at positions 1 to num_prompts, in place of the previous layer's.

        Args:
            hidden_states: (batch_size, num_tokens, hidden_size), summary token first.
            layer: Layer of the tower, from 0.
        """
        prompts = self.projection(self.tokens[layer]).expand(hidden_states.shape[0], -1, -1)
        prompts = self.dropout(prompts).to(hidden_states.dtype)  # after `expand`: every image draws its own
        patches = hidden_states[:, 1 if layer == 0 else 1 + self.num_prompts :]
        return torch.cat([hidden_states[:, :1], prompts, patches], dim=1)


class LDVCTextPrompts(nn.Module):
    """Deep language prompts at the positions of the template's words, in every layer of the text tower.

    Source: LDVC (arXiv 2403.08426): prompts in every layer, started from the encoder's own embeddings of a
    hand-crafted prompt. The tower is causal, so the states at these positions do not depend on the name behind them:
    overwriting them with the frozen encoder's values leaves every text feature as CLIP's at step 0.
    """

    def __init__(self, config: LDVCConfig):
        super().__init__()
        self.depth = config.text_prompt_depth or config.text_config.num_hidden_layers
        self.num_prompts = config.num_text_prompts
        self.tokens = nn.Parameter(torch.empty(self.depth, self.num_prompts, config.text_config.hidden_size))

    def forward(self, hidden_states: Tensor, layer: int) -> Tensor:
        """Overwrite positions 1 to num_prompts of (num_prompts, sequence_length, hidden_size) states."""
        prompts = self.tokens[layer].to(hidden_states.dtype).expand(hidden_states.shape[0], -1, -1)
        return torch.cat([hidden_states[:, :1], prompts, hidden_states[:, 1 + self.num_prompts :]], dim=1)


class LDVCIdentityProjection(nn.Linear):
    """A linear layer that starts by passing on the last of its inputs, as many as it has outputs."""


class LDVCTextAdapter(nn.Module):
    """Fuse the image's global feature g into the class embeddings: `Linear([g * t, t])`.

    Source: ZegCLIP's relationship descriptor, which LDVC's text adapter equals. `"linear"` drops g, `"none"` also the
    projection.
    """

    def __init__(self, config: LDVCConfig):
        super().__init__()
        self.kind = config.text_adapter
        inputs = {"relation": 2, "linear": 1, "none": 0}[self.kind] * config.projection_dim
        layer = LDVCIdentityProjection if config.text_adapter_init == "identity" else nn.Linear
        self.projection = layer(inputs, config.projection_dim) if inputs else nn.Identity()

    def forward(self, image_embeds: Tensor, class_embeds: Tensor) -> Tensor:
        """Adapt the class embeddings to each image.

        Args:
            image_embeds: (batch_size, projection_dim), unit length.
            class_embeds: (1 or batch_size, num_classes, projection_dim), unit length.

        Returns:
            (batch_size, num_classes, projection_dim).
        """
        class_embeds = class_embeds.expand(image_embeds.shape[0], -1, -1)
        if self.kind == "relation":
            class_embeds = torch.cat([image_embeds.unsqueeze(1) * class_embeds, class_embeds], dim=-1)
        return self.projection(class_embeds)


__all__ = [
    "LDVCIdentityProjection",
    "LDVCTextAdapter",
    "LDVCTextPrompts",
    "LDVCVisionEmbeddings",
    "LDVCVisionPrompts",
    "embed_patches",
    "resize_positions",
]
