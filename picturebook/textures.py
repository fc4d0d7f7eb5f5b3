"""The stuff of the picturebook: tiles of grass, water, sand, brick, sky and wood.

Tiles belong to numbered banks. Pretraining and training share a bank, validation and test have their own, so that no
test surface was ever seen. A tile is drawn on first use and kept.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from picturebook.paper import Color, darken, ink, lighten, mix


TILE_SIZE = 224
TILES_PER_CLASS = 24


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Smooth random field `(TILE_SIZE, TILE_SIZE)` in -0.5 to 0.5 with this many bumps along each side."""
    coarse = Image.fromarray((rng.random((rows, columns)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC), np.float32) / 255 - 0.5


def _sheet(color: Color) -> np.ndarray:
    """Plain paper, `(TILE_SIZE, TILE_SIZE, 3)` float32."""
    return np.full((TILE_SIZE, TILE_SIZE, 3), color, np.float32)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:TILE_SIZE, :TILE_SIZE].astype(np.float32)
    return y, x


def _blend(below: np.ndarray, above: Color, share: np.ndarray) -> np.ndarray:
    """Lay a colour over an image; `share` is `(height, width)` in 0 to 1."""
    return below + (np.array(above, np.float32) - below) * share[..., None]


def draw_grass(rng: np.random.Generator) -> np.ndarray:
    """Draw a meadow of blades or a mown lawn, with a few specks of clover."""
    base = ink((rng.normal(0.27, 0.03), 0.52, 0.62), rng)
    if rng.random() < 0.3:
        y, x = _grid()
        pitch, angle = rng.uniform(22, 40), rng.normal(0, 0.5)
        bands = np.sign(np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / pitch))
        return _sheet(base) * (1 + 0.06 * bands + 0.5 * _noise(rng, TILE_SIZE // 4, TILE_SIZE // 2))[..., None]
    sheet = Image.new("RGB", (TILE_SIZE, TILE_SIZE), darken(base, 0.22))
    draw = ImageDraw.Draw(sheet)
    papers = [mix(base, tone, share) for tone, share in
              (((30, 70, 30), 0.25), (base, 0), ((240, 240, 140), 0.18), ((250, 250, 170), 0.32))]  # fmt: skip
    length, lean, width = rng.uniform(9, 18), rng.normal(0, 3), int(rng.integers(2, 4))
    spots = rng.uniform(-10, TILE_SIZE + 10, (1300, 2))
    spots = spots[np.argsort(spots[:, 1])]
    bends, heights = rng.normal(lean, 3.5, len(spots)), length * rng.uniform(0.6, 1.3, len(spots))
    for (x, y), bend, tall, paper in zip(spots, bends, heights, rng.integers(4, size=len(spots)), strict=True):
        draw.polygon([(x - width / 2, y), (x + width / 2, y), (x + bend, y - tall)], fill=papers[paper])
    for x, y in rng.uniform(0, TILE_SIZE, (int(rng.integers(0, 14)), 2)):
        draw.ellipse([x - 1.6, y - 1.6, x + 1.6, y + 1.6], fill=(246, 240, 214))
    return np.asarray(sheet, np.float32)


def draw_water(rng: np.random.Generator) -> np.ndarray:
    """Draw ripples, or rows of scalloped waves as on a print."""
    base = ink((rng.normal(0.54, 0.025), 0.58, 0.72), rng)
    if rng.random() < 0.4:
        radius = rng.uniform(11, 18)
        sheet = Image.new("RGB", (TILE_SIZE, TILE_SIZE), base)
        draw = ImageDraw.Draw(sheet)
        rings = [base, lighten(base, 0.45), darken(base, 0.08), lighten(base, 0.25), darken(base, 0.16)]
        for row in range(int(TILE_SIZE / radius * 2) + 4):
            for column in range(-1, int(TILE_SIZE / radius / 2) + 2):
                x, y = (2 * column + row % 2) * radius, row * radius / 2
                for ring, fill in enumerate(rings):
                    r = radius * (1 - 0.19 * ring)
                    draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        return np.asarray(sheet, np.float32) * (1 + 0.25 * _noise(rng, 5, 5))[..., None]
    y, x = _grid()
    phase = 9 * _noise(rng, 7, 4) + 2.5 * _noise(rng, 16, 7)
    wave = np.sin(2 * np.pi * y / rng.uniform(10, 18) + phase + 0.03 * x)
    sheet = _blend(_sheet(base), darken(base, 0.3), np.clip(-wave, 0, 1) * 0.7)
    crest = np.clip((wave - rng.uniform(0.7, 0.85)) * 8, 0, 1) * (_noise(rng, 18, 9) > -0.12)
    return _blend(sheet, lighten(base, 0.6), crest)


def draw_sand(rng: np.random.Generator) -> np.ndarray:
    """Draw speckled sand, with wind ripples or pebbles."""
    base = ink((rng.normal(0.11, 0.01), 0.36, 0.90), rng)
    tone = 0.22 * _noise(rng, 6, 6) + rng.normal(0, 0.07, (TILE_SIZE, TILE_SIZE))
    tone += 0.35 * np.maximum(_noise(rng, TILE_SIZE // 2, TILE_SIZE // 2) - 0.38, 0) * -4
    if rng.random() < 0.5:
        y, x = _grid()
        angle = rng.normal(0, 0.5)
        across = (y * np.cos(angle) + x * np.sin(angle)) / rng.uniform(16, 28)
        tone += 0.07 * np.sin(2 * np.pi * across + 8 * _noise(rng, 5, 4))
    sheet = Image.fromarray(np.clip(_sheet(base) * (1 + tone[..., None]), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(sheet)
    for x, y in rng.uniform(0, TILE_SIZE, (int(rng.integers(0, 22)), 2)):
        r = rng.uniform(1.5, 3.4)
        draw.ellipse([x - r, y - r * 0.7 + 1, x + r, y + r * 0.7 + 1], fill=darken(base, 0.35))
        draw.ellipse([x - r, y - r * 0.7, x + r, y + r * 0.7], fill=mix(base, (170, 150, 150), rng.uniform(0.2, 0.8)))
    return np.asarray(sheet, np.float32)


def draw_brick(rng: np.random.Generator) -> np.ndarray:
    """Draw a wall in running bond; red, tawny or grey bricks of uneven firing."""
    families = ((0.025, 0.58, 0.68), (0.05, 0.50, 0.74), (0.0, 0.42, 0.55), (0.07, 0.22, 0.66))
    base = ink(families[int(rng.integers(4))], rng)
    mortar = lighten(base, 0.62) if rng.random() < 0.7 else darken(base, 0.45)
    sheet = Image.new("RGB", (TILE_SIZE, TILE_SIZE), mortar)
    draw = ImageDraw.Draw(sheet)
    tall = rng.uniform(11, 17)
    wide, joint = tall * rng.uniform(1.9, 2.4), rng.uniform(1.6, 2.6)
    for row in range(int(TILE_SIZE / tall) + 1):
        for column in range(-1, int(TILE_SIZE / wide) + 1):
            x, y = (column + row % 2 / 2) * wide, row * tall
            fill = mix(base, (40, 24, 30) if rng.random() < 0.5 else (255, 220, 180), abs(rng.normal(0, 0.13)))
            draw.rounded_rectangle([x + joint, y + joint, x + wide, y + tall], radius=1.5, fill=fill)
            draw.line([x + joint + 1, y + joint, x + wide - 1, y + joint], fill=lighten(fill, 0.18))
    grain = rng.normal(0, 0.045, (TILE_SIZE, TILE_SIZE)) + 0.15 * _noise(rng, 8, 8)
    return np.asarray(sheet, np.float32) * (1 + grain)[..., None]


def draw_sky(rng: np.random.Generator) -> np.ndarray:
    """Draw a sky that pales towards the horizon, with heaped or feathered clouds."""
    top = ink((rng.normal(0.58, 0.02), 0.46, 0.88), rng)
    glow = (255, 214, 180) if rng.random() < 0.25 else (226, 240, 248)
    height = np.linspace(0, 1, TILE_SIZE, dtype=np.float32)[:, None] * np.ones((1, TILE_SIZE), np.float32)
    sheet = _blend(_sheet(top), glow, 0.55 * height)
    if rng.random() < 0.4:
        feather = _noise(rng, 14, 4) + 0.5 * _noise(rng, 34, 9)
        return _blend(sheet, (250, 248, 244), np.clip((feather - rng.uniform(-0.05, 0.12)) * 4, 0, 0.8))
    mask = Image.new("L", (TILE_SIZE, TILE_SIZE), 0)
    draw = ImageDraw.Draw(mask)
    for x, y in rng.uniform(0, TILE_SIZE, (int(rng.integers(5, 10)), 2)):
        width = rng.uniform(14, 34)
        for k in range(5):
            puff, shift = width * rng.uniform(0.3, 0.55), (k - 2) * width * 0.42
            draw.ellipse([x + shift - puff, y - puff * 1.1, x + shift + puff, y + puff * 0.7], fill=255)
    cloud = np.asarray(mask.filter(ImageFilter.GaussianBlur(1.2)), np.float32) / 255
    shadow = np.roll(cloud, 4, 0) * 0.18
    return _blend(_blend(sheet, (120, 140, 170), shadow), (252, 250, 246), cloud * 0.92)


def draw_wood(rng: np.random.Generator) -> np.ndarray:
    """Draw planks with grain, butt joints and a knot here and there; lying or standing."""
    base = ink((rng.normal(0.075, 0.012), 0.48, 0.66), rng)
    plank, (y, x) = int(rng.integers(20, 36)), _grid()
    row = (y // plank).astype(int)
    tones = rng.normal(0, 0.09, TILE_SIZE // plank + 1)[row]
    stretched = _noise(rng, TILE_SIZE // 2, 5) + 0.6 * _noise(rng, TILE_SIZE // 5, 3)
    rings = np.sin(2 * np.pi * (y / rng.uniform(5, 8) + 2.2 * _noise(rng, 9, 3) + row * 0.37))
    tone = tones + 0.16 * stretched + 0.05 * rings
    for center_x, center_y in rng.uniform(0, TILE_SIZE, (int(rng.integers(1, 5)), 2)):
        distance = np.hypot((x - center_x) / 2.2, y - center_y)
        tone += np.where(distance < 7, -0.18 * np.cos(distance * 1.3) - 0.08, 0) * (row == int(center_y // plank))
    seam = (y % plank < 1.8) | ((x + row * 71) % rng.uniform(110, 170) < 1.8)
    sheet = _blend(_sheet(base) * (1 + tone[..., None]), darken(base, 0.62), seam * 0.85)
    return sheet.transpose(1, 0, 2) if rng.random() < 0.3 else sheet


_DRAWERS = {
    "grass": draw_grass,
    "water": draw_water,
    "sand": draw_sand,
    "brick": draw_brick,
    "sky": draw_sky,
    "wood": draw_wood,
}


@cache
def get_tile(name: str, bank: int, number: int) -> np.ndarray:
    """Return tile `number` of a stuff class, `(TILE_SIZE, TILE_SIZE, 3)` uint8, the same whenever it is asked for."""
    rng = np.random.default_rng([7, bank, list(_DRAWERS).index(name), number])
    tile = np.clip(_DRAWERS[name](rng), 0, 255).astype(np.uint8)
    tile.flags.writeable = False
    return tile
