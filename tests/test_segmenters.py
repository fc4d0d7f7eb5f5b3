"""What segments by names beside LDVC: each kind is asked the same, and CLIPSeg gives the library's own logits."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, build_clipseg
from PIL import Image
from transformers import (
    CLIPSegProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    ViTConfig,
    pipeline,
)

import ldvc as package
from ldvc.app.doctor import check_itself
from ldvc.app.explain import cross_attention_maps, describe, draw_routing, explain_pixel
from ldvc.app.labels import as_classes, parse_labels
from ldvc.data.vocabularies import WORD_LISTS, find_list
from ldvc.export.folder import describe as describe_export
from ldvc.export.folder import write_vocabulary
from ldvc.loading import find_kind, load
from ldvc.model.inference_ldvc import InferenceSettings, encode_classes, prepare_picture, segment, segment_batch
from ldvc.model.segmenter_ldvc import BACKGROUND, Rivals, read_rivals
from ldvc.segmenters.clipseg import CLIPSegSegmenter
from ldvc.segmenters.exported import ExportedSegmenter
from ldvc.segmenters.exported_folder import ExportedFolder, read_exported_folder


KINDS = ["ldvc", "clip", "clipseg"]
NAMES = ["cat", "dog", "sofa"]


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
def test_clipseg_gives_the_librarys_logits(clipseg_model, tokenizer, side, num_labels):
    names = [f"{['cat', 'dog', 'sofa', 'sky'][index % 4]} {index}" for index in range(num_labels)]
    inputs, pixels = prompts_of(names, tokenizer), torch.randn(1, 3, side, side)
    expected = clipseg_model(pixel_values=pixels.expand(num_labels, -1, -1, -1), **inputs).logits
    logits = CLIPSegSegmenter(clipseg_model)(pixel_values=pixels, **inputs).logits
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


def test_what_the_library_leaves_out_of_a_picture_continues_its_border(clipseg_model, tokenizer):
    inputs, pixels = prompts_of(["cat"], tokenizer), torch.randn(1, 3, 37, 37)
    expected = clipseg_model(pixel_values=pixels, **inputs).logits
    logits = CLIPSegSegmenter(clipseg_model)(pixel_values=pixels, **inputs).logits[0, 0]
    assert logits.shape == (37, 37)
    torch.testing.assert_close(logits[:32, :32], expected.view(32, 32), atol=1e-4, rtol=0)
    assert torch.equal(logits[32:, :32], logits[31:32, :32].expand(5, -1))


def test_a_picture_that_is_not_square_is_segmented_upright_and_turned(clipseg_model, tokenizer):
    model = CLIPSegSegmenter(clipseg_model)
    embeds = model.get_class_embeds(**prompts_of(NAMES, tokenizer))
    for size in ((16, 40), (40, 16), (21, 50)):  # 2 x 8 tokens are no square of 4 x 4, as the library takes them for
        assert model(pixel_values=torch.randn(1, 3, *size), class_embeds=embeds).logits.shape == (1, 3, *size)


@torch.no_grad()
def test_the_vision_tower_runs_once_for_any_number_of_labels_and_no_further_than_it_is_read(
    clipseg_model, tokenizer, monkeypatch
):
    calls = [0, 0, 0]
    for index, layer in enumerate(clipseg_model.clip.vision_model.encoder.layers):

        def count(module, inputs, index=index):
            calls[index] += 1

        monkeypatch.setattr(layer, "_forward_pre_hooks", type(layer._forward_pre_hooks)())
        layer.register_forward_pre_hook(count)
    model = CLIPSegSegmenter(clipseg_model)
    embeds = model.get_class_embeds(**prompts_of([f"cat {index}" for index in range(40)], tokenizer))
    features = model.get_image_features(torch.randn(2, 3, 32, 32))
    logits = model(image_features=features, class_embeds=embeds).logits
    assert calls == [1, 1, 0]  # of three layers the decoder reads the first two
    alone = model(image_features=features.select(1), class_embeds=embeds[7:8]).logits
    torch.testing.assert_close(alone[0, 0], logits[1, 7], atol=1e-4, rtol=0)


def test_several_prompts_of_a_class_are_mixed_as_clipseg_was_trained(clipseg_model, tokenizer):
    model, inputs = CLIPSegSegmenter(clipseg_model), prompts_of(["cat", "dog", "sky"], tokenizer)
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
def test_bad_calls_of_clipseg_are_refused(clipseg_model, case):
    arguments, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        CLIPSegSegmenter(clipseg_model)(**arguments)


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


def test_a_pipeline_refuses_a_model_that_cannot_segment_by_names(clipseg_model, clipseg_folder):
    processor = CLIPSegProcessor.from_pretrained(clipseg_folder)
    with pytest.raises(ValueError, match=r"CLIPSegForImageSegmentation cannot segment by names; .* ldvc.load"):
        pipeline("zero-shot-image-segmentation", model=clipseg_model, processor=processor, device="cpu")


# ---- what competes


def test_negative_labels_compete_and_come_back_as_other(loaded, picture):
    for kind in KINDS:
        model, processor = loaded[kind]
        everything = segment(model, processor, picture, [*NAMES, "sky", "grass"], return_scores=True)
        found = segment(
            model, processor, picture, NAMES, negative_labels=["sky", "grass"], return_scores=True, top_k=5
        )
        assert found.class_names == [*NAMES, "other"]
        assert torch.equal(found.label_map, everything.label_map.clamp(max=3)), kind
        torch.testing.assert_close(found.scores, everything.scores[:3])
        assert len(found.top_ids) == 3, "negative labels are never among the best classes"


def test_a_background_of_words_is_one_class_and_leaves_out_what_is_named(loaded, picture):
    model, processor = loaded["clipseg"]
    words = ["sky", "grass", "Dog"]
    found = segment(model, processor, picture, NAMES, background=words, return_scores=True, top_k=4)
    assert found.class_names == [*NAMES, BACKGROUND]
    everything = segment(model, processor, picture, [*NAMES, "sky", "grass"], return_scores=True)
    assert torch.equal(found.label_map, everything.label_map.clamp(max=3))
    torch.testing.assert_close(found.scores[3], everything.scores[3:].amax(0))
    assert torch.equal(found.top_ids[0], found.label_map)


def test_rivals_are_the_same_by_windows_with_embeddings_and_in_the_pipeline(loaded, picture):
    model, processor = loaded["clip"]
    options = {"negative_labels": ["sky"], "background": ["grass", "photo"]}
    found = segment(model, processor, picture, NAMES, threshold={"dog": 0.5}, **options)
    assert found.class_names == [*NAMES, BACKGROUND, "other"]
    _, embeds = encode_classes(model, processor, [*NAMES, "grass", "photo", "sky"])
    again = segment(model, processor, picture, NAMES, class_embeds=embeds, threshold={"dog": 0.5}, **options)
    assert torch.equal(found.label_map, again.label_map)
    segmenter = pipeline("zero-shot-image-segmentation", model=model, processor=processor, device="cpu")
    for windows in ({}, {"window": 24}):
        settings = InferenceSettings(0, 24) if windows else None
        label_map = segment(model, processor, picture, NAMES, settings=settings, **options).label_map.numpy()
        masks = segmenter(picture, candidate_labels=NAMES, **options, **windows)
        assert "other" not in {mask["label"] for mask in masks}
        inside = {mask["label"]: np.asarray(mask["mask"]) == 255 for mask in masks}
        for index, name in enumerate([*NAMES, BACKGROUND]):
            assert np.array_equal(inside.get(name, np.zeros_like(label_map, bool)), label_map == index)
    limits = {"cat": 0.5}
    first = segmenter(picture, candidate_labels=NAMES, negative_labels="sky, grass", threshold=limits)
    assert {mask["label"] for mask in first} <= set(NAMES)


def test_rivals_of_the_default_vocabulary_stand_beside_its_embeddings(loaded, picture):
    model, processor = loaded["ldvc"]
    named = segment(model, processor, picture, NAMES, negative_labels={"sky": ["sky", "heaven"]})
    own = segment(model, processor, picture, negative_labels={"sky": ["sky", "heaven"]})
    assert own.class_names == [*NAMES, "other"]
    assert torch.equal(named.label_map, own.label_map)
    segmenter = pipeline("zero-shot-image-segmentation", model=model, processor=processor, device="cpu")
    masks = segmenter(picture, negative_labels={"sky": ["sky", "heaven"]})
    assert {mask["label"] for mask in masks} == {NAMES[index] for index in own.label_map.unique() if index < 3}


def test_the_offset_of_seen_classes_lowers_rivals_that_trained_with_masks(make_model, tiny_processor, picture):
    model = make_model(seen_classes=["cat", "sky"], seen_score_offset=0.9)
    plain = make_model()
    lowered = segment(model, tiny_processor, picture, ["cat", "dog"], negative_labels=["sky"], return_scores=True)
    as_is = segment(plain, tiny_processor, picture, ["cat", "dog", "sky"], return_scores=True)
    torch.testing.assert_close(lowered.scores[0], as_is.scores[0] - 0.9)
    torch.testing.assert_close(lowered.scores[1], as_is.scores[1])
    assert not (lowered.label_map == 2).any(), "sky lost 0.9"


BAD_RIVALS = [
    ({"negative_labels": ["cat"]}, "'cat' is a class of this call and a negative label too; a word is one of them"),
    ({"negative_labels": ["Cat"]}, "'Cat' is given twice"),
    ({"negative_labels": []}, "empty"),
    ({"background": ["CAT", "dog"]}, "every word of the background is named in this call by itself"),
    ({"background": ["sky", "sky"]}, "'sky' is given twice"),
    ({"background": ["sky"], "negative_labels": ["background"]}, "'background' is named in this call"),
]


@pytest.mark.parametrize(("options", "message"), BAD_RIVALS, ids=str)
def test_rivals_that_contradict_the_classes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        read_rivals({"cat": "cat", "dog": ["dog", "puppy"]}, **options)


def test_channels_of_rivals_follow_those_of_the_classes():
    assert read_rivals(["a", "b"]) == Rivals({})
    assert Rivals({}).class_ids(2) is None
    rivals = read_rivals(["a", "b"], ["x", "y"], ["p", "q", "r"])
    assert list(rivals.words) == ["p", "q", "r", "x", "y"]
    assert rivals.class_ids(2) == [0, 1, 2, 2, 2, -1, -1]
    assert (rivals.names(["a", "b"]), rivals.has_other) == (["a", "b", BACKGROUND], True)


# ---- explanations


@pytest.mark.parametrize("kind", ["clip", "clipseg"])
def test_a_pixel_of_another_kind_is_explained_without_routes(loaded, picture, kind):
    model, processor = loaded[kind]
    explanation = explain_pixel(model, processor, picture, NAMES, (20, 30))
    found = segment(model, processor, picture, NAMES, top_k=3)
    assert [best.name for best in explanation.top_classes] == [NAMES[index] for index in found.top_ids[:, 20, 30]]
    assert explanation.top_classes[0].probability == pytest.approx(found.top_scores[0, 20, 30].item(), abs=1e-4)
    assert explanation.region.top <= 20 < explanation.region.bottom
    reason = f"{type(model).__name__} has none of LDVC's decoder layers"
    assert reason in describe(explanation)
    with pytest.raises(ValueError, match=f"there are no routes to draw: {reason}"):
        draw_routing(picture, explanation)
    with pytest.raises(ValueError, match=f"{reason}, so no cross-attention"):
        cross_attention_maps(model, processor, picture, NAMES)


# ---- exported programs


class FakeProgram:
    """Stands for a program's runtime: the logits of the model that it was exported from."""

    def __init__(self, folder):
        self.folder = read_exported_folder(folder)

    def __call__(self, pixel_values, class_embeds):
        self.folder.check(pixel_values.shape, class_embeds.shape)
        return self.model(pixel_values=pixel_values, class_embeds=class_embeds).logits

    def encode_prompts(self, input_ids, attention_mask=None):
        return self.model.get_class_embeds(input_ids, attention_mask)


