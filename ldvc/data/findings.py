"""What the counts of a dataset mean for a training, in words and with remedies: the judgement of `ldvc check`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldvc.data.folders import LAYOUTS, find_folder_splits, find_outside
from ldvc.data.inspection import SplitSummary
from ldvc.data.label_maps import LABEL_PROBLEMS
from ldvc.data.samples import IGNORE_INDEX
from ldvc.data.vocabularies import Vocabulary


__all__ = [
    "Finding",
    "by_severity",
    "check_classes",
    "check_duplicates",
    "check_folder",
    "check_ids",
    "check_names",
    "check_samples",
    "check_splits",
    "check_unlabelled",
]

ERROR, WARNING, NOTE = "error", "warning", "note"
MIN_IMAGES_PER_CLASS = 5
HIGH_SHARE = 0.5  # of pixels: of id 0, or without a label
BACKGROUND_NAMES = ("background", "other", "unlabeled", "unlabelled", "void", "ignore", "none")
COMMAND = "ldvc check DATASET"
QUIET_ENDINGS = (".db", ".ini", ".md", ".csv", ".jsonl", "without ending")  # thumbnails, notes, lists
METADATA_ENDINGS = (".jsonl", ".csv", ".parquet")

# What can be wrong with one sample -> (severity, what it is, what to do, programs that do it and when each is right).
SAMPLE_PROBLEMS = {
    "unreadable image": (
        ERROR,
        "image files that cannot be read",
        "copy or download them again, or leave them out",
        {},
    ),
    "unreadable label map": (ERROR, "label maps that cannot be read", "make them again, or leave the samples out", {}),
    **{kind: (ERROR, *problem) for kind, problem in LABEL_PROBLEMS.items()},
    "size mismatch": (
        ERROR,
        "label maps of another size than their image",
        "make them again from these images; sizes are compared after EXIF rotation, which editors often drop",
        {},
    ),
    "turned by EXIF": (
        WARNING,
        "images that their EXIF data turn or mirror at the same size, with label maps that are not turned by any",
        "look at one of them; if the label maps were drawn on the pictures as they are shown, nothing is to do",
        {"stored_pixels": "if they were drawn on the pixels as stored"},
    ),
    "half-transparent image": (
        WARNING,
        "images with a fourth band that is half transparent, and is blended with white",
        "",
        {"first_bands": "if it is no transparency, but near infrared or another channel"},
    ),
    "16-bit picture of unknown range": (
        ERROR,
        "images of 16 bits that use a part of their range, so that nobody can tell what is white",
        "",
        {"from_10_bits": "if they hold 10 bits", "from_12_bits": "if 12", "from_14_bits": "if 14"},
    ),
    "nearly black": (
        WARNING,
        "images that are nearly black",
        "write them with values up to 255, unless it was night; of 16-bit colour files Pillow reads the high 8 bits",
        {},
    ),
    "without any label": (WARNING, "images without any labelled pixel", "label them or leave them out", {}),
    "smaller than a patch": (
        WARNING,
        "images smaller than one patch",
        "leave them out: scaled up, they are blurs of one or two tokens",
        {},
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


# ---- judging


def check_splits(
    summaries: Sequence[SplitSummary],
    vocabulary: Vocabulary,
    *,
    reduce_labels: bool = False,
    command: str = COMMAND,
) -> list[Finding]:
    """Judge what was read; the first split is the one that trains.

    Args:
        summaries: What `read_split` counted, at least one.
        vocabulary: Class names in the order of the ids, and the unseen ones.
        reduce_labels: Label maps count from 1, with 0 for background.
        command: That reads these samples; remedies go on from it.

    Returns:
        Errors first, then warnings, then notes.
    """
    findings = check_names(vocabulary)
    for summary in summaries:
        findings += check_samples(summary, command)
        if summary.num_usable:
            findings += check_ids(summary, vocabulary, reduce_labels, command)
            findings += check_unlabelled(summary, reduce_labels, trains=summary is summaries[0])
        else:
            text = f"{summary.name}: none of {summary.num_images} samples can be used"
            remedy = "mend what is wrong with them" if summary.problems else "check dataset, columns and split"
            findings.append(Finding(ERROR, text, remedy))
    if summaries[0].num_usable:
        usable = [summary for summary in summaries if summary.num_usable]
        findings += check_classes(usable, vocabulary, reduce_labels)
    findings += check_duplicates(summaries)
    return by_severity(findings)


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; each kind in its order."""
    return sorted(findings, key=lambda finding: (ERROR, WARNING, NOTE).index(finding.severity))


def check_names(vocabulary: Vocabulary) -> list[Finding]:
    """Names are all that LDVC knows of a class: they must be words."""
    findings = []
    for name in vocabulary.class_names:
        if name.lower().strip("_ ") in BACKGROUND_NAMES:
            text = f"class name {name!r} describes no object"
            remedy = "give background the id 255, or the id 0 with --reduce_labels, and no name"
            findings.append(Finding(WARNING, text, remedy))
        elif "_" in name or not any(letter.isalpha() for letter in name):
            words = name.replace("_", " ").strip()
            text = f"class name {name!r} is not written as words, and words are all that LDVC knows of a class"
            findings.append(Finding(WARNING, text, f"write it as in a sentence, such as {words!r}"))
    return findings


