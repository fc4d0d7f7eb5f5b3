"""Any CLIP as a segmenter, without training: dense features of its vision tower against embeddings of class names.

    pixel_values -> blocks but the last -> a member of the dense family -> patch tokens, unit length
    class names  -> text tower                                          -> class embeddings, unit length
    both         -> cosines on the grid -> log-odds of their softmax    -> logits

The methods and what is known of each are in docs/training_free.md; the family is ldvc/model/dense_ldvc.py.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.clip.modeling_clip import CLIPModel, CLIPVisionModelWithProjection

from ldvc.model.configuration_ldvc import CHOICES, LDVCConfig
from ldvc.model.dense_ldvc import (
    LDVCFeedback,
    attend_as_in_the_middle,
    block_at,
    block_inputs,
    dense_tokens,
    pad_to_patches,
    unit_embeds,
)
from ldvc.model.dense_settings_ldvc import (
    DENSE_FIELDS,
    DENSE_METHODS,
    PAIRS,
    LDVCDenseSettings,
    check_number,
    choose_dense_settings,
)
from ldvc.model.modeling_ldvc import MASKED_LOGIT, LDVCImageFeatures, LDVCSemanticSegmenterOutput
from ldvc.model.prompts_ldvc import embed_patches
from ldvc.model.regions_ldvc import fit_to_image
from ldvc.model.vocabulary_ldvc import LDVCVocabularyMixin, check_tensors
from ldvc.model.weights_ldvc import (
    HUB_OPTIONS,
    LOADING_OPTIONS,
    check_clip_is_complete,
    clip_config_of,
    quiet_loading,
)
from ldvc.segmenters.feedback import patch_labels, patch_similarity


__all__ = ["FeedbackSettings", "TrainingFreeCLIP", "TrainingFreeImageFeatures", "choose_settings"]

DEFAULT_METHOD = "naclip"
# Half of the published protocols take 40; CLIP's own 100 was trained for whole images.
SOFTMAX_SCALE = 40.0
LARGEST_LOGIT = 30.0  # of a class that is alone or certain; its sigmoid is 1 in every dtype


@dataclass(frozen=True)
class FeedbackSettings:
    """The second look of ResCLIP; its authors' values differ from benchmark to benchmark, these are COCO-Object's.

    Attributes:
        feedback: Take a second look.
        feedback_scale: Factor on the mixture of projections and similarity of patches.
        feedback_weight: Share of the similarity, 0 to 1.
        feedback_threshold: At first sight, pixels whose best class is less probable become the first class of the
            call.

    Raises:
        ValueError: If a value is impossible.
    """

    feedback: bool = False
    feedback_scale: float = 1.8
    feedback_weight: float = 0.7
    feedback_threshold: float = 0.11

    def __post_init__(self):
        if not isinstance(self.feedback, bool):
            raise ValueError(f"`feedback` is {self.feedback!r}; use True or False.")
        for name in ("feedback_scale", "feedback_weight", "feedback_threshold"):
            check_number(name, getattr(self, name))
        if not self.feedback_weight <= 1:
            raise ValueError(f"`feedback_weight` is {self.feedback_weight}; it is a share, 0 to 1.")


@dataclass
class TrainingFreeImageFeatures(LDVCImageFeatures):
    """Image features that a second look starts from; see [`LDVCImageFeatures`].

    Attributes:
        last_input: (batch_size, num_tokens, hidden_size), what enters the last block.
        middle: (batch_size, num_heads, num_patches, head_dim), the middle blocks' attention over the last's values.
        padded_pixels: (batch_size, num_channels, padded_height, padded_width).
    """

    last_input: Tensor | None = None
    middle: Tensor | None = None
    padded_pixels: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> "TrainingFreeImageFeatures":
        """The same features on another device or in another dtype, as `Tensor.to`."""
        moved = {k: v.to(*args, **kwargs) if isinstance(v, Tensor) else v for k, v in self.items()}
        return TrainingFreeImageFeatures(**moved)

    def select(self, images: int | slice | list[int] | Tensor) -> "TrainingFreeImageFeatures":
        """The features of some images of the batch; one image stays a batch, of one."""
        images = [images] if isinstance(images, int) else images
        return TrainingFreeImageFeatures(**{k: v[images] if isinstance(v, Tensor) else v for k, v in self.items()})


# ---- settings


def choose_settings(method: str, options: Mapping[str, Any]) -> tuple[LDVCDenseSettings, FeedbackSettings]:
    """The settings of a method, some of them changed.

    Args:
        method: A name of `DENSE_METHODS`.
        options: Fields of [`LDVCDenseSettings`] and [`FeedbackSettings`].

    Raises:
        ValueError: If there is no such method, a value is impossible, or an option has no effect on the method.
        TypeError: If an option is unknown; names the nearest.
    """
    feedback_fields = [field.name for field in dataclasses.fields(FeedbackSettings)]
    for name in options:
        if method in DENSE_METHODS and name not in (*DENSE_FIELDS, *feedback_fields):
            near = difflib.get_close_matches(name, [*DENSE_FIELDS, *feedback_fields], n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"use some of {', '.join(DENSE_FIELDS)}."
            raise TypeError(f"`{name}` is no setting of a training-free CLIP; {hint}")
    dense = choose_dense_settings(method, {k: v for k, v in options.items() if k in DENSE_FIELDS})
    own = {"feedback": method == "resclip" and dense.affinity in PAIRS}
    feedback = FeedbackSettings(**own | {k: v for k, v in options.items() if k in feedback_fields})
    check_feedback(method, options, dense, feedback)
    return dense, feedback


def check_feedback(
    method: str, options: Mapping[str, Any], dense: LDVCDenseSettings, feedback: FeedbackSettings
) -> None:
    """Refuse a second look that these features cannot have, and its options where there is none.

    Raises:
        ValueError: Names option, method, and where the option has an effect.
    """
    if stray := [name for name in options if name.startswith("feedback_") and not feedback.feedback]:
        raise ValueError(
            f"`{stray[0]}` has no effect on the method {method!r}: it belongs to feedback=True (resclip); leave it "
            "out."
        )
    if feedback.feedback and (dense.affinity not in PAIRS or dense.num_blocks > 1):
        raise ValueError(
            f"`feedback` is mixed with products of projections in the last block, which affinity={dense.affinity!r} "
            f"with num_blocks={dense.num_blocks} has not; use feedback=False, or one of {', '.join(map(repr, PAIRS))}."
        )


def read_config(clip: nn.Module, **fields: Any) -> LDVCConfig:
    """Describe a CLIP as an LDVC without prompts: what other parts read of any segmenter.

    Raises:
        ValueError: If it is no CLIP, or lacks its vision tower.
    """
    is_vision_only = isinstance(clip, CLIPVisionModelWithProjection)
    config = clip.config if is_vision_only else clip_config_of(clip, {})
    towers = (
        {"vision_config": config.to_dict()}
        if is_vision_only
        else {
            "text_config": config.text_config.to_dict(),
            "vision_config": config.vision_config.to_dict(),
            "logit_scale_init_value": config.logit_scale_init_value,
        }
    )
    fields["decoder_attention_heads"] = math.gcd(config.projection_dim, 8)  # of a decoder that is not there
    return LDVCConfig(
        **towers, projection_dim=config.projection_dim, num_vision_prompts=0, num_text_prompts=0, **fields
    )


def log_odds(scores: Tensor) -> Tensor:
    """Turn logits of a softmax over classes (axis 1) into logits of a sigmoid per class, in float32.

    Their sigmoid is the softmax's probability, which is what all code that reads logits takes.

    Args:
        scores: (batch_size, num_classes, grid_height, grid_width).

    Returns:
        Same shape.
    """
    log_probabilities = scores.float().log_softmax(dim=1)
    odds = log_probabilities - torch.log(-torch.expm1(log_probabilities))
    return odds.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


# ---- the model


class TrainingFreeCLIP(LDVCVocabularyMixin, nn.Module):
    """A CLIP as a zero-shot segmenter, as it is.

    Args:
        clip: A `CLIPModel`, or a `CLIPVisionModelWithProjection`, to which classes come as embeddings. It is used and
            not copied: it is put in eval mode, and moves with this module.
        method: "tokens", "value", "maskclip", "sclip", "clearclip", "naclip", "clip_surgery", "gem", "resclip" or
            "pearl".
        softmax_scale: Classes of a call compete in a softmax of the cosines times this number, and the logits are its
            log-odds, so that their sigmoid is a probability; `None` leaves the logits cosines.
        position_interpolation: Of positions at other sizes than CLIP's: "bilinear" or "bicubic".
        settings: Fields of [`LDVCDenseSettings`] and [`FeedbackSettings`], in place of the method's.

    Raises:
        ValueError: If `clip` is no CLIP, there is no such method, a value is impossible, or a setting belongs to
            another method.
        TypeError: If a setting is unknown.

    Example:
    ```python
    >>> from ldvc import LDVCProcessor, TrainingFreeCLIP, segment

    >>> model = TrainingFreeCLIP.from_pretrained("openai/clip-vit-base-patch16", method="naclip")
    >>> processor = LDVCProcessor.from_clip_pretrained("openai/clip-vit-base-patch16", image_stats="clip")
    >>> segment(model, processor, "photo.jpg", ["cat", "sofa", "wall"]).label_map
    ```
    """

    def __init__(
        self,
        clip: CLIPModel | CLIPVisionModelWithProjection,
        method: str = DEFAULT_METHOD,
        *,
        softmax_scale: float | None = SOFTMAX_SCALE,
        position_interpolation: str = "bilinear",
        **settings: Any,
    ):
        super().__init__()
        self.method = method
        self.settings, self.feedback = choose_settings(method, settings)
        if softmax_scale is not None:
            check_number("softmax_scale", softmax_scale, above=0)
        self.softmax_scale = softmax_scale
        if position_interpolation not in (choices := CHOICES["position_interpolation"]):
            raise ValueError(f"`position_interpolation` is {position_interpolation!r}; use one of {choices}.")
        self.config = read_config(clip, position_interpolation=position_interpolation)
        self.settings.check_depth(self.config.vision_config.num_hidden_layers)
        self.config.patch_features = method
        self.config.patch_feature_settings = {k: v for k, v in settings.items() if k in DENSE_FIELDS} or None
        self.clip = clip
        self.text_prompts = self.baked_vocabulary = None  # what the vocabulary of an LDVC may have
        self.eval()

    @classmethod
    def from_pretrained(
        cls, clip: str | os.PathLike, method: str = DEFAULT_METHOD, **options: Any
    ) -> "TrainingFreeCLIP":
        """Load a CLIP from a folder or Hub id.

        Args:
            clip: Of a `CLIPModel` or a `CLIPVisionModelWithProjection`.
            method: See the class.
            options: Arguments of the class, and options of loading such as `revision` or `dtype` (float32 by default).

        Raises:
            ValueError: If it is no CLIP or not a whole one; and as the class.
            OSError: If there is no such folder or id.
            TypeError: If an option is unknown.
        """
        loading = {name: value for name, value in options.items() if name in LOADING_OPTIONS}
        arguments = {name: value for name, value in options.items() if name not in LOADING_OPTIONS}
        own = ("softmax_scale", "position_interpolation")
        choose_settings(method, {name: value for name, value in arguments.items() if name not in own})
        kind = clip_class(clip, {name: value for name, value in loading.items() if name in HUB_OPTIONS})
        with quiet_loading():
            loaded, info = kind.from_pretrained(clip, output_loading_info=True, **{"dtype": torch.float32, **loading})
        check_clip_is_complete(clip, [f"clip.{name}" for name in info["missing_keys"]], ())
        return cls(loaded, method, **arguments)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.clip.dtype

    # ---- classes

    def get_class_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, prompt_class_ids: Tensor | None = None
    ) -> Tensor:
        """Encode class prompts, as [`LDVCForSemanticSegmentation.get_class_embeds`].

        Args:
            input_ids: (num_prompts, sequence_length) token ids, padded on the right.
            attention_mask: (num_prompts, sequence_length); only checked.
            prompt_class_ids: (num_prompts,) class of each prompt; those of one class are averaged as unit vectors.

        Returns:
            (num_classes, projection_dim), unit length.

        Raises:
            ValueError: If this CLIP has no text tower, or the ids are wrong.
        """
        if getattr(self.clip, "text_model", None) is None:
            raise ValueError(
                f"this {type(self.clip).__name__} has no text tower to encode names with; load the whole CLIPModel, "
                "or pass `class_embeds`."
            )
        return super().get_class_embeds(input_ids, attention_mask, prompt_class_ids)

    def set_vocabulary(self, *args: Any, bake: bool = False, **kwargs: Any) -> None:
        """As [`LDVCForSemanticSegmentation.set_vocabulary`], without baking.

        Raises:
            ValueError: With `bake`: the text tower belongs to the CLIP that was handed over.
        """
        if bake:
            raise ValueError("a training-free CLIP keeps its text tower and is not saved; leave out `bake`.")
        super().set_vocabulary(*args, **kwargs)

    # ---- images

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor) -> LDVCImageFeatures:
        """Encode images; passing the result back as `image_features` gives the same logits as the full call.

        Args:
            pixel_values: (batch_size, num_channels, height, width), normalised; any size of at least one patch. Sides
                that are no multiple of the patch size are padded with zeros, at bottom and right.

        Returns:
            [`LDVCImageFeatures`]: the method's patch tokens, and CLIP's own global feature, all unit length. For a
            second look, [`TrainingFreeImageFeatures`].

        Raises:
            ValueError: If the shape is wrong or a side is shorter than a patch.
            TypeError: If `pixel_values` is no tensor.
        """
        check_tensors(pixel_values=pixel_values)
        vision_model, vision = self.clip.vision_model, self.config.vision_config
        padded, grid_size = pad_to_patches(pixel_values, vision.patch_size, vision.num_channels)
        hidden_states = embed_patches(vision_model.embeddings, padded, self.config.position_interpolation)
        hidden_states = vision_model.pre_layrnorm(hidden_states)
        blocks = vision_model.encoder.layers
        inputs = block_inputs(blocks, hidden_states, self.settings.needed_inputs(len(blocks)))
        middle = None
        if self.settings.middle_blocks:
            middle = attend_as_in_the_middle(blocks, inputs, self.settings.middle_blocks, math.prod(grid_size))
        last_input = inputs[len(blocks) - 1]
        patches = dense_tokens(blocks, inputs, grid_size, self.settings, middle)
        tokens = torch.cat([block_at(blocks[-1], last_input), patches], dim=1)
        embeds = unit_embeds(self.clip, tokens)
        # (batch_size, num_patches, projection_dim) -> (batch_size, projection_dim, grid_height, grid_width)
        feature_map = embeds[:, 1:].transpose(1, 2).unflatten(-1, grid_size)
        found = {
            "feature_map": feature_map,
            "image_embeds": embeds[:, 0],
            "image_size": tuple(pixel_values.shape[-2:]),
        }
        if not self.feedback.feedback:
            return LDVCImageFeatures(**found)
        return TrainingFreeImageFeatures(**found, last_input=last_input, middle=middle, padded_pixels=padded)

    def _look_again(self, features: TrainingFreeImageFeatures, cosines: Tensor) -> Tensor:
        """The features of a second look, (batch_size, projection_dim, grid_height, grid_width).

        Args:
            features: Of the first.
            cosines: (batch_size, num_classes, grid_height, grid_width) of the first.

        Raises:
            ValueError: If the features are not those of this method.
        """
        if not isinstance(features, TrainingFreeImageFeatures):
            raise ValueError(
                "`image_features` are of another model or method, and a second look needs more; use those of this "
                "model's `get_image_features`, or feedback=False."
            )
        blocks, grid_size = self.clip.vision_model.encoder.layers, tuple(cosines.shape[-2:])
        patch_size, last_input = self.config.vision_config.patch_size, features.last_input
        labels = patch_labels(cosines, features.padded_pixels, patch_size, self.feedback.feedback_threshold)
        similarity = patch_similarity(labels, last_input.shape[1])
        feedback = LDVCFeedback(similarity, self.feedback.feedback_scale, self.feedback.feedback_weight)
        inputs = {len(blocks) - 1: last_input}
        tokens = dense_tokens(blocks, inputs, grid_size, self.settings, features.middle, feedback)
        embeds = unit_embeds(self.clip, tokens)
        return embeds.transpose(1, 2).unflatten(-1, grid_size)

    # ---- the whole

    @torch.no_grad()
    def forward(
        self,
        pixel_values: Tensor | None = None,
        class_embeds: Tensor | None = None,
        image_features: LDVCImageFeatures | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_mask: Tensor | None = None,
        prompt_class_ids: Tensor | None = None,
        class_index: Tensor | None = None,
        seen_class_mask: Tensor | None = None,
    ) -> LDVCSemanticSegmenterOutput:
        """Segment images into classes that are given by name; sources as in [`LDVCForSemanticSegmentation.forward`].

        Args:
            pixel_values: (batch_size, num_channels, height, width), normalised.
            class_embeds: (num_classes, projection_dim) from `get_class_embeds`; with a batch axis, a list per image.
            image_features: From `get_image_features`.
            input_ids: (num_prompts, sequence_length), or a list per image.
            attention_mask: Shaped as `input_ids`.
            class_mask: (batch_size, num_classes), 0 for padding of per-image class lists.
            prompt_class_ids: (num_prompts,), see `get_class_embeds`.
            class_index: (batch_size, num_classes) rows of the encoded classes that make up each image's list.
            seen_class_mask: None: no mask has trained any class.

        Returns:
            [`LDVCSemanticSegmenterOutput`] with `logits`, (batch_size, num_classes, grid_height, grid_width): log-odds
            of the softmax over the call's classes, or cosines where `softmax_scale` is `None`. Padded classes have
            probability 0.

        Raises:
            ValueError: If sources are missing or doubled, or shapes do not fit.
            TypeError: If an argument is no tensor.
        """
        check_tensors(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        classes = {"class_embeds": class_embeds, "class_mask": class_mask, "class_index": class_index}
        check_tensors(**classes)
        if (pixel_values is None) == (image_features is None):
            raise ValueError("give exactly one of `pixel_values` and `image_features`.")
        if seen_class_mask is not None:
            raise ValueError("`seen_class_mask` is of trained models; no mask has trained this one: leave it out.")
        embeds, _ = self._resolve_classes(input_ids, attention_mask, prompt_class_ids, **classes, seen_class_mask=None)
        features = self.get_image_features(pixel_values) if image_features is None else image_features
        embeds = embeds.to(features.feature_map.device, features.feature_map.dtype)
        cosines = compare(features.feature_map, embeds)
        if self.feedback.feedback:
            cosines = compare(self._look_again(features, cosines), embeds)
        logits = fit_to_image(cosines, features.image_size, self.config.vision_config.patch_size)
        is_padding = None if class_mask is None else ~class_mask.to(logits.device).bool()[:, :, None, None]
        if self.softmax_scale is not None:
            scores = self.softmax_scale * logits.float()
            scores = scores if is_padding is None else scores.masked_fill(is_padding, MASKED_LOGIT)
            logits = log_odds(scores).to(logits.dtype)
        if is_padding is not None:
            logits = logits.masked_fill(is_padding, MASKED_LOGIT)
        return LDVCSemanticSegmenterOutput(logits=logits, class_embeds=embeds.expand(logits.shape[0], -1, -1))


def compare(feature_map: Tensor, class_embeds: Tensor) -> Tensor:
    """Cosines of patches and classes, (batch_size, num_classes, grid_height, grid_width).

    Args:
        feature_map: (batch_size, projection_dim, grid_height, grid_width), unit length.
        class_embeds: (1 or batch_size, num_classes, projection_dim), unit length.

    Raises:
        ValueError: If the class lists do not fit the images.
    """
    if class_embeds.shape[0] == 1:
        return torch.einsum("bdhw,cd->bchw", feature_map, class_embeds[0])
    if class_embeds.shape[0] != feature_map.shape[0]:
        raise ValueError(
            f"there are class lists for {len(class_embeds)} images, but {len(feature_map)} images; give one list for "
            "all or one per image."
        )
    return torch.einsum("bdhw,bcd->bchw", feature_map, class_embeds)


def clip_class(clip: str | os.PathLike, hub_options: dict[str, Any]) -> type[nn.Module]:
    """The library's class for the CLIP in a folder or Hub id.

    Raises:
        ValueError: If it is no CLIP.
        OSError: If it cannot be read.
    """
    try:
        kind = PreTrainedConfig.get_config_dict(clip, **hub_options)[0].get("model_type")
    except OSError:
        kind = None
    if kind == "clip_vision_model":
        return CLIPVisionModelWithProjection
    clip_config_of(clip, hub_options)  # refuses everything else, in one line
    return CLIPModel
