"""Lists of experiments: which recipes are run over seeds, what each row asks, and what the paper leads one to expect.

A list is a YAML file (see recipes/ablations/picturebook.yaml):

    world: picturebook                             folder of the results: results/WORLD/ROW_seedK.json
    recipe: recipes/picturebook_inductive.yaml     the base, from the repository's root
    seeds: [0, 1, 2]                               or how many, from 0 on; a row may have its own
    overrides: {controls: false}                   keys of the recipe for every row; a row's own come after
    groups: {a: "the question that the rows of this group answer", ...}
    rows:
      - {name: ldvc, title: LDVC, group: a}
      - {name: full, title: full attention, group: b, overrides: {decoder_attention: full}}
    claims:
      - {source: paper, claim: "...", row: ldvc, than: full, score: hiou, expect: higher}

A row may name another base `recipe`, or be CLIP without training (`training_free: value`, or another method). A list
may build on another, `base: voc2012.yaml`, whose keys it replaces; "{world}" in the path of a recipe is its world.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ldvc.experiments.ledger import (
    CLIP_KEY,
    FLOOR_SETTINGS,
    REPORTED,
    Spread,
    clip_fingerprint,
    differences,
    read_results,
    score_of,
    settings_of,
    settings_of_result,
)
from ldvc.model.dense_settings_ldvc import DENSE_METHODS
from ldvc.places import ROOT
from ldvc.training.recipe import Recipe, read_recipe


__all__ = [
    "Claim",
    "Collected",
    "Experiments",
    "Finding",
    "ListError",
    "Row",
    "collect",
    "read_list",
    "required_settings",
    "weigh_claims",
]

EXPECTATIONS = ("higher", "lower", "not higher")
SOURCES = ("paper", "ours")
SCORES = (*REPORTED, "fragments", "fall_of_unseen")
MIN_SEEDS = 3  # fewer decide nothing
CONFIDENCE = 0.95
MARGIN = 0.01  # "not higher" is taken as shown when more than this can be ruled out


class ListError(ValueError):
    """A list of experiments that cannot be used; the message names file, row and remedy."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a recipe that is run once per seed.

    Attributes:
        name: File name of its results, lower-case letters, digits and underscores.
        title: What the table calls it.
        group: Key of its group.
        recipe: Base recipe, relative to the repository's root; `None` is the list's.
        overrides: Keys of the recipe -> values.
        training_free: A method of `DENSE_METHODS`, such as "value": score CLIP without training by it.
        note: A remark for the table.
        seeds: Its own seeds, where they are not the list's.
    """

    name: str
    title: str
    group: str
    recipe: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    training_free: str | None = None
    note: str | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper (or of ours), and the two rows that decide it.

    Attributes:
        claim: The sentence.
        source: Who says so: "paper" or "ours".
        row: Name of the row that it is about.
        than: Name of the row it is compared with.
        score: One of `SCORES`.
        expect: "higher", "lower" or "not higher": what `row` should be in comparison.
    """

    claim: str
    source: str
    row: str
    than: str
    score: str
    expect: str = "higher"


@dataclass(frozen=True)
class Experiments:
    """A list that was read and checked."""

    path: Path
    world: str
    recipe: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    groups: Mapping[str, str]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]

    @property
    def results_folder(self) -> Path:
        """Where the ledger keeps the results of this list."""
        return ROOT / "results" / self.world

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """Seeds of a row: its own, or the list's."""
        return row.seeds or self.seeds

    def arguments(self, row: Row, seed: int, extra: Sequence[str] = ()) -> list[str]:
        """What `train.py` is told for a row and a seed: recipe, overrides, seed."""
        values = {**self.overrides, **row.overrides, "seed": seed}
        overrides = [f"--{key}={_as_typed(value)}" for key, value in values.items()]
        recipe = (row.recipe or self.recipe).replace("{world}", self.world)
        return [str(ROOT / recipe), *overrides, *extra]

    def recipe_of(self, row: Row, seed: int, extra: Sequence[str] = ()) -> Recipe:
        """The resolved recipe of a row and a seed.

        Raises:
            ListError: If the recipe cannot be read or an override is wrong; names the row.
        """
        try:
            return read_recipe(self.arguments(row, seed, extra))
        except ValueError as error:
            raise ListError(f"{self.path}: row '{row.name}': {error}") from error


