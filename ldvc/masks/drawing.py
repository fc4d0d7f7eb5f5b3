"""Pictures of label maps: overlays with a legend, sheets of panels, training curves and index PNGs.

Colours belong to class names, so a class looks the same in every picture. Unseen classes carry a star, in the legend
and on their regions. Needs Pillow and NumPy; only `save_curves` needs matplotlib.
"""

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont


PAPER, INK, UNSEEN_INK = (255, 255, 255), (32, 34, 40), (156, 84, 0)  # RGB
MIN_OVERLAY_SIDE = 480  # pixels; smaller images are enlarged by a whole factor, so that their legend stays readable
CELL_SIDE = 300  # pixels of the longer side of each picture in a comparison sheet
MARGIN = 14  # pixels
LEGEND_FONT_SIZE, TITLE_FONT_SIZE, STAR_RADIUS = 15, 17, 9  # pixels
COLOR_DISTANCE = 0.16  # wanted in OKLab between two classes of a list; about the step from orange to yellow
MAX_COLOR_ATTEMPTS = 64  # per name; long lists do not leave everyone that distance, then the farthest candidate wins
MAX_DISTINCT_COLORS = 256  # later names take their first colour: nobody tells more apart, 10,000 would take minutes
LIGHTNESS_COUNTS_HALF = np.array([0.5, 1.0, 1.0])  # in that distance, because blending with an image changes it most
FIXED_COLORS = {"other": np.array([150, 150, 150], dtype=np.uint8)}  # grey, which no class is
VOID_PALETTE_COLOR = (224, 224, 192)  # PASCAL VOC's colour of label 255
MAX_MARKED_POINTS = 40  # of a curve; longer ones are plain lines
CURVE_PANELS = (
    {
        "title": "loss",
        "factor": 1,
        "is_noisy": True,
        "curves": {"loss": ("loss", "#20222a"), "focal": ("focal", "#2b7bba"), "dice": ("dice", "#d9772b")},
    },
    {
        "title": "learning rate (1e-3)",
        "factor": 1000,
        "is_noisy": False,
        "curves": {"lr": ("learning rate", "#6b6f7a")},
    },
    {
        "title": "scores (%)",
        "factor": 100,
        "is_noisy": False,
        "curves": {
            "pixel_accuracy": ("pAcc", "#9aa0ab"),
            "miou_seen": ("mIoU(S)", "#2b7bba"),
            "miou_unseen": ("mIoU(U)", "#d9772b"),
            "hiou": ("hIoU", "#20222a"),
        },
    },
)


def class_colors(class_names: Sequence[str]) -> np.ndarray:
    """Pick one colour per class name.

    The colour is drawn from a hash of the name, so it does not depend on the position in the list. A name whose colour
    would be too close to that of another name in the list takes a later colour of its own sequence instead. "other" is
    grey in every list and changes no other colour.

    Args:
        class_names: Class names; equal names get equal colours.

    Returns:
        (num_classes, 3) uint8 RGB, of middle lightness, so that both photographs and white paper set them off.
    """
    colors = _choose_colors(tuple(sorted(set(class_names))))
    return np.array([colors[name] for name in class_names], dtype=np.uint8).reshape(-1, 3)


def draw_overlay(
    image: Image.Image | np.ndarray,
    label_map: Any,
    class_names: Sequence[str],
    *,
    alpha: float = 0.55,
    unseen_names: Iterable[str] = (),
    ignore_index: int = 255,
    legend: bool = True,
) -> Image.Image:
    """Draw a label map over its image, with thin borders between regions and a legend below.

    Args:
        image: Image of any mode, or (height, width, 3) uint8 array.
        label_map: (height, width) integer map; values index `class_names`.
        class_names: The vocabulary; only classes in the map appear in the legend.
        alpha: Opacity of the colours, 0 to 1.
        unseen_names: Classes trained without masks; they get a star.
        ignore_index: Id of pixels that show the plain image.
        legend: Without it, the result has exactly the size of the image.

    Returns:
        RGB picture. With a legend, images whose longer side is under 480 pixels are enlarged by a whole factor, and
        the legend is added below at the same width.
    """
    image, label_map = _as_image(image), _as_label_map(label_map, class_names, ignore_index)
    _check_sizes(image, label_map)
    factor = math.ceil(MIN_OVERLAY_SIDE / max(image.size)) if legend else 1
    size = (image.width * factor, image.height * factor)
    is_unseen = np.isin(class_names, list(unseen_names))
    picture = _paint(image.resize(size, Image.Resampling.BICUBIC), label_map, class_names, is_unseen, alpha)
    if not legend:
        return picture
    return _stack([picture, _draw_legend(size[0], _present_ids([label_map]), class_names, is_unseen)])


