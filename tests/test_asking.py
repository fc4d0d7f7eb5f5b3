"""Questions as people ask them: options by other names, odd labels, stacked items, outputs that are none."""

import re
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, default_data_collator, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # until 5.16 the other is no class

from ldvc.model.image_processing_ldvc import LDVCImageProcessor
from ldvc.model.pipeline_ldvc import TASK
from ldvc.model.processing_ldvc import LDVCProcessor


PICTURE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
IDS = np.arange(40 * 56).reshape(40, 56) % 5


# ---- options: known, accepted by the library's name, or refused


@pytest.mark.parametrize("name", ["reduce_labels", "do_reduce_labels"])
def test_labels_are_reduced_by_either_name_wherever_it_is_given(checkpoint, tiny_processor, name):
    expected = [255, 0, 1, 2, 3]
    call = {"images": PICTURE, "segmentation_maps": IDS, "return_tensors": "pt", "do_resize": False}
    for processor, more in (
        (LDVCProcessor.from_pretrained(checkpoint, **{name: True}), {}),
        (AutoProcessor.from_pretrained(checkpoint, **{name: True}), {}),
        (AutoImageProcessor.from_pretrained(checkpoint, **{name: True}), {}),
        (LDVCImageProcessor(**{name: True}), {}),
        (tiny_processor, {name: True}),
        (tiny_processor, {"images_kwargs": {name: True}}),
        (tiny_processor.image_processor, {name: True}),
    ):
        assert processor(**call, **more)["labels"][0, 0, :5].tolist() == expected


def test_the_librarys_name_is_saved_as_ours(tmp_path):
    LDVCImageProcessor(do_reduce_labels=True).save_pretrained(tmp_path)
    assert LDVCImageProcessor.from_pretrained(tmp_path).reduce_labels is True


# Of the library's other processors; ours knows none of them.
FOREIGN = ["size_divisor", "do_flip_channel_order", "keep_aspect_ratio"]


@pytest.mark.parametrize("name", FOREIGN)
def test_options_of_other_processors_are_refused_wherever_they_are_given(checkpoint, tiny_processor, name):
    option = {name: 1}
    for ask in (
        lambda: LDVCProcessor.from_pretrained(checkpoint, **option),
        lambda: AutoProcessor.from_pretrained(checkpoint, **option),
        lambda: AutoImageProcessor.from_pretrained(checkpoint, **option),
        lambda: LDVCImageProcessor(**option),
        lambda: tiny_processor(images=PICTURE, **option),
        lambda: tiny_processor(images=PICTURE, images_kwargs=option),
        lambda: tiny_processor.image_processor(PICTURE, **option),
    ):
        with pytest.raises(TypeError, match=f"`{name}` is no option of LDVC"):
            ask()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"do_center_crop": True}, "`do_center_crop` is True, but label maps would not lie on the whole picture"),
        ({"do_pad": True}, "`do_pad` is True, but label maps would not lie on the picture"),
        (
            {"device": "cuda"},
            r"`device` is 'cuda', but pictures are prepared on the CPU; move the result with inputs\.to",
        ),
        ({"data_format": "channels_last"}, "`data_format` is 'channels_last', but the model reads channels first"),
    ],
)
def test_what_would_be_left_undone_or_move_label_maps_is_refused(tiny_processor, option, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor(images=PICTURE, **option)
    with pytest.raises(ValueError, match=message):
        LDVCImageProcessor(**option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"candidate_labels": ["cat"]}, "it is called `class_names` here"),
        ({"text_queries": ["cat"]}, "it is called `class_names` here"),
        ({"hypothesis_template": "a {}"}, "it is called `prompt_templates` here"),
        ({"labels": IDS}, "it is called `segmentation_maps` here"),
        ({"reduce_label": True}, "did you mean `reduce_labels`"),
        ({"text_kwargs": {"text_pair": "a"}}, "`text_pair` is no option of LDVCProcessor's `text_kwargs`"),
        ({"return_overflowing_tokens": True}, "is no option of LDVCProcessor"),
    ],
)
def test_the_processor_names_its_own_word_for_an_option(tiny_processor, option, message):
    with pytest.raises(TypeError, match=message):
        tiny_processor(images=PICTURE, class_names=["cat"], **option)


def test_truncation_cuts_no_name_short(tiny_processor):
    plain = tiny_processor(class_names=["cat"], return_tensors="pt")
    cut = tiny_processor(class_names=["cat"], truncation=True, max_length=77, padding=True, return_tensors="pt")
    assert torch.equal(cut["input_ids"], plain["input_ids"])
    with pytest.raises(ValueError, match="7 tokens long, the text tower reads 5; shorten it"):
        tiny_processor(class_names=["cat"], truncation=True, max_length=5)


def test_a_pipeline_hands_on_what_its_model_is_loaded_with(checkpoint):
    loading = {"attn_implementation": "eager", "seen_score_offset": 0.1}
    for task in (TASK, "image-segmentation"):
        pipe = pipeline(task, model=str(checkpoint), model_kwargs=loading, device="cpu", trust_remote_code=True)
        assert pipe.model.config.seen_score_offset == 0.1


