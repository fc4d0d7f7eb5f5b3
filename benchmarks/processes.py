"""Whole processes of `ldvc segment`: their time, their memory, and when each picture was done."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        seconds: From its start to its end.
        per_picture: Seconds from mask to mask after the first; NaN of a single picture.
        peak_megabytes: The most resident memory that it held, by Linux's own record.
    """

    seconds: float
    per_picture: float
    peak_megabytes: float


def draw_photographs(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> None:
    """Write pictures with shapes of every size, as photographs have, as JPEG.

    Args:
        folder: Made where it does not exist.
        count: How many.
        size: (width, height) in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        layers = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (4, 16, 64)]
        parts = [np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC), float) for layer in layers]
        picture = Image.fromarray(np.average(parts, axis=0, weights=(4, 2, 1)).astype(np.uint8))
        picture.filter(ImageFilter.SHARPEN).save(folder / f"{index:04}.jpg", quality=90)


def run_segment(code: Path, pictures: Path, output: Path, *options: str) -> Run:
    """Segment pictures in a process of its own.

    Args:
        code: Work tree whose `ldvc` runs.
        pictures: A file or a folder.
        output: Must not exist.
        options: Of `ldvc segment`, beside `--format png`.

    Raises:
        RuntimeError: If it fails.
    """
    module = "ldvc" if (code / "ldvc").is_dir() else "cli_ldvc"  # of before December 2026
    words = [sys.executable, "-P", "-m", module, "segment", str(pictures), "--output", str(output), "--format", "png"]
    environment = {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"}
    started, peak = time.perf_counter(), 0
    child = os.posix_spawn(sys.executable, [*words, "--device", "cpu", *options], environment)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        peak = max(peak, peak_kilobytes(child))  # what wait4 gives counts this process's own memory, too
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    if ended[1]:
        raise RuntimeError(f"{' '.join(words[3:])} ended with {os.waitstatus_to_exitcode(ended[1])}")
    times = sorted(path.stat().st_mtime_ns for path in output.glob("*.png"))
    per_picture = (times[-1] - times[0]) / 1e9 / (len(times) - 1) if len(times) > 1 else float("nan")
    return Run(seconds, per_picture, peak / 1000)


def peak_kilobytes(process_id: int) -> int:
    """Most memory that a process of Linux has held; 0 where it has just ended."""
    text = Path(f"/proc/{process_id}/status").read_text()
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")), 0)


def same_pixels(first: Path, second: Path) -> float:
    """Share of the pixels of two folders of label maps that agree, 0 to 1."""
    shares = [
        (np.asarray(Image.open(path)) == np.asarray(Image.open(second / path.name))).mean()
        for path in sorted(first.glob("*.png"))
    ]
    return float(np.mean(shares))
