# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""What pipelines, commands and pages need of a model, and what a call asks it: classes, and what competes with them.

LDVC is one segmenter; CLIP without training, CLIPSeg and exported programs, in the package `ldvc`, are others.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .options_ldvc import BACKGROUND, Classes, Rivals, read_rivals
from .vocabulary_ldvc import DefaultVocabulary


class Segmenter(Protocol):
    """Classes in, embeddings out; picture in, features out; both in, logits out.

    Beside these, `config.projection_dim`, `device`, `dtype`, `eval()` and `training` as every model has them. A model
    with classes of its own names them in `config.default_class_names`; one that knows which classes trained with masks
    has `seen_class_mask(class_names)` and takes the result as an argument.
    """

    config: Any
    device: torch.device
    dtype: torch.dtype
    training: bool

    def get_class_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, prompt_class_ids: Tensor | None = None
    ) -> Tensor:
        """Encode prompts: (num_classes, projection_dim)."""
        ...

    def get_image_features(self, pixel_values: Tensor) -> Any:
        """Encode (batch_size, channels, height, width) pictures; the features have `select(images)`."""
        ...

    def __call__(
        self, pixel_values: Tensor | None = None, class_embeds: Tensor | None = None, image_features: Any = None
    ) -> Any:
        """Give `.logits`, (batch_size, num_classes, grid_height, grid_width), before the sigmoid."""
        ...


def check_segmenter(model: Any) -> None:
    """Check that a model has the calls of a segmenter.

    Raises:
        ValueError: If it has not.
    """
    if not all(callable(getattr(model, name, None)) for name in ("get_class_embeds", "get_image_features")):
        raise ValueError(
            f"{type(model).__name__} cannot segment by names; use LDVC, or with the package `ldvc` a CLIPModel or a "
            "CLIPSeg as ldvc.load(folder_or_id) gives them."
        )


def check_eval_mode(model: nn.Module) -> None:
    """Check that a model gives the same answer twice.

    Raises:
        ValueError: If it is in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode, in which dropout changes its answers; call model.eval().")


def check_text_tower(model: nn.Module) -> None:
    """Check that a model can encode names.

    Raises:
        ValueError: If its vocabulary is baked in.
    """
    if getattr(model, "baked_vocabulary", None) is not None:
        raise ValueError(
            "the call names classes, but this checkpoint has a baked vocabulary and no text tower for them; leave "
            "the names out, or load the checkpoint it was baked from."
        )


def compute_device(model: nn.Module) -> torch.device:
    """Where inputs are made; under offload, where a model's own `device` is "meta", the CPU."""
    first = next(model.parameters(), None)  # an exported program has none
    return torch.device("cpu") if first is None or first.is_meta else first.device


def own_names(model: Segmenter) -> list[str]:
    """Class names of the model's own vocabulary; empty without one."""
    return getattr(model.config, "default_class_names", [])


def seen_class_mask(model: Segmenter, class_names: Sequence[str] | Classes) -> Tensor | None:
    """Which classes trained with masks, (num_classes,) bool; `None` where the model does not know."""
    return model.seen_class_mask(class_names) if hasattr(model, "seen_class_mask") else None


def ask(
    model: Segmenter, class_embeds: Tensor | None, seen_class_mask: Tensor | None = None, **image: Any
) -> tuple[Tensor, Tensor | None]:
    """Call a model with pictures and classes.

    Args:
        model: Any segmenter.
        class_embeds: (num_classes, projection_dim), or `None` for the model's own vocabulary.
        seen_class_mask: (num_classes,), `None` where the model does not know or takes none.
        image: `pixel_values` or `image_features`.

    Returns:
        (batch_size, num_classes, grid_height, grid_width) logits, and what is taken from probabilities,
        (batch_size, num_classes), or `None`.
    """
    seen = {} if seen_class_mask is None else {"seen_class_mask": seen_class_mask}
    outputs = model(class_embeds=class_embeds, **seen, **image)
    return outputs.logits, getattr(outputs, "class_score_offsets", None)


def default_vocabulary(model: Segmenter) -> DefaultVocabulary:
    """The model's own vocabulary as it is now.

    Raises:
        ValueError: If it has none.
    """
    if not hasattr(model, "default_vocabulary"):
        raise ValueError(
            "the call names no classes and the model has no default vocabulary; pass `class_names` (to a pipeline "
            "`candidate_labels`)."
        )
    return model.default_vocabulary()


def text_state(model: Segmenter) -> tuple | None:
    """All that class embeddings depend on; `None` where it cannot be known, so that nothing may be kept."""
    return model._vocabulary_state() if hasattr(model, "_vocabulary_state") else None


# ---- what competes with the classes of a call


def seen_queries(model: Segmenter, classes: Sequence[str] | Classes, rivals: Rivals) -> Tensor | None:
    """Which classes and rivals trained with masks, (num_channels,) bool; `None` where the model does not know."""
    masks = [seen_class_mask(model, part) for part in (classes, rivals.words) if part]
    return None if masks[0] is None else torch.cat(masks)


__all__ = [
    "BACKGROUND",
    "Rivals",
    "Segmenter",
    "ask",
    "check_eval_mode",
    "check_segmenter",
    "check_text_tower",
    "compute_device",
    "default_vocabulary",
    "own_names",
    "read_rivals",
    "seen_class_mask",
    "seen_queries",
    "text_state",
]
