"""Why a pixel got its class: probabilities, the regions its attention was routed to, its attention over the classes.

Everything shown is read from the outputs of one forward pass over the whole picture; nothing is estimated.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldvc.app.labels import as_classes, parse_labels
from ldvc.loading import load
from ldvc.masks.drawing import INK, PAPER, draw_sheet, fit_to_cell
from ldvc.model.inference_ldvc import resolve_classes
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation, LDVCImageFeatures, LDVCSemanticSegmenterOutput
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.model.regions_ldvc import fit_to_image
from ldvc.model.segmenter_ldvc import Segmenter, ask


__all__ = [
    "ClassScore",
    "LayerExplanation",
    "PixelExplanation",
    "Rectangle",
    "RoutedRegion",
    "TokenGrid",
    "cross_attention_maps",
    "describe",
    "draw_cross_attention",
    "draw_routing",
    "explain_pixel",
]

ROUTE_COLOR, POINT_COLOR = (255, 140, 0), (0, 229, 255)  # RGB; orange on grey, and a cyan that neither of them holds
RANK_FONT_SIZE = 11  # pixels
SHOWN_REGIONS = 3  # per layer in a text
# From dark to bright by lightness too, so that a grey print reads the same; after matplotlib's "magma".
HEAT_COLORS = np.array([[8, 6, 40], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], dtype=np.float32)
HEAT_OPACITY = 0.7
FLAT_SHARE = 0.01  # of the highest attention of a sheet; a map that varies less stays dark
# What stands in for routes where there are none.
UNROUTED = {
    "full": "every token attends to the whole picture",
    "none": "tokens attend to the classes only",
    "window": "a token attends to its own window",
    "shifted_window": "a token attends to its own window, shifted in every second layer",
}


class Rectangle(NamedTuple):
    """Pixels of the picture whose centres lie in a part of the token grid; `bottom` and `right` are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class TokenGrid:
    """Where tokens and regions lie on the picture.

    Attributes:
        picture_size: (height, width) of the picture in pixels.
        input_size: (height, width) of the tensor that the processor made of it, before padding to whole patches.
        patch_size: Pixels of that tensor per side of a token.
        num_regions: Regions per side that route attention cuts the grid into.
    """

    picture_size: tuple[int, int]
    input_size: tuple[int, int]
    patch_size: int
    num_regions: int

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) in tokens."""
        return tuple(-(-side // self.patch_size) for side in self.input_size)

    @property
    def region_size(self) -> tuple[int, int]:
        """(height, width) of a region in tokens, as in [`LDVCRouteAttention`]."""
        return tuple(-(-side // self.num_regions) for side in self.grid_size)

    def token_at(self, point: tuple[int, int]) -> tuple[int, int]:
        """Return the (row, column) of the token under the centre of a pixel, given as (row, column)."""
        sides = zip(point, self.input_size, self.picture_size, strict=True)
        return tuple((2 * at + 1) * inner // (2 * outer * self.patch_size) for at, inner, outer in sides)

    def region_of(self, token: tuple[int, int]) -> int:
        """Return the index of a token's region, row by row as in `routes`."""
        (row, column), (height, width) = token, self.region_size
        return row // height * -(-self.grid_size[1] // width) + column // width

    def rectangle_of(self, region: int) -> Rectangle:
        """Return the pixels of a region; those of all regions cover the picture without overlap."""
        height, width = self.region_size
        row, column = divmod(region, -(-self.grid_size[1] // width))
        return Rectangle(
            self._edge(row * height, 0),
            self._edge(column * width, 1),
            self._edge((row + 1) * height, 0),
            self._edge((column + 1) * width, 1),
        )

    def _edge(self, token: int, axis: int) -> int:
        """Return the first pixel whose centre lies at or behind the near edge of a token; whole numbers, so exact."""
        inner, outer = self.input_size[axis], self.picture_size[axis]
        return -(-(2 * min(token * self.patch_size, inner) * outer - inner) // (2 * inner))


class ClassScore(NamedTuple):
    """A class and its probability at the pixel, 0 to 1, less the offset of seen classes where configured."""

    name: str
    probability: float


class RoutedRegion(NamedTuple):
    """A region that attention was routed to, and the share of the token's attention it got, mean over heads."""

    index: int
    rectangle: Rectangle
    attention: float


@dataclass(frozen=True)
class LayerExplanation:
    """One decoder layer.

    Attributes:
        routes: The regions that the pixel's region was routed to, best first; their attention sums to 1. Empty where
            the decoder does not route.
        class_attention: (num_classes,) attention of the pixel's token over the classes, mean over heads, sums to 1. In
            a class-query decoder the attention of each class to this token.
    """

    routes: tuple[RoutedRegion, ...]
    class_attention: tuple[float, ...]


@dataclass(frozen=True)
class PixelExplanation:
    """Why a pixel got its class.

    Attributes:
        point: (row, column) of the pixel.
        picture_size: (height, width) in pixels.
        class_names: The classes of the call, in order.
        top_classes: The best classes, best first.
        margin: Probability of the best class less that of the second; `None` with one class.
        region: The pixel's region; its token's own pixels where the decoder does not route.
        layers: One entry per decoder layer that gives attention weights.
        decoder_attention: What the decoder's self-attention is, as in the configuration; "class queries" for the
            class-query decoder, the model's class where it has no such decoder.
    """

    point: tuple[int, int]
    picture_size: tuple[int, int]
    class_names: tuple[str, ...]
    top_classes: tuple[ClassScore, ...]
    margin: float | None
    region: Rectangle
    layers: tuple[LayerExplanation, ...]
    decoder_attention: str


def explain_pixel(
    model: Segmenter,
    processor: LDVCProcessor,
    image: Any,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None,
    point: tuple[int, int],
    *,
    class_embeds: Tensor | None = None,
    image_features: LDVCImageFeatures | None = None,
    top_k: int = 5,
) -> PixelExplanation:
    """Explain the class of one pixel.

    Args:
        model: Any segmenter; LDVC's decoder runs with eager attention for this call, the only one that gives weights.
        processor: The checkpoint's processor; the picture is resized as it says and seen at once, without windows.
        image: PIL image, uint8 array, path or URL.
        class_names: List of names or dict of synonyms; `None` is the default vocabulary.
        point: (row, column) of the pixel, upright, from 0.
        class_embeds: (num_classes, projection_dim), where they are known already; `class_names` then only names them.
        image_features: From `model.get_image_features` on this picture, where they are known already.
        top_k: Classes to return.

    Returns:
        [`PixelExplanation`]. Probabilities are those of `post_process_semantic_segmentation` at this pixel.

    Raises:
        ValueError: If the point lies outside the picture, `top_k` is below 1, or names and embeddings differ in
            number.
    """
    image = processor.image_processor.load_rgb(image)
    row, column = point = tuple(int(at) for at in point)
    if not (0 <= row < image.height and 0 <= column < image.width):
        raise ValueError(
            f"the point (row {row}, column {column}) is outside the picture of {image.height} x {image.width} pixels "
            f"(height x width); give a row from 0 to {image.height - 1} and a column from 0 to {image.width - 1}."
        )
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; use at least 1.")
    names, outputs, grid = _observe(model, processor, image, class_names, class_embeds, image_features)
    probabilities = _probabilities_at(outputs, point, grid.picture_size)
    best = probabilities.argsort(descending=True, stable=True).tolist()
    margin = float(probabilities[best[0]] - probabilities[best[1]]) if len(names) > 1 else None
    token = grid.token_at(point)
    # without routes, the region is the token: a grid that is cut once per token
    region_grid = grid if outputs.routes else TokenGrid(grid.picture_size, grid.input_size, grid.patch_size, 10**9)
    return PixelExplanation(
        point=point,
        picture_size=grid.picture_size,
        class_names=names,
        top_classes=tuple(ClassScore(names[i], float(probabilities[i])) for i in best[:top_k]),
        margin=margin,
        region=region_grid.rectangle_of(region_grid.region_of(token)),
        layers=tuple(
            LayerExplanation(_routes_of(outputs, layer, token, grid), _class_attention_of(model, weights, token, grid))
            for layer, weights in enumerate(outputs.cross_attentions or ())
        ),
        decoder_attention=_attention_of(model),
    )


def cross_attention_maps(
    model: LDVCForSemanticSegmentation,
    processor: LDVCProcessor,
    image: Any,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None,
    *,
    class_embeds: Tensor | None = None,
    image_features: LDVCImageFeatures | None = None,
) -> Tensor:
    """Return the decoder's cross-attention as one map per layer and class.

    Args:
        model: See `explain_pixel`, as for the other arguments.
        processor: See `explain_pixel`.
        image: See `explain_pixel`.
        class_names: See `explain_pixel`.
        class_embeds: See `explain_pixel`.
        image_features: See `explain_pixel`.

    Returns:
        (num_layers, num_classes, grid_height, grid_width) float32, mean over heads, covering the whole picture. At
        every token the classes sum to 1; in a class-query decoder each class sums to 1 over the padded picture.

    Raises:
        ValueError: If no layer of the decoder gives weights.
    """
    image = processor.image_processor.load_rgb(image)
    _, outputs, grid = _observe(model, processor, image, class_names, class_embeds, image_features)
    if not _has_decoder(model):
        raise ValueError(f"{type(model).__name__} has none of LDVC's decoder layers, so no cross-attention to show.")
    if not outputs.cross_attentions:
        raise ValueError(
            f"this class-query decoder of {model.config.num_decoder_layers} layer takes its masks from the attention "
            "scores of its last layer and has no other cross-attention; its logits are that map."
        )
    maps = torch.stack([weights[0].float().mean(dim=0) for weights in outputs.cross_attentions])
    if model.config.decoder_query == "image":
        maps = maps.transpose(1, 2)  # (layers, num_patches, num_classes) -> (layers, num_classes, num_patches)
    return fit_to_image(maps.unflatten(-1, grid.grid_size), grid.input_size, grid.patch_size).cpu()


def describe(explanation: PixelExplanation) -> str:
    """Put an explanation into a few lines of plain text."""
    (row, column), best = explanation.point, explanation.top_classes
    lines = [f"pixel at row {row}, column {column}: " + ", ".join(f"{name} {score:.2f}" for name, score in best)]
    if explanation.margin is not None:
        second = f" before {best[1].name}" if len(best) > 1 else ""
        lines.append(f"margin: {explanation.margin:.2f}{second}")
    for number, layer in enumerate(explanation.layers, start=1):
        if not layer.routes:
            continue
        by_attention = sorted(layer.routes, key=lambda route: -route.attention)[:SHOWN_REGIONS]
        places = "; ".join(
            f"rows {top} to {bottom - 1}, columns {left} to {right - 1} ({share:.0%})"
            for _, (top, left, bottom, right), share in by_attention
        )
        lines.append(f"layer {number}: routed to {len(layer.routes)} regions, most attention to {places}")
    if not any(layer.routes for layer in explanation.layers):
        lines.append(f"nothing is routed: {_unrouted_reason(explanation.decoder_attention)}")
    return "\n".join(lines)


def draw_routing(image: Image.Image | np.ndarray, explanation: PixelExplanation) -> Image.Image:
    """Draw, per decoder layer, where the attention of a pixel's region was routed.

    The picture is grey but for the routed regions, which turn orange with the share of the pixel's attention that
    they got; numbers give the order of the routes. White frames the pixel's own region, a ring marks the pixel.

    Args:
        image: The picture that was explained, in any size.
        explanation: From `explain_pixel`.

    Returns:
        RGB picture, one panel of 300 pixels per layer.

    Raises:
        ValueError: If the decoder does not route.
    """
    if not any(layer.routes for layer in explanation.layers):
        if explanation.decoder_attention not in (*UNROUTED, "class queries"):
            raise ValueError(f"there are no routes to draw: {_unrouted_reason(explanation.decoder_attention)}.")
        raise ValueError(
            f"nothing is routed in this model: {_unrouted_reason(explanation.decoder_attention)}. Its attention "
            "between image and classes is drawn by draw_cross_attention; for routes, use a model with "
            "decoder_attention='route'."
        )
    image = fit_to_cell(image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image)))
    highest = max(route.attention for layer in explanation.layers for route in layer.routes)
    panels = [_draw_layer(image.convert("RGB"), layer.routes, explanation, highest) for layer in explanation.layers]
    titles = [f"decoder layer {number}" for number in range(1, len(panels) + 1)]
    caption = f"orange: routed regions, in order; full colour: {highest:.0%} of the pixel's attention"
    return draw_sheet(panels, titles, num_columns=3, captions=[caption, "white: the region of the pixel"])


def draw_cross_attention(
    image: Image.Image | np.ndarray, maps: Tensor | np.ndarray, class_names: Sequence[str]
) -> Image.Image:
    """Draw a sheet with one heat map per class over the picture.

    Args:
        image: The picture, in any size.
        maps: (num_classes, grid_height, grid_width): one layer of `cross_attention_maps`.
        class_names: One name per map.

    Returns:
        RGB picture; each map goes from its own lowest value (dark) to its own highest (bright), which its title gives:
        on one scale, the class that gets most attention would leave the others dark.

    Raises:
        ValueError: If names and maps differ in number.
    """
    maps = torch.as_tensor(np.asarray(maps)).float()
    if maps.dim() != 3 or len(maps) != len(class_names):
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} for {len(class_names)} class names; give (num_classes, grid_height, "
            "grid_width), one layer of cross_attention_maps."
        )
    image = fit_to_cell(image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image)))
    lowest, highest = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    ranges = (highest - lowest).clamp(min=FLAT_SHARE * highest.abs().max().item() + 1e-12)  # rounding is no pattern
    heights = F.interpolate(maps[None], size=(image.height, image.width), mode="bilinear", align_corners=False)[0]
    heights = ((heights - lowest) / ranges).clamp(0, 1).numpy() * (len(HEAT_COLORS) - 1)
    ground = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    panels = []
    for height in heights:
        colors = [np.interp(height, np.arange(len(HEAT_COLORS)), channel) for channel in HEAT_COLORS.T]
        pixels = (1 - HEAT_OPACITY) * ground + HEAT_OPACITY * np.stack(colors, axis=-1)
        panels.append(Image.fromarray(np.round(pixels).astype(np.uint8)))
    ends = zip(class_names, lowest.flatten().tolist(), highest.flatten().tolist(), strict=True)
    titles = [f"{name}: {low:.1%} to {high:.1%}" for name, low, high in ends]
    caption = "cross-attention; dark to bright: each class from its lowest to its highest"
    return draw_sheet(panels, titles, num_columns=min(4, len(panels)), captions=[caption])


