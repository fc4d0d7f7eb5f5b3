"""PAMR and the propagation of PEARL against their formulas, pixel by pixel, and what they promise."""

import json
import math
import statistics
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldvc.app.segment import Smoothing
from ldvc.loading import load_checkpoint
from ldvc.model.inference_ldvc import InferenceSettings, segment
from ldvc.segmenters.smoothing import PEARL_AS_SHIPPED, SMOOTHERS, pamr, propagate, smooth_logits


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- PAMR


def naive_pamr(scores, image, num_steps, dilations):
    """One image at its own size: (num_classes, height, width) and (num_channels, height, width)."""
    height, width = image.shape[-2:]
    directions = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]

    def neighbours(y, x):
        moves = [(y + d * dy, x + d * dx) for d in dilations for dy, dx in directions]
        return [(min(max(p, 0), height - 1), min(max(q, 0), width - 1)) for p, q in moves]

    weights = {}
    for y in range(height):
        for x in range(width):
            logits = [0.0] * (8 * len(dilations))
            for channel in image.tolist():
                values = [channel[p][q] for p, q in neighbours(y, x)]
                sigma = statistics.stdev([*values, *[channel[y][x]] * len(dilations)])
                for r, value in enumerate(values):
                    logits[r] -= abs(channel[y][x] - value) / (1e-8 + 0.1 * sigma) / len(image)
            weights[y, x] = torch.tensor(logits).softmax(0)
    for _ in range(num_steps):
        moved = torch.zeros_like(scores)
        for (y, x), weight in weights.items():
            moved[:, y, x] = sum(a * scores[:, p, q] for a, (p, q) in zip(weight, neighbours(y, x), strict=True))
        scores = moved
    return scores


def test_pamr_equals_its_formula():
    scores, image = random(1, 3, 7, 9), random(1, 3, 7, 9, seed=1)
    expected = naive_pamr(scores[0], image[0], 3, (1, 3))
    torch.testing.assert_close(pamr(scores, image, 3, (1, 3))[0], expected, rtol=0, atol=1e-5)


def test_pamr_resizes_scores_with_aligned_corners():
    scores = random(2, 2, 3, 4)
    expected = F.interpolate(scores, size=(9, 13), mode="bilinear", align_corners=True)
    torch.testing.assert_close(pamr(scores, random(2, 3, 9, 13), num_steps=0), expected)


def test_pamr_follows_the_picture_and_its_default_reaches_sixteen_pixels():
    image = torch.zeros(1, 3, 40, 40)
    image[..., 20:] = 1.0
    scores = torch.zeros(1, 1, 40, 40)
    scores[..., 20:] = 1.0
    noisy = scores.clone()
    noisy[0, 0, 10, 10] = 1.0
    found = pamr(noisy, image)
    assert found[0, 0, 10, 10] < 0.1  # a stray pixel goes
    torch.testing.assert_close(found[..., 20:], scores[..., 20:], rtol=0, atol=0.05)  # and the border stays
    with_border = pamr(scores, image, 1, (16,))
    assert (with_border[..., :4] == 0).all()


def test_pamr_smooths_every_class_by_itself_however_many_there_are():
    scores, image = random(1, 70, 6, 6), random(1, 3, 12, 12)
    alone = torch.cat([pamr(scores[:, i : i + 1], image) for i in (0, 40, 69)], dim=1)
    torch.testing.assert_close(pamr(scores, image)[:, [0, 40, 69]], alone)


# ---- propagation


