"""A list of recipes is run over seeds, each a process of its own, and its table printed: `ldvc experiments`."""

import argparse
import contextlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from ldvc.experiments.ablations import Experiments, ListError, Row, read_list, required_settings
from ldvc.experiments.ledger import (
    CLIP_KEY,
    LedgerError,
    check_result,
    differences,
    load_result,
    settings_hash,
    settings_of_result,
)
from ldvc.places import ROOT
from ldvc.training.recipe import Recipe


try:
    import fcntl
except ImportError:  # Windows: nothing notices a run that outlived a killed list
    fcntl = None

OUTPUTS = ROOT / "outputs"
LAUNCH = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
OVERWRITE, RESUME = "--overwrite_output_dir=true", "--resume_from_checkpoint=latest"
STATES = "**/states/step_*"  # of either half of a transductive run


@dataclass(frozen=True)
class Job:
    """One row at one seed.

    Attributes:
        row: The row.
        seed: The seed.
        recipe: Its resolved recipe.
        command: What is launched; empty for CLIP without training, which is scored here.
        folder: Output folder of the run.
        result_file: Its place in the ledger.
    """

    row: Row
    seed: int
    recipe: Recipe
    command: list[str]
    folder: Path
    result_file: Path

    @property
    def name(self) -> str:
        """What progress and failures call it."""
        return f"{self.row.name} seed {self.seed}"

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder.with_suffix(".log")

    @property
    def settings(self) -> dict[str, Any]:
        """What its result must have been made with."""
        return required_settings(self.row, self.recipe)


def plan(
    experiments: Experiments,
    seeds: Sequence[int] | None,
    only: Sequence[str],
    extra: Sequence[str],
    results: Path,
    launch: str,
) -> list[Job]:
    """Resolve rows and seeds to jobs; every recipe is read here, before anything runs.

    Args:
        experiments: The list.
        seeds: Seeds of every row; `None` is each row's own.
        only: Names of the rows to run; empty is all.
        extra: Keys and values handed to every run.
        results: Folder of result files.
        launch: Arguments of `accelerate launch`.

    Raises:
        ListError: If a name of `only` is no row, a recipe cannot be read, or two rows have the same settings.
    """
    names = [row.name for row in experiments.rows]
    for name in only:
        if name not in names:
            raise ListError(f"{experiments.path}: there is no row '{name}'; choose from {', '.join(names)}.")
    outputs = OUTPUTS / ("smoke" if extra else "experiments") / experiments.world
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *shlex.split(launch), str(ROOT / "train.py")]
    rows = [row for row in experiments.rows if not only or row.name in only]
    jobs, made = [], {}
    seeds_of = {row.name: seeds or experiments.seeds_of(row) for row in rows}
    # all rows at one seed first: an unfinished list compares something
    for seed in dict.fromkeys(itertools.chain.from_iterable(seeds_of.values())):
        for row in [row for row in rows if seed in seeds_of[row.name]]:
            folder = outputs / f"{row.name}_seed{seed}"
            # relative to where it runs, so that results name no path of one machine
            place = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
            given = [*extra, f"--output_dir={place}", OVERWRITE, "--results_file=null"]
            recipe = experiments.recipe_of(row, seed, given)
            command = [] if row.training_free else [*launcher, *experiments.arguments(row, seed, given)]
            jobs.append(Job(row, seed, recipe, command, folder, results / f"{row.name}_seed{seed}.json"))
            twin = made.setdefault(settings_hash(jobs[-1].settings), row.name)
            if twin != row.name:
                raise ListError(f"{experiments.path}: rows '{twin}' and '{row.name}' have the same settings.")
    return jobs


def current_commit() -> str:
    """Commit of the code, so that no hours are spent on results that cannot be traced to it.

    Raises:
        ListError: If neither git nor the environment knows it.
    """
    from ldvc.data.provenance import COMMIT_VARIABLE, code_version

    version = code_version()
    if version is None:
        raise ListError(
            f"{ROOT} is no git checkout, so that no result could be traced to its code; run in one, or name the "
            f"commit that was copied in the environment: {COMMIT_VARIABLE}=$(git rev-parse HEAD)."
        )
    return version.removesuffix("+changes")


