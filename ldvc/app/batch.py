"""Many pictures through one model: the work of `ldvc segment`.

    pictures -> loaded in threads -> grouped by size, through the model -> saved in threads

Each arrow is an iterator that holds a bounded number of pictures, so that memory is steady however many there are.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ldvc.app.rasters import is_streamed, segment_raster
from ldvc.app.runtimes import Choice, open_model
from ldvc.loading import one_line
from ldvc.masks.files import Picture, pixel_limit
from ldvc.masks.formats import OutputFolder, describe_names
from ldvc.model.options_ldvc import InferenceSettings, read_rivals
from ldvc.runtime.programs import Precision, Runtime


if TYPE_CHECKING:
    from PIL import Image

    from ldvc.runtime.pictures import PreparedPicture
    from ldvc.runtime.scores import Segmentation

logger = logging.getLogger("ldvc.batch")

MAX_SCORE_BYTES = 4 * 2**30  # of the scores of one picture
MAX_THREADS = 4  # for loading, and as many for saving; beside a model on the CPU, one each
MAX_GROUPS = 4  # batches of pictures that may wait for others of their size


def make_settings(short_side: int | None, window: int | None, stride: int | None) -> InferenceSettings | None:
    """Inference settings of the options; `None` for the checkpoint's own size.

    Raises:
        ValueError: If there is a stride without a window, or it is larger than the window.
    """
    if stride is not None and not window:
        raise ValueError("--stride goes with --window; give both.")
    if short_side is None and not window:
        return None
    return InferenceSettings(short_side or 0, window or 0, stride)


def check_smoothing(smoothing: str | None, settings: InferenceSettings | None, runtime: str) -> None:
    """Check that pictures can be smoothed.

    Raises:
        ValueError: If they are cut or resized, or not segmented by PyTorch.
    """
    if smoothing is None:
        return
    if settings is not None:
        raise ValueError(
            f"--smoothing {smoothing} takes pictures whole, at the checkpoint's own size; leave --window and "
            "--short-side out."
        )
    if runtime != Runtime.TORCH:
        raise ValueError(f"--smoothing {smoothing} is computed by PyTorch; use --runtime torch.")


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


@dataclass
class Job:
    """A picture on its way.

    Attributes:
        picture: Which.
        image: Upright RGB, once it is loaded.
        prepared: What the model reads of it.
        group: Equal where pictures fit into one call of the model.
        result: What was found.
        error: Why it got no further.
    """

    picture: Picture
    image: Image.Image | None = None
    prepared: PreparedPicture | None = None
    group: Hashable = None
    result: Segmentation | None = None
    error: Exception | None = None


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
        batch_size: Pictures, or windows, per call of the model; `None` is one picture, or the settings' windows.
        seen_score_offset: See [`LDVCConfig`]; `None` is the checkpoint's.
        negative: Name -> synonyms of what competes and comes back as "other".
        background: Words that are one class together.
        load_settings: Of `ldvc.load`, such as the method of a CLIP without training.
        value_range: The values that are black and white; `None` is what each picture says itself.
        runtime: What runs the model, see `choose`.
        precision: Of matrix products.
        smoothing: Of `SMOOTHERS`; `None` is without.

    Raises:
        ValueError: If the checkpoint, the classes, the threshold, the offset or the smoothing cannot be used.
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
        batch_size: int | None = None,
        seen_score_offset: float | None = None,
        negative: dict[str, list[str]] | None = None,
        background: list[str] | None = None,
        load_settings: dict[str, Any] | None = None,
        value_range: tuple[float, float] | None = None,
        runtime: str = Runtime.TORCH,
        precision: str = Precision.FLOAT32,
        smoothing: str | None = None,
    ):
        check_smoothing(smoothing, settings, runtime)
        self.smoothing = None if smoothing is None else str(smoothing)
        self.value_range = [] if value_range is None else [value_range]
        parsed = None if threshold is None else parse_threshold(threshold)
        if other is not None and parsed is None and not negative:
            raise ValueError(f"--other {other!r} names pixels below a threshold; give --threshold too, or --not.")
        self.load_settings = dict(load_settings or {})
        choice = Choice(Runtime(runtime), Precision(precision), "as asked for")
        self.way = open_model(choice, model, device, vocabulary, self.load_settings, seen_score_offset, logger.warning)
        self.model_name = str(Path(model).resolve()) if Path(model).exists() else model
        if settings is not None and batch_size is not None:
            settings = replace(settings, window_batch_size=batch_size)
        self.settings, self.classes, self.batch_size = settings, classes, batch_size or 1
        self.negative, self.background = negative, background
        self.rivals = read_rivals(self.way.own_names() if classes is None else classes, negative, background)
        self.named, self.class_embeds, default_other = self.way.resolve(classes, self.rivals)
        self.names = self.rivals.names(self.named)
        self.other = other or default_other if parsed is not None or self.rivals.has_other else None
        if self.other in self.names:
            raise ValueError(f"{self.other!r} is one of the classes; name what is none of them with --other.")
        self.thresholds: list[float] | None = None
        if parsed is not None:
            check_known(parsed[1], self.names)
            self.thresholds = [parsed[1].get(name, parsed[0]) for name in self.names]
        self.threshold = None if parsed is None else {"all": parsed[0], **parsed[1]}
        self.keeps_scores, self.top_k = keeps_scores, 1 if keeps_best_scores else None

    def load(self, job: Job, max_pixels: int) -> None:
        """Decode and resize a picture, under a `pixel_limit`; needs no model, so that threads may do it ahead.

        Raises:
            ValueError: If the scores of so many classes would not fit into memory.
        """
        job.image = job.picture.read(max_pixels, *self.value_range)
        size = 4 * len(self.names) * job.image.width * job.image.height
        if self.keeps_scores and size > MAX_SCORE_BYTES:
            raise ValueError(
                f"scores of {len(self.names)} classes at {job.image.width} x {job.image.height} pixels take "
                f"{size / 2**30:.0f} GiB, more than {MAX_SCORE_BYTES // 2**30}; leave --scores out."
            )
        job.prepared = self.way.prepare(job.image, self.settings)
        if self.settings is not None:
            job.group = tuple(min(self.settings.window or side, side) for side in job.prepared.pixels.size)
            return
        job.group = job.prepared.pixels.shape

    def run(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Segment pictures as they come, in batches of one size; those that failed before are passed on."""
        for batch in batches(jobs, self.batch_size):
            yield from self.run_batch(batch)

    def run_batch(self, batch: Sequence[Job]) -> Iterator[Job]:
        """Segment pictures of one size, all in one call if that works, and otherwise one by one."""
        if batch[0].error is not None:
            yield from batch
            return
        num_done = 0
        try:
            results = self.segment([job.prepared for job in batch])
            for job in batch:
                job.result, job.prepared = next(results), None
                num_done += 1
                yield job
        except Exception as error:  # the others are still to be done
            clear_frames(error.__traceback__)  # or what they hold stays in memory, of which there may be too little
            if len(batch) > 1:
                logger.warning(f"{len(batch)} pictures in one call failed, now one by one: {one_line(error)}")
                for job in batch[num_done:]:
                    yield from self.run_batch([job])
            else:
                batch[0].error = error
                yield batch[0]

    def segment(self, pictures: Sequence[PreparedPicture]) -> Iterator[Segmentation]:
        """Segment pictures in one call of the model."""
        options: dict[str, Any] = {}
        if self.smoothing is not None:
            from ldvc.segmenters.smoothing import smooth_logits  # of PyTorch, as the model is

            options["refine"] = partial(smooth_logits, smoothing=self.smoothing)
        return self.way.segment(
            pictures,
            self.classes or self.named,
            class_embeds=self.class_embeds,
            settings=self.settings,
            threshold=self.thresholds,
            other_label=self.other,
            return_scores=self.keeps_scores,
            top_k=self.top_k,
            negative_labels=self.negative,
            background=self.background,
            **options,
        )

    def describe(self) -> dict[str, Any]:
        """Content of `names.json`: all that results depend on, and so not the size of batches."""
        inference = None if self.settings is None else asdict(self.settings)
        if inference is not None:
            del inference["window_batch_size"]
        return describe_names(
            self.names if self.other is None else [*self.names, self.other],
            other=self.other,
            model=self.model_name,
            weights_sha256=self.way.weights,
            runtime=str(self.way.runtime),
            precision=str(self.way.precision),
            labels=self.classes or {name: [name] for name in self.names},
            threshold=self.threshold,
            inference=inference,
            scores=self.keeps_scores,
            seen_score_offset=self.way.seen_score_offset(),
            **({"negative_labels": self.negative} if self.negative else {}),
            **({"background": self.background} if self.background else {}),
            **({"smoothing": self.smoothing} if self.smoothing else {}),
            **({"settings": self.load_settings} if self.load_settings else {}),
            settings_sha256=self.way.settings_fingerprint(self.value_range),
        )

    def unseen_names(self) -> list[str]:
        """Classes that trained without masks, where the checkpoint knows which did."""
        return self.way.unseen_names(self.classes or self.names)


