"""Model cards: one template, filled from recipe, protocol.json and result files.

The words that only a person can write are in model_cards/cards.yaml. A checkpoint that does not exist yet has a card
that says so, without a single number.
"""

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ldvc.experiments.ledger import REPORTED, read_results, settings_of
from ldvc.model.compat_ldvc import REQUIREMENT
from ldvc.places import ROOT
from ldvc.scoring.protocol import WEIGHTS_FIELD, names_trained_with_masks, uncovered_weights
from ldvc.training.recipe import Recipe, read_recipe


__all__ = ["Card", "CardError", "check_card", "read_cards", "read_words", "render_card"]

CARDS = ROOT / "model_cards"
WORDS = ("summary", "intended", "out_of_scope", "differences", "limits")
TITLES = {"pixel_accuracy": "pAcc", "miou_seen": "mIoU(S)", "miou_unseen": "mIoU(U)", "hiou": "hIoU"}
METRIC_TYPES = {"pixel_accuracy": "accuracy", "hiou": "mean_iou", "miou_seen": "mean_iou", "miou_unseen": "mean_iou"}
SETTINGS = {
    "inductive": "inductive: masks of seen classes train, unseen ones are known by name only",
    "transductive": "transductive: masks of seen classes train, and the model itself labels what they leave out",
    "fully_supervised": "fully supervised: masks of all classes train",
}
NEEDS = (
    f"Needs `{REQUIREMENT}`; take 5.10 or newer, since before it a stranger's processor can write anywhere when it is "
    "saved (CVE-2026-9856). A model that is loaded already goes into the zero-shot pipeline with its processor, as "
    "above: in bf16, quantised or with LoRA too. The stock pipeline logs that the model is not supported, and works: "
    "it compares the class with a fixed list."
)
WIDTH = 119


class CardError(ValueError):
    """A card that cannot be rendered; the message names the card, the field and the remedy."""


@dataclass(frozen=True)
class Card:
    """What a card is rendered from.

    Attributes:
        name: Name of the card's file and of the repository on the Hub.
        recipe: The run's recipe.
        recipe_path: The recipe's file, from the repository's root.
        words: Texts under `WORDS`.
        data: Title, licence and bias of the data set.
        clip: The same of the CLIP.
        protocol: Content of protocol.json; `None` while there is no checkpoint.
        result: The checkpoint's own result.
        class_names: Names of all classes.
        patch_size: Pixels per side of a patch of the CLIP.
        num_seeds: How many seeds its recipe has results of.
        embedded: Folder of the checkpoint in this repository, which brings no code of its own.
        table: Name of a table of ldvc report that is shown in place of the checkpoint's own scores.
    """

    name: str
    recipe: Recipe
    recipe_path: str
    words: Mapping[str, str]
    data: Mapping[str, str]
    clip: Mapping[str, str]
    patch_size: int
    protocol: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    num_seeds: int = 0
    embedded: str | None = None
    table: str | None = None
    class_names: Sequence[str] = field(default=())


# ---- reading


def read_words(folder: Path = CARDS) -> dict[str, Any]:
    """Read cards.yaml.

    Raises:
        CardError: If the file is no YAML or lacks a part.
    """
    path = folder / "cards.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise CardError(f"{path}: cannot be read ({error}).") from error
    for key in ("words", "data", "clips", "cards"):
        if not isinstance(content, dict) or not content.get(key):
            raise CardError(f"{path}: lacks '{key}'.")
    names = [card.get("name") for card in content["cards"]]
    for name in names:
        if names.count(name) > 1:
            raise CardError(f"{path}: the card '{name}' stands twice; give each a name of its own.")
    return content


def read_cards(folder: Path = CARDS) -> list[Card]:
    """Every card of cards.yaml, with what exists of its checkpoint.

    Raises:
        CardError: If an entry has an unknown key or lacks one, or its checkpoint lacks its audit.
    """
    content = read_words(folder)
    cards = []
    for entry in content["cards"]:
        unknown = set(entry) - {"name", "recipe", "checkpoint", "results", "table", *WORDS}
        if unknown or not {"name", "recipe"} <= set(entry):
            problem = f"unknown key '{min(unknown)}'" if unknown else "a `name` and a `recipe` are needed"
            raise CardError(f"{folder / 'cards.yaml'}: card {entry.get('name')!r}: {problem}.")
        recipe = read_recipe([str(ROOT / entry["recipe"])])
        protocol, embedded, runs, own = None, entry.get("checkpoint"), [], None
        if entry.get("results"):
            world, row = entry["results"].split("/")
            runs = read_results(ROOT / "results" / world, row)
        if embedded:
            protocol = _read_json(ROOT / embedded / "protocol.json")
            made = yaml.safe_load((ROOT / embedded / "recipe.yaml").read_text())
            own = next((run for run in runs if is_of_checkpoint(run, made, protocol)), None)
        cards.append(
            make_card(
                entry["name"], recipe, entry["recipe"], content, entry, protocol=protocol,
                result=own, num_seeds=len(runs), embedded=embedded, table=entry.get("table"),
            )
        )  # fmt: skip
    return cards


