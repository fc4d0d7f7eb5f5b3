"""Exports of annotation tools as training data: `ldvc prepare coco|coco_panoptic|label_studio|cvat|labelme`."""

import json
from pathlib import PurePath

import numpy as np
import pytest
import torch
from PIL import Image

from ldvc.commands.data import EXPORTS as LISTED
from ldvc.commands.data import prepare
from ldvc.data.exports import EXPORTS
from ldvc.data.folders import load_image_folder, read_class_names
from ldvc.masks.files import Picture
from ldvc.masks.formats import Format, OutputFolder, describe_names
from ldvc.model.inference_ldvc import Segmentation


NAMES = ["cat", "sofa", "grass"]


def drawn_ids():
    """A hole, an island in it, and parts of one pixel."""
    ids = np.zeros((20, 30), dtype=np.int64)
    ids[2:18, 2:18], ids[5:14, 5:14], ids[8:11, 8:11] = 1, 0, 1
    ids[[0, 12, 13], [29, 22, 23]] = 2
    return ids


def photo(folder, name="a.jpg", size=(30, 20)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def run(kind, source, tmp_path, *options):
    images = () if kind == "labelme" else ("--images", str(tmp_path / "photos"))
    return prepare([kind, "--source", str(source), *images, "--output", str(tmp_path / "data"), *options])


def label_maps(tmp_path):
    rows = load_image_folder(tmp_path / "data", "train")
    return read_class_names(tmp_path / "data"), [np.asarray(row["label"]).tolist() for row in rows]


WRITTEN = {
    "coco-rle": (Format.COCO_RLE, "coco", "coco.json"),
    "polygons": (Format.POLYGONS, "coco", "coco.polygons.json"),
    "label-studio": (Format.LABEL_STUDIO, "label_studio", "label-studio.json"),
    "cvat": (Format.CVAT, "cvat", "cvat.xml"),
    "labelme": (Format.LABELME, "labelme", "labelme"),
}


@pytest.mark.parametrize(("form", "kind", "file"), WRITTEN.values(), ids=WRITTEN)
def test_what_ldvc_segment_wrote_for_a_tool_comes_back_as_training_data(tmp_path, form, kind, file, capsys):
    if form is Format.POLYGONS:
        pytest.importorskip("rasterio")
    ids, output = torch.from_numpy(drawn_ids()), OutputFolder(tmp_path / "out", [form], describe_names(NAMES), 3)
    picture = Picture(photo(tmp_path / "photos", "sub/a.jpg"), PurePath("sub/a"))
    output.start({picture.name: picture.path})
    best = torch.full((1, *ids.shape), 0.5)
    output.save(picture, Image.open(picture.path), Segmentation(ids, NAMES, None, ids[None], best))
    output.finish()
    assert run(kind, tmp_path / "out" / file, tmp_path) == 0
    assert "1 of 1 pictures written" in capsys.readouterr().out
    names, (found,) = label_maps(tmp_path)
    assert sorted(names) == sorted(NAMES)
    assert [[NAMES.index(names[i]) for i in row] for row in found] == drawn_ids().tolist()
    (copy,) = (tmp_path / "data" / "images").iterdir()
    assert copy.read_bytes() == picture.path.read_bytes()


def coco_file(tmp_path, annotations, categories=("cat", "sofa"), images=(("a.jpg", 4, 3),)):
    content = {
        "images": [{"id": n, "file_name": f, "width": w, "height": h} for n, (f, w, h) in enumerate(images, 1)],
        "categories": [{"id": 10 * n, "name": name} for n, name in enumerate(categories, 1)],
        "annotations": [{"id": n, "image_id": 1, **a} for n, a in enumerate(annotations, 1)],
    }
    for name, width, height in images:
        photo(tmp_path / "photos", name, (width, height))
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path / "coco.json"


SMALL = {"category_id": 20, "segmentation": [[1, 1, 2, 1, 2, 2, 1, 2]]}
LARGE = {"category_id": 10, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}


@pytest.mark.parametrize("annotations", [[SMALL, LARGE], [LARGE, SMALL]], ids=["small first", "large first"])
def test_the_smaller_object_is_on_top_and_what_nothing_covers_has_no_label(tmp_path, annotations):
    assert run("coco", coco_file(tmp_path, annotations), tmp_path) == 0
    names, (ids,) = label_maps(tmp_path)
    assert names == ["cat", "sofa"]
    assert ids == [[0, 0, 0, 255], [0, 1, 0, 255], [0, 0, 0, 255]]


def test_uncompressed_run_lengths_of_crowds_are_read(tmp_path):
    crowd = {"category_id": 10, "iscrowd": 1, "segmentation": {"size": [3, 4], "counts": [3, 3, 6]}}
    assert run("coco", coco_file(tmp_path, [crowd]), tmp_path) == 0
    assert label_maps(tmp_path)[1] == [[[255, 0, 255, 255]] * 3]


def test_panoptic_segments_are_read_by_their_colours_and_void_has_no_label(tmp_path):
    photo(tmp_path / "photos", "a.jpg", (3, 1))
    (tmp_path / "panoptic").mkdir()
    Image.fromarray(np.array([[[0, 0, 0], [5, 1, 0], [0, 0, 2]]], dtype=np.uint8)).save(tmp_path / "panoptic/a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 3, "height": 1}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "grass"}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [{"id": 261, "category_id": 9}, {"id": 2 * 65536, "category_id": 7}],
            }
        ],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    assert run("coco_panoptic", tmp_path / "panoptic.json", tmp_path) == 0
    assert label_maps(tmp_path) == (["cat", "grass"], [[[255, 1, 0]]])