def _as_typed(value: Any) -> str:
    """A value as one types it on the command line, where YAML is read: text without quotes where it stays text."""
    is_plain = isinstance(value, str) and yaml.safe_load(value) == value
    if is_plain:
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)  # what JSON writes as 1e-05 is text to YAML
    return text.removesuffix("\n...\n").strip()


def read_list(path: str | Path) -> Experiments:
    """Read and check a list of experiments; no recipe is opened yet.

    Raises:
        ListError: If the file is missing, no YAML, has an unknown key, or its rows do not fit together.
    """
    path = Path(path)
    values = _read_file(path)
    if isinstance(values, dict) and isinstance(values.get("base"), str):
        base = _read_file(path.parent / values.pop("base"))
        values = base | values if isinstance(base, dict) else base
    needed = ("world", "recipe", "groups", "rows")
    _check_keys(values, needed, ("seeds", "overrides", "claims"), f"{path}:")
    rows = tuple(_read_part(Row, value, f"{path}: row {n}") for n, value in enumerate(_as_list(values, "rows", path)))
    claims = _as_list(values, "claims", path) if "claims" in values else []
    claims = tuple(_read_part(Claim, value, f"{path}: claim {number}") for number, value in enumerate(claims))
    seeds = _read_seeds(values.get("seeds", MIN_SEEDS), f"{path}:")
    if not re.fullmatch(r"\w+", str(values["world"])):
        raise ListError(f"{path}: `world` is {values['world']!r}; use letters, digits and _, as it names a folder.")
    if not isinstance(values["groups"], dict):
        raise ListError(f"{path}: `groups` is {values['groups']!r}; map the key of each group to its question.")
    groups = {str(key): str(question) for key, question in values["groups"].items()}
    overrides = values.get("overrides", {})
    if not isinstance(overrides, dict):
        raise ListError(f"{path}: `overrides` is {overrides!r}; give keys of the recipe with values.")
    base = str(values["recipe"])
    experiments = Experiments(path, str(values["world"]), base, seeds, overrides, groups, rows, claims)
    _check_rows(experiments)
    _check_claims(experiments)
    return experiments


def _read_file(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        ListError: If it is missing or no YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror}); see the folder recipes/ablations/.") from error
    except yaml.YAMLError as error:
        raise ListError(f"{path}: no valid YAML: {error}") from error


def _as_list(values: Mapping[str, Any], key: str, path: Path) -> list:
    if not isinstance(values[key], list) or not values[key]:
        raise ListError(f"{path}: `{key}` is {values[key]!r}; give a list with at least one entry.")
    return values[key]


def _check_keys(values: Any, needed: Sequence[str], optional: Sequence[str], where: str) -> None:
    """Refuse anything but a mapping with the needed keys and no unknown one.

    Raises:
        ListError: Names the key, and the nearest known one.
    """
    if not isinstance(values, dict):
        raise ListError(f"{where} holds a {type(values).__name__} where keys and values were expected.")
    known = [*needed, *optional]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}."
            raise ListError(f"{where} has an unknown key `{key}`; {hint}")
    for key in needed:
        if key not in values:
            raise ListError(f"{where} lacks the key `{key}`.")


