"""What is wrong with a dataset, all at once and by name, before it trains: `ldvc check`."""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import yaml
from datasets import disable_progress_bars

from ldvc.data.class_lists import check_label_convention
from ldvc.data.findings import ERROR, WARNING, Finding, by_severity, check_folder, check_splits
from ldvc.data.folders import MissingSplitError, read_class_names
from ldvc.data.inspection import SplitSummary, read_split
from ldvc.data.label_maps import PaletteLedger
from ldvc.data.mend import mend_dataset
from ldvc.data.provenance import write_json
from ldvc.data.samples import IGNORE_INDEX, load_stated_splits
from ldvc.data.vocabularies import Vocabulary, get_vocabulary


__all__ = ["choose_vocabulary", "exit_code", "format_report", "parse_names", "run"]


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
        return known if unseen is None else replace(known, unseen_names=unseen)
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


def command_of(arguments: argparse.Namespace) -> str:
    """The command that reads these samples again, for remedies that go on from it."""
    words = ["ldvc", "check", arguments.dataset]
    defaults = {
        "dataset_config": None,
        "dataset_revision": None,
        "image_column": "image",
        "label_column": "label",
        "num_images": None,
    }
    for option, default in defaults.items():
        if (value := getattr(arguments, option)) != default:
            words += [f"--{option}", str(value)]
    words += ["--streaming"] * arguments.streaming
    if arguments.split != ["train", "validation"]:
        words += ["--split", *arguments.split]
    return shlex.join(words)


def run(arguments: argparse.Namespace) -> int:
    """Read, judge and report, or write the dataset anew; gives the exit code.

    Raises:
        ValueError: If the class list or the first split cannot be had.
    """
    disable_progress_bars()  # one bar, ours
    if arguments.mend:
        mend_dataset(arguments)
        sys.stdout.write(f"Written to {arguments.output}; check it before training.\n")
        return 0
    vocabulary = choose_vocabulary(
        arguments.dataset, arguments.class_names, arguments.unseen_classes, arguments.vocabulary
    )
    check_label_convention(
        arguments.dataset,
        vocabulary.class_names,
        reduce_labels=arguments.reduce_labels,
        revision=arguments.dataset_revision,
    )
    summaries, findings = read_splits(arguments)
    findings += check_folder(arguments.dataset, arguments.split, arguments.max_examples)
    findings += check_splits(
        summaries, vocabulary, reduce_labels=arguments.reduce_labels, command=command_of(arguments)
    )
    findings = by_severity(findings)
    sys.stdout.write(format_report(summaries, findings, vocabulary, arguments.reduce_labels) + "\n")
    if arguments.json:
        write_json(as_json(summaries, findings, vocabulary, arguments.reduce_labels), arguments.json)
    return exit_code(findings, arguments.strict)


def read_splits(arguments: argparse.Namespace) -> tuple[list[SplitSummary], list[Finding]]:
    """Read every split that is asked for; one after the first may be missing.

    Raises:
        MissingSplitError: If the first split is missing.
        ValueError: If a split is there and cannot be read.
    """
    summaries, findings, palettes = [], [], PaletteLedger()
    for split, dataset in load_stated_splits(arguments):
        if isinstance(dataset, MissingSplitError):
            findings.append(Finding(WARNING, str(dataset), "hold some images back, or nothing can be scored"))
            continue
        summaries.append(
            read_split(
                dataset,
                split,
                patch_size=arguments.patch_size,
                max_examples=arguments.max_examples,
                num_workers=arguments.num_workers,
                palettes=palettes,
            )
        )
    return summaries, findings
