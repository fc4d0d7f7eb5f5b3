"""Datasets that are drawn by code and have no end, such as the embedded picture book: they register here by name.

A world's package calls `register_world` when it is imported; whoever offers it to users imports it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldvc.data.vocabularies import Vocabulary, register_vocabulary


__all__ = ["WORLDS", "World", "register_world"]

WORLDS: dict[str, "World"] = {}


@dataclass(frozen=True)
class World:
    """A drawn dataset.

    Attributes:
        name: What `--dataset` calls it.
        load: `(split, num_images, seed, config_name)` to a `datasets.Dataset` with the columns `image` and `label`;
            the last is `None` unless a configuration is stated.
        vocabularies: Its class list, once per seen / unseen split.
        class_groups: Class ids by title, whose scores are reported apart.
    """

    name: str
    load: Callable[[str, int, int, str | None], Any]
    vocabularies: Sequence[Vocabulary]
    class_groups: Mapping[str, list[int]] = field(default_factory=dict)


def register_world(world: World) -> None:
    """Make a world and its vocabularies known by their names."""
    WORLDS[world.name] = world
    for vocabulary in world.vocabularies:
        register_vocabulary(vocabulary)
