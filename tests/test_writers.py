"""Every kind of results gives back what was found: holes, islands, one-pixel parts, empty classes, 300 classes."""

import base64
import io
import json
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from ldvc.data.folders import is_image_folder, load_image_folder, read_class_names
from ldvc.masks.coco import coco_annotations
from ldvc.masks.collected import encode_brush
from ldvc.masks.files import Picture, find_pictures
from ldvc.masks.formats import WRITERS, Existing, Format, OutputFolder, describe_names
from ldvc.model.inference_ldvc import Segmentation


FEW = ["cat", "sofa & <chair>", "grass/moss", "empty"]  # and "other", the last id
MANY = [f"class {number}" for number in range(299)]
NEEDS = {Format.POLYGONS: "rasterio", Format.GEOTIFF: "rasterio", Format.GEOJSON: "rasterio"}


def shapes_map(num_ids):
    """A hole, an island in it, parts of one pixel that touch at a corner, a class at all borders, an empty one."""
    ids = np.zeros((21, 30), dtype=np.int64)
    ids[2:18, 2:18] = 1
    ids[5:14, 5:14] = 0
    ids[8:11, 8:11] = 1
    ids[9, 9] = 2
    ids[[0, 20, 12, 13], [29, 0, 22, 23]] = 2
    ids[4:9, 20:28] = num_ids - 1
    ids[5, 21], ids[6, 22], ids[7, 23] = 0, 0, 0  # holes that touch at corners
    ids[15, 18:30] = num_ids - 1
    return ids


def noise_map(num_ids):
    return np.random.default_rng(0).integers(0, 3, (21, 30)) * (num_ids - 1) // 2


MAPS = {"shapes": shapes_map, "noise": noise_map, "one class": lambda n: np.full((21, 30), n - 1)}


def found_of(ids, names):
    """A result whose best class has probability 0.75."""
    label_map, num_classes = torch.from_numpy(ids), len(names)
    scores = torch.full((num_classes, *ids.shape), 0.25).scatter_(0, label_map.clamp(max=num_classes - 1)[None], 0.75)
    best = torch.full((1, *ids.shape), 0.75)
    return Segmentation(label_map, [*names, "other"], scores, label_map[None], best)


def photo(size):
    height, width = size
    return Image.fromarray((np.arange(height * width * 3) % 251).astype(np.uint8).reshape(height, width, 3))


def save_all(tmp_path, formats, ids, names=FEW, stems=("sub/a",), existing=Existing.REFUSE, **settings):
    """Write results of photos/sub/a.jpg into out/; returns that folder and what was to do."""
    for kind in formats:
        if kind in NEEDS:
            pytest.importorskip(NEEDS[kind])
    settings.setdefault("scores", False)
    described = describe_names([*names, "other"], model="somebody/model", **settings)
    output = OutputFolder(tmp_path / "out", formats, described, len(names))
    pictures = []
    for stem in stems:
        path = tmp_path / "photos" / f"{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(ids.shape).save(path, quality=90)
        pictures.append(Picture(path, PurePath(stem)))
    todo = output.start({picture.name: picture.path for picture in pictures}, existing)
    for picture in pictures:
        if picture.name in todo:
            output.save(picture, Image.open(picture.path), found_of(ids, names))
    output.finish()
    return tmp_path / "out", [name.as_posix() for name in todo]


def paint(shape, masks):
    """Put masks together; no pixel may be in two of them, or in none."""
    ids, count = np.full(shape, -1), np.zeros(shape, dtype=int)
    for class_id, mask in masks:
        ids[mask], count[mask] = class_id, count[mask] + 1
    assert count.min() == count.max() == 1
    return ids


# ---- reading each kind as its tool does


def read_coco(folder, file_name, all_names, shape):
    from pycocotools.coco import COCO

    coco = COCO(folder / file_name)
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    (image,) = coco.imgs.values()
    masks = []
    for annotation in coco.imgToAnns[image["id"]]:
        mask = coco.annToMask(annotation).astype(bool)
        assert annotation["area"] == mask.sum()
        masks.append((all_names.index(names[annotation["category_id"]]), mask))
    return paint(shape, masks)


