"""Every equation against a naive re-implementation with loops, written from the formulas and not from the code."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.decoder_ldvc import (
    LDVCAttention,
    LDVCClassQueryDecoder,
    LDVCClassQueryLayer,
    LDVCDecoder,
    LDVCDecoderLayer,
    LDVCRouteAttention,
    LDVCSimilarity,
    LDVCWindowAttention,
)
from ldvc.model.image_processing_ldvc import best_classes, resize_nearest, upsampled_rows
from ldvc.model.loss_ldvc import one_hot_targets, segmentation_loss
from ldvc.model.prompts_ldvc import LDVCTextAdapter
from ldvc.model.regions_ldvc import fit_to_image, merge_regions, partition_regions


CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # float32 sums in another order
DIM, HEADS = 16, 4


def small_config(**fields) -> LDVCConfig:
    """A configuration for decoder parts, without dropout in effect (modules are in eval mode)."""
    towers = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    small = {"projection_dim": DIM, "decoder_attention_heads": HEADS, "decoder_intermediate_size": 24}
    config = LDVCConfig(text_config=dict(towers), vision_config=dict(towers), **{**small, **fields})
    config._attn_implementation = "sdpa"
    return config


# ---- loss


def naive_loss(logits, labels, num_masks=None, mode="negative", alpha=0.25, gamma=2.0, ignore_index=255):
    """Focal and dice as method.md section 2 has them, pixel by pixel in float64; logits are at the labels' size."""
    batch_size, num_classes, height, width = logits.shape
    focal, dice, present_pairs = 0.0, 0.0, 0
    for image in range(batch_size):
        for cls in range(num_classes):
            sum_focal, num_pixels, sum_p, sum_y, sum_py = 0.0, 0, 0.0, 0.0, 0.0
            for row in range(height):
                for column in range(width):
                    label = int(labels[image, row, column])
                    if label == ignore_index and mode == "ignore":
                        continue
                    y = 1.0 if label == cls and label != ignore_index else 0.0
                    p = 1 / (1 + torch.exp(-logits[image, cls, row, column]))
                    p_true = p if y else 1 - p
                    weight = alpha if y else 1 - alpha
                    sum_focal = sum_focal - weight * (1 - p_true) ** gamma * torch.log(p_true)
                    num_pixels += 1
                    sum_p, sum_y, sum_py = sum_p + p, sum_y + y, sum_py + p * y
            focal = focal + sum_focal / max(num_pixels, 1)  # absent classes too
            if sum_y > 0:
                present_pairs += 1
                dice = dice + 1 - (2 * sum_py + 1) / (sum_p + sum_y + 1)
    normaliser = max(present_pairs, 1) if num_masks is None else num_masks
    return focal / normaliser, dice / normaliser


def label_case(name):
    """Label maps: (batch_size, height, width), and the number of classes."""
    labels = torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(3))
    if name == "absent":
        return labels.clamp(max=1), 6
    if name == "unlabelled":
        labels[:, :2] = 255
        return labels, 4
    if name == "one image all unlabelled":
        labels[0] = 255
        return labels, 4
    if name == "single pixel":
        return torch.zeros(1, 1, 1, dtype=torch.long), 1
    return labels, 4


@pytest.mark.parametrize("mode", ["negative", "ignore"])
@pytest.mark.parametrize("case", ["plain", "absent", "unlabelled", "one image all unlabelled", "single pixel"])
@pytest.mark.parametrize("num_masks", [None, 3.5])
def test_loss_and_gradient_equal_the_formulas(case, mode, num_masks):
    labels, num_classes = label_case(case)
    start = torch.randn(len(labels), num_classes, *labels.shape[1:], generator=torch.Generator().manual_seed(1)) * 3
    logits, naive_logits = start.clone().requires_grad_(), start.double().requires_grad_()
    loss, terms = segmentation_loss(logits, labels, unlabeled_pixels=mode, num_masks=num_masks)
    focal, dice = naive_loss(naive_logits, labels, num_masks, mode)
    loss.backward()
    torch.as_tensor(100 * focal + dice).backward()
    focal, dice = float(torch.as_tensor(focal).detach()), float(torch.as_tensor(dice).detach())
    assert terms["focal"].item() == pytest.approx(focal, abs=1e-5, rel=1e-5)
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-5, rel=1e-5)
    assert loss.item() == pytest.approx(100 * focal + dice, rel=1e-5)
    # the gradient is of order 100 / number of pixels
    torch.testing.assert_close(logits.grad, naive_logits.grad.float(), **CLOSE)


