"""What is wrong with a dataset, all at once and by name, before it trains: `ldvc check`."""

import argparse
import hashlib
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import yaml
from datasets import Dataset, Image, IterableDataset, disable_progress_bars
from tqdm import tqdm

from ldvc.data.class_lists import check_label_convention
from ldvc.data.folders import find_folder_splits, read_class_names
from ldvc.data.provenance import write_json
from ldvc.data.samples import IGNORE_INDEX, load_split
from ldvc.data.vocabularies import Vocabulary, get_vocabulary
from ldvc.model.image_processing_ldvc import to_rgb


__all__ = ["Finding", "SplitSummary", "check_splits", "exit_code", "format_report", "read_split"]

ERROR, WARNING, NOTE = "error", "warning", "note"
MAX_TRACKED_IDS = 1000  # different ids remembered outside the class list; coloured or instance maps have millions
MIN_IMAGES_PER_CLASS = 5
HIGH_SHARE = 0.5  # of pixels: of id 0, or without a label
ID_MODES = ("P", "L", "1", "I", "I;16", "I;16B", "I;16L")
BACKGROUND_NAMES = ("background", "other", "unlabeled", "unlabelled", "void", "ignore", "none")

# What can be wrong with one sample -> (severity, what it is, what to do).
SAMPLE_PROBLEMS = {
    "unreadable image": (ERROR, "image files that cannot be read", "copy or download them again, or leave them out"),
    "unreadable label map": (ERROR, "label maps that cannot be read", "make them again, or leave the samples out"),
    "coloured label map": (
        ERROR,
        "label maps that show colours instead of ids",
        "store them as palette PNG (mode P) or grey PNG (mode L) whose pixel values are the ids",
    ),
    "grey label map in RGB": (
        ERROR,
        "label maps stored as grey RGB pictures",
        "store one channel only: PIL.Image.open(path).getchannel(0).save(path)",
    ),
    "label map as JPEG": (
        ERROR,
        "label maps stored as JPEG, whose compression changes ids at every border",
        "export them again as PNG; converting the JPEG keeps the damage",
    ),
    "size mismatch": (
        ERROR,
        "label maps of another size than their image",
        "make them again from these images; sizes are compared after EXIF rotation, which editors often drop",
    ),
    "without any label": (WARNING, "images without any labelled pixel", "label them or leave them out"),
    "smaller than a patch": (
        WARNING,
        "images smaller than one patch",
        "leave them out: scaled up, they are blurs of one or two tokens",
    ),
}


