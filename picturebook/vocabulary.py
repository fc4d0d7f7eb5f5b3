"""Names of the picturebook: classes, worlds, the zero-shot split, and the captions written with them.

Everything here is words. The split was fixed by the rule in `_draw_split` before any score was seen.
"""

from dataclasses import dataclass

import numpy as np


THING_NAMES = (
    "car", "house", "tree", "fish", "mushroom", "star", "heart", "moon", "flower", "boat",
    "cup", "umbrella", "butterfly", "clock", "rocket", "balloon", "cat", "bird", "snail", "cactus",
)  # fmt: skip
STUFF_NAMES = ("grass", "water", "sand", "brick", "sky", "wood")
COLOR_NAMES = ("red", "blue", "green", "yellow", "purple")
COMPOSITIONAL_NOUNS = ("car", "fish", "house", "cup")


@dataclass(frozen=True)
class World:
    """A vocabulary that scenes are drawn from.

    Attributes:
        name: What `world=` arguments call it.
        code: Its number in the random keys; never change it, or every scene changes.
        thing_names: Countable objects; their ids come first.
        stuff_names: Textured regions.
        unpictured_names: Things that the pretraining split neither draws nor names.
    """

    name: str
    code: int
    thing_names: tuple[str, ...]
    stuff_names: tuple[str, ...]
    unpictured_names: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Things, then stuff; the position of a name is its label id."""
        return self.thing_names + self.stuff_names


WORLDS = {
    "plain": World("plain", 0, THING_NAMES, STUFF_NAMES),
    # Every color but purple and every noun loses one combination, so the words stay known and the pair does not.
    "compositional": World(
        "compositional",
        1,
        tuple(f"{color} {noun}" for noun in COMPOSITIONAL_NOUNS for color in COLOR_NAMES),
        STUFF_NAMES,
        ("green car", "red fish", "yellow house", "blue cup"),
    ),
}


def get_world(world: str = "plain") -> World:
    """Look up a world by name.

    Raises:
        ValueError: If there is no world of this name.
    """
    if world not in WORLDS:
        raise ValueError(f"unknown picturebook world {world!r}; choose one of {', '.join(map(repr, WORLDS))}")
    return WORLDS[world]


def class_id(name: str, world: str = "plain") -> int:
    """Label id of a class name.

    Raises:
        ValueError: If the world has no class of this name.
    """
    names = get_world(world).class_names
    if name not in names:
        raise ValueError(
            f"the {world!r} picturebook has no class {name!r}; choose from CLASS_NAMES: {', '.join(names)}"
        )
    return names.index(name)


def _draw_split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw the unseen names once and for all: four things and one stuff class, twice, without overlap.

    `RandomState(1)` shuffles the things and then the stuff. The first four things and the first stuff class are the
    unseen names of every reported score; the next ones form the split on which settings are chosen.
    """
    state = np.random.RandomState(1)
    things = [THING_NAMES[i] for i in state.permutation(len(THING_NAMES))]
    stuff = [STUFF_NAMES[i] for i in state.permutation(len(STUFF_NAMES))]
    return (*things[:4], stuff[0]), (*things[4:8], stuff[1])


CLASS_NAMES = WORLDS["plain"].class_names
NUM_THINGS = len(THING_NAMES)
# Ids of what scores are reported apart for.
CLASS_GROUPS = {"things": list(range(NUM_THINGS)), "stuff": list(range(NUM_THINGS, len(CLASS_NAMES)))}
UNSEEN_NAMES, TUNING_UNSEEN_NAMES = _draw_split()
# The order in which seen classes join when only a share of them trains. Things and stuff stand as `_draw_split`
# shuffles them, interleaved evenly: the r-th of n at (r + 1/2) / n, so that every share has its share of stuff.
JOINING_ORDER = (
    "fish", "cat", "water", "heart", "cup", "tree", "wood", "rocket", "mushroom", "bird", "grass", "moon", "house",
    "clock", "car", "brick", "cactus", "snail", "boat", "sky", "balloon", "flower", "butterfly", "sand", "umbrella",
    "star",
)  # fmt: skip

# A caption that names one class is a CLIP prompt: the bare name behind "a", whatever the grammar says.
NAME_TEMPLATES = (
    "a photo of a {}", "a photo of a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}",
    "an image of a {}", "a {}", "{}", "this is a {}", "a picture book page with a {}",
)  # fmt: skip
# A caption that names several classes is a sentence whose articles are part of the phrase.
PHRASE_TEMPLATES = (
    "a photo of {}", "a photo of {}", "a picture of {}", "a drawing of {}", "an image of {}", "{}", "there is {}",
    "a page that shows {}",
)  # fmt: skip
PLACES = ("on", "with", "in front of", "near", "over", "beside")


def write_caption(class_ids: list[int], rng: np.random.Generator, world: str = "plain") -> tuple[str, list[int]]:
    """Describe an image by some of its classes, in random order.

    A named thing is left out with probability 0.1; stuff behind things is mentioned in six of ten captions.

    Args:
        class_ids: Ids of the classes that are clearly visible, at least one.
        rng: Source of the wording.
        world: Vocabulary of the ids.

    Returns:
        The caption, and the ids it names.
    """
    names = get_world(world).class_names
    num_things = len(get_world(world).thing_names)
    order = [class_ids[i] for i in rng.permutation(len(class_ids))]
    things = [i for i in order if i < num_things and rng.random() >= 0.1]
    stuff = [i for i in order if i >= num_things and (not things or rng.random() < 0.6)]
    mentioned = things + stuff or order[:1]
    if len(mentioned) == 1:
        return _pick(NAME_TEMPLATES, rng).format(names[mentioned[0]]), mentioned
    phrase = _enumerate([_with_article(names[i]) for i in things])
    ground = _enumerate([names[i] for i in stuff])
    if phrase and ground:
        phrase = f"{phrase} {_pick(PLACES, rng)} {ground}"
    return _pick(PHRASE_TEMPLATES, rng).format(phrase or ground), mentioned


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _enumerate(phrases: list[str]) -> str:
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