@contextmanager
def _eager_decoder(model: LDVCForSemanticSegmentation) -> Iterator[None]:
    """Run the decoder with the one attention backend that returns weights; CLIP's towers keep theirs."""
    previous = model.config._attn_implementation
    model.set_attn_implementation({"": "eager"})
    try:
        yield
    finally:
        model.set_attn_implementation({"": previous})


@torch.no_grad()
def _observe(
    model: LDVCForSemanticSegmentation,
    processor: LDVCProcessor,
    image: Image.Image,
    class_names: Sequence[str] | Mapping[str, Sequence[str]] | None,
    class_embeds: Tensor | None,
    image_features: LDVCImageFeatures | None,
) -> tuple[tuple[str, ...], LDVCSemanticSegmenterOutput, TokenGrid]:
    """Run the model once with everything recorded that an explanation needs."""
    names, class_embeds, _ = resolve_classes(model, processor, class_names, class_embeds)
    if image_features is None:
        pixel_values = processor(images=image, return_tensors="pt")["pixel_values"]
        image_features = model.get_image_features(pixel_values.to(model.device, model.dtype))
    picture_size = (image.height, image.width)
    if not _has_decoder(model):  # its logits are all there is to see: a cell of their grid stands for a token
        logits, offsets = ask(model, class_embeds, image_features=image_features)
        outputs = LDVCSemanticSegmenterOutput(logits=logits, class_score_offsets=offsets)
        return tuple(names), outputs, TokenGrid(picture_size, tuple(logits.shape[-2:]), 1, 10**9)
    with _eager_decoder(model):
        outputs = model(
            image_features=image_features,
            class_embeds=class_embeds,
            seen_class_mask=model.seen_class_mask(names if class_names is None else class_names),
            output_routes=True,
            output_attentions=True,
            output_decoder_attentions=True,
        )
    grid = TokenGrid(
        picture_size=picture_size,
        input_size=tuple(image_features.image_size),
        patch_size=model.config.vision_config.patch_size,
        num_regions=model.config.num_regions,
    )
    return tuple(names), outputs, grid


