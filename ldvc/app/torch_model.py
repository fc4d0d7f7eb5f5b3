"""A model in PyTorch, as the commands ask it: what `RuntimeSegmenter` answers without PyTorch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldvc.loading import default_names, is_exported, load, plain_config, unseen_names
from ldvc.model.image_processing_ldvc import PixelClasses
from ldvc.model.inference_ldvc import (
    InferenceSettings,
    PreparedPicture,
    Segmentation,
    open_windows,
    prepare_picture,
    resized_blocks,
    resolve_queries,
    segment_batch,
)
from ldvc.model.segmenter_ldvc import Rivals, ask, seen_queries
from ldvc.model.vocabulary_ldvc import LDVCVocabulary
from ldvc.model.weights_ldvc import weights_fingerprint
from ldvc.runtime.programs import Precision, has_bfloat16


__all__ = ["TorchModel"]


class TorchModel:
    """A loaded model and its processor.

    Args:
        model: Folder or Hub id.
        device: See `pick_device`.
        precision: Of the pictures' way; names are encoded in float32.
        vocabulary: Folder of a saved `LDVCVocabulary`, in place of the model's own.
        load_settings: Of `ldvc.load`.
        seen_score_offset: See [`LDVCConfig`]; `None` is the checkpoint's.

    Attributes:
        runtime: `"torch"`.
        weights: SHA-256 of what decides results: a model that was trained anew has the same name.

    Raises:
        ValueError: If the checkpoint, the vocabulary, the offset or the precision cannot be used.
    """

    runtime = "torch"

    def __init__(
        self,
        model: str,
        device: str = "auto",
        precision: Precision = Precision.FLOAT32,
        vocabulary: Path | None = None,
        load_settings: Mapping[str, Any] | None = None,
        seen_score_offset: float | None = None,
    ):
        is_program, fields = is_exported(model), dict(load_settings or {})
        if seen_score_offset is not None and not is_program:
            fields["seen_score_offset"] = seen_score_offset
        self.model, self.processor = load(model, device, **fields)
        if seen_score_offset and not getattr(self.model.config, "seen_classes", None):
            raise ValueError(
                f"--seen-score-offset {seen_score_offset}: {model!r} does not say which classes it trained on "
                "(`seen_classes` of its config.json); name them there, or leave the option out."
            )
        if seen_score_offset is not None and is_program:  # it has no settings, and takes the offset beside the program
            self.model.config = replace(self.model.config, seen_score_offset=seen_score_offset)
        saved = None if vocabulary is None else LDVCVocabulary.load(vocabulary)
        if saved is not None and not hasattr(self.model, "set_vocabulary"):
            raise ValueError(
                f"--vocabulary holds embeddings for LDVC, which {model!r} is not; name classes by --labels."
            )
        if saved is not None:
            self.model.set_vocabulary(saved)
        classes_held = {} if saved is None else {"vocabulary": saved.class_embeds}
        self.weights = weights_fingerprint({**self.model.state_dict(), **classes_held})
        self.precision = precision
        check_precision(self.model, precision)

    @property
    def is_on_cpu(self) -> bool:
        """Whether the model takes the processor's time."""
        return self.model.device.type == "cpu"

    @property
    def has_text_tower(self) -> bool:
        """Whether names can be encoded."""
        return getattr(self.model, "baked_vocabulary", None) is None

    @torch.no_grad()
    def logits(self, pixels: Tensor, class_embeds: Tensor) -> np.ndarray:
        """Logits of one picture of `prepare`: (grid_height, grid_width, num_classes) float32."""
        pixel_values = pixels[None].to(self.model.device)
        return ask(self.model, class_embeds, pixel_values=pixel_values)[0][0].float().permute(1, 2, 0).cpu().numpy()

    def own_names(self) -> list[str]:
        """Class names of the model's own vocabulary, see `default_names`."""
        return default_names(self.model)

    def unseen_names(self, classes: Sequence[str] | Mapping[str, list[str]]) -> list[str]:
        """Classes that trained without masks, where the checkpoint knows which did."""
        return unseen_names(self.model, classes)

    def resolve(self, classes: dict[str, list[str]] | None, rivals: Rivals) -> tuple[list[str], Tensor, str]:
        """Names, (num_channels, projection_dim) embeddings and the name of "other"; then the precision is taken up."""
        names, embeds, other = resolve_queries(self.model, self.processor, classes, None, rivals, sys.stderr.isatty())
        if self.precision is Precision.BF16:
            self.model = self.model.to(torch.bfloat16)
        return names, embeds.to(self.model.dtype), other

    def prepare(self, image: Image.Image, settings: InferenceSettings | None) -> PreparedPicture:
        """Resize an open picture; needs no model, so that threads may do it ahead."""
        prepared = prepare_picture(self.processor, image, settings)
        if settings is None and self.model.device.type == "cuda":  # copied to the GPU while it computes
            return replace(prepared, pixels=prepared.pixels.pin_memory())
        return prepared

    def segment(self, pictures: Sequence[PreparedPicture], *names: Any, **options: Any) -> Iterator[Segmentation]:
        """Segment pictures in one call of the model, see `segment_batch`."""
        return segment_batch(self.model, self.processor, pictures, *names, **options)

    @torch.no_grad()
    def read_blocks(
        self, image: Any, size: tuple[int, int], names: Sequence[str], run: Any
    ) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
        """Segment a picture that is never held whole.

        Args:
            image: With `width`, `height` and `crop`, at the size that windows are cut from.
            size: (height, width) of it.
            names: Of all classes.
            run: The `Segmenter` of ldvc/app/batch.py, whose classes and settings are used.

        Yields:
            Rows and columns of a block, its (rows, columns) ids, and the probabilities of these.
        """
        class_ids = run.rivals.class_ids(len(run.named))
        seen = seen_queries(self.model, run.classes or run.named, run.rivals)
        with open_windows(self.model, self.processor, image, run.class_embeds, run.settings, False, seen) as scores:
            for rows, columns, block in resized_blocks(scores, size, len(class_ids or names)):
                pixels = PixelClasses(len(names), tuple(block.shape[1:]), run.thresholds, top_k=1, class_ids=class_ids)
                pixels.add(slice(None), slice(None), block)
                yield rows, columns, pixels.label_map.numpy(), pixels.top_scores[0].numpy()

    def seen_score_offset(self) -> float:
        """What is taken from the probabilities of classes that trained with masks."""
        return getattr(self.model.config, "seen_score_offset", 0.0)

    def settings_fingerprint(self, value_range: Sequence[Any]) -> str:
        """SHA-256 of what else decides results: the model's configuration, pixel preparation and prompt templates."""
        parts = (
            plain_config(self.model.config),
            self.processor.image_processor.to_json_string(),
            self.processor.prompt_templates,
        )
        return hashlib.sha256(json.dumps((*parts, *value_range), sort_keys=True).encode()).hexdigest()


def check_precision(model: Any, precision: Precision) -> None:
    """Check that a model can be computed in this precision.

    Raises:
        ValueError: If not.
    """
    if precision is Precision.FLOAT32:
        return
    if type(model).__name__ == "ExportedSegmenter":
        raise ValueError(
            "--precision bf16: an exported program has its own numbers; leave --precision out, or use --runtime "
            "openvino on a folder that was exported as ONNX."
        )
    if model.device.type == "cpu" and not has_bfloat16():
        raise ValueError("--precision bf16: this processor has no units for bfloat16; leave --precision out.")
    if model.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("--precision bf16: this GPU does not compute in bfloat16; leave --precision out.")
