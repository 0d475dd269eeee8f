"""The likelihood without Cobaya, by its earlier name: see :mod:`.likelihood.bandpowers`."""

from .likelihood.bandpowers import *  # noqa: F403
