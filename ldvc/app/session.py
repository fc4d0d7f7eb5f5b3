"""One picture, encoded once and asked many times: what the web page does, without the page.

A visitor's state is a [`Visit`]: small, never shared and never changed; every question makes a new one.
"""

import json
import re
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ldvc.app.explain import PixelExplanation, explain_pixel
from ldvc.app.labels import as_classes
from ldvc.data.vocabularies import find_list
from ldvc.loading import EMBEDDED_CHECKPOINT, load, one_line, unseen_names
from ldvc.masks.drawing import draw_overlay, save_label_map
from ldvc.masks.formats import describe_names
from ldvc.model.image_processing_ldvc import to_rgb
from ldvc.model.inference_ldvc import encode_classes
from ldvc.model.modeling_ldvc import LDVCSemanticSegmenterOutput
from ldvc.model.processing_ldvc import Classes
from ldvc.model.segmenter_ldvc import Rivals, ask, own_names, read_rivals, seen_class_mask
from ldvc.places import shipped


__all__ = ["Answer", "Scene", "Segmenter", "Visit", "make_preview", "read_picture", "split_labels"]

# The first held-out page of the embedded world: draw_scene("test", 0, 0, image_size=512).
EXAMPLE_PICTURE = shipped("assets/demo_page.jpg")
EXAMPLE_LABELS = "balloon, cat, grass, sky"
EXAMPLE_POINT = (400, 340)  # (row, column), on the cat
OTHER = "other"
SEPARATORS = r"[,;\r\n\uff0c\uff1b\u3001]"  # the last three are Chinese and Japanese commas
MAX_LABELS = 2000  # of a page, whose text box holds no more; the command line takes any number
MAX_LISTED = 100  # with more, only those that the picture shows are listed
MAX_PIXELS = 50_000_000  # of a picture, width times height: a large camera, 150 MB decoded
PREVIEW_SIDES = (640, 1024)  # pixels; the longer side of what is shown, larger pictures shrink to the second
NO_ANSWER = "there is no result yet: give a picture and class names first."
IGNORED = 255  # id of hidden classes in the label map that is drawn


@dataclass(frozen=True)
class Scene:
    """A picture, encoded.

    Attributes:
        preview: RGB, as the page shows it.
        picture_size: (height, width) of the picture itself in pixels.
        features: What the decoder needs, of the model's own kind.
    """

    preview: Image.Image
    picture_size: tuple[int, int]
    features: Any


