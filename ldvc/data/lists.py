"""Lists in text files, whatever editor saved them: class names, and ids of images."""

import codecs
import json
import re
from pathlib import Path
from typing import Any


__all__ = ["read_class_file", "read_class_names", "read_image_ids", "read_text"]

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before the mark of UTF-16, which begins like it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HEADINGS = {"id", "ids", "index", "label", "labels", "name", "names", "class", "classes", "class_name", "class_names"}
HEADINGS |= {"class_id", "class id", "class name", "category", "categories", "pixel value", "value"}
NUMBERED = re.compile(r"(\d+)\s*[:;,.)=\t ]\s*(\S.*)")  # "0: cat", "0 cat", "0,cat"
FORM = "write one class name per line, in the order of the ids, and nothing else"


def read_text(path: Path) -> str:
    """Read a text file: UTF-8, or what its byte-order mark says.

    Raises:
        ValueError: If it is neither.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}): save it again as UTF-8.") from error


def read_class_names(folder: str | Path) -> list[str] | None:
    """Read the class names that lie in a dataset's folder; `None` if there are none.

    `classes.txt` holds one name per line, and `classes.json` is that of ldvc prepare, a list or an object of names and
    ids; `_classes.csv` is Roboflow's, in its folder of a split.

    Raises:
        ValueError: If one of them is something else; it is never guessed at, as every name would be shifted.
    """
    root = Path(folder).expanduser()
    if (root / "classes.txt").is_file():
        return parse_class_lines(root / "classes.txt")
    if (root / "classes.json").is_file():
        return read_class_file(root / "classes.json")[0]
    for path in sorted(root.glob("*/_classes.csv")):
        return parse_class_lines(path)
    return None


def parse_class_lines(path: Path) -> list[str]:
    """Read class names from the lines of a text file, with ids before the names or without.

    Raises:
        ValueError: If a line may be something else than a name.
    """
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    rows = [(number, line) for number, line in enumerate(lines, start=1) if not line.startswith("#")]
    is_heading = bool(rows) and {part.strip(' "').lower() for part in re.split("[,;\t]", rows[0][1])} <= HEADINGS
    numbered = [NUMBERED.fullmatch(line) for _, line in rows[is_heading:]]
    if numbered and all(numbered):
        ids = [int(match[1]) for match in numbered]
        return _order_by_id(dict(zip(ids, [match[2].strip(' "') for match in numbered], strict=True)), len(ids), path)
    if is_heading:
        raise ValueError(f"{path}, line {rows[0][0]}: {rows[0][1]!r} looks like a heading: {FORM}.")
    for number, line in rows:
        if not line:
            raise ValueError(f"{path}, line {number} is blank, and the names after it would be shifted: {FORM}.")
        # synonyms with commas, as in ADE20K, are names; so is nothing that has a number beside it
        is_row = NUMBERED.fullmatch(line) or re.search(r"\t|\s#|[,;:=]\s*\d+$", line)
        if is_row or line.startswith("__") or (len(rows) == 1 and re.search("[,;]", line)):
            raise ValueError(f"{path}, line {number}: {line!r} is not a name alone: {FORM}.")
    return [line for _, line in rows]


def _order_by_id(names: dict[int, str], number: int, path: Path) -> list[str]:
    """Sort names by id.

    Raises:
        ValueError: If the ids are not 0, 1, 2 and so on.
    """
    if sorted(names) != list(range(number)):
        first = min(set(range(number)) - names.keys(), default=number)
        hint = "; if 0 is background, leave the numbers out and use reduce_labels" if first == 0 else ""
        raise ValueError(f"{path} gives no name to id {first}, or two names to one id: number from 0 on{hint}.")
    return [names[class_id] for class_id in range(number)]


def read_class_file(path: Path) -> tuple[list[str] | None, bool | None]:
    """Read a `classes.json`.

    Args:
        path: Of ldvc prepare, a list of names, an object of ids and names, or an object that holds either as
            `class_names`, `classes` or `names`.

    Returns:
        The names, and whether 0 is background, each `None` if the file does not say.

    Raises:
        ValueError: If it is something else.
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): mend it, or write a classes.txt instead.") from error
    reduce_labels = content.get("reduce_labels") if isinstance(content, dict) else None
    names = content
    if isinstance(content, dict):
        keys = [key for key in ("class_names", "classes", "names") if key in content]
        names = content[keys[0]] if keys else content
    return _read_names(names, path), bool(reduce_labels) if reduce_labels is not None else None


def _read_names(names: Any, path: Path) -> list[str]:
    if isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names):
        return names
    if isinstance(names, dict) and names:
        if all(isinstance(value, str) for value in names.values()) and all(key.isdigit() for key in names):
            return _order_by_id({int(key): name for key, name in names.items()}, len(names), path)
        if all(isinstance(value, int) and not isinstance(value, bool) for value in names.values()):
            return _order_by_id({value: name for name, value in names.items()}, len(names), path)
    raise ValueError(
        f'{path} holds no class names: write a list such as ["cat", "dog"] in the order of the ids, or an object such '
        'as {"0": "cat", "1": "dog"}.'
    )


def read_image_ids(path: Path, remedy: str) -> list[str]:
    """Read a list of image ids, one a line, each once.

    Args:
        path: Of the list.
        remedy: What to do about a list that is none; ends every message.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If it is empty, or its lines hold more than an id.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The list {path} is missing: {remedy}.")
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"The list {path} is empty: {remedy}.")
    for words in lines:
        if len(words) == 2 and words[1] in ("1", "-1", "0"):
            raise ValueError(
                f"The list {path} holds '{' '.join(words)}': a flag after the id says whether one class is in the "
                "image, and images of all classes are asked for. Take a list of ids, as in ImageSets/Segmentation."
            )
        for word in words:
            if Path(word).name != word or "\\" in word:
                raise ValueError(f"The list {path} holds '{word}', which is no id of an image but a path: {remedy}.")
    return list(dict.fromkeys(word for words in lines for word in words))
