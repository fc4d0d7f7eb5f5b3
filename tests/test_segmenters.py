"""What segments by names beside LDVC: each kind is asked the same, and CLIPSeg gives the library's own logits."""

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, build_tokenizer
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    ViTImageProcessor,
    pipeline,
)

import ldvc as package
from ldvc.loading import find_kind, load
from ldvc.model.inference_ldvc import InferenceSettings, encode_classes, prepare_picture, segment, segment_batch
from ldvc.segmenters.clipseg import CLIPSegSegmenter


KINDS = ["ldvc", "clip", "clipseg"]
NAMES = ["cat", "dog", "sofa"]
SIDE = 24  # of the tiny CLIPSeg's pictures: no multiple of it is its training size


def build_clipseg(seed=0, **fields):
    """A random CLIPSeg of three layers per tower, two of which its decoder reads."""
    tokenizer = build_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    options = {"projection_dim": 32, "reduce_dim": 16, "extract_layers": [0, 1], "decoder_intermediate_size": 48}
    config = CLIPSegConfig(
        text_config=text,
        vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": 8},
        initializer_factor=0.05,  # the decoder's published start saturates every probability
        **{**options, **fields},
    )
    torch.manual_seed(seed)
    model = CLIPSegForImageSegmentation(config).eval()
    with torch.no_grad():  # names must matter more than rounding
        for module in (model.clip.text_projection, model.decoder.film_mul, model.decoder.film_add):
            module.weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def library():
    return build_clipseg()


