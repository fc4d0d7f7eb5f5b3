"""What the common model tests of Transformers ask of every model, for every kind of decoder.

Held elsewhere, and not here again:

- auto classes, buffers after loading, hidden states and attentions, sizes of inputs, bfloat16, disk offload, compile
  and export, numbers of each rule of initialisation: `test_modeling_ldvc.py`
- the published folder in a fresh process, remote code, import graph: `test_remote_code.py`
- configuration: round trip, defaults, messages: `test_configuration_ldvc.py`
- processor: save and load, shapes, pictures in every form: `test_processing_ldvc.py`; pipelines: `test_pipeline.py`
- `Trainer`, gradient of every trained weight, number of trained weights: `test_modeling_ldvc.py`

There are no tied weights and no input embeddings to resize; that is tested here.
"""

import copy
import inspect
import json
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TINY_FIELDS
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel

from ldvc.model.compat_ldvc import REQUIREMENT, check_release, enable_checkpointing
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation


ROOT = Path(__file__).resolve().parents[1]
NAMES = ["cat", "dog", "grass"]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # same formulas, other order of sums
DECODERS = {
    "route": {},
    "window": {"decoder_attention": "shifted_window"},
    "none": {"decoder_attention": "none", "text_adapter": "linear"},
    "class": {"decoder_query": "class", "class_self_attention": True},
    "class dot": {"decoder_query": "class", "class_query_mask": "dot"},
    "cosine": {"logit_scale": "cosine", "logit_bias_init": -1.0},
    "no prompts": {"num_vision_prompts": 0, "num_text_prompts": 0},
}
each_decoder = pytest.mark.parametrize(
    "decoder",
    [name if name in ("route", "class") else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS],
)


@pytest.fixture
def make_folder(make_model, tiny_processor, tmp_path):
    """Return a function that saves a model with a vocabulary; gives the model and its folder."""

    def make(decoder="route", dtype=torch.float32):
        model = make_model(**DECODERS[decoder])
        model.set_vocabulary(NAMES, tiny_processor)
        model = model.to(dtype)
        model.save_pretrained(tmp_path / "model")
        return model, tmp_path / "model"

    return make


def tiny_config(make_model, decoder="route"):
    return copy.deepcopy(make_model(**DECODERS[decoder]).config)


# ---- initialisation


@each_decoder
def test_two_builds_of_one_seed_are_equal_and_another_seed_is_not(make_model, decoder):
    config = tiny_config(make_model, decoder)
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(LDVCForSemanticSegmentation(config).state_dict())
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    own = [name for name in states[0] if not name.startswith("clip.") and states[0][name].dim() > 1]
    assert [name for name in own if torch.equal(states[0][name], states[2][name])] == []


def initialised_by_rules_alone(model_class, config):
    """Build a model without values, as loading does, and let the rules fill it."""
    with torch.device("meta"):
        model = model_class(config)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else -7)
        tensor._is_hf_initialized = False
    for module in model.modules():
        module._is_hf_initialized = False
    torch.manual_seed(0)
    model.init_weights()
    return model


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.16"),
    reason="until 5.15 the library skips the layers of a nested model where the outer class is remote code",
)
@each_decoder
def test_the_rules_of_initialisation_leave_no_weight_out(make_model, clip_model, decoder):
    model = initialised_by_rules_alone(LDVCForSemanticSegmentation, tiny_config(make_model, decoder))
    left = {name for name, weight in model.named_parameters() if not weight.isfinite().all()}
    # the library's own rules leave out CLIP's temperature, which LDVC does not use
    clip = initialised_by_rules_alone(CLIPModel, copy.deepcopy(clip_model.config))
    assert left == {f"clip.{name}" for name, weight in clip.named_parameters() if not weight.isfinite().all()}
    assert left <= {"clip.logit_scale"}
    wild = [name for name, weight in model.named_parameters() if weight.abs().max() > 10 and name not in left]
    assert wild == []
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name
        assert (buffer >= 0).all(), name  # positions


