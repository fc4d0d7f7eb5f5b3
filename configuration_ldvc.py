"""A door: the public names of `ldvc.model.configuration_ldvc`, where the code is."""

from ldvc.model.configuration_ldvc import *  # noqa: F403
from ldvc.model.configuration_ldvc import __all__  # noqa: F401
