"""A batch of pictures through one model: the work of `ldvc segment`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from files_ldvc import Picture, open_picture
from formats_ldvc import OutputFolder, describe_names
from inference_ldvc import InferenceSettings, encode_classes, segment
from loading_ldvc import default_names, load_checkpoint, one_line, unseen_names
from vocabulary_ldvc import LDVCVocabulary


if TYPE_CHECKING:
    from PIL import Image

    from inference_ldvc import Segmentation


MAX_SCORE_BYTES = 4 * 2**30  # of the scores of one picture


def make_settings(short_side: int | None, window: int | None, stride: int | None) -> InferenceSettings | None:
    """Inference settings of the options; `None` for the checkpoint's own size.

    Raises:
        ValueError: If there is a stride without a window, or it is larger than the window.
    """
    if stride is not None and not window:
        raise ValueError("--stride goes with --window; give both.")
    if short_side is None and window is None:
        return None
    return InferenceSettings(short_side or 0, window or 0, stride)


def parse_threshold(text: str) -> tuple[float, dict[str, float]]:
    """Read "0.3, car=0.5": the probability for all classes (0 if none is given), and those of single classes.

    Raises:
        ValueError: If a part is no probability.
    """
    general, single = 0.0, {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise ValueError(f"--threshold {text!r}: {value.strip()!r} is no probability; use 0 to 1, or NAME=0.5.")
        if equals:
            single[name.strip()] = number
        else:
            general = number
    return general, single


def check_known(single: Iterable[str], names: Sequence[str]) -> None:
    """Check that thresholds belong to classes.

    Raises:
        ValueError: If one does not; names the nearest class.
    """
    for name in single:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the classes are {', '.join(names[:8])}."
            raise ValueError(f"--threshold names {name!r}, which is no class; {hint}")


class Segmenter:
    """A loaded model with the classes and settings of one run.

    Args:
        model: Folder or Hub id.
        device: See `pick_device`.
        classes: Name -> synonyms; `None` is the checkpoint's own vocabulary, or that of `vocabulary`.
        vocabulary: Folder of a saved `LDVCVocabulary`.
        settings: Size and windows.
        threshold: See `parse_threshold`.
        other: Name of pixels below it.
        keeps_scores: Return the scores of all classes too.
        keeps_best_scores: Return every pixel's best score too.

    Raises:
        ValueError: If the checkpoint, the classes or the threshold cannot be used.
    """

    def __init__(
        self,
        model: str,
        device: str,
        classes: dict[str, list[str]] | None,
        vocabulary: Path | None,
        settings: InferenceSettings | None,
        threshold: str | None = None,
        other: str | None = None,
        keeps_scores: bool = False,
        keeps_best_scores: bool = False,
    ):
        parsed = None if threshold is None else parse_threshold(threshold)
        self.model, self.processor = load_checkpoint(model, device)
        if vocabulary is not None:
            self.model.set_vocabulary(LDVCVocabulary.load(vocabulary))
        self.model_name = str(Path(model).resolve()) if Path(model).exists() else model
        self.settings, self.classes, self.class_embeds = settings, classes, None
        if classes is None:
            self.names = default_names(self.model)
        else:
            is_shown = sys.stderr.isatty()
            self.names, self.class_embeds = encode_classes(self.model, self.processor, classes, show_progress=is_shown)
        default_other = self.model.config.other_label if classes is None else None
        self.other = None if parsed is None else other or default_other or "other"
        if self.other in self.names:
            raise ValueError(f"{self.other!r} is one of the classes; name pixels below the threshold with --other.")
        self.thresholds: list[float] | None = None
        if parsed is not None:
            general, single = parsed
            check_known(single, self.names)
            self.thresholds = [single.get(name, general) for name in self.names]
        self.threshold = None if parsed is None else {"all": parsed[0], **parsed[1]}
        self.keeps_scores, self.top_k = keeps_scores, 1 if keeps_best_scores else None

    def run(self, image: Image.Image) -> Segmentation:
        """Segment a picture.

        Raises:
            ValueError: If the scores of so many classes would not fit into memory.
        """
        size = 4 * len(self.names) * image.width * image.height
        if self.keeps_scores and size > MAX_SCORE_BYTES:
            raise ValueError(
                f"scores of {len(self.names)} classes at {image.width} x {image.height} pixels take "
                f"{size / 2**30:.0f} GiB, more than {MAX_SCORE_BYTES // 2**30}; leave --scores out."
            )
        return segment(
            self.model,
            self.processor,
            image,
            self.classes,
            class_embeds=self.class_embeds,
            settings=self.settings,
            threshold=self.thresholds,
            other_label=self.other,
            return_scores=self.keeps_scores,
            top_k=self.top_k,
        )

    def describe(self) -> dict[str, Any]:
        """Content of `names.json`."""
        return describe_names(
            self.names if self.other is None else [*self.names, self.other],
            other=self.other,
            model=self.model_name,
            labels=self.classes or {name: [name] for name in self.names},
            threshold=self.threshold,
            inference=None if self.settings is None else asdict(self.settings),
            scores=self.keeps_scores,
        )

    def unseen_names(self) -> list[str]:
        """Classes that trained without masks, where the checkpoint knows which did."""
        return unseen_names(self.model, self.classes or self.names)


def segment_pictures(
    pictures: Sequence[Picture], segmenter: Segmenter, folder: OutputFolder, max_pixels: int, debug: bool
) -> list[tuple[str, str]]:
    """Segment and save each picture.

    Returns:
        What failed, as (file, reason): one bad picture stops no other, unless errors are to be shown in full.
    """
    failures: list[tuple[str, str]] = []
    bar = tqdm(pictures, unit="picture", disable=None)  # `None`: no bar where stderr is no terminal
    for picture in bar:
        try:
            image = open_picture(picture.path, max_pixels)
            folder.save(picture.name, picture.path, image, segmenter.run(image))
        except Exception as error:  # the others are still to be done
            if debug:
                raise
            failures.append((str(picture.path), one_line(error)))
            bar.set_postfix(failed=len(failures))
    return failures