def batches(jobs: Iterable[Job], batch_size: int) -> Iterator[list[Job]]:
    """Collect jobs of one group until a batch is full; those that failed come at once, each alone.

    So that memory is bounded whatever the sizes, the fullest group goes when `MAX_GROUPS` batches of pictures wait.
    """
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        if job.error is not None:
            yield [job]
            continue
        groups.setdefault(job.group, []).append(job)
        if len(groups[job.group]) == batch_size:
            yield groups.pop(job.group)
        elif sum(map(len, groups.values())) >= MAX_GROUPS * batch_size:
            yield groups.pop(max(groups, key=lambda group: len(groups[group])))
    yield from groups.values()


def in_threads(step: Callable[[Job], None], jobs: Iterable[Job], num_threads: int, num_ahead: int) -> Iterator[Job]:
    """Do a step of every job in threads, and yield the jobs in order; those that failed before are passed on.

    Args:
        step: Its error becomes the job's.
        jobs: Taken as they are needed, in the caller's thread.
        num_threads: Jobs at work at once.
        num_ahead: Jobs taken and not yielded yet, at most.
    """

    def attempt(job: Job) -> Job:
        try:
            if job.error is None:
                step(job)
        except Exception as error:  # the others are still to be done
            job.error = error
        return job

    waiting: deque[Future[Job]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(attempt, job))
                if len(waiting) == num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # of an interrupted run
            for future in waiting:
                future.cancel()