def _has_decoder(model: Segmenter) -> bool:
    """Whether the model has LDVC's decoder, whose routes and attention can be read."""
    return getattr(model, "decoder", None) is not None


def _attention_of(model: Segmenter) -> str:
    """What the decoder's self-attention is; the model's kind where it has no decoder of LDVC's."""
    if not _has_decoder(model):
        return type(model).__name__
    return "class queries" if model.config.decoder_query == "class" else model.config.decoder_attention


def _probabilities_at(
    outputs: LDVCSemanticSegmenterOutput, point: tuple[int, int], picture_size: tuple[int, int]
) -> Tensor:
    """Sample the (num_classes,) probabilities at the centre of a pixel, as bilinear upsampling gives them."""
    logits = outputs.logits.float()
    # grid_sample counts from -1 at the first edge to 1 at the last, x before y
    place = [(2 * at + 1) / side - 1 for at, side in zip(point, picture_size, strict=True)][::-1]
    sampled = F.grid_sample(
        logits, logits.new_tensor(place).view(1, 1, 1, 2), mode="bilinear", padding_mode="border", align_corners=False
    )
    probabilities = sampled[0, :, 0, 0].sigmoid()
    if outputs.class_score_offsets is not None:
        probabilities = probabilities - outputs.class_score_offsets[0].float()
    return probabilities.cpu()


