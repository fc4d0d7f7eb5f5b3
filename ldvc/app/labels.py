"""Label lists: reading them, and finding what would go wrong with them before a picture is segmented."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvc.data.vocabularies import find_list


if TYPE_CHECKING:  # these imports take seconds
    from torch import Tensor

    from ldvc.model.processing_ldvc import LDVCProcessor


# Two labels are near-identical when their embeddings are closer than this share of the list's median distance
# (1 - cosine). CLIP's cosines between unrelated names differ by model and template, so no fixed number would do. With
# CLIP ViT-B/16's features of the 171 COCO-Stuff names, a quarter finds "rock" and "stone", "dining table" and "table",
# and leaves "bicycle" and "motorcycle", "hill" and "mountain".
NEAR_SHARE = 0.25
# A short list has no distribution of its own: these words, far from each other, are added to it.
EVERYDAY_WORDS = ("person", "car", "tree", "sky", "building", "water", "chair", "food")
MIN_OWN_LABELS = 8
MAX_PIECES = 3  # per word; a published CLIP has most English nouns in one or two pieces
MIN_LETTERS_PER_PIECE = 2
# CLIP reads the words and not the negation: "person without helmet" is found where people wear one.
NEGATIONS = frozenset({"no", "not", "non", "without", "never", "neither", "nor", "except", "minus", "sans"})
MATRIX_LABELS = 12  # lists up to this length are shown as a full matrix
MEDIAN_LABELS = 2000  # evenly spaced labels that stand for longer lists in the median
MAX_NEAR_PAIRS = 1000
MAX_SHOWN_FINDINGS = 100  # in a terminal; errors come first

Entries = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a label.

    Attributes:
        level: "error": segmentation refuses the list; "warning": it runs, perhaps badly.
        kind: "empty", "duplicate", "control character", "too long", "unknown character", "invisible character",
            "negation", "split badly" or "near-identical".
        label: The label.
        message: What is wrong, and what to do.
    """

    level: str
    kind: str
    label: str
    message: str


@dataclass
class Report:
    """What `check_labels` found.

    Attributes:
        labels: Names that could be encoded, in order.
        findings: Errors first.
        templates: Prompt templates that the names were put into.
        max_cosine: Pairs above it are near-identical; `None` where nothing was compared.
        threshold_source: Where `max_cosine` comes from, in words.
        pairs: The most similar pairs, as (label, label, cosine).
        matrix: (num_labels, num_labels) cosines of a short list.
    """

    labels: list[str]
    findings: list[Finding]
    templates: list[str]
    max_cosine: float | None = None
    threshold_source: str = ""
    pairs: list[tuple[str, str, float]] = field(default_factory=list)
    matrix: list[list[float]] | None = None

    def count(self, level: str) -> int:
        """Findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Content for JSON."""
        return asdict(self) | {"errors": self.count("error"), "warnings": self.count("warning")}


def parse_labels(text: str) -> Entries:
    """Read a label list.

    Args:
        text: "cat, sofa|couch, grass": classes by commas, synonyms by bars, the first of which is the class's name.
            The name of a vocabulary or word list ("coco_stuff", "stuff") stands for its names. A text that ends in
            .txt is a file with one class per line; commas there belong to names, empty lines and
            lines that begin with # are left out.

    Returns:
        Name and synonyms (the name among them) of each class, as given: nothing is checked here.

    Raises:
        ValueError: If a file cannot be read or names no class.
    """
    if text.strip().lower().endswith(".txt"):
        path = Path(text.strip())
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise ValueError(f"label file {str(path)!r} cannot be read ({error.strerror}).") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"label file {str(path)!r} is no UTF-8 text; save it as UTF-8.") from error
        parts = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not parts:
            raise ValueError(f"label file {str(path)!r} names no class; write one per line.")
    elif (listed := find_list(text.strip())) is not None:
        return [(name, [name]) for name in listed]
    else:
        parts = text.split(",")
    entries = []
    for part in parts:
        words = [word.strip(" \t") for word in part.split("|")]
        entries.append((words[0], words))
    return entries


def as_classes(entries: Entries) -> dict[str, list[str]]:
    """Check a label list and turn it into name -> synonyms.

    Raises:
        ValueError: If a name is empty, repeated or holds control characters.
    """
    from ldvc.model.options_ldvc import check_distinct, read_classes

    check_distinct([name for name, _ in entries])  # a dict would drop the first of two equal names
    return read_classes(dict(entries))


