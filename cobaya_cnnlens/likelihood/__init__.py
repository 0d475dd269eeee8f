"""Debiased bandpowers and their likelihood, with Cobaya and without; needs no pipeline."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ gives, for type checkers
    from .bandpowers import BandpowerLikelihood as BandpowerLikelihood
    from .cnnlens import CNNLens as CNNLens
    from .release import Release as Release
    from .release import read_release as read_release
    from .release import write_release as write_release

_HOMES = {
    "CNNLens": ".cnnlens",
    "BandpowerLikelihood": ".bandpowers",
    "Release": ".release",
    "read_release": ".release",
    "write_release": ".release",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Cobaya is imported only when its component is asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