@pytest.fixture
def exported(checkpoint, tmp_path, monkeypatch):
    """Return a folder as `ldvc export` writes it; its program is the checkpoint itself."""
    model, processor = load(checkpoint, "cpu")
    for name in ("model.onnx", "text.onnx"):
        (tmp_path / name).touch()
    described = describe_export(model, processor, "onnx")
    ExportedFolder(**described, picture_program="model.onnx", text_program="text.onnx").write(tmp_path)
    write_vocabulary(model, processor, tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(FakeProgram, "model", model, raising=False)
    monkeypatch.setattr("ldvc.segmenters.exported.ExportedLDVC", FakeProgram)
    return tmp_path


def test_an_exported_program_answers_for_its_own_names_as_its_checkpoint(exported, checkpoint, picture):
    model, processor = load(exported)
    assert isinstance(model, ExportedSegmenter)
    expected = segment(*load(checkpoint, "cpu"), picture)
    found = segment(model, processor, picture)
    assert found.class_names == expected.class_names == NAMES
    assert torch.equal(found.label_map, expected.label_map)
    segmenter = pipeline("zero-shot-image-segmentation", model=model, processor=processor, device="cpu")
    assert {mask["label"] for mask in segmenter(picture)} == {NAMES[index] for index in found.label_map.unique()}


def test_an_exported_program_takes_new_names_and_synonyms(exported, checkpoint, picture):
    for names in (["zebra", "sky"], {"animal": ["cat", "dog"], "sky": ["sky"]}):
        expected = segment(*load(checkpoint, "cpu"), picture, names, top_k=2)
        found = segment(*load(exported), picture, names, top_k=2)
        torch.testing.assert_close(found.top_scores, expected.top_scores)


def test_what_an_exported_program_cannot_do_is_said_in_a_line(exported, picture):
    model, processor = load(exported)
    with pytest.raises(ValueError, match="multiples of 16"):
        segment(model, processor, picture, settings=InferenceSettings(0, 0))
    with pytest.raises(ValueError, match="it runs on the CPU, in the numbers it was written in"):
        load(exported, dtype="bfloat16")
    with pytest.raises(ValueError, match="is an exported program, which has no setting 'method'"):
        load(exported, method="value")


# ---- through the command


@pytest.fixture
def picture_file(picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def read_map(folder):
    return np.asarray(Image.open(folder / "picture.png"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_segments_with_every_kind(ldvc, folders, loaded, picture, picture_file, tmp_path, kind):
    call = ["segment", picture_file, "-m", folders[kind], "-o", tmp_path / "out", "-f", "png", "--device", "cpu"]
    done = ldvc(*call, "-l", "cat, dog|puppy, sofa", "--not", "sky", "--background", "grass, dog")
    assert done.exit_code == 0, done.output
    classes = {"cat": ["cat"], "dog": ["dog", "puppy"], "sofa": ["sofa"]}
    expected = segment(*loaded[kind], picture, classes, negative_labels=["sky"], background=["grass", "dog"])
    assert np.array_equal(read_map(tmp_path / "out"), expected.label_map.numpy())
    names = json.loads((tmp_path / "out" / "names.json").read_text())
    assert list(names["names"].values()) == [*NAMES, BACKGROUND, "other"]
    assert names["negative_labels"] == {"sky": ["sky"]}
    assert names["background"] == ["grass", "dog"]


def test_names_of_vocabularies_stand_for_their_classes(ldvc, clip_folder, picture_file, tmp_path):
    call = ["segment", picture_file, "-m", clip_folder, "-o", tmp_path / "out", "-f", "png"]
    assert ldvc(*call, "-l", "voc2012", "--background", "stuff", "--method", "value").exit_code == 0
    names = json.loads((tmp_path / "out" / "names.json").read_text())
    assert list(names["names"].values()) == [*find_list("voc2012"), BACKGROUND]
    assert names["background"] == list(WORD_LISTS["stuff"])
    assert names["settings"] == {"method": "value"}
    checked = json.loads(ldvc("labels", "check", "voc2012", "-m", clip_folder, "--json").stdout)
    assert checked["labels"] == list(find_list("voc2012"))


@pytest.mark.parametrize(("name", "count"), [("ade20k", 150), ("cityscapes", 19), ("coco_stuff", 171), ("voc20", 20)])
def test_every_benchmarks_names_may_be_asked_for_by_its_name(name, count):
    listed = as_classes(parse_labels(f" {name} "))
    assert len(listed) == count
    assert as_classes(parse_labels(f"{name}, cat")) == {name: [name], "cat": ["cat"]}, "among others it is a label"


def test_results_of_another_method_are_not_taken_for_those_of_this_one(ldvc, clip_folder, picture_file, tmp_path):
    call = ["segment", picture_file, "-m", clip_folder, "-o", tmp_path / "out", "-f", "png", "-l", "cat, dog"]
    assert ldvc(*call, "--method", "value").exit_code == 0
    assert ldvc(*call, "--method", "tokens", "--skip-existing").exit_code == 2


@pytest.mark.parametrize("kind", ["clip", "clipseg"])
def test_labels_bench_and_doctor_take_every_kind(ldvc, folders, kind):
    done = ldvc("labels", "check", "cat, dog, sofa", "-m", folders[kind])
    assert done.exit_code == 0, done.output
    assert "| cosine |" in done.stdout
    values = [float(cell) for line in done.stdout.splitlines() for cell in line.split("|")[2:5] if "1.00" in line]
    assert max(values) == 1.0, "cosines, whatever the length of the embeddings"
    done = ldvc("bench", "-m", folders[kind], "--classes", "2", "--batches", "1", "--repeats", "1", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert not [check for check in check_itself(folders[kind]) if check.is_failure]


def test_bench_says_that_a_program_has_no_tower(ldvc, exported):
    done = ldvc("bench", "-m", exported, "--classes", "2", "--batches", "1", "--repeats", "1")
    assert done.exit_code == 2
    assert "no vision tower of its own" in done.stderr


NEGATIONS = ["person without helmet", "no entry sign", "NOT a cat", "non-smoker", "everything except sky"]


@pytest.mark.parametrize("label", NEGATIONS)
def test_the_label_check_warns_of_negations(ldvc, checkpoint, label):
    found = json.loads(ldvc("labels", "check", label, "-m", checkpoint, "--json").stdout)["findings"]
    (finding,) = [finding for finding in found if finding["kind"] == "negation"]
    assert finding["level"] == "warning"
    assert "which CLIP reads past" in finding["message"]
    assert "--not" in finding["message"]


@pytest.mark.parametrize("label", ["notebook", "nothing", "snow", "piano", "canon"])
def test_words_that_only_look_like_negations_are_left_alone(ldvc, checkpoint, label):
    found = json.loads(ldvc("labels", "check", label, "-m", checkpoint, "--json").stdout)["findings"]
    assert not [finding for finding in found if finding["kind"] == "negation"]


# ---- what cannot be used is one line


@pytest.fixture(scope="module")
def strangers(tmp_path_factory, clip_folder, clipseg_folder):
    """Return folders that cannot segment by names."""
    folder = tmp_path_factory.mktemp("strangers")
    SiglipConfig().save_pretrained(folder / "siglip")
    ViTConfig().save_pretrained(folder / "vit")
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    tiny = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    CLIPVisionModel(tiny).save_pretrained(folder / "tower")
    for source, name in ((clip_folder, "no_tokenizer"), (clipseg_folder, "no_weights")):
        (folder / name).mkdir()
        for file in source.iterdir():
            if "token" not in file.name if name == "no_tokenizer" else file.suffix != ".safetensors":
                (folder / name / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("name", "mentions"),
    [
        ("siglip", ("it holds a 'siglip' model", "'clip'", "'clipseg'")),
        ("vit", ("it holds a 'vit' model",)),
        ("bert", ("it holds a 'bert' model",)),
        ("tower", ("one of CLIP's towers alone ('clip_vision_model')", "give the whole CLIPModel")),
        ("no_tokenizer", ("cannot be loaded", "no tokenizer", "vocab.json")),
        ("no_weights", ("cannot be loaded",)),
    ],
)
def test_a_model_that_cannot_segment_by_names_is_one_line(ldvc, strangers, picture_file, name, mentions):
    assert_one_line(ldvc("segment", picture_file, "-m", strangers / name, "-l", "cat"), *mentions)


@pytest.mark.parametrize(
    ("kind", "options", "mentions"),
    [
        ("clip", ["--method", "values"], ("`method` is 'values'", "'value'")),
        ("clip", ["--method", "value", "--setting", "no_such_setting=3"], ("no_such_setting",)),
        ("clip", ["--setting", "method"], ("--setting 'method' has no value", "NAME=VALUE")),
        ("clip", ["--method", "value", "--setting", "method=tokens"], ("sets 'method' a second time",)),
        ("clipseg", ["--method", "value"], ("is CLIPSeg, which has no setting 'method'",)),
        ("ldvc", ["--method", "value"], ("`method` is neither a field of LDVCConfig",)),
        ("clip", ["--seen-score-offset", "0.1"], ("seen_score_offset",)),
        ("clip", ["--not", "cat"], ("'cat' is a class of this call and a negative label too",)),
        ("clip", ["--background", "cat"], ("every word of the background",)),
        ("clip", ["--not", "sky", "--other", "cat"], ("'cat' is one of the classes", "--other")),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_one_line(ldvc, folders, picture_file, kind, options, mentions):
    assert_one_line(ldvc("segment", picture_file, "-m", folders[kind], "-l", "cat", *options), *mentions)


@pytest.mark.parametrize("kind", ["clip", "clipseg"])
def test_without_labels_a_model_without_classes_of_its_own_asks_for_them(ldvc, folders, picture_file, kind):
    assert_one_line(ldvc("segment", picture_file, "-m", folders[kind]), "name the classes with --labels")
    segmenter = pipeline("zero-shot-image-segmentation", model=str(folders[kind]), device="cpu")
    with pytest.raises(ValueError, match="the call names no classes"):
        segmenter(picture_file)


def test_a_size_that_clipseg_cannot_take_is_named(ldvc, clipseg_folder, picture_file, tmp_path):
    done = ldvc("segment", picture_file, "-m", clipseg_folder, "-l", "cat", "-o", tmp_path / "out", "--window", "5")
    assert done.exit_code == 1
    assert "is 5 x 5 pixels, less than one patch of this CLIPSeg (8)" in done.stderr


def assert_one_line(done, *mentions):
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    for mention in mentions:
        assert mention in done.stderr


# ---- by id, from a cache that the test lays out


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory, clip_folder, clipseg_folder):
    """Return a cache of the Hub as a download leaves it, with a CLIP and a CLIPSeg under ids."""
    cache, commit = tmp_path_factory.mktemp("hub"), "0" * 40
    for name, source in (("lab--clip", clip_folder), ("lab--clipseg", clipseg_folder)):
        snapshot = cache / f"models--{name}" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (cache / f"models--{name}" / "refs").mkdir()
        (cache / f"models--{name}" / "refs" / "main").write_text(commit)
        for file in source.iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())
    return cache


BY_ID = """
import sys
from transformers import pipeline
import ldvc
for name in ("lab/clip", "lab/clipseg"):
    model, processor = ldvc.load(name, "cpu")
    found = ldvc.segment(model, processor, sys.argv[1], ["cat", "dog"])
    segmenter = pipeline("zero-shot-image-segmentation", model=name, device="cpu")
    masks = segmenter(sys.argv[1], candidate_labels="cat, dog")
    print(type(model).__name__, tuple(found.label_map.shape), sorted(mask["label"] for mask in masks) != [])
try:
    ldvc.load("lab/nowhere")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_ids_are_loaded_from_the_cache_and_a_missing_one_is_one_line(hub_cache, picture_file):
    environment = os.environ | {"HF_HUB_CACHE": str(hub_cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", BY_ID, str(picture_file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "TrainingFreeCLIP (40, 56) True",
        "CLIPSegSegmenter (40, 56) True",
        "'lab/nowhere' is not in this machine's cache, and the Hub is not asked (HF_HUB_OFFLINE is set); fetch it "
        "once with: hf download lab/nowhere",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ldvc", "segment", str(picture_file), "-m", "lab/nowhere", "-l", "cat"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'lab/nowhere' is not in this machine's cache" in done.stderr


# ---- evaluation


@pytest.mark.slow
def test_a_clipseg_is_scored_by_the_protocol_of_all_and_marked_as_unaudited(clipseg_folder, scenes, tmp_path, capsys):
    from ldvc.commands.scoring import evaluate

    arguments = [str(clipseg_folder), "--dataset", str(scenes), "--class_names", "[cat, dog, sofa, grass]"]
    arguments += ["--unseen_classes", "[sofa]", "--short_side", "24", "--window", "0", "--num_images", "2"]
    assert evaluate([*arguments, "--output", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["audit"]["status"] == "unaudited"
    assert len(result["scores"]["0.0"]["per_class_iou"]) == 4
    assert "UNAUDITED" in capsys.readouterr().out
