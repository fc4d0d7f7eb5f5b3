"""Rasters of geography: windows from the file, bands and values, and label maps that lie where their sources lie."""

import json
import tracemalloc
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ldvc import loading
from ldvc.app.cli import app
from ldvc.app.rasters import RasterImage
from ldvc.masks.files import Picture, parse_value_range
from ldvc.masks.formats import Format, OutputFolder, describe_names
from ldvc.masks.rasters import (
    RasterPicture,
    RasterSettings,
    geo_reference,
    parse_bands,
)
from ldvc.model.inference_ldvc import InferenceSettings, segment


rasterio = pytest.importorskip("rasterio")
from rasterio.transform import from_origin  # noqa: E402 - after the skip


UTM = "EPSG:32633"
PLACE = from_origin(500_000, 5_200_000, 10, 10)  # easting and northing of the corner, metres per pixel


def write_raster(path, pixels, **profile):
    """Write (bands, height, width) values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"crs": UTM, "transform": PLACE} | profile
    colors = profile.pop("colormap", None)
    size = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **size, **profile) as dataset:
        dataset.write(pixels)
        if colors:
            dataset.write_colormap(1, colors)
    return path


@pytest.fixture
def pixels():
    """Return (3, 45, 70) uint8 values that change smoothly."""
    blocks = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.moveaxis(np.asarray(Image.fromarray(blocks).resize((70, 45), Image.Resampling.BICUBIC)), -1, 0)


def ldvc(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(checkpoint, tmp_path, *options, formats=("geotiff",), out="out"):
    words = [word for kind in formats for word in ("-f", kind)]
    return ldvc("segment", "-m", checkpoint, "-o", tmp_path / out, *words, "--device", "cpu", *options)


WINDOWS = ("--window", "16", "--stride", "8", "--short-side", "0")


def read_map(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


# ---- from raster to raster


@pytest.mark.parametrize("options", [WINDOWS, ()], ids=["windows", "whole"])
def test_a_label_map_lies_where_its_source_lies_and_is_that_of_the_python_call(checkpoint, tmp_path, pixels, options):
    source = write_raster(tmp_path / "a.tif", pixels)
    result = run(checkpoint, tmp_path, source, *options)
    assert result.exit_code == 0, result.output
    model, processor = loading.load_checkpoint(checkpoint)
    settings = InferenceSettings(0, 16, 8) if options else None
    picture = Image.fromarray(np.moveaxis(pixels, 0, -1))
    expected = segment(model, processor, picture, settings=settings).label_map.numpy()
    with rasterio.open(tmp_path / "out" / "a.tif") as found, rasterio.open(source) as given:
        assert np.array_equal(found.read(1), expected)
        assert (found.crs, found.transform, found.bounds) == (given.crs, given.transform, given.bounds)
        assert (found.nodata, found.dtypes, found.compression.value) == (255, ("uint8",), "DEFLATE")
        assert found.profile["tiled"]
        assert found.colormap(1)[1][:3] == tuple(
            bytes.fromhex(json.loads((tmp_path / "out" / "names.json").read_text())["colors"]["1"][1:])
        )
        tags = found.tags()
    assert json.loads(tags["LDVC_CLASSES"]) == ["cat", "dog", "sofa"]
    assert (tags["LDVC_SOURCE"], tags["LDVC_MODEL"]) == ("a.tif", str(checkpoint))
    assert json.loads(tags["LDVC_PROMPT"])["labels"] == {"cat": ["cat"], "dog": ["dog"], "sofa": ["sofa"]}


def test_pixels_without_data_have_no_class(checkpoint, tmp_path, pixels):
    pixels = pixels.clip(1, 255)
    pixels[:, 10:20, 30:50] = 0
    source = write_raster(tmp_path / "a.tif", pixels, nodata=0)
    assert run(checkpoint, tmp_path, source, *WINDOWS).exit_code == 0
    assert run(checkpoint, tmp_path, source, out="whole", formats=("geotiff", "geojson", "png")).exit_code == 0
    for out in ("out", "whole"):
        label_map = read_map(tmp_path / out / "a.tif")
        hole = np.zeros(label_map.shape, dtype=bool)
        hole[10:20, 30:50] = True
        assert np.array_equal(label_map == 255, hole)
    content = json.loads((tmp_path / "whole" / "a.geojson").read_text())
    assert {feature["properties"]["class_id"] for feature in content["features"]} <= {0, 1, 2}


RIVALS = ("--labels", "cat, dog", "--not", "sofa", "--background", "sky, wall")


@pytest.mark.parametrize("options", [(), RIVALS, (*RIVALS, "--threshold", "0.5")], ids=["own", "rivals", "threshold"])
def test_a_run_by_windows_writes_the_files_of_a_run_that_holds_the_label_map(checkpoint, tmp_path, pixels, options):
    source = write_raster(tmp_path / "a.tif", pixels)
    kinds, options = ("geotiff", "geojson"), (*WINDOWS, *options)
    assert run(checkpoint, tmp_path, source, *options, formats=kinds).exit_code == 0
    assert run(checkpoint, tmp_path, source, *options, formats=(*kinds, "png"), out="held").exit_code == 0
    for name in ("a.tif", "a.geojson"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "held" / name).read_bytes()
    assert np.array_equal(read_map(tmp_path / "out" / "a.tif"), np.asarray(Image.open(tmp_path / "held" / "a.png")))


def test_polygons_are_in_longitude_and_latitude_and_cover_the_same_pixels(checkpoint, tmp_path, pixels):
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom

    source = write_raster(tmp_path / "a.tif", pixels)
    assert run(checkpoint, tmp_path, source, *WINDOWS, formats=("geotiff", "geojson")).exit_code == 0
    content = json.loads((tmp_path / "out" / "a.geojson").read_text())
    label_map, names = read_map(tmp_path / "out" / "a.tif"), ["cat", "dog", "sofa"]
    shapes = []
    for feature in content["features"]:
        longitude, latitude = feature["geometry"]["coordinates"][0][0]
        assert 14.9 < longitude < 15.1
        assert 46.9 < latitude < 47.0
        properties = feature["properties"]
        assert names[properties["class_id"]] == properties["class"]
        assert 0 < properties["score"] < 1
        shapes.append((transform_geom("EPSG:4326", UTM, feature["geometry"]), properties["class_id"]))
    painted = rasterize(shapes, label_map.shape, fill=9, transform=PLACE)
    assert np.array_equal(painted, label_map)


def test_overviews_hold_ids_that_are_there_and_no_averages(tmp_path):
    ids = np.where(np.arange(1024) // 3 % 2, 4, 0) * np.ones((1024, 1), dtype=np.int64)
    output = OutputFolder(tmp_path, [Format.GEOTIFF], describe_names([f"class {n}" for n in range(5)]), 5)
    output.start({})
    save_whole(output, write_raster(tmp_path / "in" / "a.tif", np.zeros((1, 1024, 1024), dtype=np.uint8)), ids)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.overviews(1) == [2, 4]
        for level in (0, 1):
            with rasterio.open(tmp_path / "a.tif", overview_level=level) as smaller:
                assert set(np.unique(smaller.read(1))) == {0, 4}


def save_whole(output, source, ids):
    import torch

    from ldvc.model.inference_ldvc import Segmentation

    best = torch.full((1, *ids.shape), 0.5)
    found = Segmentation(torch.from_numpy(ids), [], None, None, best)
    output.save(RasterPicture(source, PurePath("a")), Image.new("RGB", ids.shape[::-1]), found)


@pytest.mark.parametrize(("num_ids", "dtype", "nodata"), [(255, "uint8", 255), (256, "uint16", 65535)])
def test_255_stays_free_for_pixels_without_data(tmp_path, num_ids, dtype, nodata, monkeypatch):
    # colours are not this test's, and take long
    monkeypatch.setattr("ldvc.masks.drawing._choose_colors", lambda names: dict.fromkeys(names, np.zeros(3)))
    ids = np.arange(num_ids)[None] * np.ones((2, 1), dtype=np.int64)
    output = OutputFolder(tmp_path, [Format.GEOTIFF], describe_names([f"c{n}" for n in range(num_ids)]), num_ids)
    output.start({})
    save_whole(output, write_raster(tmp_path / "in" / "a.tif", np.zeros((1, 2, num_ids), dtype=np.uint8)), ids)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert (dataset.dtypes[0], dataset.nodata) == (dtype, nodata)
        assert np.array_equal(dataset.read(1), ids)


def test_what_competed_with_the_labels_stands_in_the_map(checkpoint, tmp_path, pixels):
    assert run(checkpoint, tmp_path, write_raster(tmp_path / "a.tif", pixels), *WINDOWS, *RIVALS).exit_code == 0
    with rasterio.open(tmp_path / "out" / "a.tif") as dataset:
        tags = dataset.tags()
    prompt = json.loads(tags["LDVC_PROMPT"])
    assert json.loads(tags["LDVC_CLASSES"]) == ["cat", "dog", "background", "other"]
    assert (prompt["negative_labels"], prompt["background"]) == ({"sofa": ["sofa"]}, ["sky", "wall"])


# ---- bands and values


@pytest.mark.parametrize("options", [WINDOWS, ()], ids=["windows", "whole"])
def test_values_of_16_bits_give_the_map_of_the_same_picture_of_8(checkpoint, tmp_path, pixels, options):
    write_raster(tmp_path / "wide" / "a.tif", pixels.astype(np.uint16) * 10)
    write_raster(tmp_path / "bytes" / "a.tif", pixels)
    wide = run(checkpoint, tmp_path, tmp_path / "wide", *options, "--value-range", "0,2550", out="1")
    assert wide.exit_code == 0, wide.output
    assert run(checkpoint, tmp_path, tmp_path / "bytes", *options, out="2").exit_code == 0
    assert np.array_equal(read_map(tmp_path / "1" / "a.tif"), read_map(tmp_path / "2" / "a.tif"))


def test_a_range_means_the_same_whoever_reads_the_file(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (9, 7), dtype=np.uint16)
    path = write_raster(tmp_path / "a.tif", values[None])
    by_pillow = Picture(path, PurePath("a")).read(100, (100, 4000))
    by_rasterio = RasterPicture(path, PurePath("a")).read(100, (100, 4000))
    assert np.array_equal(np.asarray(by_pillow), np.asarray(by_rasterio))
    assert len(np.unique(np.asarray(by_pillow))) > 30


def test_bands_are_chosen_by_number_and_values_by_range(tmp_path, pixels):
    floats = np.concatenate([pixels, pixels[::-1]]).astype(np.float32) * 10 - 100
    path = write_raster(tmp_path / "a.tif", floats)
    picture = RasterPicture(path, PurePath("a"), RasterSettings((6, 5, 4), (-100, 2450)))
    assert np.array_equal(np.asarray(picture.read(10_000)), np.moveaxis(pixels, 0, -1))
    single = RasterPicture(path, PurePath("a"), RasterSettings((2,), (-100, 2450)))
    assert np.array_equal(np.asarray(single.read(10_000)), np.repeat(pixels[1][..., None], 3, axis=-1))
    with picture.opened() as reader:
        part = np.asarray(RasterImage(reader).crop((10, 5, 30, 25)))
    assert np.array_equal(part, np.moveaxis(pixels, 0, -1)[5:25, 10:30])


def test_values_without_a_number_are_black(tmp_path):
    values = np.array([[[np.nan, 0, 5, 20]]], dtype=np.float32)
    picture = RasterPicture(write_raster(tmp_path / "a.tif", values), PurePath("a"), RasterSettings((), (0, 10)))
    assert np.asarray(picture.read(10))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_a_palette_s_places_are_colours_and_no_brightnesses(tmp_path):
    values = np.array([[[0, 1, 1]]], dtype=np.uint8)
    path = write_raster(tmp_path / "a.tif", values, colormap={0: (9, 8, 7, 255), 1: (200, 100, 50, 255)})
    assert np.asarray(RasterPicture(path, PurePath("a")).read(10))[0].tolist() == [[9, 8, 7]] + 2 * [[200, 100, 50]]


BAD_RASTERS = {
    "float": (np.zeros((1, 4, 4), dtype=np.float32), (), "has values of type float32, whose black and white nobody"),
    "signed": (np.zeros((3, 4, 4), dtype=np.int16), (), "has values of type int16"),
    "16-bit": (np.zeros((3, 4, 4), dtype=np.uint16), (), "--value-range, such as 0,3000"),
    "bands": (np.zeros((3, 4, 4), dtype=np.uint8), ("--bands", "4,3,2"), "has 3 bands, and --bands names 4"),
}


@pytest.mark.parametrize(
    "case", ["float", *(pytest.param(name, marks=pytest.mark.slow) for name in [*BAD_RASTERS][1:])]
)
def test_a_raster_that_cannot_be_used_is_one_line_and_the_others_go_on(checkpoint, tmp_path, pixels, case):
    values, options, message = BAD_RASTERS[case]
    write_raster(tmp_path / "in" / "bad.tif", values)
    write_raster(tmp_path / "in" / "good.tif", np.concatenate([pixels, pixels[:1]]))
    (tmp_path / "in" / "text.tif").write_text("no raster")
    for windows in ((), WINDOWS):
        out = f"out{len(windows)}"
        result = run(checkpoint, tmp_path, tmp_path / "in", *options, *windows, out=out)
        assert result.exit_code == 1
        assert message in result.stderr
        assert "text.tif: cannot be read as a raster (" in result.stderr
        assert "2 failed:" in result.stderr
        assert [path.name for path in (tmp_path / out).glob("*.tif")] == ["good.tif"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bands", "0"), "--bands is '0'; give one band or three, counted from 1, such as 4,3,2."),
        (("--bands", "1,2"), "--bands is '1,2'; give one band or three"),
        (("--value-range", "9,1"), "--value-range '9,1' is no pair of numbers, the first below the second: 0,4095."),
        (("--value-range", "0,nan"), "--value-range '0,nan' is no pair of numbers"),
        (("--bands", "1"), "--bands is of TIFF files, and there is none."),
    ],
)
def test_options_of_rasters_that_make_no_sense_are_refused(checkpoint, tmp_path, options, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    result = run(checkpoint, tmp_path, tmp_path / "a.png", *options, formats=("png",))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_numbers_of_options_are_read_as_written():
    assert (parse_bands("4, 3,2"), parse_bands(None), parse_bands("1")) == ((4, 3, 2), (), (1,))
    assert (parse_value_range("-0.5,1e3"), parse_value_range(None)) == ((-0.5, 1000.0), None)


def test_a_source_without_a_place_gives_a_map_without_one_and_says_so_once(checkpoint, tmp_path, pixels, caplog):
    for name in ("a.tif", "b.tif"):
        write_raster(tmp_path / "in" / name, pixels, crs=None, transform=None)
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "c.png")
    result = run(checkpoint, tmp_path, tmp_path / "in", formats=("geotiff", "geojson"))
    assert result.exit_code == 0, result.output
    assert caplog.text.count("does not say where it lies, so neither does its GeoTIFF; said once for all.") == 1
    assert caplog.text.count("does not say where it lies, so its GeoJSON counts in pixels; said once for all.") == 1
    with rasterio.open(tmp_path / "out" / "a.tif") as dataset:
        assert (dataset.crs, dataset.transform.is_identity) == (None, True)
    content = json.loads((tmp_path / "out" / "c.geojson").read_text())
    corners = {tuple(corner) for feature in content["features"] for corner in feature["geometry"]["coordinates"][0]}
    assert {(0, 0), (9, 9)} <= corners, "pixels"


def test_maps_of_other_bands_are_not_gone_on_with(checkpoint, tmp_path, pixels):
    source = write_raster(tmp_path / "a.tif", pixels)
    assert run(checkpoint, tmp_path, source).exit_code == 0
    result = run(checkpoint, tmp_path, source, "--bands", "3,2,1", "--skip-existing")
    assert result.exit_code == 2
    assert "made with other settings (rasters)" in result.stderr


def test_a_raster_larger_than_allowed_is_told_how_to_go_by_windows(checkpoint, tmp_path, pixels):
    source = write_raster(tmp_path / "a.tif", pixels)
    result = run(checkpoint, tmp_path, source, "--max-pixels", "3149")
    assert "more than 3,149 pixels; read it by windows, with --window and --short-side 0" in result.stderr
    result = run(checkpoint, tmp_path, source, *WINDOWS, "--max-pixels", "3149", out="windows")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_memory_grows_with_the_width_and_not_with_the_height(checkpoint, tmp_path):
    peaks = []
    for height in (200, 1600):
        path = write_raster(tmp_path / f"{height}.tif", np.zeros((3, height, 64), dtype=np.uint8))
        tracemalloc.start()
        options = ("--window", "64", "--stride", "64", "--batch-size", "4")
        result = run(checkpoint, tmp_path, path, *options, out=str(height))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.exit_code == 0, result.output
    assert peaks[1] < peaks[0] + 200_000


def test_a_stopped_raster_leaves_no_half_map(checkpoint, tmp_path, pixels, monkeypatch):
    from ldvc.masks.geo import TiffStrips

    def fail(self, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TiffStrips, "add", fail)
    result = run(checkpoint, tmp_path, write_raster(tmp_path / "a.tif", pixels), *WINDOWS)
    assert "No space left on device" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["names.json"]


@pytest.mark.slow
def test_a_damaged_map_is_made_again(checkpoint, tmp_path, pixels):
    source = write_raster(tmp_path / "a.tif", pixels)
    assert run(checkpoint, tmp_path, source).exit_code == 0
    path = tmp_path / "out" / "a.tif"
    before = read_map(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "were there already" not in run(checkpoint, tmp_path, source, "--skip-existing").stdout
    assert np.array_equal(read_map(path), before)
    assert "1 were there already" in run(checkpoint, tmp_path, source, "--skip-existing").stdout


def test_a_picture_that_is_no_raster_has_no_place():
    assert geo_reference(Picture(Path("a.png"), PurePath("a"))) is None


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_processes_share_rasters_and_write_the_same_files(checkpoint, tmp_path, pixels, num_processes):
    import os
    import subprocess
    import sys

    for number in range(3):
        write_raster(tmp_path / "in" / f"{number}.tif", np.roll(pixels, 10 * number, axis=2))
    assert run(checkpoint, tmp_path, tmp_path / "in", *WINDOWS, formats=("geotiff", "geojson")).exit_code == 0
    config = Path(__file__).resolve().parents[1] / "recipes/accelerate/two_cpu_processes.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes"]
    call = [
        *launcher,
        num_processes,
        "-m",
        "ldvc",
        "segment",
        tmp_path / "in",
        "-m",
        checkpoint,
        "-o",
        tmp_path / "two",
    ]
    call += ["-f", "geotiff", "-f", "geojson", *WINDOWS]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONFAULTHANDLER": "1"}  # of a crash, where it was
    done = subprocess.run([str(word) for word in call], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[:6000]  # what follows is the launcher's
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
