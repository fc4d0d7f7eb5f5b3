"""Cost of a large GeoTIFF through `ldvc segment`: peak memory, and time against the same pixels as a plain PNG.

    python -m benchmarks.rasters                    4,000 x 4,000 pixels both ways, then a GeoTIFF of 20,000 x 20,000
    python -m benchmarks.rasters --side 8000        another size of the large one

Every run is a process of its own on the embedded checkpoint, windows of 128 pixels side by side. Writes
results/tools/rasters.json.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import describe_machine
from ldvc.data.provenance import code_version, write_json


ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results/tools/rasters.json"
TILE, COMPARED = 512, 4000
WINDOW, BATCH = 128, 16  # pixels: those that the embedded checkpoint learned on; windows per call
REFERENCE = {"crs": "EPSG:32633", "west": 500_000, "north": 5_200_000, "metres": 0.5}


def draw_rows(top: int, rows: int, side: int) -> np.ndarray:
    """Fields of smooth colours: (rows, side, 3) uint8."""
    y, x = np.arange(top, top + rows)[:, None], np.arange(side)[None]
    planes = [(np.sin(x / a) + np.cos(y / b)) * 60 + 128 for a, b in ((90, 130), (210, 70), (150, 330))]
    return np.stack(planes, axis=-1).astype(np.uint8)


def write_geotiff(path: Path, side: int) -> None:
    """Write an RGB raster in strips."""
    import rasterio
    from rasterio.transform import from_origin

    place = from_origin(REFERENCE["west"], REFERENCE["north"], REFERENCE["metres"], REFERENCE["metres"])
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "tiled": True}
    profile |= {"blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "crs": REFERENCE["crs"]}
    with rasterio.open(path, "w", transform=place, **profile) as dataset:
        for top in range(0, side, TILE):
            rows = min(TILE, side - top)
            pixels = np.moveaxis(draw_rows(top, rows, side), -1, 0)
            dataset.write(pixels, window=((top, top + rows), (0, side)))


def run(source: Path, output: Path, kind: str) -> dict[str, float]:
    """Segment a picture in a process of its own; returns seconds and peak megabytes.

    Raises:
        RuntimeError: If it fails.
    """
    words = ["segment", source, "-o", output, "-f", kind, "--window", WINDOW, "--stride", WINDOW, "--short-side", 0]
    words += ["--device", "cpu", "--batch-size", BATCH]
    start, peak = time.perf_counter(), 0
    child = os.posix_spawn(sys.executable, [sys.executable, "-m", "ldvc", *map(str, words)], os.environ)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        peak = max(peak, peak_kilobytes(child))  # what wait4 gives counts this process's own memory, too
        time.sleep(0.1)
    if ended[1]:
        raise RuntimeError(f"ldvc {' '.join(map(str, words))} ended with {os.waitstatus_to_exitcode(ended[1])}")
    return {"seconds": time.perf_counter() - start, "peak_megabytes": peak / 1024}


def peak_kilobytes(process_id: int) -> int:
    """Most memory that a process of Linux has held; 0 where it has just ended."""
    text = Path(f"/proc/{process_id}/status").read_text()
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")), 0)


def compare(folder: Path) -> dict[str, Any]:
    """The same pixels as GeoTIFF and as PNG, in turn, the faster of two runs each.

    Raises:
        ValueError: If their label maps differ.
    """
    import rasterio

    tiff, png = folder / "compared.tif", folder / "plain.png"
    write_geotiff(tiff, COMPARED)
    Image.fromarray(draw_rows(0, COMPARED, COMPARED)).save(png, compress_level=1)
    runs = {"geotiff": [], "png": []}
    for number in range(2):
        for kind, source in (("geotiff", tiff), ("png", png)):
            runs[kind].append(run(source, folder / f"{kind}{number}", kind))
    with rasterio.open(folder / "geotiff0/compared.tif") as dataset, Image.open(folder / "png0/plain.png") as plain:
        if not np.array_equal(dataset.read(1), np.asarray(plain)):
            raise ValueError("the label maps of GeoTIFF and PNG differ")
    best = {kind: min(found, key=lambda one: one["seconds"]) for kind, found in runs.items()}
    return {"side": COMPARED, **best, "time_ratio": best["geotiff"]["seconds"] / best["png"]["seconds"]}


def measure_large(folder: Path, side: int) -> dict[str, Any]:
    """One large GeoTIFF; checks that it lies where its source lies."""
    import rasterio

    source = folder / "large.tif"
    write_geotiff(source, side)
    found = run(source, folder / "large", "geotiff")
    with rasterio.open(source) as given, rasterio.open(folder / "large/large.tif") as result:
        same = (given.crs, given.bounds) == (result.crs, result.bounds)
        overviews = result.overviews(1)
    return {"side": side, **found, "same_crs_and_bounds": same, "overviews": overviews}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="pixels of the large raster; 0 leaves it out")
    arguments = parser.parse_args()
    about = {"machine": describe_machine(), "code": code_version()}
    with tempfile.TemporaryDirectory() as place:
        result = {"compared": compare(Path(place))}
        write_json(result | about, RESULT)  # now: the large one takes long, and may be stopped
        if arguments.side:
            write_json(result | {"large": measure_large(Path(place), arguments.side)} | about, RESULT)


if __name__ == "__main__":
    main()
