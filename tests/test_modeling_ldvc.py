"""The model: equal to CLIP where it must be, the five promises, and the library's contract."""

import copy
import json
import logging
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_FIELDS, build_clip
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSemanticSegmentation, CLIPModel, Trainer, TrainingArguments

from ldvc.model import modeling_ldvc, vocabulary_ldvc
from ldvc.model.compat_ldvc import enable_checkpointing
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.loss_ldvc import segmentation_loss
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.processing_ldvc import LDVCProcessor


CLIP_CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # same formulas, other order of sums
BATCH_CLOSE = {"atol": 1e-4, "rtol": 0}  # the promise
NAMES = ["cat", "dog", "grass", "zebra crossing"]
DECODERS = {
    "route": {},
    "full": {"decoder_attention": "full"},
    "window": {"decoder_attention": "window"},
    "shifted_window": {"decoder_attention": "shifted_window"},
    "none": {"decoder_attention": "none"},
    "class": {"decoder_query": "class", "class_self_attention": True},
    "class dot": {"decoder_query": "class", "class_query_mask": "dot"},
}
NO_PROMPTS = {"num_vision_prompts": 0, "num_text_prompts": 0}
NO_DROPOUT = {"decoder_dropout": 0.0, "vision_prompt_dropout": 0.0}


@pytest.fixture
def ldvc_folder(tmp_path, tiny_model, tiny_processor):
    """Return a saved model with a default vocabulary, and its processor."""
    tiny_model.set_vocabulary(NAMES, tiny_processor)
    tiny_model.save_pretrained(tmp_path / "ldvc")
    tiny_processor.save_pretrained(tmp_path / "ldvc")
    return tmp_path / "ldvc"


def own_weights(model):
    return {name: weight for name, weight in model.state_dict().items() if not name.startswith("clip.")}


def assert_same_weights(state, other):
    assert state.keys() == other.keys()
    for name in state:
        assert torch.equal(state[name], other[name]), name


