"""Plain folders of pictures and label maps as a dataset: no conversion, no index file.

A folder's name says what lies in it, whatever its capitals: pictures (`images`, `img_dir`, `JPEGImages`, ...), label
maps (`masks`, `ann_dir`, `SegmentationClass`, ...), a split (`train`, `Val`, `test_set`, `train2017`, ...), or a split
and a kind (`train_images`). Splits lie within kinds or kinds within splits:

    pets/train/images/0001.jpg     or  pets/images/train/0001.jpg     or, without splits,  pets/images/0001.jpg
    pets/train/masks/0001.png          pets/masks/train/0001.png                           pets/masks/0001.png
    pets/classes.txt               optional: one class name per line, in the order of the ids

Two layouts have rules of their own: `ImageSets/Segmentation/train.txt` and `val.txt` beside `JPEGImages` list the
splits, and Roboflow's splits hold `x.jpg` beside `x_mask.png`, with the names in `_classes.csv`.

A picture and its label map have the same name apart from the ending. `load_split` reads such a folder like any other
dataset, so that `train.py`, `ldvc evaluate` and `ldvc check` take its path.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Features, Image

from ldvc.data.lists import read_class_names, read_image_ids
from ldvc.masks.files import PICTURE_SUFFIXES


__all__ = [
    "LAYOUTS",
    "FolderSplit",
    "MissingSplitError",
    "find_folder_splits",
    "find_label_folder",
    "find_outside",
    "is_image_folder",
    "load_image_folder",
    "read_class_names",
]

IMAGES, LABELS = "pictures", "label maps"
KINDS = {
    **dict.fromkeys(("images", "image", "img", "imgs", "img_dir", "jpegimages"), IMAGES),
    **dict.fromkeys(("masks", "mask", "labels", "label", "annotations", "annotation", "ann_dir"), LABELS),
    **dict.fromkeys(("segmentationclass", "segmentationclassaug", "stuffthingmaps"), LABELS),
}
SPLIT = re.compile(r"(train|val|test)(ing|id|idation)?[_-]?(set|data|split)?[_-]?(\d{4})?")
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # the names that train.py and ldvc evaluate use
OTHER_SPLITS = re.compile(r"trainval|dev|eval|evaluation|hold[_-]?out|minival|test[_-]?dev|trainaug")
MASK_SUFFIX = "_mask"  # of Roboflow
LAYOUTS = (
    "images/train beside masks/train, train/images beside train/masks, images beside masks, img_dir beside ann_dir, "
    "JPEGImages beside SegmentationClass, or train/x.jpg beside train/x_mask.png"
)
# Ending of annotations that are no pictures -> what they are, and what to do.
OTHER_LABELS = {
    ".txt": "YOLO's boxes or polygons: draw them as label maps, one PNG per picture whose pixel values are class ids",
    ".json": "COCO's or labelme's polygons: draw them as label maps, one PNG per picture whose pixel values are ids",
    ".xml": "boxes: label maps say of every pixel what it is",
    ".npy": (
        'arrays: write them as PNG with python -c "import pathlib, numpy, PIL.Image; [PIL.Image.fromarray('
        "numpy.load(path).squeeze().astype('uint16')).save(path.with_suffix('.png')) for path in "
        "pathlib.Path({folder!r}).rglob('*.npy')]\""
    ),
}


class MissingSplitError(ValueError):
    """A dataset has no split of this name."""


@dataclass
class FolderSplit:
    """Files of one split.

    Attributes:
        pairs: Picture and label map, sorted by name.
        images_without_label: Pictures that no label map belongs to.
        labels_without_image: Label maps that no picture belongs to.
        other_files: Folder -> ending -> files that are no pictures by their ending.
    """

    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    images_without_label: list[Path] = field(default_factory=list)
    labels_without_image: list[Path] = field(default_factory=list)
    other_files: dict[Path, Counter] = field(default_factory=dict)


def find_folder_splits(folder: str | Path) -> dict[str, FolderSplit]:
    """List a plain folder's splits; a folder without split folders is the split "train".

    Returns:
        Split name -> files; empty if the folder is not laid out like this.

    Raises:
        ValueError: If two files share a name apart from the ending, two folders may be one split or kind, folders
            below a split are named like another, or a link leads nowhere.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        return {}
    parts = _find_parts(root)
    splits = {}
    for split in SPLITS.values():
        images, labels = (_only_folder(parts.get((split, kind), []), kind, split) for kind in (IMAGES, LABELS))
        if images and labels:
            splits[split] = _pair(_list_files(images), _list_files(labels))
        elif mixed := _only_folder(parts.get((split, None), []), "pictures and label maps", split):
            splits |= _find_mixed(mixed, split)
    images, labels = (_only_folder(parts.get((None, kind), []), kind, None) for kind in (IMAGES, LABELS))
    if splits or not images or not labels:
        return splits
    lists = {name: path for path in root.glob("ImageSets/Segmentation/*.txt") if (name := split_of(path.stem))}
    return _find_listed(images, labels, lists) if lists else {"train": _pair(_list_files(images), _list_files(labels))}


