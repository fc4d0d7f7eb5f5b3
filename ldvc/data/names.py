"""Class-name files of the benchmarks, with their hashes: the usual ones, and ours in plainer words."""

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


__all__ = ["BENCHMARK_FILES", "NAME_KINDS", "NameFile", "parse_names_file", "read_name_file"]

FOLDER = Path(__file__).resolve().parent / "name_files"
# Benchmark -> file; the number of its classes is checked by a test.
BENCHMARK_FILES = {
    "voc20": "cls_voc20.txt",
    "voc21": "cls_voc21.txt",
    "context59": "cls_context59.txt",
    "context60": "cls_context60.txt",
    "coco_object": "cls_coco_object.txt",
    "coco_stuff": "cls_coco_stuff.txt",
    "ade20k": "cls_ade20k.txt",
    "cityscapes": "cls_city_scapes.txt",
}
NAME_KINDS = ("usual", "plain")


@dataclass(frozen=True)
class NameFile:
    """The names of a benchmark's classes.

    Attributes:
        source: The file, as it stands in the package, or its path.
        sha256: Of its bytes, 64 hex digits.
        classes: The words of each class, in the order of the ids; the first one is its name.
    """

    source: str
    sha256: str
    classes: tuple[tuple[str, ...], ...]

    @property
    def words(self) -> list[str]:
        """All words of all classes, in order; a word of two classes stands twice."""
        return [word for words in self.classes for word in words]

    @property
    def class_ids(self) -> list[int]:
        """The class of each word."""
        return [index for index, words in enumerate(self.classes) for _ in words]

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class, all different: its first word; of a background of many words "background"."""
        names = ["background" if len(words) > 10 else words[0] for words in self.classes]
        return tuple(name if names.index(name) == i else f"{name} ({i})" for i, name in enumerate(names))


def parse_names_file(text: str, source: str) -> tuple[tuple[str, ...], ...]:
    """Read one class a line, its words between commas.

    Raises:
        ValueError: If there is no class, or a line between others has no word.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    classes = tuple(tuple(word.strip() for word in line.split(",") if word.strip()) for line in lines)
    if not classes or not all(classes):
        empty = next((number for number, words in enumerate(classes, start=1) if not words), 1)
        raise ValueError(f"{source}: line {empty} names no class; write one class a line, synonyms between commas.")
    return classes


def read_name_file(name: str, kind: str = "usual") -> NameFile:
    """Read the names of a benchmark, or a file of one's own.

    Args:
        name: A benchmark of `BENCHMARK_FILES`, or the path of a file in the same form.
        kind: Of a benchmark: "usual" or "plain".

    Raises:
        ValueError: If there is no such benchmark, kind or file, or the file names no classes.
    """
    if kind not in NAME_KINDS:
        raise ValueError(f"names are {' or '.join(map(repr, NAME_KINDS))}, not {kind!r}.")
    if name in BENCHMARK_FILES:
        path = (FOLDER if kind == "usual" else FOLDER / "plain") / BENCHMARK_FILES[name]
        source = path.relative_to(FOLDER.parent).as_posix()
    else:
        path, source = Path(name).expanduser(), str(name)
        if not path.is_file():
            near = get_close_matches(name, BENCHMARK_FILES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(BENCHMARK_FILES)}, or a file."
            raise ValueError(f"{name!r} is no benchmark's name file and no file; {hint}")
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not a text file in UTF-8 ({error}); write one class a line.") from error
    return NameFile(source, hashlib.sha256(content).hexdigest(), parse_names_file(text, source))
