"""Recipes: every setting of a training run, from a YAML file and the command line.

    ldvc train [recipe.yaml] [--key value ...]

One flat list of keys: the fields of `Recipe` and those of `LDVCConfig` that describe the model (which a run's own
recipe.yaml keeps together under `model`). An unknown key fails and names the nearest. A recipe file may build on
another: `base: other.yaml`, a path beside it, whose keys it takes over and then changes.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

import picturebook  # noqa: F401 - registers the embedded world, which trains where no recipe is given
from ldvc.data.pseudo_labels import PSEUDO_REGIONS
from ldvc.data.vocabularies import Vocabulary, get_vocabulary, may_read
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.places import shipped


__all__ = ["Recipe", "RecipeError", "describe_keys", "model_fields", "read_recipe"]

DEFAULT_RECIPE = shipped("recipes/picturebook_inductive.yaml")
CHOICES = {
    "setting": ("inductive", "transductive", "fully_supervised"),
    "pseudo_region": PSEUDO_REGIONS,
    "image_stats": ("imagenet", "clip"),
    "mixed_precision": ("no", "fp16", "bf16", "auto"),
}
LOWEST = {
    0: ("warmup_steps", "eval_every", "save_every", "num_workers", "num_pictures", "learning_rate", "seed"),
    1: ("max_steps", "batch_size", "gradient_accumulation_steps", "crop_size", "log_every", "keep_states"),
}
# Either names the classes; the one that is stated last counts.
CLASS_KEYS = ("vocabulary", "class_names")
# Written by the trainer or CLIP, never by a recipe.
DERIVED_MODEL_FIELDS = (
    "text_config",
    "vision_config",
    "projection_dim",
    "logit_scale_init_value",
    "initializer_factor",
    "clip_name_or_path",
    "prompt_token_ids",
    "class_token_ids",
    "vocabulary_names",
    "vocabulary_templates",
    "prompt_class_ids",
    "other_label",
    "baked_vocabulary",
    "text_fingerprint",
    "seen_classes",
    "semantic_loss_ignore_index",
)


class RecipeError(ValueError):
    """A recipe or command line that cannot be used; the message names the key, its value and the remedy."""


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run. Sizes are pixels, (height, width) or one side of a square; counts are of steps.

    Source of the defaults: ZegCLIP's published VOC 2012 configuration (LDVC's own is not public). Its base rate of
    2e-5 is multiplied by ten for everything that trains, and decays everywhere, which one rate and decay say plainly.
    """

    # ---- data
    dataset: str = "picturebook"  # "picturebook", a folder (Parquet or save_to_disk), or a Hub id
    dataset_config: str | None = None
    dataset_revision: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    image_column: str = "image"
    label_column: str = "label"
    streaming: bool = False
    num_train_images: int | None = None  # None is all; the picture book has no end and needs a number
    num_eval_images: int | None = None
    reduce_labels: bool = False  # label maps count from 1 with 0 for background, as VOC's
    vocabulary: str | None = None  # a name from vocabularies.py, or class_names with unseen_classes
    class_names: list[str] | None = None
    unseen_classes: list[str] | None = None
    seen_share: float = 1.0  # of the seen classes, so many train with masks: nested lists, see Vocabulary
    setting: str = "inductive"
    pseudo_region: str = "unseen_pixels"  # transductive: which pixels the model labels itself, see withhold_labels
    pseudo_threshold: float | None = None  # transductive: less sure than this probability stays unlabelled

    # ---- model; further keys are fields of LDVCConfig
    clip: str = "openai/clip-vit-base-patch16"
    start_from: str | None = (
        None  # weights of an LDVC checkpoint or adapter, whose own CLIP then takes the place of `clip`
    )
    model: dict[str, Any] = field(default_factory=dict)

    # ---- images
    crop_size: int = 512
    image_scale: list[int] = field(default_factory=lambda: [2048, 512])  # fitted inside, before the random ratio
    ratio_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    max_class_share: float = 0.75  # of a crop's labelled pixels; else it is drawn again
    flip_probability: float = 0.5
    photometric: bool = True
    image_stats: str = "imagenet"  # ZegCLIP normalises with ImageNet's statistics, not CLIP's

    # ---- optimisation
    max_steps: int = 20_000  # transductive: of each half, unless the first is there already (`start_from`)
    schedule_steps: int | None = None  # where the learning rate would end, if not at max_steps
    batch_size: int = 16  # images per step, over all processes and accumulated batches
    gradient_accumulation_steps: int = 1  # the same step as with 1, in parts that need less memory
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    text_prompt_weight_decay: float = 0.0  # they start from a meaningful point that decay would pull away from
    warmup_steps: int = 1_500
    warmup_start: float = 1e-6  # first factor of the warm-up
    poly_power: float = 0.9
    min_learning_rate: float = 1e-6
    max_grad_norm: float | None = None  # ZegCLIP does not clip
    mixed_precision: str = "no"  # "auto" is bf16 where the hardware computes in it, else no
    attn_implementation: str | None = None  # None is PyTorch's fused attention; its bf16 backward is slow on CPU
    gradient_checkpointing: bool = False
    seed: int = 0
    num_workers: int = 2

    # ---- evaluation
    eval_every: int = 0  # steps; 0 evaluates at the end only, whose checkpoint is the one that counts
    short_side: int = 512
    window: int = 512  # 0 takes the whole picture at once
    stride: int = 426
    window_batch_size: int = 4
    num_pictures: int = 6  # scenes in predictions.png
    controls: bool = False  # also score the training-free CLIP and permuted unseen names

    # ---- output
    output_dir: str = "outputs/run"
    overwrite_output_dir: bool = False
    results_file: str | None = None  # a second place for results.json, such as the ledger results/
    save_every: int = 1_000  # steps between states to resume from; 0 saves none
    keep_states: int = 2
    save_adapter_only: bool = False  # write LDVC's own weights without CLIP's
    resume_from_checkpoint: str | None = None  # "latest", or a folder of a state
    log_every: int = 10
    report_to: str | None = None  # an Accelerate tracker: tensorboard, wandb, ...
    cpu: bool = False
    push_to_hub: bool = False
    hub_model_id: str | None = None

    def __post_init__(self):
        """Check values that types do not.

        Raises:
            RecipeError: Names key, value and remedy.
        """
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise RecipeError(f"`{key}` is {getattr(self, key)!r}; use one of {', '.join(choices)}.")
        for lowest, keys in LOWEST.items():
            for key in keys:
                if getattr(self, key) < lowest:
                    raise RecipeError(f"`{key}` is {getattr(self, key)}; use {lowest} or more.")
        for key in ("image_scale", "ratio_range"):
            if len(getattr(self, key)) != 2:
                raise RecipeError(f"`{key}` is {getattr(self, key)}; give two numbers.")
        self._check_what_belongs_together()
        if (self.vocabulary is None) == (self.class_names is None):
            raise RecipeError(
                "give either `vocabulary` or `class_names` (with `unseen_classes`), not both or neither."
            )
        if self.push_to_hub and not self.hub_model_id:
            raise RecipeError("`push_to_hub` needs `hub_model_id`, such as your-name/ldvc-vit-base-patch16-voc2012.")

    def _check_what_belongs_together(self) -> None:
        """Check settings that depend on each other, and numbers with bounds of their own.

        Raises:
            RecipeError: Names key, value and remedy.
        """
        if self.pseudo_threshold is not None and not 0 < self.pseudo_threshold < 1:
            raise RecipeError(
                f"`pseudo_threshold` is {self.pseudo_threshold}; use a probability inside 0 to 1, or null."
            )
        if self.schedule_steps is not None and self.schedule_steps < self.max_steps:
            raise RecipeError(
                f"`schedule_steps` is {self.schedule_steps}, less than `max_steps` {self.max_steps}; use that or more."
            )
        for key, usual in (("train_split", "train"), ("eval_split", "validation")):
            split = getattr(self, key)
            if self.vocabulary and not may_read(self.vocabulary, split):
                raise RecipeError(
                    f"`{key}` is {split!r} with the vocabulary {self.vocabulary!r}, by which settings are chosen: use "
                    f"--{key} {usual}, or the vocabulary whose scores are reported."
                )
        if self.streaming and self.num_train_images is not None:
            raise RecipeError(
                f"`num_train_images` is {self.num_train_images} and `streaming` is on: which pictures of a stream are "
                "the first depends on processes and workers; leave one of the two out (--streaming false, or "
                "--num_train_images null)."
            )

    def get_vocabulary(self) -> Vocabulary:
        """Class names and unseen names; when fully supervised all masks train, but the split is still reported.

        Raises:
            RecipeError: If an inductive or transductive recipe holds no class out, no class is left, or `seen_share`
                cannot be had.
            ValueError: If the names do not fit together.
        """
        if self.vocabulary is None:
            vocabulary = Vocabulary("own", tuple(self.class_names), tuple(self.unseen_classes or ()))
        else:
            vocabulary = get_vocabulary(self.vocabulary)
            if self.unseen_classes is not None:
                vocabulary = replace(vocabulary, unseen_names=tuple(self.unseen_classes))
        if self.setting == "fully_supervised":
            if self.seen_share != 1:
                raise RecipeError(
                    f"`seen_share` is {self.seen_share} and `setting` fully_supervised, in which all masks train; use "
                    "1, or another setting."
                )
            return vocabulary
        if not vocabulary.unseen_names:
            raise RecipeError(
                f"`unseen_classes` is empty, so that the {self.setting} run would hold nothing out; name the classes "
                "whose masks must not train, or use --setting fully_supervised."
            )
        if not vocabulary.seen_class_ids:
            raise RecipeError("`unseen_classes` names every class, so that no mask is left to train with; name fewer.")
        try:
            return vocabulary.with_seen_share(self.seen_share)
        except ValueError as error:
            raise RecipeError(str(error)) from error


