"""Timing two or more things in turn in one process, so that a busy machine slows all of them alike."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from ldvc.app.bench import synchronize


Seconds = dict[str, list[float]]  # job -> seconds of each round


@dataclass(frozen=True)
class Settings:
    """How a figure is measured.

    Attributes:
        quick: Tiny sizes, to see that everything runs; the figures then mean nothing.
        repeats: Timed rounds.
        device: Where models run.
        dtype: Of the models' weights and pixels.
        clock: `"wall"`, or `"processor"`: the time that this process really ran, which other work on the machine
            changes little. Only one thread makes it comparable with wall time, and it sees no accelerator.

    Raises:
        ValueError: If `repeats` is less than 1, or the processor's time is asked of an accelerator.
    """

    quick: bool = False
    repeats: int = 5
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    clock: str = "wall"

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; use at least 1.")
        if self.clock == "processor" and self.device != "cpu":
            raise ValueError(f"the processor's time says nothing of {self.device}; use clock='wall'.")


def time_rounds(jobs: Mapping[str, Callable[[], Any]], settings: Settings) -> Seconds:
    """Run the jobs one after the other, round after round, after one call each that does not count."""
    for job in jobs.values():
        job()
    seconds: Seconds = {name: [] for name in jobs}
    for _ in range(settings.repeats):
        for name, job in jobs.items():
            seconds[name].append(time_once(job, settings))
    return seconds


def time_once(job: Callable[[], Any], settings: Settings) -> float:
    """Seconds of one call, by the settings' clock."""
    started = read_clock(settings)
    job()
    return read_clock(settings) - started


def read_clock(settings: Settings) -> float:
    """Seconds by the settings' clock, once the device has done all that was asked of it."""
    synchronize(torch.device(settings.device))
    return time.perf_counter() if settings.clock == "wall" else time.process_time()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, min and max."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def spreads(seconds: Seconds) -> dict[str, dict[str, float]]:
    """Median, min and max of every job in seconds."""
    return {name: spread(values) for name, values in seconds.items()}


def ratio(seconds: Seconds, over: str, under: str) -> dict[str, float]:
    """Spread of the ratios of two jobs, each taken within one round."""
    return spread([a / b for a, b in zip(seconds[over], seconds[under], strict=True)])


def describe_machine() -> dict[str, Any]:
    """What the figures depend on beside the code, how busy the machine was included."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def processor_name() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