def check_labels(
    entries: Entries,
    processor: LDVCProcessor,
    encode: Callable[[Mapping[str, Sequence[str]]], Tensor] | None,
    max_cosine: float | None = None,
    num_pairs: int = 10,
) -> Report:
    """Look for everything that makes a label list fail or segment badly.

    Args:
        entries: From `parse_labels`.
        processor: Gives tokenizer and templates.
        encode: Name -> synonyms to (num_classes, projection_dim) unit vectors; `None` compares nothing.
        max_cosine: Pairs above it are near-identical; `None` derives it from the list, see `near_threshold`.
        num_pairs: Pairs in the similarity table.

    Raises:
        ValueError: If `max_cosine` is no cosine.
    """
    if max_cosine is not None and not -1 <= max_cosine <= 1:
        raise ValueError(f"max_cosine is {max_cosine}; a cosine is -1 to 1.")
    findings, classes = check_words(entries)
    token_findings, too_long = check_tokens(classes, processor)
    classes = {name: words for name, words in classes.items() if not too_long.intersection(words)}
    report = Report(list(classes), [*findings, *token_findings], list(processor.prompt_templates))
    if encode is not None and len(classes) > 1:
        embeds = encode(classes)
        if max_cosine is None:
            is_short = len(classes) < MIN_OWN_LABELS
            everyday = encode({word: [word] for word in EVERYDAY_WORDS}) if is_short else None
            max_cosine = near_threshold(embeds, everyday)
            others = f" and of {len(EVERYDAY_WORDS)} everyday words" if is_short else ""
            report.threshold_source = f"a quarter of the median distance of this list{others}"
        else:
            report.threshold_source = "--max-cosine"
        report.max_cosine = round(max_cosine, 4)
        near = compare(report, embeds, max_cosine, num_pairs)
        report.findings += near
    report.findings.sort(key=lambda finding: finding.level)  # "error" before "warning"; stable within
    return report


def check_words(entries: Entries) -> tuple[list[Finding], dict[str, list[str]]]:
    """Check names as text.

    Returns:
        Findings, and name -> synonyms of what is left without errors.
    """
    from ldvc.model.options_ldvc import name_key

    findings: list[Finding] = []
    owners: dict[str, str] = {}
    classes: dict[str, list[str]] = {}
    for position, (name, words) in enumerate(entries, 1):
        kept = []
        for word in words:
            try:
                key = name_key(word)
            except ValueError as error:
                kind = "control character" if word.strip() else "empty"
                findings.append(Finding("error", kind, word, f"label {position}: {error}"))
                continue
            if key in owners:
                message = f"label {position} repeats {owners[key]!r}; case and spaces do not count, name it once."
                findings.append(Finding("error", "duplicate", word, message))
                continue
            owners[key] = word
            kept.append(word)
            if denied := NEGATIONS.intersection(re.split(r"[^\w]+", key)):
                message = (
                    f"holds {min(denied)!r}, which CLIP reads past: it finds what the other words name. Name what is "
                    "there, and give what must not be found as a negative label (ldvc segment --not)."
                )
                findings.append(Finding("warning", "negation", word, message))
            if hidden := [c for c in word if unicodedata.category(c) == "Cf"]:
                message = f"holds the invisible character U+{ord(hidden[0]):04X}; type the name again."
                findings.append(Finding("warning", "invisible character", word, message))
        if kept:
            classes[name if name in kept else kept[0]] = kept
    return findings, classes


def check_tokens(classes: Mapping[str, Sequence[str]], processor: LDVCProcessor) -> tuple[list[Finding], set[str]]:
    """Check how the tokenizer reads the names.

    Returns:
        Findings, and the words that do not fit the text tower.
    """
    tokenizer, findings, too_long = processor.tokenizer, [], set()
    limit, longest_template = tokenizer.model_max_length, max(processor.prompt_templates, key=len)
    for word in (word for words in classes.values() for word in words):
        length = len(tokenizer(longest_template.replace("{}", " ".join(word.split())))["input_ids"])
        if length > limit:
            message = f"{length} tokens in {longest_template!r}, the text tower reads {limit}; shorten it."
            findings.append(Finding("error", "too long", word, message))
            too_long.add(word)
            continue
        findings += [Finding("warning", kind, word, message) for kind, message in split_problems(word, tokenizer)]
    return findings, too_long


def split_problems(word: str, tokenizer: Any) -> list[tuple[str, str]]:
    """Say what is wrong with the pieces of a name, as (kind, message).

    A part of a name is split badly into more than three pieces, or into pieces of fewer than two letters on average;
    bytes of a letter as pieces of their own mean that the tokenizer never saw it.
    """
    from tokenizers.decoders import ByteLevel

    decoder, problems = ByteLevel(), []
    visible = "".join(character for character in word if unicodedata.category(character) != "Cf")
    for part in visible.split():
        start = "" if part == word else f"{part!r} "
        pieces = tokenizer.tokenize(part)
        shown = [decoder.decode([piece.removesuffix("</w>")]) for piece in pieces]
        if tokenizer.unk_token in pieces:
            problems.append(("unknown character", f"{start}holds what the tokenizer does not know; spell it out."))
        elif any("\ufffd" in piece for piece in shown):
            problems.append(
                ("unknown character", f"{start}is read as single bytes, which CLIP hardly learned; use English.")
            )
        elif len(pieces) > MAX_PIECES or (len(pieces) > 1 and len(part) / len(pieces) < MIN_LETTERS_PER_PIECE):
            message = f"{start}falls into {len(pieces)} pieces ({'+'.join(shown)}); a commoner word helps."
            problems.append(("split badly", message))
    return problems


