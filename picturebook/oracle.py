"""What the token grid alone allows: the score of perfect soft labels on 16 x 16 tokens, upsampled as predictions are.

python -m picturebook.oracle        writes results/picturebook_oracle.json
"""

import argparse
import time
from collections.abc import Sequence

import evaluate
import numpy as np
import torch
import torch.nn.functional as F

from ldvc.data.provenance import trace_to, write_json
from ldvc.data.samples import load_split
from ldvc.model.image_processing_ldvc import best_classes
from ldvc.scoring.evaluate import METRIC_PATH, group_scores
from picturebook.vocabulary import CLASS_GROUPS, CLASS_NAMES, UNSEEN_NAMES
from picturebook.world import PATCH_SIZE, draw_scene


def score_oracle(num_images: int, patch_size: int = PATCH_SIZE, split: str = "test", seed: int = 0) -> dict:
    """Score label maps that were averaged over patches and upsampled bilinearly.

    Args:
        num_images: Pages of the split.
        patch_size: Pixels per side of a patch.
        split: See `draw_scene`.
        seed: Edition of the book.

    Returns:
        The metric's scores, and things and stuff apart.
    """
    metric, labelled = evaluate.load(METRIC_PATH), set()
    for index in range(num_images):
        label = torch.from_numpy(draw_scene(split, seed, index).label.astype(np.int64))
        labelled |= set(label.unique().tolist())
        masks = F.one_hot(label, len(CLASS_NAMES)).permute(2, 0, 1).float()
        tokens = F.avg_pool2d(masks[None], patch_size)[0]
        metric.add(prediction=best_classes(tokens, tuple(label.shape)).numpy(), reference=label.numpy())
    unseen = [CLASS_NAMES.index(name) for name in UNSEEN_NAMES]
    scores = metric.compute(num_labels=len(CLASS_NAMES), unseen_ids=unseen)
    return scores | {"groups": group_scores(scores["per_class_iou"], unseen, CLASS_GROUPS, labelled)}


def main(argv: Sequence[str] | None = None) -> None:
    """Score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=int, default=250)
    parser.add_argument("--output", default="results/picturebook_oracle.json")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    result = {
        "num_images": arguments.num_images,
        "patch_size": PATCH_SIZE,
        "scores": score_oracle(arguments.num_images),
    }
    pages = load_split("picturebook", "test", num_images=arguments.num_images)
    seconds = round(time.perf_counter() - started, 1)
    write_json(result | {"seconds": seconds} | trace_to(pages, seed=0), arguments.output)


if __name__ == "__main__":
    main()
