"""Datasets of the library `datasets`: opening a split, and its rows as pictures of `ldvc segment`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ldvc.loading import one_line
from ldvc.masks.files import Found, Picture, decode_picture


if TYPE_CHECKING:  # these imports take seconds
    from datasets import Dataset, IterableDataset
    from PIL import Image


# ---- opening a split


def open_split(
    dataset: str,
    split: str,
    *,
    config_name: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
) -> Dataset | IterableDataset:
    """Open one split of a dataset with all its columns.

    Args:
        dataset: A folder written by `save_to_disk`, a plain folder of pictures and label maps (see `folders`), a
            folder of Parquet files, or the id of a dataset on the Hub.
        split: Name of the split. A folder that holds one unnamed `Dataset` counts as the split "train".
        config_name: Configuration of a dataset that has several.
        streaming: Read samples of Parquet files or the Hub as they come instead of preparing an indexed copy.
        revision: Git revision of a Hub dataset.

    Raises:
        FileNotFoundError: If there is no such folder or Hub dataset.
        ValueError: If the split or the configuration does not exist.
    """
    from ldvc.data.folders import is_image_folder, load_image_folder

    folder = Path(dataset).expanduser()
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return open_saved(dataset, split)
    if is_image_folder(dataset):
        return load_image_folder(dataset, split)
    return open_by_name(dataset, split, config_name, streaming, revision)


def open_saved(folder: str, split: str) -> Dataset:
    """Open a split of what `save_to_disk` wrote.

    Raises:
        MissingSplitError: If there is no such split.
        ValueError: If there is one without a row.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(Path(folder).expanduser()))
    except IndexError as error:  # what the library makes of a split without a row
        raise ValueError(f"Dataset '{folder}' has a split without a row: write it again without it.") from error
    from ldvc.data.folders import MissingSplitError

    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise MissingSplitError(f"Dataset '{folder}' has no split '{split}'; it has {sorted(splits)}.")
    return splits[split]


