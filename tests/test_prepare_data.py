"""The converters from official archives, on tiny folders in the official layouts."""

import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import yaml
from datasets import Image, load_dataset
from scipy.io import savemat

from ldvc.commands.data import prepare as main
from ldvc.data import class_lists, prepare
from ldvc.data.class_lists import check_label_convention
from ldvc.data.converters import find_coco_stuff, find_pascal_context, find_voc2012
from ldvc.data.label_maps import voc_colours
from ldvc.data.prepare import convert_sample, write_dataset
from ldvc.data.samples import load_split, read_sample
from ldvc.data.vocabularies import VOCABULARIES


ROOT = Path(__file__).parents[1]
TRAIN_IDS = ["2007_000001", "2007_000002", "2007_000003"]
VAL_IDS = ["2007_000004", "2007_000005"]
SBD_IDS = ["2008_000006", "2008_000007"]


def write_label(path, ids, palette=True):
    label = PIL.Image.fromarray(np.asarray(ids, dtype=np.uint8))
    if palette:
        label.putpalette([value * 11 % 256 for value in range(768)])
    label.save(path)


def make_ids(seed, height=6, width=9):
    ids = np.full((height, width), seed % 20 + 1)
    ids[0], ids[:, 0] = 0, 255
    return ids


def add_sample(voc, image_id, seed, label_folder="SegmentationClass"):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(voc / "JPEGImages" / f"{image_id}.jpg")
    (voc / label_folder).mkdir(exist_ok=True)
    write_label(voc / label_folder / f"{image_id}.png", make_ids(seed), palette=label_folder == "SegmentationClass")


def write_list(voc, name, image_ids):
    (voc / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in image_ids))


@pytest.fixture(autouse=True)
def cache_aside(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def voc(tmp_path):
    """VOCdevkit/VOC2012 with three training and two validation images."""
    voc = tmp_path / "source" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for seed, image_id in enumerate(TRAIN_IDS + VAL_IDS):
        add_sample(voc, image_id, seed)
    write_list(voc, "train", TRAIN_IDS)
    write_list(voc, "val", VAL_IDS)
    return voc


@pytest.fixture
def augmented_voc(voc):
    """The same with SBD label maps of two more images, and of one validation image."""
    for seed, image_id in enumerate([*SBD_IDS, VAL_IDS[0]], start=10):
        add_sample(voc, image_id, seed, "SegmentationClassAug")
    return voc


def convert(voc, output, *options):
    return main(["voc2012", "--source", str(voc.parents[1]), "--output", str(output), *options])


def expect_error(voc, output, capsys, *parts):
    expect_refusal(["voc2012", "--source", str(voc.parents[1])], output, capsys, *parts)


def expect_refusal(command, output, capsys, *parts):
    """Convert, and check the exit code, the single line of the error, and that no output is left."""
    assert main([*command, "--output", str(output)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ldvc prepare:")]
    assert len(errors) == 1
    for part in parts:
        assert part in errors[0]
    assert not output.exists()


def ids_of(samples):
    return [sample.image_id for sample in samples]


# ---- what is found


@pytest.mark.parametrize("levels_up", [0, 1, 2])
def test_the_source_may_be_voc2012_vocdevkit_or_its_parent(voc, levels_up):
    conversion = find_voc2012([voc, *voc.parents][levels_up])
    assert ids_of(conversion.splits["train"]) == TRAIN_IDS
    assert ids_of(conversion.splits["validation"]) == VAL_IDS


def test_with_sbd_label_maps_every_image_outside_val_is_for_training(augmented_voc):
    conversion = find_voc2012(augmented_voc)
    assert ids_of(conversion.splits["train"]) == TRAIN_IDS + SBD_IDS
    assert ids_of(conversion.splits["validation"]) == VAL_IDS


def test_label_maps_of_voc_go_before_those_of_sbd(augmented_voc):
    splits = find_voc2012(augmented_voc).splits
    assert {sample.label_path.parent.name for sample in splits["validation"]} == {"SegmentationClass"}
    assert {sample.label_path.parent.name for sample in splits["train"][-2:]} == {"SegmentationClassAug"}


def test_trainaug_txt_decides_where_it_exists(augmented_voc):
    write_list(augmented_voc, "trainaug", [SBD_IDS[1], TRAIN_IDS[0]])
    assert ids_of(find_voc2012(augmented_voc).splits["train"]) == [SBD_IDS[1], TRAIN_IDS[0]]


def test_trainaug_txt_without_label_maps_of_sbd_names_what_is_missing(voc, tmp_path, capsys):
    add_sample(voc, SBD_IDS[0], 6)
    (voc / "SegmentationClass" / f"{SBD_IDS[0]}.png").unlink()
    write_list(voc, "trainaug", [*TRAIN_IDS, SBD_IDS[0]])
    expect_error(voc, tmp_path / "out", capsys, f"{SBD_IDS[0]}.png is missing")


@pytest.mark.parametrize("levels_up", [0, 1, 2])
def test_the_official_archive_of_sbd_is_read_beside_voc(voc, tmp_path, levels_up):
    folder = [voc, *voc.parents][levels_up] / "benchmark_RELEASE" / "dataset" / "cls"
    folder.mkdir(parents=True)
    for image_id in (SBD_IDS[0], VAL_IDS[0]):
        add_sample(voc, image_id, 6, "png")
        ids = np.asarray(PIL.Image.open(voc / "png" / f"{image_id}.png"))
        savemat(folder / f"{image_id}.mat", {"GTcls": {"Segmentation": ids, "Boundaries": ids}})
    conversion = find_voc2012(voc.parents[1])
    assert conversion.official_counts["train"] == 10_582
    assert ids_of(conversion.splits["train"]) == [*TRAIN_IDS, SBD_IDS[0]]
    sample = conversion.splits["train"][-1]
    assert sample.label_path.suffix == ".mat"
    row, pixels, _ = convert_sample(sample, conversion)
    written = np.asarray(PIL.Image.open(io.BytesIO(row["label"]["bytes"])))
    expected = np.asarray(PIL.Image.open(voc / "png" / f"{SBD_IDS[0]}.png"))
    assert np.array_equal(written, expected)
    assert np.array_equal(pixels, np.bincount(expected.ravel(), minlength=256))


@pytest.mark.skipif("LDVC_LISTS" not in os.environ, reason="LDVC_LISTS names no folder with the official id lists")
def test_the_official_counts_of_voc_are_those_of_the_official_lists(voc):
    lists = Path(os.environ["LDVC_LISTS"])
    counts = {name: len((lists / f"voc2012_{name}.txt").read_text().split()) for name in ("train", "trainaug", "val")}
    assert find_voc2012(voc).official_counts == {"train": counts["train"], "validation": counts["val"]}
    add_sample(voc, SBD_IDS[0], 6, "SegmentationClassAug")
    assert find_voc2012(voc).official_counts["train"] == counts["trainaug"]


# ---- what is written


@pytest.mark.parametrize("streaming", [False, True])
def test_the_output_loads_and_streams_with_embedded_files_byte_for_byte(voc, tmp_path, streaming):
    assert convert(voc, tmp_path / "out") == 0
    for split, image_ids in (("train", TRAIN_IDS), ("validation", VAL_IDS)):
        loaded = load_dataset(str(tmp_path / "out"), split=split, streaming=streaming)
        assert loaded.column_names == ["image_id", "image", "label"]
        undecoded = loaded.cast_column("image", Image(decode=False)).cast_column("label", Image(decode=False))
        rows = list(undecoded)
        assert [row["image_id"] for row in rows] == image_ids
        for row in rows:
            assert row["image"]["bytes"] == (voc / "JPEGImages" / f"{row['image_id']}.jpg").read_bytes()
            assert row["label"]["bytes"] == (voc / "SegmentationClass" / f"{row['image_id']}.png").read_bytes()


def test_training_reads_official_ids_from_the_output(voc, tmp_path):
    convert(voc, tmp_path / "out")
    _, label_map = read_sample(load_split(str(tmp_path / "out"), "validation"), 1)
    np.testing.assert_array_equal(label_map, make_ids(4))


def test_classes_json_gives_names_conventions_and_counts(voc, tmp_path):
    convert(voc, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert tuple(summary["class_names"]) == VOCABULARIES["voc2012"].class_names
    assert summary["reduce_labels"] is True
    assert (summary["label_ids"]["0"], summary["label_ids"]["20"]) == ("background", "tvmonitor")
    train = summary["splits"]["train"]
    assert train["num_images"] == 3
    assert train["images_with_label"]["bird"] == 1
    assert train["pixels_with_label"] | {"bird": 40, "background": 24, "border": 18} == train["pixels_with_label"]
    assert sum(train["pixels_with_label"].values()) == 3 * 6 * 9


def test_shards_are_named_as_the_library_expects(voc, tmp_path):
    write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "classes.json",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation-00000-of-00001.parquet",
    ]
    assert load_dataset(str(tmp_path / "out"), split="train")["image_id"][:] == TRAIN_IDS


def test_counts_other_than_the_official_ones_are_reported(voc, tmp_path, capsys):
    convert(voc, tmp_path / "out")
    output = capsys.readouterr().out
    assert "train: 3 images (a part: the official split has 1,464)" in output
    assert "set reduce_labels" in output


def test_an_interrupted_run_goes_on_after_the_last_complete_shard(voc, tmp_path, monkeypatch):
    checked, check = [], prepare.convert_sample

    def check_until_killed(sample, conversion):
        if len(checked) == 3:
            raise KeyboardInterrupt
        checked.append(sample.image_id)
        return check(sample, conversion)

    monkeypatch.setattr(prepare, "convert_sample", check_until_killed)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=2)
    assert not (tmp_path / "out").exists()

    checked.clear()
    monkeypatch.setattr(
        prepare, "convert_sample", lambda *sample: checked.append(sample[0].image_id) or check(*sample)
    )
    write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=2)
    assert checked == VAL_IDS
    write_dataset(find_voc2012(voc), tmp_path / "straight", images_per_shard=2)
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_shards_of_a_changed_source_are_not_mixed_in(voc, tmp_path):
    (voc / "JPEGImages" / f"{VAL_IDS[1]}.jpg").rename(tmp_path / "aside.jpg")
    (voc / "JPEGImages" / f"{VAL_IDS[1]}.jpg").write_bytes(b"no image")
    assert convert(voc, tmp_path / "out") == 2
    add_sample(voc, VAL_IDS[1], 4)
    add_sample(voc, TRAIN_IDS[0], 18)
    assert convert(voc, tmp_path / "out") == 0
    np.testing.assert_array_equal(read_sample(load_split(str(tmp_path / "out"), "train"), 0)[1], make_ids(18))


def test_mending_a_file_costs_the_shard_it_belongs_to_and_no_other(voc, tmp_path, monkeypatch):
    (voc / "JPEGImages" / f"{VAL_IDS[1]}.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=VAL_IDS[1]):
        write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=1)
    add_sample(voc, VAL_IDS[1], 4)
    add_sample(voc, TRAIN_IDS[1], 18)
    checked, check = [], prepare.convert_sample
    monkeypatch.setattr(
        prepare, "convert_sample", lambda *sample: checked.append(sample[0].image_id) or check(*sample)
    )
    write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=1)
    assert checked == [TRAIN_IDS[1], VAL_IDS[1]]


