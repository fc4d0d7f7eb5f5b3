# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""LDVC: Language-Driven Visual Consensus for zero-shot semantic segmentation (arXiv 2403.08426), around `CLIPModel`.

Data flow, for an image and any list of class names:

    pixel_values -> prompted CLIP vision tower -> patch tokens V, global feature g     (batch_size, num_patches, dim)
    class names  -> prompted CLIP text tower   -> class embeddings T                   (num_classes, dim)
    T, g         -> text adapter               -> adapted class embeddings T'          (batch_size, num_classes, dim)
    V, T'        -> LCTD decoder               -> refined V', logits = T' V'^T         (batch_size, num_classes, grid)

CLIP is frozen; prompts, adapter and decoder learn. `dim` is CLIP's `projection_dim`; sizes are (height, width).
No official code exists. What the paper leaves open follows ZegCLIP (prompts, adapter, widths) and BiFormer (routing).

Departures from ZegCLIP: CLIP's class embedding is added once to its token, as CLIP was trained (ZegCLIP adds it
twice); any image size; class names are an argument of the call.
"""

import difflib
import inspect
import math
import os
from dataclasses import dataclass
from typing import Any

from .compat_ldvc import causal_mask


# isort: split
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageSegmentation, AutoModelForSemanticSegmentation
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPModel
from transformers.utils import ModelOutput, can_return_tuple, logging
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_ldvc import LDVCConfig
from .decoder_ldvc import (
    LDVCAttention,
    LDVCClassQueryDecoder,
    LDVCClassQueryLayer,
    LDVCDecoder,
    LDVCDecoderLayer,
    LDVCRouteAttention,
    LDVCSimilarity,
)
from .dense_ldvc import block_at, dense_tokens, pad_to_patches, unit_embeds
from .dense_settings_ldvc import DENSE_METHODS
from .image_processing_ldvc import LDVCImageProcessor  # noqa: F401 - compat_ldvc says why
from .inference_ldvc import Segmentation  # noqa: F401 - compat_ldvc says why
from .loss_ldvc import loss_options, segmentation_loss
from .options_ldvc import check_options  # noqa: F401 - compat_ldvc says why
from .pipeline_ldvc import ZeroShotImageSegmentationPipeline
from .pixels_ldvc import ValueRange  # noqa: F401 - compat_ldvc says why
from .processing_ldvc import LDVCProcessor  # noqa: F401 - compat_ldvc says why
from .prompts_ldvc import (
    LDVCIdentityProjection,
    LDVCTextAdapter,
    LDVCTextPrompts,
    LDVCVisionEmbeddings,
    LDVCVisionPrompts,
)
from .regions_ldvc import fit_to_image
from .segmenter_ldvc import Segmenter  # noqa: F401 - compat_ldvc says why
from .vocabulary_ldvc import LDVCBakedVocabulary, LDVCVocabularyMixin, check_tensors
from .weights_ldvc import (
    build_config,
    check_clip_is_complete,
    load_adapter,
    quiet_loading,
    save_adapter,
    split_options,
)


logger = logging.get_logger(__name__)

# Logit of a padded entry of a per-image class list: probability 0 in every dtype, and finite, so that 0 * logit is 0.
MASKED_LOGIT = -1e4


@dataclass
class LDVCImageFeatures(ModelOutput):
    """What the decoder needs of an image: "encode once, ask many".

    Attributes:
        feature_map: (batch_size, projection_dim, grid_height, grid_width), unit-length patch tokens on the grid.
        image_embeds: (batch_size, projection_dim), unit-length global feature.
        image_size: (height, width) of the image in pixels, before padding to whole patches.
    """

    feature_map: Tensor | None = None
    image_embeds: Tensor | None = None
    image_size: tuple[int, int] | None = None

    def to(self, *args: Any, **kwargs: Any) -> "LDVCImageFeatures":
        """The same features on another device or in another dtype, as `Tensor.to`."""
        return LDVCImageFeatures(
            self.feature_map.to(*args, **kwargs), self.image_embeds.to(*args, **kwargs), self.image_size
        )

    def select(self, images: int | slice | list[int] | Tensor) -> "LDVCImageFeatures":
        """The features of some images of the batch; one image stays a batch, of one."""
        images = [images] if isinstance(images, int) else images
        return LDVCImageFeatures(self.feature_map[images], self.image_embeds[images], self.image_size)


@dataclass
class LDVCSemanticSegmenterOutput(ModelOutput):
    """Output of [`LDVCForSemanticSegmentation`]; every tensor but the losses is batch-first.

    Attributes:
        loss: Scalar, where `labels` were given.
        logits: (batch_size, num_classes, grid_height, grid_width), before the sigmoid, covering the whole image;
            channel i is class i of the call.
        class_embeds: (batch_size, num_classes, projection_dim), class embeddings after the text adapter.
        class_score_offsets: (batch_size, num_classes), to be subtracted from probabilities (`seen_score_offset`).
        focal_loss: Scalar, the focal term before weighting, where `labels` were given.
        dice_loss: Scalar, the dice term before weighting, where `labels` were given.
        hidden_states: Vision tower, (batch_size, 1 + num_vision_prompts + num_patches, hidden_size) per layer.
        attentions: Vision tower's attention weights (eager attention only).
        decoder_hidden_states: (batch_size, num_patches, projection_dim) per decoder layer (class queries:
            (batch_size, num_classes, projection_dim)).
        decoder_attentions: Self-attention weights; route: (batch_size, regions, heads, region_area, keys).
        cross_attentions: (batch_size, heads, num_patches, num_classes) per layer (class queries: transposed).
        routes: (batch_size, regions, route_top_k) int64 per layer, the regions that each region attends to.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    class_embeds: Tensor | None = None
    class_score_offsets: Tensor | None = None
    focal_loss: Tensor | None = None
    dice_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    routes: tuple[Tensor, ...] | None = None


