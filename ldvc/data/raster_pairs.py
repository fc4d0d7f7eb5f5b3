"""GeoTIFF pairs as training data: rasters and their label rasters, cut into tiles of pictures and label maps.

    aerial/images/a.tif   aerial/masks/a.tif   and  classes.txt, unless the label rasters name their classes

Pixels without data in either, and ids that are the label raster's nodata value, get the id 255, no label; a tile
without any label is left out. Needs rasterio, the extra `geo`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ldvc.data.exports import is_replaced
from ldvc.data.folders import find_folder_splits, read_class_names
from ldvc.data.label_maps import LOSSY_TIFF
from ldvc.data.provenance import write_json
from ldvc.data.samples import IGNORE_INDEX
from ldvc.loading import one_line
from ldvc.masks.drawing import save_label_map
from ldvc.masks.files import parse_value_range
from ldvc.masks.parts import written_aside
from ldvc.masks.rasters import RasterPicture, RasterSettings, opened, parse_bands


if TYPE_CHECKING:
    from rasterio.io import DatasetReader

__all__ = ["convert_pairs"]


def read_names(folder: Path, label_path: Path) -> list[str]:
    """Read the class names of the folder, or of the tags of a label raster that LDVC wrote.

    Raises:
        ValueError: If neither names them.
    """
    names = read_class_names(folder)
    if names is None:
        with opened(label_path) as dataset:
            names = json.loads(dataset.tags().get("LDVC_CLASSES", "null"))
    if not names:
        raise ValueError(f"{folder} names no classes: add a classes.txt, one name a line in the order of the ids.")
    return names


def check_label_raster(labels: DatasetReader) -> None:
    """Check that an open raster can hold ids, by the rules of `ldvc/data/label_maps.py`.

    Raises:
        ValueError: If it has several bands, floats, or a compression that changes values.
    """
    if labels.count > 1:
        raise ValueError(f"the label raster has {labels.count} bands; a label map is one band of ids.")
    if not np.issubdtype(np.dtype(labels.dtypes[0]), np.integer):
        raise ValueError(f"the label raster holds {labels.dtypes[0]}; ids are whole numbers.")
    compression = "" if labels.compression is None else labels.compression.value
    if compression.lower() in LOSSY_TIFF:
        raise ValueError(
            f"the label raster is compressed as {compression}, which may change ids at every border; export it again "
            "with DEFLATE or LZW."
        )


def tiles(pair: tuple[Path, Path], settings: RasterSettings, side: int, num_classes: int) -> Iterator[tuple]:
    """Yield the top and left pixel, the (rows, columns, 3) picture and the (rows, columns) ids of every tile.

    Raises:
        ValueError: If the two do not lie on each other, or an id has no name.
    """
    picture = RasterPicture(pair[0], PurePath(pair[0].stem), settings)
    with picture.opened() as reader, opened(pair[1]) as labels:
        height, width = reader.size
        place = (labels.height, labels.width, labels.transform, labels.crs)
        if place != (height, width, reader.dataset.transform, reader.dataset.crs):
            raise ValueError("the label raster lies elsewhere (size, transform or CRS); warp it onto the picture.")
        check_label_raster(labels)
        for top in range(0, height, side):
            for left in range(0, width, side):
                rows, columns = slice(top, min(top + side, height)), slice(left, min(left + side, width))
                window = ((rows.start, rows.stop), (columns.start, columns.stop))
                ids = labels.read(1, window=window).astype(np.int64)
                ids[labels.read_masks(1, window=window) == 0] = IGNORE_INDEX
                is_valid = reader.is_valid(rows, columns)
                ids = ids if is_valid is None else np.where(is_valid, ids, IGNORE_INDEX)
                unknown = [i for i in np.unique(ids).tolist() if not 0 <= i < num_classes and i != IGNORE_INDEX]
                if unknown:
                    raise ValueError(f"the label raster holds id {unknown[0]}, and there are {num_classes} classes.")
                if (ids != IGNORE_INDEX).any():
                    yield top, left, reader.read(rows, columns), ids


def write_pair(pair: tuple[Path, Path], arguments: argparse.Namespace, names: list[str], folder: Path) -> int:
    """Write the tiles of a pair below a folder; returns how many. Those of a pair that fails are taken away."""
    settings = RasterSettings(parse_bands(arguments.bands), parse_value_range(arguments.value_range))
    written: list[Path] = []
    try:
        for top, left, pixels, ids in tiles(pair, settings, arguments.tile, len(names)):
            paths = [folder / kind / f"{pair[0].stem}_{top}_{left}.png" for kind in ("images", "masks")]
            written += paths
            with written_aside(paths[0]) as file:
                Image.fromarray(pixels).save(file, format="PNG")
            with written_aside(paths[1]) as file:
                save_label_map(ids, file, names)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return len(written) // 2


def convert_pairs(arguments: argparse.Namespace) -> int:
    """Turn pairs of rasters into a folder; returns 0, or 1 if some pairs could not be used.

    Raises:
        ValueError: If none can be used.
    """
    source, output = arguments.source.expanduser(), arguments.output.expanduser()
    is_there = is_replaced(arguments)
    splits = {split: found.pairs for split, found in find_folder_splits(source).items() if found.pairs}
    if not splits:
        raise ValueError(f"{source} holds no pairs; lay them out as images/a.tif and masks/a.tif.")
    names = read_names(source, next(iter(splits.values()))[0][1])
    if len(names) > IGNORE_INDEX:
        raise ValueError(f"{source} has {len(names)} classes; label maps of training hold {IGNORE_INDEX}.")
    if is_there:
        shutil.rmtree(output)
    failures, count = [], 0
    for split, pairs in splits.items():
        for pair in pairs:
            try:
                count += write_pair(pair, arguments, names, output / split)
            except (ValueError, OSError) as error:
                failures.append(f"{pair[0]}: {one_line(error)}")
    for line in failures:
        sys.stderr.write(f"  {line}\n")
    if not count:
        raise ValueError(f"none of {sum(map(len, splits.values()))} pairs could be used.")
    write_json({"dataset": arguments.dataset, "class_names": names}, output / "classes.json")
    sys.stdout.write(f"{count} tiles written to {output}; ldvc check {output} looks at them.\n")
    return 1 if failures else 0