def test_a_shard_with_a_damaged_record_is_made_again(voc, tmp_path):
    (voc / "JPEGImages" / f"{VAL_IDS[1]}.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=VAL_IDS[1]):
        write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=2)
    (tmp_path / ".out.incomplete" / "train-00000-of-00002.json").write_text("")
    (tmp_path / ".out.incomplete" / "train-00001-of-00002.json").unlink()
    add_sample(voc, VAL_IDS[1], 4)
    write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=2)
    assert load_dataset(str(tmp_path / "out"), split="train")["image_id"][:] == TRAIN_IDS


def test_shards_of_a_longer_list_do_not_survive(voc, tmp_path):
    (voc / "JPEGImages" / f"{VAL_IDS[1]}.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=VAL_IDS[1]):
        write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=1)
    write_list(voc, "val", VAL_IDS[:1])
    write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=2)
    assert load_dataset(str(tmp_path / "out"), split="train")["image_id"][:] == TRAIN_IDS
    assert load_dataset(str(tmp_path / "out"), split="validation")["image_id"][:] == VAL_IDS[:1]


# ---- what is refused


def test_a_folder_without_voc_is_refused(voc, tmp_path, capsys):
    (tmp_path / "empty" / "a" / "b").mkdir(parents=True)
    expect_error(tmp_path / "empty" / "a" / "b", tmp_path / "out", capsys, "empty' holds no VOCdevkit", "unpack")


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("ImageSets/Segmentation/val.txt", ["val.txt is missing", "unpack"]),
        (
            f"JPEGImages/{TRAIN_IDS[1]}.jpg",
            [f"{TRAIN_IDS[1]}.jpg is missing", f"remove '{TRAIN_IDS[1]}' from the list"],
        ),
        (f"SegmentationClass/{VAL_IDS[0]}.png", [f"{VAL_IDS[0]}.png is missing", "from the list"]),
    ],
)
def test_a_missing_file_is_named(voc, tmp_path, capsys, file, parts):
    (voc / file).unlink()
    expect_error(voc, tmp_path / "out", capsys, *parts)


