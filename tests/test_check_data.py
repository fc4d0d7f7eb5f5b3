"""The checker of own data, and plain folders of pictures and label maps as a dataset."""

import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from ldvc.commands.data import check as main
from ldvc.data.check import choose_vocabulary, exit_code, parse_names
from ldvc.data.findings import Finding, check_ids, check_names
from ldvc.data.folders import find_folder_splits, is_image_folder, load_image_folder, read_class_names
from ldvc.data.inspection import Sample, SplitSummary, inspect_sample, read_split
from ldvc.data.samples import load_split, read_sample
from ldvc.data.vocabularies import Vocabulary


NAMES = "[cat, dog, sofa, grass]"


@pytest.fixture
def own(tmp_path):
    """A plain folder: six pictures to train, three to score; four quadrants of one class each, a row without label."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 6), ("validation", 3)):
        for part in ("images", "masks"):
            (tmp_path / "own" / split / part).mkdir(parents=True)
        for index in range(number):
            label = np.kron(rng.permutation(4).reshape(2, 2), np.ones((12, 16))).astype(np.uint8)
            label[-1] = 255
            picture = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            picture.save(tmp_path / "own" / split / "images" / f"{index}.png")
            Image.fromarray(label).save(tmp_path / "own" / split / "masks" / f"{index}.png")
    return tmp_path / "own"


def check(folder, tmp_path, *options):
    """Exit code, and the findings as the JSON file has them."""
    code = main([str(folder), "--json", str(tmp_path / "check.json"), *options])
    report = json.loads((tmp_path / "check.json").read_text())
    return code, report


def texts(report, severity):
    return [finding["text"] for finding in report["findings"] if finding["severity"] == severity]


def change_labels(folder, change, split="train"):
    """Replace every label map of a split by `change(array)`."""
    for path in (folder / split / "masks").iterdir():
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


# ---- plain folders


def test_a_plain_folder_is_a_dataset_for_training_and_evaluation(own):
    split = load_split(str(own), "train")
    assert len(split) == 6
    image, label_map = read_sample(split, 2)
    np.testing.assert_array_equal(image, Image.open(own / "train" / "images" / "2.png"))
    np.testing.assert_array_equal(label_map, Image.open(own / "train" / "masks" / "2.png"))
    assert len(load_split(str(own), "validation", num_images=2)) == 2
    assert len(list(load_split(str(own), "train", streaming=True))) == 6


@pytest.mark.parametrize(
    ("image_folder", "label_folder", "split"),
    [
        ("images", "masks", "train"),
        ("images", "labels", "train"),
        ("images/val", "annotations/val", "validation"),
        ("val/images", "val/labels", "validation"),
        ("training/image", "training/mask", "train"),
        ("images/test", "masks/test", "test"),
    ],
)
def test_the_usual_layouts_are_known(own, tmp_path, image_folder, label_folder, split):
    other = tmp_path / "other"
    for source, target in (("images", image_folder), ("masks", label_folder)):
        (other / target).parent.mkdir(parents=True, exist_ok=True)
        (own / "train" / source).rename(other / target)
    assert {name: len(found.pairs) for name, found in find_folder_splits(other).items()} == {split: 6}
    assert len(load_image_folder(other, split)) == 6


def test_other_folders_are_no_plain_folders(own, tmp_path):
    assert not is_image_folder(tmp_path / "nowhere")
    assert not is_image_folder(own / "train" / "images")


def test_pictures_and_label_maps_pair_by_name_whatever_the_ending_and_the_folder_below(own):
    nested = own / "train" / "images" / "garden"
    nested.mkdir()
    (own / "train" / "masks" / "garden").mkdir()
    Image.new("RGB", (8, 8)).save(nested / "a.b.jpg")
    Image.new("L", (8, 8)).save(own / "train" / "masks" / "garden" / "a.b.png")
    (own / "train" / "images" / "Thumbs.db").write_bytes(b"")
    (own / "train" / "images" / ".hidden.png").write_bytes(b"")
    pairs = find_folder_splits(own)["train"].pairs
    assert len(pairs) == 7
    assert ("a.b.jpg", "a.b.png") in [(image.name, label.name) for image, label in pairs]


def test_two_pictures_of_one_name_are_refused(own):
    Image.new("RGB", (8, 8)).save(own / "train" / "images" / "0.jpg")
    with pytest.raises(ValueError, match=r"0\.jpg and .*0\.png differ in the ending only: keep one"):
        find_folder_splits(own)


def test_a_missing_split_of_a_plain_folder_is_answered_with_the_remedy(own):
    with pytest.raises(ValueError, match=r"has no split 'test'; it has \['train', 'validation'\]. Put pictures into"):
        load_split(str(own), "test")


def test_a_folder_whose_names_never_match_is_refused(own):
    for path in (own / "train" / "masks").iterdir():
        path.rename(path.with_name(f"mask{path.name}"))
    with pytest.raises(ValueError, match="has no picture with a label map: give both the same name"):
        load_split(str(own), "train")


# ---- findings


def test_a_clean_folder_is_fit_and_every_pixel_is_counted(own, tmp_path, capsys):
    code, report = check(own, tmp_path, "--class_names", NAMES)
    assert code == 0
    assert texts(report, "error") == texts(report, "warning") == []
    train = report["splits"]["train"]
    assert (train["num_images"], train["num_usable"]) == (6, 6)
    assert sum(train["pixels_per_id"].values()) == 6 * 24 * 32
    assert train["pixels_per_id"]["255"] == 6 * 32
    assert train["images_per_id"] == {"0": 6, "1": 6, "2": 6, "3": 6, "255": 6}
    assert (train["smallest"], train["image_modes"], train["label_modes"]) == ([24, 32], {"RGB": 6}, {"L": 6})
    printed = capsys.readouterr().out
    assert "| 255 | no label | 6 | 4.17% | 3 | 4.17% |" in printed
    assert printed.endswith("Fit for training. Warnings: 0.\n")


@pytest.mark.slow
def test_every_kind_of_dataset_is_read(own, tmp_path):
    splits = {split: load_split(str(own), split) for split in ("train", "validation")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    for split, rows in splits.items():
        rows.rename_columns({"image": "photo", "label": "mask"}).to_parquet(tmp_path / "set" / f"{split}.parquet")
    saved = check(tmp_path / "saved", tmp_path, "--class_names", NAMES)
    columns = ("--image_column", "photo", "--label_column", "mask")
    parquet = check(tmp_path / "set", tmp_path, "--class_names", NAMES, *columns)
    streamed = check(tmp_path / "set", tmp_path, "--class_names", NAMES, "--streaming", *columns)
    plain = check(own, tmp_path, "--class_names", NAMES)
    assert saved == parquet == streamed == plain


def test_all_bad_files_are_counted_and_the_first_named(own, tmp_path):
    for index in range(4):
        (own / "train" / "images" / f"{index}.png").write_bytes(b"no picture")
    whole = (own / "validation" / "masks" / "1.png").read_bytes()
    (own / "validation" / "masks" / "1.png").write_bytes(whole[:-30])
    code, report = check(own, tmp_path, "--class_names", NAMES, "--max_examples", "2")
    assert code == 2
    assert texts(report, "error") == [
        "train: image files that cannot be read: 4",
        "validation: label maps that cannot be read: 1",
    ]
    first, second = report["findings"][:2]
    assert [example[:15] for example in first["examples"]] == ["row 0 (0.png): ", "row 1 (1.png): "]
    assert second["examples"][0].startswith("row 1 (1.png): ")
    assert report["splits"]["train"]["num_usable"] == 6  # the label maps are still counted


def test_an_empty_cell_is_a_bad_sample(own):
    split = load_split(str(own), "validation")
    rows = [{"image": None, "label": split[0]["label"]}, split[1]]
    summary = read_split(Dataset.from_list(rows, features=split.features), "validation", show_progress=False)
    assert summary.problems["unreadable image"] == (1, ["row 0 (0.png): the row is empty"])


def test_label_maps_that_are_no_ids_are_told_apart(own, tmp_path):
    masks = own / "train" / "masks"
    Image.open(masks / "0.png").convert("RGB").save(masks / "0.png")
    coloured = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(coloured).save(masks / "1.png")
    Image.open(masks / "2.png").save(masks / "2.jpg")
    (masks / "2.png").unlink()
    Image.open(masks / "3.png").resize((16, 24)).save(masks / "3.png")
    code, report = check(own, tmp_path, "--class_names", NAMES)
    assert code == 2
    assert texts(report, "error") == [
        "train: label maps that show colours instead of ids: 1",
        "train: label maps stored as grey RGB pictures: 1",
        "train: label maps stored as JPEG, whose compression changes ids at every border: 1",
        "train: label maps of another size than their image: 1",
    ]
    examples = [finding["examples"] for finding in report["findings"][:4]]
    assert examples[1:] == [
        ["row 0 (0.png): mode RGB"],
        ["row 2 (2.png, 2.jpg)"],
        ["row 3 (3.png): image 24 x 32, label map 24 x 16"],
    ]


@pytest.mark.parametrize(
    ("change", "text", "remedy"),
    [
        (lambda ids: np.where(ids == 3, 9, ids), "0 to 3: 9 (6 images)", "add the missing names"),
        (lambda ids: np.where(ids < 255, ids + 1, ids), "0 to 3: 4 (6 images)", "id 0 never occurs"),
        (lambda ids: np.where(ids == 3, 4, ids), "0 to 3: 4 (6 images)", "if 0 is background"),
        (lambda ids: np.arange(ids.size, dtype=np.uint16).reshape(ids.shape), "0 to 3: 4 (6", "instances, colours"),
    ],
)
def test_ids_outside_the_class_list_are_listed_with_the_likely_reason(own, change, text, remedy):
    columns = load_split(str(own), "train")[:]
    columns["label"] = [Image.fromarray(change(np.array(label))) for label in columns["label"]]
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    summary = read_split(Dataset.from_dict(columns, features=features), "train", show_progress=False)
    finding = check_ids(summary, Vocabulary("own", ("cat", "dog", "sofa", "grass")), reduce_labels=False)[0]
    assert finding.severity == "error"
    assert text in finding.text
    assert remedy in finding.remedy


def test_negative_ids_are_told_apart():
    summary = SplitSummary("train")
    summary.add(Sample("row 0", id_counts={-1: 5, 0: 7}), max_examples=2)
    finding = check_ids(summary, Vocabulary("own", ("cat", "dog")), reduce_labels=False)[0]
    assert "0 to 1: -1 (1 images)" in finding.text
    assert finding.remedy.startswith("negative ids have no meaning")


def test_what_is_remembered_of_wild_ids_is_bounded():
    summary = SplitSummary("train")
    for first in range(0, 10_000, 500):
        summary.add(Sample(f"row {first}", id_counts=dict.fromkeys(range(first, first + 500), 1)), max_examples=2)
    assert summary.num_pixels == 10_000
    assert len(summary.pixels) <= 1000 + 256


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        (
            lambda ids: np.where(ids == 255, 255, np.where(np.arange(32) > 25, ids, 0)),
            (),
            "train: id 0 ('cat') is in every image and covers",
        ),
        (lambda ids: np.where(ids < 3, ids, 0), ("--reduce_labels",), "train: the last id, 4, never occurs"),
        (lambda ids: np.where(ids == 1, 0, 255), (), "hold only 0 and 255, as black-and-white masks do"),
        (lambda ids: np.where(ids == 3, 0, ids), (), "train: seen classes without a pixel: grass"),
        (lambda ids: np.where(ids > 0, 255, ids), (), "train: 7"),
    ],
)
def test_suspicious_ids_are_warned_of(own, tmp_path, change, options, text):
    change_labels(own, lambda ids: change(ids).astype(np.uint8))
    code, report = check(own, tmp_path, "--class_names", NAMES, *options)
    assert code == 0
    assert any(text in warning for warning in texts(report, "warning"))
    assert check(own, tmp_path, "--class_names", NAMES, "--strict", *options)[0] == 1


def test_unlabelled_pixels_are_a_note_when_few_and_a_warning_when_most(own, tmp_path):
    _, report = check(own, tmp_path, "--class_names", NAMES)
    assert texts(report, "note") == [
        "train: 4.2% of the pixels have no label",
        "validation: 4.2% of the pixels have no label",
    ]
    change_labels(own, lambda ids: np.where(np.arange(32) > 8, 255, ids).astype(np.uint8))
    _, report = check(own, tmp_path, "--class_names", NAMES)
    assert texts(report, "warning") == ["train: 73.0% of the pixels have no label"]
    assert report["findings"][0]["remedy"].endswith("--unlabeled_pixels ignore")


def test_pictures_without_a_labelled_pixel_or_smaller_than_a_patch_are_warned_of(own, tmp_path):
    Image.new("L", (32, 24), 255).save(own / "train" / "masks" / "0.png")
    _, report = check(own, tmp_path, "--class_names", NAMES, "--patch_size", "28")
    assert texts(report, "warning") == [
        "train: images without any labelled pixel: 1",
        "train: images smaller than one patch: 6",
        "validation: images smaller than one patch: 3",
    ]
    assert report["findings"][1]["examples"][0] == "row 0 (0.png): 24 x 32 pixels"


def test_a_picture_in_both_splits_is_an_error_even_when_saved_anew(own, tmp_path):
    Image.open(own / "train" / "images" / "4.png").save(own / "validation" / "images" / "1.png", compress_level=1)
    code, report = check(own, tmp_path, "--class_names", NAMES)
    assert code == 2
    assert texts(report, "error") == ["validation: images that are in train too, pixel for pixel: 1"]
    assert report["findings"][0]["examples"] == ["row 1 (1.png) = train row 4 (4.png)"]


def test_a_picture_twice_in_one_split_is_warned_of(own, tmp_path):
    Image.open(own / "train" / "images" / "4.png").save(own / "train" / "images" / "5.png")
    _, report = check(own, tmp_path, "--class_names", NAMES)
    assert texts(report, "warning") == ["train: images that occur more than once: 1"]


def test_files_without_a_partner_are_named(own, tmp_path):
    (own / "train" / "masks" / "3.png").unlink()
    (own / "validation" / "images" / "2.png").unlink()
    _, report = check(own, tmp_path, "--class_names", NAMES)
    assert texts(report, "warning") == [
        "train: images without a partner of the same name, which are left out: 1",
        "validation: label maps without a partner of the same name, which are left out: 1",
    ]
    assert report["findings"][0]["examples"] == ["3.png"]


def test_classes_are_needed_where_they_train_and_where_they_are_scored(own, tmp_path):
    change_labels(own, lambda ids: np.where(ids == 2, 255, ids).astype(np.uint8))
    change_labels(own, lambda ids: np.where(ids == 3, 255, ids).astype(np.uint8), "validation")
    _, report = check(own, tmp_path, "--class_names", NAMES, "--unseen_classes", "[sofa]")
    assert texts(report, "warning") == ["validation: classes that cannot be scored, as no pixel is theirs: grass"]
    _, report = check(own, tmp_path, "--class_names", NAMES)
    assert "train: seen classes without a pixel: sofa" in texts(report, "warning")
    code, report = check(own, tmp_path, "--class_names", NAMES, "--unseen_classes", "[cat, dog, grass]")
    assert code == 2
    assert texts(report, "error") == ["train: no seen class has a single pixel"]


def test_rare_classes_are_noted(own, tmp_path):
    (own / "train" / "images" / "5.png").unlink()
    (own / "train" / "images" / "4.png").unlink()
    _, report = check(own, tmp_path, "--class_names", NAMES)
    assert "train: seen classes in fewer than 5 images: cat, dog, sofa, grass" in texts(report, "note")


def test_a_dataset_without_a_second_split_is_warned_of(own, tmp_path):
    (own / "validation").rename(own / "later")
    code, report = check(own, tmp_path, "--class_names", NAMES)
    assert code == 0
    assert "has no split 'validation'" in texts(report, "warning")[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("background", "'background' describes no object"),
        ("traffic_light", "'traffic_light' is not written as words"),
        ("17", "'17' is not written as words"),
    ],
)
def test_names_that_are_no_words_are_warned_of(name, text):
    (finding,) = check_names(Vocabulary("own", ("cat", name)))
    assert finding.severity == "warning"
    assert text in finding.text


def test_warnings_and_errors_decide_the_exit_code():
    note, warning, error = (Finding(severity, "", "") for severity in ("note", "warning", "error"))
    assert exit_code([note]) == exit_code([note], strict=True) == 0
    assert (exit_code([warning]), exit_code([warning], strict=True)) == (0, 1)
    assert exit_code([warning, error]) == 2


def test_a_damaged_sample_never_raises():
    sample = inspect_sample(3, {"image": {"bytes": b"", "path": None}, "label": {"bytes": b"x", "path": "a.png"}}, 16)
    assert sample.name == "row 3 (a.png)"
    assert set(sample.problems) == {"unreadable image", "unreadable label map"}


# ---- class list


def test_the_class_list_may_lie_in_the_folder(own, tmp_path):
    (own / "classes.txt").write_text("cat\n dog\nsofa\ngrass\n\n")
    assert read_class_names(own) == ["cat", "dog", "sofa", "grass"]
    code, report = check(own, tmp_path)
    assert code == 0
    assert report["class_names"] == ["cat", "dog", "sofa", "grass"]


def test_the_class_list_of_a_prepared_dataset_is_found(tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"class_names": ["cat", "dog"]}))
    assert choose_vocabulary(str(tmp_path), None, "[dog]", None).seen_class_ids == (0,)


def test_a_prepared_dataset_read_with_the_other_convention_is_refused(own, capsys):
    summary = {"class_names": ["cat", "dog", "sofa", "grass"], "reduce_labels": True}
    (own / "classes.json").write_text(json.dumps(summary))
    assert main([str(own)]) == 2
    assert "reduce_labels is False, but the label maps" in capsys.readouterr().err


def test_names_are_read_as_yaml_or_with_commas():
    assert parse_names("[cat, traffic light]") == parse_names("cat, traffic light") == ["cat", "traffic light"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no class list: give --class_names"),
        (("--class_names", "[cat]", "--vocabulary", "voc2012"), "give --class_names or --vocabulary, not both"),
        (("--vocabulary", "voc2021"), "did you mean 'voc2012'"),
        (("--class_names", "[cat, [dog"), "is no list of names: write"),
        (("--class_names", "5"), "'5' is no list of names: write"),
        (("--class_names", "[cat, no]"), "class name False is read as a bool: put it in quotes"),
        (("--class_names", "[cat, cat]"), r"repeats ['cat']"),
        (("--class_names", ",".join(f"thing {i}" for i in range(256))), "256 class names: use at most 255"),
        (("--class_names", NAMES, "--split", "holiday"), "has no split 'holiday'"),
        (("--class_names", NAMES, "--label_column", "mask"), "has no column 'mask'"),
    ],
)
def test_bad_input_ends_with_one_line_that_names_the_value(own, capsys, options, message):
    assert main([str(own), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ldvc check: ")
    assert message in error