# ---- equal to CLIP


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (64, 48), (24, 40)], ids=str)
def test_without_prompts_the_image_features_are_those_of_clip(make_model, clip_model, size):
    model = make_model(**NO_PROMPTS, position_interpolation="bicubic")
    pixel_values = torch.randn(2, 3, *size)
    features = model.get_image_features(pixel_values)
    vision = clip_model.vision_model(pixel_values, interpolate_pos_encoding=True)
    tokens = clip_model.visual_projection(clip_model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:]))
    tokens = F.normalize(tokens, dim=-1)
    whole = clip_model.get_image_features(pixel_values, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(features.feature_map.flatten(2).transpose(1, 2), tokens, **CLIP_CLOSE)
    torch.testing.assert_close(features.image_embeds, F.normalize(whole, dim=-1), **CLIP_CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("side", [224, 512])
def test_without_prompts_a_patch_16_clip_sees_as_clip_does_at_224_and_512_pixels(make_model, tokenizer, side):
    clip = build_clip(tokenizer, image_size=224, patch_size=16)
    model = make_model(clip, **NO_PROMPTS, position_interpolation="bicubic")
    pixel_values = torch.randn(1, 3, side, side)
    whole = clip.get_image_features(pixel_values, interpolate_pos_encoding=True).pooler_output
    features = model.get_image_features(pixel_values)
    torch.testing.assert_close(features.image_embeds, F.normalize(whole, dim=-1), **CLIP_CLOSE)
    assert features.feature_map.shape[-2:] == (side // 16, side // 16)


@torch.no_grad()
def test_bilinear_positions_are_those_of_clip_at_the_native_size(make_model, clip_model, pixel_values):
    features = make_model(**NO_PROMPTS).get_image_features(pixel_values)
    whole = clip_model.get_image_features(pixel_values).pooler_output
    torch.testing.assert_close(features.image_embeds, F.normalize(whole, dim=-1), **CLIP_CLOSE)


@torch.no_grad()
def test_the_prompt_norm_starts_as_the_identity_on_the_features(make_model, clip_model, pixel_values):
    model = make_model(num_vision_prompts=0)
    model.prompt_norm = make_model().prompt_norm
    whole = clip_model.get_image_features(pixel_values).pooler_output
    # up to the two eps of the norms
    torch.testing.assert_close(
        model.get_image_features(pixel_values).image_embeds, F.normalize(whole, dim=-1), atol=1e-4, rtol=1e-4
    )


def clip_text_features(clip, tokenizer, prompts, **padding):
    encoded = tokenizer(prompts, return_tensors="pt", **padding)
    return F.normalize(clip.get_text_features(**encoded).pooler_output, dim=-1)


@torch.no_grad()
def test_without_prompts_the_text_features_are_those_of_clip(make_model, clip_model, tokenizer):
    prompts = ["a cat", "zebra", "a photo of a sofa, of grass and of sky"]
    encoded = tokenizer(prompts, padding=True, return_tensors="pt")
    expected = clip_text_features(clip_model, tokenizer, prompts, padding=True)
    torch.testing.assert_close(make_model(**NO_PROMPTS).get_class_embeds(**encoded), expected, **CLIP_CLOSE)


LEGACY = {"legacy ids": {"eos_token_id": 2, "bos_token_id": 0}, "ids": {}}


@torch.no_grad()
@pytest.mark.parametrize("ids", LEGACY)
@pytest.mark.parametrize(
    "padding", [{"padding": True}, {"padding": "max_length", "max_length": 77}], ids=["longest", "77"]
)
@pytest.mark.parametrize("names", [["cat"], ["dog", "zebra crossing", "a"], ["x" * 60, "sky"]], ids=["1", "3", "long"])
def test_handcrafted_prompts_give_the_text_features_of_clip_at_step_0(make_model, tokenizer, ids, padding, names):
    clip = build_clip(tokenizer, **LEGACY[ids])
    prompts = [f"a photo of a {name}" for name in names]
    model = make_model(clip)
    assert model.text_prompts.tokens.shape == (3, 4, 32)
    encoded = tokenizer(prompts, return_tensors="pt", **padding)
    expected = clip_text_features(clip, tokenizer, prompts, **padding)
    torch.testing.assert_close(model.get_class_embeds(**encoded), expected, **CLIP_CLOSE)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("template", ["a photo of a {}", "sofa {} of grass", "sky of a {}."])
def test_handcrafted_prompts_keep_clip_at_any_depth_and_template(make_model, clip_model, tokenizer, depth, template):
    num_words = len(tokenizer(template.split("{}")[0])["input_ids"]) - 2
    model = make_model(prompt_template=template, num_text_prompts=num_words, text_prompt_depth=depth)
    prompts = [template.format(name) for name in NAMES]
    encoded = tokenizer(prompts, padding=True, return_tensors="pt")
    expected = clip_text_features(clip_model, tokenizer, prompts, padding=True)
    torch.testing.assert_close(model.get_class_embeds(**encoded), expected, **CLIP_CLOSE)


@torch.no_grad()
def test_text_prompts_do_change_the_features_in_every_layer(make_model, tokenizer):
    encoded = tokenizer(["a photo of a cat"], return_tensors="pt")
    for layer in range(3):
        model = make_model()
        before = model.get_class_embeds(**encoded)
        model.text_prompts.tokens[layer] += torch.randn(4, 32)
        assert not torch.allclose(before, model.get_class_embeds(**encoded), atol=1e-3), layer


@torch.no_grad()
def test_vision_prompts_do_change_the_features_in_every_layer(make_model, pixel_values):
    for layer in range(3):
        model = make_model()
        before = model.get_image_features(pixel_values).feature_map
        model.vision_prompts.tokens[layer] += torch.randn(3, 48)
        assert not torch.allclose(before, model.get_image_features(pixel_values).feature_map, atol=1e-4), layer


@torch.no_grad()
@pytest.mark.parametrize("filler", ["end token", 0])
def test_padding_never_changes_the_class_embeddings(tiny_model, tokenizer, filler):
    prompts = [f"a photo of a {name}" for name in NAMES]
    filler = tokenizer.eos_token_id if filler == "end token" else filler
    alone = torch.cat([tiny_model.get_class_embeds(tokenizer(p, return_tensors="pt")["input_ids"]) for p in prompts])
    padded = torch.full((len(prompts), 77), filler)
    for row, prompt in zip(padded, prompts, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        row[: len(ids)] = torch.tensor(ids)
    torch.testing.assert_close(tiny_model.get_class_embeds(padded), alone, **CLIP_CLOSE)


def test_the_text_tower_runs_at_the_length_of_the_longest_name(tiny_model, tokenizer):
    lengths = []
    for block in tiny_model.clip.text_model.encoder.layers:
        block.layer_norm1.register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
        block.layer_norm2.register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    encoded = tokenizer(
        ["a photo of a cat", "a photo of a sky dog"], padding="max_length", max_length=77, return_tensors="pt"
    )
    tiny_model.get_class_embeds(**encoded)
    assert lengths == [8, 8] * (len(lengths) // 2 - 1) + [8, 1]  # of the last one's feed-forward the end token alone


@torch.no_grad()
@pytest.mark.parametrize("kind", ["relation", "linear"])
def test_a_text_adapter_may_start_as_the_identity_and_is_loaded_as_it_was_trained(make_model, tmp_path, kind):
    model = make_model(text_adapter=kind, text_adapter_init="identity")
    image_embeds, class_embeds = torch.randn(2, 32), torch.randn(1, 3, 32)
    torch.testing.assert_close(model.text_adapter(image_embeds, class_embeds), class_embeds.expand(2, -1, -1))
    model.text_adapter.projection.weight.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.text_adapter.projection.weight, model.text_adapter.projection.weight)


@torch.no_grad()
def test_class_embeddings_have_unit_length_and_prompts_of_one_class_are_averaged(tiny_model, tokenizer):
    encoded = tokenizer([f"a photo of a {n}" for n in ("cat", "dog", "sky")], padding=True, return_tensors="pt")
    embeds = tiny_model.get_class_embeds(**encoded)
    averaged = tiny_model.get_class_embeds(**encoded, prompt_class_ids=torch.tensor([0, 0, 1]))
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(averaged[0], F.normalize((embeds[0] + embeds[1]) / 2, dim=-1))
    torch.testing.assert_close(averaged[1], embeds[2])


# ---- what trains


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        ({}, 9.642),
        ({"num_vision_prompts": 100}, 10.471),
        ({"num_text_prompts": 0}, 9.617),
        ({"num_text_prompts": 0, "num_vision_prompts": 100}, 10.447),
        ({"num_text_prompts": 0, "num_vision_prompts": 0}, 8.933),
        ({"num_text_prompts": 0, "decoder_query": "class", "num_decoder_layers": 3}, 10.666),
    ],
    ids=str,
)
def test_vit_b16_trains_as_many_parameters_as_the_method_counts(fields, millions):
    with torch.device("meta"):
        model = LDVCForSemanticSegmentation(LDVCConfig(**fields))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert round(trained / 1e6, 3) == millions


def test_the_parts_of_the_count_are_those_of_the_method():
    with torch.device("meta"):
        model = LDVCForSemanticSegmentation(LDVCConfig())

    def count(part):
        return sum(parameter.numel() for parameter in part.parameters())

    assert count(model.text_prompts) == 24_576
    assert count(model.text_adapter) == 524_800
    assert count(model.decoder) == 2 * 4_204_032


@pytest.mark.parametrize("decoder", DECODERS)
def test_exactly_the_parameters_outside_clip_train(make_model, decoder):
    model = make_model(**DECODERS[decoder])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("clip.")), name


def test_clip_is_frozen_after_loading_too(ldvc_folder):
    model = LDVCForSemanticSegmentation.from_pretrained(ldvc_folder)
    assert not any(parameter.requires_grad for parameter in model.clip.parameters())
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("clip."))
    model, info = LDVCForSemanticSegmentation.from_pretrained(ldvc_folder, output_loading_info=True)
    assert not any(parameter.requires_grad for parameter in model.clip.parameters())
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("decoder", ["route", "class dot"])
def test_every_trained_parameter_gets_a_gradient(make_model, inputs, labels, decoder):
    """Otherwise training with several processes stops."""
    model = make_model(**DECODERS[decoder], logit_scale="cosine", logit_bias_init=-1.0).train()
    model(**inputs, labels=labels).loss.backward()
    without = [
        name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # a key's bias shifts all scores of a softmax alike, so its gradient is rounding or nothing
    assert [name for name in without if not name.endswith("k_proj.bias")] == []
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_dropout_of_vision_prompts_is_drawn_for_every_image(make_model):
    prompts = make_model(vision_prompt_dropout=0.5).vision_prompts.train()
    first, second = prompts(torch.zeros(2, 17, 48), 0)[:, 1:4]
    assert not torch.equal(first == 0, second == 0)


def test_the_trainer_divides_the_loss_by_the_accumulation_steps(tiny_model, tmp_path):
    pytest.importorskip("accelerate")
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to=[], gradient_accumulation_steps=2)
    trainer = Trainer(tiny_model, arguments)
    trainer.current_gradient_accumulation_steps = 2
    inputs = {"pixel_values": torch.randn(1, 3, 32, 32), "class_embeds": F.normalize(torch.randn(2, 32), dim=-1)}
    inputs["labels"] = torch.zeros(1, 32, 32, dtype=torch.long)
    torch.manual_seed(3)
    reported = trainer.training_step(tiny_model, inputs, num_items_in_batch=torch.tensor(2))
    torch.manual_seed(3)
    torch.testing.assert_close(reported, tiny_model(**inputs).loss.detach() / 2)


