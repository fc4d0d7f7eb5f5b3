"""Traps of the stack that users of label maps meet: the second table of docs/tools.md, each seen by running it.

    python -m benchmarks.traps                  runs each and writes the table
    python -m benchmarks.traps --only loadmat   some of them, by words of their rows; the others' rows stay

Each runs on the installed version, but for those that differ by version: these fetch each version from PyPI into a
temporary folder. A trap that is gone says so; then its row is to be taken out. Nothing of LDVC is run.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars
from PIL import Image

from ldvc.data.provenance import write_json


ROOT = Path(__file__).resolve().parent.parent
DOCUMENT, RESULT = ROOT / "docs/tools.md", ROOT / "results/tools/traps.json"
MARKER = re.compile(r"(<!-- traps -->\n)(.*?)(<!-- end -->)", re.DOTALL)
GONE = "gone: "


def picture() -> Image.Image:
    """64 x 48 pixels of noise, which every encoder changes."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def looked_at_size(folder: Path) -> str:
    """Reading `image.width` in `Dataset.map`."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    sizes = {}
    for name, options in {"JPEG 95": {"quality": 95}, "lossless WebP": {"lossless": True}}.items():
        path = folder / f"{name.split()[0]}.{'jpg' if name.startswith('J') else 'webp'}"
        picture().save(path, **options)
        rows = Dataset.from_dict({"image": [{"bytes": path.read_bytes(), "path": None}]})
        rows = rows.cast_column("image", ImageFeature())
        cell = rows.map(lambda row: {"width": row["image"].width}).cast_column("image", ImageFeature(decode=False))
        after = cell[0]["image"]["bytes"]
        changed = not np.array_equal(*(np.asarray(Image.open(io.BytesIO(b))) for b in (path.read_bytes(), after)))
        if changed:
            sizes[name] = f"{name}: {path.stat().st_size:,} bytes become {len(after):,}, with other pixels"
    return "; ".join(sizes.values()) or GONE + "pixels stay"


def painted_in_place(folder: Path) -> str:
    """Painting into the decoded picture in `Dataset.map`."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    picture().save(folder / "a.png")
    rows = Dataset.from_dict({"image": [str(folder / "a.png")]}).cast_column("image", ImageFeature())

    def paint(row: dict) -> dict:
        row["image"].paste((0, 0, 0), (0, 0, 64, 48))
        return row

    is_lost = np.asarray(rows.map(paint)[0]["image"]).any()
    return "a picture painted black comes back as it was" if is_lost else GONE + "the painting stays"


def luminance_of_palette(folder: Path) -> str:
    """`Image(mode="L")` on a palette PNG."""
    from datasets import Dataset
    from datasets import Image as ImageFeature

    label = Image.fromarray(np.arange(4, dtype=np.uint8)[None])
    label.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    label.save(folder / "label.png")
    rows = Dataset.from_dict({"label": [str(folder / "label.png")]}).cast_column("label", ImageFeature(mode="L"))
    found = np.asarray(rows[0]["label"])[0].tolist()
    return f"ids 0, 1, 2, 3 become {found}" if found != [0, 1, 2, 3] else GONE + "ids stay"


def buffer_on_resuming(folder: Path) -> str:
    """A streaming shuffle buffer that is resumed."""
    from datasets import Dataset

    rows = Dataset.from_dict({"number": list(range(100))}).to_iterable_dataset().shuffle(seed=0, buffer_size=10)
    stream = iter(rows)
    before = [next(stream)["number"] for _ in range(50)]
    state = rows.state_dict()
    again = Dataset.from_dict({"number": list(range(100))}).to_iterable_dataset().shuffle(seed=0, buffer_size=10)
    again.load_state_dict(state)
    after = [row["number"] for row in again]
    lost = 100 - len(set(before) | set(after))
    return f"of 100 rows with a buffer of 10, {lost} never come" if lost else GONE + "every row comes"


