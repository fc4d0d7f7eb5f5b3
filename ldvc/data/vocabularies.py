"""Class lists, seen / unseen splits, settings and prompt templates of the zero-shot segmentation benchmarks.

The one place for all of them. The position of a name is its class id, and the names go into prompts as they stand
("pottedplant", "wall-concrete"): the published text features were made from these strings, in this order.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches

from ldvc.data.names import BENCHMARK_FILES, read_name_file


__all__ = [
    "PROMPT_TEMPLATES",
    "SEEN_SCORE_OFFSETS",
    "SETTINGS",
    "VOCABULARIES",
    "WORD_LISTS",
    "Vocabulary",
    "find_list",
    "get_vocabulary",
    "letters",
    "may_read",
    "register_vocabulary",
]

# What may be said about scores, and what is subtracted from the probability of seen classes in the tables.
SETTINGS = ("inductive", "transductive", "fully_supervised", "cross_dataset")
SEEN_SCORE_OFFSETS = (0.0, 0.1)


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a dataset and the ones held out of training with masks.

    Attributes:
        name: Short name, as written in recipes.
        class_names: Class names; the position of a name is its class id.
        unseen_names: Names whose masks never reach an inductive loss, in any order; empty when all are seen.
        left_out_names: Those of them that the split calls seen, and that a share left out, see `with_seen_share`: they
            train as little as the others, and count neither as seen nor as unseen in the scores.
        joining_order: All class names in the order in which seen ones join when a share of them trains; or empty.
    """

    name: str
    class_names: tuple[str, ...]
    unseen_names: tuple[str, ...] = ()
    left_out_names: tuple[str, ...] = ()
    joining_order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the lists against each other.

        Raises:
            ValueError: If there are no classes, a name occurs twice, an unseen name is not a class, a name left out is
                not unseen, or the joining order is not one of all classes.
        """
        if not self.class_names:
            raise ValueError(f"Vocabulary '{self.name}' has no class_names: give at least one.")
        for field in ("class_names", "unseen_names"):
            names = getattr(self, field)
            duplicates = sorted({name for name in names if names.count(name) > 1})
            if duplicates:
                raise ValueError(f"Vocabulary '{self.name}': {field} repeats {duplicates}; name each class once.")
        for name in self.unseen_names:
            if name not in self.class_names:
                remedy = _suggest(name, self.class_names)
                raise ValueError(f"Vocabulary '{self.name}': unseen name '{name}' is not in class_names{remedy}")
        if strangers := sorted(set(self.left_out_names) - set(self.unseen_names)):
            raise ValueError(f"Vocabulary '{self.name}': {strangers} are left out, so name them in unseen_names too.")
        if self.joining_order and sorted(self.joining_order) != sorted(self.class_names):
            raise ValueError(f"Vocabulary '{self.name}': joining_order must hold every class name once.")

    @property
    def unseen_class_ids(self) -> tuple[int, ...]:
        """Ids of the classes whose masks do not train, ascending; those left out are among them."""
        return tuple(i for i, name in enumerate(self.class_names) if name in self.unseen_names)

    @property
    def seen_class_ids(self) -> tuple[int, ...]:
        """Ids of the seen classes, ascending; the rank in this list is the channel of an inductive loss."""
        return tuple(i for i, name in enumerate(self.class_names) if name not in self.unseen_names)

    @property
    def left_out_class_ids(self) -> tuple[int, ...]:
        """Ids of the classes that a share left out, ascending."""
        return tuple(i for i, name in enumerate(self.class_names) if name in self.left_out_names)

    @property
    def scored_unseen_class_ids(self) -> tuple[int, ...]:
        """Ids of the classes whose mean is mIoU(U), ascending: the split's unseen ones, whatever share trains."""
        return tuple(i for i in self.unseen_class_ids if i not in self.left_out_class_ids)

    def with_seen_share(self, share: float) -> "Vocabulary":
        """The same classes and split, of whose seen classes only a share trains.

        The seen classes come in `joining_order`, and the first `share` of them, rounded half up, train: a smaller
        share is a part of every larger one.

        Args:
            share: Above 0, at most 1.

        Raises:
            ValueError: If the share is no such number or leaves no class, or the order is not known.
        """
        if not 0 < share <= 1:
            raise ValueError(f"`seen_share` is {share}; use a share of the seen classes above 0 and at most 1.")
        if share == 1:
            return self
        if not self.joining_order:
            raise ValueError(
                f"`seen_share` is {share}, but vocabulary '{self.name}' has no fixed order of its classes; name those "
                "that shall not train in `unseen_classes`, or use `seen_share` 1."
            )
        seen = [name for name in self.joining_order if name not in self.unseen_names]
        num_trained = int(share * len(seen) + 0.5)
        if not num_trained:
            raise ValueError(
                f"`seen_share` is {share}, which leaves none of the {len(seen)} seen classes of '{self.name}' to "
                f"train; use {1 / len(seen):.2g} or more."
            )
        left_out = tuple(seen[num_trained:])
        return replace(self, unseen_names=self.unseen_names + left_out, left_out_names=left_out)