# ---- the promises


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_promise_1_an_image_alone_and_in_a_batch_give_the_same_logits(make_model, tiny_processor, decoder):
    model = make_model(**DECODERS[decoder])
    classes = tiny_processor(class_names=NAMES, return_tensors="pt")
    pixel_values = torch.randn(5, 3, 40, 56)
    together = model(pixel_values, **classes).logits
    for index in range(5):
        torch.testing.assert_close(
            model(pixel_values[index : index + 1], **classes).logits[0], together[index], **BATCH_CLOSE
        )


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_promise_2_permuting_names_permutes_logits_and_nothing_else(make_model, tiny_processor, pixel_values, decoder):
    model = make_model(**DECODERS[decoder])
    order = [2, 0, 3, 1]
    logits = model(pixel_values, **tiny_processor(class_names=NAMES, return_tensors="pt")).logits
    permuted = tiny_processor(class_names=[NAMES[i] for i in order], return_tensors="pt")
    torch.testing.assert_close(model(pixel_values, **permuted).logits, logits[:, order], **BATCH_CLOSE)
    assert not torch.allclose(logits[:, order], logits, atol=1e-2)


class CachedModel:
    """A model whose default vocabulary was used once, so that its cache is full."""

    def __init__(self, model, processor, pixel_values):
        self.model, self.processor, self.pixel_values, self.names = model, processor, pixel_values, NAMES
        model.set_vocabulary(self.names, processor)
        self.before = self.default()

    @torch.no_grad()
    def default(self):
        return self.model(self.pixel_values).logits

    @torch.no_grad()
    def named(self):
        return self.model(self.pixel_values, **self.processor(class_names=self.names, return_tensors="pt")).logits

    def assert_fresh(self):
        expected = self.named()
        torch.testing.assert_close(self.default(), expected)
        assert expected.shape != self.before.shape or not torch.allclose(expected, self.before, atol=1e-3)


@pytest.fixture
def cached(make_model, tiny_processor, pixel_values):
    return CachedModel(make_model(), tiny_processor, pixel_values)


def test_the_default_vocabulary_is_encoded_once_while_nothing_changes(cached, monkeypatch):
    calls, encode = [], cached.model._encode_text
    monkeypatch.setattr(cached.model, "_encode_text", lambda ids, ends: calls.append(ids) or encode(ids, ends))
    assert torch.equal(cached.default(), cached.default())
    assert torch.equal(cached.default(), cached.before)
    assert calls == []
    torch.testing.assert_close(cached.named(), cached.before)
    assert len(calls) == 1


def test_promise_3_other_names_replace_the_kept_embeddings(cached):
    cached.names = ["sofa", "sky"]
    cached.model.set_vocabulary(cached.names, cached.processor)
    cached.assert_fresh()


def test_promise_3_names_in_another_order_replace_the_kept_embeddings(cached):
    cached.names = NAMES[::-1]
    cached.model.set_vocabulary(cached.names, cached.processor)
    cached.assert_fresh()


def test_promise_3_another_template_replaces_the_kept_embeddings(
    make_model, clip_folder, tiny_processor, pixel_values
):
    cached = CachedModel(make_model(num_text_prompts=0), tiny_processor, pixel_values)
    cached.processor = LDVCProcessor.from_clip_pretrained(clip_folder, prompt_templates=["{} of sky", "dog {}"])
    cached.model.set_vocabulary(NAMES, cached.processor)
    cached.assert_fresh()


def test_promise_3_text_prompts_changed_through_data_replace_the_kept_embeddings(cached):
    cached.model.text_prompts.tokens.data += torch.randn_like(cached.model.text_prompts.tokens)
    cached.assert_fresh()


def test_promise_3_an_optimiser_step_replaces_the_kept_embeddings(cached, labels):
    optimizer = torch.optim.SGD([cached.model.text_prompts.tokens], lr=100.0)
    cached.model(cached.pixel_values, labels=labels).loss.backward()
    optimizer.step()
    cached.assert_fresh()


def test_promise_3_loaded_weights_replace_the_kept_embeddings(cached, make_model, tokenizer):
    cached.model.load_state_dict(make_model(build_clip(tokenizer, seed=5)).state_dict())
    cached.assert_fresh()


def test_promise_3_a_changed_clip_weight_replaces_the_kept_embeddings(cached):
    with torch.no_grad():
        cached.model.clip.text_projection.weight.add_(torch.randn(32, 32))
    cached.assert_fresh()


def test_promise_3_a_replaced_clip_weight_replaces_the_kept_embeddings(cached):
    cached.model.clip.text_projection.weight = nn.Parameter(torch.randn(32, 32), requires_grad=False)
    cached.assert_fresh()


def test_promise_3_a_loaded_adapter_replaces_the_kept_embeddings(cached, make_model, tmp_path, tiny_processor):
    other = make_model()
    other.text_prompts.tokens.data += 1
    other.set_vocabulary(["sofa", "sky"], tiny_processor)
    other.save_adapter(tmp_path)
    cached.model.load_adapter_weights(tmp_path)
    cached.names = ["sofa", "sky"]
    assert cached.model.config.id2label == {0: "sofa", 1: "sky"}
    cached.assert_fresh()


def test_promise_3_another_dtype_replaces_the_kept_embeddings(cached):
    cached.model.to(torch.bfloat16)
    assert cached.default().dtype == torch.bfloat16
    cached.model.to(torch.float32)
    torch.testing.assert_close(cached.default(), cached.named())


def test_promise_3_nothing_is_kept_while_gradients_are_wanted(cached, labels):
    for _ in range(2):
        cached.model.zero_grad()
        cached.model(cached.pixel_values, labels=labels).loss.backward()
        assert cached.model.text_prompts.tokens.grad.any()
    assert torch.equal(cached.default(), cached.before)


def test_promise_3_inference_mode_gives_the_same(cached):
    with torch.inference_mode():
        inside = cached.model(cached.pixel_values).logits
    torch.testing.assert_close(inside.clone(), cached.before)
    cached.model(cached.pixel_values, labels=torch.zeros(2, 32, 32, dtype=torch.long)).loss.backward()


@torch.no_grad()
def test_promise_4_channel_i_is_name_i_of_the_call(tiny_model, tiny_processor, pixel_values):
    names = ["sky", "7", "0", "cat"]  # a name that looks like an id stays where it stands
    inputs = tiny_processor(class_names=names, return_tensors="pt")
    embeds = tiny_model.get_class_embeds(**inputs)
    for index, name in enumerate(names):
        alone = tiny_model.get_class_embeds(**tiny_processor(class_names=[name], return_tensors="pt"))
        torch.testing.assert_close(embeds[index], alone[0], **CLIP_CLOSE)
    adapted = tiny_model(pixel_values, **inputs).class_embeds
    whole = tiny_model.get_image_features(pixel_values).image_embeds
    torch.testing.assert_close(adapted, tiny_model.text_adapter(whole, embeds[None]))
    tiny_model.set_vocabulary(names, tiny_processor)
    assert tiny_model.config.id2label == {0: "sky", 1: "7", 2: "0", 3: "cat"}
    assert tiny_model.config.label2id == {"sky": 0, "7": 1, "0": 2, "cat": 3}
    assert tiny_model.config.num_labels == 4


