"""How folders of pictures and label maps are laid out, lists in text files, and columns that other libraries write."""

import io
import json
import os
import re
import unicodedata

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ldvc.commands.data import check as main
from ldvc.data.class_lists import check_label_convention
from ldvc.data.folders import find_folder_splits, read_class_names, split_of
from ldvc.data.lists import read_image_ids
from ldvc.data.rows import find_rows, holds_pictures
from ldvc.data.samples import load_split, read_sample


NAMES = ["cat", "dog", "sofa", "grass"]


def write_pair(image, label, seed=0):
    """A picture and its label map of four ids, below a folder that may be new."""
    rng = np.random.default_rng(seed)
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(image)
    Image.fromarray(np.kron(rng.permutation(4).reshape(2, 2), np.ones((4, 4))).astype(np.uint8)).save(label)


def lay(root, image, label, splits=("train", "val"), number=2):
    """Write pairs under patterns with a split and a number."""
    for seed, (split, index) in enumerate((split, index) for split in splits for index in range(number)):
        write_pair(root / image.format(s=split, i=index), root / label.format(s=split, i=index), seed)
    return root


def sizes(root):
    return {name: len(split.pairs) for name, split in find_folder_splits(root).items()}


# ---- layouts


@pytest.mark.parametrize(
    ("image", "label", "splits"),
    [
        ("img_dir/{s}/{i}.jpg", "ann_dir/{s}/{i}.png", ("train", "val")),
        ("{s}/Images/{i}.jpg", "{s}/Masks/{i}.png", ("Train", "Val")),
        ("IMAGES/{s}/{i}.jpg", "MASKS/{s}/{i}.png", ("TRAIN", "VALID")),
        ("images/{s}/{i}.jpg", "annotations/{s}/{i}.png", ("train2017", "val2017")),
        ("images/{s}/{i}.jpg", "annotations/{s}/{i}.png", ("training", "validation")),
        ("{s}/images/{i}.jpg", "{s}/labels/{i}.png", ("training_set", "validation_set")),
        ("{s}_images/{i}.jpg", "{s}_masks/{i}.png", ("train", "val")),
        ("{s}/{i}_jpg.rf.0a1b.jpg", "{s}/{i}_jpg.rf.0a1b_mask.png", ("train", "valid")),
        ("JPEGImages/{s}/{i}.jpg", "SegmentationClass/{s}/{i}.png", ("train", "val")),
    ],
)
def test_the_fields_commonest_layouts_are_read_with_their_splits(tmp_path, image, label, splits):
    assert sizes(lay(tmp_path, image, label, splits)) == {"train": 2, "validation": 2}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Test_Set", "test"),
        ("test-2014", "test"),
        ("trainset", "train"),
        ("val_split", "validation"),
        ("training", "train"),
    ]
    + [(name, None) for name in ("trainer", "values", "tests", "train1", "garden", "trainval")],
)
def test_names_of_splits_are_told_from_other_names(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/site/{s}/{i}.jpg", "masks/site/{s}/{i}.png"),
        ("train/images/{s}/{i}.jpg", "train/masks/{s}/{i}.png"),
    ],
)
@pytest.mark.parametrize("splits", [("train2017", "val2017"), ("Train", "dev"), ("trainval", "minival")])
def test_splits_where_they_are_not_looked_for_are_never_pooled(tmp_path, image, label, splits):
    lay(tmp_path, image, label, splits)
    with pytest.raises(
        ValueError, match="named like a split, whose pictures would be mixed with the others: lay splits"
    ):
        find_folder_splits(tmp_path)


@pytest.mark.parametrize("splits", [("val", "validation"), ("train2014", "train2017"), ("test", "testing")])
def test_two_folders_of_one_split_are_refused(tmp_path, splits):
    lay(tmp_path, "images/{s}/{i}.jpg", "masks/{s}/{i}.png", splits)
    with pytest.raises(ValueError, match=f"{splits[0]} and .*{splits[1]} may both be the pictures of the split"):
        find_folder_splits(tmp_path)


def test_two_folders_of_label_maps_are_refused_and_one_without_pictures_is_none(tmp_path):
    lay(tmp_path, "images/{s}/{i}.jpg", "masks/{s}/{i}.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.json").write_text("{}")
    assert sizes(tmp_path) == {"train": 2, "validation": 2}
    write_pair(tmp_path / "x" / "0.jpg", tmp_path / "JPEGImages" / "0.png")
    write_pair(tmp_path / "flat" / "images" / "0.jpg", tmp_path / "flat" / "masks" / "0.png")
    write_pair(tmp_path / "flat" / "images" / "0.jpg", tmp_path / "flat" / "labels" / "0.png")
    with pytest.raises(ValueError, match=r"labels and .*masks may both be the label maps: move one"):
        find_folder_splits(tmp_path / "flat")