def _read_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Read seeds: a list, or how many.

    Raises:
        ListError: If it is neither.
    """
    seeds = list(range(value)) if type(value) is int else value
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ListError(f"{where} `seeds` is {value!r}; give whole numbers such as [0, 1, 2], or how many, such as 3.")
    return tuple(seeds)


def _read_part(kind: type, values: Any, where: str) -> Any:
    """Make a `Row` or `Claim` of one entry.

    Raises:
        ListError: If a key is unknown or missing, or a text is none.
    """
    fields = dataclasses.fields(kind)
    is_optional = {f.name: f.default is not dataclasses.MISSING or f.name == "overrides" for f in fields}
    needed, optional = ([name for name in is_optional if is_optional[name] == is_it] for is_it in (False, True))
    _check_keys(values, needed, optional, where)
    values = {key: str(value) if key == "group" else value for key, value in values.items()}
    if "seeds" in values:
        values["seeds"] = _read_seeds(values["seeds"], f"{where}:")
    for key, value in values.items():
        if key == "overrides" and not isinstance(value, dict):
            raise ListError(f"{where}: `overrides` is {value!r}; give keys of the recipe with values.")
        if key not in ("overrides", "seeds") and not isinstance(value, str):
            raise ListError(f"{where}: `{key}` is {value!r}; give text.")
    return kind(**values)


def _check_rows(experiments: Experiments) -> None:
    """Check names and groups.

    Raises:
        ListError: Names the row.
    """
    before: set[str] = set()
    for row in experiments.rows:
        where = f"{experiments.path}: row '{row.name}'"
        if not re.fullmatch(r"[a-z0-9_]+", row.name):
            raise ListError(f"{where}: use lower-case letters, digits and underscores, as it names files.")
        if row.name in before:
            raise ListError(f"{where}: stands twice; give each row a name of its own.")
        if row.group not in experiments.groups:
            raise ListError(f"{where}: its group '{row.group}' is none of {', '.join(experiments.groups)}.")
        if row.training_free not in (None, *DENSE_METHODS):
            raise ListError(f"{where}: `training_free` is '{row.training_free}'; use {' or '.join(DENSE_METHODS)}.")
        if row.training_free and (useless := sorted({*row.overrides} - {*FLOOR_SETTINGS})):
            raise ListError(
                f"{where}: `{useless[0]}` changes nothing of CLIP without training by '{row.training_free}'; leave it "
                "out, or name another method."
            )
        before.add(row.name)


def _check_claims(experiments: Experiments) -> None:
    """Check that claims name rows, scores and expectations that exist.

    Raises:
        ListError: Names the claim.
    """
    names = [row.name for row in experiments.rows]
    for claim in experiments.claims:
        where = f"{experiments.path}: claim '{claim.claim}'"
        for name in (claim.row, claim.than):
            if name not in names:
                raise ListError(f"{where}: there is no row '{name}'.")
        for key, choices in (("score", SCORES), ("expect", EXPECTATIONS), ("source", SOURCES)):
            if getattr(claim, key) not in choices:
                raise ListError(f"{where}: `{key}` is '{getattr(claim, key)}'; use one of {', '.join(choices)}.")


# ---- the results that may stand in one table


@dataclass(frozen=True)
class Collected:
    """Results of a list.

    Attributes:
        results: Row name -> results over seeds, in order of the seed; no row without one.
        left_out: Row name -> which of its results may not stand beside the others, and why.
    """

    results: Mapping[str, list[dict[str, Any]]]
    left_out: Mapping[str, str]


def required_settings(row: Row, recipe: Recipe) -> dict[str, Any]:
    """What a result of this row must have been made with: the recipe, and the CLIP that is there now."""
    return settings_of(vars(recipe), row.training_free) | {CLIP_KEY: clip_fingerprint(recipe.clip)}


def collect(experiments: Experiments, folder: Path | None = None, extra: Sequence[str] = ()) -> Collected:
    """Load the results of every row that may stand in one table.

    Out stay those that were made by another recipe than the row has now or with another CLIP than there is now, and
    those that were scored on other data than the first row that has their seed.

    Args:
        experiments: The list.
        folder: Folder of the result files; the ledger's by default.
        extra: Keys and values that were handed to every run.

    Raises:
        LedgerError: If a result file is unusable.
        ListError: If the recipe of a row that has results cannot be read.
    """
    results, left_out, data = {}, {}, {}
    for row in experiments.rows:
        kept, reasons = [], {}
        for result in read_results(folder or experiments.results_folder, row.name):
            seed, scored = result["seed"], result["dataset_fingerprint"]
            reason = _why_outdated(result, required_settings(row, experiments.recipe_of(row, seed, extra)))
            if reason is None and data.setdefault(seed, scored) != scored:
                reason = "scored on other data than the rows above"
            if reason is None:
                kept.append(result)
            else:
                reasons.setdefault(reason, []).append(str(seed))
        if kept:
            results[row.name] = kept
        if reasons:
            seeds = (f"seed{'s' * (len(of) > 1)} {', '.join(of)} {reason}" for reason, of in reasons.items())
            left_out[row.name] = "; ".join(seeds)
    return Collected(results, left_out)


def _why_outdated(result: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Why a result is not what its row would give now; `None` if it is."""
    made_with = settings_of_result(result)
    without_clip = ({k: v for k, v in settings.items() if k != CLIP_KEY} for settings in (made_with, wanted))
    changed = differences(*without_clip)
    if changed:
        return f"made with other settings ({'; '.join(changed)})"
    if made_with[CLIP_KEY] == wanted[CLIP_KEY]:
        return None
    return "made with an unknown CLIP" if made_with[CLIP_KEY] is None else "made with another CLIP"


