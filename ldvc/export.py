# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Programs without this code: ONNX and torch.export, from pixels and class embeddings to logits: `ldvc export`.

ONNX Runtime alone would cut pictures of other sizes than `size_multiple(config)` without a word: the folder says the
multiple in `ldvc_export.json`, and `ExportedLDVC`, which runs the program, checks it.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldvc.loading import load_checkpoint
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.model.vocabulary_ldvc import LDVCVocabulary, text_fingerprint
from ldvc.places import how_to_install
from ldvc.segmenters.exported import EXPORT_FILE, ExportedLDVC, ExportedSizes


ONNX_FILE, INT8_FILE, TORCH_FILE = "model.onnx", "model_int8.onnx", "model.pt2"
MISSING = f"exporting needs {{}}; install the extra: {how_to_install('export')}."


class Program(nn.Module):
    """What is exported: logits of pixels and class embeddings.

    The picture is cut to whole multiples first. For the sizes that are allowed this does nothing; to the exporter it
    says that the grid has whole regions, without which no single program could serve several sizes.
    """

    def __init__(self, model: LDVCForSemanticSegmentation):
        super().__init__()
        self.model = model
        self.config = model.config  # the library's exporter keeps it beside the program
        self.size_multiple = size_multiple(model.config)

    def forward(self, pixel_values: Tensor, class_embeds: Tensor) -> Tensor:
        """(batch_size, channels, height, width), (num_classes, dim) -> (batch_size, num_classes, grid)."""
        height, width = (side // self.size_multiple * self.size_multiple for side in pixel_values.shape[-2:])
        return self.model(pixel_values=pixel_values[:, :, :height, :width], class_embeds=class_embeds).logits


def size_multiple(config: LDVCConfig) -> int:
    """Pixels that height and width of an exported program's pictures are multiples of."""
    tokens = {"route": config.num_regions, "window": config.window_size, "shifted_window": config.window_size}
    kind = config.decoder_attention if config.decoder_query == "image" else "none"
    return config.vision_config.patch_size * tokens.get(kind, 1)


def example_inputs(config: LDVCConfig) -> dict[str, Tensor]:
    """Inputs to trace with; no two axes are of one size, so that none is taken for another."""
    step = size_multiple(config)
    return {
        "pixel_values": torch.randn(2, config.vision_config.num_channels, 2 * step, 3 * step),
        "class_embeds": F.normalize(torch.randn(5, config.projection_dim), dim=-1),
    }


def dynamic_shapes() -> dict[str, dict[int, Any]]:
    """The axes that are free."""
    free = torch.export.Dim.AUTO
    return {"pixel_values": {0: free, 2: free, 3: free}, "class_embeds": {0: free}}


def prepare(model: LDVCForSemanticSegmentation) -> Program:
    """The module to export, in float32 on the CPU.

    Raises:
        ValueError: If the model is elsewhere, in another dtype, or training.
    """
    if model.training or model.dtype != torch.float32 or model.device.type != "cpu":
        state = "training" if model.training else f"in {model.dtype} on {model.device}"
        raise ValueError(f"the model is {state}; export model.float().cpu().eval().")
    return Program(model).eval()


def export_onnx(model: LDVCForSemanticSegmentation, folder: str | Path, int8: bool = False) -> Path:
    """Write an ONNX program to a folder: `model.onnx`, or `model_int8.onnx` with weights in 8 bits.

    Args:
        model: In eval mode, float32, on the CPU.
        folder: Made where it does not exist.
        int8: Quantise the weights of matrix products dynamically: activations are quantised at run time, and no
            pictures are needed to calibrate. A quarter of the size; the logits change a little.

    Returns:
        The program's file.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        ValueError: If the model is not in eval mode, float32, on the CPU.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise ImportError(MISSING.format(error.name)) from error
    program, folder = prepare(model), Path(folder)
    exporter_config = OnnxConfig(dynamic_shapes=dynamic_shapes())
    exported = OnnxExporter().export(program, example_inputs(model.config), exporter_config)
    graph = exported.program.graph
    graph.outputs[0].name = "logits"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ONNX_FILE
    OnnxExporter.save_program(exported.program, path)
    if int8:
        path = quantize(path, folder / INT8_FILE)
    write_sizes(model.config, folder, "onnx", path.name)
    return path


def quantize(source: Path, target: Path) -> Path:
    """Write the program with 8-bit weights of matrix products, and remove the other."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Convolutions stay: the patch embedding is the only one, and ONNX Runtime has no fast 8-bit form of it.
    quantize_dynamic(
        source, target, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8, per_channel=True
    )
    for path in (source, source.with_name(source.name + ".data")):
        path.unlink(missing_ok=True)
    return target


def export_torch(model: LDVCForSemanticSegmentation, folder: str | Path) -> Path:
    """Write a `torch.export` program to a folder as `model.pt2`; it runs wherever PyTorch does, also from C++.

    Args:
        model: In eval mode, float32, on the CPU.
        folder: Made where it does not exist.

    Returns:
        The program's file.
    """
    program, folder = prepare(model), Path(folder)
    with torch.no_grad():
        exported = torch.export.export(
            program, (), example_inputs(model.config), dynamic_shapes=dynamic_shapes(), strict=False
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(exported, folder / TORCH_FILE)
    write_sizes(model.config, folder, "torch", TORCH_FILE)
    return folder / TORCH_FILE


def write_sizes(config: LDVCConfig, folder: Path, kind: str, file: str) -> None:
    """Say beside the program what it takes."""
    step, channels = size_multiple(config), config.vision_config.num_channels
    # torch.export takes an axis of one token per region for a fixed one; a single window is never shifted
    is_limited = kind == "torch" or config.decoder_attention == "shifted_window"
    smallest = 2 * step if is_limited else step
    sizes = ExportedSizes(step, smallest, channels, config.projection_dim, kind, file)
    (folder / EXPORT_FILE).write_text(json.dumps(asdict(sizes), indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def measure_agreement(
    model: LDVCForSemanticSegmentation, program: ExportedLDVC, pixel_values: Tensor, class_embeds: Tensor
) -> dict[str, float]:
    """Compare a program with the model on pictures.

    Args:
        model: The model it was exported from.
        program: The program.
        pixel_values: (num_images, num_channels, height, width).
        class_embeds: (num_classes, projection_dim).

    Returns:
        `same_class`, the share of tokens whose best class is the same, 0 to 1, and `largest_difference` of logits.
    """
    same, largest = [], 0.0
    for pixels in pixel_values.split(1):
        expected = model(pixel_values=pixels, class_embeds=class_embeds).logits
        logits = program(pixels, class_embeds)
        same.append((expected.argmax(dim=1) == logits.argmax(dim=1)).float().mean().item())
        largest = max(largest, (expected - logits).abs().max().item())
    return {"same_class": float(np.mean(same)), "largest_difference": largest}


def export_checkpoint(arguments: argparse.Namespace) -> None:
    """Load, export, put processor and default vocabulary beside the program, compare on pictures.

    Raises:
        ValueError: If the checkpoint is not whole, or there are no classes of its own to compare with.
    """
    model, processor = load_checkpoint(arguments.checkpoint, "cpu")
    model = model.float()
    has_names = bool(model.config.num_default_classes)
    if arguments.check and not has_names:
        raise ValueError("--check compares the checkpoint's own classes, and it has none; see set_vocabulary.")
    exporter = export_torch if arguments.format == "torch" else export_onnx
    path = exporter(model, arguments.output, **({"int8": True} if arguments.int8 else {}))
    processor.save_pretrained(arguments.output)
    program = ExportedLDVC(arguments.output)
    step, smallest = program.sizes.size_multiple, program.sizes.smallest_side
    sys.stdout.write(f"{path}: any batch and class list; sides are multiples of {step} pixels from {smallest} on.\n")
    embeds = write_vocabulary(model, processor, arguments.output) if has_names else None
    if arguments.check:
        pictures = [Image.open(path) for path in arguments.check]
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        agreement = measure_agreement(model, program, pixels, embeds)
        sys.stdout.write(
            f"same class in {agreement['same_class']:.4f} of the tokens of {len(pictures)} picture(s); logits differ "
            f"by at most {agreement['largest_difference']:.2g}.\n"
        )


def write_vocabulary(model: LDVCForSemanticSegmentation, processor: LDVCProcessor, folder: Path) -> Tensor:
    """Write the checkpoint's own classes, for `LDVCVocabulary.load(folder)`; a baked vocabulary as an array alone.

    Returns:
        (num_classes, projection_dim) embeddings.
    """
    if model.baked_vocabulary is not None:
        embeds = model.baked_vocabulary()
        np.save(folder / "class_embeds.npy", embeds.numpy())
        return embeds
    config = model.config
    with torch.no_grad():
        embeds = model._default_class_embeds()  # with the synonyms and templates that they were set with
    vocabulary = LDVCVocabulary(
        class_names=config.default_class_names,
        class_embeds=embeds,
        fingerprint=text_fingerprint(model),
        class_token_ids=config.class_token_ids,
        prompt_class_ids=config.prompt_class_ids,
        prompt_templates=list(processor.prompt_templates),
        other_label=config.other_label,
    )
    vocabulary.save(folder)
    return vocabulary.class_embeds
