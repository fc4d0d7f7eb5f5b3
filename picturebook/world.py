"""Scenes of the picturebook: drawn on demand, every pixel labelled, the same for ever.

A scene is a function of `(split, seed, index)`; nothing is stored and nothing is downloaded. One to three large things
lie on one to three regions of stuff, with cast shadows, and may hide each other or leave the page.
"""

import io
import re
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageFilter

from picturebook.sprites import render_sprite
from picturebook.textures import TILE_SIZE, TILES_PER_CLASS, get_tile
from picturebook.vocabulary import World, get_world, write_caption


# Split -> (number in the random keys, texture bank). Only pretraining and training share their surfaces.
SPLITS = {"pretrain": (0, 0), "train": (1, 0), "validation": (2, 1), "test": (3, 2)}
KINDS = ("object", "scene", "stuff")
PRETRAIN_MIX = (0.45, 0.45, 0.10)
PATCH_SIZE = 8
NATIVE_SIZE = 128  # Pixels; textures and the sizes below are meant for it and scaled to any other.
# Side of a thing's square, in pixels of 128, by the number of things on the page.
THING_SIZES = {1: (62, 92), 2: (55, 84), 3: (50, 70)}
OBJECT_SIZES = (74, 122)
# A class is named in captions if it covers this share of the page: a patch and a half of a thing, a margin of stuff.
NAMED_THING_SHARE, NAMED_STUFF_SHARE = 0.012, 0.05


@dataclass(frozen=True)
class Scene:
    """One page.

    Attributes:
        image: RGB, `image_size` x `image_size`.
        label: (image_size, image_size) uint8 class ids, no ignore value.
        caption: Names some of the visible classes.
        class_ids: Ids of the classes that are clearly visible, ascending; the caption names a subset.
        kind: `"object"` (one thing), `"scene"` or `"stuff"` (no thing).
    """

    image: Image.Image
    label: np.ndarray
    caption: str
    class_ids: tuple[int, ...]
    kind: str


def draw_scene(
    split: str, seed: int, index: int, image_size: int = NATIVE_SIZE, world: str = "plain", kind: str | None = None
) -> Scene:
    """Draw page `index` of a split.

    Args:
        split: `"pretrain"` (single things, scenes and bare stuff), `"train"`, `"validation"` or `"test"` (scenes).
        seed: Edition of the book, at least 0.
        index: Page number, at least 0.
        image_size: Side of the page in pixels, at least one patch of 8; the same page at any size.
        world: Vocabulary, see `vocabulary.WORLDS`.
        kind: Forces one of `KINDS`; by default the split decides.

    Raises:
        ValueError: If an argument has an unknown name or an impossible number.
    """
    _check_page(split, seed, index, image_size, kind)
    vocabulary = get_world(world)
    # Whatever draws a random number per pixel gets a generator of its own, so that the page is the same at any size.
    split_code, bank = SPLITS[split]
    rng = np.random.default_rng([20261120, vocabulary.code, split_code, seed, index])
    drawn_kind = KINDS[int(rng.choice(3, p=PRETRAIN_MIX))] if split == "pretrain" else "scene"
    kind = kind or drawn_kind
    pixels, label = _draw_ground(rng, bank, vocabulary, image_size, kind)
    for thing, size, center in _arrange_things(rng, vocabulary, kind, split == "pretrain"):
        _paste_thing(pixels, label, thing, size, center, vocabulary, rng.spawn(1)[0])
    pixels *= rng.uniform(0.88, 1.08)
    pixels += rng.spawn(1)[0].normal(0, 2.5, label.shape)[..., None].astype(np.float32)
    class_ids = find_visible_classes(label, world)
    caption, _ = write_caption(class_ids, rng, world)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return Scene(image, label, caption, tuple(class_ids), kind)


def find_visible_classes(label: np.ndarray, world: str = "plain") -> list[int]:
    """List the ids a caption of this label map may name, ascending; the largest class if none is large enough."""
    vocabulary = get_world(world)
    num_things = len(vocabulary.thing_names)
    shares = np.bincount(label.ravel(), minlength=len(vocabulary.class_names)) / label.size
    needed = np.where(np.arange(len(shares)) < num_things, NAMED_THING_SHARE, NAMED_STUFF_SHARE)
    return np.flatnonzero(shares >= needed).tolist() or [int(shares.argmax())]


