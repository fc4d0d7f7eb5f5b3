"""Turn the official archive of a benchmark into a dataset that `train.py` and `evaluate_ldvc.py` take.

    python prepare_data.py voc2012 --source FOLDER --output FOLDER [--push_to_hub ID]

Writes Parquet shards with the columns `image_id`, `image` and `label`, whose files are embedded byte for byte, and
`classes.json` with the class names and counts. Every file is decoded and checked first. Shards are collected in a
hidden folder beside the output, which appears under its name only when all are written; an interrupted run started
again goes on after the last complete shard.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset, Features, Image, Value, disable_progress_bars
from huggingface_hub import HfApi
from tqdm import tqdm

from data_ldvc import to_label_map
from image_processing_ldvc import to_rgb
from vocabularies import VOCABULARIES


IMAGES_PER_SHARD = 500  # about 60 MB of VOC; enough files to share a stream among processes and workers
FEATURES = Features({"image_id": Value("string"), "image": Image(), "label": Image()})


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
        name: Name of the dataset.
        class_names: The class list.
        label_names: Every id that a label file may hold, with its meaning.
        reduce_labels: Whether id 0 is background, so that training and evaluation need `reduce_labels`.
        splits: Samples of each split, in order.
        official_counts: Images of each split in the complete dataset.
    """

    name: str
    class_names: tuple[str, ...]
    label_names: dict[int, str]
    reduce_labels: bool
    splits: dict[str, list[Sample]]
    official_counts: dict[str, int]


def find_voc2012(source: Path) -> Conversion:
    """List the samples of a PASCAL VOC 2012 folder.

    The training split is `trainaug.txt` where there is one; else, with a `SegmentationClassAug` folder (VOC and SBD
    together), every image with a label map that is not in `val.txt`; else `train.txt`. Label maps come from
    `SegmentationClass`, and from `SegmentationClassAug` where that has none.

    Args:
        source: The folder VOC2012, VOCdevkit, or one that holds either.

    Returns:
        The splits "train" and "validation".

    Raises:
        FileNotFoundError: If the folder, a list, an image or a label map is missing.
        ValueError: If a list is empty or both splits share an image.
    """
    candidates = [source / part for part in ("", "VOC2012", "VOCdevkit/VOC2012")]
    root = next((folder for folder in candidates if (folder / "ImageSets" / "Segmentation").is_dir()), None)
    if root is None:
        raise FileNotFoundError(
            f"'{source}' holds no VOCdevkit/VOC2012/ImageSets/Segmentation: unpack VOCtrainval_11-May-2012.tar and "
            "give the folder that holds VOCdevkit."
        )
    lists, augmented = root / "ImageSets" / "Segmentation", root / "SegmentationClassAug"
    validation_ids = _read_ids(lists / "val.txt")
    if augmented.is_dir() and (lists / "trainaug.txt").is_file():
        train_ids = _read_ids(lists / "trainaug.txt")
    else:
        train_ids = _read_ids(lists / "train.txt")
        if augmented.is_dir():
            masks = {path.stem for path in augmented.glob("*.png")}
            train_ids = sorted((masks | set(train_ids)) - set(validation_ids))
    shared = set(train_ids) & set(validation_ids)
    if shared:
        raise ValueError(
            f"Image '{min(shared)}' is in both the training list and val.txt of {lists}: remove it from one."
        )
    class_names = VOCABULARIES["voc2012"].class_names
    return Conversion(
        name="voc2012",
        class_names=class_names,
        label_names={0: "background", **dict(enumerate(class_names, start=1)), 255: "border"},
        reduce_labels=True,
        splits={
            "train": [_find_voc_sample(root, image_id) for image_id in train_ids],
            "validation": [_find_voc_sample(root, image_id) for image_id in validation_ids],
        },
        official_counts={"train": 10_582 if augmented.is_dir() else 1_464, "validation": 1_449},
    )