def draw_comparison(
    rows: Sequence[Sequence[Any]],
    class_names: Sequence[str],
    unseen_names: Iterable[str] = (),
    column_titles: Sequence[str] = ("image", "ground truth", "prediction"),
    *,
    ignore_index: int = 255,
) -> Image.Image:
    """Draw a sheet of images beside their label maps, one scene per row and one legend for all.

    Args:
        rows: Per scene an image and one (height, width) label map for each further column.
        class_names: The vocabulary; only classes in the maps appear in the legend.
        unseen_names: Classes trained without masks; they get a star.
        column_titles: One title per column; the first column is the image.
        ignore_index: Id of pixels without a class, shown grey.

    Returns:
        RGB picture; every cell is scaled to 300 pixels at its longer side.

    Raises:
        ValueError: If there is no row or a row does not have one item per column.
    """
    if not rows or any(len(row) != len(column_titles) for row in rows):
        lengths = [len(row) for row in rows]
        raise ValueError(f"rows of lengths {lengths} for columns {tuple(column_titles)}: give one item per column")
    is_unseen = np.isin(class_names, list(unseen_names))
    strips, shown_maps = [], []
    for image, *label_maps in rows:
        image = _as_image(image)
        cells = [fit_to_cell(image)]
        ground = cells[0].convert("L").convert("RGB")  # grey, so that only classes have a colour
        for label_map in label_maps:
            label_map = _as_label_map(label_map, class_names, ignore_index)
            _check_sizes(image, label_map)
            shown_maps.append(label_map)
            cells.append(_paint(ground, label_map, class_names, is_unseen, alpha=0.85))
        strips.append(_place_side_by_side(cells))
    titles = _draw_titles(column_titles, strips[0].width)
    legend = _draw_legend(strips[0].width, _present_ids(shown_maps), class_names, is_unseen)
    return _stack([titles, *strips, legend], gap=MARGIN // 2, margin=MARGIN)


def draw_sheet(
    panels: Sequence[Image.Image], titles: Sequence[str], *, num_columns: int, captions: Sequence[str] = ()
) -> Image.Image:
    """Put panels with titles into rows on paper, captions below.

    Args:
        panels: Pictures of one size, as `fit_to_cell` makes them.
        titles: One per panel.
        num_columns: Panels in a row.
        captions: Lines of text below; cut where they are wider than the sheet.

    Returns:
        RGB picture.
    """
    num_columns = min(num_columns, len(panels))
    rows = []
    for first in range(0, len(panels), num_columns):
        strip = _place_side_by_side(panels[first : first + num_columns])
        rows += [_draw_titles(titles[first : first + num_columns], strip.width), strip]
    width, font = rows[0].width, ImageFont.load_default(LEGEND_FONT_SIZE)
    for caption in captions:
        line = Image.new("RGB", (width, round(1.4 * LEGEND_FONT_SIZE)), PAPER)
        text = _shorten(caption, font, width)
        ImageDraw.Draw(line).text((0, line.height / 2), text, font=font, fill=INK, anchor="lm")
        rows.append(line)
    return _stack(rows, gap=MARGIN // 2, margin=MARGIN)


def fit_to_cell(image: Image.Image) -> Image.Image:
    """Scale an image to `CELL_SIDE` pixels at its longer side."""
    scale = CELL_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def save_label_map(label_map: Any, path: str | PathLike, class_names: Sequence[str], ignore_index: int = 255) -> None:
    """Save a label map as an index PNG that viewers show in the classes' colours.

    Args:
        label_map: (height, width) integer map; its values are the file's pixel values.
        path: File to write.
        class_names: The vocabulary, at most 256 names.
        ignore_index: Id of pixels without a class, 0 to 255.

    Raises:
        ValueError: If an id does not fit into 8 bits.
    """
    label_map = _as_label_map(label_map, class_names, ignore_index)
    label_map = np.where(label_map < 0, ignore_index, label_map)
    if label_map.min() < 0 or label_map.max() > 255:
        raise ValueError(f"ids {label_map.min()} to {label_map.max()}: an index PNG holds 0 to 255")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[255] = VOID_PALETTE_COLOR
    palette[: len(class_names)] = class_colors(class_names)[:256]
    picture = Image.fromarray(label_map.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    picture.save(path, format="PNG")


def save_curves(log_records: Sequence[Mapping[str, Any]], path: str | PathLike) -> None:
    """Plot losses, learning rate and scores over training steps.

    Args:
        log_records: Records of the training log with `step` and any of `loss`, `focal`, `dice`, `lr`, `miou_seen`,
            `miou_unseen`, `hiou`, `pixel_accuracy` (fractions, shown in percent). Other keys are left alone.
        path: File to write; the suffix chooses the format.

    Raises:
        ValueError: If no record has anything to plot.
    """
    from matplotlib.figure import Figure

    lengths = [max(len(_points(log_records, key)[0]) for key in panel["curves"]) for panel in CURVE_PANELS]
    # one point is no curve, unless there is nothing else
    least = 2 if max(lengths) > 1 else 1
    panels = [panel for panel, length in zip(CURVE_PANELS, lengths, strict=True) if length >= least]
    if not panels:
        raise ValueError(f"none of the {len(log_records)} log records has a step and a loss, learning rate or score")
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained", facecolor="white")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for key, (label, color) in panel["curves"].items():
            steps, values = _points(log_records, key)
            if steps:
                _plot_curve(axes, steps, np.array(values) * panel["factor"], label, color, panel["is_noisy"])
        axes.set_title(panel["title"], loc="left", fontsize=11)
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel["curves"]) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


@functools.lru_cache(maxsize=64)  # a page serves many lists
def _choose_colors(sorted_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return name -> (3,) uint8 RGB, all distinct; cached, because every cell of a sheet asks again."""
    chosen: dict[str, np.ndarray] = dict(FIXED_COLORS)
    taken = np.empty((0, 3))  # the same in OKLab, lightness halved
    for name in sorted_names:
        if name in FIXED_COLORS:
            continue
        best_distance = -1.0
        for attempt in range(MAX_COLOR_ATTEMPTS if len(chosen) < MAX_DISTINCT_COLORS else 1):
            candidate = _candidate_color(name, attempt)
            candidate_lab = _rgb_to_oklab(candidate) * LIGHTNESS_COUNTS_HALF
            distance = np.linalg.norm(taken - candidate_lab, axis=1).min(initial=COLOR_DISTANCE)
            if distance > best_distance:
                best_distance, color, lab = distance, candidate, candidate_lab
            if distance >= COLOR_DISTANCE:
                break
        chosen[name], taken = color, np.vstack([taken, lab])
    return chosen


def _candidate_color(name: str, attempt: int) -> np.ndarray:
    """Return the name's colour number `attempt`, (3,) uint8: hashed hue and lightness, as colourful as sRGB allows."""
    digest = hashlib.sha256(f"{name}/{attempt}".encode()).digest()
    hue = 2 * math.pi * int.from_bytes(digest[:2], "big") / 2**16
    lightness = 0.52 + 0.3 * digest[2] / 255
    chroma = np.linspace(0.0, 0.17, 35)
    lab = np.stack([np.full_like(chroma, lightness), chroma * math.cos(hue), chroma * math.sin(hue)])
    rgb = _oklab_to_rgb(lab)
    is_shown = ((rgb >= 0) & (rgb <= 1)).all(axis=0)
    return np.round(255 * rgb[:, is_shown][:, -1]).astype(np.uint8)


# OKLab (Ottosson 2020) spaces colours as the eye does: equal distances look equally different.
_LMS_FROM_RGB = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB_FROM_LMS = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _rgb_to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert (3,) uint8 sRGB to OKLab."""
    rgb = np.asarray(rgb) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return _LAB_FROM_LMS @ np.cbrt(_LMS_FROM_RGB @ linear)


def _oklab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """Convert (3, num_colors) OKLab to sRGB; values outside 0 to 1 are colours that a screen cannot show."""
    lms = np.linalg.solve(_LAB_FROM_LMS, lab) ** 3
    linear = np.linalg.solve(_LMS_FROM_RGB, lms)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


def _as_image(image: Image.Image | np.ndarray) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")


def _as_label_map(label_map: Any, class_names: Sequence[str], ignore_index: int) -> np.ndarray:
    """Convert a label map to a (height, width) int64 array with -1 where `ignore_index` stood.

    Raises:
        ValueError: If it is not two-dimensional or holds an id that is no class.
    """
    if hasattr(label_map, "detach"):  # a PyTorch tensor, perhaps on an accelerator
        label_map = label_map.detach().cpu()
    label_map = np.asarray(label_map).astype(np.int64)
    if label_map.ndim != 2 or not label_map.size:
        raise ValueError(f"label map of shape {label_map.shape}: give a (height, width) map of class ids")
    label_map = np.where(label_map == ignore_index, -1, label_map)
    wrong = label_map[(label_map < -1) | (label_map >= len(class_names))]
    if wrong.size:
        raise ValueError(
            f"label map holds id {wrong[0]}, which is neither one of {len(class_names)} classes nor ignore_index "
            f"{ignore_index}: pass the vocabulary that the map was made with"
        )
    return label_map


def _check_sizes(image: Image.Image, label_map: np.ndarray) -> None:
    """Check that a label map belongs to its image.

    Raises:
        ValueError: If their sizes differ.
    """
    image_size = (image.height, image.width)
    if image_size != label_map.shape:
        raise ValueError(
            f"label map of size {label_map.shape} for an image of size {image_size}, both (height, width): pass "
            "target_sizes to post_process_semantic_segmentation"
        )


def _paint(
    image: Image.Image, label_map: np.ndarray, class_names: Sequence[str], is_unseen: np.ndarray, alpha: float
) -> Image.Image:
    """Blend class colours over an image and draw the borders between regions.

    Args:
        image: RGB image of any size.
        label_map: (height, width) class ids, -1 for none; scaled to the size of the image without mixing ids.
        class_names: The vocabulary.
        is_unseen: (num_classes,) bool; regions of these classes get a star where there is room for it.
        alpha: Opacity of the colours, 0 to 1.

    Returns:
        RGB picture of the image's size.
    """
    rows = np.arange(image.height) * label_map.shape[0] // image.height
    columns = np.arange(image.width) * label_map.shape[1] // image.width
    label_map = label_map[rows[:, None], columns]
    # an additional last row stands for id -1 in both tables
    colors = np.vstack([class_colors(class_names), [[0, 0, 0]]]).astype(np.float32)[label_map]
    opacity = np.where(label_map < 0, 0.0, alpha)[..., None]
    borders = _inner_borders(label_map) & (label_map >= 0)
    opacity[borders] = 1.0
    pixels = np.asarray(image) * (1 - opacity) + colors * opacity
    picture = Image.fromarray(np.round(pixels).astype(np.uint8))
    for class_id in np.flatnonzero(is_unseen):
        center = _find_room(label_map == class_id, [factor * STAR_RADIUS for factor in (4, 2, 1)])
        if center:
            _draw_star(ImageDraw.Draw(picture), center, STAR_RADIUS, fill=PAPER)
    return picture


def _find_room(mask: np.ndarray, radii: Sequence[int]) -> tuple[int, int] | None:
    """Return the (x, y) nearest to the middle of a region around which a square of the first radius lies inside it.

    Where there is none, the next radius is tried.
    """
    if not mask.any():
        return None
    sums = np.pad(mask, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    for side in (2 * radius + 1 for radius in radii):
        inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side] == side**2
        if inside.any():
            rooms = np.argwhere(inside) + side // 2  # (num_rooms, 2), y before x
            middle = np.argwhere(mask).mean(axis=0)
            y, x = rooms[np.linalg.norm(rooms - middle, axis=1).argmin()].tolist()
            return x, y
    return None


def _inner_borders(label_map: np.ndarray) -> np.ndarray:
    """Return (height, width) bool: pixels with a right, left, upper or lower neighbour of another id."""
    borders = np.zeros(label_map.shape, dtype=bool)
    vertical, horizontal = label_map[1:] != label_map[:-1], label_map[:, 1:] != label_map[:, :-1]
    borders[1:] |= vertical
    borders[:-1] |= vertical
    borders[:, 1:] |= horizontal
    borders[:, :-1] |= horizontal
    return borders


def _present_ids(label_maps: Sequence[np.ndarray]) -> list[int]:
    return sorted({int(class_id) for label_map in label_maps for class_id in np.unique(label_map) if class_id >= 0})


def _draw_legend(width: int, class_ids: list[int], class_names: Sequence[str], is_unseen: np.ndarray) -> Image.Image:
    """Draw swatches and names in as many lines as the width needs, seen classes before unseen ones.

    Args:
        width: Width of the legend in pixels.
        class_ids: Classes to show.
        class_names: The vocabulary.
        is_unseen: (num_classes,) bool; these get a star and the word "unseen".

    Returns:
        RGB picture of this width.
    """
    font = ImageFont.load_default(LEGEND_FONT_SIZE)
    swatch, gap, line_height = LEGEND_FONT_SIZE, LEGEND_FONT_SIZE // 2, round(1.7 * LEGEND_FONT_SIZE)
    colors = class_colors(class_names)
    placed, left, line = [], gap, 0
    for class_id in sorted(class_ids, key=lambda class_id: bool(is_unseen[class_id])):
        text = class_names[class_id] + (" (unseen)" if is_unseen[class_id] else "")
        star_width = swatch + gap // 2 if is_unseen[class_id] else 0
        text = _shorten(text, font, width - swatch - 3 * gap - star_width)
        entry_width = swatch + gap + star_width + math.ceil(font.getlength(text)) + 2 * gap
        if left > gap and left + entry_width - gap > width:
            left, line = gap, line + 1
        placed.append((class_id, text, left, line))
        left += entry_width
    legend = Image.new("RGB", (width, (line + 1) * line_height + gap), PAPER)
    draw = ImageDraw.Draw(legend)
    for class_id, text, left, line in placed:
        middle = gap + line * line_height + swatch // 2
        box = (left, middle - swatch // 2, left + swatch - 1, middle + swatch // 2)
        draw.rounded_rectangle(box, radius=3, fill=tuple(colors[class_id].tolist()))
        text_left, ink = left + swatch + gap, INK
        if is_unseen[class_id]:
            _draw_star(draw, (text_left + swatch / 2 - gap / 4, middle), swatch / 2, fill=UNSEEN_INK)
            text_left, ink = text_left + swatch + gap // 2, UNSEEN_INK
        draw.text((text_left, middle), text, font=font, fill=ink, anchor="lm")
    return legend


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text that is wider than `width` pixels and end it in dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _draw_star(
    draw: ImageDraw.ImageDraw, center: tuple[float, float], radius: float, fill: tuple[int, int, int]
) -> None:
    """Draw a five-pointed star, which Pillow's own font does not hold."""
    corners = []
    for corner in range(10):
        distance = radius if corner % 2 == 0 else 0.42 * radius
        angle = math.pi * (corner / 5 - 0.5)
        corners.append((center[0] + distance * math.cos(angle), center[1] + distance * math.sin(angle)))
    draw.polygon(corners, fill=fill, outline=INK if fill == PAPER else fill)


def _place_side_by_side(cells: Sequence[Image.Image]) -> Image.Image:
    """Centre pictures of one height in columns of `CELL_SIDE` pixels."""
    gap = MARGIN // 2
    strip = Image.new("RGB", (len(cells) * (CELL_SIDE + gap) - gap, cells[0].height), PAPER)
    for index, cell in enumerate(cells):
        strip.paste(cell, (index * (CELL_SIDE + gap) + (CELL_SIDE - cell.width) // 2, 0))
    return strip


def _draw_titles(titles: Sequence[str], width: int) -> Image.Image:
    """Draw one title centred over each column."""
    font = ImageFont.load_default(TITLE_FONT_SIZE)
    picture = Image.new("RGB", (width, round(1.5 * TITLE_FONT_SIZE)), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, title in enumerate(titles):
        center = index * (CELL_SIDE + MARGIN // 2) + CELL_SIDE / 2
        draw.text((center, picture.height / 2), _shorten(title, font, CELL_SIDE), font=font, fill=INK, anchor="mm")
    return picture


def _stack(pictures: Sequence[Image.Image], gap: int = 0, margin: int = 0) -> Image.Image:
    """Put pictures of one width below each other on paper."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (pictures[0].width + 2 * margin, height + 2 * margin), PAPER)
    top = margin
    for picture in pictures:
        sheet.paste(picture, (margin, top))
        top += picture.height + gap
    return sheet


def _points(log_records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return the steps and values of the records that hold a finite value of this key."""
    points = [
        (record["step"], record[key])
        for record in log_records
        if "step" in record and isinstance(record.get(key), int | float) and math.isfinite(record[key])
    ]
    return [step for step, _ in points], [value for _, value in points]


def _plot_curve(axes: Any, steps: Sequence[float], values: np.ndarray, label: str, color: str, is_noisy: bool) -> None:
    """Plot one quantity; a noisy curve is drawn faint, with the mean over a twentieth of its points on top."""
    if is_noisy:
        axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
        half = len(values) // 40
        sums = np.cumsum(np.insert(values, 0, 0.0))
        starts = np.maximum(np.arange(len(values)) - half, 0)
        ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
        values = (sums[ends] - sums[starts]) / (ends - starts)
    marker = "o" if len(values) <= MAX_MARKED_POINTS else ""
    axes.plot(steps, values, color=color, label=label, linewidth=1.6, marker=marker, markersize=3)
