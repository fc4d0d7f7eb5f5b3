"""The trainer: steps, resuming, processes, protocol, outputs, refusals."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel

from ldvc.commands.experiments import publish
from ldvc.commands.training import train as main
from ldvc.data.samples import dataset_fingerprint, load_split
from ldvc.data.vocabularies import VOCABULARIES, Vocabulary
from ldvc.masks.drawing import save_curves
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.scoring.evaluate import load_checkpoint
from ldvc.training.optimisation import learning_rate_at
from ldvc.training.recipe import Recipe, RecipeError, read_recipe
from ldvc.training.run import load_data, run_recipe
from ldvc.training.state import Log, Progress, find_state, set_aside_newer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["cat", "dog", "sofa", "grass"]  # of the scenes


def run(train_arguments, *overrides):
    return run_recipe(read_recipe([*train_arguments, *overrides]))


def log_of(folder):
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def test_a_run_writes_everything_that_describes_it(train_arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("ldvc.training.run.save_curves", save_curves)  # which the fixture takes out
    result = run(train_arguments, "--num_pictures", "2")
    folder = tmp_path / "run"
    for name in ("model.safetensors", "config.json", "recipe.yaml", "protocol.json", "results.json", "log.jsonl"):
        assert (folder / name).is_file(), name
    for name in ("curves.png", "predictions.png"):
        assert min(Image.open(folder / name).size) > 50
    assert sorted(path.name for path in (folder / "states").iterdir()) == ["step_0000004", "step_0000006"]
    written = json.loads((folder / "results.json").read_text())
    assert written["scores"]["0.0"]["pixel_accuracy"] == result["scores"]["0.0"]["pixel_accuracy"]
    assert written["num_images"] == 10
    assert written["seed"] == 0
    assert written["versions"]["torch"] == torch.__version__
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["max_steps"] == 6
    assert [record["step"] for record in log_of(folder)] == [1, 2, 3, 4, 5, 6, 6]


def test_the_checkpoint_loads_with_seen_classes_and_default_vocabulary(finished_run):
    model = LDVCForSemanticSegmentation.from_pretrained(finished_run).eval()
    processor = LDVCProcessor.from_pretrained(finished_run)
    assert model.config.seen_classes == ["cat", "dog", "grass"]
    assert list(model.config.id2label.values()) == NAMES
    inputs = processor(images=Image.new("RGB", (50, 30), "red"), return_tensors="pt")
    assert model(**inputs).logits.shape[1] == len(NAMES)


def test_training_changes_no_clip_weight_and_every_own_weight(train_arguments, clip_folder, tmp_path):
    run(train_arguments, "--decoder_dropout", "0", "--learning_rate", "0.01")
    trained = load_file(tmp_path / "run" / "model.safetensors")
    clip = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).state_dict()
    assert clip
    assert all(torch.equal(trained[f"clip.{name}"], weight) for name, weight in clip.items())
    torch.manual_seed(0)
    start = LDVCForSemanticSegmentation.from_clip_pretrained(
        str(clip_folder), **{**read_recipe(train_arguments).model, "decoder_dropout": 0.0}
    ).state_dict()
    own = [name for name in trained if not name.startswith("clip.")]
    unchanged = [name for name in own if torch.equal(trained[name], start[name])]
    assert own
    assert not unchanged


def test_no_pixel_of_an_unseen_class_reaches_an_inductive_loss(finished_run):
    protocol = json.loads((finished_run / "protocol.json").read_text())
    assert protocol["classes_given_to_the_loss"] == ["cat", "dog", "grass"]
    assert protocol["keeps_setting"]
    assert protocol["unseen_mask_pixels_in_the_loss"] == 0
    rows = {row["name"]: row for row in protocol["classes"]}
    assert rows["sofa"]["positive_pixels"] == 0
    assert rows["sofa"]["negative_pixels"] > 0
    for name in ("cat", "dog", "grass"):
        assert rows[name]["positive_pixels"] > 0
        assert rows[name]["negative_pixels"] == 0
        assert rows[name]["pixels_told_as_another_class"] == 0
    counted = protocol["unlabelled_pixels"] + sum(
        row["positive_pixels"] + row["negative_pixels"] for row in protocol["classes"]
    )
    assert counted == protocol["image_draws"] * 32 * 32 == 24 * 32 * 32


@pytest.mark.slow
def test_the_audit_stops_a_run_whose_data_breaks_the_protocol(train_arguments, tmp_path, monkeypatch):
    from ldvc.data import samples

    everything = samples.training_targets

    def leak(label_map, seen_class_ids, num_classes, ignore_index=255):
        targets = everything(label_map, seen_class_ids, num_classes, ignore_index)
        return np.where(label_map == NAMES.index("sofa"), 0, targets)  # told as "cat"

    monkeypatch.setattr(samples, "training_targets", leak)
    with pytest.raises(RuntimeError, match=r"unseen classes reached the loss of the inductive run.*protocol\.json"):
        run(train_arguments)
    protocol = json.loads((tmp_path / "run" / "protocol.json").read_text())
    assert protocol["unseen_mask_pixels_in_the_loss"] > 0
    assert not protocol["keeps_setting"]


@pytest.mark.slow
def test_classes_that_a_share_leaves_out_train_as_little_as_unseen_ones(train_arguments, tmp_path, monkeypatch):
    toys = Vocabulary("toys", tuple(NAMES), ("sofa",), joining_order=("grass", "sofa", "cat", "dog"))
    monkeypatch.setitem(VOCABULARIES, "toys", toys)
    result = run(train_arguments, "--vocabulary", "toys", "--unseen_classes", "null", "--seen_share", "0.5")
    protocol = json.loads((tmp_path / "run" / "protocol.json").read_text())
    assert protocol["keeps_setting"]
    assert protocol["classes_given_to_the_loss"] == ["cat", "grass"]
    assert [row["name"] for row in protocol["classes"] if row["positive_pixels"]] == ["cat", "grass"]
    scores = result["scores"]["0.0"]
    ious = dict(zip(NAMES, scores["per_class_iou"], strict=True))
    assert (scores["miou_unseen"], scores["miou_left_out"]) == (ious["sofa"], ious["dog"])
    assert scores["miou_seen"] == pytest.approx((ious["cat"] + ious["grass"]) / 2)


def test_a_share_where_all_masks_train_is_refused(train_arguments):
    told = [*train_arguments, "--setting", "fully_supervised", "--seen_share", "0.5"]
    with pytest.raises(RecipeError, match=r"`seen_share` is 0\.5 and `setting` fully_supervised, in which all masks"):
        read_recipe(told).get_vocabulary()


@pytest.mark.slow
def test_a_fully_supervised_run_trains_all_classes(train_arguments, tmp_path):
    run(train_arguments, "--setting", "fully_supervised", "--max_steps", "2")
    protocol = json.loads((tmp_path / "run" / "protocol.json").read_text())
    assert protocol["classes_given_to_the_loss"] == NAMES
    assert all(row["positive_pixels"] > 0 for row in protocol["classes"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(train_arguments, tmp_path, workers):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = ["--num_workers", str(workers), "--gradient_accumulation_steps", "2"]
    run(train_arguments, *options, "--output_dir", str(whole))
    run(train_arguments, *options, "--output_dir", str(resumed), "--max_steps", "6", "--save_every", "3")
    for name in ("step_0000006", "model.safetensors"):  # as if killed after step 3
        path = resumed / "states" / name if name.startswith("step") else resumed / name
        os.rename(path, tmp_path / name)
    (resumed / "states" / "step_0000005.part").mkdir()  # and in the middle of a save
    run(train_arguments, *options, "--output_dir", str(resumed), "--resume_from_checkpoint", "latest")
    first, second = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert log_of(whole) == log_of(resumed)
    assert (whole / "protocol.json").read_text() == (resumed / "protocol.json").read_text()


def test_resuming_takes_the_newest_whole_state_and_refuses_what_is_none(train_arguments, tmp_path):
    recipe = read_recipe([*train_arguments, "--resume_from_checkpoint", "latest"])
    assert find_state(recipe, tmp_path) is None
    for step in (2, 10):
        (tmp_path / "states" / f"step_{step:07d}").mkdir(parents=True)
    (tmp_path / "states" / "step_0000012.part").mkdir()
    assert find_state(recipe, tmp_path).name == "step_0000010"
    recipe = read_recipe([*train_arguments, "--resume_from_checkpoint", str(tmp_path)])
    with pytest.raises(RecipeError, match="is no training state; use 'latest'"):
        find_state(recipe, tmp_path)


def test_time_before_a_stop_counts_as_training_time():
    progress = Progress()
    progress.load_state_dict(Progress(step=3, seconds_before=100.0).state_dict())
    assert progress.step == 3
    assert 100 <= progress.seconds < 200


@pytest.mark.slow
def test_two_processes_train_on_every_draw_and_score_every_image_once(train_arguments, tmp_path):
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *(str(ROOT / "train.py"), *train_arguments, "--num_eval_images", "9", "--decoder_dropout", "0"),
        *("--vision_prompt_dropout", "0"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "run" / "results.json").read_text())
    assert two["num_processes"] == 2
    one = run(
        train_arguments,
        *("--output_dir", str(tmp_path / "one"), "--num_eval_images", "9", "--decoder_dropout", "0"),
        *("--vision_prompt_dropout", "0"),
    )
    assert one["num_processes"] == 1
    assert one["num_images"] == two["num_images"] == 9
    # the same draws and the same global normaliser, so that losses agree to rounding
    losses = [[record["loss"] for record in log_of(tmp_path / name) if "loss" in record] for name in ("run", "one")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    protocols = [json.loads((tmp_path / name / "protocol.json").read_text()) for name in ("run", "one")]
    for protocol in protocols:
        for field in ("weights_sha256", "text_prompts_sha256"):
            protocol.pop(field)  # equal to rounding, too
    assert protocols[0] == protocols[1]
    for score in ("pixel_accuracy", "miou_seen"):
        assert two["scores"]["0.0"][score] == pytest.approx(one["scores"]["0.0"][score], abs=0.01)


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit_with_every_pixel_counted_once(train_arguments, tmp_path):
    def launch(*overrides):
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
            *(str(ROOT / "train.py"), *train_arguments, *overrides),
        ]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    launch("--output_dir", "whole", "--num_eval_images", "2")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "states" / "step_0000006")
    launch("--output_dir", "resumed", "--num_eval_images", "2", "--resume_from_checkpoint", "latest")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    protocols = [json.loads((tmp_path / name / "protocol.json").read_text()) for name in ("whole", "resumed")]
    assert protocols[0] == protocols[1]
    assert protocols[1]["image_draws"] == 24


@pytest.mark.slow
def test_a_run_without_a_state_is_not_trained_over(train_arguments, tmp_path):
    run(train_arguments, "--save_every", "0", "--max_steps", "2")
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(RecipeError, match="holds a run without a state to resume from"):
        run(train_arguments, "--save_every", "0", "--max_steps", "2", "--resume_from_checkpoint", "latest")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "overrides", [["--seed", "5"], ["--unseen_classes", "[cat]"], ["--learning_rate", "0.5"], ["--max_steps", "8"]]
)
def test_a_state_is_not_continued_with_another_recipe(train_arguments, finished_run, overrides):
    with pytest.raises(RecipeError, match=f"was made with {overrides[0][2:]}="):
        run(train_arguments, *overrides, "--resume_from_checkpoint", "latest")


@pytest.mark.slow
def test_a_log_cut_off_by_a_kill_does_not_stop_the_resume(train_arguments, finished_run):
    shutil.rmtree(finished_run / "states" / "step_0000006")
    with (finished_run / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')
    run(train_arguments, "--resume_from_checkpoint", "latest")
    assert [record["step"] for record in log_of(finished_run)] == [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.slow
def test_overwriting_leaves_nothing_of_the_run_before(train_arguments, finished_run):
    result = run(train_arguments, "--max_steps", "1", "--save_adapter_only", "true", "--overwrite_output_dir", "true")
    assert result["recipe"]["max_steps"] == 1
    assert not (finished_run / "model.safetensors").exists()
    assert not (finished_run / "config.json").exists()


def test_going_back_to_an_older_state_sets_the_newer_ones_aside(train_arguments, finished_run, caplog):
    (finished_run / "states" / "step_0000006.set_aside").mkdir()  # of another time
    state = finished_run / "states" / "step_0000004"
    run(train_arguments, "--resume_from_checkpoint", str(state), "--keep_states", "1", "--num_eval_images", "2")
    assert "newer states were set aside: step_0000006.set_aside" in caplog.text
    assert sorted(path.name for path in (finished_run / "states").iterdir()) == [
        "step_0000006",  # of this branch
        "step_0000006.set_aside",
    ]
    assert (finished_run / "states" / "step_0000006.set_aside" / "counts.pt").is_file()


def test_only_states_behind_the_one_taken_are_set_aside(tmp_path):
    for step in (2, 4, 6, 8):
        (tmp_path / "states" / f"step_{step:07d}").mkdir(parents=True)
    assert [path.name for path in set_aside_newer(tmp_path, 4)] == [f"step_000000{n}.set_aside" for n in (6, 8)]
    recipe = replace(Recipe(vocabulary="voc2012"), resume_from_checkpoint="latest")
    assert find_state(recipe, tmp_path).name == "step_0000004"


@pytest.mark.parametrize("num_workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_a_bad_sample_is_one_line_whoever_reads_it(train_arguments, tmp_path, caplog, num_workers, bad_scenes):
    options = ["--dataset", str(bad_scenes), "--num_workers", num_workers, "--num_eval_images", "2"]
    assert main([*train_arguments, *options]) == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert error.startswith("train: Sample 7: label id 9 is outside the 4 classes")
    assert "\n" not in error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def bad_scenes(scenes, tmp_path):
    """Return the scenes with an id in the training split that is no class, at row 7."""
    data = load_split(str(scenes), "train")
    labels = [data[row]["label"] for row in range(10)]
    labels[7] = Image.fromarray(np.full((40, 40), 9, dtype=np.uint8))
    folder = shutil.copytree(scenes, tmp_path / "bad")
    columns = {"image": [data[row]["image"] for row in range(10)], "label": labels}
    Dataset.from_dict(columns, features=data.features).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_a_log_is_json_where_a_mean_does_not_exist(tmp_path):
    log = Log(tmp_path / "log.jsonl", Accelerator(cpu=True), 0, 9)
    log.write({"step": 1, "hiou": float("nan"), "signatures": ["a"], "loss": 2.0})
    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "hiou": None, "signatures": ["a"], "loss": 2.0}


@pytest.mark.slow
def test_scores_on_the_training_split_are_marked(train_arguments, tmp_path, capsys):
    result = run(train_arguments, "--eval_split", "train", "--num_eval_images", "2", "--max_steps", "1")
    assert result["scored_on_training_images"]
    assert "these label maps are those of the training split, or a part of it" in capsys.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["--num_eval_images", "2", "--max_steps", "1", "--output_dir", str(tmp_path / "other")]
    assert not run(train_arguments, *options)["scored_on_training_images"]


@pytest.mark.parametrize(("steps", "is_said"), [("1", True), pytest.param("2", False, marks=pytest.mark.slow)])
def test_a_warm_up_longer_than_the_run_is_said(train_arguments, caplog, steps, is_said):
    run(train_arguments, "--max_steps", steps, "--warmup_steps", "2", "--num_eval_images", "2")
    assert ("`warmup_steps` 2 is more than `max_steps` 1: the run ends before" in caplog.text) == is_said


def test_settings_are_not_chosen_on_the_pages_of_the_scores(train_arguments):
    tuning = [*train_arguments, "--vocabulary", "picturebook_tuning", "--eval_split"]
    with pytest.raises(
        RecipeError, match=r"`eval_split` is 'test' .* 'picturebook_tuning', .* --eval_split validation"
    ):
        read_recipe([*tuning, "test"])
    with pytest.raises(RecipeError, match=r"`eval_split` is 'test\[:50\]' with"):
        read_recipe([*tuning, "test[:50]"])
    with pytest.raises(RecipeError, match=r"`train_split` is 'test' .* --train_split train"):
        read_recipe([*tuning, "validation", "--train_split", "test"])
    assert read_recipe([*tuning, "validation"]).vocabulary == "picturebook_tuning"


def test_a_stream_cut_to_its_first_pictures_is_refused(train_arguments):
    with pytest.raises(RecipeError, match=r"`num_train_images` is 6 and `streaming` is on: .* leave one of the two"):
        read_recipe([*train_arguments, "--streaming", "true", "--num_train_images", "6"])


@pytest.mark.parametrize("kind", ["folder", "below a file"])
def test_a_place_for_results_that_cannot_be_written_is_refused_before_training(
    train_arguments, tmp_path, caplog, kind
):
    (tmp_path / "file").write_text("")
    path = tmp_path if kind == "folder" else tmp_path / "file" / "results.json"
    assert main([*train_arguments, "--results_file", str(path)]) == 2
    assert f"the result cannot be written to {str(path)!r}: " in caplog.text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_helps_against_a_diverged_loss_works(train_arguments, tmp_path, caplog):
    options = ["--num_eval_images", "2", "--max_steps", "3"]
    assert main([*train_arguments, *options, "--learning_rate", "1e30", "--warmup_steps", "0"]) == 2
    message = next(record.getMessage() for record in caplog.records if "start the run anew" in record.getMessage())
    assert "with a lower --learning_rate, with --max_grad_norm 1, or with --mixed_precision no" in message
    AcceleratorState._reset_state(reset_partial_state=True)
    remedy = ["--learning_rate", "1e-4", "--max_grad_norm", "1", "--mixed_precision", "no"]
    assert main([*train_arguments, *options, *remedy, "--overwrite_output_dir", "true"]) == 0


def test_streamed_data_trains(train_arguments, tmp_path):
    run(train_arguments, "--streaming", "true", "--max_steps", "2")
    assert json.loads((tmp_path / "run" / "protocol.json").read_text())["image_draws"] == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["--decoder_query", "class"],
        ["--num_text_prompts", "0"],
        ["--num_vision_prompts", "0", "--text_adapter", "none"],
        ["--gradient_checkpointing", "true"],
        ["--mixed_precision", "bf16"],
    ],
)
def test_every_variant_trains(train_arguments, overrides):
    result = run(train_arguments, "--max_steps", "2", *overrides)
    assert np.isfinite(result["scores"]["0.0"]["pixel_accuracy"])


@pytest.mark.slow
def test_only_the_adapter_is_written_when_asked(train_arguments, tmp_path, clip_folder):
    run(train_arguments, "--save_adapter_only", "true", "--max_steps", "1")
    folder = tmp_path / "run"
    assert not (folder / "model.safetensors").exists()
    model = LDVCForSemanticSegmentation.from_clip_pretrained(str(clip_folder), **read_recipe(train_arguments).model)
    model.load_adapter_weights(folder)
    assert model.config.seen_classes == ["cat", "dog", "grass"]
    evaluated, _ = load_checkpoint(str(folder), training_free=False, image_stats="imagenet")
    assert all(torch.equal(weight, evaluated.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.slow
def test_pushing_to_the_hub_takes_the_audit_along(train_arguments, tmp_path, monkeypatch):
    pushed = []
    for kind in (LDVCForSemanticSegmentation, LDVCProcessor):
        monkeypatch.setattr(kind, "push_to_hub", lambda self, repo: pushed.append((type(self).__name__, repo)))
    monkeypatch.setattr(
        "ldvc.training.run.upload_file", lambda **options: pushed.append((options["path_in_repo"], options["repo_id"]))
    )
    order = []
    monkeypatch.setattr("ldvc.training.run.write_json", lambda data, path: order.append((path.name, len(pushed))))
    run(train_arguments, "--max_steps", "1", "--push_to_hub", "true", "--hub_model_id", "me/mine")
    assert order == [("protocol.json", 0), ("results.json", 0)]  # what is scored is written before anything is pushed
    assert pushed == [(name, "me/mine") for name in ("LDVCForSemanticSegmentation", "LDVCProcessor", "protocol.json")]


@pytest.mark.slow
def test_a_push_that_fails_leaves_a_finished_run_and_says_how_to_push_again(
    train_arguments, tmp_path, monkeypatch, caplog
):
    def offline(self, repository):
        raise ConnectionError("cannot reach the Hub:\noffline")

    monkeypatch.setattr(LDVCForSemanticSegmentation, "push_to_hub", offline)
    options = ["--num_eval_images", "2", "--max_steps", "1", "--push_to_hub", "true", "--hub_model_id", "me/mine"]
    assert main([*train_arguments, *options]) == 2
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text())["num_images"] == 2
    message = next(record.getMessage() for record in caplog.records if "could not be pushed" in record.getMessage())
    assert "(cannot reach the Hub: offline); once the Hub can be reached: " in message
    pushed = []
    hub = SimpleNamespace(
        create_repo=lambda *args, **options: None,
        upload_folder=lambda **options: pushed.append(options["repo_id"]),
    )
    monkeypatch.setattr("ldvc.experiments.publish.HfApi", lambda: hub)
    monkeypatch.chdir(tmp_path)
    program, command, *words = message.split("be reached: ")[1].split()
    assert (program, command) == ("ldvc", "publish")
    assert publish(words) == 0  # the remedy
    assert pushed == ["me/mine"]


def test_the_word_no_is_a_precision_where_yaml_reads_a_truth_value(tmp_path):
    (tmp_path / "r.yaml").write_text("vocabulary: voc2012\nmixed_precision: no\n")
    assert read_recipe([str(tmp_path / "r.yaml")]).mixed_precision == "no"
    assert read_recipe(["--mixed_precision", "no"]).mixed_precision == "no"
    with pytest.raises(RecipeError, match="`mixed_precision` is True; it must be str"):
        read_recipe(["--mixed_precision", "yes"])


def test_every_seed_is_scored_on_the_same_pages():
    recipes = [Recipe(vocabulary="picturebook", seed=seed) for seed in (0, 1)]
    scored, trained = (
        [dataset_fingerprint(load_data(recipe, split, 2, streaming=False)) for recipe in recipes]
        for split in ("test", "train")
    )
    assert scored[0] == scored[1]
    assert trained[0] != trained[1]


def test_the_rate_of_an_inductive_half_follows_the_schedule_of_the_whole():
    whole = Recipe(vocabulary="voc2012", max_steps=100, warmup_steps=10)
    half = Recipe(vocabulary="voc2012", max_steps=50, schedule_steps=100, warmup_steps=10)
    assert [learning_rate_at(step, half) for step in range(50)] == [
        learning_rate_at(step, whole) for step in range(50)
    ]


def test_the_learning_rate_warms_up_and_decays_as_in_mmcv():
    recipe = Recipe(vocabulary="voc2012", max_steps=100, warmup_steps=10, learning_rate=2e-4)
    poly = [(2e-4 - 1e-6) * (1 - step / 100) ** 0.9 + 1e-6 for step in range(100)]
    assert learning_rate_at(0, recipe) == pytest.approx(poly[0] * 1e-6)
    assert learning_rate_at(5, recipe) == pytest.approx(poly[5] * (1 - 0.5 * (1 - 1e-6)))
    assert learning_rate_at(10, recipe) == pytest.approx(poly[10])
    assert learning_rate_at(99, recipe) == pytest.approx(poly[99])


def test_a_resume_that_fails_keeps_the_runs_recipe_and_log(train_arguments, finished_run, caplog):
    state = max((finished_run / "states").iterdir())
    (state / "optimizer.bin").write_bytes(b"cut")
    log = (finished_run / "log.jsonl").read_bytes()
    assert main([*train_arguments, "--resume_from_checkpoint", "latest"]) == 2
    assert "step_0000006 is damaged" in caplog.text
    assert (finished_run / "log.jsonl").read_bytes() == log
    assert (finished_run / "recipe.yaml").is_file()


def test_data_that_cannot_be_read_leaves_no_run_behind(train_arguments, tmp_path, caplog):
    assert main([*train_arguments, "--class_names", "[cat, dog, sofa]", "--max_steps", "1"]) == 2
    assert "label id 3 is outside the 3 classes" in caplog.text
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_run_is_refused_and_kept(train_arguments, finished_run):
    before = (finished_run / "results.json").read_text()
    with pytest.raises(RecipeError, match="already holds a run; choose another"):
        run(train_arguments, "--max_steps", "2")
    assert (finished_run / "results.json").read_text() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--learning_rat", "1"], "no key `learning_rat`; did you mean `learning_rate`?"),
        (["--max_steps", "many"], "`max_steps` is 'many'; it must be int"),
        (["--max_steps", "0"], "`max_steps` is 0; use 1 or more"),
        (["--setting", "magic"], "`setting` is 'magic'; use one of inductive"),
        (["--batch_size", "5", "--gradient_accumulation_steps", "2"], "`batch_size` 5 cannot be shared"),
        (["--unseen_classes", "[zebra]"], "zebra"),
        (["--unseen_classes", "[]"], "`unseen_classes` is empty"),
        (["--crop_size", "4"], "`crop_size` is 4 pixels, smaller than one patch"),
        (["--dataset", "nowhere/at/all"], "nowhere/at/all"),
        (["--label_column", "mask"], "mask"),
        (["--eval_split", "tset"], "tset"),
        (["--clip", "nowhere/clip"], "nowhere/clip"),
        (["--class_names", "[cat, dog]"], "sofa"),
        (["--class_names", "[cat, dog, sofa]"], "3"),
        (["--decoder_attention", "none-such"], "none-such"),
        (["max_steps", "3"], "'max_steps' stands where a --key was expected"),
        (["--push_to_hub", "true"], "`push_to_hub` needs `hub_model_id`"),
    ],
)
def test_bad_recipes_end_with_one_line_that_names_the_value(train_arguments, overrides, message, caplog):
    import logging

    logging.getLogger("ldvc.train").propagate = True
    with caplog.at_level("ERROR"):
        assert main([*train_arguments, *overrides]) == 2
    assert message in caplog.text


def test_an_altered_clip_is_refused_before_training(train_arguments, clip_folder, tmp_path, caplog):
    altered = tmp_path / "clip"
    shutil.copytree(clip_folder, altered)
    (altered / "fingerprint.json").write_text('{"sha256": "0123", "file": "model.safetensors"}')
    with caplog.at_level("ERROR"):
        assert main([*train_arguments, "--clip", str(altered)]) == 2
    assert "0123" in caplog.text


def test_a_missing_recipe_is_named():
    with pytest.raises(RecipeError, match=r"there is no recipe 'recipes/none\.yaml'"):
        read_recipe(["recipes/none.yaml"])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_in_the_repository_is_valid(path):
    if path.stem == "own_data":  # the one whose classes are the user's
        with pytest.raises(RecipeError, match="give either `vocabulary` or `class_names`"):
            read_recipe([str(path)])
        assert read_recipe([str(path), "--class_names", "[cat]"]).get_vocabulary().class_names == ("cat",)
    else:
        assert read_recipe([str(path)]).get_vocabulary().unseen_names


def test_the_recipe_that_a_run_writes_can_be_given_back(tmp_path):
    recipe = read_recipe(["--num_regions", "4", "--learning_rate", "1e-3"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(asdict(recipe)))
    assert read_recipe([str(tmp_path / "recipe.yaml")]) == recipe
    assert read_recipe([str(tmp_path / "recipe.yaml"), "--num_regions", "8"]).model["num_regions"] == 8
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(asdict(recipe) | {"num_regions": 8}))
    with pytest.raises(RecipeError, match="sets 'num_regions' under `model` and beside it"):
        read_recipe([str(tmp_path / "recipe.yaml")])


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_state(train_arguments, tmp_path, monkeypatch):
    from ldvc.training import run as training_run

    healthy, calls = training_run.segmentation_loss, []

    def break_down(*args, **kwargs):
        calls.append(1)
        loss, terms = healthy(*args, **kwargs)
        return (loss * float("nan"), terms) if len(calls) == 4 else (loss, terms)

    monkeypatch.setattr(training_run, "segmentation_loss", break_down)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 4"):
        run(train_arguments)
    assert [path.name for path in (tmp_path / "run" / "states").iterdir()] == ["step_0000002"]
