"""The table of a list of experiments: all rows that have results, group by group, and what is missing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldvc.experiments.ablations import Collected, Experiments, Row, collect
from ldvc.experiments.ledger import REPORTED, score_spread


__all__ = ["UNLESS_NAMED", "ablation_tables", "left_out_notes"]

UNLESS_NAMED = " unless the row names others"
ABLATION_HEADS = (
    *("pAcc", "mIoU(S)", "mIoU(U)", "hIoU", "S, 0.1 off", "U, 0.1 off", "hIoU, 0.1 off"),
    *("fragments", "trained, M", "seeds"),
)


def left_out_notes(experiments: Experiments, collected: Collected) -> list[str]:
    """A line for each row that has results which may not stand in the table."""
    titles = {row.name: row.title for row in experiments.rows}
    return [f"Left out: {titles[name]}, {reason}." for name, reason in collected.left_out.items()]


def ablation_row(row: Row, results: Sequence[Mapping[str, Any]]) -> str:
    """One row of the table of experiments; CLIP without training is the same at every seed."""
    results = results[:1] if row.training_free else results
    cells = [score_spread(results, score).format() for score in REPORTED]
    cells += [score_spread(results, score, "0.1").format() for score in ("miou_seen", "miou_unseen", "hiou")]
    cells.append(score_spread(results, "fragments").format(1.0, 2))
    parameters = score_spread(results, "trainable_parameters").mean
    return f"| {row.title} | {' | '.join(cells)} | {parameters / 1e6:.2f} | {len(results)} |"


def ablation_tables(
    experiments: Experiments, folder: Path | None = None, rows: Sequence[Row] | None = None, extra: Sequence[str] = ()
) -> str:
    """Render all rows of a list that have results, group by group; the others are named below.

    Args:
        experiments: The list.
        folder: Folder of the result files; the ledger's by default.
        rows: The rows to show; all by default.
        extra: Keys and values that were handed to every run.
    """
    rows = experiments.rows if rows is None else rows
    collected = collect(experiments, folder, extra)
    lines = [f"| | {' | '.join(ABLATION_HEADS)} |", "|" + "---|" * (len(ABLATION_HEADS) + 1)]
    for group, question in experiments.groups.items():
        shown = [row for row in rows if row.group == group and row.name in collected.results]
        if shown:
            lines.append(
                f"| *{'' if group == 'reference' else f'({group}) '}{question}* |" + " |" * len(ABLATION_HEADS)
            )
            lines += [ablation_row(row, collected.results[row.name]) for row in shown]
    return "\n".join([*lines, "", *ablation_notes(experiments, rows, collected)])


def ablation_notes(experiments: Experiments, rows: Sequence[Row], collected: Collected) -> list[str]:
    """Lines below the table: what the numbers are, and which rows are missing."""
    runs = [run for row in rows for run in collected.results.get(row.name, [])]
    notes = []
    if runs:
        commits = sorted({run["commit"][:7] + run["commit"][40:] for run in runs})
        again = sorted({run["scored_by"]["commit"][:7] for run in runs if "scored_by" in run})
        commits = ", ".join(commits) + (f"; scored again with {', '.join(again)}" if again else "")
        steps = next((f", {run['recipe']['max_steps']} steps{UNLESS_NAMED}" for run in runs if "recipe" in run), "")
        notes.append(
            f"Percent, mean ± standard deviation over seeds; {runs[0]['num_images']} held-out scenes per seed{steps}. "
            "0.1 off: 0.1 subtracted from the probability of seen classes. Fragments: connected components per "
            f"predicted class and image. Code: {commits}."
        )
    missing = [row.title for row in rows if row.name not in collected.results and row.name not in collected.left_out]
    if missing:
        notes.append(f"Not run: {'; '.join(missing)}.")
    notes += left_out_notes(experiments, collected)
    return [line for note in notes for line in (note, "")][:-1]
