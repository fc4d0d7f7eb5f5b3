"""Models and class lists of the benchmarks: ViT-B/16 with random weights, or a tiny one to see that all runs."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModel

from benchmarks.timing import Settings
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation


TINY_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
TINY_VISION = {**TINY_TOWER, "image_size": 32, "patch_size": 8}
TINY_FIELDS = {"projection_dim": 32, "decoder_attention_heads": 4, "decoder_intermediate_size": 48, "num_regions": 2}
TINY_FIELDS |= {"route_top_k": 2, "num_vision_prompts": 3}
ATTENTION = "sdpa"  # the backend of every model and of the peers, unless a figure compares backends
WORDS = 1000  # first token id of the words that make class prompts differ


def build_config(settings: Settings, **fields) -> LDVCConfig:
    """LDVC on ViT-B/16 as published, or a tiny one."""
    if settings.quick:
        fields = {"text_config": dict(TINY_TOWER), "vision_config": dict(TINY_VISION), **TINY_FIELDS, **fields}
    config = LDVCConfig(**fields)
    start = config.text_config.vocab_size - 2  # CLIP's start token; its end token is the highest id
    config.prompt_token_ids = [start, *range(320, 320 + config.num_text_prompts)]
    return config


def build_model(settings: Settings, attention: str = ATTENTION, **fields) -> LDVCForSemanticSegmentation:
    """Random weights of a fixed seed (time does not depend on their values), eval mode, on the settings' device."""
    torch.manual_seed(0)
    model = LDVCForSemanticSegmentation._from_config(build_config(settings, **fields), attn_implementation=attention)
    return model.to(settings.device, settings.dtype).eval()


def build_bare_tower(model: LDVCForSemanticSegmentation) -> CLIPVisionModel:
    """The library's own vision model with the same weights and attention backend."""
    attention = model.config._attn_implementation
    tower = CLIPVisionModel._from_config(model.config.vision_config, attn_implementation=attention)
    tower.load_state_dict(model.clip.vision_model.state_dict(), strict=False)
    return tower.to(model.device, model.dtype).eval()


def make_pixels(settings: Settings, side: int, batch_size: int = 1) -> Tensor:
    """(batch_size, 3, side, side) noise; 32 x 32 in a quick run."""
    side = 32 if settings.quick else side
    return torch.randn(batch_size, 3, side, side).to(settings.device, settings.dtype)


def make_class_embeds(model: LDVCForSemanticSegmentation, num_classes: int) -> Tensor:
    """(num_classes, projection_dim) random unit vectors."""
    embeds = F.normalize(torch.randn(num_classes, model.config.projection_dim), dim=-1)
    return embeds.to(model.device, model.dtype)


def make_prompts(model: LDVCForSemanticSegmentation, num_classes: int, length: int = 77) -> Tensor:
    """(num_classes, length) ids: template, a name of one to three tokens, as most class names have, end, padding."""
    config = model.config
    start = torch.tensor(config.prompt_token_ids[: 1 + config.num_text_prompts])
    end = config.text_config.vocab_size - 1  # CLIP's, the highest id
    rows = torch.full((num_classes, length), end)
    rows[:, : len(start)] = start
    for index, row in enumerate(rows):
        words = 1 + index % 3
        row[len(start) : len(start) + words] = WORDS + torch.arange(index, index + words)
    return rows.to(model.device)


def make_labels(num_classes: int, side: int, batch_size: int = 1) -> Tensor:
    """(batch_size, side, side) ids in 16 x 16 blocks, the topmost row of blocks unlabelled."""
    block = max(1, side // 16)
    labels = torch.randint(0, num_classes, (batch_size, side // block, side // block))
    labels[:, 0] = 255
    return labels.repeat_interleave(block, 1).repeat_interleave(block, 2)


def check_equal(name: str, first: Tensor | float, second: Tensor | float, tolerance: float) -> float:
    """Compare what two ways give, so that no ratio of different results is reported.

    Returns:
        The largest difference.

    Raises:
        ValueError: If it is above the tolerance.
    """
    first, second = torch.as_tensor(first).double(), torch.as_tensor(second).double()
    difference = float((first - second).abs().max())
    if not difference <= tolerance:
        raise ValueError(
            f"{name}: the results differ by {difference:.2g}, more than {tolerance:g}; no ratio is given."
        )
    return difference
