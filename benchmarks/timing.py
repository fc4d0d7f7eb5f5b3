"""Timing two or more things in turn in one process, so that a busy machine slows all of them alike."""

import os
import platform
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
import transformers

from bench_ldvc import clock


def take_turns(jobs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Run the jobs one after the other, `repeats` times over, after one call each that does not count.

    Args:
        jobs: Name -> call.
        repeats: Timed rounds, at least 1.

    Returns:
        Name -> `median`, `min` and `max` in seconds.

    Raises:
        ValueError: If `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; use at least 1.")
    device = torch.device("cpu")
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            seconds[name].append(clock(job, device) / 1000)
    return {name: {"median": median(times), "min": min(times), "max": max(times)} for name, times in seconds.items()}


def describe_machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
