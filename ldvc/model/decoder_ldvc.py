# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""The decoders: LCTD, in which image tokens ask and class embeddings answer, and the class-query decoder it replaces.

Source: LDVC (arXiv 2403.08426), local consensus transformer decoder; widths, post-norm and dropout of SegViT and
ZegCLIP, whose decoder LDVC modifies. Neither decoder has position information, as there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.utils.generic import is_flash_attention_requested

from .configuration_ldvc import LDVCConfig
from .regions_ldvc import ceil_div, gather_regions, merge_regions, partition_regions, real_tokens, select_routes


def additive_mask(is_kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a bool mask into one of the same shape to add to attention scores: 0 where kept, else the lowest value."""
    return torch.zeros_like(is_kept, dtype=dtype).masked_fill(~is_kept, torch.finfo(dtype).min)


class LDVCAttention(nn.Module):
    """Multi-head attention of width `projection_dim` on the library's attention backends."""

    def __init__(self, config: LDVCConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.decoder_attention_heads
        self.head_dim = config.projection_dim // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.decoder_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.projection_dim, config.projection_dim)
        self.k_proj = nn.Linear(config.projection_dim, config.projection_dim)
        self.v_proj = nn.Linear(config.projection_dim, config.projection_dim)
        self.out_proj = nn.Linear(config.projection_dim, config.projection_dim)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, is_kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with projected tokens.

        Args:
            queries: (batch_size, num_queries, projection_dim).
            keys: (batch_size, num_keys, projection_dim).
            values: Same shape as `keys`.
            is_kept: (batch_size, num_keys) bool, or `None` to keep every key.

        Returns:
            (batch_size, num_queries, projection_dim) after `out_proj`, and the weights
            (batch_size, heads, num_queries, num_keys) where the backend gives them.
        """
        # (batch_size, length, dim) -> (batch_size, heads, length, head_dim)
        split = [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (queries, keys, values)]
        mask = None
        if is_kept is not None:
            mask = additive_mask(is_kept, queries.dtype)[:, None, None].expand(-1, 1, queries.shape[1], -1)
        implementation = self.config._attn_implementation
        if mask is not None and is_flash_attention_requested(requested_attention_implementation=implementation):
            implementation = "sdpa"  # the library's flash attention masks only what queries and keys share
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attention(self, *split, mask, scaling=self.scaling, dropout=dropout, is_causal=False)
        return self.out_proj(output.flatten(-2)), weights

    def forward(
        self,
        hidden_states: Tensor,
        grid_size: tuple[int, int] | None = None,
        key_value_states: Tensor | None = None,
        is_kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to `key_value_states`, or to `hidden_states` themselves; `grid_size` is not used.

        Returns:
            The output, shaped as `hidden_states`, and the attention weights or `None`.
        """
        source = hidden_states if key_value_states is None else key_value_states
        return self.attend(self.q_proj(hidden_states), self.k_proj(source), self.v_proj(source), is_kept)


class LDVCRouteAttention(LDVCAttention):
    """Self-attention among image tokens in which a region sees only the regions nearest to it.

    Source: LDVC (arXiv 2403.08426), route attention; precise steps from BiFormer (arXiv 2303.08810), bi-level routing.
    Departures: scores are scaled by head_dim**-0.5 (BiFormer: full width), so that `route_top_k = num_regions**2`
    equals full attention; padding of grids that `num_regions` does not divide is kept out of means and keys.
    """

    def __init__(self, config: LDVCConfig):
        super().__init__(config)
        self.num_regions = config.num_regions
        self.top_k = config.route_top_k

    def forward(self, hidden_states: Tensor, grid_size: tuple[int, int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Route, gather, attend.

        Args:
            hidden_states: (batch_size, num_patches, projection_dim).
            grid_size: (height, width) in tokens.

        Returns:
            The output, shaped as `hidden_states`; weights (batch_size, regions, heads, region_area, keys) where the
            backend gives them; routes (batch_size, regions, top_k).
        """
        region_size = tuple(ceil_div(side, self.num_regions) for side in grid_size)
        projected = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        queries, keys, values = (partition_regions(x, grid_size, region_size) for x in projected)
        is_real = real_tokens(grid_size, region_size, (0, 0), queries.device)
        routes = select_routes(queries, keys, is_real, min(self.top_k, queries.shape[1]))
        is_padded = any(side % region for side, region in zip(grid_size, region_size, strict=True))
        is_real = is_real.expand(routes.shape[0], -1, -1, -1) if is_padded else None
        # A row of regions at a time: every region has a copy of its keys, and all copies at once cost more than they
        # save (measured at 32 x 32 tokens: 65 ms, by rows 35 ms, full attention 44 ms).
        rows = zip(queries.split(self.num_regions, dim=1), routes.split(self.num_regions, dim=1), strict=True)
        attended = [self.attend_regions(row, row_routes, keys, values, is_real) for row, row_routes in rows]
        outputs, weights = zip(*attended, strict=True)
        output = merge_regions(torch.cat(outputs, dim=1), grid_size, region_size)
        return output, None if weights[0] is None else torch.cat(weights, dim=1), routes

    def attend_regions(
        self, queries: Tensor, routes: Tensor, keys: Tensor, values: Tensor, is_real: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gather the keys and values that some regions are routed to, and attend.

        Args:
            queries: (batch_size, some_regions, region_area, projection_dim).
            routes: (batch_size, some_regions, top_k) region indices.
            keys: (batch_size, num_regions, region_area, projection_dim).
            values: Same shape as `keys`.
            is_real: (batch_size, num_regions, region_area, 1) bool, `False` for padding, or `None` without padding.

        Returns:
            The output, shaped as `queries`; weights (batch_size, some_regions, heads, region_area, keys) or `None`.
        """
        is_kept = None if is_real is None else gather_regions(is_real, routes).flatten(0, 1).squeeze(-1)
        output, weights = self.attend(
            queries.flatten(0, 1),
            gather_regions(keys, routes).flatten(0, 1),
            gather_regions(values, routes).flatten(0, 1),
            is_kept,
        )
        shape = routes.shape[:2]
        return output.unflatten(0, shape), None if weights is None else weights.unflatten(0, shape)


class LDVCWindowAttention(LDVCAttention):
    """Self-attention inside fixed windows, shifted by half a window in every second layer if asked for.

    Source: Swin (arXiv 2103.14030). Instead of a cyclic shift with a mask, the cut lines move, which leaves smaller
    windows at the border and gives the same groups.
    """

    def __init__(self, config: LDVCConfig, is_shifted: bool = False):
        super().__init__(config)
        self.window_size = config.window_size
        self.is_shifted = is_shifted

    def forward(self, hidden_states: Tensor, grid_size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Attend inside windows; shapes as in `LDVCRouteAttention`, without routes."""
        # a window larger than the grid is the grid
        window_size = tuple(min(self.window_size, side) for side in grid_size)
        shifts = self.is_shifted and window_size != tuple(grid_size)
        offset = tuple(window // 2 for window in window_size) if shifts else (0, 0)
        projected = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        queries, keys, values = (partition_regions(x, grid_size, window_size, offset) for x in projected)
        is_kept = None
        if any(offset) or any(side % window for side, window in zip(grid_size, window_size, strict=True)):
            is_real = real_tokens(grid_size, window_size, offset, queries.device)
            is_kept = is_real.expand(queries.shape[0], -1, -1, -1).flatten(0, 1).squeeze(-1)
        output, weights = self.attend(queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), is_kept)
        weights = None if weights is None else weights.unflatten(0, queries.shape[:2])
        return merge_regions(output.unflatten(0, queries.shape[:2]), grid_size, window_size, offset), weights


def build_self_attention(config: LDVCConfig, layer: int) -> LDVCAttention | None:
    """Build the image tokens' self-attention of decoder layer `layer`, or `None` for `decoder_attention="none"`."""
    if config.decoder_attention == "none":
        return None
    if config.decoder_attention == "full":
        return LDVCAttention(config)
    if config.decoder_attention == "route":
        return LDVCRouteAttention(config)
    return LDVCWindowAttention(config, is_shifted=config.decoder_attention == "shifted_window" and layer % 2 == 1)


class LDVCFeedForward(nn.Sequential):
    """Linear, ReLU, dropout, linear: projection_dim -> decoder_intermediate_size -> projection_dim."""

    def __init__(self, config: LDVCConfig):
        super().__init__(
            nn.Linear(config.projection_dim, config.decoder_intermediate_size),
            nn.ReLU(),
            nn.Dropout(config.decoder_dropout),
            nn.Linear(config.decoder_intermediate_size, config.projection_dim),
        )


class LDVCDecoderLayer(GradientCheckpointingLayer):
    """One LCTD block: route self-attention, cross-attention with image tokens as query, feed-forward; post-norm.

    Source: LDVC (arXiv 2403.08426), local consensus transformer decoder. The class embeddings are anchors: key and
    value only, the same in every block.
    """

    def __init__(self, config: LDVCConfig, layer: int):
        super().__init__()
        self.self_attn = build_self_attention(config, layer)
        self.self_attn_norm = nn.LayerNorm(config.projection_dim) if self.self_attn is not None else None
        self.cross_attn = LDVCAttention(config)
        self.cross_attn_norm = nn.LayerNorm(config.projection_dim)
        self.feed_forward = LDVCFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.projection_dim)
        self.dropout = nn.Dropout(config.decoder_dropout)

    def forward(
        self, patch_embeds: Tensor, class_embeds: Tensor, class_mask: Tensor | None, grid_size: tuple[int, int]
    ) -> Tensor:
        """Refine image tokens; shapes as in `LDVCDecoder`."""
        if self.self_attn is not None:
            attended = self.self_attn(patch_embeds, grid_size)[0]
            patch_embeds = self.self_attn_norm(patch_embeds + self.dropout(attended))
        attended = self.cross_attn(patch_embeds, key_value_states=class_embeds, is_kept=class_mask)[0]
        patch_embeds = self.cross_attn_norm(patch_embeds + self.dropout(attended))
        return self.feed_forward_norm(patch_embeds + self.dropout(self.feed_forward(patch_embeds)))


class LDVCSimilarity(nn.Module):
    """Logits: the product of class embeddings and image tokens, with scale and bias where configured."""

    def __init__(self, config: LDVCConfig):
        super().__init__()
        self.kind = config.logit_scale
        self.bias_init = config.logit_bias_init
        self.log_scale = nn.Parameter(torch.empty(())) if self.kind == "cosine" else None
        self.bias = nn.Parameter(torch.empty(())) if self.bias_init is not None else None

    def forward(self, class_embeds: Tensor, patch_embeds: Tensor, scale: float | None = None) -> Tensor:
        """Compare every class with every image token.

        Args:
            class_embeds: (batch_size, num_classes, projection_dim).
            patch_embeds: (batch_size, num_patches, projection_dim).
            scale: A scale that replaces the configured one.

        Returns:
            (batch_size, num_classes, num_patches).
        """
        if scale is None:
            scale = class_embeds.shape[-1] ** -0.5 if self.kind == "inv_sqrt_dim" else 1.0
            if self.kind == "cosine":
                class_embeds, patch_embeds = F.normalize(class_embeds, dim=-1), F.normalize(patch_embeds, dim=-1)
                scale = self.log_scale.exp()
        logits = class_embeds @ (patch_embeds * scale).transpose(-1, -2)
        return logits if self.bias is None else logits + self.bias


class LDVCDecoder(nn.Module):
    """LCTD: blocks that refine the image tokens around the class anchors, then the product of the two."""

    def __init__(self, config: LDVCConfig):
        super().__init__()
        self.layers = nn.ModuleList([LDVCDecoderLayer(config, layer) for layer in range(config.num_decoder_layers)])
        self.similarity = LDVCSimilarity(config)

    def forward(
        self, patch_embeds: Tensor, class_embeds: Tensor, class_mask: Tensor | None, grid_size: tuple[int, int]
    ) -> Tensor:
        """Decode.

        Args:
            patch_embeds: (batch_size, num_patches, projection_dim), unit length.
            class_embeds: (batch_size, num_classes, projection_dim), adapted.
            class_mask: (batch_size, num_classes) bool, `False` for padding of the class axis, or `None`.
            grid_size: (height, width) in tokens.

        Returns:
            (batch_size, num_classes, num_patches) logits.
        """
        for layer in self.layers:
            patch_embeds = layer(patch_embeds, class_embeds, class_mask, grid_size)
        return self.similarity(class_embeds, patch_embeds)


class LDVCClassQueryLayer(GradientCheckpointingLayer):
    """One layer of the decoder that LDVC replaces: class embeddings ask, image tokens answer; post-norm.

    Source: SegViT (arXiv 2210.05844) and ZegCLIP (arXiv 2212.03588), which leaves the self-attention out.
    """

    def __init__(self, config: LDVCConfig):
        super().__init__()
        self.self_attn = LDVCAttention(config) if config.class_self_attention else None
        self.self_attn_norm = nn.LayerNorm(config.projection_dim) if self.self_attn is not None else None
        self.cross_attn = LDVCAttention(config)
        self.cross_attn_norm = nn.LayerNorm(config.projection_dim)
        self.feed_forward = LDVCFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.projection_dim)
        self.dropout = nn.Dropout(config.decoder_dropout)

    def forward(self, class_queries: Tensor, patch_embeds: Tensor, class_mask: Tensor | None) -> Tensor:
        """Update class queries, (batch_size, num_classes, projection_dim)."""
        if self.self_attn is not None:
            attended = self.self_attn(class_queries, is_kept=class_mask)[0]
            class_queries = self.self_attn_norm(class_queries + self.dropout(attended))
        attended = self.cross_attn(class_queries, key_value_states=patch_embeds)[0]
        class_queries = self.cross_attn_norm(class_queries + self.dropout(attended))
        return self.feed_forward_norm(class_queries + self.dropout(self.feed_forward(class_queries)))


class LDVCClassQueryDecoder(nn.Module):
    """The decoder of SegViT / ZegCLIP: image tokens are never updated.

    Masks are the last layer's attention scores before the softmax, averaged over heads (ZegCLIP), or the product of
    the updated queries with the image tokens.
    """

    def __init__(self, config: LDVCConfig):
        super().__init__()
        self.mask_kind = config.class_query_mask
        self.layers = nn.ModuleList([LDVCClassQueryLayer(config) for _ in range(config.num_decoder_layers)])
        self.similarity = LDVCSimilarity(config)

    def forward(
        self, patch_embeds: Tensor, class_embeds: Tensor, class_mask: Tensor | None, grid_size: tuple[int, int]
    ) -> Tensor:
        """Decode; arguments and result as in `LDVCDecoder`."""
        queries = class_embeds
        if self.mask_kind == "dot":
            for layer in self.layers:
                queries = layer(queries, patch_embeds, class_mask)
            return self.similarity(queries, patch_embeds)
        for layer in self.layers[:-1]:
            queries = layer(queries, patch_embeds, class_mask)
        # Only the last layer's scores are used, so what it would do with them is not computed, as it has no effect.
        last = self.layers[-1]
        if last.self_attn is not None:
            attended = last.self_attn(queries, is_kept=class_mask)[0]
            queries = last.self_attn_norm(queries + last.dropout(attended))
        attention = last.cross_attn
        # The mean over heads of per-head products is the full product, divided by the number of heads.
        scale = attention.scaling / attention.num_heads
        return self.similarity(attention.q_proj(queries), attention.k_proj(patch_embeds), scale)


__all__ = [
    "LDVCAttention",
    "LDVCClassQueryDecoder",
    "LDVCClassQueryLayer",
    "LDVCDecoder",
    "LDVCDecoderLayer",
    "LDVCRouteAttention",
    "LDVCSimilarity",
    "LDVCWindowAttention",
]
