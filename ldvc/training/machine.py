"""What a run computes on and how precisely: the recipe decides, never the environment.

`accelerate launch` hands its settings over in environment variables, which Accelerate then reads in place of what a
program asks for. Whatever of them would change the run is set here, or refused with the recipe's key for it.
"""

import os
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

from ldvc.processes import LONGEST_WAIT, check_joined
from ldvc.training.recipe import Recipe, RecipeError


__all__ = ["build_accelerator", "check_environment", "choose_precision"]

OFF = ("", "0", "no", "none", "false", "off", "n", "f")
# What this trainer does not do, and would do only in part.
REFUSED = {
    "ACCELERATE_DYNAMO_BACKEND": "compile the model; launch with --dynamo_backend no",
    "ACCELERATE_USE_DEEPSPEED": "train with DeepSpeed; for weights in shards use recipes/accelerate/fsdp2.yaml",
    "ACCELERATE_USE_MEGATRON_LM": "train with Megatron-LM; for weights in shards use recipes/accelerate/fsdp2.yaml",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "cut the model across devices; launch without a parallelism configuration",
    "ACCELERATE_DOWNCAST_BF16": "take half precision for full; launch without --downcast_bf16",
}


def choose_precision(recipe: Recipe, kept: str | None = None) -> str:
    """Resolve `mixed_precision`: "auto" is bf16 where the device computes in it natively.

    Args:
        recipe: The settings.
        kept: What it was resolved to where the run began, which a resumed one keeps: on a machine without bf16 it
            then takes longer, but is the same run.
    """
    if recipe.mixed_precision != "auto":
        return recipe.mixed_precision
    if kept is not None:
        return kept
    if torch.cuda.is_available() and not recipe.cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    has_native_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if has_native_bf16() else "no"


def check_environment(recipe: Recipe, precision: str) -> None:
    """Refuse what the launcher or the environment asks for where it is not what the recipe says.

    Raises:
        RecipeError: Names the variable, its value and the recipe's key.
    """
    for name, effect in REFUSED.items():
        if (value := os.environ.get(name, "")).strip().lower() not in OFF:
            raise RecipeError(f"{name}={value} in the environment would {effect}, or unset the variable.")
    for name, key, values in (
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "gradient_accumulation_steps",
            [recipe.gradient_accumulation_steps],
        ),
        # "no" is what the launcher says when nobody asked for it
        ("ACCELERATE_MIXED_PRECISION", "mixed_precision", [precision, "no"]),
    ):
        _check_value(name, key, values)


def _check_value(name: str, key: str, values: Iterable[object]) -> None:
    """Refuse a variable that contradicts a key of the recipe.

    Raises:
        RecipeError: Names both.
    """
    allowed = [str(value) for value in values]
    if (value := os.environ.get(name, "").strip().lower()) not in ("", *allowed):
        raise RecipeError(
            f"{name} is {value!r} in the environment (of `accelerate launch`, as a rule), the recipe says "
            f"{key}={allowed[0]}, and the recipe decides: say --{key} {value} behind train.py, or unset the variable."
        )


def build_accelerator(recipe: Recipe, kept_precision: str | None = None) -> Accelerator:
    """Join the other processes and set up devices and precision as the recipe says.

    Args:
        recipe: The settings.
        kept_precision: See `choose_precision`.

    Raises:
        RecipeError: If the environment contradicts the recipe, or the device cannot compute in its precision.
        ValueError: If processes were started together that do not know of each other.
    """
    precision = choose_precision(recipe, kept_precision)
    check_environment(recipe, precision)
    accelerator = Accelerator(
        # of `gradient_accumulation_steps`, the environment would be asked
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=recipe.gradient_accumulation_steps),
        mixed_precision=precision,
        cpu=recipe.cpu,
        log_with=recipe.report_to,
        project_dir=recipe.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],  # the first process may prepare data for hours
    )
    check_joined(accelerator.num_processes)
    if precision != "no" and not accelerator.native_amp:
        raise RecipeError(
            f"`mixed_precision` is {precision!r}, which Accelerate leaves out on this device "
            f"({accelerator.device.type}) without a word; use bf16, no or auto."
        )
    return accelerator
