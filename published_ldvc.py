"""What others published, from results/published.yaml, with our own results beside it. None of it was measured here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ledger_ldvc import REPORTED, load_results, score_spread


__all__ = ["BENCHMARKS", "SETTINGS", "PublishedError", "PublishedRow", "load_published", "published_table"]

ROOT = Path(__file__).resolve().parent
PUBLISHED = ROOT / "results" / "published.yaml"
BENCHMARKS = {"voc2012": "VOC 2012", "coco_stuff": "COCO-Stuff", "pascal_context": "Context"}
SETTINGS = ("inductive", "transductive", "fully_supervised", "cross_dataset")
# Recipes and their results are called by the short name.
SHORT_NAMES = {"fully_supervised": "supervised"}
TOLERANCE = 0.2  # percentage points of hIoU; two rounded scores explain less


class PublishedError(ValueError):
    """A published figure that cannot be used; the message names file, setting, method and field."""


@dataclass(frozen=True)
class PublishedRow:
    """One method in one setting.

    Attributes:
        method: Its name.
        source: Key of the source, or several, or words.
        scores: Benchmark -> (pAcc, mIoU(S), mIoU(U), hIoU) in percent, `None` where none is printed; for the
            cross-dataset setting one mIoU.
        is_derived: No source prints the row; it follows from other figures of the source.
    """

    method: str
    source: str
    scores: Mapping[str, tuple[float | None, ...]]
    is_derived: bool = False


def harmonic_mean(seen: float, unseen: float) -> float:
    """Harmonic mean of two scores."""
    return 2 * seen * unseen / (seen + unseen)


def contradicts_itself(scores: tuple[float | None, ...]) -> bool:
    """Whether a printed hIoU does not follow from the mIoU(S) and mIoU(U) beside it."""
    if len(scores) < 4 or None in scores[1:]:
        return False
    return abs(harmonic_mean(scores[1], scores[2]) - scores[3]) > TOLERANCE


def load_published(path: Path = PUBLISHED) -> dict[str, Any]:
    """Read and check the published figures.

    Returns:
        "sources" and "notes" as in the file, and for each setting a list of `PublishedRow`.

    Raises:
        PublishedError: If the file is no YAML, lacks a part, or a figure is no percentage.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise PublishedError(f"{path}: cannot be read ({error}).") from error
    for key in ("sources", "notes", *SETTINGS):
        if not isinstance(content, dict) or not content.get(key):
            raise PublishedError(f"{path}: lacks '{key}'.")
    return content | {
        setting: [_read_row(row, f"{path}: {setting}", setting) for row in content[setting]] for setting in SETTINGS
    }


def _read_row(row: Any, where: str, setting: str) -> PublishedRow:
    """Check one row.

    Raises:
        PublishedError: Names the method and the field.
    """
    for key in ("method", "source"):
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise PublishedError(f"{where}: row {row!r} lacks '{key}'.")
    where = f"{where}: {row['method']}"
    unknown = set(row) - {"method", "source", "derived", *BENCHMARKS}
    if unknown:
        raise PublishedError(f"{where}: unknown field '{min(unknown)}'.")
    scores = {}
    for benchmark in BENCHMARKS:
        if benchmark not in row:
            continue
        values = row[benchmark] if isinstance(row[benchmark], list) else [row[benchmark]]
        if len(values) != (1 if setting == "cross_dataset" else 4):
            raise PublishedError(f"{where}: '{benchmark}' is {row[benchmark]!r}; give pAcc, mIoU(S), mIoU(U), hIoU.")
        if not all(v is None or (isinstance(v, (int, float)) and 0 <= v <= 100) for v in values):
            raise PublishedError(f"{where}: '{benchmark}' is {row[benchmark]!r}; give percentages or null.")
        scores[benchmark] = tuple(values)
    return PublishedRow(row["method"], row["source"], scores, bool(row.get("derived", False)))


def format_scores(scores: tuple[float | None, ...], is_derived: bool = False) -> str:
    """Write scores as "pAcc / mIoU(S) / mIoU(U) / hIoU"; derived ones are no more than about right."""
    sign = "≈" if is_derived else ""
    cells = ["-" if value is None else f"{sign}{value:.1f}" for value in scores]
    if contradicts_itself(scores):
        cells[-1] += " ≠"
    if len(scores) == 4 and scores[3] is None and None not in scores[1:3]:
        cells[-1] = f"{harmonic_mean(scores[1], scores[2]):.1f}*"
    return " / ".join(cells)


def own_scores(setting: str, results: Path) -> dict[str, str]:
    """Our own scores of a setting, from results/BENCHMARK/SETTING_seed*.json: benchmark -> cell; empty without runs.

    Args:
        setting: One of `SETTINGS`.
        results: The ledger's folder.
    """
    cells = {}
    for benchmark in BENCHMARKS:
        runs = load_results(results / benchmark, SHORT_NAMES.get(setting, setting))
        if runs:
            names = ("miou",) if setting == "cross_dataset" else REPORTED
            cells[benchmark] = " / ".join(score_spread(runs, name).format() for name in names)
    return cells


def published_table(setting: str, results: Path = ROOT / "results") -> str:
    """Published figures of one setting beside ours where they exist.

    Args:
        setting: One of `SETTINGS`.
        results: The ledger's folder.
    """
    published = load_published(results / "published.yaml")
    rows = published[setting]
    columns = [name for name in BENCHMARKS if any(name in row.scores for row in rows)]
    lines = [
        "| method | " + " | ".join(BENCHMARKS[name] for name in columns) + " | source |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for row in rows:
        cells = [format_scores(row.scores[name], row.is_derived) if name in row.scores else "-" for name in columns]
        kind = "derived" if row.is_derived else "published"
        lines.append(f"| {row.method} | {' | '.join(cells)} | {kind}: {row.source} |")
    ours = own_scores(setting, results)
    if ours:
        cells = [ours.get(name, "-") for name in columns]
        lines.append(f"| **LDVC, this repository** | {' | '.join(cells)} | measured |")
    letters = {word for row in rows for word in re.findall(r"\w+", row.source)}
    used = [key for key in published["sources"] if key in letters]
    what = "mIoU" if setting == "cross_dataset" else "pAcc / mIoU(S) / mIoU(U) / hIoU"
    signs = " ≠: the hIoU does not follow from the scores beside it; *: hIoU computed from them."
    note = f"{what}, percent.{'' if setting == 'cross_dataset' else signs} {published['notes'][setting]}"
    if not ours:
        note += " Ours: no run on these benchmarks yet."
    sources = "; ".join(f"{key} = {published['sources'][key]}" for key in used)
    return "\n".join([*lines, "", note, "", f"Sources: {sources}."])
