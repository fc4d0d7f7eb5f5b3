"""Bad calls: each raises the right error, and the message names the value and the remedy."""

import json
import pickle
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import png_of
from fuzz import at_most
from PIL import Image
from typer.testing import CliRunner

from ldvc.app import session
from ldvc.app.cli import app
from ldvc.loading import load_checkpoint
from ldvc.model.image_processing_ldvc import LDVCImageProcessor
from ldvc.model.loss_ldvc import segmentation_loss
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.pipeline_ldvc import ZeroShotImageSegmentationPipeline
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.training.recipe import RecipeError, read_recipe


def assert_raises(call, error, mentions):
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error, "not a subclass by accident"
    for mention in mentions:
        assert mention in str(caught.value)


# ---- class names and templates

NAMES = [
    ("cat", TypeError, ("'cat'", "list of names")),
    (7, TypeError, ("7", "list of names")),
    ([], ValueError, ("empty", "at least one")),
    ({}, ValueError, ("empty", "at least one")),
    (["cat", ""], ValueError, ("''", "empty", "give every class a name")),
    (["cat", "  "], ValueError, ("'  '", "empty")),
    (["cat", "cat"], ValueError, ("'cat'", "twice", "once")),
    (["cat", "Cat"], ValueError, ("'Cat'", "'cat'", "once")),
    (["hot dog", "hot  dog"], ValueError, ("'hot  dog'", "twice")),
    (["cat", 3], TypeError, ("3", "int", "strings")),
    (["cat", None], TypeError, ("None", "strings")),
    (["cat\n"], ValueError, ("'cat\\n'", "control character", "remove")),
    (["c\x00at"], ValueError, ("control character", "remove")),
    ({"sofa": []}, ValueError, ("'sofa'", "at least one word")),
    ({"sofa": ["sofa"], "couch": ["sofa"]}, ValueError, ("'sofa'", "twice")),
    ({"sofa": ["sofa", 4]}, TypeError, ("4", "strings")),
    ({"sofa": 4}, TypeError, ("4", "sofa", "list of words")),
    ({3: ["sofa"]}, TypeError, ("3", "int", "strings")),
    ({"": ["sofa"]}, ValueError, ("''", "empty")),
    ({"sofa": ["a"], "Sofa": ["b"]}, ValueError, ("'Sofa'", "twice")),
    ({"sofa": ["couch"], "Couch": ["settee"]}, ValueError, ("'Couch'", "synonym", "'sofa'", "one class only")),
    ([["cat"], "dog"], TypeError, ("'dog'", "list of names")),
    ([["cat"], []], ValueError, ("empty", "at least one")),
    (["x" * 200], ValueError, ("xxx", "tokens", "77", "shorten")),
]


@pytest.mark.parametrize(("names", "error", "mentions"), NAMES, ids=[repr(names)[:40] for names, *_ in NAMES])
def test_bad_class_names_are_refused_by_the_call_and_by_the_vocabulary(
    tiny_processor, tiny_model, names, error, mentions
):
    assert_raises(lambda: tiny_processor(class_names=names, return_tensors="pt"), error, mentions)
    before = tiny_model.config.to_json_string()
    with pytest.raises(error):
        tiny_model.set_vocabulary(names, tiny_processor)
    assert tiny_model.config.to_json_string() == before


TEMPLATES = [
    ("a photo", ("'a photo'", "exactly one {}")),
    ("{} and {}", ("'{} and {}'", "exactly one {}")),
    (["a {}", "b"], ("'b'", "exactly one {}")),
    ([], ("empty", "at least one")),
    ("", ("''", "exactly one {}")),
    ([None], ("None", "exactly one {}")),
]


@pytest.mark.parametrize(("templates", "mentions"), TEMPLATES, ids=str)
def test_bad_templates_are_refused(tiny_processor, templates, mentions):
    call = lambda: tiny_processor(class_names=["cat"], prompt_templates=templates, return_tensors="pt")  # noqa: E731
    assert_raises(call, ValueError, mentions)
    assert_raises(
        lambda: LDVCProcessor(tiny_processor.image_processor, tiny_processor.tokenizer, prompt_templates=templates),
        ValueError,
        mentions,
    )


def test_a_bad_template_that_was_assigned_is_refused_at_use(tiny_processor, clip_folder):
    processor = LDVCProcessor.from_clip_pretrained(clip_folder)
    for templates, mentions in TEMPLATES:
        processor.prompt_templates = templates
        assert_raises(lambda: processor(class_names=["cat"]), ValueError, mentions)
    processor.prompt_templates = "the {}"
    expected = tiny_processor(class_names=["cat"], prompt_templates=["the {}"])
    assert processor(class_names=["cat"])["input_ids"] == expected["input_ids"]