def test_lists_of_voc_name_the_splits(tmp_path):
    lay(tmp_path, "JPEGImages/{s}{i}.jpg", "SegmentationClass/{s}{i}.png")
    assert sizes(tmp_path) == {"train": 4}
    (tmp_path / "Annotations").mkdir()
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("train0\ntrain1\nval0\n")
    (lists / "val.txt").write_bytes("val1\ngone\n".encode("utf-16"))
    (lists / "trainval.txt").write_text("train0\n")
    found = find_folder_splits(tmp_path)
    assert {name: len(split.pairs) for name, split in found.items()} == {"train": 3, "validation": 1}
    assert [path.name for path in found["validation"].images_without_label] == ["gone"]


def test_names_of_roboflow_come_from_its_table(tmp_path):
    lay(tmp_path, "{s}/{i}.jpg", "{s}/{i}_mask.png", ("train", "valid"))
    (tmp_path / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, cat\n1, dog\n2, sofa\n3, grass\n")
    assert main([str(tmp_path)]) == 0
    assert read_class_names(tmp_path) == NAMES


def test_names_are_paired_in_either_form_of_unicode_and_more_endings_are_pictures(tmp_path):
    image, label = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    write_pair(tmp_path / "images" / f"{image}.jpg", tmp_path / "masks" / f"{label}.png")
    write_pair(tmp_path / "images" / "a.jpg", tmp_path / "masks" / "a.png")
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / "a.jfif")
    assert sizes(tmp_path) == {"train": 2}
    write_pair(tmp_path / "images" / f"{label}.jpg", tmp_path / "masks" / f"{label}.png")
    with pytest.raises(ValueError, match="differ in the ending only"):
        find_folder_splits(tmp_path)


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    lay(tmp_path / "own", "{s}/images/{i}.jpg", "{s}/masks/{i}.png", ("train",))
    lay(tmp_path / "other", "{s}/images/{i}.jpg", "{s}/masks/{i}.png", ("train",), number=3)
    for part in ("images", "masks"):
        os.symlink(tmp_path / "other" / "train" / part, tmp_path / "own" / "train" / part / "site_b")
        os.symlink(tmp_path / "own" / "train" / part, tmp_path / "other" / "train" / part / "back")
    assert sizes(tmp_path / "own") == {"train": 5}
    os.symlink(tmp_path / "nowhere", tmp_path / "own" / "train" / "images" / "site_c")
    with pytest.raises(ValueError, match=r"site_c is a link to '.*nowhere', which is not there: mend or remove it"):
        find_folder_splits(tmp_path / "own")


# ---- what is no label map by its ending, and other things that are not read


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (".txt", r"holds 2 \.txt files, YOLO's boxes or polygons: draw them as label maps"),
        (".json", r"holds 2 \.json files, COCO's or labelme's polygons: draw them"),
        (".xml", r"holds 2 \.xml files, boxes: label maps say of every pixel"),
    ],
)
def test_annotations_that_are_no_pictures_are_named_for_what_they_are(tmp_path, ending, message):
    lay(tmp_path, "images/{s}/{i}.jpg", "labels/{s}/{i}.png")
    for path in tmp_path.rglob("labels/*/*.png"):
        path.rename(path.with_suffix(ending))
    with pytest.raises(ValueError, match=message):
        load_split(str(tmp_path), "train")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_the_remedy_for_arrays_gives_label_maps_with_the_same_ids(tmp_path, dtype):
    lay(tmp_path, "{s}/images/{i}.jpg", "{s}/masks/{i}.png", ("train",))
    expected = []
    for path in sorted(tmp_path.rglob("masks/*.png")):
        expected.append(np.asarray(Image.open(path)).astype(dtype))
        np.save(path.with_suffix(".npy"), expected[-1])
        path.unlink()
    with pytest.raises(ValueError, match=r"holds 2 \.npy files, arrays: write them as PNG with python -c") as caught:
        load_split(str(tmp_path), "train")
    exec(re.search(r'python -c "(.*)"', str(caught.value))[1], {})
    split = load_split(str(tmp_path), "train")
    for row, ids in enumerate(expected):
        np.testing.assert_array_equal(read_sample(split, row)[1], ids)


def test_names_that_never_match_are_shown(tmp_path):
    lay(tmp_path, "images/{i}.jpg", "masks/{i}_seg.png", ("",))
    with pytest.raises(ValueError, match=r"has no picture with a label map: .*The first are 0\.jpg and 0_seg\.png\."):
        load_split(str(tmp_path), "train")


