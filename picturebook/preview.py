"""Draw the preview sheet: specimens of every class, pages with their label maps, and the legend.

Usage: `python -m picturebook.preview --output assets/picturebook.png`
"""

import argparse
import colorsys
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from picturebook.sprites import render_sprite
from picturebook.textures import get_tile
from picturebook.vocabulary import CLASS_NAMES, NUM_THINGS, UNSEEN_NAMES
from picturebook.world import draw_scene


PAPER, TEXT, MARK = (250, 247, 240), (60, 54, 64), (196, 78, 66)
SCALE = 2  # Pages are drawn at twice the size of the data, for the eye.
CELL, GAP = 128 * SCALE, 20


def class_palette() -> np.ndarray:
    """Colours of the label maps, `(num_classes, 3)` uint8: soft and distinct, things bright, stuff pale."""
    colors = []
    for i in range(len(CLASS_NAMES)):
        saturation, value = ((0.62, 0.86), (0.45, 0.70), (0.38, 0.95))[i % 3] if i < NUM_THINGS else (0.16, 0.84)
        hue = (i * 0.618034) % 1 if i < NUM_THINGS else (i - NUM_THINGS) / (len(CLASS_NAMES) - NUM_THINGS)
        colors.append([int(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value)])
    return np.array(colors, np.uint8)


def draw_preview(num_columns: int = 6, seed: int = 0) -> Image.Image:
    """Compose the sheet: two rows of pages over their label maps, then a specimen of every class with its name."""
    palette, font = class_palette(), ImageFont.load_default(size=24)
    width = GAP + num_columns * (CELL + GAP)
    small = (width - GAP) // 9 - GAP
    legend_rows = -(-len(CLASS_NAMES) // 9)
    sheet = Image.new("RGB", (width, GAP + 2 * (2 * CELL + 3 * GAP) + legend_rows * (small + 34 + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number in range(2 * num_columns):
        left, top = GAP + number % num_columns * (CELL + GAP), GAP + number // num_columns * (2 * CELL + 3 * GAP)
        page = draw_scene("test", seed, number, image_size=CELL)
        sheet.paste(page.image, (left, top))
        sheet.paste(Image.fromarray(palette[page.label]), (left, top + CELL + GAP // 2))
    top = GAP + 2 * (2 * CELL + 3 * GAP)
    for i, name in enumerate(CLASS_NAMES):
        left, row_top = GAP + i % 9 * (small + GAP), top + i // 9 * (small + 34 + GAP)
        sheet.paste(_specimen(i, small, palette), (left, row_top))
        draw.rectangle([left, row_top + small, left + small - 1, row_top + small + 5], fill=tuple(palette[i].tolist()))
        unseen = name in UNSEEN_NAMES
        label = f"{name} *" if unseen else name
        draw.text((left + small / 2, row_top + small + 21), label, MARK if unseen else TEXT, font, anchor="mm")
    note = "* unseen:\nin captions,\nnever masked"
    left, row_top = GAP + 8 * (small + GAP), top + (legend_rows - 1) * (small + 34 + GAP)
    draw.multiline_text((left + small / 2, row_top + small / 2), note, MARK, font, anchor="mm", align="center")
    return sheet


def _specimen(class_id: int, side: int, palette: np.ndarray) -> Image.Image:
    """Draw one thing on tinted paper, or one tile of stuff, `side` pixels square."""
    name = CLASS_NAMES[class_id]
    if class_id >= NUM_THINGS:
        return Image.fromarray(get_tile(name, 2, 3)[:112, :112]).resize((side, side), Image.Resampling.LANCZOS)
    colors, alpha = render_sprite(name, side * 0.8, np.random.default_rng([5, class_id]))
    stamp = np.dstack([colors / np.maximum(alpha, 1e-3)[..., None], alpha * 255]).clip(0, 255).astype(np.uint8)
    page = Image.new(
        "RGB", (side, side), tuple((0.8 * np.array(PAPER) + 0.2 * palette[class_id]).astype(int).tolist())
    )
    sprite = Image.fromarray(stamp)
    page.paste(sprite, ((side - sprite.width) // 2, (side - sprite.height) // 2), sprite)
    return page


def main():
    """Write the sheet to a PNG file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="assets/picturebook.png", help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0, help="edition of the book")
    args = parser.parse_args()
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet = draw_preview(seed=args.seed)
    sheet = sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS)
    sheet.quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)  # a quarter megabyte, for a README


if __name__ == "__main__":
    main()