def decode_brush(data):
    """Label Studio's `decode_rle` in other words; its own is asked in the test below where it is installed."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    num, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < num:
        is_run, count = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    return np.array(values, dtype=np.uint8)


def read_label_studio(folder, all_names, shape):
    (task,) = json.loads((folder / "label-studio.json").read_text())
    (prediction,) = task["predictions"]
    masks = []
    for region in prediction["result"]:
        assert (region["original_height"], region["original_width"]) == shape
        layers = decode_brush(region["value"]["rle"]).reshape(*shape, 4)
        assert set(np.unique(layers)) <= {0, 255}
        (name,) = region["value"]["brushlabels"]
        masks.append((all_names.index(name), layers[..., 3] == 255))
    return paint(shape, masks)


def read_cvat(folder, all_names, shape):
    (image,) = ElementTree.parse(folder / "cvat.xml").getroot().iter("image")
    assert (int(image.get("height")), int(image.get("width"))) == shape
    masks = []
    for mask in image.iter("mask"):
        left, top, width, height = (int(mask.get(key)) for key in ("left", "top", "width", "height"))
        counts = [int(count) for count in mask.get("rle").split(",")]
        inside = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width).astype(bool)
        whole = np.zeros(shape, dtype=bool)
        whole[top : top + height, left : left + width] = inside
        masks.append((all_names.index(mask.get("label")), whole))
    return paint(shape, masks)


def read_labelme(folder, all_names, shape):
    content = json.loads((folder / "labelme" / "sub" / "a.json").read_text())
    assert (content["imageHeight"], content["imageWidth"]) == shape
    assert (folder / "labelme" / "sub" / content["imagePath"]).resolve().is_file()
    masks = []
    for part in content["shapes"]:
        (left, top), (right, bottom) = part["points"]
        inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(part["mask"])))).astype(bool)
        whole = np.zeros(shape, dtype=bool)
        whole[top : bottom + 1, left : right + 1] = inside  # labelme/utils/shape.py
        masks.append((all_names.index(part["label"]), whole))
    return paint(shape, masks)


def read_cutout(folder, all_names, shape):
    index = json.loads((folder / "sub" / "a.cutout" / "index.json").read_text())
    masks, pixels = [], np.asarray(Image.open(folder.parent / "photos" / "sub" / "a.jpg"))
    for class_id, name in index["files"].items():
        picture = np.asarray(Image.open(folder / "sub" / "a.cutout" / name))
        mask = picture[..., 3] == 255
        assert set(np.unique(picture[..., 3])) <= {0, 255}
        assert np.array_equal(picture[..., :3], pixels * mask[..., None])
        assert index["names"][class_id] == all_names[int(class_id)]
        masks.append((int(class_id), mask))
    return paint(shape, masks)


def read_geotiff(folder, all_names, shape):
    import rasterio

    with rasterio.open(folder / "sub" / "a.tif") as dataset:
        assert json.loads(dataset.tags()["LDVC_CLASSES"]) == all_names
        assert dataset.tags()["LDVC_SOURCE"] == "sub/a.jpg"
        return dataset.read(1).astype(np.int64)


def read_geojson(folder, all_names, shape):
    from rasterio.features import rasterize

    content = json.loads((folder / "sub" / "a.geojson").read_text())
    masks = []
    for feature in content["features"]:
        class_id = all_names.index(feature["properties"]["class"])
        assert feature["properties"]["class_id"] == class_id
        masks.append((class_id, rasterize([feature["geometry"]], shape).astype(bool)))
    return paint(shape, masks)


def read_hf(folder, all_names, shape):
    (row,) = load_image_folder(folder / "hf", "train")
    assert read_class_names(folder / "hf") == all_names
    return np.asarray(row["label"]).astype(np.int64)


READERS = {
    Format.COCO_RLE: lambda *rest: read_coco(rest[0], "coco.json", *rest[1:]),
    Format.POLYGONS: lambda *rest: read_coco(rest[0], "coco.polygons.json", *rest[1:]),
    Format.LABEL_STUDIO: read_label_studio,
    Format.CVAT: read_cvat,
    Format.LABELME: read_labelme,
    Format.CUTOUT: read_cutout,
    Format.GEOTIFF: read_geotiff,
    Format.GEOJSON: read_geojson,
    Format.HF: read_hf,
}


@pytest.mark.parametrize("kind", READERS, ids=str)
@pytest.mark.parametrize("drawn", MAPS)
@pytest.mark.parametrize("names", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["5 ids", "300 ids"])
def test_every_kind_gives_back_pixels_and_names(tmp_path, kind, drawn, names):
    ids = MAPS[drawn](len(names) + 1)
    folder, _ = save_all(tmp_path, [kind], ids, names)
    assert np.array_equal(READERS[kind](folder, [*names, "other"], ids.shape), ids)


def test_soft_masks_are_the_probabilities_in_255ths(tmp_path):
    ids = shapes_map(len(FEW) + 1)
    folder, _ = save_all(tmp_path, [Format.SOFT], ids)
    index = json.loads((folder / "sub" / "a.soft" / "index.json").read_text())
    assert index["files"] == {"0": "0-cat.png", "1": "1-sofa-chair.png", "2": "2-grass-moss.png", "3": "3-empty.png"}
    scores = found_of(ids, FEW).scores
    for class_id, name in index["files"].items():
        with Image.open(folder / "sub" / "a.soft" / name) as picture:
            assert picture.mode == "L"
            assert np.array_equal(np.asarray(picture), (scores[int(class_id)] * 255).round().numpy())


@pytest.mark.parametrize("kind", [kind for kind in Format if kind not in (Format.PNG, Format.OVERLAY, Format.NPZ)])
def test_a_stopped_run_of_any_kind_goes_on_with_what_is_missing(tmp_path, kind):
    ids = shapes_map(len(FEW) + 1)
    folder, todo = save_all(tmp_path, [kind], ids, stems=("a", "sub/b"))
    assert todo == ["a", "sub/b"]
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert not [path for path in whole if path.name.endswith(".part")]
    with pytest.raises(ValueError, match="is there already"):
        save_all(tmp_path, [kind], ids, stems=("a",))
    writer = WRITERS[kind]
    if writer.places:  # else it is one file of all
        (path,) = (folder / place.format("sub/b") for place in writer.places)
        damaged = path if path.name != "index.json" else next(path.parent.glob("*.png"))
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    folder, todo = save_all(tmp_path, [kind], ids, stems=("a", "sub/b", "sub/c"), existing=Existing.SKIP)
    assert todo == (["sub/b", "sub/c"] if writer.places else ["sub/c"])
    shared = {folder / name for name in writer.shared}
    assert {path for path, content in whole.items() if path not in shared and path.read_bytes() != content} == set()


@pytest.mark.parametrize("kind", list(Format), ids=str)
def test_results_of_other_names_leave_nothing_behind(tmp_path, kind):
    ids, another = shapes_map(len(FEW) + 1), Format.NPZ if kind is Format.PNG else Format.PNG
    save_all(tmp_path, [kind], ids)
    with pytest.raises(ValueError, match=r"made with other settings \(names, colors\)"):
        save_all(tmp_path, [kind], ids, ["dog", *FEW[1:]], existing=Existing.SKIP)
    with pytest.raises(ValueError, match=r"made with other settings \(names, colors\)"):
        save_all(tmp_path, [another], ids, ["dog", *FEW[1:]], existing=Existing.OVERWRITE)
    folder, _ = save_all(tmp_path, [kind], ids, ["dog", *FEW[1:]], existing=Existing.OVERWRITE)
    left = [path for path in folder.rglob("*") if path.is_file() and b'"cat"' in path.read_bytes()]
    assert left == []
    assert list(folder.rglob("*cat*")) == []


def test_several_kinds_are_written_in_one_pass(tmp_path):
    pytest.importorskip("rasterio")
    ids = shapes_map(len(FEW) + 1)
    folder, _ = save_all(tmp_path, list(Format), ids)
    for kind, read in READERS.items():
        assert np.array_equal(read(folder, [*FEW, "other"], ids.shape), ids), kind
    assert set(np.load(folder / "sub" / "a.npz")) == {"label_map", "class_names"}, "scores were not asked for"


def test_the_files_of_all_pictures_hold_those_of_every_run(tmp_path):
    ids = shapes_map(len(FEW) + 1)
    kinds = [Format.LABEL_STUDIO, Format.CVAT, Format.HF]
    save_all(tmp_path, kinds, ids, stems=("b",), image_url="/data/local-files/?d=photos/")
    folder, _ = save_all(tmp_path, kinds, ids, stems=("sub/a",), image_url="/data/local-files/?d=photos/")
    tasks = json.loads((folder / "label-studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=photos/b.jpg",
        "/data/local-files/?d=photos/sub/a.jpg",
    ]
    images = list(ElementTree.parse(folder / "cvat.xml").getroot().iter("image"))
    assert [(image.get("id"), image.get("name")) for image in images] == [("0", "b.jpg"), ("1", "sub/a.jpg")]
    rows = [json.loads(line) for line in (folder / "hf" / "metadata.jsonl").read_text().splitlines()]
    assert rows == [
        {"image_file_name": "images/b.jpg", "label_file_name": "masks/b.png"},
        {"image_file_name": "images/sub/a.jpg", "label_file_name": "masks/sub/a.png"},
    ]


def test_what_a_label_studio_project_and_a_cvat_task_need_is_written_too(tmp_path):
    folder, _ = save_all(tmp_path, [Format.LABEL_STUDIO, Format.CVAT], shapes_map(5))
    labels = ElementTree.parse(folder / "label-studio.xml").getroot().findall("BrushLabels/Label")
    assert [label.get("value") for label in labels] == [*FEW, "other"]
    names = ElementTree.parse(folder / "cvat.xml").getroot().iterfind("meta/task/labels/label/name")
    assert [name.text for name in names] == [*FEW, "other"]
    assert [label["name"] for label in json.loads((folder / "cvat.labels.json").read_text())] == [*FEW, "other"]


@pytest.mark.parametrize("stems", [("a",), ("a", "sub/b")])  # of one picture, classes.json is a quarter of the files
def test_a_dataset_opens_with_the_library_with_the_pictures_byte_for_byte(tmp_path, stems):
    from datasets import load_dataset

    ids = shapes_map(len(FEW) + 1)
    folder, _ = save_all(tmp_path, [Format.HF], ids, stems=stems)
    rows = load_dataset(str(folder / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    assert (rows.column_names, len(rows)) == (["image", "label"], len(stems))
    assert all(np.array_equal(np.asarray(row["label"]), ids) for row in rows)
    assert (folder / "hf" / "images" / "a.jpg").read_bytes() == (tmp_path / "photos" / "a.jpg").read_bytes()
    assert is_image_folder(folder / "hf")


def test_a_picture_that_lies_on_its_side_goes_upright_into_the_dataset(tmp_path):
    turned = Image.Exif()
    turned[274] = 6
    photo((8, 6)).save(tmp_path / "a.jpg", exif=turned)
    (picture,) = find_pictures([str(tmp_path / "a.jpg")]).pictures
    output = OutputFolder(tmp_path / "out", [Format.HF], describe_names(FEW), len(FEW))
    output.start({picture.name: picture.path})
    upright = picture.read(1000)
    output.save(picture, upright, found_of(np.zeros(upright.size[::-1], dtype=np.int64), FEW))
    output.finish()
    with Image.open(tmp_path / "out" / "hf" / "images" / "a.png") as copy:
        assert np.array_equal(np.asarray(copy), np.asarray(upright))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (300, 400)])
def test_a_brush_survives_label_studio_s_own_reader(shape):
    rng = np.random.default_rng(1)
    masks = [rng.random(shape) < share for share in (0.0, 0.1, 0.9, 1.1)]
    masks.append(np.arange(np.prod(shape)).reshape(shape) < np.prod(shape) // 2)  # runs longer than 16 bits
    for mask in masks:
        layers = decode_brush(encode_brush(mask)).reshape(*shape, 4)
        assert np.array_equal(layers, np.repeat(mask[..., None] * np.uint8(255), 4, axis=-1))
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    for mask in masks:
        assert np.array_equal(brush.decode_rle(encode_brush(mask)).reshape(*shape, 4)[..., 3], mask * np.uint8(255))


def test_scores_of_polygons_and_run_lengths_are_the_same(tmp_path):
    ids = shapes_map(len(FEW) + 1)
    folder, _ = save_all(tmp_path, [Format.COCO_RLE, Format.POLYGONS], ids)
    found = [json.loads((folder / name).read_text()) for name in ("coco.json", "coco.polygons.json")]
    for key in ("category_id", "bbox", "area", "score", "id", "image_id"):
        assert [a[key] for a in found[0]["annotations"]] == [a[key] for a in found[1]["annotations"]], key
    assert found[0]["images"] == found[1]["images"]
    assert coco_annotations(ids, np.full(ids.shape, 0.75), len(FEW))[-1]["score"] == 0.25


@pytest.mark.parametrize("kind", NEEDS, ids=str)
def test_a_missing_package_is_known_before_the_first_picture(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("ldvc.masks.formats.find_spec", lambda name: None)
    output = OutputFolder(tmp_path / "out", [kind], describe_names(FEW), len(FEW))
    with pytest.raises(ModuleNotFoundError) as caught:
        output.start({PurePath("a"): Path("a.jpg")})
    assert caught.value.name in ("rasterio", "pycocotools.mask")
    assert not (tmp_path / "out").exists()
