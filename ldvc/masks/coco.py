"""COCO run-length results of a folder: a journal while pictures are segmented, one JSON file at the end.

Every process has a journal of its own, a line per picture, so that neither a stop nor a second process loses one, and
memory does not grow with the number of pictures; a run that adds to a finished `coco.json` reads that file whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from ldvc.masks.parts import is_left_over, part_suffix, written_aside
from ldvc.masks.writer import Classes, Result, Writer


COCO_FILE, COCO_JOURNAL = "coco.json", "coco.json.part"  # a process's own journal has its name in between
FIRST_CATEGORY_ID = 1  # of the field: tools that take 0 for background, such as Datumaro, drop the first class

# Name of a picture -> journal and byte at which its line begins, or the record itself.
Index = dict[str, tuple[Path, int] | dict[str, Any]]


def describe_ids(first_category_id: int) -> dict[str, Any]:
    """Content of `info`: how category ids and the ids of label maps belong together."""
    ids = "the id of names.json and of the PNG and npz label maps"
    return {
        "description": f"LDVC; category_id is {ids}" + (f" + {first_category_id}" if first_category_id else ""),
        "first_category_id": first_category_id,
    }


def coco_annotations(
    label_map: np.ndarray, best_scores: np.ndarray, num_classes: int, first_category_id: int = FIRST_CATEGORY_ID
) -> list[dict[str, Any]]:
    """Encode every class of a label map as COCO's compressed run lengths, by pycocotools.

    Args:
        label_map: (height, width) ids; the id `num_classes` is "other".
        best_scores: (height, width), probability of each pixel's best class.
        num_classes: Classes without "other".
        first_category_id: `category_id` of id 0; the others follow.

    Returns:
        One annotation per class present; `score` is the mean probability inside the mask (of "other": the mean of what
        the best class lacks of 1).
    """
    from pycocotools import mask as coco_mask

    annotations = []
    for class_id in np.unique(label_map).tolist():
        is_class = label_map == class_id
        rle = coco_mask.encode(np.asfortranarray(is_class, dtype=np.uint8))
        mean = float(best_scores[is_class].mean(dtype=np.float64))
        annotations.append(
            {
                "category_id": class_id + first_category_id,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                "area": int(coco_mask.area(rle)),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "iscrowd": 0,
                "score": round(1 - mean if class_id == num_classes else mean, 6),
            }
        )
    return annotations


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none or it is damaged."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


class Journal:
    """The records that this process adds; threads may add at once.

    Args:
        folder: Where results go.
        file_name: Of the file that it becomes part of.
    """

    def __init__(self, folder: Path, file_name: str = COCO_FILE):
        self.path = folder / f"{file_name}{part_suffix()}"
        self._lock, self._file = Lock(), self.path.open("a", encoding="utf-8")
        self._file.write("\n")  # a stopped run of this name may have left half a line

    def add(self, name: str, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> None:
        """Write a picture's record to the disk.

        Args:
            name: Of the picture's results.
            image: `file_name`, `width` and `height`.
            annotations: From `coco_annotations`.
        """
        record = {"name": name, "image": image, "annotations": annotations}
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def find_journals(folder: Path, file_name: str = COCO_FILE) -> list[Path]:
    """Journals of a file and all processes, running or stopped; the one written to last comes last."""
    times = {}
    for path in folder.glob(f"{file_name}*.part"):
        with suppress(FileNotFoundError):  # its process has just finished
            times[path] = path.stat().st_mtime
    return sorted(times, key=times.get)


def journal_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every whole record of a journal with the byte at which it begins."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        start = 0
        for line in file:
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and {"name", "image", "annotations"} <= record.keys():
                    yield start, record
            start += len(line)


def file_records(folder: Path, file_name: str = COCO_FILE) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a finished `coco.json`, by name."""
    content = read_json(folder / file_name)
    records = {}
    for image in content.get("images", ()):
        kept = {key: image[key] for key in ("file_name", "width", "height")}
        records[image["id"]] = (image["name"], {"image": kept, "annotations": []})
    for annotation in content.get("annotations", ()):
        kept = {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
        records[annotation["image_id"]][1]["annotations"].append(kept)
    yield from records.values()


def remove_journals(folder: Path, own_journals: Iterable[Path] = (), file_name: str = COCO_FILE) -> None:
    """Delete a file's journals, but for those that another process writes to."""
    own_journals = set(own_journals)
    for path in own_journals.union(find_journals(folder, file_name)):
        if path in own_journals or path.name.endswith(part_suffix()) or is_left_over(path):
            path.unlink(missing_ok=True)


def known_names(folder: Path, file_name: str = COCO_FILE) -> set[str]:
    """Names of all pictures that a folder has a record of."""
    names = {record["name"] for path in find_journals(folder, file_name) for _, record in journal_records(path)}
    return names | {name for name, _ in file_records(folder, file_name)}


def write_coco(
    folder: Path,
    class_names: Sequence[str],
    own_journals: Iterable[Path],
    first_category_id: int = FIRST_CATEGORY_ID,
    file_name: str = COCO_FILE,
) -> None:
    """Write the COCO file from all records of a folder, and delete the journals that nobody writes to any more.

    Args:
        folder: Where results are.
        class_names: Name of every id.
        own_journals: Closed journals of all processes of this run.
        first_category_id: COCO's category id of id 0.
        file_name: Of the file.
    """
    own_journals, target = list(own_journals), folder / file_name
    while not write_from_journals(target, class_names, own_journals, first_category_id):
        pass  # another run has finished meanwhile, which takes its journals away
    remove_journals(folder, own_journals, file_name)


def write_from_journals(
    target: Path, class_names: Sequence[str], own_journals: Sequence[Path], first_category_id: int
) -> bool:
    """Write all records to `target`, unless another run replaces it meanwhile.

    Returns:
        Whether the file is written.

    Raises:
        FileNotFoundError: If a journal or the folder goes away for another reason.
    """
    folder, before, index = target.parent, stamp(target), {}
    for path in dict.fromkeys([*find_journals(folder, target.name), *own_journals]):
        index |= {record["name"]: (path, start) for start, record in journal_records(path)}
    # Read last: a process that finishes now deletes its journal after it has written this file.
    index: Index = dict(file_records(folder, target.name)) | index
    try:
        with written_aside(target) as file:
            write_records(file, index, class_names, first_category_id)
            if stamp(target) != before:
                raise FileNotFoundError(target)
    except FileNotFoundError:
        if stamp(target) == before:
            raise
        return False
    return True


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes where a file is replaced; `None` where there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def write_records(file: IO[bytes], index: Index, class_names: Sequence[str], first_category_id: int) -> None:
    """Write COCO's JSON, a picture at a time, sorted by name."""

    def write(text: str) -> None:
        file.write(text.encode())

    def images() -> Iterator[dict[str, Any]]:
        for image_id, (name, record) in enumerate(read_records(index), 1):
            yield {"id": image_id, **record["image"], "name": name}

    def annotations() -> Iterator[dict[str, Any]]:
        annotation_id = 0
        for image_id, (_, record) in enumerate(read_records(index), 1):
            for annotation in record["annotations"]:
                annotation_id += 1
                yield {"id": annotation_id, "image_id": image_id, **annotation}

    write(f'{{"info": {json.dumps(describe_ids(first_category_id))}')
    for key, entries in (("images", images()), ("annotations", annotations())):
        write(f', "{key}": [')
        for position, entry in enumerate(entries):
            write((", " if position else "") + json.dumps(entry, ensure_ascii=False))
        write("]")
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, first_category_id)]
    write(f', "categories": {json.dumps(categories, ensure_ascii=False)}}}')