def _routes_of(
    outputs: LDVCSemanticSegmenterOutput, layer: int, token: tuple[int, int], grid: TokenGrid
) -> tuple[RoutedRegion, ...]:
    """Read the routes of a token's region in one layer, with the token's attention to each."""
    if not outputs.routes:
        return ()
    region, (height, width) = grid.region_of(token), grid.region_size
    place = token[0] % height * width + token[1] % width
    routes = outputs.routes[layer][0, region].tolist()
    # (heads, region_area, top_k * region_area) -> (top_k, region_area) of this token
    weights = outputs.decoder_attentions[layer][0, region, :, place].float().mean(dim=0).view(len(routes), -1)
    shares = weights.sum(dim=-1).tolist()
    return tuple(
        RoutedRegion(index, grid.rectangle_of(index), share) for index, share in zip(routes, shares, strict=True)
    )


def _class_attention_of(
    model: LDVCForSemanticSegmentation, weights: Tensor, token: tuple[int, int], grid: TokenGrid
) -> tuple[float, ...]:
    """Read a token's (num_classes,) cross-attention, mean over heads."""
    place = token[0] * grid.grid_size[1] + token[1]
    heads = weights[0].float()
    heads = heads[:, place] if model.config.decoder_query == "image" else heads[:, :, place]
    return tuple(heads.mean(dim=0).tolist())


