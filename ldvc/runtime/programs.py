"""Exported folders without PyTorch: what `ldvc_export.json` says, and the programs under ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from ldvc.places import how_to_install


__all__ = [
    "EXPORT_FILE",
    "EXPORT_VERSION",
    "Export",
    "Precision",
    "Program",
    "Runtime",
    "check_served",
    "has_bfloat16",
    "open_program",
    "read_export",
]

EXPORT_FILE = "ldvc_export.json"
EXPORT_VERSION = 2
AGAIN = "write the folder again with this version's ldvc export"


class Runtime(StrEnum):
    """What runs a model; `auto` takes what `ldvc doctor --bench` found best on this machine."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """Numbers that the matrix products are computed in."""

    FLOAT32 = "float32"
    BF16 = "bf16"


@dataclass(frozen=True)
class Export:
    """What `ldvc_export.json` of an exported folder says.

    Attributes:
        folder: The folder.
        kind: `"ldvc"`, `"training_free"` or `"clipseg"`.
        picture_program: File of the program from pixels and class embeddings to logits.
        text_program: File of the program from tokens to embeddings; `None` without a text tower.
        size_multiple: Height and width of a picture in pixels are multiples of it.
        smallest_side: The smallest height and width in pixels.
        num_channels: Channels of a picture.
        projection_dim: Width of a class embedding.
        image: What the image processor does, see `PictureReader`.
        prompt_templates: Each with one `{}` for the class name.
        max_length: The most tokens of a prompt.
        pad_token_id: What shorter prompts of a call are filled up with.
        source: SHA-256 of the `weights` and the `code` that it was made from.
        unit_embeds: Whether embeddings are unit vectors, whose mean is made one again; CLIPSeg's are not.
        one_picture_at_a_time: Whether logits depend on the other pictures of a call, as in int8.
        default_class_names: The model's own vocabulary, whose embeddings lie beside the program.
        other_label: Name of what is no class.
        seen_classes: Which classes trained with masks, `None` where it is not known.
        seen_score_offset: What is taken from their probabilities.
        load_settings: Settings that the model was loaded with to export it.
        onnxruntime_program: File of the picture program in ONNX Runtime's own operators, where there is one.
        classes_at_a_time: The most classes of a call, where a model's memory grows with them.
        prompt_token_ids: What every prompt begins with, where text prompts take the place of the template's words.
    """

    folder: Path
    kind: str
    picture_program: str
    text_program: str | None
    size_multiple: int
    smallest_side: int
    num_channels: int
    projection_dim: int
    image: dict[str, Any]
    prompt_templates: list[str]
    max_length: int
    pad_token_id: int
    source: dict[str, str]
    unit_embeds: bool = True
    one_picture_at_a_time: bool = False
    default_class_names: list[str] = field(default_factory=list)
    other_label: str | None = None
    seen_classes: list[str] | None = None
    seen_score_offset: float = 0.0
    load_settings: dict[str, Any] = field(default_factory=dict)
    onnxruntime_program: str | None = None
    classes_at_a_time: int | None = None
    prompt_token_ids: list[int] | None = None

    def check_size(self, height: int, width: int) -> None:
        """Check that the program takes pictures, or windows, of so many pixels.

        Raises:
            ValueError: If not; names the nearest size that it takes.
        """
        step, smallest = self.size_multiple, self.smallest_side
        if any(side % step or side < smallest for side in (height, width)):
            near = [max(smallest, round(side / step) * step) for side in (height, width)]
            raise ValueError(
                f"a picture or window of {height} x {width} pixels does not fit the program, which takes multiples of "
                f"{step} from {smallest} on, such as {near[0]} x {near[1]}; choose --short-side and --window so, or "
                "use --runtime torch, which takes every size."
            )


def read_export(folder: str | Path) -> Export:
    """Read what an exported folder says of itself.

    Raises:
        ValueError: If it holds no export, one of another format, or files are missing.
    """
    folder = Path(folder)
    if not (folder / EXPORT_FILE).is_file():
        raise ValueError(f"{str(folder)!r} has no {EXPORT_FILE}; give a folder that ldvc export wrote.")
    try:
        content = dict(json.loads((folder / EXPORT_FILE).read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{EXPORT_FILE} in {str(folder)!r} is damaged ({error}); {AGAIN}.") from error
    if (version := content.get("export_version")) != EXPORT_VERSION:
        said = "an older format" if version is None else f"format {version!r}"
        raise ValueError(f"{str(folder)!r} was exported in {said}, and this LDVC reads format 2; {AGAIN}.")
    if content.get("format") != "onnx":
        raise ValueError(
            f"{str(folder)!r} holds a program of PyTorch ({content.get('format')!r}); use --runtime torch, or export "
            "it with --format onnx."
        )
    known = {entry.name for entry in fields(Export)} - {"folder"}
    try:
        export = Export(folder, **{name: value for name, value in content.items() if name in known})
    except TypeError as error:
        raise ValueError(f"{EXPORT_FILE} in {str(folder)!r} lacks a field ({error}); {AGAIN}.") from error
    for name in filter(None, (export.picture_program, export.text_program, export.onnxruntime_program)):
        if not (folder / name).is_file():
            raise ValueError(f"{str(folder)!r} has no {name}; {AGAIN}.")
    return export


def check_served(runtime: Runtime, precision: Precision) -> None:
    """Check that a runtime is installed and computes in this precision on this machine.

    Raises:
        ImportError: If the runtime is missing.
        ValueError: If it has no such precision.
    """
    package = {Runtime.ONNX: "onnxruntime", Runtime.OPENVINO: "openvino", Runtime.TORCH: "torch"}.get(runtime)
    extra = {Runtime.ONNX: "runtime", Runtime.OPENVINO: "openvino", Runtime.TORCH: "torch"}.get(runtime, "runtime")
    try:
        __import__(package or "numpy")
    except ImportError as error:
        raise ImportError(
            f"--runtime {runtime} needs {package}, which is not installed: {how_to_install(extra)}."
        ) from error
    if precision is Precision.BF16 and runtime is Runtime.ONNX:
        raise ValueError(
            "--precision bf16: ONNX Runtime computes in float32 on a CPU; use --runtime openvino or --runtime torch."
        )
    if precision is Precision.BF16 and runtime is Runtime.OPENVINO and not has_bfloat16():
        raise ValueError("--precision bf16: this processor has no units for bfloat16; leave --precision out.")


def has_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 itself (avx512_bf16, amx_bf16, ARM's bf16)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux: Apple's processors have them from the M2 on, which no file says
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def num_threads() -> int:
    """Threads of a program: OMP_NUM_THREADS as for PyTorch, or 0, the runtime's own choice."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


