"""CMB lensing with a learned estimator: a Cobaya likelihood, and the pipeline that makes it."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ gives, for type checkers
    from .likelihood.bandpowers import BandpowerLikelihood as BandpowerLikelihood
    from .likelihood.cnnlens import CNNLens as CNNLens
    from .likelihood.desi_bao import DESIDR2BAO as DESIDR2BAO
    from .likelihood.release import read_release as read_release
    from .likelihood.release import shipped_releases as shipped_releases
    from .theory.emulated import EmulatedCAMB as EmulatedCAMB
    from .theory.emulator import read_emulator as read_emulator
    from .theory.nodes import NodeCAMB as NodeCAMB

__version__ = "0.1.0"
# What the package offers by its own name, and where that is: imported when it is asked for, so that
# Cobaya is loaded only for its own components.
_PUBLIC = {
    "BandpowerLikelihood": "likelihood.bandpowers",
    "CNNLens": "likelihood.cnnlens",
    "DESIDR2BAO": "likelihood.desi_bao",
    "EmulatedCAMB": "theory.emulated",
    "NodeCAMB": "theory.nodes",
    "read_emulator": "theory.emulator",
    "read_release": "likelihood.release",
    "shipped_releases": "likelihood.release",
}
# Modules under their earlier names.
_MOVED = {
    f"{__name__}.config": f"{__name__}.pipeline.loading",
    f"{__name__}.model": f"{__name__}.likelihood.bandpowers",
    f"{__name__}.release": f"{__name__}.likelihood.release",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


class _EarlierNames(MetaPathFinder, Loader):
    """Imports by an earlier name give the module itself, not a copy."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        # The import system hands out what stands here after a module's code has run.
        sys.modules[module.__name__] = import_module(_MOVED[module.__name__])


sys.meta_path.insert(0, _EarlierNames())
