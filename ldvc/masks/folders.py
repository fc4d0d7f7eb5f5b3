"""Results as a dataset: pictures and label maps for `datasets`, for training and for `ldvc check`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath

from PIL import Image

from ldvc.masks.parts import written_aside
from ldvc.masks.pixels import write_grey
from ldvc.masks.writer import Result, Writer, write_json


PLACE, IMAGES, MASKS = "hf", "images", "masks"
ORIENTATION = 274  # the EXIF tag; 1 is upright
CARD = """---
task_categories:
- image-segmentation
tags:
- semantic-segmentation
configs:
- config_name: default
  data_files:
  - split: train
    path:
    - metadata.jsonl
    - images/**
    - masks/**
---

# Pictures with label maps of a model

`image` and `label`, a grey PNG of ids. Label maps are a model's, not people's: {model}. Names of the ids:

| id | name |
|---|---|
{rows}
"""


class DatasetWriter(Writer):
    """A folder that `load_dataset` opens: images/, masks/ in grey, metadata.jsonl, and names in classes.json."""

    places = (f"{PLACE}/{MASKS}/{{}}.png",)
    shared = (f"{PLACE}/metadata.jsonl", f"{PLACE}/classes.json", f"{PLACE}/README.md")

    def image_path(self, name: PurePath, suffix: str) -> Path:
        """Where a picture is copied to."""
        return self.folder / PLACE / IMAGES / (name.as_posix() + suffix)

    def find_image(self, name: PurePath) -> Path | None:
        """The copy of a picture, whatever its suffix."""
        folder = self.image_path(name, "").parent
        found = (path for path in folder.iterdir() if path.stem == name.name) if folder.is_dir() else ()
        return next((path for path in found if not path.name.startswith(".")), None)

    def write(self, result: Result) -> None:
        """Write the picture, byte for byte where its file holds it upright, then the label map."""
        name, source = result.picture.name, result.picture.path
        old = self.find_image(name)
        if old is not None:
            old.unlink()
        is_kept = is_upright_photo(source)
        with written_aside(self.image_path(name, source.suffix if is_kept else ".png")) as file:
            if is_kept:
                with source.open("rb") as content:
                    shutil.copyfileobj(content, file)
            else:
                result.image.save(file, format="PNG")
        (path,) = self.paths(name)
        with written_aside(path) as file:
            write_grey(file, result.label_map, len(self.classes.names))

    def is_done(self, name: PurePath, known: set[str] | None) -> bool:
        """Whether the label map is whole and the picture there."""
        return super().is_done(name, known) and self.find_image(name) is not None

    def remove(self, name: PurePath) -> None:
        """Delete both files."""
        super().remove(name)
        image = self.find_image(name)
        if image is not None:
            image.unlink()

    def finish(self, journals: Sequence[Path]) -> None:
        """Write the list of all pairs, the names and the card."""
        root = self.folder / PLACE
        pairs = []
        for path in sorted((root / MASKS).rglob("*.png")):
            name = path.relative_to(root / MASKS).with_suffix("")
            image = None if path.name.startswith(".") else self.find_image(name)
            if image is not None:
                places = {"image_file_name": image, "label_file_name": path}
                pairs.append({key: place.relative_to(root).as_posix() for key, place in places.items()})
        names, card = self.classes.names, self.classes.settings.get("model", "LDVC")
        rows = "\n".join(f"| {class_id} | {name.replace('|', chr(92) + '|')} |" for class_id, name in enumerate(names))
        with written_aside(root / "metadata.jsonl") as file:
            for pair in pairs:
                file.write((json.dumps(pair, ensure_ascii=False) + "\n").encode())
        with written_aside(root / "classes.json") as file:
            write_json(file, {"class_names": names}, indent=1)
        with written_aside(root / "README.md") as file:
            file.write(CARD.format(model=card, rows=rows).encode())


def is_upright_photo(path: Path) -> bool:
    """Whether a file is a JPEG or PNG in RGB that every reader shows as it lies there."""
    try:
        with Image.open(path) as image:
            is_turned = image.getexif().get(ORIENTATION, 1) != 1
            return image.format in ("JPEG", "PNG") and image.mode == "RGB" and not is_turned
    except OSError:
        return False
