"""Where the benchmarks' official archives keep their files, and what the ids in their label files mean.

One function per benchmark lists the samples of an unpacked archive; `ldvc prepare` checks and writes them.

| function | ids in the archive | ids written |
|---|---|---|
| `find_voc2012` | 0 background, 1-20, 255 border | the same, files kept byte for byte |
| `find_coco_stuff` | 0-181 without the 11 that were dropped, 255 | 0-170, 255 |
| `find_pascal_context` | 0 background, 1-59 (PNG), or names among 459 (MAT) | 0-58, 255 |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ldvc.data.label_maps import WRITE_ANEW, LabelMapError, PaletteLedger, to_label_map, voc_colours
from ldvc.data.lists import read_image_ids
from ldvc.data.matlab import is_matlab_73, load_matlab_73
from ldvc.data.samples import IGNORE_INDEX
from ldvc.data.vocabularies import VOCABULARIES


__all__ = [
    "CONVERTERS",
    "Conversion",
    "Sample",
    "check_palette",
    "find_coco_stuff",
    "find_pascal_context",
    "find_voc2012",
    "read_label_file",
]

# Of the 182 labels of COCO-Stuff these (as 0-181) were given up before the maps were drawn: no pixel holds them.
COCO_STUFF_DROPPED_IDS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_STUFF_NUM_IDS = 182
TRAIN_ID_SUFFIX = "_labelTrainIds"  # of the label files that MMSegmentation's converter makes

# 59_labels.txt of PASCAL Context, in an old and a new edition, against the names in labels.txt, which are ours.
CONTEXT_ALIASES = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
CONTEXT_NUM_COMPARED = 50  # label maps; a wrong order of classes shows in the first few
CONTEXT_LEAST_AGREEMENT = 0.5  # of the pixels that VOC labels, too: nearly 1 in the right order, else nearly 0


# What is known of an archive before it is opened; see `Conversion`.
COCO_STUFF: dict[str, Any] = {
    "name": "coco_stuff",
    "title": "COCO-Stuff 164K",
    "official_counts": {"train": 118_287, "validation": 5_000},
    "terms": "Images: Flickr Terms of Use; the COCO Consortium does not own their copyright, and each image has its "
    "own licence. COCO and COCO-Stuff annotations: Creative Commons Attribution 4.0 (CC BY 4.0).",
    "homepage": "https://github.com/nightrome/cocostuff",
}
PASCAL_CONTEXT: dict[str, Any] = {
    "name": "pascal_context",
    "title": "PASCAL Context",
    "official_counts": {"train": 4_998, "validation": 5_105},
    "terms": "The images are those of PASCAL VOC 2010: from Flickr, under their owners' terms, for research and not "
    "for redistribution. We know of no licence text for the PASCAL Context annotations.",
    "homepage": "https://www.cs.stanford.edu/~roozbeh/pascal-context/",
}


@dataclass(frozen=True)
class Sample:
    """An image file and its label file."""

    image_id: str
    image_path: Path
    label_path: Path


@dataclass(frozen=True)
class Conversion:
    """What to convert.

    Attributes:
        name: Name of the dataset and of its vocabulary.
        title: Name for people.
        class_names: The class list.
        label_names: Every id that a written label map may hold, with its meaning.
        splits: Samples of each split, in order.
        official_counts: Images of each split in the complete dataset.
        source_ids: The ids of the source in words, and what to do about others; ends an error message.
        terms: Licence and terms of images and annotations.
        homepage: Where these terms and the archive are found.
        reduce_labels: Whether id 0 is background, so that training and evaluation need `reduce_labels`.
        written_ids: The id to write for each id of the source. None keeps label files byte for byte.
        palette: RGB colour of each id in palette files; empty when the source has no palette of its own.
        find_other_numbering: Given the images of each id as stored and of the whole dataset, says why its ids must be
            numbered in another way than those of the archive; empty if nothing speaks for that.
        palettes: Of the files that were converted so far.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    label_names: dict[int, str]
    splits: dict[str, list[Sample]]
    official_counts: dict[str, int]
    source_ids: str
    terms: str
    homepage: str
    reduce_labels: bool = False
    written_ids: dict[int, int] | None = None
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    find_other_numbering: Callable[[Mapping[int, int], int], str] = lambda images, num_images: ""
    palettes: PaletteLedger = field(default_factory=PaletteLedger, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the splits against each other and against the official counts.

        Raises:
            ValueError: If a split is empty or larger than the official one, or two splits share an image.
        """
        owners: dict[str, str] = {}
        for split, samples in self.splits.items():
            official = self.official_counts[split]
            if not 0 < len(samples) <= official:
                raise ValueError(
                    f"The {split} split has {len(samples):,} images, but {self.title} has {official:,}: check that "
                    "training and validation are not swapped and that no other images are mixed in."
                )
            for sample in samples:
                if sample.image_id in owners:
                    raise ValueError(
                        f"Image '{sample.image_id}' is in both the {owners[sample.image_id]} and the {split} split: "
                        f"remove it from one ({sample.image_path})."
                    )
                owners[sample.image_id] = split


# ---- PASCAL VOC 2012


def find_voc2012(source: Path) -> Conversion:
    """List the samples of a PASCAL VOC 2012 folder.

    The training split is `trainaug.txt` where there is one; else, with SBD, every image with a label map that is not
    in `val.txt`; else `train.txt`. SBD is the folder `SegmentationClassAug` (VOC and SBD together, as PNG files), or
    the official archive, whose folder `benchmark_RELEASE` lies beside the VOC folders. Label maps come from
    `SegmentationClass`, and from SBD where that has none.

    Args:
        source: The folder VOC2012, VOCdevkit, or one that holds either.

    Returns:
        The splits "train" and "validation".

    Raises:
        FileNotFoundError: If the folder, a list, an image or a label map is missing.
        ValueError: If a list is empty, or the splits overlap or are too large.
    """
    root = _find_voc_root(source, "VOC2012", "ImageSets/Segmentation")
    if root is None:
        raise FileNotFoundError(
            f"'{source}' holds no VOCdevkit/VOC2012/ImageSets/Segmentation: unpack VOCtrainval_11-May-2012.tar and "
            "give the folder that holds VOCdevkit."
        )
    lists = root / "ImageSets" / "Segmentation"
    has_list = (lists / "trainaug.txt").is_file()
    ids = {
        "train": _read_ids(lists / ("trainaug.txt" if has_list else "train.txt")),
        "validation": _read_ids(lists / "val.txt"),
    }
    # below the source or the folders that may hold it: VOCdevkit, and what the archives were unpacked in
    places = [source, root, *root.parents[:2]]
    augmented = root / "SegmentationClassAug"
    sbd = [(folder, ".png") for folder in (augmented, augmented / augmented.name)]  # its zip may be unpacked into it
    sbd += [(place / "benchmark_RELEASE" / "dataset" / "cls", ".mat") for place in dict.fromkeys(places)]
    sbd = [(folder, suffix) for folder, suffix in sbd if any(folder.glob(f"[!.]*{suffix}"))]
    if augmented.is_dir() and not sbd:
        raise FileNotFoundError(f"{augmented} holds no .png files: unpack its archive there, or remove it.")
    is_augmented = has_list or bool(sbd)
    if sbd and not has_list:
        masks = {path.stem for folder, suffix in sbd for path in folder.glob(f"[!.]*{suffix}")}
        ids["train"] = sorted((masks - set(ids["validation"])) | set(ids["train"]))
    class_names = VOCABULARIES["voc2012"].class_names
    return Conversion(
        name="voc2012",
        title="PASCAL VOC 2012" + (" with SBD (trainaug)" if is_augmented else ""),
        class_names=class_names,
        label_names={0: "background", **dict(enumerate(class_names, start=1)), IGNORE_INDEX: "border"},
        splits=_find_listed_samples(root, ids, [(root / "SegmentationClass", ".png"), *sbd]),
        official_counts={"train": 10_582 if is_augmented else 1_464, "validation": 1_449},
        source_ids="0 to 20 and 255: take the label maps of the official archive, not recoloured copies",
        terms="The images come from Flickr and stay under their owners' terms (Flickr Terms of Use): for research, "
        "not for redistribution. The VOC and SBD annotations come without a licence text of their own.",
        homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        reduce_labels=True,
        palette=voc_colours((*range(len(class_names) + 1), IGNORE_INDEX)),
        find_other_numbering=_find_voc_without_background,
    )


def _find_voc_without_background(images: Mapping[int, int], num_images: int) -> str:
    if images.get(0, 0) * 2 > num_images:
        return ""
    return (
        f"id 0, which is background, is in {images.get(0, 0):,} of {num_images:,} images, and in the official maps it "
        "is in nearly all: ids 0 to 19 without background look so. Take the label maps of the official archive."
    )


def _find_voc_root(source: Path, year: str, needed: str) -> Path | None:
    """Find the folder of a VOC year, given itself, VOCdevkit or its parent; None if none holds `needed`."""
    candidates = [source / part for part in ("", year, f"VOCdevkit/{year}")]
    return next((folder for folder in candidates if (folder / needed).is_dir()), None)


def _read_ids(path: Path) -> list[str]:
    return read_image_ids(path, "unpack the official archive again")


def _find_listed_samples(
    root: Path, ids: Mapping[str, list[str]], label_places: list[tuple[Path, str]]
) -> dict[str, list[Sample]]:
    """Find the files of listed ids; a label map comes from the first folder, given with its suffix, that has it.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    splits: dict[str, list[Sample]] = {}
    for split, image_ids in ids.items():
        splits[split] = []
        for image_id in image_ids:
            image_path = root / "JPEGImages" / f"{image_id}.jpg"
            labels = [folder / f"{image_id}{suffix}" for folder, suffix in label_places]
            label_path = next((path for path in labels if path.is_file()), labels[0])
            for path in (image_path, label_path):
                if not path.is_file():
                    raise FileNotFoundError(
                        f"{path} is missing: unpack the archive again, or remove '{image_id}' from the list."
                    )
            splits[split].append(Sample(image_id, image_path, label_path))
    return splits


# ---- COCO-Stuff 164K


def find_coco_stuff(source: Path) -> Conversion:
    """List the samples of COCO-Stuff 164K: every image of train2017 and val2017 with its stuff-and-thing map.

    Images lie in `train2017` and `val2017`, or the same under `images`. Label maps are those of
    stuffthingmaps_trainval2017.zip, unpacked under `stuffthingmaps`, `annotations` or beside the images. Files that
    MMSegmentation made from them (`*_labelTrainIds.png`, ids 0 to 170) are read only where no original is left, so
    that two conventions are never mixed.

    Args:
        source: The folder that holds all of these.

    Returns:
        The splits "train" and "validation".

    Raises:
        FileNotFoundError: If a folder, an image or a label map is missing.
        ValueError: If the splits overlap or are too large.
    """
    folders = {"train": "train2017", "validation": "val2017"}
    images = {split: _list_files(source, ("", "images"), name, "*.jpg") for split, name in folders.items()}
    places = ("stuffthingmaps", "annotations", "stuffthingmaps_trainval2017", "annotations/stuffthingmaps", "")
    labels = {split: _list_files(source, places, name, "*.png") for split, name in folders.items()}
    is_converted = all(stem.endswith(TRAIN_ID_SUFFIX) for files in labels.values() for stem in files)
    suffix = TRAIN_ID_SUFFIX if is_converted else ""
    splits = {split: _pair_files(images[split], labels[split], suffix) for split in folders}

    class_names = VOCABULARIES["coco_stuff"].class_names
    kept = [i for i in range(COCO_STUFF_NUM_IDS) if i not in COCO_STUFF_DROPPED_IDS]
    source_ids = (
        f"0 to 170 and 255 in a file called *{TRAIN_ID_SUFFIX}.png: these are of another convention; take "
        "stuffthingmaps_trainval2017.zip"
        if is_converted
        else f"0 to 181 without {', '.join(map(str, COCO_STUFF_DROPPED_IDS))}, and 255: take "
        "stuffthingmaps_trainval2017.zip, neither panoptic nor stuff-only maps; maps with ids 0 to 170 must be called "
        f"*{TRAIN_ID_SUFFIX}.png"
    )
    known_ids = range(len(class_names)) if is_converted else kept
    return Conversion(
        **COCO_STUFF,
        class_names=class_names,
        label_names={**dict(enumerate(class_names)), IGNORE_INDEX: "unlabeled"},
        splits=splits,
        source_ids=source_ids,
        written_ids={**{source_id: i for i, source_id in enumerate(known_ids)}, IGNORE_INDEX: IGNORE_INDEX},
        find_other_numbering=_find_coco_from_1,
    )


def _find_coco_from_1(images: Mapping[int, int], num_images: int) -> str:
    only_from_0 = {i + 1 for i in COCO_STUFF_DROPPED_IDS} - set(COCO_STUFF_DROPPED_IDS)  # numbered from 1: dropped
    if images.get(IGNORE_INDEX) or any(images.get(label_id) for label_id in only_from_0):
        return ""
    return (
        f"no label map of {num_images:,} holds 255, which marks what is unlabelled, and of the official ones nearly "
        "every one does: maps numbered from 1 with 0 for unlabeled, as labels.txt of COCO-Stuff has it, look so. Take "
        "stuffthingmaps_trainval2017.zip."
    )


def _list_files(source: Path, places: tuple[str, ...], folder: str, pattern: str) -> dict[str, Path]:
    """List the files of the first place that has any, by stem, in order.

    Raises:
        FileNotFoundError: If no place has any.
    """
    for place in places:
        files = {path.stem: path for path in sorted((source / place / folder).glob(f"[!.]{pattern}"))}
        if files:
            return files
    expected = ", ".join(str(Path(place) / folder) for place in places)
    raise FileNotFoundError(
        f"'{source}' has no {pattern[1:]} files in any of {expected}: unpack train2017.zip, val2017.zip and "
        "stuffthingmaps_trainval2017.zip there."
    )


def _pair_files(images: dict[str, Path], labels: dict[str, Path], suffix: str) -> list[Sample]:
    """Pair every image with the label file of its name and suffix, leaving none over.

    Raises:
        FileNotFoundError: If one of a pair is missing.
    """
    image_folder, label_folder = next(iter(images.values())).parent, next(iter(labels.values())).parent
    labels = {
        stem.removesuffix(suffix): path
        for stem, path in labels.items()
        if stem.endswith(TRAIN_ID_SUFFIX) == bool(suffix)
    }
    unpaired = min(images.keys() ^ labels.keys(), default=None)
    if unpaired is not None:
        missing = label_folder / f"{unpaired}{suffix}.png" if unpaired in images else image_folder / f"{unpaired}.jpg"
        found = images.get(unpaired) or labels[unpaired]
        raise FileNotFoundError(f"{missing} is missing, but {found} is there: unpack the archive again, or remove it.")
    return [Sample(image_id, path, labels[image_id]) for image_id, path in images.items()]


# ---- PASCAL Context


def find_pascal_context(source: Path) -> Conversion:
    """List the samples of PASCAL Context with 59 classes and without background, in either of two layouts.

    MMSegmentation's: `SegmentationClassContext/*.png` with 0 for background and 1 to 59 for the classes in
    alphabetical order. The original: `trainval/*.mat` with 459 labels named in `labels.txt`. The lists are those in
    `ImageSets/SegmentationContext`, or else VOC 2010's own in `ImageSets/Main`, which split alike.

    Args:
        source: The folder VOC2010, VOCdevkit, or one that holds either.

    Returns:
        The splits "train" and "validation".

    Raises:
        FileNotFoundError: If the folder, a list, an image or a label map is missing.
        ValueError: If a list is empty, the splits overlap or are too large, or the classes have other names or another
            order.
    """
    root, is_png = _find_context_root(source)
    lists = root / "ImageSets" / "SegmentationContext"
    if not lists.is_dir():
        lists = root / "ImageSets" / "Main"  # the split of VOC 2010 is that of PASCAL Context
    ids = {"train": _read_ids(lists / "train.txt"), "validation": _read_ids(lists / "val.txt")}
    class_names = VOCABULARIES["pascal_context"].class_names
    if is_png:
        splits = _find_listed_samples(root, ids, [(root / "SegmentationClassContext", ".png")])
        _check_context_order(root, splits, class_names)
        written_ids = {0: IGNORE_INDEX, **{i + 1: i for i in range(len(class_names))}, IGNORE_INDEX: IGNORE_INDEX}
        source_ids = "0 (background), 1 to 59 and 255: these are maps of 59 classes, not of 33 or 459"
    else:
        splits = _find_listed_samples(root, ids, [(root / "trainval", ".mat")])
        written_ids = _read_context_labels(root, source, class_names)
        source_ids = "those of labels.txt: take both from the same archive"
    return Conversion(
        **PASCAL_CONTEXT,
        class_names=class_names,
        label_names={**dict(enumerate(class_names)), IGNORE_INDEX: "background"},
        splits=splits,
        source_ids=source_ids,
        written_ids=written_ids,
        find_other_numbering=_find_context_from_0 if is_png else (lambda images, num_images: ""),
    )


def _find_context_from_0(images: Mapping[int, int], num_images: int) -> str:
    if not images.get(IGNORE_INDEX) or images.get(59):
        return ""
    return (
        f"of {num_images:,} label maps {images[IGNORE_INDEX]:,} hold 255 and none holds 59: maps with ids 0 to 58 and "
        "255 for background look so, and every class would be taken for the one before it. Take maps of "
        "MMSegmentation's pascal_context.py, with 0 for background, or the original MAT files."
    )


def _find_context_root(source: Path) -> tuple[Path, bool]:
    """Find the folder VOC2010, and tell whether its label maps are PNG files instead of MAT files.

    Raises:
        FileNotFoundError: If there is no such folder, or it has label maps of neither kind.
    """
    root = _find_voc_root(source, "VOC2010", "JPEGImages")
    if root is None:
        raise FileNotFoundError(
            f"'{source}' holds no VOCdevkit/VOC2010/JPEGImages: unpack VOCtrainval_03-May-2010.tar and give the "
            "folder that holds VOCdevkit."
        )
    is_png = (root / "SegmentationClassContext").is_dir()
    if not is_png and not (root / "trainval").is_dir():
        raise FileNotFoundError(
            f"{root} has neither SegmentationClassContext (PNG files made by MMSegmentation's pascal_context.py) nor "
            "trainval (MAT files of PASCAL Context's trainval.tar.gz): add one. A trainval_merged.json alone is not "
            "read."
        )
    return root, is_png


def _read_context_labels(root: Path, source: Path, class_names: tuple[str, ...]) -> dict[int, int]:
    """Map the ids of labels.txt to class ids by name; ids of other labels, and 0, become `IGNORE_INDEX`.

    Raises:
        FileNotFoundError: If there is no labels.txt.
        ValueError: If labels.txt lacks a class, or a 59_labels.txt beside it names other classes.
    """
    folders = (root, root / "trainval", source)
    path = next((folder / "labels.txt" for folder in folders if (folder / "labels.txt").is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{root / 'labels.txt'} is missing: it names the ids of {root / 'trainval'}; take it from the page of "
            "PASCAL Context."
        )
    names = _read_label_names(path)
    chosen = path.with_name("59_labels.txt")
    if chosen.is_file():  # its order is another one; only the names matter
        differing = {CONTEXT_ALIASES.get(name, name) for name in _read_label_names(chosen).values()} ^ set(class_names)
        if differing:
            raise ValueError(
                f"{chosen} names other classes than ours, such as '{min(differing)}': take the file of PASCAL "
                "Context, or remove it."
            )
    missing = [name for name in class_names if name not in names.values()]
    if missing:
        raise ValueError(f"{path} has no label '{missing[0]}': take labels.txt of PASCAL Context, with 459 names.")
    class_ids = {name: class_id for class_id, name in enumerate(class_names)}
    return {0: IGNORE_INDEX, **{label_id: class_ids.get(name, IGNORE_INDEX) for label_id, name in names.items()}}


def _read_label_names(path: Path) -> dict[int, str]:
    """Read lines such as "308: potted plant"; spaces inside names are dropped, as PASCAL VOC does.

    Raises:
        ValueError: If a line is of another form.
    """
    names = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        number, colon, name = line.partition(":")
        if line.strip() and not (colon and number.strip().isdigit()):
            raise ValueError(f"{path} has the line '{line}': each line must be a number, a colon and a name.")
        if colon:
            names[int(number)] = "".join(name.split())
    return names


def _check_context_order(root: Path, splits: dict[str, list[Sample]], class_names: tuple[str, ...]) -> None:
    """Compare objects with VOC's own label maps where the archive has them: ids alone do not tell the class order.

    Maps in the order of 59_labels.txt (aeroplane, bicycle, bird, ...) hold the same ids 1 to 59 as alphabetical ones.

    Raises:
        ValueError: If the classes do not agree.
    """
    voc_names = ("", *(CONTEXT_ALIASES.get(name, name) for name in VOCABULARIES["voc2012"].class_names))
    expected = np.array([class_names.index(name) + 1 if name else 0 for name in voc_names])  # VOC id -> Context id
    samples = [sample for split in splits.values() for sample in split]
    pairs = ((sample.label_path, root / "SegmentationClass" / sample.label_path.name) for sample in samples)
    pairs = [pair for pair in pairs if pair[1].is_file()][:CONTEXT_NUM_COMPARED]
    num_objects = num_equal = 0
    for context_path, voc_path in pairs:
        context_map, voc_map = read_label_file(context_path)[0], read_label_file(voc_path)[0]
        if context_map.shape == voc_map.shape:
            is_object = (voc_map > 0) & (voc_map < len(expected))
            num_objects += np.count_nonzero(is_object)
            num_equal += np.count_nonzero(context_map[is_object] == expected[voc_map[is_object]])
    if num_equal < CONTEXT_LEAST_AGREEMENT * num_objects:
        raise ValueError(
            f"{root / 'SegmentationClassContext'} has its classes in another order: of the object pixels of "
            f"SegmentationClass only {num_equal / num_objects:.0%} have the same class there (first file compared: "
            f"{pairs[0][0].name}). Ids 1 to 59 must be alphabetical, not in the order of 59_labels.txt."
        )


# ---- reading a label file


def read_label_file(path: Path) -> tuple[np.ndarray, PIL.Image.Image | None]:
    """Read the ids of a PNG file, or of a MAT file of PASCAL Context (`LabelMap`) or SBD (`GTcls.Segmentation`).

    Args:
        path: The file; its suffix decides.

    Returns:
        (height, width) int64 ids as stored, and the picture they come from, or None for a MAT file.

    Raises:
        ValueError: If the file cannot be read or holds no label map; the message names it.
    """
    try:
        if path.suffix == ".mat":
            return to_label_map(_load_mat(path)), None
        label = PIL.Image.open(path)
        return to_label_map(label), label
    except LabelMapError as error:
        of_archive = str(error).replace(WRITE_ANEW, "take the label maps of the official archive")
        raise ValueError(f"{path}: {of_archive}") from error
    except (OSError, ValueError) as error:
        raise ValueError(_name_file(path, error)) from error


def _load_mat(path: Path) -> np.ndarray:
    from scipy.io import loadmat

    if is_matlab_73(path):
        return load_matlab_73(path)
    try:
        content = loadmat(path)
        return content["GTcls"]["Segmentation"][0, 0] if "GTcls" in content else content["LabelMap"]
    except Exception as error:  # a damaged file fails anywhere: in zlib, in numpy, in scipy's own classes
        is_other = isinstance(error, KeyError)
        problem = "it has no variable LabelMap or GTcls" if is_other else f"it cannot be read ({error})"
        raise ValueError(f"{problem}; unpack its archive again.") from error


def _name_file(path: Path, error: Exception) -> str:
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def check_palette(label: PIL.Image.Image | None, palette: Mapping[int, tuple[int, int, int]]) -> None:
    """Check that no id of a palette file shows the colour of another id, as after an editor sorted the palette.

    Args:
        label: The picture of a label file; only mode P is checked.
        palette: RGB colour of each id, 0 to 255; other colours mean nothing.

    Raises:
        ValueError: If the palette was reordered.
    """
    if label is None or label.mode != "P":
        return
    colours = np.array(label.getpalette("RGB")).reshape(-1, 3)
    owner_of = {colour: label_id for label_id, colour in palette.items()}
    for label_id in np.unique(np.asarray(label)).tolist():
        owner = owner_of.get(tuple(colours[label_id].tolist())) if label_id < len(colours) else None
        if owner not in (None, label_id):
            raise ValueError(
                f"id {label_id} shows the colour of id {owner}: a program has reordered the palette, so ids mean "
                "nothing. Take the file of the official archive."
            )


# Subcommands of ldvc prepare; a further dataset is one more function that lists its files.
CONVERTERS: dict[str, Callable[[Path], Conversion]] = {
    "voc2012": find_voc2012,
    "coco_stuff": find_coco_stuff,
    "pascal_context": find_pascal_context,
}
