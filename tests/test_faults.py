"""Kills, full disks, damaged data, lost workers: a clear line, the last good state whole, nothing half-written taken.

Held elsewhere: a loss that is no number, resuming after each single state, half a log line (`test_train.py`);
half-written vocabularies (`test_vocabulary.py`), results of `ldvc segment` (`test_formats.py`), dataset shards
(`test_prepare_data.py`), published folders (`test_publish.py`), two processes (`test_train.py`, `test_processes.py`).
"""

import contextlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from ldvc.__main__ import app
from ldvc.commands.scoring import evaluate as evaluate_command
from ldvc.commands.training import train
from ldvc.scoring import evaluate
from ldvc.training import run as training_run


pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).resolve().parents[1]

# Imports the libraries once and forks for every command, so that a kill costs a second and not ten.
SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
import ldvc.__main__, ldvc.scoring.evaluate, ldvc.training.run
for line in sys.stdin:
    arguments, output = json.loads(line)
    pid = os.fork()
    if pid == 0:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.argv = ["ldvc", *arguments]
        code = 1
        try:
            ldvc.__main__.main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code or 0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """Runs commands in processes that may be killed."""

    def __init__(self, folder):
        self.output = folder / "output.txt"
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )

    def run(self, arguments, wait=None):
        """Run one command; `wait` returns when it is to be killed. Returns its exit code, -9 if it was killed."""
        self.server.stdin.write(json.dumps([[str(a) for a in arguments], str(self.output)]) + "\n")
        self.server.stdin.flush()
        pid = int(self.server.stdout.readline())
        if wait is not None:
            wait()
            with contextlib.suppress(ProcessLookupError):  # the command was faster
                os.kill(pid, signal.SIGKILL)
        return int(self.server.stdout.readline())

    def must_end_well(self, arguments):
        assert self.run(arguments) == 0, self.output.read_text()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.server.stdin.close()
    commands.server.wait(timeout=30)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_run(first, second):
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name
    assert log_of(first) == log_of(second)
    assert (first / "protocol.json").read_text() == (second / "protocol.json").read_text()
    scores = [json.loads((folder / "results.json").read_text())["scores"] for folder in (first, second)]
    assert scores[0] == scores[1]


def states_of(folder):
    return sorted(path.name for path in (folder / "states").iterdir() if path.suffix != ".part")


# ---- kills


def is_saving(folder, since):
    """Whether the part of a state is there that this process began; one may be left of an earlier kill."""
    with contextlib.suppress(FileNotFoundError):  # renamed just now
        return any(part.stat().st_mtime > since for part in (folder / "states").glob("*.part"))
    return False


def wait_for_save(folder, rng, longest=10.0):
    """Return inside a save, up to 8 ms after its begin: a fast machine takes little longer for all of it."""
    start = time.time()
    while time.time() - start < longest:
        if is_saving(folder, start):
            time.sleep(rng.random() * 0.008)
            return
        time.sleep(0.0005)


def train_through_kills(commands, train_arguments, tmp_path, num_kills, max_steps):
    """Train once straight, once with kills, and compare; returns where the kills fell."""
    options = ["--max_steps", str(max_steps), "--save_every", "1", "--num_workers", "0"]
    commands.must_end_well(["train", *train_arguments, *options, "--output_dir", tmp_path / "whole"])
    rng, killed = random.Random(0), tmp_path / "killed"
    resume = ["train", *train_arguments, *options, "--output_dir", killed, "--resume_from_checkpoint", "latest"]
    kills = {"in a save": 0, "elsewhere": 0}
    while sum(kills.values()) < num_kills:
        in_save = sum(kills.values()) % 2 == 0
        seconds = rng.uniform(0.05, 0.9)
        wait = (lambda: wait_for_save(killed, rng)) if in_save else (lambda seconds=seconds: time.sleep(seconds))
        start = time.time()
        code = commands.run(resume, wait)
        assert code in (-signal.SIGKILL, 0), commands.output.read_text()
        if code == 0:
            break  # the run was done before its last kills
        kills["in a save" if is_saving(killed, start) else "elsewhere"] += 1
    commands.must_end_well(resume)
    assert_same_run(tmp_path / "whole", killed)
    assert not list(killed.glob("*.part")), "nothing half-written is left beside the checkpoint"
    return kills


