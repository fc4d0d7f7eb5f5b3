"""Exports of annotation tools become a plain folder of images/ and masks/ that training and `ldvc check` take.

    coco           instances: JSON with polygons or run lengths
    coco_panoptic  panoptic: JSON beside a folder of PNG files of the same name
    label_studio   JSON with brushes, polygons and rectangles
    cvat           "CVAT for images 1.1": XML with masks, polygons and boxes
    labelme        a folder of LabelMe's JSON files

One rule for all: where objects overlap, the smaller one is on top (in CVAT, z_order decides first); pixels that
nothing covers get the id 255, no label. A picture that is unfit is named, and the others go on.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ldvc.data.provenance import write_json
from ldvc.loading import one_line
from ldvc.masks.coco import read_json
from ldvc.masks.drawing import save_label_map
from ldvc.masks.files import open_picture
from ldvc.masks.parts import written_aside


__all__ = ["EXPORTS", "Drawn", "Export", "Part", "convert", "is_replaced"]

NO_LABEL = 255  # of pixels that nothing covers
MAX_CLASSES = 255


@dataclass(frozen=True)
class Part:
    """An object of a picture.

    Attributes:
        name: Of its class.
        mask: (height, width) bool.
        order: Higher ones are drawn later.
    """

    name: str
    mask: np.ndarray
    order: int = 0


@dataclass(frozen=True)
class Drawn:
    """A picture of an export.

    Attributes:
        file_name: As the export gives it.
        size: (height, width) in pixels.
        parts: Decoded when they are asked for.
        path: Of the picture, where the export's own place says it.
    """

    file_name: str
    size: tuple[int, int]
    parts: Callable[[], Iterable[Part]]
    path: Path | None = None


@dataclass(frozen=True)
class Export:
    """What a file or folder holds.

    Attributes:
        class_names: In the order of the ids to write; empty where only the pictures tell.
        pictures: All of them.
    """

    class_names: list[str]
    pictures: list[Drawn]


def paint(drawn: Drawn, class_names: Sequence[str]) -> np.ndarray:
    """Draw a picture's parts as (height, width) uint8 ids, smaller ones on top.

    Raises:
        ValueError: If a part has a name that is no class.
    """
    ids = np.full(drawn.size, NO_LABEL, dtype=np.uint8)
    for part in sorted(drawn.parts(), key=lambda part: (part.order, -int(part.mask.sum()))):
        if part.name not in class_names:
            raise ValueError(f"holds the label {part.name!r}, which is none of the classes.")
        ids[part.mask] = class_names.index(part.name)
    return ids


# ---- shapes


def polygon_mask(rings: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Fill COCO's polygons, x and y in turn; returns (height, width) bool.

    Rings of fewer than three points cover nothing; pycocotools takes four numbers for a box, and fails.
    """
    from pycocotools import mask as coco_mask

    rings = [ring for ring in rings if len(ring) >= 6]
    if not rings:
        return np.zeros(size, dtype=bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(rings), *size))).astype(bool)