def near_threshold(embeds: Tensor, everyday_embeds: Tensor | None = None) -> float:
    """Find the cosine above which two labels of this list are near-identical.

    Args:
        embeds: (num_classes, projection_dim), unit length.
        everyday_embeds: (num_words, projection_dim) of everyday words, for lists too short for a distribution.

    Returns:
        1 less `NEAR_SHARE` of the median distance (1 - cosine) between two labels.
    """
    import torch

    step = -(-len(embeds) // MEDIAN_LABELS)
    embeds = embeds[::step].float()
    if everyday_embeds is not None:
        embeds = torch.cat([embeds, everyday_embeds.float()])
    rows, columns = torch.triu_indices(len(embeds), len(embeds), offset=1)
    return 1 - NEAR_SHARE * float((1 - embeds @ embeds.T)[rows, columns].median().clamp(min=0))


def compare(report: Report, embeds: Tensor, max_cosine: float, num_pairs: int) -> list[Finding]:
    """Fill the report's pairs and matrix, and return the near-identical pairs as findings."""
    import torch

    names, embeds = report.labels, embeds.float().cpu()
    wanted = max(num_pairs, MAX_NEAR_PAIRS)
    best = torch.empty(0)
    places = torch.empty(0, 2, dtype=torch.int64)
    for first in range(0, len(names), 1024):  # rows at a time: 10,000 names have 50 million pairs
        block = embeds[first : first + 1024] @ embeds.T
        is_pair = torch.arange(len(names)) > torch.arange(first, first + len(block))[:, None]
        values, flat = block.masked_fill(~is_pair, -2).flatten().topk(min(wanted, block.numel()))
        best = torch.cat([best, values])
        places = torch.cat([places, torch.stack([flat // len(names) + first, flat % len(names)], dim=1)])
        order = best.argsort(descending=True, stable=True)[:wanted]
        best, places = best[order], places[order]
    pairs = [
        (names[row], names[column], round(value, 4))
        for (row, column), value in zip(places.tolist(), best.tolist(), strict=True)
        if value > -2
    ]
    report.pairs = pairs[:num_pairs]
    if len(names) <= MATRIX_LABELS:
        report.matrix = [[round(value, 4) for value in row] for row in (embeds @ embeds.T).tolist()]
    return [
        Finding(
            "warning",
            "near-identical",
            second,
            f"its embedding has cosine {cosine:.3f} with {first!r}'s; merge them as {first}|{second}, or rename one.",
        )
        for first, second, cosine in pairs
        if cosine > max_cosine
    ]


def render(report: Report, model_name: str) -> str:
    """Give the report as text for a terminal."""
    errors, warnings = report.count("error"), report.count("warning")
    lines = [
        f"{plural(len(report.labels), 'label')} could be encoded: {plural(errors, 'error')}, "
        f"{plural(warnings, 'warning')} (model {model_name}, template {' / '.join(map(repr, report.templates))})"
    ]
    shown = report.findings[:MAX_SHOWN_FINDINGS]
    lines += [f"{finding.level:7}  {finding.kind}: {shorten(finding.label)!r} {finding.message}" for finding in shown]
    if len(shown) < len(report.findings):
        lines.append(f"... and {len(report.findings) - len(shown)} more; --json lists them all.")
    if report.max_cosine is not None:
        lines += ["", f"near-identical above cosine {report.max_cosine:.3f} ({report.threshold_source})", ""]
        lines += table(
            ["label", "label", "cosine"],
            [[cell(first), cell(second), f"{cosine:.3f}"] for first, second, cosine in report.pairs],
        )
    if report.matrix is not None:
        names = [cell(name, 20) for name in report.labels]
        rows = [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, report.matrix, strict=True)]
        lines += ["", *table(["cosine", *names], rows)]
    return "\n".join(lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a Markdown table with aligned columns: the first left, numbers right."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    is_number = [all(re.fullmatch(r"[-+.\d]*", row[column]) for row in rows) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, is_number, strict=True)
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, is_number, strict=True)]
    return [line(heads), f"| {' | '.join(rule)} |", *map(line, rows)]


def cell(label: str, limit: int = 40) -> str:
    """Give a label as the cell of a table, invisible characters shown."""
    text = shorten(label, limit).replace("|", "/")
    return text if text.isprintable() else repr(text)


def shorten(text: str, limit: int = 40) -> str:
    """Cut a long label."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plural(count: int, noun: str) -> str:
    """Give "1 label", "2 labels"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
