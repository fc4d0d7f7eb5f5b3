"""Lists of experiments: which recipes are run over seeds, what each row asks, and what the paper leads one to expect.

A list is a YAML file (see recipes/ablations/picturebook.yaml):

    world: picturebook                             results go to results/WORLD/ROW_seedK.json
    recipe: recipes/picturebook_inductive.yaml     the base, from the repository's root
    seeds: [0, 1, 2]
    overrides: {controls: false}                   keys of the recipe for every row; a row's own come after
    groups: {a: "the question that the rows of this group answer", ...}
    rows:
      - {name: ldvc, title: LDVC, group: a}
      - {name: full, title: full attention, group: b, overrides: {decoder_attention: full}}
    claims:
      - {source: paper, claim: "...", row: ldvc, than: full, score: hiou, expect: higher}

A row may name another base `recipe`, or be CLIP without training (`training_free: value` or `tokens`).
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ledger_ldvc import (
    CLIP_KEY,
    REPORTED,
    Spread,
    differences,
    load_results,
    score_spread,
    settings_of,
    settings_of_result,
)
from recipe_ldvc import Recipe, read_recipe


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

ROOT = Path(__file__).resolve().parent
EXPECTATIONS = ("higher", "lower", "not higher")
SOURCES = ("paper", "ours")
SCORES = (*REPORTED, "fragments", "fall_of_unseen")
BESIDES = ("controls", "eval_every")
PATCH_FEATURES = ("value", "tokens")


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
        training_free: "value" or "tokens": score CLIP without training on these patch features.
        note: A remark for the table.
    """

    name: str
    title: str
    group: str
    recipe: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    training_free: str | None = None
    note: str | None = None


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

    def arguments(self, row: Row, seed: int, extra: Sequence[str] = ()) -> list[str]:
        """What `train.py` is told for a row and a seed: recipe, overrides, seed."""
        values = {**self.overrides, **row.overrides, "seed": seed}
        overrides = [f"--{key}={json.dumps(value)}" for key, value in values.items()]
        return [str(ROOT / (row.recipe or self.recipe)), *overrides, *extra]

    def recipe_of(self, row: Row, seed: int, extra: Sequence[str] = ()) -> Recipe:
        """The resolved recipe of a row and a seed.

        Raises:
            ListError: If the recipe cannot be read or an override is wrong; names the row.
        """
        try:
            return read_recipe(self.arguments(row, seed, extra))
        except ValueError as error:
            raise ListError(f"{self.path}: row '{row.name}': {error}") from error


def read_list(path: str | Path) -> Experiments:
    """Read and check a list of experiments; no recipe is opened yet.

    Raises:
        ListError: If the file is missing, no YAML, has an unknown key, or its rows do not fit together.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ListError(f"{path}: cannot be read ({error.strerror}); see the folder recipes/ablations/.") from error
    except yaml.YAMLError as error:
        raise ListError(f"{path}: no valid YAML: {error}") from error
    needed = ("world", "recipe", "groups", "rows")
    _check_keys(values, needed, ("seeds", "overrides", "claims"), f"{path}:")
    rows = tuple(_read_part(Row, value, f"{path}: row {n}") for n, value in enumerate(_as_list(values, "rows", path)))
    claims = _as_list(values, "claims", path) if "claims" in values else []
    claims = tuple(_read_part(Claim, value, f"{path}: claim {number}") for number, value in enumerate(claims))
    seeds = values.get("seeds", [0, 1, 2])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ListError(f"{path}: `seeds` is {seeds!r}; give a list of whole numbers such as [0, 1, 2].")
    if not re.fullmatch(r"\w+", str(values["world"])):
        raise ListError(f"{path}: `world` is {values['world']!r}; use letters, digits and _, as it names a folder.")
    if not isinstance(values["groups"], dict):
        raise ListError(f"{path}: `groups` is {values['groups']!r}; map the key of each group to its question.")
    groups = {str(key): str(question) for key, question in values["groups"].items()}
    overrides = values.get("overrides", {})
    if not isinstance(overrides, dict):
        raise ListError(f"{path}: `overrides` is {overrides!r}; give keys of the recipe with values.")
    base = str(values["recipe"])
    experiments = Experiments(path, str(values["world"]), base, tuple(seeds), overrides, groups, rows, claims)
    _check_rows(experiments)
    _check_claims(experiments)
    return experiments


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
    for key, value in values.items():
        if key == "overrides" and not isinstance(value, dict):
            raise ListError(f"{where}: `overrides` is {value!r}; give keys of the recipe with values.")
        if key != "overrides" and not isinstance(value, str):
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
        if row.training_free not in (None, *PATCH_FEATURES):
            raise ListError(f"{where}: `training_free` is '{row.training_free}'; use {' or '.join(PATCH_FEATURES)}.")
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
        results: Row name -> results over seeds, in order of the seed.
        left_out: Row name -> why its results may not stand beside the others.
    """

    results: Mapping[str, list[dict[str, Any]]]
    left_out: Mapping[str, str]


