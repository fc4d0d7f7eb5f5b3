"""`RowSegmenter`: the label maps of the command, row by row, on an engine such as Ray Data."""

import io

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ldvc.app.actors import RowSegmenter
from ldvc.app.cli import app


SIZES = [(40, 30), (30, 40), (40, 30), (24, 24)]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for index, (width, height) in enumerate(SIZES):
        blocks = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        path = tmp_path / "photos" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


@pytest.fixture
def expected(photos, checkpoint, tmp_path):
    call = ["segment", str(photos), "-m", str(checkpoint), "-l", "cat, sofa|couch", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, [*call, "-f", "grey", "--device", "cpu"]).exit_code == 0
    return [(tmp_path / "out" / f"{index}.grey.png").read_bytes() for index in range(len(SIZES))]


def encoded(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return file.getvalue()


def cells_of(photos, kind):
    paths = [photos / f"{index}.png" for index in range(len(SIZES))]
    if kind == "bytes":
        return [path.read_bytes() for path in paths]
    return [str(path) for path in paths] if kind == "paths" else [{"bytes": None, "path": str(path)} for path in paths]


@pytest.mark.parametrize("kind", ["bytes", "paths", "cells of datasets"])
def test_a_batch_of_rows_gets_the_label_maps_of_the_command(photos, checkpoint, expected, kind):
    segmenter = RowSegmenter(str(checkpoint), "cat, sofa|couch", "cpu", batch_size=2)
    rows = segmenter({"image": np.array(cells_of(photos, kind), dtype=object), "id": np.arange(len(SIZES))})
    assert rows["label"].tolist() == expected
    assert (rows["error"].tolist(), rows["id"].tolist()) == ([""] * 4, [0, 1, 2, 3])
    assert segmenter.names == ["cat", "sofa"]


def test_a_row_that_cannot_be_read_says_why_and_the_others_go_on(photos, checkpoint, expected):
    cells = cells_of(photos, "bytes")
    cells[1], cells[2] = b"hello", 7
    rows = RowSegmenter(str(checkpoint), "cat, sofa|couch", "cpu")({"photo": cells, "image": cells})
    assert rows["label"].tolist() == [expected[0], b"", b"", expected[3]]
    assert rows["error"][1].startswith("no picture, or of a format that Pillow does not read")
    assert rows["error"][2] == "holds no picture but int; encoded bytes, a path or both are read."


def test_the_range_of_wide_pictures_is_said_once_for_all_rows(checkpoint):
    values = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint16)
    cells = [encoded(values * 10), encoded(values.astype(np.uint8))]
    asked = {"model": str(checkpoint), "device": "cpu"}
    refused = RowSegmenter(**asked)({"image": cells[:1]})
    assert "nothing says which values are black and white; say it with value_range=(low, high)" in refused["error"][0]
    wide = RowSegmenter(**asked, value_range=(0, 2550))({"image": cells[:1]})
    narrow = RowSegmenter(**asked)({"image": cells[1:]})
    assert wide["label"][0] == narrow["label"][0] != b""
    with pytest.raises(ValueError, match=r"`value_range` is \(1, 0\)"):
        RowSegmenter(**asked, value_range=(1, 0))


def test_rows_without_the_column_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"rows have no column 'image' but \['photo'\]; pass image_column\."):
        RowSegmenter(str(checkpoint), device="cpu")({"photo": []})


def test_pixels_below_the_threshold_are_other_here_too(photos, checkpoint):
    segmenter = RowSegmenter(str(checkpoint), "cat, sofa", "cpu", threshold="1", other="none")
    (label, *_) = segmenter({"image": cells_of(photos, "bytes")})["label"]
    assert segmenter.names == ["cat", "sofa", "none"]
    assert set(np.unique(np.asarray(Image.open(io.BytesIO(label))))) == {2}


def test_all_options_of_the_command_are_there(photos, clip_folder, tmp_path):
    words = ["--method", "maskclip", "--not", "grass", "--background", "dog, sky", "--threshold", "0.2"]
    call = ["segment", str(photos), "-m", str(clip_folder), "-l", "cat, sofa", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*call, *words, "--setting", "residual=0.5", "-f", "grey", "--device", "cpu"])
    assert done.exit_code == 0, done.stderr
    options = {"negative": "grass", "background": "dog, sky", "threshold": "0.2", "setting": ["residual=0.5"]}
    segmenter = RowSegmenter(str(clip_folder), "cat, sofa", "cpu", method="maskclip", **options)
    assert segmenter.names == ["cat", "sofa", "background", "other"]
    rows = segmenter({"image": cells_of(photos, "bytes")})
    assert rows["label"].tolist() == [(tmp_path / "out" / f"{i}.grey.png").read_bytes() for i in range(len(SIZES))]


def test_two_sources_of_classes_are_refused(checkpoint):
    with pytest.raises(ValueError, match="labels and vocabulary both name the classes; give one of them"):
        RowSegmenter(str(checkpoint), "cat", "cpu", vocabulary="somewhere")
