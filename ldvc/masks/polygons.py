"""Polygons that run along pixel edges, by rasterio (GDAL), and COCO's file of them.

Contours through pixel centres, as OpenCV and scikit-image give them, lose half a pixel all around and every part of
one pixel's width; along the edges nothing is lost, so that the same pixels come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ldvc.masks.coco import CocoWriter
from ldvc.masks.collected import bounding_box
from ldvc.masks.writer import Result


Ring = Sequence[Sequence[float]]  # (x, y) corners, closed: the last is the first


def part_polygons(label_map: np.ndarray) -> Iterator[tuple[int, list[Ring]]]:
    """Yield every part of every class: its id, its outer ring and those of its holes.

    Args:
        label_map: (height, width) ids. Pixels that touch at a corner only are two parts.

    Yields:
        Corners in pixels, x to the right and y down, (0, 0) the outer corner of the first pixel.
    """
    from rasterio.features import shapes

    for geometry, value in shapes(label_map.astype(np.int32), connectivity=4):
        yield int(value), geometry["coordinates"]


def without_holes(rings: Sequence[Ring]) -> list[float]:
    """Join a ring and its holes to one ring, by cuts of no width, since COCO's polygons have no holes.

    From the leftmost corner of a hole a cut runs left to the first edge: of the outer ring, or of a hole that has been
    joined already, since holes are taken from left to right. pycocotools fills by parity, so that a cut, passed twice,
    covers nothing.

    Args:
        rings: The outer one first, closed; all edges horizontal or vertical.

    Returns:
        x and y in turn, not closed.
    """
    joined = np.array(rings[0][:-1])
    holes = [np.array(ring[:-1]) for ring in rings[1:]]
    for hole in sorted(holes, key=lambda corners: corners.min(axis=0)[0]):
        hole = np.roll(hole, -np.lexsort((hole[:, 1], hole[:, 0]))[0], axis=0)  # begins at its leftmost corner
        x, y = hole[0]
        ends = np.roll(joined, -1, axis=0)
        reaches = (joined[:, 0] == ends[:, 0]) & (joined[:, 0] <= x)
        reaches &= (np.minimum(joined[:, 1], ends[:, 1]) <= y) & (y <= np.maximum(joined[:, 1], ends[:, 1]))
        edge = int(np.argmax(np.where(reaches, joined[:, 0], -np.inf)))
        start = np.array([[joined[edge, 0], y]])
        joined = np.concatenate([joined[: edge + 1], start, hole, hole[:1], start, joined[edge + 1 :]])
    return joined.ravel().tolist()


class PolygonWriter(CocoWriter):
    """A COCO file of polygons, one annotation per class and picture."""

    shared = ("coco.polygons.json",)
    packages = ("rasterio",)

    def annotations(self, result: Result) -> list[dict[str, Any]]:
        """COCO's annotations of one picture."""
        parts: dict[int, list[list[float]]] = {}
        for class_id, rings in part_polygons(result.label_map):
            parts.setdefault(class_id, []).append(without_holes(rings))
        annotations = []
        for class_id in sorted(parts):
            is_class = result.label_map == class_id
            rows, columns = bounding_box(is_class)
            annotations.append(
                {
                    "category_id": class_id + self.classes.first_category_id,
                    "segmentation": parts[class_id],
                    "area": int(is_class.sum()),
                    "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                    "iscrowd": 0,
                    "score": result.class_score(class_id, is_class, self.classes),
                }
            )
        return annotations