def test_an_empty_list_and_an_image_in_both_lists_are_refused(voc, tmp_path, capsys):
    write_list(voc, "train", [*TRAIN_IDS, VAL_IDS[0]])
    expect_error(voc, tmp_path / "out", capsys, f"'{VAL_IDS[0]}' is in both", "remove it from one")
    write_list(voc, "val", [])
    expect_error(voc, tmp_path / "out", capsys, "val.txt is empty")


@pytest.mark.parametrize("file", [f"JPEGImages/{TRAIN_IDS[1]}.jpg", f"SegmentationClass/{TRAIN_IDS[1]}.png"])
@pytest.mark.parametrize("content", ["truncated", "no image"])
def test_a_broken_file_is_named(voc, tmp_path, capsys, file, content):
    whole = (voc / file).read_bytes()
    (voc / file).write_bytes(whole[: len(whole) * 3 // 4] if content == "truncated" else b"no image")
    expect_error(voc, tmp_path / "out", capsys, str(voc / file), ":")


def test_a_coloured_label_map_is_refused_with_the_remedy(voc, tmp_path, capsys):
    path = voc / "SegmentationClass" / f"{TRAIN_IDS[2]}.png"
    PIL.Image.open(path).convert("RGB").save(path)
    expect_error(voc, tmp_path / "out", capsys, str(path), "got RGB", "palette PNG (mode P)")


def test_a_label_map_of_another_size_is_refused(voc, tmp_path, capsys):
    path = voc / "SegmentationClass" / f"{VAL_IDS[1]}.png"
    write_label(path, make_ids(0, 9, 6))
    expect_error(voc, tmp_path / "out", capsys, f"{path} is 9 x 6 pixels", "is 6 x 9 (height x width)", "same archive")


def test_an_unknown_label_id_is_refused_and_the_first_offender_is_named(voc, tmp_path, capsys):
    for image_id in (TRAIN_IDS[1], VAL_IDS[0]):
        write_label(voc / "SegmentationClass" / f"{image_id}.png", np.full((6, 9), 21))
    expect_error(voc, tmp_path / "out", capsys, f"{TRAIN_IDS[1]}.png holds label id 21, but ids are 0 to 20 and 255")


def test_an_existing_output_is_kept_unless_it_may_be_replaced(voc, tmp_path, capsys):
    output = tmp_path / "out"
    assert convert(voc, output) == 0
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert convert(voc, output) == 2
    assert f"{output} already exists: choose another folder, or pass --overwrite" in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    write_list(voc, "train", TRAIN_IDS[:1])
    assert convert(voc, output, "--overwrite") == 0
    assert len(load_dataset(str(output), split="train")) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_overwrite_never_deletes_a_folder_of_another_origin(voc, tmp_path, capsys):
    assert convert(voc, tmp_path / "source", "--overwrite") == 2
    assert "was not written by this program" in capsys.readouterr().err
    assert voc.is_dir()


def test_an_empty_output_folder_is_filled(voc, tmp_path):
    (tmp_path / "out").mkdir()
    assert convert(voc, tmp_path / "out") == 0


@pytest.fixture
def hub_calls(monkeypatch):
    """Calls of the Hub client, which a fake answers."""
    calls = []

    class FakeHub:
        def create_repo(self, *arguments, **options):
            calls.append(("create", *arguments, options["repo_type"], options["private"]))

        def upload_folder(self, *, repo_id, repo_type, folder_path, delete_patterns):
            assert delete_patterns == ["*.parquet"]  # no shard of an upload before stays among the new ones
            calls.append(("upload", repo_id, repo_type, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr(prepare, "HfApi", FakeHub)
    return calls


def test_pushing_creates_a_private_dataset_and_uploads_the_finished_folder(voc, tmp_path, hub_calls):
    assert convert(voc, tmp_path / "out", "--push_to_hub", "me/voc") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "README.md" in names
    assert hub_calls == [("create", "me/voc", "dataset", True), ("upload", "me/voc", "dataset", names)]


def test_a_finished_output_is_pushed_without_converting_it_again(voc, tmp_path, hub_calls):
    convert(voc, tmp_path / "out")
    (voc / "JPEGImages" / f"{TRAIN_IDS[0]}.jpg").unlink()
    assert convert(voc, tmp_path / "out", "--push_to_hub", "me/voc") == 0
    assert [call[0] for call in hub_calls] == ["create", "upload"]


def test_a_missing_login_stops_before_the_conversion(voc, tmp_path, capsys):
    # HF_HUB_OFFLINE is set in conftest.py: the real client refuses without a network call
    expect_refusal(
        ["voc2012", "--source", str(voc), "--push_to_hub", "me/voc"],
        tmp_path / "out",
        capsys,
        "Cannot write the Hub dataset 'me/voc'",
        "hf auth login",
    )


def test_nothing_is_created_on_the_hub_for_an_incomplete_source(voc, tmp_path, capsys, hub_calls):
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    command = ["voc2012", "--source", str(voc), "--push_to_hub", "me/voc"]
    expect_refusal(command, tmp_path / "out", capsys, "val.txt is missing")
    assert hub_calls == []


# ---- the card


@pytest.mark.parametrize("name", ["voc2012", "coco_stuff", "pascal_context"])
def test_the_card_says_what_is_inside_and_under_which_terms(request, tmp_path, name):
    source = request.getfixturevalue({"voc2012": "voc", "coco_stuff": "coco", "pascal_context": "context"}[name])
    assert main([name, "--source", str(source), "--output", str(tmp_path / "out")]) == 0
    _, metadata, text = (tmp_path / "out" / "README.md").read_text().split("---\n", maxsplit=2)
    metadata = yaml.safe_load(metadata)
    assert metadata["license"] == "other"
    assert [entry["split"] for entry in metadata["configs"][0]["data_files"]] == ["train", "validation"]
    assert "Flickr" in text
    assert f"ldvc prepare {name} --source FOLDER --output FOLDER" in text
    assert ("--reduce_labels" in text) == (name == "voc2012")
    for split, count in {"train": 3, "validation": 2}.items():
        official = {"voc2012": (1_464, 1_449), "coco_stuff": (118_287, 5_000), "pascal_context": (4_998, 5_105)}[name]
        assert f"| {split} | {count} | {official[split == 'validation']:,} |" in text
    vocabulary = VOCABULARIES[name]
    for class_id, class_name in enumerate(vocabulary.class_names, start=name == "voc2012"):
        seen = "unseen" if class_name in vocabulary.unseen_names else "seen"
        assert f"| {class_id} | {class_name} | {seen} | " in text
    assert str(tmp_path) not in text


# ---- COCO-Stuff


RAW_COCO_IDS = [i for i in range(182) if i not in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)]
COCO_TRAIN, COCO_VAL = ["000000000009", "000000000025", "000000000030"], ["000000000139", "000000000285"]


def write_image(path, seed, height=6, width=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)


def write_grey(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label(path, ids, palette=False)


def coco_ids(seed):
    """Some raw ids of COCO-Stuff, another selection for each seed, the last id of the list and 255 among them."""
    ids = np.random.default_rng(seed).choice([*RAW_COCO_IDS, 255], (6, 9))
    ids[0, 0], ids[0, 1] = 181, 255
    return ids


def build_coco(root, images="", labels="stuffthingmaps", suffix="", convert_ids=lambda ids: ids):
    for folder, image_ids in {"train2017": COCO_TRAIN, "val2017": COCO_VAL}.items():
        for image_id in image_ids:
            write_image(root / images / folder / f"{image_id}.jpg", int(image_id))
            write_grey(root / labels / folder / f"{image_id}{suffix}.png", convert_ids(coco_ids(int(image_id))))
    return root


@pytest.fixture
def coco(tmp_path):
    """A COCO folder with three training and two validation images."""
    return build_coco(tmp_path / "coco")


def to_train_ids(ids):
    """Map raw ids to 0-170 by counting the kept ids below each, one pixel at a time."""
    return np.array([[255 if i == 255 else sum(kept < i for kept in RAW_COCO_IDS) for i in row] for row in ids])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("", "stuffthingmaps"),
        ("images", "annotations"),
        ("images", "stuffthingmaps_trainval2017"),
        ("", "annotations/stuffthingmaps"),
        ("", ""),
    ],
)
def test_coco_stuff_is_found_in_every_common_layout(tmp_path, images, labels):
    conversion = find_coco_stuff(build_coco(tmp_path, images, labels))
    assert ids_of(conversion.splits["train"]) == COCO_TRAIN
    assert ids_of(conversion.splits["validation"]) == COCO_VAL


def test_raw_ids_of_coco_stuff_become_ranks_among_the_171_kept(coco):
    written_ids = find_coco_stuff(coco).written_ids
    assert list(written_ids) == [*RAW_COCO_IDS, 255]
    assert [written_ids[i] for i in (0, 10, 12, 91, 181, 255)] == [0, 10, 11, 80, 170, 255]


@pytest.mark.skipif("LDVC_LISTS" not in os.environ, reason="LDVC_LISTS names no folder with the official class lists")
def test_ids_and_names_of_coco_stuff_equal_the_official_table(coco):
    lines = (Path(os.environ["LDVC_LISTS"]) / "cocostuff_train_id_171.tsv").read_text().splitlines()[1:]
    conversion = find_coco_stuff(coco)
    table = {int(raw): (int(class_id), name) for class_id, _, raw, name in (line.split("\t") for line in lines)}
    names = {raw: (i, conversion.class_names[i]) for raw, i in conversion.written_ids.items() if raw != 255}
    assert names == table


@pytest.mark.parametrize("streaming", [False, True])
def test_coco_stuff_is_written_as_grey_class_ids_that_load_and_stream(coco, tmp_path, streaming):
    assert main(["coco_stuff", "--source", str(coco), "--output", str(tmp_path / "out")]) == 0
    for split, folder, image_ids in (("train", "train2017", COCO_TRAIN), ("validation", "val2017", COCO_VAL)):
        rows = list(load_dataset(str(tmp_path / "out"), split=split, streaming=streaming))
        assert [row["image_id"] for row in rows] == image_ids
        for row in rows:
            assert row["label"].mode == "L"
            np.testing.assert_array_equal(row["label"], to_train_ids(coco_ids(int(row["image_id"]))))
        undecoded = load_dataset(str(tmp_path / "out"), split=split).cast_column("image", Image(decode=False))
        original = coco / folder / f"{image_ids[0]}.jpg"
        assert undecoded[0]["image"] == {"bytes": original.read_bytes(), "path": original.name}


def test_files_of_mmsegmentation_are_read_by_their_name_where_no_original_is_left(tmp_path):
    converted = build_coco(tmp_path / "coco", "images", "annotations", "_labelTrainIds", to_train_ids)
    assert main(["coco_stuff", "--source", str(converted), "--output", str(tmp_path / "out")]) == 0
    _, label_map = read_sample(load_split(str(tmp_path / "out"), "train"), 0)
    np.testing.assert_array_equal(label_map, to_train_ids(coco_ids(9)))


def test_originals_win_over_files_of_mmsegmentation_beside_them(coco):
    build_coco(coco, suffix="_labelTrainIds", convert_ids=to_train_ids)
    conversion = find_coco_stuff(coco)
    assert max(conversion.written_ids) == 255
    assert conversion.written_ids[181] == 170
    assert [sample.label_path.name for sample in conversion.splits["train"]] == [f"{i}.png" for i in COCO_TRAIN]


def test_two_id_conventions_are_never_mixed(coco, tmp_path, capsys):
    path = coco / "stuffthingmaps" / "val2017" / f"{COCO_VAL[0]}.png"
    path.rename(path.with_stem(f"{COCO_VAL[0]}_labelTrainIds"))
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, f"{path} is missing", "is there")


@pytest.mark.parametrize("label_id", [11, 90, 182, 254])
def test_an_id_that_stuffthingmaps_never_hold_is_refused(coco, tmp_path, capsys, label_id):
    path = coco / "stuffthingmaps" / "train2017" / f"{COCO_TRAIN[1]}.png"
    for later in (path, coco / "stuffthingmaps" / "val2017" / f"{COCO_VAL[0]}.png"):
        write_grey(later, np.full((6, 9), label_id))
    parts = [f"{path} holds label id {label_id}, but ids are 0 to 181 without 11, 25", "neither panoptic"]
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, *parts)


