"""Pictures in and files out: what `ldvc segment` finds, opens, writes, keeps and refuses."""

import io
import json
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ldvc.masks import files as files_module
from ldvc.masks import formats as formats_module
from ldvc.masks import pixels as pixels_module
from ldvc.masks.coco import coco_annotations
from ldvc.masks.drawing import class_colors
from ldvc.masks.files import Picture, find_pictures, open_picture
from ldvc.masks.formats import WRITERS, Existing, Format, OutputFolder, describe_names
from ldvc.masks.parts import written_aside
from ldvc.masks.pixels import write_grey, write_npz, write_overlay, write_png
from ldvc.masks.writer import is_whole
from ldvc.model.inference_ldvc import Segmentation


NAMES = ["cat", "sofa", "grass"]


@pytest.fixture
def label_map():
    """Return a (6, 8) map: cat left, grass right, one sofa pixel in a hole of the grass."""
    ids = np.where(np.arange(8) < 3, 0, 2) * np.ones((6, 1), dtype=np.int64)
    ids[2, 5] = 1
    return ids


@pytest.fixture
def result(label_map):
    best = torch.linspace(0.2, 0.9, label_map.size).reshape(1, *label_map.shape)
    return Segmentation(torch.from_numpy(label_map), NAMES, top_ids=torch.from_numpy(label_map)[None], top_scores=best)


def save_picture(path, size=(8, 6), color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def open_folder(folder, formats=(Format.PNG,), names=NAMES, **settings):
    return OutputFolder(folder, formats, describe_names(names, **settings), num_classes=len(names))


# ---- finding pictures


def names_of(found):
    return {picture.path.name: picture.name.as_posix() for picture in found.pictures}


def test_a_folder_gives_its_pictures_in_order_and_nothing_else(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "below/c.webp"):
        save_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert names_of(find_pictures([str(tmp_path)])) == {"a.png": "a", "b.JPG": "b"}
    assert [picture.path.name for picture in find_pictures([str(tmp_path)]).pictures] == ["a.png", "b.JPG"]


def test_a_recursive_search_keeps_the_folders_in_the_names(tmp_path):
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "below" / "a.png")
    found = find_pictures([str(tmp_path)], recursive=True)
    assert [picture.name.as_posix() for picture in found.pictures] == ["a", "below/a"]


def test_the_output_folder_is_not_searched(tmp_path):
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "masks" / "a.png")
    found = find_pictures([str(tmp_path)], recursive=True, output=tmp_path / "masks")
    assert [picture.path for picture in found.pictures] == [tmp_path / "a.png"]


def test_the_output_folder_cannot_be_the_one_that_is_searched(tmp_path):
    path = save_picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"is the output folder too, .* choose another with --output"):
        find_pictures([str(tmp_path)], output=tmp_path / "." / "")
    assert len(find_pictures([str(path)], output=tmp_path).pictures) == 1


def test_files_that_no_search_takes_for_pictures_are_counted(tmp_path):
    for name in ("a.png", "b.heic", "C.HEIC", "d.svg", "README", ".hidden.svg", "below/e.heic"):
        save_picture(tmp_path / "x.png").rename((tmp_path / name).parent.mkdir(exist_ok=True) or tmp_path / name)
    found = find_pictures([str(tmp_path)])
    assert found.left_out == {".heic": 2, ".svg": 1, "without suffix": 1}
    assert found.describe_left_out().endswith(": 2 .heic, 1 .svg, 1 without suffix.")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"holds no picture.*Left out, .*: 2 \.heic, 1 \.svg"):
        find_pictures([str(tmp_path)])


def test_a_pattern_is_expanded_where_the_shell_did_not(tmp_path):
    for name in ("a.png", "b.png", "below/c.png"):
        save_picture(tmp_path / name)
    assert names_of(find_pictures([str(tmp_path / "*.png")])) == {"a.png": "a", "b.png": "b"}
    assert "c.png" in names_of(find_pictures([str(tmp_path / "**" / "*.png")]))


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    save_picture(tmp_path / "a[1].png")
    assert names_of(find_pictures([str(tmp_path / "a[1].png")])) == {"a[1].png": "a[1]"}


def test_a_file_that_is_named_twice_is_one_picture(tmp_path):
    path = save_picture(tmp_path / "a.png")
    assert len(find_pictures([str(path), str(tmp_path), str(tmp_path / "." / "a.png")]).pictures) == 1


def test_two_files_of_one_stem_both_keep_their_suffix(tmp_path):
    paths = [save_picture(tmp_path / name) for name in ("a/x.jpg", "b/x.png", "b/y.png")]
    assert names_of(find_pictures(map(str, paths))) == {"x.jpg": "x.jpg", "x.png": "x.png", "y.png": "y"}


