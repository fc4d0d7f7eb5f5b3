"""Loading, label ids, augmentation, sampling and batches; class lists and splits."""

import io
import os
import types
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value

from ldvc.data.samples import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    JointAugmentation,
    StreamingTrainingSet,
    TrainingCollator,
    TrainingSet,
    dataset_fingerprint,
    load_split,
    map_labels,
    read_sample,
    to_label_map,
    training_targets,
)
from ldvc.data.vocabularies import PROMPT_TEMPLATES, VOCABULARIES, Vocabulary, get_vocabulary
from ldvc.data.worlds import WORLDS, World
from picturebook.vocabulary import JOINING_ORDER, NUM_THINGS, STUFF_NAMES, THING_NAMES


SMALL = JointAugmentation(image_scale=(64, 24), crop_size=(16, 16))
KEEP_PIXELS = JointAugmentation(
    image_scale=(100, 100), ratio_range=(1, 1), crop_size=(100, 100), flip_probability=0, photometric=False
)


def make_rng(seed=0):
    return np.random.default_rng(seed)


def make_pair(index, height=24, width=32):
    """Image and palette label map of four quadrants with classes 0..3, different for each index."""
    rng = make_rng(index)
    image = PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    ids = np.repeat(np.repeat(rng.permutation(4).reshape(2, 2), height // 2, 0), width // 2, 1).astype(np.uint8)
    label = PIL.Image.fromarray(ids)
    label.putpalette([7 * value % 256 for value in range(768)])  # mode P: a conversion would change the ids
    return image, label


def make_dataset(num_images=6):
    images, labels = zip(*(make_pair(index) for index in range(num_images)), strict=True)
    columns = {"name": [str(index) for index in range(num_images)], "image": list(images), "label": list(labels)}
    features = Features({"name": Value("string"), "image": Image(), "label": Image()})
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(autouse=True)
def stay_offline_and_cache_aside(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def parquet_folder(tmp_path):
    dataset = make_dataset()
    for shard in range(2):
        part = dataset.shard(2, shard, contiguous=True)
        part.to_parquet(tmp_path / "set" / f"train-{shard:05d}-of-00002.parquet")
    dataset.select(range(2)).to_parquet(tmp_path / "set" / "validation-00000-of-00001.parquet")
    return tmp_path / "set"


@pytest.fixture
def augmented_set():
    return TrainingSet(make_dataset(), SMALL, num_draws=20, num_classes=4, seed=3)


# ---- class lists


@pytest.mark.parametrize(
    ("name", "num_classes", "unseen_ids"),
    [
        ("voc2012", 20, (15, 16, 17, 18, 19)),
        ("coco_stuff", 171, (19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160)),
        ("pascal_context", 59, (0, 6, 7, 14, 19, 24, 31, 33, 48, 54)),
    ],
)
def test_each_vocabulary_has_the_published_length_and_unseen_ids(name, num_classes, unseen_ids):
    vocabulary = get_vocabulary(name)
    assert len(vocabulary.class_names) == num_classes
    assert vocabulary.unseen_class_ids == unseen_ids
    assert sorted(vocabulary.seen_class_ids + unseen_ids) == list(range(num_classes))


@pytest.mark.skipif("LDVC_LISTS" not in os.environ, reason="LDVC_LISTS names no folder with the official class lists")
def test_class_lists_equal_the_official_files():
    folder = Path(os.environ["LDVC_LISTS"])
    coco_rows = (folder / "cocostuff_train_id_171.tsv").read_text().splitlines()[1:]
    assert VOCABULARIES["coco_stuff"].class_names == tuple(row.split("\t")[3] for row in coco_rows)
    context = tuple((folder / "context_classes_59.txt").read_text().splitlines())
    assert VOCABULARIES["pascal_context"].class_names == context


def test_the_pascal_context_list_is_alphabetical():
    names = VOCABULARIES["pascal_context"].class_names
    assert list(names) == sorted(names)


def test_every_template_has_one_gap_and_the_ensemble_has_fifteen():
    assert PROMPT_TEMPLATES["single"] == ("a photo of a {}",)
    assert len(set(PROMPT_TEMPLATES["ensemble15"])) == 15
    assert all(template.count("{}") == 1 for templates in PROMPT_TEMPLATES.values() for template in templates)


@pytest.mark.parametrize(
    ("class_names", "unseen_names", "message"),
    [
        ((), (), "has no class_names: give at least one"),
        (("cat", "dog", "cat"), (), r"class_names repeats \['cat'\]; name each class once"),
        (("cat", "dog"), ("dog", "dog"), r"unseen_names repeats \['dog'\]"),
        (("cat", "dog"), ("cats",), "unseen name 'cats' is not in class_names; did you mean 'cat'"),
        (("cat", "dog"), ("zebra",), "'zebra' is not in class_names; choose from cat, dog"),
    ],
)
def test_a_contradictory_vocabulary_is_refused(class_names, unseen_names, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary("pets", class_names, unseen_names)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_seen_classes_join_in_the_order_that_one_draw_gave(name):
    names = VOCABULARIES[name].class_names
    drawn = np.random.RandomState(1).permutation(len(names))
    assert VOCABULARIES[name].joining_order == tuple(names[i] for i in drawn)


def test_seen_classes_of_the_picture_book_join_with_their_share_of_stuff():
    state = np.random.RandomState(1)
    ranked = []
    for names in (THING_NAMES, STUFF_NAMES):  # the shuffles of _draw_split
        shuffled = [names[i] for i in state.permutation(len(names))]
        ranked += [((rank + 0.5) / len(names), name) for rank, name in enumerate(shuffled)]
    assert tuple(name for _, name in sorted(ranked)) == JOINING_ORDER
    trained = [get_vocabulary("picturebook").with_seen_share(share).seen_class_ids for share in (0.25, 0.5, 0.75)]
    assert [sum(class_id >= NUM_THINGS for class_id in ids) for ids in trained] == [1, 3, 4]


@pytest.mark.parametrize("name", [*VOCABULARIES, "picturebook", "picturebook_tuning"])
def test_shares_of_seen_classes_are_nested_and_leave_the_unseen_ones_alone(name):
    whole = get_vocabulary(name)
    parts = [whole.with_seen_share(share) for share in (0.25, 0.5, 0.75, 1.0)]
    seen = [set(part.seen_class_ids) for part in parts]
    assert seen[0] < seen[1] < seen[2] < seen[3] == set(whole.seen_class_ids)
    assert [len(ids) for ids in seen] == [int(share * len(seen[3]) + 0.5) for share in (0.25, 0.5, 0.75, 1)]
    for part in parts:
        assert part.scored_unseen_class_ids == whole.unseen_class_ids
        kinds = part.seen_class_ids + part.scored_unseen_class_ids + part.left_out_class_ids
        assert sorted(kinds) == list(range(len(whole.class_names)))


@pytest.mark.parametrize(
    ("name", "share", "message"),
    [
        ("voc2012", 0, "`seen_share` is 0; use a share of the seen classes above 0 and at most 1"),
        ("voc2012", 1.5, "`seen_share` is 1.5; use a share"),
        ("voc2012", float("nan"), "`seen_share` is nan; use a share"),
        ("voc2012", 0.03, "`seen_share` is 0.03, which leaves none of the 15 seen classes of 'voc2012'.*use 0.067 or"),
        ("own", 0.5, "`seen_share` is 0.5, but vocabulary 'own' has no fixed order.*name those.*in `unseen_classes`"),
    ],
)
def test_a_share_that_cannot_be_had_is_refused(name, share, message):
    vocabulary = Vocabulary("own", ("cat", "dog"), ("dog",)) if name == "own" else get_vocabulary(name)
    with pytest.raises(ValueError, match=message):
        vocabulary.with_seen_share(share)


def test_an_unknown_vocabulary_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="No vocabulary is called 'voc2021'; did you mean 'voc2012'"):
        get_vocabulary("voc2021")


# ---- loading


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_folder_gives_exactly_images_and_label_maps(parquet_folder, streaming):
    split = load_split(str(parquet_folder), "train", streaming=streaming)
    assert split.column_names == ["image", "label"]
    samples = list(split)
    assert len(samples) == 6
    for index, sample in enumerate(samples):
        image, label = make_pair(index)
        assert sample["label"].mode == "P"
        np.testing.assert_array_equal(to_label_map(sample["label"]), to_label_map(label))
        np.testing.assert_array_equal(sample["image"], image)


def test_columns_of_other_names_are_renamed_and_files_keep_their_mode(tmp_path):
    renamed = make_dataset().rename_columns({"image": "photo", "label": "mask"}).cast_column("mask", Image(mode="RGB"))
    renamed.save_to_disk(tmp_path)
    split = load_split(str(tmp_path), "train", image_column="photo", label_column="mask")
    assert split.column_names == ["image", "label"]
    assert split[0]["label"].mode == "P"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_dataset_dict_gives_the_split_and_the_first_images(tmp_path, streaming):
    DatasetDict(train=make_dataset(), validation=make_dataset(3)).save_to_disk(tmp_path)
    assert len(list(load_split(str(tmp_path), "validation", streaming=streaming))) == 3
    assert len(list(load_split(str(tmp_path), "train", streaming=streaming, num_images=2))) == 2


def test_the_picturebook_is_drawn_with_the_split_number_and_seed(monkeypatch):
    calls = []
    drawn = World("picturebook", lambda *arguments: calls.append(arguments) or make_dataset(5), ())
    monkeypatch.setitem(WORLDS, "picturebook", drawn)
    assert load_split("picturebook", "train", num_images=5, seed=7).column_names == ["image", "label"]
    assert calls == [("train", 5, 7, None)]
    with pytest.raises(ValueError, match="is drawn without end: say how many pictures with num_images"):
        load_split("picturebook", "train")


def test_a_missing_folder_or_hub_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is neither a folder here nor a Hub dataset in reach: check the path"):
        load_split("nobody/nothing", "train")
    with pytest.raises(FileNotFoundError, match="nowhere' is neither a folder"):
        load_split(str(tmp_path / "nowhere"), "train")
    with pytest.raises(FileNotFoundError, match="holds no dataset: check the path"):
        load_split(str(tmp_path), "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_split_is_answered_with_the_splits_there_are(parquet_folder, streaming):
    with pytest.raises(ValueError, match=r"set', split 'test': .*'train', 'validation'"):
        load_split(str(parquet_folder), "test", streaming=streaming)


def test_a_saved_dataset_without_splits_counts_as_train(tmp_path):
    make_dataset().save_to_disk(tmp_path)
    assert len(load_split(str(tmp_path), "train")) == 6
    with pytest.raises(ValueError, match=r"has no split 'validation'; it has \['train'\]"):
        load_split(str(tmp_path), "validation")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_wrong_column_is_answered_with_the_columns_and_the_option(parquet_folder, streaming):
    with pytest.raises(ValueError, match=r"no column 'mask'; it has \['image', 'label', 'name'\].*label_column"):
        load_split(str(parquet_folder), "train", label_column="mask", streaming=streaming)
    with pytest.raises(ValueError, match=r"Column 'name' .* holds no images but Value.*image_column"):
        load_split(str(parquet_folder), "train", image_column="name", streaming=streaming)


def test_asking_for_no_images_is_refused(parquet_folder):
    with pytest.raises(ValueError, match="num_images is 0: ask for at least 1"):
        load_split(str(parquet_folder), "train", num_images=0)


def make_broken_dataset(image=None, label=None):
    """A dataset whose second row has the given broken file."""
    good = make_dataset(1).cast_column("image", Image(decode=False)).cast_column("label", Image(decode=False))[0]
    bad = dict(good)
    if image is not None:
        bad["image"] = {"bytes": image, "path": None}
    if label is not None:
        bad["label"] = {"bytes": label, "path": None}
    return Dataset.from_list([good, bad], features=make_dataset(1).features)


def encode(image, image_format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"image": encode(make_pair(0)[0])[:-200]}, "Sample 1: the file cannot be read .*leave the sample out"),
        ({"image": b"not an image"}, "Sample 1: the file cannot be read"),
        ({"label": encode(make_pair(0)[0])}, "Sample 1: a label map must have one id per pixel.*palette PNG"),
        (
            {"label": encode(make_pair(0, 10, 12)[1])},
            r"Sample 1: the image is 24 x 32 .* but its label map is 10 x 12",
        ),
    ],
)
def test_an_unusable_sample_is_named_by_its_row(broken, message):
    dataset = make_broken_dataset(**broken)
    read_sample(dataset, 0)
    with pytest.raises(ValueError, match=message):
        read_sample(dataset, 1)
    training_set = TrainingSet(dataset, SMALL, num_draws=2, num_classes=4)
    with pytest.raises(ValueError, match=message):
        list(training_set)


def test_the_fingerprint_depends_on_labels_and_not_on_storage(parquet_folder):
    dataset = make_dataset()
    fingerprint = dataset_fingerprint(dataset)
    assert len(fingerprint) == 16
    assert dataset_fingerprint(load_split(str(parquet_folder), "train")) == fingerprint
    assert dataset_fingerprint(dataset.select([1, 0, 2, 3, 4, 5])) != fingerprint
    assert dataset_fingerprint(dataset.select(range(5))) != fingerprint
    streamed = load_split(str(parquet_folder), "train", streaming=True)
    assert dataset_fingerprint(streamed) == dataset_fingerprint(dataset.to_iterable_dataset())


# ---- images and label maps


def test_truncated_files_raise_a_clear_error(tmp_path):
    (tmp_path / "image.png").write_bytes(encode(make_pair(0)[0])[:-200])
    with pytest.raises(ValueError, match=r"image\.png cannot be decoded"):
        to_label_map(PIL.Image.open(tmp_path / "image.png"))


@pytest.mark.parametrize("mode", ["P", "L", "I", "I;16", "1"])
def test_label_ids_survive_every_single_channel_mode(mode):
    ids = np.array([[0, 1], [1, 1]])
    if mode == "1":
        label = PIL.Image.fromarray(ids.astype(bool))
    else:
        dtype = {"I": np.int32, "I;16": np.uint16}.get(mode, np.uint8)
        ids = ids * (300 if dtype != np.uint8 else 200)
        label = PIL.Image.fromarray(ids.astype(dtype))
    if mode == "P":
        label.putpalette([value % 256 for value in range(768)])
    assert label.mode == mode
    label_map = to_label_map(label)
    assert label_map.dtype == np.int64
    np.testing.assert_array_equal(label_map, ids)


def test_label_maps_that_are_not_ids_are_refused():
    with pytest.raises(ValueError, match=r"one id per pixel, got RGB.*palette PNG \(mode P\)"):
        to_label_map(PIL.Image.new("RGB", (4, 4)))
    with pytest.raises(ValueError, match="must hold integers, got F: store ids in mode P, L or I"):
        to_label_map(PIL.Image.new("F", (4, 4)))
    with pytest.raises(ValueError, match=r"one id per pixel, got array \(4, 4, 1\) of uint8"):
        to_label_map(np.zeros((4, 4, 1), dtype=np.uint8))


def test_reducing_labels_drops_background_and_shifts_the_rest():
    label_map = np.array([[0, 1, 20, 255]])
    assert map_labels(label_map, 20, reduce_labels=True).tolist() == [[255, 0, 19, 255]]
    assert map_labels(label_map, 21).tolist() == [[0, 1, 20, 255]]


@pytest.mark.parametrize(
    ("label_map", "reduce_labels", "message"),
    [
        ([[0, 20]], False, r"label id 20 is outside the 20 classes, .* 0 to 19 .*or set reduce_labels if id 0"),
        (
            [[0, 21]],
            True,
            r"label id 21 is outside the 20 classes, .* 1 to 20 \(255 is ignored\): check the class list",
        ),
        ([[-1, 3]], False, "label id -1 is outside"),
    ],
)
def test_an_id_outside_the_class_list_is_refused(label_map, reduce_labels, message):
    with pytest.raises(ValueError, match=message):
        map_labels(np.array(label_map), 20, reduce_labels=reduce_labels)


def test_more_classes_than_free_ids_are_refused():
    with pytest.raises(ValueError, match="num_classes is 256: give 1 to 255"):
        map_labels(np.zeros((1, 1)), 256)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_training_targets_are_ranks_of_seen_classes_and_ignore_the_rest(make):
    label_map = make([[[0, 1, 2], [3, 4, 255]]])
    targets = training_targets(label_map, (1, 3, 4), num_classes=5)
    assert isinstance(targets, type(label_map))
    assert targets.tolist() == [[[255, 0, 255], [1, 2, 255]]]


def test_training_targets_take_byte_tensors_as_ids_and_not_as_masks():
    assert training_targets(torch.tensor([[0, 1]], dtype=torch.uint8), [1], 2).tolist() == [[255, 0]]


@pytest.mark.parametrize("seen_class_ids", [(0, 5), (1, 1), (-1,)])
def test_impossible_seen_ids_are_refused(seen_class_ids):
    with pytest.raises(ValueError, match="seen_class_ids must be distinct and within 0 to 4"):
        training_targets(np.zeros((1, 1), dtype=int), seen_class_ids, num_classes=5)


# ---- augmentation


def test_without_chance_an_image_is_only_fitted_into_the_scale():
    image, label = make_pair(0, 50, 100)
    pixels, labels = KEEP_PIXELS(image, to_label_map(label), make_rng())
    np.testing.assert_array_equal(pixels, image)
    np.testing.assert_array_equal(labels, label)
    assert (pixels.dtype, labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize(("ratio", "expected_size"), [(0.5, (256, 341)), (1.0, (512, 683)), (2.0, (1024, 1365))])
def test_the_short_side_follows_the_ratio_at_kept_aspect(ratio, expected_size):
    augment = JointAugmentation(ratio_range=(ratio, ratio), crop_size=(4000, 4000), photometric=False)
    image, label = make_pair(0, 480, 640)
    assert augment(image, to_label_map(label), make_rng())[1].shape == expected_size


def test_the_long_side_limits_very_wide_images():
    augment = JointAugmentation(image_scale=(200, 100), ratio_range=(1, 1), crop_size=(400, 400), photometric=False)
    image, label = make_pair(0, 10, 100)
    assert augment(image, to_label_map(label), make_rng())[1].shape == (20, 200)


def test_resizing_only_the_crop_equals_cropping_the_resized_image():
    ramp = np.arange(60)[:, None] * 2 + np.arange(80)[None]
    image = PIL.Image.fromarray(np.stack([ramp, ramp.T.reshape(60, 80) % 256, 255 - ramp], -1).astype(np.uint8))
    label_map = np.arange(60 * 80).reshape(60, 80) % 251
    augment = JointAugmentation(
        image_scale=(199, 149), ratio_range=(1, 1), crop_size=(64, 48), flip_probability=0, photometric=False
    )
    pixels, labels = augment(image, label_map, make_rng(5))
    whole = np.asarray(image.resize((199, 149), PIL.Image.Resampling.BILINEAR)).astype(int)
    nearest = PIL.Image.fromarray(label_map.astype(np.int32)).resize((199, 149), PIL.Image.Resampling.NEAREST)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(nearest), (64, 48))
    (top, left), *others = np.argwhere((windows == labels).all((2, 3)))
    assert not others
    # one grey level: the two resizes round their coefficients at other places
    assert np.abs(whole[top : top + 64, left : left + 48] - pixels).max() <= 1


def test_flips_mirror_image_and_label_map_together():
    image, label = make_pair(0, 50, 100)
    flipped = JointAugmentation(**{**vars(KEEP_PIXELS), "flip_probability": 1})
    pixels, labels = flipped(image, to_label_map(label), make_rng())
    np.testing.assert_array_equal(pixels, np.asarray(image)[:, ::-1])
    np.testing.assert_array_equal(labels, np.asarray(label)[:, ::-1])


def test_crops_of_one_class_are_redrawn_until_a_mixed_one_is_found():
    label_map = np.zeros((40, 400), dtype=int)
    label_map[:, 200:] = 1
    image = PIL.Image.new("RGB", (400, 40))
    settings = {"image_scale": (400, 40), "ratio_range": (1, 1), "crop_size": (40, 100), "photometric": False}

    def count_mixed(share):
        augment = JointAugmentation(**settings, max_class_share=share)
        crops = [augment(image, label_map, make_rng(seed))[1] for seed in range(60)]
        return sum(np.bincount(crop.ravel(), minlength=2).max() < 0.75 * crop.size for crop in crops)

    # a draw is mixed enough with probability 1/6: about 10 of 60 at once, 87 % within eleven draws
    assert count_mixed(1.0) < 20
    assert count_mixed(0.75) > 45


def test_ignored_pixels_do_not_count_as_a_class():
    label_map = np.full((40, 400), 255)
    label_map[:, :200] = 3
    augment = JointAugmentation(image_scale=(400, 40), ratio_range=(1, 1), crop_size=(40, 100), photometric=False)
    draws = [augment._draw_crop(label_map, make_rng(seed))[1] for seed in range(5)]
    eleventh = [make_rng(seed).integers([1, 301], size=(11, 2))[-1, 1] for seed in range(5)]
    assert draws == eleventh  # never mixed, so the last of eleven draws


def test_an_all_ignored_crop_is_used_and_does_not_crash():
    _, labels = SMALL(make_pair(0)[0], np.full((24, 32), 255), make_rng())
    assert labels.shape == (16, 16)
    assert (labels == 255).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (7, 3)])
