"""The result ledger: files in results/, checked field by field before any number of them is printed.

A result is what `train.py` or `ldvc evaluate` wrote: scores, and what they can be traced to. `ldvc experiments` adds
the curve of a run, its CLIP's fingerprint and its command. Results of one row differ in their seed and nothing else.

What others published is in results/published.yaml; `published_table` sets ours beside it.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldvc.data.vocabularies import SETTINGS
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.places import ROOT
from ldvc.training.recipe import Recipe, model_fields


__all__ = [
    "BENCHMARKS",
    "CLIP_KEY",
    "REPORTED",
    "LedgerError",
    "PublishedError",
    "PublishedRow",
    "Spread",
    "check_result",
    "clip_fingerprint",
    "differences",
    "load_published",
    "load_result",
    "load_results",
    "published_table",
    "read_results",
    "score_of",
    "score_spread",
    "settings_hash",
    "settings_of",
    "settings_of_result",
]

REPORTED = ("pixel_accuracy", "miou_seen", "miou_unseen", "hiou")
FRAGMENTS = "components_per_class_and_image"
# Field -> type, for every result; then for those of train.py (they hold a recipe) and of ldvc evaluate.
CLIP_KEY = "CLIP's fingerprint"  # among settings
NUMBER = (int, float)
COMMON_FIELDS = {
    "num_images": int,
    "scores": dict,
    "commit": str,
    "config_sha256": str,
    "dataset_fingerprint": str,
    "versions": dict,
}
TRAINED_FIELDS = {"recipe": dict, "seed": int, "training_seconds": NUMBER, "trainable_parameters": int}
EVALUATED_FIELDS = {"protocol": dict, "seconds": NUMBER}
# The published figures' benchmarks and settings. Recipes and their results are called by the short name.
BENCHMARKS = {"voc2012": "VOC 2012", "coco_stuff": "COCO-Stuff", "pascal_context": "Context"}
SHORT_NAMES = {"fully_supervised": "supervised"}
PUBLISHED_OFFSETS = {"inductive": ("0.1", "0.0")}  # that of the published figures first; elsewhere there is none
TOLERANCE = 0.2  # percentage points of a printed hIoU; two rounded scores explain less
# Keys of a recipe that reach neither weights nor scores.
NOT_SETTINGS = (
    *("seed", "output_dir", "overwrite_output_dir", "results_file", "save_every", "keep_states", "save_adapter_only"),
    *("resume_from_checkpoint", "log_every", "report_to", "cpu", "push_to_hub", "hub_model_id", "num_workers"),
    *("num_pictures", "window_batch_size"),
)
NOT_EVALUATION_SETTINGS = ("checkpoint", "output", "floor", "predictions", "window_batch_size")
# Those that the score of a CLIP without training depends on.
FLOOR_SETTINGS = (
    *("dataset", "dataset_config", "dataset_revision", "eval_split", "image_column", "label_column", "reduce_labels"),
    *("num_eval_images", "vocabulary", "class_names", "unseen_classes", "seen_share", "clip", "image_stats"),
    *("crop_size", "short_side", "window", "stride"),
)


class LedgerError(ValueError):
    """A result that cannot be used; the message names the file, the field and the remedy."""


class PublishedError(LedgerError):
    """A published figure that cannot be used; the message names file, setting, method and field."""


def load_result(path: str | Path) -> dict[str, Any]:
    """Read and check one result file.

    Raises:
        LedgerError: If the file is missing, no JSON, or a field is missing or has an impossible value.
    """
    path = Path(path)
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror}); run the row again.") from error
    except json.JSONDecodeError as error:
        raise LedgerError(f"{path}: no valid JSON ({error}); delete it and run the row again.") from error
    check_result(result, str(path))
    return result


def check_result(result: Any, where: str) -> None:
    """Check that a result has every field that a table or a trace needs.

    Args:
        result: The content of a result file.
        where: What to call it in messages.

    Raises:
        LedgerError: Names the first field that is missing or impossible.
    """
    if not isinstance(result, dict):
        raise LedgerError(f"{where}: holds a {type(result).__name__}, not a result; run the row again.")
    fields = COMMON_FIELDS | (TRAINED_FIELDS if "recipe" in result else EVALUATED_FIELDS)
    for name, kind in fields.items():
        _check_field(result, name, kind, where)
    if "0.0" not in result["scores"]:
        raise LedgerError(f"{where}: field 'scores' lacks '0.0', the table without offset; run the row again.")
    for offset, table in result["scores"].items():
        _check_table(table, f"{where}: field 'scores.{offset}", where)
    for index, record in enumerate(result.get("curve", [])):
        for name in ("step", "miou_seen", "miou_unseen"):
            if not isinstance(record, dict) or name not in record:
                raise LedgerError(f"{where}: field 'curve[{index}]' lacks '{name}'; run the row again.")


def _check_field(holder: Any, name: str, kind: Any, where: str) -> None:
    if not isinstance(holder, dict) or name not in holder:
        raise LedgerError(f"{where}: lacks field '{name}'; run the row again with this version.")
    value = holder[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = "a number" if kind == NUMBER else kind.__name__
        raise LedgerError(f"{where}: field '{name}' is {value!r}, not {expected}; run the row again.")


def _check_table(table: Any, prefix: str, where: str) -> None:
    """Check one score table; `prefix` is the start of messages, up to the table's name.

    Raises:
        LedgerError: Names the field.
    """
    for name in (*REPORTED, "per_class_iou", "fragmentation", "intervals"):
        if not isinstance(table, dict) or name not in table:
            raise LedgerError(f"{prefix}' lacks '{name}'; run the row again with this version.")
    numbers = {name: table[name] for name in REPORTED}
    if not isinstance(table["per_class_iou"], list) or not table["per_class_iou"]:
        raise LedgerError(f"{prefix}.per_class_iou' is no list of scores; run the row again.")
    numbers |= {f"per_class_iou[{index}]": value for index, value in enumerate(table["per_class_iou"])}
    for name, value in numbers.items():
        if value is not None and not (_is_number(value) and 0 <= value <= 1):
            raise LedgerError(f"{prefix}.{name}' is {value!r}, not a fraction from 0 to 1; run the row again.")
    _check_parts(table, prefix)
    _check_harmonic_mean(table, prefix)


def _check_parts(table: Mapping[str, Any], prefix: str) -> None:
    """Check what of a score table is a table itself.

    Raises:
        LedgerError: Names the field.
    """
    for name in ("fragmentation", "intervals"):
        if not isinstance(table[name] or {}, Mapping):
            raise LedgerError(f"{prefix}.{name}' is {table[name]!r}, no mapping; run the row again.")
    if not _is_number((table["fragmentation"] or {}).get(FRAGMENTS, 0)):
        raise LedgerError(f"{prefix}.fragmentation.{FRAGMENTS}' is no number; run the row again.")
    for name in REPORTED:
        interval = (table["intervals"] or {}).get(name)
        if not isinstance(interval, list) or len(interval) not in (0, 2):
            raise LedgerError(f"{prefix}.intervals.{name}' is {interval!r}, not [low, high]; run the row again.")


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool) and math.isfinite(value)


def _check_harmonic_mean(table: Mapping[str, Any], prefix: str) -> None:
    seen, unseen, hiou = (table[name] for name in ("miou_seen", "miou_unseen", "hiou"))
    if None in (seen, unseen, hiou):
        return
    expected = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
    if abs(expected - hiou) > 1e-6:
        raise LedgerError(
            f"{prefix}.hiou' is {hiou}, but the harmonic mean of its mIoU(S) and mIoU(U) is {expected:.6f}; the file "
            "was changed by hand: run the row again."
        )


def read_results(folder: str | Path, name: str) -> list[dict[str, Any]]:
    """Results of one row, `FOLDER/NAME_seed*.json`, in order of their seed, whatever settings they were made with.

    Raises:
        LedgerError: If a file is unusable.
    """
    found = []
    for path in Path(folder).glob(f"{name}_seed*.json"):
        text = path.stem.removeprefix(f"{name}_seed")
        if not text.isdecimal():
            continue
        result = load_result(path)
        if result.get("seed") not in (None, int(text)):  # an evaluation does not know its checkpoint's seed
            raise LedgerError(
                f"{path}: field 'seed' is {result.get('seed')!r}, but the file is named for seed {text}; rename it or "
                "run the row again."
            )
        found.append(result | {"seed": int(text)})
    return sorted(found, key=lambda result: result["seed"])


def load_results(folder: str | Path, name: str) -> list[dict[str, Any]]:
    """Results of one row that were made with the same settings; empty when there is none.

    Raises:
        LedgerError: If a file is unusable, or the settings differ.
    """
    results = read_results(folder, name)
    for result in results[1:]:
        changed = differences(settings_of_result(results[0]), settings_of_result(result))
        if changed:
            raise LedgerError(
                f"{folder}/{name}_seed{result['seed']}.json: made with other settings than seed "
                f"{results[0]['seed']}: {'; '.join(changed)}; run the row again for every seed "
                "(ldvc experiments --replace)."
            )
    return results


# ---- settings


@functools.cache
def _defaults() -> dict[str, Any]:
    config = LDVCConfig()
    recipe = dataclasses.asdict(Recipe(vocabulary="voc2012")) | {"vocabulary": None}
    recipe.pop("model")
    return recipe | {name: getattr(config, name) for name in model_fields()}


def settings_of(recipe: Mapping[str, Any], training_free: str | None = None) -> dict[str, Any]:
    """Flatten a recipe to what reaches weights and scores, with defaults filled in and without the seed.

    A key that a recipe of an older version lacks had the meaning that its default has now.

    Args:
        recipe: `dataclasses.asdict` of a `Recipe`, as results hold it.
        training_free: Patch features of a CLIP without training, to which nothing of the training matters.
    """
    flat = {key: value for key, value in recipe.items() if key != "model"}
    settings = _defaults() | flat | dict(recipe.get("model") or {})
    start, folder = recipe.get("start_from"), recipe.get("output_dir")
    if start and folder and Path(start).parent == Path(folder):
        settings["start_from"] = None  # the first half of a transductive run, which the run made itself
    if training_free:
        return {key: settings[key] for key in FLOOR_SETTINGS} | {"training_free": training_free}
    return {key: value for key, value in settings.items() if key not in NOT_SETTINGS}


def settings_of_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a result was made with: the settings of its recipe, its CLIP, and how CLIP was used without training."""
    protocol = result.get("protocol") or {}
    recipe = result.get("recipe") or protocol.get("recipe")
    if recipe is None:  # of ldvc evaluate: its arguments
        settings = {key: value for key, value in protocol.items() if key not in NOT_EVALUATION_SETTINGS}
        inference = settings.get("inference") or {}
        settings["inference"] = {key: value for key, value in inference.items() if key != "window_batch_size"}
    else:
        settings = settings_of(recipe, protocol.get("training_free"))
    return settings | {CLIP_KEY: result.get("clip_fingerprint")}