def describe_mends(mends: Mapping[str, str], command: str) -> list[str]:
    """Say which command writes a dataset anew, and when it is the right one; NEW is a folder to make."""
    return [f"{command} --mend {mend} --output NEW{f' ({when})' if when else ''}" for mend, when in mends.items()]


def check_samples(summary: SplitSummary, command: str = COMMAND) -> list[Finding]:
    """Samples that cannot be used, or hardly."""
    findings = []
    for kind, (severity, text, advice, mends) in SAMPLE_PROBLEMS.items():
        if kind in summary.problems:
            count, examples = summary.problems[kind]
            remedy = "; ".join([advice] * bool(advice) + describe_mends(mends, command))
            findings.append(Finding(severity, f"{summary.name}: {text}: {count}", remedy, examples))
    count, examples = summary.repeats
    if count:
        text = f"{summary.name}: images that occur more than once: {count}"
        findings.append(Finding(WARNING, text, "keep one of each, unless they are meant to count twice", examples))
    return findings


def check_ids(
    summary: SplitSummary, vocabulary: Vocabulary, reduce_labels: bool, command: str = COMMAND
) -> list[Finding]:
    """Ids against the class list, and the signs of a list that is shifted by one."""
    first, num_classes = int(reduce_labels), len(vocabulary.class_names)
    known = {*range(first, num_classes + first), IGNORE_INDEX} | ({0} if reduce_labels else set())
    outside = sorted(set(summary.pixels) - known)
    if outside:
        listed = ", ".join(f"{i} ({summary.images[i]} images)" for i in outside[:10])
        more = f" and {len(outside) - 10} more" if len(outside) > 10 else ""
        text = f"{summary.name}: ids outside the {num_classes} classes, {first} to {num_classes + first - 1}: {listed}"
        return [Finding(ERROR, text + more, _remedy_for_outside(outside, summary, num_classes, reduce_labels))]
    if finding := _check_black_and_white(summary, command):
        return [finding]
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


def _check_black_and_white(summary: SplitSummary, command: str) -> Finding | None:
    """White objects on black, whose white is 255 in all label maps or in some of them; 255 means no label."""
    (mend,) = describe_mends({"white_is_1": "if white is the object; it is id 1 then, with --reduce_labels"}, command)
    white = {value: summary.black_and_white[f"0 and {value}"] for value in (1, IGNORE_INDEX)}
    if all(white.values()) and not summary.black_and_white["1 and 255"]:
        text = (
            f"{summary.name}: white is 1 in {white[1]} label maps and 255, which means no label, in "
            f"{white[IGNORE_INDEX]} others"
        )
        return Finding(ERROR, text, mend)
    if set(summary.pixels) == {0, IGNORE_INDEX}:
        text = f"{summary.name}: label maps hold only 0 and 255, as black-and-white masks do, and 255 means no label"
        return Finding(WARNING, text, f"nothing is to do if 0 is the object; {mend}")
    return None


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
    findings, train = [], summaries[0]
    seen = [vocabulary.class_names[i] for i in vocabulary.seen_class_ids]
    pixels = {summary.name: summary.labelled_pixels(vocabulary, reduce_labels) for summary in summaries}
    never = [name for name in seen if not pixels[train.name][name]]
    if never and len(never) == len(seen):
        text = f"{train.name}: no seen class has a single pixel"
        findings.append(Finding(ERROR, text, "check class names against ids, and --reduce_labels"))
    elif never:
        text = f"{train.name}: seen classes without a pixel: {', '.join(never)}"
        remedy = "label some, take the names out of the list, or name them in --unseen_classes"
        findings.append(Finding(WARNING, text, remedy))
    images = {name: train.images[i] for i, name in enumerate(vocabulary.class_names, start=int(reduce_labels))}
    rare = [name for name in seen if 0 < images[name] < MIN_IMAGES_PER_CLASS]
    if rare:
        text = f"{train.name}: seen classes in fewer than {MIN_IMAGES_PER_CLASS} images: {', '.join(rare)}"
        findings.append(Finding(NOTE, text, "label more of them if their score matters"))
    for summary in summaries[1:]:
        absent = [name for name in vocabulary.class_names if not pixels[summary.name][name]]
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
    """Files of a plain folder that are not read: without a partner, of no picture format, or metadata of a library."""
    findings, found = [], find_folder_splits(dataset)
    for name, split in found.items():
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
        for folder, endings in split.other_files.items():
            known = [f"{count} {ending}" for ending, count in endings.items() if ending not in QUIET_ENDINGS]
            if known:
                text = f"{name}: {folder} holds files that are no pictures by their ending: {', '.join(known)}"
                findings.append(Finding(WARNING, text, "convert those that belong to the dataset to PNG"))
    if outside := find_outside(dataset, found):
        text = f"pictures in the folder that belong to no split, and are not read: {len(outside)}"
        examples = [str(path) for path in outside[:max_examples]]
        findings.append(Finding(WARNING, text, f"move those that are meant, as {LAYOUTS}", examples))
    root = Path(dataset).expanduser()
    metadata = sorted(path for path in root.rglob("metadata.*") if path.suffix in METADATA_ENDINGS) if found else []
    if metadata:
        text = f"{metadata[0]} is not read: label maps belong to the pictures of the same name"
        remedy = "the library datasets follows it instead; if its pairs are others, rename the files"
        findings.append(Finding(WARNING, text, remedy))
    return findings