# ---- the model


def one_row_each(rows: Tensor | None) -> Tensor | None:
    """Bring (batch_size, 1, num_classes), which a data loader stacks of single images, to (batch_size, num_classes).

    Raises:
        TypeError: If it is no tensor.
    """
    check_tensors(class_index=rows)
    return rows.squeeze(1) if rows is not None and rows.dim() == 3 else rows


class LDVCPreTrainedModel(PreTrainedModel):
    """What the library needs to know of LDVC: initialisation, attention backends, what may be recorded or split."""

    config: LDVCConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean per step, so `Trainer` divides it by the accumulation steps
    _no_split_modules = ["LDVCDecoderLayer", "LDVCClassQueryLayer", "CLIPEncoderLayer", "LDVCVisionEmbeddings"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": CLIPEncoderLayer,
        "attentions": CLIPAttention,
        "decoder_hidden_states": [OutputRecorder(LDVCDecoderLayer), OutputRecorder(LDVCClassQueryLayer)],
        "decoder_attentions": OutputRecorder(LDVCAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(LDVCAttention, index=1, layer_name="cross_attn"),
        "routes": OutputRecorder(LDVCRouteAttention, index=2),
    }
    # `cross_attentions` come with `output_attentions`, the library's rule, and have no option of their own.
    _forward_options = frozenset(f"output_{name}" for name in _can_record_outputs if name != "cross_attentions")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise LDVC's own modules; the nested CLIP has its own rules.

        Linear layers start as torch's default does: ZegCLIP defines a truncated normal for its head, but its training
        script never calls it.
        """
        if isinstance(module, LDVCIdentityProjection):
            init.copy_(module.weight, torch.eye(*module.weight.shape).flip(0, 1))
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, LDVCVisionPrompts):
            init.uniform_(module.tokens, -module.init_range, module.init_range)
            init.kaiming_normal_(module.projection.weight, mode="fan_out")
        elif isinstance(module, LDVCTextPrompts):
            init.normal_(module.tokens, std=0.02)
        elif isinstance(module, LDVCSimilarity):
            if module.log_scale is not None:
                init.constant_(module.log_scale, 2.302585)  # a temperature of 10
            if module.bias is not None:
                init.constant_(module.bias, module.bias_init)
        elif isinstance(module, LDVCBakedVocabulary):
            init.zeros_(module.class_embeds)
        else:
            super()._init_weights(module)


class LDVCForSemanticSegmentation(LDVCVocabularyMixin, LDVCPreTrainedModel):
    """LDVC: a frozen CLIP with deep prompts in both towers, a text adapter and the LCTD decoder.

    Example:
    ```python
    >>> from PIL import Image
    >>> from ldvc import LDVCForSemanticSegmentation, LDVCProcessor

    >>> model = LDVCForSemanticSegmentation.from_pretrained(folder)
    >>> processor = LDVCProcessor.from_pretrained(folder)
    >>> inputs = processor(images=image, class_names=["cat", "sofa"], return_tensors="pt")
    >>> maps = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[image.size[::-1]])
    ```
    """

    pipeline_class = ZeroShotImageSegmentationPipeline  # what `pipeline(TASK, model=this, processor=...)` makes

    def __init__(self, config: LDVCConfig):
        config.validate_architecture()  # fields may have been assigned since the configuration was made
        super().__init__(config)
        self.clip = CLIPModel(config)
        self.clip.vision_model.embeddings = LDVCVisionEmbeddings(config.vision_config)
        self.clip.vision_model.embeddings.interpolation_mode = config.position_interpolation
        self.dense_settings = config.dense_settings
        self.takes_last_block = self.dense_settings == DENSE_METHODS["tokens"]
        has_vision_prompts, has_text_prompts = config.num_vision_prompts > 0, config.num_text_prompts > 0
        self.vision_prompts = LDVCVisionPrompts(config) if has_vision_prompts else None
        # With CLIP's own norm behind it, this one starts as the identity; eps as in ZegCLIP.
        self.prompt_norm = nn.LayerNorm(config.vision_config.hidden_size, eps=1e-6) if has_vision_prompts else None
        self.text_prompts = LDVCTextPrompts(config) if has_text_prompts else None
        self.text_adapter = LDVCTextAdapter(config)
        self.decoder = LDVCDecoder(config) if config.decoder_query == "image" else LDVCClassQueryDecoder(config)
        self.baked_vocabulary = None
        if config.baked_vocabulary:
            self._drop_text_tower()
        self.newly_initialized = ()
        self.post_init()
        self.freeze_clip()

    # ---- starting from CLIP, freezing, saving the small part

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "LDVCForSemanticSegmentation | tuple":
        """As the library's; CLIP comes back frozen, since loading makes every weight trainable again."""
        result = super().from_pretrained(*args, **kwargs)
        (result[0] if isinstance(result, tuple) else result).freeze_clip()
        return result

    @classmethod
    def from_clip_pretrained(
        cls, clip: str | os.PathLike | CLIPModel, tokenizer: Any = None, **config_fields: Any
    ) -> "LDVCForSemanticSegmentation":
        """Build LDVC on a pretrained CLIP: its weights are taken over bit for bit, the others are initialised.

        Args:
            clip: A Hub id, a folder, or a `CLIPModel`.
            tokenizer: CLIP's tokenizer; loaded from the id or folder where not given. It gives the token ids of the
                template's words for the handcrafted text prompts.
            config_fields: Fields of [`LDVCConfig`], and options of `from_pretrained` such as `revision`, `dtype`
                (float32 by default: new weights are trained). Beside a `CLIPModel`, whose device is kept, the only
                options are `dtype` and `attn_implementation`.

        Returns:
            The model in eval mode, CLIP frozen; `model.newly_initialized` names the weights that are not CLIP's.

        Raises:
            ValueError: If `clip` is no CLIP or not a whole one, widths do not fit, or `num_text_prompts` is not the
                number of tokens of the template's words.
            TypeError: If an argument is neither a configuration field nor a loading option that applies.
        """
        fields, options = split_options(clip, config_fields)
        config = build_config(clip, tokenizer, fields, options)
        if isinstance(clip, nn.Module):
            model = cls._from_config(config, **{"dtype": torch.float32, **options}).to(clip.device)
            model.clip.load_state_dict(clip.state_dict())
        else:
            with quiet_loading():  # its report would list LDVC's own weights as missing, which they are meant to be
                model, info = cls.from_pretrained(
                    clip, config=config, output_loading_info=True, **{"dtype": torch.float32, **options}
                )
        model.newly_initialized = tuple(name for name in model.state_dict() if not name.startswith("clip."))
        if not isinstance(clip, nn.Module):
            check_clip_is_complete(clip, info["missing_keys"], model.newly_initialized)
        if model.text_prompts is not None and config.text_prompt_init == "handcrafted":
            model.initialize_text_prompts()
        return model.eval()

    @torch.no_grad()
    def initialize_text_prompts(self) -> None:
        """Set the text prompts to the frozen encoder's own states of the template, layer by layer."""
        text_model = self.clip.text_model
        input_ids = torch.tensor([self.config.prompt_token_ids], device=self.text_prompts.tokens.device)
        tokens = self.text_prompts.tokens
        tokens[0] = text_model.embeddings.token_embedding(input_ids)[0, 1:]
        hidden_states = text_model.embeddings(input_ids)
        mask = causal_mask(text_model.config, hidden_states)
        for layer, encoder_layer in enumerate(text_model.encoder.layers):
            if 0 < layer < len(tokens):
                tokens[layer] = hidden_states[0, 1:]
            hidden_states = encoder_layer(hidden_states, mask, is_causal=True)

    def freeze_clip(self) -> None:
        """Leave exactly LDVC's own parameters trainable: prompts, prompt norm, text adapter, decoder."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith("clip.") and parameter.is_floating_point())

    def save_adapter(self, folder: str | os.PathLike) -> None:
        """Write LDVC's own weights and the fingerprint of their CLIP to `folder` (ViT-B/16: about 40 MB)."""
        save_adapter(self, folder)

    def load_adapter_weights(self, folder: str | os.PathLike) -> None:
        """Load what `save_adapter` wrote.

        Raises:
            FileNotFoundError: If the folder holds no adapter.
            ValueError: If it belongs to another CLIP or another configuration; the model is then unchanged.
        """
        load_adapter(self, folder)
        self._cached_vocabulary = None

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's token embedding."""
        return self.clip.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text tower's token embedding."""
        self.clip.text_model.embeddings.token_embedding = value

    # ---- images

    def get_image_features(self, pixel_values: Tensor) -> LDVCImageFeatures:
        """Encode images; passing the result back as `image_features` gives the same logits as the full call.

        Args:
            pixel_values: (batch_size, num_channels, height, width), normalised; any size of at least one patch. Sides
                that are no multiple of the patch size are padded with zeros.

        Returns:
            [`LDVCImageFeatures`]: patch tokens after prompt norm, CLIP's post-LayerNorm and projection, unit length.

        Raises:
            ValueError: If the shape is wrong or a side is shorter than a patch.
            TypeError: If `pixel_values` is no tensor.
        """
        check_tensors(pixel_values=pixel_values)
        vision_model, vision = self.clip.vision_model, self.config.vision_config
        padded, grid_size = pad_to_patches(pixel_values, vision.patch_size, vision.num_channels)
        hidden_states = vision_model.embeddings(padded, interpolate_pos_encoding=True)
        hidden_states = vision_model.pre_layrnorm(hidden_states)
        # Norms and projection act on each token alone; what became of the prompts is not used.
        tokens = torch.cat(self._encode_tokens(hidden_states, grid_size), dim=1)
        embeds = unit_embeds(self.clip, tokens, self.prompt_norm)
        # (batch_size, num_patches, projection_dim) -> (batch_size, projection_dim, grid_height, grid_width)
        feature_map = embeds[:, 1:].transpose(1, 2).unflatten(-1, grid_size)
        size = tuple(pixel_values.shape[-2:])
        return LDVCImageFeatures(feature_map=feature_map, image_embeds=embeds[:, 0], image_size=size)

    def _encode_tokens(self, hidden_states: Tensor, grid_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Run CLIP's blocks, with the prompts in front of each.

        Args:
            hidden_states: (batch_size, 1 + num_patches, hidden_size), embedded.
            grid_size: (height, width) in patches.

        Returns:
            The class token, (batch_size, 1, hidden_size), and the patch tokens, (batch_size, num_patches,
            hidden_size), which `patch_features` names.
        """
        blocks, settings = self.clip.vision_model.encoder.layers, self.dense_settings
        needed, inputs = settings.needed_inputs(len(blocks)), {}
        for layer, block in enumerate(blocks):
            if self.vision_prompts is not None and layer < self.vision_prompts.depth:
                hidden_states = self.vision_prompts(hidden_states, layer)
            if layer in needed:
                inputs[layer] = hidden_states
            if layer < len(blocks) - 1 or self.takes_last_block:
                hidden_states = block(hidden_states, None)
        if self.takes_last_block:
            return hidden_states[:, :1], hidden_states[:, -math.prod(grid_size) :]
        return block_at(blocks[-1], hidden_states), dense_tokens(blocks, inputs, grid_size, settings)

    # ---- the whole

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_embeds: Tensor | None = None,
        class_mask: Tensor | None = None,
        image_features: LDVCImageFeatures | None = None,
        labels: Tensor | None = None,
        prompt_class_ids: Tensor | None = None,
        class_index: Tensor | None = None,
        seen_class_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> LDVCSemanticSegmenterOutput:
        """Segment images into classes that are given by name.

        Exactly one source of classes: `input_ids`, `class_embeds`, or, with neither, the default vocabulary. Exactly
        one source of the image: `pixel_values` or `image_features`.

        Args:
            pixel_values: (batch_size, num_channels, height, width), normalised.
            input_ids: (num_prompts, sequence_length) class prompts for all images, or
                (batch_size, num_classes, sequence_length) for a list per image.
            attention_mask: Shaped as `input_ids`.
            class_embeds: (num_classes, projection_dim) from `get_class_embeds`; with a batch axis, a list per image.
            class_mask: (batch_size, num_classes), 0 for padding of per-image class lists.
            image_features: From `get_image_features`.
            labels: (batch_size, height, width) class positions or `semantic_loss_ignore_index`; with them, `loss` too.
            prompt_class_ids: (num_prompts,), see `get_class_embeds`; per image, (batch_size, num_prompts).
            class_index: (batch_size, num_classes) rows of the encoded classes that make up each image's list.
            seen_class_mask: (num_classes,) or (batch_size, num_classes), 1 for classes that trained with masks, whose
                probability `seen_score_offset` lowers; known by name for the default vocabulary.
            kwargs: `output_hidden_states`, `output_attentions` (vision tower, and the decoder's cross-attention),
                `output_decoder_hidden_states`, `output_decoder_attentions`, `output_routes`, `return_dict`; no others.

        Returns:
            [`LDVCSemanticSegmenterOutput`]. Padded classes have probability 0.

        Raises:
            ValueError: If sources are missing or doubled, or shapes do not fit.
            TypeError: If an argument is unknown or no tensor.
        """
        self._check_options(kwargs)
        check_tensors(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        check_tensors(class_embeds=class_embeds, class_mask=class_mask, seen_class_mask=seen_class_mask)
        class_mask, class_index = one_row_each(class_mask), one_row_each(class_index)
        if (pixel_values is None) == (image_features is None):
            raise ValueError("give exactly one of `pixel_values` and `image_features`.")
        sources = (input_ids, attention_mask, prompt_class_ids, class_embeds, class_mask, class_index)
        embeds, seen_class_mask = self._resolve_classes(*sources, seen_class_mask)
        outputs = self._segment(pixel_values, embeds, class_mask, image_features, **kwargs)
        extras = {"class_score_offsets": self._score_offsets(outputs.logits, seen_class_mask)}
        if labels is not None:
            size = pixel_values.shape[-2:] if image_features is None else image_features.image_size
            self._check_labels(labels, (outputs.logits.shape[0], *size), class_mask)
            extras["loss"], terms = self._loss(outputs.logits, labels)
            extras |= {"focal_loss": terms["focal"], "dice_loss": terms["dice"]}
        return LDVCSemanticSegmenterOutput(**outputs, **extras)

    def _check_options(self, options: dict) -> None:
        """Check the names of further arguments of `forward`, so that none is ignored in silence.

        Raises:
            TypeError: If one is unknown; names the nearest.
        """
        for name in options:
            if name in self._forward_options:
                continue
            if name == "class_names":
                hint = "class names belong to the processor: model(**processor(images=..., class_names=...))"
            else:
                known = [*inspect.signature(type(self).forward).parameters, *self._forward_options]
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean `{near[0]}`?" if near else "see the docstring of `forward`"
            raise TypeError(f"`{name}` is no argument of this model; {hint}")

    def _score_offsets(self, logits: Tensor, seen_class_mask: Tensor | None) -> Tensor | None:
        """What `seen_score_offset` takes from probabilities, (batch_size, num_classes); `None` for nothing."""
        if not self.config.seen_score_offset or self.training:
            return None
        if seen_class_mask is not None:
            return (seen_class_mask.to(logits) * self.config.seen_score_offset).expand(logits.shape[:2])
        if not torch.compiler.is_compiling():
            logger.warning_once(
                f"`seen_score_offset` {self.config.seen_score_offset} is not applied: the call does not say which of "
                "its classes trained with masks. Pass `seen_class_mask`, or make the names the default vocabulary "
                "with `set_vocabulary` and list the trained ones in `config.seen_classes`."
            )
        return None

    def _check_labels(self, labels: Tensor, shape: tuple[int, int, int], class_mask: Tensor | None) -> None:
        """Check that label maps fit their images, and their ids the images' own class lists.

        Raises:
            ValueError: If not.
        """
        if tuple(labels.shape) != shape:
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)}, the images {shape}; a label map needs the size of its "
                "image: pass both to the processor together."
            )
        if class_mask is None or torch.compiler.is_compiling():
            return
        is_padding = ~class_mask.to(labels.device).bool()
        # ids of no class at all are left to the loss
        is_id = (labels != self.config.semantic_loss_ignore_index) & (labels >= 0) & (labels < is_padding.shape[1])
        ids = torch.where(is_id, labels, 0).long().flatten(1)
        is_stray = is_padding.gather(1, ids).view_as(labels) & is_id
        if is_stray.any():
            image = int(is_stray.nonzero()[0, 0])
            raise ValueError(
                f"`labels` of image {image} hold the id {labels[is_stray][0].item()}, but its own list has "
                f"{int((~is_padding[image]).sum())} classes; ids are positions in the image's list."
            )

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The segmentation loss with the configuration's weights."""
        return segmentation_loss(logits, labels, **loss_options(self.config))

    @capture_outputs(tie_last_hidden_states=False)
    def _segment(
        self,
        pixel_values: Tensor | None,
        class_embeds: Tensor,
        class_mask: Tensor | None,
        image_features: LDVCImageFeatures | None,
        **kwargs: Any,
    ) -> LDVCSemanticSegmenterOutput:
        """Vision tower, text adapter, decoder: the part of the call whose hidden states can be recorded.

        Raises:
            ValueError: If class lists or their mask do not fit the images.
        """
        features = self.get_image_features(pixel_values) if image_features is None else image_features
        grid_size = tuple(features.feature_map.shape[-2:])
        # (batch_size, projection_dim, grid_height, grid_width) -> (batch_size, num_patches, projection_dim)
        patch_embeds = features.feature_map.flatten(2).transpose(1, 2)
        class_embeds = class_embeds.to(patch_embeds.device, patch_embeds.dtype)
        if class_embeds.shape[0] not in (1, patch_embeds.shape[0]):
            raise ValueError(
                f"there are class lists for {len(class_embeds)} images, but {len(patch_embeds)} images; give one list "
                "for all or one per image."
            )
        class_embeds = self.text_adapter(features.image_embeds, class_embeds)
        if class_mask is not None:
            class_mask = class_mask.to(patch_embeds.device).bool()
            if class_mask.shape != class_embeds.shape[:2]:
                raise ValueError(
                    f"`class_mask` has shape {tuple(class_mask.shape)}; it must be (batch_size, num_classes), "
                    f"{tuple(class_embeds.shape[:2])}."
                )
        logits = self.decoder(patch_embeds, class_embeds, class_mask, grid_size).unflatten(-1, grid_size)
        logits = fit_to_image(logits, features.image_size, self.config.vision_config.patch_size)
        if class_mask is not None:
            logits = logits.masked_fill(~class_mask[:, :, None, None], MASKED_LOGIT)
        return LDVCSemanticSegmenterOutput(logits=logits, class_embeds=class_embeds)


LDVCForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
if not __name__.startswith("transformers_modules."):  # remote code is found through `auto_map`
    for _auto_class in (AutoModel, AutoModelForSemanticSegmentation, AutoModelForImageSegmentation):
        _auto_class.register(LDVCConfig, LDVCForSemanticSegmentation, exist_ok=True)

__all__ = [
    "LDVCForSemanticSegmentation",
    "LDVCImageFeatures",
    "LDVCPreTrainedModel",
    "LDVCRouteAttention",
    "LDVCSemanticSegmenterOutput",
]