def test_a_folder_of_no_known_layout_is_answered_with_the_layouts(tmp_path):
    lay(tmp_path, "leftImg8bit/{i}.jpg", "gtFine/{i}.png", ("",))
    with pytest.raises(
        ValueError, match="has no layout that tells pictures from label maps: lay them out as images/tr"
    ):
        load_split(str(tmp_path), "train")


def test_metadata_of_the_library_and_files_of_other_endings_are_said_not_to_be_read(tmp_path):
    lay(tmp_path / "own", "{s}/images/{i}.jpg", "{s}/masks/{i}.png")
    (tmp_path / "own" / "train" / "images" / "metadata.jsonl").write_text('{"file_name": "0.jpg", "label": "1.png"}\n')
    (tmp_path / "own" / "train" / "images" / "x.heic").write_bytes(b"")
    arguments = ["--class_names", str(NAMES), "--json", str(tmp_path / "check.json")]
    assert main([str(tmp_path / "own"), *arguments]) == 0
    texts = [finding["text"] for finding in json.loads((tmp_path / "check.json").read_text())["findings"]]
    assert any(text.endswith("images holds files that are no pictures by their ending: 1 .heic") for text in texts)
    assert any(
        "metadata.jsonl is not read: label maps belong to the pictures of the same name" in text for text in texts
    )


@pytest.mark.parametrize("place", ["images", "images/extra", "more/train/images"])
def test_pictures_that_belong_to_no_split_are_counted(tmp_path, place):
    lay(tmp_path / "own", "images/{s}/{i}.jpg", "masks/{s}/{i}.png")
    write_pair(tmp_path / "own" / place / "5.jpg", tmp_path / "own" / "masks" / "val" / "5.png", seed=9)
    (tmp_path / "own" / "masks" / "val" / "5.png").unlink()
    arguments = ["--class_names", str(NAMES), "--json", str(tmp_path / "check.json"), "--patch_size", "4"]
    assert main([str(tmp_path / "own"), *arguments]) == 0
    findings = json.loads((tmp_path / "check.json").read_text())["findings"]
    (finding,) = [finding for finding in findings if finding["severity"] == "warning"]
    assert finding["text"] == "pictures in the folder that belong to no split, and are not read: 1"
    assert finding["examples"] == [str(tmp_path / "own" / place / "5.jpg")]


@pytest.mark.parametrize(
    ("image", "label"),
    [("img_dir/{s}/{i}.jpg", "ann_dir/{s}/{i}.png"), ("{s}/{i}.jpg", "{s}/{i}_mask.png")],
)
def test_only_pictures_of_a_known_layout_are_segmented(tmp_path, image, label):
    lay(tmp_path, image, label)
    found = find_rows(str(tmp_path), "train").pictures
    names = [picture.rows[picture.index]["image"]["path"].rsplit("/", 1)[-1] for picture in found]
    assert names == ["0.jpg", "1.jpg"]


def test_label_maps_of_an_unknown_layout_are_not_segmented(tmp_path):
    lay(tmp_path, "left/{s}/{i}.jpg", "annotations/{s}/{i}.png")
    with pytest.raises(ValueError, match=r"label maps in '.*annotations.*' would be segmented too; name the folder"):
        find_rows(str(tmp_path), "train")


# ---- class names


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\nsofa\ngrass\n",
        "\n".join(["# names", *NAMES, "", ""]),
        "id,name\n0,cat\n1,dog\n2,sofa\n3,grass\n",
        "0: cat\n1: dog\n2: sofa\n3: grass",
        "0 cat\n1 dog\n2 sofa\n3 grass",
        "3\tgrass\n1\tdog\n2\tsofa\n0\tcat",
        'Pixel Value, Class\r\n0, "cat"\r\n1, dog\r\n2, sofa\r\n3, grass\r\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_names_are_read_with_their_ids_or_in_their_order_however_they_were_saved(tmp_path, text, encoding):
    (tmp_path / "classes.txt").write_bytes(text.encode(encoding))
    assert read_class_names(tmp_path) == NAMES


