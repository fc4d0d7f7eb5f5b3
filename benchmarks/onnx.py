"""ONNX Runtime, OpenVINO and torch.compile against eager PyTorch: the same weights, pixels and class embeddings.

Agreement is measured on the embedded world's trained checkpoint too, since random weights would say nothing of 8 bits
and bfloat16: on held-out drawn pages, and on photographs where LDVC_VOC2012 names a folder of PASCAL VOC 2012.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.models import build_bare_tower, build_model, check_equal, make_class_embeds, make_pixels
from benchmarks.timing import Settings, ratio, spreads, time_rounds
from ldvc.data.converters import find_voc2012
from ldvc.export.folder import ONNXRUNTIME_FILE, PICTURE_FILE, measure_agreement, write_pictures
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.processing_ldvc import LDVCProcessor


TITLE = "ONNX Runtime, OpenVINO and torch.compile / eager PyTorch, 512 x 512, 20 classes, class embeddings kept"
GOALS = {
    "onnx_difference": ("at most", 1e-3),
    "onnx_of_tower": ("at most", 0.9),
    "openvino_bf16_of_tower": ("at most", 0.45),
}
SIDE, NUM_CLASSES, NUM_PICTURES = 512, 20, 32
TOLERANCE = 1e-3  # of logits
INT8, BF16 = "onnx int8", "openvino bf16"
LOOSE = (INT8, BF16)  # whose logits are rounded
TOWER = "bare tower"  # the library's vision model, eager
TRAINED = Path(__file__).resolve().parent.parent / "picturebook" / "ldvc"
Way = Callable[[Tensor, Tensor], Tensor]  # pixel values, class embeddings -> logits


def measure(settings: Settings) -> dict[str, Any]:
    """Let the programs vote on pictures, then compare logits of the real size and time in turn.

    Raises:
        ValueError: If the settings are none that a program is exported for.
    """
    if settings.device != "cpu" or settings.dtype != torch.float32:
        raise ValueError("programs are exported in float32 and run on the CPU; leave --device and --dtype out.")
    agreement = agreements(settings)
    model = build_model(settings)
    pixels, embeds = make_pixels(settings, SIDE), make_class_embeds(model, NUM_CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        ways, skipped = build_ways(model, Path(folder), settings)
        result = compare(ways, pixels, embeds, settings)
    return {**result, "skipped": skipped, "agreement": agreement}


@torch.inference_mode()
def compare(ways: dict[str, Way], pixels: Tensor, embeds: Tensor, settings: Settings) -> dict[str, Any]:
    """Largest difference of logits from eager's, then time in turn; 8 bits and bfloat16 may differ by more."""
    expected = ways["eager"](pixels, embeds)
    differences = {}
    for name, way in ways.items():
        if name not in ("eager", TOWER):
            tolerance = float("inf") if name in LOOSE else TOLERANCE
            differences[name] = check_equal(f"logits of {name}", expected, way(pixels, embeds), tolerance)
    seconds = time_rounds({name: lambda way=way: way(pixels, embeds) for name, way in ways.items()}, settings)
    ratios: dict[str, Any] = {name: ratio(seconds, name, "eager") for name in differences}
    if TOWER in ways:
        ratios |= {f"{name.replace(' ', '_')}_of_tower": ratio(seconds, name, TOWER) for name in differences}
    return {
        "ratios": {**ratios, **({"onnx_difference": differences["onnx"]} if "onnx" in differences else {})},
        "seconds": spreads(seconds),
        "differences": differences,
        "largest_logit": float(expected.abs().max()),
    }


def build_ways(
    model: LDVCForSemanticSegmentation, folder: Path, settings: Settings
) -> tuple[dict[str, Way], dict[str, str]]:
    """Ways to the same logits: name -> call; and name -> reason for those that this machine cannot go."""
    ways: dict[str, Way] = {"eager": lambda pixels, embeds: model(pixel_values=pixels, class_embeds=embeds).logits}
    tower, skipped = build_bare_tower(model), {}
    ways[TOWER] = lambda pixels, embeds: tower(pixels, interpolate_pos_encoding=True).last_hidden_state
    try:
        ways["compile"] = compile_way(model, settings)
    except RuntimeError as error:  # no C++ compiler, or one that fails
        skipped["compile"] = f"torch.compile: {(str(error).strip() or repr(error)).splitlines()[0]}"
    ways |= export_ways(model, folder)
    if BF16 not in ways:
        skipped["openvino"] = "openvino is not installed"
    return ways, skipped