@each_decoder
def test_loading_without_any_own_weight_initialises_all_of_them(make_folder, decoder):
    model, folder = make_folder(decoder)
    weights = load_file(folder / "model.safetensors")
    own = {name for name in weights if not name.startswith("clip.")}
    kept = {name: weight for name, weight in weights.items() if name not in own}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    loaded, info = LDVCForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == own
    for name, weight in loaded.state_dict().items():
        assert not weight.is_meta
        assert weight.isfinite().all(), name
        if name in kept:
            assert torch.equal(weight, model.state_dict()[name]), name


def test_a_baked_vocabulary_that_a_file_lacks_is_reported_and_empty(make_model, tiny_processor, tmp_path):
    model = make_model()
    model.set_vocabulary(NAMES, tiny_processor, bake=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    [name] = [name for name in weights if name.endswith("class_embeds")]
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded, info = LDVCForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {name}
    assert not loaded.state_dict()[name].any()


# ---- saving and loading


@each_decoder
@torch.no_grad()
def test_a_model_of_every_decoder_comes_back_exactly(make_folder, inputs, decoder):
    model, folder = make_folder(decoder)
    loaded, info = LDVCForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, **CLOSE)


@torch.no_grad()
def test_a_model_in_shards_comes_back_exactly(make_folder, inputs, tmp_path):
    model, _ = make_folder()
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    loaded = LDVCForSemanticSegmentation.from_pretrained(tmp_path / "shards")
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, **CLOSE)
    assert not any(parameter.requires_grad for parameter in loaded.clip.parameters())


def test_an_unexpected_key_is_reported_and_changes_nothing(make_folder):
    model, folder = make_folder()
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "decoder.extra": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    loaded, info = LDVCForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"decoder.extra"}
    assert not info["missing_keys"]
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_a_weight_of_another_shape_is_refused_by_name(make_folder):
    _, folder = make_folder()
    weights = load_file(folder / "model.safetensors")
    weights["vision_prompts.tokens"] = weights["vision_prompts.tokens"][:, :2].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes|size mismatch|mismatched"):
        LDVCForSemanticSegmentation.from_pretrained(folder)
    loaded, info = LDVCForSemanticSegmentation.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert [key for key, *_ in info["mismatched_keys"]] == ["vision_prompts.tokens"]
    assert loaded.vision_prompts.tokens.isfinite().all()


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float32, torch.float16))],
    ids=str,
)
def test_a_checkpoint_keeps_its_dtype_and_loads_in_another(make_folder, dtype):
    model, folder = make_folder(dtype=dtype)
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    for asked, expected in (({}, dtype), ({"dtype": "auto"}, dtype), ({"dtype": torch.float32}, torch.float32)):
        loaded = LDVCForSemanticSegmentation.from_pretrained(folder, **asked)
        assert {p.dtype for p in loaded.parameters()} == {expected}, asked
        for name, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight.to(expected)), name


def test_tied_weights_there_are_none(make_model):
    model = make_model()
    places = [weight.data_ptr() for weight in model.state_dict().values() if weight.numel()]
    assert len(places) == len(set(places))
    assert not model.all_tied_weights_keys


def test_the_input_embeddings_are_the_text_towers_and_can_be_replaced(make_model, inputs):
    model = make_model()
    embeddings = model.get_input_embeddings()
    assert embeddings is model.clip.text_model.embeddings.token_embedding
    assert embeddings.num_embeddings == model.config.text_config.vocab_size
    assert model.get_output_embeddings() is None
    expected = model(**inputs).logits
    model.set_input_embeddings(copy.deepcopy(embeddings))
    assert model.get_input_embeddings() is not embeddings
    assert torch.equal(model(**inputs).logits, expected)
    model.set_input_embeddings(nn.Embedding(*embeddings.weight.shape))
    assert not torch.allclose(model(**inputs).logits, expected, atol=1e-3)


