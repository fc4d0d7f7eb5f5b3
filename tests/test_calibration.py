"""`ldvc calibrate`: who is held out, what is read, what is chosen and written."""

import json

import numpy as np
import pytest

from ldvc import LDVCForSemanticSegmentation
from ldvc.commands.training import calibrate as main
from ldvc.data.samples import IGNORE_INDEX, read_labelled
from ldvc.data.vocabularies import get_vocabulary
from ldvc.training import calibration
from ldvc.training.calibration import OFFSETS, calibrate, held_out_in_turn, set_offset
from ldvc.training.recipe import RecipeError, read_recipe
from ldvc.training.run import Run, load_data


pytestmark = pytest.mark.usefixtures("fresh_accelerator")
UNSEEN = 2  # sofa


@pytest.mark.parametrize("name", ["picturebook", "voc2012", "coco_stuff"])
@pytest.mark.parametrize("num_parts", [2, 4])
def test_every_seen_class_is_held_out_once_and_no_unseen_one(name, num_parts):
    vocabulary = get_vocabulary(name)
    parts = held_out_in_turn(vocabulary, num_parts)
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(set(vocabulary.class_names) - set(vocabulary.unseen_names))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("num_parts", [0, 1, 22])
def test_parts_that_cannot_be_made_are_refused(num_parts):
    with pytest.raises(RecipeError, match=rf"the 21 seen classes .* in {num_parts} parts; use --parts 2 to 21"):
        held_out_in_turn(get_vocabulary("picturebook"), num_parts)


def test_an_offset_is_chosen_without_a_mask_of_an_unseen_class(train_arguments, tmp_path, monkeypatch):
    trained, scored = [], []
    train, evaluate = calibration.train_to_end, Run.evaluate

    def watch_training(run, progress):
        trained.append((run.loss_class_names, len(run.train_data)))
        return train(run, progress)

    def watch_scoring(run, **options):
        num_classes = len(run.vocabulary.class_names)
        maps = [read_labelled(run.eval_data, row, num_classes)[1] for row in range(len(run.eval_data))]
        ids = set(np.unique(np.stack(maps)).tolist())
        scored.append((ids, run.vocabulary.scored_unseen_class_ids, run.vocabulary.left_out_class_ids))
        return evaluate(run, **options)

    monkeypatch.setattr(calibration, "train_to_end", watch_training)
    monkeypatch.setattr(Run, "evaluate", watch_scoring)
    recipe = read_recipe([*train_arguments, "--max_steps", "1", "--eval_split", "nowhere"])
    chosen = calibrate(recipe, 3, 3, tmp_path / "calibration")

    whole = len(load_data(recipe, recipe.train_split, recipe.num_train_images, False))
    assert trained == [(["dog", "grass"], whole - 3), (["cat", "grass"], whole - 3), (["cat", "dog"], whole - 3)]
    assert [rest for _, *rest in scored] == [[(held_out,), (UNSEEN,)] for held_out in (0, 1, 3)]
    assert all(UNSEEN not in ids and IGNORE_INDEX in ids for ids, *_ in scored)
    written = json.loads((tmp_path / "calibration" / "calibration.json").read_text())
    mean = np.mean([part["hiou"] for part in written["parts"]], axis=0)
    assert written["mean_hiou"] == pytest.approx(mean.tolist())
    assert written["seen_score_offset"] == chosen == OFFSETS[int(np.argmax(mean))]
    assert [part["held_out"] for part in written["parts"]] == [["cat"], ["dog"], ["grass"]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--setting", "fully_supervised"], r"`setting` is 'fully_supervised' .* use --setting inductive"),
        (["--streaming", "true", "--num_train_images", "null"], r"`streaming` True: .* --streaming false"),
    ],
)
def test_a_recipe_that_cannot_be_calibrated_is_refused(train_arguments, tmp_path, capsys, keys, message):
    arguments = [train_arguments[0], "--output", str(tmp_path / "out"), *train_arguments[1:], *keys]
    assert main(arguments) == 2
    with pytest.raises(RecipeError, match=message):
        calibrate(read_recipe([*train_arguments, *keys]), 2, 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_more_pictures_to_score_on_than_there_are_is_refused(train_arguments, tmp_path):
    with pytest.raises(RecipeError, match=r"1000 of .* training pictures .* leaves none; use --num_images"):
        calibrate(read_recipe([*train_arguments, "--max_steps", "1"]), 3, 1000, tmp_path / "out")


def test_a_checkpoint_gets_the_offset_and_nothing_else_changes(finished_run, tmp_path):
    before = LDVCForSemanticSegmentation.from_pretrained(finished_run)
    assert before.config.seen_score_offset == 0
    for path in finished_run.glob("*"):
        if path.suffix in (".json", ".safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    set_offset(tmp_path, 0.07)
    after = LDVCForSemanticSegmentation.from_pretrained(tmp_path)
    assert after.config.seen_score_offset == 0.07
    own = {"seen_score_offset": 0.0, "_name_or_path": str(finished_run)}
    assert after.config.to_dict() | own == before.config.to_dict()


def test_a_folder_that_is_no_checkpoint_is_refused_before_anything_trains(train_arguments, tmp_path, capsys):
    arguments = [train_arguments[0], "--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path)]
    assert main([*arguments, *train_arguments[1:]]) == 2
    assert "has no config.json; give the folder of a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no `seen_classes`"):
        set_offset(tmp_path, 0.1)
    (tmp_path / "config.json").write_text('{"seen_classes": ["zebra"]}')
    assert main([*arguments, *train_arguments[1:]]) == 2
    assert "trained on another split than the recipe's, which differs in " in capsys.readouterr().err


def test_a_stop_does_not_promise_to_go_on(train_arguments, tmp_path, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("ldvc.training.calibration.score_part", stop)
    assert main([*train_arguments, "--output", str(tmp_path / "calibration"), "--parts", "2"]) == 130
    assert "calibrate: stopped; the same command starts anew" in capsys.readouterr().err
