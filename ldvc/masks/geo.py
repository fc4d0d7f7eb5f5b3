"""Results for maps: GeoTIFF of ids and GeoJSON of polygons, where the source says where its pixels lie.

A raster that is segmented by windows goes to its file strip by strip, so that memory does not grow with its size.
Needs rasterio (GDAL), the extra `geo`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ldvc.masks.drawing import class_colors
from ldvc.masks.parts import written_aside
from ldvc.masks.rasters import CACHE_MEGABYTES, GeoReference, geo_reference
from ldvc.masks.writer import Classes, Result, Writer


if TYPE_CHECKING:
    from ldvc.masks.files import Picture

TILE = 512  # pixels; also the height of a strip
NODATA_8, NODATA_16 = 255, 65535  # no class; the first is the field's id of "no label"
LONGITUDE_LATITUDE = "EPSG:4326"  # what GeoJSON is in, by its standard
DIGITS = 9  # of degrees: a tenth of a millimetre


@dataclass(frozen=True)
class Block:
    """A part of a picture, segmented.

    Attributes:
        rows: Of the picture.
        columns: Of the picture.
        ids: (rows, columns) of the label map.
        best_scores: (rows, columns) float32, probability of every pixel's best class.
        is_valid: (rows, columns) bool, where the source has data; `None` is everywhere.
    """

    rows: slice
    columns: slice
    ids: np.ndarray
    best_scores: np.ndarray
    is_valid: np.ndarray | None = None


class ClassMeans:
    """Mean score of every class over blocks.

    Args:
        classes: What the ids mean.
    """

    def __init__(self, classes: Classes):
        self.classes, self.totals, self.counts = classes, np.zeros(len(classes.names)), np.zeros(len(classes.names))

    def add(self, block: Block) -> None:
        """Count a block."""
        is_valid = slice(None) if block.is_valid is None else block.is_valid
        ids, scores = block.ids[is_valid].ravel(), block.best_scores[is_valid].ravel()
        self.totals += np.bincount(ids, weights=scores, minlength=len(self.totals))
        self.counts += np.bincount(ids, minlength=len(self.counts))

    def score(self, class_id: int) -> float:
        """Mean of a class; of "other", the mean of what the best class lacks of 1."""
        mean = self.totals[class_id] / self.counts[class_id]
        return round(float(1 - mean if class_id == self.classes.num_classes else mean), 6)


def nodata_of(classes: Classes) -> int:
    """Id of pixels without data: 255, or 65,535 where 255 is a class."""
    return NODATA_8 if len(classes.names) <= NODATA_8 else NODATA_16


def tags_of(classes: Classes, picture: Picture) -> dict[str, str]:
    """What a GeoTIFF says of how it was made."""
    told = ("labels", "negative_labels", "background", "threshold", "inference")
    settings = {key: classes.settings[key] for key in told if key in classes.settings}
    return {
        "TIFFTAG_SOFTWARE": "LDVC",
        "LDVC_SOURCE": picture.file_name,
        "LDVC_MODEL": str(classes.settings.get("model", "")),
        "LDVC_CLASSES": json.dumps(classes.names, ensure_ascii=False),
        "LDVC_PROMPT": json.dumps(settings, ensure_ascii=False),
    }


@contextmanager
def tiff_strips(path: Path, size: tuple[int, int], classes: Classes, picture: Picture) -> Iterator[TiffStrips]:
    """Open a GeoTIFF for blocks from top to bottom: tiled, compressed, with colours, tags and nearest overviews.

    Args:
        path: Where to write, whatever its suffix.
        size: (height, width) in pixels.
        classes: What the ids mean.
        picture: For its place on Earth and the tags.

    Raises:
        ValueError: If there are more ids than 16 bits hold.
    """
    import rasterio
    from rasterio.enums import Resampling

    if len(classes.names) > NODATA_16:
        raise ValueError(f"{len(classes.names)} classes: a GeoTIFF holds {NODATA_16} ids at most; use --format npz.")
    place = geo_reference(picture)
    profile: dict[str, Any] = {} if place is None else {"transform": place.transform, "crs": place.crs}
    profile |= {"driver": "GTiff", "height": size[0], "width": size[1], "count": 1, "nodata": nodata_of(classes)}
    profile |= {"dtype": "uint8" if nodata_of(classes) == NODATA_8 else "uint16", "compress": "deflate"}
    profile |= {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "BIGTIFF": "IF_SAFER"}
    with quiet(), rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES):
        with rasterio.open(path, "w", **profile) as dataset:
            colors = class_colors(classes.names).tolist()
            dataset.write_colormap(1, {class_id: (*color, 255) for class_id, color in enumerate(colors)})
            dataset.update_tags(**tags_of(classes, picture))
            strips = TiffStrips(dataset, size, nodata_of(classes))
            yield strips
            strips.flush()
        factors = [2**power for power in range(1, 16) if max(size) // 2**power >= TILE // 2]
        if factors:
            with rasterio.open(path, "r+") as dataset:
                dataset.build_overviews(factors, Resampling.nearest)  # an average of ids is another class


@contextmanager
def quiet() -> Iterator[None]:
    """No warning of rasters without geo-reference, of which the writer says so once."""
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


class TiffStrips:
    """Collects blocks until a strip of whole tiles is full, since a tile that is written twice is stored twice.

    Args:
        dataset: Open for writing.
        size: (height, width) in pixels.
        nodata: Id of pixels without data.
    """

    def __init__(self, dataset: Any, size: tuple[int, int], nodata: int):
        self.dataset, self.size, self.nodata, self.top = dataset, size, nodata, 0
        self.strip = np.full((0, size[1]), nodata, dtype=dataset.dtypes[0])

    def add(self, block: Block) -> None:
        """Take a block; none may begin above the rows of an earlier one."""
        while block.rows.start >= self.top + TILE:
            self._write(TILE)
        missing = block.rows.stop - self.top - len(self.strip)
        if missing > 0:
            more = np.full((missing, self.size[1]), self.nodata, dtype=self.strip.dtype)
            self.strip = np.concatenate([self.strip, more])
        ids = block.ids if block.is_valid is None else np.where(block.is_valid, block.ids, self.nodata)
        self.strip[block.rows.start - self.top : block.rows.stop - self.top, block.columns] = ids

    def flush(self) -> None:
        """Write what is left."""
        while len(self.strip):
            self._write(min(TILE, len(self.strip)))

    def _write(self, count: int) -> None:
        window = ((self.top, self.top + count), (0, self.size[1]))
        self.dataset.write(self.strip[:count], 1, window=window)
        self.strip, self.top = self.strip[count:].copy(), self.top + count


def geojson_features(tiff: Path, classes: Classes, means: ClassMeans, place: GeoReference | None) -> Iterator[dict]:
    """Yield a feature per part of a class, read from a GeoTIFF of ids.

    Coordinates are longitude and latitude where the source says where it lies, and pixels otherwise.
    """
    import rasterio
    from rasterio.features import shapes
    from rasterio.warp import transform_geom

    with quiet(), rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES), rasterio.open(tiff) as dataset:
        band = rasterio.band(dataset, 1)
        is_known = place is not None and place.crs is not None
        for geometry, value in shapes(band, connectivity=4, transform=dataset.transform):
            class_id = int(value)
            if class_id == dataset.nodata:
                continue
            if is_known:
                geometry = transform_geom(place.crs, LONGITUDE_LATITUDE, geometry, precision=DIGITS)
            properties = {"class": classes.names[class_id], "class_id": class_id, "score": means.score(class_id)}
            yield {"type": "Feature", "properties": properties, "geometry": geometry}


class RasterWriter(Writer):
    """Results that a picture's blocks can be written to as they come."""

    packages = ("rasterio",)
    needs_best_scores = True
    _has_said = False

    def write_blocks(self, picture: Picture, size: tuple[int, int], blocks: Iterator[Block]) -> Iterator[Block]:
        """Write blocks from top to bottom, and pass them on.

        Raises:
            NotImplementedError: If a kind has none of its own.
        """
        raise NotImplementedError

    def check_place(self, picture: Picture, consequence: str) -> None:
        """Say once for all pictures what follows where one does not say where it lies."""
        if not self._has_said and geo_reference(picture) is None:
            self._has_said = True
            text = f"{picture.path} does not say where it lies, {consequence}; said once for all."
            logging.getLogger("ldvc.geo").warning(text)

    def write(self, result: Result) -> None:
        """Write a picture that is held whole, as one block."""
        for _ in self.write_blocks(result.picture, result.label_map.shape, iter([whole_block(result)])):
            pass