def test_raw_ids_under_the_name_of_converted_files_are_refused(tmp_path, capsys):
    wrong = build_coco(tmp_path / "coco", suffix="_labelTrainIds")
    command = ["coco_stuff", "--source", str(wrong)]
    expect_refusal(command, tmp_path / "out", capsys, "but ids are 0 to 170 and 255", "_labelTrainIds.png")


def test_panoptic_maps_are_refused_as_colours(coco, tmp_path, capsys):
    path = coco / "stuffthingmaps" / "train2017" / f"{COCO_TRAIN[0]}.png"
    PIL.Image.open(path).convert("RGB").save(path)
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, str(path), "got RGB", "mode L")


@pytest.mark.parametrize(
    ("file", "there"),
    [
        (f"stuffthingmaps/train2017/{COCO_TRAIN[1]}.png", f"train2017/{COCO_TRAIN[1]}.jpg"),
        (f"val2017/{COCO_VAL[1]}.jpg", f"stuffthingmaps/val2017/{COCO_VAL[1]}.png"),
    ],
)
def test_an_image_without_label_map_and_the_reverse_are_named(coco, tmp_path, capsys, file, there):
    (coco / file).unlink()
    parts = [f"{coco / file} is missing, but {coco / there} is there"]
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, *parts)


@pytest.mark.parametrize("folder", ["train2017", "stuffthingmaps/val2017"])
def test_a_folder_that_is_missing_is_named_with_the_archives(coco, tmp_path, capsys, folder):
    (coco / folder).rename(tmp_path / "aside")
    parts = [Path(folder).name, "unpack train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip"]
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, *parts)


