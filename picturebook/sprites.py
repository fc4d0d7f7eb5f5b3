"""The things of the picturebook, one function each: `(sketch, paint, rng)`.

The forms of a class differ by sub-type, proportion and detail; pose, size and surface are added by `paper.py`. Points
are `(x, y)` in [-1, 1], y down, and every function lays its paper from the bottom up.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from picturebook.paper import Paint, Points, Sketch, choose_paint, darken, lighten, mix, render_sketch


# Outlines and tables read better in rows.
# fmt: off
# The hue families that the main colour of a class is drawn from.
PALETTES = {
    "car": "coral blue gold cream teal",
    "house": "orange cream coral teal",
    "tree": "leaf leaf teal orange gold",
    "fish": "orange blue violet teal coral",
    "mushroom": "coral brown cream orange",
    "star": "gold cream coral violet",
    "heart": "coral rose orange violet",
    "moon": "gold cream teal blue",
    "flower": "rose violet coral gold cream",
    "boat": "brown blue coral cream",
    "cup": "cream blue coral leaf",
    "umbrella": "coral blue violet gold slate",
    "butterfly": "orange blue violet gold rose",
    "clock": "cream brown coral slate teal",
    "rocket": "cream coral blue slate",
    "balloon": "coral gold blue violet leaf",
    "cat": "orange slate cream brown",
    "bird": "blue coral gold teal rose",
    "snail": "brown orange violet rose gold",
    "cactus": "leaf leaf teal gold",
}


def render_sprite(
    noun: str, size: float, rng: np.random.Generator, color: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one random specimen of a class.

    Args:
        noun: A key of `DRAWERS`.
        size: Side of the sprite's square before rotation, in pixels.
        rng: Source of form, colours, pose and surface.
        color: Forces the main colour, see `paper.NAMED_INKS`.

    Returns:
        Premultiplied colours `(height, width, 3)` in 0 to 255 and coverage `(height, width)` in 0 to 1, both float32.
    """
    sketch = Sketch()
    DRAWERS[noun](sketch, choose_paint(PALETTES[noun], rng, color), rng)
    return render_sketch(sketch, size, rng)