def load_picturebook(
    split: str, num_images: int, seed: int = 0, image_size: int = NATIVE_SIZE, world: str = "plain"
) -> Dataset:
    """Draw the first `num_images` pages of a split into memory.

    Args:
        split: See `draw_scene`.
        num_images: Pages; page `i` does not depend on it.
        seed: Edition of the book.
        image_size: Side of the pages in pixels.
        world: Vocabulary.

    Returns:
        Dataset with the columns `image` (RGB), `label` (single-channel class ids, every pixel labelled) and `caption`.

    Raises:
        ValueError: If `num_images` is not positive, or as `draw_scene` does.
    """
    if num_images <= 0:
        raise ValueError(f"num_images is {num_images}; ask for at least one image")
    columns = {"image": [], "label": [], "caption": []}
    for index in range(num_images):
        scene = draw_scene(split, seed, index, image_size, world)
        columns["image"].append({"bytes": _encode_png(scene.image), "path": None})
        columns["label"].append({"bytes": _encode_png(Image.fromarray(scene.label)), "path": None})
        columns["caption"].append(scene.caption)
    features = Features({"image": ImageFeature(), "label": ImageFeature(), "caption": Value("string")})
    return Dataset.from_dict(columns, features=features)


def load_pages(split: str, num_images: int, seed: int = 0, config_name: str | None = None) -> Dataset:
    """Draw pages as `load_split` asks for them.

    Args:
        split: See `draw_scene`.
        num_images: Pages.
        seed: Edition of the book.
        config_name: Side of the pages, such as "256px"; `None` is that of 128 pixels.

    Raises:
        ValueError: If the configuration is no such size, or as `load_picturebook` does.
    """
    size = re.fullmatch(r"([1-9]\d{0,3})px", config_name or f"{NATIVE_SIZE}px")
    if not size:
        raise ValueError(
            f"the picturebook has no configuration {config_name!r}; give a side in pixels such as '256px'"
        )
    return load_picturebook(split, num_images, seed, int(size[1]))


def _check_page(split: str, seed: int, index: int, image_size: int, kind: str | None):
    if split not in SPLITS:
        raise ValueError(f"unknown picturebook split {split!r}; choose one of {', '.join(map(repr, SPLITS))}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of page {kind!r}; choose one of {', '.join(map(repr, KINDS))}")
    if image_size < PATCH_SIZE:
        raise ValueError(f"image_size {image_size} is below one patch; use at least {PATCH_SIZE} pixels")
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative; count pages and editions from 0")


