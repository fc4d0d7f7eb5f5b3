"""One process and several: the same numbers; launch configurations that Accelerate reads."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from safetensors.torch import load_file

from ldvc.commands import scoring as commands
from ldvc.model.loss_ldvc import count_masks
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.processes import check_joined, process_state
from ldvc.training.recipe import read_recipe
from ldvc.training.run import run_recipe


ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "recipes" / "accelerate"
TWO_PROCESSES = CONFIGS / "two_cpu_processes.yaml"
SIZE = ("--short_side", "32", "--window", "0")
NAMES = "[cat, dog, sofa, grass]"
# Accelerate leaves FSDP out on the CPU without a word, though it works there; this says what a GPU would have it say.
FSDP_ON_CPU = """
import sys
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

set_up = AcceleratorState.__init__

def set_up_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    set_up(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = self.distributed_type

AcceleratorState.__init__ = set_up_fsdp
from ldvc.commands.training import train
from ldvc.training import run as training_run
from torch.distributed.fsdp import FSDPModule

prepare_step = training_run.prepare_step

def prepare_and_look(run, *args):
    step = prepare_step(run, *args)
    assert isinstance(run.model, FSDPModule)
    sys.stdout.write("in shards\\n")
    return step

training_run.prepare_step = prepare_and_look
sys.exit(train())
"""


def launch(folder, *command, config=TWO_PROCESSES):
    """Run a script under `accelerate launch` with a configuration of the repository; its standard output."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)),
        *("--num_processes", "2", "--main_process_port", "0", *map(str, command)),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path):
    """Folder of a tiny checkpoint that names what trained it."""
    tiny_model.config.seen_classes = ["cat", "dog", "grass"]
    tiny_model.set_vocabulary(["cat", "dog", "sofa", "grass"], tiny_processor)
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    tiny_processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


# ---- the same numbers


