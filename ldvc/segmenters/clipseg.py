"""CLIPSeg (arXiv 2112.10003) for lists of labels: the library's weights and logits, at a fraction of its cost.

CLIPSeg's vision tower does not see the text: only its small decoder does. The library runs both once per label, on
copies of the picture. Here the tower runs once per picture, up to the last layer that the decoder reads, and what the
decoder takes of it is reduced to the decoder's width once; the decoder then runs for a block of labels at a time.

Differences from the library, none of which changes its logits: pictures need not be square, and where a side is no
multiple of the patch size, the pixels that the library leaves out get the logits of the pixels next to them, so that
logits cover the whole picture.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.clipseg.configuration_clipseg import CLIPSegConfig
from transformers.models.clipseg.modeling_clipseg import CLIPSegForImageSegmentation
from transformers.utils import ModelOutput

from ldvc.model.vocabulary_ldvc import LDVCVocabularyMixin
from ldvc.model.weights_ldvc import quiet_loading


__all__ = ["CLIPSegImageFeatures", "CLIPSegOutput", "CLIPSegSegmenter"]

PROMPTS_PER_PASS = 256  # of the text tower, so that memory does not grow with the number of names
LABELS_PER_PASS = 8  # of the decoder
TOKENS_PER_PASS = 256  # of its feed-forward network: 2 MB between its two layers, which processors keep near


@dataclass
class CLIPSegImageFeatures(ModelOutput):
    """What the decoder needs of pictures: "encode once, ask many".

    Attributes:
        activations: (batch_size, num_decoder_layers, 1 + num_patches, reduce_dim), the tower's states that the decoder
            reads, reduced to its width, in the order in which it reads them.
        grid_size: (height, width) in tokens.
        image_size: (height, width) in pixels.
    """

    activations: Tensor | None = None
    grid_size: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None

    def to(self, *args: Any, **kwargs: Any) -> "CLIPSegImageFeatures":
        """The same features on another device or in another dtype, as `Tensor.to`."""
        return CLIPSegImageFeatures(self.activations.to(*args, **kwargs), self.grid_size, self.image_size)

    def select(self, images: int | slice | list[int] | Tensor) -> "CLIPSegImageFeatures":
        """The features of some images of the batch; one image stays a batch, of one."""
        images = [images] if isinstance(images, int) else images
        return CLIPSegImageFeatures(self.activations[images], self.grid_size, self.image_size)


@dataclass
class CLIPSegOutput(ModelOutput):
    """Output of [`CLIPSegSegmenter`].

    Attributes:
        logits: (batch_size, num_classes, height, width), before the sigmoid, covering the whole picture; in published
            checkpoints a logit per pixel. Channel i is class i of the call.
    """

    logits: Tensor | None = None


class CLIPSegSegmenter(nn.Module):
    """A CLIPSeg with the calls of a [`Segmenter`].

    Example:
    ```python
    >>> model = CLIPSegSegmenter.from_pretrained("CIDAS/clipseg-rd64-refined")
    >>> features = model.get_image_features(pixel_values)
    >>> logits = model(image_features=features, class_embeds=model.get_class_embeds(input_ids)).logits
    ```

    Args:
        clipseg: The library's model; its weights are used, not copied.
    """

    input_modalities = ("image", "text")
    text_prompts = None  # of its text state, which is read as LDVC's
    _vocabulary_state = LDVCVocabularyMixin._vocabulary_state

    def __init__(self, clipseg: CLIPSegForImageSegmentation):
        super().__init__()
        self.clipseg = clipseg
        self.train(clipseg.training)

    @classmethod
    def from_pretrained(cls, clipseg: str | os.PathLike, **options: Any) -> "CLIPSegSegmenter":
        """Load a CLIPSeg from a folder or Hub id, in eval mode.

        Args:
            clipseg: Folder or Hub id.
            options: Of the library's `from_pretrained`, such as `revision` and `dtype`.

        Raises:
            ValueError: If weights are missing, which the library would fill at random.
        """
        with quiet_loading():  # its report of missing weights is many lines; ours is one
            model, info = CLIPSegForImageSegmentation.from_pretrained(clipseg, output_loading_info=True, **options)
        if info["missing_keys"]:
            raise ValueError(f"it lacks weights, first {min(info['missing_keys'])}; fetch the checkpoint again.")
        return cls(model)

    @property
    def config(self) -> CLIPSegConfig:
        """Of the library's model."""
        return self.clipseg.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clipseg.device

    @property
    def clip(self) -> nn.Module:
        """Both towers."""
        return self.clipseg.clip

    @property
    def _input_device(self) -> torch.device:
        """Where class inputs are made."""
        return self.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.clipseg.dtype

    @torch.no_grad()
    def get_class_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, prompt_class_ids: Tensor | None = None
    ) -> Tensor:
        """Encode prompts; independent of any picture, so the result can be kept.

        Args:
            input_ids: (num_prompts, sequence_length) token ids, padded on the right.
            attention_mask: Shaped as `input_ids`; the tower is causal, so that right padding has no effect.
            prompt_class_ids: (num_prompts,) class of each prompt; those of one class are averaged as they are, which
                is how CLIPSeg was trained to mix them. `None` is one prompt per class.

        Returns:
            (num_classes, projection_dim), the library's conditional embeddings: no unit vectors.
        """
        masks = [None] * len(input_ids) if attention_mask is None else attention_mask.split(PROMPTS_PER_PASS)
        embeds = torch.cat(
            [
                self.clipseg.clip.get_text_features(ids, attention_mask=mask).pooler_output
                for ids, mask in zip(input_ids.split(PROMPTS_PER_PASS), masks, strict=False)
            ]
        )
        if prompt_class_ids is None:
            return embeds
        prompt_class_ids = prompt_class_ids.to(embeds.device)
        sums = embeds.new_zeros(int(prompt_class_ids.max()) + 1, embeds.shape[-1])
        return sums.index_add(0, prompt_class_ids, embeds) / prompt_class_ids.bincount()[:, None].to(embeds)

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor) -> CLIPSegImageFeatures:
        """Run the vision tower, once for any number of labels.

        Args:
            pixel_values: (batch_size, num_channels, height, width), normalised; any size of at least one patch.

        Raises:
            ValueError: If the shape is wrong or a side is shorter than a patch.
        """
        config, decoder = self.config.vision_config, self.clipseg.decoder
        if pixel_values.dim() != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; it must be (batch_size, "
                f"{config.num_channels}, height, width), as the processor returns it."
            )
        height, width = pixel_values.shape[-2:]
        if min(height, width) < config.patch_size:
            raise ValueError(
                f"`pixel_values` is {height} x {width} pixels, less than one patch of this CLIPSeg "
                f"({config.patch_size}); resize the image."
            )
        tower = self.clipseg.clip.vision_model
        hidden_states = tower.pre_layrnorm(tower.embeddings(pixel_values, interpolate_pos_encoding=True))
        read = {}
        for layer, encoder_layer in enumerate(tower.encoder.layers[: max(self.config.extract_layers) + 1]):
            hidden_states = encoder_layer(hidden_states, attention_mask=None)
            if layer in self.config.extract_layers:
                read[layer] = hidden_states
        deepest_first = [read[layer] for layer in self.config.extract_layers][::-1]
        reduced = [reduce(states) for reduce, states in zip(decoder.reduces, deepest_first, strict=True)]
        grid_size = (height // config.patch_size, width // config.patch_size)
        return CLIPSegImageFeatures(torch.stack(reduced, dim=1), grid_size, (height, width))

    @torch.no_grad()
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_embeds: Tensor | None = None,
        image_features: CLIPSegImageFeatures | None = None,
        prompt_class_ids: Tensor | None = None,
    ) -> CLIPSegOutput:
        """Give the logits of all labels for each picture.

        Args:
            pixel_values: (batch_size, num_channels, height, width), normalised; this or `image_features`.
            input_ids: (num_prompts, sequence_length) prompts; these or `class_embeds`.
            attention_mask: Shaped as `input_ids`.
            class_embeds: (num_classes, projection_dim) from `get_class_embeds`.
            image_features: From `get_image_features`.
            prompt_class_ids: (num_prompts,), see `get_class_embeds`.

        Raises:
            ValueError: If sources are missing or doubled, or shapes do not fit.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("give exactly one of `pixel_values` and `image_features`.")
        if (input_ids is None) == (class_embeds is None):
            raise ValueError("give exactly one of `input_ids` and `class_embeds`: CLIPSeg has no classes of its own.")
        if class_embeds is None:
            class_embeds = self.get_class_embeds(input_ids, attention_mask, prompt_class_ids)
        if class_embeds.dim() != 2 or class_embeds.shape[1] != self.config.projection_dim or not len(class_embeds):
            raise ValueError(
                f"class embeddings have shape {tuple(class_embeds.shape)}; they must be (num_classes, "
                f"{self.config.projection_dim}), from this model's `get_class_embeds`, one list for all pictures."
            )
        features = self.get_image_features(pixel_values) if image_features is None else image_features
        activations = features.activations
        size = (self._logits_side(side) for side in features.image_size)
        logits = activations.new_empty(len(activations), len(class_embeds), *size)
        for block, embeds in zip(
            logits.split(LABELS_PER_PASS, dim=1), class_embeds.to(activations).split(LABELS_PER_PASS), strict=True
        ):
            for own, picture in zip(block, activations, strict=True):
                decoded = self.decode(picture, embeds, features.grid_size)
                bottom, right = (side - inner for side, inner in zip(own.shape[-2:], decoded.shape[-2:], strict=True))
                own.copy_(F.pad(decoded[None], (0, right, 0, bottom), mode="replicate")[0])
        return CLIPSegOutput(logits=logits)

    @staticmethod
    def _feed_forward(mlp: nn.Module, states: Tensor) -> Tensor:
        """The decoder's feed-forward network, in pieces: 32 times as wide as its input, it is most of the work.

        Args:
            mlp: The library's.
            states: (num_classes, tokens, reduce_dim), as the result.
        """
        if torch.compiler.is_compiling():  # a program has no loop over pieces whose number is open
            return mlp.fc2(mlp.fc1(states).relu())
        rows = states.flatten(0, 1).split(TOKENS_PER_PASS)
        return torch.cat([mlp.fc2(mlp.fc1(some).relu_()) for some in rows]).view_as(states)

    def _logits_side(self, pixels: int) -> int:
        """Height or width of the logits that cover so many pixels: with patches of 16, so many."""
        layers = (
            m for m in self.clipseg.decoder.transposed_convolution.modules() if isinstance(m, nn.ConvTranspose2d)
        )
        return -(-pixels * math.prod(layer.stride[0] for layer in layers) // self.config.vision_config.patch_size)

    def decode(self, activations: Tensor, class_embeds: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """The library's decoder on one picture and a block of labels.

        Args:
            activations: (num_decoder_layers, 1 + num_patches, reduce_dim).
            class_embeds: (num_classes, projection_dim).
            grid_size: (height, width) in tokens.

        Returns:
            (num_classes, height, width) logits of whole patches.
        """
        decoder = self.clipseg.decoder
        scale, shift = decoder.film_mul(class_embeds)[:, None], decoder.film_add(class_embeds)[:, None]
        states = activations.new_zeros(1)
        for index, (activation, layer) in enumerate(zip(activations, decoder.layers, strict=True)):
            states = activation[None] + states  # (1 until the text comes in, then num_classes, tokens, reduce_dim)
            if index == decoder.conditional_layer:
                states = scale * states + shift
            states = layer.layer_norm1(states + layer.self_attn(states, attention_mask=None)[0])
            states = layer.layer_norm2(states + self._feed_forward(layer.mlp, states))
        # (num_classes, tokens, reduce_dim) -> (num_classes, reduce_dim, grid_height, grid_width), class token left out
        tokens = states[:, 1:].transpose(1, 2).unflatten(-1, grid_size)
        return self._upsample(tokens)

    def _upsample(self, tokens: Tensor) -> Tensor:
        """The decoder's transposed convolutions, whose kernels do not overlap: a matrix product per token each.

        Pixels are put in their places once, at the end, where there is one number for each.

        Args:
            tokens: (num_classes, reduce_dim, grid_height, grid_width).

        Returns:
            (num_classes, height, width).
        """
        layers, sides = self.clipseg.decoder.transposed_convolution, []
        if isinstance(layers, nn.Sequential):
            tokens, layers = layers[1](layers[0](tokens)), [layers[2], layers[4]]
        else:
            layers = [layers]
        # (num_classes, reduce_dim, grid_height, grid_width) -> (num_classes, grid_height, grid_width, 1, reduce_dim)
        parts = tokens.permute(0, 2, 3, 1).unsqueeze(-2)
        for layer in layers:
            parts = parts.relu_() if sides else parts
            sides.append(layer.kernel_size[0])
            # (in, out, side, side) -> (side * side * out, in)
            weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
            parts = F.linear(parts, weight, layer.bias.repeat(sides[-1] ** 2))
            parts = parts.unflatten(-1, (sides[-1] ** 2, -1)).flatten(-3, -2)
        # rows and columns of each step, one by one -> rows of all, columns of all
        pixels = parts.unflatten(3, [side for side in sides for _ in range(2)]).squeeze(-1)
        rows, columns = range(3, pixels.dim(), 2), range(4, pixels.dim(), 2)
        pixels = pixels.permute(0, 1, *rows, 2, *columns)
        return pixels.reshape(tokens.shape[0], tokens.shape[2] * math.prod(sides), -1)
