"""What every sample of a split tells, bad ones included: the reading of `ldvc check`."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, Image, IterableDataset
from PIL.ExifTags import Base
from tqdm import tqdm

from ldvc.data.label_maps import LabelMapError, PaletteLedger, decode_label, open_cell, palette_of, read_ids
from ldvc.data.samples import IGNORE_INDEX
from ldvc.data.vocabularies import Vocabulary
from ldvc.model.image_processing_ldvc import to_rgb


__all__ = ["Sample", "SplitSummary", "inspect_sample", "read_split"]

MAX_TRACKED_IDS = 1000  # different ids remembered outside the class list; coloured or instance maps have millions
DARKEST = 32  # of 255: what the brightest pixel of a picture should reach; 12 bits in a file of 16 reach 16


@dataclass
class Sample:
    """What one row tells.

    Attributes:
        name: Row number and file name.
        problems: Kind of `findings.SAMPLE_PROBLEMS` -> detail.
        image_mode: PIL mode of the image file; empty if it cannot be read.
        label_mode: PIL mode of the label map; empty if it cannot be read.
        size: Image (height, width) in pixels, upright; `None` if it cannot be read.
        id_counts: Label id as stored -> pixels.
        num_different_ids: Different ids of the label map.
        palette: Of the label map, see `palette_of`.
        digest: Hash of the upright RGB pixels.
    """

    name: str
    problems: dict[str, str] = field(default_factory=dict)
    image_mode: str = ""
    label_mode: str = ""
    size: tuple[int, int] | None = None
    id_counts: dict[int, int] = field(default_factory=dict)
    num_different_ids: int = 0
    palette: bytes = b""
    digest: bytes = b""


@dataclass
class SplitSummary:
    """Everything counted over one split; it grows with the number of images by a hash and a name each, no more.

    Attributes:
        name: Name of the split.
        num_images: Rows read.
        num_usable: Rows of which image and label map could both be read and fit.
        pixels: Label id as stored -> pixels.
        images: Label id as stored -> images.
        num_pixels: Pixels of usable label maps.
        max_different_ids: Most different ids in one label map.
        black_and_white: How object and rest are told apart -> label maps: "0 and 1", "0 and 255", "1 and 255".
        image_modes: PIL mode -> images.
        label_modes: PIL mode -> label maps.
        smallest: (height, width) of the image with the shortest side.
        largest: (height, width) of the image with the most pixels.
        problems: Kind of `findings.SAMPLE_PROBLEMS` -> (count, first names with details).
        digests: Hash of an image -> name of the first sample that has it.
        repeats: Samples whose picture came before in this split, with that sample's name.
    """

    name: str
    num_images: int = 0
    num_usable: int = 0
    pixels: Counter = field(default_factory=Counter)
    images: Counter = field(default_factory=Counter)
    num_pixels: int = 0
    max_different_ids: int = 0
    black_and_white: Counter = field(default_factory=Counter)
    image_modes: Counter = field(default_factory=Counter)
    label_modes: Counter = field(default_factory=Counter)
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    problems: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    digests: dict[bytes, str] = field(default_factory=dict)
    repeats: tuple[int, list[str]] = (0, [])

    def add(self, sample: Sample, max_examples: int) -> None:
        """Count one sample."""
        self.num_images += 1
        for kind, detail in sample.problems.items():
            example = f"{sample.name}: {detail}" if detail else sample.name
            self.problems[kind] = _count(self.problems.get(kind, (0, [])), example, max_examples)
        if sample.image_mode:
            self.image_modes[sample.image_mode] += 1
        if sample.label_mode:
            self.label_modes[sample.label_mode] += 1
        if sample.size:
            self.smallest = min(self.smallest or sample.size, sample.size, key=min)
            self.largest = max(self.largest or sample.size, sample.size, key=lambda size: size[0] * size[1])
        if sample.digest:
            first = self.digests.setdefault(sample.digest, sample.name)
            if first != sample.name:
                self.repeats = _count(self.repeats, f"{sample.name} = {first}", max_examples)
        self._add_ids(sample)

    def _add_ids(self, sample: Sample) -> None:
        self.num_usable += bool(sample.id_counts)
        self.max_different_ids = max(self.max_different_ids, sample.num_different_ids)
        for pair in ((0, 1), (0, IGNORE_INDEX), (1, IGNORE_INDEX)):
            if set(pair) <= sample.id_counts.keys() <= {0, 1, IGNORE_INDEX}:
                self.black_and_white["{} and {}".format(*pair)] += 1
        for label_id, count in sample.id_counts.items():
            self.num_pixels += count
            if label_id <= IGNORE_INDEX or label_id in self.pixels or len(self.pixels) < MAX_TRACKED_IDS:
                self.pixels[label_id] += count
                self.images[label_id] += 1

    def labelled_pixels(self, vocabulary: Vocabulary, reduce_labels: bool) -> dict[str, int]:
        """Count the pixels of every class; 0 for a class that nothing can be trained or scored with.

        Args:
            vocabulary: Class names in the order of the ids.
            reduce_labels: Label maps count from 1, with 0 for background.

        Returns:
            Class name -> pixels.
        """
        return {name: self.pixels[i] for i, name in enumerate(vocabulary.class_names, start=int(reduce_labels))}


def _count(counted: tuple[int, list[str]], example: str, max_examples: int) -> tuple[int, list[str]]:
    """One more of a kind; only the first examples are kept."""
    number, examples = counted
    return number + 1, [*examples, example] if len(examples) < max_examples else examples


# ---- reading


def read_split(
    dataset: Dataset | IterableDataset,
    name: str,
    *,
    patch_size: int = 16,
    max_examples: int = 5,
    num_workers: int = 2,
    show_progress: bool = True,
    palettes: PaletteLedger | None = None,
) -> SplitSummary:
    """Read every sample of a split; none stops the reading.

    Args:
        dataset: A split as given by `load_split`.
        name: Its name.
        patch_size: Side of a patch of the CLIP to train, in pixels.
        max_examples: Samples named per kind of problem; all are counted.
        num_workers: Threads that decode.
        show_progress: Draw a progress bar.
        palettes: Of the splits before it; `None` for the first.
    """
    for column in ("image", "label"):
        dataset = dataset.cast_column(column, Image(decode=False))  # so that a bad file does not end the iteration
    summary, palettes = SplitSummary(name), palettes or PaletteLedger()
    total = len(dataset) if isinstance(dataset, Dataset) else None
    with tqdm(total=total, desc=f"check {name}", unit="image", disable=not show_progress) as progress:
        jobs = ((index, row, patch_size) for index, row in enumerate(dataset))
        for sample in _map_in_order(inspect_sample, jobs, num_workers):
            if sample.palette:
                conflict = palettes.add(sample.palette, sample.id_counts, f"{name} {sample.name}")
                sample.problems |= (
                    {"palette of its own": conflict.removeprefix(f"{name} {sample.name} ")} if conflict else {}
                )
            summary.add(sample, max_examples)
            progress.update()
    return summary


def _map_in_order(function: Callable, jobs: Iterable[tuple], num_workers: int) -> Iterator[Any]:
    """Call a function in threads, a few jobs ahead, so that memory stays bounded."""
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        waiting: deque = deque()
        for job in jobs:
            waiting.append(pool.submit(function, *job))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def inspect_sample(index: int, row: Mapping[str, Any], patch_size: int) -> Sample:
    """Decode one row with undecoded columns `image` and `label`, and note what is wrong with it."""
    sample = Sample(_name(index, row))
    image = _try_to(_inspect_image, row.get("image"), "unreadable image", sample)
    if sample.size and min(sample.size) < patch_size:
        sample.problems["smaller than a patch"] = f"{sample.size[0]} x {sample.size[1]} pixels"
    label = _try_to(_inspect_label, row.get("label"), "unreadable label map", sample)
    if image and label and image != label and sample.size:
        kept = image in ("2", "3", "4") or sample.size[0] == sample.size[1]
        sample.problems |= {"turned by EXIF": f"orientation {image}"} if kept else {}
    return sample


def _name(index: int, row: Mapping[str, Any]) -> str:
    files = [(row.get(column) or {}).get("path") for column in ("image", "label")]
    names = list(dict.fromkeys(Path(file).name for file in files if file))
    return f"row {index} ({', '.join(names)})" if names else f"row {index}"


def _try_to(
    inspect: Callable[[PIL.Image.Image, Sample], str], cell: Mapping[str, Any] | None, kind: str, sample: Sample
) -> str:
    """Open a cell and inspect it; gives its EXIF orientation, empty if it could not be read."""
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        sample.problems[kind] = "the row is empty"
        return ""
    try:
        return inspect(open_cell(cell), sample)
    except LabelMapError as error:
        sample.problems[error.kind] = "" if error.detail == "JPEG" else error.detail
    except Exception as error:  # decoders raise whatever they like on damaged files; each is one bad sample
        sample.problems[kind] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def _orientation(image: PIL.Image.Image) -> str:
    return str(image.getexif().get(Base.Orientation, 1))


def _upright_size(image: PIL.Image.Image, orientation: str) -> tuple[int, int]:
    """(height, width) in pixels as the picture is shown."""
    return (image.width, image.height) if orientation in ("5", "6", "7", "8") else (image.height, image.width)


def _inspect_image(image: PIL.Image.Image, sample: Sample) -> str:
    orientation, mode = _orientation(image), image.mode  # asked before the pixels are read: Pillow turns some then
    sample.image_mode, sample.size = mode, _upright_size(image, orientation)
    try:
        rgb = to_rgb(image)
    except ValueError:
        if not mode.startswith("I"):
            raise
        sample.problems["16-bit picture of unknown range"] = f"mode {mode}, largest value {image.getextrema()[1]}"
        return orientation
    sample.digest = hashlib.blake2b(repr(rgb.size).encode() + rgb.tobytes(), digest_size=16).digest()
    brightest = max(highest for _, highest in rgb.getextrema())
    if brightest < DARKEST:
        sample.problems["nearly black"] = f"mode {mode}, largest value {brightest} of 255"
    if "A" in image.getbands():
        lowest, highest = image.getchannel("A").getextrema()
        shares = image.getchannel("A").histogram()
        if highest == 0 or any(shares[1:255]):
            sample.problems["half-transparent image"] = f"mode {mode}, alpha {lowest} to {highest}"
    return orientation


def _inspect_label(label: PIL.Image.Image, sample: Sample) -> str:
    has_exif = label.format != "PNG" or "exif" in label.info  # a PNG is read to the end to be asked
    sample.label_mode, orientation = label.mode, _orientation(label) if has_exif else "1"
    label = decode_label(label)
    stored, size = read_ids(label), (label.height, label.width)
    if sample.size not in (None, size):
        image_size = f"{sample.size[0]} x {sample.size[1]}"
        sample.problems["size mismatch"] = f"image {image_size}, label map {size[0]} x {size[1]}"
        return orientation
    ids, counts = np.unique(stored, return_counts=True)  # in the file's few bits, which is much faster
    sample.num_different_ids, sample.palette = len(ids), palette_of(label)
    pairs = zip(ids.astype(int).tolist(), counts.tolist(), strict=True)
    sample.id_counts = dict(sorted(pairs, key=lambda pair: -pair[1])[:MAX_TRACKED_IDS])
    if set(sample.id_counts) == {IGNORE_INDEX}:
        sample.problems["without any label"] = ""
    return orientation
