# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Configuration of LDVC: CLIP's two sub-configurations plus the few numbers of prompts, adapter, decoder and loss.

Source: LDVC (arXiv 2403.08426). The paper's own hyper-parameters are not public; the defaults are those of ZegCLIP
(vision prompts, adapter, decoder widths, loss) and BiFormer's 512-pixel setting (regions), the closest published code.
"""

import copy
from pathlib import Path
from typing import Any

from .compat_ldvc import LDVC_VERSION, TwoTowerConfig, check_code, check_saved_version
from .dense_settings_ldvc import DENSE_METHODS, LDVCDenseSettings, choose_dense_settings


# isort: split
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig


# File name -> SHA-256 of the other code files of a published folder; `ldvc publish` fills it in. Transformers keeps a
# configuration class per text of this file, and a model class with it: without a digest of the rest, of two folders of
# one name and the same configuration the second would run the code of the first.
CODE_DIGESTS: dict[str, str] = {}

AUTO_MAP = {
    "AutoConfig": "configuration_ldvc.LDVCConfig",
    "AutoModel": "modeling_ldvc.LDVCForSemanticSegmentation",
    "AutoModelForSemanticSegmentation": "modeling_ldvc.LDVCForSemanticSegmentation",
    "AutoModelForImageSegmentation": "modeling_ldvc.LDVCForSemanticSegmentation",
    "AutoProcessor": "processing_ldvc.LDVCProcessor",
    "AutoImageProcessor": "image_processing_ldvc.LDVCImageProcessor",
}
# How `pipeline(task, model=folder, trust_remote_code=True)` finds the task's class in a published folder.
CUSTOM_PIPELINES = {
    "zero-shot-image-segmentation": {
        "impl": "pipeline_ldvc.ZeroShotImageSegmentationPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
        "type": "multimodal",
    }
}

# Field -> allowed values, checked by `validate_architecture`.
CHOICES = {
    "text_prompt_init": ("handcrafted", "random"),
    "text_adapter": ("relation", "linear", "none"),
    "text_adapter_init": ("random", "identity"),
    "decoder_query": ("image", "class"),
    "class_query_mask": ("attention_scores", "dot"),
    "decoder_attention": ("route", "full", "window", "shifted_window", "none"),
    "logit_scale": ("none", "inv_sqrt_dim", "cosine"),
    "patch_features": tuple(DENSE_METHODS),
    "position_interpolation": ("bilinear", "bicubic"),
    "unlabeled_pixels": ("negative", "ignore"),
}
AT_LEAST_ONE = (
    "projection_dim",
    "num_decoder_layers",
    "decoder_attention_heads",
    "decoder_intermediate_size",
    "num_regions",
    "route_top_k",
    "window_size",
)
AT_LEAST_ZERO = ("num_vision_prompts", "num_text_prompts", "focal_weight", "dice_weight", "focal_gamma")
FRACTIONS = ("vision_prompt_dropout", "decoder_dropout", "focal_alpha", "seen_score_offset")


@strict
class LDVCConfig(TwoTowerConfig):
    r"""Configuration of [`LDVCForSemanticSegmentation`].

    Args:
        text_config, vision_config (`dict` or CLIP configuration, *optional*):
            CLIP's towers; the defaults are ViT-B/16's widths at 224 pixels.
        projection_dim (`int`, *optional*, defaults to 512): Width of CLIP's joint space and of the decoder.
        logit_scale_init_value, initializer_factor: As in [`CLIPConfig`]; read by `CLIPModel` only.
        clip_name_or_path (`str`, *optional*): The CLIP that the model was built on; written by `from_clip_pretrained`.
        num_vision_prompts (`int`, *optional*, defaults to 10):
            Prompt tokens per vision layer; 0 switches them off. ZegCLIP: 10 for VOC, 100 for COCO-Stuff.
        vision_prompt_depth (`int`, *optional*): Layers that get vision prompts; `None` is every layer, 1 is "shallow".
        vision_prompt_dropout (`float`, *optional*, defaults to 0.1): Dropout on the projected vision prompts (VPT).
        num_text_prompts (`int`, *optional*, defaults to 4): Prompt tokens per text layer, at the positions of the
            template's words; 0 switches them off.
        text_prompt_depth (`int`, *optional*): Layers that get text prompts; `None` is every layer.
        text_prompt_init (`str`, *optional*, defaults to `"handcrafted"`): `"handcrafted"` starts from the frozen
            encoder's own hidden states of the template, `"random"` from N(0, 0.02).
        prompt_template (`str`, *optional*, defaults to `"a photo of a {}"`): Exactly one `{}`; the words before it
            initialise the text prompts.
        prompt_token_ids (`list[int]`, *optional*): Token ids of the start token and these words; written by
            `from_clip_pretrained`.
        text_adapter (`str`, *optional*, defaults to `"relation"`): `"relation"` is `Linear([g * t, t])`, `"linear"` is
            `Linear(t)`, `"none"` passes the text embedding on.
        text_adapter_init (`str`, *optional*, defaults to `"random"`): `"random"` starts as ZegCLIP's; `"identity"`
            starts as `"none"`, so that training moves embeddings away from CLIP's own only as far as seen classes ask.
        decoder_query (`str`, *optional*, defaults to `"image"`): `"image"` is LDVC's decoder (image tokens ask, class
            embeddings answer); `"class"` is the decoder of SegViT / ZegCLIP.
        num_decoder_layers, decoder_attention_heads, decoder_intermediate_size (`int`): 2, 8, 2048.
        decoder_dropout (`float`, *optional*, defaults to 0.1): On residual branches, attention weights and in the FFN.
        decoder_attention (`str`, *optional*, defaults to `"route"`): Self-attention among image tokens: `"route"`,
            `"full"`, `"window"`, `"shifted_window"` or `"none"`.
        num_regions (`int`, *optional*, defaults to 8): Regions per side of the token grid, at most.
        route_top_k (`int`, *optional*, defaults to 16): Regions that a region attends to; `num_regions**2` equals full
            attention.
        window_size (`int`, *optional*, defaults to 16): Tokens per side of a window; 16 gives as many keys as
            the default routes on a 32 x 32 grid.
        class_query_mask (`str`, *optional*, defaults to `"attention_scores"`): Masks of the class-query decoder: its
            last pre-softmax scores (ZegCLIP), or `"dot"`, the product of updated queries and image tokens.
        class_self_attention (`bool`, *optional*, defaults to `False`): Self-attention among class queries first, as in
            SegViT; ZegCLIP has none.
        logit_scale (`str`, *optional*, defaults to `"none"`): Scale of the product of class embeddings and image
            tokens: `"none"` (the paper), `"inv_sqrt_dim"`, or `"cosine"` with a learned temperature that starts at 10.
        logit_bias_init (`float`, *optional*): Start of a learned bias on the logits; `None` has no bias (the paper).
            With few training steps a negative start helps: nearly all (pixel, class) pairs are negative, and without
            it the first steps only learn that (the prior of Lin et al. 2017, Focal Loss, Sec. 4.1).
        patch_features (`str`, *optional*, defaults to `"tokens"`): Patch tokens that feed the decoder: `"tokens"` are
            the last layer's (ZegCLIP). The others are methods of training-free segmentation, since CLIP trains the
            summary token only and its last attention leaves other tokens little local meaning: `"value"` is the value
            path alone, `"maskclip"`, `"sclip"`, `"clearclip"`, `"naclip"`, `"clip_surgery"`, `"gem"`, `"resclip"`
            (without its second look, which needs classes) and `"pearl"` compute it otherwise; see
            [`LDVCDenseSettings`]. Their last block is computed for what is used, so that it is not among the recorded
            `hidden_states` and `attentions`.
        patch_feature_settings (`dict`, *optional*): Fields of [`LDVCDenseSettings`] in place of the method's, such as
            `{"residual": 1.0, "attention_weight": 2.0}`.
        position_interpolation (`str`, *optional*, defaults to `"bilinear"`): Resizing of CLIP's position grid:
            `"bilinear"` as ZegCLIP, `"bicubic"` as the library.
        focal_weight, dice_weight, focal_alpha, focal_gamma (`float`): 100.0, 1.0, 0.25, 2.0.
        unlabeled_pixels (`str`, *optional*, defaults to `"negative"`): What pixels labelled
            `semantic_loss_ignore_index` mean to the loss: negatives of every class (ZegCLIP), or `"ignore"`.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255): The label of unlabelled pixels.
        seen_classes (`list[str]`, *optional*): Names trained with masks; written by `train.py`.
        seen_score_offset (`float`, *optional*, defaults to 0.0): Subtracted from the probability of seen classes at
            inference; inductive tables are given for 0 and 0.1.
        class_token_ids (`list[list[int]]`, *optional*): Token ids of the default vocabulary's prompts; written by
            `set_vocabulary`, with the names in `vocabulary_names`.
        vocabulary_names (`list[str]`, *optional*): Names of the default vocabulary, in the order of the class axis.
            They say which classes are meant; `id2label` says what they are called by others, such as the library's
            own pipelines: another language does no harm, but another order is refused. Written by `set_vocabulary`;
            a checkpoint without them has those of its `id2label`.
        vocabulary_templates (`list[str]`, *optional*): Templates that these names were put into.
        prompt_class_ids (`list[int]`, *optional*): Class of each row of `class_token_ids`, where a class has several
            prompts (synonyms, templates); `None` is one prompt per class.
        other_label (`str`, *optional*): Name of what is no class, for pixels below the `threshold` of post-processing;
            it is in `id2label`, one past the last class. Written by `set_vocabulary`.
        baked_vocabulary (`bool`, *optional*, defaults to `False`): The default vocabulary's embeddings are stored in
            the checkpoint and the text tower is left out.
        text_fingerprint (`str`, *optional*): SHA-256 of the text weights that a baked vocabulary was encoded with, to
            which another vocabulary must belong. Written by `set_vocabulary`.

    Raises:
        StrictDataclassError: If a field has the wrong type or an impossible value; names field, value and remedy.

    Example:
    ```python
    >>> from ldvc import LDVCConfig, LDVCForSemanticSegmentation

    >>> model = LDVCForSemanticSegmentation(LDVCConfig(num_vision_prompts=100))
    ```
    """

    model_type = "ldvc"
    # What `Trainer` leaves aside when it collects predictions: they are the logits.
    keys_to_ignore_at_inference = ["class_embeds", "class_score_offsets", "focal_loss", "dice_loss"]  # noqa: RUF012

    text_config: dict | CLIPTextConfig | None = None
    vision_config: dict | CLIPVisionConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0

    clip_name_or_path: str | None = None

    num_vision_prompts: int = 10
    vision_prompt_depth: int | None = None
    vision_prompt_dropout: float | int = 0.1
    num_text_prompts: int = 4
    text_prompt_depth: int | None = None
    text_prompt_init: str = "handcrafted"
    prompt_template: str = "a photo of a {}"
    prompt_token_ids: list[int] | None = None

    text_adapter: str = "relation"
    text_adapter_init: str = "random"

    decoder_query: str = "image"
    num_decoder_layers: int = 2
    decoder_attention_heads: int = 8
    decoder_intermediate_size: int = 2048
    decoder_dropout: float | int = 0.1
    decoder_attention: str = "route"
    num_regions: int = 8
    route_top_k: int = 16
    window_size: int = 16
    class_query_mask: str = "attention_scores"
    class_self_attention: bool = False
    logit_scale: str = "none"
    logit_bias_init: float | int | None = None
    patch_features: str = "tokens"
    patch_feature_settings: dict[str, Any] | None = None
    position_interpolation: str = "bilinear"

    focal_weight: float | int = 100.0
    dice_weight: float | int = 1.0
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    unlabeled_pixels: str = "negative"
    semantic_loss_ignore_index: int = 255

    seen_classes: list[str] | None = None
    seen_score_offset: float | int = 0.0
    class_token_ids: list[list[int]] | None = None
    vocabulary_names: list[str] | None = None
    vocabulary_templates: list[str] | None = None
    prompt_class_ids: list[int] | None = None
    other_label: str | None = None
    baked_vocabulary: bool = False
    text_fingerprint: str | None = None

    def __post_init__(self, **kwargs: Any):
        if self.vision_config is None:
            self.vision_config = {"patch_size": 16}  # the paper's ViT-B/16; CLIPVisionConfig's own default is 32
        kwargs["auto_map"] = {**AUTO_MAP, **(kwargs.get("auto_map") or {})}
        # Where the task is registered, seeing it here would make the library ask for remote code.
        kwargs.pop("custom_pipelines", None)
        if __name__.startswith("transformers_modules."):
            kwargs["custom_pipelines"] = copy.deepcopy(CUSTOM_PIPELINES)  # the library writes into it
        super().__post_init__(**kwargs)
        if self.id2label is not None and self.label2id is None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        self.adopt_names()

    def adopt_names(self) -> None:
        """Take a vocabulary's own names from `id2label`, where a checkpoint of before December 2026 has them alone."""
        if self.vocabulary_names is None and self.class_token_ids and self.id2label:
            names = [self.id2label.get(index) for index in range(self.num_default_classes)]
            self.vocabulary_names = None if None in names else names

    def to_dict(self) -> dict:
        """As the library's, with the custom pipeline and who saved it."""
        own = {"custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES), "ldvc_version": LDVC_VERSION}
        return {**super().to_dict(), **own}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the library's, for folders of every LDVC that this code understands, whoever wrote them.

        Raises:
            ValueError: If another version saved it; names both and the remedy.
        """
        check_saved_version(config_dict.get("ldvc_version"))
        return super().from_dict(without_attention(config_dict), **kwargs)

    @property
    def num_default_classes(self) -> int:
        """Classes of the default vocabulary, `other_label` not among them; 0 where there is none."""
        return len(set(self.prompt_class_ids or range(len(self.class_token_ids or []))))

    @property
    def default_class_names(self) -> list[str]:
        """Names of the default vocabulary, in the order of the class axis."""
        return list(self.vocabulary_names or [])

    @property
    def dense_settings(self) -> LDVCDenseSettings:
        """Settings of the patch tokens that feed the decoder."""
        return choose_dense_settings(self.patch_features, self.patch_feature_settings or {}, "patch_features")

    def validate_architecture(self) -> None:
        """Check values and their combinations; called by `@strict` at construction and on saving.

        Raises:
            ValueError: Names field, value and remedy.
        """
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"`{field}` is {getattr(self, field)!r}; use one of {', '.join(map(repr, choices))}.")
        for field in AT_LEAST_ONE:
            if not getattr(self, field) >= 1:
                raise ValueError(f"`{field}` is {getattr(self, field)}; use a whole number of at least 1.")
        for field in AT_LEAST_ZERO:
            if not getattr(self, field) >= 0:  # false for NaN too
                raise ValueError(f"`{field}` is {getattr(self, field)}; use 0 or more.")
        for field in FRACTIONS:
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"`{field}` is {getattr(self, field)}; use a value from 0 up to, not including, 1.")
        self.dense_settings.check_depth(self.vision_config.num_hidden_layers)
        self._validate_prompts()
        self._validate_decoder()
        self._validate_vocabulary()

    def _validate_prompts(self) -> None:
        if self.prompt_template.count("{}") != 1:
            raise ValueError(f"`prompt_template` is {self.prompt_template!r}; it needs exactly one {{}} for the name.")
        for field, tower in (("vision_prompt_depth", self.vision_config), ("text_prompt_depth", self.text_config)):
            depth = getattr(self, field)
            if depth is not None and not 1 <= depth <= tower.num_hidden_layers:
                raise ValueError(
                    f"`{field}` is {depth}; use None for every layer or 1 to {tower.num_hidden_layers}, the number of "
                    "layers of that tower."
                )
        if self.num_text_prompts > self.text_config.max_position_embeddings - 3:
            raise ValueError(
                f"`num_text_prompts` is {self.num_text_prompts}, which leaves no room for a class name among the text "
                f"tower's {self.text_config.max_position_embeddings} positions; use fewer."
            )
        num_words = len(self.prompt_token_ids) - 1 if self.prompt_token_ids else self.num_text_prompts
        if self.num_text_prompts not in (0, num_words):
            raise ValueError(
                f"`num_text_prompts` is {self.num_text_prompts}, but the words of `prompt_template` "
                f"{self.prompt_template!r} before {{}} are {num_words} tokens; set num_text_prompts={num_words} or "
                "change the template."
            )

    def _validate_decoder(self) -> None:
        if self.projection_dim % self.decoder_attention_heads:
            raise ValueError(
                f"`decoder_attention_heads` is {self.decoder_attention_heads}, which does not divide `projection_dim` "
                f"{self.projection_dim}; use a divisor of it."
            )
        if self.route_top_k > self.num_regions**2:
            raise ValueError(
                f"`route_top_k` is {self.route_top_k}, but `num_regions` {self.num_regions} makes only "
                f"{self.num_regions**2} regions; use at most that many."
            )

    def _validate_vocabulary(self) -> None:
        if self.prompt_class_ids is not None and len(self.prompt_class_ids) != len(self.class_token_ids or []):
            raise ValueError(
                f"`prompt_class_ids` has {len(self.prompt_class_ids)} entries for {len(self.class_token_ids or [])} "
                "rows of `class_token_ids`; write both with `set_vocabulary`."
            )
        self._validate_names()
        if self.seen_classes is not None and len(set(self.seen_classes)) != len(self.seen_classes):
            raise ValueError(f"`seen_classes` names a class twice: {self.seen_classes}; name each once.")

    def _validate_names(self) -> None:
        id2label, num_classes = self.id2label or {}, self.num_default_classes
        num_names = num_classes + (self.other_label is not None)
        if self.class_token_ids is not None and set(id2label) != set(range(num_names)):
            raise ValueError(
                f"`id2label` has {len(id2label)} names with ids from {min(id2label, default=None)}, but the default "
                f"vocabulary has {num_classes} classes and needs {num_names} names with ids from 0; change both "
                "together with `set_vocabulary`."
            )
        if self.other_label is not None and id2label.get(num_classes) != self.other_label:
            raise ValueError(
                f"`other_label` is {self.other_label!r}, but `id2label` names the id {num_classes} "
                f"{id2label.get(num_classes)!r}; change both together with `set_vocabulary`."
            )
        self.check_names()

    def check_names(self) -> None:
        """Check that `id2label` calls no class of the default vocabulary by the name of another.

        Raises:
            ValueError: If it does, or there is not one name per class.
        """
        names, id2label = self.vocabulary_names, self.id2label or {}
        num_classes = self.num_default_classes
        if names is not None and len(names) != num_classes:
            raise ValueError(
                f"`vocabulary_names` has {len(names)} names for the {num_classes} classes of `class_token_ids`; write "
                "both with `set_vocabulary`."
            )
        called = [id2label.get(index) for index in range(num_classes)]
        if names is None or called == names:
            return
        ids = {name: index for index, name in enumerate(names)}
        for index, name in enumerate(called):
            if ids.get(name, index) != index:
                raise ValueError(
                    f"`id2label` calls the class {index} {name!r}, but in the default vocabulary that is class "
                    f"{ids[name]}, and class {index} is {names[index]!r}; other words for them are fine, another "
                    "order is not: use `set_vocabulary`."
                )


def without_attention(config_dict: dict[str, Any]) -> dict[str, Any]:
    """Leave out attention implementations: a file may name a repository there, whose code the library would run."""
    kept = {name: value for name, value in config_dict.items() if "attn_implementation" not in name}
    towers = {name: kept[name] for name in ("text_config", "vision_config") if isinstance(kept.get(name), dict)}
    return kept | {name: without_attention(tower) for name, tower in towers.items()}


LDVCConfig.register_for_auto_class()
if __name__.startswith("transformers_modules."):  # remote code is found through `auto_map`
    check_code(Path(__file__).parent, CODE_DIGESTS)
else:
    AutoConfig.register(LDVCConfig.model_type, LDVCConfig, exist_ok=True)

__all__ = ["LDVCConfig"]