def test_other_weights_and_exponents_equal_the_formulas():
    labels, num_classes = label_case("plain")
    logits = torch.randn(2, num_classes, 5, 6)
    loss, _ = segmentation_loss(logits, labels, 20.0, 3.0, 0.6, 1.5)
    focal, dice = naive_loss(logits.double(), labels, alpha=0.6, gamma=1.5)
    assert loss.item() == pytest.approx(float(20 * focal + 3 * dice), rel=1e-5)


def test_another_ignore_index_equals_the_formulas():
    labels, num_classes = label_case("plain")
    labels[0, 0] = 0
    logits = torch.randn(2, num_classes, 5, 6)
    _, terms = segmentation_loss(logits, labels, ignore_index=0, unlabeled_pixels="ignore")
    focal, dice = naive_loss(logits.double(), labels, mode="ignore", ignore_index=0)
    assert terms["focal"].item() == pytest.approx(float(focal), rel=1e-5)
    assert terms["dice"].item() == pytest.approx(float(dice), rel=1e-5)


def test_an_unlabelled_pixel_is_no_positive_even_with_more_classes_than_its_id():
    targets = one_hot_targets(torch.tensor([[[254, 255, 256]]]), 300, ignore_index=255)
    assert targets[0, :, 0, 1].sum() == 0
    assert targets[0, 254, 0].tolist() == [True, False, False]
    assert targets[0, 256, 0].tolist() == [False, False, True]


def test_both_modes_take_255_as_unlabelled_in_a_large_vocabulary():
    labels, logits = torch.tensor([[[255, 3]]]), torch.randn(1, 300, 1, 2)
    for mode in ("negative", "ignore"):
        _, terms = segmentation_loss(logits, labels, unlabeled_pixels=mode)
        focal, dice = naive_loss(logits.double(), labels, mode=mode)
        assert terms["focal"].item() == pytest.approx(float(focal), rel=1e-5)
        assert terms["dice"].item() == pytest.approx(float(dice), rel=1e-5)


def test_nothing_present_gives_the_published_check_value():
    _, terms = segmentation_loss(torch.zeros(1, 15, 4, 4), torch.full((1, 8, 8), 255))
    assert terms["focal"].item() == pytest.approx(15 * 0.129965, abs=2e-5)
    assert terms["focal"].item() == pytest.approx(1.94948, abs=2e-5)
    assert terms["dice"].item() == 0


def test_one_class_filling_the_image_gives_the_published_check_value():
    _, terms = segmentation_loss(torch.zeros(1, 15, 32, 32), torch.zeros(1, 128, 128, dtype=torch.long))
    assert terms["focal"].item() == pytest.approx(0.043322 + 14 * 0.129965, abs=2e-5)
    assert terms["focal"].item() == pytest.approx(1.86283, abs=2e-5)
    assert terms["dice"].item() == pytest.approx(1 / 3, abs=1e-3)


def test_logits_are_upsampled_bilinearly_to_the_labels():
    logits, labels = torch.randn(1, 3, 2, 3), torch.randint(0, 3, (1, 8, 9))
    upsampled = F.interpolate(logits, size=(8, 9), mode="bilinear", align_corners=False)
    assert segmentation_loss(logits, labels)[0] == pytest.approx(
        segmentation_loss(upsampled, labels)[0].item(), rel=1e-6
    )
    focal, dice = naive_loss(upsampled.double(), labels)
    assert segmentation_loss(logits, labels)[0].item() == pytest.approx(float(100 * focal + dice), rel=1e-5)


def test_the_loss_is_computed_in_float32_under_autocast():
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = segmentation_loss(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(segmentation_loss(logits.bfloat16().float(), labels)[0].item(), rel=1e-6)


def test_a_class_that_is_switched_off_costs_nothing():
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 2, (1, 8, 8))
    expected = segmentation_loss(logits[:, :2], labels)[0]
    for off in (-1e4, torch.finfo(torch.float32).min):
        logits[:, 2] = off
        assert segmentation_loss(logits, labels)[0].item() == pytest.approx(expected.item(), rel=1e-6)


# ---- self-attention among image tokens