def settings_hash(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the keys whose values differ, as "key: before, now value"."""
    return [
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def clip_fingerprint(clip: str) -> str | None:
    """16 hexadecimal digits of a CLIP folder's weights, so that a retrained CLIP is noticed; `None` for a Hub id.

    Args:
        clip: Folder, relative to the repository's root or absolute.
    """
    paths = sorted(path for path in (ROOT / clip).glob("*") if path.suffix in (".safetensors", ".bin"))
    stats = [(path, path.stat()) for path in paths]
    return _hash_files(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)) if stats else None


@functools.cache
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash files; size and time are there so that a changed file is read again."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# ---- figures over seeds


@dataclass(frozen=True)
class Spread:
    """One figure over seeds: mean and standard deviation.

    Args:
        values: One number per seed; `None` and NaN are left out.
    """

    values: Sequence[float | None]

    @property
    def numbers(self) -> list[float]:
        """The values that are numbers."""
        return [value for value in self.values if value is not None and math.isfinite(value)]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN of nothing."""
        return math.fsum(self.numbers) / len(self.numbers) if self.numbers else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); NaN of fewer than two."""
        if len(self.numbers) < 2:
            return math.nan
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.numbers) / (len(self.numbers) - 1))

    def format(self, factor: float = 100.0, digits: int = 1) -> str:
        """Write "mean ± deviation", in percent unless told; one run has no deviation, none is "-"."""
        if not self.numbers:
            return "-"
        text = f"{factor * self.mean:.{digits}f}"
        return text if len(self.numbers) == 1 else f"{text} ± {factor * self.deviation:.{digits}f}"


def score_of(result: Mapping[str, Any], score: str, offset: str = "0.0") -> float | None:
    """One score of one result; `None` where it has none, as CLIP without training has none with an offset.

    Args:
        result: From `load_result`.
        score: One of `REPORTED`, "miou" or "fragments" at the offset, "trainable_parameters", "training_seconds", or
            "fall_of_unseen": by how much mIoU(U) at the end of training lies below its best on the way; it is
            known without offset alone.
        offset: Key of the score table.
    """
    if float(offset) and (result.get("protocol") or {}).get("training_free"):
        return None  # its scores are cosines, not probabilities: an offset would remove every seen class
    table = result["scores"].get(offset, {})
    if score == "fragments":
        return (table.get("fragmentation") or {}).get(FRAGMENTS)
    if score == "fall_of_unseen":
        curve = [record["miou_unseen"] or 0.0 for record in result.get("curve", [])]
        return max(curve) - curve[-1] if len(curve) > 1 and float(offset) == 0 else None
    return table.get(score) if score in (*REPORTED, "miou") else result.get(score)


def score_spread(results: Sequence[Mapping[str, Any]], score: str, offset: str = "0.0") -> Spread:
    """One score, see `score_of`, over the seeds of a row."""
    return Spread([score_of(result, score, offset) for result in results])


# ---- what others published


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


def load_published(path: Path = ROOT / "results" / "published.yaml") -> dict[str, Any]:
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


def own_scores(setting: str, results: Path, offset: str = "0.0") -> dict[str, str]:
    """Our own scores of a setting, from results/BENCHMARK/SETTING_seed*.json: benchmark -> cell; empty without runs.

    Args:
        setting: One of `SETTINGS`.
        results: The ledger's folder.
        offset: Key of the score table.
    """
    cells = {}
    for benchmark in BENCHMARKS:
        runs = load_results(results / benchmark, SHORT_NAMES.get(setting, setting))
        if runs:
            names = ("miou",) if setting == "cross_dataset" else REPORTED
            cells[benchmark] = " / ".join(score_spread(runs, name, offset).format() for name in names)
            flaws = {run["audit"]["status"] for run in runs if "audit" in run} & {"mismatch", "unaudited"}
            cells[benchmark] += f" (audit: {', '.join(sorted(flaws))})" if flaws else ""
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
    ours = {}
    for offset in PUBLISHED_OFFSETS.get(setting, ("0.0",)):
        ours = own_scores(setting, results, offset)
        if ours:
            title = "LDVC, this repository" + (f", {offset} off seen scores" if float(offset) else "")
            cells = [ours.get(name, "-") for name in columns]
            lines.append(f"| **{title}** | {' | '.join(cells)} | measured |")
    letters = {word for row in rows for word in re.findall(r"\w+", row.source)}
    used = [key for key in published["sources"] if key in letters]
    what = "mIoU" if setting == "cross_dataset" else "pAcc / mIoU(S) / mIoU(U) / hIoU"
    signs = " ≠: the hIoU does not follow from the scores beside it; *: hIoU computed from them."
    note = f"{what}, percent.{'' if setting == 'cross_dataset' else signs} {published['notes'][setting]}"
    if not ours:
        note += " Ours: no run on these benchmarks yet."
    sources = "; ".join(f"{key} = {published['sources'][key]}" for key in used)
    return "\n".join([*lines, "", note, "", f"Sources: {sources}."])