def test_a_label_map_of_another_image_is_refused(coco, tmp_path, capsys):
    path = coco / "stuffthingmaps" / "train2017" / f"{COCO_TRAIN[2]}.png"
    write_grey(path, np.zeros((9, 6)))
    parts = [f"{path} is 9 x 6 pixels", f"{COCO_TRAIN[2]}.jpg is 6 x 9"]
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, *parts)


def test_more_images_than_the_official_split_has_are_refused(coco, tmp_path):
    sample = find_coco_stuff(coco).splits["validation"][0]
    many = [dataclasses.replace(sample, image_id=str(i)) for i in range(5_001)]
    with pytest.raises(
        ValueError, match="validation split has 5,001 images, but COCO-Stuff 164K has 5,000: check that"
    ):
        dataclasses.replace(find_coco_stuff(coco), splits={"validation": many})


def test_an_image_in_both_splits_of_coco_is_refused(coco, tmp_path, capsys):
    for folder in ("", "stuffthingmaps"):
        for ending in (".jpg", ".png"):
            path = coco / folder / "train2017" / f"{COCO_TRAIN[0]}{ending}"
            if path.is_file():
                (coco / folder / "val2017" / path.name).write_bytes(path.read_bytes())
    parts = [f"'{COCO_TRAIN[0]}' is in both the train and the validation split"]
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, *parts)


# ---- PASCAL Context


CONTEXT_NAMES = VOCABULARIES["pascal_context"].class_names
CONTEXT_TRAIN, CONTEXT_VAL = ["2008_000008", "2008_000015", "2008_000019"], ["2008_000002", "2008_000003"]
# As in the original file, the names of PASCAL Context are a few among many, in alphabetical order.
MANY_NAMES = sorted(
    [*CONTEXT_NAMES, "accordion", "air conditioner", "unknown", "wool", *(f"x{i}" for i in range(396))]
)


def context_names(seed):
    """Class name per pixel, "" for background."""
    names = np.random.default_rng(seed).choice(["", *CONTEXT_NAMES], (6, 9))
    names[1, 1], names[2, 2] = "wood", "aeroplane"
    return names


def build_context(root, write, label_folder, list_folder):
    for name, image_ids in {"train": CONTEXT_TRAIN, "val": CONTEXT_VAL}.items():
        (root / "ImageSets" / list_folder).mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / list_folder / f"{name}.txt").write_text("\n".join(image_ids) + "\n")
        for image_id in image_ids:
            write_image(root / "JPEGImages" / f"{image_id}.jpg", int(image_id[5:]))
            write(root / label_folder / image_id, context_names(int(image_id[5:])))
    return root


def write_context_png(path, names):
    write_grey(path.with_suffix(".png"), np.vectorize(["", *CONTEXT_NAMES].index)(names))


def write_context_mat(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.vectorize(["", *MANY_NAMES].index)(np.where(names == "", "unknown", names))
    savemat(path.with_suffix(".mat"), {"LabelMap": ids.astype(np.uint16)})


@pytest.fixture
def context(tmp_path):
    """VOC2010 as MMSegmentation's converter leaves it."""
    root = tmp_path / "devkit" / "VOCdevkit" / "VOC2010"
    return build_context(root, write_context_png, "SegmentationClassContext", "SegmentationContext")


@pytest.fixture
def original_context(tmp_path):
    """VOC2010 with the original label files."""
    root = tmp_path / "devkit" / "VOCdevkit" / "VOC2010"
    (root / "trainval").mkdir(parents=True)
    (root / "labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(MANY_NAMES, start=1)))
    return build_context(root, write_context_mat, "trainval", "Main")


def convert_context(context, output):
    return main(["pascal_context", "--source", str(context), "--output", str(output)])


def refuse_context(context, tmp_path, capsys, *parts):
    expect_refusal(["pascal_context", "--source", str(context)], tmp_path / "out", capsys, *parts)


@pytest.mark.parametrize("layout", ["context", "original_context"])
@pytest.mark.parametrize("streaming", [False, True])
def test_both_layouts_of_context_give_the_same_class_ids(request, tmp_path, layout, streaming):
    assert convert_context(request.getfixturevalue(layout), tmp_path / "out") == 0
    for split, image_ids in (("train", CONTEXT_TRAIN), ("validation", CONTEXT_VAL)):
        rows = list(load_dataset(str(tmp_path / "out"), split=split, streaming=streaming))
        assert [row["image_id"] for row in rows] == image_ids
        for row in rows:
            names = context_names(int(row["image_id"][5:]))
            expected = [[CONTEXT_NAMES.index(name) if name else 255 for name in line] for line in names]
            assert row["label"].mode == "L"
            np.testing.assert_array_equal(row["label"], expected)


@pytest.mark.parametrize("levels_up", [0, 1, 2])
def test_the_source_may_be_voc2010_vocdevkit_or_its_parent(context, levels_up):
    assert ids_of(find_pascal_context([context, *context.parents][levels_up]).splits["train"]) == CONTEXT_TRAIN


def test_training_reads_context_without_reduce_labels(context, tmp_path):
    convert_context(context, tmp_path / "out")
    _, label_map = read_sample(load_split(str(tmp_path / "out"), "train"), 0)
    assert (label_map[1, 1], label_map[2, 2]) == (58, 0)


@pytest.mark.skipif("LDVC_LISTS" not in os.environ, reason="LDVC_LISTS names no folder with the official class lists")
def test_ids_1_to_59_of_context_are_the_official_list_in_order(context):
    conversion = find_pascal_context(context)
    official = (Path(os.environ["LDVC_LISTS"]) / "context_classes_59.txt").read_text().split()
    assert [conversion.class_names[conversion.written_ids[i]] for i in range(1, 60)] == official
    assert conversion.written_ids[0] == conversion.written_ids[255] == 255


def test_names_not_ids_decide_in_the_original_layout(original_context):
    written_ids = find_pascal_context(original_context).written_ids
    for name in ("cow", "motorbike", "sofa", "cat", "boat", "fence", "bird", "tvmonitor", "keyboard", "aeroplane"):
        assert written_ids[MANY_NAMES.index(name) + 1] == CONTEXT_NAMES.index(name)
    assert written_ids[MANY_NAMES.index("unknown") + 1] == written_ids[0] == 255


def test_lists_made_for_context_go_before_those_of_voc_2010(original_context):
    (original_context / "ImageSets" / "SegmentationContext").mkdir()
    for name, image_id in (("train", CONTEXT_TRAIN[0]), ("val", CONTEXT_VAL[0])):
        (original_context / "ImageSets" / "SegmentationContext" / f"{name}.txt").write_text(image_id)
    assert ids_of(find_pascal_context(original_context).splits["train"]) == CONTEXT_TRAIN[:1]


def write_voc_map(context, image_id):
    names = ["", *("table" if name == "diningtable" else name for name in VOCABULARIES["voc2012"].class_names)]
    ids = [[names.index(name) if name in names else 0 for name in row] for row in context_names(int(image_id[5:]))]
    (context / "SegmentationClass").mkdir(exist_ok=True)
    write_label(context / "SegmentationClass" / f"{image_id}.png", ids)


def test_context_maps_that_agree_with_vocs_own_maps_are_taken(context, tmp_path):
    for image_id in CONTEXT_TRAIN:
        write_voc_map(context, image_id)
    assert convert_context(context, tmp_path / "out") == 0


def test_context_maps_in_the_order_of_59_labels_txt_are_refused(context, tmp_path, capsys):
    objects = ["table" if name == "diningtable" else name for name in VOCABULARIES["voc2012"].class_names]
    objects_first = ["", *objects, *(name for name in CONTEXT_NAMES if name not in objects)]
    for image_id in CONTEXT_TRAIN:
        write_voc_map(context, image_id)
        ids = np.vectorize(objects_first.index)(context_names(int(image_id[5:])))
        write_grey(context / "SegmentationClassContext" / f"{image_id}.png", ids)
    refuse_context(
        context, tmp_path, capsys, f"{CONTEXT_TRAIN[0]}.png", "must be alphabetical, not in the order of 59"
    )


def test_a_59_labels_txt_may_have_another_order_and_older_names(original_context):
    names = [{"table": "diningtable", "cloth": "clothes"}.get(name, name) for name in reversed(CONTEXT_NAMES)]
    (original_context / "59_labels.txt").write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names, 1)))
    assert ids_of(find_pascal_context(original_context).splits["train"]) == CONTEXT_TRAIN


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("59_labels.txt", "1: aeroplane\n2: dragon\n", ["names other classes than ours, such as 'bag'", "remove it"]),
        ("labels.txt", "1: accordion\n2: aeroplane\n", ["labels.txt has no label 'bag'", "459 names"]),
        ("labels.txt", "accordion\n", ["labels.txt has the line 'accordion'", "a number, a colon and a name"]),
        ("labels.txt", "name: bag\n", ["labels.txt has the line 'name: bag'", "a number, a colon and a name"]),
        ("labels.txt", None, ["labels.txt is missing", "page of PASCAL Context"]),
    ],
)
def test_label_names_that_do_not_fit_are_refused(original_context, tmp_path, capsys, name, content, parts):
    path = original_context / name
    path.write_text(content) if content else path.unlink()
    refuse_context(original_context, tmp_path, capsys, *parts)


