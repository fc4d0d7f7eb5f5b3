"""One rule for every way in: what a picture's numbers mean is known, or the caller says it, or it is refused."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from ldvc.app.session import read_picture
from ldvc.masks.files import open_picture
from ldvc.model.image_processing_ldvc import LDVCImageProcessor, to_rgb
from ldvc.model.inference_ldvc import InferenceSettings, segment
from ldvc.model.pipeline_ldvc import TASK
from ldvc.model.pixels_ldvc import array_to_rgb, channels_last


NAMES = ["cat", "sofa", "grass"]
BYTES = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
BYTES[0, 0], BYTES[0, 1] = 0, 255
FRACTIONS = BYTES.astype(np.float32) / 255


def one_above(values):
    values = values.copy()
    values[0, 0] = 1.02
    return values


# Arrays of the picture `BYTES` whose range nothing says, and the range that makes them that picture.
UNKNOWN = {
    "fractions": (FRACTIONS, (0, 1)),
    "fractions of 64 bits": (FRACTIONS.astype(np.float64), (0, 1)),
    "halves": (FRACTIONS.astype(np.float16), (0, 1)),
    "fractions, one above": (one_above(FRACTIONS), (0, 1)),
    "fractions around zero": (FRACTIONS * 2 - 1, (-1, 1)),
    "a float picture that was resized": (FRACTIONS * 254.9, (0, 254.9)),
    "int16 to 10,000": ((FRACTIONS * 10_000).round().astype(np.int16), (0, 10_000)),
    "uint16 to 10,000": ((FRACTIONS * 10_000).round().astype(np.uint16), (0, 10_000)),
    "uint16 of 12 bits": (BYTES.astype(np.uint16) * 16, (0, 4080)),
    "uint16 of 8 bits": (BYTES.astype(np.uint16), (0, 255)),
    "int32 to 65,535": (BYTES.astype(np.int32) * 257, (0, 65_535)),
    "floats to 10,000": (FRACTIONS * 10_000, (0, 10_000)),
    "whole floats to 10,000": ((FRACTIONS * 10_000).round(), (0, 10_000)),
    "int8": ((BYTES.astype(np.int16) - 128).astype(np.int8), (-128, 127)),
}
KNOWN = {
    "uint8": BYTES,
    "whole floats": BYTES.astype(np.float32),
    "int64": BYTES.astype(np.int64),
    "16 bits": BYTES.astype(np.uint16) * 257,
}


@pytest.fixture
def pipe(make_model, tiny_processor):
    return pipeline(TASK, model=make_model(), processor=tiny_processor, device="cpu")


@pytest.fixture
def ways_in(pipe, tiny_processor):
    """Everything that takes an array: what it gives for one, as something that can be compared."""
    model = pipe.model

    def by_segment(array, **options):
        return segment(model, tiny_processor, array, NAMES, **options).label_map

    return {
        "processor": lambda array, **options: (
            tiny_processor(images=array, return_tensors="pt", **options).pixel_values
        ),
        "segment": by_segment,
        "windows": lambda array, **options: by_segment(array, settings=InferenceSettings(0, 32), **options),
        "pipeline": lambda array, **options: torch.from_numpy(
            np.stack([part["mask"] for part in pipe(array, candidate_labels=NAMES, **options)])
        ),
        "pipeline by windows": lambda array, **options: torch.from_numpy(
            np.stack([part["mask"] for part in pipe(array, candidate_labels=NAMES, window=32, **options)])
        ),
    }


WAYS = ["processor", "segment", "windows", "pipeline", "pipeline by windows"]


@pytest.mark.parametrize(
    ("case", "way"),
    [*((case, way) for case in UNKNOWN for way in WAYS[:2]), *(("int16 to 10,000", way) for way in WAYS[2:])],
)
def test_an_array_of_unknown_range_is_refused_and_right_once_its_range_is_said(ways_in, case, way):
    array, value_range = UNKNOWN[case]
    low, high = array.min(), array.max()
    message = f"holds .* from {low:.5g} to {high:.5g}, and nothing says which values are black and white; say it with "
    for image in (array, torch.from_numpy(array)):
        with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*") + "value_range=") as raised:
            ways_in[way](image)
        assert "\n" not in str(raised.value)
    expected = BYTES
    if case == "fractions, one above":
        expected = BYTES.copy()
        expected[0, 0] = 255  # cut off, as was asked for
    assert torch.equal(ways_in[way](array, value_range=value_range), ways_in[way](expected))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", KNOWN)
def test_an_array_of_known_range_is_read_alike_by_every_way_in(ways_in, case, way):
    for image in (KNOWN[case], torch.from_numpy(KNOWN[case])):
        assert torch.equal(ways_in[way](image), ways_in[way](Image.fromarray(BYTES)))


def test_tensors_in_bfloat16_that_need_gradients_are_read(ways_in):
    image = torch.from_numpy(BYTES).bfloat16().requires_grad_()
    assert torch.equal(ways_in["processor"](image), ways_in["processor"](BYTES))


@pytest.mark.parametrize("way", WAYS)
def test_truth_values_are_black_and_white(ways_in, way):
    mask = BYTES[..., 0] > 128
    assert torch.equal(ways_in[way](mask), ways_in[way](mask.astype(np.uint8) * 255))
    assert torch.equal(ways_in[way](mask), ways_in[way](Image.fromarray(mask)))


def test_normalised_tensors_are_refused_with_the_two_options_that_take_them(ways_in, tiny_processor):
    statistics = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = ((torch.from_numpy(FRACTIONS) - statistics[0]) / statistics[1]).permute(2, 0, 1)
    with pytest.raises(ValueError, match="normalised values with do_rescale=False, do_normalize=False"):
        ways_in["processor"](image)
    options = {"do_rescale": False, "do_normalize": False, "do_resize": False}
    assert torch.equal(ways_in["processor"](image, **options)[0], image)


def test_whole_numbers_of_0_and_1_may_be_either_and_are_refused(ways_in):
    mask = (BYTES[..., 0] > 128).astype(np.int64)
    with pytest.raises(ValueError, match="holds int64 numbers from 0 to 1, and nothing says"):
        ways_in["segment"](mask)
    assert torch.equal(ways_in["segment"](mask, value_range=(0, 1)), ways_in["segment"](mask.astype(bool)))


def test_black_is_black_in_any_range(ways_in):
    for dtype in (np.uint16, np.int16, np.float32, bool):
        black = np.zeros((40, 56, 3), dtype)
        assert torch.equal(ways_in["segment"](black), ways_in["segment"](np.zeros_like(BYTES)))


def test_without_rescaling_values_are_fractions_or_normalised_already(tiny_processor):
    plain = tiny_processor(images=BYTES, return_tensors="pt").pixel_values
    fractions = tiny_processor(images=FRACTIONS, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(fractions, plain, atol=0.02, rtol=0)  # resizing floats rounds less
    for image in (BYTES, Image.fromarray(BYTES), one_above(FRACTIONS)):
        with pytest.raises(
            ValueError, match=r"image 0 holds values from .* do_rescale=False says that all lie between"
        ):
            tiny_processor(images=image, do_rescale=False, return_tensors="pt")
    with pytest.raises(ValueError, match="both say what values mean; give one of them"):
        tiny_processor(images=BYTES, do_rescale=False, value_range=(0, 255), return_tensors="pt")
    with pytest.raises(ValueError, match="has 4 channels; without `do_rescale`, pass 3 of RGB or 1 of grey"):
        tiny_processor(images=np.ones((9, 9, 4)), do_rescale=False, return_tensors="pt")


def test_images_that_keep_their_channels_follow_the_same_rule(tiny_processor):
    options = {"do_convert_rgb": False, "return_tensors": "pt"}
    plain = tiny_processor(images=BYTES, return_tensors="pt").pixel_values
    for array in (BYTES, BYTES.astype(np.uint16) * 257):
        assert torch.equal(tiny_processor(images=array, **options).pixel_values, plain)
    with pytest.raises(ValueError, match="image 0 holds int16 numbers"):
        tiny_processor(images=UNKNOWN["int16 to 10,000"][0], **options)


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0,), (0, 1, 2), (0, float("nan")), 5, ("a", "b")])
def test_a_range_that_is_none_is_refused(value_range):
    with pytest.raises(ValueError, match=r"`value_range` is .*the values that are black and white, such as"):
        array_to_rgb(BYTES, value_range=value_range)


def test_a_range_may_belong_to_the_processor_and_is_saved_with_it(tmp_path, make_model, clip_folder):
    from ldvc.model.processing_ldvc import LDVCProcessor

    array, value_range = UNKNOWN["int16 to 10,000"]
    processor = LDVCProcessor.from_clip_pretrained(clip_folder, size=32)
    model, plain = make_model(), segment(make_model(), processor, BYTES, NAMES).label_map
    processor.image_processor.value_range = value_range
    processor.save_pretrained(tmp_path)
    loaded = LDVCProcessor.from_pretrained(tmp_path)
    assert list(loaded.image_processor.value_range) == list(value_range)
    assert torch.equal(segment(model, loaded, array, NAMES).label_map, plain)


# ---- files


FILES = {
    "int16": (UNKNOWN["int16 to 10,000"][0][..., 0].astype(np.int32), "0,10000"),
    "16 bits": (UNKNOWN["uint16 to 10,000"][0][..., 0], "0,10000"),
    "12 bits": (UNKNOWN["uint16 of 12 bits"][0][..., 0], "0,4080"),
    "floats": (FRACTIONS[..., 0] * 10_000, "0,10000"),
    "floats, one above": (one_above(FRACTIONS)[..., 0], "0,1"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_unknown_range_are_refused_by_name_and_right_once_their_range_is_said(
    tmp_path, tiny_processor, pipe, case
):
    values, text = FILES[case]
    path = tmp_path / "sensor.tif"
    Image.fromarray(values).save(path)
    value_range = tuple(map(float, text.split(",")))
    message = r"sensor\.tif holds .* and nothing says which values are black and white"
    for read in (
        lambda **options: tiny_processor(images=path, return_tensors="pt", **options),
        lambda **options: segment(pipe.model, tiny_processor, str(path), NAMES, **options),
        lambda **options: pipe(str(path), candidate_labels=NAMES, **options),
    ):
        with pytest.raises(ValueError, match=message):
            read()
        read(value_range=value_range)
    with pytest.raises(ValueError, match=r"^holds .* --value-range"):  # the command names the file itself
        open_picture(path)
    with pytest.raises(ValueError, match=r"the picture holds .* or give 8 bits, 0 to 255"):
        read_picture(path)
    expected = BYTES[..., 0].copy()
    expected[0, 0] = 255 if "above" in case else 0
    assert np.abs(np.asarray(to_rgb(Image.open(path), value_range))[..., 0].astype(int) - expected).max() <= 1


def test_the_command_takes_the_range(ldvc, tmp_path, checkpoint):
    values, text = FILES["12 bits"]
    Image.fromarray(values).save(tmp_path / "sensor.tif")
    Image.fromarray(BYTES[..., 0]).save(tmp_path / "plain.png")
    call = ["segment", "--model", checkpoint, "--format", "png", "--labels", "cat,sofa"]
    result = ldvc(*call, tmp_path / "sensor.tif", "--output", tmp_path / "refused")
    assert result.exit_code == 1
    assert re.search(r"sensor\.tif: holds uint16 numbers from 0 to 4080, .* --value-range", result.output)
    assert ldvc(*call, tmp_path / "sensor.tif", "--output", tmp_path / "a", "--value-range", text).exit_code == 0
    assert ldvc(*call, tmp_path / "plain.png", "--output", tmp_path / "b").exit_code == 0
    said, plain = (Image.open(tmp_path / path) for path in ("a/sensor.png", "b/plain.png"))
    assert np.array_equal(np.asarray(said), np.asarray(plain))
    names = [json.loads((tmp_path / folder / "names.json").read_text()) for folder in "ab"]
    assert names[0]["settings_sha256"] != names[1]["settings_sha256"], "results depend on the range"
    result = ldvc(*call, tmp_path / "plain.png", "--output", tmp_path / "c", "--value-range", "4095")
    assert result.exit_code == 2
    assert "--value-range '4095' is no pair of numbers" in result.output


def test_pictures_of_8_bits_are_stretched_when_their_range_is_said():
    image = Image.fromarray(np.full((4, 4, 3), 60, np.uint8))
    assert np.asarray(to_rgb(image, (20, 100))).tolist() == np.full((4, 4, 3), 128).tolist()
    assert np.asarray(to_rgb(image, (0, 255))).tolist() == np.asarray(image).tolist()


def test_float_files_of_fractions_are_what_such_files_are():
    image = Image.fromarray(FRACTIONS[..., 0])
    assert np.array_equal(np.asarray(to_rgb(image))[..., 1], BYTES[..., 0])
    image = Image.fromarray(np.full((4, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="the image holds NaN or infinite pixels; clean it first"):
        to_rgb(image)


# ---- a fourth channel


@pytest.mark.parametrize("channels", [2, 4])
def test_a_band_in_the_place_of_transparency_is_refused_in_arrays_and_told_of_pictures(channels, caplog):
    array = np.random.default_rng(1).integers(20, 220, (30, 40, channels), dtype=np.uint8)
    for image in (array, array.transpose(2, 0, 1), torch.from_numpy(array)):
        with pytest.raises(ValueError, match=rf"has {channels} channels, the last of which .* pass the others alone"):
            array_to_rgb(image)
    with caplog.at_level("WARNING"):
        to_rgb(Image.fromarray(array))
    assert "if it is another band, such as near infrared, give the three others alone" in caplog.text


def test_a_mask_of_0_and_1_is_no_transparency():
    array = np.full((30, 40, 4), 200, np.uint8)
    array[..., 3] = 1
    with pytest.raises(ValueError, match="has 4 channels, the last of which"):
        array_to_rgb(array)


def test_soft_edges_are_transparency(caplog):
    array = np.full((30, 40, 4), 200, np.uint8)
    array[..., 3] = 255
    array[10:15, ..., 3] = np.arange(5, 205, 5)
    assert np.array_equal(np.asarray(array_to_rgb(array)), np.asarray(to_rgb(Image.fromarray(array))))
    assert not caplog.text


# ---- which axis holds the channels


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("way", WAYS[:2])
def test_strips_of_few_rows_ask_for_their_format_and_are_right_with_it(ways_in, tiny_processor, rows, way):
    strip = BYTES[:rows].repeat(9, axis=1)  # (rows, 504, 3)
    for array, axis in ((strip, "channels_last"), (np.ascontiguousarray(strip.transpose(2, 0, 1)), "channels_first")):
        shape = r", ".join(map(str, array.shape))
        if axis == "channels_last":
            with pytest.raises(
                ValueError, match=rf"shape \({shape}\) may have its channels .* input_data_format='cha"
            ):
                ways_in[way](array)
        named = ways_in[way](array, input_data_format=axis)
        assert torch.equal(named, ways_in[way](Image.fromarray(strip)))


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_strips_of_few_columns_ask_too_channels_first(tiny_processor, columns):
    array = np.zeros((3, 40, columns), np.uint8)
    with pytest.raises(ValueError, match="first axis or on the last"):
        tiny_processor(images=array, return_tensors="pt")
    assert channels_last(array, "channels_first").shape == (40, columns, 3)


@pytest.mark.parametrize("shape", [(1, 40), (3, 40), (4, 40), (40, 1), (40, 3), (40, 4)], ids=str)
def test_gray_strips_have_no_channels_to_ask_for(tiny_processor, shape):
    gray = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = tiny_processor(images=Image.fromarray(gray), return_tensors="pt").pixel_values
    for images in (gray, [gray], torch.from_numpy(gray)):
        assert torch.equal(tiny_processor(images=images, return_tensors="pt").pixel_values, expected)
    assert tiny_processor.image_processor.load_rgb(gray).size == shape[::-1]


def test_the_pipeline_takes_the_format_too(pipe):
    strip = BYTES[:4].repeat(9, axis=1)
    parts = pipe(strip, candidate_labels=NAMES, input_data_format="channels_last")
    assert {part["mask"].size for part in parts} == {(504, 4)}


def test_a_stack_of_strips_asks_as_one_does():
    processor = LDVCImageProcessor(size={"height": 8, "width": 8})
    with pytest.raises(ValueError, match="may have its channels on the first axis or on the last"):
        processor(images=np.zeros((2, 4, 40, 3), np.uint8), return_tensors="pt")
    stack = processor(images=np.zeros((2, 4, 40, 3), np.uint8), input_data_format="channels_last", return_tensors="pt")
    assert stack.pixel_values.shape == (2, 3, 8, 8)