def box_mask(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> np.ndarray:
    """Fill a rectangle; returns (height, width) bool."""
    return polygon_mask([[left, top, right, top, right, bottom, left, bottom]], size)


def coco_mask_of(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode COCO's polygons or run lengths, compressed or not; returns (height, width) bool.

    Raises:
        ValueError: If there is none, as in exports of boxes or key points.
    """
    from pycocotools import mask as coco_mask

    if not segmentation:
        raise ValueError("holds an object without a segmentation, a box or key points; export masks or polygons.")
    if isinstance(segmentation, list):
        return polygon_mask(segmentation, size)
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(segmentation).astype(bool)


def decode_brush(data: Sequence[int]) -> np.ndarray:
    """Decode Label Studio's brush: (values,) uint8, four per pixel; see `ldvc.masks.collected.encode_brush`."""
    bits = "".join(f"{byte:08b}" for byte in data)
    count, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
    sizes = [int(bits[start : start + 4], 2) + 1 for start in range(37, 53, 4)]
    place, values = 53, []
    done = 0
    while done < count:
        is_run, width = bits[place] == "1", sizes[int(bits[place + 1 : place + 3], 2)]
        length = int(bits[place + 3 : place + 3 + width], 2) + 1
        place += 3 + width
        num_words = 1 if is_run else length
        words = [int(bits[place + word * index : place + word * (index + 1)], 2) for index in range(num_words)]
        values.append(np.repeat(np.array(words, dtype=np.uint8), length if is_run else 1))
        place, done = place + word * num_words, done + length
    return np.concatenate(values)


# ---- COCO


def coco_names(categories: Sequence[dict[str, Any]], path: Path) -> dict[int, str]:
    """Read names by category id.

    Raises:
        ValueError: If a name or an id occurs twice.
    """
    names: dict[int, str] = {}
    for category_id, name in ((category["id"], str(category["name"])) for category in categories):
        if category_id in names:
            raise ValueError(f"{path}: {names[category_id]!r} and {name!r} are both category {category_id}; renumber.")
        if name in names.values():
            other = next(known for known in names if names[known] == name)
            raise ValueError(f"{path}: categories {other} and {category_id} are both called {name!r}; rename one.")
        names[category_id] = name
    return names


def name_of(names: dict[int, str], category_id: int) -> str:
    """Name of an object's category.

    Raises:
        ValueError: If there is none.
    """
    if category_id not in names:
        raise ValueError(f"holds an object of category {category_id}, which the export does not name.")
    return names[category_id]


def read_coco(source: Path) -> Export:
    """Read COCO instances."""
    content = json.loads(source.read_text(encoding="utf-8"))
    names = coco_names(content["categories"], source)
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)

    def draw(image: dict[str, Any]) -> Drawn:
        size = (image["height"], image["width"])

        def parts() -> Iterator[Part]:
            for annotation in objects.get(image["id"], ()):
                name = name_of(names, annotation["category_id"])
                yield Part(name, coco_mask_of(annotation.get("segmentation"), size))

        return Drawn(image["file_name"], size, parts)

    return Export(list(names.values()), [draw(image) for image in content["images"]])


def read_panoptic(source: Path) -> Export:
    """Read COCO panoptic: segment ids in the colours of PNG files, in a folder called like the JSON file."""
    content = json.loads(source.read_text(encoding="utf-8"))
    names, folder = coco_names(content["categories"], source), source.with_suffix("")
    images = {image["id"]: image for image in content["images"]}

    def draw(annotation: dict[str, Any]) -> Drawn:
        image = images[annotation["image_id"]]

        def parts() -> Iterator[Part]:
            with Image.open(folder / annotation["file_name"]) as file:
                colors = np.asarray(file.convert("RGB")).astype(np.int64)
            ids = colors @ np.array([1, 256, 256**2])
            for segment in annotation["segments_info"]:
                yield Part(name_of(names, segment["category_id"]), ids == segment["id"])

        return Drawn(image["file_name"], (image["height"], image["width"]), parts)

    return Export(list(names.values()), [draw(annotation) for annotation in content["annotations"]])


# ---- Label Studio


def label_studio_part(region: dict[str, Any]) -> Part:
    """Draw one region.

    Raises:
        ValueError: If it is of another type.
    """
    kind, value = region["type"], region["value"]
    size = (region["original_height"], region["original_width"])
    to_pixels = np.array([size[1], size[0]]) / 100  # the tool gives percent
    if kind == "brushlabels":
        mask = decode_brush(value["rle"]).reshape(*size, 4)[..., 3] > 127
    elif kind == "polygonlabels":
        mask = polygon_mask([(np.array(value["points"]) * to_pixels).ravel().tolist()], size)
    elif kind == "rectanglelabels" and not value.get("rotation"):
        ends = np.array([value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]])
        mask = box_mask(*(ends * np.tile(to_pixels, 2)).tolist(), size)
    else:
        raise ValueError(f"holds a region of type {kind!r}; brushes, polygons and upright rectangles are read.")
    if not value.get(kind):
        raise ValueError(f"holds a region of type {kind!r} without a label; give it one, or delete it.")
    return Part(str(value[kind][0]), mask)


def read_label_studio(source: Path) -> Export:
    """Read Label Studio's JSON: annotations, or predictions where a task has none."""
    tasks = json.loads(source.read_text(encoding="utf-8"))

    def regions(task: dict[str, Any]) -> list[dict[str, Any]]:
        answers = [answer for answer in task.get("annotations", []) if not answer.get("was_cancelled")]
        found = (answers or task.get("predictions") or [{"result": []}])[0]["result"]
        return [region for region in found if "value" in region]

    def draw(task: dict[str, Any]) -> Drawn:
        found = regions(task)
        place = str(task["data"].get("image") or next(iter(task["data"].values())))
        size = (found[0]["original_height"], found[0]["original_width"]) if found else (0, 0)
        return Drawn(place.rpartition("?d=")[2], size, lambda: map(label_studio_part, found))

    names = {
        str(label)
        for task in tasks
        for region in regions(task)
        for label in region["value"].get(region["type"], [])[:1]
    }
    return Export(sorted(names), [draw(task) for task in tasks if regions(task)])