# ---- what the rows say about the claims


@dataclass(frozen=True)
class Finding:
    """A claim with the figures that decide it.

    Rows are compared seed by seed: both train on the same pages, other ones than at another seed. All seeds are scored
    on the same pages.

    Attributes:
        claim: What was claimed.
        row: Seed -> the claim's score of its row.
        than: The same of the row it is compared with.
    """

    claim: Claim
    row: Mapping[int, float]
    than: Mapping[int, float]

    @property
    def seeds(self) -> list[int]:
        """Those that both rows have."""
        return [seed for seed in self.row if seed in self.than]

    @property
    def differences(self) -> Spread:
        """`row` less `than` at every seed that both have."""
        return Spread([self.row[seed] - self.than[seed] for seed in self.seeds])

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean difference (Student's t, paired by seed); `None` while seeds are missing."""
        from scipy.stats import ttest_rel

        if len(self.seeds) < MIN_SEEDS:
            return None
        sides = ([side[seed] for seed in self.seeds] for side in (self.row, self.than))
        return tuple(map(float, ttest_rel(*sides).confidence_interval(CONFIDENCE)))

    @property
    def verdict(self) -> str:
        """What the interval says: "confirmed", "not confirmed" (it decides nothing), "contradicted", or "open".

        "higher" is confirmed by an interval above zero and contradicted by one below it, "lower" the other way round;
        "not higher" is contradicted by an interval above zero, and confirmed by one that ends below `MARGIN`: that
        nothing was seen is no proof.
        """
        if self.interval is None:
            return "open"
        low, high = self.interval
        if self.claim.expect == "lower":
            low, high = -high, -low
        if self.claim.expect == "not higher":
            return "contradicted" if low > 0 else "confirmed" if high < MARGIN else "not confirmed"
        return "confirmed" if low > 0 else "contradicted" if high < 0 else "not confirmed"


def weigh_claims(experiments: Experiments, collected: Collected, offset: str = "0.0") -> list[Finding]:
    """Compare the rows of every claim; claims whose rows have no results yet come without numbers.

    Args:
        experiments: The list.
        collected: Its results, from `collect`.
        offset: Key of the score table.
    """

    def by_seed(name: str, score: str) -> dict[int, float]:
        scores = {run["seed"]: score_of(run, score, offset) for run in collected.results.get(name, [])}
        return {seed: value for seed, value in scores.items() if value is not None}

    return [
        Finding(claim, by_seed(claim.row, claim.score), by_seed(claim.than, claim.score))
        for claim in experiments.claims
    ]
