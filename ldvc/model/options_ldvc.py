# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""What a call may say: options by name, class names and what competes with them, templates, sizes and windows.

It needs neither PyTorch nor Transformers, since the runtime without them reads calls by it too.

Of options, what is not known is an error that says what it is called here. The library drops what it does not know
with a warning, or without one; a misspelt `reduce_labels` would then train on other classes than was asked for.
"""

import difflib
import logging
import numbers
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


logger = logging.getLogger(__name__)

Classes = dict[str, list[str]]
# Classes of a call: names, or names and synonyms; `None` is the model's default vocabulary.
ClassNames = Sequence[str] | Mapping[str, str | Sequence[str]] | None
BACKGROUND = "background"  # name of the class that is made of a list of words
# "cat. sky. grass." as other models read lists, and other separators than commas.
LIST_IN_A_NAME = re.compile(r"[.;]\s+\w|[\uff0c\uff1b\u3001]")


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


# ---- names of classes, and what competes with them


def name_key(word: Any) -> str:
    """Check one class name and return what makes it the same as another: case, spaces and Unicode form do not count.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is empty or holds control characters.
    """
    if not isinstance(word, str):
        raise TypeError(f"the class name {word!r} is a {type(word).__name__}; names are strings.")
    if any(unicodedata.category(character) == "Cc" for character in word):
        raise ValueError(f"the class name {word!r} holds a control character; remove it.")
    if not word.strip():
        raise ValueError(f"the class name {word!r} is empty; give every class a name.")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", " ".join(word.split())).casefold())


def read_classes(class_names: Any) -> Classes:
    """Check one list of class names, or dict of synonyms, and return name -> synonyms in order.

    Raises:
        TypeError: If it is no list or dict, or a name is no string.
        ValueError: If it is empty, or a name is empty, repeated, another class's synonym or holds control characters.
    """
    if isinstance(class_names, Mapping):
        pairs = [(name, [words] if isinstance(words, str) else words) for name, words in class_names.items()]
    elif isinstance(class_names, (list, tuple)):
        pairs = [(name, [name]) for name in class_names]
    else:
        raise TypeError(f"`class_names` is {class_names!r}; give a list of names, or a dict of names and synonyms.")
    if not pairs:
        raise ValueError("`class_names` is empty; give at least one name.")
    for name, synonyms in pairs:
        if not isinstance(synonyms, (list, tuple)):
            raise TypeError(f"the synonyms of {name!r} are {synonyms!r}; give a list of words.")
        if not synonyms:
            raise ValueError(f"class {name!r} has no synonym; give at least one word for it.")
    if len(pairs) == 1 and LIST_IN_A_NAME.search(str(pairs[0][0])):
        logger.warning(
            f"{pairs[0][0]!r} is one class; if it is a list, give its names apart: as strings, or by commas where "
            "one string is read."
        )
    check_distinct([name for name, _ in pairs])
    check_distinct([word for _, synonyms in pairs for word in synonyms])
    owners = {name_key(word): name for name, synonyms in pairs for word in synonyms}
    for name, _ in pairs:
        if (owner := owners.get(name_key(name), name)) != name:
            raise ValueError(
                f"the class name {name!r} is a synonym of the class {owner!r} too; a word stands for one class only."
            )
    return {name: list(synonyms) for name, synonyms in pairs}


def check_distinct(names: list) -> None:
    """Check names and that no two are the same.

    Raises:
        TypeError: If a name is no string.
        ValueError: If a name is empty, repeated or holds control characters.
    """
    first_use: dict[str, str] = {}
    for name in names:
        key = name_key(name)
        if key in first_use:
            raise ValueError(
                f"the class name {name!r} is given twice (as {first_use[key]!r} before); ids come from position, so "
                "name each class once."
            )
        first_use[key] = name


def check_templates(templates: str | Sequence[str] | None) -> list[str]:
    """Check prompt templates and return them as a list.

    Raises:
        ValueError: If there is none, or one has not exactly one `{}`.
    """
    templates = [templates] if isinstance(templates, str) else list(templates or [])
    if not templates:
        raise ValueError("`prompt_templates` is empty; give at least one template such as 'a photo of a {}'.")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(f"the prompt template {template!r} needs exactly one {{}} for the class name.")
    return templates


@dataclass(frozen=True)
class Rivals:
    """Words that compete with the classes of a call.

    Attributes:
        words: Name -> synonyms of each; their channels follow those of the classes.
        num_background: How many of them, the first, are together the class `BACKGROUND`; the others are "other".
    """

    words: Classes
    num_background: int = 0

    def names(self, class_names: Sequence[str]) -> list[str]:
        """Names of all classes that a call returns."""
        return [*class_names, BACKGROUND] if self.num_background else list(class_names)

    def class_ids(self, num_named: int) -> list[int] | None:
        """Class of each channel, -1 for "other"; `None` where each is a class of its own."""
        if not self.words:
            return None
        background = [num_named] * self.num_background
        return [*range(num_named), *background, *[-1] * (len(self.words) - self.num_background)]

    @property
    def has_other(self) -> bool:
        """Whether pixels may become "other" without a threshold."""
        return len(self.words) > self.num_background


def read_rivals(
    classes: Sequence[str] | Mapping[str, str | Sequence[str]],
    negative_labels: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    background: Sequence[str] | None = None,
) -> Rivals:
    """Check what competes with the classes of a call.

    Args:
        classes: The classes of the call: names, or names and synonyms.
        negative_labels: Names, or names and synonyms, whose pixels come back as "other".
        background: Words that are together one class, "background", whose score at a pixel is its best word's; words
            that the call names by themselves are left out of it.

    Raises:
        ValueError: If a name is empty, repeated or also a class's own, "background" is a class already, or no word is
            left of the background.
        TypeError: If a name is no string.
    """
    if negative_labels is None and background is None:
        return Rivals({})
    named = read_classes(classes) if classes else {}  # none at all is refused by whoever needs them
    negative = {} if negative_labels is None else read_classes(negative_labels)
    if both := [name for name in negative if name in named]:
        raise ValueError(f"{both[0]!r} is a class of this call and a negative label too; a word is one of them.")
    everything = read_classes(named | negative)  # no word twice
    if background is None:
        return Rivals(negative)
    if BACKGROUND in everything:
        raise ValueError(f"{BACKGROUND!r} is named in this call, and a list of words is to make it; give one of them.")
    taken = {name_key(word) for name, words in everything.items() for word in (name, *words)}
    words = [word for word in read_classes(list(background)) if name_key(word) not in taken]
    if not words:
        raise ValueError("every word of the background is named in this call by itself; leave the background out.")
    return Rivals({word: [word] for word in words} | negative, len(words))


# ---- how a picture goes through a model


@dataclass(frozen=True)
class InferenceSettings:
    """How a picture goes through the model.

    Attributes:
        short_side: The picture's shorter side is resized to so many pixels, aspect kept; 0 keeps the size.
        window: Side of the sliding window in pixels; 0 takes the whole picture at once.
        stride: Pixels from one window to the next; `None` is ZegCLIP's share of a window, 426 of 512.
        window_batch_size: Windows per call of the model.

    Raises:
        ValueError: If a number is negative or not whole, or the stride is not 1 to `window`.
    """

    short_side: int = 512
    window: int = 512
    stride: int | None = None
    window_batch_size: int = 4

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if not isinstance(value, numbers.Integral) and (field, value) != ("stride", None):
                raise ValueError(f"{field} is {value!r}; use a whole number.")
        if self.stride is None:
            object.__setattr__(self, "stride", max(1, self.window * 5 // 6))
        for field in ("short_side", "window"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)}; use pixels, or 0 for none.")
        if self.window and not 1 <= self.stride <= self.window:
            raise ValueError(f"stride is {self.stride}; with a window of {self.window} use 1 to {self.window} pixels.")
        if self.window_batch_size < 1:
            raise ValueError(f"window_batch_size is {self.window_batch_size}; use at least 1.")


def threshold_per_class(threshold: Any, class_names: Sequence[str]) -> Any:
    """Bring a dict of thresholds to (num_classes,) in order; classes that it does not name get 0. Others pass.

    Raises:
        ValueError: If the dict names what is no class.
    """
    if not isinstance(threshold, Mapping):
        return threshold
    if strangers := [name for name in threshold if name not in class_names]:
        raise ValueError(
            f"`threshold` names {strangers[0]!r}, which is no class of this call; use names among "
            f"{', '.join(map(repr, class_names[:8]))}{', ...' if len(class_names) > 8 else ''}."
        )
    return [threshold.get(name, 0.0) for name in class_names]


__all__ = [
    "BACKGROUND",
    "OTHER_NAMES",
    "SAVED_BESIDE",
    "ClassNames",
    "Classes",
    "InferenceSettings",
    "Rivals",
    "check_distinct",
    "check_options",
    "check_supported",
    "check_templates",
    "loading_options",
    "name_key",
    "read_classes",
    "read_rivals",
    "threshold_per_class",
]
