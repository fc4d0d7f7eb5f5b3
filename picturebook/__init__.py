"""Picturebook: a drawn world with a tiny CLIP, on which LDVC trains and is measured in minutes without a download."""

from ldvc.data.vocabularies import Vocabulary
from ldvc.data.worlds import World, register_world
from picturebook.vocabulary import (
    CLASS_GROUPS,
    CLASS_NAMES,
    JOINING_ORDER,
    NUM_THINGS,
    TUNING_UNSEEN_NAMES,
    UNSEEN_NAMES,
    WORLDS,
    class_id,
)
from picturebook.world import Scene, draw_scene, load_pages, load_picturebook


__all__ = [
    "CLASS_GROUPS",
    "CLASS_NAMES",
    "NUM_THINGS",
    "TUNING_UNSEEN_NAMES",
    "UNSEEN_NAMES",
    "WORLDS",
    "Scene",
    "class_id",
    "draw_scene",
    "load_pages",
    "load_picturebook",
]

# "picturebook" has the split of every reported score, "picturebook_tuning" the one on which settings are chosen.
register_world(
    World(
        "picturebook",
        load_pages,
        (
            Vocabulary("picturebook", CLASS_NAMES, UNSEEN_NAMES, joining_order=JOINING_ORDER),
            Vocabulary("picturebook_tuning", CLASS_NAMES, TUNING_UNSEEN_NAMES, joining_order=JOINING_ORDER),
        ),
        CLASS_GROUPS,
    )
)
