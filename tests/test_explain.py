"""Explanations: what is shown is what the model did, in the right place on the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldvc.app import explain
from ldvc.app.explain import (
    ClassScore,
    LayerExplanation,
    PixelExplanation,
    Rectangle,
    RoutedRegion,
    TokenGrid,
    cross_attention_maps,
    describe,
    draw_cross_attention,
    draw_routing,
    explain_pixel,
)
from ldvc.commands import export as commands


NAMES = ["cat", "dog", "grass"]
GRIDS = [
    TokenGrid((40, 56), (32, 32), 8, 2),
    TokenGrid((33, 24), (20, 28), 8, 2),  # padded to whole patches
    TokenGrid((7, 5), (32, 32), 8, 2),  # enlarged
    TokenGrid((97, 61), (72, 40), 8, 4),  # 9 x 5 tokens, which 4 regions per side do not divide
]


@pytest.fixture
def image(images):
    return images[0]


@pytest.fixture
def observed(tiny_model, tiny_processor, image):
    """Return the outputs that an explanation of `image` must show, from a plain call."""
    inputs = tiny_processor(images=image, class_names=NAMES, return_tensors="pt")
    tiny_model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = tiny_model(**inputs, output_routes=True, output_attentions=True, output_decoder_attentions=True)
    tiny_model.set_attn_implementation("sdpa")
    return outputs


def make_explanation(**changes):
    """Return an explanation of a 40 x 40 picture with one route, as a model would give it."""
    route = RoutedRegion(1, Rectangle(0, 20, 20, 40), 1.0)
    fields = {
        "point": (30, 10),
        "picture_size": (40, 40),
        "class_names": ("cat", "dog"),
        "top_classes": (ClassScore("cat", 0.75), ClassScore("dog", 0.5)),
        "margin": 0.25,
        "region": Rectangle(20, 0, 40, 20),
        "layers": (LayerExplanation((route,), (0.6, 0.4)),),
        "decoder_attention": "route",
    }
    return PixelExplanation(**{**fields, **changes})


# ---- where


@pytest.mark.parametrize("grid", GRIDS)
def test_the_rectangles_of_the_regions_cover_every_pixel_once(grid):
    counts = np.zeros(grid.picture_size, dtype=int)
    rows, columns = (-(-side // region) for side, region in zip(grid.grid_size, grid.region_size, strict=True))
    for region in range(rows * columns):
        top, left, bottom, right = grid.rectangle_of(region)
        counts[top:bottom, left:right] += 1
    assert (counts == 1).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_every_pixel_lies_in_the_rectangle_of_its_tokens_region(grid):
    for row, column in np.ndindex(grid.picture_size):
        top, left, bottom, right = grid.rectangle_of(grid.region_of(grid.token_at((row, column))))
        assert top <= row < bottom
        assert left <= column < right


def test_a_token_is_the_one_under_the_centre_of_the_pixel():
    grid = TokenGrid((16, 16), (32, 32), 8, 2)
    assert [grid.token_at((row, 0))[0] for row in (0, 3, 4, 15)] == [0, 0, 1, 3]


# ---- what


@pytest.mark.parametrize("point", [(0, 0), (39, 55), (17, 30)])
def test_probabilities_are_those_of_post_processing_at_the_pixel(tiny_model, tiny_processor, image, observed, point):
    explanation = explain_pixel(tiny_model, tiny_processor, image, NAMES, point)
    result = tiny_processor.post_process_semantic_segmentation(
        observed, target_sizes=[(40, 56)], return_segmentation_scores=True
    )[0]
    expected = result["segmentation_scores"][:, point[0], point[1]]
    order = expected.argsort(descending=True)
    assert [name for name, _ in explanation.top_classes] == [NAMES[index] for index in order]
    actual = torch.tensor([score for _, score in explanation.top_classes])
    torch.testing.assert_close(actual, expected[order], atol=1e-5, rtol=0)
    assert explanation.margin == pytest.approx(float(actual[0] - actual[1]), abs=1e-6)


def test_probabilities_are_less_the_offset_of_seen_classes(make_model, tiny_processor, image):
    plain = explain_pixel(make_model(), tiny_processor, image, NAMES, (5, 5))
    model = make_model(seen_classes=["dog"], seen_score_offset=0.25)
    lowered = dict(explain_pixel(model, tiny_processor, image, NAMES, (5, 5)).top_classes)
    for name, score in plain.top_classes:
        assert lowered[name] == pytest.approx(score - 0.25 * (name == "dog"), abs=1e-6)


@pytest.mark.parametrize("point", [(3, 3), (10, 50), (39, 0)])
def test_the_routes_are_the_models(tiny_model, tiny_processor, image, observed, point):
    explanation = explain_pixel(tiny_model, tiny_processor, image, NAMES, point)
    region = (point[0] >= 20) * 2 + (point[1] >= 28)  # two regions per side
    assert len(explanation.layers) == len(observed.routes) == 2
    for layer, routes in zip(explanation.layers, observed.routes, strict=True):
        assert [route.index for route in layer.routes] == routes[0, region].tolist()
    tops, lefts = (0, 20), (0, 28)
    corners = [(tops[route.index // 2], lefts[route.index % 2]) for route in explanation.layers[0].routes]
    assert [route.rectangle[:2] for route in explanation.layers[0].routes] == corners


def test_the_share_of_a_routed_region_is_the_tokens_attention_to_it(tiny_model, tiny_processor, image, observed):
    layer = explain_pixel(tiny_model, tiny_processor, image, NAMES, (12, 40)).layers[1]
    # pixel (12, 40): token (1, 2) of 4 x 4, which is row 1, column 0 of region 1; keys come four per routed region
    weights = observed.decoder_attentions[1][0, 1, :, 2].mean(dim=0)
    assert [route.attention for route in layer.routes] == pytest.approx(
        [float(weights[:4].sum()), float(weights[4:].sum())], abs=1e-6
    )
    assert sum(route.attention for route in layer.routes) == pytest.approx(1, abs=1e-6)


def test_the_attention_over_classes_is_the_tokens_cross_attention(tiny_model, tiny_processor, image, observed):
    explanation = explain_pixel(tiny_model, tiny_processor, image, NAMES, (12, 40))
    for layer, weights in zip(explanation.layers, observed.cross_attentions, strict=True):
        assert layer.class_attention == pytest.approx(weights[0, :, 1 * 4 + 2].mean(dim=0).tolist(), abs=1e-6)
        assert sum(layer.class_attention) == pytest.approx(1, abs=1e-6)


def test_known_features_and_embeddings_give_the_same_and_run_no_tower(tiny_model, tiny_processor, image, monkeypatch):
    expected = explain_pixel(tiny_model, tiny_processor, image, NAMES, (9, 9))
    inputs = tiny_processor(images=image, class_names=NAMES, return_tensors="pt")
    with torch.no_grad():
        features = tiny_model.get_image_features(inputs["pixel_values"])
        embeds = tiny_model.get_class_embeds(inputs["input_ids"])
    monkeypatch.setattr(tiny_model, "get_image_features", None)
    monkeypatch.setattr(tiny_model, "get_class_embeds", None)
    actual = explain_pixel(
        tiny_model, tiny_processor, image, NAMES, (9, 9), class_embeds=embeds, image_features=features
    )
    assert actual == expected


def test_synonyms_and_the_default_vocabulary_are_named_by_their_classes(tiny_model, tiny_processor, image):
    synonyms = explain_pixel(tiny_model, tiny_processor, image, {"sofa": ["sofa", "couch"], "sky": ["sky"]}, (0, 0))
    assert synonyms.class_names == ("sofa", "sky")
    tiny_model.set_vocabulary(["grass", "cat"], tiny_processor, other_label="other")
    assert explain_pixel(tiny_model, tiny_processor, image, None, (0, 0)).class_names == ("grass", "cat")


def test_a_single_class_has_no_margin(tiny_model, tiny_processor, image):
    explanation = explain_pixel(tiny_model, tiny_processor, image, ["cat"], (0, 0))
    assert explanation.margin is None
    assert "margin" not in describe(explanation)


def test_paths_and_arrays_are_explained_as_pictures_are(tiny_model, tiny_processor, image, tmp_path):
    image.save(tmp_path / "picture.png")
    expected = explain_pixel(tiny_model, tiny_processor, image, NAMES, (9, 9))
    assert explain_pixel(tiny_model, tiny_processor, tmp_path / "picture.png", NAMES, (9, 9)) == expected
    assert explain_pixel(tiny_model, tiny_processor, np.asarray(image), NAMES, (9, 9)) == expected


def test_the_attention_backend_is_put_back_also_after_an_error(tiny_model, tiny_processor, image):
    before = (tiny_model.config._attn_implementation, tiny_model.config.vision_config._attn_implementation)
    assert before == ("sdpa", "sdpa")
    explain_pixel(tiny_model, tiny_processor, image, NAMES, (0, 0))
    with pytest.raises(ValueError, match="class embeddings have shape"):
        explain_pixel(tiny_model, tiny_processor, image, NAMES, (0, 0), class_embeds=torch.zeros(3, 7))
    after = (tiny_model.config._attn_implementation, tiny_model.config.vision_config._attn_implementation)
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point": (40, 0)}, r"\(row 40, column 0\) is outside the picture of 40 x 56 pixels"),
        ({"point": (0, -1)}, r"column from 0 to 55"),
        ({"top_k": 0}, "top_k is 0"),
        ({"class_embeds": torch.zeros(2, 32)}, "3 class names for 2 class embeddings"),
    ],
)
def test_a_wrong_question_is_refused(tiny_model, tiny_processor, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain_pixel(tiny_model, tiny_processor, image, NAMES, **{"point": (0, 0), **arguments})


# ---- decoders without routes


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"decoder_attention": "full"}, "'full', every token attends to the whole picture"),
        ({"decoder_attention": "none"}, "'none', tokens attend to the classes only"),
        ({"decoder_attention": "window"}, "'window', a token attends to its own window"),
        ({"decoder_attention": "shifted_window"}, "shifted in every second layer"),
        ({"decoder_query": "class"}, "the classes attend to the image"),
    ],
)
def test_a_decoder_without_routes_is_explained_and_says_what_it_does_instead(
    make_model, tiny_processor, image, fields, reason
):
    model = make_model(**fields)
    explanation = explain_pixel(model, tiny_processor, image, NAMES, (12, 40))
    assert all(layer.routes == () and len(layer.class_attention) == 3 for layer in explanation.layers)
    assert explanation.region == Rectangle(10, 28, 20, 42)  # of the token alone
    assert reason in describe(explanation)
    with pytest.raises(ValueError, match=reason):
        draw_routing(image, explanation)


def test_a_class_query_decoder_shows_the_attention_of_each_class_to_the_token(make_model, tiny_processor, image):
    model = make_model(decoder_query="class", class_query_mask="dot")
    maps = cross_attention_maps(model, tiny_processor, image, NAMES)
    assert maps.shape == (2, 3, 4, 4)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 3))
    layer = explain_pixel(model, tiny_processor, image, NAMES, (12, 40)).layers[0]
    assert layer.class_attention == pytest.approx(maps[0, :, 1, 2].tolist(), abs=1e-6)


def test_a_decoder_without_any_cross_attention_weights_is_refused(make_model, tiny_processor, image):
    model = make_model(decoder_query="class", class_query_mask="attention_scores", num_decoder_layers=1)
    with pytest.raises(ValueError, match="takes its masks from the attention scores"):
        cross_attention_maps(model, tiny_processor, image, NAMES)


# ---- pictures


def test_cross_attention_maps_are_the_models_and_sum_to_one_over_the_classes(
    tiny_model, tiny_processor, image, observed
):
    maps = cross_attention_maps(tiny_model, tiny_processor, image, NAMES)
    assert maps.shape == (2, 3, 4, 4)
    for layer_maps, weights in zip(maps, observed.cross_attentions, strict=True):
        torch.testing.assert_close(layer_maps, weights[0].mean(dim=0).T.unflatten(-1, (4, 4)))
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 4, 4))


def test_the_routing_picture_is_grey_but_for_routed_regions_frame_and_ring():
    image = Image.new("RGB", (40, 40), (0, 90, 200))
    picture = np.asarray(draw_routing(image, make_explanation())).astype(int)
    left, top = 14, 14 + 26 + 7  # margin; title of 1.5 x 17 pixels and a gap
    panel = picture[top : top + 300, left : left + 300]
    grey = panel[75, 75]
    assert np.ptp(grey) == 0
    red, green, blue = panel[75, 225]  # the routed quarter: the blue picture under four fifths of orange
    assert (red, green, blue) == (204, 130, 40)
    assert panel[151, 1].tolist() == [255, 255, 255]
    ring = panel[round(30.5 * 7.5), round(10.5 * 7.5) - 4]
    assert ring.tolist() == list(explain.POINT_COLOR)


def test_the_routing_picture_has_a_panel_per_layer():
    one = make_explanation()
    image = Image.new("RGB", (40, 40))
    widths = [draw_routing(image, make_explanation(layers=one.layers * count)).width for count in (1, 2, 3, 4)]
    assert widths == [328, 635, 942, 942]  # three in a row


def test_a_heat_map_is_brightest_where_the_attention_of_its_class_is_highest():
    maps = torch.tensor([[[0.1, 0.2], [0.1, 0.1]], [[0.9, 0.8], [0.9, 0.9]]])
    sheet = draw_cross_attention(Image.new("RGB", (64, 64), (128, 128, 128)), maps, ["cat", "dog"]).convert("L")
    cells = np.asarray(sheet)[47:347].astype(int)
    cat, dog = cells[:, 14:314], cells[:, 321:621]
    assert cat[10, 290] == dog[10, 10] == dog[290, 290] > 200 > 60 > cat[10, 10] == cat[290, 290] == dog[10, 290]


def test_an_even_heat_map_stays_dark_whatever_its_rounding():
    maps = torch.full((1, 2, 2), 0.5)
    maps[0, 0, 0] += 1e-6
    sheet = draw_cross_attention(Image.new("RGB", (64, 64), (128, 128, 128)), maps, ["cat"]).convert("L")
    assert np.asarray(sheet)[47:347, 14:314].max() < 60


def test_maps_and_names_of_different_numbers_are_refused(image):
    with pytest.raises(ValueError, match=r"maps of shape \(2, 4, 4\) for 3 class names"):
        draw_cross_attention(image, torch.zeros(2, 4, 4), NAMES)


def test_an_explanation_in_words_names_classes_margin_and_routes():
    assert describe(make_explanation()).splitlines() == [
        "pixel at row 30, column 10: cat 0.75, dog 0.50",
        "margin: 0.25 before dog",
        "layer 1: routed to 1 regions, most attention to rows 0 to 19, columns 20 to 39 (100%)",
    ]


# ---- command line


def test_the_command_prints_the_explanation_and_writes_both_pictures(
    tiny_model, tiny_processor, image, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(explain, "load", lambda _: (tiny_model, tiny_processor))
    image.save(tmp_path / "picture.png")
    command = [str(tmp_path / "picture.png"), "--labels", "cat|dog, grass", "--point", "12", "40"]
    command += ["--output", str(tmp_path / "routes.png"), "--cross_attention", str(tmp_path / "classes.png")]
    assert commands.explain(command) == 0
    expected = explain_pixel(tiny_model, tiny_processor, image, {"cat": ["cat", "dog"], "grass": ["grass"]}, (12, 40))
    assert capsys.readouterr().out == describe(expected) + "\n"
    with Image.open(tmp_path / "routes.png") as routes, Image.open(tmp_path / "classes.png") as classes:
        assert routes.convert("RGB") == draw_routing(image, expected)
        assert classes.width == 635


def test_the_command_tells_a_mistake_in_one_line(tmp_path, capsys):
    assert commands.explain([str(tmp_path / "none.png"), "--model", str(tmp_path), "--point", "0", "0"]) == 2
    assert capsys.readouterr().err.startswith("ldvc explain: ")