PICTURE = Image.new("RGB", (12, 10))
CALLS = {
    "nothing": ({}, ("images", "class_names", "text")),
    "text and names": ({"text": ["cat"], "class_names": ["cat"]}, ("text", "class_names", "one of them")),
    "maps alone": ({"segmentation_maps": [np.zeros((10, 12), int)], "class_names": ["cat"]}, ("images", "both")),
    "lists and images": (
        {"images": [PICTURE], "class_names": [["cat"], ["dog"]]},
        ("2 lists", "1 images", "one list each"),
    ),
    "long text": ({"text": ["x" * 100]}, ("102 tokens", "77", "shorten")),
    "no text": ({"text": []}, ("`text` is empty", "at least one")),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls_of_the_processor_are_refused(tiny_processor, case):
    arguments, mentions = CALLS[case]
    assert_raises(lambda: tiny_processor(**arguments, return_tensors="pt"), ValueError, mentions)


@pytest.mark.parametrize("text", [[["a"], ["b"]], [3], 3], ids=str)
def test_text_that_is_no_list_of_strings_is_refused(tiny_processor, text):
    assert_raises(lambda: tiny_processor(text=text), TypeError, ("`text`", "list of strings", "`class_names`"))


# ---- pictures and label maps


def ids(height=10, width=12, dtype=int):
    return np.zeros((height, width), dtype=dtype)


MAPS = {
    "RGB": (PICTURE, ("map 0", "3 channels", "one integer id per pixel")),
    "float": (ids(dtype=float), ("float64", "one integer id per pixel")),
    "other size": (ids(10, 11), ("(10, 11)", "(10, 12)", "one size")),
    "turned": (ids(12, 10), ("(12, 10)", "(10, 12)", "one size")),
    "two for one": ([ids(), ids()], ("1 images", "2 segmentation maps", "one each")),
    "none for one": ([], ("1 images", "0 segmentation maps", "one each")),
}


@pytest.mark.parametrize("case", MAPS)
def test_bad_label_maps_are_refused(tiny_processor, case):
    maps, mentions = MAPS[case]
    assert_raises(
        lambda: tiny_processor(images=PICTURE, segmentation_maps=maps, return_tensors="pt"), ValueError, mentions
    )


def test_the_second_bad_label_map_is_named(tiny_processor):
    call = lambda: tiny_processor(images=[PICTURE] * 2, segmentation_maps=[ids(), ids(3, 4)], return_tensors="pt")  # noqa: E731
    assert_raises(call, ValueError, ("map 1", "(3, 4)"))


PICTURES = {
    "number": (3, ("int", "PIL images")),
    "list of numbers": ([3], ("int", "PIL images")),
    "empty list": ([], ("empty list", "at least one image")),
    "no pixel": (np.zeros((0, 5, 3), np.uint8), ("(3, 0, 5)", "at least one pixel")),
    "five channels": (np.zeros((9, 9, 5), np.uint8), ("(9, 9, 5)", "1, 3 or 4 channels", "PIL image")),
    "NaN": (np.full((9, 9, 3), np.nan, np.float32), ("NaN", "clean")),
    "missing file": ("no/such/file.png", ("no/such/file.png", "cannot be read", "no such file")),
    "missing path": (Path("no/such/file.png"), ("no/such/file.png", "no such file")),
    "no server": ("http://localhost:1/a.png", ("http://localhost:1/a.png", "cannot be read")),
    "floats to 1": (np.full((9, 9, 3), 0.5), ("image 0", "0.5 to 0.5", "do_rescale=False", "0 to 255")),
    "tensor to 1": ([PICTURE, torch.ones(3, 9, 9)], ("image 1", "1 to 1", "do_rescale=False")),
    "floats with alpha": (np.full((9, 9, 4), 1.0, np.float32), ("image 0", "do_rescale=False")),
}


@pytest.mark.parametrize("case", PICTURES)
def test_bad_pictures_are_refused(tiny_processor, case):
    picture, mentions = PICTURES[case]
    assert_raises(lambda: tiny_processor(images=picture, return_tensors="pt"), ValueError, mentions)


def damaged_files(folder):
    """A truncated PNG, a truncated JPEG and a text file."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg"):
        noise.save(folder / f"whole.{suffix}")
        (folder / f"cut.{suffix}").write_bytes((folder / f"whole.{suffix}").read_bytes()[:2000])
    (folder / "text.png").write_text("this is no picture")
    return [folder / "cut.png", folder / "cut.jpg", folder / "text.png"]


def test_a_damaged_file_is_refused_by_name(tiny_processor, tmp_path):
    for path in damaged_files(tmp_path):
        for source in (path, str(path)):
            assert_raises(
                lambda source=source: tiny_processor(images=source, return_tensors="pt"), ValueError, (path.name,)
            )


def test_a_damaged_label_map_is_refused_by_name(tiny_processor, tmp_path):
    maps = Image.new("L", (64, 64))
    maps.putdata(np.random.default_rng(0).integers(0, 5, 64 * 64).tolist())
    maps.save(tmp_path / "map.png")
    (tmp_path / "map.png").write_bytes((tmp_path / "map.png").read_bytes()[:600])
    call = lambda: tiny_processor(  # noqa: E731
        images=Image.new("RGB", (64, 64)), segmentation_maps=tmp_path / "map.png", return_tensors="pt"
    )
    assert_raises(call, ValueError, ("map.png", "truncated"))


def test_pictures_that_make_no_batch_are_refused():
    processor = LDVCImageProcessor(size={"shortest_edge": 16})
    call = lambda: processor([PICTURE, Image.new("RGB", (50, 10))], return_tensors="pt")  # noqa: E731
    assert_raises(call, ValueError, ("(16, 19)", "(16, 80)", "one at a time", "fixed height and width"))


POST_PROCESSING = {
    "sizes": ({"target_sizes": [(4, 4)] * 3}, ("3 target sizes", "2 images", "one each")),
    "threshold above 1": ({"threshold": 1.5}, ("threshold", "1.5", "0 to 1")),
    "threshold below 0": ({"threshold": -0.1}, ("threshold", "-0.1", "0 to 1")),
    "threshold NaN": ({"threshold": float("nan")}, ("threshold", "nan", "0 to 1")),
    "empty size": ({"target_sizes": [(4, 0), (4, 4)]}, ("(4, 0)", "height, width")),
}


@pytest.mark.parametrize("case", POST_PROCESSING)
def test_bad_post_processing_is_refused(tiny_processor, case):
    options, mentions = POST_PROCESSING[case]
    outputs = {"logits": torch.randn(2, 3, 4, 4)}
    assert_raises(lambda: tiny_processor.post_process_semantic_segmentation(outputs, **options), ValueError, mentions)


@pytest.mark.parametrize("other", ["other", 1.5], ids=str)
def test_an_id_of_other_that_is_no_integer_is_refused(tiny_processor, other):
    outputs = {"logits": torch.randn(2, 3, 4, 4)}
    call = lambda: tiny_processor.post_process_semantic_segmentation(outputs, None, 0.5, other)  # noqa: E731
    assert_raises(call, TypeError, ("`other_label`", repr(other), "integer id", "set_vocabulary"))


def test_unknown_statistics_are_refused(clip_folder):
    call = lambda: LDVCProcessor.from_clip_pretrained(clip_folder, image_stats="coco")  # noqa: E731
    assert_raises(call, ValueError, ("'coco'", "'imagenet'", "'clip'"))


# ---- calls of the model

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
EMBEDS = torch.nn.functional.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
LABELS = torch.zeros(2, 32, 32, dtype=torch.long)


def with_id(value):
    labels = LABELS.clone()
    labels[1, 3, 4] = value
    return labels


FORWARD = {
    "no image": ({"class_embeds": EMBEDS}, ("pixel_values", "image_features", "exactly one")),
    "no classes": ({"pixel_values": PIXELS}, ("no default vocabulary", "set_vocabulary")),
    "ids and embeddings": (
        {"pixel_values": PIXELS, "class_embeds": EMBEDS, "input_ids": LABELS[0]},
        ("input_ids", "class_embeds", "one of them"),
    ),
    "no batch axis": ({"pixel_values": PIXELS[0], "class_embeds": EMBEDS}, ("(3, 32, 32)", "batch_size, 3, height")),
    "four channels": ({"pixel_values": torch.randn(1, 4, 32, 32), "class_embeds": EMBEDS}, ("(1, 4, 32, 32)", "3")),
    "smaller than a patch": (
        {"pixel_values": torch.randn(1, 3, 32, 7), "class_embeds": EMBEDS},
        ("32 x 7", "patch (8)", "resize"),
    ),
    "width": ({"pixel_values": PIXELS, "class_embeds": EMBEDS[:, :16]}, ("(4, 16)", "32", "get_class_embeds")),
    "no class": ({"pixel_values": PIXELS, "class_embeds": EMBEDS[:0]}, ("(0, 32)", "num_classes")),
    "lists for three": (
        {"pixel_values": PIXELS, "class_embeds": EMBEDS.expand(3, 4, 32)},
        ("3 images", "2 images", "one per image"),
    ),
    "mask": (
        {"pixel_values": PIXELS, "class_embeds": EMBEDS, "class_mask": torch.ones(2, 3)},
        ("class_mask", "(2, 3)", "(2, 4)"),
    ),
    "labels of another size": (
        {"pixel_values": PIXELS, "class_embeds": EMBEDS, "labels": LABELS[:, :30]},
        ("(2, 30, 32)", "(2, 32, 32)", "processor together"),
    ),
    "labels without batch": ({"pixel_values": PIXELS, "class_embeds": EMBEDS, "labels": LABELS[0]}, ("(32, 32)",)),
    "labels of one image": ({"pixel_values": PIXELS, "class_embeds": EMBEDS, "labels": LABELS[:1]}, ("(1, 32, 32)",)),
    "label too high": (
        {"pixel_values": PIXELS, "class_embeds": EMBEDS, "labels": with_id(4)},
        ("id 4", "4 classes", "0 to 3", "255", "order of the names"),
    ),
    "label below zero": ({"pixel_values": PIXELS, "class_embeds": EMBEDS, "labels": with_id(-1)}, ("id -1", "0 to 3")),
    "label of a padded class": (
        {
            "pixel_values": PIXELS,
            "class_embeds": EMBEDS,
            "class_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
            "labels": with_id(2),
        },
        ("id 2", "image 1", "2 classes"),
    ),
}


@pytest.mark.parametrize("case", FORWARD)
def test_bad_calls_of_the_model_are_refused(tiny_model, case):
    arguments, mentions = FORWARD[case]
    assert_raises(lambda: tiny_model(**arguments), ValueError, mentions)


UNKNOWN = {
    "class_names": (["cat"], ("belong to the processor", "model(**processor(")),
    "class_embed": (EMBEDS, ("did you mean `class_embeds`",)),
    "image_feature": (None, ("did you mean `image_features`",)),
    "output_route": (True, ("did you mean `output_routes`",)),
    "output_cross_attentions": (True, ("did you mean `output_attentions`",)),  # which they come with
    "zzz": (1, ("see the docstring",)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_argument_of_the_model_is_refused(tiny_model, name):
    value, mentions = UNKNOWN[name]
    call = lambda: tiny_model(pixel_values=PIXELS, class_embeds=EMBEDS, **{name: value})  # noqa: E731
    assert_raises(call, TypeError, (f"`{name}`", *mentions))


LISTS = {
    "pixel_values": {"pixel_values": PIXELS.tolist(), "class_embeds": EMBEDS},
    "class_embeds": {"pixel_values": PIXELS, "class_embeds": EMBEDS.tolist()},
    "input_ids": {"pixel_values": PIXELS, "input_ids": [[1, 2]]},
    "class_mask": {"pixel_values": PIXELS, "class_embeds": EMBEDS, "class_mask": [[1] * 4] * 2},
    "labels": {"pixel_values": PIXELS, "class_embeds": EMBEDS, "labels": LABELS.numpy()},
}


@pytest.mark.parametrize("name", LISTS)
def test_what_is_no_tensor_is_refused(tiny_model, name):
    mentions = (f"`{name}`", "not a tensor", "return_tensors='pt'")
    assert_raises(lambda: tiny_model(**LISTS[name]), TypeError, mentions)
    for method in ({"pixel_values": "get_image_features", "input_ids": "get_class_embeds"}.get(name),):
        if method is not None:
            assert_raises(lambda method=method: getattr(tiny_model, method)(LISTS[name][name]), TypeError, mentions)


def test_both_images_and_features_are_refused(tiny_model):
    features = tiny_model.get_image_features(PIXELS)
    assert_raises(
        lambda: tiny_model(PIXELS, image_features=features, class_embeds=EMBEDS), ValueError, ("exactly one",)
    )


def test_crops_without_any_label_give_a_finite_loss_and_gradient(tiny_model):
    for mode in ("negative", "ignore"):
        tiny_model.config.unlabeled_pixels = mode
        outputs = tiny_model(PIXELS, class_embeds=EMBEDS, labels=torch.full_like(LABELS, 255))
        assert outputs.loss.isfinite()
        assert outputs.dice_loss == 0
        assert (outputs.focal_loss == 0) == (mode == "ignore")
        outputs.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_model.parameters())


def test_prompts_of_another_template_are_refused(tiny_model, tiny_processor, tokenizer):
    for text in ("sofa", "a picture of a sofa", "a photo of"):
        call = lambda text=text: tiny_model(PIXELS, **tokenizer(text, return_tensors="pt"))  # noqa: E731
        assert_raises(call, ValueError, ("a photo of a {}", "num_text_prompts=0"))
    inputs = tiny_processor(class_names=["sofa"], prompt_templates="the {}", return_tensors="pt")
    assert_raises(lambda: tiny_model(PIXELS, **inputs), ValueError, ("a photo of a {}",))


def test_ids_padded_on_the_left_or_without_end_are_refused(tiny_model, tokenizer):
    ids = tokenizer("a photo of a cat", return_tensors="pt")["input_ids"]
    padded = torch.cat([ids.new_full((1, 2), tokenizer.pad_token_id), ids], dim=1)
    mask = torch.tensor([[0, 0, *[1] * ids.shape[1]]])
    assert_raises(lambda: tiny_model.get_class_embeds(padded, mask), ValueError, ("left", "padding_side='right'"))
    assert_raises(lambda: tiny_model.get_class_embeds(ids[:, :-1]), ValueError, ("row 0", "end token", "tokenizer"))


def test_ids_of_another_shape_or_vocabulary_are_refused(tiny_model, tokenizer):
    ids = tokenizer("a photo of a cat", return_tensors="pt")["input_ids"]
    assert_raises(lambda: tiny_model.get_class_embeds(ids[0]), ValueError, ("(7,)", "num_prompts, sequence_length"))
    assert_raises(lambda: tiny_model(PIXELS, input_ids=ids[0]), ValueError, ("(7,)", "num_prompts, sequence_length"))
    assert_raises(lambda: tiny_model.get_class_embeds(ids[:0]), ValueError, ("(0, 7)", "at least one"))
    long = torch.cat([ids, ids.new_full((1, 71), tokenizer.pad_token_id)], dim=1)
    assert_raises(lambda: tiny_model.get_class_embeds(long), ValueError, ("78 tokens", "77", "shorten"))
    outside = ids.clone()
    outside[0, 5] = 40_000
    assert_raises(lambda: tiny_model.get_class_embeds(outside), ValueError, ("40000", "532", "tokenizer"))


def test_bad_calls_of_the_loss_are_refused():
    logits, labels = torch.randn(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.long)
    assert_raises(lambda: segmentation_loss(logits[0], labels), ValueError, ("(2, 4, 4)", "(1, 8, 8)", "num_classes"))
    assert_raises(lambda: segmentation_loss(logits, labels[None]), ValueError, ("(1, 1, 8, 8)",))
    assert_raises(lambda: segmentation_loss(logits, labels.expand(2, 8, 8)), ValueError, ("(2, 8, 8)",))
    assert_raises(lambda: segmentation_loss(logits, labels + 2), ValueError, ("id 2", "2 classes", "map the ids"))
    assert_raises(
        lambda: segmentation_loss(logits, labels, unlabeled_pixels="drop"), ValueError, ("'drop'", "'ignore'")
    )


# ---- building on a CLIP

BUILD = {
    "misspelt field": (
        {"num_vision_promts": 3},
        TypeError,
        ("num_vision_promts", "did you mean `num_vision_prompts`"),
    ),
    "unknown field": ({"zzz": 3}, TypeError, ("zzz", "LDVCConfig")),
    "number of text prompts": ({"num_text_prompts": 3}, ValueError, ("3", "a photo of a {}", "num_text_prompts=4")),
    "no words": ({"prompt_template": "{} here"}, ValueError, ("'{} here'", "words before it", "num_text_prompts=0")),
    "width": ({"projection_dim": 64}, ValueError, ("64", "32", "leave it out")),
    "number of random text prompts": (
        {"num_text_prompts": 3, "text_prompt_init": "random"},
        ValueError,
        ("3", "a photo of a {}", "num_text_prompts=4"),
    ),
}


@pytest.mark.parametrize("case", BUILD)
def test_bad_fields_are_refused_when_building_on_a_clip(clip_folder, case):
    fields, error, mentions = BUILD[case]
    with pytest.raises(Exception, match=re.escape(mentions[0])) as caught:
        LDVCForSemanticSegmentation.from_clip_pretrained(clip_folder, decoder_attention_heads=4, **fields)
    assert isinstance(caught.value, error) or "Strict" in caught.type.__name__
    for mention in mentions:
        assert mention in str(caught.value)


def test_heads_that_do_not_divide_the_width_of_the_clip_are_refused(clip_folder):
    with pytest.raises(Exception, match=r"decoder_attention_heads.*5.*projection_dim.*32.*divisor"):
        LDVCForSemanticSegmentation.from_clip_pretrained(clip_folder, decoder_attention_heads=5)


def test_a_clip_that_is_none_is_refused(tmp_path, make_model, clip_model):
    build = LDVCForSemanticSegmentation.from_clip_pretrained
    assert_raises(lambda: build(torch.nn.Linear(2, 2)), ValueError, ("Linear", "CLIPModel", "folder", "Hub id"))
    assert_raises(lambda: build(clip_model.vision_model), ValueError, ("CLIPVision", "not a CLIPModel"))
    make_model().save_pretrained(tmp_path)
    assert_raises(lambda: build(tmp_path), ValueError, ("'ldvc'", "loads with from_pretrained"))
    with pytest.raises(OSError, match="nowhere"):
        build(tmp_path / "nowhere")


def test_a_bare_clip_needs_a_tokenizer_only_for_handcrafted_prompts(clip_model):
    build = LDVCForSemanticSegmentation.from_clip_pretrained
    fields = {"decoder_attention_heads": 4}
    assert_raises(
        lambda: build(clip_model, **fields), ValueError, ("no tokenizer", "tokenizer=", "num_text_prompts=0")
    )
    assert build(clip_model, num_text_prompts=0, **fields).text_prompts is None
    assert build(clip_model, text_prompt_init="random", **fields).text_prompts is not None


@pytest.mark.parametrize("init", ["handcrafted", "random"])
def test_a_folder_without_tokenizer_is_refused_while_text_prompts_are_on(clip_model, tmp_path, init):
    """The library makes an empty tokenizer of it."""
    clip_model.save_pretrained(tmp_path)
    build = LDVCForSemanticSegmentation.from_clip_pretrained
    call = lambda: build(tmp_path, text_prompt_init=init, decoder_attention_heads=4)  # noqa: E731
    assert_raises(call, ValueError, (str(tmp_path), "'a photo of a'", "tokenizer=", "num_text_prompts=0"))


@pytest.mark.parametrize("option", [{"device_map": "cpu"}, {"revision": "main"}], ids=str)
def test_an_option_of_loading_is_refused_beside_a_clip_in_memory(clip_model, tokenizer, option):
    build = LDVCForSemanticSegmentation.from_clip_pretrained
    mentions = (f"`{next(iter(option))}`", "leave it out", "attn_implementation and dtype", "folder or Hub id")
    assert_raises(lambda: build(clip_model, tokenizer, **option), TypeError, mentions)


def test_a_folder_without_adapter_is_refused(tiny_model, tmp_path):
    call = lambda: tiny_model.load_adapter_weights(tmp_path)  # noqa: E731
    assert_raises(call, FileNotFoundError, ("ldvc_adapter.safetensors", "save_adapter"))


# ---- one table: every kind of bad input through Python, pipeline, command line and web page

MAX_SECONDS, MAX_MEGABYTES = 20, 700  # of one case; a good call takes a fraction of both
# What a message asks for; a name or a number alone leaves the reader without a next step.
REMEDY = re.compile(
    r"\b(give|use|remove|shorten|once|merge|copy|convert|check|save|choose|leave|raise|make|try|name|write|set|pass|"
    r"load|start|correct|repair|add|clean|encode|see|call|did you mean|must be|needs?|fetch|update|no such file|"
    r"the classes are)\b",
    re.IGNORECASE,
)
DOORS = ("python", "pipeline", "command", "page")


class RefusedByCommand(Exception):
    """A command that ended with 2 and one line."""


class Doors:
    """The four ways in: each takes a picture, class names and a checkpoint, and raises what its user is told."""

    def __init__(self, folder, model, processor, work):
        self.folder, self.model, self.processor, self.work = folder, model, processor, work
        self.pipe = ZeroShotImageSegmentationPipeline(model=model, processor=processor)
        self.segmenter = session.Segmenter(folder)
        self.good = work / "good.png"
        PICTURE.save(self.good)

    def python(self, picture=None, names=("cat", "dog"), folder=None):
        processor = self.processor if folder is None else load_checkpoint(folder)[1]
        names = list(names) if isinstance(names, tuple) else names
        inputs = processor(images=self.good if picture is None else picture, class_names=names, return_tensors="pt")
        self.model(**inputs)

    def pipeline(self, picture=None, names=("cat", "dog")):
        names = list(names) if isinstance(names, tuple) else names
        self.pipe(str(self.good) if picture is None else picture, candidate_labels=names)

    def command(self, picture=None, names="cat, dog", folder=None, *options):
        labels = [] if names is None else ["--labels", names]
        arguments = ["segment", str(picture or self.good), *labels, "--model", str(folder or self.folder)]
        arguments += ["--device", "cpu", "--output", str(self.work / "masks"), *options]  # the last of two counts
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (1, 2), result.output
        lines = [line for line in result.stderr.splitlines() if line.startswith(("ldvc: ", "  ", "1 of"))]
        assert lines
        assert "Traceback" not in result.output
        raise RefusedByCommand("\n".join(lines))

    def page(self, picture=None, names="cat, dog", folder=None):
        segmenter = self.segmenter if folder is None else session.Segmenter(folder)
        visit = session.Visit(segmenter.encode(self.good if picture is None else picture))
        segmenter.segment(visit, names, 0.0)


@pytest.fixture(scope="module")
def doors(make_model, tiny_processor, tmp_path_factory):
    model, folder = make_model(), tmp_path_factory.mktemp("checkpoint")
    model.set_vocabulary(["cat", "dog"], tiny_processor)
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return Doors(folder, model, tiny_processor, tmp_path_factory.mktemp("doors"))


ERRORS = {"python": ValueError, "pipeline": ValueError, "command": RefusedByCommand, "page": ValueError}

# Kind of list -> (as Python gives it, as it is typed, what the message names)
TYPED_NAMES = {
    "empty": ([], "", ("",)),
    "twice": (["cat", "dog", "cat"], "cat, dog, cat", ("'cat'",)),
    "twice but for case": (["cat", "Cat"], "cat, Cat", ("'Cat'",)),
    "twice but for spaces": (["hot dog", "hot  dog"], "hot dog, hot  dog", ("'hot ", "dog'")),
    "twice among synonyms": ({"sofa": ["sofa"], "couch": ["couch", "sofa"]}, "sofa, couch|sofa", ("'sofa'",)),
    "control character": (["c\x07at"], "c\x07at", (r"'c\x07at'",)),
    "over-long": (["x" * 200], "x" * 200, ("xxx",)),
    "over-long in words": (["very " * 90 + "long"], "very " * 90 + "long", ("very",)),
}

FILES = {
    "cut PNG": (lambda folder: cut(folder, "png"), "cut.png"),
    "cut JPEG": (lambda folder: cut(folder, "jpg"), "cut.jpg"),
    "text": (lambda folder: written(folder / "text.png", b"this is no picture"), "text.png"),
    "empty": (lambda folder: written(folder / "empty.png", b""), "empty.png"),
    "bomb": (lambda folder: written(folder / "bomb.png", png_of(100_000, 100_000)), ""),
    "no pixels": (lambda folder: written(folder / "none.png", png_of(0, 0)), "none.png"),
    "pickle": (lambda folder: written(folder / "object.png", pickle.dumps(["cat"])), "object.png"),
    "missing": (lambda folder: folder / "nowhere.png", "nowhere.png"),
}


def made_siglip(folder, clip):
    """Make a folder whose files are CLIP's and whose configuration says that it is a SigLIP."""
    place = shutil.copytree(clip, folder / "foreign")
    (place / "config.json").write_text(
        json.dumps({**json.loads((place / "config.json").read_text()), "model_type": "siglip"})
    )
    return place


CHECKPOINTS = {
    "foreign model": lambda folder, clip: made_siglip(folder, clip),
    "empty folder": lambda folder, clip: made(folder / "hollow"),
    "missing folder": lambda folder, clip: folder / "nowhere",
    "a file": lambda folder, clip: written(folder / "model.safetensors", b""),
}
DAMAGE = {
    "cut weights": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:1000]
    ),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "cut configuration": lambda folder: (folder / "config.json").write_text('{"model_type": '),
    "impossible configuration": lambda folder: change_json(folder / "config.json", decoder_attention_heads=5),
    "other kind": lambda folder: change_json(folder / "config.json", model_type="bert"),
    "no processor": lambda folder: (folder / "processor_config.json").unlink(),
}
ARRAYS = {
    "NaN": (np.full((8, 9, 3), np.nan), ("NaN",)),
    "infinite": (np.full((8, 9, 3), np.inf), ("infinite",)),
    "no rows": (np.zeros((0, 9, 3), np.uint8), ("(",)),
    "no columns": (np.zeros((8, 0, 3), np.uint8), ("(",)),
    "five channels": (np.zeros((8, 9, 5), np.uint8), ("(8, 9, 5)",)),
    "four axes of nothing": (np.zeros((0, 8, 9, 3), np.uint8), ("",)),
    "text": (np.array([["a"]]), ("",)),
    "fractions": (np.full((8, 9, 3), 0.5), ("do_rescale=False",)),
}
VOCABULARIES = {
    "cut list": ("vocabulary.json", lambda data: data[:40]),
    "cut tensors": ("vocabulary.safetensors", lambda data: data[:-5]),
    "another name": ("vocabulary.json", lambda data: data.replace(b"grass", b"grAss")),
    "other format": ("vocabulary.json", lambda data: data.replace(b'"format_version": 1', b'"format_version": 9')),
    "a pickle": ("vocabulary.safetensors", lambda data: pickle.dumps([1])),
    "no mapping": ("vocabulary.json", lambda data: b"[1, 2]"),
}
RECIPES = {
    "text for a number": ("max_steps: many", ("`max_steps`", "'many'")),
    "a list for a number": ("max_steps: [1]", ("`max_steps`", "[1]")),
    "true for a number": ("batch_size: true", ("`batch_size`", "True")),
    "a number for text": ("dataset: 3", ("`dataset`", "3")),
    "nothing for text": ("dataset:", ("`dataset`", "None")),
    "a mapping for text": ("clip: {a: b}", ("`clip`", "{'a': 'b'}")),
    "a negative number": ("seed: -1", ("`seed`", "-1")),
    "text among numbers": ("ratio_range: [0.5, two]", ("`ratio_range`", "'two'")),
    "three for two": ("image_scale: [1, 2, 3]", ("`image_scale`", "[1, 2, 3]")),
    "an unknown choice": ("setting: magic", ("`setting`", "'magic'")),
    "an unknown key": ("learning_rat: 1", ("`learning_rat`", "`learning_rate`")),
    "both lists": ("vocabulary: voc2012\nclass_names: [a]", ("`vocabulary`", "`class_names`")),
    "no mapping": ("- a\n- b", ("list", "mapping")),
    "no YAML": ("a: [", ("YAML",)),
    "a base that is none": ("base: nowhere.yaml", ("`base`", "'nowhere.yaml'")),
}
COMMANDS = {
    "threshold above 1": (["--threshold", "1.5"], ("1.5",)),
    "threshold of no class": (["--threshold", "zebra=0.5"], ("'zebra'",)),
    "stride without window": (["--stride", "8"], ("--stride", "--window")),
    "stride above window": (["--window", "16", "--stride", "32"], ("32",)),
    "labels and vocabulary": (["--vocabulary", "nowhere"], ("--labels", "--vocabulary")),
    "unknown device": (["--device", "warp:9"], ("'warp:9'",)),
}


