# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""What is exported of each kind of model: a module for pictures, one for prompts, with their inputs and free axes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.segmenter_ldvc import Segmenter
from ldvc.segmenters.clipseg import CLIPSegSegmenter
from ldvc.segmenters.training_free import TrainingFreeCLIP


__all__ = [
    "PictureProgram",
    "TextProgram",
    "example_picture",
    "example_prompts",
    "find_kind",
    "free_axes",
    "has_text_tower",
    "picture_program",
    "size_multiple",
    "smallest_side",
]

KINDS = {LDVCForSemanticSegmentation: "ldvc", TrainingFreeCLIP: "training_free", CLIPSegSegmenter: "clipseg"}


def find_kind(model: Segmenter) -> str:
    """Tell what a model is: `"ldvc"`, `"training_free"` or `"clipseg"`.

    Raises:
        ValueError: If it is something else, or a method that no program can follow.
    """
    kind = next((kind for known, kind in KINDS.items() if isinstance(model, known)), None)
    if kind is None:
        raise ValueError(f"a {type(model).__name__} cannot be exported; give LDVC, a CLIP or a CLIPSeg.")
    if kind == "training_free" and model.feedback.feedback:
        raise ValueError(
            f"the method {model.method!r} looks at a picture twice, which no program does; set feedback to false, or "
            "choose another method."
        )
    settings = getattr(model, "settings", None) or getattr(model.config, "dense_settings", None)
    if settings is not None and settings.affinity == "rotated" and settings.rotation == "svd":
        raise ValueError(
            "`rotation` is 'svd', and programs have no singular value decomposition; use 'newton_schulz'."
        )
    return kind


class PictureProgram(nn.Module):
    """Logits of pixels and class embeddings.

    The picture is cut to whole multiples first. For the sizes that are allowed this does nothing; to the exporter it
    says that the grid has whole regions, without which no single program could serve several sizes.
    """

    def __init__(self, model: Segmenter):
        super().__init__()
        self.model = model
        self.size_multiple = size_multiple(model)

    def forward(self, pixel_values: Tensor, class_embeds: Tensor) -> Tensor:
        """(batch_size, channels, height, width), (num_classes, dim) -> (batch_size, num_classes, grid)."""
        height, width = (side // self.size_multiple * self.size_multiple for side in pixel_values.shape[-2:])
        return self.logits(pixel_values[:, :, :height, :width], class_embeds)

    def logits(self, pixel_values: Tensor, class_embeds: Tensor) -> Tensor:
        """Of a picture of whole multiples."""
        return self.model(pixel_values=pixel_values, class_embeds=class_embeds).logits


class CLIPSegPictureProgram(PictureProgram):
    """CLIPSeg's logits of one picture; its decoder runs per picture, and here for all classes of the call at once."""

    def logits(self, pixel_values: Tensor, class_embeds: Tensor) -> Tensor:
        """(1, channels, height, width), (num_classes, dim) -> (1, num_classes, height, width)."""
        features = self.model.get_image_features(pixel_values)
        return self.model.decode(features.activations[0], class_embeds, features.grid_size)[None]


class TextProgram(nn.Module):
    """An embedding per prompt: (prompts, length) token ids -> (prompts, dim), not yet averaged over a class's own."""

    def __init__(self, model: Segmenter):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`attention_mask` is there as for any tower; what follows the end token has no effect on a causal one."""
        model = self.model
        if isinstance(model, CLIPSegSegmenter):
            return model.clip.get_text_features(input_ids, attention_mask=attention_mask).pooler_output
        ends = model._check_prompts(input_ids, attention_mask)
        return F.normalize(model.clip.text_projection(model._encode_text(input_ids, ends)), dim=-1)


def picture_program(model: Segmenter) -> PictureProgram:
    """The module to export, in eval mode.

    Raises:
        ValueError: If the model is not on the CPU in float32, or is training.
    """
    if model.training or model.dtype != torch.float32 or model.device.type != "cpu":
        state = "training" if model.training else f"in {model.dtype} on {model.device}"
        raise ValueError(f"the model is {state}; export model.float().cpu().eval().")
    kind = CLIPSegPictureProgram if find_kind(model) == "clipseg" else PictureProgram
    return kind(model).eval()


def has_text_tower(model: Segmenter) -> bool:
    """Whether it can encode names: a baked vocabulary, or a CLIP's vision tower alone, cannot."""
    is_baked = getattr(model, "baked_vocabulary", None) is not None
    return not is_baked and getattr(model.clip, "text_model", None) is not None


def size_multiple(model: Segmenter) -> int:
    """Pixels that height and width of an exported program's pictures are multiples of."""
    config, patch_size = model.config, model.config.vision_config.patch_size
    if not isinstance(model, LDVCForSemanticSegmentation) or config.decoder_query != "image":
        return patch_size
    tokens = {"route": config.num_regions, "window": config.window_size, "shifted_window": config.window_size}
    return patch_size * tokens.get(config.decoder_attention, 1)


def smallest_side(model: Segmenter, file_format: str) -> int:
    """The smallest height and width in pixels that a program takes."""
    # torch.export takes an axis of one token per region for a fixed one; a single window is never shifted
    is_ldvc = isinstance(model, LDVCForSemanticSegmentation)
    is_limited = file_format == "torch" or (is_ldvc and model.config.decoder_attention == "shifted_window")
    return size_multiple(model) * (2 if is_limited or not is_ldvc else 1)


def example_picture(model: Segmenter) -> dict[str, Tensor]:
    """Inputs to trace with; no two axes are of one size, so that none is taken for another."""
    step, config = size_multiple(model), model.config
    images = 1 if isinstance(model, CLIPSegSegmenter) else 2
    sides = (2 * step, 3 * step) if step >= 2 * config.vision_config.patch_size else (4 * step, 6 * step)
    return {
        "pixel_values": torch.randn(images, config.vision_config.num_channels, *sides),
        "class_embeds": F.normalize(torch.randn(5, config.projection_dim), dim=-1),
    }


def example_prompts(model: Segmenter) -> dict[str, Tensor]:
    """Three prompts to trace with: what text prompts replace, a word, end tokens."""
    text = model.config.text_config
    begin = getattr(model.config, "prompt_token_ids", None) or [0]
    input_ids = torch.tensor([[*begin, 1, *[text.vocab_size - 1] * 3]] * 3)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def free_axes(model: Segmenter) -> tuple[dict[str, dict[int, Any]], dict[str, dict[int, Any]]]:
    """The axes of both programs' inputs that are free."""
    free = torch.export.Dim.AUTO
    pictures = {2: free, 3: free} if isinstance(model, CLIPSegSegmenter) else {0: free, 2: free, 3: free}
    both = {0: free, 1: free}
    return {"pixel_values": pictures, "class_embeds": {0: free}}, {"input_ids": both, "attention_mask": both}
