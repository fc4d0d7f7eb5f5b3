"""`ldvc segment --engine ray` with two actors against two plain processes of Accelerate: rows per second.

Both are commands that people run, one thread per process, in turn. Rows per second are those of the middle half of the
results, by the times of their files, which leaves out how long the engines take to start and to end; `whole` is the
whole command.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import Settings, ratio, spreads


TITLE = "Ray with two actors / two plain processes, pictures of 320 x 240, one thread each"
GOALS = {"rows_per_second": ("at least", 0.9)}
ROOT = Path(__file__).resolve().parent.parent
NUM_PICTURES, SIZE = 1000, (320, 240)  # (width, height)
NAMES = "cat, sky, grass, balloon"
PLAIN = ("accelerate.commands.launch", "--main_process_port", "0", "--num_processes", "2")
PLAIN += ("--config_file", str(ROOT / "recipes/accelerate/two_cpu_processes.yaml"), "-m", "ldvc")
WAYS = {"ray": (("ldvc",), ("--engine", "ray", "--actors", "2")), "plain": (PLAIN, ())}


def write_pictures(folder: Path, count: int) -> None:
    """Write pictures of smooth noise."""
    rng = np.random.default_rng(0)
    for index in range(count):
        blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{index:04}.jpg", quality=90)


def run(way: str, source: Path, output: Path) -> tuple[float, float]:
    """Segment a folder one way; returns seconds, and rows per second of the middle half of the results.

    Raises:
        RuntimeError: If the command fails.
    """
    launcher, options = WAYS[way]
    words = ["segment", source, "--labels", NAMES, "--output", output, "--format", "png", "--device", "cpu", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{way} ended with {done.returncode}: {done.stderr[-300:]}")
    times = sorted(path.stat().st_mtime for path in output.glob("*.png"))
    first, last = len(times) // 4, 3 * len(times) // 4
    return seconds, (last - first) / (times[last] - times[first])


def measure(settings: Settings) -> dict[str, Any]:
    """Run both ways in turn.

    Raises:
        ValueError: If their label maps differ, or another device than the CPU is asked for.
    """
    if settings.device != "cpu":
        raise ValueError("processes share the cores of the CPU here; leave --device out.")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "photos")
        source.mkdir()
        write_pictures(source, 12 if settings.quick else NUM_PICTURES)
        for number in range(settings.repeats):
            outputs = {way: Path(place, f"{way}{number}") for way in WAYS}
            for way, output in outputs.items():
                whole, rate = run(way, source, output)
                seconds[way].append(whole)
                rates[way].append(rate)
            for path in outputs["plain"].glob("*.png"):
                if path.read_bytes() != (outputs["ray"] / path.name).read_bytes():
                    raise ValueError(f"the label maps of {path.name} differ; no ratio is given.")
    ratios = {"rows_per_second": ratio(rates, "ray", "plain"), "whole": ratio(seconds, "ray", "plain")}
    return {"ratios": ratios, "seconds": spreads(seconds), "rates": spreads(rates), "pictures": NUM_PICTURES}
