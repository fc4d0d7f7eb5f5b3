"""GeoTIFF pairs as training data: `ldvc prepare geotiff`."""

import json

import numpy as np
import pytest
from PIL import Image

from ldvc.commands.data import prepare
from ldvc.data.folders import find_folder_splits, read_class_names


rasterio = pytest.importorskip("rasterio")
PLACE = rasterio.Affine(10, 0, 500_000, 0, -10, 5_200_000)


def write_raster(path, pixels, transform=PLACE, tags=None, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    profile |= {"driver": "GTiff", "dtype": pixels.dtype, "crs": "EPSG:32633", "transform": transform}
    with rasterio.open(path, "w", **size, **profile) as dataset:
        dataset.write(pixels)
        dataset.update_tags(**(tags or {}))


IMAGE = np.random.default_rng(0).integers(1, 3000, (4, 6, 9)).astype(np.uint16)
IDS = np.tile(np.array([0, 1, 2], dtype=np.uint8), 18).reshape(1, 6, 9)
OPTIONS = ("--bands", "4,3,2", "--value_range", "0,3000", "--tile", "4")


def run(tmp_path, *options):
    return prepare(["geotiff", "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *options])


@pytest.fixture
def pair(tmp_path):
    write_raster(tmp_path / "in" / "images" / "a.tif", IMAGE)
    write_raster(tmp_path / "in" / "masks" / "a.tif", IDS, nodata=1)
    (tmp_path / "in" / "classes.txt").write_text("field\nwood\nwater\n")
    return tmp_path


def test_pairs_become_tiles_of_pictures_and_ids(pair, capsys):
    assert run(pair, *OPTIONS) == 0
    assert capsys.readouterr().out.startswith("6 tiles written to ")
    assert read_class_names(pair / "out") == ["field", "wood", "water"]
    (split,) = find_folder_splits(pair / "out").values()
    whole, ids = np.zeros((6, 9, 3), dtype=np.uint8), np.zeros((6, 9), dtype=np.uint8)
    for image, mask in split.pairs:
        top, left = map(int, image.stem.split("_")[1:])
        part = np.asarray(Image.open(image))
        whole[top : top + len(part), left : left + part.shape[1]] = part
        ids[top : top + len(part), left : left + part.shape[1]] = np.asarray(Image.open(mask))
    expected = (np.moveaxis(IMAGE[[3, 2, 1]], 0, -1).astype(np.float32) * np.float32(255 / 3000)).round()
    assert np.array_equal(whole, expected.astype(np.uint8))
    assert np.array_equal(ids, np.where(IDS[0] == 1, 255, IDS[0]))


def test_a_label_raster_of_ldvc_names_its_classes_itself(pair):
    (pair / "in" / "classes.txt").unlink()
    write_raster(pair / "in/masks/a.tif", IDS, nodata=155, tags={"LDVC_CLASSES": json.dumps(["x", "y", "z"])})
    assert run(pair, *OPTIONS) == 0
    assert read_class_names(pair / "out") == ["x", "y", "z"]


def test_a_tile_without_a_label_is_left_out(pair):
    ids = IDS.copy()
    ids[:, :4, :4] = 1
    write_raster(pair / "in/masks/a.tif", ids, nodata=1)
    assert run(pair, *OPTIONS) == 0
    assert not (pair / "out/train/images/a_0_0.png").exists()
    assert len(list((pair / "out/train/images").iterdir())) == 5


BAD = {
    "another place": (
        IDS,
        {"transform": PLACE @ rasterio.Affine.translation(1, 0)},
        "the label raster lies elsewhere",
    ),
    "fractions": (IDS.astype(np.float32), {}, "the label raster holds float32; ids are whole numbers."),
    "colours": (np.repeat(IDS, 3, axis=0), {}, "the label raster has 3 bands; a label map is one band of ids."),
    "JPEG": (
        IDS,
        {"compress": "jpeg"},
        "the label raster is compressed as JPEG, which may change ids at every border",
    ),
    "no name": (IDS + 1, {}, "the label raster holds id 3, and there are 3 classes."),
}


@pytest.mark.parametrize(("ids", "profile", "message"), BAD.values(), ids=BAD)
def test_a_pair_that_cannot_be_used_is_one_line_and_the_others_go_on(pair, ids, profile, message, capsys):
    write_raster(pair / "in/images/b.tif", IMAGE)
    write_raster(pair / "in/masks/b.tif", ids, **profile)
    assert run(pair, *OPTIONS) == 1
    said = capsys.readouterr()
    assert f"b.tif: {message}" in said.err
    assert said.out.startswith("6 tiles written to ")
    assert not list((pair / "out").rglob("b_*"))


def test_values_without_a_range_no_pairs_and_no_names_are_refused(pair, capsys):
    assert run(pair) == 2
    error = capsys.readouterr().err
    assert "a.tif: has values of type uint16" in error
    assert "none of 1 pairs could be used." in error
    (pair / "in" / "classes.txt").unlink()
    assert run(pair, *OPTIONS) == 2
    assert "names no classes: add a classes.txt, one name a line in the order of the ids." in capsys.readouterr().err
    assert prepare(["geotiff", "--source", str(pair / "out"), "--output", str(pair / "new")]) == 2
    assert "holds no pairs; lay them out as images/a.tif and masks/a.tif." in capsys.readouterr().err
