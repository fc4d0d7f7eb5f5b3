"""A door: the public names of `ldvc.model.processing_ldvc`, where the code is."""

from ldvc.model.processing_ldvc import *  # noqa: F403
from ldvc.model.processing_ldvc import __all__  # noqa: F401
