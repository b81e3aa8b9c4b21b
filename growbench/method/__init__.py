"""The plugin interface: everything that the author of a growth method imports."""

from growbench.method.interface import *  # noqa: F403
from growbench.method.interface import __all__ as __all__
