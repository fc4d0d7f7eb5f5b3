"""Images and label maps for training: loading, label ids, joint augmentation, sampling and batches.

    load_split -> TrainingSet / StreamingTrainingSet -> TrainingCollator -> model
    columns       uint8 crop + class ids 0..num_classes-1 or 255   normalised pixels + targets of the seen classes

A label map holds class ids from 0 to num_classes - 1, and 255 where nothing is labelled (background, border, padding).
Pillow does the image work: torchvision is not available everywhere this runs, albumentations is archived and its
successor is under the AGPL.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets import ClassLabel, Dataset, Image, IterableDataset
from datasets.distributed import split_dataset_by_node

from ldvc.data.folders import LAYOUTS, MissingSplitError
from ldvc.data.label_maps import LabelImage, PaletteLedger, check_palettes, to_label_map
from ldvc.data.pseudo_labels import withhold_labels
from ldvc.data.rows import holds_pictures, open_split
from ldvc.data.worlds import WORLDS
from ldvc.model.image_processing_ldvc import nearest_indices, to_rgb


__all__ = [
    "JointAugmentation",
    "StreamingTrainingSet",
    "TrainingCollator",
    "TrainingSet",
    "dataset_fingerprint",
    "load_split",
    "load_stated_split",
    "load_stated_splits",
    "map_labels",
    "read_labelled",
    "read_sample",
    "spread_rows",
    "to_label_map",
    "training_targets",
]

IGNORE_INDEX = 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_CROP_REDRAWS = 10
FINGERPRINT_LABEL_MAPS = 32

# First words of every random seed, so that orders and augmentations never share a random stream.
_ORDER_STREAM, _DRAW_STREAM, _STREAMED_DRAW_STREAM = range(3)

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, torch.Tensor)


# ---- loading


def load_split(
    dataset: str,
    split: str,
    *,
    config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    streaming: bool = False,
    revision: str | None = None,
    num_images: int | None = None,
    seed: int = 0,
    compare_palettes: bool = True,
) -> Dataset | IterableDataset:
    """Load one split of a segmentation dataset with exactly the columns `image` and `label`.

    Args:
        dataset: A drawn world (see `worlds`), a folder written by `save_to_disk`, a plain folder of pictures and label
            maps (see `folders`), a folder of Parquet files, or the id of a dataset on the Hub.
        split: Name of the split. A folder that holds one unnamed `Dataset` counts as the split "train".
        config_name: Configuration of a dataset that has several; of the picture book, the side of its pages ("256px").
        image_column: Column of the images.
        label_column: Column of the label maps, stored as images whose pixel values are ids.
        streaming: Read samples as they come instead of preparing an indexed copy.
        revision: Git revision of a Hub dataset.
        num_images: Keep only the first so many images; a drawn world needs it.
        seed: Edition of a drawn world; no other dataset uses it.
        compare_palettes: Refuse label maps whose palettes contradict each other, see `label_maps`; `ldvc check` leaves
            it out, as it compares all and reports them with everything else.

    Returns:
        The split; both columns decode to PIL images in the mode of their files.

    Raises:
        FileNotFoundError: If there is no such folder or Hub dataset.
        ValueError: If the split, the configuration or a column does not exist, a column holds no images or is named
            for both, label maps have palettes that contradict each other, or `num_images` is below 1 or left out for
            a drawn world.
    """
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images is {num_images}: ask for at least 1, or leave it out for all images.")
    if dataset in WORLDS:
        if num_images is None:
            raise ValueError(f"{dataset!r} is drawn without end: say how many pictures with num_images.")
        loaded = WORLDS[dataset].load(split, num_images, seed, config_name)
    else:
        loaded = open_split(dataset, split, config_name=config_name, streaming=streaming, revision=revision)
    if streaming and isinstance(loaded, Dataset):
        loaded = loaded.to_iterable_dataset()
    loaded = _keep_columns(loaded, dataset, {"image": image_column, "label": label_column})
    loaded = loaded if num_images is None else loaded.take(num_images)
    if compare_palettes and isinstance(loaded, Dataset) and dataset not in WORLDS:
        with _naming_sample(f"Dataset '{dataset}', split '{split}'"):
            check_palettes(loaded)
    return loaded


def load_stated_split(stated: Any, split: str, **options: Any) -> Dataset | IterableDataset:
    """Load a split of the dataset that a recipe or a command line states.

    Args:
        stated: Has `dataset`, `dataset_config`, `dataset_revision`, `image_column` and `label_column`.
        split: Name of the split.
        options: Further arguments of `load_split`.
    """
    return load_split(
        stated.dataset,
        split,
        config_name=stated.dataset_config,
        image_column=stated.image_column,
        label_column=stated.label_column,
        revision=stated.dataset_revision,
        **options,
    )


def load_stated_splits(stated: Any) -> Iterator[tuple[str, Dataset | IterableDataset | MissingSplitError]]:
    """Load every split that a command line states as a list; one after the first may be missing.

    Args:
        stated: As for `load_stated_split`, with `split`, a list of names, `streaming` and `num_images`.

    Yields:
        Name and split, or why it is missing. Palettes are not compared: who reads all label maps does that.

    Raises:
        MissingSplitError: If the first split is missing.
    """
    options = {"streaming": stated.streaming, "num_images": stated.num_images, "compare_palettes": False}
    for position, split in enumerate(stated.split):
        try:
            yield split, load_stated_split(stated, split, **options)
        except MissingSplitError as error:
            if position == 0:
                raise
            yield split, error


def _keep_columns(
    loaded: Dataset | IterableDataset, dataset: str, columns: Mapping[str, str]
) -> Dataset | IterableDataset:
    # `columns` is {new name: name in the dataset}
    features = loaded.features or {}
    if columns["image"] == columns["label"]:
        others = sorted(set(features) - {columns["image"]})
        raise ValueError(
            f"Column '{columns['image']}' of dataset '{dataset}' cannot be both the pictures and their label maps; "
            f"its other columns are {others}: name one with image_column or label_column, or add the label maps."
        )
    for name, column in columns.items():
        if column not in features:
            raise ValueError(
                f"Dataset '{dataset}' has no column '{column}'; it has {sorted(features)}. "
                f"Name the right one with {name}_column."
            )
        if isinstance(features[column], ClassLabel) and Path(dataset).expanduser().is_dir():  # the library's own guess
            raise ValueError(
                f"Folder '{dataset}' has no layout that tells pictures from label maps: lay them out as {LAYOUTS}."
            )
        if not holds_pictures(features[column]):
            raise ValueError(
                f"Column '{column}' of dataset '{dataset}' holds no images but {features[column]}. "
                f"Name an image column with {name}_column."
            )
    for column in columns.values():  # undecoded, or a stream decodes to rename and shuffles decoded images
        loaded = loaded.cast_column(column, Image(decode=False))
    loaded = loaded.select_columns(list(columns.values()))
    renamed = {old: new for new, old in columns.items() if new != old}
    if renamed.keys() & columns.keys():  # a stream renames one after the other, and the second name is taken
        loaded = loaded.rename_columns({old: f"{new} of {dataset}" for old, new in renamed.items()})
        renamed = {f"{new} of {dataset}": new for new in renamed.values()}
    loaded = loaded.rename_columns(renamed)
    for name, feature in (("image", Image()), ("label", LabelImage())):  # files in their own mode, see label_maps
        loaded = loaded.cast_column(name, feature)
    return loaded


def read_sample(dataset: Dataset, index: int) -> tuple[PIL.Image.Image, np.ndarray]:
    """Decode one image and its label map.

    Args:
        dataset: A split as given by `load_split`.
        index: Row, from 0.

    Returns:
        The RGB image, and its label map (height, width) int64 with the ids of the file.

    Raises:
        ValueError: If a file is corrupt, the label map is not one, or the sizes differ; the message names the row.
    """
    with _naming_sample(f"Sample {index}"):
        return _decode(dataset[index])


def read_labelled(
    dataset: Dataset, index: int, num_classes: int, reduce_labels: bool = False
) -> tuple[PIL.Image.Image, np.ndarray]:
    """Decode one image and its label map, as class ids.

    Args:
        dataset: A split as given by `load_split`.
        index: Row, from 0.
        num_classes: Length of the class list.
        reduce_labels: See `map_labels`.

    Returns:
        The RGB image, and its label map (height, width) int64, 0 to num_classes - 1 or 255.

    Raises:
        ValueError: As of `read_sample`, or if an id lies outside the class list; the message names the row.
    """
    with _naming_sample(f"Sample {index}"):
        image, label_map = _decode(dataset[index])
        return image, map_labels(label_map, num_classes, reduce_labels=reduce_labels)


def _decode(sample: Mapping[str, Any]) -> tuple[PIL.Image.Image, np.ndarray]:
    image, label_map = to_rgb(sample["image"]), to_label_map(sample["label"])
    _check_same_size(image, label_map)
    return image, label_map


def _check_same_size(image: PIL.Image.Image, label_map: np.ndarray) -> None:
    if (image.height, image.width) != label_map.shape:
        raise ValueError(
            f"the image is {image.height} x {image.width} pixels (height x width, upright) but its label map is "
            f"{' x '.join(map(str, label_map.shape))}: make the label map again from this image."
        )


@contextmanager
def _naming_sample(name: str) -> Iterator[None]:
    # any failure to read a sample becomes a ValueError that begins with its name
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # decoders raise nearly anything at damaged files, and at bombs
        raise ValueError(f"{name}: the file cannot be read ({error}): repair it or leave the sample out.") from error


def dataset_fingerprint(dataset: Dataset | IterableDataset) -> str:
    """Hash what a score depends on, independent of storage, caches and library versions.

    Covers the number of rows and the decoded label maps of up to 32 rows spread evenly from first to last; for a
    stream, whose length is unknown, of the first 32 rows. Images are left out: JPEG decoders differ in the last bit.

    Args:
        dataset: A split as given by `load_split`.

    Returns:
        16 hexadecimal digits.
    """
    labels = dataset.select_columns("label")
    if isinstance(dataset, Dataset):
        size, samples = str(len(dataset)), (labels[row] for row in spread_rows(len(dataset)))
    else:
        size, samples = "stream", iter(labels.take(FINGERPRINT_LABEL_MAPS))
    digest = hashlib.sha256(size.encode())
    for sample in samples:
        label_map = to_label_map(sample["label"])
        digest.update(f"{label_map.shape}".encode() + label_map.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def spread_rows(num_rows: int, most: int = FINGERPRINT_LABEL_MAPS) -> list[int]:
    """At most so many rows, spread evenly from the first to the last."""
    return np.linspace(0, max(num_rows - 1, 0), min(num_rows, most)).astype(int).tolist()


# ---- images and label maps


def map_labels(
    label_map: np.ndarray, num_classes: int, *, reduce_labels: bool = False, ignore_index: int = IGNORE_INDEX
) -> np.ndarray:
    """Turn the ids of a file into class ids 0 to num_classes - 1, or `ignore_index`.

    Args:
        label_map: (height, width) integers.
        num_classes: Length of the class list, at most `ignore_index`.
        reduce_labels: Id 0 means background: ignore it and count the classes from id 1.
        ignore_index: Id of pixels without a label.

    Returns:
        (height, width) int64.

    Raises:
        ValueError: If an id lies outside the class list.
    """
    _check_num_classes(num_classes, ignore_index)
    first_id = int(reduce_labels)
    ids = label_map.astype(np.int64)
    is_ignored = (ids == ignore_index) | (reduce_labels & (ids == 0))
    outside = ids[~is_ignored & ((ids < first_id) | (ids >= num_classes + first_id))]
    if outside.size:
        remedy = "check the class list" + ("" if reduce_labels else ", or set reduce_labels if id 0 is background")
        raise ValueError(
            f"label id {outside.max()} is outside the {num_classes} classes, whose ids here are {first_id} to "
            f"{num_classes + first_id - 1} ({ignore_index} is ignored): {remedy}."
        )
    return np.where(is_ignored, ignore_index, ids - first_id)


def training_targets(
    label_map: ArrayOrTensor, seen_class_ids: Sequence[int], num_classes: int, ignore_index: int = IGNORE_INDEX
) -> ArrayOrTensor:
    """Keep the seen classes: a seen class becomes its rank among them, everything else `ignore_index`.

    Source: the label handling of inductive zero-shot training, ZegCLIP (arXiv 2212.03588), released code.

    Args:
        label_map: Class ids 0 to num_classes - 1 or `ignore_index`, any shape; array or tensor of integers.
        seen_class_ids: Classes that may be trained with masks.
        num_classes: Length of the class list, at most `ignore_index`.
        ignore_index: Id of pixels without a label.

    Returns:
        int64, same kind and shape as `label_map`.

    Raises:
        ValueError: If a seen id repeats or is outside the class list.
    """
    _check_num_classes(num_classes, ignore_index)
    seen = list(seen_class_ids)
    if len(set(seen)) < len(seen) or any(not 0 <= class_id < num_classes for class_id in seen):
        raise ValueError(f"seen_class_ids must be distinct and within 0 to {num_classes - 1}, got {seen}.")
    table = np.full(ignore_index + 1, ignore_index, dtype=np.int64)
    table[seen] = np.arange(len(seen))
    if isinstance(label_map, torch.Tensor):
        return torch.from_numpy(table).to(label_map.device)[label_map.long()]
    return table[label_map]


def _check_num_classes(num_classes: int, ignore_index: int) -> None:
    if not 1 <= num_classes <= ignore_index:
        raise ValueError(
            f"num_classes is {num_classes}: give 1 to {ignore_index}, so that no class has the ignored id."
        )


# ---- augmentation


@dataclass(frozen=True)
class JointAugmentation:
    """Scale, crop, flip and recolour an image together with its label map.

    Source: the training pipeline of ZegCLIP (released code) on mmsegmentation 0.x.
    Departures: shrinking is antialiased, as in the image processor; saturation and hue share one 8-bit HSV round trip.

    Attributes:
        image_scale: (long, short) sides in pixels that the image is fitted into, before the random ratio.
        ratio_range: Factor on `image_scale`, drawn uniformly.
        crop_size: (height, width) in pixels; a smaller image stays smaller and is padded in the batch.
        max_class_share: Redraw a crop, up to ten times, while one class covers this share of its labelled pixels or
            it has fewer than two classes; the last draw is used as it is. 1 takes the first.
        flip_probability: Chance of mirroring left to right.
        photometric: Whether to change brightness, contrast, saturation and hue, each with a chance of one half.
        brightness_delta: Largest shift, of 255.
        contrast_range: Factor on the pixel values.
        saturation_range: Factor on the saturation.
        hue_delta: Largest turn of the hue, in degrees of 360 (the 18 steps of OpenCV's 180 in the original).
        ignore_index: Id of pixels without a label.

    Raises:
        ValueError: If a size, range or probability is impossible.
    """

    image_scale: tuple[int, int] = (2048, 512)
    ratio_range: tuple[float, float] = (0.5, 2.0)
    crop_size: tuple[int, int] = (512, 512)
    max_class_share: float = 0.75
    flip_probability: float = 0.5
    photometric: bool = True
    brightness_delta: float = 32.0
    contrast_range: tuple[float, float] = (0.5, 1.5)
    saturation_range: tuple[float, float] = (0.5, 1.5)
    hue_delta: float = 36.0
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        for field in ("image_scale", "crop_size"):
            if min(getattr(self, field)) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}: both sides must be at least 1 pixel.")
        for field, lowest in (("ratio_range", 1e-6), ("contrast_range", 0.0), ("saturation_range", 0.0)):
            low, high = getattr(self, field)
            if not lowest <= low <= high:
                raise ValueError(f"{field} is {(low, high)}: give (low, high) with {lowest} <= low <= high.")
        for field in ("max_class_share", "flip_probability"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is {getattr(self, field)}: give a share from 0 to 1.")

    def __call__(
        self, image: PIL.Image.Image, label_map: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one augmented crop.

        Args:
            image: RGB image.
            label_map: (height, width) class ids or `ignore_index`, of the image's size.
            rng: Source of every draw; the same state gives the same crop.

        Returns:
            The pixels (crop_height, crop_width, 3) uint8 and class ids (crop_height, crop_width) int64, neither larger
            than `crop_size`.

        Raises:
            ValueError: If image and label map differ in size.
        """
        _check_same_size(image, label_map)
        height, width = self._draw_size(image, rng)
        rows, columns = nearest_indices(image.height, height), nearest_indices(image.width, width)
        top, left, labels = self._draw_crop(label_map.take(columns, 1).take(rows, 0), rng)

        # Only the pixels of the crop are resized; they equal those of the whole resized image.
        x_scale, y_scale = image.width / width, image.height / height
        right = min((left + labels.shape[1]) * x_scale, image.width)
        bottom = min((top + labels.shape[0]) * y_scale, image.height)
        box = (left * x_scale, top * y_scale, right, bottom)
        crop = image.resize(labels.shape[::-1], PIL.Image.Resampling.BILINEAR, box=box)
        if rng.random() < self.flip_probability:
            crop, labels = PIL.ImageOps.mirror(crop), labels[:, ::-1]
        if self.photometric:
            crop = self._recolour(crop, rng)
        return np.array(crop), np.ascontiguousarray(labels, dtype=np.int64)

    def _draw_size(self, image: PIL.Image.Image, rng: np.random.Generator) -> tuple[int, int]:
        """Fit the image, aspect kept, into the randomly scaled `image_scale`; gives (height, width)."""
        ratio = rng.uniform(*self.ratio_range)
        long_side, short_side = (int(side * ratio) for side in self.image_scale)
        scale = min(long_side / max(image.size), short_side / min(image.size))
        return max(1, int(image.height * scale + 0.5)), max(1, int(image.width * scale + 0.5))

    def _draw_crop(self, labels: np.ndarray, rng: np.random.Generator) -> tuple[int, int, np.ndarray]:
        """Draw top, left and the labels of a crop that is not all one class, if ten redraws find one.

        As in ZegCLIP, all labels count for that, those of unseen classes included; where a crop lies is all they say.
        """
        for _ in range(1 + MAX_CROP_REDRAWS):
            top, left = (
                int(rng.integers(max(side - crop_side, 0) + 1))
                for side, crop_side in zip(labels.shape, self.crop_size, strict=True)
            )
            crop = labels[top : top + self.crop_size[0], left : left + self.crop_size[1]]
            counts = np.bincount(crop[crop != self.ignore_index])
            is_mixed = np.count_nonzero(counts) > 1 and counts.max() < self.max_class_share * counts.sum()
            if is_mixed or self.max_class_share == 1:
                break
        return top, left, crop

    def _recolour(self, image: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
        """Change brightness, contrast (before or after the rest), saturation and hue, each at a chance of one half."""
        use_brightness, use_contrast, use_saturation, use_hue, is_contrast_first = rng.random(5) < 0.5
        brightness = rng.uniform(-self.brightness_delta, self.brightness_delta)
        contrast, saturation = rng.uniform(*self.contrast_range), rng.uniform(*self.saturation_range)
        hue = rng.uniform(-self.hue_delta, self.hue_delta)
        if use_brightness:
            image = _rescale_values(image, offset=brightness)
        if use_contrast and is_contrast_first:
            image = _rescale_values(image, factor=contrast)
        if use_saturation or use_hue:
            hues, saturations, values = image.convert("HSV").split()
            if use_saturation:
                saturations = _rescale_values(saturations, factor=saturation)
            if use_hue:
                hues = hues.point([round(value + hue * 256 / 360) % 256 for value in range(256)])
            image = PIL.Image.merge("HSV", (hues, saturations, values)).convert("RGB")
        if use_contrast and not is_contrast_first:
            image = _rescale_values(image, factor=contrast)
        return image


def _rescale_values(image: PIL.Image.Image, factor: float = 1.0, offset: float = 0.0) -> PIL.Image.Image:
    """Compute `image * factor + offset` in 8 bits, clipped to 0..255."""
    table = np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8).tolist()
    return image.point(table * len(image.getbands()))


# ---- sampling


@dataclass(eq=False)
class TrainingSet(torch.utils.data.Dataset):
    """Augmented crops, indexed by the number of the draw.

    Draw k belongs to epoch k // len(dataset): the permutation of (seed, epoch) picks the image and a generator of
    (seed, k) augments it. So draw k is the same whatever the workers, the processes and the draws before it, and a
    resumed run continues by reading on: `DataLoader(..., sampler=range(next_draw, len(training_set)))`.

    Args:
        dataset: A split as given by `load_split`.
        augmentation: Applied to every draw.
        num_draws: Length, in crops over all processes.
        num_classes: Length of the class list.
        seed: Not negative.
        reduce_labels: See `map_labels`.

    Raises:
        ValueError: If the dataset is empty or there is nothing to draw.
    """

    dataset: Dataset
    augmentation: JointAugmentation
    num_draws: int
    num_classes: int
    seed: int = 0
    reduce_labels: bool = False

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ValueError("The training split is empty: check dataset, split and num_images.")
        if self.num_draws < 1:
            raise ValueError(f"num_draws is {self.num_draws}: training needs at least one crop.")
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Count the draws of the whole training, not the images."""
        return self.num_draws

    def __getitem__(self, draw: int) -> dict[str, np.ndarray]:
        """Make one crop.

        Returns:
            `image` (crop_height, crop_width, 3) uint8 and `label_map` (crop_height, crop_width) int64 class ids.

        Raises:
            IndexError: If `draw` is not in 0..len - 1.
            ValueError: If the sample cannot be read or its ids are outside the class list.
        """
        if not 0 <= draw < self.num_draws:
            raise IndexError(f"Draw {draw} is outside 0 to {self.num_draws - 1}.")
        epoch, position = divmod(draw, len(self.dataset))
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, _ORDER_STREAM, epoch)).permutation(len(self.dataset))
            self._epoch, self._order = epoch, order
        index = int(self._order[position])
        image, label_map = read_labelled(self.dataset, index, self.num_classes, self.reduce_labels)
        rng = np.random.default_rng((self.seed, _DRAW_STREAM, draw))
        image, label_map = self.augmentation(image, label_map, rng)
        return {"image": image, "label_map": label_map}


@dataclass(eq=False)
class StreamingTrainingSet(torch.utils.data.IterableDataset):
    """Augmented crops of a streamed dataset, without end.

    Every process reads its own part of the stream, and every worker its own files of that part. Samples pass through
    a shuffle buffer; when the stream ends it starts again in another order. Unlike `TrainingSet`, a resumed run does
    not continue at the same sample: give it another seed, such as seed + draws already made.

    Args:
        dataset: A streamed split as given by `load_split`.
        augmentation: Applied to every sample.
        num_classes: Length of the class list.
        seed: Not negative.
        reduce_labels: See `map_labels`.
        shuffle_buffer_size: Samples, still encoded, kept per worker to draw from.
        rank: This process among `num_ranks`. Leave both out if something else splits the stream.
        num_ranks: Number of processes.
    """

    dataset: IterableDataset
    augmentation: JointAugmentation
    num_classes: int
    seed: int = 0
    reduce_labels: bool = False
    shuffle_buffer_size: int = 500
    rank: int = 0
    num_ranks: int = 1

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Give crops as `TrainingSet` does, for ever.

        Raises:
            ValueError: If the stream is empty, has too few files for the workers, or a sample cannot be used.
        """
        worker = torch.utils.data.get_worker_info()
        shard = (self.rank, worker.id if worker else 0)
        for position, (image, label_map) in enumerate(self._read_for_ever(worker.num_workers if worker else 1)):
            rng = np.random.default_rng((self.seed, _STREAMED_DRAW_STREAM, *shard, position))
            image, label_map = self.augmentation(image, label_map, rng)
            yield {"image": image, "label_map": label_map}

    def _read_for_ever(self, num_workers: int) -> Iterator[tuple[PIL.Image.Image, np.ndarray]]:
        stream = self.dataset.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer_size)
        stream = split_dataset_by_node(stream, rank=self.rank, world_size=self.num_ranks)
        if num_workers > stream.num_shards:
            raise ValueError(
                f"{num_workers} data workers cannot share a stream of {stream.num_shards} files per process: "
                f"use at most {stream.num_shards} workers, or write the dataset in more files."
            )
        epoch, position, palettes = 0, 0, PaletteLedger()
        while True:
            stream.set_epoch(epoch)
            samples, first_position = iter(stream), position
            while True:
                with _naming_sample(f"Streamed sample {position}"):
                    sample = next(samples, None)
                    if sample is None:
                        break
                    image, label_map = _decode(sample)
                    palettes.check(sample["label"], f"streamed sample {position}")
                    label_map = map_labels(label_map, self.num_classes, reduce_labels=self.reduce_labels)
                yield image, label_map
                position += 1
            if position == first_position:
                raise ValueError("The stream has no samples for this process: check dataset, split and num_images.")
            epoch += 1