PIPELINE_OPTIONS = {
    "hypothesis_template": "it is called `prompt_templates` of the processor, here",
    "text_queries": "it is called `candidate_labels` here",
    "class_names": "it is called `candidate_labels` here",
    "labels": "it is called `candidate_labels` here",
    "mask_threshold": "it is called `threshold` here",
    "thresholds": "did you mean `threshold`",
    "subtask": "leave it out",
}


@pytest.mark.parametrize("name", PIPELINE_OPTIONS)
def test_the_pipeline_names_its_own_word_for_an_option(make_model, tiny_processor, name):
    message = re.escape(f"`{name}` is no option of this pipeline; {PIPELINE_OPTIONS[name]}")
    with pytest.raises(TypeError, match=message):
        pipeline(TASK, model=make_model(), processor=tiny_processor, device="cpu", **{name: "x"})
    pipe = pipeline(TASK, model=make_model(), processor=tiny_processor, device="cpu")
    with pytest.raises(TypeError, match=message):
        pipe(PICTURE, candidate_labels=["cat"], **{name: "x"})
    with pytest.raises(TypeError, match="`images` is no option of this pipeline; it is called `image` here"):
        pipe(images=PICTURE, candidate_labels=["cat"])
    with pytest.raises(TypeError, match="there is no picture; pass it first, or as `image`"):
        pipe(candidate_labels=["cat"])


# ---- templates of a folder without a processor


def saved_by_stock_pipeline(folder, model, processor):
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    pipeline("image-segmentation", model=model, **parts, device="cpu").save_pretrained(folder)
    assert "processor_config.json" not in {path.name for path in folder.iterdir()}
    return folder


def test_templates_survive_a_pipeline_of_the_library_or_are_asked_for(make_model, clip_folder, tmp_path):
    processor = LDVCProcessor.from_clip_pretrained(clip_folder, size=32, prompt_templates=["a {}", "the {} of sky"])
    model = make_model(num_text_prompts=0)
    folder = saved_by_stock_pipeline(tmp_path / "bare", model, processor)
    for auto in (LDVCProcessor, AutoProcessor):
        with pytest.raises(ValueError, match=r"no processor was saved in .*; pass those .* prompt_templates='a photo"):
            auto.from_pretrained(folder)
        assert auto.from_pretrained(folder, prompt_templates=["a {}"]).prompt_templates == ["a {}"]
    model.set_vocabulary(["cat"], processor)
    folder = saved_by_stock_pipeline(tmp_path / "set", model, processor)
    assert AutoProcessor.from_pretrained(folder).prompt_templates == ["a {}", "the {} of sky"]


def test_the_template_of_text_prompts_is_that_of_the_configuration(make_model, clip_folder, tmp_path):
    processor = LDVCProcessor.from_clip_pretrained(clip_folder, size=32, prompt_templates="a sky of {}")
    model = make_model(prompt_template="a sky of {}", num_text_prompts=3)
    folder = saved_by_stock_pipeline(tmp_path / "model", model, processor)
    assert LDVCProcessor.from_pretrained(folder).prompt_templates == ["a sky of {}"]


# ---- items of one picture each, stacked by a data loader