def is_of_checkpoint(run: Mapping[str, Any], recipe: Mapping[str, Any], protocol: Mapping[str, Any]) -> bool:
    """Whether a result was scored with a checkpoint's weights, trained by its recipe."""
    is_same = run["seed"] == recipe["seed"] and settings_of(run["recipe"]) == settings_of(recipe)
    return is_same and run.get(WEIGHTS_FIELD) == protocol.get(WEIGHTS_FIELD)


def make_card(
    name: str,
    recipe: Recipe,
    recipe_path: str,
    content: Mapping[str, Any],
    words: Mapping[str, str] | None = None,
    **parts: Any,
) -> Card:
    """Put a card together.

    Args:
        name: Name of the card.
        recipe: The run's recipe.
        recipe_path: Where the recipe is, in words of the repository.
        content: From `read_words`.
        words: Texts in place of the common ones.
        parts: Further fields of `Card`.
    """
    data = content["data"].get(recipe.vocabulary) or _unknown(recipe.vocabulary or recipe.dataset, "data set")
    clip = content["clips"].get(recipe.clip) or _unknown(recipe.clip, "CLIP")
    texts = {key: (words or {}).get(key) or content["words"][key] for key in WORDS}
    names = recipe.get_vocabulary().class_names
    parts = {"patch_size": clip.get("patch_size"), "class_names": names} | parts
    return Card(name, recipe, recipe_path, texts, data, clip, **parts)


def _unknown(name: str, kind: str) -> dict[str, str]:
    return {
        "title": name,
        "licence": f"The licence of the {kind} {name} is its owners'; look it up before you share this model.",
        "bias": f"The bias of the {kind} {name} has not been looked into.",
    }


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint.

    Raises:
        CardError: If it is missing or broken.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CardError(
            f"{path}: cannot be read ({error}); train again, or take the card's checkpoint out."
        ) from error


# ---- rendering


def render_card(card: Card, template: Path = CARDS / "template.md") -> str:
    """Fill the template.

    Args:
        card: What to say.
        template: The template's file.
    """
    grid = -(-card.recipe.crop_size // card.patch_size)
    facts = {
        "data": card.data["title"],
        "clip": card.clip["title"],
        "setting": card.recipe.setting.replace("_", " "),
        "size": card.recipe.crop_size,
        "grid": grid,
    }
    words = {key: _wrap(text.format_map(facts)) for key, text in card.words.items()}
    words["scope"] = _wrap(f"**Intended**: {card.words['intended']} **Out of scope**: {card.words['out_of_scope']}")
    words["needs"] = _wrap(NEEDS)
    words["limits"] = _wrap(f"{card.words['limits'].format_map(facts)} {card.clip['bias']} {card.data['bias']}")
    exists = card.protocol is not None
    status = (
        f"Checkpoint: seed {card.result['seed']}, code {card.result['commit'][:7]}{card.result['commit'][40:]}."
        if exists and card.result
        else "The checkpoint exists; its scores are not recorded here."
        if exists
        else "**No checkpoint exists yet.** This card is what its recipe will produce; it states no number of ours."
    )
    text = Template(template.read_text()).substitute(
        metadata=metadata(card).to_yaml().strip(),
        name=card.name,
        status=status,
        usage=usage(card),
        classes=describe_classes(card),
        training=describe_training(card),
        scores=describe_scores(card),
        protocol=describe_protocol(card),
        licence=_wrap(f"LDVC's own weights and code: Apache-2.0. {card.clip['licence']} {card.data['licence']}"),
        **words,
    )
    return text.rstrip() + "\n"


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def metadata(card: Card) -> ModelCardData:
    """The front matter; scores only where a checkpoint has been scored."""
    on_hub = "/" in card.recipe.clip and not (ROOT / card.recipe.clip).is_dir()
    options = {
        "language": "en",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["zero-shot", "semantic-segmentation", "open-vocabulary", "custom_code"],
        "datasets": [card.recipe.vocabulary or card.recipe.dataset],
    }
    if on_hub:
        options |= {"base_model": card.recipe.clip, "base_model_relation": "finetune"}
    if card.result:
        options |= {"model_name": card.name, "eval_results": evaluation_results(card)}
    return ModelCardData(**options)


def evaluation_results(card: Card) -> list[EvalResult]:
    """The checkpoint's four scores for the model index, without offset, in percent."""
    scores = card.result["scores"]["0.0"]
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="zero-shot semantic segmentation",
            dataset_type=card.recipe.vocabulary or card.recipe.dataset,
            dataset_name=card.data["title"],
            dataset_split=card.recipe.eval_split,
            metric_type=METRIC_TYPES[name],
            metric_name=TITLES[name],
            metric_value=round(100 * scores[name], 1),
        )
        for name in REPORTED
        if scores[name] is not None
    ]


