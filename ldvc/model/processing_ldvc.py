# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Images, class names and label maps in; tensors out; and logits back to label maps."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .compat_ldvc import read_preprocessing


# isort: split
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils import TensorType

from .configuration_ldvc import LDVCConfig
from .dense_settings_ldvc import LDVCDenseSettings  # noqa: F401 - compat_ldvc says why
from .image_processing_ldvc import LDVCImageProcessor, LDVCImageProcessorKwargs, LDVCPostProcessing
from .options_ldvc import (
    OTHER_NAMES,
    Classes,
    check_distinct,  # noqa: F401
    check_options,
    check_templates,
    loading_options,
    name_key,  # noqa: F401
    read_classes,
)
from .pixels_ldvc import to_rgb  # noqa: F401 - here too, for releases of the library that copy direct imports only


DEFAULT_TEMPLATE = "a photo of a {}"
# CLIP's published statistics, for `image_stats="clip"` where the CLIP brings no preprocessing file.
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# Options of the tokenizer that a prompt may have; others would cut it, or return what no model reads.
TEXT_OPTIONS = (
    *("add_special_tokens", "max_length", "pad_to_multiple_of", "padding", "padding_side", "return_tensors"),
    *("truncation", "verbose"),
)
PROCESSOR_NAMES = OTHER_NAMES | dict.fromkeys(
    ("candidate_labels", "class_labels", "classes", "queries", "text_labels", "text_queries", "texts"), "class_names"
)
PROCESSOR_NAMES |= dict.fromkeys(
    ("hypothesis_template", "prompt_template", "template", "templates"), "prompt_templates"
)


class LDVCProcessorKwargs(ProcessingKwargs, total=False):
    """Options that reach the image processor and the tokenizer."""

    images_kwargs: LDVCImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True}}  # noqa: RUF012


def check_text(text: str | Sequence[str]) -> list[str]:
    """Check raw prompts and return them as a list.

    Raises:
        ValueError: If there is none.
        TypeError: If one is no string.
    """
    prompts = list(text) if isinstance(text, (list, tuple)) else [text]
    if not prompts:
        raise ValueError("`text` is empty; give at least one prompt.")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(
                f"`text` holds {prompt!r}, a {type(prompt).__name__}; it is a string or a list of strings for all "
                "images (a list per image goes to `class_names`)."
            )
    return prompts


