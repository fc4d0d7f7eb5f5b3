# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Which dense features of a CLIP vision tower: the settings of the family that `dense_ldvc` computes, no tensor yet.

The formulas of each method, its source and its traps are in docs/training_free.md; a new one is a line of
`DENSE_METHODS`.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


# Affinity -> the projections (q, k, v) that it compares, each pair by a softmax of its own; rows sum to their number.
PAIRS = {
    "qk": ("qk",),
    "qq": ("qq",),
    "kk": ("kk",),
    "vv": ("vv",),
    "qq+kk": ("qq", "kk"),
    "kk+gaussian": ("kk",),
}
AFFINITIES = ("value", *PAIRS, "rotated", "self_self")
ROTATIONS = ("newton_schulz", "svd")


@dataclass(frozen=True)
class LDVCDenseSettings:
    """One member of the family; the defaults are the value path alone.

    Attributes:
        affinity: "value" (every token attends to itself), "qk" (CLIP's own), "qq", "kk", "vv", "qq+kk" (two softmaxes,
            not halved), "kk+gaussian" (nearby patches favoured), "rotated" (keys turned towards the queries) or
            "self_self" (GEM: mean of iterated q-q, k-k and v-v).
        residual: Weight of the block's input.
        attention_weight: Weight of what attention gives, the output projection's bias included.
        feed_forward: Keep the last block's feed-forward part, with its own residual.
        num_blocks: Blocks, from the last, whose attention outputs are added up along a path of their own without
            feed-forward parts; projections come from the plain path.
        gaussian_std: Width of "kk+gaussian" in patches.
        rotation: Of "rotated": "newton_schulz", PEARL's five steps, which leave a map that shrinks and is no rotation,
            or "svd", the nearest rotation.
        rotated_key_weight: Of "rotated": weight of the products of centred keys.
        middle_blocks: Blocks, counted from 1, whose own attention is mixed in (ResCLIP); none by default.
        middle_weight: Their share, 0 to 1.
        middle_scale: Factor on the mixture.

    Raises:
        ValueError: If a value is impossible; names field, value and remedy.
    """

    affinity: str = "value"
    residual: float = 0.0
    attention_weight: float = 1.0
    feed_forward: bool = False
    num_blocks: int = 1
    gaussian_std: float = 5.0
    rotation: str = "newton_schulz"
    rotated_key_weight: float = 0.08
    middle_blocks: tuple[int, ...] = ()
    middle_weight: float = 0.4
    middle_scale: float = 2.0

    def __post_init__(self):
        for name, choices in (("affinity", AFFINITIES), ("rotation", ROTATIONS)):
            if getattr(self, name) not in choices:
                near = difflib.get_close_matches(str(getattr(self, name)), choices, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(map(repr, choices))}."
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; {hint}")
        if not isinstance(self.feed_forward, bool):
            raise ValueError(f"`feed_forward` is {self.feed_forward!r}; use True or False.")
        for name in ("residual", "attention_weight", "rotated_key_weight", "middle_weight", "middle_scale"):
            check_number(name, getattr(self, name))
        check_number("gaussian_std", self.gaussian_std, above=0)
        if not self.middle_weight <= 1:
            raise ValueError(f"`middle_weight` is {self.middle_weight}; it is a share, 0 to 1.")
        if not isinstance(self.middle_blocks, (list, tuple)):
            raise ValueError(f"`middle_blocks` is {self.middle_blocks!r}; list blocks, such as [3, 4].")
        object.__setattr__(self, "middle_blocks", tuple(self.middle_blocks))
        for name, numbers in (("num_blocks", (self.num_blocks,)), ("middle_blocks", self.middle_blocks)):
            if not all(type(number) is int and number >= 1 for number in numbers):
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; blocks are counted by whole numbers from 1.")

    def check_depth(self, num_layers: int) -> None:
        """Check that a tower has the blocks that are named.

        Raises:
            ValueError: If not.
        """
        for name, deepest in (("num_blocks", self.num_blocks), ("middle_blocks", max(self.middle_blocks, default=0))):
            if deepest > num_layers:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but this vision tower has {num_layers} blocks; set {name} to "
                    f"{num_layers if name == 'num_blocks' else f'some of 1 to {num_layers}'}."
                )

    def needed_inputs(self, num_layers: int) -> set[int]:
        """Blocks, from 0, whose inputs `dense_tokens` reads."""
        return {*range(num_layers - self.num_blocks, num_layers), *(block - 1 for block in self.middle_blocks)}


