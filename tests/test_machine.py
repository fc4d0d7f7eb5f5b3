"""What a run computes on: the recipe decides over the environment, and what is recorded is what was computed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState

from ldvc.commands.training import train
from ldvc.training.machine import build_accelerator, check_environment, choose_precision
from ldvc.training.recipe import Recipe, RecipeError


pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).resolve().parents[1]


def recipe(**values):
    return Recipe(**{"vocabulary": "voc2012", "cpu": True, **values})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", "ACCELERATE_DYNAMO_BACKEND=EAGER .* launch with --dynamo_backend no"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "would compile the model"),
        ("ACCELERATE_USE_DEEPSPEED", "true", r"would train with DeepSpeed; .* recipes/accelerate/fsdp2\.yaml"),
        ("ACCELERATE_USE_MEGATRON_LM", "True", "would train with Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "would cut the model across devices"),
        ("ACCELERATE_DOWNCAST_BF16", "1", "would take half precision for full"),
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "2",
            "'2' in the environment .* the recipe says gradient_accumulation_steps=4, .* say "
            "--gradient_accumulation_steps 2 behind train.py",
        ),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "the recipe says mixed_precision=bf16, .* --mixed_precision fp16"),
    ],
)
def test_what_the_environment_would_change_is_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        check_environment(recipe(gradient_accumulation_steps=4), "bf16")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_DYNAMO_BACKEND", "no"),
        ("ACCELERATE_USE_DEEPSPEED", "false"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ""),
        ("ACCELERATE_MIXED_PRECISION", "no"),  # what the launcher says unasked
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
    ],
)
def test_what_says_the_same_as_the_recipe_or_nothing_passes(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    check_environment(recipe(gradient_accumulation_steps=4), "bf16")


def test_every_variable_that_a_launcher_sets_is_known_to_be_harmless_set_here_or_refused():
    """A new version of Accelerate may read more of them; then this list is to be thought over."""
    known = {
        *(
            "ACCELERATE_DYNAMO_",
            "ACCELERATE_USE_DEEPSPEED",
            "ACCELERATE_USE_MEGATRON_LM",
            "ACCELERATE_MIXED_PRECISION",
        ),
        *("ACCELERATE_USE_PARALLELISM_CONFIG", "ACCELERATE_DOWNCAST_BF16"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        # of DeepSpeed, FSDP (whose numbers a test compares), devices, logs, loading of large models for inference
        *(
            "ACCELERATE_DEEPSPEED_",
            "ACCELERATE_CONFIG_DS_FIELDS",
            "ACCELERATE_GRADIENT_CLIPPING",
            "ACCELERATE_USE_FSDP",
        ),
        *("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_USE_SAGEMAKER"),
        *("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "ACCELERATE_ALLOW_CP_STANDALONE", "ACCELERATE_DEBUG_"),
        *("ACCELERATE_LOG_LEVEL", "ACCELERATE_ENABLE_RICH", "ACCELERATE_BYPASS_DEVICE_MAP", "ACCELERATE_IN_TPU_POD"),
        *("ACCELERATE_INIT_INCLUDE_BUFFERS", "ACCELERATE_FP8_"),
    }
    folder = Path(accelerate.__file__).parent
    texts = (path.read_text() for path in folder.rglob("*.py") if "test_utils" not in path.parts)
    read = {name for text in texts for name in re.findall(r"\"(ACCELERATE_[A-Z0-9_]+)\"", text)}
    assert read
    assert sorted(name for name in read if not name.startswith(tuple(known))) == []


def test_accumulation_is_the_recipes(monkeypatch):
    assert build_accelerator(recipe(gradient_accumulation_steps=4)).gradient_accumulation_steps == 4


def test_half_precision_that_the_device_would_leave_out_is_refused(train_arguments, tmp_path, told):
    assert train([*train_arguments, "--mixed_precision", "fp16"]) == 2
    assert "`mixed_precision` is 'fp16', which Accelerate leaves out on this device (cpu)" in told.text
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_the_precision_that_auto_was_resolved_to(monkeypatch):
    auto = recipe(mixed_precision="auto")
    for here in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda here=here: here)
        assert choose_precision(auto) == ("bf16" if here else "no")
        assert [choose_precision(auto, kept) for kept in ("bf16", "no")] == ["bf16", "no"]
    assert choose_precision(recipe(mixed_precision="no"), "bf16") == "no"  # a stated one decides, and is compared


@pytest.mark.slow
def test_a_run_that_moves_to_a_machine_without_bf16_is_the_same_run(train_arguments, tmp_path, monkeypatch):
    options = [*train_arguments, "--mixed_precision", "auto", "--num_eval_images", "2"]
    weights = {}
    for name in ("whole", "moved"):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        folder = tmp_path / name
        assert train([*options, "--output_dir", str(folder)]) == 0
        if name == "moved":
            shutil.rmtree(folder / "states" / "step_0000006")
            AcceleratorState._reset_state(reset_partial_state=True)
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
            assert train([*options, "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]) == 0
        assert json.loads((folder / "results.json").read_text())["mixed_precision"] == "bf16"
        weights[name] = (folder / "model.safetensors").read_bytes()
    assert weights["whole"] == weights["moved"]


@pytest.mark.slow
def test_a_launch_that_asks_for_compiling_ends_before_training(train_arguments, tmp_path):
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "eager", str(ROOT / "train.py"), *train_arguments),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "would compile the model; launch with --dynamo_backend no" in done.stderr
    assert not (tmp_path / "run").exists()
