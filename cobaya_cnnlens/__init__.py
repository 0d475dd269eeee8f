"""CMB lensing with a learned estimator: a Cobaya likelihood, and the pipeline that makes it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ gives, for type checkers
    from .likelihood.bandpowers import BandpowerLikelihood as BandpowerLikelihood
    from .likelihood.cnnlens import CNNLens as CNNLens
    from .likelihood.delensed_bb import DelensedBB as DelensedBB
    from .likelihood.desi_bao import DESIDR2BAO as DESIDR2BAO
    from .likelihood.release import read_release as read_release
    from .likelihood.release import shipped_releases as shipped_releases
    from .theory.emulated import EmulatedCAMB as EmulatedCAMB
    from .theory.emulator_files import read_emulator as read_emulator
    from .theory.nodes import NodeCAMB as NodeCAMB

__version__ = "0.1.0"
# What the package offers by its own name, and where that is: imported when it is asked for, so that
# Cobaya is loaded only for its own components.
_PUBLIC = {
    "BandpowerLikelihood": "likelihood.bandpowers",
    "CNNLens": "likelihood.cnnlens",
    "DESIDR2BAO": "likelihood.desi_bao",
    "DelensedBB": "likelihood.delensed_bb",
    "EmulatedCAMB": "theory.emulated",
    "NodeCAMB": "theory.nodes",
    "read_emulator": "theory.emulator_files",
    "read_release": "likelihood.release",
    "shipped_releases": "likelihood.release",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
