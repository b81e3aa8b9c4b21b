"""The plugin interface: everything that the author of a growth method imports."""

from growbench import growth
from growbench.growth import *  # noqa: F403
from growbench.method import interface
from growbench.method.growth_options import first_phase
from growbench.method.interface import *  # noqa: F403

__all__ = ["first_phase"]
__all__ += growth.__all__
__all__ += interface.__all__
