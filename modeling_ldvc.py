"""A door: the public names of `ldvc.model.modeling_ldvc`, where the code is."""

from ldvc.model.modeling_ldvc import *  # noqa: F403
from ldvc.model.modeling_ldvc import __all__  # noqa: F401
