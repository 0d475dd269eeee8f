"""Debiased bandpowers and their likelihood, with Cobaya and without; needs no pipeline."""

from importlib import import_module
from typing import Any

_HOMES = {
    "CNNLens": ".cnnlens",
    "NUISANCE_PARAMETERS": ".cnnlens",
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
