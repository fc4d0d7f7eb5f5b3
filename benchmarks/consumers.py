"""Where the programs of `ldvc export` run: the table of consumers in docs/speed.md.

    python -m benchmarks.consumers --python ENV/bin/python   asks the runtimes of these environments (several: again)
    python -m benchmarks.consumers --python ... --node       and those for Node and the web, which npm fetches
    python -m benchmarks.consumers                           renders docs/speed.md from results/tools/consumers.json

The embedded checkpoint is exported and asked for one drawn page and its own names; what PyTorch gives is right.
`benchmarks/consumers_probe.py` runs in the environments: onnxruntime, onnx, openvino, opencv-python-headless.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldvc.data.provenance import write_json
from ldvc.export import export_model
from ldvc.loading import load
from ldvc.places import EMBEDDED_CHECKPOINT


ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, RESULT = ROOT / "docs/speed.md", ROOT / "results/tools/consumers.json"
PROBE, NODE_PROBE = ROOT / "benchmarks/consumers_probe.py", ROOT / "benchmarks/consumers_probe.mjs"
NODE_PACKAGES = ("onnxruntime-node", "onnxruntime-web")
MARKER = re.compile(r"(<!-- consumers -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def write_programs(folder: Path) -> None:
    """Export the embedded checkpoint, with inputs of each program and what PyTorch makes of them."""
    from picturebook import draw_scene

    model, processor = load(EMBEDDED_CHECKPOINT, "cpu")
    described = export_model(model, processor, folder)
    names = model.config.default_class_names
    prompts = processor(class_names=names, return_tensors="pt")
    pixels = processor(images=[draw_scene("test", 0, 0).image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeds = model.get_class_embeds(**prompts)
        logits = model(pixel_values=pixels, class_embeds=embeds).logits
    pictures = {"pixel_values": pixels, "class_embeds": embeds, "expected": logits}
    texts = {"input_ids": prompts["input_ids"], "attention_mask": prompts["attention_mask"], "expected": embeds}
    for program, tensors in (
        (described.picture_program, pictures),
        (described.text_program, texts),
        (described.onnxruntime_program, pictures),
    ):
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
        np.savez(folder / f"{program}.npz", **arrays)
        if program == described.onnxruntime_program:
            continue  # its weights are in another program's file, which a page that loads it would name
        for name, array in arrays.items():
            (folder / f"{program}.{name}.bin").write_bytes(array.tobytes())
        said = {name: {"type": str(array.dtype), "dims": array.shape} for name, array in arrays.items()}
        (folder / f"{program}.json").write_text(json.dumps(said))


def ask(command: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that a probe prints on its last line."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(pythons: Sequence[str], with_node: bool) -> list[dict[str, Any]]:
    """Export, and ask the runtimes of all environments.

    Raises:
        FileNotFoundError: If Node is wanted and not there.
    """
    if with_node and not shutil.which("npm"):
        raise FileNotFoundError("--node needs Node with npm, which is not installed; leave it out.")
    with tempfile.TemporaryDirectory() as place:
        write_programs(Path(place))
        # -P: `import onnx` is not to find benchmarks/onnx.py
        rows = [row for python in pythons for row in ask([python, "-P", str(PROBE), place])]
        if with_node:
            # their scripts would fetch what graphics cards need
            install = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", place, *NODE_PACKAGES]
            subprocess.run(install, check=True)
            for package in NODE_PACKAGES:
                rows += ask(["node", str(NODE_PROBE), place, package])
    return rows


def render(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Put the table into a document."""
    lines = ["| consumer | version | program | largest difference from PyTorch |", "|---|---|---|---:|"]
    for row in rows:
        found = f"{row['difference']:.1e}" if "difference" in row else f"fails: {row['failed']}".replace("|", "/")
        lines.append(f"| {row['consumer']} | {row['version']} | `{row['program']}` | {found} |")
    return MARKER.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[3], text)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="of an environment with runtimes; asks them anew")
    parser.add_argument("--node", action="store_true", help="ask onnxruntime-node and onnxruntime-web too")
    arguments = parser.parse_args()
    if arguments.python or arguments.node:
        write_json({"rows": measure(arguments.python or [], arguments.node)}, RESULT)
    DOCUMENT.write_text(render(DOCUMENT.read_text(), json.loads(RESULT.read_text())["rows"]))


if __name__ == "__main__":
    main()