@dataclass
class Finding:
    """One thing that is wrong or worth knowing.

    Attributes:
        severity: "error", "warning" or "note".
        text: What was found, with its number.
        remedy: What to do about it.
        examples: The first samples, by name.
    """

    severity: str
    text: str
    remedy: str
    examples: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """What one row tells.

    Attributes:
        name: Row number and file name.
        problems: Kind of `SAMPLE_PROBLEMS` -> detail.
        image_mode: PIL mode of the image file; empty if it cannot be read.
        label_mode: PIL mode of the label map; empty if it cannot be read.
        size: Image (height, width) in pixels, upright; `None` if it cannot be read.
        id_counts: Label id as stored -> pixels.
        num_different_ids: Different ids of the label map.
        digest: Hash of the upright RGB pixels.
    """

    name: str
    problems: dict[str, str] = field(default_factory=dict)
    image_mode: str = ""
    label_mode: str = ""
    size: tuple[int, int] | None = None
    id_counts: dict[int, int] = field(default_factory=dict)
    num_different_ids: int = 0
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
        image_modes: PIL mode -> images.
        label_modes: PIL mode -> label maps.
        smallest: (height, width) of the image with the shortest side.
        largest: (height, width) of the image with the most pixels.
        problems: Kind of `SAMPLE_PROBLEMS` -> (count, first names with details).
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
        for label_id, count in sample.id_counts.items():
            self.num_pixels += count
            if label_id <= IGNORE_INDEX or label_id in self.pixels or len(self.pixels) < MAX_TRACKED_IDS:
                self.pixels[label_id] += count
                self.images[label_id] += 1


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
) -> SplitSummary:
    """Read every sample of a split; none stops the reading.

    Args:
        dataset: A split as given by `load_split`.
        name: Its name.
        patch_size: Side of a patch of the CLIP to train, in pixels.
        max_examples: Samples named per kind of problem; all are counted.
        num_workers: Threads that decode.
        show_progress: Draw a progress bar.
    """
    for column in ("image", "label"):
        dataset = dataset.cast_column(column, Image(decode=False))  # so that a bad file does not end the iteration
    summary = SplitSummary(name)
    total = len(dataset) if isinstance(dataset, Dataset) else None
    with tqdm(total=total, desc=f"check {name}", unit="image", disable=not show_progress) as progress:
        jobs = ((index, row, patch_size) for index, row in enumerate(dataset))
        for sample in _map_in_order(inspect_sample, jobs, num_workers):
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
    image = _decode(row.get("image"), "unreadable image", sample)
    label = _decode(row.get("label"), "unreadable label map", sample)
    if image is not None:
        sample.image_mode, sample.size = image.mode, (image.height, image.width)
        if min(sample.size) < patch_size:
            sample.problems["smaller than a patch"] = f"{image.height} x {image.width} pixels"
    if label is not None:
        sample.label_mode = label.mode
        _inspect_label(label, sample)
    return sample


def _name(index: int, row: Mapping[str, Any]) -> str:
    files = [(row.get(column) or {}).get("path") for column in ("image", "label")]
    names = list(dict.fromkeys(Path(file).name for file in files if file))
    return f"row {index} ({', '.join(names)})" if names else f"row {index}"


def _decode(file: Mapping[str, Any] | None, kind: str, sample: Sample) -> PIL.Image.Image | None:
    if file is None:
        sample.problems[kind] = "the row is empty"
        return None
    try:
        image = Image().decode_example(file)
        if kind == "unreadable image":
            pixels = repr(image.size).encode() + to_rgb(image).tobytes()
            sample.digest = hashlib.blake2b(pixels, digest_size=16).digest()
    except Exception as error:  # decoders raise whatever they like on damaged files; each is one bad sample
        sample.problems[kind] = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None
    return image


def _inspect_label(label: PIL.Image.Image, sample: Sample) -> None:
    if label.mode not in ID_MODES:
        channels = np.atleast_3d(np.asarray(label))[..., :3]
        is_grey = channels.dtype == np.uint8 and bool((channels == channels[..., :1]).all())
        kind = "grey label map in RGB" if is_grey else "coloured label map"
        sample.problems[kind] = f"mode {label.mode}"
        return
    if label.format in ("JPEG", "MPO"):
        sample.problems["label map as JPEG"] = ""
        return
    if sample.size not in (None, (label.height, label.width)):
        image_size = f"{sample.size[0]} x {sample.size[1]}"
        sample.problems["size mismatch"] = f"image {image_size}, label map {label.height} x {label.width}"
        return
    ids, counts = np.unique(np.asarray(label), return_counts=True)  # in the file's few bits, which is much faster
    sample.num_different_ids = len(ids)
    pairs = zip(ids.astype(int).tolist(), counts.tolist(), strict=True)
    sample.id_counts = dict(sorted(pairs, key=lambda pair: -pair[1])[:MAX_TRACKED_IDS])
    if set(sample.id_counts) == {IGNORE_INDEX}:
        sample.problems["without any label"] = ""


# ---- judging