def task(*results, image="/data/upload/1/0a1b2c3d-a.jpg"):
    size = {"original_width": 4, "original_height": 2}
    return {"data": {"image": image}, "annotations": [{"result": [{**size, **result} for result in results]}]}


def region(kind, **value):
    return {"type": kind, "value": {kind: [value.pop("label")], **value}}


def test_polygons_and_rectangles_of_label_studio_are_in_percent(tmp_path):
    photo(tmp_path / "photos", "a.jpg", (4, 2))
    half = region("polygonlabels", label="cat", points=[[0, 0], [50, 0], [50, 100], [0, 100]])
    box = region("rectanglelabels", label="sofa", x=75, y=50, width=25, height=50, rotation=0)
    (tmp_path / "export.json").write_text(json.dumps([task(half, box)]))
    assert run("label_studio", tmp_path / "export.json", tmp_path) == 0
    assert label_maps(tmp_path) == (["cat", "sofa"], [[[0, 0, 255, 255], [0, 0, 255, 1]]])


def test_the_order_of_cvat_s_layers_decides_before_the_size(tmp_path):
    photo(tmp_path / "photos", "a.jpg", (3, 1))
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    (tmp_path / "cvat.xml").write_text(
        f'<annotations><meta><job><labels>{labels}</labels></job></meta><image id="0" name="a.jpg" width="3" '
        'height="1"><box label="cat" xtl="0" ytl="0" xbr="3" ybr="1" z_order="1"/>'
        '<polygon label="sofa" points="0,0;1,0;1,1;0,1" z_order="0"/>'
        '<mask label="grass" rle="1, 1" left="1" top="0" width="2" height="1" z_order="2"/></image></annotations>'
    )
    assert run("cvat", tmp_path / "cvat.xml", tmp_path) == 0
    assert label_maps(tmp_path) == (NAMES, [[[0, 0, 2]]])


def test_polygons_and_rectangles_of_labelme_are_read_beside_their_picture(tmp_path):
    photo(tmp_path / "photos", "a.jpg", (4, 2))
    shapes = [
        {"label": "cat", "points": [[0, 0], [2, 0], [2, 2], [0, 2]], "shape_type": "polygon"},
        {"label": "sofa", "points": [[4, 2], [3, 1]], "shape_type": "rectangle"},
    ]
    content = {"imagePath": "..\\photos\\a.jpg", "imageHeight": 2, "imageWidth": 4, "shapes": shapes}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.json").write_text(json.dumps(content))
    assert run("labelme", tmp_path / "labels", tmp_path) == 0
    assert label_maps(tmp_path) == (["cat", "sofa"], [[[0, 0, 255, 255], [0, 0, 255, 1]]])


# ---- what cannot be used


def test_a_picture_that_cannot_be_used_is_one_line_and_the_others_go_on(tmp_path, capsys):
    path = coco_file(tmp_path, [LARGE], images=(("a.jpg", 4, 3), ("b.jpg", 4, 3), ("c.jpg", 4, 3)))
    photo(tmp_path / "photos", "b.jpg", (5, 5))
    (tmp_path / "photos" / "c.jpg").unlink()
    assert run("coco", path, tmp_path) == 1
    said = capsys.readouterr()
    assert "  b.jpg: is 5 x 5 pixels, and the export says 3 x 4.\n" in said.err
    assert f"  c.jpg: is not in {tmp_path / 'photos'}; name the folder of the pictures with --images.\n" in said.err
    assert said.out.startswith("1 of 3 pictures written")


