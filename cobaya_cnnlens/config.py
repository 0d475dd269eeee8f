"""The configuration under its earlier name: :mod:`cobaya_cnnlens.pipeline.config`."""

from .pipeline.config import *  # noqa: F403