def made(folder):
    folder.mkdir()
    return folder


def written(path, content):
    path.write_bytes(content)
    return path


def cut(folder, suffix):
    return next(path for path in damaged_files(folder) if path.name == f"cut.{suffix}")


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damaged_copy(doors, tmp_path, damage):
    damage(shutil.copytree(doors.folder, tmp_path / "damaged"))
    return tmp_path / "damaged"


def table():
    """Each case: (how to make the call from the fixtures, error, what the message names)."""
    return cases_of_names() | cases_of_pictures() | cases_of_checkpoints() | cases_of_files_and_options()


def cases_of_names():
    cases = {}
    for kind, (given, typed, mentions) in TYPED_NAMES.items():
        for door in DOORS:
            names = given if door in ("python", "pipeline") else typed
            call = lambda doors, *_, door=door, names=names: getattr(doors, door)(names=names)  # noqa: E731
            cases[f"names {kind} - {door}"] = (call, ERRORS[door], mentions)
    return cases


def cases_of_pictures():
    cases = {}
    for kind, (make, mention) in FILES.items():
        for door in DOORS:
            call = lambda doors, tmp_path, _, door=door, make=make: getattr(doors, door)(str(make(tmp_path)))  # noqa: E731
            # the page names no path of its machine
            cases[f"file {kind} - {door}"] = (call, ERRORS[door], (mention if door != "page" else "",))
    for kind, (array, mentions) in ARRAYS.items():
        for door in ("python", "pipeline"):
            call = lambda doors, *_, door=door, array=array: getattr(doors, door)(array)  # noqa: E731
            cases[f"array {kind} - {door}"] = (call, ValueError, mentions)
    return cases