def _encode_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _draw_ground(
    rng: np.random.Generator, bank: int, vocabulary: World, image_size: int, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the page with one to three sheets of stuff, torn along wavy lines, each casting a shadow on the one before.

    Returns:
        Colours `(image_size, image_size, 3)` float32 in 0 to 255 and labels `(image_size, image_size)` uint8.
    """
    shares = (0.6, 0.4, 0.0) if kind == "object" else (0.25, 0.60, 0.15)
    num_regions = 1 + int(rng.choice(3, p=shares))
    names = [vocabulary.stuff_names[i] for i in rng.permutation(len(vocabulary.stuff_names))[:num_regions]]
    first_id = len(vocabulary.thing_names)
    pixels = _cut_tile(names[0], bank, image_size, rng)
    label = np.full((image_size, image_size), first_id + vocabulary.stuff_names.index(names[0]), np.uint8)
    tilt = rng.normal(0, 0.25) + (rng.random() < 0.2) * rng.choice([-1, 1]) * np.pi / 2
    edges = {1: [], 2: [rng.uniform(0.3, 0.7)], 3: [rng.uniform(0.25, 0.4), rng.uniform(0.6, 0.75)]}[num_regions]
    for name, edge in zip(names[1:], edges, strict=True):
        depth = _depth_below_edge(edge, tilt, image_size, rng)  # pixels, positive inside the new sheet
        pixels *= 1 - 0.34 * np.exp(-np.clip(-depth, 0, None) * (28 / image_size))[..., None]
        cover = np.clip(depth + 0.5, 0, 1)[..., None]
        pixels += (_cut_tile(name, bank, image_size, rng) - pixels) * cover
        label[depth > 0] = first_id + vocabulary.stuff_names.index(name)
    return pixels, label


def _depth_below_edge(edge: float, tilt: float, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Signed distance, in pixels, below a wavy line at height `edge` of the page, turned by `tilt` radians."""
    y, x = np.mgrid[:image_size, :image_size].astype(np.float32) / np.float32(image_size) - 0.5
    along, across = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    line = np.full_like(along, edge - 0.5)
    for _ in range(2):
        line += rng.uniform(0, 0.035) * np.sin(along * rng.uniform(5, 22) + rng.uniform(0, 6.3))
    return ((across - line) * image_size).astype(np.float32)


def _cut_tile(name: str, bank: int, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a random piece of a random tile, mirrored and tinted, `(image_size, image_size, 3)` float32."""
    tile = get_tile(name, bank, int(rng.integers(TILES_PER_CLASS)))
    top, left = rng.integers(0, TILE_SIZE - NATIVE_SIZE, 2)
    piece = tile[top : top + NATIVE_SIZE, left : left + NATIVE_SIZE]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    if image_size != NATIVE_SIZE:
        piece = np.asarray(Image.fromarray(piece).resize((image_size, image_size), Image.Resampling.BICUBIC))
    return (piece * rng.uniform(0.86, 1.1) + rng.normal(0, 6, 3)).astype(np.float32)


def _arrange_things(
    rng: np.random.Generator, vocabulary: World, kind: str, is_pretraining: bool
) -> list[tuple[int, float, np.ndarray]]:
    """Choose classes, sizes (share of the page) and centres (y, x in 0 to 1) of the things, farthest first."""
    drawable = [
        i for i, name in enumerate(vocabulary.thing_names)
        if not (is_pretraining and name in vocabulary.unpictured_names)
    ]  # fmt: skip
    if kind == "stuff":
        return []
    if kind == "object":
        size = rng.uniform(*OBJECT_SIZES) / NATIVE_SIZE
        return [(int(rng.choice(drawable)), size, 0.5 + rng.normal(0, 0.05, 2))]
    count = 1 + int(rng.choice(3, p=(0.25, 0.45, 0.30)))
    chosen = rng.permutation(drawable)[:count]
    sizes = rng.uniform(*THING_SIZES[count], count) / NATIVE_SIZE
    turn = rng.uniform(0, 2 * np.pi)
    angles = turn + 2 * np.pi * np.arange(count) / count
    reach = {1: rng.uniform(0, 0.2), 2: rng.uniform(0.2, 0.3), 3: rng.uniform(0.24, 0.33)}[count]
    # Centres sit on a ring, pushed towards the corners of the page, so that large things overlap only a little.
    ring = np.stack([np.sin(angles), np.cos(angles)], 1)
    centers = 0.5 + reach * ring / np.abs(ring).max(1, keepdims=True) ** 0.6 + rng.normal(0, 0.035, (count, 2))
    order = np.argsort(centers[:, 0])
    return [(int(chosen[i]), float(sizes[i]), centers[i]) for i in order]


def _paste_thing(
    pixels: np.ndarray, label: np.ndarray, thing: int, size: float, center: np.ndarray, vocabulary: World,
    rng: np.random.Generator,
):  # fmt: skip
    """Lay one sprite with its cast shadow on the page, in place."""
    color, _, noun = vocabulary.thing_names[thing].rpartition(" ")
    image_size = label.shape[0]
    colors, alpha = render_sprite(noun, size * image_size, rng, color or None)
    spread = max(round(0.045 * image_size), 1)  # margin for the shadow, pixels
    colors = np.pad(colors, ((spread, spread), (spread, spread), (0, 0)))
    alpha = np.pad(alpha, spread)
    height, width = alpha.shape
    top, left = (round(c * image_size - side / 2) for c, side in zip(center, alpha.shape, strict=True))
    rows = slice(max(top, 0), min(top + height, image_size))
    columns = slice(max(left, 0), min(left + width, image_size))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    shadow = Image.fromarray((np.roll(alpha, (spread // 2, spread // 3), (0, 1)) * 255).astype(np.uint8))
    shade = np.asarray(shadow.filter(ImageFilter.BoxBlur(spread / 2)), np.float32) * np.float32(0.4 / 255)
    inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    cover = alpha[inside]
    page = pixels[rows, columns]
    page *= ((1 - shade[inside]) * (1 - cover))[..., None]
    page += colors[inside]
    label[rows, columns][cover > 0.5] = thing
