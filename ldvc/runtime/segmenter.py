"""A segmenter without PyTorch: class names and a picture in, label map out, by an exported folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldvc.model.options_ldvc import (
    Classes,
    ClassNames,
    InferenceSettings,
    Rivals,
    name_key,
    read_classes,
    read_rivals,
    threshold_per_class,
)
from ldvc.model.pixels_ldvc import ValueRange
from ldvc.places import cache_folder
from ldvc.runtime.cache import exported_folder
from ldvc.runtime.names import NameEncoder, read_embeds, read_vocabulary
from ldvc.runtime.pictures import PictureReader, PreparedPicture
from ldvc.runtime.programs import Precision, Program, Runtime, open_program, read_export
from ldvc.runtime.scores import PixelClasses, Segmentation
from ldvc.runtime.windows import WindowScores, resized_blocks


__all__ = ["RuntimeSegmenter"]


class RuntimeSegmenter:
    """Segments pictures by names with what `ldvc export` wrote, in ONNX Runtime or OpenVINO.

    Example:
    ```python
    >>> segmenter = RuntimeSegmenter("exported")  # or RuntimeSegmenter.from_checkpoint("openai/clip-vit-base-patch16")
    >>> found = segmenter.segment("street.jpg", ["car", "road", "sky"])
    >>> found.label_map  # (height, width) int64, positions in found.class_names
    ```

    Args:
        folder: What `ldvc export` wrote, with format `onnx`.
        runtime: `"onnx"` or `"openvino"`.
        precision: `"float32"`, or in OpenVINO `"bf16"`.
        prompt_templates: In place of the exported ones.
        keeps_names: Keep the embeddings of names in the cache folder, so that a list is encoded once.

    Attributes:
        export: What the folder says of itself.

    Raises:
        FileNotFoundError: If the folder is no export.
        ValueError: If it is of another version, or damaged.
        ImportError: If the runtime is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        runtime: str = "onnx",
        precision: str = "float32",
        *,
        prompt_templates: str | Sequence[str] | None = None,
        keeps_names: bool = True,
    ):
        self.folder, self.export = Path(folder), read_export(folder)
        self.runtime, self.precision = Runtime(runtime), Precision(precision)
        fused = self.export.onnxruntime_program if self.runtime is Runtime.ONNX else None
        self._program = self._open(fused or self.export.picture_program)
        cache = cache_folder() / "names" if keeps_names else None
        self.names = NameEncoder(self.folder, self.export, self._open_text, cache, prompt_templates)
        self.reader = PictureReader(self.export.image)
        self._own_embeds: np.ndarray | None = None

    @classmethod
    def from_checkpoint(
        cls,
        model: str | Path,
        runtime: str = "onnx",
        precision: str = "float32",
        *,
        load_settings: Mapping[str, Any] | None = None,
        say: Callable[[str], Any] | None = None,
        **options: Any,
    ) -> RuntimeSegmenter:
        """Open the exported program of a checkpoint, made on first use and kept in the cache folder (LDVC_CACHE).

        Args:
            model: Folder or Hub id that `ldvc.load` takes.
            runtime: See the class.
            precision: See the class.
            load_settings: See `ldvc.load`.
            say: Told in one line that an export begins.
            options: See the class.

        Raises:
            ValueError: If the checkpoint cannot be exported, or the cache is damaged.
            ImportError: If the runtime or, for the first use, what exporting needs is not installed.
        """
        folder = exported_folder(model, load_settings, say)
        try:
            return cls(folder, runtime, precision, **options)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{error} It is of the cache: delete {str(folder)!r}, and it is made again.") from error

    def _open(self, name: str) -> Program:
        """Open one of the folder's programs."""
        return open_program(self.folder / name, self.runtime, self.precision)

    def _open_text(self) -> Program:
        """The text program, in float32 whatever the pictures' precision: names are encoded once."""
        return open_program(self.folder / str(self.export.text_program), self.runtime, Precision.FLOAT32)

    # ---- classes

    def own_names(self) -> list[str]:
        """Class names of the exported model's own vocabulary; empty without one."""
        return list(self.export.default_class_names)

    def encode_classes(self, class_names: ClassNames) -> tuple[list[str], np.ndarray]:
        """Encode class names for `class_embeds`: the names, and (num_classes, projection_dim); see `NameEncoder`."""
        return self.names.encode(class_names)

    def use_vocabulary(self, folder: str | Path) -> None:
        """Take a saved `LDVCVocabulary` in place of the model's own.

        Raises:
            FileNotFoundError: If the folder holds none.
            ValueError: If it is damaged, or of other text weights.
        """
        if self.export.kind == "clipseg":
            raise ValueError("--vocabulary holds embeddings for LDVC, which this CLIPSeg is not; name classes.")
        content, embeds = read_vocabulary(Path(folder))
        if self.export.source.get("text_fingerprint") != content["fingerprint"]:
            raise ValueError(
                f"the vocabulary in {folder} does not fit: the exported model has other text weights; encode the "
                "names by that model, or give them as --labels."
            )
        changed = {"default_class_names": content["class_names"], "other_label": content.get("other_label")}
        self.export, self._own_embeds = replace(self.export, **changed), embeds

    def resolve(
        self, class_names: ClassNames, class_embeds: np.ndarray | None, rivals: Rivals
    ) -> tuple[list[str], np.ndarray, str]:
        """Turn the classes of a call into names, (num_channels, projection_dim) embeddings and the name of "other".

        Raises:
            ValueError: If there are neither names nor an own vocabulary, or names and embeddings do not fit.
        """
        other = "other"
        if class_names is None and class_embeds is not None:
            raise ValueError("`class_embeds` came without `class_names`; give both, in the same order.")
        if class_names is None:
            if self._own_embeds is None:
                self._own_embeds = read_embeds(self.folder)
            names, own, other = self.own_names(), self._own_embeds, self.export.other_label or other
        elif class_embeds is not None:
            names = list(read_classes(class_names))
            if len(class_embeds) != len(names) + len(rivals.words):
                raise ValueError(
                    f"there are {len(names)} class names for {len(class_embeds) - len(rivals.words)} class "
                    "embeddings; give one each."
                )
            return names, np.asarray(class_embeds, np.float32), other
        else:
            names, own = self.encode_classes(class_names)
        if rivals.words:
            own = np.concatenate([own, self.encode_classes(rivals.words)[1]])
        return names, own, other

    def seen_mask(self, classes: Sequence[str] | Classes) -> np.ndarray | None:
        """Which classes trained with masks, (num_classes,) bool; `None` where the model does not know."""
        if not self.export.seen_classes:
            return None
        seen = {name_key(name) for name in self.export.seen_classes}
        if isinstance(classes, Mapping):
            words = [(name, *own) for name, own in read_classes(classes).items()]
        else:
            words = [(name,) for name in classes]
        return np.array([any(name_key(word) in seen for word in own) for own in words], bool)

    def offsets(self, classes: Sequence[str] | Classes, rivals: Rivals) -> np.ndarray | None:
        """(num_channels,) taken from probabilities of classes that trained with masks, or `None`."""
        masks = [self.seen_mask(part) for part in (classes, rivals.words) if part]
        if not self.export.seen_score_offset or masks[0] is None:
            return None
        return np.concatenate(masks).astype(np.float32) * np.float32(self.export.seen_score_offset)

    # ---- pictures

    def logits(self, pixel_values: np.ndarray, class_embeds: np.ndarray) -> np.ndarray:
        """Logits of every class on the token grid.

        Args:
            pixel_values: (batch_size, num_channels, height, width) float32, normalised.
            class_embeds: (num_classes, projection_dim) float32.

        Returns:
            (batch_size, num_classes, grid_height, grid_width) float32.

        Raises:
            ValueError: If a shape does not fit the program; names the nearest size that does.
        """
        export = self.export
        export.check(pixel_values.shape, class_embeds.shape)
        step = 1 if export.one_picture_at_a_time else len(pixel_values)
        classes = range(0, len(class_embeds), most := export.classes_at_a_time or len(class_embeds))
        rows = [
            np.concatenate(
                [self._program.run(pixel_values=part, class_embeds=class_embeds[at : at + most]) for at in classes],
                axis=1,
            )
            for part in (pixel_values[start : start + step] for start in range(0, len(pixel_values), step))
        ]
        return np.concatenate(rows)

    def open_picture(
        self, image: Any, value_range: ValueRange = None, input_data_format: str | None = None
    ) -> Image.Image:
        """Open one picture as upright 8-bit RGB, see `PictureReader.open`."""
        return self.reader.open(image, value_range, input_data_format)

    def prepare(self, picture: Image.Image, settings: InferenceSettings | None = None) -> PreparedPicture:
        """Resize a picture that `open_picture` gave; needs no program, so that another thread may do it."""
        return self.reader.prepare(picture, settings)

    def open_windows(
        self, picture: Any, class_embeds: np.ndarray, settings: InferenceSettings, offsets: np.ndarray | None
    ) -> WindowScores:
        """Cut a picture that is resized already into windows.

        Args:
            picture: With `width`, `height` and `crop` as a Pillow picture has them.
            class_embeds: (num_channels, projection_dim).
            settings: Window, stride and batch size.
            offsets: (num_channels,), or `None`.
        """
        height, width = (min(settings.window or side, side) for side in (picture.height, picture.width))

        def read_window(top: int, left: int) -> np.ndarray:
            return self.reader.normalise(picture.crop((left, top, left + width, top + height)))

        def predict(pixels: np.ndarray) -> np.ndarray:
            return classes_last(self.logits(pixels, class_embeds))

        return WindowScores(predict, read_window, (picture.height, picture.width), settings, offsets)

    def segment(
        self,
        image: Any,
        class_names: ClassNames = None,
        *,
        settings: InferenceSettings | None = None,
        value_range: ValueRange = None,
        input_data_format: str | None = None,
        **options: Any,
    ) -> Segmentation:
        """Label every pixel of one picture.

        Args:
            image: PIL image, array, path or URL.
            class_names: List of names, or dict of synonyms; `None` is the model's own vocabulary.
            settings: Size and sliding windows, averaged where they overlap; `None`: whole, at the model's own size.
            value_range: The values of the picture that are black and white, where it has no 8 bits.
            input_data_format: `"channels_first"` or `"channels_last"`, for arrays whose shape does not say it.
            options: See `segment_batch`.

        Raises:
            ValueError: If the picture cannot be read or has a size that the program does not take, names are bad or
                missing, the threshold is no probability, or "other" is a class.
        """
        picture = self.prepare(self.open_picture(image, value_range, input_data_format), settings)
        (found,) = self.segment_batch([picture], class_names, settings=settings, **options)
        return found

    def segment_batch(
        self,
        pictures: Sequence[PreparedPicture],
        class_names: ClassNames = None,
        *,
        class_embeds: np.ndarray | None = None,
        settings: InferenceSettings | None = None,
        threshold: Any = None,
        other_label: str | None = None,
        return_scores: bool = False,
        top_k: int | None = None,
        negative_labels: ClassNames = None,
        background: Sequence[str] | None = None,
    ) -> Iterator[Segmentation]:
        """Label every pixel of several pictures, those of one size in one call of the program.

        Args:
            pictures: From `prepare`, with the same settings.
            class_names: As for `segment`.
            class_embeds: (num_channels, projection_dim) of classes, words of the background, negative labels.
            settings: As for `segment`.
            threshold: A probability, or one per class: a list in order, or a dict by name, 0 where left out.
            other_label: Name of "other"; `None` is that of the model's own vocabulary, or "other".
            return_scores: Return the probabilities of all classes too.
            top_k: Return so many best classes of every pixel too.
            negative_labels: Names that compete and are not returned: their pixels are "other".
            background: Words that are one class together, "background".

        Yields:
            The [`Segmentation`] of each picture, in order, made when it is asked for.

        Raises:
            ValueError: As `segment`.
        """
        rivals = read_rivals(self.own_names() if class_names is None else class_names, negative_labels, background)
        names, class_embeds, default_other = self.resolve(class_names, class_embeds, rivals)
        class_ids = rivals.class_ids(len(names))
        offsets = self.offsets(names if class_names is None else class_names, rivals)
        names = rivals.names(names)
        threshold = threshold_per_class(threshold, names)
        other = [] if threshold is None and not rivals.has_other else [other_label or default_other]
        if other and other[0] in names:
            raise ValueError(f"{other[0]!r} is a class of this call; pass another `other_label` for what is no class.")
        if settings is None:
            scores = self._whole_logits([picture.pixels for picture in pictures], class_embeds)
        else:
            scores = [self.open_windows(picture.pixels, class_embeds, settings, offsets) for picture in pictures]
            WindowScores.run_together(scores)
        for picture, own in zip(pictures, scores, strict=True):
            pixels = PixelClasses(len(names), picture.size, threshold, top_k, return_scores, class_ids)
            if settings is None:
                pixels.add_upsampled(own, offsets)
            else:
                for rows, columns, block in resized_blocks(own, picture.size, len(class_embeds)):
                    pixels.add(rows, columns, block)
            yield pixels.as_segmentation(names + other)
            del pixels  # its scores, before there are those of the next

    def _whole_logits(self, pixels: Sequence[np.ndarray], class_embeds: np.ndarray) -> list[np.ndarray]:
        """(grid_height, grid_width, num_channels) logits of each picture; those of one size go together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, array in enumerate(pixels):
            groups.setdefault(array.shape, []).append(place)
        found: dict[int, np.ndarray] = {}
        for members in groups.values():
            logits = self.logits(np.stack([pixels[member] for member in members]), class_embeds)
            found.update(zip(members, classes_last(logits), strict=True))
        return [found[place] for place in range(len(pixels))]


def classes_last(logits: np.ndarray) -> np.ndarray:
    """(batch_size, num_classes, height, width) -> (batch_size, height, width, num_classes), contiguous."""
    return np.ascontiguousarray(np.moveaxis(logits, 1, -1), dtype=np.float32)