@dataclass(frozen=True)
class Answer:
    """A picture, segmented.

    Attributes:
        scene: The picture.
        classes: Name -> words, in the order of the class axis.
        rivals: What competes with them and is not shown.
        class_embeds: (num_channels, projection_dim), of classes and rivals.
        outputs: The model's answer on the token grid.
        threshold: Probability below which a pixel is "other"; 0 for none.
        point: (row, column) of the pixel of the preview that is explained.
        hidden: Classes that are switched off.
    """

    scene: Scene
    classes: Classes
    rivals: Rivals
    class_embeds: torch.Tensor
    outputs: LDVCSemanticSegmenterOutput
    threshold: float
    point: tuple[int, int]
    hidden: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Names of all ids of the label map."""
        return [*self.classes, OTHER] if self.threshold or self.rivals.words else list(self.classes)


@dataclass(frozen=True)
class Visit:
    """What one browser tab works on; never shared and never changed, each event makes a new one.

    Attributes:
        scene: The picture in the box, if any.
        answer: The result on the page, if any; after a mistake that of the picture before.
    """

    scene: Scene | None = None
    answer: Answer | None = None


class Segmenter:
    """A model that is asked about pictures; knows nothing of visitors, so that all of them can share it.

    Args:
        model_folder: What `ldvc.load` takes: a folder or Hub id.
        settings: Of `ldvc.load`.

    Raises:
        ValueError: If it cannot segment by names.
    """

    def __init__(self, model_folder: str | Path = EMBEDDED_CHECKPOINT, **settings: Any):
        self.model, self.processor = load(model_folder, **settings)
        self.name = Path(model_folder).name
        self.vocabulary = own_names(self.model)

    @property
    def has_text_tower(self) -> bool:
        """Whether it can encode names that it does not know."""
        return getattr(self.model, "baked_vocabulary", None) is None

    @property
    def knows_seen_classes(self) -> bool:
        """Whether it knows which classes trained with masks."""
        return bool(getattr(self.model.config, "seen_classes", None))

    def start(self) -> tuple[Visit, str]:
        """Return the first visit and its label text: an example where the checkpoint knows the embedded world."""
        example_names = list(split_labels(EXAMPLE_LABELS))
        if set(example_names) <= set(self.vocabulary) and EXAMPLE_PICTURE.is_file():
            scene = self.encode(EXAMPLE_PICTURE)
            answer = self.point_at(self.segment(Visit(scene), EXAMPLE_LABELS, 0.0), *EXAMPLE_POINT)
            return Visit(scene, answer), EXAMPLE_LABELS
        return Visit(), ", ".join(self.vocabulary[:MAX_LABELS])

    @torch.no_grad()
    def encode(self, path: str | Path) -> Scene:
        """Open a picture and run the vision tower on it.

        Raises:
            ValueError: See `read_picture`.
        """
        picture = read_picture(path)
        pixel_values = self.processor(images=picture, return_tensors="pt")["pixel_values"]
        features = self.model.get_image_features(pixel_values.to(self.model.device, self.model.dtype))
        return Scene(make_preview(picture), (picture.height, picture.width), features)

    @torch.no_grad()
    def segment(self, visit: Visit, label_text: str, threshold: float, negative_text: str | None = None) -> Answer:
        """Run the decoder on the visit's picture; text is encoded where it is new, the picture never again.

        Args:
            visit: Must have a picture.
            label_text: See `split_labels`.
            threshold: Probability, 0 to 1.
            negative_text: Names that compete and come back as "other", written as the labels; may be empty.

        Raises:
            ValueError: If there is no picture or the names are not good.
        """
        if visit.scene is None:
            raise ValueError("there is no picture yet: drop one into the box, or click the box to choose a file.")
        classes, before = self.read_classes(label_text), visit.answer
        has_negative = bool((negative_text or "").strip())
        rivals = read_rivals(classes, self.read_classes(negative_text) if has_negative else None)
        asked = classes | rivals.words
        if before is not None and (before.classes, before.rivals) == (classes, rivals):
            class_embeds = before.class_embeds
        elif not self.has_text_tower:
            class_embeds = self.model.baked_vocabulary()[[self.vocabulary.index(name) for name in asked]]
        else:
            _, class_embeds = encode_classes(self.model, self.processor, asked)
        seen = seen_class_mask(self.model, asked)
        logits, offsets = ask(self.model, class_embeds, seen, image_features=visit.scene.features)
        outputs = LDVCSemanticSegmenterOutput(logits=logits, class_score_offsets=offsets)
        preview = visit.scene.preview
        is_same_picture = before is not None and before.scene is visit.scene
        point = before.point if is_same_picture else (preview.height // 2, preview.width // 2)
        hidden = before.hidden if before is not None else frozenset()
        return Answer(visit.scene, classes, rivals, class_embeds, outputs, float(threshold), point, hidden)

    def read_classes(self, label_text: str) -> Classes:
        """Read the label box.

        Raises:
            ValueError: If names are missing, repeated, too many, or unknown to a checkpoint without a text tower.
        """
        classes = split_labels(label_text)
        if len(classes) > MAX_LABELS:
            raise ValueError(f"{len(classes)} class names; this page takes {MAX_LABELS}, `ldvc segment` any number.")
        if OTHER in classes:
            raise ValueError(f"{OTHER!r} is what pixels below the threshold are called; leave it out of the names.")
        unknown = [name for name in classes if name not in self.vocabulary]
        if unknown and not self.has_text_tower:
            raise ValueError(
                f"this checkpoint has a baked vocabulary without {unknown[0]!r}; choose among: "
                + ", ".join(self.vocabulary[:MAX_LABELS])
            )
        return classes

    def label_map(self, answer: Answer, size: tuple[int, int]) -> np.ndarray:
        """Return the (height, width) ids of `answer.names` at any size."""
        maps = self.processor.post_process_semantic_segmentation(
            answer.outputs,
            target_sizes=[size],
            threshold=answer.threshold or None,
            class_ids=answer.rivals.class_ids(len(answer.classes)),
        )
        return maps[0].cpu().numpy()

    def listed_names(self, answer: Answer, label_map: np.ndarray) -> list[str]:
        """Names that a page lists: all, or of very many those that the label map holds."""
        names = answer.names
        return names if len(names) <= MAX_LISTED else [names[index] for index in np.unique(label_map)]

    def unseen_names(self, answer: Answer) -> list[str]:
        """Return the classes none of whose words trained with masks; none where the checkpoint does not say."""
        return unseen_names(self.model, answer.classes)

    def draw(self, answer: Answer, label_map: np.ndarray, legend: bool = False) -> Image.Image:
        """Draw the overlay at preview size, hidden classes left plain."""
        hidden_ids = [index for index, name in enumerate(answer.names) if name in answer.hidden]
        shown = np.where(np.isin(label_map, hidden_ids), IGNORED, label_map)
        return draw_overlay(
            answer.scene.preview,
            shown,
            answer.names,
            unseen_names=self.unseen_names(answer),
            ignore_index=IGNORED,
            legend=legend,
        )

    def explain(self, answer: Answer) -> PixelExplanation:
        """Explain the chosen pixel of the preview."""
        return explain_pixel(
            self.model,
            self.processor,
            answer.scene.preview,
            answer.classes | answer.rivals.words,
            answer.point,
            class_embeds=answer.class_embeds,
            image_features=answer.scene.features,
        )

    def picture_point(self, answer: Answer) -> tuple[int, int]:
        """Return the (row, column) in the picture itself of the chosen pixel of the preview."""
        sides = zip(answer.point, answer.scene.preview.size[::-1], answer.scene.picture_size, strict=True)
        return tuple((2 * at + 1) * outer // (2 * inner) for at, inner, outer in sides)

    def point_at(self, answer: Answer | None, row: float | None, column: float | None) -> Answer:
        """Choose a pixel by its place in the picture itself.

        Raises:
            ValueError: If there is no answer or no such pixel.
        """
        if answer is None:
            raise ValueError(NO_ANSWER)
        height, width = answer.scene.picture_size
        if row is None or column is None or not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f"there is no pixel at row {row}, column {column}; rows go from 0 to {height - 1}, columns from 0 to "
                f"{width - 1}."
            )
        sides = zip((int(row), int(column)), answer.scene.picture_size, answer.scene.preview.size[::-1], strict=True)
        return replace(answer, point=tuple((2 * at + 1) * inner // (2 * outer) for at, outer, inner in sides))

    def write_masks(self, answer: Answer, path: Path) -> None:
        """Write a zip: the label map at the picture's own size, the names of its ids, and the overlay."""
        negative = {"negative_labels": answer.rivals.words} if answer.rivals.words else {}
        names = describe_names(answer.names, words=answer.classes, threshold=answer.threshold or None, **negative)
        preview = answer.scene.preview
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("masks.png", "w") as file:
                save_label_map(self.label_map(answer, answer.scene.picture_size), file, answer.names)
            archive.writestr("names.json", json.dumps(names, indent=2, ensure_ascii=False))
            with archive.open("overlay.png", "w") as file:
                label_map = self.label_map(answer, (preview.height, preview.width))
                self.draw(answer, label_map, legend=True).save(file, format="PNG")