def may_read(name: str, split: str) -> bool:
    """Whether a vocabulary may be used with a split: one for choosing settings not with that of the reported scores.

    Args:
        name: Of a vocabulary; one for choosing settings ends with "_tuning".
        split: As `datasets` takes it, "test[:50]" for instance.
    """
    parts = (part.strip().partition("[")[0] for part in str(split).split("+"))
    return not name.endswith("_tuning") or "test" not in parts


def get_vocabulary(name: str) -> Vocabulary:
    """Look a vocabulary up by name.

    Those of drawn worlds (see ldvc/data/worlds.py) are known once their package is imported.

    Raises:
        ValueError: If there is none of this name; the message names the nearest.
    """
    known = VOCABULARIES | _OF_WORLDS
    if name not in known:
        raise ValueError(f"No vocabulary is called '{name}'{_suggest(name, tuple(known))}")
    return known[name]


def find_list(name: str) -> tuple[str, ...] | None:
    """Names of a vocabulary, word list or benchmark ("ade20k", in our plainer words); `None` for any other text."""
    if name in WORD_LISTS:
        return WORD_LISTS[name]
    known = VOCABULARIES | _OF_WORLDS
    if name in known:
        return known[name].class_names
    return read_name_file(name, "plain").class_names if name in BENCHMARK_FILES else None


def register_vocabulary(vocabulary: Vocabulary) -> None:
    """Make the vocabulary of a drawn world known by its name."""
    _OF_WORLDS[vocabulary.name] = vocabulary


def letters(name: str) -> str:
    """What a name is compared by where spelling is free: letters and digits, in lower case ("potted plant")."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _suggest(name: str, known: tuple[str, ...]) -> str:
    """End an error message: the nearest known name, or all of them when none is near."""
    nearest = get_close_matches(name, known, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else f"; choose from {', '.join(known)}."


def _split(names: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in names.split(","))


def _templates(texts: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in texts.split("|"))


# Every `joining_order` was drawn once, by `RandomState(1).permutation` of the class names (tests/test_data.py).
_VOC2012 = Vocabulary(
    name="voc2012",
    class_names=_split("""
    aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
    pottedplant, sheep, sofa, train, tvmonitor
    """),
    unseen_names=_split("pottedplant, sheep, sofa, train, tvmonitor"),
    joining_order=_split("""
    boat, sheep, car, diningtable, bird, person, bottle, sofa, cat, bicycle, motorbike, aeroplane, tvmonitor,
    train, cow, pottedplant, chair, horse, dog, bus
    """),
)

_COCO_STUFF = Vocabulary(
    name="coco_stuff",
    class_names=_split("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet,
    cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain,
    desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower,
    fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
    mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform,
    playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper,
    snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable,
    wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops,
    window-blind, window-other, wood
    """),
    unseen_names=_split("""
    cow, giraffe, suitcase, frisbee, skateboard, carrot, scissors, cardboard, clouds, grass, playingfield, river,
    road, tree, wall-concrete
    """),
    joining_order=_split("""
    cloth, gravel, cow, oven, pizza, wall-other, fog, bird, dirt, flower, stop sign, airplane, leaves, fork,
    moss, napkin, snow, baseball glove, blanket, snowboard, carrot, vase, hair drier, book, wine glass,
    building-other, apple, frisbee, dog, floor-tile, bush, tent, tree, bus, clouds, carpet, cardboard,
    wall-wood, fruit, sandwich, donut, bed, curtain, bottle, chair, spoon, wall-stone, kite, sheep, potted
    plant, mountain, net, sea, parking meter, clothes, ceiling-tile, suitcase, metal, railroad, keyboard, mat,
    horse, stone, straw, structural-other, bench, floor-marble, bowl, ceiling-other, skateboard, stairs,
    wall-brick, plant-other, window-blind, ground-other, bear, car, toaster, paper, train, vegetable, person,
    platform, teddy bear, remote, cake, counter, house, banana, tv, clock, river, grass, mud, rock, floor-wood,
    fire hydrant, baseball bat, sports ball, window-other, tennis racket, bridge, water-other, wood, tie,
    door-stuff, giraffe, floor-other, cell phone, traffic light, sky-other, floor-stone, light, textile-other,
    solid-other, cage, desk-stuff, furniture-other, wall-concrete, table, mouse, cat, branch, cup, towel,
    food-other, banner, hot dog, handbag, scissors, knife, backpack, motorcycle, wall-tile, orange, plastic,
    wall-panel, skis, mirror-stuff, hill, boat, dining table, pavement, bicycle, couch, zebra, toilet, laptop,
    truck, waterdrops, salad, cabinet, cupboard, microwave, broccoli, sand, roof, skyscraper, fence, elephant,
    umbrella, railing, sink, pillow, shelf, toothbrush, playingfield, road, refrigerator, rug, surfboard
    """),
)