def state_of(job: Job) -> str:
    """Whether a job's result is "missing", "done", or made with other settings, which the text then names."""
    if not job.result_file.exists():
        return "missing"
    try:
        changed = differences(settings_of_result(load_result(job.result_file)), job.settings)
    except LedgerError as error:
        return str(error)
    return f"made with other settings: {'; '.join(changed)}" if changed else "done"


# ---- running


def run_job(job: Job) -> str | None:
    """Run one job and write its result into the ledger; returns what went wrong, or `None`."""
    from ldvc.data.provenance import without_nan, write_json

    started, settings = time.perf_counter(), job.settings
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        result = score_floor(job) if job.row.training_free else train_row(job)
        if result is None:
            return last_words(job.log)
        result["clip_fingerprint"] = settings[CLIP_KEY]
        result["row"] = {"name": job.row.name, "title": job.row.title, "group": job.row.group}
        result.setdefault("seconds", round(time.perf_counter() - started, 1))
        result = without_nan(result)
        check_result(result, str(job.result_file))
        changed = differences(settings, settings_of_result(result)) or differences(settings, job.settings)
        if changed:
            return f"recipe or CLIP changed while it ran ({'; '.join(changed)}); the same command makes it anew"
        write_json(result, job.result_file)
    except (ListError, LedgerError) as error:
        return str(error)
    except Exception as error:  # whatever it is, it must not end the list
        return f"{type(error).__name__}: {error}"
    return None


class Processes:
    """The trainers at work, each in a process group with its launcher and workers, so that all can be ended."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.is_stopping = threading.Event()

    def run(self, command: Sequence[str], log: IO[str]) -> int:
        """Run a command to its end, its output in the log; returns its exit code."""
        options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, start_new_session=True, **options)
        self.running.add(process)
        if self.is_stopping.is_set():
            self.stop()
        try:
            return process.wait()
        finally:
            self.running.discard(process)

    def stop(self) -> None:
        """End what runs, and whatever starts from now on."""
        self.is_stopping.set()
        for process in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM) if hasattr(os, "killpg") else process.terminate()


def train_row(job: Job) -> dict[str, Any] | None:
    """Launch the trainer; returns its results with the curve of scores and the command, `None` if it failed."""
    head = f"# settings {settings_hash(job.settings)}, code {current_commit()}\n"
    is_finished = (job.folder / "results.json").exists()
    with hold_log(job) as log:
        command = job.command
        if log.readline() == head and not is_finished and any(job.folder.glob(STATES)):
            command = [RESUME if word == OVERWRITE else word for word in command]
        else:
            log.truncate(0)
            log.write(head)
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        if PROCESSES.run(command, log):
            return None
    result = json.loads((job.folder / "results.json").read_text())
    records = [json.loads(line) for line in (job.folder / "log.jsonl").read_text().splitlines()]
    curve = [record for record in records if "miou_unseen" in record]
    return result | {"curve": curve, "command": readable_command(job)}


@contextlib.contextmanager
def hold_log(job: Job) -> Iterator[IO[str]]:
    """Open a job's log for reading and appending, and keep others out until the trainer, which inherits it, has ended.

    Raises:
        ListError: If another list, or a trainer that outlived one, is at work on the same row and seed.
    """
    with job.log.open("a+") as log:
        try:
            if fcntl:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ListError(
                f"another process is at work on it and holds {job.log}; wait for it, or end it."
            ) from error
        log.seek(0)
        yield log


def readable_command(job: Job) -> str:
    """The command as one would type it in the repository's root, without this machine's paths."""
    words = [word.replace(f"{ROOT}/", "") for word in job.command]
    start, program = words.index("accelerate.commands.launch") + 1, words.index("train.py")
    launch = [] if words[start:program] == shlex.split(LAUNCH) else words[start:program]
    return shlex.join(["accelerate", "launch", *launch, *words[program:]])


def score_floor(job: Job) -> dict[str, Any]:
    """Score CLIP without training on the row's data and protocol."""
    from transformers import CLIPModel

    from ldvc.data.provenance import provenance
    from ldvc.model.inference_ldvc import InferenceSettings
    from ldvc.model.processing_ldvc import LDVCProcessor
    from ldvc.processes import process_state
    from ldvc.scoring.evaluate import evaluate_model
    from ldvc.segmenters.training_free import TrainingFreeCLIP
    from ldvc.training.run import class_groups, load_data

    started, recipe = time.perf_counter(), job.recipe
    with contextlib.chdir(ROOT):  # paths in recipes are the repository's
        clip = CLIPModel.from_pretrained(recipe.clip)
        processor = LDVCProcessor.from_clip_pretrained(
            recipe.clip, image_stats=recipe.image_stats, size=recipe.crop_size
        )
        dataset = load_data(recipe, recipe.eval_split, recipe.num_eval_images, streaming=False)
    baseline = TrainingFreeCLIP(clip, job.row.training_free, softmax_scale=None).to(process_state().device)
    result = evaluate_model(
        baseline,
        processor,
        dataset,
        recipe.get_vocabulary(),
        InferenceSettings(recipe.short_side, recipe.window, recipe.stride, recipe.window_batch_size),
        reduce_labels=recipe.reduce_labels,
        groups=class_groups(recipe),
        offsets=[0.0],  # cosines, not probabilities: an offset would remove every seen class
        show_progress=False,
    )
    protocol = {"training_free": job.row.training_free, "recipe": dict(vars(recipe))}
    return result | {
        "protocol": protocol,
        "trainable_parameters": 0,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(baseline.config, dataset, recipe.seed),
    }