def required_settings(row: Row, recipe: Recipe) -> dict[str, Any]:
    """What a result of this row must have been made with, but for the CLIP."""
    return settings_of(vars(recipe), row.training_free)


def collect(experiments: Experiments, folder: Path | None = None, extra: Sequence[str] = ()) -> Collected:
    """Load the results of every row; those made by other recipes, or with another CLIP than the first row's, stay out.

    Args:
        experiments: The list.
        folder: Folder of the result files; the ledger's by default.
        extra: Keys and values that were handed to every run.

    Raises:
        LedgerError: If a result file is unusable.
        ListError: If the recipe of a row that has results cannot be read.
    """
    results, left_out, clip = {}, {}, None
    for row in experiments.rows:
        loaded = load_results(folder or experiments.results_folder, row.name)
        if not loaded:
            continue
        made_with = settings_of_result(loaded[0])
        fingerprint = made_with.pop(CLIP_KEY)
        wanted = required_settings(row, experiments.recipe_of(row, loaded[0]["seed"], extra))
        # What is scored besides reaches no score of the table.
        changed = differences(*({k: v for k, v in s.items() if k not in BESIDES} for s in (made_with, wanted)))
        if changed:
            left_out[row.name] = f"made with other settings ({'; '.join(changed)})"
        elif results and fingerprint != clip:
            left_out[row.name] = "made with another CLIP"
        else:
            results[row.name], clip = loaded, fingerprint
    return Collected(results, left_out)


# ---- what the rows say about the claims


@dataclass(frozen=True)
class Finding:
    """A claim with the figures that decide it.

    Attributes:
        claim: What was claimed.
        row: The claim's score of its row over seeds.
        than: The same of the row it is compared with.
    """

    claim: Claim
    row: Spread
    than: Spread

    @property
    def difference(self) -> float:
        """Difference of the means, `row` less `than`."""
        return self.row.mean - self.than.mean

    @property
    def pooled_deviation(self) -> float:
        """Standard deviation of one seed, pooled over both rows."""
        sides = [(len(side.numbers) - 1, side.deviation) for side in (self.row, self.than)]
        return (sum(n * deviation**2 for n, deviation in sides) / sum(n for n, _ in sides)) ** 0.5

    @property
    def relation(self) -> str:
        """One of "higher", "lower", "within the spread" (of twice the pooled deviation), or "too few seeds"."""
        if min(len(self.row.numbers), len(self.than.numbers)) < 2:
            return "too few seeds"
        if abs(self.difference) <= 2 * self.pooled_deviation:
            return "within the spread"
        return "higher" if self.difference > 0 else "lower"

    @property
    def verdict(self) -> str:
        """One of "confirmed", "not confirmed", "contradicted", or "open" while seeds are missing."""
        expect, relation = self.claim.expect, self.relation
        if relation == "too few seeds":
            return "open"
        if expect == "not higher":
            return "contradicted" if relation == "higher" else "confirmed"
        if relation == "within the spread":
            return "not confirmed"
        return "confirmed" if relation == expect else "contradicted"


def weigh_claims(experiments: Experiments, collected: Collected, offset: str = "0.0") -> list[Finding]:
    """Compare the rows of every claim; claims whose rows have no results yet come without numbers.

    Args:
        experiments: The list.
        collected: Its results, from `collect`.
        offset: Key of the score table.
    """
    findings = []
    for claim in experiments.claims:
        sides = [collected.results.get(name, []) for name in (claim.row, claim.than)]
        row, than = (score_spread(results, claim.score, offset) for results in sides)
        findings.append(Finding(claim, row, than))
    return findings