def split_of(name: str) -> str | None:
    """The split that a folder or list of this name holds, if it is the name of one."""
    match = SPLIT.fullmatch(name.casefold())
    return SPLITS[match[1]] if match else None


def kind_of(name: str) -> str | None:
    """What a folder of this name holds, if it is the name of a kind."""
    return KINDS.get(name.casefold())


def _find_parts(root: Path) -> dict[tuple[str | None, str | None], list[Path]]:
    """Folders by split and kind, up to two below the root; either is `None` where names do not say it."""
    parts: dict[tuple[str | None, str | None], list[Path]] = {}
    for upper in _subfolders(root):
        split, kind = split_of(upper.name), kind_of(upper.name)
        before, _, after = re.sub("[_-]", " ", upper.name).rpartition(" ")
        if not kind and not split and split_of(before) and kind_of(after):
            split, kind = split_of(before), kind_of(after)
        if kind or split:
            parts.setdefault((split, kind), []).append(upper)
        for lower in _subfolders(upper) if kind or split else ():
            lower_split, lower_kind = split or split_of(lower.name), kind or kind_of(lower.name)
            if lower_split and lower_kind and not (split and kind):
                parts.setdefault((lower_split, lower_kind), []).append(lower)
    return parts


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _only_folder(folders: list[Path], kind: str, split: str | None) -> Path | None:
    """The one folder with picture files, or the first if none has any.

    Raises:
        ValueError: If several have.
    """
    filled = [folder for folder in folders if _has_pictures(folder)] if len(folders) > 1 else folders
    if len(filled) > 1:
        what = f"{kind} of the split '{split}'" if split else kind
        raise ValueError(
            f"{filled[0]} and {filled[1]} may both be the {what}: move one of them out of the dataset's folder."
        )
    return next(iter(filled or folders), None)


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in PICTURE_SUFFIXES for path, _ in _walk(folder))


def _find_mixed(folder: Path, split: str) -> dict[str, FolderSplit]:
    """Roboflow's split: label maps beside their pictures, told by their names; none is no split of this layout."""
    files, others = _list_files(folder)
    labels = {name.removesuffix(MASK_SUFFIX): path for name, path in files.items() if name.endswith(MASK_SUFFIX)}
    images = {name: path for name, path in files.items() if not name.endswith(MASK_SUFFIX)}
    return {split: _pair((images, others), (labels, {}))} if labels else {}


def _find_listed(images: Path, labels: Path, lists: dict[str, Path]) -> dict[str, FolderSplit]:
    """Splits that lists name, as in `ImageSets/Segmentation`."""
    (image_files, _), (label_files, _) = _list_files(images), _list_files(labels)
    splits = {}
    for split, path in lists.items():
        ids = read_image_ids(path, "write one name per line, without an ending")
        splits[split] = FolderSplit(
            [(image_files[name], label_files[name]) for name in ids if name in image_files and name in label_files],
            [images / name for name in ids if name not in label_files],
            [labels / name for name in ids if name in label_files and name not in image_files],
        )
    return splits


def is_image_folder(folder: str | Path) -> bool:
    """Whether a path is a plain folder with pictures and label maps apart."""
    return bool(find_folder_splits(folder))


