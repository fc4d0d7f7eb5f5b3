"""Which runtime is fastest for a model on this machine: the core of `ldvc doctor --bench`.

All ways read the same pixels and class embeddings and take turns, so that a busy machine slows all of them. What each
finds is compared with the first of them, PyTorch in float32 where it is there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from ldvc.app.runtimes import Choice, open_model, remember
from ldvc.loading import is_exported, one_line
from ldvc.model.options_ldvc import read_rivals
from ldvc.places import shipped
from ldvc.runtime.programs import Precision, Runtime, check_served, has_bfloat16
from ldvc.runtime.scores import PixelClasses


__all__ = ["Measured", "best_of", "measure_runtimes", "render_runtimes"]

NAMES = ("person", "cat", "dog", "bird", "horse", "car", "bus", "boat", "chair", "sofa")
NAMES += ("table", "bottle", "tree", "grass", "sky", "water", "road", "building", "wall", "floor")
ROUNDS = 5
TOLERANCE = 1e-4  # of logits; other kernels round differently
Logits = Callable[[], np.ndarray]  # one call: (grid_height, grid_width, num_classes)


@dataclass(frozen=True)
class Measured:
    """One way to the same logits.

    Attributes:
        runtime: What ran the model.
        precision: Of matrix products.
        milliseconds: Median of a picture, without reading and writing it.
        difference: The largest difference of a logit from the first way's.
        same_class: Share of the picture's pixels that have the first way's class, 0 to 1.
        problem: Why it could not be measured, in which case the numbers are NaN.
    """

    runtime: Runtime
    precision: Precision
    milliseconds: float = float("nan")
    difference: float = float("nan")
    same_class: float = float("nan")
    problem: str = ""


def measure_runtimes(
    model: str, load_settings: Mapping[str, Any] | None = None, rounds: int = ROUNDS
) -> list[Measured]:
    """Measure every way that this machine has, and remember the best of each precision.

    Args:
        model: Folder or Hub id.
        load_settings: Of `ldvc.load`.
        rounds: Timed calls of each.

    Raises:
        ValueError: If the model cannot be loaded.
    """
    kinds = [(Runtime.ONNX, Precision.FLOAT32), (Runtime.OPENVINO, Precision.FLOAT32)]
    bf16 = [(Runtime.OPENVINO, Precision.BF16)]
    if not is_exported(model):
        kinds, bf16 = [(Runtime.TORCH, Precision.FLOAT32), *kinds], [(Runtime.TORCH, Precision.BF16), *bf16]
    picture = Image.open(shipped("assets/demo_page.jpg")).convert("RGB")
    ways: dict[tuple[Runtime, Precision], Logits] = {}
    problems: dict[tuple[Runtime, Precision], str] = {}
    for kind in kinds + (bf16 if has_bfloat16() else []):
        try:
            check_served(*kind)
            ways[kind] = open_way(Choice(*kind, ""), model, load_settings, picture)
        except ImportError as error:
            problems[kind] = one_line(error)
        except ValueError as error:
            if not ways and kind[0] is Runtime.TORCH:  # the model itself
                raise
            problems[kind] = one_line(error)
    if not ways:
        raise ValueError(f"{model!r} runs in nothing that is here: {'; '.join(problems.values())}")
    found = compare(ways, (picture.height, picture.width), rounds)
    best = {str(precision): entry for precision in Precision if (entry := best_of(found, precision))}
    try:
        remember(model, load_settings, {} if has_accelerator() else best)
    except OSError as error:
        sys.stderr.write(f"not remembered ({one_line(error)}); name a folder for it in LDVC_CACHE.\n")
    return [*found, *(Measured(*kind, problem=text) for kind, text in problems.items())]


def has_accelerator() -> bool:
    """Whether PyTorch would compute on another device than the processor, which `--runtime auto` then leaves to it."""
    if find_spec("torch") is None:
        return False
    from ldvc.loading import pick_device

    return pick_device().type != "cpu"


def open_way(choice: Choice, model: str, load_settings: Mapping[str, Any] | None, picture: Image.Image) -> Logits:
    """One call of a model in a runtime, its picture and classes ready."""
    way: Any = open_model(choice, model, "cpu", None, load_settings)
    embeds = way.resolve({name: [name] for name in NAMES} if way.has_text_tower else None, read_rivals([]))[1]
    pixels = way.prepare(picture, None).pixels
    return lambda: way.logits(pixels, embeds)


def compare(ways: Mapping[tuple[Runtime, Precision], Logits], size: tuple[int, int], rounds: int) -> list[Measured]:
    """Let the ways take turns, and compare what they find with the first."""
    logits = {kind: run() for kind, run in ways.items()}  # the call that does not count, too
    seconds: dict[tuple[Runtime, Precision], list[float]] = {kind: [] for kind in ways}
    for _ in range(rounds):
        for kind, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[kind].append(time.perf_counter() - started)
    maps = {kind: label_map(own, size) for kind, own in logits.items()}
    first = next(iter(ways))
    return [
        Measured(
            *kind,
            milliseconds=1000 * median(seconds[kind]),
            difference=float(np.abs(logits[kind] - logits[first]).max()),
            same_class=float((maps[kind] == maps[first]).mean()),
        )
        for kind in ways
    ]


def label_map(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) classes of a picture."""
    pixels = PixelClasses(logits.shape[-1], size)
    pixels.add_upsampled(logits)
    return pixels.label_map


def best_of(found: Sequence[Measured], precision: Precision) -> dict[str, str] | None:
    """The fastest way in a precision, of float32 among those that agree; `None` without any."""
    fits = [own for own in found if own.precision is precision and not own.problem]
    if precision is Precision.FLOAT32:
        fits = [own for own in fits if own.difference <= TOLERANCE or own is fits[0]]
    if not fits:
        return None
    best = min(fits, key=lambda own: own.milliseconds)
    return {
        "runtime": str(best.runtime),
        "reason": f"the fastest of {len(fits)}, {best.milliseconds:.0f} ms a picture",
    }


def render_runtimes(found: Sequence[Measured]) -> str:
    """A table; then what `--runtime auto` takes from now on."""
    lines = [
        "| runtime | precision | ms a picture | largest difference of a logit | same class |",
        "|---|---|---:|---:|---:|",
    ]
    for own in found:
        numbers = f"{own.milliseconds:.0f} | {own.difference:.1g} | {100 * own.same_class:.2f} %"
        lines.append(f"| {own.runtime} | {own.precision} | {own.problem + ' | | ' if own.problem else numbers} |")
    if has_accelerator():
        return "\n".join([*lines, "", "--runtime auto: torch, on the accelerator that is here"])
    chosen = {precision: best for precision in Precision if (best := best_of(found, precision))}
    auto = [f"auto --precision {own}: {best['runtime']} ({best['reason']})" for own, best in chosen.items()]
    return "\n".join([*lines, "", *(f"--runtime {line}" for line in auto)])
