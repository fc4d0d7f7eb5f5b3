# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""ONNX files: traced and written, attention in ONNX Runtime's own operator, weights in 8 bits."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldvc.places import how_to_install


__all__ = ["check_packages", "fuse_attention", "quantize", "write_onnx"]

MISSING = f"exporting needs {{}}; install the extra: {how_to_install('export')}."
OPSET = 23  # the first with `Attention`, which runtimes compute in one piece


def check_packages() -> None:
    """Check that what exporting to ONNX needs is there.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(MISSING.format(error.name)) from error


@torch.no_grad()
def write_onnx(
    program: nn.Module, inputs: dict[str, Tensor], axes: dict[str, dict[int, Any]], output: str, path: Path
) -> None:
    """Trace a module and write it as ONNX of standard operators, weights in a file beside it (`.data`).

    Args:
        program: In eval mode.
        inputs: To trace with.
        axes: The free ones.
        output: Name of its one output.
        path: Of the `.onnx` file.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    exported = torch.export.export(program, (), inputs, dynamic_shapes=axes, strict=False)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its steps there
        onnx_program = torch.onnx.export(
            exported,
            args=(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            verbose=False,
        )
    drop_idle_reshapes(onnx_program.model.graph)
    ClearMetadataAndDocStringPass()(onnx_program.model)  # lines of this code for every node, most of the file
    onnx_program.save(path, external_data=True)


def drop_idle_reshapes(graph: Any) -> None:
    """Take out reshapes to the shape that a tensor has: one stands behind every attention, between two transposes.

    Args:
        graph: Of onnx_ir, changed in place.
    """
    for node in list(graph):
        source, target = (node.inputs[0], node.outputs[0]) if node.op_type == "Reshape" else (None, None)
        if source is None or source.shape is None or target.is_graph_output():
            continue
        is_known = all(isinstance(side, int) or side.value is not None for side in source.shape)
        if is_known and source.shape == target.shape:
            target.replace_all_uses_with(source)
            graph.remove(node, safe=True)


def fuse_attention(source: Path, target: Path) -> None:
    """Write a program with ONNX Runtime's `MultiHeadAttention` for `Attention`; its weights stay in the other's file.

    The operator computes attention block by block (flash attention): no matrix of all scores is written to memory.

    Args:
        source: Written by `write_onnx`.
        target: In the same folder.
    """
    import onnx
    from onnx import helper

    model = onnx.load(source, load_external_data=False)
    graph, nodes = model.graph, []
    heads = {}  # tensor of (batch, heads, length, head_dim) -> heads
    for value in graph.value_info:
        sides = value.type.tensor_type.shape.dim
        if len(sides) == 4:
            heads[value.name] = sides[1].dim_value
    for node in graph.node:
        is_plain = node.op_type == "Attention" and len(node.input) == 3
        nodes += multi_head_attention(node, heads[node.input[0]]) if is_plain else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, target)


def multi_head_attention(attention: Any, num_heads: int) -> list[Any]:
    """Nodes that compute what a node `Attention` without a mask does.

    Heads lie on an axis of their own there and side by side here: ONNX Runtime takes away the transposes in between,
    with those that the exporter wrote around the node.
    """
    from onnx import helper

    name, nodes, merged = attention.output[0], [], []
    scale = {attribute.name: attribute.f for attribute in attention.attribute if attribute.name == "scale"}
    for letter, tensor in zip("qkv", attention.input, strict=True):
        # (batch, heads, length, head_dim) -> (batch, length, heads * head_dim)
        turned, merged_name = f"{name}_{letter}_turned", f"{name}_{letter}_merged"
        nodes.append(helper.make_node("Transpose", [tensor], [turned], perm=[0, 2, 1, 3]))
        nodes += reshape(turned, merged_name, [0, 0, -1])
        merged.append(merged_name)
    options = {"domain": "com.microsoft", "num_heads": num_heads, **scale}
    nodes.append(helper.make_node("MultiHeadAttention", merged, [f"{name}_attended"], **options))
    nodes += reshape(f"{name}_attended", f"{name}_split", [0, 0, num_heads, -1])
    return [*nodes, helper.make_node("Transpose", [f"{name}_split"], [name], perm=[0, 2, 1, 3])]


def reshape(source: str, target: str, shape: list[int]) -> list[Any]:
    """Nodes that reshape a tensor; 0 keeps a side, -1 is what is left."""
    from onnx import helper

    constant = helper.make_node("Constant", [], [f"{target}_shape"], value_ints=shape)
    return [constant, helper.make_node("Reshape", [source, f"{target}_shape"], [target])]


def quantize(path: Path) -> None:
    """Turn the weights of a program's matrix products to 8 bits, in its place.

    Activations are quantised at run time, with one scale for all pictures of a call: whoever runs the program gives it
    one picture at a time.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small, data = path.with_name(f"int8_{path.name}"), path.name + ".data"
    # Convolutions stay: the patch embedding is the only one, and ONNX Runtime has no fast 8-bit form of it.
    quantize_dynamic(
        path, small, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8, per_channel=True
    )
    path.with_name(data).unlink()
    onnx.save(onnx.load(small), path, save_as_external_data=True, location=data)
    small.unlink()
