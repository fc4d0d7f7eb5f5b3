# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Dense features of a CLIP vision tower: what becomes of its last blocks, so that patches keep their own meaning.

CLIP trains the class token alone, and its last attention leaves other tokens little local meaning. All known remedies
without training are one family over the input X of the last block, with U = LN1(X) and the block's own projections:

    Z = residual * X + attention_weight * out_proj(A V),    Z + MLP(LN2(Z)) if feed_forward

A, the affinity, is the identity ("value") or sums of softmaxes of the projections' products. The class token stays a
key and a value everywhere. No weight is changed. Settings and their names are in `dense_settings_ldvc`.

Only patches are computed: what other tokens (class token, prompts) would become in these blocks is not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from .dense_settings_ldvc import PAIRS, LDVCDenseSettings
from .regions_ldvc import ceil_div


NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class LDVCFeedback:
    """Which patches showed the same class at first sight, to be added to the affinity of a second (ResCLIP).

    Attributes:
        similarity: (batch_size, num_tokens, num_tokens), 0 to 1, class token included.
        scale: Factor on the mixture of both.
        weight: Share of the similarity, 0 to 1.
    """

    similarity: Tensor
    scale: float
    weight: float


# ---- the vision tower up to where the family begins


def pad_to_patches(pixel_values: Tensor, patch_size: int, num_channels: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad images with zeros, at bottom and right, to whole patches.

    Args:
        pixel_values: (batch_size, num_channels, height, width), normalised.
        patch_size: Pixels per side of a patch.
        num_channels: That the tower reads.

    Returns:
        The padded images, and the (height, width) of their grid of patches.

    Raises:
        ValueError: If the shape is wrong or a side is shorter than a patch.
    """
    if pixel_values.dim() != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"`pixel_values` has shape {tuple(pixel_values.shape)}; it must be (batch_size, {num_channels}, "
            "height, width), as the processor returns it."
        )
    height, width = pixel_values.shape[-2:]
    if min(height, width) < patch_size:
        raise ValueError(
            f"`pixel_values` is {height} x {width} pixels, less than one patch ({patch_size}); resize the image."
        )
    grid_size = (ceil_div(height, patch_size), ceil_div(width, patch_size))
    bottom, right = grid_size[0] * patch_size - height, grid_size[1] * patch_size - width
    return F.pad(pixel_values, (0, right, 0, bottom)), grid_size


def block_inputs(blocks: Sequence[CLIPEncoderLayer], hidden_states: Tensor, wanted: set[int]) -> dict[int, Tensor]:
    """Run all blocks but the last and keep what enters some of them.

    Args:
        blocks: Of the tower.
        hidden_states: (batch_size, num_tokens, hidden_size), what enters the first.
        wanted: Blocks from 0; the last is always among them.

    Returns:
        Block -> its (batch_size, num_tokens, hidden_size) input.
    """
    inputs = {}
    for layer, block in enumerate(blocks[:-1]):
        if layer in wanted:
            inputs[layer] = hidden_states
        hidden_states = block(hidden_states, None)
    return inputs | {len(blocks) - 1: hidden_states}


# ---- the family


def gather_weights(block: CLIPEncoderLayer) -> None:
    """Make a block's weights whole where FSDP shards them, which itself does so in the block's own forward alone."""
    if hasattr(block, "unshard"):
        block.unshard()


def split_heads(tokens: Tensor, head_dim: int) -> Tensor:
    """(batch_size, num_tokens, hidden_size) -> (batch_size, num_heads, num_tokens, head_dim)."""
    return tokens.view(*tokens.shape[:-1], -1, head_dim).transpose(1, 2)


def merge_heads(heads: Tensor) -> Tensor:
    """(batch_size, num_heads, num_tokens, head_dim) -> (batch_size, num_tokens, hidden_size)."""
    return heads.transpose(1, 2).flatten(2)


def project(attention: CLIPAttention, normed: Tensor, letters: str) -> dict[str, Tensor]:
    """Project normed tokens by some of the block's own layers, "q", "k" and "v".

    Args:
        attention: Of the block.
        normed: (batch_size, num_tokens, hidden_size).
        letters: Which of the three.

    Returns:
        Letter -> (batch_size, num_heads, num_tokens, head_dim).
    """
    layers = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
    return {letter: split_heads(layers[letter](normed), attention.head_dim) for letter in sorted(set(letters))}


def gaussian_bias(grid_size: tuple[int, int], num_tokens: int, std: float, like: Tensor) -> Tensor:
    """NACLIP's bias: exp(-squared distance / (2 std^2)) between patches, in patches; 0 for all other keys.

    Args:
        grid_size: (height, width) in patches; patches are the last tokens, row by row.
        num_tokens: All of them.
        std: In patches.
        like: Gives device and dtype.

    Returns:
        (num_patches, num_tokens), 1 on the patches' diagonal.
    """
    rows, columns = (torch.arange(side, device=like.device, dtype=torch.float32) for side in grid_size)
    near_rows, near_columns = (torch.exp(-((p[:, None] - p) ** 2) / (2 * std**2)) for p in (rows, columns))
    # a product of two exponentials is that of the sum; (height, height), (width, width) -> (height * width) twice
    patches = (near_rows[:, None, :, None] * near_columns[None, :, None]).flatten(2).flatten(0, 1)
    return F.pad(patches, (num_tokens - patches.shape[0], 0)).to(like.dtype)


def attend_by_products(
    attention: CLIPAttention, queries: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention, written out where the tower is told "eager": on CPUs, that trains faster in bf16.

    Args:
        attention: Of the block, which knows what it was told.
        queries: (batch_size, num_heads, num_queries, width).
        keys: (batch_size, num_heads, num_keys, width).
        values: (batch_size, num_heads, num_keys, head_dim).
        scale: Of the products.
        bias: Added to them, (num_queries, num_keys) or more.

    Returns:
        (batch_size, num_heads, num_queries, head_dim).
    """
    if attention.config._attn_implementation != "eager":
        return F.scaled_dot_product_attention(queries, keys, values, bias, scale=scale)
    products = scale * queries @ keys.transpose(-1, -2)
    products = products if bias is None else products + bias
    return products.softmax(dim=-1) @ values


def attend_pairs(
    attention: CLIPAttention,
    normed: Tensor,
    grid_size: tuple[int, int],
    settings: LDVCDenseSettings,
    feedback: LDVCFeedback | None = None,
) -> Tensor:
    """Attend by products of projections: (batch_size, num_heads, num_patches, head_dim) before the output projection.

    Args:
        attention: Of the block.
        normed: (batch_size, num_tokens, hidden_size).
        grid_size: (height, width) in patches.
        settings: Which products.
        feedback: Mixed with the products, before the Gaussian.
    """
    pairs, num_patches = PAIRS[settings.affinity], grid_size[0] * grid_size[1]
    heads = project(attention, normed, "".join(pairs) + "v")
    scale, bias = attention.scale, None
    if settings.affinity == "kk+gaussian":
        bias = gaussian_bias(grid_size, normed.shape[1], settings.gaussian_std, normed)
    if feedback is not None:
        scale = scale * feedback.scale * (1 - feedback.weight)
        similarity = feedback.similarity[:, None, -num_patches:].to(normed.dtype) * (feedback.scale * feedback.weight)
        bias = similarity if bias is None else similarity + bias
    attended = None
    for pair in pairs:
        queries = heads[pair[0]][:, :, -num_patches:]
        part = attend_by_products(attention, queries, heads[pair[1]], heads["v"], scale, bias)
        attended = part if attended is None else attended + part
    return attended


def attend_to_self(attention: CLIPAttention, normed: Tensor, num_patches: int) -> Tensor:
    """GEM's affinity: the mean of three, each of one projection with itself, iterated once.

    The temperature is of one image, so that an image alone and in a batch agree; all tokens have a part in it.

    Args:
        attention: Of the block.
        normed: (batch_size, num_tokens, hidden_size).
        num_patches: The last of these tokens.

    Returns:
        (batch_size, num_heads, num_patches, head_dim), before the output projection.
    """
    heads = project(attention, normed, "qkv")
    temperature = attention.scale * normed.norm(dim=-1).mean(dim=-1)[:, None, None, None]
    total = 0
    for states in heads.values():
        unit = F.normalize(states, dim=-1)
        unit = F.normalize(attend_by_products(attention, temperature * unit, unit, unit, 1.0), dim=-1)
        queries = temperature * unit[:, :, -num_patches:]
        total = total + attend_by_products(attention, queries, unit, heads["v"], 1.0)
    return total / len(heads)


def find_rotation(cross: Tensor, kind: str) -> Tensor:
    """The map of keys that brings them nearest to the queries, by their products `cross`.

    "svd" is the nearest rotation. "newton_schulz" takes so few steps that small singular values stay below 1: it turns
    and shrinks, which is what PEARL's published numbers come from.

    Args:
        cross: (batch_size, num_heads, head_dim, head_dim), keys by queries.
        kind: Of `ROTATIONS`.

    Returns:
        Same shape.
    """
    if kind == "svd":
        left, _, right = torch.linalg.svd(cross)
        return left @ right
    gram = cross.transpose(-1, -2) @ cross
    norm = gram.flatten(-2).norm(dim=-1)[..., None, None].clamp_min(torch.finfo(gram.dtype).tiny)
    identity = torch.eye(cross.shape[-1], device=cross.device, dtype=cross.dtype)
    root, inverse_root = gram / norm + 1e-6 * identity, identity
    for _ in range(NEWTON_SCHULZ_STEPS):
        step = 1.5 * identity - 0.5 * inverse_root @ root
        root, inverse_root = root @ step, step @ inverse_root
    return cross @ inverse_root / norm.sqrt()


def attend_rotated(
    attention: CLIPAttention, normed: Tensor, grid_size: tuple[int, int], settings: LDVCDenseSettings
) -> Tensor:
    """PEARL's affinity: queries against keys turned towards them, plus products of the centred keys.

    The rotation is found in float32 whatever the tower is. Means are of patches, weighted by their queries' lengths.

    Args:
        attention: Of the block.
        normed: (batch_size, num_tokens, hidden_size).
        grid_size: (height, width) in patches.
        settings: Of the rotation.

    Returns:
        (batch_size, num_heads, num_patches, head_dim), before the output projection.
    """
    num_patches, projected = grid_size[0] * grid_size[1], project(attention, normed, "qkv")
    dtype, heads = projected["v"].dtype, {letter: states.float() for letter, states in projected.items()}
    with torch.autocast(normed.device.type, enabled=False):
        lengths = heads["q"][..., -num_patches:, :].norm(dim=-1, keepdim=True)
        weights = lengths / (lengths.sum(dim=-2, keepdim=True) + 1e-6)
        queries, keys = (
            heads[letter] - (weights * heads[letter][..., -num_patches:, :]).sum(dim=-2, keepdim=True)
            for letter in ("q", "k")
        )
        rotation = find_rotation(keys.transpose(-1, -2) @ queries, settings.rotation)
        # both products in one call of the attention kernel: [Q, alpha Kc] [K R, Kc]^T
        asking = torch.cat([heads["q"], settings.rotated_key_weight * keys], dim=-1)[:, :, -num_patches:]
        answering = torch.cat([heads["k"] @ rotation, keys], dim=-1)
    return attend_by_products(attention, asking.to(dtype), answering.to(dtype), projected["v"], attention.scale)


def attend_as_in_the_middle(
    blocks: Sequence[CLIPEncoderLayer], inputs: Mapping[int, Tensor], middle_blocks: Sequence[int], num_patches: int
) -> Tensor:
    """ResCLIP: the mean of some earlier blocks' own attention, over the last block's values.

    Args:
        blocks: Of the tower.
        inputs: Block from 0 -> its (batch_size, num_tokens, hidden_size) input.
        middle_blocks: Counted from 1.
        num_patches: The last of these tokens.

    Returns:
        (batch_size, num_heads, num_patches, head_dim), before the output projection.
    """
    last = blocks[-1]
    gather_weights(last)
    values = project(last.self_attn, last.layer_norm1(inputs[len(blocks) - 1]), "v")["v"]
    total = 0
    for number in middle_blocks:
        block = blocks[number - 1]
        gather_weights(block)
        heads = project(block.self_attn, block.layer_norm1(inputs[number - 1]), "qk")
        queries = heads["q"][:, :, -num_patches:]
        total = total + attend_by_products(block.self_attn, queries, heads["k"], values, block.self_attn.scale)
    return total / len(middle_blocks)


def attend(
    block: CLIPEncoderLayer,
    hidden_states: Tensor,
    grid_size: tuple[int, int],
    settings: LDVCDenseSettings,
    middle: Tensor | None = None,
    feedback: LDVCFeedback | None = None,
) -> Tensor:
    """What the attention of one block gives to patches under an affinity: (batch_size, num_patches, hidden_size).

    Args:
        block: Of the tower.
        hidden_states: (batch_size, num_tokens, hidden_size), its input on the plain path.
        grid_size: (height, width) in patches.
        settings: Which affinity.
        middle: From `attend_as_in_the_middle`.
        feedback: Mixed with the products of an affinity of `PAIRS`.
    """
    gather_weights(block)
    attention, num_patches = block.self_attn, grid_size[0] * grid_size[1]
    if settings.affinity == "value":  # each token attends to itself, so the others need no norm
        hidden_states = hidden_states[:, -num_patches:]
    normed = block.layer_norm1(hidden_states)
    if settings.affinity == "value":
        attended = project(attention, normed, "v")["v"]
    elif settings.affinity == "rotated":
        attended = attend_rotated(attention, normed, grid_size, settings)
    elif settings.affinity == "self_self":
        attended = attend_to_self(attention, normed, num_patches)
    else:
        attended = attend_pairs(attention, normed, grid_size, settings, feedback)
    if middle is not None:
        mixture = (1 - settings.middle_weight) * attended + settings.middle_weight * middle
        attended = settings.middle_scale * mixture
    return attention.out_proj(merge_heads(attended))


def dense_tokens(
    blocks: Sequence[CLIPEncoderLayer],
    inputs: Mapping[int, Tensor],
    grid_size: tuple[int, int],
    settings: LDVCDenseSettings,
    middle: Tensor | None = None,
    feedback: LDVCFeedback | None = None,
) -> Tensor:
    """Compute what takes the place of the last block's output, for patches.

    Args:
        blocks: Of the tower.
        inputs: Block from 0 -> its (batch_size, num_tokens, hidden_size) input, of those in `needed_inputs`.
        grid_size: (height, width) in patches; patches are the last tokens, row by row.
        settings: Which member of the family; "tokens" is CLIP's own last block.
        middle: From `attend_as_in_the_middle`, where it is known already.
        feedback: Of an affinity of `PAIRS`.

    Returns:
        (batch_size, num_patches, hidden_size), before the post-LayerNorm.
    """
    num_patches = grid_size[0] * grid_size[1]
    if settings.middle_blocks and middle is None:
        middle = attend_as_in_the_middle(blocks, inputs, settings.middle_blocks, num_patches)
    first = len(blocks) - settings.num_blocks
    tokens = None
    if settings.residual:
        patches = inputs[first][:, -num_patches:]
        tokens = patches if settings.residual == 1 else settings.residual * patches
    for layer in range(first, len(blocks)):
        attended = attend(blocks[layer], inputs[layer], grid_size, settings, middle, feedback)
        if settings.attention_weight != 1:
            attended = settings.attention_weight * attended
        tokens = attended if tokens is None else tokens + attended
    if settings.feed_forward:
        tokens = tokens + blocks[-1].mlp(blocks[-1].layer_norm2(tokens))
    return tokens


def block_at(block: CLIPEncoderLayer, hidden_states: Tensor, positions: Tensor | None = None) -> Tensor:
    """What one token of each sequence is after a block, without computing any other: (batch_size, 1, hidden_size).

    Args:
        block: The last of a tower.
        hidden_states: (batch_size, num_tokens, hidden_size), its input.
        positions: (batch_size,) of the tokens in a causal tower, where a token sees what comes up to it; `None` is the
            first token, which sees all.
    """
    gather_weights(block)
    attention, normed, mask = block.self_attn, block.layer_norm1(hidden_states), None
    num_rows, num_tokens = hidden_states.shape[:2]
    rows = torch.arange(num_rows, device=hidden_states.device)
    if positions is None:
        positions = torch.zeros_like(rows)
    else:
        comes_later = torch.arange(num_tokens, device=rows.device) > positions[:, None, None, None]
        mask = torch.zeros_like(comes_later, dtype=normed.dtype).masked_fill(comes_later, -torch.inf)
    heads = project(attention, normed, "kv")
    query = project(attention, normed[rows, positions][:, None], "q")["q"]
    attended = attend_by_products(attention, query, heads["k"], heads["v"], attention.scale, mask)
    token = hidden_states[rows, positions][:, None] + attention.out_proj(merge_heads(attended))
    return token + block.mlp(block.layer_norm2(token))


def unit_embeds(clip: nn.Module, tokens: Tensor, prompt_norm: nn.Module | None = None) -> Tensor:
    """Bring tokens into the joint space of images and names: (batch_size, num_tokens, projection_dim), unit length.

    Args:
        clip: Its post-LayerNorm and projection are used.
        tokens: (batch_size, num_tokens, hidden_size).
        prompt_norm: Of vision prompts, applied first.
    """
    if prompt_norm is not None:
        tokens = prompt_norm(tokens)
    return F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(tokens)), dim=-1)


__all__ = [
    "LDVCFeedback",
    "attend_as_in_the_middle",
    "block_at",
    "block_inputs",
    "dense_tokens",
    "pad_to_patches",
    "unit_embeds",
]
