"""Pictures: colours, sizes, legends, files."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldvc.masks import drawing
from ldvc.masks.drawing import class_colors, draw_comparison, draw_overlay, draw_sheet, save_curves, save_label_map


NAMES = ["cat", "sofa", "grass", "sky"]


@pytest.fixture
def label_map():
    """Return a (48, 64) map: cat left, sky right, two unlabelled rows."""
    ids = np.where(np.arange(64) < 32, 0, 3) * np.ones((48, 1), dtype=int)
    ids[:2] = 255
    return ids


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.fixture
def drawn_texts(monkeypatch):
    """Collect every text that is drawn."""
    texts, draw_text = [], ImageDraw.ImageDraw.text

    def collect(self, position, text, **kwargs):
        texts.append(text)
        draw_text(self, position, text, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", collect)
    return texts


def test_colours_do_not_depend_on_the_order_of_the_names():
    colors = dict(zip(NAMES, class_colors(NAMES).tolist(), strict=True))
    assert class_colors(NAMES[::-1]).tolist() == [colors[name] for name in NAMES[::-1]]


def test_the_colour_of_a_name_is_the_same_in_every_process():
    assert class_colors(["cat"]).tolist() == [[159, 114, 229]]  # a change recolours every published picture


@pytest.mark.slow
def test_other_is_grey_and_changes_the_colour_of_no_class():
    names = [f"class {index}" for index in range(40)]
    colors = class_colors([*names, "other"])
    assert colors[-1].tolist() == [150, 150, 150]
    np.testing.assert_array_equal(colors[:-1], class_colors(names))
    assert np.ptp(colors[:-1].astype(int), axis=1).min() > 30


@pytest.mark.parametrize("num_classes", [1, 21, pytest.param(171, marks=pytest.mark.slow)])
def test_colours_within_a_list_are_distinct_and_of_middle_lightness(num_classes):
    colors = class_colors([f"class {index}" for index in range(num_classes)])
    assert (colors.shape, colors.dtype) == ((num_classes, 3), np.uint8)
    lab = np.array([drawing._rgb_to_oklab(color) for color in colors])
    assert 0.5 < lab[:, 0].min() <= lab[:, 0].max() < 0.84
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + np.eye(num_classes)
    assert distances.min() > 0.02  # about the smallest difference that is seen at a glance


def test_an_empty_list_has_no_colours():
    assert class_colors([]).shape == (0, 3)


def test_an_overlay_without_legend_has_the_size_of_the_image(image, label_map):
    assert draw_overlay(image, label_map, NAMES, legend=False).size == image.size


def test_an_overlay_with_legend_is_enlarged_by_a_whole_factor_and_grows_below(image, label_map):
    picture = draw_overlay(image, label_map, NAMES)
    assert picture.width == 8 * image.width  # the first multiple of 64 that reaches 480
    assert picture.height > 8 * image.height


def test_an_overlay_blends_the_class_colour_and_leaves_unlabelled_pixels_alone(image, label_map):
    pixels = np.asarray(image).astype(float)
    picture = np.asarray(draw_overlay(image, label_map, NAMES, alpha=0.5, legend=False)).astype(float)
    expected = (pixels[30, 10] + class_colors(NAMES)[0]) / 2
    np.testing.assert_allclose(picture[30, 10], expected, atol=0.5)  # rounding to whole levels
    np.testing.assert_array_equal(picture[0], pixels[0])


def test_borders_between_regions_have_the_full_class_colour(image, label_map):
    picture = np.asarray(draw_overlay(image, label_map, NAMES, legend=False))
    np.testing.assert_array_equal(picture[30, 31:33], class_colors(NAMES)[[0, 3]])


def test_the_legend_names_only_classes_that_are_present_and_marks_the_unseen(image, label_map, drawn_texts):
    draw_overlay(image, label_map, NAMES, unseen_names=["grass", "sky"])
    assert drawn_texts == ["cat", "sky (unseen)"]


@pytest.mark.parametrize("unseen_names", [[], ["cat", "sky"]])
def test_the_text_of_the_legend_has_the_contrast_that_accessible_text_needs(image, label_map, unseen_names):
    height = draw_overlay(image, label_map, NAMES, legend=False).height * 8
    legend = np.asarray(draw_overlay(image, label_map, NAMES, unseen_names=unseen_names))[height:]
    fractions = legend.reshape(-1, 3) / 255
    linear = np.where(fractions <= 0.04045, fractions / 12.92, ((fractions + 0.055) / 1.055) ** 2.4)
    luminances = linear @ (0.2126, 0.7152, 0.0722)
    swatches = [tuple(color) for color in class_colors(["cat", "sky"]).tolist()]
    is_text = np.array([tuple(color) not in swatches for color in legend.reshape(-1, 3).tolist()])
    contrast = 1.05 / (luminances[is_text].min() + 0.05)  # WCAG 2.2, against white
    assert contrast >= 4.5


def test_unseen_regions_carry_a_white_star(image, label_map):
    plain = np.asarray(draw_overlay(image, label_map, NAMES, alpha=1.0, legend=False))
    starred = np.asarray(draw_overlay(image, label_map, NAMES, alpha=1.0, unseen_names=["sky"], legend=False))
    changed = np.argwhere((plain != starred).any(axis=-1))
    assert len(changed) > 50
    assert (label_map[tuple(changed.T)] == 3).all()


def test_tensors_and_arrays_draw_as_images_do(image, label_map):
    expected = draw_overlay(image, label_map, NAMES)
    assert draw_overlay(np.asarray(image), torch.tensor(label_map), NAMES) == expected


@pytest.mark.slow
def test_a_long_name_is_cut_to_the_width(image, drawn_texts):
    draw_overlay(image, np.zeros((48, 64), int), ["a" * 500])
    assert drawn_texts[0].endswith("...")


def test_a_comparison_sheet_has_a_row_per_scene_a_title_per_column_and_one_legend(image, label_map, drawn_texts):
    row = (image, label_map, np.where(label_map == 3, 2, label_map))
    one, two = draw_comparison([row], NAMES, ["sky"]), draw_comparison([row, row], NAMES, ["sky"])
    assert one.width == two.width > 3 * 300
    assert two.height - one.height == round(300 * 48 / 64) + 7
    assert drawn_texts[:6] == ["image", "ground truth", "prediction", "cat", "grass", "sky (unseen)"]


def test_a_comparison_sheet_takes_scenes_of_different_sizes(image, label_map):
    tall = (image.rotate(90, expand=True), label_map.T, label_map.T)
    assert draw_comparison([(image, label_map, label_map), tall], NAMES).height > 300 + 225


def test_a_sheet_has_titles_above_its_panels_and_captions_below(drawn_texts):
    panel = Image.new("RGB", (300, 200), (10, 20, 30))
    sheet = draw_sheet([panel] * 3, ["one", "two", "three"], num_columns=2, captions=["what is shown"])
    assert drawn_texts == ["one", "two", "three", "what is shown"]
    pixels = np.asarray(sheet)
    is_panel = (pixels == (10, 20, 30)).all(axis=-1)
    assert is_panel.sum() == 3 * 300 * 200
    assert sheet.width == 2 * 14 + 2 * 300 + 7


@pytest.mark.parametrize("rows", [[], [("image", "ground truth")]])
def test_a_comparison_sheet_asks_for_one_item_per_column(rows):
    with pytest.raises(ValueError, match="one item per column"):
        draw_comparison(rows, NAMES)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((64, 48), int), r"label map of size \(64, 48\) for an image of size \(48, 64\)"),
        (np.full((48, 64), 4), "holds id 4, which is neither one of 4 classes nor ignore_index 255"),
        (np.full((48, 64), -2), "holds id -2"),
        (np.zeros((1, 48, 64), int), r"label map of shape \(1, 48, 64\)"),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused_with_the_remedy(image, ids, message):
    with pytest.raises(ValueError, match=message):
        draw_overlay(image, ids, NAMES)


def test_a_saved_label_map_keeps_its_ids_and_shows_the_class_colours(label_map, tmp_path):
    save_label_map(label_map, tmp_path / "map.png", NAMES)
    with Image.open(tmp_path / "map.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), label_map)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[10, 10], class_colors(NAMES)[0])


def test_a_label_map_that_needs_more_than_eight_bits_is_refused(tmp_path):
    names = [f"class {index}" for index in range(300)]
    with pytest.raises(ValueError, match="ids 299 to 299"):
        save_label_map(np.full((2, 2), 299), tmp_path / "map.png", names)


@pytest.mark.slow
def test_curves_are_drawn_from_training_and_evaluation_records(tmp_path):
    records = [{"step": step, "loss": 1 / step, "focal": 0.5, "lr": 1e-3, "note": "text"} for step in range(1, 101)]
    scores = [{"step": step, "hiou": 0.3, "miou_seen": 0.4, "miou_unseen": math.nan} for step in (50, 100)]
    records += [*scores, {"event": "end"}]
    widths = []
    for name, shown in (("all", records), ("scores", records[100:]), ("one score", [*records[:100], scores[0]])):
        save_curves(shown, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            widths.append(picture.width)
    assert widths[0] == 3 * widths[1]  # a panel only for what was logged
    assert widths[2] == 2 * widths[1]  # and one point is no curve


@pytest.mark.slow
def test_a_log_with_nothing_to_plot_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of the 1 log records"):
        save_curves([{"step": 1, "note": "text"}], tmp_path / "curves.png")