def _read_ids(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"The list {path} is missing: unpack the official archive again.")
    image_ids = path.read_text(encoding="utf-8").split()
    if not image_ids:
        raise ValueError(f"The list {path} is empty: unpack the official archive again.")
    return list(dict.fromkeys(image_ids))


def _find_voc_sample(root: Path, image_id: str) -> Sample:
    image_path = root / "JPEGImages" / f"{image_id}.jpg"
    labels = [root / folder / f"{image_id}.png" for folder in ("SegmentationClass", "SegmentationClassAug")]
    label_path = next((path for path in labels if path.is_file()), labels[0])
    for path in (image_path, label_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: unpack the archive again, or remove '{image_id}' from the list."
            )
    return Sample(image_id, image_path, label_path)


# Subcommands; a further dataset is one more function that lists its files.
CONVERTERS: dict[str, Callable[[Path], Conversion]] = {"voc2012": find_voc2012}


def count_label_ids(sample: Sample, label_names: dict[int, str]) -> np.ndarray:
    """Decode and check both files of a sample.

    Args:
        sample: The files.
        label_names: Every id that the label file may hold.

    Returns:
        (256,) int64 number of pixels per label id.

    Raises:
        ValueError: If a file is truncated, the label map is coloured, its size is not the image's, or it holds an id
            that means nothing; the message names the file.
    """
    path = sample.image_path
    try:
        image = to_rgb(PIL.Image.open(path))
        path = sample.label_path
        label_map = to_label_map(PIL.Image.open(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if label_map.shape != (image.height, image.width):
        height, width = label_map.shape
        raise ValueError(
            f"{path} is {height} x {width} pixels, but its image {sample.image_path.name} is "
            f"{image.height} x {image.width} (height x width): take both from the same archive."
        )
    unknown = sorted(set(np.unique(label_map).tolist()) - set(label_names))
    if unknown:
        raise ValueError(
            f"{path} holds label id {unknown[0]}, but ids are 0 to {len(label_names) - 2} and 255: take the "
            "label maps of the official archive, not recoloured copies."
        )
    return np.bincount(label_map.ravel(), minlength=256)


def write_dataset(conversion: Conversion, output: Path, images_per_shard: int = IMAGES_PER_SHARD) -> None:
    """Check all files and write the dataset, aside first and then under its name.

    Args:
        conversion: What to write.
        output: Folder to make. A folder written by an earlier run is replaced.
        images_per_shard: Samples in a Parquet file.

    Raises:
        ValueError: If a file is unfit; complete shards stay for the next run.
    """
    aside = output.with_name(f".{output.name}.incomplete")
    # The plan tells whether shards found there belong to this conversion.
    files = [
        (split, sample.image_id, str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for split, samples in conversion.splits.items()
        for sample in samples
        for path in (sample.image_path, sample.label_path)
    ]
    plan = hashlib.sha256(repr((images_per_shard, files)).encode()).hexdigest()
    plan_path = aside / "plan"
    if not plan_path.is_file() or plan_path.read_text() != plan:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        plan_path.write_text(plan)

    splits = {}
    with tqdm(total=len(files) // 2, desc="Checking and writing", unit="image") as progress:
        for split, samples in conversion.splits.items():
            shards = list(_split_into_shards(split, samples, images_per_shard))
            counts = [_write_shard(aside / name, part, conversion.label_names, progress) for name, part in shards]
            splits[split] = _summarise(np.concatenate(counts), conversion.label_names)
    summary = {
        "dataset": conversion.name,
        "class_names": conversion.class_names,
        "label_ids": conversion.label_names,
        "reduce_labels": conversion.reduce_labels,
        "splits": splits,
    }
    for path in (plan_path, *aside.glob("*.npy")):
        path.unlink()
    (aside / "classes.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    replaced = aside.with_suffix(".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if output.exists():
        output.rename(replaced)
    aside.rename(output)
    shutil.rmtree(replaced, ignore_errors=True)


def _split_into_shards(split: str, samples: list[Sample], size: int) -> Iterator[tuple[str, list[Sample]]]:
    num_shards = -(-len(samples) // size)
    for shard in range(num_shards):
        yield f"{split}-{shard:05d}-of-{num_shards:05d}.parquet", samples[shard * size : (shard + 1) * size]


def _write_shard(path: Path, samples: list[Sample], label_names: dict[int, str], progress: tqdm) -> np.ndarray:
    """Write a shard unless it is there already.

    Returns:
        (num_images, 256) int64 pixels per label id.
    """
    counts_path = path.with_suffix(".npy")
    if path.is_file():  # renamed into place last, so complete and with counts beside it
        progress.update(len(samples))
        return np.load(counts_path)
    rows, counts = [], []
    for sample in samples:
        counts.append(count_label_ids(sample, label_names))
        files = {"image": sample.image_path, "label": sample.label_path}
        embedded = {column: {"bytes": file.read_bytes(), "path": file.name} for column, file in files.items()}
        rows.append({"image_id": sample.image_id, **embedded})
        progress.update()
    unfinished = path.with_suffix(".part")
    Dataset.from_list(rows, features=FEATURES).to_parquet(unfinished)
    np.save(counts_path, np.stack(counts))
    unfinished.rename(path)
    return np.stack(counts)


def _summarise(counts: np.ndarray, label_names: dict[int, str]) -> dict[str, object]:
    """Count images and pixels per label name; `counts` is (num_images, 256)."""
    return {
        "num_images": len(counts),
        "images_with_label": {name: int((counts[:, i] > 0).sum()) for i, name in label_names.items()},
        "pixels_with_label": {name: int(counts[:, i].sum()) for i, name in label_names.items()},
    }


def prepare(arguments: argparse.Namespace) -> None:
    """Run one conversion.

    Raises:
        FileExistsError: If the output exists and may not be replaced.
        FileNotFoundError: If the source is incomplete.
        ValueError: If a file of the source is unfit.
    """
    output = arguments.output.expanduser().resolve()
    is_empty = output.is_dir() and not any(output.iterdir())
    if output.exists() and not is_empty:
        if not arguments.overwrite:
            raise FileExistsError(f"The output {output} already exists: choose another folder, or pass --overwrite.")
        if not (output / "classes.json").is_file():
            raise FileExistsError(
                f"{output} was not written by this program, so --overwrite leaves it: remove it yourself."
            )
    conversion = CONVERTERS[arguments.dataset](arguments.source.expanduser())
    disable_progress_bars()  # one bar, ours
    write_dataset(conversion, output)
    for split, samples in conversion.splits.items():
        official = conversion.official_counts[split]
        note = "" if len(samples) == official else f" (a part or another version: the official split has {official:,})"
        tqdm.write(f"{split}: {len(samples):,} images{note}")
    reduce_labels = "; id 0 is background: set reduce_labels" if conversion.reduce_labels else ""
    tqdm.write(f"Dataset written to {output}{reduce_labels}.")
    if arguments.push_to_hub:
        api = HfApi()
        api.create_repo(arguments.push_to_hub, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=arguments.push_to_hub, repo_type="dataset", folder_path=output)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and convert.

    Returns:
        Exit code: 0, or 2 after a mistake of the user, explained in one line.
    """
    parser = argparse.ArgumentParser(description="Turn an official archive into a dataset for LDVC.")
    parser.add_argument("dataset", choices=CONVERTERS, help="what the source holds")
    parser.add_argument("--source", type=Path, required=True, help="folder of the unpacked archive")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an output of an earlier run")
    parser.add_argument(
        "--push_to_hub",
        metavar="ID",
        help="then upload to this dataset repository; private, as images keep their terms",
    )
    try:
        prepare(parser.parse_args(argv))
    except (OSError, ValueError) as error:
        tqdm.write(f"prepare_data.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