def test_a_vocabulary_names_other_one_past_the_last_class(make_model, tiny_processor, tmp_path, pixel_values):
    """With more than ten names, so that their order in the file is not their order."""
    names = [f"thing {index}" for index in range(11)]
    model = make_model(seen_score_offset=0.25, seen_classes=["thing 3"])
    for bake in (False, True):
        model.set_vocabulary(names, tiny_processor, bake=bake, other_label="none of these")
        model.save_pretrained(tmp_path)
        for kept in (model, LDVCForSemanticSegmentation.from_pretrained(tmp_path)):
            assert kept.config.id2label == {**dict(enumerate(names)), 11: "none of these"}
            assert kept.config.label2id["none of these"] == 11
            with torch.no_grad():
                outputs = kept(pixel_values)
            assert outputs.logits.shape[1] == 11
            assert outputs.class_score_offsets[0].tolist() == [0.25 * (name == "thing 3") for name in names]
            maps = tiny_processor.post_process_semantic_segmentation(outputs, threshold=1.0)
            assert kept.config.id2label[maps[0].max().item()] == "none of these"


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"], ["cat", "dog", "other", "d"]], ids=str)
def test_names_that_do_not_fit_the_vocabulary_are_refused_on_loading(tiny_model, tiny_processor, tmp_path, names):
    tiny_model.set_vocabulary(["cat", "dog"], tiny_processor, other_label="other")
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="set_vocabulary"):
        LDVCForSemanticSegmentation.from_pretrained(tmp_path, id2label=dict(enumerate(names)))


