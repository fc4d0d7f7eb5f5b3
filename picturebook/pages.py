"""Pages for pretraining: a pool drawn once into memory-mapped files, and random views of it with fresh captions."""

import hashlib
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from picturebook.vocabulary import get_world, write_caption
from picturebook.world import KINDS, NATIVE_SIZE, draw_scene, find_visible_classes


CHUNK_PAGES = 256
LABEL_STRIDE = 2  # Labels serve captions only; every second pixel is enough.


@dataclass(frozen=True)
class PagePool:
    """Pretraining pages.

    Attributes:
        images: (num_pages, 128, 128, 3) uint8.
        labels: (num_pages, 64, 64) uint8; they tell which classes a crop shows, no loss ever sees them.
        kinds: (num_pages,) uint8 positions in `KINDS`.
        world: Vocabulary of the labels.
    """

    images: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    world: str = "plain"

    def __post_init__(self):
        members = {kind: np.flatnonzero(self.kinds == i) for i, kind in enumerate(KINDS)}
        object.__setattr__(self, "members", members)


@dataclass(frozen=True)
class Views:
    """A batch of views.

    Attributes:
        images: (batch_size, view_size, view_size, 3) uint8.
        captions: One per view.
        visible: (batch_size, num_classes) bool, the classes that a caption of this view may name.
        named: (batch_size, num_classes) bool, the classes that its caption does name.
    """

    images: np.ndarray
    captions: list[str]
    visible: np.ndarray
    named: np.ndarray


def draw_pool(num_pages: int, seed: int, cache_dir: Path, num_workers: int = 1, world: str = "plain") -> PagePool:
    """Draw the pretraining pages, or reopen them if an earlier run did.

    Args:
        num_pages: Pages of the `"pretrain"` split.
        seed: Edition of the book.
        cache_dir: Where the files live; 60 kB a page.
        num_workers: Drawing processes.
        world: Vocabulary.
    """
    folder = Path(cache_dir) / f"{world}-{num_pages}-{seed}-{_fingerprint_drawing(seed, world)}"
    names = ("images", "labels", "kinds")
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        try:
            partial.mkdir(parents=True)
            _fill_pool(partial, num_pages, seed, num_workers, world)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return PagePool(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names), world=world)


def sample_views(
    pool: PagePool, batch_size: int, view_size: int, kind_shares: tuple[float, float, float], rng: np.random.Generator
) -> Views:
    """Take random crops of random pages and write a caption for what each crop shows.

    At 64 pixels, single things are shown nearly whole and halved; scenes are cropped to anything between their full
    size at half scale and a quarter of the page at full scale. At 128 pixels, crops are wide and pages nearly whole.

    Args:
        pool: Pages to take from.
        batch_size: Views.
        view_size: Side of a view in pixels.
        kind_shares: Share of objects, scenes and bare stuff.
        rng: Source of everything random here.
    """
    images = np.empty((batch_size, view_size, view_size, 3), np.uint8)
    num_classes = len(get_world(pool.world).class_names)
    visible, named = np.zeros((2, batch_size, num_classes), bool)
    captions = []
    for row, kind_id in enumerate(rng.choice(3, batch_size, p=kind_shares)):
        kind = KINDS[kind_id]
        page = int(rng.choice(pool.members[kind]))
        smallest = 104 if kind == "object" or view_size > 64 else 60
        side = 2 * int(rng.integers(smallest // 2, NATIVE_SIZE // 2 + 1))
        top, left = (2 * int(rng.integers((NATIVE_SIZE - side) // 2 + 1)) for _ in range(2))
        crop = pool.images[page, top : top + side, left : left + side]
        if side != view_size:
            crop = np.asarray(Image.fromarray(crop).resize((view_size, view_size), Image.Resampling.BILINEAR))
        images[row] = crop[:, ::-1] if rng.random() < 0.5 else crop
        rows, columns = (slice(start // LABEL_STRIDE, (start + side) // LABEL_STRIDE) for start in (top, left))
        class_ids = find_visible_classes(pool.labels[page, rows, columns], pool.world)
        caption, named_ids = write_caption(class_ids, rng, pool.world)
        visible[row, class_ids] = named[row, named_ids] = True
        captions.append(caption)
    return Views(images, captions, visible, named)


def _fingerprint_drawing(seed: int, world: str) -> str:
    """Digest of a few pages, so that a pool drawn by an older version of the world is not taken for this one's."""
    digest = hashlib.sha256()
    for index in range(12):
        digest.update(np.asarray(draw_scene("pretrain", seed, index, world=world).image).tobytes())
    return digest.hexdigest()[:12]


def _fill_pool(folder: Path, num_pages: int, seed: int, num_workers: int, world: str):
    half = NATIVE_SIZE // LABEL_STRIDE
    shapes = {"images": (NATIVE_SIZE, NATIVE_SIZE, 3), "labels": (half, half), "kinds": ()}
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (num_pages, *shape))
        for name, shape in shapes.items()
    }
    starts = range(0, num_pages, CHUNK_PAGES)
    jobs = [(start, min(start + CHUNK_PAGES, num_pages), seed, world) for start in starts]
    with ProcessPoolExecutor(num_workers) as executor, tqdm(total=num_pages, desc="drawing", unit="page") as progress:
        for (start, stop, *_), chunk in zip(jobs, executor.map(_draw_chunk, jobs), strict=True):
            for name, values in zip(arrays, chunk, strict=True):
                arrays[name][start:stop] = values
            progress.update(stop - start)
    for array in arrays.values():
        array.flush()


def _draw_chunk(job: tuple[int, int, int, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start, stop, seed, world = job
    pages = [draw_scene("pretrain", seed, index, world=world) for index in range(start, stop)]
    images = np.stack([np.asarray(page.image) for page in pages])
    labels = np.stack([page.label[::LABEL_STRIDE, ::LABEL_STRIDE] for page in pages])
    return images, labels, np.array([KINDS.index(page.kind) for page in pages], np.uint8)