def test_a_folder_without_context_is_refused_with_both_layouts_named(context, tmp_path, capsys):
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    refuse_context(tmp_path / "deep" / "empty", tmp_path, capsys, "holds no VOCdevkit/VOC2010/JPEGImages", "unpack")
    (context / "SegmentationClassContext").rename(context / "other")
    parts = ["neither SegmentationClassContext (PNG", "nor trainval (MAT", "trainval_merged.json alone is not read"]
    refuse_context(context, tmp_path, capsys, *parts)


@pytest.mark.parametrize("label_id", [60, 254])
def test_a_context_id_above_59_is_refused(context, tmp_path, capsys, label_id):
    path = context / "SegmentationClassContext" / f"{CONTEXT_VAL[1]}.png"
    write_grey(path, np.full((6, 9), label_id))
    refuse_context(context, tmp_path, capsys, f"{path} holds label id {label_id}, but ids are 0 (background), 1 to 59")


def test_an_id_that_labels_txt_does_not_name_is_refused(original_context, tmp_path, capsys):
    path = original_context / "trainval" / f"{CONTEXT_TRAIN[1]}.mat"
    savemat(path, {"LabelMap": np.full((6, 9), 460, dtype=np.uint16)})
    refuse_context(original_context, tmp_path, capsys, f"{path} holds label id 460, but ids are those of labels.txt")


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:150]), "it cannot be read ("),
        (lambda path: path.write_bytes(b""), "it cannot be read ("),
        (lambda path: savemat(path, {"labels": np.ones((6, 9))}), "it has no variable LabelMap"),
        (lambda path: savemat(path, {"LabelMap": np.full((6, 9), 0.5)}), "a label map must hold integers"),
    ],
)
def test_a_broken_mat_file_is_named(original_context, tmp_path, capsys, damage, part):
    path = original_context / "trainval" / f"{CONTEXT_TRAIN[2]}.mat"
    damage(path)
    refuse_context(original_context, tmp_path, capsys, f"{path}: {part}")


@pytest.mark.parametrize("layout", ["context", "original_context"])
def test_a_listed_context_file_that_is_missing_is_named(request, tmp_path, capsys, layout):
    root = request.getfixturevalue(layout)
    path = next(root.glob(f"[Sts]*/{CONTEXT_VAL[1]}.*"))
    path.unlink()
    refuse_context(root, tmp_path, capsys, f"{path} is missing", f"remove '{CONTEXT_VAL[1]}' from the list")


# ---- palettes


def test_voc_colours_are_the_published_ones():
    colours = voc_colours([0, 1, 8, 15, 20, 255])
    assert list(colours.values()) == [
        (0, 0, 0),
        (128, 0, 0),
        (64, 0, 0),
        (192, 128, 128),
        (0, 64, 128),
        (224, 224, 192),
    ]


def test_a_voc_palette_in_its_own_order_is_taken(voc, tmp_path):
    for path in (voc / "SegmentationClass").iterdir():
        label = PIL.Image.open(path)
        label.putpalette([value for colour in voc_colours(range(256)).values() for value in colour])
        label.save(path)
    assert convert(voc, tmp_path / "out") == 0


def test_a_reordered_palette_is_refused(voc, tmp_path, capsys):
    path = voc / "SegmentationClass" / f"{TRAIN_IDS[0]}.png"
    label = PIL.Image.open(path)  # holds id 1, which now shows the colour of id 15
    label.putpalette([value for i in (0, 15, 1) for value in voc_colours([i])[i]])
    label.save(path)
    expect_error(voc, tmp_path / "out", capsys, f"{path}: id 1 shows the colour of id 15", "reordered the palette")