def _unrouted_reason(decoder_attention: str) -> str:
    """Say what a decoder without routes does instead."""
    if decoder_attention == "class queries":
        return "in a class-query decoder the classes attend to the image, and its tokens are never updated"
    if decoder_attention not in UNROUTED:
        return f"{decoder_attention} has none of LDVC's decoder layers, which route"
    return f"with decoder_attention={decoder_attention!r}, {UNROUTED[decoder_attention]}"


def _draw_layer(
    image: Image.Image, routes: Sequence[RoutedRegion], explanation: PixelExplanation, highest: float
) -> Image.Image:
    """Draw one layer's routes on a picture of cell size."""
    scales = (image.height / explanation.picture_size[0], image.width / explanation.picture_size[1])

    def to_box(rectangle: Rectangle) -> tuple[int, int, int, int]:
        top, left, bottom, right = (round(at * scales[axis % 2]) for axis, at in enumerate(rectangle))
        return left, top, max(right, left + 1), max(bottom, top + 1)

    panel = image.convert("L").point(lambda value: 40 + value // 3).convert("RGB")
    tint = Image.new("RGB", image.size, ROUTE_COLOR)
    font = ImageFont.load_default(RANK_FONT_SIZE)
    draw = ImageDraw.Draw(panel)
    for rank, route in enumerate(routes, start=1):
        box = to_box(route.rectangle)
        panel.paste(Image.blend(image.crop(box), tint.crop(box), 0.8 * route.attention / max(highest, 1e-12)), box[:2])
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=ROUTE_COLOR)
        label = str(rank)
        if box[2] - box[0] > font.getlength(label) + 4 and box[3] - box[1] > RANK_FONT_SIZE + 2:
            draw.text((box[0] + 3, box[1] + 1), label, font=font, fill=PAPER, stroke_width=1, stroke_fill=INK)
    left, top, right, bottom = to_box(explanation.region)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=INK, width=4)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=PAPER, width=2)
    y, x = ((at + 0.5) * scale for at, scale in zip(explanation.point, scales, strict=True))
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=INK, width=4)
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), outline=POINT_COLOR, width=2)
    return panel


def explain_picture(arguments: argparse.Namespace) -> None:
    """Explain a pixel: the text to the terminal, the pictures to files; arguments of `ldvc explain`."""
    model, processor = load(arguments.model)
    class_names = None if arguments.labels is None else as_classes(parse_labels(arguments.labels))
    image = processor.image_processor.load_rgb(arguments.image)
    explanation = explain_pixel(model, processor, image, class_names, tuple(arguments.point))
    sys.stdout.write(describe(explanation) + "\n")
    if arguments.output is not None:
        draw_routing(image, explanation).save(arguments.output, format="PNG", optimize=True)
    if arguments.cross_attention is not None:
        maps = cross_attention_maps(model, processor, image, class_names)
        sheet = draw_cross_attention(image, maps[-1], explanation.class_names)
        sheet.save(arguments.cross_attention, format="PNG", optimize=True)