def test_promise_5_training_never_changes_a_clip_weight(make_model, clip_model, inputs, labels):
    model = make_model().train()
    before = {name: weight.clone() for name, weight in own_weights(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    assert_same_weights(model.clip.state_dict(), clip_model.state_dict())
    after = own_weights(model)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


# ---- classes per image, image features, sizes


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_lists_per_image_equal_single_calls(make_model, tiny_processor, images, decoder):
    model = make_model(**DECODERS[decoder])
    lists = [["cat", "grass"], ["sky", "cat", "zebra", "dog"]]
    inputs = tiny_processor(images=images, class_names=lists, return_tensors="pt")
    together = model(**inputs)
    for index, names in enumerate(lists):
        alone = model(**tiny_processor(images=images[index], class_names=names, return_tensors="pt")).logits[0]
        torch.testing.assert_close(together.logits[index, : len(names)], alone, **BATCH_CLOSE)
        assert (together.logits[index, len(names) :].sigmoid() == 0).all()
        best = tiny_processor.post_process_semantic_segmentation(together, target_sizes=[(50, 60)] * 2)[index]
        assert best.max() < len(names)


@torch.no_grad()
def test_three_dimensional_ids_and_embeddings_are_a_list_per_image(tiny_model, tokenizer, pixel_values):
    prompts = [["a photo of a cat", "a photo of a sky"], ["a photo of a dog", "a photo of a zebra"]]
    encoded = tokenizer([*prompts[0], *prompts[1]], padding=True, return_tensors="pt")
    ids, mask = (encoded[key].view(2, 2, -1) for key in ("input_ids", "attention_mask"))
    together = tiny_model(pixel_values, input_ids=ids, attention_mask=mask).logits
    embeds = torch.stack([tiny_model.get_class_embeds(row) for row in ids])
    torch.testing.assert_close(tiny_model(pixel_values, class_embeds=embeds).logits, together)
    for index in range(2):
        alone = tiny_model(pixel_values[index : index + 1], input_ids=ids[index]).logits[0]
        torch.testing.assert_close(together[index], alone, **BATCH_CLOSE)


@torch.no_grad()
def test_padded_rows_of_three_dimensional_ids_need_be_no_prompts(tiny_model, tokenizer, pixel_values):
    encoded = tokenizer(["a photo of a cat", "a photo of a sky", "a photo of a dog"], return_tensors="pt")
    ids = torch.stack([encoded["input_ids"][:2], encoded["input_ids"][[2, 2]]])
    ids[1, 1] = tokenizer.pad_token_id
    class_mask = torch.tensor([[1, 1], [1, 0]])
    padded = tiny_model(pixel_values, input_ids=ids, class_mask=class_mask).logits
    alone = tiny_model(pixel_values[1:], input_ids=encoded["input_ids"][2:]).logits[0]
    torch.testing.assert_close(padded[1, :1], alone, **BATCH_CLOSE)
    with pytest.raises(ValueError, match="do not begin with the words"):
        tiny_model(pixel_values, input_ids=ids)


@torch.no_grad()
def test_a_choice_among_the_default_classes_lowers_the_seen_ones_among_them(make_model, tiny_processor, pixel_values):
    model = make_model(seen_score_offset=0.25, seen_classes=["dog"])
    model.set_vocabulary(["cat", "dog", "sofa"], tiny_processor)
    chosen = torch.tensor([[1, 0], [2, 1]])
    assert model(pixel_values, class_index=chosen).class_score_offsets.tolist() == [[0.25, 0.0], [0.0, 0.25]]


def test_freezing_clip_sets_free_what_is_not_clip(tiny_model):
    tiny_model.requires_grad_(False)
    tiny_model.freeze_clip()
    free = {name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad}
    assert free == {name for name, _ in tiny_model.named_parameters() if not name.startswith("clip.")}


def test_padded_classes_add_nothing_to_loss_and_gradient(tiny_model, tiny_processor, images):
    labels = [torch.randint(0, 2, size[::-1]).numpy() for size in (image.size for image in images)]
    lists = [["cat", "grass"], ["sky", "cat", "dog"]]
    inputs = tiny_processor(images=images, class_names=lists, segmentation_maps=labels, return_tensors="pt")
    outputs = tiny_model(**inputs)
    outputs.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_model.parameters())
    terms = []
    for index, names in enumerate(lists):
        one = tiny_processor(
            images=images[index], class_names=names, segmentation_maps=labels[index], return_tensors="pt"
        )
        logits = tiny_model(**{k: v for k, v in one.items() if k != "labels"}).logits
        terms.append(segmentation_loss(logits, one["labels"], num_masks=4)[0])
    assert outputs.loss.item() == pytest.approx(sum(terms).item(), rel=1e-4)


@torch.no_grad()
def test_encode_once_ask_many_gives_the_logits_of_the_full_call(tiny_model, tiny_processor):
    pixel_values = torch.randn(2, 3, 41, 30)
    features = tiny_model.get_image_features(pixel_values)
    assert features.feature_map.shape == (2, 32, 6, 4)
    assert features.image_size == (41, 30)
    for names in (["cat"], NAMES):
        classes = tiny_processor(class_names=names, return_tensors="pt")
        full = tiny_model(pixel_values, **classes).logits
        assert torch.equal(tiny_model(image_features=features, **classes).logits, full)
        embeds = tiny_model.get_class_embeds(**classes)
        assert torch.equal(tiny_model(image_features=features, class_embeds=embeds).logits, full)


@torch.no_grad()
def test_encode_once_ask_many_holds_for_vocabularies_and_lists_per_image(tiny_model, tiny_processor):
    pixel_values = torch.randn(2, 3, 41, 30)
    features = tiny_model.get_image_features(pixel_values)
    per_image = tiny_processor(class_names=[["sky"], NAMES], return_tensors="pt")
    assert torch.equal(
        tiny_model(image_features=features, **per_image).logits, tiny_model(pixel_values, **per_image).logits
    )
    for names in (["cat"], NAMES, {"sofa": ["sofa", "couch"]}):
        tiny_model.set_vocabulary(names, tiny_processor)
        assert torch.equal(tiny_model(image_features=features).logits, tiny_model(pixel_values).logits)


@torch.no_grad()
@pytest.mark.parametrize("images", [2, slice(2, 3), [2, 0], torch.tensor([1, 2])], ids=str)
def test_image_features_are_picked_by_image(tiny_model, tiny_processor, images):
    pixel_values = torch.randn(3, 3, 41, 30)
    classes = tiny_processor(class_names=NAMES, return_tensors="pt")
    picked = tiny_model.get_image_features(pixel_values).select(images)
    expected = tiny_model(pixel_values, **classes).logits[[images] if isinstance(images, int) else images]
    torch.testing.assert_close(tiny_model(image_features=picked, **classes).logits, expected, **BATCH_CLOSE)


def test_image_features_move_together(tiny_model):
    features = tiny_model.get_image_features(torch.randn(1, 3, 41, 30)).to("cpu", torch.bfloat16)
    assert features.feature_map.dtype == features.image_embeds.dtype == torch.bfloat16
    assert features.image_size == (41, 30)
    assert features.to("meta").feature_map.is_meta


@torch.no_grad()
def test_many_names_are_encoded_a_block_at_a_time(tiny_model, tiny_processor, monkeypatch):
    names = ["cat", "a very long name", "dog", "x", "sofa grass sky"]
    classes = tiny_processor(class_names=names, return_tensors="pt")
    expected, blocks = tiny_model.get_class_embeds(**classes), []
    tiny_model.clip.text_model.final_layer_norm.register_forward_hook(lambda _, args, out: blocks.append(len(out)))
    monkeypatch.setattr(vocabulary_ldvc, "PROMPTS_PER_PASS", 2)
    torch.testing.assert_close(tiny_model.get_class_embeds(**classes), expected, **CLIP_CLOSE)
    assert blocks == [2, 2, 1]


def test_image_features_keep_the_loss(tiny_model, tiny_processor):
    pixel_values, labels = torch.randn(2, 3, 41, 30), torch.randint(0, 4, (2, 41, 30))
    classes = tiny_processor(class_names=NAMES, return_tensors="pt")
    full = tiny_model(pixel_values, **classes, labels=labels)
    features = tiny_model.get_image_features(pixel_values)
    assert tiny_model(image_features=features, **classes, labels=labels).loss.item() == pytest.approx(full.loss.item())


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (9, 8), (32, 64), (33, 47), (100, 8), (71, 25)], ids=str)
@pytest.mark.parametrize("decoder", DECODERS)
def test_any_size_of_at_least_a_patch_works(make_model, tiny_processor, decoder, size):
    model = make_model(**DECODERS[decoder])
    logits = model(torch.randn(1, 3, *size), **tiny_processor(class_names=NAMES, return_tensors="pt")).logits
    assert logits.shape == (1, 4, math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    assert logits.isfinite().all()


@torch.no_grad()
def test_a_model_takes_any_number_of_classes_without_a_change_of_weights(tiny_model, tiny_processor, pixel_values):
    before = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    for count in (1, 15, 20):
        names = [f"thing {index}" for index in range(count)]
        assert (
            tiny_model(pixel_values, **tiny_processor(class_names=names, return_tensors="pt")).logits.shape[1] == count
        )
    assert_same_weights(tiny_model.state_dict(), before)


def test_the_loss_is_the_configured_loss_of_the_logits(make_model, inputs, labels):
    labels[0, :5] = 255
    fields = {
        "focal_weight": 7.0,
        "dice_weight": 2.0,
        "focal_alpha": 0.5,
        "focal_gamma": 1.0,
        "unlabeled_pixels": "ignore",
    }
    outputs = make_model(**fields)(**inputs, labels=labels)
    expected, terms = segmentation_loss(outputs.logits, labels, *list(fields.values())[:4], unlabeled_pixels="ignore")
    assert outputs.loss.item() == pytest.approx(expected.item())
    assert outputs.focal_loss.item() == pytest.approx(terms["focal"].item())
    assert outputs.dice_loss.item() == pytest.approx(terms["dice"].item())


@pytest.mark.slow
@torch.no_grad()
def test_the_offset_lowers_seen_classes_of_the_default_vocabulary_by_name(make_model, tiny_processor, pixel_values):
    model = make_model(seen_score_offset=0.25, seen_classes=["dog", "cat", "other"])
    model.set_vocabulary(["sky", "cat", "dog"], tiny_processor)
    assert model(pixel_values).class_score_offsets.tolist() == [[0, 0.25, 0.25]] * 2
    named = tiny_processor(class_names=["cat"], return_tensors="pt")
    assert model(pixel_values, **named).class_score_offsets is None
    offsets = model(pixel_values, **named, seen_class_mask=torch.tensor([1])).class_score_offsets
    assert offsets.tolist() == [[0.25]] * 2
    assert model.train()(pixel_values).class_score_offsets is None


@torch.no_grad()
def test_an_offset_that_cannot_be_applied_is_told_once(make_model, tiny_processor, pixel_values, monkeypatch):
    told = []
    monkeypatch.setattr(modeling_ldvc.logger, "warning_once", told.append)
    named = tiny_processor(class_names=["cat"], return_tensors="pt")
    model = make_model(seen_score_offset=0.25, seen_classes=["cat"])
    model.set_vocabulary(["cat", "dog"], tiny_processor)
    model(pixel_values)
    model(pixel_values, **named, seen_class_mask=torch.tensor([1]))
    model.train()(pixel_values, **named)
    make_model()(pixel_values, **named)
    assert told == []
    model.eval()(pixel_values, **named)
    assert all(word in told[0] for word in ("0.25", "not applied", "`seen_class_mask`", "`set_vocabulary`"))


# ---- saving and loading


def test_a_saved_model_comes_back_exactly(ldvc_folder, tiny_model, pixel_values):
    with torch.no_grad():
        expected = tiny_model(pixel_values).logits
    for auto_class in (LDVCForSemanticSegmentation, AutoModel, AutoModelForSemanticSegmentation):
        loaded = auto_class.from_pretrained(ldvc_folder)
        assert isinstance(loaded, LDVCForSemanticSegmentation)
        assert not loaded.training
        assert_same_weights(loaded.state_dict(), tiny_model.state_dict())
        assert loaded.config.id2label == dict(enumerate(NAMES))
        with torch.no_grad():
            # equal weights; where they lie in memory decides how the library's kernels add up
            torch.testing.assert_close(loaded(pixel_values).logits, expected, atol=1e-6, rtol=1e-6)


def test_loading_fills_every_buffer_and_parameter(ldvc_folder, tiny_model):
    """Loading builds on the meta device, where what `__init__` computed is lost."""
    loaded = LDVCForSemanticSegmentation.from_pretrained(ldvc_folder)
    for get in ("named_parameters", "named_buffers"):
        expected, got = dict(getattr(tiny_model, get)()), dict(getattr(loaded, get)())
        assert expected.keys() == got.keys()
        for name in expected:
            assert got[name].device.type == "cpu", name
            assert torch.equal(got[name], expected[name]), name
    for module in loaded.modules():
        assert not [k for k, v in vars(module).items() if isinstance(v, torch.Tensor) and v.is_meta]


def test_missing_weights_are_initialised_by_the_rules(clip_folder, tokenizer):
    fields = {**TINY_FIELDS, "text_prompt_init": "random", "logit_scale": "cosine", "logit_bias_init": -3.0}
    fields |= {"num_vision_prompts": 64, "decoder_intermediate_size": 512}  # enough numbers for their spread
    model = LDVCForSemanticSegmentation.from_clip_pretrained(clip_folder, tokenizer, **fields)
    tokens = model.vision_prompts.tokens
    bound = math.sqrt(6 / (3 * 8 * 8 + 48))
    assert tokens.abs().max() <= bound
    assert tokens.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    projection = model.vision_prompts.projection
    assert projection.weight.std().item() == pytest.approx(math.sqrt(2 / 48), rel=0.1)  # Kaiming normal, fan-out
    assert projection.bias.abs().max() <= 48**-0.5
    assert model.text_prompts.tokens.std().item() == pytest.approx(0.02, rel=0.2)
    linear = model.decoder.layers[0].feed_forward[0]
    assert linear.weight.abs().max() <= 32**-0.5
    assert linear.weight.std().item() == pytest.approx(32**-0.5 / math.sqrt(3), rel=0.1)  # torch's default
    assert linear.bias.any()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and not name.startswith("clip."):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert model.decoder.similarity.log_scale.exp().item() == pytest.approx(10, rel=1e-5)
    assert model.decoder.similarity.bias.item() == -3
    first, second = model.decoder.layers
    assert not torch.equal(first.cross_attn.q_proj.weight, second.cross_attn.q_proj.weight)


def test_weights_missing_in_a_file_are_initialised_and_the_others_kept(ldvc_folder, tiny_model):
    weights = load_file(ldvc_folder / "model.safetensors")
    lost = [name for name in weights if name.startswith(("vision_prompts", "text_prompts", "decoder.layers.1"))]
    save_file({k: v for k, v in weights.items() if k not in lost}, ldvc_folder / "model.safetensors", {"format": "pt"})
    model, info = LDVCForSemanticSegmentation.from_pretrained(ldvc_folder, output_loading_info=True)
    assert sorted(info["missing_keys"]) == sorted(lost)
    for name, weight in model.state_dict().items():
        if name in lost:
            assert weight.isfinite().all(), name
            assert weight.abs().max() < 2, name
        else:
            assert torch.equal(weight, tiny_model.state_dict()[name]), name


def test_clip_weights_are_taken_over_bit_for_bit_and_the_others_are_named(clip_folder, clip_model, tokenizer):
    for clip, extra in ((clip_folder, {}), (str(clip_folder), {}), (clip_model, {"tokenizer": tokenizer})):
        model = LDVCForSemanticSegmentation.from_clip_pretrained(clip, **extra, **TINY_FIELDS)
        assert_same_weights(model.clip.state_dict(), clip_model.state_dict())
        assert set(model.newly_initialized) == set(own_weights(model))
        assert model.config.prompt_token_ids == tokenizer("a photo of a")["input_ids"][:-1]
        assert not any(parameter.requires_grad for parameter in model.clip.parameters())
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("init", ["handcrafted", "random"])
def test_the_device_of_a_clip_in_memory_is_kept(clip_model, tokenizer, init):
    with torch.device("meta"):
        clip = CLIPModel(clip_model.config)
    model = LDVCForSemanticSegmentation.from_clip_pretrained(clip, tokenizer, text_prompt_init=init, **TINY_FIELDS)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["vision_model.encoder.layers.1.mlp.fc1.weight", "text_projection.weight"])