@pytest.fixture(scope="module")
def clipseg_folder(tmp_path_factory, library):
    folder = tmp_path_factory.mktemp("clipseg")
    library.save_pretrained(folder)
    images = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.4, 0.5, 0.6], image_std=[0.3] * 3)
    CLIPSegProcessor(images, build_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(checkpoint, clip_folder, clipseg_folder):
    return {"ldvc": checkpoint, "clip": clip_folder, "clipseg": clipseg_folder}


@pytest.fixture(scope="module")
def loaded(folders):
    return {kind: load(folder, "cpu") for kind, folder in folders.items()}


@pytest.fixture
def picture(images):
    return images[0]


def prompts_of(names, tokenizer):
    return tokenizer(names, padding=True, return_tensors="pt")


# ---- CLIPSeg gives the library's logits


@pytest.mark.parametrize("num_labels", [1, 2, 19])  # 19: two whole blocks and a part
@pytest.mark.parametrize("side", [8, 16, 32, 40, 56])
def test_clipseg_gives_the_librarys_logits(library, tokenizer, side, num_labels):
    names = [f"{['cat', 'dog', 'sofa', 'sky'][index % 4]} {index}" for index in range(num_labels)]
    inputs, pixels = prompts_of(names, tokenizer), torch.randn(1, 3, side, side)
    expected = library(pixel_values=pixels.expand(num_labels, -1, -1, -1), **inputs).logits
    logits = CLIPSegSegmenter(library)(pixel_values=pixels, **inputs).logits
    assert logits.shape == (1, num_labels, side, side)
    torch.testing.assert_close(logits[0], expected.view(num_labels, side, side), atol=1e-4, rtol=0)
    if num_labels > 1:
        assert (logits[0, 0] - logits[0, 1]).abs().max() > 0.01, "the labels matter"


@pytest.mark.parametrize(
    "fields",
    [
        {"use_complex_transposed_convolution": True},
        {"extract_layers": [0, 1, 2]},
        {"extract_layers": [0, 1, 2], "conditional_layer": 1},
        {"conditional_layer": 1},
    ],
    ids=str,
)
def test_every_decoder_gives_the_librarys_logits(tokenizer, fields):
    library, inputs, pixels = build_clipseg(**fields), prompts_of(NAMES, tokenizer), torch.randn(1, 3, 32, 32)
    expected = library(pixel_values=pixels.expand(3, -1, -1, -1), **inputs).logits
    logits = CLIPSegSegmenter(library)(pixel_values=pixels, **inputs).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_what_the_library_leaves_out_of_a_picture_continues_its_border(library, tokenizer):
    inputs, pixels = prompts_of(["cat"], tokenizer), torch.randn(1, 3, 37, 37)
    expected = library(pixel_values=pixels, **inputs).logits
    logits = CLIPSegSegmenter(library)(pixel_values=pixels, **inputs).logits[0, 0]
    assert logits.shape == (37, 37)
    torch.testing.assert_close(logits[:32, :32], expected.view(32, 32), atol=1e-4, rtol=0)
    assert torch.equal(logits[32:, :32], logits[31:32, :32].expand(5, -1))


def test_a_picture_that_is_not_square_is_segmented_upright_and_turned(library, tokenizer):
    model = CLIPSegSegmenter(library)
    embeds = model.get_class_embeds(**prompts_of(NAMES, tokenizer))
    for size in ((16, 40), (40, 16), (21, 50)):  # 2 x 8 tokens are no square of 4 x 4, as the library takes them for
        assert model(pixel_values=torch.randn(1, 3, *size), class_embeds=embeds).logits.shape == (1, 3, *size)


@torch.no_grad()
def test_the_vision_tower_runs_once_for_any_number_of_labels_and_no_further_than_it_is_read(
    library, tokenizer, monkeypatch
):
    calls = [0, 0, 0]
    for index, layer in enumerate(library.clip.vision_model.encoder.layers):

        def count(module, inputs, index=index):
            calls[index] += 1

        monkeypatch.setattr(layer, "_forward_pre_hooks", type(layer._forward_pre_hooks)())
        layer.register_forward_pre_hook(count)
    model = CLIPSegSegmenter(library)
    embeds = model.get_class_embeds(**prompts_of([f"cat {index}" for index in range(40)], tokenizer))
    features = model.get_image_features(torch.randn(2, 3, 32, 32))
    logits = model(image_features=features, class_embeds=embeds).logits
    assert calls == [1, 1, 0]  # of three layers the decoder reads the first two
    alone = model(image_features=features.select(1), class_embeds=embeds[7:8]).logits
    torch.testing.assert_close(alone[0, 0], logits[1, 7], atol=1e-4, rtol=0)


def test_several_prompts_of_a_class_are_mixed_as_clipseg_was_trained(library, tokenizer):
    model, inputs = CLIPSegSegmenter(library), prompts_of(["cat", "dog", "sky"], tokenizer)
    embeds = model.get_class_embeds(**inputs)
    mixed = model.get_class_embeds(**inputs, prompt_class_ids=torch.tensor([0, 0, 1]))
    torch.testing.assert_close(mixed, torch.stack([(embeds[0] + embeds[1]) / 2, embeds[2]]))
    single = model.get_class_embeds(inputs["input_ids"][:1])
    torch.testing.assert_close(single[0], embeds[0], atol=1e-5, rtol=1e-5)  # with and without a mask


CALLS = {
    "no picture": ({"class_embeds": torch.zeros(1, 32)}, "exactly one of `pixel_values` and `image_features`"),
    "no class": ({"pixel_values": torch.zeros(1, 3, 32, 32)}, "CLIPSeg has no classes of its own"),
    "width": (
        {"pixel_values": torch.zeros(1, 3, 32, 32), "class_embeds": torch.zeros(2, 7)},
        r"have shape \(2, 7\); they must be \(num_classes, 32\)",
    ),
    "small": (
        {"pixel_values": torch.zeros(1, 3, 7, 32), "class_embeds": torch.zeros(1, 32)},
        r"is 7 x 32 pixels, less than one patch of this CLIPSeg \(8\); resize",
    ),
    "channels": (
        {"pixel_values": torch.zeros(1, 4, 32, 32), "class_embeds": torch.zeros(1, 32)},
        r"has shape \(1, 4, 32, 32\); it must be \(batch_size, 3, height, width\)",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls_of_clipseg_are_refused(library, case):
    arguments, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        CLIPSegSegmenter(library)(**arguments)


# ---- one call loads any kind


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_folder_holds_is_found_out(folders, loaded, kind):
    model, _ = loaded[kind]
    assert find_kind(folders[kind]) == kind
    assert not model.training
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert package.load is load


@pytest.mark.parametrize("kind", KINDS)
def test_a_dtype_a_size_and_templates_may_be_chosen(folders, kind):
    model, processor = load(folders[kind], "cpu", "bfloat16", size=16, prompt_templates="the {}")
    assert model.dtype == torch.bfloat16
    assert processor.image_processor.size["height"] == 16
    assert processor.prompt_templates == ["the {}"]


def test_clipsegs_processor_gives_what_its_own_gives(loaded, clipseg_folder, picture):
    _, processor = loaded["clipseg"]
    own = CLIPSegProcessor.from_pretrained(clipseg_folder)
    expected = own(images=picture, text=NAMES, padding=True, return_tensors="pt")
    inputs = processor(images=picture, class_names=NAMES, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], atol=0.02, rtol=0)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])  # texts as they are, no template


