"""CLIP without training: every method against its formula written out, batches, sizes, families of weights, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from ldvc import LDVCForSemanticSegmentation, TrainingFreeCLIP
from ldvc.model.dense_ldvc import find_rotation, gaussian_bias
from ldvc.model.dense_settings_ldvc import DENSE_METHODS
from ldvc.model.modeling_ldvc import LDVCImageFeatures
from ldvc.segmenters.feedback import open_paths, patch_labels, patch_similarity
from ldvc.segmenters.smoothing import pamr


LAYERS, MIDDLE = 7, (2, 3, 4)
# float32 sums in another order, on unit vectors; ResCLIP rounds to half precision on the way
CLOSE = {"rtol": 0, "atol": 1e-5}
RESCLIP_CLOSE = {"rtol": 0, "atol": 1e-4}


def build(seed=0, act="quick_gelu", patch_size=8, image_size=32, width=48, heads=3, layers=LAYERS, eos=149, joint=32):
    vision = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": layers, "hidden_act": act}
    vision |= {"num_attention_heads": heads, "image_size": image_size, "patch_size": patch_size}
    vision["projection_dim"] = joint
    text = {"vocab_size": 150, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "hidden_act": act}
    text |= {"num_attention_heads": 2, "bos_token_id": 148, "eos_token_id": eos, "pad_token_id": 1}
    torch.manual_seed(seed)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=joint, initializer_factor=4.0)
    clip = CLIPModel(config).eval()
    # as the library starts it, attention is nearly uniform and biases are zero, so that methods hardly differ
    for name, weight in clip.vision_model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.2)
        elif "encoder" in name and weight.dim() == 2:
            weight.data.normal_(std=1.4 * weight.shape[1] ** -0.5)
    return clip


@pytest.fixture(scope="module")
def clip():
    return build()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(3))  # a grid of 5 x 3


GRID = (5, 3)
EMBEDS = F.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(5)), dim=-1)


# ---- the formulas, one image and one head at a time


class Naive:
    """A tower for one image: the tokens that enter each block, and the heads of its projections; blocks from 1."""

    def __init__(self, clip, pixels):
        self.clip, self.vision = clip, clip.vision_model
        self.blocks = list(self.vision.encoder.layers)
        states = self.vision.pre_layrnorm(self.embed(pixels[None]))
        self.inputs = []
        for block in self.blocks:
            self.inputs.append(states[0])
            states = block(states, None)
        self.plain = states[0]

    def embed(self, pixels):
        """Positions resized bilinearly, by hand."""
        embeddings = self.vision.embeddings
        patches = embeddings.patch_embedding(pixels)
        positions, side = embeddings.position_embedding.weight, embeddings.image_size // embeddings.patch_size
        grid = positions[1:].T.reshape(1, -1, side, side)
        grid = F.interpolate(grid, size=patches.shape[-2:], mode="bilinear")[0].flatten(1).T
        first = embeddings.class_embedding + positions[0]
        return torch.cat([first[None], patches[0].flatten(1).T + grid])[None]

    def normed(self, number):
        return self.blocks[number - 1].layer_norm1(self.inputs[number - 1])

    def heads(self, number, letter):
        attention = self.blocks[number - 1].self_attn
        states = getattr(attention, f"{letter}_proj")(self.normed(number))
        return [states[:, i : i + attention.head_dim] for i in range(0, states.shape[1], attention.head_dim)]

    def output(self, number, maps, scale=1.0):
        """O(A, V): heads of A V side by side, times the output weight, plus the bias once."""
        attended = torch.cat([a @ v for a, v in zip(maps, self.heads(number, "v"), strict=True)], dim=1)
        linear = self.blocks[number - 1].self_attn.out_proj
        return scale * (attended @ linear.weight.T + linear.bias)

    def softmax(self, number, first, second, bias=0.0):
        scale = self.blocks[0].self_attn.head_dim ** -0.5
        pairs = zip(self.heads(number, first), self.heads(number, second), strict=True)
        return [(scale * a @ b.T + bias).softmax(-1) for a, b in pairs]

    def feed_forward(self, tokens):
        last = self.blocks[-1]
        return tokens + last.mlp(last.layer_norm2(tokens))

    def features(self, tokens):
        projected = self.clip.visual_projection(self.vision.post_layernorm(tokens[1:]))
        return F.normalize(projected, dim=-1).T.unflatten(1, GRID)


def gaussian(std):
    size = 1 + GRID[0] * GRID[1]
    bias = torch.zeros(size, size)
    for p in range(size - 1):
        for q in range(size - 1):
            (py, px), (qy, qx) = divmod(p, GRID[1]), divmod(q, GRID[1])
            bias[p + 1, q + 1] = math.exp(-((py - qy) ** 2 + (px - qx) ** 2) / (2 * std**2))
    return bias


def naive_tokens(naive):
    return naive.plain


def naive_value(naive):
    return naive.output(LAYERS, [torch.eye(len(naive.plain))] * 3)


def naive_maskclip(naive):
    return naive.feed_forward(naive.inputs[-1] + naive_value(naive))


def naive_sclip(naive):
    maps = [a + b for a, b in zip(naive.softmax(LAYERS, "q", "q"), naive.softmax(LAYERS, "k", "k"), strict=True)]
    return naive.feed_forward(naive.inputs[-1] + naive.output(LAYERS, maps))


def naive_clearclip(naive):
    return naive.output(LAYERS, naive.softmax(LAYERS, "q", "q"))


def naive_naclip(naive):
    return naive.output(LAYERS, naive.softmax(LAYERS, "k", "k", gaussian(5.0)))


def naive_clip_surgery(naive):
    tokens = naive.inputs[LAYERS - 6]
    for number in range(LAYERS - 5, LAYERS + 1):
        tokens = tokens + naive.output(number, naive.softmax(number, "v", "v"))
    return tokens


def naive_gem(naive):
    tokens = naive.inputs[LAYERS - 6]
    for number in range(LAYERS - 5, LAYERS + 1):
        temperature = naive.blocks[0].self_attn.head_dim ** -0.5 * naive.normed(number).norm(dim=-1).mean()
        maps = [0.0] * 3
        for letter in "qkv":
            for head, states in enumerate(naive.heads(number, letter)):
                states = states / states.norm(dim=-1, keepdim=True)
                states = (temperature * states @ states.T).softmax(-1) @ states
                states = states / states.norm(dim=-1, keepdim=True)
                maps[head] = maps[head] + (temperature * states @ states.T).softmax(-1) / 3
        tokens = tokens + naive.output(number, maps)
    return tokens


def naive_rotated(naive, rotate, alpha=0.08):
    maps = []
    for q, k in zip(naive.heads(LAYERS, "q"), naive.heads(LAYERS, "k"), strict=True):
        weights = q[1:].norm(dim=-1)
        weights = weights / (weights.sum() + 1e-6)
        centred_k = k - (weights[:, None] * k[1:]).sum(0)
        centred_q = q - (weights[:, None] * q[1:]).sum(0)
        rotation, scale = rotate(centred_k.T @ centred_q), q.shape[1] ** -0.5
        maps.append((scale * q @ (k @ rotation).T + alpha * scale * centred_k @ centred_k.T).softmax(-1))
    return naive.output(LAYERS, maps)


def five_steps(cross):
    gram, identity = cross.T @ cross, torch.eye(len(cross))
    norm = math.sqrt((gram**2).sum())
    y, e = gram / norm + 1e-6 * identity, identity
    for _ in range(5):
        t = 1.5 * identity - 0.5 * e @ y
        y, e = y @ t, t @ e
    return cross @ e / math.sqrt(norm)


def polar_factor(cross):
    left, _, right = torch.linalg.svd(cross)
    return left @ right


def naive_middle(naive):
    maps = [naive.softmax(number, "q", "k") for number in MIDDLE]
    return [sum(head) / len(MIDDLE) for head in zip(*maps, strict=True)]


def naive_residual_attention(naive, base, weight=0.4):
    return [2 * ((1 - weight) * a + weight * b) for a, b in zip(base, naive_middle(naive), strict=True)]


NAIVE = {
    "tokens": naive_tokens,
    "value": naive_value,
    "maskclip": naive_maskclip,
    "sclip": naive_sclip,
    "clearclip": naive_clearclip,
    "naclip": naive_naclip,
    "clip_surgery": naive_clip_surgery,
    "gem": naive_gem,
    "pearl": lambda naive: naive_rotated(naive, five_steps),
}


@torch.no_grad()
@pytest.mark.parametrize("method", NAIVE)
def test_a_method_equals_its_formula(clip, pixels, method):
    found = TrainingFreeCLIP(clip, method).get_image_features(pixels)
    assert found.feature_map.shape == (2, 32, *GRID)
    assert found.image_size == (40, 24)
    for index, image in enumerate(pixels):
        naive = Naive(clip, image)
        torch.testing.assert_close(found.feature_map[index], naive.features(NAIVE[method](naive)), **CLOSE)


def test_every_method_has_its_formula_here():
    assert set(NAIVE) | {"resclip"} == set(DENSE_METHODS)


@torch.no_grad()
def test_pearl_turns_by_the_nearest_rotation_where_that_is_asked_for(clip, pixels):
    found = TrainingFreeCLIP(clip, "pearl", rotation="svd", rotated_key_weight=0.3).get_image_features(pixels)
    naive = Naive(clip, pixels[1])
    expected = naive.features(naive_rotated(naive, polar_factor, 0.3))
    torch.testing.assert_close(found.feature_map[1], expected, rtol=0, atol=1e-4)  # of small singular values
    shipped = TrainingFreeCLIP(clip, "pearl").get_image_features(pixels).feature_map
    assert (shipped - found.feature_map).abs().max() > 1e-3


def test_the_nearest_rotation_is_one_and_five_steps_are_not():
    cross = torch.randn(1, 2, 16, 16)
    identity = torch.eye(16).expand(1, 2, 16, 16)
    rotation = find_rotation(cross, "svd")
    torch.testing.assert_close(rotation.transpose(-1, -2) @ rotation, identity, rtol=0, atol=1e-5)
    assert torch.linalg.svdvals(find_rotation(cross, "newton_schulz")).min() < 0.9


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"affinity": "vv"}, lambda n: n.output(LAYERS, n.softmax(LAYERS, "v", "v"))),
        (
            {"affinity": "qq", "residual": 1.0, "attention_weight": 3.0},
            lambda n: n.inputs[-1] + n.output(LAYERS, n.softmax(LAYERS, "q", "q"), 3.0),
        ),
        (
            {"affinity": "value", "residual": 0.5, "attention_weight": 2.0, "feed_forward": True},
            lambda n: n.feed_forward(0.5 * n.inputs[-1] + 2.0 * naive_value(n)),
        ),
        (
            {"affinity": "kk+gaussian", "gaussian_std": 1.5},
            lambda n: n.output(LAYERS, n.softmax(LAYERS, "k", "k", gaussian(1.5))),
        ),
        (
            {"affinity": "value", "middle_blocks": MIDDLE, "middle_weight": 0.25},
            lambda n: n.output(LAYERS, naive_residual_attention(n, [torch.eye(len(n.plain))] * 3, 0.25)),
        ),
    ],
)
def test_the_family_has_further_members(clip, pixels, settings, formula):
    found = TrainingFreeCLIP(clip, "value", **settings).get_image_features(pixels).feature_map[0]
    naive = Naive(clip, pixels[0])
    torch.testing.assert_close(found, naive.features(formula(naive)), **CLOSE)


def test_the_gaussian_is_one_on_the_diagonal_and_nothing_for_the_class_token():
    torch.testing.assert_close(gaussian_bias(GRID, 16, 2.0, torch.zeros(1)), gaussian(2.0)[1:], rtol=0, atol=1e-6)


def build_ldvc(clip, method, settings=None, **fields):
    features = {"patch_features": method, "patch_feature_settings": settings}
    return LDVCForSemanticSegmentation.from_clip_pretrained(clip, num_text_prompts=0, **features, **fields)


@torch.no_grad()
@pytest.mark.parametrize("method", DENSE_METHODS)
@pytest.mark.parametrize("settings", [{}, {"residual": 0.5, "attention_weight": 2.0, "num_blocks": 3}])
def test_ldvc_without_prompts_has_the_features_of_every_method(clip, pixels, method, settings):
    settings = settings | (RESCLIP if method == "resclip" else {})
    expected = build_ldvc(clip, method, settings or None, num_vision_prompts=0).get_image_features(pixels)
    options = settings | ({"feedback": False} if method == "resclip" else {})
    found = TrainingFreeCLIP(clip, method, **options).get_image_features(pixels)
    torch.testing.assert_close(found.feature_map, expected.feature_map, **CLOSE)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("method", DENSE_METHODS)
def test_ldvc_computes_no_last_block_of_which_it_uses_the_class_token_alone(clip, pixels, method, implementation):
    settings = RESCLIP if method == "resclip" else None
    model = build_ldvc(clip, method, settings, num_vision_prompts=4, attn_implementation=implementation).eval()
    calls, last = [], model.clip.vision_model.encoder.layers[-1]
    last.register_forward_hook(lambda *_: calls.append("block"))
    last.mlp.register_forward_hook(lambda module, args, out: calls.append(out.shape[1]))
    model.get_image_features(pixels)
    patches = GRID[0] * GRID[1]
    rows = [1, patches] if DENSE_METHODS[method].feed_forward else [1]
    assert calls == ([1 + 4 + patches, "block"] if method == "tokens" else rows)


@torch.no_grad()
@pytest.mark.parametrize("method", DENSE_METHODS)
def test_attention_that_is_written_out_gives_the_same_features(clip, pixels, method):
    settings = RESCLIP if method == "resclip" else None
    models = [build_ldvc(clip, method, settings, attn_implementation=kind) for kind in ("eager", "sdpa")]
    models[1].load_state_dict(models[0].state_dict())
    written_out, fused = (model.eval().get_image_features(pixels).feature_map for model in models)
    torch.testing.assert_close(written_out, fused, **CLOSE)


def test_prompts_learn_through_features_of_several_blocks(clip, pixels):
    model = build_ldvc(clip, "pearl", {"num_blocks": 3, "residual": 1.0}, num_vision_prompts=4)
    model.get_image_features(pixels).feature_map.square().sum(dim=0).var().backward()
    assert (model.vision_prompts.tokens.grad[:LAYERS].abs().amax(dim=(1, 2)) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("method", [name for name in DENSE_METHODS if name != "tokens"])
def test_blocks_that_are_used_outside_of_their_forward_gather_their_weights(clip, pixels, method):
    model = build_ldvc(clip, method, RESCLIP if method == "resclip" else None)
    gathered = set()
    for layer, block in enumerate(model.clip.vision_model.encoder.layers):
        block.unshard = lambda layer=layer: gathered.add(layer)  # as FSDP's blocks have it
    model.get_image_features(pixels)
    assert gathered == model.dense_settings.needed_inputs(LAYERS) | {LAYERS - 1}


def test_an_adapter_for_other_features_is_refused_and_leaves_the_model_as_it_was(clip, tmp_path):
    saved = build_ldvc(clip, "value", {"residual": 1.0}, num_vision_prompts=4)
    saved.save_adapter(tmp_path)
    other = build_ldvc(clip, "value", num_vision_prompts=4)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"has patch_feature_settings=\{.residual.: 1\.0\}, this model None"):
        other.load_adapter_weights(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@torch.no_grad()
def test_the_global_feature_is_clips_own(clip):
    pixels = torch.randn(2, 3, 32, 32)
    expected = F.normalize(clip.get_image_features(pixels).pooler_output, dim=-1)
    for method in ("naclip", "gem"):
        found = TrainingFreeCLIP(clip, method).get_image_features(pixels).image_embeds
        torch.testing.assert_close(found, expected, **CLOSE)


# ---- ResCLIP's second look


RESCLIP = {"middle_blocks": MIDDLE}


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "base"),
    [
        ({}, lambda n: n.softmax(LAYERS, "k", "k", gaussian(5.0))),
        ({"affinity": "qq"}, lambda n: n.softmax(LAYERS, "q", "q")),
        ({"affinity": "qq+kk", "residual": 1.0, "feed_forward": True}, None),
    ],
    ids=["naclip", "clearclip", "sclip"],
)
def test_residual_attention_equals_its_formula(clip, pixels, settings, base):
    model = TrainingFreeCLIP(clip, "resclip", feedback=False, **RESCLIP, **settings)
    naive = Naive(clip, pixels[0])
    if base is None:
        pairs = zip(naive.softmax(LAYERS, "q", "q"), naive.softmax(LAYERS, "k", "k"), strict=True)
        maps = naive_residual_attention(naive, [a + b for a, b in pairs])
        tokens = naive.feed_forward(naive.inputs[-1] + naive.output(LAYERS, maps))
    else:
        tokens = naive.output(LAYERS, naive_residual_attention(naive, base(naive)))
    torch.testing.assert_close(model.get_image_features(pixels).feature_map[0], naive.features(tokens), **CLOSE)


def naive_paths(labels):
    height, width = labels.shape
    steps = max(height, width) - 1
    places = [(y, x) for y in range(height) for x in range(width)]
    similar = torch.zeros(len(places), len(places))
    for i, (py, px) in enumerate(places):
        for j, (qy, qx) in enumerate(places):
            if labels[py, px] != labels[qy, qx]:
                continue
            distance = max(abs(py - qy), abs(px - qx))
            similar[i, j] = 1.0
            for step in range(1, distance + 1):
                y, x = round(py + (qy - py) * step / steps), round(px + (qx - px) * step / steps)
                if labels[y, x] != labels[py, px]:
                    similar[i, j] = math.exp(-distance / steps)
    return similar


def naive_feedback(labels):
    similar = naive_paths(labels)
    count = len(similar)
    length = min(count, 31) - (min(count, 31) % 2 == 0)
    kernel = [math.exp(-((k - length // 2) ** 2) / 50) for k in range(length)]
    smooth = torch.zeros(count, count)
    for p in range(count):
        for q in range(count):
            for k in range(length):
                if 0 <= (other := q + k - length // 2) < count:
                    smooth[p, q] += similar[p, other] * kernel[k] / sum(kernel)
    smooth = smooth / (smooth.sum(1, keepdim=True) + 1e-8)
    smooth = (smooth / smooth.max()).half().float()
    return F.pad(smooth, (1, 0, 1, 0))


@pytest.mark.parametrize("grid", [(5, 3), (4, 7), (1, 6), (1, 1)])
def test_feedback_equals_its_formula(grid):
    labels = torch.randint(0, 3, (2, *grid), generator=torch.Generator().manual_seed(1))
    labels[1] = torch.arange(grid[1]) // 2
    for index in range(2) if math.prod(grid) < 20 else (1,):  # the loops are slow
        torch.testing.assert_close(open_paths(labels)[index], naive_paths(labels[index]), rtol=0, atol=1e-6)
        found = patch_similarity(labels, 1 + grid[0] * grid[1])[index]
        torch.testing.assert_close(found, naive_feedback(labels[index]), rtol=0, atol=5e-4)  # half precision


def test_a_patch_takes_its_most_frequent_class_and_the_smaller_of_two():
    cosines = torch.zeros(1, 3, 1, 2)
    cosines[0, 2, 0, 0] = cosines[0, 1, 0, 1] = 0.05
    image = torch.zeros(1, 3, 4, 8)
    image[..., 4:] = 1.0
    assert patch_labels(cosines, image, 4, 0.1).tolist() == [[[2, 1]]]
    assert patch_labels(cosines, image, 4, 0.99).tolist() == [[[0, 0]]]  # what is uncertain becomes the first class
    equal = torch.zeros(1, 3, 2, 2)
    equal[0, 2, :, 0] = equal[0, 1, :, 1] = 1.0  # half of the pixels each
    halves = torch.zeros(1, 3, 4, 4)
    halves[..., 2:] = 1.0
    assert patch_labels(equal, halves, 4, 0.0).tolist() == [[[1]]]


@torch.no_grad()
def test_resclip_equals_its_formula(clip, pixels):
    settings = {"feedback_scale": 2.1, "feedback_weight": 0.6, "feedback_threshold": 0.3}
    model = TrainingFreeCLIP(clip, "resclip", softmax_scale=None, **RESCLIP, **settings)
    found = model(pixels, EMBEDS).logits
    for index, image in enumerate(pixels):
        naive = Naive(clip, image)
        first = naive.output(LAYERS, naive_residual_attention(naive, naive.softmax(LAYERS, "k", "k", gaussian(5.0))))
        cosines = torch.einsum("dhw,cd->chw", naive.features(first), EMBEDS)
        full = F.interpolate(cosines[None], size=(40, 24), mode="bilinear")
        best, labels = (40 * pamr(full, image[None])).softmax(1).max(1)
        labels = torch.where(best < 0.3, 0, labels)[0]
        blocks = labels.unfold(0, 8, 8).unfold(1, 8, 8).flatten(2)
        feedback = naive_feedback(blocks.mode(dim=-1).values)
        scale = naive.blocks[0].self_attn.head_dim ** -0.5
        maps = [
            (2.1 * (0.4 * scale * k @ k.T + 0.6 * feedback) + gaussian(5.0)).softmax(-1)
            for k in naive.heads(LAYERS, "k")
        ]
        tokens = naive.output(LAYERS, naive_residual_attention(naive, maps))
        expected = torch.einsum("dhw,cd->chw", naive.features(tokens), EMBEDS)
        torch.testing.assert_close(found[index], expected, **RESCLIP_CLOSE)
        assert (expected - cosines).abs().max() > 1e-3  # the second look changes something


@torch.no_grad()
def test_features_for_a_second_look_can_be_kept_moved_and_chosen(clip, pixels):
    model = TrainingFreeCLIP(clip, "resclip", **RESCLIP)
    features = model.get_image_features(pixels)
    expected = model(pixels, EMBEDS).logits
    torch.testing.assert_close(model(image_features=features, class_embeds=EMBEDS).logits, expected)
    torch.testing.assert_close(model(image_features=features.select(1), class_embeds=EMBEDS).logits, expected[1:])
    assert features.to(torch.float64).middle.dtype == torch.float64
    plain = LDVCImageFeatures(features.feature_map, features.image_embeds, features.image_size)
    with pytest.raises(ValueError, match=r"of another model or method.*feedback=False"):
        model(image_features=plain, class_embeds=EMBEDS)


# ---- promises


METHODS = {name: (RESCLIP if name == "resclip" else {}) for name in DENSE_METHODS}


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_an_image_alone_and_in_a_batch_give_the_same(clip, method):
    model = TrainingFreeCLIP(clip, method, **METHODS[method])
    pixels = torch.randn(3, 3, 41, 30) * torch.tensor([0.1, 1.0, 3.0]).view(3, 1, 1, 1)
    together = model(pixels, EMBEDS).logits
    for index in range(3):
        torch.testing.assert_close(model(pixels[index : index + 1], EMBEDS).logits[0], together[index], **CLOSE_LOGITS)


CLOSE_LOGITS = {"rtol": 0, "atol": 1e-3}  # of cosines times 40


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_features_have_unit_length_on_a_grid_of_any_size(clip, method):
    model = TrainingFreeCLIP(clip, method, **METHODS[method])
    for size, grid in (((8, 8), (1, 1)), ((9, 8), (2, 1)), ((71, 25), (9, 4))):
        feature_map = model.get_image_features(torch.randn(1, 3, *size)).feature_map
        assert feature_map.shape == (1, 32, *grid)
        torch.testing.assert_close(feature_map.norm(dim=1), torch.ones(1, *grid))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_in_half_precision(clip, pixels, method):
    model = TrainingFreeCLIP(build().to(torch.bfloat16), method, **METHODS[method])
    features = model.get_image_features(pixels).feature_map
    assert features.dtype == model(pixels, EMBEDS).logits.dtype == torch.bfloat16
    exact = TrainingFreeCLIP(clip, method, **METHODS[method]).get_image_features(pixels).feature_map
    assert F.cosine_similarity(features.float(), exact, dim=1).min() > 0.9


@torch.no_grad()
def test_logits_are_log_odds_whose_sigmoid_is_the_softmax(clip, pixels):
    cosines = TrainingFreeCLIP(clip, softmax_scale=None)(pixels, EMBEDS).logits
    found = TrainingFreeCLIP(clip, softmax_scale=25.0)(pixels, EMBEDS).logits.sigmoid()
    torch.testing.assert_close(found, (25 * cosines).softmax(1))
    alone = TrainingFreeCLIP(clip)(pixels, EMBEDS[:1]).logits
    assert alone.isfinite().all()
    assert (alone.sigmoid() == 1).all()


@torch.no_grad()
def test_a_list_per_image_competes_without_its_padding(clip, pixels):
    model = TrainingFreeCLIP(clip)
    embeds = EMBEDS[:3].expand(2, -1, -1)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = model(pixels, embeds, class_mask=mask).logits
    torch.testing.assert_close(found[0], model(pixels, EMBEDS[:3]).logits[0])
    torch.testing.assert_close(found[1, :2], model(pixels, EMBEDS[:2]).logits[1])
    assert (found[1, 2].sigmoid() == 0).all()


def test_only_the_blocks_that_are_needed_are_computed(clip, pixels):
    calls = []
    blocks = clip.vision_model.encoder.layers
    hooks = [block.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, block in enumerate(blocks)]
    hooks.append(blocks[-1].mlp.fc1.register_forward_hook(lambda _, args, out: calls.append(out.shape[1])))
    TrainingFreeCLIP(clip, "naclip").get_image_features(pixels)
    for hook in hooks:
        hook.remove()
    assert calls == [*range(LAYERS - 1), 1]  # of the last one's feed-forward part the class token alone


def test_the_clip_that_was_handed_over_is_used_and_not_changed(clip, pixels):
    before = {name: weight.clone() for name, weight in clip.state_dict().items()}
    kinds = [type(module) for module in clip.modules()]
    model = TrainingFreeCLIP(clip, "pearl")
    model(pixels, EMBEDS)
    assert model.clip is clip
    assert kinds == [type(module) for module in clip.modules()]
    for name, weight in clip.state_dict().items():
        assert torch.equal(weight, before[name])


# ---- all weights of CLIP's shape


SHAPES = {
    "openai/clip-vit-base-patch16": {"act": "quick_gelu", "patch_size": 16, "image_size": 224, "eos": 2},
    "openai/clip-vit-base-patch32": {"act": "quick_gelu", "patch_size": 32, "image_size": 224, "eos": 2},
    "openai/clip-vit-large-patch14": {
        "act": "quick_gelu",
        "patch_size": 14,
        "image_size": 224,
        "width": 64,
        "heads": 4,
    },
    "openai/clip-vit-large-patch14-336": {"act": "quick_gelu", "patch_size": 14, "image_size": 336, "joint": 48},
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": {"act": "gelu", "patch_size": 16, "image_size": 224},
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": {"act": "gelu", "patch_size": 14, "width": 80, "heads": 1, "joint": 44},
    "facebook/metaclip-b16-400m": {"act": "quick_gelu", "patch_size": 16, "image_size": 224},
}
# The largest, and those whose shape is another's.
SLOW_SHAPES = {
    "openai/clip-vit-large-patch14-336",
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    "facebook/metaclip-b16-400m",
}


@torch.no_grad()
@pytest.mark.parametrize("shape", [pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW_SHAPES)) for s in SHAPES])
def test_weights_of_every_clips_shape_work(shape):
    fields = {"image_size": 224, **SHAPES[shape]}
    clip = build(layers=6, **fields)
    side = fields["image_size"] // fields["patch_size"]
    ids = torch.tensor([[148, 5, 6, 149, 1], [148, 7, 149, 1, 1]])  # the end token is the highest id
    expected = F.normalize(clip.get_text_features(ids).pooler_output, dim=-1)
    pixels = torch.randn(1, 3, fields["image_size"], fields["image_size"])
    for method, settings in (("naclip", {}), ("gem", {}), ("resclip", {"middle_blocks": (3, 4)})):
        model = TrainingFreeCLIP(clip, method, **settings)
        embeds = model.get_class_embeds(ids)
        torch.testing.assert_close(embeds, expected, **CLOSE)
        logits = model(pixels, embeds).logits
        assert logits.shape == (1, 2, side, side)
        assert logits.isfinite().all()


@torch.no_grad()
def test_a_clip_loads_from_its_folder_and_a_vision_tower_alone_takes_embeddings(clip, pixels, tmp_path):
    clip.save_pretrained(tmp_path / "whole")
    loaded = TrainingFreeCLIP.from_pretrained(tmp_path / "whole", "sclip", softmax_scale=None)
    expected = TrainingFreeCLIP(clip, "sclip", softmax_scale=None)(pixels, EMBEDS).logits
    torch.testing.assert_close(loaded(pixels, EMBEDS).logits, expected)
    assert not loaded.training
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)
    half = TrainingFreeCLIP.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    tower = CLIPVisionModelWithProjection(clip.config.vision_config).eval()
    tower.load_state_dict(clip.state_dict(), strict=False)
    tower.save_pretrained(tmp_path / "tower")
    for alone in (tower, None):
        alone = TrainingFreeCLIP(alone, "sclip", softmax_scale=None) if alone else None
        alone = alone or TrainingFreeCLIP.from_pretrained(tmp_path / "tower", "sclip", softmax_scale=None)
        torch.testing.assert_close(alone(pixels, EMBEDS).logits, expected)
        with pytest.raises(ValueError, match=r"this CLIPVisionModelWithProjection has no text tower"):
            alone.get_class_embeds(torch.tensor([[148, 5, 149]]))


@torch.no_grad()
def test_a_vocabulary_of_its_own_serves_calls_without_classes(clip_model, tiny_processor, pixel_values):
    model = TrainingFreeCLIP(clip_model)
    model.set_vocabulary(["cat", "dog"], tiny_processor)
    classes = tiny_processor(class_names=["cat", "dog"], return_tensors="pt")
    expected = model(pixel_values, **classes).logits
    torch.testing.assert_close(model(pixel_values).logits, expected)
    with pytest.raises(ValueError, match=r"keeps its text tower.*leave out `bake`"):
        model.set_vocabulary(["cat"], tiny_processor, bake=True)


def test_segment_and_windows_take_it_like_any_model(clip_model, tiny_processor, images):
    from ldvc import InferenceSettings, segment

    model = TrainingFreeCLIP(clip_model)
    for settings in (None, InferenceSettings(32, 32, 16)):
        found = segment(model, tiny_processor, images[0], ["cat", "dog"], settings=settings, return_scores=True)
        assert found.label_map.shape == (40, 56)
        torch.testing.assert_close(found.scores.sum(0), torch.ones(40, 56), rtol=0, atol=0.05)  # a softmax, resized


# ---- errors


@pytest.mark.parametrize(
    ("method", "settings", "error", "message"),
    [
        ("naclp", {}, ValueError, r"`method` is 'naclp'; did you mean 'naclip'\?"),
        ("xyz", {}, ValueError, r"`method` is 'xyz'; use one of 'tokens', 'value', "),
        ("naclip", {"gaussian_sdt": 3}, TypeError, r"`gaussian_sdt` is no setting.*did you mean `gaussian_std`\?"),
        ("naclip", {"gaussian_std": 0}, ValueError, r"`gaussian_std` is 0; use a number above 0\."),
        ("naclip", {"residual": "1"}, ValueError, r"`residual` is '1'; use a number of 0 or more\."),
        ("naclip", {"residual": float("nan")}, ValueError, r"`residual` is nan; use a number of 0 or more\."),
        ("naclip", {"feed_forward": 1}, ValueError, r"`feed_forward` is 1; use True or False\."),
        ("naclip", {"affinity": "qqkk"}, ValueError, r"`affinity` is 'qqkk'; did you mean 'qq\+kk'\?"),
        ("pearl", {"rotation": "qr"}, ValueError, r"`rotation` is 'qr'; use one of 'newton_schulz', 'svd'\."),
        ("clearclip", {"gaussian_std": 3.0}, ValueError, r"`gaussian_std` has no effect on the method 'clearclip'"),
        ("naclip", {"rotation": "svd"}, ValueError, r"`rotation` has no effect.*affinity='rotated' \(pearl\)"),
        ("sclip", {"middle_weight": 0.2}, ValueError, r"`middle_weight` has no effect.*`middle_blocks` \(resclip\)"),
        ("sclip", {"feedback_scale": 2}, ValueError, r"`feedback_scale` has no effect.*feedback=True \(resclip\)"),
        ("gem", {"feedback": True}, ValueError, r"`feedback` is mixed with products.*affinity='self_self'"),
        ("resclip", {"feedback": 1}, ValueError, r"`feedback` is 1; use True or False\."),
        ("resclip", {"feedback_weight": 1.5}, ValueError, r"`feedback_weight` is 1\.5; it is a share"),
        ("resclip", {"middle_weight": 1.5}, ValueError, r"`middle_weight` is 1\.5; it is a share"),
        ("resclip", {"middle_blocks": (0,)}, ValueError, r"`middle_blocks` is \(0,\); blocks are counted"),
        ("resclip", {}, ValueError, r"`middle_blocks` is \(6, 7, 8, 9\), but this vision tower has 7 blocks"),
        ("gem", {"num_blocks": 8}, ValueError, r"`num_blocks` is 8, but this vision tower has 7 blocks; set .* to 7"),
        ("naclip", {"softmax_scale": 0}, ValueError, r"`softmax_scale` is 0; use a number above 0\."),
        ("naclip", {"position_interpolation": "area"}, ValueError, r"`position_interpolation` is 'area'"),
    ],
)
def test_wrong_settings_are_named(clip, method, settings, error, message):
    with pytest.raises((error, ValueError), match=message):
        TrainingFreeCLIP(clip, method, **settings)


def test_other_models_are_refused_in_one_line(clip, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, SiglipConfig

    with pytest.raises(ValueError, match=r"`clip` is a CLIPTextModel, not a CLIPModel"):
        TrainingFreeCLIP(CLIPTextModel(CLIPTextConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)))
    for config, kind in (
        (SiglipConfig(), "siglip"),
        (Dinov2Config(), "dinov2"),
        (CLIPTextConfig(), "clip_text_model"),
    ):
        config.save_pretrained(tmp_path / kind)
        with pytest.raises(ValueError, match=rf"holds a '{kind}' model, not a CLIP"):
            TrainingFreeCLIP.from_pretrained(tmp_path / kind)
    with pytest.raises(OSError, match="no CLIP can be read from 'nobody/nothing'"):
        TrainingFreeCLIP.from_pretrained("nobody/nothing")
    with pytest.raises(ValueError, match="did you mean 'sclip'"):
        TrainingFreeCLIP.from_pretrained("nobody/nothing", "sclp")  # before anything is read
    clip.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    from safetensors.torch import save_file

    weights = {name: weight.contiguous() for name, weight in clip.state_dict().items() if "fc2" not in name}
    save_file(weights, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ of CLIP's weights, first 'clip\.text_model.*fc2"):
        TrainingFreeCLIP.from_pretrained(tmp_path / "clip")


def test_wrong_calls_are_named(clip, pixels):
    model = TrainingFreeCLIP(clip)
    with pytest.raises(ValueError, match="exactly one of `pixel_values` and `image_features`"):
        model(class_embeds=EMBEDS)
    with pytest.raises(ValueError, match="no mask has trained this one"):
        model(pixels, EMBEDS, seen_class_mask=torch.ones(4))
    with pytest.raises(ValueError, match=r"names no classes"):
        model(pixels)
    with pytest.raises(ValueError, match="class lists for 3 images, but 2 images"):
        model(pixels, EMBEDS.expand(3, -1, -1))
    with pytest.raises(ValueError, match="less than one patch"):
        model(torch.zeros(1, 3, 4, 20), EMBEDS)
