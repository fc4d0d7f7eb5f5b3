"""Exported programs, which run without LDVC's modelling code, and how they answer as every segmenter does."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ldvc.model.vocabulary_ldvc import VOCABULARY_CONFIG, DefaultVocabulary, LDVCVocabulary, LDVCVocabularyMixin
from ldvc.segmenters.exported_folder import ExportedFolder, read_exported_folder


__all__ = ["ExportedLDVC", "ExportedSegmenter"]

BAKED_FILE = "class_embeds.npy"
PROMPTS_PER_PASS = 256  # of the text program, so that memory does not grow with the number of names


class ExportedLDVC:
    """Runs exported programs and checks what they are given.

    Example:
    ```python
    >>> program = ExportedLDVC("exported")
    >>> embeds = LDVCVocabulary.load("exported").class_embeds
    >>> logits = program(pixel_values, embeds)  # (batch_size, num_classes, grid_height, grid_width)
    ```

    Args:
        folder: What `ldvc export` wrote.

    Attributes:
        folder: What it says of itself.

    Raises:
        FileNotFoundError: If the folder holds no export.
        ValueError: If it was exported in another format.
    """

    def __init__(self, folder: str | Path):
        self.folder: ExportedFolder = read_exported_folder(folder)
        self._place, self._text = Path(folder), None
        if self.folder.format == "onnx":
            self._session = self._open(self.folder.onnxruntime_program or self.folder.picture_program)
        else:
            # Its own guards are about memory layout and refuse a batch of one; `folder` is what holds, see the tests.
            program = torch.export.load(self._place / self.folder.picture_program)
            self._program = program.module(check_guards=False)

    def _open(self, file: str) -> Any:
        """One of the folder's ONNX programs."""
        import onnxruntime

        return onnxruntime.InferenceSession(str(self._place / file), providers=["CPUExecutionProvider"])

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor, class_embeds: Tensor) -> Tensor:
        """Logits of every class.

        Args:
            pixel_values: (batch_size, num_channels, height, width), sides multiples of `folder.size_multiple`.
            class_embeds: (num_classes, projection_dim).

        Returns:
            (batch_size, num_classes, grid_height, grid_width).
        """
        self.folder.check(pixel_values.shape, class_embeds.shape)
        images = 1 if self.folder.one_picture_at_a_time else len(pixel_values)
        classes = self.folder.classes_at_a_time or len(class_embeds)
        rows = [
            torch.cat([self._run(pixels, embeds) for embeds in class_embeds.split(classes)], dim=1)
            for pixels in pixel_values.split(images)
        ]
        return torch.cat(rows)

    def _run(self, pixel_values: Tensor, class_embeds: Tensor) -> Tensor:
        """One call of the picture program."""
        if self.folder.format == "torch":
            return self._program(pixel_values=pixel_values, class_embeds=class_embeds)
        arrays = {"pixel_values": pixel_values.numpy(), "class_embeds": class_embeds.numpy()}
        return torch.from_numpy(self._session.run(None, arrays)[0])

    @torch.no_grad()
    def encode_prompts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings of prompts, (num_prompts, projection_dim).

        Args:
            input_ids: (num_prompts, sequence_length) token ids, padded on the right.
            attention_mask: Shaped as `input_ids`.

        Raises:
            ValueError: If there is no text program, or the prompts are none of its.
        """
        if self.folder.text_program is None:
            raise ValueError(
                "this exported program has no text tower; give `class_embeds` from the checkpoint it was exported "
                "from, or use its own names."
            )
        if input_ids.dim() != 2 or not 0 < input_ids.shape[1] <= self.folder.max_length:
            raise ValueError(
                f"`input_ids` has shape {tuple(input_ids.shape)}; it must be (num_prompts, sequence_length), with up "
                f"to {self.folder.max_length} tokens."
            )
        words = self.folder.prompt_token_ids or []
        if input_ids.shape[1] < len(words) or (input_ids[:, : len(words)] != torch.tensor(words)).any():
            raise ValueError(
                "`input_ids` do not begin with the words of the template whose places the text prompts take; pass "
                f"class names to the processor with the template {self.folder.prompt_templates[0]!r}."
            )
        self._text = self._text or self._open(self.folder.text_program)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        parts = zip(input_ids.split(PROMPTS_PER_PASS), mask.split(PROMPTS_PER_PASS), strict=True)
        arrays = ({"input_ids": ids.numpy(), "attention_mask": some.numpy()} for ids, some in parts)
        return torch.from_numpy(np.concatenate([self._text.run(None, inputs)[0] for inputs in arrays]))


@dataclass(frozen=True)
class ExportedConfig:
    """What is asked of a model's configuration, for a program.

    Attributes:
        projection_dim: Width of a class embedding.
        default_class_names: The classes whose embeddings lie beside the program.
        other_label: Name of what is no class.
        seen_classes: Names trained with masks, `None` where it is not known.
        seen_score_offset: What is taken from their probabilities.
    """

    projection_dim: int
    default_class_names: list[str]
    other_label: str | None = None
    seen_classes: list[str] | None = None
    seen_score_offset: float = 0.0
    _commit_hash: ClassVar[None] = None  # which the library's pipelines read until 5.12

    def to_json_string(self, use_diff: bool = False) -> str:
        """As of a model's configuration."""
        return json.dumps(vars(self))


