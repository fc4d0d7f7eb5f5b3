"""What is scored, looked at before anything is trained or scored: label maps, class lists, where the result goes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldvc.commands import data as data_commands
from ldvc.commands import scoring
from ldvc.commands.training import train
from ldvc.data.vocabularies import Vocabulary
from ldvc.scoring.evaluate import mean_iou
from ldvc.scoring.labels import missing_labels
from ldvc.training import run as training_run


pytestmark = pytest.mark.usefixtures("fresh_accelerator")

NAMES = "[cat, dog, sofa, grass]"


@pytest.fixture
def folder(tmp_path):
    """Return a plain folder whose label maps hold every class in both splits."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / "images" / f"{index}.png")
            write_label(tmp_path / "data", split, index, np.kron([[0, 1], [2, 3]], np.ones((20, 20))))
    return tmp_path / "data"


def write_label(folder, split, index, label):
    Image.fromarray(np.asarray(label, dtype=np.uint8)).save(folder / split / "masks" / f"{index}.png")


def fill(folder, *ids):
    """Give the scored pictures these ids alone."""
    for index in range(4):
        write_label(folder, "validation", index, np.full((40, 40), ids[index % len(ids)]))


def evaluate(checkpoint, folder, *options, class_names=NAMES):
    arguments = [str(checkpoint), "--dataset", str(folder), "--short_side", "32", "--window", "0"]
    return scoring.evaluate([*arguments, "--class_names", class_names, "--unseen_classes", "[sofa]", *options])


