"""One picture through the model: windows, thresholds, best classes per pixel, and memory that the window bounds."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from ldvc.model.image_processing_ldvc import PixelClasses
from ldvc.model.inference_ldvc import (
    InferenceSettings,
    WindowScores,
    class_scores,
    encode_classes,
    image_blocks,
    normalise,
    prepare_image,
    resized_blocks,
    segment,
    segment_image,
    window_starts,
)


NAMES = ["cat", "sofa", "grass"]
WINDOWS = InferenceSettings(short_side=0, window=32, stride=24)


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def statistics(processor):
    return processor.image_processor.image_mean, processor.image_processor.image_std


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


# ---- one picture, one call


def test_without_settings_a_picture_is_segmented_as_by_processor_and_model(model, tiny_processor):
    image = picture(75, 50)
    found = segment(model, tiny_processor, image, NAMES, return_scores=True)
    inputs = tiny_processor(images=image, class_names=NAMES, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (expected,) = tiny_processor.post_process_semantic_segmentation(
        outputs, target_sizes=[(50, 75)], return_segmentation_scores=True
    )
    assert found.class_names == NAMES
    torch.testing.assert_close(found.scores, expected.segmentation_scores, atol=1e-5, rtol=0)
    assert torch.equal(found.label_map, expected.segmentation)


@pytest.mark.parametrize("short_side", [0, 40])
def test_with_settings_a_picture_is_segmented_as_evaluation_does(model, tiny_processor, short_side):
    image, choice = picture(75, 50), InferenceSettings(short_side, window=32, stride=24)
    _, embeds = encode_classes(model, tiny_processor, NAMES)
    expected = segment_image(model, image, embeds, choice, *statistics(tiny_processor))
    found = segment(model, tiny_processor, image, NAMES, settings=choice)
    assert (found.label_map.numpy() == expected).mean() > 0.999  # rounding may decide a tie


def test_scores_of_windows_equal_class_scores(model, tiny_processor):
    image = picture(75, 50)
    _, embeds = encode_classes(model, tiny_processor, NAMES)
    pixels = prepare_image(image, WINDOWS, *statistics(tiny_processor))
    expected = class_scores(model, pixels, embeds, WINDOWS)
    found = segment(model, tiny_processor, image, NAMES, settings=WINDOWS, return_scores=True)
    torch.testing.assert_close(found.scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("short_side", [0, 40])
def test_one_window_that_covers_the_picture_equals_the_whole_picture(model, tiny_processor, short_side):
    image = picture(56, 40)
    whole, window = InferenceSettings(short_side, window=0), InferenceSettings(short_side, window=64, stride=64)
    first, second = (
        segment(model, tiny_processor, image, NAMES, settings=choice, return_scores=True) for choice in (whole, window)
    )
    assert torch.equal(first.scores, second.scores)


def test_overlapping_windows_are_averaged_pixel_by_pixel(model, tiny_processor):
    image = picture(50, 44)
    _, embeds = encode_classes(model, tiny_processor, NAMES)
    totals, counts = torch.zeros(3, 44, 50), torch.zeros(44, 50)
    pixels = normalise(image, *statistics(tiny_processor))
    for top in window_starts(44, 32, 24):
        for left in window_starts(50, 32, 24):
            with torch.no_grad():
                logits = model(pixels[None, :, top : top + 32, left : left + 32], class_embeds=embeds).logits
            scores = torch.nn.functional.interpolate(logits, size=(32, 32), mode="bilinear")[0].sigmoid()
            totals[:, top : top + 32, left : left + 32] += scores
            counts[top : top + 32, left : left + 32] += 1
    found = segment(model, tiny_processor, image, NAMES, settings=WINDOWS, return_scores=True)
    torch.testing.assert_close(found.scores, totals / counts, atol=1e-5, rtol=0)


@pytest.mark.parametrize("choice", [None, WINDOWS], ids=["whole", "windows"])
def test_classes_that_trained_with_masks_lose_the_offset_named_or_by_default(make_model, tiny_processor, choice):
    model, image = make_model(seen_classes=["sofa"]), picture(40, 40)
    model.set_vocabulary(NAMES, tiny_processor, other_label="nothing")
    _, embeds = encode_classes(model, tiny_processor, NAMES)
    options = {"settings": choice, "return_scores": True}
    plain = segment(model, tiny_processor, image, NAMES, **options)
    model.config.seen_score_offset = 0.2
    expected = plain.scores - torch.tensor([0, 0.2, 0])[:, None, None]
    default = segment(model, tiny_processor, image, threshold=0.5, **options)
    assert default.class_names == [*NAMES, "nothing"]
    named = segment(model, tiny_processor, image, NAMES, **options)
    encoded = segment(model, tiny_processor, image, NAMES, class_embeds=embeds, **options)
    for found in (default, named, encoded):
        torch.testing.assert_close(found.scores, expected, atol=1e-5, rtol=0)


def test_ids_follow_the_order_of_the_names(model, tiny_processor):
    image = picture(40, 40)
    forwards = segment(model, tiny_processor, image, NAMES)
    backwards = segment(model, tiny_processor, image, NAMES[::-1])
    assert (forwards.label_map == 2 - backwards.label_map).float().mean() > 0.99  # rounding may decide a tie


def test_synonyms_are_one_class(model, tiny_processor):
    names = {"sofa": ["sofa", "dog"], "cat": ["cat"]}
    names_only, embeds = encode_classes(model, tiny_processor, names)
    assert names_only == ["sofa", "cat"]
    _, words = encode_classes(model, tiny_processor, ["sofa", "dog", "cat"])
    expected = torch.nn.functional.normalize(words[0] + words[1], dim=-1)
    torch.testing.assert_close(embeds, torch.stack([expected, words[2]]), atol=1e-5, rtol=0)


def test_names_are_encoded_in_parts(model, tiny_processor, monkeypatch):
    names = ["cat", "sofa", "grass", "dog", "sky"]
    _, together = encode_classes(model, tiny_processor, names)
    monkeypatch.setattr("ldvc.model.inference_ldvc.NAMES_PER_CALL", 2)
    longest, encode = [], model.get_class_embeds
    monkeypatch.setattr(
        model, "get_class_embeds", lambda **call: longest.append(len(call["input_ids"])) or encode(**call)
    )
    _, apart = encode_classes(model, tiny_processor, names)
    assert longest == [2, 2, 1]
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)


def test_a_picture_comes_as_file_or_array_and_lies_upright(model, tiny_processor, tmp_path):
    image = picture(48, 32)
    image.save(tmp_path / "flat.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees, back to where it was
    turned.save(tmp_path / "turned.png", exif=exif)
    expected = segment(model, tiny_processor, image, NAMES, settings=WINDOWS).label_map
    array = np.asarray(image)
    for source in (
        tmp_path / "flat.png",
        str(tmp_path / "flat.png"),
        tmp_path / "turned.png",
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        array.astype(np.float32),
    ):
        assert torch.equal(segment(model, tiny_processor, source, NAMES, settings=WINDOWS).label_map, expected)
    assert expected.shape == (32, 48)


# ---- thresholds and best classes


def fill(block, **options):
    pixels = PixelClasses(len(block), tuple(block.shape[1:]), **options)
    pixels.add(slice(None), slice(None), block)
    return pixels


PROBABILITIES = torch.tensor([[0.9, 0.6, 0.2], [0.5, 0.7, 0.1]])[:, None]  # (2 classes, 1 row, 3 columns)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (None, [0, 1, 0]),
        (0.65, [0, 1, 2]),
        (0.8, [0, 2, 2]),
        ([0.95, 0.0], [2, 1, 2]),
        ((0.0, 0.75), [0, 2, 0]),
        (torch.tensor([0.0, 0.7]), [0, 1, 0]),
        (np.array([1.0, 1.0]), [2, 2, 2]),
    ],
)
def test_a_pixel_below_the_threshold_of_its_best_class_is_other(threshold, expected):
    assert fill(PROBABILITIES, threshold=threshold).label_map.tolist() == [expected]


def test_a_threshold_never_turns_one_class_into_another():
    scores = torch.rand(5, 9, 9)
    plain, strict = fill(scores), fill(scores, threshold=torch.rand(5))
    is_other = strict.label_map == 5
    assert is_other.any()
    assert torch.equal(strict.label_map[~is_other], plain.label_map[~is_other])


@pytest.mark.parametrize("top_k", [1, 2, 4, 9])
def test_best_classes_of_a_pixel_come_best_first_whatever_the_threshold(top_k):
    scores = torch.rand(4, 6, 7)
    pixels = fill(scores, threshold=0.9, top_k=top_k)
    expected = scores.sort(dim=0, descending=True)
    assert torch.equal(pixels.top_scores, expected.values[:top_k])
    assert torch.equal(pixels.top_ids, expected.indices[:top_k])
    assert (pixels.label_map == 4).any()


@given(
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, -3.0]), min_size=12 * 6, max_size=12 * 6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_label_map_is_the_same_whatever_else_is_asked_and_of_equals_the_first_class(scores, dtype):
    block = torch.tensor(scores, dtype=dtype).view(12, 2, 3).float()
    expected = torch.from_numpy(block.numpy().argmax(0))  # numpy takes the first of equals
    order = np.argsort(-block.numpy(), axis=0, kind="stable")
    for top_k in (None, 1, 2, 7, 8, 9, 12, 99):
        pixels = fill(block, top_k=top_k, keep_scores=top_k == 2)
        assert torch.equal(pixels.label_map, expected), top_k
        if top_k is not None:
            assert pixels.top_ids.tolist() == order[:top_k].tolist()
            assert torch.equal(pixels.top_scores, block.gather(0, pixels.top_ids))


def test_equal_logits_are_the_first_class_in_every_answer(model, tiny_processor):
    outputs = {"logits": torch.zeros(1, 5, 2, 2)}
    post_process = tiny_processor.post_process_semantic_segmentation
    assert post_process(outputs)[0].tolist() == [[0, 0], [0, 0]]
    for options in ({"top_k": 2}, {"top_k": 1}, {"return_segmentation_scores": True}, {"top_k": 2, "threshold": 0.5}):
        assert post_process(outputs, **options)[0].segmentation.tolist() == [[0, 0], [0, 0]]
    equal = torch.nn.functional.normalize(torch.ones(6, 32), dim=-1)  # six names with one embedding
    names = [f"name {index}" for index in range(6)]
    for choice in (None, WINDOWS):
        for options in ({}, {"top_k": 3}, {"return_scores": True}):
            found = segment(
                model, tiny_processor, picture(40, 40), names, class_embeds=equal, settings=choice, **options
            )
            assert not found.label_map.any()


def test_scores_of_minus_infinity_name_each_class_once():
    block = torch.full((4, 1, 1), -torch.inf)
    assert fill(block, top_k=3).top_ids.flatten().tolist() == [0, 1, 2]


def test_post_processing_gives_best_classes_and_thresholds_per_class(tiny_processor):
    outputs = {"logits": torch.randn(1, 3, 4, 5), "class_score_offsets": torch.tensor([[0.0, 0.2, 0.1]])}
    options = {"target_sizes": [(12, 15)], "return_segmentation_scores": True}
    (all_scores,) = tiny_processor.post_process_semantic_segmentation(outputs, **options)
    limits = [0.6, 0.3, 0.45]
    (found,) = tiny_processor.post_process_semantic_segmentation(
        outputs, target_sizes=[(12, 15)], threshold=limits, top_k=2
    )
    expected = all_scores.segmentation_scores.sort(dim=0, descending=True)
    torch.testing.assert_close(found.top_scores, expected.values[:2])
    assert torch.equal(found.top_ids, expected.indices[:2])
    is_other = expected.values[0] < torch.tensor(limits)[expected.indices[0]]
    assert torch.equal(found.segmentation, expected.indices[0].masked_fill(is_other, 3))
    assert "segmentation_scores" not in found


def test_saturated_logits_are_told_apart_with_thresholds_and_best_classes_too(tiny_processor):
    outputs = {"logits": torch.tensor([40.0, 41.0, 0.0]).view(1, 3, 1, 1)}  # two have probability 1 in float32
    (found,) = tiny_processor.post_process_semantic_segmentation(outputs, threshold=0.5, top_k=2)
    assert found.segmentation.item() == 1
    assert found.top_ids.flatten().tolist() == [1, 0]
    assert found.top_scores.flatten().tolist() == [1, 1]


def test_thresholds_by_name_leave_other_names_alone(model, tiny_processor):
    image = picture(40, 40)
    plain = segment(model, tiny_processor, image, NAMES, top_k=3)
    found = segment(model, tiny_processor, image, NAMES, threshold={"sofa": 1.0}, other_label="rest")
    assert found.class_names == [*NAMES, "rest"]
    assert plain.class_names == NAMES
    expected = plain.label_map.masked_fill(plain.label_map == 1, 3)
    assert torch.equal(found.label_map, expected)
    assert torch.equal(plain.top_ids[0], plain.label_map)


# ---- blocks and memory


@pytest.mark.slow
@settings(max_examples=40)
@given(
    source=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    target=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    window=st.integers(2, 12),
    stride=st.integers(2, 12),
    pixels_per_block=st.integers(1, 300),
)
def test_reading_blocks_at_any_size_equals_all_windows_at_once(source, target, window, stride, pixels_per_block):
    choice = InferenceSettings(0, window, min(stride, window), window_batch_size=3)
    pixels = torch.randn(3, *source)

    def model(pixel_values, class_embeds):  # two classes on a grid of two pixels per token
        grid = [-(-side // 2) for side in pixel_values.shape[-2:]]
        return SimpleNamespace(logits=torch.nn.functional.interpolate(pixel_values[:, :2], size=grid, mode="nearest"))

    def read_window(top, left):
        return pixels[:, top : top + choice.window, left : left + choice.window]

    expected = class_scores(model, pixels, torch.zeros(2, 1), choice)
    expected = torch.nn.functional.interpolate(expected[None], size=target, mode="bilinear")[0]
    found = torch.full((2, *target), float("nan"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldvc.model.inference_ldvc.SCORES_PER_BLOCK", 2 * pixels_per_block)
        for rows, columns, block in resized_blocks(WindowScores(model, read_window, source, None, choice), target, 2):
            assert found[:, rows, columns].isnan().all(), "each pixel once"
            found[:, rows, columns] = block
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@given(size=st.tuples(st.integers(1, 50), st.integers(1, 50)), pixels=st.integers(0, 400))
def test_blocks_cover_a_picture_once_and_hold_no_more_than_asked(size, pixels):
    seen = np.zeros(size, dtype=int)
    for rows, columns in image_blocks(size, pixels):
        seen[rows, columns] += 1
        assert (rows.stop - rows.start) * (columns.stop - columns.start) <= max(1, pixels)
    assert (seen == 1).all()


class LargestStorage(TorchDispatchMode):
    """Remembers how many bytes the largest tensor has that any operation makes; views count as what they view."""

    def __init__(self, size_of_result):
        super().__init__()
        self.size_of_result, self.num_bytes = size_of_result, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            size = tensor.untyped_storage().nbytes() if isinstance(tensor, torch.Tensor) else 0
            if size != self.size_of_result:
                self.num_bytes = max(self.num_bytes, size)
        return result


def largest_storage(model, processor, image, **options):
    """Bytes of the largest tensor made on the way to a label map, which has 8 per pixel and does not count."""
    with LargestStorage(8 * image.width * image.height) as largest:
        segment(model, processor, image, NAMES, **options)
    return largest.num_bytes


LARGE = InferenceSettings(short_side=0, window=64, stride=52)


@pytest.mark.slow
def test_memory_is_bounded_by_the_window_not_by_the_picture(model, tiny_processor, monkeypatch):
    monkeypatch.setattr("ldvc.model.inference_ldvc.SCORES_PER_BLOCK", 2**14)
    narrow, wide = (
        largest_storage(model, tiny_processor, picture(width, 80), settings=LARGE, threshold=0.4)
        for width in (2000, 6000)
    )
    assert wide == narrow
    assert wide < 80 * 6000, "less than a byte per pixel of the wide one"


def test_the_measure_of_memory_sees_scores_of_the_whole_picture(model, tiny_processor):
    image = picture(600, 80)
    assert largest_storage(model, tiny_processor, image, settings=LARGE, return_scores=True) == 4 * 3 * 600 * 80


def test_windows_that_were_passed_are_forgotten(model, tiny_processor):
    image = picture(40, 600)
    _, embeds = encode_classes(model, tiny_processor, NAMES)
    pixels = normalise(image, *statistics(tiny_processor))
    kept = []
    with torch.no_grad():
        scores = WindowScores(
            model, lambda top, left: pixels[:, top : top + 32, left : left + 32], (600, 40), embeds, WINDOWS
        )
        for row in range(0, 600, 10):
            scores.read(slice(row, row + 10), slice(0, 40))
            kept.append(len(scores._scored))
    assert max(kept) <= 2 * 2 + WINDOWS.window_batch_size  # of 50: two rows of two, and one batch ahead


def test_a_picture_thirty_thousand_pixels_wide_is_segmented(model, tiny_processor):
    found = segment(model, tiny_processor, picture(30_000, 16), NAMES, settings=InferenceSettings(short_side=0))
    assert found.label_map.shape == (16, 30_000)


@pytest.mark.slow
def test_ten_thousand_labels_are_segmented(model, tiny_processor):
    embeds = torch.nn.functional.normalize(torch.randn(10_000, 32), dim=-1)
    names = [f"label {index}" for index in range(10_000)]
    found = segment(model, tiny_processor, picture(40, 40), names, class_embeds=embeds, top_k=3)
    assert found.top_ids.shape == (3, 40, 40)
    assert torch.equal(found.label_map, found.top_ids[0])


def test_progress_is_shown_when_asked_for(model, tiny_processor, capsys):
    segment(model, tiny_processor, picture(80, 40), NAMES, settings=WINDOWS)
    assert capsys.readouterr().err == ""
    segment(model, tiny_processor, picture(80, 40), NAMES, settings=WINDOWS, show_progress=True)
    assert "windows: 100%" in capsys.readouterr().err


def test_the_stride_follows_the_window_where_none_is_given():
    assert [InferenceSettings(window=window).stride for window in (512, 30, 1)] == [426, 25, 1]


# ---- bad input


@pytest.mark.parametrize("field", ["short_side", "window", "stride", "window_batch_size"])
def test_settings_are_whole_numbers(field):
    with pytest.raises(ValueError, match=f"{field} is '64'; use a whole number"):
        InferenceSettings(**{field: "64"})


BAD = {
    "no names": ({"class_names": None}, "no default vocabulary; pass `class_names`"),
    "empty list": ({"class_names": []}, "`class_names` is empty"),
    "names twice": ({"class_names": ["cat", "Cat"]}, "'Cat' is given twice"),
    "long name": ({"class_names": ["sofa " * 300]}, "the text tower reads 77; shorten it"),
    "embeddings alone": ({"class_names": None, "class_embeds": torch.ones(3, 32)}, "`class_embeds` came without"),
    "too few embeddings": ({"class_embeds": torch.ones(2, 32)}, "3 class names for 2 class embeddings"),
    "threshold": ({"threshold": 1.5}, "`threshold` is 1.5; it is a probability"),
    "threshold of a class": ({"threshold": [0.5, -1.0, 0.5]}, "`threshold` is -1.0; it is a probability"),
    "thresholds": ({"threshold": [0.5, 0.5]}, r"shape \(2,\) for 3 classes"),
    "threshold in words": ({"threshold": "high"}, "'high'; it is a probability, 0 to 1, or a list"),
    "stranger": ({"threshold": {"dog": 0.5}}, "names 'dog', which is no class .*'cat', 'sofa', 'grass'"),
    "other": ({"threshold": 0.5, "other_label": "cat"}, "'cat' is a class of this call; pass another `other_label`"),
    "best classes": ({"top_k": 0}, "`top_k` is 0; .* 1 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_refused_with_value_and_remedy(model, tiny_processor, case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        segment(model, tiny_processor, picture(40, 40), **{"class_names": NAMES, **options})


def test_a_model_in_training_mode_is_refused(make_model, tiny_processor):
    with pytest.raises(
        ValueError, match=re.escape("training mode, in which dropout changes its answers; call model.eval()")
    ):
        segment(make_model().train(), tiny_processor, picture(40, 40), NAMES)


def test_a_baked_vocabulary_is_used_and_other_names_are_refused(make_model, tiny_processor):
    model = make_model()
    model.set_vocabulary(NAMES, tiny_processor)
    expected = segment(model, tiny_processor, picture(40, 40), settings=WINDOWS)
    model.set_vocabulary(NAMES, tiny_processor, bake=True)
    found = segment(model, tiny_processor, picture(40, 40), settings=WINDOWS)
    assert torch.equal(found.label_map, expected.label_map)
    assert found.class_names == NAMES
    with pytest.raises(ValueError, match=r"baked vocabulary and no text tower .* or load the checkpoint it was baked"):
        segment(model, tiny_processor, picture(40, 40), ["dog"])


def test_unreadable_pictures_are_named(model, tiny_processor, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    picture(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:90])
    for name, message in (
        ("text.png", "text.png' cannot be read as an image: cannot identify"),
        ("half.png", "half.png cannot be decoded .* truncated or damaged"),
        ("none.png", "none.png' cannot be read as an image: no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            segment(model, tiny_processor, tmp_path / name, NAMES)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"decompression bomb.* Resize it, or raise PIL\.Image\.MAX") as raised:
        segment(model, tiny_processor, tmp_path / "whole.png", NAMES)
    assert "\n" not in str(raised.value)


def test_what_is_no_picture_is_refused(model, tiny_processor):
    with pytest.raises(ValueError, match="a int is no image"):
        segment(model, tiny_processor, 5, NAMES)
    with pytest.raises(ValueError, match="2 pictures where one is expected"):
        segment(model, tiny_processor, np.zeros((2, 3, 40, 40), dtype=np.uint8), NAMES)
    with pytest.raises(ValueError, match=r"floats from 0 to 0\.5"):
        segment(model, tiny_processor, np.full((40, 40, 3), 0.5) * np.eye(40)[..., None], NAMES)
    with pytest.raises(ValueError, match="less than one patch"):
        segment(model, tiny_processor, picture(40, 4), NAMES, settings=WINDOWS)