def find_label_folder(folder: str | Path) -> Path | None:
    """A folder of label maps that lies in a folder of no known layout, where all pictures would be taken alike."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        return None
    return next(
        (path for _, path in _walk_folders(root) if kind_of(path.name) == LABELS and _has_pictures(path)), None
    )


def find_outside(folder: str | Path, splits: dict[str, FolderSplit]) -> list[Path]:
    """Pictures in a folder that are in none of its splits, sorted; other lists than splits leave out many."""
    root = Path(folder).expanduser()
    if not splits or (root / "ImageSets").is_dir():
        return []
    known = {path for split in splits.values() for pair in split.pairs for path in pair}
    known |= {path for split in splits.values() for path in split.images_without_label + split.labels_without_image}
    files = (Path(parent, name) for parent, _, names in os.walk(root) for name in names if not name.startswith("."))
    return sorted(path for path in files if path.suffix.lower() in PICTURE_SUFFIXES and path not in known)


def load_image_folder(folder: str | Path, split: str) -> Dataset:
    """Load a split of a plain folder with the columns `image` and `label`; files are opened when a row is read.

    Raises:
        MissingSplitError: If there is no such split.
        ValueError: If no picture in it has a label map.
    """
    splits = find_folder_splits(folder)
    if split not in splits:
        raise MissingSplitError(
            f"Folder '{folder}' has no split '{split}'; it has {sorted(splits)}. Put pictures into "
            f"{split}/images and their label maps into {split}/masks."
        )
    found = splits[split]
    if not found.pairs:
        raise ValueError(f"Split '{split}' of folder '{folder}' has no picture with a label map: {_why_none(found)}.")
    columns = {"image": [str(image) for image, _ in found.pairs], "label": [str(label) for _, label in found.pairs]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": Image()}))


def _why_none(split: FolderSplit) -> str:
    if not split.labels_without_image:
        for folder, endings in split.other_files.items():
            for ending, count in endings.items():
                if ending in OTHER_LABELS and kind_of(folder.name) != IMAGES:
                    return f"{folder} holds {count} {ending} files, {OTHER_LABELS[ending].format(folder=str(folder))}"
    first = [files[0].name for files in (split.images_without_label, split.labels_without_image) if files]
    examples = f" The first are {' and '.join(first)}" if first else " There are none"
    return f"give both the same name apart from the ending, such as images/0001.jpg and masks/0001.png.{examples}"


# ---- files


Files = dict[str, Path]


def _pair(images: tuple[Files, dict[Path, Counter]], labels: tuple[Files, dict[Path, Counter]]) -> FolderSplit:
    (image_files, image_others), (label_files, label_others) = images, labels
    shared = sorted(image_files.keys() & label_files.keys())
    return FolderSplit(
        [(image_files[name], label_files[name]) for name in shared],
        [image_files[name] for name in sorted(image_files.keys() - label_files.keys())],
        [label_files[name] for name in sorted(label_files.keys() - image_files.keys())],
        image_others | label_others,
    )


def _list_files(folder: Path) -> tuple[Files, dict[Path, Counter]]:
    """Picture files by their path inside the folder without the ending, and a count of the others.

    Names are compared in composed Unicode: macOS writes decomposed ones.

    Raises:
        ValueError: If two files have one name, or a folder below is named like a split.
    """
    files: Files = {}
    others: Counter = Counter()
    for path, relative in _walk(folder):
        for part in relative.parts[:-1]:
            if split_of(part) or OTHER_SPLITS.fullmatch(part.casefold()):
                raise ValueError(
                    f"{folder} holds a folder {part!r} ({path}), named like a split, whose pictures would be mixed "
                    f"with the others: lay splits out as {LAYOUTS}."
                )
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            others[path.suffix.lower() or "without ending"] += 1
            continue
        name = unicodedata.normalize("NFC", str(relative.with_suffix("")))
        if name in files:
            raise ValueError(f"{files[name]} and {path} differ in the ending only: keep one of them.")
        files[name] = path
    return files, {folder: others} if others else {}


def _walk(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield files and their paths inside the folder, sorted, without hidden ones; links are followed, circles are not.

    Raises:
        ValueError: If a link leads nowhere.
    """
    for inside, path in [(Path(), folder), *_walk_folders(folder)]:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                target = os.readlink(entry.path)
                raise ValueError(f"{entry.path} is a link to {target!r}, which is not there: mend or remove it.")
            if entry.is_file():
                yield Path(entry.path), inside / entry.name


def _walk_folders(folder: Path, above: tuple[str, ...] = (), inside: Path = Path()) -> Iterator[tuple[Path, Path]]:
    """Yield all folders below one, each with its path inside it."""
    above = (*above, os.path.realpath(folder))
    for path in _subfolders(folder):
        if os.path.realpath(path) not in above:
            yield inside / path.name, path
            yield from _walk_folders(path, above, inside / path.name)