def test_shapes_of_another_type_are_named(tmp_path, capsys):
    photo(tmp_path / "photos", "a.jpg", (4, 2))
    (tmp_path / "export.json").write_text(json.dumps([task(region("ellipselabels", label="cat", x=1))]))
    assert run("label_studio", tmp_path / "export.json", tmp_path) == 2
    assert (
        "holds a region of type 'ellipselabels'; brushes, polygons and upright rectangles" in capsys.readouterr().err
    )
    (tmp_path / "cvat.xml").write_text(
        "<annotations><meta><labels><label><name>cat</name></label></labels></meta><image id='0' name='a.jpg' "
        "width='4' height='2'><points label='cat' points='1,1'/></image></annotations>"
    )
    assert run("cvat", tmp_path / "cvat.xml", tmp_path) == 2
    assert "holds a shape of type 'points'; masks, polygons and upright boxes are read." in capsys.readouterr().err
    content = {"imagePath": "photos/a.jpg", "imageHeight": 2, "imageWidth": 4}
    content["shapes"] = [{"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "circle"}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert run("labelme", tmp_path, tmp_path) == 2
    assert "holds a shape of type 'circle'; masks, polygons and rectangles are read." in capsys.readouterr().err


def test_what_is_no_export_is_refused(tmp_path, capsys):
    cases = {
        "coco": ("[]", "is no export of coco (TypeError"),
        "cvat": ("no xml", "is no export of cvat (ParseError"),
        "label_studio": ("[]", "holds no labelled picture; export annotations of label_studio again."),
        "coco_panoptic": ("{", "is no export of coco_panoptic (JSONDecodeError"),
    }
    for kind, (text, message) in cases.items():
        (tmp_path / "export").write_text(text)
        assert run(kind, tmp_path / "export", tmp_path) == 2
        assert message in capsys.readouterr().err
    assert run("labelme", tmp_path / "export", tmp_path) == 2
    assert "is no folder of JSON files; an export of labelme is a folder of JSON files." in capsys.readouterr().err


def test_categories_of_one_name_are_refused(tmp_path, capsys):
    assert run("coco", coco_file(tmp_path, [LARGE], ("cat", "cat")), tmp_path) == 2
    assert "categories 10 and 20 are both called 'cat'; rename one." in capsys.readouterr().err


def test_an_id_of_two_categories_and_a_label_of_two_colours_are_refused(tmp_path, capsys):
    source = coco_file(tmp_path, [LARGE], ("cat", "sofa"))
    content = json.loads(source.read_text())
    content["categories"][1]["id"] = content["categories"][0]["id"]
    source.write_text(json.dumps(content))
    assert run("coco", source, tmp_path) == 2
    assert "'cat' and 'sofa' are both category 10; renumber." in capsys.readouterr().err
    label = "<label><name>cat</name></label>"
    (tmp_path / "cvat.xml").write_text(
        f"<annotations><meta><task><labels>{label * 2}</labels></task></meta></annotations>"
    )
    assert run("cvat", tmp_path / "cvat.xml", tmp_path) == 2
    assert "two labels are called 'cat'; rename one." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segmentation": []},
            "holds an object without a segmentation, a box or key points; export masks or polygons.",
        ),
        ({"segmentation": None}, "holds an object without a segmentation"),
        ({"category_id": 77}, "holds an object of category 77, which the export does not name."),
        ({"segmentation": {"size": [20, 30]}}, "cannot be read (KeyError: 'counts')."),
    ],
)
def test_objects_of_other_kinds_are_one_line_and_the_other_pictures_go_on(tmp_path, change, message, capsys):
    pictures = (("a.jpg", 4, 3), ("b.jpg", 4, 3))
    source = coco_file(tmp_path, [LARGE, {**LARGE, "image_id": 2, **change}], images=pictures)
    assert run("coco", source, tmp_path) == 1
    told = capsys.readouterr()
    assert [line for line in told.err.splitlines() if line.startswith(f"  b.jpg: {message}")]
    assert "1 of 2 pictures written" in told.out


def test_a_polygon_of_two_points_covers_nothing(tmp_path):
    point = [1, 0, 2, 2]
    stray, alone = {**LARGE, "segmentation": [point, *LARGE["segmentation"]]}, {**LARGE, "segmentation": [point]}
    assert run("coco", coco_file(tmp_path, [LARGE]), tmp_path) == 0
    _, expected = label_maps(tmp_path)
    assert run("coco", coco_file(tmp_path, [stray, alone]), tmp_path, "--overwrite") == 0
    assert label_maps(tmp_path)[1] == expected


def test_more_classes_than_a_label_map_of_training_holds_are_refused(tmp_path, capsys):
    path = coco_file(tmp_path, [LARGE], [f"class {n}" for n in range(256)])
    assert run("coco", path, tmp_path) == 2
    assert "has 256 classes; label maps of training hold 255." in capsys.readouterr().err


def test_an_output_that_is_there_is_replaced_only_when_asked_and_only_a_folder_of_ours(tmp_path, capsys):
    path = coco_file(tmp_path, [LARGE])
    assert run("coco", path, tmp_path) == 0
    assert run("coco", path, tmp_path) == 2
    remedy = "already exists: choose another folder, or pass --overwrite if this program wrote it."
    assert remedy in capsys.readouterr().err
    path.rename(tmp_path / "kept.json")
    path.write_text("{")
    assert run("coco", path, tmp_path, "--overwrite") == 2
    assert len(label_maps(tmp_path)[1]) == 1, "an unfit export takes nothing away"
    (tmp_path / "kept.json").rename(path)
    assert run("coco", path, tmp_path, "--overwrite") == 0
    (tmp_path / "data" / "classes.json").unlink()
    assert run("coco", path, tmp_path, "--overwrite") == 2
    assert run("coco", path, tmp_path, "--push_to_hub", "me/data") == 2
    assert "--push_to_hub goes with official archives; upload this folder with `hf upload`." in capsys.readouterr().err


def test_the_command_lists_every_reader():
    assert set(LISTED) == set(EXPORTS)
