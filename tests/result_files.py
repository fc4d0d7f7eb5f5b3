"""Result files as train.py and ldvc evaluate write them, made up, for the tests of what reads them."""

import copy
import json
from dataclasses import asdict

from ldvc.training.recipe import Recipe


NAMES = ["cat", "dog", "sofa", "grass"]


def make_recipe(**keys):
    """A recipe of four classes, sofa unseen."""
    model = keys.pop("model", {})
    return Recipe(class_names=NAMES, unseen_classes=["sofa"], dataset="scenes", model=model, **keys)


def make_table(seen=0.6, unseen=0.3):
    """One score table."""
    return {
        "pixel_accuracy": 0.8,
        "miou_seen": seen,
        "miou_unseen": unseen,
        "hiou": 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0,
        "miou": 0.75 * seen + 0.25 * unseen,
        "per_class_iou": [seen, seen, unseen, None],
        "fragmentation": {
            "components_per_class_and_image": 2.5,
            "reference_components_per_class_and_image": 1.5,
        },
        "intervals": {name: [0.25, 0.75] for name in ("pixel_accuracy", "miou_seen", "miou_unseen", "hiou")},
    }


def make_result(seed=0, seen=0.6, unseen=0.3, recipe=None, **fields):
    """The result of a training run."""
    recipe = asdict(recipe or make_recipe(seed=seed)) | {"seed": seed}
    result = {
        "num_images": 10,
        "scores": {"0.0": make_table(seen, unseen), "0.1": make_table(seen, unseen)},
        "recipe": recipe,
        "controls": {},
        "trainable_parameters": 1_110_000,
        "training_seconds": 12.5,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "config_sha256": "0123456789abcdef",
        "dataset_fingerprint": "fedcba9876543210",
        "seed": seed,
        "versions": {"torch": "2.13.0"},
        "clip_fingerprint": None,
    }
    return copy.deepcopy(result | fields)


def write(path, content):
    """Write JSON, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
