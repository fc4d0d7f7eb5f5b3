"""What a training run keeps on disk to continue from: states, progress, log.

A state is written aside and renamed, so that a kill in the middle of a save leaves the previous one whole.
"""

import copy
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ldvc.data.provenance import without_nan
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.scoring.signatures import read_log
from ldvc.training.recipe import Recipe, RecipeError


__all__ = [
    "STATE_FOLDER",
    "Log",
    "Origin",
    "Progress",
    "check_same_run",
    "find_state",
    "keep_only_trained_weights",
    "kept_precision",
    "load_state",
    "own_half",
    "prepare_for_shards",
    "save_state",
    "set_aside_newer",
    "whole_model",
]

STATE_FOLDER = "states"
COUNTS_FILE = "counts.pt"  # progress, audit, origin, and SHA-256 of the other files
ASIDE = ".set_aside"  # ending of a state that a run left when it went back to an older one
# Keys that may change when a run is continued: none of them reaches the weights.
FREE_ON_RESUME = (
    *("output_dir", "overwrite_output_dir", "results_file", "resume_from_checkpoint", "save_every", "keep_states"),
    *("save_adapter_only", "log_every", "report_to", "push_to_hub", "hub_model_id", "num_workers", "cpu"),
    *("eval_every", "eval_split", "num_eval_images", "short_side", "window", "stride", "window_batch_size"),
    *("num_pictures", "controls"),
)


@dataclass
class Progress:
    """How far a run is; saved with every state."""

    step: int = 0
    seconds_before: float = 0.0  # of the runs that this one goes on from
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Time spent, stops aside."""
        return self.seconds_before + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """To be saved with a state."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.step, self.seconds_before = state["step"], state.get("seconds", 0.0)


