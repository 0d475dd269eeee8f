"""The release file under its earlier name: :mod:`cobaya_cnnlens.likelihood.release`."""

from .likelihood.release import *  # noqa: F403
