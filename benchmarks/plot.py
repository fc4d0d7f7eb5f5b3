"""The plot of the scaling laws: measurements with min and max, and the fitted lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import read_results


COLOR, LAW_COLOR = "#2b7bba", "#d9772b"
POINTS = {"fmt": "o", "color": COLOR, "markersize": 4, "capsize": 3, "linewidth": 1}
PANELS = (
    ("sides", "whole model, 20 classes", "image tokens"),
    ("classes", "decoder, 512 x 512", "classes"),
    ("batches", "whole model, 224 x 224", "images per call"),
)


def draw_scaling(path: Path) -> bool:
    """Draw the four series.

    Args:
        path: File to write.

    Returns:
        Whether there was a result to draw.
    """
    from matplotlib.figure import Figure

    result = read_results().get("scaling")
    if result is None:
        return False
    figure = Figure(figsize=(11, 3.1), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 4)
    for axes, (name, title, unit) in zip(panels, PANELS, strict=False):
        draw_series(axes, result["series"][name])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(unit, fontsize=9)
    panels[0].set_ylabel("seconds per call", fontsize=9)
    draw_processes(panels[3], result["series"]["processes"])
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return True


def draw_series(axes: Any, series: Mapping[str, Any]) -> None:
    """Points of a series over the law's first column, and the law."""
    coefficients = list(series["law"]["coefficients"].values())  # of 1, x and, for tokens, x squared
    at = next(iter(series["law"]["columns"].values()))
    x = np.linspace(0, max(at), 100)
    law = sum(coefficient * x**power for power, coefficient in enumerate(coefficients))
    axes.plot(x, law, color=LAW_COLOR, linewidth=1.4, label="fitted")
    axes.errorbar(at, *medians([point["seconds"] for point in series["points"]]), **POINTS, label="measured")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def draw_processes(axes: Any, series: Mapping[str, Any]) -> None:
    """Pictures per second by number of processes."""
    speeds = []
    for point in series["points"]:
        low, middle, high = (series["pictures"] / point["seconds"][key] for key in ("max", "median", "min"))
        speeds.append({"median": middle, "min": low, "max": high})
    names = [str(point["at"]) for point in series["points"]]
    middle, errors = medians(speeds)
    axes.bar(names, middle, yerr=errors, color=COLOR, width=0.5, capsize=3, error_kw={"linewidth": 1})
    axes.set_title("pictures of 352 x 352", loc="left", fontsize=10)
    axes.set_xlabel("processes that share the cores", fontsize=9)
    axes.set_ylabel("pictures per second", fontsize=9)


def medians(spreads: list[Mapping[str, float]]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far min and max lie below and above."""
    middle = [spread["median"] for spread in spreads]
    below = [spread["median"] - spread["min"] for spread in spreads]
    return middle, [below, [spread["max"] - spread["median"] for spread in spreads]]
