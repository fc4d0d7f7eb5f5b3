"""What a folder of `ldvc export` says of itself in `ldvc_export.json`; read without PyTorch.

ONNX Runtime alone would cut pictures of other sizes than the program's multiple without a word: the folder says the
multiple, and whoever runs the program checks it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


__all__ = ["EXPORT_FILE", "EXPORT_VERSION", "ExportedFolder", "read_exported_folder"]

EXPORT_FILE = "ldvc_export.json"
EXPORT_VERSION = 2
AGAIN = "export the checkpoint again with this version's ldvc export"


@dataclass(frozen=True)
class ExportedFolder:
    """What programs a folder holds, and what they take.

    Attributes:
        kind: `"ldvc"`, `"training_free"` or `"clipseg"`.
        format: `"onnx"`, or `"torch"` (`torch.export`), which has no text program.
        picture_program: File from pixels and class embeddings to logits.
        text_program: File from token ids to an embedding per prompt; `None` without a text tower.
        onnxruntime_program: The picture program with ONNX Runtime's own operators, on the same weights; or `None`.
        precision: `"float32"` or `"int8"` weights of the picture program.
        size_multiple: Height and width of a picture in pixels are multiples of it.
        smallest_side: The smallest height and width in pixels.
        num_channels: Channels of a picture.
        projection_dim: Width of a class embedding.
        max_length: The most tokens of a prompt.
        pad_token_id: What shorter prompts are filled up with on the right.
        prompt_templates: Each with one `{}` for the class name.
        image: What the image processor does: `size`, `resample`, `mean`, `std`, `rescale_factor`, `value_range`,
            `do_resize`, `do_rescale`, `do_normalize`.
        source: SHA-256 of the `weights` and the `code` that the programs were made from, and the `text_fingerprint` by
            which an `LDVCVocabulary` knows its text weights.
        unit_embeds: Whether embeddings are unit vectors, whose mean is made one again; CLIPSeg's are not.
        one_picture_at_a_time: Whether a call takes one picture: in int8 logits would depend on the others, since all
            share a scale.
        classes_at_a_time: The most classes of a call, `None` without limit; more take several calls.
        prompt_token_ids: The tokens that every prompt begins with, where text prompts take their places; or `None`.
        default_class_names: The model's own vocabulary, whose embeddings lie beside the programs.
        other_label: Name of what is no class.
        seen_classes: Names trained with masks, `None` where it is not known.
        seen_score_offset: What is taken from their probabilities.
        load_settings: Settings that the model was loaded with.
        ldvc_version: Of the code that exported it.
        export_version: Of this file.
    """

    kind: str
    format: str
    picture_program: str
    size_multiple: int
    smallest_side: int
    num_channels: int
    projection_dim: int
    max_length: int
    pad_token_id: int
    prompt_templates: list[str]
    image: dict[str, Any]
    source: dict[str, str]
    text_program: str | None = None
    onnxruntime_program: str | None = None
    precision: str = "float32"
    unit_embeds: bool = True
    one_picture_at_a_time: bool = False
    classes_at_a_time: int | None = None
    prompt_token_ids: list[int] | None = None
    default_class_names: list[str] = field(default_factory=list)
    other_label: str | None = None
    seen_classes: list[str] | None = None
    seen_score_offset: float = 0.0
    load_settings: dict[str, Any] = field(default_factory=dict)
    ldvc_version: str | None = None
    export_version: int = EXPORT_VERSION

    def write(self, folder: str | Path) -> None:
        """Write `ldvc_export.json`."""
        Path(folder, EXPORT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def check(self, pixels: Sequence[int], embeds: Sequence[int]) -> None:
        """Check the shapes of a call's `pixel_values` and `class_embeds`.

        Raises:
            ValueError: If one does not fit; names the shape and the nearest size that does.
        """
        if len(pixels) != 4 or pixels[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixels)}; it must be (images, {self.num_channels}, height, width)."
            )
        if len(embeds) != 2 or embeds[1] != self.projection_dim or not embeds[0]:
            raise ValueError(f"`class_embeds` has shape {tuple(embeds)}; it must be (classes, {self.projection_dim}).")
        step = self.size_multiple
        if any(side % step or side < self.smallest_side for side in pixels[2:]):
            near = [max(self.smallest_side, round(side / step) * step) for side in pixels[2:]]
            raise ValueError(
                f"`pixel_values` is {pixels[2]} x {pixels[3]} pixels; this program takes multiples of {step} from "
                f"{self.smallest_side} on: resize to {near[0]} x {near[1]}, or use the checkpoint itself by "
                "--runtime torch, which takes every size."
            )


def read_exported_folder(folder: str | Path) -> ExportedFolder:
    """Read what a folder of `ldvc export` says of itself.

    Raises:
        FileNotFoundError: If it holds no export, or a program is missing.
        ValueError: If it was exported in another format, or the file is damaged.
    """
    folder = Path(folder)
    if not (folder / EXPORT_FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {EXPORT_FILE}; write one with ldvc export.")
    try:
        content = dict(json.loads((folder / EXPORT_FILE).read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{EXPORT_FILE} in {folder} is damaged ({error}); {AGAIN}.") from error
    if (version := content.get("export_version", 1)) != EXPORT_VERSION:
        raise ValueError(f"{folder} was exported in format {version!r}, and this LDVC reads format 2; {AGAIN}.")
    known = {entry.name for entry in fields(ExportedFolder)}
    try:
        found = ExportedFolder(**{name: value for name, value in content.items() if name in known})
    except TypeError as error:
        raise ValueError(f"{EXPORT_FILE} in {folder} lacks a field ({error}); {AGAIN}.") from error
    for name in (found.picture_program, found.text_program, found.onnxruntime_program):
        if name is not None and not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; {AGAIN}.")
    return found