def test_a_clip_without_all_its_weights_is_refused(clip_folder, tmp_path, lost):
    """The library would fill the gap with random numbers."""
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(lost)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 of CLIP's weights, first 'clip.{lost}'"):
        LDVCForSemanticSegmentation.from_clip_pretrained(folder, **TINY_FIELDS)


def test_a_half_precision_clip_is_built_in_float32_unless_asked_otherwise(clip_model, tokenizer, tmp_path):
    copy.deepcopy(clip_model).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = LDVCForSemanticSegmentation.from_clip_pretrained(tmp_path, **TINY_FIELDS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model = LDVCForSemanticSegmentation.from_clip_pretrained(tmp_path, dtype=torch.bfloat16, **TINY_FIELDS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_clip_loads_back_from_an_ldvc_folder(ldvc_folder, clip_model):
    clip = CLIPModel.from_pretrained(ldvc_folder)
    assert_same_weights(clip.state_dict(), clip_model.state_dict())


def test_an_adapter_holds_only_the_own_weights_and_comes_back_exactly(make_model, tmp_path, tiny_processor, inputs):
    trained = make_model(seen_score_offset=0.1)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    trained.config.seen_classes = ["cat"]
    trained.set_vocabulary(NAMES, tiny_processor)
    trained.save_adapter(tmp_path)
    saved = load_file(tmp_path / "ldvc_adapter.safetensors")
    assert_same_weights(saved, own_weights(trained))
    assert not list(tmp_path.glob("*.part"))
    model = make_model()
    model.load_adapter_weights(tmp_path)
    assert_same_weights(model.state_dict(), trained.state_dict())
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.seen_classes == ["cat"]
    assert model.config.seen_score_offset == 0.1
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, trained(**inputs).logits)
        assert torch.equal(model(inputs["pixel_values"]).logits, trained(inputs["pixel_values"]).logits)
    model.config.to_json_string()


def damage_json(folder):
    (folder / "ldvc_adapter.json").write_text('{"clip": ')


def damage_weights(folder):
    path = folder / "ldvc_adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_weight(folder):
    weights = load_file(folder / "ldvc_adapter.safetensors")
    weights.pop("text_adapter.projection.bias")
    save_file(weights, folder / "ldvc_adapter.safetensors")


def drop_a_key(folder):
    content = json.loads((folder / "ldvc_adapter.json").read_text())
    content.pop("clip_fingerprint")
    (folder / "ldvc_adapter.json").write_text(json.dumps(content))


def drop_the_file(folder):
    (folder / "ldvc_adapter.json").unlink()


@pytest.mark.parametrize(
    ("damage", "error", "mentions"),
    [
        (damage_json, ValueError, ("damaged", "save it again")),
        (damage_weights, ValueError, ("damaged", "save it again")),
        (drop_a_key, ValueError, ("damaged", "clip_fingerprint")),
        (drop_a_weight, ValueError, ("text_adapter.projection.bias", "save it again")),
        (drop_the_file, FileNotFoundError, ("ldvc_adapter.json", "save_adapter")),
    ],
)
def test_a_damaged_adapter_is_refused_and_the_model_unchanged(make_model, tmp_path, damage, error, mentions):
    other = make_model()
    other.text_prompts.tokens.data += 1
    other.save_adapter(tmp_path)
    damage(tmp_path)
    assert_refused(make_model(), tmp_path, error, mentions)


def assert_refused(model, folder, error, mentions):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = model.config.to_json_string()
    with pytest.raises(error) as caught:
        model.load_adapter_weights(folder)
    for mention in mentions:
        assert mention in str(caught.value)
    assert_same_weights(model.state_dict(), before)
    assert model.config.to_json_string() == config


def test_an_adapter_of_another_clip_is_refused(make_model, tokenizer, tmp_path):
    make_model(build_clip(tokenizer, seed=5)).save_adapter(tmp_path)
    assert_refused(make_model(), tmp_path, ValueError, ("fingerprint", "from_clip_pretrained"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"num_vision_prompts": 5},
        {"vision_prompt_depth": 2},
        {"num_text_prompts": 0},
        {"text_prompt_depth": 1},
        {"text_adapter": "linear"},
        {"decoder_query": "class"},
        {"num_decoder_layers": 1},
        {"decoder_attention_heads": 2},
        {"decoder_intermediate_size": 16},
        {"decoder_attention": "full"},
        {"logit_scale": "cosine"},
        {"logit_scale": "inv_sqrt_dim"},
        {"class_self_attention": True, "decoder_query": "class"},
        {"position_interpolation": "bicubic"},
        {"num_regions": 4},
        {"route_top_k": 1},
        {"window_size": 4},
        {"logit_bias_init": -1.0},
    ],
    ids=str,
)
def test_an_adapter_of_another_configuration_is_refused(make_model, tmp_path, fields):
    make_model(**fields).save_adapter(tmp_path)
    assert_refused(make_model(), tmp_path, ValueError, ("build the model with",))


