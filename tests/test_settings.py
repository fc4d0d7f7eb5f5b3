"""Settings: which pixel tells the loss what, in training; which checkpoint may be scored as what, afterwards."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate.state import AcceleratorState
from conftest import TINY_RECIPE
from safetensors.torch import load_file

from ldvc.commands import scoring as commands
from ldvc.commands.training import train as main
from ldvc.data.pseudo_labels import WITHHELD, pseudo_labels, withhold_labels
from ldvc.data.samples import TrainingCollator
from ldvc.data.vocabularies import Vocabulary
from ldvc.model.loss_ldvc import count_present
from ldvc.scoring import evaluate as evaluate_module
from ldvc.scoring.evaluate import load_checkpoint
from ldvc.scoring.protocol import (
    ProtocolAudit,
    checkpoint_fingerprints,
    names_given_to_the_loss,
    names_trained_with_masks,
    protocol_mismatches,
    read_protocol,
    shared_names,
)
from ldvc.scoring.signatures import LOW_MIOU
from ldvc.training.recipe import RecipeError, read_recipe
from ldvc.training.run import run_recipe
from ldvc.training.start import describe_start


pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = Vocabulary("own", ("cat", "dog", "sofa", "grass"), ("sofa",))


def run(train_arguments, *overrides):
    few = ["--num_eval_images", "2", "--num_pictures", "0"]
    return run_recipe(read_recipe([*train_arguments, *few, *overrides]))


def protocol_of(folder):
    return json.loads((Path(folder) / "protocol.json").read_text())


def losses_of(folder):
    records = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


# ---- the label rule of each setting, pixel by pixel

SEEN = (1, 3, 4)  # of six classes; 0, 2 and 5 are unseen


def naive_target(setting, pseudo_region, class_id, guess):
    """What the loss is told about one pixel: `class_id` is what was labelled, `guess` what the model would say."""
    if setting == "fully_supervised":
        return class_id
    if class_id == 255:
        return guess if setting == "transductive" and pseudo_region == "all_unlabelled" else 255
    if setting == "inductive":
        return SEEN.index(class_id) if class_id in SEEN else 255
    return class_id if class_id in SEEN else guess


@pytest.mark.parametrize("threshold", [None, 0.6])
@pytest.mark.parametrize(
    ("setting", "pseudo_region"),
    [
        ("inductive", None),
        ("fully_supervised", None),
        ("transductive", "unseen_pixels"),
        ("transductive", "all_unlabelled"),
    ],
)
def test_every_pixel_of_every_setting_follows_the_naive_rule(setting, pseudo_region, threshold):
    rng = np.random.default_rng(0)
    sizes = [(7, 5), (8, 8)]  # the first is padded
    crops = [
        {
            "image": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
            "label_map": rng.choice([0, 1, 2, 3, 4, 5, 255], size),
        }
        for size in sizes
    ]
    trained = range(6) if setting == "fully_supervised" else SEEN
    batch = TrainingCollator((8, 8), trained, 6, pseudo_region=pseudo_region)(crops)
    logits = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    targets = pseudo_labels(logits, batch["labels"], [0, 2, 5], threshold)
    scores = F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False).sigmoid().numpy()
    for index, (height, width) in enumerate(sizes):
        for row in range(8):
            for column in range(8):
                candidates = {c: scores[index, c, row, column] for c in (0, 2, 5)}
                guess = max(candidates, key=candidates.get)
                if threshold is not None and candidates[guess] < threshold:
                    guess = 255
                if row >= height or column >= width:
                    expected = 255  # padding is never guessed
                else:
                    class_id = crops[index]["label_map"][row, column]
                    expected = naive_target(setting, pseudo_region, class_id, guess)
                assert targets[index, row, column] == expected


@pytest.mark.parametrize("pseudo_region", ["unseen_pixels", "all_unlabelled"])
def test_no_unseen_id_leaves_the_data_side(pseudo_region):
    labels = withhold_labels(np.arange(6)[None], SEEN, pseudo_region)
    assert labels.tolist() == [[WITHHELD, 1, WITHHELD, 3, 4, WITHHELD]]


def test_an_unknown_pseudo_region_is_refused():
    with pytest.raises(ValueError, match=r"pseudo_region is 'sky'; use one of unseen_pixels, all_unlabelled"):
        withhold_labels(np.zeros((1, 1), int), SEEN, "sky")


def test_guesses_carry_no_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    targets = pseudo_labels(logits, torch.full((1, 4, 4), WITHHELD), [1, 2])
    assert not targets.requires_grad
    assert set(targets.unique().tolist()) <= {1, 2}


@pytest.mark.slow
def test_pixels_that_the_loss_leaves_out_are_no_negatives(train_arguments, tmp_path):
    rows, what = [], []
    for name in ("negative", "ignore"):
        options = ["--unlabeled_pixels", name, "--output_dir", str(tmp_path / name), "--max_steps", "1"]
        run(train_arguments, *options)
        protocol = protocol_of(tmp_path / name)
        what.append(protocol["unlabelled_pixels_are"])
        rows.append(next(row for row in protocol["classes"] if row["name"] == "sofa"))
    assert what == ["negatives", "ignored"]
    assert rows[0]["negative_pixels"] == rows[1]["ignored_pixels"] > 0
    assert rows[0]["ignored_pixels"] == rows[1]["negative_pixels"] == 0


def test_masks_are_counted_once_per_image_and_class():
    labels = torch.tensor([[[0, 0], [2, 255]], [[255, 255], [255, 255]], [[1, 2], [0, 0]]])
    assert count_present(labels, 3) == 2 + 0 + 3


# ---- transductive runs


@pytest.mark.slow
def test_one_command_trains_both_halves_and_the_audit_tells_them_apart(train_arguments, tmp_path):
    run(train_arguments, "--setting", "transductive", "--unseen_classes", "[sofa, grass]")
    half, whole = protocol_of(tmp_path / "run" / "inductive"), protocol_of(tmp_path / "run")
    assert (half["setting"], half["classes_given_to_the_loss"], half["keeps_setting"]) == (
        "inductive",
        ["cat", "dog"],
        True,
    )
    assert whole["classes_given_to_the_loss"] == ["cat", "dog", "sofa", "grass"]
    assert whole["keeps_setting"]
    assert whole["unseen_mask_pixels_in_the_loss"] == 0
    rows = {row["name"]: row for row in whole["classes"]}
    for name in ("cat", "dog"):
        assert rows[name]["positive_pixels"] > 0
        assert rows[name]["withheld_pixels"] == rows[name]["pseudo_label_pixels"] == 0
    guessed = whole["pseudo_labels"]
    assert sum(rows[name]["withheld_pixels"] for name in ("sofa", "grass")) == guessed["withheld_pixels"] > 0
    assert sum(rows[name]["pseudo_label_pixels"] for name in ("sofa", "grass")) == guessed["withheld_pixels"]
    assert all(rows[name]["positive_pixels"] == 0 for name in ("sofa", "grass"))
    assert "location only" in guessed["label_maps_told"]
    assert whole["start"]["setting"] == "inductive"
    assert whole["start"]["names_trained_with_masks"] == ["cat", "dog"]
    model, _ = load_checkpoint(str(tmp_path / "run"))
    assert model.config.seen_classes == ["cat", "dog"]
    assert yaml.safe_load((tmp_path / "run" / "inductive" / "recipe.yaml").read_text())["schedule_steps"] == 12


@pytest.mark.slow
def test_unlabelled_pixels_are_guessed_too_when_asked_and_unsure_ones_stay_so(train_arguments, tmp_path, finished):
    options = ["--setting", "transductive", "--pseudo_region", "all_unlabelled", "--pseudo_threshold", "0.999"]
    run(train_arguments, *options, "--max_steps", "1", "--start_from", str(finished()))
    guessed = protocol_of(tmp_path / "run")["pseudo_labels"]
    assert guessed["left_unlabelled_pixels"] == guessed["withheld_pixels"] > 0
    assert "not told apart" in guessed["label_maps_told"]


@pytest.mark.slow
def test_the_second_half_starts_from_the_weights_of_the_first(train_arguments, tmp_path):
    options = ["--setting", "transductive", "--unseen_classes", "[sofa, grass]", "--max_steps", "2"]
    run(train_arguments, *options, "--learning_rate", "0.01")
    start = str(tmp_path / "run" / "inductive")
    still = ["--learning_rate", "0", "--min_learning_rate", "0", "--start_from", start]
    run(train_arguments, *options, *still, "--output_dir", str(tmp_path / "b"))
    first, second = (load_file(Path(folder) / "model.safetensors") for folder in (start, tmp_path / "b"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("stopped_in", ["inductive", "second half"])
def test_a_transductive_run_resumes_bit_for_bit_in_either_half(train_arguments, tmp_path, stopped_in):
    options = ["--setting", "transductive", "--gradient_accumulation_steps", "2", "--num_eval_images", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(train_arguments, *options, "--output_dir", str(whole))
    shutil.copytree(whole, resumed)
    stopped = resumed / "inductive" if stopped_in == "inductive" else resumed
    shutil.rmtree(stopped / "states" / "step_0000006")
    (stopped / "results.json").unlink()
    if stopped_in == "inductive":
        for path in resumed.iterdir():
            if path.name != "inductive":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(train_arguments, *options, "--output_dir", str(resumed), "--resume_from_checkpoint", "latest")
    first, second = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses_of(whole) == losses_of(resumed)
    assert protocol_of(whole)["classes"] == protocol_of(resumed)["classes"]


@pytest.mark.slow
def test_a_run_stopped_before_its_first_state_starts_anew(train_arguments, tmp_path):
    run(train_arguments, "--max_steps", "2", "--save_every", "0")
    losses = losses_of(tmp_path / "run")
    for name in ("results.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    run(train_arguments, "--max_steps", "2", "--save_every", "0", "--resume_from_checkpoint", "latest")
    assert losses_of(tmp_path / "run") == losses


@pytest.mark.slow
def test_accumulating_is_the_same_step_in_parts(train_arguments, tmp_path, finished):
    options = ["--decoder_dropout", "0", "--vision_prompt_dropout", "0", "--setting", "transductive"]
    options += ["--start_from", str(finished())]
    for parts in ("1", "4"):
        run(train_arguments, *options, "--gradient_accumulation_steps", parts, "--output_dir", str(tmp_path / parts))
    # sums in another order; without the common normaliser losses differ in the first digits
    np.testing.assert_allclose(losses_of(tmp_path / "1"), losses_of(tmp_path / "4"), rtol=1e-4)
    assert protocol_of(tmp_path / "1")["image_draws"] == protocol_of(tmp_path / "4")["image_draws"] == 24


@pytest.mark.slow
def test_a_transductive_run_trains_in_bf16(train_arguments, finished):
    options = ["--setting", "transductive", "--start_from", str(finished()), "--max_steps", "2"]
    AcceleratorState._reset_state(reset_partial_state=True)  # the start may have been trained just now, in float32
    result = run(train_arguments, *options, "--mixed_precision", "bf16")
    assert np.isfinite(result["scores"]["0.0"]["pixel_accuracy"])


@pytest.mark.slow
def test_the_audit_stops_self_training_whose_data_side_leaks(train_arguments, tmp_path, monkeypatch, finished):
    from ldvc.data import samples

    start = str(finished())

    def leak(label_map, seen_class_ids, pseudo_region, ignore_index):
        return label_map  # every mask

    monkeypatch.setattr(samples, "withhold_labels", leak)
    with pytest.raises(RuntimeError, match=r"reached the loss of the transductive run.*protocol\.json"):
        run(train_arguments, "--setting", "transductive", "--max_steps", "1", "--start_from", start)
    protocol = protocol_of(tmp_path / "run")
    sofa = next(row for row in protocol["classes"] if row["name"] == "sofa")
    assert protocol["unseen_mask_pixels_in_the_loss"] == sofa["positive_pixels"] > 0


def launch(folder, script, *arguments):
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *(str(ROOT / script), *arguments),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


NO_DROPOUT = ("--decoder_dropout", "0", "--vision_prompt_dropout", "0")


@pytest.mark.slow
def test_two_processes_train_transductively_as_one_does(train_arguments, tmp_path):
    options = [
        "--setting",
        "transductive",
        *NO_DROPOUT,
        "--gradient_accumulation_steps",
        "2",
        "--num_eval_images",
        "5",
    ]
    launch(tmp_path, "train.py", *train_arguments, *options)
    two = json.loads((tmp_path / "run" / "results.json").read_text())
    one = run(train_arguments, *options, "--output_dir", str(tmp_path / "one"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(tmp_path / "one"), rtol=1e-3)
    assert protocol_of(tmp_path / "run")["image_draws"] == protocol_of(tmp_path / "one")["image_draws"]
    assert one["scores"]["0.0"]["pixel_accuracy"] == pytest.approx(two["scores"]["0.0"]["pixel_accuracy"], abs=0.02)


# ---- where a run may start


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes, clip_folder):
    """Return a function that gives the folder of a finished one-step run with the given overrides, made once."""
    made = {}

    def get(*overrides):
        if overrides not in made:
            AcceleratorState._reset_state(reset_partial_state=True)
            folder = tmp_path_factory.mktemp("finished")
            recipe = TINY_RECIPE | {
                "dataset": str(scenes),
                "clip": str(clip_folder),
                "max_steps": 1,
                "batch_size": 2,
                "save_every": 0,
                "num_eval_images": 2,
                "warmup_steps": 0,
            }
            (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("ldvc.training.run.save_curves", lambda records, path: None)
                run_recipe(read_recipe([str(folder / "r.yaml"), "--output_dir", str(folder / "run"), *overrides]))
            made[overrides] = folder / "run"
        return made[overrides]

    return get


def refuse(caplog, arguments):
    import logging

    logging.getLogger("ldvc.train").propagate = True
    with caplog.at_level("ERROR"):
        assert main(arguments) == 2
    return caplog.text


@pytest.mark.slow
def test_self_training_refuses_a_start_with_another_split(train_arguments, finished, tmp_path, caplog):
    start = finished("--unseen_classes", "[cat]")
    text = refuse(caplog, [*train_arguments, "--setting", "transductive", "--start_from", str(start)])
    assert "held out ['cat'], the recipe holds out ['sofa']" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_self_training_refuses_a_start_that_was_not_inductive(train_arguments, finished, caplog):
    start = finished("--setting", "fully_supervised")
    text = refuse(caplog, [*train_arguments, "--setting", "transductive", "--start_from", str(start)])
    assert "was trained fully_supervised, self-training needs inductive" in text


@pytest.mark.slow
def test_self_training_refuses_a_start_with_other_classes(train_arguments, finished, caplog):
    options = ["--class_names", "[cat, dog, sofa, grass, sky]", "--setting", "transductive"]
    text = refuse(caplog, [*train_arguments, *options, "--start_from", str(finished())])
    assert "was trained on the 4 classes" in text
    assert "the recipe has the 5 classes" in text


@pytest.mark.slow
def test_self_training_refuses_a_start_without_audit(train_arguments, finished, tmp_path, caplog):
    shutil.copytree(finished(), tmp_path / "start")
    (tmp_path / "start" / "protocol.json").unlink()
    options = ["--setting", "transductive", "--start_from", str(tmp_path / "start")]
    assert "has no protocol.json, so that nobody knows which masks" in refuse(caplog, [*train_arguments, *options])


@pytest.mark.slow
def test_an_inductive_run_refuses_a_start_that_saw_its_unseen_masks(train_arguments, finished, caplog):
    text = refuse(caplog, [*train_arguments, "--start_from", str(finished("--unseen_classes", "[cat]"))])
    assert "holds out the masks of ['sofa'], but they trained `start_from`" in text


@pytest.mark.slow
def test_an_inductive_run_refuses_a_start_that_knew_its_unseen_names(train_arguments, finished, tmp_path, caplog):
    start = finished("--setting", "transductive")
    assert "must not know the names ['sofa'], but `start_from`" in refuse(
        caplog, [*train_arguments, "--start_from", str(start)]
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_number_of_further_runs_audits_a_start_without_audit(train_arguments, finished, tmp_path):
    shutil.copytree(finished(), tmp_path / "start")
    (tmp_path / "start" / "protocol.json").unlink()
    run(train_arguments, "--start_from", str(tmp_path / "start"), "--max_steps", "1")
    options = ["--start_from", str(tmp_path / "run"), "--max_steps", "1", "--output_dir", str(tmp_path / "again")]
    run(train_arguments, *options)
    assert not protocol_of(tmp_path / "again")["start"]["is_audited"]


def test_a_start_of_another_architecture_is_refused(train_arguments, finished, caplog):
    text = refuse(caplog, [*train_arguments, "--start_from", str(finished()), "--num_vision_prompts", "3"])
    assert "has num_vision_prompts=2, the recipe says 3" in text


def test_a_start_that_does_not_exist_is_named(train_arguments, caplog):
    text = refuse(caplog, [*train_arguments, "--start_from", "nowhere/at/all"])
    assert "no LDVC checkpoint can be read from 'nowhere/at/all'" in text


@pytest.mark.slow
@pytest.mark.parametrize("saved_as", ["checkpoint", "adapter"])
def test_own_data_goes_on_from_a_checkpoint_or_an_adapter(train_arguments, finished, tmp_path, saved_as):
    start = finished(*(["--save_adapter_only", "true"] if saved_as == "adapter" else []))
    options = ["--start_from", str(start), "--setting", "fully_supervised", "--max_steps", "1"]
    frozen = ["--learning_rate", "0", "--min_learning_rate", "0", "--decoder_dropout", "0.3", "--crop_size", "24"]
    run(train_arguments, *options, *frozen)
    before, _ = load_checkpoint(str(start))
    after, processor = load_checkpoint(str(tmp_path / "run"))
    assert all(torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())
    assert after.config.decoder_dropout == 0.3
    assert processor.image_processor.size["height"] == 24
    start_entry = protocol_of(tmp_path / "run")["start"]
    assert start_entry["is_audited"]
    assert start_entry["names_trained_with_masks"] == ["cat", "dog", "grass"]


@pytest.mark.slow
def test_a_start_without_audit_is_said_to_be_so(train_arguments, finished, tmp_path, scenes):
    shutil.copytree(finished(), tmp_path / "start")
    (tmp_path / "start" / "protocol.json").unlink()
    run(train_arguments, "--start_from", str(tmp_path / "start"), "--max_steps", "1")
    start = protocol_of(tmp_path / "run")["start"]
    assert not start["is_audited"]
    assert start["names_trained_with_masks"] == ["cat", "dog", "grass"]  # the configuration's word


@pytest.mark.parametrize(("steps", "is_half"), [("1", True), ("5", False)])
def test_self_training_from_more_or_less_than_half_a_schedule_is_said_to_be_so(
    train_arguments, finished, caplog, steps, is_half
):
    arguments = [*train_arguments, "--setting", "transductive", "--start_from", str(finished()), "--max_steps", steps]
    arguments += ["--batch_size", "2"]
    describe_start(read_recipe(arguments), VOCABULARY)
    assert ("do not compare with published ones" in caplog.text) != is_half


def test_a_prompt_is_known_whatever_token_pads_it():
    audit = ProtocolAudit(VOCABULARY, "inductive", {(7, 1, 2, 9): "cat", (7, 1, 3, 9): "dog"})
    assert audit._name([7, 1, 3, 9, 0, 0]) == "dog"
    assert audit._name([7, 1, 2, 9, 9]) == "cat"
    with pytest.raises(RuntimeError, match="no class of the vocabulary"):
        audit._name([7, 1, 9, 0])


# ---- recipes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--pseudo_threshold", "1.5"], "`pseudo_threshold` is 1.5; use a probability"),
        (["--pseudo_region", "sky"], "`pseudo_region` is 'sky'; use one of unseen_pixels"),
        (["--schedule_steps", "3"], "`schedule_steps` is 3, less than `max_steps` 6"),
        (
            ["--setting", "transductive", "--unseen_classes", "[]"],
            "`unseen_classes` is empty, so that the transductive",
        ),
        (["--unseen_classes", "[cat, dog, sofa, grass]"], "`unseen_classes` names every class"),
        (["--setting", "cross_dataset"], "`setting` is 'cross_dataset'; use one of inductive, transductive"),
    ],
)
def test_recipes_that_fit_no_setting_are_refused(train_arguments, overrides, message, caplog):
    assert message in refuse(caplog, [*train_arguments, *overrides])


def write(path, **values):
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return [str(path)]


def test_a_recipe_builds_on_another(tmp_path):
    write(tmp_path / "one.yaml", vocabulary="voc2012", max_steps=7, seed=3, num_vision_prompts=5)
    write(tmp_path / "sub" / "two.yaml", base="../one.yaml", max_steps=8)
    recipe = read_recipe(
        write(tmp_path / "sub" / "three.yaml", base="two.yaml", class_names=["a"], setting="fully_supervised")
    )
    assert (recipe.max_steps, recipe.seed, recipe.model) == (8, 3, {"num_vision_prompts": 5})
    assert (recipe.vocabulary, recipe.class_names) == (None, ["a"])
    assert read_recipe([str(tmp_path / "sub" / "two.yaml"), "--seed", "4"]).seed == 4


def test_recipes_in_a_circle_are_refused(tmp_path):
    write(tmp_path / "a.yaml", base="b.yaml")
    with pytest.raises(RecipeError, match=r"in a circle: .*b\.yaml -> .*a\.yaml -> .*b\.yaml; take one `base` out"):
        read_recipe(write(tmp_path / "b.yaml", base="a.yaml"))


@pytest.mark.parametrize("base", ["none.yaml", 3])
def test_a_base_that_is_no_file_is_refused(tmp_path, base):
    with pytest.raises(RecipeError, match=rf"a\.yaml builds on `base` {base!r}, which is no file in"):
        read_recipe(write(tmp_path / "a.yaml", base=base))


def test_every_benchmark_has_a_recipe_for_every_setting():
    names = {f"{d}_{s}" for d in ("picturebook", "voc2012", "coco_stuff", "pascal_context")
             for s in ("inductive", "transductive", "supervised")}  # fmt: skip
    recipes = {name: read_recipe([str(ROOT / "recipes" / f"{name}.yaml")]) for name in names}
    for name in names:
        assert recipes[name].vocabulary == name.rsplit("_", 1)[0]
        assert recipes[name].setting.endswith(name.rsplit("_", 1)[1])
        assert "published" in (ROOT / "recipes" / f"{name}.yaml").read_text().lower()
    assert len({recipe.output_dir for recipe in recipes.values()}) == len(recipes)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["inductive", "transductive", "supervised"])
def test_the_recipes_of_every_setting_run(setting, train_arguments, tmp_path):
    tiny = yaml.safe_load(Path(train_arguments[0]).read_text()) | {"max_steps": 2}
    overrides = [word for key, value in tiny.items() for word in (f"--{key}", json.dumps(value))]
    result = run([str(ROOT / "recipes" / f"voc2012_{setting}.yaml")], *overrides, "--reduce_labels", "false")
    assert result["recipe"]["setting"].endswith(setting)
    assert np.isfinite(result["scores"]["0.0"]["miou_unseen"])  # the split is reported in every setting


# ---- which checkpoint may be scored as what


def evaluate(checkpoint, scenes, *options, names=VOCABULARY.class_names, unseen=("sofa",), num_images="2"):
    arguments = [str(checkpoint), "--dataset", str(scenes), "--short_side", "32", "--window", "0", *options]
    arguments += ["--class_names", ", ".join(names), "--unseen_classes", ", ".join(unseen), "--num_images", num_images]
    return commands.evaluate(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    ["inductive", *(pytest.param(name, marks=pytest.mark.slow) for name in ("transductive", "fully_supervised"))],
)
def test_a_checkpoint_is_scored_under_the_setting_it_was_trained_in(finished, scenes, tmp_path, setting):
    output = tmp_path / "r.json"
    assert evaluate(finished("--setting", setting), scenes, "--setting", setting, "--output", str(output)) == 0
    result = json.loads(output.read_text())
    assert result["audit"]["status"] == "matches"
    assert result["audit"]["findings"] == []
    assert result["setting"] == setting
    assert set(result["scores"]) == {"0.0", "0.1"}


def trained_otherwise(setting, message):
    return pytest.param(("--setting", setting), {}, message, marks=pytest.mark.slow)  # trains a checkpoint for itself


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "classes", "message"),
    [
        trained_otherwise("fully_supervised", "masks of the unseen classes ['sofa'] trained it"),
        trained_otherwise("transductive", "it was trained transductive, not inductive"),
        ((), {"unseen": ("dog",)}, "without masks of ['sofa'], the split of 'own' holds out ['dog']"),
        ((), {"names": (*VOCABULARY.class_names, "sky")}, "it was trained on 4 classes, 'own' has 5"),
        ((), {"names": ("dog", "cat", "sofa", "grass")}, "class 0 was 'cat' in training and is 'dog' in 'own'"),
    ],
)
def test_a_checkpoint_is_refused_under_a_protocol_its_audit_contradicts(
    finished, scenes, capsys, tmp_path, trained, classes, message
):
    output = tmp_path / "r.json"
    assert evaluate(finished(*trained), scenes, "--output", str(output), **classes) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
    options = ["--allow_protocol_mismatch", "--output", str(output)]
    assert evaluate(finished(*trained), scenes, *options, **classes) == 0
    audit = json.loads(output.read_text())["audit"]
    assert audit["status"] == "mismatch"
    assert any(message in finding for finding in audit["findings"])
    assert "MISMATCH: " in capsys.readouterr().out


def test_a_checkpoint_without_audit_is_scored_and_marked(finished, scenes, tmp_path, capsys):
    shutil.copytree(finished(), tmp_path / "copy")
    (tmp_path / "copy" / "protocol.json").unlink()
    assert evaluate(tmp_path / "copy", scenes, "--output", str(tmp_path / "r.json")) == 0
    assert json.loads((tmp_path / "r.json").read_text())["audit"]["status"] == "unaudited"
    assert "UNAUDITED: " in capsys.readouterr().out


def test_a_damaged_audit_is_refused(finished, scenes, tmp_path, capsys):
    shutil.copytree(finished(), tmp_path / "copy")
    path = tmp_path / "copy" / "protocol.json"
    protocol = json.loads(path.read_text())
    path.write_text(path.read_text()[:50])
    assert evaluate(tmp_path / "copy", scenes) == 2
    assert "protocol.json is damaged" in capsys.readouterr().err
    path.write_text(json.dumps({key: value for key, value in protocol.items() if key != "keeps_setting"}))
    assert evaluate(tmp_path / "copy", scenes) == 2
    assert "protocol.json lacks keeps_setting; copy it again" in capsys.readouterr().err


def test_the_audit_of_another_checkpoint_is_noticed(finished):
    protocol = read_protocol(str(finished()))
    assert protocol_mismatches(protocol, "inductive", VOCABULARY, ["cat", "dog", "grass"]) == []
    (finding,) = protocol_mismatches(protocol, "inductive", VOCABULARY, ["cat", "sofa"])
    assert "of another checkpoint" in finding
    other = Vocabulary("other", ("bus", "cat"))
    (finding,) = protocol_mismatches(protocol | {"keeps_setting": False}, "cross_dataset", other)
    assert "broke the inductive setting" in finding


def test_only_a_checkpoint_of_another_data_set_is_scored_across(finished):
    protocol = read_protocol(str(finished()))
    (finding,) = protocol_mismatches(protocol, "cross_dataset", VOCABULARY)
    assert "which is no other data set" in finding
    other = Vocabulary("other", ("bus", "cat"))
    assert protocol_mismatches(protocol, "cross_dataset", other) == []
    everything = protocol | {"setting": "fully_supervised", "unseen_classes": []}
    (finding,) = protocol_mismatches(everything, "cross_dataset", other)
    assert "masks of all its classes trained it" in finding


def test_a_checkpoint_without_an_audit_that_names_unseen_classes_among_its_own_is_refused(
    finished, scenes, tmp_path, capsys
):
    folder = tmp_path / "copy"
    shutil.copytree(finished(), folder)
    (folder / "protocol.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"seen_classes": ["cat", "dog", "sofa", "grass"]}))
    assert evaluate(folder, scenes) == 2
    assert "masks of the unseen classes ['sofa'] trained it" in capsys.readouterr().err
    assert evaluate(folder, scenes, "--allow_protocol_mismatch", "--output", str(folder / "scores.json")) == 0
    assert json.loads((folder / "scores.json").read_text())["audit"]["status"] == "mismatch"


def test_masks_of_the_start_count_as_seen(finished):
    protocol = read_protocol(str(finished())) | {"start": {"names_trained_with_masks": ["sofa", "cat"]}}
    assert names_trained_with_masks(protocol) == ["cat", "dog", "grass", "sofa"]
    assert any("['sofa'] trained it" in f for f in protocol_mismatches(protocol, "inductive", VOCABULARY))


def test_names_that_the_start_knew_count_too(finished):
    protocol = read_protocol(str(finished())) | {"start": {"names_given_to_the_loss": ["sofa"]}}
    assert names_given_to_the_loss(protocol) == ["cat", "dog", "grass", "sofa"]
    (finding,) = protocol_mismatches(protocol, "inductive", VOCABULARY)
    assert "the loss knew the names of the unseen classes ['sofa']" in finding


@pytest.mark.slow
def test_weights_that_were_put_in_the_place_of_others_are_noticed(finished, scenes, tmp_path, capsys):
    shutil.copytree(finished(), tmp_path / "copy")
    shutil.copy(finished("--setting", "fully_supervised") / "model.safetensors", tmp_path / "copy")
    assert evaluate(tmp_path / "copy", scenes) == 2
    assert "its weights are not those that the audit was written for" in capsys.readouterr().err


def test_a_baked_vocabulary_leaves_the_fingerprint_of_the_trained_weights(tiny_model, tiny_processor):
    fingerprint = checkpoint_fingerprints(tiny_model)
    tiny_model.set_vocabulary(["cat", "dog"], tiny_processor, bake=True)
    baked = checkpoint_fingerprints(tiny_model)
    # what made its class embeddings is gone, so that nobody can say whether they are those of the audit
    assert [field for field in fingerprint if baked[field] != fingerprint[field]] == [
        "text_prompts_sha256",
        "clip_sha256",
    ]
    with torch.no_grad():
        next(tiny_model.decoder.parameters()).add_(1)
    assert checkpoint_fingerprints(tiny_model)["weights_sha256"] != fingerprint["weights_sha256"]


@pytest.mark.slow
def test_a_run_in_bf16_writes_the_scores_that_its_checkpoint_gets(train_arguments, scenes, tmp_path, monkeypatch):
    has_autocast = []

    def score(model, *arguments, **options):
        has_autocast.append("forward" in vars(model))  # which Accelerate puts before the class's own
        return evaluate_module.evaluate_model(model, *arguments, **options)

    monkeypatch.setattr("ldvc.training.run.evaluate_model", score)
    result = run(train_arguments, "--mixed_precision", "bf16", "--eval_split", "validation", "--eval_every", "3")
    assert has_autocast == [True, False]
    assert evaluate(tmp_path / "run", scenes, "--output", str(tmp_path / "r.json")) == 0
    evaluated = json.loads((tmp_path / "r.json").read_text())
    assert evaluated["scores"]["0.0"]["pixel_accuracy"] == result["scores"]["0.0"]["pixel_accuracy"]
    assert evaluated["scores"]["0.0"]["intervals"] == result["scores"]["0.0"]["intervals"]
    assert evaluated["dataset_fingerprint"] == result["dataset_fingerprint"]


@pytest.mark.slow
def test_an_evaluation_names_the_seed_of_the_training(finished, scenes, tmp_path):
    assert evaluate(finished("--seed", "7"), scenes, "--output", str(tmp_path / "r.json")) == 0
    assert json.loads((tmp_path / "r.json").read_text())["seed"] == 7


def test_a_log_cut_off_by_a_kill_does_not_stop_the_evaluation(finished, scenes, tmp_path):
    shutil.copytree(finished(), tmp_path / "copy")
    with (tmp_path / "copy" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')
    assert evaluate(tmp_path / "copy", scenes) == 0


def test_a_start_that_nobody_audited_leaves_the_checkpoint_unaudited(finished, scenes, tmp_path):
    shutil.copytree(finished(), tmp_path / "copy")
    path = tmp_path / "copy" / "protocol.json"
    start = {"checkpoint": "somewhere", "is_audited": False, "names_trained_with_masks": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"start": start}))
    assert evaluate(tmp_path / "copy", scenes, "--output", str(tmp_path / "r.json")) == 0
    audit = json.loads((tmp_path / "r.json").read_text())["audit"]
    assert audit["status"] == "unaudited"
    assert "'somewhere'" in audit["findings"][0]


@pytest.mark.slow
def test_scores_on_the_training_images_are_marked(finished, scenes, tmp_path, capsys):
    output = tmp_path / "r.json"
    # these scenes are the same in both splits
    assert evaluate(finished(), scenes, "--output", str(output), num_images="10") == 0
    assert json.loads(output.read_text())["scored_on_training_images"]
    assert "those of the training split" in capsys.readouterr().out
    assert evaluate(finished(), scenes, "--output", str(output), num_images="3") == 0
    assert not json.loads(output.read_text())["scored_on_training_images"]


def test_names_are_shared_whatever_their_spelling():
    assert shared_names(["pottedplant", "tvmonitor", "sofa"], ["potted plant", "tv", "Sofa"]) == [
        "pottedplant",
        "sofa",
    ]


def test_another_data_set_is_scored_without_split_or_offset(finished, scenes, tmp_path, capsys):
    output = tmp_path / "r.json"
    options = ["--setting", "cross_dataset", "--output", str(output)]
    assert evaluate(finished(), scenes, *options, names=("sky", "Dog", "sofa", "cat"), unseen=("sky",)) == 0
    result = json.loads(output.read_text())
    assert list(result["scores"]) == ["0.0"]
    assert result["names"] == {"in_training": ["Dog", "cat"], "new": ["sky", "sofa"]}
    per_class = result["scores"]["0.0"]["per_class_iou"]
    assert result["scores"]["0.0"]["miou_seen"] == pytest.approx(np.mean([per_class[1], per_class[3]]))
    printed = capsys.readouterr().out
    assert "| mIoU, names in training | mIoU, new names |" in printed
    assert "new names: sky, sofa" in printed
    assert "compared by spelling: a synonym of a trained name" in printed


# ---- failure signatures


def history_of(*pairs):
    return [{"step": 10 * (i + 1), "miou_seen": seen, "miou_unseen": unseen} for i, (seen, unseen) in enumerate(pairs)]


@pytest.mark.slow
def test_log_and_results_name_the_signatures(train_arguments, tmp_path):
    result = run(train_arguments, "--eval_every", "2")  # six steps match nothing
    assert [signature["name"] for signature in result["signatures"]].count("both_low") == (
        max(result["scores"]["0.0"][name] for name in ("miou_seen", "miou_unseen")) < LOW_MIOU
    )
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scored = [record for record in records if "miou_unseen" in record]
    assert [record["step"] for record in scored] == [2, 4, 6]
    assert scored[-1].get("signatures", []) == [signature["message"] for signature in result["signatures"]]


@pytest.mark.slow
def test_evaluation_takes_floor_and_history_into_account(finished, scenes, clip_folder, tmp_path, capsys):
    floor, output = tmp_path / "floor.json", tmp_path / "r.json"
    assert evaluate(clip_folder, scenes, "--training_free", "--output", str(floor)) == 0
    written = json.loads(floor.read_text())
    assert written["audit"]["status"] == "training_free"
    assert list(written["scores"]) == ["0.0"]
    plain = ["--training_free", "--method", "tokens", "--prompt_templates", "ensemble15"]
    assert evaluate(clip_folder, scenes, *plain, "--output", str(output)) == 0
    assert json.loads(output.read_text())["scores"] != written["scores"]
    other = written | {"protocol": written["protocol"] | {"seen_share": 0.5}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert evaluate(finished(), scenes, "--floor", str(tmp_path / "other.json")) == 2
    assert "was scored with {'seen_share': 0.5, " in capsys.readouterr().err
    written["scores"]["0.0"] |= {"miou_seen": 1.0, "miou_unseen": 1.0}
    floor.write_text(json.dumps(written))
    shutil.copytree(finished(), tmp_path / "copy")
    history = history_of((0.4, 0.4), (0.5, 0.3))
    (tmp_path / "copy" / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    assert evaluate(tmp_path / "copy", scenes, "--floor", str(floor), "--output", str(output)) == 0
    names = [signature["name"] for signature in json.loads(output.read_text())["signatures"]]
    assert {"both_low", "overfitting"} <= set(names)
    assert "overfitting: from step 10 to 20" in capsys.readouterr().out


WHOLE_SPLIT = {"seen_share": 1.0, "unseen_classes": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"scores": {}}, "is no result of this command"),
        (
            {"scores": {"0.0": {}}, "vocabulary": "own", "dataset_fingerprint": "00", "protocol": WHOLE_SPLIT},
            "was scored on 'own', data 00, this run on 'own'",
        ),
    ],
)
def test_a_floor_that_does_not_belong_is_refused(finished, scenes, tmp_path, capsys, content, message):
    (tmp_path / "floor.json").write_text(json.dumps(content))
    assert evaluate(finished(), scenes, "--floor", str(tmp_path / "floor.json")) == 2
    assert message in capsys.readouterr().err