@torch.inference_mode()
def compile_way(model: LDVCForSemanticSegmentation, settings: Settings) -> Way:
    """The model compiled as one graph, and run once so that a compiler that is missing is noticed here."""
    # without inductor a quick run needs no minute, and still sees graph breaks
    backend = "eager" if settings.quick else "inductor"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    compiled(pixel_values=make_pixels(settings, SIDE), class_embeds=make_class_embeds(model, NUM_CLASSES))
    return lambda pixels, embeds: compiled(pixel_values=pixels, class_embeds=embeds).logits


def export_ways(model: LDVCForSemanticSegmentation, folder: Path) -> dict[str, Way]:
    """Programs in float32 and in 8 bits, the former in OpenVINO too where it is installed."""
    for place, int8 in ((folder / "float32", False), (folder / "int8", True)):
        place.mkdir()
        write_pictures(model, place, int8)
    ways = {
        "onnx": open_program(folder / "float32" / ONNXRUNTIME_FILE),
        INT8: open_program(folder / "int8" / ONNXRUNTIME_FILE),
    }
    if importlib.util.find_spec("openvino"):
        ways["openvino"] = open_in_openvino(folder / "float32" / PICTURE_FILE, "f32")
        ways[BF16] = open_in_openvino(folder / "float32" / PICTURE_FILE, "bf16")
    return ways


def open_program(path: Path) -> Way:
    """An ONNX program on as many threads as PyTorch has; `ExportedLDVC` would take the library's own number."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor, embeds: Tensor) -> Tensor:
        inputs = {"pixel_values": pixels.numpy(), "class_embeds": embeds.numpy()}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return run


def open_in_openvino(path: Path, precision: str) -> Way:
    """An ONNX program in OpenVINO, on as many threads as PyTorch has.

    Args:
        path: Of standard operators.
        precision: "f32", or "bf16" for matrix products in bfloat16 on processors that have them.
    """
    import openvino

    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)

    def run(pixels: Tensor, embeds: Tensor) -> Tensor:
        found = compiled({"pixel_values": pixels.numpy(), "class_embeds": embeds.numpy()})
        return torch.from_numpy(found[0].copy())

    return run


def agreements(settings: Settings) -> dict[str, dict[str, Any]]:
    """How often both programs of the trained checkpoint name the class that eager PyTorch names, per kind of picture.

    Returns:
        Kind of picture -> `pictures` and, per program, `same_class` and `largest_difference`.
    """
    model = LDVCForSemanticSegmentation.from_pretrained(TRAINED, dtype=torch.float32).eval()
    processor = LDVCProcessor.from_pretrained(TRAINED)
    names = [model.config.id2label[index] for index in range(model.config.num_default_classes)]
    embeds = model.encode_vocabulary(names, processor).class_embeds
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        programs = export_ways(model, Path(folder))
        for kind, pictures in picture_kinds(1 if settings.quick else NUM_PICTURES):
            pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
            found[kind] = {"pictures": len(pictures)}
            found[kind] |= {name: measure_agreement(model, way, pixels, embeds) for name, way in programs.items()}
    return found


def picture_kinds(count: int) -> Iterator[tuple[str, list[Image.Image]]]:
    """Held-out drawn pages; and the first of VOC's validation photographs, where LDVC_VOC2012 names their folder."""
    from picturebook import draw_scene

    yield "drawn pages", [draw_scene("test", 0, index).image for index in range(count)]
    folder = os.environ.get("LDVC_VOC2012")
    if folder:
        samples = find_voc2012(Path(folder)).splits["validation"][:count]
        yield "photographs of PASCAL VOC 2012", [Image.open(sample.image_path).convert("RGB") for sample in samples]