def segment_pictures(
    pictures: Sequence[Picture],
    segmenter: Segmenter,
    folder: OutputFolder,
    max_pixels: int,
    debug: bool = False,
    shows_progress: bool = True,
) -> list[tuple[str, str]]:
    """Segment and save each picture.

    Args:
        pictures: What to do.
        segmenter: With what.
        folder: Started with these pictures.
        max_pixels: Refuse larger ones.
        debug: Raise the first error.
        shows_progress: Draw a progress bar, if stderr is a terminal.

    Returns:
        What failed, as (file, reason): one bad picture stops no other, unless errors are to be shown in full.
    """

    def load(job: Job) -> None:
        segmenter.load(job, max_pixels)

    def save(job: Job) -> None:
        folder.save(job.picture, job.image, job.result)
        job.image = job.prepared = job.result = None  # others of its batch may wait for long

    def stream(job: Job) -> None:
        segment_raster(job.picture, segmenter, folder)

    jobs = {True: [], False: []}  # rasters of any size go through alone, so that memory stays bounded
    for picture in pictures:
        jobs[is_streamed(picture, segmenter, folder)].append(Job(picture))
    num_threads = 1 if segmenter.way.is_on_cpu else min(MAX_THREADS, os.cpu_count() or 1)
    num_saved = 1 if segmenter.keeps_scores else 1 + num_threads  # at once; scores may be gigabytes
    failures: list[tuple[str, str]] = []
    bar = tqdm(total=len(pictures), unit="picture", disable=None if shows_progress else True)
    with bar, pixel_limit(max_pixels):
        loaded = in_threads(load, jobs[False], num_threads, segmenter.batch_size + num_threads)
        saved = in_threads(save, segmenter.run(loaded), num_threads, num_saved)
        for job in chain(in_threads(stream, jobs[True], 1, 1), saved):
            bar.update()
            if job.error is not None and debug:
                raise job.error
            if job.error is not None:
                failures.append((str(job.picture.path), one_line(job.error)))
                bar.set_postfix(failed=len(failures))
    return failures