# ---- ids that are numbered in another way, and files that programs have rewritten


def store_as_used_greys(path):
    """As optipng stores a grey label map: a palette of the greys that occur."""
    used, index = np.unique(np.asarray(PIL.Image.open(path)), return_inverse=True)
    shape = PIL.Image.open(path).size[::-1]
    label = PIL.Image.fromarray(index.reshape(shape).astype(np.uint8))
    label.putpalette(np.repeat(used, 3).astype(np.uint8).tobytes())
    label.save(path)


def test_grey_label_maps_behind_a_palette_are_refused_with_the_remedy(augmented_voc, tmp_path, capsys):
    path = augmented_voc / "SegmentationClassAug" / f"{SBD_IDS[0]}.png"
    store_as_used_greys(path)
    parts = [f"{path}: mode P with greys 0 at 0, 11 at 1", "take the label maps of the official archive"]
    expect_error(augmented_voc, tmp_path / "out", capsys, *parts)


@pytest.mark.parametrize("name", ["label map as JPEG", "several pages"])
def test_other_files_that_are_no_label_maps_are_refused_by_name(coco, tmp_path, capsys, name):
    path = coco / "stuffthingmaps" / "train2017" / f"{COCO_TRAIN[0]}.png"
    label = PIL.Image.open(path).copy()
    if name == "several pages":
        label.save(path, save_all=True, append_images=[PIL.Image.new("L", label.size)])
    else:
        label.save(path, "JPEG")
    part = "2 pages: it is one of the label maps of several pages" if name == "several pages" else "JPEG: it is one of"
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, f"{path}: {part}")


def test_palettes_that_contradict_each_other_are_refused(coco, tmp_path, capsys):
    for number, image_id in enumerate(COCO_TRAIN):
        path = coco / "stuffthingmaps" / "train2017" / f"{image_id}.png"
        label = PIL.Image.open(path)
        label.putpalette([(value * 5 + number * 3) % 256 for value in range(768)])
        label.save(path)
    parts = [f"{COCO_TRAIN[1]}.png shows id", "programs have rewritten the palettes"]
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, *parts)


def test_an_archive_that_was_unpacked_into_a_folder_of_its_name_is_found(augmented_voc):
    inner = augmented_voc / "SegmentationClassAug" / "SegmentationClassAug"
    (augmented_voc / "SegmentationClassAug").rename(augmented_voc / "aside")
    inner.parent.mkdir()
    (augmented_voc / "aside").rename(inner)
    assert ids_of(find_voc2012(augmented_voc).splits["train"]) == TRAIN_IDS + SBD_IDS


def test_an_empty_folder_of_sbd_is_no_augmented_training_set(voc, tmp_path, capsys):
    (voc / "SegmentationClassAug").mkdir()
    expect_error(voc, tmp_path / "out", capsys, "SegmentationClassAug holds no .png files: unpack its archive there")


def test_voc_maps_without_background_are_refused(voc, tmp_path, capsys):
    for path in (voc / "SegmentationClass").iterdir():
        ids = np.asarray(PIL.Image.open(path)).astype(int)
        write_label(path, np.where(ids == 0, 255, np.where(ids == 255, 255, ids - 1)), palette=False)
    expect_error(
        voc, tmp_path / "out", capsys, "id 0, which is background, is in 1 of 5 images", "ids 0 to 19 without"
    )


def test_context_maps_that_count_from_0_are_refused(context, tmp_path, capsys):
    for path in (context / "SegmentationClassContext").iterdir():
        write_grey(path, np.asarray(PIL.Image.open(path)) - np.uint8(1))  # background, 0, becomes 255
    refuse_context(context, tmp_path, capsys, "of 5 label maps", "none holds 59: maps with ids 0 to 58 and 255")


def test_context_maps_with_their_last_class_or_without_255_are_taken(context, tmp_path):
    for number, path in enumerate(sorted((context / "SegmentationClassContext").iterdir())):
        ids = np.asarray(PIL.Image.open(path)).copy()
        ids[ids == 59] = 58
        ids[0, 0] = 255 if number else 59
        write_grey(path, ids)
    assert convert_context(context, tmp_path / "out") == 0


def shift_coco(coco, pick):
    for path in coco.glob("stuffthingmaps/*/*.png"):
        ids = np.random.default_rng(int(path.stem)).choice(pick, (6, 9))
        write_grey(path, ids)


def test_coco_maps_that_count_from_1_are_refused_even_where_few_classes_occur(coco, tmp_path, capsys):
    shift_coco(coco, [0, 1, 18, 124])  # unlabeled, person, dog, grass in labels.txt
    parts = ["no label map of 5 holds 255", "numbered from 1 with 0 for unlabeled", "stuffthingmaps_trainval2017.zip"]
    expect_refusal(["coco_stuff", "--source", str(coco)], tmp_path / "out", capsys, *parts)


@pytest.mark.parametrize("proof", [255, 12, 91])
def test_coco_maps_with_an_id_that_only_the_official_numbering_has_are_taken(coco, tmp_path, proof):
    shift_coco(coco, [0, 1, 17, proof])
    assert main(["coco_stuff", "--source", str(coco), "--output", str(tmp_path / "out")]) == 0