# ---- where the weights go


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
@torch.no_grad()
def test_a_device_map_gives_the_same_logits(make_folder, inputs, device_map):
    pytest.importorskip("accelerate")
    model, folder = make_folder()
    loaded = LDVCForSemanticSegmentation.from_pretrained(folder, device_map=device_map)
    placed = {name: tensor.cpu() for name, tensor in loaded.state_dict().items()}
    assert all(torch.equal(placed[name], weight) for name, weight in model.state_dict().items())
    on_device = {name: value.to(loaded.device) for name, value in inputs.items()}
    # an accelerator, where "auto" finds one, adds up in another order and may use a shorter format inside
    close = CLOSE if loaded.device.type == "cpu" else {"atol": 1e-2, "rtol": 1e-2}
    torch.testing.assert_close(loaded(**on_device).logits.cpu(), model(**inputs).logits, **close)


@each_decoder
@torch.no_grad()
def test_a_model_split_between_memory_and_disk_gives_the_same_logits(make_folder, inputs, tmp_path, decoder):
    """Every part is named once, so that no weight is left without a place."""
    pytest.importorskip("accelerate")
    model, folder = make_folder(decoder)
    parts = [name for name, _ in model.named_children()]
    places = {name: ("disk" if index % 2 else "cpu") for index, name in enumerate(parts)}
    loaded = LDVCForSemanticSegmentation.from_pretrained(folder, device_map=places, offload_folder=tmp_path / "away")
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, **CLOSE)


def test_layers_that_must_not_be_split_exist(make_model):
    present = set()
    for decoder in DECODERS:
        present |= {type(module).__name__ for module in make_model(**DECODERS[decoder]).modules()}
    assert set(LDVCForSemanticSegmentation._no_split_modules) <= present


def test_loading_needs_the_memory_of_one_model(make_folder, monkeypatch):
    """Weights are built on the meta device first: no number is drawn for a weight that the file has."""
    _, folder = make_folder()
    drawn = []
    for name in ("uniform_", "normal_"):
        draw = getattr(torch.Tensor, name)

        def count(tensor, *arguments, draw=draw, **options):
            if not tensor.is_meta:
                drawn.append(tensor.numel())
            return draw(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, count)
    LDVCForSemanticSegmentation.from_pretrained(folder)
    assert sum(drawn) == 0


# ---- attention


def backends():
    options = ["eager", "sdpa"]
    try:
        from torch.nn.attention.flex_attention import flex_attention  # noqa: F401
    except ImportError:
        return options
    return [*options, "flex_attention"]


@each_decoder
@torch.no_grad()
def test_every_attention_backend_gives_the_same_logits(make_folder, tiny_processor, images, decoder):
    """Per-image lists, so that a mask is needed."""
    _, folder = make_folder(decoder)
    lists = [["cat"], ["dog", "sky", "grass"]]
    batch = tiny_processor(images=images, class_names=lists, return_tensors="pt")
    logits = {}
    for name in ("eager", "sdpa"):
        model = LDVCForSemanticSegmentation.from_pretrained(folder, attn_implementation=name)
        assert model.config._attn_implementation == model.config.vision_config._attn_implementation == name
        logits[name] = model(**batch).logits
    torch.testing.assert_close(logits["eager"], logits["sdpa"], **CLOSE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in backends() if name not in ("eager", "sdpa")])
@torch.no_grad()
def test_backends_of_accelerators_give_the_same_logits(make_model, inputs, name):
    model = make_model().cuda()
    on_device = {key: value.cuda() for key, value in inputs.items()}
    expected = model(**on_device).logits
    model.set_attn_implementation(name)
    torch.testing.assert_close(model(**on_device).logits, expected, atol=1e-3, rtol=1e-3)


def test_an_unknown_backend_is_refused_by_name(make_model):
    with pytest.raises(ValueError, match="fast"):
        make_model().set_attn_implementation("fast")


# ---- training


