"""What the label maps of a scored split hold, looked at before hours are spent on scores that they could not give."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from ldvc.data.samples import read_labelled
from ldvc.data.vocabularies import Vocabulary


__all__ = ["count_labels", "missing_labels"]


def count_labels(dataset: Any, vocabulary: Vocabulary, reduce_labels: bool, name: str) -> dict[str, int]:
    """Read a split from end to end, as one of n processes, and count the labelled pixels of every class.

    Args:
        dataset: A map-style split as given by `load_split`.
        vocabulary: Class list.
        reduce_labels: See `map_labels`.
        name: Of the split, for messages.

    Returns:
        Class name -> pixels, over all processes, which must all call this.

    Raises:
        ValueError: If a sample cannot be read, its ids do not fit the class list, or no pixel has a label.
    """
    state, num_classes = PartialState(), len(vocabulary.class_names)
    counts = np.zeros(num_classes, dtype=np.int64)
    rows = range(state.process_index, len(dataset), state.num_processes)
    for row in tqdm(rows, desc="read labels", unit="image", disable=not state.is_main_process, leave=False):
        try:
            _, label_map = read_labelled(dataset, row, num_classes, reduce_labels)
        except ValueError as error:
            raise ValueError(f"split {name!r}, which is to be scored: {error}") from error
        counts += np.bincount(label_map[label_map < num_classes], minlength=num_classes)
    total = np.sum(gather_object([counts]), axis=0)
    if not total.any():
        raise ValueError(
            f"split {name!r}, which is to be scored: none of its {len(dataset)} label maps has a labelled pixel, so "
            "that there is nothing to score; name another split, or look at it with ldvc check."
        )
    return dict(zip(vocabulary.class_names, total.tolist(), strict=True))


def missing_labels(labelled: Mapping[str, int], vocabulary: Vocabulary) -> str | None:
    """One line on the classes that no pixel of the scored split is labelled with; `None` if there are none.

    Args:
        labelled: From `count_labels`.
        vocabulary: Classes and split.
    """
    parts = []
    for kind, ids in (("seen", vocabulary.seen_class_ids), ("unseen", vocabulary.scored_unseen_class_ids)):
        group = [vocabulary.class_names[class_id] for class_id in ids]
        missing = [name for name in group if not labelled[name]]
        if missing and len(missing) == len(group):
            parts.append(f"no {kind} class at all, so that mIoU({kind[0].upper()}) and hIoU have no score")
        elif missing:
            parts.append(f"none of the {kind} class{'es' if len(missing) > 1 else ''} {', '.join(missing)}")
    return f"labelled pixels of the scored pictures: {'; '.join(parts)}." if parts else None
