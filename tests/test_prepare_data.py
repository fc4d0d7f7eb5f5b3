"""The converter from official archives, on tiny VOCdevkit folders."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Image, load_dataset

import prepare_data
from data_ldvc import load_split, read_sample
from prepare_data import find_voc2012, main, write_dataset
from vocabularies import VOCABULARIES


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
    """Convert, and check the exit code, the single line of the error, and that no output is left."""
    assert convert(voc, output) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prepare_data.py: error:")]
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
        "classes.json",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation-00000-of-00001.parquet",
    ]
    assert load_dataset(str(tmp_path / "out"), split="train")["image_id"][:] == TRAIN_IDS


def test_counts_other_than_the_official_ones_are_reported(voc, tmp_path, capsys):
    convert(voc, tmp_path / "out")
    output = capsys.readouterr().out
    assert "train: 3 images (a part or another version: the official split has 1,464)" in output
    assert "set reduce_labels" in output


def test_an_interrupted_run_goes_on_after_the_last_complete_shard(voc, tmp_path, monkeypatch):
    checked, check = [], prepare_data.count_label_ids

    def check_until_killed(sample, label_names):
        if len(checked) == 3:
            raise KeyboardInterrupt
        checked.append(sample.image_id)
        return check(sample, label_names)

    monkeypatch.setattr(prepare_data, "count_label_ids", check_until_killed)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(find_voc2012(voc), tmp_path / "out", images_per_shard=2)
    assert not (tmp_path / "out").exists()

    checked.clear()
    monkeypatch.setattr(
        prepare_data, "count_label_ids", lambda *sample: checked.append(sample[0].image_id) or check(*sample)
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


def test_pushing_creates_a_private_dataset_and_uploads_the_folder(voc, tmp_path, monkeypatch):
    calls = []

    class FakeHub:
        def create_repo(self, *arguments, **options):
            calls.append(("create", *arguments, options["repo_type"], options["private"]))

        def upload_folder(self, *, repo_id, repo_type, folder_path):
            calls.append(("upload", repo_id, repo_type, Path(folder_path).name))

    monkeypatch.setattr(prepare_data, "HfApi", FakeHub)
    assert convert(voc, tmp_path / "out", "--push_to_hub", "me/voc") == 0
    assert calls == [("create", "me/voc", "dataset", True), ("upload", "me/voc", "dataset", "out")]


def test_a_mistake_on_the_command_line_exits_with_two_and_no_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "prepare_data.py"), "voc2012", "--source", "nowhere", "--output", "out"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("prepare_data.py: error: 'nowhere' holds no VOCdevkit")
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
