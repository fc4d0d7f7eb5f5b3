"""What other tools read in the files of `ldvc segment`; run by `benchmarks/readers.py` in an environment of the tools.

Imports nothing of LDVC: the folder, with `expected.npz` of the right ids, is all that the tools get to see.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np


Row = dict[str, str]


def judge(found: Any, expected: np.ndarray) -> str:
    """Compare what a tool gave with the right ids, in words."""
    found = np.asarray(found)
    if found.shape == expected.shape:
        return "ids" if np.array_equal(found, expected) else f"**other numbers** ({found.dtype})"
    if found.ndim != 3:
        return f"**another shape** {found.shape}"
    is_grey = all(np.array_equal(found[..., channel], found[..., 0]) for channel in range(found.shape[2]))
    if is_grey and np.array_equal(found[..., 0], expected):
        return f"ids, {found.shape[2]} times over"
    return "**other numbers**, 3 times over" if is_grey else "**colours**"


def attempt(package: str, call: str, file: str, read: Callable[[], str]) -> Row:
    """One row of the table; an error of the tool is what it says."""
    try:
        installed = version(package)
    except PackageNotFoundError:
        return {"tool": package, "version": "not installed", "call": call, "file": file, "reads": "not tried"}
    try:
        reads = read()
    except Exception as error:  # whatever the tool raises is what its users see
        reads = f"**{type(error).__name__}**: {' '.join(str(error).split())[:80]}"
    return {"tool": package, "version": installed, "call": call, "file": file, "reads": reads}


# ---- label maps in PNG


def picture_readers(path: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield package, call and reader of one label map."""

    def load(name: str) -> Any:
        return importlib.import_module(name)

    yield "pillow", "np.asarray(Image.open(f))", lambda: load("PIL.Image").open(path)
    yield "pillow", 'Image.open(f).convert("L")', lambda: load("PIL.Image").open(path).convert("L")
    yield "opencv-python-headless", "cv2.imread(f)", lambda: load("cv2").imread(path)
    yield "opencv-python-headless", "cv2.imread(f, 0)", lambda: load("cv2").imread(path, 0)
    yield "opencv-python-headless", "cv2.imread(f, cv2.IMREAD_UNCHANGED)", lambda: load("cv2").imread(path, -1)
    yield "scikit-image", "skimage.io.imread(f)", lambda: load("skimage.io").imread(path)
    yield "imageio", "imageio.v3.imread(f)", lambda: load("imageio.v3").imread(path)
    itk = "SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f))"
    yield "simpleitk", itk, lambda: load("SimpleITK").GetArrayFromImage(load("SimpleITK").ReadImage(path))
    yield "rasterio", "rasterio.open(f).read(1)", lambda: load("rasterio").open(path).read(1)


def png_rows(folder: Path, expected: dict[str, np.ndarray]) -> Iterator[Row]:
    """Palette, grey and 16-bit files in every reader."""
    places = {"png": "few/a.png", "grey": "few/a.grey.png", "16-bit grey (300 classes)": "many/a.png"}
    for file, place in places.items():
        ids = expected[place.partition("/")[0]]
        for package, call, read in picture_readers(str(folder / place)):
            yield attempt(package, call, file, lambda read=read, ids=ids: judge(read(), ids))


def optimiser_rows(folder: Path, expected: dict[str, np.ndarray]) -> Iterator[Row]:
    """What programs that make PNG files smaller do to the ids."""
    from PIL import Image

    def run(place: str, change: Callable[[Path, Path], None]) -> str:
        changed = folder / "changed.png"
        shutil.copy(folder / place, changed)
        change(folder / place, changed)
        with Image.open(changed) as image:
            verdict = judge(image, expected[place.partition("/")[0]])
            return f"{verdict.replace('**other numbers**', '**ids permuted**')}, mode {image.mode}"

    def oxipng(source: Path, target: Path) -> None:
        importlib.import_module("oxipng").optimize(str(source), str(target), level=4)

    def pngquant(source: Path, target: Path) -> None:
        program = Path(sys.executable).with_name("pngquant")
        subprocess.run([program, "--force", "--output", target, source], check=True, capture_output=True)

    def zopflipng(source: Path, target: Path) -> None:
        target.write_bytes(importlib.import_module("zopfli.png").optimize(source.read_bytes()))

    programs = {"pyoxipng": oxipng, "pngquant-cli": pngquant, "zopfli": zopflipng}
    for file, place in {"png": "few/a.png", "grey": "few/a.grey.png"}.items():
        for package, change in programs.items():
            yield attempt(package, "(default settings)", file, lambda place=place, change=change: run(place, change))