class LDVCProcessor(LDVCPostProcessing, ProcessorMixin):
    """One call for images, class names and label maps.

    Args:
        image_processor: An [`LDVCImageProcessor`].
        tokenizer: CLIP's tokenizer.
        prompt_templates: One or several strings with exactly one `{}` for the class name; the embeddings of several
            are averaged. A model with text prompts needs the one template of its configuration.

    Example:
    ```python
    >>> inputs = processor(images=image, class_names=["cat", "sofa", "grass"], return_tensors="pt")
    >>> inputs = processor(images=image, class_names={"sofa": ["sofa", "couch"], "cat": ["cat"]}, return_tensors="pt")
    >>> inputs = processor(images=[a, b], class_names=[["cat"], ["dog", "grass"]], return_tensors="pt")
    ```
    """

    valid_processor_kwargs = LDVCProcessorKwargs

    def __init__(
        self,
        image_processor: LDVCImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompt_templates: str | Sequence[str] = DEFAULT_TEMPLATE,
        **kwargs: Any,
    ):
        self.prompt_templates = check_templates(prompt_templates)
        super().__init__(image_processor, tokenizer, **kwargs)
        for name in ("is_local", "local_files_only"):  # of one loading; they would be saved with the tokenizer
            getattr(tokenizer, "init_kwargs", {}).pop(name, None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "LDVCProcessor":
        """As the library's; an argument that nothing knows is an error.

        Raises:
            TypeError: If there is one.
        """
        kwargs = loading_options(kwargs, LDVCImageProcessorKwargs.__annotations__, cls.__name__)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the library's; where no processor was saved, the templates are those that the model was used with.

        Pipelines of the library save tokenizer and image processor apart, and no templates.

        Raises:
            ValueError: If nothing says which templates these are.
        """
        found, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "prompt_templates" in found or "prompt_templates" in kwargs:
            return found, rest
        hub = {
            name: value for name, value in kwargs.items() if name in ("cache_dir", "revision", "subfolder", "token")
        }
        config, _ = LDVCConfig.get_config_dict(pretrained_model_name_or_path, **hub)
        if config.get("model_type") != LDVCConfig.model_type:
            return found, rest
        templates = config.get("vocabulary_templates")
        if config.get("num_text_prompts", LDVCConfig.num_text_prompts):
            templates = [config.get("prompt_template", LDVCConfig.prompt_template)]
        if not templates:
            raise ValueError(
                f"no processor was saved in {str(pretrained_model_name_or_path)!r}, so that its prompt templates are "
                f"not known; pass those that the model is to be used with, such as prompt_templates="
                f"{DEFAULT_TEMPLATE!r}, or save its processor there too."
            )
        return {**found, "prompt_templates": templates}, rest

    @classmethod
    def from_clip_pretrained(
        cls,
        clip: str | os.PathLike,
        image_stats: str = "imagenet",
        size: int | dict[str, int] = 512,
        prompt_templates: str | Sequence[str] = DEFAULT_TEMPLATE,
        **options: Any,
    ) -> "LDVCProcessor":
        """Build the processor that goes with `LDVCForSemanticSegmentation.from_clip_pretrained`.

        Args:
            clip: A Hub id or folder with CLIP's tokenizer.
            image_stats: `"imagenet"`, as ZegCLIP trains, or `"clip"`: the mean and deviation of this CLIP's own
                preprocessing.
            size: Image size in pixels: a side of the square, or a size dict of the library.
            prompt_templates: See the class.
            options: Hub options such as `revision`.

        Raises:
            ValueError: If `image_stats` is unknown.
            OSError: If the tokenizer cannot be loaded.
        """
        if image_stats not in ("imagenet", "clip"):
            raise ValueError(f"`image_stats` is {image_stats!r}; use 'imagenet' or 'clip'.")
        stats = {}
        if image_stats == "clip":
            preprocessing = read_preprocessing(clip, **options)
            stats = {
                "image_mean": preprocessing.get("image_mean", CLIP_MEAN),
                "image_std": preprocessing.get("image_std", CLIP_STD),
            }
        size = {"height": size, "width": size} if isinstance(size, int) else size
        tokenizer = AutoTokenizer.from_pretrained(clip, **options)
        return cls(LDVCImageProcessor(size=size, **stats), tokenizer, prompt_templates=prompt_templates)

    @classmethod
    def from_preprocessing(
        cls, tokenizer: PreTrainedTokenizerBase, preprocessing: Mapping[str, Any], is_clipseg: bool = False
    ) -> "LDVCProcessor":
        """Build the processor of a CLIP without training, or of a CLIPSeg, from the settings that these come with.

        A CLIP sees squares half again as wide as those that it was trained on, 336 pixels for 224, with the default
        template. A CLIPSeg sees pictures as its own processor gives them, and its users' texts as they are ("{}").

        Args:
            tokenizer: CLIP's.
            preprocessing: Content of `preprocessor_config.json`, or of the image processor's `to_dict`.
            is_clipseg: Whose they are.

        Raises:
            ValueError: If the tokenizer knows no word, which is what the library makes where there is no file of one.
        """
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError(
                "there is no tokenizer beside the weights (tokenizer.json, or vocab.json and merges.txt), which class "
                "names need; fetch those files too."
            )
        size = preprocessing.get("size") if is_clipseg else preprocessing.get("crop_size")
        default, mean, std = (
            (352, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if is_clipseg else (224, CLIP_MEAN, CLIP_STD)
        )
        side = size if isinstance(size, int) else dict(size or {}).get("height") or default
        side = side if is_clipseg else side * 3 // 2
        image_processor = LDVCImageProcessor(
            size={"height": side, "width": side},
            image_mean=list(preprocessing.get("image_mean") or mean),
            image_std=list(preprocessing.get("image_std") or std),
            **({"resample": preprocessing["resample"]} if is_clipseg and "resample" in preprocessing else {}),
        )
        return cls(image_processor, tokenizer, prompt_templates="{}" if is_clipseg else DEFAULT_TEMPLATE)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        class_names: Sequence[str] | Classes | Sequence[Sequence[str] | Classes] | None = None,
        segmentation_maps: Any = None,
        prompt_templates: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare a call of the model.

        Args:
            images: PIL images, arrays, tensors, paths, URLs, or a list of them; any mode, sizes may differ.
            text: Raw prompts, tokenised as they are; not together with `class_names`.
            class_names: `list[str]` for all images, or one such list per image. A dict gives synonyms per class, whose
                embeddings are averaged. The order is the class axis of the logits.
            segmentation_maps: Integer label maps, one per image and of its size.
            prompt_templates: Templates for this call, in place of the processor's.
            return_tensors: `"pt"` or `"np"`; `None` gives lists.
            kwargs: Options of image processor and tokenizer.

        Returns:
            `pixel_values`, `labels` (with maps); `input_ids` and `attention_mask` (num_prompts, sequence_length),
            padded to the longest; `prompt_class_ids` (num_prompts,) where a class has several prompts; for per-image
            lists `class_index` and `class_mask` (batch_size, num_classes), rows of the distinct classes and 0 for
            padding.

        Raises:
            ValueError: If nothing was given, both `text` and `class_names`, bad names or templates, a prompt is longer
                than the text tower, or lists and images differ in number.
            TypeError: If names or prompts are no strings, or an option is unknown.
        """
        self._check_options(kwargs)
        if images is None and text is None and class_names is None:
            raise ValueError("give `images`, `class_names` or `text`.")
        if text is not None and class_names is not None:
            raise ValueError("`text` and `class_names` both name the classes; give one of them.")
        options = self._merge_kwargs(LDVCProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        options["text_kwargs"].pop("return_tensors", None)
        options["images_kwargs"].pop("return_tensors", None)
        data = {}
        if images is not None:
            data |= self.image_processor(
                images, segmentation_maps=segmentation_maps, return_tensors=return_tensors, **options["images_kwargs"]
            )
        elif segmentation_maps is not None:
            raise ValueError("`segmentation_maps` came without `images`; give both, so that they stay aligned.")
        if text is not None:
            data |= self._tokenize(check_text(text), options["text_kwargs"])
        if class_names is not None:
            templates = check_templates(self.prompt_templates if prompt_templates is None else prompt_templates)
            num_images = len(data["pixel_values"]) if images is not None else None
            data |= self._encode_classes(class_names, templates, num_images, options["text_kwargs"])
        return BatchFeature(data, tensor_type=TensorType(return_tensors) if return_tensors else None)

    def _check_options(self, options: dict[str, Any]) -> None:
        """Check the names of options of a call, also of those that are given by part.

        Raises:
            TypeError: If one is unknown.
        """
        parts = {"images_kwargs": LDVCImageProcessorKwargs.__annotations__, "text_kwargs": TEXT_OPTIONS}
        parts["common_kwargs"] = ["return_tensors"]
        known = [name for names in parts.values() for name in names]
        owner = type(self).__name__
        check_options(options, [*known, *parts], owner, PROCESSOR_NAMES)
        for part, names in parts.items():
            check_options(options.get(part) or (), names, f"{owner}'s `{part}`", PROCESSOR_NAMES)

    def _encode_classes(
        self, class_names: Any, templates: list[str], num_images: int | None, text_options: dict[str, Any]
    ) -> dict[str, Any]:
        """Tokenise class names, one list for all images or one per image.

        Raises:
            ValueError: If there is not one list per image.
        """
        is_per_image = isinstance(class_names, (list, tuple)) and any(
            isinstance(names, (list, tuple, Mapping)) for names in class_names
        )
        lists = [read_classes(names) for names in class_names] if is_per_image else [read_classes(class_names)]
        if is_per_image and num_images is not None and len(lists) != num_images:
            raise ValueError(
                f"there are {len(lists)} lists of class names for {num_images} images; give one list each."
            )
        # A class is its name and its words; each distinct class is encoded once, however many images ask for it.
        distinct: dict[tuple, int] = {}
        for classes in lists:
            for name, words in classes.items():
                distinct.setdefault((name, *words), len(distinct))
        prompts = [
            (template.replace("{}", " ".join(word.split())), class_id)
            for (_, *words), class_id in distinct.items()
            for word in words
            for template in templates
        ]
        data = self._tokenize([prompt for prompt, _ in prompts], text_options)
        self._check_told_apart(prompts, data, [[distinct[name, *own[name]] for name in own] for own in lists])
        if len(prompts) > len(distinct):
            data["prompt_class_ids"] = [class_id for _, class_id in prompts]
        if is_per_image:
            rows = [[distinct[name, *words] for name, words in classes.items()] for classes in lists]
            longest = max(map(len, rows))
            data["class_index"] = [row + [0] * (longest - len(row)) for row in rows]
            data["class_mask"] = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        return data

    def _check_told_apart(
        self, prompts: list[tuple[str, int]], data: dict[str, list[list[int]]], lists: list[list[int]]
    ) -> None:
        """Check that the tokenizer tells the classes of each list apart.

        Raises:
            ValueError: If it reads prompts of two classes as the same tokens; their embeddings would be equal.
        """
        readers: dict[tuple[int, ...], dict[int, str]] = {}
        for (prompt, class_id), ids in zip(prompts, data["input_ids"], strict=True):
            readers.setdefault(tuple(ids), {})[class_id] = prompt
        for same in (found for found in readers.values() if len(found) > 1):
            for own in lists:
                if len(shared := [same[class_id] for class_id in own if class_id in same]) > 1:
                    raise ValueError(
                        f"the tokenizer reads {shared[0]!r} and {shared[1]!r} as the same text, so that two classes "
                        "would have one embedding; name one of them otherwise, or make them synonyms of one class."
                    )

    def _tokenize(self, prompts: list[str], options: dict[str, Any]) -> dict[str, list[list[int]]]:
        """Tokenise and pad to the longest prompt.

        Raises:
            ValueError: If a prompt does not fit the text tower; none is ever cut off.
        """
        limit = self.tokenizer.model_max_length
        if options.pop("truncation", False):
            limit = min(limit, options.get("max_length") or limit)
        encoded = self.tokenizer(prompts, **options, return_attention_mask=True)
        for prompt, mask in zip(prompts, encoded["attention_mask"], strict=True):
            if sum(mask) > limit:
                raise ValueError(
                    f"{prompt[:80]!r} is {sum(mask)} tokens long, the text tower reads {limit}; shorten it."
                )
        self._check_special_tokens(prompts, encoded)
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def _check_special_tokens(self, prompts: list[str], encoded: Any) -> None:
        """Check that no prompt holds a token that begins or ends a text: the text tower would read no further.

        Raises:
            ValueError: If one does.
        """
        tokenizer = self.tokenizer
        for prompt, ids, mask in zip(prompts, encoded["input_ids"], encoded["attention_mask"], strict=True):
            own = [token for token, is_own in zip(ids, mask, strict=True) if is_own]
            body = own[own[:1] == [tokenizer.bos_token_id] : len(own) - (own[-1:] == [tokenizer.eos_token_id])]
            for special in (tokenizer.bos_token_id, tokenizer.eos_token_id):
                if special in body:
                    raise ValueError(
                        f"{prompt[:80]!r} holds {tokenizer.convert_ids_to_tokens(special)!r}, where a text begins or "
                        "ends for the text tower, or a character that the tokenizer does not know; remove it."
                    )

    @property
    def model_input_names(self) -> list[str]:
        """Inputs of the model that this processor makes."""
        return ["pixel_values", "input_ids", "attention_mask", "prompt_class_ids", "class_index", "class_mask"]


LDVCProcessor.register_for_auto_class()
if not __name__.startswith("transformers_modules."):  # remote code is found through `auto_map`
    AutoProcessor.register(LDVCConfig, LDVCProcessor, exist_ok=True)

__all__ = ["LDVCProcessor"]