def split_labels(text: str) -> Classes:
    """Read class names as people type them.

    Args:
        text: Names between commas, semicolons or line ends; "sofa|couch" is one class with two words. The name of a
            vocabulary, such as "coco_stuff", stands for its classes. Unlike on the command line, no text names a file:
            visitors have no business with the files of this machine.

    Raises:
        ValueError: If there is no name, or one is repeated.
    """
    if (listed := find_list(text.strip())) is not None:
        return as_classes([(name, [name]) for name in listed])
    parts = ([word.strip() for word in part.split("|") if word.strip()] for part in re.split(SEPARATORS, text))
    entries = [(words[0], words) for words in parts if words]
    if not entries:
        raise ValueError("no class name is given; write names between commas, such as: cat, sofa|couch, grass")
    return as_classes(entries)


def read_picture(path: str | Path) -> Image.Image:
    """Open an uploaded file as upright RGB.

    Raises:
        ValueError: If it is no picture, is damaged, or has more than `MAX_PIXELS` pixels; none are then decoded.
    """
    limit = f"this page takes pictures of up to {MAX_PIXELS // 10**6} million pixels; make it smaller."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which have a limit here, and of broken EXIF data
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"the picture has {image.width} x {image.height} pixels; {limit}")
                return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(f"the picture is far too large, perhaps a decompression bomb; {limit}") from error
    except UnidentifiedImageError as error:
        raise ValueError("the file is no picture that can be read; use PNG, JPEG or WebP.") from error
    except ValueError as error:  # ours, or of a damaged file, which names the path on this machine
        raise ValueError(str(error).replace(str(path), "the picture")) from error
    except Exception as error:  # decoders raise nearly anything at damaged files
        raise ValueError(f"the picture cannot be decoded ({one_line(error, 120)}); save it again.") from error


def make_preview(picture: Image.Image) -> Image.Image:
    """Scale a picture so that its longer side lies within `PREVIEW_SIDES`."""
    longest = max(picture.size)
    scale = max(PREVIEW_SIDES[0] / longest, 1.0) if longest < PREVIEW_SIDES[1] else PREVIEW_SIDES[1] / longest
    if scale == 1:
        return picture
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
