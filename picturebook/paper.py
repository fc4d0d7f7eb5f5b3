"""Coloured paper: inks, sketches made of polygons, and how a sketch becomes pixels.

A sketch is a list of flat polygons in the square [-1, 1] x [-1, 1] (x to the right, y down). Rotation, size and mirror
image are applied to the points, the polygons are filled at three times the resolution and averaged down, and light,
surface pattern and paper grain are laid on top. Nothing is ever resampled, so edges stay clean at any angle.
"""

import colorsys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


Color = tuple[int, int, int]
Points = list[tuple[float, float]] | np.ndarray

SUPERSAMPLING = 3
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 40, False)), np.sin(np.linspace(0, 2 * np.pi, 40, False))], 1)

# Hue families, (hue, saturation, value). Classes share them, so that a colour alone never tells the class.
INKS = {
    "coral": (0.015, 0.70, 0.88), "orange": (0.07, 0.76, 0.95), "gold": (0.125, 0.72, 0.96),
    "leaf": (0.30, 0.52, 0.60), "teal": (0.48, 0.56, 0.64), "blue": (0.58, 0.62, 0.82),
    "indigo": (0.66, 0.48, 0.58), "violet": (0.77, 0.42, 0.70), "rose": (0.93, 0.50, 0.90),
    "cream": (0.11, 0.13, 0.96), "brown": (0.06, 0.55, 0.48), "slate": (0.60, 0.22, 0.36),
}  # fmt: skip
NAMED_INKS = {
    "red": (0.0, 0.82, 0.82), "blue": (0.60, 0.75, 0.80), "green": (0.34, 0.65, 0.60), "yellow": (0.145, 0.80, 0.95),
    "purple": (0.79, 0.58, 0.66),
}  # fmt: skip


def mix(color: Color, other: Color, share: float) -> Color:
    """Blend two colours; `share` of the second."""
    return tuple(int(a + (b - a) * share) for a, b in zip(color, other, strict=True))


def darken(color: Color, share: float = 0.3) -> Color:
    """Move a colour towards a warm black."""
    return mix(color, (30, 22, 40), share)


def lighten(color: Color, share: float = 0.4) -> Color:
    """Move a colour towards a warm white."""
    return mix(color, (255, 250, 240), share)


def ink(hsv: tuple[float, float, float], rng: np.random.Generator, spread: float = 1.0) -> Color:
    """Jitter a hue family into one colour, channels 0 to 255."""
    hue = (hsv[0] + rng.normal(0, 0.018) * spread) % 1
    saturation = float(np.clip(hsv[1] * rng.uniform(0.8, 1.15), 0, 1))
    value = float(np.clip(hsv[2] * rng.uniform(0.82, 1.1), 0.1, 1))
    return tuple(int(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


@dataclass(frozen=True)
class Paint:
    """The colours of one sprite: its main paper, an accent, and the constants every class may use."""

    main: Color
    accent: Color
    wood: Color
    leaf: Color
    glass: Color
    dark: Color = (46, 40, 52)
    white: Color = (248, 244, 234)


def choose_paint(palette: str, rng: np.random.Generator, color: str | None = None) -> Paint:
    """Pick the papers of a sprite; every fifth main colour is free of the palette of its class.

    Args:
        palette: Names of `INKS`, separated by spaces.
        rng: Source of the choice.
        color: One of `NAMED_INKS` to force the main colour (the compositional world).
    """
    families = [INKS[name] for name in palette.split()]
    main = families[int(rng.integers(len(families)))]
    if rng.random() < 0.2:
        main = (rng.random(), rng.uniform(0.4, 0.75), rng.uniform(0.55, 0.95))
    accent = list(INKS.values())[int(rng.integers(len(INKS)))]
    if color is not None:
        main, accent = NAMED_INKS[color], INKS["cream"]
    return Paint(
        main=ink(main, rng, 0.6 if color else 1.0),
        accent=ink(accent, rng),
        wood=ink(INKS["brown"], rng),
        leaf=ink(INKS["leaf"], rng),
        glass=lighten(ink(INKS["blue"], rng), 0.45),
    )


class Sketch:
    """Layers of one sprite, bottom first.

    Attributes:
        layers: `(points, fill, textured)` with points `(num_points, 2)`, fill an RGB tuple or `None` to cut a hole,
            and whether the surface pattern covers the layer.
    """

    def __init__(self):
        self.layers: list[tuple[np.ndarray, Color | None, bool]] = []

    def polygon(self, points: Points, fill: Color | None, textured: bool = False):
        """Add a polygon."""
        self.layers.append((np.asarray(points, float), fill, textured))

    def ellipse(
        self, x: float, y: float, width: float, height: float, fill: Color | None, angle: float = 0.0,
        textured: bool = False,
    ):  # fmt: skip
        """Add an ellipse with half axes `width` and `height`, turned by `angle` radians."""
        cos, sin = np.cos(angle), np.sin(angle)
        points = (_CIRCLE * (width, height)) @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
        self.polygon(points, fill, textured)

    def sector(
        self, x: float, y: float, width: float, height: float, start: float, stop: float, fill: Color | None,
        textured: bool = False,
    ):  # fmt: skip
        """Add the part of an ellipse between two angles in degrees, closed through its ends."""
        angles = np.radians(np.linspace(start, stop, 28))
        self.polygon(np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], 1), fill, textured)

    def box(
        self, left: float, top: float, right: float, bottom: float, fill: Color | None, radius: float = 0.0,
        textured: bool = False,
    ):  # fmt: skip
        """Add an upright rectangle with corners rounded by `radius`."""
        corners = [(right, bottom, 0), (left, bottom, 10), (left, top, 20), (right, top, 30)]
        points = []
        for x, y, first in corners:
            inset = (x - radius if x == right else x + radius, y - radius if y == bottom else y + radius)
            points.append(_CIRCLE[np.arange(first, first + 11) % 40] * radius + inset if radius else [(x, y)])
        self.polygon(np.concatenate(points), fill, textured)

    def curve(self, points: Points, fill: Color | None, textured: bool = False):
        """Add a closed smooth outline through `points` (Catmull-Rom)."""
        anchors = np.asarray(points, float)
        before, after, beyond = np.roll(anchors, 1, 0), np.roll(anchors, -1, 0), np.roll(anchors, -2, 0)
        t = np.linspace(0, 1, 7)[:-1, None, None]
        outline = 0.5 * (
            2 * anchors
            + (after - before) * t
            + (2 * before - 5 * anchors + 4 * after - beyond) * t**2
            + (3 * anchors - before - 3 * after + beyond) * t**3
        )  # (6 steps, num_points, 2) -> (num_points * 6, 2)
        self.polygon(outline.transpose(1, 0, 2).reshape(-1, 2), fill, textured)

    def stroke(self, points: Points, width: float, fill: Color | None):
        """Add a line of round joints and ends; `width` is its full thickness."""
        points = np.asarray(points, float)
        for start, end in pairwise(points):
            along = (end - start) / max(np.hypot(*(end - start)), 1e-6) * width / 2
            across = np.array([-along[1], along[0]])
            self.polygon([start + across, end + across, end - across, start - across], fill)
        for point in points:
            self.polygon(_CIRCLE[::4] * width / 2 + point, fill)