def naive_propagate(scores, image, text, text_term, softmax_scale, grid, num_steps):
    """One image: scores at its size, (num_classes, height, width), and (3, height, width)."""
    size = tuple(image.shape[-2:])
    factors = [max(1, round(side / grid)) for side in size]
    shape = [side // factor for side, factor in zip(size, factors, strict=True)]

    def pool(maps):
        cut = maps[:, : shape[0] * factors[0], : shape[1] * factors[1]]
        return cut.unflatten(1, (shape[0], factors[0])).unflatten(3, (shape[1], factors[1])).mean(dim=(2, 4))

    z, pixels = pool(scores).double(), pool(image).double()
    p = (softmax_scale * z).softmax(0)
    similar = (text @ text.T / 0.5).softmax(1) + 10 * torch.eye(len(text))
    similar = similar / similar.sum(1, keepdim=True)
    similar = (torch.diag(similar.diagonal()) if text_term == "diagonal" else similar).double()
    places = [(y, x) for y in range(shape[0]) for x in range(shape[1])]

    def agree(a, b):
        return 0.0 if text_term == "none" else min(max(float(p[:, *a] @ similar @ p[:, *b]), 0.0), 1.0)

    grey = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
    matrix = torch.zeros(len(places), len(places), dtype=torch.double)
    trust = torch.tensor([max(float(p[:, *a].max()), 0.05) ** 2 * (1 + agree(a, a)) for a in places]).double()
    for dy, dx in ((1, 0), (0, 1)):
        bonds = [(a, (a[0] + dy, a[1] + dx)) for a in places if (a[0] + dy, a[1] + dx) in places]
        gradients = [abs(float(grey[a] - grey[b])) for a, b in bonds]
        mean = sum(gradients) / len(gradients)
        for (a, b), gradient in zip(bonds, gradients, strict=True):
            edge = min(1.0, math.exp(-5 * gradient / (mean + 1e-6)) * (1 + agree(a, b)))
            i, j = places.index(a), places.index(b)
            matrix[i, i] += edge
            matrix[j, j] += edge
            matrix[i, j] -= edge
            matrix[j, i] -= edge
    matrix += torch.diag(trust)
    found = z.flatten(1).T
    rest = trust[:, None] * found - matrix @ found
    step, power = rest, (rest**2).sum()
    for _ in range(num_steps):
        pushed = matrix @ step
        length = power / ((step * pushed).sum() + 1e-12)
        found, rest = found + length * step, rest - length * pushed
        new_power = (rest**2).sum()
        step, power = rest + new_power / (power + 1e-12) * step, new_power
    coarse = found.T.reshape(-1, *shape).float()
    return F.interpolate(coarse[None], size=size, mode="bilinear", align_corners=False)[0]


TEXT = F.normalize(random(4, 8, seed=2), dim=-1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("full", 40.0)),
        ({"text_term": "diagonal", "softmax_scale": 7.0}, ("diagonal", 7.0)),
        ({"text_term": "none"}, ("none", 40.0)),
        (PEARL_AS_SHIPPED, ("diagonal", 1.0)),
    ],
    ids=["full", "diagonal", "none", "shipped"],
)
def test_propagation_equals_its_formula(settings, expected):
    scores, image = 0.03 * random(1, 4, 17, 22) + 0.2, random(1, 3, 17, 22, seed=1)
    found = propagate(scores, image, TEXT, grid=8, **settings)[0]
    naive = naive_propagate(scores[0], image[0], TEXT, *expected, grid=8, num_steps=25)
    torch.testing.assert_close(found, naive, rtol=0, atol=1e-5)
    assert (found - scores[0]).abs().max() > 1e-2


def test_a_picture_alone_and_in_a_batch_agree_but_not_as_shipped():
    scores, image = random(2, 4, 5, 5), random(2, 3, 20, 20, seed=1) * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1)
    image[0, :, 10:] += 3.0
    image[1, :, :, 5:] -= 9.0
    for smooth in (pamr, lambda s, i: propagate(s, i, TEXT)):
        torch.testing.assert_close(smooth(scores, image)[:1], smooth(scores[:1], image[:1]), rtol=0, atol=1e-5)
    together = propagate(scores, image, TEXT, **PEARL_AS_SHIPPED)[:1]
    assert (together - propagate(scores[:1], image[:1], TEXT, **PEARL_AS_SHIPPED)).abs().max() > 1e-3


def test_scores_do_not_cross_an_edge():
    image = torch.zeros(1, 3, 24, 24)
    image[..., 12:] = 1.0
    scores = torch.zeros(1, 2, 24, 24)
    scores[:, 0, :, :12] = scores[:, 1, :, 12:] = 1.0
    noisy = scores + 0.3 * random(1, 2, 24, 24)
    found = propagate(noisy, image, softmax_scale=1.0)
    assert (found.argmax(1) == scores.argmax(1)).all()
    assert (noisy.argmax(1) != scores.argmax(1)).any()
    assert (found - scores).abs().mean() < (noisy - scores).abs().mean() / 2