def test_a_suffix_that_makes_another_file_s_name_is_kept_there_too(tmp_path):
    paths = [save_picture(tmp_path / name) for name in ("x.jpg", "x.png", "x.jpg.png")]
    names = names_of(find_pictures(map(str, paths)))
    assert names == {"x.jpg": "x.jpg", "x.png": "x.png", "x.jpg.png": "x.jpg.png"}


def test_two_files_of_one_name_are_refused_with_the_remedy(tmp_path):
    paths = [save_picture(tmp_path / name) for name in ("a/x.jpg", "b/X.jpg")]  # the same on macOS and Windows
    with pytest.raises(ValueError, match=r"a/x\.jpg.*b/X\.jpg.*one file name.*--recursive"):
        find_pictures(map(str, paths))


def test_what_is_not_there_is_listed_and_the_rest_found(tmp_path):
    path = save_picture(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    found = find_pictures([str(path), "nosuch.png", str(tmp_path / "*.gif"), str(tmp_path / "empty")])
    assert len(found.pictures) == 1
    reasons = [reason for _, reason in found.failures]
    assert reasons[0] == "no such file."
    assert reasons[1] == "no file matches this pattern."
    assert reasons[2] == "the folder holds no picture; --recursive searches the folders below it too."


def test_nothing_at_all_is_an_error():
    with pytest.raises(ValueError, match=r"no picture to segment: nosuch\.png: no such file"):
        find_pictures(["nosuch.png"])


# ---- opening pictures


def test_a_picture_is_opened_upright_as_rgb(tmp_path):
    turned = Image.Exif()
    turned[274] = 6  # a quarter turn
    Image.new("CMYK", (6, 3)).save(tmp_path / "a.jpg", exif=turned)
    image = open_picture(tmp_path / "a.jpg")
    assert (image.mode, image.size) == ("RGB", (3, 6))


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture
def noise_picture(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_a_truncated_file_says_so_once(noise_picture):
    with pytest.raises(ValueError, match="truncated or damaged, copy it again") as caught:
        open_picture(cut_in_half(noise_picture))
    assert "noise.png" not in str(caught.value), "whoever lists the failure names the file"


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_file_that_is_no_picture_says_so(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="no picture, or of a format that Pillow does not read"):
        open_picture(tmp_path / "a.png")


def test_a_decoder_s_own_error_becomes_one_line(noise_picture, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken\n  decoder")

    monkeypatch.setattr(files_module.Image, "open", fail)
    with pytest.raises(ValueError, match=r"^cannot be read \(broken decoder\)\.$"):
        open_picture(noise_picture)


def test_a_picture_that_memory_does_not_hold_says_so(noise_picture, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(files_module.Image, "open", fail)
    with pytest.raises(ValueError, match="does not fit into memory"):
        open_picture(noise_picture)


def test_the_pixel_limit_is_exact_and_pillow_s_own_comes_back(noise_picture):
    before = Image.MAX_IMAGE_PIXELS
    assert open_picture(noise_picture, max_pixels=2000).size == (50, 40)
    with pytest.raises(ValueError, match=r"more than 1,999 pixels.*--max-pixels"):
        open_picture(noise_picture, max_pixels=1999)
    assert before == Image.MAX_IMAGE_PIXELS


# ---- single files


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write_half():
        with written_aside(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


@pytest.mark.parametrize(("num_classes", "mode"), [(3, "P"), (256, "P"), (257, "I;16"), (40000, "I;16")])
def test_png_pixels_are_the_ids_however_many_there_are(num_classes, mode, monkeypatch):
    # colours are not this test's, and 40,000 take long
    monkeypatch.setattr("ldvc.masks.drawing.class_colors", lambda names: np.zeros((len(names), 3), dtype=np.uint8))
    label_map = np.array([[0, 1, num_classes - 1]])
    file = io.BytesIO()
    write_png(file, label_map, [f"class {index}" for index in range(num_classes)])
    with Image.open(file) as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), label_map)


def test_the_palette_is_that_of_the_names(label_map):
    file = io.BytesIO()
    write_png(file, label_map, NAMES)
    colors = np.asarray(Image.open(file).convert("RGB"))
    assert np.array_equal(colors, class_colors(NAMES)[label_map])


def test_more_ids_than_a_png_holds_are_refused():
    with pytest.raises(ValueError, match=r"65537 classes.*65536 ids.*--format npz"):
        write_png(io.BytesIO(), np.zeros((1, 1)), range(65537))


def test_npz_keeps_ids_names_and_scores(label_map):
    file, scores = io.BytesIO(), np.random.default_rng(0).random((3, 6, 8), dtype=np.float32)
    write_npz(file, label_map, NAMES, scores)
    file.seek(0)
    content = np.load(file)
    assert content["label_map"].dtype == np.uint8
    assert np.array_equal(content["label_map"], label_map)
    assert content["class_names"].tolist() == NAMES
    assert np.array_equal(content["scores"], scores)


def test_an_overlay_of_a_huge_picture_is_small_enough_to_look_at():
    file = io.BytesIO()
    write_overlay(file, Image.new("RGB", (5120, 20)), np.zeros((20, 5120), dtype=np.int64), NAMES)
    assert Image.open(file).width == 2560


def test_an_overlay_shows_id_255_as_the_class_it_is(monkeypatch):
    monkeypatch.setattr("ldvc.masks.drawing.class_colors", lambda names: np.full((len(names), 3), 200, dtype=np.uint8))
    file, image = io.BytesIO(), Image.new("RGB", (500, 500))
    write_overlay(file, image, np.full((500, 500), 255), [f"class {index}" for index in range(300)])
    assert np.asarray(Image.open(file))[250, 250, 0] > 50


def test_coco_annotations_give_back_the_label_map(label_map):
    from pycocotools import mask as coco_mask

    best = np.full(label_map.shape, 0.25, dtype=np.float32)
    best[2, 5] = 0.75
    annotations = coco_annotations(label_map, best, num_classes=3)
    decoded = np.full(label_map.shape, -1)
    for annotation in annotations:
        decoded[coco_mask.decode(annotation["segmentation"]).astype(bool)] = annotation["category_id"] - 1
    assert np.array_equal(decoded, label_map)
    sofa = annotations[1]
    assert (sofa["area"], sofa["bbox"], sofa["score"]) == (1, [5, 2, 1, 1], 0.75)


def test_the_score_of_other_is_what_the_best_class_lacks(label_map):
    best = np.full(label_map.shape, 0.25, dtype=np.float32)
    scores = {a["category_id"] - 1: a["score"] for a in coco_annotations(label_map, best, num_classes=2)}
    assert scores == {0: 0.25, 1: 0.25, 2: 0.75}


def test_names_and_colours_are_described_by_id():
    description = describe_names(["cat", "sofa"], threshold=0.5)
    assert description["names"] == {"0": "cat", "1": "sofa"}
    assert description["colors"]["0"] == "#{:02x}{:02x}{:02x}".format(*class_colors(["cat", "sofa"])[0])
    assert description["threshold"] == 0.5


# ---- the folder


def test_every_result_is_there_and_whole_after_a_run(tmp_path, result):
    kinds = [Format.PNG, Format.OVERLAY, Format.COCO_RLE, Format.NPZ, Format.GREY]  # others: test_writers.py
    folder = open_folder(tmp_path / "out", kinds)
    source = save_picture(tmp_path / "a.png")
    name = PurePath("sub/a")
    assert folder.start({name: source}) == [name]
    folder.save(Picture(source, name), Image.open(source), result)
    folder.finish()
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["coco.json", "names.json", "sub/a.grey.png", "sub/a.npz", "sub/a.overlay.png", "sub/a.png"]
    assert all(is_whole(path) for path in folder.paths(name))


@pytest.mark.parametrize("kind", [Format.PNG, Format.OVERLAY, Format.NPZ])
def test_a_damaged_result_is_not_whole(tmp_path, result, kind):
    folder = open_folder(tmp_path, [kind])
    source = save_picture(tmp_path / "source" / "a.png")
    folder.start({PurePath("a"): source})
    folder.save(Picture(source, PurePath("a")), Image.open(source), result)
    [path] = folder.paths(PurePath("a"))
    assert is_whole(path)
    assert not is_whole(cut_in_half(path))


def run_folder(tmp_path, result, stems, existing=Existing.REFUSE, formats=(Format.PNG, Format.COCO_RLE), **settings):
    """Save `result` for each stem that is to do; returns these."""
    folder = open_folder(tmp_path / "out", formats, **settings)
    source = save_picture(tmp_path / "source.png")
    todo = folder.start({PurePath(name): tmp_path / f"{name}.jpg" for name in stems}, existing)
    for name in todo:
        folder.save(Picture(source, name), Image.open(source), result)
    folder.finish()
    return [str(name) for name in todo]


def test_a_resumed_run_makes_what_is_missing_or_damaged(tmp_path, result):
    assert run_folder(tmp_path, result, ["a", "b", "c"]) == ["a", "b", "c"]
    cut_in_half(tmp_path / "out" / "b.png")
    assert run_folder(tmp_path, result, ["a", "b", "c", "d"], Existing.SKIP) == ["b", "d"]
    assert is_whole(tmp_path / "out" / "b.png")


def test_files_that_no_run_has_named_are_neither_taken_for_results_nor_deleted(tmp_path, result):
    (tmp_path / "out").mkdir()
    own = save_picture(tmp_path / "out" / "a.png")
    before = own.read_bytes()
    with pytest.raises(
        ValueError, match=r"a\.png' is there already, but no names\.json says what it shows; .*--output"
    ):
        run_folder(tmp_path, result, ["a"], Existing.SKIP)
    assert own.read_bytes() == before


def test_coco_holds_the_pictures_of_all_runs_into_a_folder(tmp_path, result, capsys):
    run_folder(tmp_path, result, ["b", "c"])
    run_folder(tmp_path, result, ["a"])
    coco = COCO(tmp_path / "out" / "coco.json")
    assert [image["name"] for image in coco.loadImgs([1, 2, 3])] == ["a", "b", "c"]
    assert len(coco.getAnnIds(imgIds=2)) == 3
    assert sorted(coco.anns) == list(range(1, 10))


def test_a_stopped_run_loses_no_picture(tmp_path, result):
    folder = open_folder(tmp_path / "out", [Format.PNG, Format.COCO_RLE])
    source = save_picture(tmp_path / "source.png")
    folder.start({PurePath("a"): source, PurePath("b"): source})
    folder.save(Picture(source, PurePath("a")), Image.open(source), result)
    with (tmp_path / "out" / "coco.json.part").open("a") as journal:
        journal.write('{"name": "b", "ima')  # killed in the middle of a line
    assert run_folder(tmp_path, result, ["a", "b"], Existing.SKIP) == ["b"]
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["name"] for image in content["images"]] == ["a", "b"]
    assert not (tmp_path / "out" / "coco.json.part").exists()


def test_results_that_are_there_are_not_overwritten_unasked(tmp_path, result):
    run_folder(tmp_path, result, ["a"])
    with pytest.raises(ValueError, match=r"a\.png' is there already \(2 results.*--overwrite.*--skip-existing"):
        run_folder(tmp_path, result, ["a"])
    assert run_folder(tmp_path, result, ["a"], Existing.OVERWRITE) == ["a"]


def test_a_coco_file_of_someone_else_is_not_overwritten(tmp_path, result):
    save_picture(tmp_path / "out" / "x.jpg")
    (tmp_path / "out" / "coco.json").write_text("{}")
    with pytest.raises(ValueError, match=r"coco\.json' is there already"):
        run_folder(tmp_path, result, ["a"])


def test_a_folder_takes_results_of_one_class_list_only(tmp_path, result):
    run_folder(tmp_path, result, ["a"])
    for existing in Existing:
        with pytest.raises(ValueError, match=r"made with other settings \(names, colors\).*--output"):
            run_folder(tmp_path, result, ["b"], existing, names=["dog", "sofa", "grass"])


def test_an_overwritten_folder_may_change_its_class_list(tmp_path, result):
    run_folder(tmp_path, result, ["a"])
    run_folder(tmp_path, result, ["a"], Existing.OVERWRITE, names=["dog", "sofa", "grass"])
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["dog", "sofa", "grass"]
    assert len(content["images"]) == 1


def test_results_of_other_names_do_not_outlive_a_picture_that_fails(tmp_path, result):
    run_folder(tmp_path, result, ["a"])
    folder = open_folder(tmp_path / "out", [Format.PNG, Format.COCO_RLE], names=["dog", "sofa", "grass"])
    folder.start({PurePath("a"): Path("a.jpg")}, Existing.OVERWRITE)
    folder.finish()  # nothing could be saved
    assert not (tmp_path / "out" / "a.png").exists()
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["images"] == []


def test_a_coco_file_of_other_names_is_not_left_beside_new_ones(tmp_path, result):
    run_folder(tmp_path, result, ["a"])
    with pytest.raises(ValueError, match="made with other settings"):
        run_folder(tmp_path, result, ["a"], Existing.OVERWRITE, [Format.PNG], names=["dog", "sofa", "grass"])


def test_a_picture_is_never_overwritten_by_its_own_result(tmp_path):
    source = save_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png' would be overwritten by the result.*--output"):
        open_folder(tmp_path).start({PurePath("a"): source}, Existing.OVERWRITE)


def test_two_results_of_one_path_are_refused(tmp_path):
    folder = open_folder(tmp_path / "out", [Format.PNG, Format.OVERLAY])
    with pytest.raises(ValueError, match=r"would both be .*a\.overlay\.png.*two output folders"):
        folder.start({PurePath("a"): Path("a.jpg"), PurePath("a.overlay"): Path("a.overlay.jpg")})


def test_a_folder_that_cannot_be_written_is_known_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"output folder .*file/out' cannot be written \(Not a directory\).*--output"):
        open_folder(tmp_path / "file" / "out").start({})


def test_a_folder_without_permission_is_known_before_any_work(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(formats_module.tempfile, "NamedTemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(OSError, match=r"cannot be written \(Permission denied\)"):
        open_folder(tmp_path).start({})


def test_a_disk_that_fills_up_leaves_no_half_result(tmp_path, result, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixels_module, "write_png", fail)
    folder = open_folder(tmp_path / "out")
    folder.start({PurePath("a"): Path("a.jpg")})
    with pytest.raises(OSError, match="No space left"):
        folder.save(Picture(Path("a.jpg"), PurePath("a")), Image.new("RGB", (8, 6)), replace(result, top_scores=None))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["names.json"]


# ---- ids and names for other tools


@pytest.mark.parametrize(("num_classes", "mode"), [(3, "L"), (256, "L"), (257, "I;16"), (40000, "I;16")])
def test_grey_pixels_are_the_ids_however_many_there_are(num_classes, mode):
    label_map, file = np.array([[0, 1, num_classes - 1]]), io.BytesIO()
    write_grey(file, label_map, num_classes)
    with Image.open(file) as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), label_map)


@pytest.mark.parametrize("first", [None, 0, 1])
def test_coco_s_categories_start_where_asked_and_both_ids_are_written_down(tmp_path, result, first):
    options = {} if first is None else {"first_category_id": first}
    folder = OutputFolder(tmp_path / "out", [Format.COCO_RLE], describe_names(NAMES), len(NAMES), **options)
    source, first = save_picture(tmp_path / "a.png"), 1 if first is None else first
    folder.start({PurePath("a"): source})
    folder.save(Picture(source, PurePath("a")), Image.open(source), result)
    folder.finish()
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == list(enumerate(NAMES, first))
    assert [a["category_id"] for a in content["annotations"]] == [first, first + 1, first + 2]
    assert content["info"]["first_category_id"] == first
    assert content["info"]["description"].endswith("label maps" + (" + 1" if first else ""))
    names = json.loads((tmp_path / "out" / "names.json").read_text())
    assert names["category_ids"] == {"0": first, "1": first + 1, "2": first + 2}


def test_a_folder_does_not_mix_two_ways_of_counting_categories(tmp_path, result):
    run_folder(tmp_path, result, ["a"])
    folder = OutputFolder(tmp_path / "out", [Format.PNG], describe_names(NAMES), len(NAMES), first_category_id=0)
    with pytest.raises(ValueError, match=r"made with other settings \(category_ids\)"):
        folder.start({PurePath("b"): Path("b.jpg")})


def test_the_file_name_of_a_picture_is_relative_to_the_folder_that_was_searched(tmp_path, monkeypatch):
    for name in ("photos/a/x.jpg", "photos/y.png", "photos/y.jpg"):
        save_picture(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for argument in ("photos", str(tmp_path / "photos"), "photos/../photos/"):
        found = find_pictures([argument], recursive=True)
        assert [picture.file_name for picture in found.pictures] == ["y.jpg", "y.png", "a/x.jpg"]
    assert [picture.file_name for picture in find_pictures(["photos/a/x.jpg", "photos/y.*"]).pictures] == [
        "x.jpg",
        "y.jpg",
        "y.png",
    ]


def test_coco_names_files_as_tools_look_for_them(tmp_path, result):
    save_picture(tmp_path / "photos" / "a" / "x.jpg")
    found = find_pictures([str(tmp_path / "photos")], recursive=True)
    folder = open_folder(tmp_path / "out", [Format.COCO_RLE])
    folder.start({picture.name: picture.path for picture in found.pictures})
    for picture in found.pictures:
        folder.save(picture, Image.open(picture.path), result)
    folder.finish()
    (image,) = json.loads((tmp_path / "out" / "coco.json").read_text())["images"]
    assert (image["file_name"], image["name"]) == ("a/x.jpg", "a/x")
    assert (tmp_path / "photos" / image["file_name"]).is_file()


def test_every_kind_of_results_has_a_writer():
    assert set(WRITERS) == set(Format)