# ---- annotations


def paint(shape: tuple[int, int], names: list[str], masks: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    """Put masks by name together: (height, width) ids, -1 where there is none and -2 where there are two."""
    ids = np.full(shape, -1)
    for name, mask in masks:
        mask = np.asarray(mask).astype(bool)
        ids[mask] = np.where(ids[mask] == -1, names.index(name), -2)
    return ids


def coco_by(module: str) -> Callable[..., Iterator[tuple[str, np.ndarray]]]:
    """Readers that have pycocotools' interface."""

    def read(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
        kind = importlib.import_module(module)
        coco = (kind.COCO if hasattr(kind, "COCO") else kind.COCOeval_faster)(str(root / file))
        names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
        for annotation in coco.loadAnns(coco.getAnnIds()):
            yield names[annotation["category_id"]], coco.annToMask(annotation)

    return read


def by_supervision(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield masks of `DetectionDataset.from_coco`."""
    kind = importlib.import_module("supervision").DetectionDataset
    dataset = kind.from_coco(str(root.parent / "photos"), str(root / file), force_masks=True)
    for _, _, detections in dataset:
        for mask, class_id in zip(detections.mask, detections.class_id, strict=True):
            yield dataset.classes[class_id], mask


def by_datumaro(kind: str) -> Callable[..., Iterator[tuple[str, np.ndarray]]]:
    """Masks of Datumaro's importers."""

    def read(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
        datumaro = importlib.import_module("datumaro")
        place = root / f"datumaro-{kind}-{file}"
        (place / "annotations").mkdir(parents=True, exist_ok=True)
        (place / "images").mkdir(exist_ok=True)
        shutil.copy(root.parent / "photos" / "a.jpg", place / "images" / "a.jpg")
        target = place / "annotations" / "instances_images.json" if kind == "coco_instances" else place / file
        shutil.copy(root / file, target)
        dataset = datumaro.Dataset.import_from(str(place if kind != "cvat" else target), kind)
        labels = dataset.categories()[datumaro.AnnotationType.label]
        for item in dataset:
            for found in item.annotations:
                if found.type == datumaro.AnnotationType.mask:
                    yield labels[found.label].name, found.image
                elif found.type == datumaro.AnnotationType.polygon:
                    height, width = item.media_as(datumaro.Image).size
                    tools = importlib.import_module("pycocotools.mask")
                    encoded = tools.frPyObjects([found.points], height, width)
                    yield labels[found.label].name, tools.decode(encoded)[..., 0]

    return read


def by_fiftyone(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield masks of FiftyOne's COCO importer, without its data base."""
    coco = importlib.import_module("fiftyone.utils.coco")
    importer = coco.COCODetectionDatasetImporter(
        data_path=str(root.parent / "photos"), labels_path=str(root / file), label_types="segmentations"
    )
    importer.setup()
    for _, metadata, label in importer:
        for detection in label.detections:
            x, y = detection.bounding_box[:2]
            left, top = round(x * metadata.width), round(y * metadata.height)
            mask = np.zeros((metadata.height, metadata.width), dtype=bool)
            part = np.asarray(detection.mask).astype(bool)
            mask[top : top + part.shape[0], left : left + part.shape[1]] = part
            yield detection.label, mask


def by_label_studio(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield masks as Label Studio's converter decodes them."""
    brush = importlib.import_module("label_studio_sdk.converter.brush")
    for task in json.loads((root / file).read_text()):
        for region in task["predictions"][0]["result"]:
            layers = brush.decode_rle(region["value"]["rle"])
            shape = (region["original_height"], region["original_width"], 4)
            yield region["value"]["brushlabels"][0], layers.reshape(shape)[..., 3] == 255


def by_label_studio_export(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the PNG files that Label Studio exports, once somebody has accepted all pre-annotations."""
    converter, image = importlib.import_module("label_studio_sdk.converter"), importlib.import_module("PIL.Image")
    tasks = json.loads((root / file).read_text())
    for number, task in enumerate(tasks):
        accepted = {"id": 1, "completed_by": 1, "result": task.pop("predictions")[0]["result"]}
        task |= {"id": number, "annotations": [accepted]}
    (root / "accepted.json").write_text(json.dumps(tasks))
    (root / "exported").mkdir(exist_ok=True)  # which the exporter does not make itself
    tool = converter.Converter((root / "label-studio.xml").read_text(), str(root), download_resources=False)
    tool.convert(str(root / "accepted.json"), str(root / "exported"), "BRUSH_TO_PNG", is_dir=False)
    for path in sorted((root / "exported").glob("*.png")):
        yield path.stem.partition("-class-")[2].rpartition("-")[0], np.asarray(image.open(path)) == 255


def by_cvat_sdk(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield masks as CVAT's own package decodes run lengths, corners as its importer puts them."""
    masks = importlib.import_module("cvat_sdk.masks")
    for picture in ElementTree.parse(root / file).getroot().iter("image"):
        size = {"image_width": int(picture.get("width")), "image_height": int(picture.get("height"))}
        for mask in picture.iter("mask"):
            left, top, width, height = (int(mask.get(key)) for key in ("left", "top", "width", "height"))
            counts = [int(count) for count in mask.get("rle").split(",")]
            points = [*counts, left, top, left + width - 1, top + height - 1]
            yield mask.get("label"), masks.decode_mask(points, **size)


def by_labelme(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield masks as LabelMe loads and draws them."""
    module, utils = importlib.import_module("labelme._label_file"), importlib.import_module("labelme.utils")
    content = json.loads((root / file).read_text())
    shape = (content["imageHeight"], content["imageWidth"])
    for part in content["shapes"]:
        loaded = module._load_shape_json_obj(part)
        yield part["label"], utils.shapes_to_label(shape, [loaded], {part["label"]: 1})[0] == 1


def by_rasterio(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield masks of a GeoTIFF by the names in its tags."""
    with importlib.import_module("rasterio").open(root / file) as dataset:
        ids, names = dataset.read(1), json.loads(dataset.tags()["LDVC_CLASSES"])
    for class_id in np.unique(ids).tolist():
        yield names[class_id], ids == class_id


def by_rasterize(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield masks of a GeoJSON."""
    features = importlib.import_module("rasterio.features")
    with importlib.import_module("PIL.Image").open(root / "a.grey.png") as image:
        shape = (image.height, image.width)
    for feature in json.loads((root / file).read_text())["features"]:
        yield feature["properties"]["class"], features.rasterize([feature["geometry"]], shape)


def by_datasets(root: Path, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield masks of a folder that `datasets` opens."""
    load = importlib.import_module("datasets").load_dataset
    names = json.loads((root / file / "classes.json").read_text())["class_names"]
    for row in load(str(root / file), split="train", cache_dir=str(root / "cache")):
        ids = np.asarray(row["label"])
        for class_id in np.unique(ids).tolist():
            yield names[class_id], ids == class_id


BOTH = ("coco.json", "coco.polygons.json")
ANNOTATIONS = [
    ("pycocotools", "COCO(f).annToMask(...)", BOTH, coco_by("pycocotools.coco")),
    ("faster-coco-eval", "COCO(f).annToMask(...)", BOTH, coco_by("faster_coco_eval")),
    ("supervision", "DetectionDataset.from_coco(photos, f)", BOTH, by_supervision),
    ("fiftyone", "COCODetectionDatasetImporter(photos, f)", BOTH, by_fiftyone),
    ("datumaro", 'Dataset.import_from(d, "coco_instances")', BOTH, by_datumaro("coco_instances")),
    ("datumaro", 'Dataset.import_from(f, "cvat")', ("cvat.xml",), by_datumaro("cvat")),
    ("cvat-sdk", "masks.decode_mask(...)", ("cvat.xml",), by_cvat_sdk),
    ("label-studio-sdk", "converter.brush.decode_rle(...)", ("label-studio.json",), by_label_studio),
    (
        "label-studio-sdk",
        'Converter(...).convert(..., "BRUSH_TO_PNG")',
        ("label-studio.json",),
        by_label_studio_export,
    ),
    ("labelme", "utils.shapes_to_label(...)", ("labelme/a.json",), by_labelme),
    ("rasterio", "rasterio.open(f).read(1)", ("a.tif",), by_rasterio),
    ("rasterio", "features.rasterize(...)", ("a.geojson",), by_rasterize),
    ("datasets", "load_dataset(d)", ("hf",), by_datasets),
]


def annotation_rows(folder: Path, expected: dict[str, np.ndarray]) -> Iterator[Row]:
    """Every kind of annotation in the tools that read it, with 5 and with 300 classes."""

    def compare(read: Callable[..., Iterator[tuple[str, np.ndarray]]], file: str, key: str) -> str:
        names = list(json.loads((folder / key / "names.json").read_text())["names"].values())
        found = paint(expected[key].shape, names, read(folder / key, file))
        wrong = int((found != expected[key]).sum())
        return "pixels and names" if not wrong else f"**{wrong} of {found.size} pixels differ**"

    for package, call, files, read in ANNOTATIONS:
        for file in files:
            for key in ("few", "many"):
                title = f"{file}, {5 if key == 'few' else 300} classes"
                yield attempt(package, call, title, partial(compare, read, file, key))


# ---- recipes of the document


def recipes() -> dict[str, str]:
    """Package -> code of docs/tools.md."""
    text = (Path(__file__).resolve().parent.parent / "docs/tools.md").read_text()
    return dict(re.findall(r"<!-- recipe: (\S+) -->\n```python\n(.*?)```", text, re.DOTALL))


def run_recipe(code: str, folder: Path, expected: np.ndarray) -> str:
    """Run a recipe where `photos` and `masks` are, and compare what it found."""
    scope: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(code, scope)
    finally:
        os.chdir(before)
    names = list(json.loads((folder / "masks" / "names.json").read_text())["names"].values())
    wrong = int((paint(expected.shape, names, scope["found"].items()) != expected).sum())
    return "pixels and names" if not wrong else f"**{wrong} of {expected.size} pixels differ**"


def recipe_rows(folder: Path, expected: dict[str, np.ndarray]) -> Iterator[Row]:
    """Every recipe."""
    place = folder / "recipes"
    shutil.copytree(folder / "few", place / "masks")
    shutil.copytree(folder / "photos", place / "photos")
    for package, code in recipes().items():
        yield attempt(
            package, "the recipe below", "as its recipe says", partial(run_recipe, code, place, expected["few"])
        )


def tool_rows(folder: Path, expected: dict[str, np.ndarray]) -> Iterator[Row]:
    """Annotations, then the recipes."""
    yield from annotation_rows(folder, expected)
    yield from recipe_rows(folder, expected)


TABLES = {"png": png_rows, "optimisers": optimiser_rows, "annotations": tool_rows}


def main() -> None:
    """Print all rows as JSON, the last line of the output."""
    folder = Path(sys.argv[1])
    expected = dict(np.load(folder / "expected.npz"))
    sys.stdout.write("\n" + json.dumps({name: list(rows(folder, expected)) for name, rows in TABLES.items()}) + "\n")


if __name__ == "__main__":
    main()