def test_synonyms_with_commas_are_one_name(tmp_path):
    (tmp_path / "classes.txt").write_text("wall\nbuilding, edifice\nsky\n")
    assert read_class_names(tmp_path) == ["wall", "building, edifice", "sky"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name\ncat\ndog\n", "line 1: 'name' looks like a heading: write one class name per line"),
        (b"cat\n\ndog\n", "line 2 is blank, and the names after it would be shifted"),
        (b"\ncat\ndog\n", "line 1 is blank"),
        (b"cat,dog,sofa\n", "line 1: 'cat,dog,sofa' is not a name alone"),
        (b"cat\n1: dog\n", "line 2: '1: dog' is not a name alone"),
        (b"cat,0\ndog,1\n", "line 1: 'cat,0' is not a name alone"),
        (b"cat # pets\ndog\n", "line 1: 'cat # pets' is not a name alone"),
        (b"__ignore__\n_background_\ncat\n", "line 1: '__ignore__' is not a name alone"),
        (
            b"1: cat\n2: dog\n",
            "gives no name to id 0, or two names to one id: .*if 0 is background, leave the numbers",
        ),
        (b"0: cat\n2: dog\n", "gives no name to id 1"),
        (b"0: cat\n0: dog\n", "or two names to one id"),
        (b"gr\xe4s\n", r"is no text in UTF-8 \(.*\): save it again as UTF-8"),
    ],
)
def test_a_list_whose_names_would_be_shifted_is_refused(tmp_path, text, message):
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        NAMES,
        {"class_names": NAMES},
        {"reduce_labels": False, "classes": NAMES},
        {"names": {"0": "cat", "1": "dog", "2": "sofa", "3": "grass"}},
        dict(enumerate(NAMES)),
        {name: index for index, name in enumerate(NAMES)},
    ],
)
def test_every_plain_form_of_classes_json_is_read(tmp_path, content):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    assert read_class_names(tmp_path) == NAMES
    check_label_convention(str(tmp_path), 4, reduce_labels=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", r"classes\.json is no JSON \(.*\): mend it, or write a classes\.txt instead"),
        ("{}", "holds no class names: write a list such as"),
        ("[]", "holds no class names"),
        ("3", "holds no class names"),
        ('{"reduce_labels": true}', "holds no class names"),
        ('{"0": "cat", "2": "dog"}', "gives no name to id 1"),
    ],
)
def test_a_classes_json_without_names_is_one_line_wherever_it_is_read(tmp_path, capsys, text, message):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_label_convention(str(tmp_path), 4, reduce_labels=False)
    assert main([str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)


# ---- lists of images


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_images_are_read_however_they_were_saved(tmp_path, encoding):
    (tmp_path / "train.txt").write_bytes("a\r\nb\r\n\r\na\r\n".encode(encoding))
    assert read_image_ids(tmp_path / "train.txt", "mend it") == ["a", "b"]


@pytest.mark.parametrize("flag", ["1", "-1", "0"])
def test_a_list_with_flags_of_one_class_is_refused(tmp_path, flag):
    (tmp_path / "train.txt").write_text(f"2007_000032  {flag}\n")
    with pytest.raises(ValueError, match=f"holds '2007_000032 {flag}': a flag after the id says whether one class"):
        read_image_ids(tmp_path / "train.txt", "mend it")


# ---- columns


def png(image):
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


STRUCT = [("bytes", pyarrow.binary()), ("path", pyarrow.string())]


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        (pyarrow.binary(), lambda content: content),
        (pyarrow.large_binary(), lambda content: content),
        (pyarrow.struct(STRUCT), lambda content: {"bytes": content, "path": None}),
        (pyarrow.struct(STRUCT[::-1]), lambda content: {"bytes": content, "path": "a.png"}),
        (pyarrow.struct(STRUCT[:1]), lambda content: {"bytes": content}),
        (
            pyarrow.struct([("bytes", pyarrow.large_binary()), ("path", pyarrow.large_string())]),
            lambda content: {"bytes": content, "path": None},
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_of_other_libraries_is_read(tmp_path, monkeypatch, kind, cell, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_pair(tmp_path / "x.png", tmp_path / "y.png")
    image, label = Image.open(tmp_path / "x.png"), Image.open(tmp_path / "y.png")
    columns = {"photo": [cell(png(image))] * 2, "image": [cell(png(label))] * 2}
    table = pyarrow.table({name: pyarrow.array(values, kind) for name, values in columns.items()})
    (tmp_path / "set").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    split = load_split(str(tmp_path / "set"), "train", image_column="photo", label_column="image", streaming=streaming)
    first = next(iter(split))
    np.testing.assert_array_equal(first["image"], image)
    np.testing.assert_array_equal(first["label"], label)
    if not streaming:
        (picture, _) = find_rows(str(tmp_path / "set"), "train", image_column="photo").pictures
        np.testing.assert_array_equal(picture.read(10_000), image)


@pytest.mark.parametrize("feature", [None, {"bytes": None, "text": None}, {"path": None}])
def test_other_columns_hold_no_pictures(feature):
    assert not holds_pictures(feature)


def test_one_column_for_pictures_and_label_maps_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lay(tmp_path / "own", "{s}/images/{i}.jpg", "{s}/masks/{i}.png")
    load_split(str(tmp_path / "own"), "train").to_parquet(tmp_path / "set" / "train.parquet")
    for options in ({"label_column": "image"}, {"image_column": "label"}):
        with pytest.raises(
            ValueError, match="cannot be both the pictures and their label maps; its other columns are"
        ):
            load_split(str(tmp_path / "set"), "train", **options)
