"""Plain folders of pictures and label maps as a dataset: no conversion, no index file.

    pets/train/images/0001.jpg     or  pets/images/train/0001.jpg     or, without splits,  pets/images/0001.jpg
    pets/train/masks/0001.png          pets/masks/train/0001.png                           pets/masks/0001.png
    pets/classes.txt               optional: one class name per line, in the order of the ids

A picture and its label map have the same name apart from the ending. `load_split` reads such a folder like any other
dataset, so that `train.py`, `ldvc evaluate` and `ldvc check` take its path.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Features, Image


__all__ = ["FolderSplit", "find_folder_splits", "is_image_folder", "load_image_folder", "read_class_names"]

IMAGE_FOLDERS = ("images", "image", "img")
LABEL_FOLDERS = ("masks", "labels", "annotations", "mask", "label")
# Names of split folders -> the name that train.py and ldvc evaluate use.
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass
class FolderSplit:
    """Files of one split.

    Attributes:
        pairs: Picture and label map, sorted by name.
        images_without_label: Pictures that no label map belongs to.
        labels_without_image: Label maps that no picture belongs to.
    """

    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    images_without_label: list[Path] = field(default_factory=list)
    labels_without_image: list[Path] = field(default_factory=list)


def find_folder_splits(folder: str | Path) -> dict[str, FolderSplit]:
    """List a plain folder's splits; a folder without split folders is the split "train".

    Returns:
        Split name -> files; empty if the folder is not laid out like this.

    Raises:
        ValueError: If two files share a name apart from the ending, so that pairs are ambiguous.
    """
    root, splits = Path(folder).expanduser(), {}
    if not root.is_dir():
        return splits
    images, labels = _first_folder(root, IMAGE_FOLDERS), _first_folder(root, LABEL_FOLDERS)
    for name, split in SPLITS.items():
        if images and labels:  # images/train beside masks/train
            image_part, label_part = images / name, labels / name
        else:  # train/images beside train/masks
            image_part, label_part = (_first_folder(root / name, kind) for kind in (IMAGE_FOLDERS, LABEL_FOLDERS))
        if image_part and label_part and image_part.is_dir() and label_part.is_dir():
            splits[split] = _pair(image_part, label_part)
    if not splits and images and labels:
        splits["train"] = _pair(images, labels)
    return splits


def is_image_folder(folder: str | Path) -> bool:
    """Whether a path is a plain folder with pictures and label maps apart."""
    return bool(find_folder_splits(folder))


def load_image_folder(folder: str | Path, split: str) -> Dataset:
    """Load a split of a plain folder with the columns `image` and `label`; files are opened when a row is read.

    Raises:
        ValueError: If there is no such split, or no picture in it has a label map.
    """
    splits = find_folder_splits(folder)
    if split not in splits:
        raise ValueError(
            f"Folder '{folder}' has no split '{split}'; it has {sorted(splits)}. Put pictures into "
            f"{split}/images and their label maps into {split}/masks."
        )
    pairs = splits[split].pairs
    if not pairs:
        raise ValueError(
            f"Split '{split}' of folder '{folder}' has no picture with a label map: give both the same name apart "
            "from the ending, such as images/0001.jpg and masks/0001.png."
        )
    columns = {"image": [str(image) for image, _ in pairs], "label": [str(label) for _, label in pairs]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": Image()}))


def read_class_names(folder: str | Path) -> list[str] | None:
    """Read the class names that lie in a dataset's folder: `classes.txt`, or `classes.json` of ldvc prepare."""
    root = Path(folder).expanduser()
    if (root / "classes.txt").is_file():
        lines = (root / "classes.txt").read_text(encoding="utf-8-sig").splitlines()  # of Windows, too
        return [line.strip() for line in lines if line.strip()]
    if (root / "classes.json").is_file():
        names = json.loads((root / "classes.json").read_text(encoding="utf-8")).get("class_names")
        return list(names) if names else None
    return None


def _first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _pair(image_folder: Path, label_folder: Path) -> FolderSplit:
    images, labels = _files_by_name(image_folder), _files_by_name(label_folder)
    shared = sorted(images.keys() & labels.keys())
    return FolderSplit(
        [(images[name], labels[name]) for name in shared],
        [images[name] for name in sorted(images.keys() - labels.keys())],
        [labels[name] for name in sorted(labels.keys() - images.keys())],
    )


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Picture files by their path inside the folder without the ending.

    Raises:
        ValueError: If two files differ in the ending only.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in ENDINGS or any(part.startswith(".") for part in relative.parts):
            continue
        name = str(relative.with_suffix(""))
        if name in files:
            raise ValueError(f"{files[name]} and {path} differ in the ending only: keep one of them.")
        files[name] = path
    return files
