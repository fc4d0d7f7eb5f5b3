"""A class list held against what lies beside the label maps, before anything is read with it."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download

from ldvc.data.lists import read_class_file, read_class_names
from ldvc.data.vocabularies import letters


__all__ = ["check_label_convention"]


def check_label_convention(
    dataset: str, class_names: Sequence[str] | int, *, reduce_labels: bool, revision: str | None = None
) -> None:
    """Compare settings with what lies beside the label maps: `classes.txt`, or `classes.json` of `ldvc prepare`.

    The ids alone may not tell: class ids 0 to 58 read with `reduce_labels` are all in range and all off by one, and
    names in another order train the masks of one class as another. Spelling is free: case, spaces, hyphens.

    Args:
        dataset: As for `load_split`.
        class_names: The class list that is to be used, the position of a name being its id; or its length alone, where
            names are a matter of the benchmark and ids are not.
        reduce_labels: See `map_labels`.
        revision: Git revision of a Hub dataset.

    Raises:
        ValueError: If the folder was made for another class list or the other value of `reduce_labels`, or its list
            cannot be read.
    """
    path = Path(dataset).expanduser() / "classes.json"
    if "/" in dataset and not path.parent.exists():
        try:
            path = Path(hf_hub_download(dataset, path.name, repo_type="dataset", revision=revision))
        except (OSError, ValueError):  # it has none, or there is no such dataset: loading it will tell
            return
    was_reduced = read_class_file(path)[1] if path.is_file() else None
    listed = read_class_names(path.parent)
    if was_reduced not in (None, reduce_labels):
        raise ValueError(
            f"reduce_labels is {reduce_labels}, but the label maps of '{dataset}' were made for {was_reduced} "
            f"({path}): set it so, or convert the dataset anew."
        )
    if listed is not None:
        names = [""] * class_names if isinstance(class_names, int) else class_names
        _check_same_names(names, [""] * len(listed) if isinstance(class_names, int) else listed, dataset)


def _check_same_names(names: Sequence[str], listed: Sequence[str], dataset: str) -> None:
    """Hold a class list against the dataset's own.

    Raises:
        ValueError: Names the first id that differs.
    """
    pairs = enumerate(zip(names, listed, strict=False))
    first = next((class_id for class_id, (name, other) in pairs if letters(name) != letters(other)), None)
    if first is None and len(names) == len(listed):
        return
    difference = f"num_classes is {len(names)}, but its label maps were made for {len(listed)}"
    if first is not None:
        difference = f"class {first} is {names[first]!r}, there it is {listed[first]!r}"
    raise ValueError(
        f"the class list contradicts that of '{dataset}' itself (classes.txt or classes.json): {difference}; leave "
        "the list out where the command allows it, give the dataset's own, or correct its classes.txt."
    )
