"""The configuration under its earlier name: see :mod:`.pipeline.config` and
:mod:`.pipeline.loading`.
"""

from .pipeline.config import *  # noqa: F403
from .pipeline.loading import load_as, load_config, load_study  # noqa: F401
