"""Exported programs, which run without LDVC's modelling code, and how they answer as every segmenter does.

ONNX Runtime alone would cut pictures of other sizes than the program's multiple without a word: the folder says the
multiple in `ldvc_export.json`, and `ExportedLDVC`, which runs the program, checks it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ldvc.model.vocabulary_ldvc import VOCABULARY_CONFIG, DefaultVocabulary, LDVCVocabulary


__all__ = ["EXPORT_FILE", "ExportedLDVC", "ExportedSegmenter", "ExportedSizes"]

EXPORT_FILE = "ldvc_export.json"


@dataclass(frozen=True)
class ExportedSizes:
    """What pictures and embeddings a program takes.

    Attributes:
        size_multiple: Height and width in pixels are multiples of it.
        smallest_side: The smallest height and width in pixels.
        num_channels: Channels of a picture.
        projection_dim: Width of a class embedding.
        format: `"onnx"` or `"torch"`.
        file: The program's file in the folder.
    """

    size_multiple: int
    smallest_side: int
    num_channels: int
    projection_dim: int
    format: str
    file: str

    def check(self, pixel_values: Any, class_embeds: Any) -> None:
        """Check the inputs of a call.

        Raises:
            ValueError: If a shape does not fit; names the shape and the nearest size that does.
        """
        pixels, embeds = tuple(pixel_values.shape), tuple(class_embeds.shape)
        if len(pixels) != 4 or pixels[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` has shape {pixels}; it must be (images, {self.num_channels}, height, width)."
            )
        if len(embeds) != 2 or embeds[1] != self.projection_dim or not embeds[0]:
            raise ValueError(f"`class_embeds` has shape {embeds}; it must be (classes, {self.projection_dim}).")
        step = self.size_multiple
        if any(side % step or side < self.smallest_side for side in pixels[2:]):
            near = [max(self.smallest_side, round(side / step) * step) for side in pixels[2:]]
            raise ValueError(
                f"`pixel_values` is {pixels[2]} x {pixels[3]} pixels; this program takes multiples of {step} from "
                f"{self.smallest_side} on: resize to {near[0]} x {near[1]}, or use the checkpoint itself, which takes "
                "every size."
            )


class ExportedLDVC:
    """Runs an exported program and checks what it is given.

    Example:
    ```python
    >>> program = ExportedLDVC("exported")
    >>> embeds = LDVCVocabulary.load("exported").class_embeds
    >>> logits = program(pixel_values, embeds)  # (batch_size, num_classes, grid_height, grid_width)
    ```

    Args:
        folder: What `export_onnx` or `export_torch` wrote.

    Raises:
        FileNotFoundError: If the folder holds no export.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not (folder / EXPORT_FILE).is_file():
            raise FileNotFoundError(f"{folder} has no {EXPORT_FILE}; write one with ldvc export.")
        self.sizes = ExportedSizes(**json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8")))
        path = folder / self.sizes.file
        if self.sizes.format == "onnx":
            import onnxruntime

            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        else:
            # Its own guards are about memory layout and refuse a batch of one; `sizes` is what holds, see the tests.
            self._program = torch.export.load(path).module(check_guards=False)

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor, class_embeds: Tensor) -> Tensor:
        """Logits of every class.

        Args:
            pixel_values: (batch_size, num_channels, height, width), sides multiples of `sizes.size_multiple`.
            class_embeds: (num_classes, projection_dim).

        Returns:
            (batch_size, num_classes, grid_height, grid_width).
        """
        self.sizes.check(pixel_values, class_embeds)
        inputs = {"pixel_values": pixel_values, "class_embeds": class_embeds}
        if self.sizes.format == "torch":
            return self._program(**inputs)
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in inputs.items()}
        return torch.from_numpy(self._session.run(["logits"], arrays)[0])


@dataclass(frozen=True)
class ExportedConfig:
    """What is asked of a model's configuration, for a program.

    Attributes:
        projection_dim: Width of a class embedding.
        default_class_names: The classes whose embeddings lie beside the program.
        other_label: Name of what is no class.
    """

    projection_dim: int
    default_class_names: list[str]
    other_label: str | None = None
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
    """

    logits: Tensor | None = None


class ExportedSegmenter(nn.Module):
    """An exported program with the calls of a [`Segmenter`]; its text tower stayed behind.

    Args:
        folder: What `ldvc export` wrote.

    Raises:
        FileNotFoundError: If the folder holds no export.
    """

    input_modalities = ("image", "text")
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: str | Path):
        super().__init__()
        self.program = ExportedLDVC(folder)
        has_names = Path(folder, VOCABULARY_CONFIG).is_file()
        vocabulary = LDVCVocabulary.load(folder) if has_names else None
        names, other = (vocabulary.class_names, vocabulary.other_label) if vocabulary else ([], None)
        self.config = ExportedConfig(self.program.sizes.projection_dim, names, other)
        embeds = vocabulary.class_embeds if vocabulary else torch.empty(0, self.config.projection_dim)
        self.baked_vocabulary: Callable[[], Tensor] = lambda: embeds
        self.eval()

    def default_vocabulary(self) -> DefaultVocabulary:
        """The vocabulary beside the program.

        Raises:
            ValueError: If there is none.
        """
        if not self.config.default_class_names:
            raise ValueError(
                "the call names no classes and there is no vocabulary beside the program; pass `class_names` with "
                "`class_embeds` from the checkpoint that it was exported from."
            )
        names, other = tuple(self.config.default_class_names), self.config.other_label
        return DefaultVocabulary(names, (), None, other, class_embeds=self.baked_vocabulary())

    def vocabulary_embeds(self, vocabulary: DefaultVocabulary) -> Tensor:
        """Embeddings of its vocabulary, (num_classes, projection_dim)."""
        return vocabulary.class_embeds

    def get_class_embeds(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse: there is no text tower.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "an exported program has no text tower; give `class_embeds` from the checkpoint it was exported from, or "
            "use its own names."
        )

    def get_image_features(self, pixel_values: Tensor) -> Pixels:
        """Keep the pixels; a program cannot be stopped halfway."""
        return Pixels(pixel_values)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        class_embeds: Tensor | None = None,
        image_features: Pixels | None = None,
    ) -> ProgramOutput:
        """Run the program.

        Args:
            pixel_values: (batch_size, channels, height, width), normalised; this or `image_features`.
            class_embeds: (num_classes, projection_dim); `None` is the vocabulary beside the program.
            image_features: From `get_image_features`.

        Raises:
            ValueError: If sizes do not fit, or there are no classes.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("give exactly one of `pixel_values` and `image_features`.")
        pixels = image_features.pixel_values if pixel_values is None else pixel_values
        embeds = self.baked_vocabulary() if class_embeds is None else class_embeds
        return ProgramOutput(logits=self.program(pixels.float(), embeds.float()))
