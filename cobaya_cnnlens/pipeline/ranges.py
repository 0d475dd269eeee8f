"""Lowest and highest values of the numbers of a configuration."""

from __future__ import annotations

# What the values of the sections without a class of their own here may be, ends included: wide
# enough for any experiment, and CAMB runs throughout.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "cosmology": {
        "ombh2": (0.005, 0.1),
        "omch2": (0.01, 0.5),
        "As": (1e-10, 1e-8),
        "ns": (0.5, 1.5),
        "tau": (0.01, 0.5),
        "H0": (30, 120),
        "mnu": (0, 5),
    },
    "camb": {"lmax": (100, 20_000), "lens_potential_accuracy": (1, 30)},
    "sky": {"lmax": (100, 20_000), "band_limit": (100, 20_000)},
    "patch": {"size_deg": (0.1, 30), "n_pixels": (8, 4096), "pad": (0, 4096)},
    "instrument": {
        "noise_uk_arcmin": (0, 1000),
        "beam_fwhm_arcmin": (0, 120),
        "taper_deg": (0, 15),
        "depth_ratio": (0.01, 100),
    },
}
HALOFIT_VERSIONS = (
    *("original", "bird", "peacock", "takahashi", "casarini", "mead", "mead2015", "mead2016"),
    *("mead2020", "mead2020_feedback", "halomodel"),
)


def check_ranges(name: str, section: object, ranges: dict[str, tuple[float, float]]) -> None:
    """Refuse a section with a number beyond its ends.

    Parameters
    ----------
    name : of the section, for errors
    section : object with the keys as attributes
    ranges : lowest and highest value by key

    Raises
    ------
    ValueError
        if one lies outside
    """
    for key, (low, high) in ranges.items():
        value = getattr(section, key)
        if value is not None and not low <= value <= high:
            raise ValueError(
                f"{name}.{key} is {value:.6g}; it must lie between {low:g} and {high:g}"
            )