# ---- CVAT


def cvat_part(element: ElementTree.Element, size: tuple[int, int]) -> Part:
    """Draw one shape.

    Raises:
        ValueError: If it is of another type.
    """
    if element.tag == "mask":
        left, top, width, height = (int(element.get(key)) for key in ("left", "top", "width", "height"))
        counts = [int(count) for count in element.get("rle").split(",")]
        mask = np.zeros(size, dtype=bool)
        inside = np.repeat(np.arange(len(counts)) % 2, counts).reshape(height, width)
        mask[top : top + height, left : left + width] = inside
    elif element.tag == "polygon":
        corners = [float(number) for point in element.get("points").split(";") for number in point.split(",")]
        mask = polygon_mask([corners], size)
    elif element.tag == "box" and not float(element.get("rotation", 0)):
        mask = box_mask(*(float(element.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")), size)
    else:
        raise ValueError(f"holds a shape of type {element.tag!r}; masks, polygons and upright boxes are read.")
    return Part(element.get("label"), mask, int(element.get("z_order", 0)))


def read_cvat(source: Path) -> Export:
    """Read CVAT for images 1.1.

    Raises:
        ValueError: If a list of labels has a name twice.
    """
    root, names = ElementTree.parse(source).getroot(), []
    for labels in root.iterfind("meta//labels"):  # of the project, the task or the job, the same ones
        own = [name.text for name in labels.iterfind("label/name")]
        twice = [name for name in own if own.count(name) > 1]
        if twice:
            raise ValueError(f"{source}: two labels are called {twice[0]!r}; rename one.")
        names += own

    def draw(image: ElementTree.Element) -> Drawn:
        size = (int(image.get("height")), int(image.get("width")))
        shapes = [shape for shape in image if shape.tag != "tag"]
        return Drawn(image.get("name"), size, lambda: [cvat_part(shape, size) for shape in shapes])

    return Export(list(dict.fromkeys(names)), [draw(image) for image in root.iter("image")])


# ---- LabelMe


def labelme_part(shape: dict[str, Any], size: tuple[int, int]) -> Part:
    """Draw one shape.

    Raises:
        ValueError: If it is of another type.
    """
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], dtype=float)
    if kind == "mask":
        (left, top), (right, bottom) = points.astype(int).tolist()
        mask = np.zeros(size, dtype=bool)
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as part:
            mask[top : bottom + 1, left : right + 1] = np.asarray(part).astype(bool)
    elif kind == "polygon":
        mask = polygon_mask([points.ravel().tolist()], size)
    elif kind == "rectangle":
        mask = box_mask(*points.min(axis=0).tolist(), *points.max(axis=0).tolist(), size)
    else:
        raise ValueError(f"holds a shape of type {kind!r}; masks, polygons and rectangles are read.")
    return Part(str(shape["label"]), mask)


def read_labelme(source: Path) -> Export:
    """Read a folder of LabelMe's files, those in folders below it too."""

    def draw(path: Path, content: dict[str, Any]) -> Drawn:
        size = (content["imageHeight"], content["imageWidth"])
        place = content["imagePath"].replace("\\", "/")
        parts = [partial(labelme_part, shape, size) for shape in content["shapes"]]
        return Drawn(place, size, lambda: [part() for part in parts], Path(path.parent, place))

    contents = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(source.rglob("*.json"))}
    contents = {path: content for path, content in contents.items() if "shapes" in content}
    names = {str(shape["label"]) for content in contents.values() for shape in content["shapes"]}
    return Export(sorted(names), [draw(path, content) for path, content in contents.items()])


# Subcommands of ldvc prepare; a further tool is one more function.
EXPORTS: dict[str, Callable[[Path], Export]] = {
    "coco": read_coco,
    "coco_panoptic": read_panoptic,
    "label_studio": read_label_studio,
    "cvat": read_cvat,
    "labelme": read_labelme,
}


# ---- the folder


