"""Run exported programs in every runtime that this environment has: `benchmarks/consumers.py` starts it with a folder.

Imports numpy alone at first, so that it runs in any environment with one of the runtimes.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


Run = Callable[[Path, Mapping[str, np.ndarray]], np.ndarray]
PICTURES, PROMPTS, FUSED = "model.onnx", "text.onnx", "model_onnxruntime.onnx"


def run_onnxruntime(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))[0]


def run_reference(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """ONNX's own evaluator, which says what each operator means."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load(path)).run(None, dict(inputs))[0]


def run_openvino(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """OpenVINO on the CPU, in float32."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(dict(inputs))[0]


def run_opencv(path: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """OpenCV's module for networks."""
    import cv2

    network = cv2.dnn.readNetFromONNX(str(path))
    for name, array in inputs.items():
        network.setInput(array, name)
    return network.forward()


CONSUMERS: dict[str, tuple[str, Run]] = {
    "ONNX Runtime": ("onnxruntime", run_onnxruntime),
    "ONNX reference evaluator": ("onnx", run_reference),
    "OpenVINO": ("openvino", run_openvino),
    "OpenCV": ("cv2", run_opencv),
}


def probe(folder: Path) -> list[dict[str, str | float]]:
    """Run each program in each runtime that is installed.

    Args:
        folder: With the programs, and for each `NAME.npz`: its inputs, and what PyTorch gives as `expected`.

    Returns:
        `program`, `consumer`, `version`, and `difference`, the largest, or `failed`.
    """
    rows = []
    for consumer, (module, run) in CONSUMERS.items():
        try:
            version = importlib.import_module(module).__version__.split("-")[0]
        except ImportError:
            continue
        for program in (PICTURES, PROMPTS, *([FUSED] if module == "onnxruntime" else [])):
            with np.load(folder / f"{program}.npz") as arrays:
                inputs = dict(arrays)
            expected = inputs.pop("expected")
            row: dict[str, str | float] = {"program": program, "consumer": consumer, "version": version}
            try:
                row["difference"] = float(np.abs(run(folder / program, inputs) - expected).max())
            except Exception as error:  # of any kind: each runtime has its own
                row["failed"] = " ".join(str(error).split())[:160]
            rows.append(row)
    return rows


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]))) + "\n")
