"""Pictures of every mode, label maps, class names, and the way back from logits to label maps."""

import base64
import inspect
import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # until 5.16 the other is no class

from ldvc.model.image_processing_ldvc import LDVCImageProcessor, to_rgb
from ldvc.model.modeling_ldvc import LDVCSemanticSegmenterOutput
from ldvc.model.processing_ldvc import LDVCProcessor


MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture
def image_processor():
    return LDVCImageProcessor(size={"height": 8, "width": 8})


def normalised(color):
    return (torch.tensor(color, dtype=torch.float32) / 255 - MEAN) / STD


def solid(mode, value, size=(8, 8)):
    return Image.new(mode, size, value)


def palette_image(color):
    image = Image.new("P", (8, 8), 3)
    image.putpalette([0] * 9 + list(color))
    return image


def transparent_palette_image():
    image = palette_image((10, 20, 30))
    image.info["transparency"] = 3
    return image


def gray_16_bit(value):
    return Image.fromarray(np.full((8, 8), value, dtype=np.uint16))


MODES = {
    "RGB": (solid("RGB", (10, 20, 30)), (10, 20, 30)),
    "L": (solid("L", 100), (100, 100, 100)),
    "1": (solid("1", 1), (255, 255, 255)),
    "LA opaque": (solid("LA", (100, 255)), (100, 100, 100)),
    "LA transparent": (solid("LA", (100, 0)), (255, 255, 255)),
    "P": (palette_image((10, 20, 30)), (10, 20, 30)),
    "P transparent": (transparent_palette_image(), (255, 255, 255)),
    "RGBA opaque": (solid("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
    "RGBA transparent": (solid("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
    "RGBA half": (solid("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
    "CMYK": (solid("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
    "I;16": (gray_16_bit(32896), (128, 128, 128)),
    "I;16 dark": (gray_16_bit(257), (1, 1, 1)),
    "I": (solid("I", 65535), (255, 255, 255)),
    "F": (solid("F", 0.5), (128, 128, 128)),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_becomes_rgb(image_processor, mode):
    image, color = MODES[mode]
    pixels = image_processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[0, :, 4, 4], normalised(color), atol=1e-5, rtol=1e-5)
    assert to_rgb(image).mode == "RGB"


def two_colors():
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (16, 8), (255, 0, 0))
    image.paste((0, 0, 255), (8, 0, 16, 8))
    return image


def test_a_long_data_url_is_an_image_and_no_file_name(image_processor):
    data, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data, format="png")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    expected = image_processor(Image.fromarray(noise), return_tensors="pt")["pixel_values"]
    assert torch.equal(image_processor(url, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize(("orientation", "blue_at"), [(1, (4, 7)), (3, (4, 0)), (6, (7, 4)), (8, (0, 4))])
def test_exif_orientation_is_applied(image_processor, tmp_path, orientation, blue_at):
    image, exif = two_colors(), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    for source in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        pixels = image_processor(source, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels[0, :, *blue_at], normalised((0, 0, 255)), atol=1e-5, rtol=1e-5)


def sources(tmp_path):
    """The same picture in every form that the processor takes."""
    image = two_colors()
    image.save(tmp_path / "image.png")
    data = io.BytesIO()
    image.save(data, format="png")
    array = np.asarray(image)
    return {
        "picture": image,
        "path": tmp_path / "image.png",
        "string": str(tmp_path / "image.png"),
        "data url": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode(),
        "array": array,
        "array channels first": array.transpose(2, 0, 1).copy(),
        "tensor": torch.from_numpy(array.copy()),
        "tensor channels first": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "float array": array.astype(np.float32),
        "list": [image],
    }


@pytest.mark.parametrize(
    "form",
    ["picture", "path", "string", "data url", "array", "array channels first", "tensor", "tensor channels first",
     "float array", "list"],
)  # fmt: skip
def test_a_picture_in_any_form_gives_the_same_tensor(image_processor, tmp_path, form):
    expected = image_processor(two_colors(), return_tensors="pt")["pixel_values"]
    pixels = image_processor(sources(tmp_path)[form], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, expected, atol=0.02, rtol=0)  # resizing floats rounds less
    assert (pixels[0, 0, :, 0] > pixels[0, 0, :, 7]).all()


@pytest.mark.parametrize("shape", [(9, 11), (1, 9, 11), (9, 11, 1), (2, 9)], ids=str)
def test_a_gray_array_becomes_three_channels(image_processor, shape):
    for image in (np.full(shape, 100, dtype=np.uint8), torch.full(shape, 100, dtype=torch.uint8)):
        for images in (image, [image], [solid("RGB", 0), image]):
            pixels = image_processor(images, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(pixels[-1, :, 3, 3], normalised((100, 100, 100)), atol=1e-5, rtol=1e-5)


def test_how_a_tokenizer_was_loaded_is_not_saved_with_it(tmp_path):
    loaded = LDVCProcessor.from_pretrained("picturebook/ldvc", local_files_only=True)
    loaded.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not saved.keys() & {"is_local", "local_files_only"}


@pytest.mark.parametrize(("shape", "axis"), [((20, 30, 3), "channels_first"), ((3, 20, 30), "channels_last")])
def test_a_named_axis_that_holds_no_channels_is_refused(image_processor, shape, axis):
    with pytest.raises(ValueError, match=rf"channels by `input_data_format` '{axis}'; leave that out"):
        image_processor(images=np.zeros(shape, np.uint8), input_data_format=axis, return_tensors="pt")


def test_transparency_in_an_array_is_white_as_in_a_picture(image_processor):
    array = np.full((9, 11, 4), 40, dtype=np.uint8)
    for alpha in (0, 128, 255):
        array[..., 3] = alpha
        expected = image_processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
        assert torch.equal(image_processor(array, return_tensors="pt")["pixel_values"], expected), alpha


@pytest.mark.parametrize("alpha", [0, 128, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gray_array_with_alpha_is_read_as_the_picture(image_processor, alpha, dtype):
    array = np.full((9, 11, 2), 40, dtype=np.uint8)
    array[..., 1] = alpha
    expected = image_processor(Image.fromarray(array, "LA"), return_tensors="pt")["pixel_values"]
    array = array.astype(dtype) * (257 if dtype == np.uint16 else 1)
    for image in (array, array.transpose(2, 0, 1), torch.from_numpy(array)):
        assert torch.equal(image_processor(image, return_tensors="pt")["pixel_values"], expected)


def test_a_16_bit_array_is_scaled_as_the_picture(image_processor):
    array = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    expected = image_processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    for image in (array, array[..., None], np.stack([array] * 3, axis=-1), torch.from_numpy(array)):
        assert torch.equal(image_processor(image, return_tensors="pt")["pixel_values"], expected)


def test_floats_from_0_to_1_are_taken_without_rescaling(image_processor):
    array = np.full((8, 8, 3), 51, dtype=np.uint8)
    expected = image_processor(array, return_tensors="pt")["pixel_values"]
    pixels = image_processor(array.astype(np.float32) / 255, do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_black_pictures_are_not_taken_for_a_wrong_range(image_processor, dtype):
    pixels = image_processor(np.zeros((8, 8, 3), dtype=dtype), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0, :, 0, 0], normalised((0, 0, 0)))
    image_processor(np.ones((8, 8, 3), dtype=np.uint8))


def test_pictures_of_different_sizes_and_modes_make_one_batch(image_processor):
    batch = [solid("L", 100, (5, 9)), solid("RGBA", (1, 2, 3, 255), (20, 4)), np.zeros((13, 7, 3), dtype=np.uint8)]
    pixels = image_processor(batch, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 3, 8, 8)
    for index, image in enumerate(batch):
        assert torch.equal(image_processor(image, return_tensors="pt")["pixel_values"][0], pixels[index])


def test_normalisation_is_imagenets_and_the_default_size_512():
    processor = LDVCImageProcessor()
    pixels = processor(solid("RGB", (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 512, 512)
    torch.testing.assert_close(pixels[0, :, 0, 0], normalised((255, 0, 0)), atol=1e-5, rtol=1e-5)


def test_the_aspect_is_kept_on_request():
    processor = LDVCImageProcessor(size={"shortest_edge": 16})
    assert processor(solid("RGB", 0, (40, 20)), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 32)


# ---- label maps


def label_maps(ids, tmp_path):
    """The same small ids in every form."""
    png = Image.fromarray(ids.astype(np.uint8))
    palette = png.convert("P")
    palette.putdata(ids.flatten().tolist())
    palette.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    palette.save(tmp_path / "map.png")
    wide = Image.fromarray(ids.astype(np.uint16))
    wide.save(tmp_path / "wide.png")
    return {
        "L": png,
        "P": palette,
        "P path": tmp_path / "map.png",
        "I": Image.fromarray(ids.astype(np.int32)),
        "I;16": wide,
        "I;16 path": str(tmp_path / "wide.png"),
        "uint8": ids.astype(np.uint8),
        "uint16": ids.astype(np.uint16),
        "int64": ids.astype(np.int64),
        "tensor": torch.from_numpy(ids.astype(np.int64)),
    }


FORMS = ["L", "P", "P path", "I", "I;16", "I;16 path", "uint8", "uint16", "int64", "tensor"]


@pytest.mark.parametrize("form", FORMS)
def test_a_label_map_in_any_form_keeps_its_ids(image_processor, tmp_path, form):
    ids = np.arange(8 * 8).reshape(8, 8) * 4 + 3
    batch = image_processor(solid("RGB", 0), segmentation_maps=label_maps(ids, tmp_path)[form], return_tensors="pt")
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"][0].tolist() == ids.tolist()


@pytest.mark.parametrize("form", ["I", "I;16", "uint16", "int64", "tensor"])
def test_ids_above_255_survive(image_processor, tmp_path, form):
    ids = np.arange(16 * 24).reshape(16, 24) + 500
    batch = image_processor(
        solid("RGB", 0, (24, 16)), segmentation_maps=label_maps(ids, tmp_path)[form], return_tensors="pt"
    )
    expected = np.asarray(Image.fromarray(ids.astype(np.int32)).resize((8, 8), Image.Resampling.NEAREST))
    assert batch["labels"][0].tolist() == expected.tolist()


def test_label_maps_are_resized_to_the_size_of_their_image_by_nearest_only():
    processor = LDVCImageProcessor(size={"height": 30, "width": 50})
    ids = np.random.default_rng(0).choice([0, 7, 255], (21, 33))
    batch = processor(solid("RGB", 0, (33, 21)), segmentation_maps=ids, return_tensors="pt")
    assert batch["labels"].shape == (1, 30, 50)
    assert set(batch["labels"].unique().tolist()) == {0, 7, 255}
    expected = Image.fromarray(ids.astype(np.uint8)).resize((50, 30), Image.Resampling.NEAREST)
    assert batch["labels"][0].tolist() == np.asarray(expected).tolist()


def test_reduced_labels_count_from_zero_and_keep_unlabelled():
    processor = LDVCImageProcessor(do_resize=False, reduce_labels=True)
    ids = np.array([[0, 1, 2, 255, 151, 300]] * 8)
    batch = processor(solid("RGB", 0, (6, 8)), segmentation_maps=ids, return_tensors="pt")
    assert batch["labels"][0, 0].tolist() == [255, 0, 1, 255, 150, 299]
    batch = processor(solid("RGB", 0, (6, 8)), segmentation_maps=ids, reduce_labels=False, return_tensors="pt")
    assert batch["labels"][0, 0].tolist() == ids[0].tolist()


def test_another_ignore_index_is_kept_when_labels_are_reduced():
    processor = LDVCImageProcessor(do_resize=False, reduce_labels=True, ignore_index=-100)
    batch = processor(
        solid("RGB", 0, (4, 8)), segmentation_maps=np.array([[0, 1, -100, 255]] * 8), return_tensors="pt"
    )
    assert batch["labels"][0, 0].tolist() == [-100, 0, -100, 254]


# ---- class names


def decoded(tokenizer, inputs):
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    return [tokenizer.decode(ids[mask.bool()], skip_special_tokens=True) for ids, mask in rows]


def test_names_are_put_into_the_template_in_their_order(tiny_processor, tokenizer):
    names = ["sofa", "cat", "grass of sky"]
    inputs = tiny_processor(class_names=names, return_tensors="pt")
    expected = tokenizer([f"a photo of a {name}" for name in names], padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_braces_and_percent_signs_in_names_are_plain_text(tiny_processor, tokenizer):
    inputs = tiny_processor(class_names=["{0}", "%s", "{}"], return_tensors="pt")
    expected = tokenizer(["a photo of a {0}", "a photo of a %s", "a photo of a {}"], padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_text_is_tokenised_as_it_is(tiny_processor, tokenizer):
    for text in ("sofa", ["sofa", "a cat"]):
        inputs = tiny_processor(text=text, return_tensors="pt")
        expected = tokenizer([text] if isinstance(text, str) else text, padding=True, return_tensors="pt")
        assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_everything_together_makes_the_inputs_of_the_model(tiny_processor, images):
    maps = [np.zeros(image.size[::-1], dtype=np.uint8) for image in images]
    inputs = tiny_processor(images=images, class_names=["cat"], segmentation_maps=maps, return_tensors="pt")
    assert {key: tuple(value.shape[:1]) for key, value in inputs.items()} == {
        "pixel_values": (2,),
        "labels": (2,),
        "input_ids": (1,),
        "attention_mask": (1,),
    }


def test_synonyms_and_templates_make_several_prompts_per_class(tiny_processor):
    inputs = tiny_processor(
        class_names={"sofa": ["sofa", "couch"], "cat": "cat"}, prompt_templates=["a {}", "the {}"], return_tensors="pt"
    )
    assert inputs["prompt_class_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert decoded(tiny_processor.tokenizer, inputs) == [
        "a sofa",
        "the sofa",
        "a couch",
        "the couch",
        "a cat",
        "the cat",
    ]


@torch.no_grad()
def test_synonyms_and_templates_are_averaged_as_unit_vectors(make_model, tiny_processor, tokenizer):
    model = make_model(num_text_prompts=0)
    inputs = tiny_processor(
        class_names={"sofa": ["sofa", "couch"], "cat": "cat"}, prompt_templates=["a {}", "the {}"], return_tensors="pt"
    )
    embeds = model.get_class_embeds(**inputs)
    singles = [["a sofa", "the sofa", "a couch", "the couch"], ["a cat", "the cat"]]
    for index, prompts in enumerate(singles):
        each = model.get_class_embeds(**tokenizer(prompts, padding=True, return_tensors="pt"))
        expected = F.normalize(sum(each / len(each)), dim=-1)
        torch.testing.assert_close(embeds[index], expected, atol=1e-5, rtol=1e-5)


def test_lists_per_image_encode_each_distinct_class_once(tiny_processor, images):
    lists = [["cat", "sofa"], ["sofa", "sky", "cat"]]
    inputs = tiny_processor(images=images, class_names=lists, return_tensors="pt")
    names = [text.removeprefix("a photo of a ") for text in decoded(tiny_processor.tokenizer, inputs)]
    assert names == ["cat", "sofa", "sky"]
    assert inputs["class_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    for row, mask, expected in zip(inputs["class_index"], inputs["class_mask"], lists, strict=True):
        assert [names[i] for i, kept in zip(row.tolist(), mask.tolist(), strict=True) if kept] == expected


def test_lists_per_image_may_hold_synonyms_that_differ(tiny_processor, images):
    lists = [{"sofa": ["sofa", "couch"]}, ["sofa", "cat"]]
    inputs = tiny_processor(images=images, class_names=lists, return_tensors="pt")
    assert inputs["prompt_class_ids"].tolist() == [0, 0, 1, 2]
    assert inputs["class_index"].tolist() == [[0, 0], [1, 2]]
    assert inputs["class_mask"].tolist() == [[1, 0], [1, 1]]


def test_without_return_tensors_there_are_lists(tiny_processor):
    inputs = tiny_processor(class_names=["cat", "sofa"])
    assert isinstance(inputs["input_ids"], list)
    assert isinstance(inputs["input_ids"][0], list)


def test_the_longest_prompt_that_fits_is_taken_whole(tiny_processor):
    inputs = tiny_processor(class_names=["x" * 71], return_tensors="pt")  # start, 4 words, 71 letters, end
    assert inputs["attention_mask"].sum() == 77


# ---- back to label maps


def output_of(logits, **fields):
    return LDVCSemanticSegmenterOutput(logits=logits, **fields)


def test_label_maps_have_the_sizes_asked_for(tiny_processor):
    logits = torch.randn(2, 3, 4, 4)
    sizes = [(40, 56), (33, 24)]
    for target_sizes in (sizes, torch.tensor(sizes), [list(size) for size in sizes]):
        maps = tiny_processor.post_process_semantic_segmentation(output_of(logits), target_sizes=target_sizes)
        assert [tuple(label_map.shape) for label_map in maps] == sizes
        for label_map, image_logits, size in zip(maps, logits, sizes, strict=True):
            expected = F.interpolate(image_logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)
            assert label_map.dtype == torch.int64
            assert torch.equal(label_map, expected)


def test_without_sizes_the_token_grid_is_kept(tiny_processor):
    logits = torch.randn(2, 3, 4, 5)
    maps = tiny_processor.post_process_semantic_segmentation(output_of(logits))
    assert torch.equal(torch.stack(maps), logits.argmax(1))


def test_bfloat16_logits_are_compared_in_float32(tiny_processor):
    logits = torch.randn(1, 3, 4, 4).bfloat16()
    (label_map,) = tiny_processor.post_process_semantic_segmentation(output_of(logits), target_sizes=[(16, 16)])
    expected = F.interpolate(logits.float(), size=(16, 16), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(label_map, expected[0])


def test_pixels_below_the_threshold_become_other(tiny_processor):
    probabilities = torch.tensor([[0.9, 0.4], [0.2, 0.7]])
    logits = torch.stack([probabilities, torch.full((2, 2), 0.1)]).logit()[None]
    post_process = tiny_processor.post_process_semantic_segmentation
    assert post_process(output_of(logits), threshold=0.5)[0].tolist() == [[0, 2], [2, 0]]
    assert post_process(output_of(logits), threshold=0.5, other_label=77)[0].tolist() == [[0, 77], [77, 0]]
    assert post_process(output_of(logits), threshold=0.95)[0].tolist() == [[2, 2], [2, 2]]
    assert post_process(output_of(logits), threshold=0.0)[0].tolist() == [[0, 0], [0, 0]]


def test_the_offset_is_taken_from_probabilities_and_before_the_threshold(tiny_processor):
    logits = torch.tensor([0.6, 0.55]).logit().view(1, 2, 1, 1)
    offsets = torch.tensor([[0.1, 0.0]])
    post_process = tiny_processor.post_process_semantic_segmentation
    assert post_process(output_of(logits))[0].item() == 0
    assert post_process(output_of(logits, class_score_offsets=offsets))[0].item() == 1
    assert post_process(output_of(logits, class_score_offsets=offsets), threshold=0.58)[0].item() == 2


def test_saturated_logits_are_still_told_apart(tiny_processor):
    logits = torch.tensor([40.0, 41.0]).view(1, 2, 1, 1)  # both have probability 1 in float32
    assert tiny_processor.post_process_semantic_segmentation(output_of(logits))[0].item() == 1


def test_scores_are_probabilities_at_the_size_asked_for(tiny_processor):
    logits, offsets = torch.randn(1, 3, 4, 4), torch.tensor([[0.1, 0.0, 0.2]])
    (result,) = tiny_processor.post_process_semantic_segmentation(
        output_of(logits, class_score_offsets=offsets), target_sizes=[(9, 11)], return_segmentation_scores=True
    )
    upsampled = F.interpolate(logits, size=(9, 11), mode="bilinear", align_corners=False)[0]
    expected = upsampled.sigmoid() - offsets[0, :, None, None]
    torch.testing.assert_close(result.segmentation_scores, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(result.segmentation, expected.argmax(0))


def test_image_processor_and_processor_post_process_alike(tiny_processor):
    outputs = output_of(torch.randn(1, 3, 4, 4))
    for options in ({}, {"target_sizes": [(7, 9)]}, {"threshold": 0.6, "other_label": 9}):
        first = tiny_processor.post_process_semantic_segmentation(outputs, **options)
        second = tiny_processor.image_processor.post_process_semantic_segmentation(outputs, **options)
        assert torch.equal(first[0], second[0])


def test_post_processing_has_one_signature_and_takes_arguments_by_position(tiny_processor):
    method, names = "post_process_semantic_segmentation", ["target_sizes", "threshold", "other_label"]
    signatures = [inspect.signature(getattr(x, method)) for x in (tiny_processor, tiny_processor.image_processor)]
    assert signatures[0] == signatures[1]
    assert list(signatures[0].parameters) == ["outputs", *names, "return_segmentation_scores", "top_k", "class_ids"]
    outputs = output_of(torch.full((1, 3, 4, 4), -1.0))
    (result,) = getattr(tiny_processor, method)(outputs, [(5, 6)], 0.9, 7, True)
    assert (result.segmentation == 7).all()
    assert result.segmentation_scores.shape == (3, 5, 6)


def test_a_padded_class_never_wins(tiny_processor):
    logits = torch.randn(1, 3, 4, 4) - 50
    logits[:, 2] = -1e4
    (label_map,) = tiny_processor.post_process_semantic_segmentation(output_of(logits), target_sizes=[(20, 20)])
    assert label_map.max() < 2


# ---- saving and loading


def test_a_saved_processor_comes_back_the_same(tmp_path, clip_folder, images):
    processor = LDVCProcessor.from_clip_pretrained(
        clip_folder, size=24, image_stats="clip", prompt_templates=["a {}", "the {}"]
    )
    processor.image_processor.reduce_labels = True
    processor.save_pretrained(tmp_path)
    call = {"images": images, "class_names": ["cat", "sofa"], "return_tensors": "pt"}
    expected = processor(**call, segmentation_maps=[np.ones(image.size[::-1], dtype=int) for image in images])
    for loaded in (LDVCProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, LDVCProcessor)
        assert isinstance(loaded.image_processor, LDVCImageProcessor)
        assert loaded.prompt_templates == ["a {}", "the {}"]
        result = loaded(**call, segmentation_maps=[np.ones(image.size[::-1], dtype=int) for image in images])
        assert result.keys() == expected.keys()
        for key in expected:
            assert torch.equal(result[key], expected[key]), key
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), LDVCImageProcessor)
    assert AutoTokenizer.from_pretrained(tmp_path)("cat")["input_ids"] == processor.tokenizer("cat")["input_ids"]


def test_the_statistics_are_imagenets_or_those_of_the_clip(clip_folder):
    imagenet = LDVCProcessor.from_clip_pretrained(clip_folder).image_processor
    clip = LDVCProcessor.from_clip_pretrained(clip_folder, image_stats="clip").image_processor
    assert list(imagenet.image_mean) == pytest.approx([0.485, 0.456, 0.406])
    assert list(clip.image_mean) == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert list(clip.image_std) == pytest.approx([0.26862954, 0.26130258, 0.27577711])


def test_the_stock_call_of_the_image_segmentation_pipeline_works(tiny_processor, images):
    """`image_processor(images=[image], return_tensors="pt")`, all of which goes to the model."""
    assert set(tiny_processor.image_processor(images=[images[0]], return_tensors="pt")) == {"pixel_values"}


def test_a_picture_behind_a_data_url_keeps_its_mode_and_transparency(tiny_processor):
    content = io.BytesIO()
    transparent = Image.new("RGBA", (8, 6), (200, 0, 0, 0))
    transparent.save(content, "PNG")
    url = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    assert tiny_processor.image_processor.fetch_images(url).mode == "RGBA"
    assert tiny_processor.image_processor.load_rgb(url).getpixel((0, 0)) == (255, 255, 255)
