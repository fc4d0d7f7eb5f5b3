"""Encoded vocabularies: their file, whom they belong to, and that a model never uses one that is out of date."""

import copy
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import IMAGE_SIZE, build_clip
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import pipeline

from ldvc.model.inference_ldvc import encode_classes
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.pipeline_ldvc import read_labels
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.model.vocabulary_ldvc import LDVCVocabulary, text_fingerprint


NAMES = ["cat", "dog", "grass", "zebra crossing"]
SYNONYMS = {"sofa": ["sofa", "couch"], "cat": ["cat"], "草地": ["grass", "meadow"]}
FILES = ("vocabulary.safetensors", "vocabulary.json")


@pytest.fixture
def vocabulary(tiny_model, tiny_processor):
    return tiny_model.encode_vocabulary(NAMES, tiny_processor)


@pytest.fixture
def folder(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "words")
    return tmp_path / "words"


@torch.no_grad()
def default_logits(model, pixel_values):
    return model(pixel_values).logits


@torch.no_grad()
def named_logits(model, processor, pixel_values, names=NAMES):
    return model(pixel_values, **processor(class_names=names, return_tensors="pt")).logits


def forbid_encoding(model, monkeypatch):
    def refuse(*_):
        raise AssertionError("text was encoded")

    monkeypatch.setattr(model, "_encode_text", refuse)


def assert_same(one, other):
    for field in dataclasses.fields(LDVCVocabulary):
        if field.name != "class_embeds":
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    assert torch.equal(one.class_embeds, other.class_embeds)


# ---- a vocabulary and its files


@pytest.mark.parametrize("names", [NAMES, SYNONYMS, ["one"]], ids=["list", "synonyms", "one"])
@pytest.mark.parametrize("other", [None, "none of these"])
def test_a_vocabulary_comes_back_from_its_file_exactly(tiny_model, tiny_processor, tmp_path, names, other):
    vocabulary = tiny_model.encode_vocabulary(names, tiny_processor, other_label=other)
    vocabulary.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    loaded = LDVCVocabulary.load(tmp_path)
    assert_same(loaded, vocabulary)
    assert loaded.class_names == list(names)
    assert loaded.synonyms == (names if isinstance(names, dict) else None)
    assert loaded.prompt_templates == ["a photo of a {}"]
    assert loaded.other_label == other


def test_the_embeddings_are_those_of_the_model_in_float32_and_the_order_of_the_names(
    tiny_model, tiny_processor, tmp_path
):
    encoded = tiny_processor(class_names=SYNONYMS, return_tensors="pt")
    vocabulary = tiny_model.encode_vocabulary(SYNONYMS, tiny_processor)
    with torch.no_grad():
        assert torch.equal(vocabulary.class_embeds, tiny_model.get_class_embeds(**encoded))
    assert not vocabulary.class_embeds.requires_grad
    vocabulary.save(tmp_path)
    assert load_file(tmp_path / FILES[0])["class_embeds"].dtype == torch.float32


def test_a_vocabulary_shows_its_names_and_not_its_numbers(tiny_model, tiny_processor):
    vocabulary = tiny_model.encode_vocabulary([f"thing {index}" for index in range(9)], tiny_processor)
    assert repr(vocabulary).startswith("LDVCVocabulary(9 classes: thing 0, thing 1, thing 2, thing 3, thing 4, ...;")
    assert len(repr(vocabulary)) < 200


def test_names_can_be_read_in_the_file(tiny_model, tiny_processor, tmp_path):
    tiny_model.encode_vocabulary(SYNONYMS, tiny_processor).save(tmp_path)
    assert "草地" in (tmp_path / FILES[1]).read_text(encoding="utf-8")
    assert json.loads((tmp_path / FILES[1]).read_text(encoding="utf-8"))["format_version"] == 1


def test_a_save_that_fails_leaves_the_old_vocabulary_whole(
    folder, vocabulary, tiny_model, tiny_processor, monkeypatch
):
    write = type(folder).write_bytes

    def fill_the_disk(path, data):
        if path.name.startswith("vocabulary.json"):
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(type(folder), "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        tiny_model.encode_vocabulary(["sofa"], tiny_processor).save(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert_same(LDVCVocabulary.load(folder), vocabulary)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {name} in .*; give a folder written by `LDVCVocabulary.save`"):
        LDVCVocabulary.load(folder)
    with pytest.raises(FileNotFoundError, match=r"LDVCVocabulary\.save"):
        LDVCVocabulary.load(folder / "nowhere")


