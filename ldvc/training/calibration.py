"""How much to take off the scores of seen classes, chosen without a mask of an unseen one: `ldvc calibrate`.

A model prefers classes that trained with masks. The literature takes 0.1 off their probabilities, one number for all
data and models. Here a part of the seen classes is held out in turn: a model that trains without them, on the same
recipe, is scored on training pictures that it did not see, where the classes held out stand for unseen ones, and the
number whose harmonic mean is the best, on average over the parts, is chosen. Pixels of the split's own unseen classes
are void in all of it; their names compete, as they will.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldvc.data.provenance import check_writable, provenance, write_json
from ldvc.data.samples import IGNORE_INDEX, read_labelled
from ldvc.data.vocabularies import Vocabulary
from ldvc.model.weights_ldvc import write_files
from ldvc.training.machine import build_accelerator
from ldvc.training.recipe import Recipe, RecipeError
from ldvc.training.run import set_up, train_to_end, write_protocol
from ldvc.training.state import Progress


__all__ = ["OFFSETS", "calibrate", "check_checkpoint", "held_out_in_turn", "set_offset"]

OFFSETS = tuple(round(0.01 * step, 2) for step in range(41))


def held_out_in_turn(vocabulary: Vocabulary, num_parts: int) -> list[tuple[str, ...]]:
    """Share the seen classes out: each part is held out once.

    Args:
        vocabulary: Its `joining_order`, or else its class list, decides who is in which part.
        num_parts: At least 2.

    Raises:
        RecipeError: If there are fewer seen classes than parts.
    """
    order = vocabulary.joining_order or vocabulary.class_names
    seen = [name for name in order if name not in vocabulary.unseen_names]
    if not 2 <= num_parts <= len(seen):
        raise RecipeError(
            f"the {len(seen)} seen classes of {vocabulary.name!r} are to be held out in {num_parts} parts; use "
            f"--parts 2 to {len(seen)}."
        )
    return [tuple(seen[part::num_parts]) for part in range(num_parts)]


class WithoutMasksOf:
    """Rows of a split in which some classes are void.

    Args:
        data: As given by `load_split`.
        recipe: Says how its label maps count.
        vocabulary: Its classes.
        names: Whose masks are not to be read.
    """

    def __init__(self, data: Any, recipe: Recipe, vocabulary: Vocabulary, names: tuple[str, ...]):
        self.data, self.reduce_labels = data, recipe.reduce_labels
        self.num_classes = len(vocabulary.class_names)
        self.void = [vocabulary.class_names.index(name) for name in names]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label_map = read_labelled(self.data, index, self.num_classes, self.reduce_labels)
        return {"image": image, "label": np.where(np.isin(label_map, self.void), IGNORE_INDEX, label_map)}


def score_part(
    recipe: Recipe, vocabulary: Vocabulary, held_out: tuple[str, ...], num_images: int
) -> tuple[dict[str, Any], list[float]]:
    """Train without some more classes, and score on pictures that were left out.

    Args:
        recipe: Of the part: its `unseen_classes` and folder.
        vocabulary: The split.
        held_out: Seen classes that stand for unseen ones.
        num_images: Training pictures that are left out to score on.

    Returns:
        Facts of the training, and the harmonic mean for each of `OFFSETS`.

    Raises:
        RecipeError: If no pictures would be left to train on.
        RuntimeError: If a mask that must not reached the loss.
    """
    accelerator = build_accelerator(recipe)
    run = set_up(recipe, accelerator)
    num_trained = len(run.train_data) - num_images
    if num_trained < 1:
        raise RecipeError(
            f"{num_images} of {len(run.train_data)} training pictures are to be left out to score on, which leaves "
            f"none; use --num_images {max(1, len(run.train_data) // 8)}."
        )
    left_out = run.train_data.select(range(num_trained, num_trained + num_images))
    run.train_data = run.train_data.select(range(num_trained))
    train_to_end(run, Progress())
    protocol = write_protocol(run)
    if not protocol["keeps_setting"]:
        raise RuntimeError(f"masks of held-out classes reached the loss: see {run.folder / 'protocol.json'}.")
    run.eval_data = WithoutMasksOf(left_out, recipe, vocabulary, vocabulary.unseen_names)
    run.recipe = replace(recipe, reduce_labels=False)  # they are class ids now
    run.vocabulary = replace(
        vocabulary, unseen_names=(*vocabulary.unseen_names, *held_out), left_out_names=vocabulary.unseen_names
    )
    scores = run.evaluate(offsets=OFFSETS)["scores"]
    facts = {"held_out": list(held_out), **provenance(run.model.config, left_out, recipe.seed)}
    accelerator.free_memory()
    return facts, [scores[str(offset)]["hiou"] for offset in OFFSETS]


def calibrate(recipe: Recipe, num_parts: int, num_images: int, folder: Path) -> float:
    """Choose `seen_score_offset` for a recipe.

    Args:
        recipe: Of an inductive run.
        num_parts: Parts of the seen classes that are held out in turn, each a training.
        num_images: Training pictures that are left out of them, to score on.
        folder: For the trainings and `calibration.json`.

    Returns:
        The best of `OFFSETS`; 0 where it is as good as any.

    Raises:
        RecipeError: If the recipe is not inductive, streams, or cannot spare classes or pictures.
    """
    if recipe.setting != "inductive" or recipe.streaming:
        raise RecipeError(
            f"`setting` is {recipe.setting!r} and `streaming` {recipe.streaming}: an offset is chosen for inductive "
            "runs whose pictures can be counted; use --setting inductive --streaming false."
        )
    vocabulary, parts = recipe.get_vocabulary(), []
    check_writable(folder / "calibration.json")
    for number, held_out in enumerate(held_out_in_turn(vocabulary, num_parts)):
        part = replace(
            recipe,
            unseen_classes=[*vocabulary.unseen_names, *held_out],
            seen_share=1.0,
            eval_split=recipe.train_split,  # no other split is read
            num_eval_images=num_images,
            eval_every=0,
            save_every=0,
            output_dir=str(folder / f"part{number}"),
            overwrite_output_dir=True,
            resume_from_checkpoint=None,
            report_to=None,
        )
        parts.append(score_part(part, vocabulary, held_out, num_images))
    mean = np.mean([scores for _, scores in parts], axis=0)
    chosen = OFFSETS[int(mean.argmax())]
    found = {"seen_score_offset": chosen, "offsets": OFFSETS, "mean_hiou": mean.tolist()}
    found["parts"] = [{**facts, "hiou": scores} for facts, scores in parts]
    write_json({**found, "num_images": num_images, "recipe": asdict(recipe)}, folder / "calibration.json")
    return chosen


def check_checkpoint(checkpoint: Path, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """Read the configuration of a checkpoint that an offset can apply to.

    Args:
        checkpoint: Its folder.
        vocabulary: Whose split it must have trained on.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it does not say which classes are seen, or they are not those of the vocabulary.
    """
    path = checkpoint / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint} has no config.json; give the folder of a checkpoint.")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not config.get("seen_classes"):
        raise ValueError(f"{path} names no `seen_classes`, to which an offset could apply; train with train.py.")
    if vocabulary is not None:
        seen = [name for name in vocabulary.class_names if name not in vocabulary.unseen_names]
        if other := sorted({*seen} ^ {*config["seen_classes"]}):
            raise ValueError(
                f"{path} trained on another split than the recipe's, which differs in {', '.join(other[:8])}; name "
                "the recipe and the keys of that checkpoint."
            )
    return config


def set_offset(checkpoint: Path, offset: float) -> None:
    """Write `seen_score_offset` into a checkpoint; raises as `check_checkpoint`."""
    config = check_checkpoint(checkpoint) | {"seen_score_offset": offset}
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_files(checkpoint, {"config.json": text.encode()})