@pytest.mark.slow
def test_training_killed_three_times_resumes_bit_for_bit(commands, train_arguments, tmp_path):
    kills = train_through_kills(commands, train_arguments, tmp_path, num_kills=3, max_steps=40)
    assert sum(kills.values()) >= 1  # a fast machine may be done before the third; the slow test below is stricter


@pytest.mark.slow
def test_training_killed_twenty_times_resumes_bit_for_bit(commands, train_arguments, tmp_path):
    kills = train_through_kills(commands, train_arguments, tmp_path, num_kills=20, max_steps=120)
    assert kills["in a save"] >= 3
    assert kills["elsewhere"] >= 3


@pytest.fixture(scope="module")
def checkpoint(make_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = make_model()
    model.set_vocabulary(["cat", "dog", "sofa", "grass"], tiny_processor)
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (300, 200 + index, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
    return folder


FORMATS = [word for kind in ("png", "overlay", "coco-rle", "npz") for word in ("--format", kind)]


def results_of(folder):
    """Content of every result, without the time stamps inside of archives."""
    content = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                content[path.name] = {name: arrays[name].tobytes() for name in arrays}
        elif path.is_file():
            content[path.name] = path.read_bytes()
    return content


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [2, 12])
def test_bulk_segmentation_killed_goes_on_where_it_stopped(commands, checkpoint, pictures, tmp_path, num_kills):
    arguments = ["segment", pictures, "--model", checkpoint, "--device", "cpu", *FORMATS]
    commands.must_end_well([*arguments, "--output", tmp_path / "whole"])
    rng, killed = random.Random(1), tmp_path / "killed"
    for _ in range(num_kills):
        before = len(list(killed.glob("*.png")))
        wanted = before + rng.randrange(3)

        def wait(wanted=wanted):
            start = time.monotonic()
            while len(list(killed.glob("*.png"))) <= wanted and time.monotonic() - start < 5:
                time.sleep(0.001)

        code = commands.run([*arguments, "--output", killed, "--skip-existing"], wait)
        assert code in (-signal.SIGKILL, 0), commands.output.read_text()
    commands.must_end_well([*arguments, "--output", killed, "--skip-existing"])
    whole = results_of(tmp_path / "whole")
    left = {name: data for name, data in results_of(killed).items() if not name.endswith(".part")}
    assert left == whole


def evaluate_arguments(checkpoint, scenes, output):
    return [
        *(str(checkpoint), "--dataset", str(scenes), "--split", "validation", "--output", str(output)),
        *("--class_names", "[cat, dog, sofa, grass]", "--unseen_classes", "sofa", "--short_side", "32"),
        *("--window", "0", "--setting", "fully_supervised"),
    ]


@pytest.mark.slow
def test_an_evaluation_killed_keeps_the_old_result_and_goes_on_from_its_maps(commands, checkpoint, scenes, tmp_path):
    output, maps = tmp_path / "result.json", tmp_path / "maps"
    arguments = evaluate_arguments(checkpoint, scenes, output)
    commands.must_end_well(["evaluate", *arguments])
    first = output.read_text()
    arguments += ["--predictions", str(maps)]
    kept = {}
    for wanted in (0, 3, 7):

        def wait(wanted=wanted):
            start = time.monotonic()
            while len(list(maps.rglob("[0-9]*.png"))) <= wanted and time.monotonic() - start < 10:
                time.sleep(0.0005)

        code = commands.run(["evaluate", *arguments], wait)
        assert code in (-signal.SIGKILL, 0), commands.output.read_text()
        assert json.loads(output.read_text())["scores"] == json.loads(first)["scores"]
        rows = Counter(path.name for path in maps.rglob("[0-9]*.png"))  # a picture with one map of two is made again
        found = {path: path.stat().st_mtime_ns for path in maps.rglob("[0-9]*.png") if rows[path.name] == 2}
        assert found.items() >= kept.items(), "what was there is made again"
        kept = found
    assert kept
    commands.must_end_well(["evaluate", *arguments])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(maps.rglob("[0-9]*.png"))) == 20  # ten pictures, two offsets
    assert json.loads(output.read_text())["scores"] == json.loads(first)["scores"]