def cases_of_checkpoints():
    cases = {}
    for kind, make in (CHECKPOINTS | DAMAGE).items():
        for door in ("python", "command", "page"):

            def call(doors, tmp_path, clip, door=door, make=make, is_damage=kind in DAMAGE):
                folder = damaged_copy(doors, tmp_path, make) if is_damage else make(tmp_path, clip)
                getattr(doors, door)(folder=folder)

            cases[f"checkpoint {kind} - {door}"] = (call, ERRORS[door], ("damaged" if kind in DAMAGE else "/",))
    return cases


def cases_of_files_and_options():
    cases = {}
    for kind, (name, change) in VOCABULARIES.items():

        def altered(doors, tmp_path, name=name, change=change):
            folder = tmp_path / "vocabulary"
            doors.model.encode_vocabulary(["grass", "sky"], doors.processor).save(folder)
            (folder / name).write_bytes(change((folder / name).read_bytes()))
            return str(folder)

        through = {
            "python": lambda doors, tmp_path, _, altered=altered: doors.model.set_vocabulary(altered(doors, tmp_path)),
            "command": lambda doors, tmp_path, _, altered=altered: doors.command(
                None, None, None, "--vocabulary", altered(doors, tmp_path)
            ),
        }
        for door, call in through.items():
            cases[f"vocabulary {kind} - {door}"] = (call, ERRORS[door], ("vocabulary",))
    for kind, (text, mentions) in RECIPES.items():

        def read(doors, tmp_path, _, text=text):
            (tmp_path / "recipe.yaml").write_text(text)
            read_recipe([str(tmp_path / "recipe.yaml")]).get_vocabulary()

        cases[f"recipe {kind}"] = (read, RecipeError, mentions)
    for kind, (options, mentions) in COMMANDS.items():
        call = lambda doors, *_, options=options: doors.command(None, "cat, dog", None, *options)  # noqa: E731
        cases[f"option {kind}"] = (call, RefusedByCommand, mentions)
    return cases