def model_fields() -> list[str]:
    """Fields of `LDVCConfig` that a recipe may set, in their order."""
    own = [f.name for f in dataclasses.fields(LDVCConfig) if f.name in LDVCConfig.__annotations__]
    return [name for name in own if name not in DERIVED_MODEL_FIELDS]


def describe_keys() -> str:
    """List every key of a recipe with its default, for `--help`."""
    defaults = dataclasses.asdict(Recipe(vocabulary="voc2012")) | {"vocabulary": None}
    config = LDVCConfig()
    lines = [f"    --{key} {value!r}" for key, value in defaults.items() if key != "model"]
    lines += ["The model, see LDVCConfig:", *(f"    --{key} {getattr(config, key)!r}" for key in model_fields())]
    return "\n".join(["Keys of a recipe and their defaults:", *lines, ""])


def read_recipe(argv: Sequence[str]) -> Recipe:
    """Read `[recipe.yaml] [--key value ...]`; without a file, the embedded world's recipe.

    Values on the command line are YAML: numbers, true / false, null, or lists such as `[0.5, 2.0]`.

    Raises:
        RecipeError: If a file is missing or no mapping, a key is unknown, or a value has the wrong type.
    """
    argv = list(argv)
    path = Path(argv.pop(0)) if argv and not argv[0].startswith("--") else DEFAULT_RECIPE
    if not path.is_file():
        raise RecipeError(f"there is no recipe {str(path)!r}; see the folder recipes/, or give --key value pairs.")
    return _build_recipe(_merge(_read_file(path), _read_overrides(argv)))