def item(processor, names, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    question = processor(images=picture, class_names=names, return_tensors="pt")
    return {**question, "pixel_values": question["pixel_values"][0]}


STACKS = {
    "names": [["cat", "sky"], ["dog", "sofa"]],
    "synonyms": [{"cat": ["cat", "dog"], "sky": ["sky"]}, {"sky": ["sky"], "sofa": ["sofa", "grass"]}],
    "lists": [[["cat", "sky"]], [["dog", "sofa"]]],
    "lists with synonyms": [[{"cat": ["cat", "dog"], "sky": ["sky"]}], [{"sky": ["sky"], "sofa": ["sofa", "grass"]}]],
}


@pytest.mark.parametrize("case", STACKS)
@torch.no_grad()
def test_stacked_questions_of_one_picture_each_are_answered_as_single_ones(tiny_model, tiny_processor, case):
    items = [item(tiny_processor, names, seed) for seed, names in enumerate(STACKS[case])]
    together = tiny_model(**default_data_collator(items)).logits
    for index, own in enumerate(items):
        alone = tiny_model(**{**own, "pixel_values": own["pixel_values"][None]}).logits[0]
        torch.testing.assert_close(together[index], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_stacked_synonyms_of_different_numbers_of_classes_are_refused(tiny_model, tiny_processor):
    names = [{"cat": ["cat", "dog"], "sky": ["sky"]}, {"cat": ["cat", "dog", "sky"]}]
    batch = default_data_collator([item(tiny_processor, own, 0) for own in names])
    with pytest.raises(
        ValueError, match=r"names \[2, 1\] classes of the images; .*class_names=\[\[\.\.\.\], \[\.\.\.\]\]"
    ):
        tiny_model(**batch)


def test_classes_of_prompts_must_fit_the_prompts(tiny_model, tiny_processor):
    inputs = tiny_processor(class_names=["cat", "sky"], return_tensors="pt")
    for class_ids in (torch.tensor([0]), torch.tensor([[0, 1]])):
        with pytest.raises(ValueError, match="it names the class of each prompt, as the processor returns it"):
            tiny_model.get_class_embeds(**inputs, prompt_class_ids=class_ids)


# ---- labels


ACCENT = "\u00e9clair"


@pytest.mark.parametrize(
    "names", [[ACCENT, unicodedata.normalize("NFD", ACCENT)], ["\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"]]
)
def test_one_name_in_two_unicode_forms_is_given_twice(make_model, tiny_processor, names):
    pipe = pipeline(TASK, model=make_model(), processor=tiny_processor, device="cpu")
    for ask in (
        lambda: tiny_processor(class_names=names),
        lambda: tiny_processor(class_names={"a": [names[0]], "b": [names[1]]}),
        lambda: pipe(PICTURE, candidate_labels=names),
        lambda: pipe(PICTURE, candidate_labels=", ".join(names)),
        lambda: pipe.model.set_vocabulary(names, tiny_processor),
    ):
        with pytest.raises(ValueError, match="is given twice"):
            ask()


def test_seen_classes_are_known_in_either_unicode_form(make_model):
    model = make_model(seen_classes=[ACCENT])
    assert model.seen_class_mask([unicodedata.normalize("NFD", ACCENT), "cat"]).tolist() == [True, False]


def test_names_that_the_tokenizer_reads_alike_are_refused_in_one_list_only(tiny_processor, monkeypatch):
    own = tiny_processor.tokenizer.__class__.__call__
    monkeypatch.setattr(  # as a tokenizer without accents does
        tiny_processor.tokenizer.__class__,
        "__call__",
        lambda self, text, **options: own(self, [one.replace("\u00e9", "e") for one in text], **options),
    )
    with pytest.raises(
        ValueError, match="reads 'a photo of a \u00e9clair' and 'a photo of a eclair' as the same text"
    ):
        tiny_processor(class_names=[ACCENT, "eclair"])
    assert tiny_processor(class_names=[[ACCENT, "cat"], ["eclair", "cat"]])["class_mask"] == [[1, 1], [1, 1]]
    tiny_processor(class_names={"eclair": ["eclair", ACCENT]})


@pytest.mark.parametrize(
    "label", ["<|endoftext|>cat", "cat <|endoftext|>", "<|startoftext|>", "cat<|startoftext|>sky"]
)
def test_special_tokens_in_a_label_are_refused(make_model, tiny_processor, label):
    pipe = pipeline(TASK, model=make_model(), processor=tiny_processor, device="cpu")
    for ask in (
        lambda: tiny_processor(class_names=["sky", label]),
        lambda: tiny_processor(text=["sky", label]),
        lambda: pipe(PICTURE, candidate_labels=["sky", label]),
    ):
        with pytest.raises(
            ValueError, match=r"holds '<\|(start|end)oftext\|>', where a text begins or ends .* remove it"
        ):
            ask()


@pytest.mark.parametrize("label", ["cat. sky. grass.", "cat; sky; grass", "\u732b\u3001\u7a7a"])
def test_a_list_that_was_read_as_one_label_is_told(tiny_processor, caplog, label):
    with caplog.at_level("WARNING"):
        tiny_processor(class_names=[label])
    assert "is one class; if it is a list, give its names apart" in caplog.text


@pytest.mark.parametrize("names", [["cat"], ["t.v."], ["a 1.5 m pole"], ["cat. sky.", "grass"]])
def test_other_labels_are_not(tiny_processor, caplog, names):
    with caplog.at_level("WARNING"):
        tiny_processor(class_names=names)
    assert not caplog.text


# ---- outputs


@torch.no_grad()
def test_what_is_no_output_is_refused_by_post_processing(tiny_model, tiny_processor, pixel_values):
    inputs = tiny_processor(class_names=["cat", "sky"], return_tensors="pt")
    outputs = tiny_model(pixel_values, **inputs)
    as_tuple = tiny_model(pixel_values, **inputs, return_dict=False)
    for post_process in (
        tiny_processor.post_process_semantic_segmentation,
        tiny_processor.image_processor.post_process_semantic_segmentation,
    ):
        for kind, wrong in (("Tensor", outputs.logits), ("tuple", as_tuple), ("list", [outputs])):
            with pytest.raises(TypeError, match=f"`outputs` is a {kind}; pass the model's whole output"):
                post_process(wrong)
        with pytest.raises(ValueError, match=r"the `logits` of `outputs` have shape \(2, 4, 4\)"):
            post_process({"logits": outputs.logits[0]})
        with pytest.raises(ValueError, match="the `logits` of `outputs` have type NoneType"):
            post_process({"loss": torch.zeros(())})
        assert torch.equal(post_process({"logits": outputs.logits})[0], post_process(outputs)[0])


def test_pictures_of_pillow_and_arrays_mix_in_one_call(tiny_processor):
    pixels = tiny_processor(images=[PICTURE, Image.fromarray(PICTURE)], return_tensors="pt").pixel_values
    assert torch.equal(pixels[0], pixels[1])
