"""Time and memory of a model on this machine, by class count, image size and batch: the core of `ldvc bench`.

Every time is also given as a ratio to the model's own bare vision tower, without prompts, decoder and classes, on the
same pixels. Both run in turn within each repeat, so that a busy machine slows both.
"""

from __future__ import annotations

import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ldvc.model.inference_ldvc import encode_classes


PICTURE_SIZE = (640, 480)  # (width, height) of the pictures that pre- and post-processing work on
WARM_UPS = 2  # calls before the clock; the first ones pick kernels and fill caches


@dataclass(frozen=True)
class BenchCase:
    """One combination to time.

    Attributes:
        num_classes: Class names of the call.
        side: Height and width of the model's input in pixels.
        batch_size: Pictures per call.

    Raises:
        ValueError: If a number is less than 1.
    """

    num_classes: int
    side: int
    batch_size: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; use at least 1.")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, over the repeats.

    Attributes:
        p50: Median.
        p95: 95th percentile.
    """

    p50: float
    p95: float


@dataclass(frozen=True)
class BenchRow:
    """Result of one case; times are per call, that is per batch.

    Attributes:
        case: What was timed.
        tower: The bare vision tower.
        model: Pixels and class embeddings to logits.
        whole: PIL pictures to label maps at their own size: pre-processing, model, post-processing.
        model_ratio: Median over repeats of model by tower.
        model_ratio_range: Its lowest and highest.
        whole_ratio: Median over repeats of whole by tower.
        whole_ratio_range: Its lowest and highest.
        text_ms: Encoding the class names, once per list; `None` for a baked vocabulary, which has no text tower.
        peak_mb: Highest resident memory of the process during the case in MB (10^6 bytes); `None` where the system
            does not tell.
        peak_device_mb: The same of the accelerator's allocations; `None` on the CPU.
    """

    case: BenchCase
    tower: Timing
    model: Timing
    whole: Timing
    model_ratio: float
    model_ratio_range: tuple[float, float]
    whole_ratio: float
    whole_ratio_range: tuple[float, float]
    text_ms: float | None
    peak_mb: float | None
    peak_device_mb: float | None


def run_bench(model: nn.Module, processor: Any, cases: Sequence[BenchCase], repeats: int) -> Iterator[BenchRow]:
    """Time each case.

    Args:
        model: Any segmenter in eval mode, on its device.
        processor: Its processor.
        cases: What to time.
        repeats: Timed calls per case.

    Yields:
        One row per case.

    Raises:
        ValueError: If `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; use at least 1.")
    for case in cases:
        yield time_case(model, processor, case, repeats)


@torch.inference_mode()
def time_case(model: nn.Module, processor: Any, case: BenchCase, repeats: int) -> BenchRow:
    """Time tower, model and the whole way in turn."""
    device = model.device
    gc.collect()
    reset_peak(device)
    class_embeds, text_ms = encode_names(model, processor, case.num_classes)
    steps = build_steps(model, processor, case, class_embeds)
    for _ in range(WARM_UPS):
        for step in steps.values():
            step()
    times = np.array([[clock(step, device) for step in steps.values()] for _ in range(repeats)])  # (repeats, 3)
    tower, bare_model, whole = (
        Timing(*(round(float(np.percentile(column, q)), 3) for q in (50, 95))) for column in times.T
    )
    ratios = [spread_of(times[:, column] / times[:, 0]) for column in (1, 2)]
    return BenchRow(case, tower, bare_model, whole, *ratios[0], *ratios[1], text_ms, *read_peak(device))


def spread_of(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Median, and lowest and highest."""
    median, low, high = (round(float(value), 3) for value in (np.median(values), values.min(), values.max()))
    return median, (low, high)


def build_steps(
    model: nn.Module, processor: Any, case: BenchCase, class_embeds: Tensor
) -> dict[str, Callable[[], Any]]:
    """Make the three calls that are timed, on noise of a fixed seed."""
    rng = np.random.default_rng(0)
    width, height = PICTURE_SIZE
    noise = rng.integers(0, 256, (case.batch_size, height, width, 3), dtype=np.uint8)
    pictures = [Image.fromarray(array) for array in noise]
    size = {"height": case.side, "width": case.side}
    pixel_values = processor(images=pictures, size=size, return_tensors="pt")["pixel_values"].to(model.device)
    pixel_values = pixel_values.to(model.dtype)
    vision_model = find_tower(model)

    def run_whole() -> list[Tensor]:
        inputs = processor(images=pictures, size=size, return_tensors="pt").to(model.device, model.dtype)
        outputs = {"logits": model(**inputs, class_embeds=class_embeds).logits}
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(height, width)] * len(pictures))
        return [label_map.cpu() for label_map in maps]

    return {
        "tower": lambda: vision_model(pixel_values, interpolate_pos_encoding=True),
        "model": lambda: model(pixel_values=pixel_values, class_embeds=class_embeds),
        "whole": run_whole,
    }


def find_tower(model: nn.Module) -> nn.Module:
    """The model's own vision tower, whatever kind of segmenter it is.

    Raises:
        ValueError: If it has none, as an exported program.
    """
    tower = next((module for name, module in model.named_modules() if name.split(".")[-1] == "vision_model"), None)
    if tower is None:
        raise ValueError("an exported program has no vision tower of its own to compare with; time its checkpoint.")
    return tower


def encode_names(model: nn.Module, processor: Any, num_classes: int) -> tuple[Tensor, float | None]:
    """Class embeddings of so many names, and the milliseconds they took; random ones for a baked vocabulary."""
    if getattr(model, "baked_vocabulary", None) is not None:
        embeds = torch.randn(num_classes, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
        return F.normalize(embeds, dim=-1).to(model.device, model.dtype), None
    names = [f"thing {index}" for index in range(num_classes)]
    encode_classes(model, processor, names[:1])  # warm
    kept = {}
    milliseconds = clock(lambda: kept.update(embeds=encode_classes(model, processor, names)[1]), model.device)
    return kept["embeds"], round(milliseconds, 3)


def clock(step: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of one call, until the device is done with it."""
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return 1000 * (time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
    except OSError:
        return


def read_peak(device: torch.device) -> tuple[float | None, float | None]:
    """Peak of resident and of device memory in MB; where it cannot be reset, the process's own so far."""
    on_device = round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else None
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return round(kibibytes * 1024 / 1e6, 1), on_device
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None, on_device
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1), on_device


def all_cases(class_counts: Sequence[int], sides: Sequence[int], batch_sizes: Sequence[int]) -> list[BenchCase]:
    """Every combination, batches slowest."""
    return [
        BenchCase(num_classes, side, batch_size)
        for batch_size, side, num_classes in product(batch_sizes, sides, class_counts)
    ]


def describe_machine(model: nn.Module) -> dict[str, Any]:
    """What the times depend on."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device} ({name})",
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def row_to_dict(row: BenchRow) -> dict[str, Any]:
    """A row for JSON."""
    return asdict(row)


def render_rows(rows: Sequence[BenchRow]) -> str:
    """Markdown table of all rows."""
    heads = ["classes", "pixels", "batch", "tower p50", "model p50", "p95", "x tower", "whole p50", "p95", "x tower"]
    heads += ["names, once", "peak MB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---:|" * len(heads)]
    for row in rows:
        peaks = [f"{peak:.0f}" for peak in (row.peak_mb, row.peak_device_mb) if peak is not None]
        cells = [
            row.case.num_classes,
            row.case.side,
            row.case.batch_size,
            f"{row.tower.p50:.1f}",
            f"{row.model.p50:.1f}",
            f"{row.model.p95:.1f}",
            f"{row.model_ratio:.2f}",
            f"{row.whole.p50:.1f}",
            f"{row.whole.p95:.1f}",
            f"{row.whole_ratio:.2f}",
            "-" if row.text_ms is None else f"{row.text_ms:.1f}",
            " + ".join(peaks) or "-",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