def test_logits_of_ldvc_are_smoothed_like_any_scores(tiny_model, tiny_processor, pixel_values):
    classes = tiny_processor(class_names=["cat", "dog"], return_tensors="pt")
    embeds = tiny_model.get_class_embeds(**classes).detach()
    logits = tiny_model(pixel_values, class_embeds=embeds).logits
    for smoothed in (pamr(logits, pixel_values), propagate(logits, pixel_values, embeds, softmax_scale=1.0)):
        assert smoothed.shape == (2, 2, 32, 32)
        assert smoothed.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pamr(random(2, 4, 4), random(1, 3, 8, 8)), r"`scores` has shape \(2, 4, 4\)"),
        (lambda: pamr(random(2, 1, 4, 4), random(1, 3, 8, 8)), r"`image` \(1, 3, 8, 8\); give \(batch_size, "),
        (lambda: pamr(random(1, 1, 4, 4), random(1, 3, 8, 8), dilations=()), r"`dilations` \(\); use 0 or more steps"),
        (lambda: pamr(random(1, 1, 4, 4), random(1, 3, 8, 8), num_steps=-1), r"`num_steps` is -1"),
        (
            lambda: propagate(random(1, 1, 4, 4), random(1, 3, 8, 8), text_term="half"),
            r"`text_term` is 'half'; use one",
        ),
        (
            lambda: propagate(random(1, 1, 4, 4), random(1, 3, 8, 8), softmax_scale=0),
            r"`softmax_scale` 0; use at least",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- in `segment` and `ldvc segment`


@pytest.fixture
def picture(tmp_path):
    """Return a picture of 40 x 30 pixels with edges."""
    blocks = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((40, 30), Image.Resampling.NEAREST).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def test_smoothed_logits_are_those_of_smoothed_probabilities():
    logits, pixels, embeds = random(3, 4, 4), random(3, 24, 16, seed=1), random(3, 8, seed=2)
    full = F.interpolate(logits[None], size=(24, 16), mode="bilinear").sigmoid()
    by_pamr = smooth_logits(logits, pixels, embeds, "pamr")
    torch.testing.assert_close(by_pamr.sigmoid(), pamr(full, pixels[None])[0])
    by_edges = smooth_logits(logits, pixels, embeds, "propagation").sigmoid()
    unit = F.normalize(embeds, dim=-1)
    expected = propagate(full, pixels[None], unit, softmax_scale=2.0)[0]
    torch.testing.assert_close(by_edges, expected.clamp(1e-6, 1 - 1e-6))
    by_both = smooth_logits(logits, pixels, embeds, "pamr-propagation").sigmoid()
    expected = propagate(pamr(full, pixels[None]), pixels[None], unit, softmax_scale=10.0)[0]
    torch.testing.assert_close(by_both, expected.clamp(1e-6, 1 - 1e-6))


@pytest.mark.parametrize("smoothing", list(SMOOTHERS))
def test_the_command_and_segment_smooth_alike_and_names_json_says_so(ldvc, checkpoint, picture, tmp_path, smoothing):
    call = ["segment", picture, "-m", checkpoint, "-f", "npz", "--scores"]
    for name, options in (("plain", []), ("smooth", ["--smoothing", smoothing])):
        assert ldvc(*call, "-o", tmp_path / name, *options).exit_code == 0
    plain, smooth = (np.load(tmp_path / name / "p.npz")["scores"] for name in ("plain", "smooth"))
    model, processor = load_checkpoint(checkpoint, "cpu")
    found = segment(model, processor, picture, return_scores=True, refine=partial(smooth_logits, smoothing=smoothing))
    np.testing.assert_allclose(smooth, found.scores.numpy(), atol=1e-3)  # the file has half precision
    assert np.abs(smooth.astype(float) - plain).max() > 1e-2
    names = [json.loads((tmp_path / name / "names.json").read_text()) for name in ("plain", "smooth")]
    assert [content.get("smoothing") for content in names] == [None, smoothing]
    again = ldvc(*call, "-o", tmp_path / "plain", "--smoothing", smoothing, "--skip-existing")
    assert again.exit_code == 2, "half of a folder must not be smooth"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--window", "16"],
            "--smoothing pamr takes pictures whole, at the checkpoint's own size; leave --window and",
        ),
        (["--short-side", "16"], "leave --window and --short-side out"),
        (["--runtime", "onnx"], "--smoothing pamr is computed by PyTorch; use --runtime torch."),
    ],
)
def test_what_cannot_be_smoothed_is_refused_with_the_remedy(ldvc, checkpoint, picture, tmp_path, options, message):
    result = ldvc("segment", picture, "-m", checkpoint, "-o", tmp_path / "out", "--smoothing", "pamr", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_commands_smoothings_are_those_of_the_module():
    assert list(Smoothing) == list(SMOOTHERS)


def test_refine_is_of_whole_pictures_and_smoothings_have_names(checkpoint, picture):
    model, processor = load_checkpoint(checkpoint, "cpu")
    with pytest.raises(ValueError, match="`refine` takes pictures whole, at the processor's own size; leave"):
        segment(model, processor, picture, settings=InferenceSettings(0, 16), refine=lambda *given: given[0])
    with pytest.raises(ValueError, match="smoothing is 'crf'; use one of 'pamr', 'propagation', 'pamr-propagation'"):
        smooth_logits(random(2, 4, 4), random(3, 8, 8), None, "crf")