@dataclass
class Pixels(ModelOutput):
    """A program is one piece: what is kept of pictures are their pixels, (batch_size, channels, height, width)."""

    pixel_values: Tensor | None = None

    def select(self, images: int | slice | list[int] | Tensor) -> "Pixels":
        """Some pictures of the batch; one stays a batch, of one."""
        return Pixels(self.pixel_values[[images] if isinstance(images, int) else images])


@dataclass
class ProgramOutput(ModelOutput):
    """Output of [`ExportedSegmenter`].

    Attributes:
        logits: (batch_size, num_classes, grid_height, grid_width).
        class_score_offsets: (batch_size, num_classes), to be subtracted from probabilities, or `None`.
    """

    logits: Tensor | None = None
    class_score_offsets: Tensor | None = None


class ExportedSegmenter(nn.Module):
    """Exported programs with the calls of a [`Segmenter`].

    Args:
        folder: What `ldvc export` wrote.

    Raises:
        FileNotFoundError: If the folder holds no export.
        ValueError: If it was exported in another format.
    """

    input_modalities = ("image", "text")
    device, dtype = torch.device("cpu"), torch.float32
    seen_class_mask = LDVCVocabularyMixin.seen_class_mask

    def __init__(self, folder: str | Path):
        super().__init__()
        self.program = ExportedLDVC(folder)
        said = self.program.folder
        self.config = ExportedConfig(
            said.projection_dim,
            said.default_class_names,
            said.other_label,
            said.seen_classes,
            said.seen_score_offset,
        )
        self._embeds = read_own_embeds(Path(folder)) if said.default_class_names else None
        # What says of any model that it knows its own names alone.
        self.baked_vocabulary: Callable[[], Tensor] | None = None
        if said.text_program is None:
            embeds = torch.empty(0, said.projection_dim) if self._embeds is None else self._embeds
            self.baked_vocabulary = lambda: embeds
        self.eval()

    def default_vocabulary(self) -> DefaultVocabulary:
        """The vocabulary beside the program.

        Raises:
            ValueError: If there is none.
        """
        if self._embeds is None:
            raise ValueError(
                "the call names no classes and there is no vocabulary beside the program; pass `class_names`, or "
                "`class_embeds` from the checkpoint that it was exported from."
            )
        names, other = tuple(self.config.default_class_names), self.config.other_label
        return DefaultVocabulary(names, (), None, other, class_embeds=self._embeds)

    def vocabulary_embeds(self, vocabulary: DefaultVocabulary) -> Tensor:
        """Embeddings of its vocabulary, (num_classes, projection_dim)."""
        return vocabulary.class_embeds

    def get_class_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, prompt_class_ids: Tensor | None = None
    ) -> Tensor:
        """Encode prompts by the text program: (num_classes, projection_dim), as the model that was exported.

        Args:
            input_ids: (num_prompts, sequence_length) token ids, padded on the right.
            attention_mask: Shaped as `input_ids`.
            prompt_class_ids: (num_prompts,) class of each prompt; those of one class are averaged.

        Raises:
            ValueError: See `encode_prompts`.
        """
        embeds = self.program.encode_prompts(input_ids, attention_mask)
        if prompt_class_ids is None:
            return embeds
        sums = embeds.new_zeros(int(prompt_class_ids.max()) + 1, embeds.shape[-1])
        sums.index_add_(0, prompt_class_ids, embeds)
        is_unit = self.program.folder.unit_embeds
        return F.normalize(sums, dim=-1) if is_unit else sums / prompt_class_ids.bincount()[:, None]

    def get_image_features(self, pixel_values: Tensor) -> Pixels:
        """Keep the pixels; a program cannot be stopped halfway."""
        return Pixels(pixel_values)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        class_embeds: Tensor | None = None,
        image_features: Pixels | None = None,
        seen_class_mask: Tensor | None = None,
    ) -> ProgramOutput:
        """Run the program.

        Args:
            pixel_values: (batch_size, channels, height, width), normalised; this or `image_features`.
            class_embeds: (num_classes, projection_dim); `None` is the vocabulary beside the program.
            image_features: From `get_image_features`.
            seen_class_mask: (num_classes,), 1 for classes that trained with masks; known by name for the vocabulary
                beside the program.

        Raises:
            ValueError: If sizes do not fit, or there are no classes.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("give exactly one of `pixel_values` and `image_features`.")
        pixels = image_features.pixel_values if pixel_values is None else pixel_values
        if class_embeds is None:
            vocabulary = self.default_vocabulary()
            class_embeds = vocabulary.class_embeds
            if seen_class_mask is None:
                seen_class_mask = self.seen_class_mask(vocabulary.class_names)
        logits, offsets = self.program(pixels.float(), class_embeds.float()), None
        if seen_class_mask is not None and self.config.seen_score_offset:
            offsets = (seen_class_mask.to(logits) * self.config.seen_score_offset).expand(logits.shape[:2])
        return ProgramOutput(logits=logits, class_score_offsets=offsets)


def read_own_embeds(folder: Path) -> Tensor:
    """The (num_classes, projection_dim) embeddings beside a program."""
    if (folder / VOCABULARY_CONFIG).is_file():
        return LDVCVocabulary.load(folder).class_embeds
    return torch.from_numpy(np.load(folder / BAKED_FILE))