# ---- label maps that give no score


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((255,), "split 'validation', which is to be scored: none of its 4 label maps has a labelled pixel"),
        ((0, 1, 2, 7), "split 'validation', which is to be scored: Sample 3: label id 7 is outside the 4 classes"),
    ],
)
def test_a_split_that_cannot_be_scored_is_refused_before_training_and_before_scoring(
    train_arguments, whole_run, folder, tmp_path, told, capsys, monkeypatch, ids, message
):
    checkpoint = whole_run(train_arguments)
    monkeypatch.setattr(training_run, "train", lambda *arguments: pytest.fail("trained"))
    fill(folder, *ids)
    assert train([*train_arguments, "--dataset", str(folder), "--eval_split", "validation"]) == 2
    assert message in told.text
    assert not (tmp_path / "run").exists()
    assert evaluate(checkpoint, folder) == 2
    assert message in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_is_found_before_training(train_arguments, folder, tmp_path, told, monkeypatch):
    monkeypatch.setattr(training_run, "train", lambda *arguments: pytest.fail("trained"))
    write_label(folder, "validation", 2, np.zeros((30, 40)))
    assert train([*train_arguments, "--dataset", str(folder)]) == 2
    assert "split 'validation', which is to be scored: Sample 2: the image is 40 x 40 pixels" in told.text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ids", "lacking", "line"),
    [
        ((0, 1, 3), "miou_unseen", "no unseen class at all, so that mIoU(U) and hIoU have no score."),
        pytest.param(
            *((2,), "miou_seen", "no seen class at all, so that mIoU(S) and hIoU have no score."),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_group_without_pixels_has_no_score_and_one_line_says_so(
    train_arguments, whole_run, folder, tmp_path, told, capsys, ids, lacking, line
):
    fill(folder, *ids)
    checkpoint = whole_run(train_arguments)
    assert train([*train_arguments, "--dataset", str(folder), "--max_steps", "1"]) == 0
    assert evaluate(checkpoint, folder, "--output", str(tmp_path / "r.json")) == 0
    assert capsys.readouterr().out.count(line) == 2  # of training and of evaluation, under the table
    assert line in told.text  # and before training
    for path in (tmp_path / "run" / "results.json", tmp_path / "r.json"):
        result = json.loads(path.read_text(), parse_constant=pytest.fail)
        counts = [ids[index % len(ids)] for index in range(4)]
        names = ("cat", "dog", "sofa", "grass")
        expected = {name: 40 * 40 * counts.count(class_id) for class_id, name in enumerate(names)}
        assert result["labelled_pixels"] == expected
        for offset in ("0.0", "0.1"):
            assert result["scores"][offset][lacking] is None
            assert result["scores"][offset]["hiou"] is None
            assert result["scores"][offset]["intervals"]["hiou"] == []


def test_classes_that_the_scored_pictures_lack_are_named():
    vocabulary = Vocabulary("own", ("cat", "dog", "sofa", "grass", "sky"), ("sofa", "sky"))
    labelled = dict.fromkeys(vocabulary.class_names, 5)
    assert missing_labels(labelled, vocabulary) is None
    assert missing_labels(labelled | {"dog": 0, "sky": 0}, vocabulary) == (
        "labelled pixels of the scored pictures: none of the seen class dog; none of the unseen class sky."
    )
    assert missing_labels(labelled | {"dog": 0, "cat": 0, "sky": 0, "sofa": 0}, vocabulary) == (
        "labelled pixels of the scored pictures: none of the seen classes cat, dog; no unseen class at all, so that "
        "mIoU(U) and hIoU have no score."
    )


@pytest.mark.slow
def test_a_seen_class_that_no_training_picture_shows_is_named(train_arguments, folder, capsys):
    for index in range(4):
        write_label(folder, "train", index, np.kron([[0, 0], [2, 3]], np.ones((20, 20))))
    assert train([*train_arguments, "--dataset", str(folder), "--max_steps", "2"]) == 0
    assert "no labelled pixel of these classes was drawn in training: dog\n" in capsys.readouterr().out


def test_resampled_pictures_without_a_pixel_of_a_group_have_no_mean():
    areas = np.zeros((2, 1, 3), dtype=np.int32)
    areas[0] = [0, 5, 0]  # predicted, never there
    areas[1] = [5, 5, 10]
    draws = np.array([[1, 1], [2, 0], [0, 2]])
    np.testing.assert_array_equal(mean_iou(areas, draws), [5 / 15, np.nan, 5 / 10])


# ---- class lists


@pytest.mark.parametrize("listed_in", ["classes.txt", "classes.json"])
def test_a_class_list_that_contradicts_the_folders_own_is_refused_everywhere(
    train_arguments, whole_run, folder, tmp_path, told, capsys, listed_in
):
    names = ["cat", "dog", "sofa", "grass"]
    text = "\n".join(names) if listed_in == "classes.txt" else json.dumps({"class_names": names})
    Path(folder, listed_in).write_text(text)
    checkpoint, swapped = whole_run(train_arguments), "[cat, sofa, dog, grass]"
    message = "class 1 is 'sofa', there it is 'dog'; leave the list out where the command allows it"
    assert train([*train_arguments, "--dataset", str(folder), "--class_names", swapped]) == 2
    assert message in told.text
    assert not (tmp_path / "run").exists()
    assert evaluate(checkpoint, folder, class_names=swapped) == 2
    assert message in capsys.readouterr().err
    assert data_commands.check([str(folder), "--class_names", swapped, "--unseen_classes", "[sofa]"]) == 2
    assert message in capsys.readouterr().err
    forgetting = [str(checkpoint), str(checkpoint), "--dataset", str(folder), "--class_names", swapped]
    assert scoring.forgetting(forgetting) == 2
    assert message in capsys.readouterr().err


# ---- places and offsets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--offsets", "0", "0.1", "0.10"], "--offsets 0.0 0.1 0.1 repeat 0.1: give each number once"),
        (["--offsets", "nan"], "--offsets nan are not all finite: give each number once"),
        (["--offsets", "0", "-0.0"], "repeat"),
    ],
)
def test_offsets_that_have_no_table_of_their_own_are_refused(finished_run, folder, capsys, options, message):
    assert evaluate(finished_run, folder, *options) == 2
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_scoring(finished_run, folder, capsys, monkeypatch):
    monkeypatch.setattr("ldvc.scoring.evaluate.evaluate_model", lambda *args, **options: pytest.fail("scored"))
    assert evaluate(finished_run, folder, "--output", str(folder)) == 2
    assert f"the result cannot be written to {str(folder)!r}: it is a folder; name another file" in (
        capsys.readouterr().err
    )
    assert (
        scoring.forgetting(["a", "b", "--dataset", "c", "--output", str(finished_run / "config.json" / "r.json")]) == 2
    )
    assert "config.json is a file; name another file" in capsys.readouterr().err
