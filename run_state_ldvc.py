"""What a training run keeps on disk to continue from: states, progress, log.

A state is written aside and renamed, so that a kill in the middle of a save leaves the previous one whole.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from recipe_ldvc import Recipe, RecipeError


__all__ = ["STATE_FOLDER", "Log", "Progress", "find_state", "keep_only_trained_weights", "save_state"]

STATE_FOLDER = "states"


@dataclass
class Progress:
    """How far a run is; saved with every state."""

    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For Accelerate."""
        self.step = state["step"]


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


def save_state(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Write a state to resume from: aside first, then renamed, so that a kill never leaves half of one."""
    final = folder / STATE_FOLDER / f"step_{step:07d}"
    part = final.with_suffix(".part")
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        for old in sorted(final.parent.glob("step_???????"))[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def find_state(recipe: Recipe, folder: Path) -> Path | None:
    """The state to resume from: the newest whole one, or the one named; `None` to start anew.

    Raises:
        RecipeError: If the named folder is no state.
    """
    if not recipe.resume_from_checkpoint:
        return None
    if recipe.resume_from_checkpoint == "latest":
        states = sorted((folder / STATE_FOLDER).glob("step_???????"))
        return states[-1] if states else None
    state = Path(recipe.resume_from_checkpoint)
    if not (state / "model.safetensors").is_file():
        raise RecipeError(
            f"`resume_from_checkpoint` {str(state)!r} is no training state; use 'latest' or a step folder."
        )
    return state


class Log:
    """JSON lines on disk, and Accelerate's trackers; resuming drops records past the state."""

    def __init__(self, path: Path, accelerator: Accelerator, first_step: int):
        self.path, self.accelerator = path, accelerator
        self.records: list[dict[str, Any]] = []
        if first_step and path.is_file():
            self.records = [json.loads(line) for line in path.read_text().splitlines()]
            self.records = [record for record in self.records if record["step"] <= first_step]
        if accelerator.is_main_process:
            path.write_text("".join(json.dumps(record) + "\n" for record in self.records))

    def write(self, record: dict[str, Any]) -> None:
        """Add one record, which has a `step`."""
        self.records.append(record)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])
