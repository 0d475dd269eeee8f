"""Theory spectra, and how Cobaya asks for them."""

from .camb import (
    CambSettings,
    Cosmology,
    Spectra,
    compute_spectra,
    convergence_from_potential,
    potential_from_convergence,
    settings_record,
)

__all__ = [
    "CambSettings",
    "Cosmology",
    "Spectra",
    "compute_spectra",
    "convergence_from_potential",
    "potential_from_convergence",
    "settings_record",
]