@each_decoder
def test_gradient_checkpointing_gives_loss_and_gradients_of_the_plain_model(make_model, inputs, labels, decoder):
    without = {"decoder_dropout": 0.0, "vision_prompt_dropout": 0.0}
    model = make_model(**DECODERS[decoder], **without).train()
    found = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            enable_checkpointing(model)
            assert model.is_gradient_checkpointing
        model.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (again, others) = found
    torch.testing.assert_close(loss, again, **CLOSE)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-4)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@torch.no_grad()
def test_dropout_works_in_training_only(make_model, inputs):
    model = make_model(decoder_dropout=0.5)
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_gradients_reach_recorded_hidden_states(make_model, inputs):
    output = make_model()(**inputs, output_hidden_states=True, output_decoder_hidden_states=True)
    recorded = [output.hidden_states[-1], output.decoder_hidden_states[0]]
    for state in recorded:
        state.retain_grad()
    output.logits.sum().backward()
    assert all(state.grad is not None and state.grad.any() for state in recorded)


# ---- calls


@torch.no_grad()
def test_the_output_is_the_same_as_tuple_and_by_name(make_model, inputs, labels):
    model = make_model()
    model.set_attn_implementation("eager")
    options = {
        "output_hidden_states": True,
        "output_attentions": True,
        "output_decoder_hidden_states": True,
        "output_routes": True,
    }
    named = model(**inputs, labels=labels, **options)
    plain = model(**inputs, labels=labels, **options, return_dict=False)
    assert len(plain) == len(named.to_tuple())
    for first, second in zip(plain, named.to_tuple(), strict=True):
        pairs = zip(first, second, strict=True) if isinstance(first, tuple) else [(first, second)]
        assert all(torch.equal(one, other) for one, other in pairs)


@torch.no_grad()
def test_recording_may_be_switched_on_in_the_configuration(make_folder, inputs):
    _, folder = make_folder()
    model = LDVCForSemanticSegmentation.from_pretrained(folder, output_hidden_states=True)
    assert len(model(**inputs).hidden_states) == 4


def test_the_signature_begins_with_the_main_input():
    names = list(inspect.signature(LDVCForSemanticSegmentation.forward).parameters)
    assert names[1] == LDVCForSemanticSegmentation.main_input_name == "pixel_values"
    assert {"input_ids", "attention_mask", "labels"} <= set(names)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (96, 40), (8, 120)], ids=str)
def test_inputs_of_other_sizes_need_no_change_of_weights(make_model, inputs, size):
    model = make_model()
    pixels = nn.functional.interpolate(inputs.pop("pixel_values"), size)
    features = model.get_image_features(pixels)
    assert features.feature_map.shape[-2:] == (size[0] // 8, size[1] // 8)
    assert model(pixels, **inputs).logits.shape == (2, 3, size[0] // 8, size[1] // 8)


@torch.no_grad()
def test_a_copy_and_a_pickle_free_copy_of_the_weights_give_the_same(make_model, inputs):
    model = make_model()
    expected = model(**inputs).logits
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, expected)
    other = LDVCForSemanticSegmentation(copy.deepcopy(model.config)).eval()
    assert not torch.allclose(other(**inputs).logits, expected, atol=1e-3)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(**inputs).logits, expected, **CLOSE)


# ---- the range of versions


def test_the_installed_transformers_is_in_the_stated_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert REQUIREMENT in project["optional-dependencies"]["torch"]
    allowed = SpecifierSet(REQUIREMENT.removeprefix("transformers"))
    assert Version(transformers.__version__) in allowed
    for release in ("5.3.0", "5.4.0", "5.24.0", "6.0.0"):
        with nullcontext() if Version(release) in allowed else pytest.raises(ImportError):
            check_release(release)


def test_a_default_configuration_makes_a_model_without_arguments():
    with torch.device("meta"):
        model = LDVCForSemanticSegmentation(LDVCConfig())
    assert set(TINY_FIELDS) <= set(model.config.to_dict())