def usage(card: Card) -> str:
    """The quick start: from this repository, or from the Hub with the code of the folder."""
    vocabulary = card.recipe.get_vocabulary()
    some = [*vocabulary.seen_class_ids[:1], *vocabulary.unseen_class_ids[:2]]
    labels = json.dumps([card.class_names[i] for i in some], ensure_ascii=False)
    if card.embedded:
        head = "import ldvc  # registers the Auto classes; this folder brings no copy of the code\n"
        folder, options, example = f'"{card.embedded}"', "", "assets/demo_page.jpg"
    else:
        head, example = "", "photo.jpg"
        folder = f'"{card.name}"  # a folder, or an id on the Hub\n'
        folder += 'options = {"trust_remote_code": True, "revision": "main"}  # the folder\'s code runs: pin a commit'
        options = ", **options"
    return f"""{head}from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

folder = {folder}
model = AutoModel.from_pretrained(folder{options}).eval()
processor = AutoProcessor.from_pretrained(folder{options})

image = Image.open("{example}")
outputs = model(**processor(images=image, class_names={labels}, return_tensors="pt"))
label_map = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]

segmenter = pipeline("zero-shot-image-segmentation", model=model, processor=processor)
found = segmenter(image, candidate_labels={labels})  # names, scores and masks, best first
masks = pipeline("image-segmentation", model=folder{options})(image)  # the {len(card.class_names)} classes below"""


def describe_classes(card: Card) -> str:
    """Which classes trained with masks: from the audit where there is one, else as the recipe wants it."""
    if card.protocol is not None:
        with_masks = names_trained_with_masks(card.protocol)
        without = [entry["name"] for entry in card.protocol["classes"] if entry["name"] not in with_masks]
        source = "Counted where the loss got its labels (`protocol.json`)."
    else:
        vocabulary = card.recipe.get_vocabulary()
        unseen = set() if card.recipe.setting == "fully_supervised" else set(vocabulary.unseen_names)
        with_masks = [name for name in vocabulary.class_names if name not in unseen]
        without = [name for name in vocabulary.class_names if name in unseen]
        source = "By the recipe; `protocol.json` of the checkpoint will count what really reached the loss."
    text = f"Trained with masks ({len(with_masks)}): {', '.join(with_masks)}."
    if without:
        text += f" Never with masks ({len(without)}): **{', '.join(without)}**; CLIP knows their names."
    return _wrap(f"{text} {source}")


def describe_training(card: Card) -> str:
    """Data, regime, schedule and command; time and size where they were measured."""
    recipe = card.recipe
    steps = f"{recipe.max_steps:,} steps"
    if recipe.setting == "transductive":
        steps = f"{recipe.max_steps:,} steps without and as many with labels of its own, each"
    text = (
        f"{card.data['title']}, split `{recipe.train_split}`. {SETTINGS[recipe.setting][0].upper()}"
        f"{SETTINGS[recipe.setting][1:]}. {steps} of {recipe.batch_size} crops of "
        f"{recipe.crop_size} x {recipe.crop_size} pixels; {card.clip['title']} stays frozen; prompts, text "
        "adapter and decoder train."
    )
    if card.protocol is not None:
        start = card.protocol.get("start")
        if start and recipe.setting != "transductive":
            known = "" if start.get("is_audited", True) else ", of whose own training no whole audit is known"
            text += f" It started from the weights of {Path(start['checkpoint']).name}{known}."
        kept = "kept" if card.protocol["keeps_setting"] else "NOT kept"
        text += (
            f" Audit: {card.protocol['image_draws']:,} images drawn, "
            f"{card.protocol['unseen_mask_pixels_in_the_loss']:,} mask pixels of unseen classes in the loss; the "
            f"setting was {kept}."
        )
        if missing := uncovered_weights(card.protocol):
            text += f" The audit is of an older version and does not cover {' and '.join(missing)}."
    if card.result:
        text += (
            f" {card.result['trainable_parameters'] / 1e6:.2f} M parameters trained in "
            f"{card.result['training_seconds']:.0f} s with PyTorch {card.result['versions']['torch']}."
        )
    seed = f" --seed {recipe.seed}" if recipe.seed and card.recipe_path.startswith("recipes/") else ""
    return f"{_wrap(text)}\n\n```bash\naccelerate launch train.py {card.recipe_path}{seed}\n```"