def test_tiny_and_thin_images_work(height, width):
    image = PIL.Image.new("RGB", (width, height))
    for seed in range(5):
        pixels, labels = SMALL(image, np.zeros((height, width), dtype=int), make_rng(seed))
        assert pixels.shape[:2] == labels.shape
        assert 1 <= min(labels.shape) <= max(labels.shape) <= 16


def test_the_same_generator_state_gives_the_same_crop_and_another_state_another():
    image, label = make_pair(0)
    crops = [SMALL(image, to_label_map(label), make_rng(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert crops[0].shape != crops[2].shape or (crops[0] != crops[2]).any()


def test_photometric_distortion_changes_colours_within_its_ranges_and_never_labels():
    image, label = PIL.Image.new("RGB", (100, 50), (100, 100, 100)), make_pair(0, 50, 100)[1]
    augment = JointAugmentation(**{**vars(KEEP_PIXELS), "photometric": True})
    values = set()
    for seed in range(300):
        pixels, labels = augment(image, to_label_map(label), make_rng(seed))
        np.testing.assert_array_equal(labels, label)
        assert np.ptp(pixels) == 0  # grey has no hue or saturation to change
        values.add(int(pixels[0, 0, 0]))
    assert 34 <= min(values) < 70  # (100 - 32) * 0.5
    assert 150 < max(values) <= 198  # (100 + 32) * 1.5
    assert 100 in values


def test_hue_turns_by_at_most_its_delta():
    augment = JointAugmentation(
        **{**vars(KEEP_PIXELS), "photometric": True}
        | {"brightness_delta": 0, "contrast_range": (1, 1), "saturation_range": (1, 1)}
    )
    red = PIL.Image.new("RGB", (100, 100), (255, 0, 0))
    hues = []
    for seed in range(60):
        pixels, _ = augment(red, np.zeros((100, 100), dtype=int), make_rng(seed))
        hue = int(np.asarray(PIL.Image.fromarray(pixels).convert("HSV"))[0, 0, 0])
        hues.append((hue + 128) % 256 - 128)
    assert -26 <= min(hues) < -15  # 36 of 360 degrees are 25.6 of 256 steps
    assert 15 < max(hues) <= 26
    assert 15 < hues.count(0) < 45


def test_image_and_label_map_of_different_size_are_refused():
    with pytest.raises(ValueError, match=r"the image is 24 x 32 .* label map is 24 x 31: make the label map again"):
        SMALL(make_pair(0)[0], np.zeros((24, 31), dtype=int), make_rng())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": (0, 16)}, r"crop_size is \(0, 16\): both sides must be at least 1 pixel"),
        ({"image_scale": (0, 0)}, "image_scale is"),
        ({"ratio_range": (2.0, 0.5)}, r"ratio_range is \(2.0, 0.5\): give \(low, high\)"),
        ({"ratio_range": (0.0, 1.0)}, "ratio_range is"),
        ({"contrast_range": (-1.0, 1.0)}, "contrast_range is"),
        ({"max_class_share": 75}, "max_class_share is 75: give a share from 0 to 1"),
        ({"flip_probability": -0.1}, "flip_probability is -0.1"),
    ],
)
def test_impossible_augmentation_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        JointAugmentation(**settings)


# ---- sampling


def collect(loader):
    return [(item["image"], item["label_map"]) for item in loader]


def assert_same_crops(left, right):
    assert len(left) == len(right)
    for (left_image, left_labels), (right_image, right_labels) in zip(left, right, strict=True):
        np.testing.assert_array_equal(left_image, right_image)
        np.testing.assert_array_equal(left_labels, right_labels)


def test_a_draw_is_the_same_whatever_came_before_it(augmented_set):
    straight = collect(augmented_set)
    assert len(straight) == len(augmented_set) == 20
    fresh = TrainingSet(make_dataset(), SMALL, num_draws=20, num_classes=4, seed=3)
    backwards = [fresh[draw] for draw in reversed(range(20))]
    assert_same_crops(straight, collect(backwards)[::-1])


@pytest.mark.slow
def test_workers_do_not_change_the_draws_and_reading_on_resumes(augmented_set):
    loader = torch.utils.data.DataLoader(
        augmented_set, batch_size=None, sampler=range(8, 20), num_workers=2, multiprocessing_context="fork"
    )
    assert_same_crops(
        [(image.numpy(), labels.numpy()) for image, labels in collect(loader)], collect(augmented_set)[8:]
    )


def test_every_epoch_visits_every_image_once_in_another_order():
    dataset = make_dataset()
    training_set = TrainingSet(dataset, KEEP_PIXELS, num_draws=12, num_classes=4)
    rows = {KEEP_PIXELS(*read_sample(dataset, row), make_rng())[0].tobytes(): row for row in range(6)}
    order = [rows[item["image"].tobytes()] for item in training_set]
    assert sorted(order[:6]) == sorted(order[6:]) == list(range(6))
    assert order[:6] != order[6:]


def test_another_seed_gives_other_crops(augmented_set):
    other = TrainingSet(make_dataset(), SMALL, num_draws=20, num_classes=4, seed=4)
    assert any(
        left["image"].tobytes() != right["image"].tobytes() for left, right in zip(augmented_set, other, strict=True)
    )


def test_label_ids_outside_the_class_list_name_the_sample():
    training_set = TrainingSet(make_dataset(), SMALL, num_draws=6, num_classes=3)
    with pytest.raises(ValueError, match=r"Sample \d: label id 3 is outside the 3 classes"):
        training_set[0]


def test_empty_training_sets_and_draws_out_of_range_are_refused(augmented_set):
    with pytest.raises(ValueError, match="training split is empty"):
        TrainingSet(make_dataset().select([]), SMALL, num_draws=1, num_classes=4)
    with pytest.raises(ValueError, match="num_draws is 0"):
        TrainingSet(make_dataset(), SMALL, num_draws=0, num_classes=4)
    with pytest.raises(IndexError, match="Draw 20 is outside 0 to 19"):
        augmented_set[20]


def take_streamed(dataset, number, **settings):
    stream = iter(StreamingTrainingSet(dataset, KEEP_PIXELS, num_classes=4, **settings))
    return [next(stream)["image"].tobytes() for _ in range(number)]


def test_a_stream_starts_again_in_another_order_and_repeats_with_its_seed():
    dataset = make_dataset().to_iterable_dataset(num_shards=2)
    crops = take_streamed(dataset, 18)
    epochs = [crops[start : start + 6] for start in (0, 6, 12)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    assert crops == take_streamed(dataset, 18)
    assert crops != take_streamed(dataset, 18, seed=1)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_processes_share_a_stream_without_overlap(num_shards):
    dataset = make_dataset().to_iterable_dataset(num_shards=num_shards)
    first, second = (set(take_streamed(dataset, 3, rank=rank, num_ranks=2)) for rank in range(2))
    assert len(first | second) == 6


@pytest.mark.slow
def test_workers_share_a_stream_without_overlap():
    stream = StreamingTrainingSet(make_dataset().to_iterable_dataset(num_shards=2), KEEP_PIXELS, num_classes=4)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
    crops = iter(loader)
    assert len({next(crops)["image"].numpy().tobytes() for _ in range(6)}) == 6


def test_more_workers_than_files_are_refused(monkeypatch):
    worker = types.SimpleNamespace(id=0, num_workers=3)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: worker)
    with pytest.raises(ValueError, match=r"3 data workers cannot share a stream of 2 files .*use at most 2 workers"):
        take_streamed(make_dataset().to_iterable_dataset(num_shards=2), 1)


def test_an_empty_or_broken_stream_raises_instead_of_waiting():
    with pytest.raises(ValueError, match="The stream has no samples for this process"):
        take_streamed(make_dataset().to_iterable_dataset().take(0), 1)
    broken = make_broken_dataset(image=b"not an image").to_iterable_dataset()
    with pytest.raises(ValueError, match=r"Streamed sample \d: the file cannot be read"):
        take_streamed(broken, 2)


# ---- batches


def test_a_batch_is_normalised_first_and_padded_after():
    crops = [
        {"image": np.full((2, 3, 3), 255, dtype=np.uint8), "label_map": np.array([[0, 1, 2], [3, 255, 1]])},
        {"image": np.zeros((4, 4, 3), dtype=np.uint8), "label_map": np.full((4, 4), 3)},
    ]
    batch = TrainingCollator((4, 4), seen_class_ids=(1, 3), num_classes=4)(crops)
    white = (1 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    assert batch["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(batch["pixel_values"][0, :, 1, 2], white, rtol=1e-6)  # float32 rounding
    assert (batch["pixel_values"][0, :, 2:] == 0).all()
    assert (batch["pixel_values"][0, :, :, 3:] == 0).all()
    ignored = [255] * 4
    assert batch["source_labels"][0].tolist() == [[0, 1, 2, 255], [3, 255, 1, 255], ignored, ignored]
    assert batch["labels"][0].tolist() == [[255, 0, 255, 255], [1, 255, 0, 255], ignored, ignored]
    assert (batch["labels"][1] == 1).all()


@pytest.mark.parametrize("statistics", [(123.675, 116.28, 103.53), (0.5, 0.5), (-0.1, 0.5, 0.5)])
def test_statistics_that_are_not_fractions_are_refused(statistics):
    with pytest.raises(ValueError, match=r"image_mean is .*: give three fractions of full range"):
        TrainingCollator((4, 4), (0,), 1, image_mean=statistics)


def test_a_standard_deviation_of_zero_is_refused():
    with pytest.raises(ValueError, match="image_std is"):
        TrainingCollator((4, 4), (0,), 1, image_std=(0.0, 0.2, 0.2))


def test_no_unseen_class_reaches_the_targets_of_a_whole_training(augmented_set):
    collate = TrainingCollator((16, 16), seen_class_ids=(0, 2), num_classes=4)
    for batch in torch.utils.data.DataLoader(augmented_set, batch_size=5, collate_fn=collate):
        source, targets = batch["source_labels"], batch["labels"]
        assert torch.equal(targets == 0, source == 0)
        assert torch.equal(targets == 1, source == 2)
        assert set(targets.unique().tolist()) <= {0, 1, 255}