# ---- a full disk


@contextlib.contextmanager
def files_of_at_most(num_bytes):
    """Let no file grow further, as a disk does that is full: each write beyond fails in the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_disk_for(monkeypatch, module, name, num_bytes, is_time=lambda *arguments: True):
    """Let the disk be full while one function of a module runs."""
    function = getattr(module, name)

    def on_full_disk(*arguments, **options):
        if not is_time(*arguments):
            return function(*arguments, **options)
        with files_of_at_most(num_bytes):
            return function(*arguments, **options)

    monkeypatch.setattr(module, name, on_full_disk)


def assert_one_line(caplog, *mentions):
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    errors = [message for message in errors if message.startswith("train: ")]  # the libraries may say more
    assert len(errors) == 1
    assert "Traceback" not in errors[0]
    for mention in mentions:
        assert mention in errors[0]


def resume(train_arguments):
    AcceleratorState._reset_state(reset_partial_state=True)
    return train([*train_arguments, "--resume_from_checkpoint", "latest"])


# Bytes that a file may have: under the size of the weights, of the optimiser's moments, of the smallest file.
@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [50_000, 150_000])
def test_a_disk_full_while_saving_a_state_keeps_the_last_one(
    train_arguments, tmp_path, monkeypatch, told, whole_run, num_bytes
):
    whole = whole_run(train_arguments)
    with monkeypatch.context() as patch:
        fill_disk_for(patch, training_run, "save_state", num_bytes, lambda *arguments: arguments[2] == 4)
        assert train(train_arguments) == 2
    assert_one_line(told)
    assert states_of(tmp_path / "run") == ["step_0000002"]
    assert resume(train_arguments) == 0
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_disk_full_while_saving_the_checkpoint_leaves_none(train_arguments, tmp_path, monkeypatch, told, whole_run):
    whole = whole_run(train_arguments)
    with monkeypatch.context() as patch:
        fill_disk_for(patch, training_run, "save_checkpoint", 300_000)
        assert train(train_arguments) == 2
    assert_one_line(told)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "config.json").exists()
    assert resume(train_arguments) == 0
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_disk_full_while_writing_results_leaves_none(train_arguments, tmp_path, monkeypatch, told, whole_run):
    whole = whole_run(train_arguments)
    with monkeypatch.context() as patch:
        fill_disk_for(patch, training_run, "write_json", 2_000, lambda *arguments: arguments[1].name == "results.json")
        assert train(train_arguments) == 2
    assert_one_line(told, "File too large")
    assert not (tmp_path / "run" / "results.json").exists()
    assert resume(train_arguments) == 0
    assert_same_run(whole, tmp_path / "run")


def test_a_disk_full_while_evaluating_keeps_the_old_result(checkpoint, scenes, tmp_path, monkeypatch, capsys):
    output = tmp_path / "result.json"
    output.write_text('{"old": true}')
    fill_disk_for(monkeypatch, evaluate, "write_json", 1_000)
    assert evaluate_command(evaluate_arguments(checkpoint, scenes, output)) == 2
    assert "File too large" in capsys.readouterr().err
    assert json.loads(output.read_text()) == {"old": True}


@pytest.mark.slow
def test_a_disk_full_while_segmenting_names_each_picture_and_goes_on_later(checkpoint, pictures, tmp_path):
    arguments = ["segment", str(pictures), "--model", str(checkpoint), "--device", "cpu", "--format", "overlay"]
    whole = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "whole")])
    assert whole.exit_code == 0, whole.output
    folder = tmp_path / "masks"
    with files_of_at_most(20_000):
        result = CliRunner().invoke(app, [*arguments, "--output", str(folder)])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert result.stderr.count("File too large") == 12
    assert not list(folder.rglob("*.overlay.png"))
    assert not list(folder.rglob(".*"))
    again = CliRunner().invoke(app, [*arguments, "--output", str(folder), "--skip-existing"])
    assert again.exit_code == 0, again.output
    assert results_of(folder) == results_of(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this process may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # the log of the run may still be open


@pytest.mark.slow
def test_a_disk_that_really_is_full_keeps_the_last_state(train_arguments, small_disk, tmp_path, told):
    """One state has 390 kB and two are kept: the first fits, the second does not with the filler beside it."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(450_000))
    options = [*train_arguments, "--output_dir", str(small_disk / "run")]
    assert train(options) == 2
    assert_one_line(told)
    assert states_of(small_disk / "run") == ["step_0000002"]
    filler.unlink()
    shutil.copytree(small_disk / "run", tmp_path / "run")
    assert resume(train_arguments) == 0


