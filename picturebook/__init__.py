"""Picturebook: a drawn world with a tiny CLIP, on which LDVC trains and is measured in minutes without a download."""

from picturebook.vocabulary import (
    CLASS_GROUPS,
    CLASS_NAMES,
    NUM_THINGS,
    TUNING_UNSEEN_NAMES,
    UNSEEN_NAMES,
    WORLDS,
    class_id,
)
from picturebook.world import Scene, draw_scene, load_picturebook


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
    "load_picturebook",
]