class Program:
    """One program in a runtime: arrays in, one array out.

    Args:
        path: The ONNX file.

    Raises:
        ValueError: If the file is damaged.
    """

    def __init__(self, path: Path):
        try:
            self.open(path)
        except Exception as error:  # of any kind: each runtime has its own
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{str(path)!r} cannot be opened ({reason}); if it is damaged, {AGAIN}.") from error

    def open(self, path: Path) -> None:
        """Read and compile the file."""
        raise NotImplementedError

    def run(self, **arrays: np.ndarray) -> np.ndarray:
        """Run the program on inputs by name."""
        raise NotImplementedError


class OnnxProgram(Program):
    """A program in ONNX Runtime, in float32."""

    def open(self, path: Path) -> None:
        """See `Program`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads()
        options.log_severity_level = 3
        # Threads that spin while they wait would take the processor from decoding and writing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, **arrays: np.ndarray) -> np.ndarray:
        """See `Program`."""
        return self._session.run(None, arrays)[0]


class OpenVinoProgram(Program):
    """A program in OpenVINO.

    Args:
        path: The ONNX file.
        precision: Asked for by name: on processors with units for bfloat16 OpenVINO takes that by itself.
    """

    def __init__(self, path: Path, precision: Precision = Precision.FLOAT32):
        self._hint = "bf16" if precision is Precision.BF16 else "f32"
        super().__init__(path)

    def open(self, path: Path) -> None:
        """See `Program`."""
        import openvino

        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self._hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads := num_threads():
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(str(path)), "CPU", options)

    def run(self, **arrays: np.ndarray) -> np.ndarray:
        """See `Program`."""
        return self._compiled(arrays)[0]


def open_program(path: Path, runtime: Runtime = Runtime.ONNX, precision: Precision = Precision.FLOAT32) -> Program:
    """Open a program in a runtime.

    Raises:
        ImportError: If the runtime is missing.
        ValueError: If it has no such precision, or the file is damaged.
    """
    check_served(runtime, precision)
    return OpenVinoProgram(path, precision) if runtime is Runtime.OPENVINO else OnnxProgram(path)