# ---- files of a run that a fault cuts off


@pytest.mark.slow
def test_a_recipe_that_could_not_be_written_whole_leaves_that_of_the_run(train_arguments, tmp_path, monkeypatch, told):
    """It is written at every start, also beside states that belong to it: half of it would stop every resume."""
    assert train(train_arguments) == 0
    shutil.rmtree(tmp_path / "run" / "states" / "step_0000006")
    clear_output_dir = training_run.clear_output_dir

    def fill_disk(*arguments):
        clear_output_dir(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with monkeypatch.context() as patch, files_of_at_most(10**9):  # until the recipe is next
        patch.setattr(training_run, "clear_output_dir", fill_disk)
        assert resume(train_arguments) == 2
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["max_steps"] == 6
    assert resume(train_arguments) == 0


# ---- numbers that are none


def break_loss(loss, logits):
    return loss * float("nan")


def break_gradient(loss, logits):
    logits.register_hook(lambda gradient: gradient * float("nan"))
    return loss


@pytest.mark.parametrize("harm", [break_loss, break_gradient])
def test_weights_that_are_no_numbers_reach_no_state(train_arguments, tmp_path, monkeypatch, told, harm):
    """States are written at every step here, log lines at every fourth, which is where the loss is looked at."""
    healthy, calls = training_run.segmentation_loss, []

    def break_down(logits, *arguments, **options):
        calls.append(1)
        loss, terms = healthy(logits, *arguments, **options)
        return (harm(loss, logits) if len(calls) == 2 else loss), terms

    monkeypatch.setattr(training_run, "segmentation_loss", break_down)
    assert train([*train_arguments, "--save_every", "1", "--log_every", "4"]) == 2
    assert_one_line(told, "step", "states", "learning_rate")
    assert states_of(tmp_path / "run") == ["step_0000001"]


# ---- data


SPLITS = ("train", "validation")


@pytest.fixture
def own_scenes(scenes, tmp_path):
    """A copy of the scenes that a test may damage."""
    return shutil.copytree(scenes, tmp_path / "scenes")


def damage_middle(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 400] = bytes(400)
    path.write_bytes(data)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("streaming", ["false", pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("harm", [damage_middle, cut_off, empty])
def test_a_damaged_shard_is_one_line_that_names_the_data(train_arguments, own_scenes, tmp_path, told, harm, streaming):
    harm(own_scenes / "train-00000-of-00001.parquet")
    assert train([*train_arguments, "--dataset", str(own_scenes), "--streaming", streaming]) == 2
    assert_one_line(told, "scenes" if harm is not damage_middle else "")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_picture_damaged_inside_a_whole_shard_is_named_by_its_row(train_arguments, own_scenes, told):
    path = own_scenes / "train-00000-of-00001.parquet"
    rows = Dataset.from_parquet(str(path)).cast_column("image", ImageFeature(decode=False)).to_dict()
    for row in rows["image"]:
        row["bytes"] = row["bytes"][:60]
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    Dataset.from_dict(rows, features=features).to_parquet(path)
    assert train([*train_arguments, "--dataset", str(own_scenes)]) == 2
    assert_one_line(told, "ample ", "repair it or leave the sample out")


def test_a_shard_that_vanishes_under_a_stream_is_one_line_and_the_last_state_stays(
    train_arguments, own_scenes, tmp_path, monkeypatch, told
):
    """Ten scenes are read through in two and a half steps; then the file is opened again."""
    log_step = training_run.log_step

    def remove_shard(run, log, bar, step, *rest):
        log_step(run, log, bar, step, *rest)
        (own_scenes / "train-00000-of-00001.parquet").unlink(missing_ok=True)

    monkeypatch.setattr(training_run, "log_step", remove_shard)
    assert train([*train_arguments, "--dataset", str(own_scenes), "--streaming", "true"]) == 2
    assert_one_line(told, "sample 10", "train-00000-of-00001.parquet")
    assert states_of(tmp_path / "run") == ["step_0000002"]


@pytest.mark.parametrize("is_saved", [False, True], ids=["Parquet", "save_to_disk"])
def test_an_evaluation_split_without_a_row_is_one_line_before_training(
    train_arguments, own_scenes, checkpoint, tmp_path, told, capsys, is_saved
):
    path, folder = own_scenes / "validation-00000-of-00001.parquet", own_scenes
    rows = {name: Dataset.from_parquet(str(own_scenes / f"{name}-00000-of-00001.parquet")) for name in SPLITS}
    empty = rows["validation"].select([])
    if is_saved:
        folder = tmp_path / "saved"
        DatasetDict({"train": rows["train"], "validation": empty}).save_to_disk(folder)
    else:
        empty.to_parquet(path)
    assert train([*train_arguments, "--dataset", str(folder)]) == 2
    assert_one_line(told, str(folder))
    assert not (tmp_path / "run" / "states").exists()
    assert evaluate_command(evaluate_arguments(checkpoint, folder, tmp_path / "result.json")) == 2
    assert str(folder) in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_that_ends_before_its_first_row_is_one_line(train_arguments, own_scenes, told):
    path = own_scenes / "train-00000-of-00001.parquet"
    Dataset.from_parquet(str(path)).select([]).to_parquet(path)
    assert train([*train_arguments, "--dataset", str(own_scenes), "--streaming", "true"]) == 2
    assert_one_line(told, "no sample")


@pytest.mark.slow
def test_a_stream_that_is_shorter_than_the_training_starts_again(train_arguments, own_scenes, tmp_path):
    path = own_scenes / "train-00000-of-00001.parquet"
    Dataset.from_parquet(str(path)).select(range(3)).to_parquet(path)
    assert train([*train_arguments, "--dataset", str(own_scenes), "--streaming", "true"]) == 0
    assert json.loads((tmp_path / "run" / "protocol.json").read_text())["image_draws"] == 24


@pytest.mark.slow
def test_a_lost_worker_is_one_line_and_the_run_resumes_bit_for_bit(train_arguments, tmp_path, monkeypatch, told):
    options = [*train_arguments, "--num_workers", "1"]
    assert train([*options, "--output_dir", str(tmp_path / "whole")]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    log_step = training_run.log_step

    def lose_worker(run, log, bar, step, *rest):
        log_step(run, log, bar, step, *rest)
        if step == 3:
            for worker in multiprocessing.active_children():  # the loader's, started by this process
                worker.kill()
                worker.join()

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "log_step", lose_worker)
        assert train(options) == 2
    assert_one_line(told, "worker")
    assert states_of(tmp_path / "run") == ["step_0000002"]
    assert resume(options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def start_two_processes(arguments, folder):
    """Start the trainer twice under `accelerate launch`."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *(str(ROOT / "train.py"), *map(str, arguments)),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=folder)


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_the_run_resumes_bit_for_bit(train_arguments, tmp_path):
    options = [*train_arguments, "--save_every", "1", "--max_steps", "12"]
    assert start_two_processes([*options, "--output_dir", tmp_path / "whole"], tmp_path).wait(timeout=300) == 0
    lost = [*options, "--output_dir", tmp_path / "lost", "--resume_from_checkpoint", "latest"]
    launcher = start_two_processes(lost, tmp_path)
    while launcher.poll() is None and not (tmp_path / "lost" / "states" / "step_0000003").exists():
        time.sleep(0.01)
    trainers = [child for child in psutil.Process(launcher.pid).children() if "train.py" in " ".join(child.cmdline())]
    assert len(trainers) == 2
    trainers[1].kill()
    assert launcher.wait(timeout=120) != 0
    assert not (tmp_path / "lost" / "model.safetensors").exists()
    assert start_two_processes(lost, tmp_path).wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()[-3000:]
    assert_same_run(tmp_path / "whole", tmp_path / "lost")
