"""What the tiny CLIP knows without any training on labels: object and stuff accuracy, and scene mAP."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from picturebook.clip_folder import IMAGE_MEAN, IMAGE_STD
from picturebook.vocabulary import get_world
from picturebook.world import Scene, draw_scene


PROMPT = "a photo of a {}"


def to_pixel_values(images: np.ndarray) -> Tensor:
    """Normalise pages as the image processor does.

    Args:
        images: (batch_size, height, width, 3) uint8.

    Returns:
        (batch_size, 3, height, width) float32.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return ((pixels - mean) / std).contiguous()


def draw_quiz(split: str, seed: int, num_objects: int, num_stuff: int, num_scenes: int, world: str) -> dict:
    """Draw the pages of the three questions; bare pages of a single stuff class only."""
    quiz = {
        "object": [draw_scene(split, seed, i, world=world, kind="object") for i in range(num_objects)],
        "scene": [draw_scene(split, seed, i, world=world, kind="scene") for i in range(num_scenes)],
        "stuff": [],
    }
    index = 0
    while len(quiz["stuff"]) < num_stuff:
        page = draw_scene(split, seed, index, world=world, kind="stuff")
        quiz["stuff"] += [page] if len(np.unique(page.label)) == 1 else []
        index += 1
    return quiz


@torch.no_grad()
def compute_similarities(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    pages: Sequence[Scene],
    class_names: Sequence[str],
    batch_size: int = 64,
) -> np.ndarray:
    """Cosine of every page with the prompt of every class, `(num_pages, num_classes)` in -1 to 1."""
    text = tokenizer([PROMPT.format(name) for name in class_names], padding=True, return_tensors="pt")
    size = model.config.vision_config.image_size
    images = [np.asarray(page.image.resize((size, size))) for page in pages]
    rows = []
    for start in range(0, len(images), batch_size):
        outputs = model(**text, pixel_values=to_pixel_values(np.stack(images[start : start + batch_size])))
        rows.append(outputs.image_embeds.float() @ outputs.text_embeds.float().T)
    return torch.cat(rows).numpy()


def average_precision(scores: np.ndarray, is_relevant: np.ndarray) -> float:
    """Mean precision at the ranks of the relevant pages; NaN without any.

    Args:
        scores: (num_pages,) higher is more relevant.
        is_relevant: (num_pages,) bool.
    """
    hits = is_relevant[np.argsort(-scores, kind="stable")]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precisions[hits].mean()) if hits.any() else float("nan")


def score_clip(model: CLIPModel, tokenizer: CLIPTokenizer, quiz: dict, world: str = "plain") -> dict:
    """Answer the three questions of a quiz.

    Args:
        model: CLIP in evaluation mode; pages are resized to its image size.
        tokenizer: Its tokenizer.
        quiz: See `draw_quiz`.
        world: Vocabulary of the pages.

    Returns:
        Fractions: `object_accuracy` among the thing names, `stuff_accuracy` among the stuff names, `scene_map` over
        all classes, each with its chance level; and `object_accuracy_per_class`.
    """
    vocabulary = get_world(world)
    names, num_things = vocabulary.class_names, len(vocabulary.thing_names)
    things = compute_similarities(model, tokenizer, quiz["object"], vocabulary.thing_names).argmax(1)
    true_things = np.array([page.label[page.label < num_things][0] for page in quiz["object"]])
    stuff = compute_similarities(model, tokenizer, quiz["stuff"], vocabulary.stuff_names).argmax(1) + num_things
    true_stuff = np.array([page.label[0, 0] for page in quiz["stuff"]])
    ranking = compute_similarities(model, tokenizer, quiz["scene"], names)
    present = np.array([[i in page.class_ids for i in range(len(names))] for page in quiz["scene"]])
    precisions = [average_precision(ranking[:, i], present[:, i]) for i in range(len(names))]
    return {
        "object_accuracy": float((things == true_things).mean()),
        "object_accuracy_chance": 1 / num_things,
        "stuff_accuracy": float((stuff == true_stuff).mean()),
        "stuff_accuracy_chance": 1 / len(vocabulary.stuff_names),
        "scene_map": float(np.nanmean(precisions)),
        "scene_map_things": float(np.nanmean(precisions[:num_things])),
        "scene_map_stuff": float(np.nanmean(precisions[num_things:])),
        "scene_map_chance": float(present.mean(0)[present.any(0)].mean()),
        "object_accuracy_per_class": {
            name: float((things == i)[true_things == i].mean())
            for i, name in enumerate(vocabulary.thing_names)
            if (true_things == i).any()
        },
    }
