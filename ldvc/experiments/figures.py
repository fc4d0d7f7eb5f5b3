"""Figures of experiments: scores over training and over the share of seen classes, with a band over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldvc.experiments.ledger import Spread, score_spread


__all__ = ["SWAP_COLORS", "draw_decoder_swap", "draw_few_seen"]

SWAP_COLORS = ("#d9772b", "#2b7bba", "#20222a", "#6a9a3b", "#9a5bb0", "#8a8d96")
Runs = Sequence[Mapping[str, Any]]


def draw_decoder_swap(curves: Sequence[tuple[str, Runs]], path: Path) -> None:
    """Plot mIoU(S) and mIoU(U) over training, one colour per decoder, with the seeds' standard deviation as a band.

    Args:
        curves: Titles with results that have a `curve`.
        path: File to write.

    Raises:
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError("no result has a curve; run rows with `eval_every` first (ldvc experiments).")
    figure, panels = _two_panels("seen classes: mIoU(S), %", "unseen classes: mIoU(U), %", "step")
    for (title, runs), color in zip(curves, SWAP_COLORS, strict=False):
        steps = [record["step"] for record in runs[0]["curve"]]
        for axes, score in zip(panels, ("miou_seen", "miou_unseen"), strict=True):
            spreads = [
                Spread([record[score] for run in runs for record in run["curve"] if record["step"] == step])
                for step in steps
            ]
            _draw_band(axes, steps, spreads, color, title)
    _save(figure, panels, path)


def draw_few_seen(lines: Mapping[str, Mapping[float, Runs]], path: Path) -> None:
    """Plot mIoU(U) and hIoU by the share of seen classes that train, one colour per method, bands as above.

    Args:
        lines: Title -> share of seen classes (0 to 1) -> results over seeds.
        path: File to write.

    Raises:
        ValueError: If there is no line.
    """
    if not lines:
        raise ValueError("no row has results; run recipes/ablations/picturebook_few_seen.yaml first.")
    titles = ("the same unseen classes: mIoU(U), %", "harmonic mean with those that trained: hIoU, %")
    figure, panels = _two_panels(*titles, "share of the seen classes that train, %")
    for (title, by_share), color in zip(lines.items(), SWAP_COLORS, strict=False):
        shares = sorted(by_share)
        for axes, score in zip(panels, ("miou_unseen", "hiou"), strict=True):
            spreads = [score_spread(by_share[share], score) for share in shares]
            _draw_band(axes, [100 * share for share in shares], spreads, color, title)
    for axes in panels:
        axes.set_xticks([25, 50, 75, 100])
    _save(figure, panels, path)


def _two_panels(left: str, right: str, below: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, title in zip(panels, (left, right), strict=True):
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(below, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _draw_band(axes: Any, places: Sequence[float], spreads: Sequence[Spread], color: str, title: str) -> None:
    """Draw means as a line and the standard deviation over seeds as a band, in percent."""
    mean = [100 * spread.mean for spread in spreads]
    width = [100 * spread.deviation if len(spread.numbers) > 1 else 0.0 for spread in spreads]
    low, high = ([m + sign * w for m, w in zip(mean, width, strict=True)] for sign in (-1, 1))
    axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(places, mean, color=color, label=title, linewidth=1.8, marker="o", markersize=3)


def _save(figure: Any, panels: Any, path: Path) -> None:
    for axes in panels:
        axes.set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