def resized_label_maps(folder: Path) -> str:
    """BEiT's and DPT's image processors on `segmentation_maps`."""
    import transformers

    rng, counts = np.random.default_rng(0), {}
    ids = np.kron(rng.integers(0, 4, (8, 8)), np.ones((16, 16))).astype(np.uint8) * 60
    for name in ("BeitImageProcessorPil", "DPTImageProcessorPil"):
        processor = getattr(transformers, name)(size={"height": 96, "width": 96}, do_center_crop=False)
        labels = processor(Image.new("RGB", (128, 128)), segmentation_maps=Image.fromarray(ids))["labels"][0]
        counts[name] = len(np.unique(np.asarray(labels)))
    if max(counts.values()) <= len(np.unique(ids)):
        return GONE + "no id is made up"
    return "; ".join(f"{name}: 4 ids become {count}" for name, count in counts.items())


def gathered_matrix(folder: Path) -> str:
    """Accelerate's `gather_for_metrics` on a (classes, classes) matrix."""
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(torch.utils.data.DataLoader(torch.arange(10), batch_size=4))
    shapes = [tuple(accelerator.gather_for_metrics(torch.zeros(5, 5)).shape) for _ in loader]
    is_cut = shapes[-1] != (5, 5)
    return f"a 5 x 5 matrix is {shapes[-1]} at the last batch" if is_cut else GONE + "whole"