def draw_car(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a saloon, a van or a beetle."""
    form = rng.integers(3)
    top = (-0.42, -0.62, -0.5)[form] + rng.uniform(-0.06, 0.06)
    sill, wheel = 0.02, rng.uniform(0.2, 0.26)
    if form == 1:
        cabin = [(-0.9, sill), (-0.86, top), (0.5, top), (0.78, sill)]
    elif form == 0:
        cabin = [(-0.66, sill), (-0.4, top), (0.26, top), (0.56, sill)]
    else:
        cabin = [(-0.78, sill), (-0.6, -0.3), (-0.3, top), (0.1, top), (0.42, -0.3), (0.6, sill)]
    sketch.polygon(cabin, paint.main, textured=True)
    sketch.box(-0.96, -0.06, 0.96, 0.46, paint.main, radius=0.18, textured=True)
    sketch.box(-0.93, 0.28, 0.93, 0.42, darken(paint.main), radius=0.06)
    middle = rng.uniform(-0.12, 0.02)
    for left, right in ((cabin[1][0] - 0.06, middle - 0.05), (middle + 0.05, 0.34 if form != 1 else 0.52)):
        lean = 0.1 if right > 0 else 0.0
        window = [(left, -0.02), (left + 0.1, top + 0.12), (right - lean, top + 0.12), (right, -0.02)]
        sketch.polygon(window, paint.glass)
    sketch.box(middle + 0.06, 0.08, middle + 0.24, 0.13, darken(paint.main, 0.45), radius=0.02)
    sketch.ellipse(0.86, 0.14, 0.07, 0.09, (255, 236, 170))
    sketch.box(-0.95, 0.08, -0.87, 0.22, (214, 72, 60), radius=0.03)
    for x in (-0.52, 0.52):
        sketch.ellipse(x, 0.46, wheel, wheel, paint.dark)
        sketch.ellipse(x, 0.46, wheel * 0.5, wheel * 0.5, (200, 198, 196))


def draw_house(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a cottage or a narrow two-storey house."""
    tall = rng.random() < 0.4
    half, eaves = (0.5, -0.25) if tall else (0.7, rng.uniform(-0.08, 0.05))
    peak = rng.uniform(-0.98, -0.86) if tall else rng.uniform(-0.9, -0.7)
    roof = paint.accent if rng.random() < 0.6 else darken(paint.main, 0.45)
    if rng.random() < 0.7:
        sketch.box(0.24, peak + 0.08, 0.42, eaves, darken(roof, 0.25))
    sketch.box(-half, eaves - 0.05, half, 0.92, paint.main, textured=True)
    sketch.polygon([(-half - 0.24, eaves), (0, peak), (half + 0.24, eaves)], roof)
    rim = half + 0.24
    sketch.polygon(
        [(-rim, eaves), (0.06 - rim, eaves - 0.06), (rim - 0.06, eaves - 0.06), (rim, eaves)], darken(roof, 0.2)
    )
    door = rng.uniform(-0.3, 0.3) * half
    sketch.box(door - 0.15, 0.4, door + 0.15, 0.92, darken(paint.main, 0.55), radius=0.04)
    sketch.ellipse(door + 0.08, 0.68, 0.03, 0.03, (240, 205, 110))
    lit = (255, 222, 140) if rng.random() < 0.5 else paint.glass
    rows = (-0.02, 0.42) if tall else (0.24,)
    for y in rows:
        for x in (-half * 0.62, half * 0.62):
            if y > 0.2 and abs(x - door) < 0.3:
                continue
            sketch.box(x - 0.15, y - 0.03, x + 0.15, y + 0.27, paint.white)
            sketch.box(x - 0.11, y + 0.01, x + 0.11, y + 0.23, lit)
            sketch.box(x - 0.02, y, x + 0.02, y + 0.25, paint.white)


def draw_tree(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a round-headed tree, a fir or a poplar."""
    form = rng.integers(3)
    sketch.polygon([(-0.1, 0.1), (0.1, 0.1), (0.16, 0.96), (-0.16, 0.96)], paint.wood)
    if form == 0:
        sketch.stroke([(0, 0.5), (-0.3, 0.1)], 0.08, paint.wood)
        sketch.stroke([(0, 0.45), (0.3, 0.05)], 0.08, paint.wood)
        lobes = [(-0.42, 0.02, 0.42), (0.42, 0.0, 0.42), (0.0, -0.42, 0.5), (0.0, 0.04, 0.42)]
        for x, y, radius in lobes:
            radius *= rng.uniform(0.9, 1.1)
            sketch.ellipse(x, y, radius, radius, paint.main, textured=True)
        for x, y, radius in lobes[:3]:
            sketch.ellipse(x - 0.1, y - 0.12, radius * 0.5, radius * 0.42, lighten(paint.main, 0.18))
    elif form == 1:
        for tier in range(3):
            half, y = 0.42 + 0.15 * tier, -0.96 + 0.46 * tier
            sketch.polygon(
                [(0, y), (-half, y + 0.72), (0, y + 0.62), (half, y + 0.72)],
                mix(paint.main, darken(paint.main, 0.25), 1 - tier / 2),
                textured=True,
            )
    else:
        width = rng.uniform(0.42, 0.55)
        sketch.curve(
            [(0, -0.98), (width * 0.8, -0.5), (width, 0.1), (0, 0.6), (-width, 0.1), (-width * 0.8, -0.5)],
            paint.main,
            textured=True,
        )
        sketch.stroke([(0, 0.5), (0, -0.55)], 0.05, darken(paint.main, 0.3))
        for y in (-0.25, 0.1, 0.4):
            sketch.stroke([(-0.22, y - 0.2), (0, y), (0.22, y - 0.2)], 0.05, darken(paint.main, 0.3))


def draw_fish(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a fish facing left: slim or round, with fins, gill and bands."""
    height = rng.uniform(0.36, 0.58)
    fin = darken(paint.main, 0.25) if rng.random() < 0.5 else paint.accent
    sketch.curve([(0.42, 0), (0.92, -0.46), (0.86, -0.1), (0.8, 0), (0.86, 0.1), (0.92, 0.46)], fin)
    sketch.curve([(-0.35, -height * 0.8), (0.0, -height - 0.26), (0.3, -height * 0.95), (0.3, -height * 0.5)], fin)
    sketch.curve([(-0.1, height * 0.8), (0.2, height + 0.2), (0.25, height * 0.6)], fin)
    sketch.curve([
        (-0.95, 0.05), (-0.66, -height * 0.72), (-0.15, -height), (0.35, -height * 0.5), (0.6, 0),
        (0.35, height * 0.5), (-0.15, height), (-0.66, height * 0.75),
    ], paint.main, textured=True)
    if rng.random() < 0.5:
        for x in (-0.1, 0.2):
            bend = height * (1 - abs(x)) * 0.86
            band = [(x - 0.07, -bend), (x + 0.07, -bend), (x + 0.13, 0), (x + 0.07, bend), (x - 0.07, bend), (x, 0)]
            sketch.curve(band, lighten(paint.main, 0.5))
    sketch.curve([(-0.1, 0.05), (0.2, 0.12), (0.22, 0.3), (0.0, 0.24)], fin)
    sketch.stroke([(-0.36, -height * 0.55), (-0.29, 0), (-0.36, height * 0.55)], 0.05, darken(paint.main, 0.35))
    sketch.ellipse(-0.62, -0.1, 0.11, 0.11, paint.white)
    sketch.ellipse(-0.64, -0.1, 0.06, 0.06, paint.dark)
    sketch.stroke([(-0.9, 0.14), (-0.74, 0.16)], 0.04, darken(paint.main, 0.5))


def draw_mushroom(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a toadstool, round or pointed."""
    half, rim = rng.uniform(0.17, 0.28), rng.uniform(0.0, 0.2)
    pointed = rng.random() < 0.35
    stem = mix(paint.white, paint.wood, rng.uniform(0.05, 0.25))
    sketch.curve([
        (-half, rim), (half, rim), (half * 0.9, 0.5), (half * 1.35, 0.94), (0, 0.98), (-half * 1.35, 0.94),
        (-half * 0.9, 0.5),
    ], stem)
    sketch.ellipse(0, rim, 0.84, 0.17, mix(stem, paint.wood, 0.3))
    if pointed:
        cap = [(-0.9, rim + 0.06), (-0.62, -0.4), (0, -0.98), (0.62, -0.4), (0.9, rim + 0.06), (0, rim - 0.04)]
    else:
        cap = [
            (-0.94, rim + 0.04), (-0.78, -0.5), (-0.3, -0.86), (0.3, -0.86), (0.78, -0.5), (0.94, rim + 0.04),
            (0.4, rim - 0.06), (-0.4, rim - 0.06),
        ]
    sketch.curve(cap, paint.main, textured=True)
    for x, y, radius in ((-0.42, -0.32, 0.13), (0.02, -0.6, 0.12), (0.44, -0.28, 0.14), (0.0, -0.16, 0.1)):
        radius *= rng.uniform(0.75, 1.2)
        sketch.ellipse(x, y, radius, radius * 0.85, paint.white)


def draw_star(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a five-pointed star, flat, faceted or with a smaller star on it."""
    inner, form = rng.uniform(0.4, 0.52), rng.integers(3)
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, inner)
    points = np.array([0, 0.06]) + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    sketch.polygon(points, paint.main, textured=True)
    if form == 0:
        for tip in range(0, 10, 2):
            sketch.polygon([points[tip], points[tip - 1], (0, 0.06)], darken(paint.main, 0.22))
    elif form == 1:
        sketch.polygon((points - (0, 0.06)) * 0.55 + (0, 0.06), lighten(paint.main, 0.45))


def draw_heart(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a heart, plain, with an inset or with a glint."""
    t = np.linspace(0, 2 * np.pi, 50)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    points = np.array([0, -0.08]) + np.stack([x * 0.98, y * rng.uniform(0.9, 1.05)], 1)
    sketch.polygon(points, paint.main, textured=True)
    form = rng.integers(3)
    if form == 0:
        sketch.polygon(points * 0.62 + (0, -0.03), lighten(paint.main, 0.4))
    elif form == 1:
        sketch.ellipse(-0.48, -0.4, 0.2, 0.12, lighten(paint.main, 0.6), angle=-0.7)


def draw_moon(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a crescent with craters, sometimes with a face."""
    bite, shift = rng.uniform(0.66, 0.8), rng.uniform(0.42, 0.52)
    sketch.ellipse(-0.08, 0, 0.95, 0.95, paint.main, textured=True)
    for x, y, radius in ((-0.72, -0.2, 0.1), (-0.55, 0.5, 0.13), (-0.45, -0.62, 0.08), (-0.72, 0.2, 0.06)):
        sketch.ellipse(x, y, radius, radius, darken(paint.main, 0.16))
    sketch.ellipse(shift, -0.08, bite, bite, None)
    if rng.random() < 0.4:
        sketch.stroke([(-0.52, -0.22), (-0.44, -0.17), (-0.36, -0.22)], 0.06, paint.dark)


def draw_flower(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a daisy-like flower with a stem and leaves; petals round or long, in one row or two."""
    petals, center = int(rng.integers(5, 9)), np.array([0.0, -0.32])
    long, radius = rng.uniform(0.26, 0.32), rng.uniform(0.36, 0.42)
    wide = min(0.22, 0.95 * np.pi * radius / petals)
    sketch.stroke([(0, -0.2), (rng.uniform(-0.06, 0.06), 0.4), (0, 0.94)], 0.1, paint.leaf)
    for side in (-1, 1):
        if rng.random() < 0.8:
            y = rng.uniform(0.5, 0.7)
            leaf = [(0, y + 0.16), (side * 0.22, y - 0.08), (side * 0.52, y - 0.14), (side * 0.3, y + 0.12)]
            sketch.curve(leaf, paint.leaf)
    turn = rng.uniform(0, np.pi)
    rows = [(1.0, paint.main)]
    if rng.random() < 0.4:
        rows.append((0.62, lighten(paint.main, 0.4)))
    for scale, fill in rows:
        for k in range(petals):
            angle = turn + 2 * np.pi * k / petals
            x, y = center + radius * scale * np.array([np.cos(angle), np.sin(angle)])
            sketch.ellipse(x, y, long * scale, wide * scale, fill, angle=angle, textured=True)
    middle = (244, 196, 70) if rng.random() < 0.6 else darken(paint.main, 0.5)
    sketch.ellipse(*center, 0.21, 0.21, middle)
    sketch.ellipse(center[0] - 0.05, center[1] - 0.05, 0.1, 0.1, lighten(middle, 0.3))


def draw_boat(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a sailing boat or a steamer."""
    hull = [(-0.92, 0.34), (0.92, 0.34), (0.7, 0.82), (-0.62, 0.82)]
    if rng.random() < 0.65:
        sail = paint.white if rng.random() < 0.5 else lighten(paint.accent, 0.25)
        sketch.box(-0.07, -0.96, 0.01, 0.4, paint.wood)
        sketch.curve([(0.06, -0.9), (0.5, -0.4), (rng.uniform(0.7, 0.84), 0.2), (0.4, 0.22), (0.06, 0.2)], sail)
        sketch.polygon([(-0.12, -0.72), (-0.12, 0.2), (rng.uniform(-0.75, -0.6), 0.2)], darken(sail, 0.15))
        sketch.polygon([(-0.03, -0.98), (0.22, -0.91), (-0.03, -0.84)], paint.accent)
    else:
        sketch.box(-0.5, -0.02, 0.5, 0.4, paint.white)
        sketch.box(-0.3, -0.34, 0.2, 0.0, lighten(paint.accent, 0.5))
        sketch.box(0.22, -0.7, 0.44, 0.0, paint.accent)
        sketch.box(0.2, -0.72, 0.46, -0.58, paint.dark)
        for x in (-0.3, 0.0, 0.3):
            sketch.ellipse(x, 0.17, 0.09, 0.09, paint.glass)
    sketch.polygon(hull, paint.main, textured=True)
    sketch.polygon([(-0.92, 0.34), (0.92, 0.34), (0.86, 0.46), (-0.85, 0.46)], lighten(paint.main, 0.45))


def draw_cup(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a mug or a teacup on its saucer, with a handle on the right."""
    inside, tea = darken(paint.main, 0.35), mix(paint.wood, (90, 50, 30), 0.5)
    if rng.random() < 0.55:
        narrow = rng.uniform(0.0, 0.14)
        sketch.ellipse(0.58, 0.08, 0.36, 0.4, paint.main)
        sketch.ellipse(0.58, 0.08, 0.2, 0.24, None)
        side = [(-0.76, -0.62), (0.5, -0.62), (0.5 - narrow, 0.82), (-0.76 + narrow, 0.82)]
        sketch.polygon(side, paint.main, textured=True)
        sketch.ellipse(-0.13, 0.82, 0.63 - narrow, 0.12, paint.main, textured=True)
        top, half = -0.62, 0.63
        if rng.random() < 0.5:
            y = rng.uniform(-0.1, 0.3)
            sketch.polygon([(-0.73, y), (0.47, y), (0.46, y + 0.18), (-0.72, y + 0.18)], paint.accent)
    else:
        sketch.ellipse(-0.1, 0.66, 0.84, 0.2, lighten(paint.accent, 0.3))
        sketch.ellipse(-0.1, 0.62, 0.5, 0.1, darken(paint.accent, 0.1))
        sketch.ellipse(0.6, -0.04, 0.32, 0.3, paint.main)
        sketch.ellipse(0.58, -0.04, 0.18, 0.17, None)
        sketch.curve(
            [(-0.82, -0.4), (-0.68, 0.2), (-0.36, 0.62), (0.16, 0.62), (0.48, 0.2), (0.62, -0.4), (-0.1, -0.34)],
            paint.main,
            textured=True,
        )
        top, half = -0.4, 0.72
    sketch.ellipse(-0.13, top, half, 0.17, inside)
    sketch.ellipse(-0.13, top + 0.04, half * 0.88, 0.12, tea)
    sketch.ellipse(-0.13, top - 0.02, half, 0.015, lighten(paint.main, 0.4))


def draw_umbrella(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw an open umbrella with coloured panels and a hooked handle."""
    other = lighten(paint.main, 0.5) if rng.random() < 0.5 else paint.accent
    height, rim = rng.uniform(0.78, 0.98), 0.02
    sketch.stroke([(0, -0.9), (0, 0.78)], 0.08, paint.wood)
    hook = [(0.16 + 0.16 * np.cos(a), 0.78 + 0.16 * np.sin(a)) for a in np.linspace(np.pi, 0, 7)]
    sketch.stroke(hook, 0.09, paint.wood)
    sketch.sector(0, rim, 0.96, height, 180, 360, paint.main, textured=True)
    edges = np.linspace(-0.96, 0.96, 5)
    rise = np.linspace(0, np.pi / 2, 8)
    ribs = [np.stack([x * np.cos(rise), rim - height * np.sin(rise)], 1) for x in edges]
    for k in (1, 2) if rng.random() < 0.5 else (0, 3):
        sketch.polygon(np.concatenate([ribs[k], ribs[k + 1][::-1]]), other)
    for left, right in pairwise(edges):
        sketch.ellipse((left + right) / 2, rim + 0.02, 0.24, 0.13, None)
    sketch.stroke([(0, rim - 0.1), (0, 0.1)], 0.08, paint.wood)
    sketch.stroke([(0, -height - 0.02), (0, -height + 0.04)], 0.08, paint.wood)


def draw_butterfly(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a butterfly from above with spotted wings."""
    span, lower = rng.uniform(0.86, 0.98), rng.uniform(0.6, 0.78)
    hind = paint.main if rng.random() < 0.5 else darken(paint.main, 0.22)
    spot = paint.accent if rng.random() < 0.6 else lighten(paint.main, 0.6)
    for side in (-1, 1):
        sketch.curve(
            [(0, 0.0), (side * 0.5, 0.1), (side * lower, 0.44), (side * 0.46, 0.88), (side * 0.14, 0.6)],
            hind,
            textured=True,
        )
        sketch.curve(
            [(0, 0.1), (side * 0.3, -0.66), (side * span * 0.86, -0.82), (side * span, -0.34), (side * 0.52, 0.14)],
            paint.main,
            textured=True,
        )
        sketch.ellipse(side * 0.6, -0.42, 0.17, 0.17, spot)
        sketch.ellipse(side * 0.42, 0.48, 0.13, 0.13, spot)
        sketch.stroke([(0, -0.4), (side * 0.12, -0.72), (side * 0.26, -0.9)], 0.05, paint.dark)
    sketch.ellipse(0, 0.08, 0.1, 0.56, paint.dark)
    sketch.ellipse(0, -0.44, 0.12, 0.12, paint.dark)


def draw_clock(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a wall clock or an alarm clock."""
    alarm = rng.random() < 0.5
    radius, y = (0.74, 0.12) if alarm else (0.96, 0.0)
    if alarm:
        for side in (-1, 1):
            sketch.stroke([(side * 0.3, 0.6), (side * 0.56, 0.94)], 0.15, darken(paint.main, 0.35))
            sketch.ellipse(side * 0.46, -0.66, 0.3, 0.22, paint.main, angle=side * 0.6)
        sketch.box(-0.06, -0.9, 0.06, -0.6, darken(paint.main, 0.35), radius=0.04)
    sketch.ellipse(0, y, radius, radius, paint.main, textured=True)
    face = paint.white if rng.random() < 0.75 else lighten(paint.accent, 0.55)
    sketch.ellipse(0, y, radius * 0.8, radius * 0.8, face)
    for k in range(12):
        direction = np.array([np.cos(k * np.pi / 6), np.sin(k * np.pi / 6)]) * radius
        start = 0.62 if k % 3 else 0.55
        sketch.stroke([direction * start + (0, y), direction * 0.7 + (0, y)], 0.05 if k % 3 else 0.08, paint.dark)
    for length, width in ((0.36, 0.1), (0.56, 0.07)):
        angle = rng.uniform(0, 2 * np.pi)
        tip = (radius * length * np.cos(angle), y + radius * length * np.sin(angle))
        sketch.stroke([(0, y), tip], width, paint.dark)
    sketch.ellipse(0, y, 0.07, 0.07, (200, 70, 60))


def draw_rocket(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a rocket with fins, porthole and flame."""
    half, fin = rng.uniform(0.3, 0.4), paint.accent if rng.random() < 0.7 else darken(paint.main, 0.35)
    flame = rng.uniform(0.84, 0.98)
    sketch.curve([(-0.2, 0.5), (0.2, 0.5), (0.12, 0.74), (0, flame), (-0.12, 0.74)], (246, 160, 60))
    sketch.curve([(-0.1, 0.5), (0.1, 0.5), (0.05, 0.68), (0, 0.8), (-0.05, 0.68)], (255, 226, 120))
    for side in (-1, 1):
        root = side * half * 0.7
        sketch.curve([(root, 0.0), (side * 0.7, 0.4), (side * 0.74, 0.76), (root, 0.52)], fin)
    sketch.curve([
        (0, -0.98), (half * 0.8, -0.5), (half, 0.05), (half * 0.7, 0.56), (0, 0.6), (-half * 0.7, 0.56),
        (-half, 0.05), (-half * 0.8, -0.5),
    ], paint.main, textured=True)
    sketch.curve([
        (0, -0.98), (half * 0.45, -0.74), (half * 0.74, -0.5), (0, -0.44), (-half * 0.74, -0.5),
        (-half * 0.45, -0.74),
    ], fin)
    for y in (-0.14, 0.22)[: 1 + int(rng.random() < 0.4)]:
        sketch.ellipse(0, y, 0.19, 0.19, darken(paint.main, 0.4))
        sketch.ellipse(0, y, 0.13, 0.13, paint.glass)
    sketch.box(-half * 0.72, 0.46, half * 0.72, 0.56, darken(paint.main, 0.3), radius=0.04)


def draw_balloon(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a hot-air balloon with gores or bands and a basket."""
    wide, other = rng.uniform(0.68, 0.8), paint.accent if rng.random() < 0.5 else lighten(paint.main, 0.5)
    for x in (-0.16, 0.16):
        sketch.stroke([(x * 1.6, 0.3), (x, 0.74)], 0.04, paint.dark)
    sketch.box(-0.2, 0.7, 0.2, 0.98, paint.wood, radius=0.05)
    sketch.box(-0.22, 0.68, 0.22, 0.75, darken(paint.wood, 0.3), radius=0.02)

    def envelope(scale: float) -> Points:
        side = [(0.55, -0.86), (0.95, -0.5), (1.0, -0.2), (0.72, 0.18), (0.34, 0.48)]
        right = [(x * wide * scale, y) for x, y in side]
        return [(0, -0.98), *right, *[(-x, y) for x, y in right[::-1]]]

    sketch.curve(envelope(1.0), paint.main, textured=True)
    if rng.random() < 0.7:
        sketch.curve(envelope(0.66), other)
        sketch.curve(envelope(0.3), paint.main, textured=True)
    else:
        sketch.curve([
            (-wide * 0.97, -0.42), (0, -0.36), (wide * 0.97, -0.42), (wide * 0.96, -0.08), (0, -0.02),
            (-wide * 0.96, -0.08),
        ], other)
    sketch.box(-0.27, 0.4, 0.27, 0.49, darken(paint.main, 0.35), radius=0.03)


def draw_cat(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a sitting cat, plain or striped, tail to one side."""
    chest, stripe = lighten(paint.main, 0.55), darken(paint.main, 0.35)
    tail = rng.uniform(0.74, 0.92)
    sketch.stroke([(0.3, 0.8), (0.66, 0.72), (tail, 0.36), (tail - 0.12, 0.06)], 0.17, darken(paint.main, 0.12))
    sketch.curve(
        [(-0.3, -0.1), (0.3, -0.1), (0.52, 0.5), (0.46, 0.94), (0, 0.98), (-0.46, 0.94), (-0.52, 0.5)],
        paint.main,
        textured=True,
    )
    sketch.ellipse(0, 0.52, 0.2, 0.36, chest)
    for side in (-1, 1):
        sketch.ellipse(side * 0.2, 0.9, 0.16, 0.09, chest)
        sketch.polygon([(side * 0.5, -0.44), (side * 0.48, -0.98), (side * 0.1, -0.72)], paint.main)
        sketch.polygon([(side * 0.42, -0.6), (side * 0.42, -0.84), (side * 0.22, -0.7)], (232, 160, 160))
    sketch.ellipse(0, -0.4, 0.54, 0.44, paint.main, textured=True)
    if rng.random() < 0.5:
        for x in (-0.14, 0, 0.14):
            sketch.stroke([(x, -0.8), (x * 0.8, -0.62)], 0.07, stripe)
        for y in (0.2, 0.45):
            for side in (-1, 1):
                sketch.stroke([(side * 0.46, y + 0.06), (side * 0.26, y)], 0.07, stripe)
    iris = (150, 190, 90) if rng.random() < 0.5 else (240, 200, 80)
    for side in (-1, 1):
        sketch.ellipse(side * 0.22, -0.42, 0.11, 0.12, iris)
        sketch.ellipse(side * 0.22, -0.42, 0.045, 0.1, paint.dark)
        sketch.stroke([(side * 0.12, -0.16), (side * 0.46, -0.12)], 0.025, paint.white)
    sketch.polygon([(-0.07, -0.26), (0.07, -0.26), (0, -0.18)], (220, 120, 120))
    sketch.stroke([(-0.1, -0.1), (0, -0.14), (0.1, -0.1)], 0.035, paint.dark)


def draw_bird(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a songbird facing right, plump or slim, wing folded or raised."""
    belly, plump = lighten(paint.main, 0.55), rng.uniform(0.9, 1.12)
    wing = paint.accent if rng.random() < 0.4 else darken(paint.main, 0.25)
    for x in (-0.06, 0.14):
        sketch.stroke([(x, 0.5), (x, 0.88), (x + 0.14, 0.9)], 0.05, paint.dark)
    sketch.curve([(-0.4, 0.0), (-0.96, -0.22), (-0.98, 0.04), (-0.9, 0.2), (-0.36, 0.3)], wing)
    sketch.polygon([(0.66, -0.5), (0.98, -0.36), (0.66, -0.28)], (240, 160, 60))
    sketch.curve([
        (0.42, -0.78), (0.72, -0.62), (0.72, -0.34), (0.62, 0.1 * plump), (0.34, 0.5 * plump),
        (-0.1, 0.6 * plump), (-0.5, 0.34), (-0.62, 0.0), (-0.2, -0.2), (0.1, -0.64),
    ], paint.main, textured=True)
    sketch.curve([(0.56, -0.12), (0.46, 0.3), (0.1, 0.54 * plump), (0.14, 0.24)], belly)
    if rng.random() < 0.5:
        sketch.curve([(0.14, -0.1), (0.12, 0.24), (-0.3, 0.3), (-0.62, 0.16), (-0.2, -0.08)], wing)
    else:
        sketch.curve([(0.16, 0.0), (-0.04, 0.22), (-0.36, -0.12), (-0.56, -0.72), (-0.1, -0.46)], wing)
    sketch.ellipse(0.48, -0.5, 0.09, 0.09, paint.white)
    sketch.ellipse(0.5, -0.5, 0.05, 0.05, paint.dark)


def draw_snail(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a snail facing right with a spiral shell."""
    skin, size = mix(lighten(paint.wood, 0.5), lighten(paint.accent, 0.5), 0.4), rng.uniform(0.54, 0.64)
    y = 0.74 - size - 0.04
    for x in (0.66, 0.84):
        sketch.stroke([(0.68, 0.1), (x, -0.34)], 0.06, skin)
        sketch.ellipse(x, -0.38, 0.07, 0.07, paint.dark)
    sketch.curve([
        (-0.98, 0.82), (-0.5, 0.56), (0.3, 0.56), (0.5, 0.2), (0.66, 0.0), (0.88, 0.1), (0.88, 0.36), (0.7, 0.8),
        (0.3, 0.86),
    ], skin)
    sketch.ellipse(-0.16, y, size, size, paint.main, textured=True)
    turns = np.linspace(0, 2 * np.pi * rng.uniform(2.0, 2.5), 30)
    radii = size * 0.86 * (1 - turns / turns[-1])
    spiral = np.stack([-0.16 + radii * np.cos(turns + 0.8), y + radii * np.sin(turns + 0.8)], 1)
    sketch.stroke(spiral, 0.09, darken(paint.main, 0.4))


def draw_cactus(sketch: Sketch, paint: Paint, rng: np.random.Generator):
    """Draw a columnar cactus with arms, or a round one, in a pot."""
    pot, line = mix(paint.accent, (190, 104, 70), 0.7), darken(paint.main, 0.25)
    if rng.random() < 0.65:
        half = rng.uniform(0.18, 0.24)
        for side, y, tip in ((-1, rng.uniform(0.1, 0.25), -0.3), (1, rng.uniform(-0.1, 0.1), -0.55)):
            sketch.stroke([(0, y), (side * 0.56, y), (side * 0.6, y + tip)], 0.26, paint.main)
        sketch.box(-half, -0.94, half, 0.6, paint.main, radius=half, textured=True)
        for x in (-half * 0.45, half * 0.45):
            sketch.stroke([(x, -0.74), (x, 0.5)], 0.04, line)
    else:
        wide = rng.uniform(0.6, 0.72)
        sketch.ellipse(0, 0.0, wide, 0.66, paint.main, textured=True)
        for share in (0.25, 0.7):
            sketch.ellipse(0, 0, wide * share, 0.64, line)
            sketch.ellipse(0, 0, wide * share - 0.05, 0.62, paint.main, textured=True)
        for angle in np.linspace(0, 2 * np.pi, 6)[:-1]:
            sketch.ellipse(0.13 * np.cos(angle), -0.7 + 0.13 * np.sin(angle), 0.11, 0.11, (226, 110, 140))
        sketch.ellipse(0, -0.7, 0.08, 0.08, (250, 214, 110))
    sketch.polygon([(-0.42, 0.52), (0.42, 0.52), (0.32, 0.97), (-0.32, 0.97)], pot)
    sketch.box(-0.48, 0.44, 0.48, 0.6, lighten(pot, 0.15), radius=0.04)


DRAWERS: dict[str, Callable[[Sketch, Paint, np.random.Generator], None]] = {
    "car": draw_car,
    "house": draw_house,
    "tree": draw_tree,
    "fish": draw_fish,
    "mushroom": draw_mushroom,
    "star": draw_star,
    "heart": draw_heart,
    "moon": draw_moon,
    "flower": draw_flower,
    "boat": draw_boat,
    "cup": draw_cup,
    "umbrella": draw_umbrella,
    "butterfly": draw_butterfly,
    "clock": draw_clock,
    "rocket": draw_rocket,
    "balloon": draw_balloon,
    "cat": draw_cat,
    "bird": draw_bird,
    "snail": draw_snail,
    "cactus": draw_cactus,
}