def check_splits(
    summaries: Sequence[SplitSummary], vocabulary: Vocabulary, *, reduce_labels: bool = False
) -> list[Finding]:
    """Judge what was read; the first split is the one that trains.

    Args:
        summaries: What `read_split` counted, at least one.
        vocabulary: Class names in the order of the ids, and the unseen ones.
        reduce_labels: Label maps count from 1, with 0 for background.

    Returns:
        Errors first, then warnings, then notes.
    """
    findings = check_names(vocabulary)
    for summary in summaries:
        findings += check_samples(summary)
        if summary.num_usable:
            findings += check_ids(summary, vocabulary, reduce_labels)
            findings += check_unlabelled(summary, reduce_labels, trains=summary is summaries[0])
        else:
            text = f"{summary.name}: none of {summary.num_images} samples can be used"
            findings.append(Finding(ERROR, text, "check dataset, columns and split"))
    findings += check_classes(summaries, vocabulary, reduce_labels)
    findings += check_duplicates(summaries)
    return by_severity(findings)


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; each kind in its order."""
    return sorted(findings, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.severity))


def check_names(vocabulary: Vocabulary) -> list[Finding]:
    """Names are all that LDVC knows of a class: they must be words."""
    findings = []
    for name in vocabulary.class_names:
        if name.lower() in BACKGROUND_NAMES:
            text = f"class name {name!r} describes no object"
            remedy = "give background the id 255, or the id 0 with --reduce_labels, and no name"
            findings.append(Finding(WARNING, text, remedy))
        elif "_" in name or not any(letter.isalpha() for letter in name):
            words = name.replace("_", " ").strip()
            text = f"class name {name!r} is not written as words, and words are all that LDVC knows of a class"
            findings.append(Finding(WARNING, text, f"write it as in a sentence, such as {words!r}"))
    return findings


def check_samples(summary: SplitSummary) -> list[Finding]:
    """Samples that cannot be used, or hardly."""
    findings = []
    for kind, (severity, text, remedy) in SAMPLE_PROBLEMS.items():
        if kind in summary.problems:
            count, examples = summary.problems[kind]
            findings.append(Finding(severity, f"{summary.name}: {text}: {count}", remedy, examples))
    count, examples = summary.repeats
    if count:
        text = f"{summary.name}: images that occur more than once: {count}"
        findings.append(Finding(WARNING, text, "keep one of each, unless they are meant to count twice", examples))
    return findings


def check_ids(summary: SplitSummary, vocabulary: Vocabulary, reduce_labels: bool) -> list[Finding]:
    """Ids against the class list, and the signs of a list that is shifted by one."""
    first, num_classes = int(reduce_labels), len(vocabulary.class_names)
    known = {*range(first, num_classes + first), IGNORE_INDEX} | ({0} if reduce_labels else set())
    outside = sorted(set(summary.pixels) - known)
    if outside:
        listed = ", ".join(f"{i} ({summary.images[i]} images)" for i in outside[:10])
        more = f" and {len(outside) - 10} more" if len(outside) > 10 else ""
        text = f"{summary.name}: ids outside the {num_classes} classes, {first} to {num_classes + first - 1}: {listed}"
        return [Finding(ERROR, text + more, _remedy_for_outside(outside, summary, num_classes, reduce_labels))]
    if set(summary.pixels) <= {0, IGNORE_INDEX} and IGNORE_INDEX in summary.pixels and not reduce_labels:
        text = f"{summary.name}: label maps hold only 0 and 255, as black-and-white masks do, and 255 means no label"
        remedy = "if white is the object, write 0 where it is and 255 elsewhere"
        return [Finding(WARNING, text, remedy)]
    share = summary.pixels[0] / summary.num_pixels
    if not reduce_labels and share > HIGH_SHARE and summary.images[0] == summary.num_usable:
        text = (
            f"{summary.name}: id 0 ({vocabulary.class_names[0]!r}) is in every image and covers {share:.0%} of the "
            "pixels, as background does"
        )
        remedy = "if 0 is background, use --reduce_labels: the first name is then id 1"
        return [Finding(WARNING, text, remedy)]
    if reduce_labels and not summary.pixels[num_classes] and summary.pixels[0]:
        text = f"{summary.name}: the last id, {num_classes}, never occurs though 0 does"
        remedy = "if ids count from 0, leave --reduce_labels out"
        return [Finding(WARNING, text, remedy)]
    return []


def _remedy_for_outside(outside: list[int], summary: SplitSummary, num_classes: int, reduce_labels: bool) -> str:
    if outside[0] < 0:
        return "negative ids have no meaning here: write 255 where nothing is labelled"
    if summary.max_different_ids > num_classes + 2 or len(outside) > 20:
        return "so many ids look like instances, colours or a smoothed resize: export class ids, resize with NEAREST"
    if outside == [num_classes] and not reduce_labels:
        if not summary.pixels[0]:
            return "id 0 never occurs, so that ids seem to count from 1: use --reduce_labels"
        return "use --reduce_labels if 0 is background, which needs no name; else a name is missing from the list"
    return "add the missing names to the class list, in the order of the ids, or write 255 where no class is meant"


def check_unlabelled(summary: SplitSummary, reduce_labels: bool, trains: bool) -> list[Finding]:
    """Pixels that no class is given for, in the split that trains or in one that scores."""
    ids = (IGNORE_INDEX, 0) if reduce_labels else (IGNORE_INDEX,)
    share = sum(summary.pixels[i] for i in ids) / summary.num_pixels
    if not share:
        return []
    text = f"{summary.name}: {share:.1%} of the pixels have no label"
    if not trains:
        return [Finding(NOTE, text, "nothing to do: they do not count in any score")]
    remedy = (
        "training takes them as 'none of the seen classes'; if some show a class and simply were not labelled, train "
        "with --unlabeled_pixels ignore"
    )
    return [Finding(WARNING if share > HIGH_SHARE else NOTE, text, remedy)]


def check_classes(summaries: Sequence[SplitSummary], vocabulary: Vocabulary, reduce_labels: bool) -> list[Finding]:
    """Classes without pixels where they are needed: seen ones to train, all of them to be scored."""
    first, findings, train = int(reduce_labels), [], summaries[0]
    seen = [vocabulary.class_names[i] for i in vocabulary.seen_class_ids]
    images = {
        summary.name: {name: summary.images[i + first] for i, name in enumerate(vocabulary.class_names)}
        for summary in summaries
    }
    never = [name for name in seen if not images[train.name][name]]
    if never and len(never) == len(seen):
        text = f"{train.name}: no seen class has a single pixel"
        findings.append(Finding(ERROR, text, "check class names against ids, and --reduce_labels"))
    elif never:
        text = f"{train.name}: seen classes without a pixel: {', '.join(never)}"
        remedy = "label some, take the names out of the list, or name them in --unseen_classes"
        findings.append(Finding(WARNING, text, remedy))
    rare = [name for name in seen if 0 < images[train.name][name] < MIN_IMAGES_PER_CLASS]
    if rare:
        text = f"{train.name}: seen classes in fewer than {MIN_IMAGES_PER_CLASS} images: {', '.join(rare)}"
        findings.append(Finding(NOTE, text, "label more of them if their score matters"))
    for summary in summaries[1:]:
        absent = [name for name in vocabulary.class_names if not images[summary.name][name]]
        if absent:
            text = f"{summary.name}: classes that cannot be scored, as no pixel is theirs: {', '.join(absent)}"
            findings.append(Finding(WARNING, text, "move images that show them into this split"))
    return findings


def check_duplicates(summaries: Sequence[SplitSummary]) -> list[Finding]:
    """The same picture in two splits makes a score worth nothing; the last split of a pair is named first."""
    findings = []
    for position, summary in enumerate(summaries):
        for earlier in summaries[:position]:
            shared = [key for key in summary.digests if key in earlier.digests]
            if shared:
                examples = [f"{summary.digests[key]} = {earlier.name} {earlier.digests[key]}" for key in shared[:5]]
                text = f"{summary.name}: images that are in {earlier.name} too, pixel for pixel: {len(shared)}"
                findings.append(Finding(ERROR, text, f"take them out of one split of {earlier.name}", examples))
    return findings


def check_folder(dataset: str, splits: Sequence[str], max_examples: int) -> list[Finding]:
    """Files of a plain folder that have no partner."""
    findings = []
    for name, split in find_folder_splits(dataset).items():
        if name not in splits:
            continue
        for files, kind in (
            (split.images_without_label, "images"),
            (split.labels_without_image, "label maps"),
        ):
            if files:
                text = f"{name}: {kind} without a partner of the same name, which are left out: {len(files)}"
                examples = [path.name for path in files[:max_examples]]
                findings.append(Finding(WARNING, text, "name both alike apart from the ending", examples))
    return findings


# ---- reporting


def exit_code(findings: Sequence[Finding], strict: bool = False) -> int:
    """0 fit for training, 1 warnings under `strict`, 2 errors."""
    severities = {finding.severity for finding in findings}
    if ERROR in severities:
        return 2
    return int(strict and WARNING in severities)


def format_report(
    summaries: Sequence[SplitSummary], findings: Sequence[Finding], vocabulary: Vocabulary, reduce_labels: bool
) -> str:
    """Render the counts as a Markdown table, then the findings and the verdict."""
    first, unseen = int(reduce_labels), set(vocabulary.unseen_names)
    rows = [
        (i + first, name + (" (unseen)" if name in unseen else "")) for i, name in enumerate(vocabulary.class_names)
    ]
    rows += [(0, "background")] if reduce_labels else []
    rows.append((IGNORE_INDEX, "no label"))
    known = {label_id for label_id, _ in rows}
    outside = sorted({label_id for summary in summaries for label_id in summary.pixels} - known)
    rows += [(label_id, "outside the class list") for label_id in outside[:10]]
    heads = ["id", "class", *(f"{summary.name} {what}" for summary in summaries for what in ("images", "pixels"))]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for label_id, name in rows:
        cells = [str(label_id), name]
        for summary in summaries:
            share = summary.pixels[label_id] / max(summary.num_pixels, 1)
            cells += [f"{summary.images[label_id]:,}", f"{share:.2%}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines += [_describe(summary) for summary in summaries]
    for finding in findings:
        lines += ["", f"{finding.severity.upper()}: {finding.text}", f"  remedy: {finding.remedy}"]
        lines += [f"  - {example}" for example in finding.examples]
    return "\n".join([*lines, "", _verdict(findings)])


def _describe(summary: SplitSummary) -> str:
    def modes(counter: Counter) -> str:
        return ", ".join(f"{mode} {count:,}" for mode, count in counter.most_common())

    def size(sides: tuple[int, int] | None) -> str:
        return f"{sides[0]} x {sides[1]}" if sides else "-"

    return (
        f"{summary.name}: {summary.num_images:,} images, {summary.num_usable:,} usable; {size(summary.smallest)} to "
        f"{size(summary.largest)} pixels (height x width); image modes {modes(summary.image_modes) or '-'}; label "
        f"modes {modes(summary.label_modes) or '-'}"
    )


def _verdict(findings: Sequence[Finding]) -> str:
    number = Counter(finding.severity for finding in findings)
    if number[ERROR]:
        return f"Not fit for training. Errors: {number[ERROR]}, warnings: {number[WARNING]}."
    return f"Fit for training. Warnings: {number[WARNING]}."


def as_json(
    summaries: Sequence[SplitSummary], findings: Sequence[Finding], vocabulary: Vocabulary, reduce_labels: bool
) -> dict[str, Any]:
    """Everything counted and found, for programs."""
    splits = {
        summary.name: {
            "num_images": summary.num_images,
            "num_usable": summary.num_usable,
            "smallest": summary.smallest,
            "largest": summary.largest,
            "image_modes": dict(summary.image_modes),
            "label_modes": dict(summary.label_modes),
            "pixels_per_id": {str(label_id): count for label_id, count in sorted(summary.pixels.items())},
            "images_per_id": {str(label_id): count for label_id, count in sorted(summary.images.items())},
        }
        for summary in summaries
    }
    return {
        "class_names": list(vocabulary.class_names),
        "unseen_classes": list(vocabulary.unseen_names),
        "reduce_labels": reduce_labels,
        "splits": splits,
        "findings": [asdict(finding) for finding in findings],
        "verdict": _verdict(findings),
    }


# ---- command line


def choose_vocabulary(
    dataset: str, class_names: str | None, unseen_classes: str | None, vocabulary: str | None
) -> Vocabulary:
    """The class list from the command line, or from the dataset's own folder.

    Args:
        dataset: Folder or Hub id.
        class_names: A YAML list, or names with commas between them.
        unseen_classes: The same; overrides those of a named vocabulary.
        vocabulary: A name from vocabularies.py.

    Raises:
        ValueError: If there is no class list, or two.
    """
    if class_names and vocabulary:
        raise ValueError("give --class_names or --vocabulary, not both.")
    unseen = tuple(parse_names(unseen_classes)) if unseen_classes else None
    if vocabulary:
        known = get_vocabulary(vocabulary)
        return known if unseen is None else Vocabulary(known.name, known.class_names, unseen)
    names = parse_names(class_names) if class_names else read_class_names(dataset)
    if not names:
        raise ValueError(
            'no class list: give --class_names "[cat, dog]" in the order of the ids, --vocabulary NAME, or put a '
            "classes.txt with one name per line into the folder."
        )
    if len(names) > IGNORE_INDEX:
        raise ValueError(f"{len(names)} class names: use at most {IGNORE_INDEX}, as id {IGNORE_INDEX} means no label.")
    return Vocabulary("own", tuple(names), unseen or ())


def parse_names(text: str) -> list[str]:
    """Read "[cat, dog]" or "cat, dog".

    Raises:
        ValueError: If the text is no list of names.
    """
    try:
        names = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no list of names: write [cat, dog].") from error
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{text!r} is no list of names: write [cat, dog].")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"class name {name!r} is read as a {type(name).__name__}: put it in quotes.")
    return names


def run(arguments: argparse.Namespace) -> int:
    """Read, judge and report; gives the exit code.

    Raises:
        ValueError: If the class list or the first split cannot be had.
    """
    disable_progress_bars()  # one bar, ours
    vocabulary = choose_vocabulary(
        arguments.dataset, arguments.class_names, arguments.unseen_classes, arguments.vocabulary
    )
    check_label_convention(
        arguments.dataset,
        vocabulary.class_names,
        reduce_labels=arguments.reduce_labels,
        revision=arguments.dataset_revision,
    )
    summaries, findings = [], check_folder(arguments.dataset, arguments.split, arguments.max_examples)
    for position, split in enumerate(arguments.split):
        try:
            dataset = load_split(
                arguments.dataset,
                split,
                config_name=arguments.dataset_config,
                image_column=arguments.image_column,
                label_column=arguments.label_column,
                streaming=arguments.streaming,
                revision=arguments.dataset_revision,
                num_images=arguments.num_images,
            )
        except ValueError as error:
            if position == 0:
                raise
            findings.append(Finding(WARNING, str(error), "hold some images back, or nothing can be scored"))
            continue
        summaries.append(
            read_split(
                dataset,
                split,
                patch_size=arguments.patch_size,
                max_examples=arguments.max_examples,
                num_workers=arguments.num_workers,
            )
        )
    findings = by_severity(findings + check_splits(summaries, vocabulary, reduce_labels=arguments.reduce_labels))
    sys.stdout.write(format_report(summaries, findings, vocabulary, arguments.reduce_labels) + "\n")
    if arguments.json:
        write_json(as_json(summaries, findings, vocabulary, arguments.reduce_labels), arguments.json)
    return exit_code(findings, arguments.strict)