def score_again(job: Job) -> dict[str, Any]:
    """Score the checkpoint of a finished run with the code there is now; what it was trained with stays as it is.

    Scores on the way, whose weights are gone, are left out: they would not compare with the new ones.

    Raises:
        ListError: If the folder holds other weights than the result is of.
    """
    from accelerate import Accelerator

    from ldvc.data.provenance import trace_to
    from ldvc.scoring.evaluate import load_checkpoint
    from ldvc.scoring.protocol import WEIGHTS_FIELD, checkpoint_fingerprints
    from ldvc.scoring.signatures import describe_signatures, find_signatures
    from ldvc.training.run import Run, draw_pictures, load_data, score_controls

    before, recipe = load_result(job.result_file), job.recipe
    with contextlib.chdir(ROOT):  # paths in recipes are the repository's
        model, processor = load_checkpoint(str(job.folder))
        data = load_data(recipe, recipe.eval_split, recipe.num_eval_images, streaming=False)
    weights = checkpoint_fingerprints(model)[WEIGHTS_FIELD]
    if weights != before[WEIGHTS_FIELD]:
        raise ListError(f"{job.folder} holds the weights {weights}, the result is of {before[WEIGHTS_FIELD]}.")
    accelerator = Accelerator()
    model = model.to(accelerator.device)
    run = Run(recipe, accelerator, job.folder, recipe.get_vocabulary(), model, processor, None, None, data)
    scored = run.evaluate(show_progress=False)
    controls = score_controls(run, {}) if recipe.controls else {}
    if recipe.num_pictures:
        draw_pictures(run)
    signatures = describe_signatures(find_signatures(scored["scores"]["0.0"], [], controls.get("training_free_clip")))
    trace = {name: value for name, value in trace_to(data).items() if name in ("commit", "versions")}
    return before | scored | {"controls": controls, "signatures": signatures, "curve": [], "scored_by": trace}


def rescore(jobs: Sequence[Job]) -> dict[str, str]:
    """Score finished runs again; returns the name of each job that failed, and what went wrong."""
    from ldvc.data.provenance import without_nan, write_json

    failures = {}
    for number, job in enumerate(jobs, 1):
        error = None
        try:
            if job.row.training_free:
                error = run_job(job)
            else:
                result = without_nan(score_again(job))
                check_result(result, str(job.result_file))
                write_json(result, job.result_file)
        except (OSError, ValueError) as problem:
            error = str(problem)
        failures |= {job.name: error} if error else {}
        report_progress(job, error, f"{number}/{len(jobs)}")
    return failures


def last_words(log: Path) -> str:
    """What a failed run said last, in one line, with the place of the rest; the launcher's own trace is left out."""
    text = log.read_text(errors="replace").split('Traceback (most recent call last):\n  File "<frozen runpy>"')[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("train: ")]
    said = lines[starts[-1] :] if starts else lines[-1:]
    return f"{' '.join(said)} (log: {log})"


