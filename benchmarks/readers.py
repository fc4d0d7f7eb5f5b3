"""Which tool reads which file of `ldvc segment` right: the tables of docs/tools.md.

    python -m benchmarks.readers --python TOOLS/bin/python   asks the tools of that environment, writes the tables
    python -m benchmarks.readers                             renders docs/tools.md from results/tools/readers.json

`benchmarks/readers_probe.py` runs in the environment of the tools, whose packages docs/tools.md lists.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldvc.data.provenance import write_json
from ldvc.masks.files import Picture
from ldvc.masks.formats import Format, OutputFolder, describe_names
from ldvc.model.inference_ldvc import Segmentation


ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, RESULT, PROBE = ROOT / "docs/tools.md", ROOT / "results/tools/readers.json", "benchmarks/readers_probe.py"
MARKER = re.compile(r"(<!-- readers: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SIZE = (48, 64)  # height and width in pixels


def sample_ids(num_classes: int) -> np.ndarray:
    """Make a (height, width) int64 label map with a hole, an island in it, one-pixel parts and an empty class.

    Args:
        num_classes: At least 4; the last but one gets no pixel.
    """
    ids = np.zeros(SIZE, dtype=np.int64)
    ids[4:40, 4:40] = 1
    ids[12:30, 12:30] = 0  # a hole
    ids[18:24, 18:24] = 1  # an island in it
    ids[44, 50], ids[45, 51], ids[0, 63] = 1, 1, num_classes - 1  # one-pixel parts, two that touch at a corner
    ids[10:30, 44:60] = num_classes - 1
    return ids


def write_results(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Write all kinds of results of one picture, ../photos/a.jpg; returns its (height, width) ids."""
    ids = sample_ids(len(names))
    source = folder.parent / "photos" / "a.jpg"
    source.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((np.arange(3 * ids.size) % 251).astype(np.uint8).reshape(*ids.shape, 3))
    image.save(source, quality=95)
    label_map = torch.from_numpy(ids)
    scores = torch.nn.functional.one_hot(label_map, len(names)).permute(2, 0, 1) * 0.8 + 0.1
    found = Segmentation(label_map, list(names), scores, label_map[None], torch.full((1, *ids.shape), 0.9))
    output = OutputFolder(folder, list(Format), describe_names(names, scores=False), len(names))
    picture = Picture(source, PurePath("a"))
    output.start({picture.name: source})
    output.save(picture, image, found)
    output.finish()
    return ids


def probe(python: str) -> dict[str, Any]:
    """Write sample results and ask the tools of an environment."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        counts = {
            "few": ["cat", "sofa", "grass", "empty", "sky"],
            "many": [f"class {number}" for number in range(300)],
        }
        expected = {key: write_results(folder / key, names) for key, names in counts.items()}
        np.savez(folder / "expected.npz", **expected)
        done = subprocess.run([python, PROBE, place], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def render(text: str, result: Mapping[str, Any]) -> str:
    """Put the tables into a document."""

    def table(found: re.Match) -> str:
        rows = result[found[2]]
        lines = ["| file | tool | call | reads |", "|---|---|---|---|"]
        lines += [f"| {r['file']} | {r['tool']} {r['version']} | `{r['call']}` | {r['reads']} |" for r in rows]
        return found[1] + "\n".join(lines) + "\n" + found[4]

    return MARKER.sub(table, text)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment with the tools; asks them anew")
    arguments = parser.parse_args()
    if arguments.python:
        write_json(probe(arguments.python), RESULT)
    DOCUMENT.write_text(render(DOCUMENT.read_text(), json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