CASES = table()


def test_the_table_is_long_and_goes_through_every_door():
    assert len(CASES) >= 60
    for door in DOORS:
        assert sum(name.endswith(f"- {door}") for name in CASES) >= 12


@pytest.mark.parametrize("case", CASES)
def test_every_bad_input_is_refused_with_value_and_remedy(doors, tmp_path, clip_folder, case):
    call, error, mentions = CASES[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_most(MAX_SECONDS), pytest.raises(error) as caught:
        call(doors, tmp_path, clip_folder)
    message = str(caught.value)
    for mention in mentions:
        assert mention in message
    assert REMEDY.search(message), f"no remedy in: {message}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (peak - before) / 1024 < MAX_MEGABYTES


def test_what_looks_odd_and_is_a_name_is_taken_by_every_door(doors):
    """Right-to-left, emoji, accents, braces, ids."""
    names = ["חתול", "قط", "猫", "naïve café", "🐈", "{cat}", "100 %", "7"]
    doors.python(names=names)
    doors.pipeline(names=names)
    doors.page(names=", ".join(names))
    arguments = ["segment", str(doors.good), "--labels", ", ".join(names), "--model", str(doors.folder)]
    result = CliRunner().invoke(app, [*arguments, "--output", str(doors.work / "odd"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert list(json.loads((doors.work / "odd" / "names.json").read_text())["names"].values()) == names


@pytest.mark.slow
def test_ten_thousand_names_fit_python_and_are_too_many_for_the_page(doors):
    names = [f"thing {index}" for index in range(10_000)]
    assert doors.processor(class_names=names)["input_ids"]
    assert_raises(lambda: doors.page(names=", ".join(names)), ValueError, ("10000 class names", "100", "ldvc segment"))
