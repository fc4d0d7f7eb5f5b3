"""The programs of an exported folder under ONNX Runtime or OpenVINO, without PyTorch."""

from __future__ import annotations

import os
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ldvc.places import how_to_install
from ldvc.segmenters.exported_folder import AGAIN, EXPORT_FILE, EXPORT_VERSION, ExportedFolder, read_exported_folder


__all__ = [
    "EXPORT_FILE",
    "EXPORT_VERSION",
    "Precision",
    "Program",
    "Runtime",
    "check_served",
    "has_bfloat16",
    "open_program",
    "read_export",
]


class Runtime(StrEnum):
    """What runs a model; `auto` takes what `ldvc doctor --bench` found best on this machine."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"
    OPENVINO = "openvino"


# Runtime -> the package that it is, and the extra that brings it; `auto` takes what is there.
PACKAGES = {
    Runtime.AUTO: ("numpy", "runtime"),
    Runtime.TORCH: ("torch", "torch"),
    Runtime.ONNX: ("onnxruntime", "runtime"),
    Runtime.OPENVINO: ("openvino", "openvino"),
}


class Precision(StrEnum):
    """Numbers that the matrix products are computed in."""

    FLOAT32 = "float32"
    BF16 = "bf16"


def read_export(folder: str | Path) -> ExportedFolder:
    """Read what an exported folder with ONNX programs says of itself.

    Raises:
        FileNotFoundError: If it holds no export, or a program is missing.
        ValueError: If it was exported in another format, or the file is damaged.
    """
    export = read_exported_folder(folder)
    if export.format != "onnx":
        raise ValueError(
            f"{str(folder)!r} holds a program of PyTorch ({export.format!r}); use --runtime torch, or export it with "
            "--format onnx."
        )
    return export


def check_served(runtime: Runtime, precision: Precision) -> None:
    """Check that a runtime is installed and computes in this precision on this machine.

    Raises:
        ImportError: If the runtime is missing.
        ValueError: If it has no such precision.
    """
    package, extra = PACKAGES[runtime]
    if find_spec(package) is None:
        raise ImportError(f"--runtime {runtime} needs {package}, which is not installed: {how_to_install(extra)}.")
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