PROCESSES = Processes()


def run_jobs(jobs: Sequence[Job], num_parallel: int) -> dict[str, str]:
    """Run jobs, and say after each how far the list is.

    Args:
        jobs: What is to run.
        num_parallel: Processes at a time.

    Returns:
        Name of each job that failed -> what went wrong.

    Raises:
        KeyboardInterrupt: If the user stops the list, which ends what runs.
    """
    failures: dict[str, str] = {}
    floors = [job for job in jobs if job.row.training_free]  # scored in this process, so one after the other
    for number, job in enumerate(floors, 1):
        error = run_job(job)
        failures.update({job.name: error} if error else {})
        report_progress(job, error, f"{number}/{len(jobs)}")
    started = time.perf_counter()
    PROCESSES.is_stopping.clear()
    with ThreadPoolExecutor(num_parallel) as pool:
        waiting = {pool.submit(run_job, job): job for job in jobs if not job.row.training_free}
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                job, error = waiting[future], future.result()
                failures.update({job.name: error} if error else {})
                left = (time.perf_counter() - started) / number * (len(waiting) - number) or None
                report_progress(job, error, f"{len(floors) + number}/{len(jobs)}", left)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            PROCESSES.stop()
            raise
    return failures


def report_progress(job: Job, error: str | None, position: str, seconds_left: float | None = None) -> None:
    """Say what ended, how, and for how long the rest will take."""
    if error:
        outcome = f"FAILED: {error}"
    else:
        scores = load_result(job.result_file)["scores"]["0.0"]
        figures = {name: scores[name] for name in ("miou_seen", "miou_unseen", "hiou")}
        outcome = ", ".join(f"{name} {'-' if v is None else f'{100 * v:.1f}'}" for name, v in figures.items())
    left = "" if seconds_left is None else f"; about {timedelta(seconds=round(seconds_left))} left"
    sys.stdout.write(f"[{position}] {job.name}: {outcome}{left}\n")
    sys.stdout.flush()


# ---- command line


def run(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    """Plan, run what is missing, print the table and the failures; returns the exit code."""
    from ldvc.experiments.report import ablation_tables

    experiments = read_list(arguments.list)
    results = experiments.results_folder
    if extra:
        results = OUTPUTS / "smoke" / experiments.world / "results"
    results = arguments.results.resolve() if arguments.results else results
    jobs = plan(experiments, arguments.seeds, arguments.only, extra, results, arguments.launch or LAUNCH)
    states = {job.name: state_of(job) for job in jobs}
    stale = {name: state for name, state in states.items() if state not in ("missing", "done")}
    to_do = [job for job in jobs if states[job.name] == "missing" or (arguments.replace and job.name in stale)]
    if arguments.dry_run:
        for job in jobs:
            command = readable_command(job) if job.command else "scored here, without training"
            sys.stdout.write(f"{job.name}: {states[job.name]}\n    {command}\n")
        return 0
    if arguments.rescore:
        to_do = [job for job in jobs if states[job.name] == "done"]
    sys.stdout.write(f"{len(jobs)} runs: {len(to_do)} to do, {len(jobs) - len(to_do)} there already\n")
    if to_do:
        current_commit()
        sys.stdout.write(f"logs: {to_do[0].folder.parent}\n")
        sys.stdout.flush()
    failures = rescore(to_do) if arguments.rescore else run_jobs(to_do, arguments.jobs)
    if not arguments.replace:
        failures |= {name: f"{state} (kept; --replace makes it anew)" for name, state in stale.items()}
    shown = [row for row in experiments.rows if not arguments.only or row.name in arguments.only]
    try:
        sys.stdout.write(f"\n{ablation_tables(experiments, results, shown, extra)}\n")
    except LedgerError as error:
        failures.setdefault("table", str(error))
    for name, error in failures.items():
        sys.stderr.write(f"{name}: {error}\n")
    return 1 if failures else 0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Take a signal to end, or a closed terminal, for Ctrl-C, so that runs are ended and not left behind."""
    endings = [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
    before = {ending: signal.getsignal(ending) for ending in endings}
    for ending, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(ending, signal.default_int_handler)
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
