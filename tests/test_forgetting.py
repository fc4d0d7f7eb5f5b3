"""The forgetting report: groups, scores and intervals before and after, absent names, refusals."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ldvc.commands.scoring import forgetting as main
from ldvc.data.vocabularies import Vocabulary
from ldvc.model.inference_ldvc import InferenceSettings
from ldvc.scoring.evaluate import evaluate_model, mean_iou, resample, share
from ldvc.scoring.forgetting import (
    ABSENT_ROWS,
    Checkpoint,
    Picture,
    absent_areas,
    check_pair,
    compare,
    difference,
    format_report,
    group_names,
    measure,
    measure_claims,
)
from ldvc.segmenters.training_free import TrainingFreeCLIP


WHOLE = InferenceSettings(short_side=32, window=0)
VOCABULARY = Vocabulary("own", ("cat", "dog", "sofa", "grass"), ("dog", "grass"))
OPTIONS = ("--split", "train", "--short_side", "32", "--window", "0")


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, 40, 3), dtype=np.uint8)) for h in (33, 48, 40)]
    labels = [Image.fromarray(rng.choice([0, 1, 2, 3, 255], (h, 40)).astype(np.uint8)) for h in (33, 48, 40)]
    labels[1] = Image.fromarray(np.where(np.array(labels[1]) == 1, 0, np.array(labels[1])).astype(np.uint8))  # no dog
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def make_checkpoint(make_model, processor, seen=("cat", "sofa"), seed=0):
    """A tiny checkpoint whose own weights are random."""
    model = make_model()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("clip."):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.set_vocabulary(list(VOCABULARY.class_names), processor)
    model.config.seen_classes = list(seen)
    return Checkpoint(f"seed{seed}", model, processor)


@pytest.fixture
def before(make_model, tiny_processor):
    return make_checkpoint(make_model, tiny_processor, seen=("dog", "sofa"))


@pytest.fixture
def after(make_model, tiny_processor):
    return make_checkpoint(make_model, tiny_processor, seed=1)


@pytest.fixture
def folders(before, after, dataset, tmp_path):
    """Folders of both checkpoints and of the data."""
    for name, checkpoint in (("before", before), ("after", after)):
        checkpoint.model.save_pretrained(tmp_path / name)
        checkpoint.processor.save_pretrained(tmp_path / name)
    dataset.save_to_disk(tmp_path / "data")
    return [str(tmp_path / name) for name in ("before", "after", "data")]


# ---- groups


def test_groups_follow_what_trained_each_checkpoint(before, after):
    assert group_names(VOCABULARY, before, after) == {
        "seen": ["cat", "sofa"],
        "unseen": ["dog", "grass"],
        "unseen, trained before": ["dog"],
    }


def test_empty_groups_are_left_out(make_model, tiny_processor, clip_model):
    everything = make_checkpoint(make_model, tiny_processor, seen=VOCABULARY.class_names)
    clip = Checkpoint(
        "clip", TrainingFreeCLIP(clip_model, "value", softmax_scale=None), tiny_processor, is_training_free=True
    )
    assert list(group_names(VOCABULARY, clip, everything)) == ["seen"]


# ---- scores


def test_scores_are_those_of_the_evaluation(after, dataset):
    measured = measure(after, dataset, VOCABULARY, ["cat", "sofa"], WHOLE, show_progress=False)
    scores = evaluate_model(
        after.model, after.processor, dataset, VOCABULARY, WHOLE, offsets=[0.0], show_progress=False
    )["scores"]["0.0"]
    row = compare(measured, measured, VOCABULARY, {"seen": ["cat", "sofa"], "unseen": ["dog", "grass"]})["groups"]
    assert row["seen"]["after"] == pytest.approx(scores["miou_seen"])
    assert row["unseen"]["before"] == pytest.approx(scores["miou_unseen"])


def test_a_model_compared_with_itself_forgot_nothing(after, dataset):
    measured = measure(after, dataset, VOCABULARY, ["cat", "sofa"], WHOLE, show_progress=False)
    report = compare(measured, measured, VOCABULARY, group_names(VOCABULARY, after, after))
    for row in report["groups"].values():
        assert row["difference"] == 0
        assert row["interval"] == [0, 0]
    assert {row["difference"] for row in report["per_class"].values()} == {0}


def test_mean_iou_equals_the_naive_statement_and_leaves_absent_classes_out():
    rng = np.random.default_rng(0)
    predicted, labelled = rng.integers(1, 50, (2, 5, 3))
    hits = np.minimum(predicted, labelled) // 2
    areas = np.stack([hits, predicted, labelled], axis=-1)
    areas[:, 2] = 0
    draws = resample(5)
    for row in (0, 1, 700):
        ious = []
        for class_id in (0, 1):
            hit, union = 0, 0
            for image in range(5):
                for _ in range(int(draws[row, image])):
                    hit += areas[image, class_id, 0]
                    union += areas[image, class_id, 1] + areas[image, class_id, 2] - areas[image, class_id, 0]
            ious.append(hit / union)
        assert mean_iou(areas, draws)[row] == pytest.approx(np.mean(ious))
    assert np.isnan(mean_iou(areas[:, 2:], draws)).all()


def test_resampling_draws_as_many_images_as_there_are_after_each_of_them_once():
    draws = resample(7)
    assert draws.shape == (1008, 7)
    assert (draws[0] == 1).all()
    assert (draws[:1001].sum(1) == 7).all()
    assert (draws[1001:] == 1 - np.eye(7)).all()  # each left out in turn
    assert (draws == resample(7)).all()


def test_a_single_image_gives_no_interval():
    counts = np.array([[3, 10]])
    row = difference(share(counts, resample(1)), share(counts + np.array([4, 0]), resample(1)))
    assert row["difference"] == pytest.approx(0.4)
    assert row["interval"] is None


def test_intervals_are_of_paired_differences():
    rng = np.random.default_rng(0)
    counts = np.stack([rng.integers(0, 900, 40), np.full(40, 1000)], axis=1)
    worse = counts + np.array([[100, 0]])  # every image alike, though images differ much
    row = difference(*(share(each, resample(40)) for each in (counts, worse)))
    assert row["difference"] == pytest.approx(0.1)
    assert row["interval"] == pytest.approx([0.1, 0.1])


def test_what_is_not_counted_has_no_score():
    counts = np.zeros((4, 2), dtype=int)
    assert difference(*(share(counts, resample(4)) for _ in range(2))) == {
        "before": None,
        "after": None,
        "difference": None,
        "interval": None,
    }


# ---- absent names


def picture_of(answers, is_training_free=False):
    """A picture that answers as told: (ids asked for, floor) -> map of positions."""

    def winners(ids, floor=None):
        return answers[tuple(ids), floor]

    return SimpleNamespace(winners=winners, checkpoint=SimpleNamespace(is_training_free=is_training_free))


def test_absent_names_are_counted_on_labelled_pixels_only_and_apart_for_seen_classes():
    # present: 0 (seen) and 1 (unseen); absent: 3 and the further name 4; 2 is seen and so never asked for as absent
    reference = np.array([[0, 0, 0, 1], [1, 1, 255, 255]])
    answers = {
        ((0, 1, 3, 4), None): np.array([[2, 0, 3, 1], [0, 2, 3, 3]]),
        ((3, 4), 0.5): np.array([[2, 1, 0, 0], [2, 2, 0, 0]]),
    }
    areas = absent_areas(picture_of(answers), reference, 5, [0, 2])
    assert dict(zip(ABSENT_ROWS, areas.tolist(), strict=True)) == {
        "taken": [3, 6],
        "claimed_on_seen": [2, 3],
        "claimed_elsewhere": [1, 3],
    }


def test_clip_without_training_is_not_asked_for_probabilities():
    answers = {((0, 1), None): np.array([[0, 1]])}
    areas = absent_areas(picture_of(answers, is_training_free=True), np.array([[0, 0]]), 2, [])
    assert areas.tolist() == [[1, 2], [0, 0], [0, 0]]


def test_nothing_is_counted_where_every_name_is_present_or_no_pixel_is_labelled():
    assert not absent_areas(picture_of({}), np.array([[0, 1]]), 2, []).any()
    assert not absent_areas(picture_of({}), np.array([[255, 255]]), 2, []).any()


def test_a_floor_wins_where_no_name_reaches_it(after):
    embeds = torch.nn.functional.normalize(torch.randn(3, 32), dim=-1)
    picture = Picture(after, torch.randn(3, 32, 32), (20, 24), embeds, WHOLE)
    best = picture.winners([0, 1, 2])
    assert (picture.winners([0, 1, 2], floor=1.1) == 3).all()
    np.testing.assert_array_equal(picture.winners([0, 1, 2], floor=0.0), best)
    assert set(np.unique(picture.winners([2, 0]))) <= {0, 1}


def test_other_pictures_are_asked_for_each_group_alone(after, dataset, monkeypatch):
    asked = []

    def winners(self, ids, floor=None):
        asked.append((list(ids), floor))
        return np.where(np.arange(self.size[1]) < 10, 0, len(ids)) + np.zeros(self.size, dtype=int)

    monkeypatch.setattr(Picture, "winners", winners)
    groups = {"seen": ["cat", "sofa"], "unseen": ["dog"]}
    claims = measure_claims(after, dataset, groups, WHOLE, show_progress=False)
    assert asked == [([0, 1], 0.5), ([2], 0.5)] * 3
    np.testing.assert_allclose(claims[..., 0] / claims[..., 1], 0.25)


# ---- the command


def test_the_command_writes_tables_and_numbers(folders, tmp_path, capsys):
    before, after, data = folders
    output = tmp_path / "out" / "report.json"
    options = ("--dataset", data, "--absent_names", "[sky, zebra]", "--output", str(output), *OPTIONS)
    assert main([before, after, *options, "--old_dataset", data, "--absent_dataset", data]) == 0
    report = json.loads(output.read_text())
    new, old = report["sections"]
    assert (new["title"], old["title"]) == ("New labels", "Old labels")
    assert new["num_images"] == 3
    assert report["trained_after"] == ["cat", "sofa"]
    assert set(new["absent"]) == set(ABSENT_ROWS)
    assert list(report["other_pictures"]["groups"]) == ["seen", "unseen"]
    printed = capsys.readouterr().out
    assert output.with_suffix(".md").read_text() == printed
    seen = new["groups"]["seen"]
    assert f"| seen: mIoU over 2 | {100 * seen['before']:.1f} | {100 * seen['after']:.1f} |" in printed
    assert "absent names alone: pixels of seen classes claimed" in printed


@pytest.mark.slow
def test_clip_without_training_may_stand_before(folders, clip_folder, capsys):
    _, after, data = folders
    assert main([str(clip_folder), after, "--training_free_before", "--dataset", data, *OPTIONS]) == 0
    printed = capsys.readouterr().out
    assert "unseen, trained before" not in printed
    assert "| absent names alone: pixels of seen classes claimed | - | " in printed


def test_the_report_names_what_got_worse_beyond_chance():
    row = {"before": 0.5, "after": 0.4, "difference": -0.1, "interval": [-0.15, -0.05]}
    chance = {"before": 0.5, "after": 0.4, "difference": -0.1, "interval": [-0.25, 0.05]}
    more = {"before": 0.1, "after": 0.2, "difference": 0.1, "interval": [0.05, 0.15]}
    section = {
        "title": "New labels",
        "dataset": "own",
        "num_images": 3,
        "groups": {"seen": chance, "unseen": row},
        "group_names": {"seen": ["cat"], "unseen": ["dog"]},
        "absent": {"taken": more},
        "per_class": {"cat": chance, "dog": row},
    }
    text = format_report({"before": "a", "after": "b", "sections": [section]})
    assert "- New labels, unseen: -10.0 points" in text
    assert "- New labels, absent names among the right ones: pixels taken: +10.0 points" in text
    assert "New labels, seen" not in text
    section |= {"groups": {"seen": chance}, "absent": {}}
    elsewhere = {"dataset": "other", "num_images": 2, "groups": {"seen": more, "unseen": chance}}
    text = format_report({"before": "a", "after": "b", "sections": [section], "other_pictures": elsewhere})
    assert "- Other pictures, seen names alone: +10.0 points" in text
    assert "Other pictures, unseen" not in text
    assert format_report({"before": "a", "after": "b", "sections": [section]}).endswith(
        "Nothing got worse beyond chance."
    )


# ---- refusals


def test_checkpoints_of_different_clips_are_refused(before, after):
    with torch.no_grad():
        after.model.clip.visual_projection.weight[0, 0] += 1
    with pytest.raises(ValueError, match="'seed0' and 'seed1' hold different CLIPs"):
        check_pair(before, after)


def test_a_checkpoint_that_does_not_say_what_trained_it_is_refused(before, after):
    after.model.config.seen_classes = None
    with pytest.raises(ValueError, match="'seed1' does not say which classes trained it"):
        check_pair(before, after)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--class_names", "[dog, sofa, grass]"), "was trained on ['cat'], which the class list lacks"),
        (("--unseen_classes", "[sofa]"), "['sofa'] are named unseen, but their masks trained"),
        (("--unseen_classes", "[zebra]"), "unseen name 'zebra' is not in class_names"),
        (("--class_names", "[cat]", "--vocabulary", "voc2012"), "not both"),
        (("--class_names", "[cat, sofa]"), "outside the 2 classes"),
        (("--stride", "0", "--window", "32"), "stride is 0"),
        (("--split", "test"), "has no split 'test'"),
    ],
)
def test_bad_input_ends_with_one_line_that_names_the_value(folders, capsys, options, message):
    before, after, data = folders
    assert main([before, after, "--dataset", data, *OPTIONS, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ldvc forgetting: ")
    assert message in error


@pytest.mark.slow
def test_label_maps_that_count_otherwise_than_said_are_refused(folders, tmp_path, capsys):
    before, after, data = folders
    summary = {"class_names": list(VOCABULARY.class_names), "reduce_labels": True}
    (tmp_path / "data" / "classes.json").write_text(json.dumps(summary))
    assert main([before, after, "--dataset", data, *OPTIONS]) == 2
    assert "reduce_labels is False, but the label maps of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_clip_has_no_old_class_list(folders, clip_folder, capsys):
    _, after, data = folders
    arguments = [str(clip_folder), after, "--training_free_before", "--dataset", data, "--old_dataset", data]
    assert main([*arguments, *OPTIONS]) == 2
    assert "is a CLIP and has no class list: give --old_class_names" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(folders, capsys):
    _, after, data = folders
    assert main(["nowhere/at_all", after, "--dataset", data, *OPTIONS]) == 2
    assert "no LDVC checkpoint can be read from 'nowhere/at_all'; give a folder or Hub id" in capsys.readouterr().err
