"""The official archive of a benchmark becomes a dataset that training and evaluation take: `ldvc prepare`.

Shards are collected in a hidden folder beside the output, which appears under its name only when all are written; an
interrupted run started again goes on after the last complete shard; `ldvc/data/converters.py` says what archives hold.
"""

import argparse
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset, Features, Image, Value, disable_progress_bars
from huggingface_hub import HfApi
from tqdm import tqdm

from ldvc.data.converters import CONVERTERS, Conversion, Sample, check_palette, read_label_file
from ldvc.data.label_maps import palette_of
from ldvc.data.vocabularies import VOCABULARIES
from ldvc.model.image_processing_ldvc import to_rgb


IMAGES_PER_SHARD = 500  # 60 to 100 MB; bounds memory, and enough files to share a stream among processes and workers
FEATURES = Features({"image_id": Value("string"), "image": Image(), "label": Image()})


# ---- one sample


def convert_sample(sample: Sample, conversion: Conversion) -> tuple[dict[str, object], np.ndarray, list[int]]:
    """Decode and check both files of a sample.

    Args:
        sample: The files.
        conversion: What their ids mean and which are written.

    Returns:
        The row to write, (256,) int64 pixels per written label id, and the ids of the source that occur.

    Raises:
        ValueError: If a file is truncated, the label map is coloured or its palette reordered, its size is not the
            image's, or it holds an id that means nothing; the message names the file.
    """
    image_bytes = sample.image_path.read_bytes()
    try:
        image = to_rgb(PIL.Image.open(io.BytesIO(image_bytes)))
    except (OSError, ValueError) as error:
        raise ValueError(f"{sample.image_path}: {error}") from error
    label_map, label = read_label_file(sample.label_path)
    source_ids = np.unique(label_map).tolist()
    _check_label_map(label_map.shape, source_ids, image.size[::-1], sample, conversion)
    try:
        check_palette(label, conversion.palette)
    except ValueError as error:
        raise ValueError(f"{sample.label_path}: {error}") from error
    palette = b"" if label is None else palette_of(label)
    if palette and (conflict := conversion.palettes.add(palette, source_ids, str(sample.label_path))):
        raise ValueError(f"{conflict}: programs have rewritten the palettes. Take the files of the official archive.")
    if conversion.written_ids is not None:
        written = np.zeros(max(conversion.written_ids) + 1, dtype=np.uint8)  # by id of the source
        written[list(conversion.written_ids)] = list(conversion.written_ids.values())
        label_map = written[label_map]
    if conversion.written_ids is None and label is not None:
        label_bytes = sample.label_path.read_bytes()
    else:
        encoded = io.BytesIO()
        PIL.Image.fromarray(label_map.astype(np.uint8)).save(encoded, "PNG")
        label_bytes = encoded.getvalue()
    row = {
        "image_id": sample.image_id,
        "image": {"bytes": image_bytes, "path": sample.image_path.name},
        "label": {"bytes": label_bytes, "path": f"{sample.image_id}.png"},
    }
    return row, np.bincount(label_map.ravel(), minlength=256), source_ids


def _check_label_map(
    size: tuple[int, ...], ids: list[int], image_size: tuple[int, int], sample: Sample, conversion: Conversion
) -> None:
    """Check size (height, width) and ids of a label map as stored.

    Raises:
        ValueError: If the size is not `image_size` or an id means nothing.
    """
    if size != image_size:
        raise ValueError(
            f"{sample.label_path} is {' x '.join(map(str, size))} pixels, but its image "
            f"{sample.image_path.name} is {' x '.join(map(str, image_size))} (height x width): take both from the "
            "same archive."
        )
    known = conversion.label_names if conversion.written_ids is None else conversion.written_ids
    unknown = sorted(set(ids) - set(known))
    if unknown:
        raise ValueError(f"{sample.label_path} holds label id {unknown[0]}, but ids are {conversion.source_ids}.")


# ---- the dataset