def read_records(index: Index) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and record of every picture, sorted by name."""
    files: dict[Path, IO[bytes]] = {}
    try:
        for name in sorted(index):
            place = index[name]
            if isinstance(place, dict):
                yield name, place
                continue
            path, start = place
            if path not in files:
                files[path] = path.open("rb")
            files[path].seek(start)
            yield name, json.loads(files[path].readline())
    finally:
        for file in files.values():
            file.close()


class CocoWriter(Writer):
    """A COCO file of run lengths, from a journal per process."""

    shared = (COCO_FILE,)
    packages = ("pycocotools.mask",)
    needs_best_scores = True

    def __init__(self, folder: Path, classes: Classes):
        super().__init__(folder, classes)
        self._journal: Journal | None = None

    @property
    def file_name(self) -> str:
        """Of the file of all pictures."""
        return self.shared[0]

    def known_names(self) -> set[str]:
        """Names of all pictures that the file and its journals hold."""
        return known_names(self.folder, self.file_name)

    def start(self) -> None:
        """Open this process's journal."""
        self._journal = Journal(self.folder, self.file_name)

    def annotations(self, result: Result) -> list[dict[str, Any]]:
        """COCO's annotations of one picture."""
        classes = self.classes
        return coco_annotations(result.label_map, result.best_scores, classes.num_classes, classes.first_category_id)

    def write(self, result: Result) -> None:
        """Add a picture's record to the journal."""
        height, width = result.label_map.shape
        image = {"file_name": result.picture.file_name, "width": width, "height": height}
        self._journal.add(result.picture.name.as_posix(), image, self.annotations(result))

    def close(self) -> list[Path]:
        """Close the journal and name it."""
        if self._journal is None:
            return []
        self._journal.close()
        return [self._journal.path]

    def finish(self, journals: Sequence[Path]) -> None:
        """Write the file from all journals."""
        own = [path for path in journals if path.name.startswith(f"{self.file_name}.")]
        write_coco(self.folder, self.classes.names, own, self.classes.first_category_id, self.file_name)

    def remove_shared(self) -> None:
        """Delete the file and its journals, of other class names."""
        remove_journals(self.folder, file_name=self.file_name)
        super().remove_shared()