@dataclass
class Origin:
    """What a run is made of, beside its recipe; saved with every state, so that it goes on with nothing else.

    Attributes:
        precision: What `mixed_precision` was resolved to.
        data: Name and fingerprint of the training pictures, see `stored_fingerprint`.
        clip: Name and fingerprint of the frozen CLIP.
        start: What is known of the weights that it started from, see `describe_start`; `None` for CLIP alone.
    """

    precision: str
    data: tuple[str, str]
    clip: tuple[str, str]
    start: Mapping[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """To be saved with a state; the folder that the run started from may move."""
        start = {key: value for key, value in self.start.items() if key != "checkpoint"} if self.start else None
        return {"precision": self.precision, "data": self.data[1], "clip": self.clip[1], "start": start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold the state's origin against this run's.

        Raises:
            RecipeError: If they differ; says in what.
        """
        now = self.state_dict()
        remedy = "bring them back as they were, or start a new run in another output_dir."
        for key, (name, fingerprint) in {"data": self.data, "clip": self.clip}.items():
            if state[key] != fingerprint:
                what = "pictures and label maps of" if key == "data" else "weights of the CLIP"
                raise RecipeError(
                    f"the {what} {name!r} are not those that the run began with (fingerprint {state[key]}, now "
                    f"{fingerprint}): {remedy}"
                )
        if state["precision"] != self.precision:
            raise RecipeError(f"the run began with precision {state['precision']!r}, now it is {self.precision!r}.")
        if state["start"] != now["start"]:
            raise RecipeError(
                f"the run began from other weights or another audit of them than `start_from` has now: {remedy}"
            )


def keep_only_trained_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Save and load LDVC's own weights only in training states; CLIP's never change."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def before_saving(models: list[nn.Module], weights: list[dict], folder: str) -> None:
        weights[:] = [{name: state[name] for name in state if name in names} for state in weights]

    def before_loading(models: list[nn.Module], folder: str) -> None:
        while models:
            missing, unexpected = accelerator.unwrap_model(models.pop()).load_state_dict(
                load_file(Path(folder) / "model.safetensors"), strict=False
            )
            if unexpected or names & set(missing):
                raise RecipeError(f"the state in {folder} belongs to another model; start a new run.")

    accelerator.register_save_state_pre_hook(before_saving)
    accelerator.register_load_state_pre_hook(before_loading)


def save_state(accelerator: Accelerator, folder: Path, step: int, keep: int, counted: Sequence[Any] = ()) -> None:
    """Write a state to resume from: aside first, then renamed, so that a kill never leaves half of one.

    Args:
        accelerator: The run's.
        folder: Output folder of the run.
        step: Steps taken.
        keep: How many states stay on disk.
        counted: Progress, audit and origin, written by the first process alone.

    Raises:
        OSError: If it cannot be written; the states before stay.
    """
    final = folder / STATE_FOLDER / f"step_{step:07d}"
    part = final.with_suffix(".part")
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(part), safe_serialization=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            torch.save([*(thing.state_dict() for thing in counted), hash_files(part)], part / COUNTS_FILE)
    except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own for a full disk
        raise OSError(
            f"the state of step {step} cannot be written to {part} ({error}); make room, then continue the run with "
            "--resume_from_checkpoint latest."
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        for old in states_in(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def hash_files(state: Path) -> dict[str, str]:
    """SHA-256 of the files that Accelerate wrote into a state, so that counts and weights stay those of one run."""
    hashes = {}
    for path in sorted(state.rglob("*")):
        if path.is_file() and path.name != COUNTS_FILE:
            with path.open("rb") as file:
                hashes[path.relative_to(state).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def states_in(folder: Path) -> list[Path]:
    """Whole states of a run, in the order of their steps."""
    return sorted((folder / STATE_FOLDER).glob("step_???????"))


def set_aside_newer(folder: Path, step: int) -> list[Path]:
    """Rename the states of a run that lie behind the one it goes on from, which otherwise would be the newest still.

    Args:
        folder: Output folder of the run.
        step: Steps taken in the state that it goes on from.

    Returns:
        Where they are now; remove them by hand.
    """
    aside = []
    for state in states_in(folder):
        if int(state.name.removeprefix("step_")) > step:
            place = state.with_name(state.name + ASIDE)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(state, place)
            aside.append(place)
    return aside


def prepare_for_shards(accelerator: Accelerator, model: nn.Module) -> None:
    """Make a model fit for FSDP: it cannot cut at layers that a decoder lacks, nor shard a scalar."""
    plugin, present = accelerator.state.fsdp_plugin, {type(module).__name__ for module in model.modules()}
    layers = plugin.transformer_cls_names_to_wrap or ()
    plugin.transformer_cls_names_to_wrap = [name for name in layers if name in present]
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() == 0:
                # CLIP's temperature; one axis more
                setattr(module, name, nn.Parameter(parameter.detach()[None], requires_grad=parameter.requires_grad))


def whole_model(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The trained model in one piece, to score and to save; all processes must call this.

    Args:
        accelerator: The run's.
        model: As prepared by it.

    Returns:
        The model itself; a copy where FSDP keeps it in shards, since those only work while all processes make the same
        calls, which sharing out images to score does not.
    """
    plain = accelerator.unwrap_model(model)
    if accelerator.distributed_type != DistributedType.FSDP:
        return plain
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    whole = LDVCForSemanticSegmentation(copy.deepcopy(plain.config))
    # scalars were widened
    whole.load_state_dict({name: weights[name].view_as(weight) for name, weight in whole.state_dict().items()})
    return whole.to(accelerator.device).train(plain.training)


def load_state(accelerator: Accelerator, state: Path, counted: Sequence[Any] = ()) -> None:
    """Continue from a state.

    Progress and audit are not registered with Accelerate, which would unpickle whatever their file holds.

    Args:
        accelerator: The run's, with model and optimiser prepared.
        state: Folder of the state.
        counted: As `save_state` had them.

    Raises:
        RecipeError: If a file is damaged or replaced, or the state belongs to another model or to other data.
    """
    kept = _read_counts(state)
    if len(kept) != len(counted) + 1:
        raise RecipeError(
            f"the state {state} was written by another version, which kept no fingerprints of data, CLIP and weights "
            "with it; continue it with that version, or start a new run in another output_dir."
        )
    _check_files(state, kept[-1])
    with _naming_damage(state):
        accelerator.load_state(str(state))
        for thing, values in zip(counted, kept, strict=False):
            thing.load_state_dict(values)


def _check_files(state: Path, kept: Mapping[str, str]) -> None:
    """Hold a state's files against those that were saved: with others, weights would go on that nobody counted.

    Raises:
        RecipeError: Names the first file that is another one, missing or new.
    """
    with _naming_damage(state):
        found = hash_files(state)
    if other := [name for name in sorted(kept | found) if kept.get(name) != found.get(name)]:
        raise RecipeError(
            f"the state {state} is damaged ({other[0]} is not the file that was saved with it); remove this folder to "
            "continue from the one before."
        )


def _read_counts(state: Path) -> list[dict[str, Any]]:
    """What was counted up to a state."""
    with _naming_damage(state):
        return torch.load(state / COUNTS_FILE, weights_only=True)


@contextmanager
def _naming_damage(state: Path) -> Iterator[None]:
    """Say which state cannot be read.

    Raises:
        RecipeError: If a file is damaged.
    """
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # torch, safetensors and Accelerate each have their own for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"the state {state} is damaged ({reason}); remove this folder to continue from the one before."
        ) from error


def kept_precision(recipe: Recipe) -> str | None:
    """What `mixed_precision` was resolved to in the state that a recipe resumes from; `None` without one.

    Raises:
        RecipeError: If the state cannot be read.
    """
    state = find_state(recipe, Path(recipe.output_dir))
    origins = [values for values in _read_counts(state) if "precision" in values] if state else []
    return origins[0]["precision"] if origins else None


def find_state(recipe: Recipe, folder: Path) -> Path | None:
    """The state to resume from: the newest whole one, or the one named; `None` to start anew.

    Raises:
        RecipeError: If the named folder is no state.
    """
    if not recipe.resume_from_checkpoint:
        return None
    if recipe.resume_from_checkpoint == "latest":
        states = states_in(folder)
        return states[-1] if states else None
    state = Path(recipe.resume_from_checkpoint)
    if not (state / COUNTS_FILE).is_file():  # the progress, whatever the weights are saved as
        raise RecipeError(
            f"`resume_from_checkpoint` {str(state)!r} is no training state; use 'latest' or a step folder."
        )
    return state


def own_half(output_dir: str) -> str:
    """Folder of the inductive half of a transductive run that trains both."""
    return str(Path(output_dir) / "inductive")


def check_same_run(recipe: Recipe, folder: Path) -> None:
    """Refuse to continue a run with settings that would make another run of it.

    Args:
        recipe: The settings now.
        folder: Output folder of the run, with the settings before.

    Raises:
        RecipeError: Names the first key that differs, with both values.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RecipeError(
            f"{folder} holds states but no recipe.yaml, so that nobody knows which run they are of; put it back, or "
            "start a new run in another output_dir."
        )
    before, now = yaml.safe_load(path.read_text()), asdict(recipe)
    for run in (before, now):  # a transductive run may move with its own first half
        if run.get("start_from") == own_half(run["output_dir"]):
            run["start_from"] = "inductive"
    for key in sorted(before.keys() | now.keys()):
        if key not in FREE_ON_RESUME and before.get(key) != now.get(key):
            raise RecipeError(
                f"the run in {folder} was made with {key}={before.get(key)!r}, this run says {now.get(key)!r}; "
                "continue with the same recipe, or start a new run in another output_dir."
            )


class Log:
    """JSON lines on disk, and Accelerate's trackers; resuming drops records past the state.

    Args:
        path: The file.
        accelerator: The run's.
        first_step: Step of the state that the run continues from, 0 for none.
        max_steps: Its last step, whose scores are written after the last state, so that they come again.
    """

    def __init__(self, path: Path, accelerator: Accelerator, first_step: int, max_steps: int):
        self.path, self.accelerator = path, accelerator
        self.records: list[dict[str, Any]] = []
        if accelerator.is_main_process:
            kept = without_nan(read_log(path, first_step)) if first_step else []
            self.records = [record for record in kept if record["step"] < max_steps or "lr" in record]
            part = path.with_name(path.name + ".part")
            part.write_text("".join(json.dumps(record) + "\n" for record in self.records))
            os.replace(part, path)

    def write(self, record: dict[str, Any]) -> None:
        """Add one record, which has a `step`; a mean of nothing, NaN, is written as null."""
        record = without_nan(record)
        self.records.append(record)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        numbers = {name: value for name, value in record.items() if isinstance(value, (int, float)) and name != "step"}
        self.accelerator.log(numbers, step=record["step"])
