# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Options of processors and pipeline, by name: what is not known is an error that says what it is called here.

The library drops what it does not know with a warning, or without one; a misspelt `reduce_labels` would then train on
other classes than was asked for.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


# Arguments of loading, of which each part of a processor is given those of all.
LOADING_OPTIONS = frozenset(
    (
        *("adapter_kwargs", "cache_dir", "code_revision", "force_download", "gguf_file", "image_processor_filename"),
        *("local_files_only", "proxies", "repo_type", "resume_download", "return_unused_kwargs", "revision"),
        *("subfolder", "token", "trust_remote_code", "use_auth_token", "user_agent", "additional_special_tokens"),
        *("add_prefix_space", "backend", "bos_token", "chat_template", "clean_up_tokenization_spaces", "eos_token"),
        *("errors", "extra_special_tokens", "from_slow", "model_max_length", "pad_token", "padding_side"),
        *("prompt_templates", "split_special_tokens", "tokenizer_file", "tokenizer_type", "truncation_side"),
        *("unk_token", "use_fast"),
    )
)
# Written into a saved processor by the library.
SAVED_BESIDE = frozenset(("auto_map", "feature_extractor_type", "image_processor_type", "processor_class"))
# What other models and tasks call it.
OTHER_NAMES = {
    "image": "images",
    "annotations": "segmentation_maps",
    "labels": "segmentation_maps",
    "masks": "segmentation_maps",
    "label_maps": "segmentation_maps",
    "rescale": "do_rescale",
    "normalize": "do_normalize",
    "resize": "size",
    "image_size": "size",
}


def check_options(
    given: Iterable[str], known: Iterable[str], owner: str, other_names: Mapping[str, str] = OTHER_NAMES
) -> None:
    """Check the names of options, so that none is ignored in silence.

    Args:
        given: Names of a call.
        known: Those that are options.
        owner: Of whom, for the message.
        other_names: What others call it -> what it is called here.

    Raises:
        TypeError: If one is unknown; names ours for it, or the nearest.
    """
    known = list(known)
    for name in given:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "leave it out."
            if other := other_names.get(name):
                hint = f"it is called {other if ' ' in other else f'`{other}`'} here."
            raise TypeError(f"`{name}` is no option of {owner}; {hint}")


def loading_options(given: dict[str, Any], known: Iterable[str], owner: str) -> dict[str, Any]:
    """Check the options of loading; of those that a pipeline hands on, the model's are left out.

    Raises:
        TypeError: If one is unknown.
    """
    known = {*known, *LOADING_OPTIONS}
    if "_from_pipeline" in given:
        return {name: value for name, value in given.items() if name in known or name.startswith("_")}
    check_options(given, known, owner)
    return given


def check_supported(options: Mapping[str, Any]) -> None:
    """Check that the library's options ask for nothing that would be left undone, or put label maps elsewhere.

    Raises:
        ValueError: If one does.
    """
    remedies = {
        "do_center_crop": "label maps would not lie on the whole picture; crop it first",
        "do_pad": "label maps would not lie on the picture; use a size of fixed height and width",
        "device": "pictures are prepared on the CPU; move the result with inputs.to(device)",
    }
    for name, remedy in remedies.items():
        if str(options.get(name)) not in ("None", "False", "cpu"):
            raise ValueError(f"`{name}` is {options[name]!r}, but {remedy}.")
    if str(getattr(data_format := options.get("data_format"), "value", data_format)) not in ("None", "channels_first"):
        raise ValueError(f"`data_format` is {data_format!r}, but the model reads channels first; leave it out.")


__all__ = ["OTHER_NAMES", "SAVED_BESIDE", "check_options", "check_supported", "loading_options"]
