"""Learning: LDVC's own weights, on a tiny random CLIP, overfit four pictures."""

import numpy as np
import pytest
import torch
from PIL import Image


COLORS = {"cat": (220, 40, 40), "grass": (40, 200, 60), "sky": (60, 90, 230), "sofa": (230, 210, 50)}
# one letter of each name per 16-pixel block
LAYOUTS = (
    ("ccgg", "ccgg", "ssgg", "ssss"),
    ("ffff", "fcgf", "fcgf", "ffff"),
    ("scsc", "cscs", "gggg", "gggg"),
    ("fffg", "ccfg", "ccfg", "sssg"),
)
LETTERS = {"c": 0, "g": 1, "s": 2, "f": 3}


def draw(layout):
    """A picture of 64 x 64 pixels and its label map."""
    blocks = np.array([[LETTERS[letter] for letter in row] for row in layout])
    label_map = blocks.repeat(16, axis=0).repeat(16, axis=1)
    noise = np.random.default_rng(0).normal(0, 8, (64, 64, 3))
    colors = np.array(list(COLORS.values()))[label_map] + noise
    return Image.fromarray(colors.clip(0, 255).astype(np.uint8)), label_map


def mean_iou(maps, label_maps):
    predicted, expected = torch.stack(maps), torch.from_numpy(np.stack(label_maps))
    ious = []
    for index in range(len(COLORS)):
        is_predicted, is_expected = predicted == index, expected == index
        ious.append((is_predicted & is_expected).sum() / (is_predicted | is_expected).sum())
    return float(torch.stack(ious).mean())


DECODERS = {
    "image": {},
    "class scores": {"decoder_query": "class"},
    "class product": {"decoder_query": "class", "class_query_mask": "dot"},
}


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_tiny_random_clip_overfits_four_images(make_model, tiny_processor, decoder):
    images, label_maps = zip(*map(draw, LAYOUTS), strict=True)
    model = make_model(
        decoder_dropout=0.0,
        vision_prompt_dropout=0.0,
        num_regions=4,
        route_top_k=4,
        logit_bias_init=-2.0,
        **DECODERS[decoder],
    )
    inputs = tiny_processor(
        images=list(images), class_names=list(COLORS), segmentation_maps=list(label_maps),
        size={"height": 64, "width": 64}, return_tensors="pt",
    )  # fmt: skip

    @torch.no_grad()
    def score():
        outputs = model.eval()(**inputs)
        maps = tiny_processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 64)] * 4)
        return outputs.loss.item(), mean_iou(maps, label_maps)

    first_loss, first_score = score()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(120):
        model.train()(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    last_loss, last_score = score()
    assert first_score < 0.5
    assert last_loss < 0.1 * first_loss
    assert last_score > 0.95