def render_sketch(sketch: Sketch, size: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn a sketch into pixels, in a random pose and on random paper.

    Args:
        sketch: What to draw.
        size: Side of the sketch's square before rotation, in pixels.
        rng: Source of pose and surface.

    Returns:
        Premultiplied colours `(height, width, 3)` in 0 to 255 and coverage `(height, width)` in 0 to 1, both float32,
        of the smallest box that holds the sketch.
    """
    corners = [layer[0] for layer in sketch.layers]
    points = np.concatenate(corners) @ _random_pose(rng).T * (size / 2)
    low = np.floor(points.min(0)) - 1
    width, height = (int(side) for side in np.ceil(points.max(0)) + 1 - low)
    points = (points - low) * SUPERSAMPLING
    canvas = Image.new("RGBA", (width * SUPERSAMPLING, height * SUPERSAMPLING), (0, 0, 0, 0))
    textured = Image.new("L", canvas.size, 0)
    paint_color, paint_texture = ImageDraw.Draw(canvas), ImageDraw.Draw(textured)
    splits = np.cumsum([len(layer) for layer in corners])[:-1]
    for polygon, (_, fill, is_textured) in zip(np.split(points, splits), sketch.layers, strict=True):
        outline = polygon.ravel().tolist()
        paint_color.polygon(outline, fill=(0, 0, 0, 0) if fill is None else (*fill, 255))
        paint_texture.polygon(outline, fill=255 if is_textured else 0)
    pixels = np.asarray(canvas.reduce(SUPERSAMPLING), np.float32)
    surface = np.asarray(textured.reduce(SUPERSAMPLING), np.float32) / 255
    alpha = pixels[..., 3] / 255
    light = _pattern(surface, size, rng) * _relief(alpha, size) * rng.normal(1, 0.025, alpha.shape).astype(np.float32)
    return np.minimum(pixels[..., :3] * light[..., None], 255 * alpha[..., None]), alpha


def _random_pose(rng: np.random.Generator) -> np.ndarray:
    """Matrix of mirror image, aspect and rotation: mostly upright, one in six at any angle up to a quarter turn."""
    angle = np.radians(rng.normal(0, 14) if rng.random() < 5 / 6 else rng.uniform(-90, 90))
    aspect = rng.uniform(0.88, 1.14)
    scale = np.diag([aspect * (-1 if rng.random() < 0.5 else 1), 1 / aspect])
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ scale


def _pattern(surface: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness of the printed paper: plain, striped, dotted or checked, with a slow gradient.

    Args:
        surface: (height, width) share of each pixel that the pattern covers.
        size: Side of the sprite in pixels, sets the pitch.
        rng: Source of kind, angle, pitch and contrast.
    """
    y, x = np.mgrid[: surface.shape[0], : surface.shape[1]].astype(np.float32) / np.float32(size)
    angle, pitch = rng.uniform(0, np.pi), 2 * np.pi * rng.uniform(5, 9)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind, contrast = rng.random(), rng.uniform(0.08, 0.2)
    if kind < 0.2:
        print_ = np.sign(np.sin(pitch * along))
    elif kind < 0.35:
        print_ = np.sign(np.sin(pitch * along) * np.sin(pitch * across))
    elif kind < 0.5:
        print_ = 2.0 * (np.sin(pitch * along) + np.sin(pitch * across) > 1.2) - 0.5
    else:
        print_ = np.zeros_like(x)
    gradient = rng.uniform(-0.12, 0.12) * (along - along.mean())
    return (1 + surface * contrast * print_ + gradient).astype(np.float32)


def _relief(alpha: np.ndarray, size: float) -> np.ndarray:
    """Brightness of thick paper lit from the upper left: a light rim on that side, a dark one opposite."""
    soft = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(max(size * 0.03, 0.6)))
    height = np.asarray(soft, np.float32) / 255
    step = max(int(size * 0.03), 1)
    padded = np.pad(height, step)
    return 1 + 0.28 * (padded[2 * step :, 2 * step :] - padded[: -2 * step, : -2 * step]).clip(-0.8, 0.8)