def write_dataset(conversion: Conversion, output: Path, images_per_shard: int = IMAGES_PER_SHARD) -> None:
    """Check all files and write the dataset, aside first and then under its name.

    Args:
        conversion: What to write.
        output: Folder to make. A folder written by an earlier run is replaced.
        images_per_shard: Samples in a Parquet file; they are in memory together.

    Raises:
        OSError: If a file cannot be read or written; complete shards stay for the next run.
        ValueError: If a file is unfit; complete shards stay for the next run.
    """
    aside = output.with_name(f".{output.name}.incomplete")
    aside.mkdir(parents=True, exist_ok=True)
    try:
        _check_space(conversion, aside)
        splits = _write_shards(conversion, aside, images_per_shard)
    except BaseException:  # Ctrl-C, too
        if not any(aside.glob("*.parquet")):
            shutil.rmtree(aside, ignore_errors=True)
        raise
    summary = {
        "dataset": conversion.name,
        "class_names": conversion.class_names,
        "label_ids": conversion.label_names,
        "reduce_labels": conversion.reduce_labels,
        "splits": splits,
    }
    for path in aside.glob("*.json"):
        path.unlink()
    (aside / "README.md").write_text(render_card(conversion, splits), encoding="utf-8")
    (aside / "classes.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    replaced = aside.with_suffix(".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if output.exists():
        output.rename(replaced)
    aside.rename(output)
    shutil.rmtree(replaced, ignore_errors=True)


def _check_space(conversion: Conversion, aside: Path) -> None:
    """Compare the size of the source's files with the room on disk.

    Raises:
        OSError: If the disk has not enough room.
    """
    samples = [sample for split in conversion.splits.values() for sample in split]
    total = sum(path.stat().st_size for sample in samples for path in (sample.image_path, sample.label_path))
    needed = total - sum(path.stat().st_size for path in aside.glob("*.parquet"))
    free = shutil.disk_usage(aside).free
    if needed > free:
        raise OSError(
            f"The dataset needs about {needed / 1e9:.1f} GB more in {aside.parent}, but {free / 1e9:.1f} GB are free: "
            "make room, or give an --output on another disk."
        )


def _write_shards(conversion: Conversion, aside: Path, size: int) -> dict[str, dict[str, object]]:
    """Write the shards that are not there yet, and count images and pixels per split and label name.

    Raises:
        ValueError: If the ids of all files together are numbered in another way than those of the archive.
    """
    shards = {}
    for split, samples in conversion.splits.items():
        starts = range(0, len(samples), size)
        names = [f"{split}-{shard:05d}-of-{len(starts):05d}.parquet" for shard in range(len(starts))]
        shards[split] = {name: samples[start : start + size] for name, start in zip(names, starts, strict=True)}
    expected = {Path(name).stem for parts in shards.values() for name in parts}
    for path in aside.iterdir():  # of an earlier run with other splits
        if path.stem not in expected:
            path.unlink()

    splits, source_images = {}, Counter()
    with tqdm(total=sum(map(len, conversion.splits.values())), desc="Checking and writing", unit="image") as progress:
        for split, parts in shards.items():
            written = [_write_shard(aside / name, parts[name], conversion, progress) for name in parts]
            images, pixels = sum(counts for counts, _ in written)
            source_images += sum((images_of_shard for _, images_of_shard in written), Counter())
            splits[split] = {
                "num_images": len(conversion.splits[split]),
                "images_with_label": {name: int(images[i]) for i, name in conversion.label_names.items()},
                "pixels_with_label": {name: int(pixels[i]) for i, name in conversion.label_names.items()},
            }
    if problem := conversion.find_other_numbering(source_images, sum(map(len, conversion.splits.values()))):
        raise ValueError(f"{conversion.title}: {problem}")
    return splits


def _write_shard(
    path: Path, samples: list[Sample], conversion: Conversion, progress: tqdm
) -> tuple[np.ndarray, Counter]:
    """Write a shard unless it is there already, made of the same files in the same way.

    Returns:
        (2, 256) int64 images and pixels per written label id, and images per id of the source.

    Raises:
        OSError: If the shard cannot be written.
    """
    record_path, plan = path.with_suffix(".json"), _fingerprint(samples, conversion)
    record = _read_json(record_path)
    if (
        path.is_file() and record.get("plan") == plan and "source_images" in record
    ):  # renamed into place last, so complete
        progress.update(len(samples))
        return np.array(record["counts"]), Counter(dict(record["source_images"]))
    path.unlink(missing_ok=True)  # before its record changes
    rows, counts, source_images = [], np.zeros((2, 256), dtype=np.int64), Counter()
    for sample in samples:
        row, pixels, source_ids = convert_sample(sample, conversion)
        rows.append(row)
        counts += pixels > 0, pixels
        source_images.update(source_ids)
        progress.update()
    unfinished = path.with_suffix(".part")
    try:
        Dataset.from_list(rows, features=FEATURES).to_parquet(unfinished)
        written = {"plan": plan, "counts": counts.tolist(), "source_images": sorted(source_images.items())}
        record_path.write_text(json.dumps(written))
        unfinished.rename(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error}): mend that and run the same command again.") from error
    return counts, source_images


def _read_json(path: Path) -> dict:
    """Read an object from a file; {} if there is no such file, or something else in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _fingerprint(samples: list[Sample], conversion: Conversion) -> str:
    files = [
        (sample.image_id, str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for sample in samples
        for path in (sample.image_path, sample.label_path)
    ]
    ids = (conversion.name, conversion.label_names, conversion.written_ids)
    return hashlib.sha256(repr((ids, files)).encode()).hexdigest()


CARD = """---
pretty_name: {title} for LDVC
license: other
license_name: terms-of-the-source
license_link: {homepage}
task_categories:
- image-segmentation
tags:
- semantic-segmentation
- zero-shot
configs:
- config_name: default
  data_files:
{data_files}
---

# {title} for LDVC

