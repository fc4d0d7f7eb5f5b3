"""Rasters of geography as pictures: bands, value ranges, windows read from the file, and where on Earth pixels lie.

Needs rasterio (GDAL), the extra `geo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ldvc.loading import one_line
from ldvc.masks.files import Picture


if TYPE_CHECKING:
    from rasterio.io import DatasetReader

RASTER_SUFFIXES = (".tif", ".tiff")
CACHE_MEGABYTES = 128  # of GDAL, whose own limit is a share of the machine's memory


@dataclass(frozen=True)
class RasterSettings:
    """How bands become the RGB that the model sees.

    Attributes:
        bands: One or three, counted from 1; empty takes the first three, or the first where there are fewer.
        value_range: Values that become 0 and 255; `None` needs bands of 8 bits.
    """

    bands: tuple[int, ...] = ()
    value_range: tuple[float, float] | None = None


def parse_bands(text: str | None) -> tuple[int, ...]:
    """Read "4,3,2".

    Raises:
        ValueError: If it is not one band or three, counted from 1.
    """
    if text is None:
        return ()
    bands = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(","))
    if len(bands) not in (1, 3) or min(bands) < 1:
        raise ValueError(f"--bands is {text!r}; give one band or three, counted from 1, such as 4,3,2.")
    return bands


@contextmanager
def opened(path: Path) -> Iterator[DatasetReader]:
    """Open a raster with little cache, and without a warning where it has no geo-reference.

    Raises:
        ValueError: If it cannot be read.
    """
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as dataset:
                yield dataset
        except RasterioError as error:
            raise ValueError(f"cannot be read as a raster ({one_line(error, 160)}).") from error


class RasterReader:
    """An open raster as RGB.

    Args:
        dataset: Open.
        settings: Bands and range.

    Raises:
        ValueError: If a band is not there, or values have no stated range.
    """

    def __init__(self, dataset: DatasetReader, settings: RasterSettings):
        self.dataset, self.size = dataset, (dataset.height, dataset.width)
        self.bands = settings.bands or ((1, 2, 3) if dataset.count >= 3 else (1,))
        if max(self.bands) > dataset.count:
            raise ValueError(f"has {dataset.count} bands, and --bands names {max(self.bands)}; give others.")
        kinds = {dataset.dtypes[band - 1] for band in self.bands}
        self.value_range = settings.value_range
        if kinds != {"uint8"} and self.value_range is None:
            raise ValueError(
                f"has values of type {', '.join(sorted(kinds))}, whose black and white nobody can know; state them "
                "with --value-range, such as 0,3000."
            )
        self.palette = self._palette()

    def _palette(self) -> np.ndarray | None:
        """Return the (256, 3) uint8 colours of a band that holds places in a palette, which are no brightnesses."""
        from rasterio.enums import ColorInterp

        if len(self.bands) > 1 or self.dataset.colorinterp[self.bands[0] - 1] is not ColorInterp.palette:
            return None
        colors = np.zeros((256, 3), dtype=np.uint8)
        for value, color in self.dataset.colormap(self.bands[0]).items():
            if value < len(colors):
                colors[value] = color[:3]
        return colors

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a window as (rows, columns, 3) uint8."""
        from ldvc.model.pixels_ldvc import to_8_bits

        window = ((rows.start, rows.stop), (columns.start, columns.stop))
        pixels = self.dataset.read(self.bands, window=window)
        if self.value_range is not None:
            pixels = to_8_bits(np.nan_to_num(pixels, nan=self.value_range[0]), self.value_range)  # no data is black
        if self.palette is not None:
            return self.palette[pixels[0]]
        return np.moveaxis(pixels if len(pixels) == 3 else np.repeat(pixels, 3, axis=0), 0, -1)

    def is_valid(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Where a window has data, (rows, columns) bool; `None` where the raster has no other pixels."""
        from rasterio.enums import MaskFlags

        if all(MaskFlags.all_valid in self.dataset.mask_flag_enums[band - 1] for band in self.bands):
            return None
        window = ((rows.start, rows.stop), (columns.start, columns.stop))
        return self.dataset.read_masks(self.bands, window=window).astype(bool).any(axis=0)


@dataclass(frozen=True)
class RasterPicture(Picture):
    """A raster to segment, read by rasterio.

    Attributes:
        settings: Bands and range.
    """

    settings: RasterSettings = field(default_factory=RasterSettings)

    @contextmanager
    def opened(self) -> Iterator[RasterReader]:
        """Open it for reading windows."""
        with opened(self.path) as dataset:
            yield RasterReader(dataset, self.settings)

    def read(self, max_pixels: int, value_range: Sequence[float] | None = None) -> Image.Image:
        """Read it whole.

        Args:
            max_pixels: More are refused.
            value_range: In place of the settings'.

        Raises:
            ValueError: If it cannot be read, or has more pixels than allowed.
        """
        settings = self.settings if value_range is None else replace(self.settings, value_range=value_range)
        with replace(self, settings=settings).opened() as reader:
            height, width = reader.size
            if height * width > max_pixels:
                raise ValueError(
                    f"more than {max_pixels:,} pixels; read it by windows, with --window and --short-side 0 and no "
                    "--format but geotiff and geojson, or raise --max-pixels."
                )
            return Image.fromarray(reader.read(slice(0, height), slice(0, width)))


def as_rasters(pictures: Sequence[Picture], settings: RasterSettings) -> list[Picture]:
    """Let rasterio read the TIFF files among pictures."""
    return [
        RasterPicture(picture.path, picture.name, settings)
        if type(picture) is Picture and picture.path.suffix.lower() in RASTER_SUFFIXES
        else picture
        for picture in pictures
    ]


@dataclass(frozen=True)
class GeoReference:
    """Where the pixels of a picture lie.

    Attributes:
        transform: rasterio's `Affine` from (column, row) to coordinates.
        crs: rasterio's `CRS`; `None` where the file names none.
    """

    transform: Any
    crs: Any


def geo_reference(picture: Picture) -> GeoReference | None:
    """Read where a picture lies; `None` where its file does not say, or it is no raster."""
    if not isinstance(picture, RasterPicture):
        return None
    with opened(picture.path) as dataset:
        if dataset.transform.is_identity and dataset.crs is None:
            return None
        return GeoReference(dataset.transform, dataset.crs)