def test_the_fingerprint_does_not_depend_on_the_storage_of_equal_values(make_model, tmp_path):
    model = make_model()
    with torch.no_grad():
        for weight in model.clip.parameters():
            weight.copy_(weight.half())
    model.save_adapter(tmp_path)
    model.clip.half()
    model.load_adapter_weights(tmp_path)


# ---- the default vocabulary, baked or not


def test_a_baked_checkpoint_runs_without_text_tower_and_equals_the_unbaked(
    make_model, tiny_processor, tmp_path, pixel_values
):
    names = {"sofa": ["sofa", "couch"], "cat": ["cat"]}
    model = make_model()
    model.set_vocabulary(names, tiny_processor)
    with torch.no_grad():
        expected = model(pixel_values).logits
    model.set_vocabulary(names, tiny_processor, bake=True)
    model.save_pretrained(tmp_path)
    assert not [
        name for name in load_file(tmp_path / "model.safetensors") if "text_" in name.replace("text_adapter", "")
    ]
    loaded, info = LDVCForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.id2label == {0: "sofa", 1: "cat"}
    for baked in (model, loaded):
        assert baked.clip.text_model is None
        with torch.no_grad():
            torch.testing.assert_close(baked(pixel_values).logits, expected)


def test_a_baked_checkpoint_refuses_other_classes_instead_of_ignoring_them(make_model, tiny_processor, pixel_values):
    model = make_model()
    model.set_vocabulary(NAMES, tiny_processor, bake=True)
    with pytest.raises(ValueError, match=r"baked vocabulary \(4 names\)"):
        model(pixel_values, **tiny_processor(class_names=["sofa"], return_tensors="pt"))
    for bake in (False, True):
        with pytest.raises(ValueError, match="baked"):
            model.set_vocabulary(["sofa", "sky"], tiny_processor, bake=bake)
        assert model.config.id2label == dict(enumerate(NAMES))


def test_a_refused_vocabulary_leaves_the_old_one(tiny_model, tiny_processor, clip_folder):
    tiny_model.set_vocabulary(NAMES, tiny_processor)
    other = LDVCProcessor.from_clip_pretrained(clip_folder, prompt_templates="sky of {}")
    before = tiny_model.config.to_json_string()
    with pytest.raises(ValueError, match="a photo of a"):
        tiny_model.set_vocabulary(["sofa"], other)
    for names, options, message in (
        (["cat", "cat"], {}, "twice"),
        ([["cat"], ["dog"]], {}, "list per image"),
        ([{"cat": ["cat"]}], {}, "list per image"),
        (["cat", "sofa"], {"other_label": "Cat"}, "twice"),
        (["cat", "sofa"], {"other_label": " "}, "empty"),
    ):
        for bake in (False, True):
            with pytest.raises(ValueError, match=message):
                tiny_model.set_vocabulary(names, tiny_processor, bake=bake, **options)
    with pytest.raises(TypeError, match="strings"):
        tiny_model.set_vocabulary(["cat"], tiny_processor, other_label=3)
    assert tiny_model.config.to_json_string() == before


@torch.no_grad()
def test_the_default_vocabulary_averages_synonyms_and_templates(make_model, clip_folder, pixel_values):
    processor = LDVCProcessor.from_clip_pretrained(clip_folder, prompt_templates=["a {}", "sky of {}"])
    model = make_model(num_text_prompts=0)
    names = {"sofa": ["sofa", "couch"], "cat": "cat"}
    model.set_vocabulary(names, processor)
    expected = model(pixel_values, **processor(class_names=names, return_tensors="pt")).logits
    assert expected.shape[1] == 2
    torch.testing.assert_close(model(pixel_values).logits, expected)


# ---- the library's contract


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_eager_attention_equals_sdpa(make_model, tiny_processor, images, decoder):
    model = make_model(**DECODERS[decoder])
    inputs = tiny_processor(images=images, class_names=[["cat"], ["dog", "sky"]], return_tensors="pt")
    assert model.config._attn_implementation == "sdpa"
    expected = model(**inputs).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**inputs).logits, expected, **CLIP_CLOSE)


