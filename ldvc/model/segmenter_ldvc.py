# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""What pipelines, commands and pages need of a model, and what a call asks it: classes, and what competes with them.

LDVC is one segmenter; CLIP without training, CLIPSeg and exported programs, in the package `ldvc`, are others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .processing_ldvc import Classes, name_key, read_classes
from .vocabulary_ldvc import DefaultVocabulary


BACKGROUND = "background"  # name of the class that is made of a list of words


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


@dataclass(frozen=True)
class Rivals:
    """Words that compete with the classes of a call.

    Attributes:
        words: Name -> synonyms of each; their channels follow those of the classes.
        num_background: How many of them, the first, are together the class `BACKGROUND`; the others are "other".
    """

    words: Classes
    num_background: int = 0

    def names(self, class_names: Sequence[str]) -> list[str]:
        """Names of all classes that a call returns."""
        return [*class_names, BACKGROUND] if self.num_background else list(class_names)

    def class_ids(self, num_named: int) -> Tensor | None:
        """Class of each channel, (num_channels,), -1 for "other"; `None` where each is a class of its own."""
        if not self.words:
            return None
        background = [num_named] * self.num_background
        return torch.tensor([*range(num_named), *background, *[-1] * (len(self.words) - self.num_background)])

    @property
    def has_other(self) -> bool:
        """Whether pixels may become "other" without a threshold."""
        return len(self.words) > self.num_background


def read_rivals(
    classes: Sequence[str] | Mapping[str, str | Sequence[str]],
    negative_labels: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    background: Sequence[str] | None = None,
) -> Rivals:
    """Check what competes with the classes of a call.

    Args:
        classes: The classes of the call: names, or names and synonyms.
        negative_labels: Names, or names and synonyms, whose pixels come back as "other".
        background: Words that are together one class, "background", whose score at a pixel is its best word's; words
            that the call names by themselves are left out of it.

    Raises:
        ValueError: If a name is empty, repeated or also a class's own, "background" is a class already, or no word is
            left of the background.
        TypeError: If a name is no string.
    """
    if negative_labels is None and background is None:
        return Rivals({})
    named = read_classes(classes) if classes else {}  # none at all is refused by whoever needs them
    negative = {} if negative_labels is None else read_classes(negative_labels)
    if both := [name for name in negative if name in named]:
        raise ValueError(f"{both[0]!r} is a class of this call and a negative label too; a word is one of them.")
    everything = read_classes(named | negative)  # no word twice
    if background is None:
        return Rivals(negative)
    if BACKGROUND in everything:
        raise ValueError(f"{BACKGROUND!r} is named in this call, and a list of words is to make it; give one of them.")
    taken = {name_key(word) for name, words in everything.items() for word in (name, *words)}
    words = [word for word in read_classes(list(background)) if name_key(word) not in taken]
    if not words:
        raise ValueError("every word of the background is named in this call by itself; leave the background out.")
    return Rivals({word: [word] for word in words} | negative, len(words))


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