def _read_file(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe's values, with those of its `base` below them.

    Raises:
        RecipeError: If the file is no mapping, or its base is missing or builds on it in turn.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8")) or {}
    except ValueError as error:
        raise RecipeError(f"recipe {path} is no valid YAML, correct this place: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path} holds a {type(values).__name__}, no mapping; write lines of `key: value`.")
    if isinstance(values.get("model"), dict):  # recipe.yaml of a run
        model = values.pop("model")
        if twice := [key for key in model if key in values]:
            raise RecipeError(f"recipe {path} sets {twice[0]!r} under `model` and beside it; take one out.")
        values |= model
    if "base" not in values:
        return values
    name, chain = values.pop("base"), (*children, path.resolve())
    if not isinstance(name, str) or not (path.parent / name).is_file():
        raise RecipeError(f"{path} builds on `base` {name!r}, which is no file in {path.parent}; correct the path.")
    base = (path.parent / name).resolve()
    if base in chain:
        circle = " -> ".join(str(link) for link in (*chain, base))
        raise RecipeError(f"the recipes build on each other in a circle: {circle}; take one `base` out.")
    return _merge(_read_file(base, chain), values)


def read_yaml(text: str) -> Any:
    """Read YAML, safely: plain values, no objects.

    Raises:
        ValueError: If it is none.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # `!!int x`, `!!timestamp x` and deep nesting end in plain errors inside of PyYAML
        raise ValueError(str(error) if isinstance(error, yaml.YAMLError) else f"{text[:80]!r} ({error})") from error


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Put changes over values; a class list replaces a vocabulary's name, and the other way round."""
    if changes.keys() & set(CLASS_KEYS):
        values = {key: value for key, value in values.items() if key not in CLASS_KEYS}
    return {**values, **changes}


def _read_overrides(argv: list[str]) -> dict[str, Any]:
    """Read `--key value` and `--key=value` pairs; a lone `--key` is true.

    Raises:
        RecipeError: If a key or a value cannot be read.
    """
    overrides: dict[str, Any] = {}
    while argv:
        word = argv.pop(0)
        if not word.startswith("--"):
            raise RecipeError(f"{word!r} stands where a --key was expected; write --key value.")
        key, has_value, text = word[2:].partition("=")
        if not has_value:
            text = argv.pop(0) if argv and not argv[0].startswith("--") else "true"
        try:
            overrides[key.replace("-", "_")] = read_yaml(text)
        except ValueError as error:
            raise RecipeError(f"--{key} {text!r} is no valid value ({error}).") from error
    return overrides


def _build_recipe(values: dict[str, Any]) -> Recipe:
    """Sort keys into trainer's and model's, convert and check types.

    Raises:
        RecipeError: If a key is unknown or a value has the wrong type.
    """
    hints = typing.get_type_hints(Recipe)
    model_hints = {name: LDVCConfig.__annotations__[name] for name in model_fields()}
    settings, model = {}, {}
    for key, value in values.items():
        if key in model_hints:
            model[key] = _convert(key, value, model_hints[key])
        elif key in hints and key != "model":
            settings[key] = _convert(key, value, hints[key])
        else:
            near = difflib.get_close_matches(str(key), [*hints, *model_hints], n=1)
            hint = f"did you mean `{near[0]}`?" if near else "see the fields of Recipe and LDVCConfig."
            raise RecipeError(f"a recipe has no key `{key}`; {hint}")
    return Recipe(**settings, model=model)


def _convert(key: str, value: Any, hint: Any) -> Any:
    """Check a value's type; `2e-4`, which YAML reads as text, becomes a number where one is expected, `no` a word.

    Raises:
        RecipeError: If the type is wrong.
    """
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is False and "no" in CHOICES.get(key, ()):  # as YAML reads the word
        value = "no"
    if isinstance(value, str) and float in allowed and str not in allowed:
        try:
            return float(value)
        except ValueError:
            pass
    for kind in allowed:
        base = typing.get_origin(kind) or kind
        if base is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, base) and not (isinstance(value, bool) and base is int):
            items = typing.get_args(kind)
            if base is not list or all(_fits(item, items[0]) for item in value):
                return value
    expected = " or ".join("null" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in allowed)
    raise RecipeError(f"`{key}` is {value!r}; it must be {expected}.")


def _fits(item: Any, kind: type) -> bool:
    """Whether a list's item is of its kind; whole numbers are numbers."""
    return isinstance(item, (int, float) if kind is float else kind) and not isinstance(item, bool)