@dataclass(frozen=True)
class TrainingCollator:
    """Normalise and pad crops into a batch, and derive the targets of the loss.

    Attributes:
        crop_size: (height, width) in pixels of every batch.
        seen_class_ids: Classes that may be trained with masks; all of them when fully supervised.
        num_classes: Length of the class list.
        image_mean: Per RGB channel, as a fraction of full range. ImageNet's, not CLIP's, is what ZegCLIP trains with.
        image_std: Per RGB channel, as a fraction of full range.
        ignore_index: Id of padding and of pixels without a label.
        pseudo_region: Where transductive training labels pixels itself, see `withhold_labels`; `None` in every other
            setting.

    Raises:
        ValueError: If the statistics are not three fractions, with positive deviations.
    """

    crop_size: tuple[int, int]
    seen_class_ids: Sequence[int]
    num_classes: int
    image_mean: Sequence[float] = IMAGENET_MEAN
    image_std: Sequence[float] = IMAGENET_STD
    ignore_index: int = IGNORE_INDEX
    pseudo_region: str | None = None

    def __post_init__(self) -> None:
        for field, lowest in (("image_mean", 0.0), ("image_std", 1e-6)):
            values = getattr(self, field)
            if len(values) != 3 or not all(lowest <= value <= 1 for value in values):
                raise ValueError(f"{field} is {values}: give three fractions of full range, such as {IMAGENET_MEAN}.")

    def __call__(self, crops: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Make one batch of `TrainingSet` items.

        Returns:
            `pixel_values` (batch_size, 3, height, width) float32, normalised, then padded with 0 at bottom and right;
            `labels` (batch_size, height, width) int64: the rank among the seen classes, or `ignore_index` (the class
            id, `WITHHELD` or `ignore_index` with a `pseudo_region`), padded with `ignore_index`;
            `source_labels` (batch_size, height, width) int64 class ids as labelled, padded alike: for the audit only.
        """
        mean, std = np.float32(self.image_mean), np.float32(self.image_std)
        pixel_values = np.zeros((len(crops), 3, *self.crop_size), dtype=np.float32)
        source_labels = np.full((len(crops), *self.crop_size), self.ignore_index, dtype=np.int64)
        targets = source_labels.copy()
        for index, crop in enumerate(crops):
            height, width = crop["label_map"].shape
            # (height, width, 3) -> (3, height, width)
            pixels = ((crop["image"] / np.float32(255) - mean) / std).transpose(2, 0, 1)
            pixel_values[index, :, :height, :width] = pixels
            source_labels[index, :height, :width] = crop["label_map"]
            targets[index, :height, :width] = self._targets(crop["label_map"])
        return {
            "pixel_values": torch.from_numpy(pixel_values),
            "source_labels": torch.from_numpy(source_labels),
            "labels": torch.from_numpy(targets),
        }

    def _targets(self, label_map: np.ndarray) -> np.ndarray:
        """What one crop, before padding, may tell the loss."""
        if self.pseudo_region is not None:
            return withhold_labels(label_map, self.seen_class_ids, self.pseudo_region, self.ignore_index)
        return training_targets(label_map, self.seen_class_ids, self.num_classes, self.ignore_index)