def open_by_name(
    dataset: str, split: str, config_name: str | None, streaming: bool, revision: str | None
) -> Dataset | IterableDataset:
    """Open a split of a folder of Parquet files or of a Hub dataset.

    Raises:
        FileNotFoundError: If there is none.
        RuntimeError: Of the library.
        ValueError: If the split or the configuration does not exist, a file is damaged, or the dataset is a script.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    from ldvc.data.folders import MissingSplitError

    folder = Path(dataset).expanduser()
    path = str(folder) if folder.is_dir() else dataset
    try:
        return load_dataset(path, config_name, split=split, streaming=streaming, revision=revision)
    except ValueError as error:  # the library's message lists the splits or configurations there are
        kind = MissingSplitError if "split" in str(error).lower() else ValueError
        raise kind(f"Dataset '{dataset}', split '{split}': {error}") from error
    except RuntimeError as error:
        if "Dataset scripts" not in str(error):
            raise
        raise ValueError(
            f"Dataset '{dataset}' is a loading script ({error}), which no current version of the library runs: make "
            "the dataset with ldvc prepare, or name one that is stored as Parquet."
        ) from error
    except DatasetGenerationError as error:
        reason = one_line(error.__cause__ or error, 160)
        raise ValueError(
            f"Dataset '{dataset}', split '{split}', cannot be read ({reason}): a file in it is damaged or no table of "
            "samples."
        ) from error
    except (FileNotFoundError, ConnectionError) as error:
        problem = "holds no dataset" if folder.is_dir() else "is neither a folder here nor a Hub dataset in reach"
        remedy = "check the path or id, or make a dataset with ldvc prepare"
        raise FileNotFoundError(f"'{dataset}' {problem}: {remedy} ({error})") from error


def holds_pictures(feature: Any) -> bool:
    """Whether a column holds pictures: an `Image`, or what others write for one, bytes with or without a path.

    Polars and pyarrow know no images: a column of theirs is `{"bytes": binary, "path": string}`, or binary alone.
    """
    from datasets import Image

    if isinstance(feature, Image):
        return True
    fields = feature if isinstance(feature, dict) else {"bytes": feature}
    return set(fields) <= {"bytes", "path"} and getattr(fields.get("bytes"), "dtype", "") in ("binary", "large_binary")


# ---- rows as pictures


@dataclass(frozen=True)
class RowPicture(Picture):
    """A row of a dataset to segment.

    Attributes:
        path: Dataset, split and name, as messages and COCO files give it.
        rows: The dataset with its column of pictures alone, not decoded.
        index: Of the row.
    """

    rows: Any = field(repr=False, compare=False)
    index: int

    @property
    def file_name(self) -> str:
        """Dataset, split and name, as there is no file."""
        return self.path.as_posix()

    def read(self, max_pixels: int, *value_range: Sequence[float] | None) -> Image.Image:
        """Read and decode it, under a `pixel_limit`.

        Raises:
            ValueError: If the row holds no picture, or one that `decode_picture` refuses.
        """
        (cell,) = self.rows[self.index].values()
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise ValueError(f"row {self.index} holds no picture; leave the row out of the dataset.")
        source = Path(cell["path"]) if cell["bytes"] is None else BytesIO(cell["bytes"])
        return decode_picture(source, max_pixels, *value_range)


def find_rows(
    dataset: str,
    split: str,
    config_name: str | None = None,
    image_column: str = "image",
    id_column: str | None = None,
) -> Found:
    """Find the pictures of a dataset; none is read yet.

    Args:
        dataset: See `open_split`.
        split: Name of the split.
        config_name: Configuration of a dataset that has several.
        image_column: Column of the pictures.
        id_column: Column of names for the results; `None` counts the rows from 0, with as many digits as the last has.

    Raises:
        FileNotFoundError: If there is no such dataset.
        ValueError: If the split, the configuration or a column does not exist, or ids are no names for files.
    """
    from datasets import Image

    from ldvc.data.folders import find_label_folder, is_image_folder

    loaded = open_split(dataset, split, config_name=config_name)
    if not is_image_folder(dataset) and (labels := find_label_folder(dataset)):
        raise ValueError(
            f"the layout of {dataset!r} is not known, so the label maps in {str(labels)!r} would be segmented too; "
            "name the folder of its pictures instead of --dataset."
        )
    if not len(loaded):
        raise ValueError(f"split {split!r} of dataset {dataset!r} has no row; choose another --split.")
    features = loaded.features
    for option, column in (("--image-column", image_column), ("--id-column", id_column)):
        if column is not None and column not in features:
            raise ValueError(f"dataset {dataset!r} has no column {column!r}; it has {sorted(features)}. See {option}.")
    if not holds_pictures(features[image_column]):
        raise ValueError(
            f"column {image_column!r} of dataset {dataset!r} holds no images but {features[image_column]}; name "
            "another with --image-column."
        )
    digits = len(str(len(loaded) - 1))
    names = [f"{index:0{digits}}" for index in range(len(loaded))] if id_column is None else loaded[id_column]
    # undecoded, or a damaged picture stops the reading of its row, and a bomb is unpacked
    rows = loaded.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    folder = Path(dataset, split)
    pictures = [
        RowPicture(folder / name, name, rows, index) for index, name in enumerate(check_ids(names, id_column or "row"))
    ]
    return Found(pictures)


def check_ids(ids: Sequence[Any], column: str) -> list[PurePath]:
    """Turn ids into paths below the output folder; slashes make folders.

    Raises:
        ValueError: If one leads out of the folder or is empty, or two are the same on a disk that ignores capitals.
    """
    names, owners = [], {}
    for index, value in enumerate(ids):
        text = "" if value is None else str(value)
        name = PurePath(text)
        parts = {*name.parts, *PureWindowsPath(text).parts}
        if not name.name or ".." in parts or PureWindowsPath(text).anchor or not text.isprintable():
            raise ValueError(
                f"row {index}: {column} {text!r} is no name for a file below the output folder; choose another "
                "--id-column, or none."
            )
        other = owners.setdefault(str(name).casefold(), index)
        if other != index:
            raise ValueError(f"rows {other} and {index} have one {column}, {text!r}; choose another --id-column.")
        names.append(name)
    return names