def attend_one(attention, query, keys, values):
    """Multi-head attention of one projected query, head by head: softmax(q k / sqrt(head_dim)) v, then `out_proj`."""
    width = query.shape[-1] // attention.num_heads
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.stack([query[part] @ key[part] / math.sqrt(width) for key in keys])
        heads.append(sum(w * value[part] for w, value in zip(scores.softmax(0), values, strict=True)))
    return attention.out_proj(torch.cat(heads))


def naive_grouped(attention, tokens, keys_of):
    """Attention of every token of a (num_tokens, dim) image to the tokens that `keys_of(index)` lists."""
    queries, keys, values = attention.q_proj(tokens), attention.k_proj(tokens), attention.v_proj(tokens)
    output = []
    for index in range(len(tokens)):
        kept = keys_of(index)
        output.append(attend_one(attention, queries[index], keys[kept], values[kept]))
    return torch.stack(output)


@torch.no_grad()
def naive_routes(attention, tokens, grid_size, num_regions, top_k):
    """Regions of every token and, per region, the `top_k` regions of highest affinity of mean query and mean key."""
    height, width = grid_size
    side = math.ceil(height / num_regions), math.ceil(width / num_regions)
    region_of = [
        (i // width) // side[0] * math.ceil(width / side[1]) + (i % width) // side[1] for i in range(height * width)
    ]
    queries, keys = attention.q_proj(tokens), attention.k_proj(tokens)
    members = [[i for i, r in enumerate(region_of) if r == region] for region in range(max(region_of) + 1)]
    routes = []
    for mine in members:
        affinity = [float(queries[mine].mean(0) @ keys[other].mean(0)) for other in members]
        routes.append(sorted(range(len(members)), key=lambda r: -affinity[r])[:top_k])
    return region_of, members, routes


@torch.no_grad()
@pytest.mark.parametrize("grid_size", [(8, 8), (4, 8), (7, 5), (9, 6), (3, 3), (2, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("top_k", [1, 3, 16])
def test_route_attention_equals_a_loop_over_regions(grid_size, top_k):
    attention = LDVCRouteAttention(small_config(num_regions=4, route_top_k=top_k)).eval()
    tokens = torch.randn(2, grid_size[0] * grid_size[1], DIM)
    output, _, routes = attention(tokens, grid_size)
    for image in range(2):
        region_of, members, expected_routes = naive_routes(attention, tokens[image], grid_size, 4, top_k)

        def keys_of(index, region_of=region_of, members=members, expected_routes=expected_routes):
            return [i for region in expected_routes[region_of[index]] for i in members[region]]

        assert routes[image].tolist() == expected_routes
        torch.testing.assert_close(output[image], naive_grouped(attention, tokens[image], keys_of), **CLOSE)


def full_attention(attention, tokens):
    """torch's own multi-head attention on the same weights."""
    reference = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    reference.in_proj_weight.data = torch.cat([p.weight for p in projections])
    reference.in_proj_bias.data = torch.cat([p.bias for p in projections])
    reference.out_proj.load_state_dict(attention.out_proj.state_dict())
    return reference.eval()(tokens, tokens, tokens, need_weights=False)[0]


@torch.no_grad()
@pytest.mark.parametrize("grid_size", [(8, 8), (7, 5), (4, 12), (9, 9)], ids=str)
def test_route_attention_to_all_regions_equals_full_attention(grid_size):
    attention = LDVCRouteAttention(small_config(num_regions=4, route_top_k=16)).eval()
    tokens = torch.randn(2, grid_size[0] * grid_size[1], DIM)
    torch.testing.assert_close(attention(tokens, grid_size)[0], full_attention(attention, tokens), **CLOSE)


def test_flash_attention_is_asked_only_where_no_key_is_hidden(monkeypatch):
    asked, eager = [], eager_attention_forward
    monkeypatch.setattr(
        ALL_ATTENTION_FUNCTIONS, "get_interface", lambda name, default: asked.append(name) or eager, raising=False
    )
    attention = LDVCAttention(small_config()).eval()
    attention.config._attn_implementation_internal = "flash_attention_2"
    tokens = torch.randn(2, 5, attention.q_proj.in_features)
    attention.attend(tokens, tokens, tokens, None)
    attention.attend(tokens, tokens, tokens, torch.ones(2, 5, dtype=torch.bool))
    assert asked == ["flash_attention_2", "sdpa"]


@torch.no_grad()
def test_full_attention_equals_torch():
    attention = LDVCAttention(small_config()).eval()
    tokens = torch.randn(2, 12, DIM)
    torch.testing.assert_close(attention(tokens, (3, 4))[0], full_attention(attention, tokens), **CLOSE)


@torch.no_grad()
def test_one_route_attends_to_one_region_only():
    attention = LDVCRouteAttention(small_config(num_regions=2, route_top_k=1)).eval()
    tokens = torch.randn(1, 16, DIM)
    before, _, routes = attention(tokens, (4, 4))
    region_of, members, _ = naive_routes(attention, tokens[0], (4, 4), 2, 1)
    for region, (route,) in enumerate(routes[0].tolist()):
        changed = tokens.clone()
        # values of all other regions change, and with them keys; mean keys that matter to this region's route do not
        values = attention.v_proj(changed)
        values[0, [i for i, r in enumerate(region_of) if r != route]] += 5
        attention.v_proj.forward = lambda _, values=values: values
        after = attention(tokens, (4, 4))[0]
        del attention.v_proj.forward
        torch.testing.assert_close(after[0, members[region]], before[0, members[region]])
        others = [m for r, m in enumerate(members) if routes[0, r, 0] != route]
        if others:
            assert not torch.allclose(after[0, others[0]], before[0, others[0]], atol=1e-2)


def test_routing_has_no_gradient_of_its_own():
    attention = LDVCRouteAttention(small_config(num_regions=2, route_top_k=2)).eval()
    tokens = torch.randn(1, 16, DIM, requires_grad=True)
    output, _, routes = attention(tokens, (4, 4))
    output.square().sum().backward()
    expected = tokens.grad.clone()
    tokens.grad = None
    _, members, _ = naive_routes(attention, tokens[0], (4, 4), 2, 2)
    region_of = {i: r for r, mine in enumerate(members) for i in mine}

    def keys_of(index):
        return [i for region in routes[0, region_of[index]].tolist() for i in members[region]]

    naive_grouped(attention, tokens[0], keys_of).square().sum().backward()
    torch.testing.assert_close(tokens.grad, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("grid_size", [(8, 8), (6, 7), (3, 9), (2, 2)], ids=str)
def test_window_attention_stays_inside_the_window(grid_size):
    attention = LDVCWindowAttention(small_config(decoder_attention="window", window_size=4)).eval()
    tokens = torch.randn(2, grid_size[0] * grid_size[1], DIM)
    width = grid_size[1]
    side = [min(4, length) for length in grid_size]

    def window(index):
        return (index // width) // side[0], (index % width) // side[1]

    def keys_of(index):
        return [i for i in range(tokens.shape[1]) if window(i) == window(index)]

    for image in range(2):
        expected = naive_grouped(attention, tokens[image], keys_of)
        torch.testing.assert_close(attention(tokens, grid_size)[0][image], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("grid_size", [(8, 8), (12, 8), (16, 4)], ids=str)
def test_shifted_windows_have_the_groups_of_swin(grid_size):
    """Swin: roll by half a window, cut, and keep tokens apart that were not neighbours before the roll."""
    attention = LDVCWindowAttention(small_config(window_size=4), is_shifted=True).eval()
    (height, width), window, shift = grid_size, 4, 2
    index = torch.arange(height * width).view(height, width)
    # numbering of Swin's mask: three slices per axis of the rolled grid
    zone = torch.zeros(height, width, dtype=torch.long)
    number = 0
    for rows in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
        for columns in (slice(0, -window), slice(-window, -shift), slice(-shift, None)):
            zone[rows, columns] = number
            number += 1
    rolled = index.roll((-shift, -shift), (0, 1))
    group_of = {}
    for row in range(height):
        for column in range(width):
            group_of[int(rolled[row, column])] = (row // window, column // window, int(zone[row, column]))

    def keys_of(i):
        return [j for j in range(height * width) if group_of[j] == group_of[i]]

    tokens = torch.randn(1, height * width, DIM)
    expected = naive_grouped(attention, tokens[0], keys_of)
    torch.testing.assert_close(attention(tokens, grid_size)[0][0], expected, **CLOSE)


@torch.no_grad()
def test_a_shifted_window_larger_than_the_grid_is_full_attention():
    attention = LDVCWindowAttention(small_config(window_size=16), is_shifted=True).eval()
    tokens = torch.randn(1, 15, DIM)
    torch.testing.assert_close(attention(tokens, (5, 3))[0], full_attention(attention, tokens), **CLOSE)


def test_every_second_layer_shifts_its_windows():
    decoder = LDVCDecoder(small_config(decoder_attention="shifted_window", num_decoder_layers=4))
    assert [layer.self_attn.is_shifted for layer in decoder.layers] == [False, True, False, True]


@settings(max_examples=40)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    region=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    offset=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_merging_undoes_partitioning(grid, region, offset):
    tokens = torch.randn(2, grid[0] * grid[1], 3)
    regions = partition_regions(tokens, grid, region, offset)
    assert torch.equal(merge_regions(regions, grid, region, offset), tokens)


# ---- adapter and decoders


@torch.no_grad()
@pytest.mark.parametrize("kind", ["relation", "linear", "none"])
def test_the_text_adapter_equals_its_formula(kind):
    adapter = LDVCTextAdapter(small_config(text_adapter=kind))
    g, t = F.normalize(torch.randn(2, DIM), dim=-1), F.normalize(torch.randn(1, 3, DIM), dim=-1)
    output = adapter(g, t)
    assert output.shape == (2, 3, DIM)
    for image in range(2):
        for cls in range(3):
            if kind == "relation":
                inputs = torch.cat([g[image] * t[0, cls], t[0, cls]])
                expected = adapter.projection.weight @ inputs + adapter.projection.bias
            elif kind == "linear":
                expected = adapter.projection.weight @ t[0, cls] + adapter.projection.bias
            else:
                expected = t[0, cls]
            torch.testing.assert_close(output[image, cls], expected, **CLOSE)


def layer_norm(norm, x):
    """LN(x) = (x - mean) / sqrt(variance + 1e-5) * weight + bias."""
    centred = x - x.mean()
    return centred / torch.sqrt(centred.square().mean() + 1e-5) * norm.weight + norm.bias


def feed_forward(module, x):
    """W2 relu(W1 x + b1) + b2."""
    first, second = module[0], module[3]
    return second.weight @ (first.weight @ x + first.bias).clamp(min=0) + second.bias


def naive_lctd_block(layer, tokens, classes, self_keys_of):
    """One LCTD block of one image, token by token."""
    if layer.self_attn is not None:
        attended = naive_grouped(layer.self_attn, tokens, self_keys_of)
        tokens = torch.stack([layer_norm(layer.self_attn_norm, v + a) for v, a in zip(tokens, attended, strict=True)])
    cross = layer.cross_attn
    keys, values = cross.k_proj(classes), cross.v_proj(classes)
    output = []
    for token in tokens:
        token = layer_norm(layer.cross_attn_norm, token + attend_one(cross, cross.q_proj(token), keys, values))
        output.append(layer_norm(layer.feed_forward_norm, token + feed_forward(layer.feed_forward, token)))
    return torch.stack(output)


def perturb_norms(module):
    """Give LayerNorms weights that are not 1 and 0, so that a swapped norm is found."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "none"])
def test_an_lctd_block_equals_its_formulas(kind):
    layer = perturb_norms(LDVCDecoderLayer(small_config(decoder_attention=kind), 0))
    tokens, classes = torch.randn(2, 12, DIM), torch.randn(2, 3, DIM)
    output = layer(tokens, classes, None, (3, 4))
    for image in range(2):
        expected = naive_lctd_block(layer, tokens[image], classes[image], lambda _: list(range(12)))
        torch.testing.assert_close(output[image], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(("scale", "bias"), [("none", None), ("inv_sqrt_dim", None), ("cosine", None), ("none", -3.0)])
def test_the_decoder_stacks_blocks_and_compares_with_the_anchors(scale, bias):
    config = small_config(decoder_attention="full", logit_scale=scale, logit_bias_init=bias)
    decoder = perturb_norms(LDVCDecoder(config))
    if scale == "cosine":
        decoder.similarity.log_scale.fill_(math.log(7))
    if bias is not None:
        decoder.similarity.bias.fill_(bias)
    tokens, classes = torch.randn(1, 6, DIM), torch.randn(1, 4, DIM)
    refined = tokens[0]
    for layer in decoder.layers:
        refined = naive_lctd_block(layer, refined, classes[0], lambda _: list(range(6)))
    logits = decoder(tokens, classes, None, (2, 3))
    for cls in range(4):
        for index in range(6):
            expected = classes[0, cls] @ refined[index]
            if scale == "inv_sqrt_dim":
                expected = expected / math.sqrt(DIM)
            if scale == "cosine":
                expected = 7 * expected / classes[0, cls].norm() / refined[index].norm()
            assert logits[0, cls, index].item() == pytest.approx(float(expected) + (bias or 0), abs=2e-5)


@torch.no_grad()
def test_padded_classes_are_no_keys_of_the_decoder():
    decoder = perturb_norms(LDVCDecoder(small_config(decoder_attention="full")))
    tokens, classes = torch.randn(1, 6, DIM), torch.randn(1, 4, DIM)
    mask = torch.tensor([[True, True, False, False]])
    torch.testing.assert_close(
        decoder(tokens, classes, mask, (2, 3))[:, :2], decoder(tokens, classes[:, :2], None, (2, 3)), **CLOSE
    )


@torch.no_grad()
@pytest.mark.parametrize("mask_kind", ["attention_scores", "dot"])
@pytest.mark.parametrize("has_self_attention", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_class_query_decoder_equals_its_formulas(mask_kind, has_self_attention, num_layers):
    """ZegCLIP: the mask is the mean over heads of the last layer's scores before the softmax."""
    config = small_config(
        decoder_query="class",
        class_query_mask=mask_kind,
        class_self_attention=has_self_attention,
        num_decoder_layers=num_layers,
    )
    decoder = perturb_norms(LDVCClassQueryDecoder(config))
    tokens, classes = torch.randn(1, 6, DIM), torch.randn(1, 3, DIM)
    queries, width = classes[0], DIM // HEADS
    for layer in decoder.layers:
        assert isinstance(layer, LDVCClassQueryLayer)
        if has_self_attention:
            attended = naive_grouped(layer.self_attn, queries, lambda _: list(range(3)))
            queries = torch.stack(
                [layer_norm(layer.self_attn_norm, q + a) for q, a in zip(queries, attended, strict=True)]
            )
        cross, updated = layer.cross_attn, []
        keys, values = cross.k_proj(tokens[0]), cross.v_proj(tokens[0])
        scores = torch.zeros(3, 6)
        for cls in range(3):
            query = cross.q_proj(queries[cls])
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                for index in range(6):
                    scores[cls, index] += query[part] @ keys[index, part] / math.sqrt(width) / HEADS
            token = layer_norm(layer.cross_attn_norm, queries[cls] + attend_one(cross, query, keys, values))
            updated.append(layer_norm(layer.feed_forward_norm, token + feed_forward(layer.feed_forward, token)))
        queries = torch.stack(updated)
    expected = scores if mask_kind == "attention_scores" else queries @ tokens[0].T
    torch.testing.assert_close(decoder(tokens, classes, None, (2, 3))[0], expected, **CLOSE)


def test_the_temperature_starts_at_ten_and_the_bias_at_its_field(make_model):
    model = make_model(logit_scale="cosine", logit_bias_init=-2.5)
    assert isinstance(model.decoder.similarity, LDVCSimilarity)
    assert model.decoder.similarity.log_scale.exp().item() == pytest.approx(10, rel=1e-5)
    assert model.decoder.similarity.bias.item() == -2.5


# ---- resizing


def naive_bilinear(image, size, position_of):
    """Bilinear sampling of a (height, width) map, borders repeated; `position_of` gives the source coordinate."""
    output = torch.empty(size)
    for row in range(size[0]):
        for column in range(size[1]):
            value = 0.0
            (y, x) = position_of(row, 0), position_of(column, 1)
            for cell_y in (math.floor(y), math.floor(y) + 1):
                for cell_x in (math.floor(x), math.floor(x) + 1):
                    weight = (1 - abs(y - cell_y)) * (1 - abs(x - cell_x))
                    inside = min(max(cell_y, 0), image.shape[0] - 1), min(max(cell_x, 0), image.shape[1] - 1)
                    value += weight * float(image[inside])
            output[row, column] = value
    return output


@torch.no_grad()
def test_bilinear_positions_equal_a_loop(make_model):
    embeddings = make_model().clip.vision_model.embeddings  # a native grid of 4 x 4
    positions = embeddings.position_embedding.weight
    resized = embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 6 * 3, 48), 48, 24)[0]
    torch.testing.assert_close(resized[0], positions[0])
    for channel in (0, 17, 47):
        grid = positions[1:, channel].view(4, 4)
        expected = naive_bilinear(grid, (6, 3), lambda i, axis: (i + 0.5) * 4 / (6, 3)[axis] - 0.5)
        torch.testing.assert_close(resized[1:, channel].view(6, 3), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 24), (8, 40), (16, 64)], ids=str)
def test_bicubic_positions_equal_the_library(make_model, clip_model, size):
    embeddings = make_model(position_interpolation="bicubic").clip.vision_model.embeddings
    tokens = torch.zeros(1, 1 + size[0] * size[1] // 64, 48)
    expected = clip_model.vision_model.embeddings.interpolate_pos_encoding(tokens, *size)
    torch.testing.assert_close(embeddings.interpolate_pos_encoding(tokens, *size), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(20, 29), (32, 27), (17, 32)], ids=str)
def test_logits_of_a_padded_image_cover_the_image_alone(size):
    """Cell centres of the grid laid over the image, in the coordinates of the grid over the padded image."""
    patch = 8
    grid_size = tuple(math.ceil(side / patch) for side in size)
    logits = torch.randn(1, 2, *grid_size)
    fitted = fit_to_image(logits, size, patch)
    assert fitted.shape == logits.shape
    for channel in range(2):
        expected = naive_bilinear(
            logits[0, channel],
            grid_size,
            lambda i, axis: (i + 0.5) * size[axis] / grid_size[axis] / patch - 0.5,
        )
        torch.testing.assert_close(fitted[0, channel], expected, **CLOSE)


def test_logits_of_an_image_of_whole_patches_stay_bit_for_bit():
    logits = torch.randn(2, 3, 4, 5)
    assert torch.equal(fit_to_image(logits, (32, 40), 8), logits)


def test_a_linear_ramp_over_the_padded_image_is_cut_where_the_image_ends():
    # the value of a cell is its centre's x in pixels; 6 cells of 8 pixels, of which 44 pixels are image
    ramp = ((torch.arange(6) + 0.5) * 8).expand(1, 1, 6, 6).contiguous()
    fitted = fit_to_image(ramp, (48, 44), 8)
    centres = (torch.arange(6) + 0.5) * 44 / 6
    torch.testing.assert_close(fitted[0, 0, 0, 1:], centres[1:], **CLOSE)  # the first lies outside the cell centres


@settings(max_examples=60)
@given(
    source=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    block=st.integers(1, 300),
)
def test_upsampling_in_blocks_equals_interpolate(source, target, block):
    scores = torch.randn(3, *source)
    expected = F.interpolate(scores[None], size=target, mode="bilinear", align_corners=False)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldvc.model.image_processing_ldvc.SCORES_PER_BLOCK", block)
        pieces = list(upsampled_rows(scores, target))
        assert torch.cat([torch.arange(target[0])[rows] for rows, _ in pieces]).tolist() == list(range(target[0]))
        torch.testing.assert_close(torch.cat([piece for _, piece in pieces], dim=1), expected, atol=1e-5, rtol=1e-5)
        labels = best_classes(scores, target)
    best = expected.topk(2, dim=0).values
    is_clear = best[0] - best[1] > 1e-5  # rounding may decide a tie
    assert torch.equal(labels[is_clear], expected.argmax(0)[is_clear])


def test_post_processing_never_holds_the_scores_at_target_size(monkeypatch):
    monkeypatch.setattr("ldvc.model.image_processing_ldvc.SCORES_PER_BLOCK", 1000)
    largest = max(block.numel() for _, block in upsampled_rows(torch.randn(5, 4, 4), (200, 100)))
    assert largest <= 1000


@settings(max_examples=80)
@given(
    source=st.tuples(st.integers(1, 60), st.integers(1, 60)), target=st.tuples(st.integers(1, 60), st.integers(1, 60))
)
def test_nearest_resizing_equals_pil(source, target):
    label_map = np.arange(source[0] * source[1], dtype=np.int32).reshape(source)
    expected = np.asarray(Image.fromarray(label_map).resize(target[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(resize_nearest(label_map, target), expected)
