# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Weights that come from CLIP and weights that are LDVC's own: starting from a CLIP, saving and loading the latter."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.clip.configuration_clip import CLIPConfig
from transformers.models.clip.modeling_clip import CLIPModel
from transformers.utils import logging

from .configuration_ldvc import LDVCConfig
from .prompts_ldvc import LDVCTextPrompts


TEXT_PARTS = ("clip.text_model", "clip.text_projection", "text_prompts")
# Whose modules compute what their class, weights and plain attributes say; of all others it cannot be known.
KNOWN_LIBRARIES = ("torch.nn.modules.", "transformers.")
ADAPTER_WEIGHTS = "ldvc_adapter.safetensors"
ADAPTER_CONFIG = "ldvc_adapter.json"
CLIP_PREFIX = "clip."
# Fields that decide the shape or the meaning of LDVC's own weights: an adapter fits only where they agree.
ADAPTER_FIELDS = (
    "projection_dim",
    "num_vision_prompts",
    "vision_prompt_depth",
    "num_text_prompts",
    "text_prompt_depth",
    "prompt_template",
    "text_adapter",
    "decoder_query",
    "num_decoder_layers",
    "decoder_attention_heads",
    "decoder_intermediate_size",
    "decoder_attention",
    "num_regions",
    "route_top_k",
    "window_size",
    "class_query_mask",
    "class_self_attention",
    "logit_scale",
    "logit_bias_init",
    "patch_features",
    "patch_feature_settings",
    "position_interpolation",
)
# What a load adopts from the adapter: it belongs to the trained weights, not to the shapes.
ADOPTED_FIELDS = (
    "seen_classes",
    "seen_score_offset",
    "id2label",
    "label2id",
    "class_token_ids",
    "vocabulary_names",
    "vocabulary_templates",
    "prompt_class_ids",
    "other_label",
    "text_fingerprint",
)
LOADING_OPTIONS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "force_download",
    "local_files_only",
    "max_memory",
    "offload_folder",
    "revision",
    "subfolder",
    "token",
    "variant",
)
# The loading options that mean something for a CLIP that is loaded already, and those that its other files share.
MODULE_OPTIONS = ("attn_implementation", "dtype")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hold back the library's warnings while a CLIP is loaded into LDVC."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def split_options(
    clip: str | os.PathLike | nn.Module, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into configuration fields and options of `from_pretrained`.

    Raises:
        TypeError: If a name is neither, naming the nearest, or an option means nothing for a loaded CLIP.
    """
    fields = {field.name for field in dataclasses.fields(LDVCConfig)} - {"text_config", "vision_config"}
    fields -= set(LOADING_OPTIONS)  # `dtype` is both
    for name in options:
        if name not in fields and name not in LOADING_OPTIONS:
            near = difflib.get_close_matches(name, [*fields, *LOADING_OPTIONS], n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "; see LDVCConfig for the fields."
            raise TypeError(f"`{name}` is neither a field of LDVCConfig nor a loading option{hint}")
        if isinstance(clip, nn.Module) and name in set(LOADING_OPTIONS).difference(MODULE_OPTIONS):
            raise TypeError(
                f"`{name}` is an option of loading, but `clip` is a module in memory, on whose device the result "
                f"stays; leave it out (only {' and '.join(MODULE_OPTIONS)} apply), or give a folder or Hub id."
            )
    config_fields = {name: value for name, value in options.items() if name in fields}
    return config_fields, {name: value for name, value in options.items() if name not in fields}


def clip_config_of(clip: str | os.PathLike | nn.Module, hub_options: dict[str, Any]) -> CLIPConfig:
    """Read the configuration of a `CLIPModel`, given as a model, a folder or a Hub id.

    Raises:
        ValueError: If it is no CLIP.
        OSError: If the folder or Hub id cannot be read.
    """
    if isinstance(clip, CLIPModel):
        return clip.config
    if isinstance(clip, nn.Module):
        raise ValueError(f"`clip` is a {type(clip).__name__}, not a CLIPModel; give one, or its folder or Hub id.")
    try:
        config, _ = PreTrainedConfig.get_config_dict(clip, **hub_options)
    except OSError as error:
        raise OSError(f"no CLIP can be read from {str(clip)!r}; give a folder or Hub id of one. {error}") from error
    if config.get("model_type") != "clip":
        raise ValueError(
            f"{str(clip)!r} holds a {config.get('model_type')!r} model, not a CLIP; give a CLIPModel, or a folder or "
            "Hub id of one such as 'openai/clip-vit-base-patch16' (an LDVC checkpoint loads with from_pretrained)."
        )
    return CLIPConfig.from_dict(config)


def template_token_ids(
    template: str, clip: str | os.PathLike | nn.Module, tokenizer: Any, hub_options: dict[str, Any]
) -> list[int]:
    """Token ids of the start token and the template's words before `{}`.

    The start token is the tokenizer's: published CLIP configurations carry a wrong `bos_token_id`.

    Raises:
        ValueError: If no tokenizer is at hand, it is empty, or no word stands before `{}`.
    """
    if tokenizer is None:
        if isinstance(clip, nn.Module):
            raise ValueError(
                "a bare CLIPModel has no tokenizer, which the handcrafted text prompts need for the words of "
                f"{template!r}; pass tokenizer=..., or num_text_prompts=0, or text_prompt_init='random'."
            )
        tokenizer = AutoTokenizer.from_pretrained(clip, **hub_options)
    words = template.split("{}")[0].strip()
    start, *token_ids, _ = tokenizer(words)["input_ids"]
    if not token_ids:
        raise ValueError(
            f"the template {template!r} has no word before {{}} to start text prompts from; put words before it, as "
            "in 'a photo of a {}', or set num_text_prompts=0."
        )
    if set(token_ids) == {tokenizer.unk_token_id}:  # the library makes an empty tokenizer of a folder without one
        raise ValueError(
            f"the tokenizer of {str(clip)[:200]!r} knows none of the words {words!r}; its files may be missing: pass "
            "tokenizer=..., or set num_text_prompts=0."
        )
    return [start, *token_ids]


def build_config(clip: str | os.PathLike | nn.Module, tokenizer: Any, fields: dict, options: dict) -> LDVCConfig:
    """Make the configuration of an LDVC on this CLIP, with the token ids of the template's words.

    Raises:
        ValueError: If `clip` is no CLIP, widths do not fit, or `num_text_prompts` is not the number of tokens of the
            template's words.
    """
    hub_options = {name: value for name, value in options.items() if name in HUB_OPTIONS}
    clip_config = clip_config_of(clip, hub_options)
    if fields.get("projection_dim", clip_config.projection_dim) != clip_config.projection_dim:
        raise ValueError(
            f"`projection_dim` is {fields['projection_dim']}, but this CLIP's is {clip_config.projection_dim}; "
            "leave it out, it is CLIP's."
        )
    is_module = isinstance(clip, nn.Module)
    config = LDVCConfig(
        text_config=clip_config.text_config.to_dict(),
        vision_config=clip_config.vision_config.to_dict(),
        projection_dim=clip_config.projection_dim,
        logit_scale_init_value=clip_config.logit_scale_init_value,
        **{"clip_name_or_path": None if is_module else str(clip), **fields},
    )
    # Random prompts replace the template's words too, so that these are checked wherever a tokenizer can be had.
    has_tokenizer = tokenizer is not None or not is_module
    if config.num_text_prompts > 0 and (has_tokenizer or config.text_prompt_init == "handcrafted"):
        config.prompt_token_ids = template_token_ids(config.prompt_template, clip, tokenizer, hub_options)
        config.validate_architecture()
    return config


def check_clip_is_complete(clip: str | os.PathLike, missing_keys: Iterable[str], new_weights: Iterable[str]) -> None:
    """Refuse a CLIP without all of its weights, which the library would fill at random, or with more than these.

    Raises:
        ValueError: If one of CLIP's own weights is among `missing_keys`, or one of the `new_weights` is not.
    """
    missing = sorted(name for name in missing_keys if name.startswith(CLIP_PREFIX))
    if taken_over := sorted(set(new_weights).difference(missing_keys)):
        raise ValueError(
            f"{str(clip)!r} holds weights of an LDVC beside CLIP's, first {taken_over[0]!r}, which would pass for new "
            "ones; give a folder with CLIP alone, or go on from an LDVC checkpoint (from_pretrained, --start_from)."
        )
    if missing:
        raise ValueError(
            f"{str(clip)!r} lacks {len(missing)} of CLIP's weights, first {missing[0]!r}; copy or download it again."
        )


def weights_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights: names, shapes and values (as float32, so that fp16 storage does not change it)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def text_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all that class embeddings depend on besides token ids: text tower, text projection, text prompts.

    Values count as float32, so that device and storage do not matter. A model loaded in half precision has rounded
    weights, which are others: set a float32 vocabulary first and convert the model then.

    Raises:
        ValueError: If the weights are offloaded or cannot be read, or hooks may change what they do.
    """
    parts = tuple(f"{part}." for part in TEXT_PARTS)
    held = {name: weight for name, weight in model.state_dict().items() if name.startswith(parts)}
    weights = dict(pair for name, weight in held.items() for pair in _readable(name, weight))
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError(
            "this model's text weights are offloaded and cannot be compared with a vocabulary's; load the model "
            "without offload."
        )
    config = model.config.text_config  # at equal weights, these still change the result
    shape = (config.hidden_act, config.num_attention_heads, config.layer_norm_eps)
    strangers = []
    for name, module in text_modules(model).items():
        if _is_altered(module) and not hasattr(module, "_hf_hook"):  # which only brings weights to their device
            raise ValueError(
                f"a hook or a replaced method of {name!r} may change what the text tower computes, and a vocabulary "
                "would belong to nothing that can be told; take it away, or pass the names in the call."
            )
        if not _is_known(module):  # an adapter or a quantised layer: what it does is in its attributes too
            plain = sorted((key, value) for key, value in vars(module).items() if _is_plain(value))
            strangers.append((name, type(module).__name__, str(plain)))
    content = f"{weights_fingerprint(weights)} {shape}" + (str(strangers) if strangers else "")
    return hashlib.sha256(content.encode()).hexdigest()


