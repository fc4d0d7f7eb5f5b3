"""Measure the figures of README's table of cost: ratios of two things that run in turn.

    python -m benchmarks                  all figures that results/benchmarks/ does not have yet
    python -m benchmarks loss routing     some of them
    python -m benchmarks --replace        again, all of them
    python -m benchmarks --list           their names, goals and what was measured

Figures of a CUDA device are open where there is none; a plain run says so.

Each figure is one module with one result file, written as soon as it is done, so a run that was stopped continues
where it was. Every figure first compares the results of the two things, and stops if they differ. `--quick` runs tiny
sizes to see that everything works; its figures mean nothing and are not kept.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.models import ATTENTION
from benchmarks.timing import Settings, describe_machine
from ldvc.data.provenance import code_version, write_json


RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
FIGURES = ("tower", "clipseg", "segmenters", "classes", "text", "loss", "training", "postprocess", "metric", "routing")
FIGURES += ("startup", "training_free", "profile", "latency", "scaling", "memory_plan", "onnx", "engines", "gpu")
OPEN = "open, for want of a CUDA device; `python -m benchmarks gpu --device cpu --quick` checks that the code runs."
COMPARISONS = {"at most": float.__le__, "at least": float.__ge__}


def load_figure(name: str) -> ModuleType:
    """The module of a figure; imported when it runs, since some need the libraries of an extra."""
    return importlib.import_module(f"benchmarks.{name}")


def run_figure(name: str, settings: Settings) -> dict[str, Any]:
    """Measure one figure and put its goals, settings and the machine beside it."""
    figure = load_figure(name)
    measured = figure.measure(settings)
    return {
        "name": name,
        "title": figure.TITLE,
        "goals": {key: {"relation": relation, "value": value} for key, (relation, value) in figure.GOALS.items()},
        "repeats": settings.repeats,
        "quick": settings.quick,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "device": settings.device,
        "attention": ATTENTION,
        "clock": settings.clock,
        "machine": describe_machine(),
        "commit": code_version(),
        **measured,  # may speak for itself where a setting differs from row to row
    }


def summarise(result: dict[str, Any]) -> str:
    """A line per ratio: median, min, max, and the goal."""
    lines = [result["title"]]
    for key, value in result["ratios"].items():
        median = value["median"] if isinstance(value, dict) else float(value)
        extent = f" ({value['min']:.2f} to {value['max']:.2f})" if isinstance(value, dict) else ""
        goal = result["goals"].get(key)
        verdict = ""
        if goal and not result["quick"]:
            reached = COMPARISONS[goal["relation"]](median, float(goal["value"]))
            verdict = f"; goal {goal['relation']} {goal['value']:g}: {'reached' if reached else 'missed'}"
        lines.append(f"  {key}: {median:.2f}{extent}{verdict}")
    return "\n".join(lines) + "\n"


def describe(figure: ModuleType) -> str:
    """What a figure would measure, and its goals."""
    goals = [f"{key} {relation} {value:g}" for key, (relation, value) in figure.GOALS.items()]
    return f"{figure.TITLE}\n  not measured yet{'; goals: ' if goals else ''}{', '.join(goals)}\n"


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"all by default: {', '.join(FIGURES)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round, nothing kept")
    parser.add_argument("--replace", action="store_true", help="measure again what has a result")
    parser.add_argument("--list", action="store_true", help="measure nothing; show what there is")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; by default as it chooses")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: the process's own time, for a busy machine; with --threads 1",
    )
    parser.add_argument("--device", help="cpu or cuda; by default each figure's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.figures if name not in FIGURES]
    if unknown:
        parser.error(f"{unknown[0]!r} is no figure; use some of {', '.join(FIGURES)}.")
    if arguments.repeats < 1:
        parser.error(f"--repeats is {arguments.repeats}; use at least 1.")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print; returns the exit code: 1 if a figure could not be measured."""
    arguments = read_arguments(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    failed = False
    for name in arguments.figures or FIGURES:
        path = arguments.output / f"{name}.json"
        if path.is_file() and not (arguments.replace or arguments.quick):
            sys.stdout.write(f"{name}: {summarise(json.loads(path.read_text()))}")
        elif arguments.list:
            sys.stdout.write(f"{name}: {describe(load_figure(name))}")
        else:
            failed |= not measure_and_write(name, arguments, path)
    return int(failed)


def measure_and_write(name: str, arguments: argparse.Namespace, path: Path) -> bool:
    """Measure one figure; a failure is told and does not stop the others."""
    try:
        device = choose_device(load_figure(name), arguments)
        if device is None:
            sys.stdout.write(f"{name}: {OPEN}\n")
            return name not in arguments.figures
        repeats, dtype = 1 if arguments.quick else arguments.repeats, getattr(torch, arguments.dtype)
        result = run_figure(name, Settings(arguments.quick, repeats, device, dtype, arguments.clock))
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return False
    if not arguments.quick:
        write_json(result, path)
    sys.stdout.write(f"{name}: {summarise(result)}")
    return True


def choose_device(figure: ModuleType, arguments: argparse.Namespace) -> str | None:
    """The device that was asked for, or the figure's own; `None` where that is a CUDA device and there is none."""
    device = arguments.device or getattr(figure, "DEVICE", "cpu")
    if arguments.device or device == "cpu" or torch.cuda.is_available():
        return device
    return "cpu" if arguments.quick else None


if __name__ == "__main__":
    sys.exit(main())
