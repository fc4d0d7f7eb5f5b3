"""What other tools read in the files of `ldvc segment`; run by `benchmarks/readers.py` in an environment of the tools.

Imports nothing of LDVC: the folder, with `expected.npz` of the right ids, is all that the tools get to see.
"""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np


Row = dict[str, str]


def judge(found: Any, expected: np.ndarray) -> str:
    """Compare what a tool gave with the right ids, in words."""
    found = np.asarray(found)
    if found.shape == expected.shape:
        return "ids" if np.array_equal(found, expected) else f"**other numbers** ({found.dtype})"
    if found.ndim != 3:
        return f"**another shape** {found.shape}"
    is_grey = all(np.array_equal(found[..., channel], found[..., 0]) for channel in range(found.shape[2]))
    if is_grey and np.array_equal(found[..., 0], expected):
        return f"ids, {found.shape[2]} times over"
    return "**other numbers**, 3 times over" if is_grey else "**colours**"


def attempt(package: str, call: str, file: str, read: Callable[[], str]) -> Row:
    """One row of the table; an error of the tool is what it says."""
    try:
        installed = version(package)
    except PackageNotFoundError:
        return {"tool": package, "version": "not installed", "call": call, "file": file, "reads": "not tried"}
    try:
        reads = read()
    except Exception as error:  # whatever the tool raises is what its users see
        reads = f"**{type(error).__name__}**: {' '.join(str(error).split())[:80]}"
    return {"tool": package, "version": installed, "call": call, "file": file, "reads": reads}


# ---- label maps in PNG


def picture_readers(path: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield package, call and reader of one label map."""

    def load(name: str) -> Any:
        return importlib.import_module(name)

    yield "pillow", "np.asarray(Image.open(f))", lambda: load("PIL.Image").open(path)
    yield "pillow", 'Image.open(f).convert("L")', lambda: load("PIL.Image").open(path).convert("L")
    yield "opencv-python-headless", "cv2.imread(f)", lambda: load("cv2").imread(path)
    yield "opencv-python-headless", "cv2.imread(f, 0)", lambda: load("cv2").imread(path, 0)
    yield "opencv-python-headless", "cv2.imread(f, cv2.IMREAD_UNCHANGED)", lambda: load("cv2").imread(path, -1)
    yield "scikit-image", "skimage.io.imread(f)", lambda: load("skimage.io").imread(path)
    yield "imageio", "imageio.v3.imread(f)", lambda: load("imageio.v3").imread(path)
    itk = "SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f))"
    yield "simpleitk", itk, lambda: load("SimpleITK").GetArrayFromImage(load("SimpleITK").ReadImage(path))
    yield "rasterio", "rasterio.open(f).read(1)", lambda: load("rasterio").open(path).read(1)


def png_rows(folder: Path, expected: dict[str, np.ndarray]) -> Iterator[Row]:
    """Palette, grey and 16-bit files in every reader."""
    places = {"png": "few/a.png", "grey": "few/a.grey.png", "16-bit grey (300 classes)": "many/a.png"}
    for file, place in places.items():
        ids = expected[place.partition("/")[0]]
        for package, call, read in picture_readers(str(folder / place)):
            yield attempt(package, call, file, lambda read=read, ids=ids: judge(read(), ids))


def optimiser_rows(folder: Path, expected: dict[str, np.ndarray]) -> Iterator[Row]:
    """What programs that make PNG files smaller do to the ids."""
    from PIL import Image

    def run(place: str, change: Callable[[Path, Path], None]) -> str:
        changed = folder / "changed.png"
        shutil.copy(folder / place, changed)
        change(folder / place, changed)
        with Image.open(changed) as image:
            verdict = judge(image, expected[place.partition("/")[0]])
            return f"{verdict.replace('**other numbers**', '**ids permuted**')}, mode {image.mode}"

    def oxipng(source: Path, target: Path) -> None:
        importlib.import_module("oxipng").optimize(str(source), str(target), level=4)

    def pngquant(source: Path, target: Path) -> None:
        program = Path(sys.executable).with_name("pngquant")
        subprocess.run([program, "--force", "--output", target, source], check=True, capture_output=True)

    def zopflipng(source: Path, target: Path) -> None:
        target.write_bytes(importlib.import_module("zopfli.png").optimize(source.read_bytes()))

    programs = {"pyoxipng": oxipng, "pngquant-cli": pngquant, "zopfli": zopflipng}
    for file, place in {"png": "few/a.png", "grey": "few/a.grey.png"}.items():
        for package, change in programs.items():
            yield attempt(package, "(default settings)", file, lambda place=place, change=change: run(place, change))


TABLES = {"png": png_rows, "optimisers": optimiser_rows}


def main() -> None:
    """Print all rows as JSON, the last line of the output."""
    folder = Path(sys.argv[1])
    expected = dict(np.load(folder / "expected.npz"))
    sys.stdout.write("\n" + json.dumps({name: list(rows(folder, expected)) for name, rows in TABLES.items()}) + "\n")


if __name__ == "__main__":
    main()