def test_clips_processor_has_its_own_statistics_and_half_again_its_size(loaded):
    _, processor = loaded["clip"]
    assert processor.image_processor.size["height"] == IMAGE_SIZE * 3 // 2
    assert processor.image_processor.image_mean[0] == pytest.approx(0.48145466)
    assert processor.prompt_templates == ["a photo of a {}"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_encodes_once_and_answers_many(loaded, picture, kind):
    model, processor = loaded[kind]
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    _, embeds = encode_classes(model, processor, NAMES)
    assert embeds.shape == (3, model.config.projection_dim)
    features = model.get_image_features(pixels.expand(2, -1, -1, -1))
    logits = model(image_features=features.select(1), class_embeds=embeds).logits
    expected = model(pixel_values=pixels, class_embeds=embeds).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    permuted = model(image_features=features.select([0]), class_embeds=embeds[[2, 0, 1]]).logits
    torch.testing.assert_close(permuted, expected[:, [2, 0, 1]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_segments_whole_by_windows_and_together(loaded, images, kind):
    model, processor = loaded[kind]
    alone = [segment(model, processor, image, NAMES, top_k=2, threshold=0.1) for image in images]
    for image, found in zip(images, alone, strict=True):
        assert found.label_map.shape == (image.height, image.width)
        assert found.class_names == [*NAMES, "other"]
    together = segment_batch(model, processor, [prepare_picture(processor, image) for image in images], NAMES)
    plain = [segment(model, processor, image, NAMES).label_map for image in images]
    assert all(torch.equal(found.label_map, own) for found, own in zip(together, plain, strict=True))
    settings = InferenceSettings(short_side=0, window=20)
    found = segment(model, processor, images[0], NAMES, settings=settings, return_scores=True)
    assert torch.equal(found.scores.argmax(0), found.label_map)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_1000_labels_is_answered_by_every_kind(loaded, picture, kind):
    model, processor = loaded[kind]
    names = [f"thing {index}" for index in range(1000)]
    found = segment(model, processor, picture, names, settings=InferenceSettings(0, 0), top_k=1)
    assert found.label_map.shape == (40, 56)
    _, embeds = encode_classes(model, processor, names[::100])
    part = segment(model, processor, picture, names[::100], class_embeds=embeds, settings=InferenceSettings(0, 0))
    chosen = torch.tensor(range(0, 1000, 100))
    agrees = torch.isin(found.label_map, chosen)  # where the long list chose one of the short one, so does that
    assert torch.equal(chosen[part.label_map][agrees], found.label_map[agrees])


def test_the_masks_of_a_pipeline_are_those_of_segment(folders, loaded, picture):
    for kind in KINDS:
        segmenter = pipeline("zero-shot-image-segmentation", model=str(folders[kind]), device="cpu")
        found = {mask["label"]: mask for mask in segmenter(picture, candidate_labels=NAMES)}
        label_map = segment(*loaded[kind], picture, NAMES).label_map.numpy()
        for index, name in enumerate(NAMES):
            inside = np.asarray(found[name]["mask"]) == 255 if name in found else np.zeros_like(label_map, bool)
            assert np.array_equal(inside, label_map == index), (kind, name)
        assert type(segmenter.model).__name__ in repr(segmenter)


def test_a_pipeline_takes_a_model_in_memory_and_keeps_its_embeddings(loaded, picture, monkeypatch):
    for kind in KINDS:
        model, processor = loaded[kind]
        segmenter = pipeline("zero-shot-image-segmentation", model=model, processor=processor, device="cpu")
        first = segmenter(picture, candidate_labels=NAMES)
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "get_class_embeds", None)
            assert str(segmenter(picture, candidate_labels=NAMES)) == str(first) or first
            assert [mask["score"] for mask in segmenter(picture, candidate_labels=NAMES)] == [
                mask["score"] for mask in first
            ]


def test_a_pipeline_refuses_a_model_that_cannot_segment_by_names(library, clipseg_folder):
    processor = CLIPSegProcessor.from_pretrained(clipseg_folder)
    with pytest.raises(ValueError, match=r"CLIPSegForImageSegmentation cannot segment by names; .* ldvc.load"):
        pipeline("zero-shot-image-segmentation", model=library, processor=processor, device="cpu")