def check_number(name: str, value: float, above: float | None = None) -> None:
    """Check that a setting is a number of at least 0, or above a bound.

    Raises:
        ValueError: If not.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not (value >= 0 if above is None else value > above):  # false for NaN too
        raise ValueError(
            f"`{name}` is {value!r}; use a number {'of 0 or more' if above is None else f'above {above}'}."
        )


DENSE_FIELDS = tuple(field.name for field in dataclasses.fields(LDVCDenseSettings))
DENSE_METHODS = {
    "tokens": LDVCDenseSettings("qk", residual=1.0, feed_forward=True),  # CLIP's own last block
    "value": LDVCDenseSettings("value"),
    "maskclip": LDVCDenseSettings("value", residual=1.0, feed_forward=True),
    "sclip": LDVCDenseSettings("qq+kk", residual=1.0, feed_forward=True),
    "clearclip": LDVCDenseSettings("qq"),
    "naclip": LDVCDenseSettings("kk+gaussian"),
    "clip_surgery": LDVCDenseSettings("vv", residual=1.0, num_blocks=6),
    "gem": LDVCDenseSettings("self_self", residual=1.0, num_blocks=6),
    "resclip": LDVCDenseSettings("kk+gaussian", middle_blocks=(6, 7, 8, 9)),
    "pearl": LDVCDenseSettings("rotated"),
}


def choose_dense_settings(method: str, options: Mapping[str, Any], method_name: str = "method") -> LDVCDenseSettings:
    """The settings of a method, some of them changed.

    Args:
        method: A name of `DENSE_METHODS`.
        options: Fields of [`LDVCDenseSettings`].
        method_name: What the caller calls `method`, for errors.

    Raises:
        ValueError: If there is no such method or option, a value is impossible, or an option has no effect; names the
            nearest, or where it has one.
    """
    if method not in DENSE_METHODS:
        near = difflib.get_close_matches(str(method).lower(), DENSE_METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(map(repr, DENSE_METHODS))}."
        raise ValueError(f"`{method_name}` is {method!r}; {hint}")
    for name in options:
        if name not in DENSE_FIELDS:
            near = difflib.get_close_matches(str(name), DENSE_FIELDS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"use some of {', '.join(DENSE_FIELDS)}."
            raise ValueError(f"`{name}` is no setting of dense features; {hint}")
    settings = dataclasses.replace(DENSE_METHODS[method], **options)
    rotated = (settings.affinity == "rotated", "affinity='rotated' (pearl)")
    mixed = (bool(settings.middle_blocks), "`middle_blocks` (resclip)")
    needs = {"gaussian_std": (settings.affinity == "kk+gaussian", "affinity='kk+gaussian' (naclip, resclip)")}
    needs |= {"rotation": rotated, "rotated_key_weight": rotated, "middle_weight": mixed, "middle_scale": mixed}
    for name, (has_effect, where) in needs.items():
        if name in options and not has_effect:
            raise ValueError(f"`{name}` has no effect on the method {method!r}: it belongs to {where}; leave it out.")
    return settings


__all__ = [
    "AFFINITIES",
    "DENSE_FIELDS",
    "DENSE_METHODS",
    "PAIRS",
    "LDVCDenseSettings",
    "check_number",
    "choose_dense_settings",
]