def test_the_numbering_is_judged_over_all_files_of_a_run_that_was_resumed(context, tmp_path, monkeypatch):
    for path in (context / "SegmentationClassContext").iterdir():
        ids = np.asarray(PIL.Image.open(path)) - np.uint8(1)
        ids[0, 0] = 255
        write_grey(path, ids)
    conversion = find_pascal_context(context)
    with monkeypatch.context() as patches:
        fill_disk_at(patches, "validation")
        with pytest.raises(OSError, match="cannot be written"):
            write_dataset(conversion, tmp_path / "out")
    with pytest.raises(ValueError, match="PASCAL Context: of 5 label maps 5 hold 255 and none holds 59"):
        write_dataset(find_pascal_context(context), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_a_windows_editor_are_read(voc, encoding):
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    path.write_bytes("\r\n".join(TRAIN_IDS).encode(encoding))
    assert ids_of(find_voc2012(voc).splits["train"]) == TRAIN_IDS


def test_a_list_of_one_class_with_flags_is_refused(voc, tmp_path, capsys):
    write_list(voc, "train", [f"{image_id} -1" for image_id in TRAIN_IDS])
    expect_error(
        voc, tmp_path / "out", capsys, f"holds '{TRAIN_IDS[0]} -1': a flag after the id", "of ids, as in ImageS"
    )


# ---- the disk and the output


def test_a_disk_without_room_is_known_before_the_work(voc, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    expect_error(voc, tmp_path / "out", capsys, "The dataset needs about 0.0 GB more in", "--output on another disk")


def fill_disk_at(monkeypatch, split):
    """Let writing the shards of a split fail half way."""
    write = datasets.Dataset.to_parquet

    def fail(dataset, path):
        if split not in Path(path).name:
            return write(dataset, path)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "to_parquet", fail)


def test_a_disk_that_fills_up_keeps_complete_shards_only(voc, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patches:
        fill_disk_at(patches, "validation")
        parts = ["validation-00000-of-00001.parquet cannot be written", "No space left", "run the same command again"]
        expect_error(voc, tmp_path / "out", capsys, *parts)
    names = {path.name for path in (tmp_path / ".out.incomplete").iterdir()}
    assert names == {"train-00000-of-00001.json", "train-00000-of-00001.parquet"}
    assert convert(voc, tmp_path / "out") == 0
    assert not (tmp_path / ".out.incomplete").exists()


def test_a_run_that_completed_no_shard_leaves_nothing_behind(voc, tmp_path, capsys, monkeypatch):
    fill_disk_at(monkeypatch, "train")
    expect_error(voc, tmp_path / "out", capsys, "train-00000-of-00001.parquet cannot be written")
    assert not (tmp_path / ".out.incomplete").exists()


def test_shards_with_other_ids_are_not_mixed_in(context, tmp_path, monkeypatch):
    conversion = find_pascal_context(context)
    everything_ignored = dict.fromkeys(conversion.written_ids, 255)
    with monkeypatch.context() as patches:
        fill_disk_at(patches, "validation")
        with pytest.raises(OSError, match="cannot be written"):
            write_dataset(dataclasses.replace(conversion, written_ids=everything_ignored), tmp_path / "out")
    write_dataset(conversion, tmp_path / "out")
    _, label_map = read_sample(load_split(str(tmp_path / "out"), "train"), 0)
    assert label_map[1, 1] == CONTEXT_NAMES.index("wood")


def test_ctrl_c_ends_with_one_line(voc, tmp_path, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "convert_sample", stop)
    assert convert(voc, tmp_path / "out") == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err


def test_overwrite_leaves_a_folder_with_someone_elses_classes_json(voc, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "classes.json").write_text('["cat", "dog"]')
    assert convert(voc, tmp_path / "out", "--overwrite") == 2
    assert "was not written by this program" in capsys.readouterr().err


# ---- using the output


@pytest.mark.parametrize(
    ("change", "reduce_labels", "message"),
    [
        (lambda names: names, True, "reduce_labels is True, .* made for False"),
        (lambda names: [*names, "zebra"], False, "num_classes is 60, .* made for 59"),
        (lambda names: names[:-1], False, "num_classes is 58, .* made for 59"),
        (lambda names: ["aeroplane", *names[2:], "bag"], False, "class 1 is 'bed', there it is 'bag'"),
    ],
)
def test_settings_of_another_convention_than_the_folders_are_refused(
    context, tmp_path, change, reduce_labels, message
):
    convert_context(context, tmp_path / "out")
    names = list(VOCABULARIES["pascal_context"].class_names)
    check_label_convention(str(tmp_path / "out"), names, reduce_labels=False)
    with pytest.raises(ValueError, match=message):
        check_label_convention(str(tmp_path / "out"), change(names), reduce_labels=reduce_labels)


def test_a_class_list_of_another_spelling_is_the_folders_own(tmp_path):
    (tmp_path / "classes.txt").write_text("traffic_light\npottedplant\n")
    check_label_convention(str(tmp_path), ["Traffic light", "potted-plant"], reduce_labels=False)
    with pytest.raises(
        ValueError, match=r"class 1 is 'plant', there it is 'pottedplant'; .* correct its classes\.txt"
    ):
        check_label_convention(str(tmp_path), ["traffic light", "plant"], reduce_labels=False)
    (tmp_path / "classes.txt").write_text("traffic light\nplant\n")  # the remedy
    check_label_convention(str(tmp_path), ["traffic light", "plant"], reduce_labels=False)


def test_a_dataset_without_our_classes_json_has_no_convention_to_check(tmp_path):
    (tmp_path / "classes.json").write_text('{"class_names": ["cat"]}')
    for dataset in (str(tmp_path), str(tmp_path / "nowhere"), "someone/dataset"):
        check_label_convention(dataset, ["cat"], reduce_labels=True)


def test_a_dataset_on_the_hub_is_asked_for_its_convention_too(tmp_path, monkeypatch):
    (tmp_path / "classes.json").write_text(json.dumps({"class_names": ["cat", "dog"], "reduce_labels": False}))
    asked = []

    def download(dataset, name, *, repo_type, revision):
        asked.append((dataset, name, repo_type, revision))
        return str(tmp_path / name)

    monkeypatch.setattr(class_lists, "hf_hub_download", download)
    with pytest.raises(ValueError, match="reduce_labels is True, but the label maps of 'me/cats' were made for False"):
        check_label_convention("me/cats", ["cat", "dog"], reduce_labels=True, revision="v1")
    assert asked == [("me/cats", "classes.json", "dataset", "v1")]


def test_a_dataset_that_is_a_loading_script_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "coco_stuff").mkdir()
    (tmp_path / "coco_stuff" / "coco_stuff.py").write_text("")
    with pytest.raises(ValueError, match=r"is a loading script .*ldvc prepare, or name one .* Parquet"):
        load_split(str(tmp_path / "coco_stuff"), "train")


@pytest.mark.slow
def test_a_mistake_on_the_command_line_exits_with_two_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "ldvc", "prepare", "voc2012", "--source", "nowhere", "--output", "out"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("ldvc prepare: 'nowhere' holds no VOCdevkit")
    assert len(run.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ---- the real thing


@pytest.mark.skipif("LDVC_VOC2012" not in os.environ, reason="LDVC_VOC2012 names no folder that holds VOCdevkit")
def test_real_voc_images_are_converted_unchanged(tmp_path):
    source = Path(os.environ["LDVC_VOC2012"])
    assert main(["voc2012", "--source", str(source), "--output", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "classes.json").read_text())
    conversion = find_voc2012(source)
    for split, samples in conversion.splits.items():
        counts = summary["splits"][split]
        assert counts["num_images"] == len(samples)
        assert all(counts["images_with_label"][name] > 0 for name in summary["class_names"])
        loaded = load_split(str(tmp_path / "out"), split)
        _, label_map = read_sample(loaded, len(samples) - 1)
        official = PIL.Image.open(io.BytesIO(samples[-1].label_path.read_bytes()))
        np.testing.assert_array_equal(label_map, official)


def test_other_failures_of_the_library_are_not_renamed(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("out of threads")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(RuntimeError, match="out of threads"):
        load_split("someone/dataset", "train")