@pytest.mark.parametrize("decoder", ["route", "class dot"])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, inputs, labels, decoder):
    model = make_model(**DECODERS[decoder], **NO_DROPOUT).train()
    model(**inputs, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    calls = []
    model.decoder.layers[0].cross_attn.register_forward_hook(lambda *_: calls.append(1))
    enable_checkpointing(model)
    model(**inputs, labels=labels).loss.backward()
    assert len(calls) == 2  # forward, and again in the backward pass
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_bfloat16_gives_nearly_the_same_probabilities(make_model, tiny_processor, images, decoder):
    model = make_model(**DECODERS[decoder])
    inputs = tiny_processor(images=images, class_names=[["cat"], ["dog", "sky"]], return_tensors="pt")
    expected = model(**inputs).logits.sigmoid()
    output = model.to(torch.bfloat16)(**inputs, labels=torch.zeros(2, 32, 32, dtype=torch.long))
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    # routes may differ where two regions are about as near, so the mean counts and not the largest difference
    assert (output.logits.float().sigmoid() - expected).abs().mean() < 0.03


def test_a_checkpoint_loads_in_bfloat16(ldvc_folder, pixel_values):
    model = LDVCForSemanticSegmentation.from_pretrained(ldvc_folder, dtype=torch.bfloat16)
    with torch.no_grad():
        assert model(pixel_values).logits.dtype == torch.bfloat16


@torch.no_grad()
def test_a_tuple_comes_back_on_request(tiny_model, inputs, labels):
    output = tiny_model(**inputs, labels=labels)
    as_tuple = tiny_model(**inputs, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)
    assert torch.equal(tiny_model(**inputs, return_dict=False)[0], output.logits)


@torch.no_grad()
def test_hidden_states_and_attentions_have_the_documented_shapes(make_model, inputs):
    model = make_model(num_regions=4, route_top_k=3)
    model.set_attn_implementation("eager")
    output = model(
        **inputs,
        output_hidden_states=True,
        output_attentions=True,
        output_decoder_hidden_states=True,
        output_decoder_attentions=True,
        output_routes=True,
    )
    tokens = 1 + 3 + 16
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, tokens, 48)] * 4
    assert [tuple(a.shape) for a in output.attentions] == [(2, 3, tokens, tokens)] * 3
    assert [tuple(h.shape) for h in output.decoder_hidden_states] == [(2, 16, 32)] * 2
    assert [tuple(a.shape) for a in output.decoder_attentions] == [(2, 16, 4, 1, 3)] * 2
    assert [tuple(a.shape) for a in output.cross_attentions] == [(2, 4, 16, 4)] * 2
    assert [tuple(r.shape) for r in output.routes] == [(2, 16, 3)] * 2
    for weights in (*output.attentions, *output.decoder_attentions, *output.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert all(len(field) == 2 for field in (output.logits, output.class_embeds))


@torch.no_grad()
def test_recording_changes_no_logit_and_is_off_by_default(tiny_model, inputs):
    plain = tiny_model(**inputs)
    recorded = tiny_model(**inputs, output_hidden_states=True, output_routes=True)
    assert torch.equal(plain.logits, recorded.logits)
    assert plain.hidden_states is None
    assert plain.routes is None


@pytest.mark.slow
@torch.no_grad()
def test_class_queries_record_their_own_shapes(make_model, inputs):
    model = make_model(decoder_query="class", class_query_mask="dot", class_self_attention=True)
    model.set_attn_implementation("eager")
    output = model(**inputs, output_decoder_hidden_states=True, output_decoder_attentions=True, output_attentions=True)
    assert [tuple(h.shape) for h in output.decoder_hidden_states] == [(2, 4, 32)] * 2
    assert [tuple(a.shape) for a in output.decoder_attentions] == [(2, 4, 4, 4)] * 2
    assert [tuple(a.shape) for a in output.cross_attentions] == [(2, 4, 4, 16)] * 2


@pytest.mark.slow
@torch.no_grad()
def test_compiling_the_whole_forward_gives_the_same_logits(tiny_model, tiny_processor, pixel_values):
    embeds = tiny_model.get_class_embeds(**tiny_processor(class_names=NAMES, return_tensors="pt"))
    compiled = torch.compile(tiny_model, fullgraph=True, backend="eager")
    expected = tiny_model(pixel_values, class_embeds=embeds).logits
    torch.testing.assert_close(compiled(pixel_values, class_embeds=embeds).logits, expected, **CLIP_CLOSE)


class Exported(nn.Module):
    """Logits of pixels and class embeddings, as a program without Python takes them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, class_embeds):
        return self.model(pixel_values, class_embeds=class_embeds).logits


@torch.no_grad()
@pytest.mark.slow
def test_one_export_serves_all_sizes_of_whole_regions(tiny_model):
    """The branches for padding and for the native grid are fixed by the example; the program refuses other sizes."""
    dynamic = torch.export.Dim.DYNAMIC
    example = (torch.randn(2, 3, 64, 48), F.normalize(torch.randn(3, 32), dim=-1))
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic})
    program = torch.export.export(Exported(tiny_model), example, dynamic_shapes=shapes, strict=False).module()
    for size in ((64, 48), (96, 128), (48, 64)):
        pixel_values, embeds = torch.randn(3, 3, *size), F.normalize(torch.randn(5, 32), dim=-1)
        expected = tiny_model(pixel_values, class_embeds=embeds).logits
        torch.testing.assert_close(program(pixel_values, embeds), expected, **CLIP_CLOSE)
    with pytest.raises(AssertionError, match="Guard failed"):
        program(torch.randn(2, 3, 41, 30), embeds)


@pytest.mark.slow
@torch.no_grad()
def test_exporting_gives_the_same_logits_for_other_numbers_of_images_and_classes(tiny_model, pixel_values):
    embeds = F.normalize(torch.randn(3, 32), dim=-1)
    sizes = ({0: torch.export.Dim("images")}, {0: torch.export.Dim("classes")})
    program = torch.export.export(Exported(tiny_model), (pixel_values, embeds), dynamic_shapes=sizes, strict=False)
    pixel_values, embeds = torch.randn(3, 3, 32, 32), F.normalize(torch.randn(5, 32), dim=-1)
    expected = tiny_model(pixel_values, class_embeds=embeds).logits
    torch.testing.assert_close(program.module()(pixel_values, embeds), expected, **CLIP_CLOSE)


def test_a_device_map_places_the_model(ldvc_folder, tiny_model, inputs):
    pytest.importorskip("accelerate")
    loaded = LDVCForSemanticSegmentation.from_pretrained(ldvc_folder, device_map={"": "cpu"})
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, tiny_model(**inputs).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_model_offloaded_to_disk_gives_the_same_logits(make_model, tiny_processor, tmp_path, inputs, decoder):
    """Each parameter reaches its computation through its own module, or offloading would not find it."""
    pytest.importorskip("accelerate")
    model = make_model(**DECODERS[decoder], logit_scale="cosine", logit_bias_init=-1.0)
    model.set_vocabulary(NAMES, tiny_processor)
    model.save_pretrained(tmp_path / "model")
    offloaded = LDVCForSemanticSegmentation.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    expected = model(**inputs).logits
    torch.testing.assert_close(offloaded(**inputs).logits, expected)
    for _ in range(2):  # the default vocabulary, and what is kept of it
        torch.testing.assert_close(offloaded(inputs["pixel_values"]).logits, expected)


@torch.no_grad()
def test_every_module_with_parameters_is_called(make_model, inputs):
    """A parameter that is read past its module's forward is not found by offloading."""
    model = make_model(logit_scale="cosine", logit_bias_init=0.0)
    owners = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    called = set()
    for name in owners:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
    model(**inputs)
    assert owners - called == {"clip"}  # CLIP's own temperature is not used


def test_loading_a_saved_model_warns_of_nothing(ldvc_folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        LDVCForSemanticSegmentation.from_pretrained(ldvc_folder)
        assert not caplog.records
        CLIPModel.from_pretrained(ldvc_folder)  # the library does tell of weights that a CLIP has no use for
        assert caplog.records