def read_export(kind: str, source: Path) -> Export:
    """Read an export.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is none of this kind, or its classes cannot be trained.
    """
    if source.is_dir() != (kind == "labelme"):
        wanted = "a folder of JSON files" if kind == "labelme" else "a file"
        raise FileNotFoundError(f"{source} is no {wanted.partition(' ')[2]}; an export of {kind} is {wanted}.")
    try:
        export = EXPORTS[kind](source)
    except (KeyError, TypeError, IndexError, AttributeError, ElementTree.ParseError, json.JSONDecodeError) as error:
        raise ValueError(f"{source} is no export of {kind} ({type(error).__name__}: {one_line(error)}).") from error
    if not export.pictures or not export.class_names:
        raise ValueError(f"{source} holds no labelled picture; export annotations of {kind} again.")
    if len(export.class_names) > MAX_CLASSES:
        raise ValueError(f"{source} has {len(export.class_names)} classes; label maps of training hold {MAX_CLASSES}.")
    return export


def find_image(drawn: Drawn, folder: Path) -> Path:
    """Find a picture by its path below the folder, or by its name alone where no folder of that path is there.

    Raises:
        FileNotFoundError: If it is not there.
    """
    place = PurePosixPath(drawn.file_name.replace("\\", "/"))
    inside = PurePosixPath(*[part for part in place.parts if part not in ("/", "..")])
    uploaded = place.name.partition("-")[2]  # Label Studio puts eight letters before the name
    candidates = [drawn.path, folder / inside, folder / place.name, folder / uploaded]
    found = next((path for path in candidates if path is not None and path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"is not in {folder}; name the folder of the pictures with --images.")
    return found


def write_sample(drawn: Drawn, export: Export, images: Path, output: Path, number: int) -> None:
    """Copy a picture and write its label map, both by the picture's stem, numbered so that none is written twice.

    Raises:
        ValueError: If the picture has another size than the export says.
    """
    source = find_image(drawn, images)
    upright = open_picture(source)
    size = (upright.height, upright.width)
    if size != drawn.size:
        raise ValueError(f"is {size[0]} x {size[1]} pixels, and the export says {drawn.size[0]} x {drawn.size[1]}.")
    ids, stem = paint(drawn, export.class_names), f"{number:06d}-{source.stem}"
    with written_aside(output / "masks" / f"{stem}.png") as file:
        save_label_map(ids, file, export.class_names)
    with written_aside(output / "images" / f"{stem}{source.suffix}") as file, source.open("rb") as content:
        shutil.copyfileobj(content, file)


def is_replaced(arguments: argparse.Namespace) -> bool:
    """Whether the output is there and may be replaced.

    Raises:
        FileExistsError: If it is there and may not.
        ValueError: If the upload is asked for, which is for official archives.
    """
    if arguments.push_to_hub:
        raise ValueError("--push_to_hub goes with official archives; upload this folder with `hf upload`.")
    output = arguments.output.expanduser()
    is_there = output.exists() and any(output.iterdir())
    if is_there and not (arguments.overwrite and "dataset" in read_json(output / "classes.json")):
        raise FileExistsError(
            f"The output {output} already exists: choose another folder, or pass --overwrite if this program wrote it."
        )
    return is_there


def convert(arguments: argparse.Namespace) -> int:
    """Turn an export into a folder; returns 0, or 1 if some pictures could not be used.

    Raises:
        ValueError: If none can be used.
    """
    output, source = arguments.output.expanduser(), arguments.source.expanduser()
    is_there = is_replaced(arguments)
    export = read_export(arguments.dataset, source)
    if is_there:
        shutil.rmtree(output)
    folder = (arguments.images or (source if source.is_dir() else source.parent)).expanduser()
    failures = []
    for number, drawn in enumerate(export.pictures):
        try:
            write_sample(drawn, export, folder, output, number)
        except (ValueError, OSError) as error:
            failures.append(f"{drawn.file_name}: {one_line(error)}")
        except Exception as error:  # of whatever a damaged record holds; the others are still to be done
            failures.append(f"{drawn.file_name}: cannot be read ({type(error).__name__}: {one_line(error)}).")
    num_written = len(export.pictures) - len(failures)
    for line in failures:
        sys.stderr.write(f"  {line}\n")
    if not num_written:
        raise ValueError(f"none of {len(failures)} pictures could be used.")
    write_json({"dataset": arguments.dataset, "class_names": export.class_names}, output / "classes.json")
    text = f"{num_written} of {len(export.pictures)} pictures written to {output}; ldvc check {output} looks at them."
    sys.stdout.write(f"{text}\n")
    return 1 if failures else 0