def edit(path, old, new):
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "text cut off": (
        lambda f: (f / FILES[1]).write_bytes((f / FILES[1]).read_bytes()[:-9]),
        "damaged .*save it again",
    ),
    "text empty": (lambda f: (f / FILES[1]).write_bytes(b""), "damaged"),
    "text not unicode": (lambda f: (f / FILES[1]).write_bytes(b"\xff\xfe\xff"), "damaged"),
    "text a number": (lambda f: (f / FILES[1]).write_text("7"), "damaged"),
    "text nested without end": (lambda f: (f / FILES[1]).write_text("[" * 200_000), "damaged"),
    "text a list": (lambda f: (f / FILES[1]).write_text("[]"), "format version None"),
    "names exchanged": (
        lambda f: edit(f / FILES[1], b'"cat", "dog"', b'"dog", "cat"'),
        "altered.*save the vocabulary again",
    ),
    "another fingerprint": (lambda f: edit(f / FILES[1], b'"fingerprint": "', b'"fingerprint": "0'), "altered"),
    "no checksum": (lambda f: edit(f / FILES[1], b'"sha256"', b'"sha255"'), "altered"),
    "another version": (
        lambda f: edit(f / FILES[1], b'"format_version": 1', b'"format_version": 2'),
        "format version 2, not 1; save it again, or update LDVC",
    ),
    "embeddings cut off": (lambda f: (f / FILES[0]).write_bytes((f / FILES[0]).read_bytes()[:-8]), "altered, cut off"),
    "embeddings empty": (lambda f: (f / FILES[0]).write_bytes(b""), "altered, cut off"),
    "a bit flipped": (lambda f: flip_a_bit(f / FILES[0]), "altered"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_altered_file_is_refused(folder, damage):
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        LDVCVocabulary.load(folder)


def test_files_of_two_saves_are_refused(folder, tiny_model, tiny_processor):
    text = (folder / FILES[1]).read_bytes()
    tiny_model.encode_vocabulary(NAMES[::-1], tiny_processor).save(folder)
    (folder / FILES[1]).write_bytes(text)
    with pytest.raises(ValueError, match="come from two saves"):
        LDVCVocabulary.load(folder)


def rewrite(folder, change, weights=None):
    """Change a file's content as another program might, checksum included."""
    content = json.loads((folder / FILES[1]).read_bytes())
    del content["sha256"]
    change(content)
    weights = (folder / FILES[0]).read_bytes() if weights is None else weights
    checksum = hashlib.sha256(weights + json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / FILES[0]).write_bytes(weights)
    (folder / FILES[1]).write_text(json.dumps({**content, "sha256": checksum}))


FOREIGN = {
    "an unknown field": ({"colour": 3}, "colour"),
    "no names": ({"class_names": None}, "class_names"),
    "names of numbers": ({"class_names": [1, 2, 3, 4]}, "strings"),
    "nested names": ({"class_names": [["cat"], "dog", "grass", "x"]}, "strings"),
    "rows of text": ({"class_token_ids": ["ab"] * 4}, "class_token_ids"),
    "huge ids": ({"class_token_ids": [[10**30]] * 4}, "class_token_ids"),
    "classes of text": ({"prompt_class_ids": "abcd"}, "prompt_class_ids"),
    "templates of numbers": ({"prompt_templates": [3]}, "exactly one"),
    "synonyms in a list": ({"synonyms": NAMES}, "synonyms"),
    "a fingerprint of another kind": ({"fingerprint": 12}, "64 hex digits"),
    "embeddings in the text": ({"class_embeds": [[1.0]]}, "class_embeds"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_that_another_program_wrote_wrong_is_refused(folder, case):
    fields, message = FOREIGN[case]
    rewrite(folder, lambda content: content.update(fields))
    with pytest.raises(ValueError, match=rf"the vocabulary in .*words is not valid: .*{message}"):
        LDVCVocabulary.load(folder)


@pytest.mark.parametrize("field", ["class_names", "fingerprint", "class_token_ids", "prompt_class_ids"])
def test_a_file_that_lacks_a_field_is_refused(folder, field):
    rewrite(folder, lambda content: content.pop(field))
    with pytest.raises(ValueError, match=f"not valid: .*{field}"):
        LDVCVocabulary.load(folder)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (b"\x80\x04pickle", "not valid"),
        (save({"embeds": torch.eye(4)}), "embeds"),
        (save({"class_embeds": torch.eye(4), "more": torch.eye(4)}), "more"),
    ],
    ids=["no safetensors", "another name", "another tensor"],
)
def test_a_tensor_file_with_other_content_is_refused(folder, weights, message):
    rewrite(folder, lambda content: None, weights)
    with pytest.raises(ValueError, match=f"not valid: .*{message}|not valid"):
        LDVCVocabulary.load(folder)


WRONG = {
    "twice": ({"class_names": ["cat", "dog", "grass", "Cat"]}, ValueError, "'Cat' is given twice"),
    "empty": ({"class_names": ["cat", "dog", "grass", " "]}, ValueError, "empty"),
    "no string": ({"class_names": ["cat", "dog", "grass", 3]}, TypeError, "3 is a int"),
    "no list": ({"class_names": tuple(NAMES)}, ValueError, "give a list of names"),
    "a name too few": ({"class_names": NAMES[:3]}, ValueError, "`prompt_class_ids` is None for 4 prompts"),
    "a row too few": ({"class_embeds": torch.eye(32)[:3]}, ValueError, r"\(3, 32\); it must be \(4, projection_dim\)"),
    "one axis": ({"class_embeds": torch.ones(4)}, ValueError, r"`class_embeds` is \(4,\)"),
    "whole numbers": ({"class_embeds": torch.eye(4, dtype=torch.long)}, ValueError, "`class_embeds`"),
    "no tensor": ({"class_embeds": [[1.0]] * 4}, ValueError, "`class_embeds` is list"),
    "not unit": ({"class_embeds": torch.eye(4) * 2}, ValueError, "'cat' has the length 2, not 1.*encode_vocabulary"),
    "not finite": ({"class_embeds": torch.eye(4).fill_diagonal_(torch.nan)}, ValueError, "'cat' has the length nan"),
    "infinite": ({"class_embeds": torch.eye(4).fill_diagonal_(torch.inf)}, ValueError, "length inf"),
    "fingerprint": ({"fingerprint": "abc"}, ValueError, "'abc'; it must be the 64 hex digits"),
    "other is a class": ({"other_label": "Dog"}, ValueError, "'Dog' is given twice"),
    "other is empty": ({"other_label": ""}, ValueError, "empty"),
    "no prompts": ({"class_token_ids": [[]] * 4}, ValueError, "`class_token_ids` is .*one per prompt"),
    "classes not all": ({"prompt_class_ids": [0, 1, 2, 2]}, ValueError, "0 to 3"),
    "classes of another number": ({"prompt_class_ids": [0, 1, 2, 3, 3]}, ValueError, "for 4 prompts"),
    "templates": ({"prompt_templates": ["a photo"]}, ValueError, "exactly one"),
    "synonyms of others": ({"synonyms": {"cat": ["cat"]}}, ValueError, "for each of them in the same order"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_vocabulary_that_does_not_fit_together_is_refused(vocabulary, case):
    fields, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        dataclasses.replace(vocabulary, **fields)


def test_other_must_not_be_a_synonym_of_a_class(tiny_model, tiny_processor):
    with pytest.raises(ValueError, match="'couch' is given twice"):
        tiny_model.encode_vocabulary(SYNONYMS, tiny_processor, other_label="couch")
    with pytest.raises(ValueError, match="'couch' is given twice"):
        tiny_model.set_vocabulary(SYNONYMS, tiny_processor, other_label="couch")


# ---- the fingerprint


def test_the_fingerprint_is_that_of_the_text_weights_alone(make_model, vocabulary):
    model = make_model(num_decoder_layers=1, num_vision_prompts=2)  # another decoder, the same text side
    with torch.no_grad():
        for module in (model.clip.vision_model, model.decoder, model.text_adapter, model.vision_prompts):
            for weight in module.parameters():
                weight.add_(1.0)
    model.clip.logit_scale.data += 1
    assert text_fingerprint(model.train()) == vocabulary.fingerprint


CHANGES = {
    "tower": lambda m: m.clip.text_model.encoder.layers[2].mlp.fc1.bias.data.add_(1e-3),
    "embedding": lambda m: m.clip.text_model.embeddings.token_embedding.weight.data[3].add_(1e-3),
    "projection": lambda m: m.clip.text_projection.weight.data.neg_(),
    "prompts": lambda m: m.text_prompts.tokens.data[1, 2].add_(1e-3),
    "activation": lambda m: setattr(m.config.text_config, "hidden_act", "gelu"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_vocabulary_of_other_text_weights_is_refused_and_the_model_unchanged(
    tiny_model, tiny_processor, vocabulary, change, pixel_values
):
    tiny_model.set_vocabulary(["sofa", "sky"], tiny_processor)
    CHANGES[change](tiny_model)
    before, config = default_logits(tiny_model, pixel_values), tiny_model.config.to_json_string()
    own = text_fingerprint(tiny_model)
    for bake in (False, True):
        with pytest.raises(ValueError, match=f"{vocabulary.fingerprint[:16]}.*{own[:16]}.*model.encode_vocabulary"):
            tiny_model.set_vocabulary(vocabulary, bake=bake)
    assert tiny_model.config.to_json_string() == config
    assert torch.equal(default_logits(tiny_model, pixel_values), before)


def test_a_vocabulary_fits_every_load_of_its_checkpoint(
    tiny_model, tiny_processor, vocabulary, tmp_path, pixel_values
):
    tiny_model.save_pretrained(tmp_path)
    loaded = LDVCForSemanticSegmentation.from_pretrained(tmp_path)
    loaded.set_vocabulary(vocabulary)
    expected = named_logits(tiny_model, tiny_processor, pixel_values)
    torch.testing.assert_close(default_logits(loaded, pixel_values), expected)


@pytest.mark.slow
def test_storage_in_half_precision_changes_no_fingerprint_but_rounding_does(make_model, tiny_processor, tmp_path):
    model = make_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    vocabulary = model.encode_vocabulary(NAMES, tiny_processor)
    for dtype in (torch.float32, torch.bfloat16):
        LDVCForSemanticSegmentation.from_pretrained(tmp_path, dtype=dtype).set_vocabulary(vocabulary)
    with pytest.raises(ValueError, match=r"this model holds, in torch.float32, .*in the dtype it is loaded in"):
        make_model().set_vocabulary(vocabulary)


def test_a_vocabulary_set_in_float32_follows_the_model_to_another_dtype(
    tiny_model, tiny_processor, vocabulary, pixel_values
):
    tiny_model.set_vocabulary(vocabulary)
    tiny_model.to(torch.bfloat16)
    images = pixel_values.bfloat16()
    assert torch.equal(default_logits(tiny_model, images), named_logits(tiny_model, tiny_processor, images))


def test_weights_that_cannot_be_read_are_told(tiny_model, tiny_processor, vocabulary):
    tiny_model.to("meta")
    with pytest.raises(ValueError, match=r"offloaded.*without offload"):
        tiny_model.set_vocabulary(vocabulary)


# ---- as the model's default


@pytest.mark.parametrize("names", [NAMES, SYNONYMS], ids=["list", "synonyms"])
def test_a_set_vocabulary_gives_the_logits_of_its_names_and_encodes_no_text(
    make_model, tiny_processor, tmp_path, pixel_values, monkeypatch, names
):
    make_model().encode_vocabulary(names, tiny_processor).save(tmp_path)
    model = make_model()
    expected = named_logits(model, tiny_processor, pixel_values, names)
    forbid_encoding(model, monkeypatch)
    model.set_vocabulary(LDVCVocabulary.load(tmp_path))
    assert torch.equal(default_logits(model, pixel_values), expected)
    assert model.config.id2label == dict(enumerate(names))
    assert model.config.label2id == {name: index for index, name in enumerate(names)}


def test_a_folder_stands_for_its_vocabulary(tiny_model, folder, pixel_values, tiny_processor, monkeypatch):
    expected = named_logits(tiny_model, tiny_processor, pixel_values)
    forbid_encoding(tiny_model, monkeypatch)
    for path in (folder, str(folder)):
        tiny_model.set_vocabulary(path)
        assert torch.equal(default_logits(tiny_model, pixel_values), expected)
    with pytest.raises(FileNotFoundError, match=r"no vocabulary\.safetensors in cat"):
        tiny_model.set_vocabulary("cat")


def test_a_vocabulary_from_another_copy_of_the_code_is_taken(
    tiny_model, folder, tiny_processor, tmp_path, monkeypatch
):
    """Such as the installed package's beside a model that was loaded as remote code."""
    shutil.copytree(Path(inspect.getfile(LDVCVocabulary)).parent, tmp_path / "another_copy")
    monkeypatch.syspath_prepend(tmp_path)
    other = importlib.import_module("another_copy.vocabulary_ldvc")
    assert other.LDVCVocabulary is not LDVCVocabulary
    tiny_model.set_vocabulary(other.LDVCVocabulary.load(folder), tiny_processor)
    assert tiny_model.config.id2label == dict(enumerate(NAMES))


def test_names_without_a_processor_are_refused(tiny_model):
    for names in (NAMES, SYNONYMS, None):
        with pytest.raises(ValueError, match="there is no `processor`; names need the checkpoint's processor"):
            tiny_model.set_vocabulary(names)


def test_embeddings_of_another_width_are_refused(tiny_model, vocabulary):
    other = dataclasses.replace(vocabulary, class_embeds=torch.eye(4))
    with pytest.raises(ValueError, match="4 wide, this model's 32"):
        tiny_model.set_vocabulary(other)


def test_prompts_that_the_text_tower_cannot_read_are_refused(tiny_model, vocabulary):
    other = dataclasses.replace(vocabulary, class_token_ids=[[1, 2, 3]] * 4)
    with pytest.raises(ValueError, match="has no end token"):
        tiny_model.set_vocabulary(other)


@pytest.mark.parametrize("bake", [False, True])
def test_the_default_survives_saving_and_loading_without_a_processor(
    tiny_model, vocabulary, tmp_path, pixel_values, tiny_processor, bake
):
    expected = named_logits(tiny_model, tiny_processor, pixel_values)
    tiny_model.set_vocabulary(vocabulary, bake=bake)
    assert torch.equal(default_logits(tiny_model, pixel_values), expected)
    tiny_model.save_pretrained(tmp_path)
    loaded = LDVCForSemanticSegmentation.from_pretrained(tmp_path)
    assert (loaded.clip.text_model is None) == bake
    torch.testing.assert_close(default_logits(loaded, pixel_values), expected)
    assert loaded.config.id2label == dict(enumerate(NAMES))


def test_the_stock_pipeline_runs_on_a_vocabulary_from_a_file_and_knows_other(
    tiny_model, tiny_processor, tmp_path, images
):
    tiny_model.encode_vocabulary(SYNONYMS, tiny_processor, other_label="other").save(tmp_path)
    tiny_model.set_vocabulary(tmp_path, bake=True)
    assert tiny_model.config.id2label == {**dict(enumerate(SYNONYMS)), 3: "other"}
    segment = pipeline("image-segmentation", model=tiny_model, image_processor=tiny_processor.image_processor)
    for image in images:
        parts = segment(image)
        assert {part["label"] for part in parts} <= {*SYNONYMS, "other"}
        assert all(part["mask"].size == image.size for part in parts)


def test_other_of_the_call_replaces_that_of_the_vocabulary(tiny_model, tiny_processor):
    vocabulary = tiny_model.encode_vocabulary(NAMES, tiny_processor, other_label="other")
    tiny_model.set_vocabulary(vocabulary, other_label="void")
    assert tiny_model.config.id2label[4] == tiny_model.config.other_label == "void"
    with pytest.raises(ValueError, match="twice"):
        tiny_model.set_vocabulary(vocabulary, other_label="cat")
    assert vocabulary.other_label == "other"


# ---- never out of date


def train_a_step(model):
    optimizer = torch.optim.SGD([model.text_prompts.tokens], lr=100.0)
    model(torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE), labels=torch.zeros(2, 32, 32, dtype=torch.long)).loss.backward()
    optimizer.step()


def put_another_weight_in_its_place(model):
    """As an allocator does: the new weight lies where the old one lay before it was freed."""
    weight = model.clip.text_projection.weight
    memory = bytearray(32 * 32 * 4)

    def view():
        return torch.frombuffer(memory, dtype=torch.float32).view(32, 32)

    weight.data = view().copy_(weight.data)
    with torch.no_grad():
        model(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    weight.data = torch.empty(0)
    weight.data = view().copy_(torch.randn(32, 32))


UPDATES = {
    "a training step": train_a_step,
    "prompts through data": lambda m: m.text_prompts.tokens.data.add_(torch.randn_like(m.text_prompts.tokens)),
    "a replaced weight": lambda m: setattr(m.clip.text_projection, "weight", nn.Parameter(torch.randn(32, 32))),
    "a weight in a freed place": put_another_weight_in_its_place,
}


@pytest.mark.parametrize("update", UPDATES)
def test_promise_3_embeddings_of_a_file_do_not_survive_a_change_of_text_weights(
    tiny_model, vocabulary, tiny_processor, pixel_values, update
):
    tiny_model.set_vocabulary(vocabulary)
    before = default_logits(tiny_model, pixel_values)
    UPDATES[update](tiny_model)
    after = default_logits(tiny_model, pixel_values)
    assert torch.equal(after, named_logits(tiny_model, tiny_processor, pixel_values))
    assert not torch.allclose(after, before, atol=1e-3)


def test_promise_3_embeddings_of_a_file_do_not_survive_loaded_weights(
    make_model, vocabulary, tiny_processor, tokenizer, tmp_path, pixel_values
):
    other = make_model(build_clip(tokenizer, seed=5))
    adapted = make_model()
    adapted.text_prompts.tokens.data += torch.randn(3, 4, 32)
    adapted.set_vocabulary(NAMES, tiny_processor)
    adapted.save_adapter(tmp_path)
    for load in (
        lambda model: model.load_state_dict(other.state_dict()),
        lambda model: model.load_state_dict(other.state_dict(), assign=True),
        lambda model: model.load_adapter_weights(tmp_path),
    ):
        model = make_model()
        model.set_vocabulary(vocabulary)
        before = default_logits(model, pixel_values)
        load(model)
        after = default_logits(model, pixel_values)
        assert torch.equal(after, named_logits(model, tiny_processor, pixel_values))
        assert not torch.allclose(after, before, atol=1e-3)


def test_promise_3_inside_inference_mode_changed_weights_are_noticed(
    make_model, vocabulary, tiny_processor, pixel_values
):
    with torch.inference_mode():
        model = make_model()  # its weights carry no version
        model.set_vocabulary(vocabulary)
        assert torch.equal(default_logits(model, pixel_values), named_logits(model, tiny_processor, pixel_values))
        model.clip.text_projection.weight.copy_(torch.randn(32, 32))
        assert torch.equal(default_logits(model, pixel_values), named_logits(model, tiny_processor, pixel_values))


def test_promise_3_another_vocabulary_replaces_the_first(tiny_model, vocabulary, tiny_processor, pixel_values):
    tiny_model.set_vocabulary(vocabulary)
    default_logits(tiny_model, pixel_values)
    names = ["sofa", "sky"]
    tiny_model.set_vocabulary(tiny_model.encode_vocabulary(names, tiny_processor))
    assert torch.equal(
        default_logits(tiny_model, pixel_values), named_logits(tiny_model, tiny_processor, pixel_values, names)
    )


def test_text_prompts_still_learn_under_a_vocabulary_from_a_file(tiny_model, vocabulary):
    tiny_model.set_vocabulary(vocabulary)
    train_a_step(tiny_model)
    assert tiny_model.text_prompts.tokens.grad.any()


def test_the_model_keeps_no_view_of_the_vocabulary(tiny_model, vocabulary, pixel_values):
    tiny_model.set_vocabulary(vocabulary)
    before = default_logits(tiny_model, pixel_values)
    vocabulary.class_embeds.zero_()
    assert torch.equal(default_logits(tiny_model, pixel_values), before)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_of_the_model_makes_its_own_embeddings(tiny_model, vocabulary, tiny_processor, pixel_values, clone):
    tiny_model.set_vocabulary(vocabulary)
    before = default_logits(tiny_model, pixel_values)
    cloned = clone(tiny_model)
    assert torch.equal(default_logits(cloned, pixel_values), before)
    cloned.text_prompts.tokens.data += torch.randn(3, 4, 32)
    assert torch.equal(default_logits(cloned, pixel_values), named_logits(cloned, tiny_processor, pixel_values))
    assert torch.equal(default_logits(tiny_model, pixel_values), before)


# ---- never those of another function of the same weights


class Adapter(nn.Module):
    """Mimics a low-rank adapter: another function at a switch, the weights untouched."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.is_on = layer, True
        self.delta = nn.Parameter(torch.randn_like(layer.weight), requires_grad=False)

    def forward(self, hidden_states):
        output = self.base_layer(hidden_states)
        return output + hidden_states @ self.delta.T if self.is_on else output


class Scaled(nn.Module):
    """A parametrization with a number that is no weight."""

    factor = 1.0

    def forward(self, weight):
        return weight * self.factor


def adapt(model):
    attention = model.clip.text_model.encoder.layers[0].self_attn
    attention.q_proj = adapter = Adapter(attention.q_proj)
    return lambda: setattr(adapter, "is_on", not adapter.is_on)


def hook(model, own=lambda m: m.clip.text_model.encoder.layers[1]):
    strength = [1.0]
    own(model).register_forward_hook(lambda module, inputs, output: output + strength[0] * torch.arange(32))
    return lambda: strength.append(strength.pop() + 1)


def hook_before(model):
    strength = [0.0]
    layer = model.clip.text_model.encoder.layers[1].mlp
    layer.register_forward_pre_hook(lambda module, inputs: inputs[0] * (1 - strength[0]))
    return lambda: strength.append(strength.pop() + 1)


def parametrise(model):
    layer = model.clip.text_model.encoder.layers[1].mlp.fc1
    parametrize.register_parametrization(layer, "weight", scaled := Scaled())
    return lambda: setattr(scaled, "factor", scaled.factor + 1)


def replace_forward(model):
    layer, strength = model.clip.text_model.encoder.layers[1].mlp.fc1, [1.0]
    own = layer.forward
    layer.forward = lambda hidden_states: own(hidden_states) * strength[0]
    return lambda: strength.append(strength.pop(0) + 1)


def mask_a_weight(model):
    layer = model.clip.text_model.encoder.layers[1].mlp.fc1
    prune.identity(layer, "weight")
    return lambda: layer.weight_mask.fill_(0.5)


def change_attribute(model):
    norm = model.clip.text_model.encoder.layers[1].layer_norm1
    return lambda: setattr(norm, "eps", norm.eps + 100.0)


def wrap_the_encoder(model):
    own = model.get_class_embeds
    return lambda: setattr(model, "get_class_embeds", lambda *call, **options: own(*call, **options).roll(1, 1))


def cut_a_layer(model):
    encoder = model.clip.text_model.encoder
    return lambda: setattr(encoder, "layers", encoder.layers[:1])


def swap_layers(model):
    layers = model.clip.text_model.encoder.layers

    def swap():
        layers[0], layers[2] = layers[2], layers[0]

    return swap


def hide_a_weight(model):
    layer = model.clip.text_model.encoder.layers[1].mlp.fc1
    weight = layer.weight.detach().clone()
    del layer.weight
    layer.weight = weight
    return lambda: setattr(layer, "weight", layer.weight * 2)


SWITCHES = {
    "adapter": adapt,
    "hook": hook,
    "hook before": hook_before,
    "hook on the final norm": lambda model: hook(model, lambda m: m.clip.text_model.final_layer_norm),
    "hook on the prompts": lambda model: hook(model, lambda m: m.text_prompts),
    "parametrization": parametrise,
    "replaced forward": replace_forward,
    "pruning": mask_a_weight,
    "attribute": change_attribute,
    "wrapped encoder": wrap_the_encoder,
    "fewer layers": cut_a_layer,
    "other order of layers": swap_layers,
    "weight that is no parameter": hide_a_weight,
}


@pytest.mark.parametrize("switch", SWITCHES)
@torch.no_grad()
def test_promise_3_what_switches_the_text_tower_without_a_weight_is_noticed(
    tiny_model, tiny_processor, pixel_values, switch
):
    toggle = SWITCHES[switch](tiny_model)
    tiny_model.set_vocabulary(NAMES, tiny_processor)
    pipe = pipeline("zero-shot-image-segmentation", model=tiny_model, processor=tiny_processor, device="cpu")
    before, own = default_logits(tiny_model, pixel_values), pipe._class_embeds(read_labels(NAMES))
    toggle()
    after = default_logits(tiny_model, pixel_values)
    assert torch.equal(after, named_logits(tiny_model, tiny_processor, pixel_values))
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(pipe._class_embeds(read_labels(NAMES)), encode_classes(tiny_model, tiny_processor, NAMES)[1])
    assert not torch.allclose(pipe._class_embeds(read_labels(NAMES)), own, atol=1e-3)


@torch.no_grad()
def test_promise_3_hooks_of_all_modules_are_noticed(tiny_model, tiny_processor, pixel_values):
    tiny_model.set_vocabulary(NAMES, tiny_processor)
    before = default_logits(tiny_model, pixel_values)
    double = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 2 if module is tiny_model.clip.text_model.encoder.layers[1] else None
    )
    try:
        assert not torch.allclose(default_logits(tiny_model, pixel_values), before, atol=1e-3)
    finally:
        double.remove()
    assert torch.equal(default_logits(tiny_model, pixel_values), before)


@torch.no_grad()
def test_dropout_in_a_part_that_trains_is_never_kept(tokenizer, make_model, tiny_processor, pixel_values):
    model = make_model(build_clip(tokenizer, attention_dropout=0.5))
    model.set_vocabulary(NAMES, tiny_processor)
    model.clip.text_model.train()
    assert not torch.equal(default_logits(model, pixel_values), default_logits(model, pixel_values))


@torch.no_grad()
def test_a_text_tower_as_it_came_is_asked_once_after_recording_and_in_any_dtype(
    tiny_model, tiny_processor, pixel_values, monkeypatch
):
    tiny_model.set_vocabulary(NAMES, tiny_processor)
    tiny_model(pixel_values, output_hidden_states=True)  # installs the library's recording hooks
    for dtype in (torch.float32, torch.bfloat16):
        tiny_model.to(dtype)
        default_logits(tiny_model, pixel_values.to(dtype))
        with monkeypatch.context() as patch:
            patch.setattr(type(tiny_model), "get_class_embeds", None)
            default_logits(tiny_model, pixel_values.to(dtype))


@torch.no_grad()
def test_promise_3_holds_for_adapters_of_peft(tiny_model, tiny_processor, pixel_values):
    peft = pytest.importorskip("peft")
    tiny_model.set_vocabulary(NAMES, tiny_processor)
    plain = default_logits(tiny_model, pixel_values)
    lora = peft.LoraConfig(
        r=4, lora_alpha=64, target_modules=r"clip\.text_model\..*\.(q_proj|v_proj)", init_lora_weights=False
    )
    adapted = peft.get_peft_model(tiny_model, lora).eval()
    adapted.add_adapter("second", lora)
    first = adapted(pixel_values=pixel_values).logits
    adapted.set_adapter("second")
    second = adapted(pixel_values=pixel_values).logits
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(pixel_values=pixel_values).logits, plain)
    adapted.set_adapter("default")
    assert torch.equal(adapted(pixel_values=pixel_values).logits, first)
    for one, other in ((first, plain), (second, plain), (first, second)):
        assert not torch.allclose(one, other, atol=1e-2)


# ---- quantised


def quantise_dynamically(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class Packed(nn.Module):
    """A layer whose weights lie in a form of its own, as quantised ones do."""

    def __init__(self, layer):
        super().__init__()
        self.scale = float(layer.weight.abs().max()) / 127
        self.register_buffer("packed", (layer.weight / self.scale).round().to(torch.int8))
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, hidden_states):
        return nn.functional.linear(hidden_states, self.packed * self.scale, self.bias)


def pack(model):
    for layer in model.clip.text_model.encoder.layers:
        layer.mlp.fc1 = Packed(layer.mlp.fc1)
    return model


def quantise_by_torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantise", [quantise_dynamically, pack, quantise_by_torchao])
@torch.no_grad()
def test_a_quantised_text_tower_answers_by_every_way(make_model, tiny_processor, pixel_values, tmp_path, quantise):
    model = quantise(make_model())
    expected = named_logits(model, tiny_processor, pixel_values)
    model.set_vocabulary(NAMES, tiny_processor)
    torch.testing.assert_close(default_logits(model, pixel_values), expected)
    vocabulary = model.encode_vocabulary(NAMES, tiny_processor)
    vocabulary.save(tmp_path)
    model.set_vocabulary(tmp_path)
    torch.testing.assert_close(default_logits(model, pixel_values), expected)
    assert vocabulary.fingerprint == text_fingerprint(quantise(make_model())), "the same weights, quantised alike"
    assert vocabulary.fingerprint != text_fingerprint(make_model())
    with pytest.raises(ValueError, match=r"encode its names with model\.encode_vocabulary of the checkpoint"):
        make_model().set_vocabulary(vocabulary)
    pipe = pipeline("zero-shot-image-segmentation", model=model, processor=tiny_processor, device="cpu")
    picture = Image.new("RGB", (32, 32), "red")
    assert pipe(picture, candidate_labels=NAMES)
    assert pipe(picture)


@torch.no_grad()
def test_the_fingerprint_knows_the_switches_of_an_adapter_and_refuses_hooks(tiny_model, tiny_processor, vocabulary):
    plain = text_fingerprint(tiny_model)
    toggle = adapt(tiny_model)
    first = text_fingerprint(tiny_model)
    toggle()
    second = text_fingerprint(tiny_model)
    assert len({plain, first, second}) == 3
    hook(tiny_model)
    for ask in (
        lambda: tiny_model.encode_vocabulary(NAMES, tiny_processor),
        lambda: tiny_model.set_vocabulary(NAMES, tiny_processor, bake=True),
        lambda: tiny_model.set_vocabulary(vocabulary),
    ):
        with pytest.raises(ValueError, match=r"a hook or a replaced method of .*encoder\.layers\.1. may"):
            ask()


class Sealed(torch.Tensor):
    """A weight that nobody can read."""

    def dequantize(self):
        raise NotImplementedError("sealed")


def test_weights_that_cannot_be_read_give_no_vocabulary(tiny_model, tiny_processor):
    layer = tiny_model.clip.text_model.encoder.layers[0].mlp.fc1
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Sealed), requires_grad=False)
    with pytest.raises(ValueError, match=r"fc1.weight' is a .*, whose values cannot be read \(sealed\); encode"):
        text_fingerprint(tiny_model)


# ---- baked


@pytest.fixture
def baked_folder(tmp_path, make_model, tiny_processor):
    """Return a checkpoint without text tower, baked from the weights of `tiny_model`."""
    model = make_model()
    model.set_vocabulary(["sofa", "sky"], tiny_processor, bake=True)
    model.save_pretrained(tmp_path / "baked")
    return tmp_path / "baked"


def test_a_baked_checkpoint_takes_any_vocabulary_of_the_weights_it_was_baked_from(
    baked_folder, tiny_model, tiny_processor, folder, tmp_path, pixel_values
):
    baked = LDVCForSemanticSegmentation.from_pretrained(baked_folder)
    assert baked.config.text_fingerprint == text_fingerprint(tiny_model)
    baked.set_vocabulary(folder, other_label="other")
    expected = named_logits(tiny_model, tiny_processor, pixel_values)
    torch.testing.assert_close(default_logits(baked, pixel_values), expected)
    baked.save_pretrained(tmp_path / "again")
    again = LDVCForSemanticSegmentation.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(default_logits(again, pixel_values), expected)
    assert again.config.id2label == {**dict(enumerate(NAMES)), 4: "other"}


def test_a_baked_checkpoint_refuses_a_foreign_vocabulary(
    baked_folder, make_model, tokenizer, tiny_processor, pixel_values
):
    baked = LDVCForSemanticSegmentation.from_pretrained(baked_folder)
    before = default_logits(baked, pixel_values)
    foreign = make_model(build_clip(tokenizer, seed=5)).encode_vocabulary(NAMES, tiny_processor)
    own = baked.config.text_fingerprint[:16]
    with pytest.raises(ValueError, match=f"{foreign.fingerprint[:16]}.* this checkpoint was baked from {own}"):
        baked.set_vocabulary(foreign)
    assert baked.config.id2label == {0: "sofa", 1: "sky"}
    assert torch.equal(default_logits(baked, pixel_values), before)


def test_a_baked_checkpoint_that_remembers_no_weights_takes_no_vocabulary(baked_folder, vocabulary):
    baked = LDVCForSemanticSegmentation.from_pretrained(baked_folder, text_fingerprint=None)
    with pytest.raises(ValueError, match="was baked from None"):
        baked.set_vocabulary(vocabulary)


def test_a_baked_checkpoint_encodes_no_names(baked_folder, tiny_processor):
    baked = LDVCForSemanticSegmentation.from_pretrained(baked_folder)
    with pytest.raises(
        ValueError, match=r"baked vocabulary and no text tower.*LDVCVocabulary that was encoded with it"
    ):
        baked.encode_vocabulary(NAMES, tiny_processor)


@pytest.mark.slow
def test_the_adapter_of_a_baked_model_brings_its_vocabulary_and_its_fingerprint(
    make_model, tiny_processor, tmp_path, pixel_values
):
    trained, model = make_model(), make_model()
    trained.text_prompts.tokens.data += torch.randn(3, 4, 32)
    for each in (trained, model):
        each.set_vocabulary(NAMES, tiny_processor, bake=True)
    expected = default_logits(trained, pixel_values)
    assert not torch.allclose(default_logits(model, pixel_values), expected, atol=1e-3)
    trained.save_adapter(tmp_path)
    model.load_adapter_weights(tmp_path)
    assert model.config.text_fingerprint == trained.config.text_fingerprint
    assert torch.equal(default_logits(model, pixel_values), expected)


def test_a_template_of_another_processor_is_kept_with_the_vocabulary(make_model, clip_folder, tmp_path, pixel_values):
    processor = LDVCProcessor.from_clip_pretrained(clip_folder, prompt_templates=["a {}", "sky of {}"])
    model = make_model(num_text_prompts=0)
    model.encode_vocabulary(NAMES, processor).save(tmp_path)
    loaded = LDVCVocabulary.load(tmp_path)
    assert loaded.prompt_templates == ["a {}", "sky of {}"]
    assert loaded.prompt_class_ids == [0, 0, 1, 1, 2, 2, 3, 3]
    model.set_vocabulary(loaded)
    assert torch.equal(default_logits(model, pixel_values), named_logits(model, processor, pixel_values))