def _readable(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and values of a weight as it stands in a state dict, quantised ones as the numbers they stand for.

    Raises:
        ValueError: If they cannot be read.
    """
    if isinstance(value, tuple | list):  # of torch's dynamic quantisation
        for index, part in enumerate(value):
            yield from _readable(f"{name}.{index}", part)
    elif isinstance(value, Tensor):
        is_stored_plainly = type(value) in (Tensor, nn.Parameter) and not value.is_quantized
        try:
            yield name, value if is_stored_plainly else value.dequantize()
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"the weight {name!r} is a {type(value).__name__}, whose values cannot be read ({str(error)[:100]}); "
                "encode the vocabulary before the model is quantised, or pass the names in the call."
            ) from error


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a word, or a collection of such."""
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def _is_known(module: nn.Module) -> bool:
    """Whether a module does what its class says, a class of torch, of the library or our own."""
    kind = type(module)
    return kind is LDVCTextPrompts or (
        kind.__module__.startswith(KNOWN_LIBRARIES) and kind.forward.__module__.startswith(KNOWN_LIBRARIES)
    )


def _is_altered(module: nn.Module) -> bool:
    """Whether one module has a hook, or a method in the place of its class's own."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    # the library's own, which record hidden states, change nothing
    is_hooked = any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)
    methods = (name for name, value in vars(module).items() if callable(value) and hasattr(type(module), name))
    return is_hooked or any(name != "extra_repr" for name in methods)


def text_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules that class embeddings come from, by name, those of adapters among them."""
    return {
        f"{part}.{name}": module
        for part in TEXT_PARTS
        if (root := operator.attrgetter(part)(model)) is not None
        for name, module in root.named_modules()
    }


def text_function(model: nn.Module) -> tuple | None:
    """What the text tower computes with its weights, to be compared; `None` where it cannot be known.

    It is known of torch's, the library's and our own modules, as they are. An adapter, a quantised layer, a
    parametrization (each of them a module of another kind), a hook or a `forward` put in the place of the class's own
    may change from one call to the next without a trace in the weights.
    """
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        return None
    function = []
    for name, module in text_modules(model).items():
        attributes = vars(module)
        is_altered = _is_altered(module) or any(isinstance(value, Tensor) for value in attributes.values())
        is_random = module.training and model.config.text_config.attention_dropout
        if is_altered or is_random or not _is_known(module):
            return None
        plain = {key: value for key, value in attributes.items() if isinstance(value, int | float | str | tuple)}
        functions = tuple(value for value in attributes.values() if callable(value))  # such as an activation
        function.append((name, type(module), type(module).forward, functions, repr(plain)))
    config = model.config.text_config
    return (*function, vars(model).get("get_class_embeds"), config._attn_implementation, config.eos_token_id)


def write_files(folder: str | os.PathLike, contents: Mapping[str, bytes]) -> None:
    """Write files aside and rename them when all are whole, so that no half-written one is ever taken for a whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f"{name}.part" for name in contents}
    try:
        for name, content in contents.items():
            parts[name].write_bytes(content)
        for name, part in parts.items():
            os.replace(part, folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def save_adapter(model: nn.Module, folder: str | os.PathLike) -> None:
    """Write LDVC's own weights and a reference to their CLIP."""
    weights = {k: v.detach().contiguous() for k, v in model.state_dict().items() if not k.startswith(CLIP_PREFIX)}
    reference = {
        "clip": model.config.clip_name_or_path,
        "clip_fingerprint": weights_fingerprint(model.clip.state_dict()),
        "config": json.loads(model.config.to_json_string(use_diff=False)),
    }
    text = json.dumps(reference, indent=2, sort_keys=True) + "\n"
    write_files(folder, {ADAPTER_WEIGHTS: save(weights, metadata={"format": "pt"}), ADAPTER_CONFIG: text.encode()})


def load_adapter(model: nn.Module, folder: str | os.PathLike) -> None:
    """Load what `save_adapter` wrote into a model built on the same CLIP; the model is unchanged if anything is wrong.

    Raises:
        FileNotFoundError: If the folder holds no adapter.
        ValueError: If the CLIP, a field or a weight differs, or a file is damaged; names both values.
    """
    folder = Path(folder)
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; give a folder written by `save_adapter`.")
    try:
        reference = json.loads((folder / ADAPTER_CONFIG).read_text())
        weights = load_file(folder / ADAPTER_WEIGHTS)
        saved, expected = reference["config"], reference["clip_fingerprint"]
    except (ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"the adapter in {folder} is damaged ({error}); copy or save it again.") from error
    for field in ADAPTER_FIELDS:
        if saved.get(field) != getattr(model.config, field):
            raise ValueError(
                f"the adapter in {folder} has {field}={saved.get(field)!r}, this model "
                f"{getattr(model.config, field)!r}; build the model with the adapter's value."
            )
    if (fingerprint := weights_fingerprint(model.clip.state_dict())) != expected:
        raise ValueError(
            f"the adapter in {folder} belongs to the CLIP {reference.get('clip')!r} with fingerprint "
            f"{expected[:16]}..., this model holds {fingerprint[:16]}... in {model.dtype}; build the model with "
            "from_clip_pretrained on that CLIP, in float32 (rounded weights are others), and convert it afterwards."
        )
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(CLIP_PREFIX)}
    wrong = sorted(k for k in own.keys() | weights.keys() if k not in own or k not in weights)
    wrong += sorted(k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape)
    if wrong:
        raise ValueError(f"the adapter in {folder} does not fit this model, first at {wrong[0]}; save it again.")
    model.load_state_dict(weights, strict=False)
    for field in ADOPTED_FIELDS:
        value = saved.get(field)
        if field == "id2label" and value is not None:
            value = {int(index): name for index, name in value.items()}
        setattr(model.config, field, value)
    model.config.adopt_names()


__all__ = [
    "build_config",
    "check_clip_is_complete",
    "load_adapter",
    "quiet_loading",
    "save_adapter",
    "split_options",
    "text_fingerprint",
    "text_function",
    "text_modules",
    "weights_fingerprint",
    "write_files",
]