# 59 classes, alphabetical, without background. Held-out lists given as numbers elsewhere may count in another order.
_PASCAL_CONTEXT = Vocabulary(
    name="pascal_context",
    class_names=_split("""
    aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat,
    ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground,
    horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep,
    shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water, window,
    wood
    """),
    unseen_names=_split("cow, motorbike, sofa, cat, boat, fence, bird, tvmonitor, keyboard, aeroplane"),
    joining_order=_split("""
    table, bed, mouse, snow, pottedplant, mountain, platform, cow, curtain, tree, sidewalk, bedclothes, person,
    road, fence, building, train, flower, wall, horse, rock, sofa, food, sky, window, keyboard, car, dog, track,
    light, cloth, tvmonitor, motorbike, door, bench, cat, ground, grass, truck, sheep, computer, wood, cup,
    floor, bird, sign, boat, water, bag, chair, aeroplane, ceiling, bicycle, bus, bottle, book, cabinet,
    shelves, plate
    """),
)

VOCABULARIES: dict[str, Vocabulary] = {
    vocabulary.name: vocabulary for vocabulary in (_VOC2012, _COCO_STUFF, _PASCAL_CONTEXT)
}

_OF_WORLDS: dict[str, Vocabulary] = {}

# Lists of words that are no vocabulary of a dataset. "stuff": what lies behind and around things, for a background of
# words: the stuff of COCO-Stuff in plain English, less what people wear, eat, hold or put on a table, which belongs to
# things.
WORD_LISTS: dict[str, tuple[str, ...]] = {
    "stuff": _split("""
    sky, clouds, fog, grass, tree, bush, branch, leaves, plant, moss, straw, hill, mountain, rock, stone, sand, dirt,
    mud, gravel, ground, field, snow, water, sea, river, road, pavement, railroad, platform, bridge, building, house,
    skyscraper, roof, wall, brick wall, concrete wall, stone wall, wooden wall, tiled wall, panel, fence, railing,
    cage, stairs, door, window, window blind, curtain, ceiling, floor, wooden floor, tiled floor, carpet, rug, mat,
    mirror, shelf, cabinet, cupboard, counter, desk, table, furniture, tent, net, wood, metal, plastic, cardboard,
    paper, textile
    """),
}

# Exact strings, full stops included: they move the scores. The ensemble is averaged in embedding space.
PROMPT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "single": ("a photo of a {}",),
    # Seven and eighty templates of CLIP's authors (github.com/openai/CLIP, MIT).
    "ensemble7": _templates("""
    itap of a {}. | a bad photo of the {}. | a origami {}. | a photo of the large {}. | a {} in a video game. |
    art of the {}. | a photo of the small {}.
    """),
    "ensemble80": _templates("""
    a bad photo of a {}. | a photo of many {}. | a sculpture of a {}. | a photo of the hard to see {}. |
    a low resolution photo of the {}. | a rendering of a {}. | graffiti of a {}. | a bad photo of the {}. |
    a cropped photo of the {}. | a tattoo of a {}. | the embroidered {}. | a photo of a hard to see {}. |
    a bright photo of a {}. | a photo of a clean {}. | a photo of a dirty {}. | a dark photo of the {}. |
    a drawing of a {}. | a photo of my {}. | the plastic {}. | a photo of the cool {}. |
    a close-up photo of a {}. | a black and white photo of the {}. | a painting of the {}. |
    a painting of a {}. | a pixelated photo of the {}. | a sculpture of the {}. | a bright photo of the {}. |
    a cropped photo of a {}. | a plastic {}. | a photo of the dirty {}. | a jpeg corrupted photo of a {}. |
    a blurry photo of the {}. | a photo of the {}. | a good photo of the {}. | a rendering of the {}. |
    a {} in a video game. | a photo of one {}. | a doodle of a {}. | a close-up photo of the {}. |
    a photo of a {}. | the origami {}. | the {} in a video game. | a sketch of a {}. | a doodle of the {}. |
    a origami {}. | a low resolution photo of a {}. | the toy {}. | a rendition of the {}. |
    a photo of the clean {}. | a photo of a large {}. | a rendition of a {}. | a photo of a nice {}. |
    a photo of a weird {}. | a blurry photo of a {}. | a cartoon {}. | art of a {}. | a sketch of the {}. |
    a embroidered {}. | a pixelated photo of a {}. | itap of the {}. | a jpeg corrupted photo of the {}. |
    a good photo of a {}. | a plushie {}. | a photo of the nice {}. | a photo of the small {}. |
    a photo of the weird {}. | the cartoon {}. | art of the {}. | a drawing of the {}. |
    a photo of the large {}. | a black and white photo of a {}. | the plushie {}. | a dark photo of a {}. |
    itap of a {}. | graffiti of the {}. | a toy {}. | itap of my {}. | a photo of a cool {}. |
    a photo of a small {}. | a tattoo of the {}.
    """),
    "ensemble15": (
        "a photo of a {}.",
        "a photo of a small {}.",
        "a photo of a medium {}.",
        "a photo of a large {}.",
        "This is a photo of a {}.",
        "This is a photo of a small {}.",
        "This is a photo of a medium {}.",
        "This is a photo of a large {}.",
        "a {} in the scene.",
        "a photo of a {} in the scene.",
        "There is a {} in the scene.",
        "There is the {} in the scene.",
        "This is a {} in the scene.",
        "This is the {} in the scene.",
        "This is one {} in the scene.",
    ),
}