def whole_block(result: Result) -> Block:
    """A whole picture as one block."""
    from ldvc.masks.rasters import RasterPicture

    height, width = result.label_map.shape
    rows, columns, is_valid = slice(0, height), slice(0, width), None
    if isinstance(result.picture, RasterPicture):
        with result.picture.opened() as reader:
            is_valid = reader.is_valid(rows, columns)
    return Block(rows, columns, result.label_map, result.best_scores, is_valid)


class GeoTiffWriter(RasterWriter):
    """A GeoTIFF of ids, where the source lies."""

    places = ("{}.tif",)

    def write_blocks(self, picture: Picture, size: tuple[int, int], blocks: Iterator[Block]) -> Iterator[Block]:
        """Write blocks from top to bottom, and pass them on."""
        self.check_place(picture, "so neither does its GeoTIFF")
        (path,) = self.paths(picture.name)
        with written_aside(path) as file, tiff_strips(Path(file.name), size, self.classes, picture) as strips:
            for block in blocks:
                strips.add(block)
                yield block


class GeoJsonWriter(RasterWriter):
    """A GeoJSON of polygons with class and score."""

    places = ("{}.geojson",)

    def write_blocks(self, picture: Picture, size: tuple[int, int], blocks: Iterator[Block]) -> Iterator[Block]:
        """Write blocks to a raster that is not kept, pass them on, and draw its polygons at the end."""
        self.check_place(picture, "so its GeoJSON counts in pixels")
        means, (path,) = ClassMeans(self.classes), self.paths(picture.name)
        with tempfile.TemporaryDirectory() as folder:
            tiff = Path(folder, "ids.tif")
            with tiff_strips(tiff, size, self.classes, picture) as strips:
                for block in blocks:
                    strips.add(block)
                    means.add(block)
                    yield block
            with written_aside(path) as file:
                write_features(file, geojson_features(tiff, self.classes, means, geo_reference(picture)))


def write_features(file: IO[bytes], features: Iterator[dict]) -> None:
    """Write a collection, a feature at a time."""
    file.write(b'{"type": "FeatureCollection", "features": [')
    for position, feature in enumerate(features):
        file.write(((",\n" if position else "\n") + json.dumps(feature, ensure_ascii=False)).encode())
    file.write(b"\n]}\n")


def write_all_blocks(
    writers: Sequence[RasterWriter], picture: Picture, size: tuple[int, int], blocks: Iterator[Block]
) -> None:
    """Send the blocks of a picture through all writers, each of which sees every block as it comes."""
    for writer in writers:
        blocks = writer.write_blocks(picture, size, blocks)
    for _ in blocks:
        pass
