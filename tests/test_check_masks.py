"""`ldvc check masks`: label maps that other programs have been at."""

import json
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image

from ldvc.commands.data import check
from ldvc.masks.check import check_maps
from ldvc.masks.files import Picture
from ldvc.masks.formats import Format, OutputFolder, describe_names
from ldvc.model.inference_ldvc import Segmentation


NAMES = ["cat", "sofa", "grass"]
IDS = np.array([[0, 0, 2, 2], [1, 1, 2, 2]])


def make_folder(folder, names=NAMES, ids=IDS, formats=(Format.PNG, Format.GREY)):
    output = OutputFolder(folder, formats, describe_names(names), num_classes=len(names))
    picture = Picture(Path("a.jpg"), PurePath("sub/a"))
    output.start({picture.name: picture.path})
    output.save(picture, Image.new("RGB", ids.shape[::-1]), Segmentation(torch.from_numpy(ids), names))
    output.finish()
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "masks")


def permute(path):
    """What oxipng does: the palette sorted, every pixel shows its colour as before."""
    with Image.open(path) as image:
        image.load()
    shown = np.asarray(image.convert("RGB"))
    image.remap_palette([2, 0, 1]).save(path)
    with Image.open(path) as changed:
        assert np.array_equal(np.asarray(changed.convert("RGB")), shown)
        assert changed.mode == "P"


def test_maps_as_they_were_written_agree(folder, capsys):
    assert dict(check_maps(folder)) == {"sub/a.grey.png": None, "sub/a.png": None}
    assert check(["masks", str(folder)]) == 0
    assert capsys.readouterr().out == "2 of 2 label maps agree with names.json\n"


def test_a_permuted_palette_is_named_with_the_remedy(folder, capsys, tmp_path):
    permute(folder / "sub" / "a.png")
    assert check(["masks", str(folder), "--json", str(tmp_path / "found.json")]) == 2
    text = capsys.readouterr().out
    assert text.startswith(
        "sub/a.png: a program has permuted the palette (0 shows 'grass', which is 2, 1 shows 'cat', which is 0, 2 "
        "shows 'sofa', which is 1): an optimiser such as oxipng, zopflipng or pngquant has been there; write the file "
        "again and keep these away from it (oxipng leaves the ids of --format grey alone).\n"
    )
    assert text.endswith("1 of 2 label maps agree with names.json\n")
    assert list(json.loads((tmp_path / "found.json").read_text())["wrong"]) == ["sub/a.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.convert("RGB"), "holds colours in place of ids (mode RGB)"),
        (lambda image: image.convert("RGBA"), "holds colours in place of ids (mode RGBA)"),
        (lambda image: image.convert("L"), "had a palette and has grey now (mode L), so ids mean nothing"),
    ],
)
def test_colours_in_place_of_ids_are_named(folder, change, message):
    path = folder / "sub" / "a.png"
    change(Image.open(path)).save(path)
    assert dict(check_maps(folder))["sub/a.png"].startswith(message)


def test_an_editor_s_colours_are_named(folder):
    path = folder / "sub" / "a.png"
    image = Image.open(path)
    image.putpalette([9] * 768)
    image.save(path)
    assert dict(check_maps(folder))["sub/a.png"] == (
        "id 0 has a colour of no class (#090909): an editor has changed it; write the file again"
    )


def test_grey_maps_are_held_against_names_and_twins(folder):
    path = folder / "sub" / "a.grey.png"
    Image.fromarray(np.uint8(IDS[::-1])).save(path)
    found = dict(check_maps(folder))
    assert found["sub/a.png"] == "holds other ids than a.grey.png: one of them was changed; write both again"
    Image.fromarray(np.uint8(IDS + 1)).save(path)
    assert dict(check_maps(folder))["sub/a.grey.png"] == (
        "holds id 3, but names.json ends at 2: it belongs to another folder"
    )
    Image.open(folder / "sub" / "a.png").save(path)
    assert dict(check_maps(folder))["sub/a.grey.png"].startswith("had grey and has a palette now (mode P)")


def test_pictures_that_are_no_label_maps_are_left_alone(tmp_path):
    kinds = (Format.PNG, Format.GREY, Format.OVERLAY, Format.CUTOUT, Format.HF)
    folder = make_folder(tmp_path / "masks", formats=kinds)
    maps = ["hf/masks/sub/a.png", "sub/a.grey.png", "sub/a.png"]
    assert dict(check_maps(folder)) == dict.fromkeys(maps)
    Image.open(folder / "sub" / "a.png").save(folder / "hf" / "masks" / "sub" / "a.png")
    assert dict(check_maps(folder))["hf/masks/sub/a.png"].startswith("had grey and has a palette now")


def test_a_damaged_map_is_named(folder):
    path = folder / "sub" / "a.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert dict(check_maps(folder))["sub/a.png"].startswith("cannot be read (")


def test_300_classes_are_16_bit_in_both_files(tmp_path):
    ids = np.arange(300).reshape(3, 100)
    folder = make_folder(tmp_path, [f"class {index}" for index in range(300)], ids)
    assert np.array_equal(np.asarray(Image.open(folder / "sub" / "a.grey.png")), ids)
    assert set(dict(check_maps(folder)).values()) == {None}
    Image.open(folder / "sub" / "a.png").convert("RGB").save(folder / "sub" / "a.png")
    assert dict(check_maps(folder))["sub/a.png"].startswith("holds colours in place of ids")


def test_a_folder_without_names_or_maps_is_refused(tmp_path, folder, capsys):
    assert check(["masks", str(tmp_path)]) == 2
    assert (
        "is missing or says no names and colours of ids; give a folder that `ldvc segment`" in capsys.readouterr().err
    )
    for path in folder.rglob("*.png"):
        path.unlink()
    assert check(["masks", str(folder)]) == 2
    assert "holds no label map in PNG" in capsys.readouterr().err


def test_a_dataset_is_checked_as_before(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (["masks"], ["./masks", "--class_names", "[cat]"]):  # a dataset of that name, as ever
        assert check(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("ldvc check: ")