def describe_scores(card: Card) -> str:
    """The checkpoint's scores with intervals, and a table of the report over seeds; or a line that there are none."""
    table = f"<!-- table: {card.table} -->\n<!-- end -->" if card.table else ""
    if not card.result:
        return table or _wrap(
            "None yet. What others published under this protocol is in `docs/experiments.md` of the code repository."
        )
    lines = ["| | " + " | ".join(TITLES[name] for name in REPORTED) + " |", "|" + "---|" * (len(REPORTED) + 1)]
    for offset, scores in card.result["scores"].items():
        title = "as it is" if float(offset) == 0 else f"{offset} off seen scores"
        lines.append(f"| {title} | " + " | ".join(_with_interval(scores, name) for name in REPORTED) + " |")
    note = f"Percent; in brackets the 95 % interval over images (bootstrap); {card.result['num_images']} images."
    if table:
        return "\n".join([*lines, "", _wrap(f"{note} Over seeds, beside its controls:"), "", table])
    return "\n".join([*lines, "", _wrap(f"{note} {_seeds(card)}")])


def _seeds(card: Card) -> str:
    if card.num_seeds > 1:
        return f"The code repository has {card.num_seeds} seeds of this recipe."
    return "One seed; unseen scores vary by points from seed to seed."


def _with_interval(scores: Mapping[str, Any], name: str) -> str:
    if scores[name] is None:
        return "-"
    interval = scores["intervals"][name]
    bounds = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * scores[name]:.1f}{bounds}"


def describe_protocol(card: Card) -> str:
    """How pictures are put through the model, and the command that repeats the scores."""
    recipe = card.recipe
    template = recipe.model.get("prompt_template", "a photo of a {}")
    how = (
        f"sliding windows of {recipe.window} pixels every {recipe.stride} over images whose short side is "
        f"{recipe.short_side}"
        if recipe.window
        else f"whole images at a short side of {recipe.short_side or 'its own'} pixels"
    )
    text = (
        f"Protocol: split `{recipe.eval_split}`, {how}; all {len(card.class_names)} classes compete in one arg-max; "
        f'template "{template}"; unlabelled pixels do not count.'
    )
    words = ["ldvc", "evaluate", card.embedded or "FOLDER", "--setting", recipe.setting]
    if recipe.reduce_labels:
        words.append("--reduce_labels")
    for option, value in evaluation_options(recipe).items():
        words += [f"--{option}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
    return f"{_wrap(text)}\n\n```bash\n{shlex.join(words)}\n```"


def evaluation_options(recipe: Recipe) -> dict[str, Any]:
    """Options of `ldvc evaluate` that score as the run did: data, classes and size."""
    options = {"dataset": recipe.dataset, "dataset_config": recipe.dataset_config}
    options |= {"dataset_revision": recipe.dataset_revision, "split": recipe.eval_split}
    columns = {"image_column": (recipe.image_column, "image"), "label_column": (recipe.label_column, "label")}
    options |= {name: value for name, (value, usual) in columns.items() if value != usual}
    options |= {"num_images": recipe.num_eval_images, "vocabulary": recipe.vocabulary}
    options |= {"class_names": recipe.class_names, "unseen_classes": recipe.unseen_classes}
    options |= {"seen_share": recipe.seen_share} if recipe.seen_share != 1 else {}
    options |= {"short_side": recipe.short_side, "window": recipe.window}
    options |= {"stride": recipe.stride} if recipe.window else {}
    return {name: value for name, value in options.items() if value is not None}


def check_card(text: str) -> ModelCardData:
    """Read a card's front matter as the Hub does, without a network.

    Raises:
        CardError: If it cannot be read or lacks a field.
    """
    try:
        data = ModelCard(text, ignore_metadata_errors=False).data
    except ValueError as error:
        raise CardError(f"the card's front matter cannot be read: {error}") from error
    for name in ("license", "library_name", "pipeline_tag", "tags", "datasets"):
        if not getattr(data, name, None):
            raise CardError(f"the card's front matter lacks `{name}`.")
    return data