Made from the official archive by LDVC's `ldvc prepare`; not an official release. The archive and its authors are
found at {homepage}.

| split | images | of the official split |
|---|---|---|
{splits}

Columns: `image_id`, the file's name without ending; `image`, the file as in the archive; `label`, a picture of the
same size whose pixel values are ids. {ids}

## Use

```bash
accelerate launch train.py recipes/{name}_inductive.yaml --dataset FOLDER
ldvc evaluate CHECKPOINT --dataset FOLDER --vocabulary {name}{reduce_labels}
```

FOLDER is this folder or its id on the Hub.

## Make it again

```bash
ldvc prepare {name} --source FOLDER --output FOLDER
```

Every file was decoded and checked: sizes, ids, palettes.

## Terms

{terms}

## Classes

The masks of unseen classes are held out of training in the zero-shot protocol.

| id in `label` | name | zero-shot protocol | {split_columns} |
|---|---|---|{rule}|
{classes}
"""


def render_card(conversion: Conversion, splits: dict[str, dict]) -> str:
    """Write the dataset card.

    Args:
        conversion: What was converted.
        splits: Counts of each split, as in `classes.json`.

    Returns:
        Markdown with the metadata of the Hub.
    """
    unseen = set(VOCABULARIES[conversion.name].unseen_names)
    classes = [(i, name) for i, name in conversion.label_names.items() if name in conversion.class_names]
    others = [f"{i} is {name}" for i, name in conversion.label_names.items() if name not in conversion.class_names]
    images = [part["images_with_label"] for part in splits.values()]
    rows = [[i, name, "unseen" if name in unseen else "seen", *(part[name] for part in images)] for i, name in classes]
    counts = [[split, part["num_images"], conversion.official_counts[split]] for split, part in splits.items()]
    return CARD.format(
        name=conversion.name,
        title=conversion.title,
        homepage=conversion.homepage,
        terms=conversion.terms,
        data_files="\n".join(f"  - split: {split}\n    path: {split}-*.parquet" for split in splits),
        splits=_table(counts),
        ids=f"Ids {classes[0][0]} to {classes[-1][0]} are the classes below; {', '.join(others)}.",
        reduce_labels=" --reduce_labels" if conversion.reduce_labels else "",
        split_columns=" | ".join(f"{split} images" for split in splits),
        rule="|".join("---" for _ in splits),
        classes=_table(rows),
    )


def _table(rows: list[list[object]]) -> str:
    return "\n".join(
        f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else str(cell) for cell in row)} |" for row in rows
    )


# ---- command line


def prepare(arguments: argparse.Namespace) -> None:
    """Run one conversion, and push the result if asked to; a finished output is pushed as it is.

    Raises:
        FileExistsError: If the output exists and may not be replaced.
        FileNotFoundError: If the source is incomplete.
        OSError: If a file cannot be read or written, or the Hub refuses the upload.
        ValueError: If a file of the source is unfit.
    """
    output, repository = arguments.output.expanduser().resolve(), arguments.push_to_hub
    summary = _read_json(output / "classes.json")
    is_finished = repository and not arguments.overwrite and summary.get("dataset") == arguments.dataset
    if not is_finished:
        _check_output(output, arguments.overwrite)
        conversion = CONVERTERS[arguments.dataset](arguments.source.expanduser())
    if repository:
        with _explaining_hub_errors(repository):  # before the work: a missing login is known now, not in an hour
            HfApi().create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
    if not is_finished:
        disable_progress_bars()  # one bar, ours
        write_dataset(conversion, output)
        _report(conversion, output)
    if repository:
        with _explaining_hub_errors(repository):
            shards = ["*.parquet"]  # of an upload before, which may have been cut into other ones
            HfApi().upload_folder(repo_id=repository, repo_type="dataset", folder_path=output, delete_patterns=shards)
        tqdm.write(f"Uploaded to the dataset {repository}, private if it is new.")


def _check_output(output: Path, is_replaced: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not is_replaced:
        raise FileExistsError(f"The output {output} already exists: choose another folder, or pass --overwrite.")
    if "dataset" not in _read_json(output / "classes.json"):
        raise FileExistsError(
            f"{output} was not written by this program, so --overwrite leaves it: remove it yourself."
        )


def _report(conversion: Conversion, output: Path) -> None:
    for split, samples in conversion.splits.items():
        official = conversion.official_counts[split]
        note = f" (a part: the official split has {official:,})" if len(samples) < official else ""
        tqdm.write(f"{split}: {len(samples):,} images{note}")
    background = "id 0 is background: set reduce_labels" if conversion.reduce_labels else "do not set reduce_labels"
    tqdm.write(f"Dataset written to {output}; {background}.")


@contextmanager
def _explaining_hub_errors(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the errors of login, id, network and server share no class
        raise OSError(
            f"Cannot write the Hub dataset '{repository}' ({' '.join(str(error).split())}): check `hf auth login`, "
            "the id and the network, then run the same command again."
        ) from error