def averaged_overviews(folder: Path) -> str:
    """Overviews of a GeoTIFF of ids by `average`."""
    import rasterio
    from rasterio.enums import Resampling

    ids = np.where(np.arange(512) // 3 % 2, 4, 0) * np.ones((512, 1))
    profile = {"driver": "GTiff", "height": 512, "width": 512, "count": 1, "dtype": "uint8"}
    with rasterio.open(folder / "a.tif", "w", **profile, transform=rasterio.Affine(1, 0, 0, 0, -1, 512)) as dataset:
        dataset.write(ids.astype(np.uint8), 1)
        dataset.build_overviews([2], Resampling.average)
    with rasterio.open(folder / "a.tif", overview_level=0) as smaller:
        found = np.unique(smaller.read(1)).tolist()
    return f"ids 0 and 4 become {found}" if found != [0, 4] else GONE + "ids stay"


def accumulated_gradient(folder: Path) -> str:
    """The step of Transformers' Trainer with accumulation, for a model whose forward takes further arguments."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x - labels).mean()}

    class Open(Plain):
        def forward(self, x: torch.Tensor, labels: torch.Tensor, **kwargs: object) -> dict[str, torch.Tensor]:
            return super().forward(x, labels)

    def step(model: torch.nn.Module) -> float:
        arguments = TrainingArguments(
            str(folder), max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=4, use_cpu=True,
            learning_rate=1.0, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, report_to=[],
            save_strategy="no", disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
        )  # fmt: skip
        rows = [{"x": torch.ones(1), "labels": torch.ones(1)} for _ in range(4)]
        Trainer(model, arguments, train_dataset=rows).train()
        return round(abs(model.weight.item()), 6)

    closed, opened = step(Plain()), step(Open())
    if closed == opened:
        return GONE + "both steps are alike"
    return f"4 batches of a loss of slope 1 move a weight by {closed:g}, with `**kwargs` by {opened:g}"


# ---- by version


def with_packages(folder: Path, packages: str, code: str) -> str:
    """Run code with these packages, pinned, in place of the installed ones; returns what it prints."""
    place = folder / packages.replace(" ", "_")
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", place, *packages.split())
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(place)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def by_version(folder: Path, environments: Sequence[str], code: str) -> str:
    """What the same code prints with one package's versions, the first of each environment's packages."""
    seen = {packages: with_packages(folder, packages, code) for packages in environments}
    if len(set(seen.values())) == 1:
        return GONE + "all versions say the same"
    return "; ".join(f"{packages.split()[0].replace('==', ' ')}: {text}" for packages, text in seen.items())


def nested_sparse(folder: Path) -> str:
    """The kind of sparse matrices in a struct of a MAT file, as SBD's boundaries are."""
    code = """
import numpy as np, scipy.io, scipy.sparse
cells = np.empty((2, 1), dtype=object)
cells[:, 0] = [scipy.sparse.csc_matrix(np.eye(3)), scipy.sparse.csc_matrix(np.eye(3) * 2)]
scipy.io.savemat("a.mat", {"GTcls": {"Boundaries": cells}, "top": cells[0, 0]})
content = scipy.io.loadmat("a.mat")
inner = content["GTcls"]["Boundaries"][0, 0][0, 0]
print(f"{type(inner).__name__} ({type(content['top']).__name__} at the top)")
"""
    versions = ("scipy==1.14.1", "scipy==1.15.3", "scipy==1.16.3", "scipy==1.17.1")
    return by_version(folder, [f"{name} numpy==2.2.6" for name in versions], code)


def absent_dice(folder: Path) -> str:
    """MedPy's Dice of a class that neither map has."""
    code = """
import numpy as np
from medpy.metric.binary import dc
print(dc(np.zeros((4, 4), int), np.zeros((4, 4), int)))
"""
    return by_version(folder, [f"numpy=={number} medpy==0.5.2 scipy==1.16.3" for number in NUMPY], code)


NUMPY = ("1.26.4", "2.2.6", "2.4.6")
Trap = tuple[str, str, str, Callable[[Path], str]]
FEATURES, BEIT = "features/image.py", "models/beit/image_processing_pil_beit.py"
TRAPS: list[Trap] = [
    ("datasets", FEATURES, "`map` that only reads `image.width` encodes pictures again", looked_at_size),
    ("datasets", FEATURES, "painting in place in `map` is lost where pictures are files", painted_in_place),
    ("datasets", FEATURES, '`Image(mode="L")` turns palette ids into luminance', luminance_of_palette),
    ("datasets", "iterable_dataset.py", "a streaming shuffle buffer loses rows on resuming", buffer_on_resuming),
    ("transformers", BEIT, "BEiT's and DPT's processors do not resize label maps by nearest", resized_label_maps),
    ("accelerate", "accelerator.py", "`gather_for_metrics` cuts what has no row per sample", gathered_matrix),
    (
        "transformers",
        "trainer.py",
        "accumulation multiplies the gradient of models with `**kwargs`",
        accumulated_gradient,
    ),
    (
        "scipy",
        "io/matlab/_mio5.py",
        "`loadmat` gives nested sparse matrices of another kind by version",
        nested_sparse,
    ),
    ("medpy", "metric/binary.py", "Dice of a class that neither map has depends on NumPy's version", absent_dice),
    ("rasterio", "io.pyx", "`average` overviews of ids hold other classes' ids", averaged_overviews),
]
BY_VERSION = {nested_sparse: "", absent_dice: "0.5.2"}  # what is seen names the versions


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="run traps whose rows have a word of these"
    )
    arguments = parser.parse_args()
    disable_progress_bars()
    kept = {row["trap"]: row for row in json.loads(RESULT.read_text())["traps"]} if RESULT.is_file() else {}
    rows = []
    for package, file, words, check in TRAPS:
        if not any(word in f"{package} {words}" for word in arguments.only):
            rows += [kept[words]] if words in kept else []
            continue
        with tempfile.TemporaryDirectory() as folder:
            seen = check(Path(folder))
        library = (
            f"{package} {version(package)}" if check not in BY_VERSION else f"{package} {BY_VERSION[check]}".strip()
        )
        rows.append({"library": library, "source": file, "trap": words, "seen": seen})
    write_json({"traps": rows}, RESULT)
    DOCUMENT.write_text(render(DOCUMENT.read_text(), rows))


def render(text: str, rows: list[dict[str, str]]) -> str:
    """Put the table into the document."""
    lines = ["| library | source file | trap | seen |", "|---|---|---|---|"]
    lines += [f"| {r['library']} | `{r['source']}` | {r['trap']} | {r['seen']} |" for r in rows]
    return MARKER.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[3], text)


if __name__ == "__main__":
    main()