def test_the_normaliser_of_the_loss_counts_the_masks_of_all_processes(monkeypatch):
    """Gradients are averaged over processes, so that what normalises the loss is too."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda number: number.add_(4))  # of the other process
    labels = torch.tensor([[[0, 1]], [[1, 255]]])
    assert count_masks(labels, num_classes=3) == (3 + 4) / 2


def test_a_step_with_fewer_masks_than_processes_weighs_what_it_weighs_in_one(monkeypatch):
    """The sum over processes has a least value, not each process's part: else the loss halves with two of them."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda number: number.add_(0))
    assert count_masks(torch.tensor([[[1, 255]]]), num_classes=3) == 1 / 4
    assert count_masks(torch.tensor([[[255, 255]]]), num_classes=3) == 1 / 4


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["1", "2"])
def test_two_processes_train_as_one_where_a_step_has_fewer_masks_than_processes(train_arguments, tmp_path, parts):
    data = tmp_path / "data"
    for kind in ("images", "masks"):
        (data / "train" / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(8):  # one class each, of every other one an unseen
        label = np.full((40, 40), 2 if index % 2 else index % 4, dtype=np.uint8)
        Image.fromarray(label).save(data / "train" / "masks" / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(data / "train/images" / f"{index}.png")
    options = ["--dataset", str(data), "--eval_split", "train", "--unseen_classes", "[sofa, dog]", "--save_every", "0"]
    options += ["--decoder_dropout", "0", "--vision_prompt_dropout", "0", "--max_steps", "4"]
    options += ["--batch_size", str(2 * int(parts)), "--gradient_accumulation_steps", parts]
    launch(tmp_path, ROOT / "train.py", *train_arguments, *options)
    run_recipe(read_recipe([*train_arguments, *options, "--output_dir", str(tmp_path / "one")]))
    losses, weights = [], []
    for name in ("run", "one"):
        records = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses.append([record["loss"] for record in records if "loss" in record])
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    np.testing.assert_allclose(*losses, rtol=1e-3)  # sums in another order; half of it without the right divisor
    for name, weight in weights[0].items():
        np.testing.assert_allclose(weight, weights[1][name], atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_two_processes_score_exactly_as_one(checkpoint, scenes, tmp_path):
    arguments = [str(checkpoint), "--dataset", str(scenes), "--class_names", NAMES, "--unseen_classes", "[sofa]"]
    arguments += [*SIZE, "--num_images", "7"]
    assert commands.evaluate([*arguments, "--output", str(tmp_path / "one.json")]) == 0
    launch(tmp_path, "-m", "ldvc", "evaluate", *arguments, "--output", tmp_path / "two.json")
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert one["num_images"] == two["num_images"] == 7
    assert one["scores"] == two["scores"]


@pytest.mark.slow
def test_two_processes_write_the_forgetting_report_of_one(checkpoint, clip_folder, scenes, tmp_path):
    arguments = [str(clip_folder), str(checkpoint), "--training_free_before", "--dataset", str(scenes)]
    arguments += [*SIZE, "--absent_names", "[sky]", "--absent_dataset", str(scenes), "--num_images", "5"]
    forgetting = ["-m", "ldvc", "forgetting", *arguments, "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # in a process of its own, too: settings of PyTorch that other tests leave may decide a pixel by rounding
    subprocess.run([sys.executable, *forgetting, str(tmp_path / "one.json")], env=environment, check=True)
    launch(tmp_path, *forgetting, tmp_path / "two.json")
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert one["sections"] == two["sections"]
    assert one["other_pictures"] == two["other_pictures"]


@pytest.mark.slow
@pytest.mark.parametrize("decoder_query", ["image", "class"])
def test_weights_in_shards_train_and_score_as_whole_ones(train_arguments, tmp_path, decoder_query):
    (tmp_path / "train_in_shards.py").write_text(FSDP_ON_CPU)
    options = ["--decoder_dropout", "0", "--vision_prompt_dropout", "0", "--num_eval_images", "5", "--save_every", "0"]
    options += ["--decoder_query", decoder_query]
    output = launch(
        tmp_path, tmp_path / "train_in_shards.py", *train_arguments, *options, config=CONFIGS / "fsdp2.yaml"
    )
    assert output.count("in shards") == 2
    shards = json.loads((tmp_path / "run" / "results.json").read_text())
    whole = run_recipe(read_recipe([*train_arguments, *options, "--output_dir", str(tmp_path / "whole")]))
    assert (shards["num_processes"], whole["num_processes"]) == (2, 1)
    losses = []
    for name in ("run", "whole"):
        records = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses.append([record["loss"] for record in records if "loss" in record])
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)  # sums over processes in another order
    for name in ("pixel_accuracy", "miou_seen"):
        # weights that differ by rounding may decide a pixel
        assert shards["scores"]["0.0"][name] == pytest.approx(whole["scores"]["0.0"][name], abs=0.01)
    first, second = (LDVCForSemanticSegmentation.from_pretrained(tmp_path / name) for name in ("run", "whole"))
    assert first.state_dict().keys() == second.state_dict().keys()
    for weight, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-3)


@pytest.mark.slow
def test_a_run_in_shards_resumes_bit_for_bit(train_arguments, tmp_path):
    (tmp_path / "train_in_shards.py").write_text(FSDP_ON_CPU)
    command = [tmp_path / "train_in_shards.py", *train_arguments, "--save_every", "3", "--num_eval_images", "2"]
    launch(tmp_path, *command, config=CONFIGS / "fsdp2.yaml")
    run = tmp_path / "run"
    weights, log = (run / "model.safetensors").read_bytes(), (run / "log.jsonl").read_text()
    shutil.rmtree(run / "states" / "step_0000006")
    for name in ("model.safetensors", "results.json"):  # as if killed after step 3
        (run / name).unlink()
    launch(tmp_path, *command, "--resume_from_checkpoint", "latest", config=CONFIGS / "fsdp2.yaml")
    assert (run / "log.jsonl").read_text() == log
    assert (run / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(train_arguments, tmp_path):
    options = ["--decoder_dropout", "0", "--vision_prompt_dropout", "0", "--save_every", "3", "--num_eval_images", "2"]
    result = run_recipe(read_recipe([*train_arguments, *options]))
    run = tmp_path / "run"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(run / "states" / "step_0000006")
    for name in ("model.safetensors", "results.json"):
        (run / name).unlink()
    launch(tmp_path, ROOT / "train.py", *train_arguments, *options, "--resume_from_checkpoint", "latest")
    assert (result["num_processes"], json.loads((run / "results.json").read_text())["num_processes"]) == (1, 2)
    resumed = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [[record["loss"] for record in records if "loss" in record] for records in (log, resumed)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=1e-3)  # sums over processes in another order
    protocol = json.loads((run / "protocol.json").read_text())
    assert protocol["image_draws"] == 24


# ---- launch configurations


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_launch_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 2
    assert config.num_processes % config.num_machines == 0
    assert config.mixed_precision == "no"  # the recipe's key decides
    assert str(path.relative_to(ROOT)) in path.read_text(), "the command in its head names the file"


def test_shards_are_cut_at_layers_that_the_model_has(tiny_model):
    fsdp = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    layers = fsdp["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert fsdp["fsdp_version"] == 2
    assert set(layers) <= {type(module).__name__ for module in tiny_model.modules()}
    assert set(layers) <= set(tiny_model._no_split_modules)


# ---- processes that do not know of each other


def test_processes_that_each_would_do_all_the_work_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were started, but this one knows of 1: .*ACCELERATE_USE_CPU"):
        check_joined(1)
    check_joined(2)


def test_one_process_alone_is_joined(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    PartialState._reset_state()
    assert process_state().num_processes == 1
