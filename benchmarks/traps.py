"""Traps of the stack that users of label maps meet: the second table of docs/tools.md, each seen by running it.

    python -m benchmarks.traps        runs each on the installed versions and writes the table

A trap that is gone says so; then its row is to be taken out. Nothing of LDVC is run.
"""

import io
import re
import tempfile
from collections.abc import Callable
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


Trap = tuple[str, str, str, Callable[[Path], str]]
FEATURES, BEIT = "features/image.py", "models/beit/image_processing_pil_beit.py"
TRAPS: list[Trap] = [
    ("datasets", FEATURES, "`map` that only reads `image.width` encodes pictures again", looked_at_size),
    ("datasets", FEATURES, "painting in place in `map` is lost where pictures are files", painted_in_place),
    ("datasets", FEATURES, '`Image(mode="L")` turns palette ids into luminance', luminance_of_palette),
    ("datasets", "iterable_dataset.py", "a streaming shuffle buffer loses rows on resuming", buffer_on_resuming),
    ("transformers", BEIT, "BEiT's and DPT's processors do not resize label maps by nearest", resized_label_maps),
    ("accelerate", "accelerator.py", "`gather_for_metrics` cuts what has no row per sample", gathered_matrix),
    ("rasterio", "io.pyx", "`average` overviews of ids hold other classes' ids", averaged_overviews),
]


def main() -> None:
    """Run all and write the table."""
    disable_progress_bars()
    rows = []
    for package, file, words, check in TRAPS:
        with tempfile.TemporaryDirectory() as folder:
            seen = check(Path(folder))
        rows.append({"library": f"{package} {version(package)}", "source": file, "trap": words, "seen": seen})
    write_json({"traps": rows}, RESULT)
    DOCUMENT.write_text(render(DOCUMENT.read_text(), rows))


def render(text: str, rows: list[dict[str, str]]) -> str:
    """Put the table into the document."""
    lines = ["| library | source file | trap | seen |", "|---|---|---|---|"]
    lines += [f"| {r['library']} | `{r['source']}` | {r['trap']} | {r['seen']} |" for r in rows]
    return MARKER.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[3], text)


if __name__ == "__main__":
    main()
