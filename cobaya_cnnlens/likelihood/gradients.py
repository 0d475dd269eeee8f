"""The likelihood and the emulator as one JAX function, for gradients and for NUTS.

JAX runs the same algebra as NumPy does: :meth:`.Emulator.spectra`, then
:meth:`.BandpowerLikelihood.unchecked_log_likelihood`. docs/gradients.md samples ΛCDM with it in
NumPyro. Only this module needs JAX: ``pip install '.[jax]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CNNLensError, EmulatorError
from ..theory.approximations import matter_density
from ..theory.emulator import LARGEST_DENSITY, Emulator
from .bandpowers import BandpowerLikelihood

try:
    import jax.numpy as jnp
except ModuleNotFoundError:
    raise CNNLensError(
        "gradients need the package jax, which is not installed - NumPy has no derivatives - "
        "install it with: pip install '.[jax]'"
    ) from None

# Optional parameter of a point, A_L; it is 1 if the point does not contain it.
LENSING_AMPLITUDE = "Alens"


def log_likelihood(likelihood: BandpowerLikelihood, emulator: Emulator) -> Callable[..., Any]:
    """Make ln L a function of the parameters, for ``jax.grad``, ``jax.jit`` and ``jax.vmap``.

    The function needs JAX's double precision. ``with jax.enable_x64(True):`` switches it on inside
    the block and nowhere else. In single precision, ln L has a relative error of 5e-6.

    Parameters
    ----------
    likelihood : of a release
    emulator : of the spectra

    Returns
    -------
    function : of a point, and of nuisances or None as in :meth:`.BandpowerLikelihood.model`. The
        point maps the emulator's parameters to numbers. It may contain ``Alens``, which multiplies
        C_L^κκ. Its value is −∞ outside the emulator's range and where the model has no likelihood.

    Raises
    ------
    CNNLensError
        If the emulator's spectra end at a lower L than the likelihood needs. In single precision
        the function raises it too. It raises :class:`.EmulatorError` for other parameters.

    Examples
    --------
    >>> import jax
    >>> from cobaya_cnnlens import read_emulator, read_release
    >>> function = log_likelihood(
    ...     BandpowerLikelihood(read_release("refined_fiducial")), read_emulator("lcdm")
    ... )
    >>> point = {"logA": 3.096, "ns": 0.9624, "ombh2": 0.0222, "omch2": 0.1185, "H0": 67.94}
    >>> with jax.enable_x64(True):
    ...     print(f"{jax.jit(jax.grad(function))(point)['omch2']:.0f}")
    -5324
    """
    needed = max(likelihood.lmax_kk, likelihood.lmax_ee if likelihood.needs_ee else 0)
    if emulator.lmax < needed:
        raise CNNLensError(
            f"the emulator's spectra end at l = {emulator.lmax} - the release "
            f"'{likelihood.release.name}' needs l = {needed} - make an emulator with a larger lmax"
        )

    def function(point: Mapping[str, Any], nuisances: Any = None) -> Any:
        _check_names(point, emulator)
        values = {name: jnp.asarray(value, float) for name, value in point.items()}
        if jnp.result_type(float) != jnp.float64:
            raise CNNLensError(
                "JAX computes in single precision - ln L and its gradient would lose digits - "
                "call the function within: with jax.enable_x64(True)"
            )
        amplitude = values.pop(LENSING_AMPLITUDE, 1.0)
        x = None if nuisances is None else jnp.asarray(nuisances, float)
        clkk, clee, _ = emulator.spectra(values)
        value = likelihood.unchecked_log_likelihood(amplitude * clkk, clee, x)
        valid = _is_inside(values, emulator) & jnp.isfinite(value)
        return jnp.where(valid, value, -jnp.inf)

    return function


def _check_names(point: Mapping[str, Any], emulator: Emulator) -> None:
    names, expected = set(point) - {LENSING_AMPLITUDE}, set(emulator.parameters)
    if names != expected:
        problem = ", ".join(
            f"{what} {', '.join(sorted(map(str, some)))}"
            for what, some in (("lacks", expected - names), ("has the unknown", names - expected))
            if some
        )
        raise EmulatorError(f"the point {problem}; give {', '.join(emulator.parameters)}")


def _is_inside(point: Mapping[str, Any], emulator: Emulator) -> Any:
    """Whether a point lies in the emulator's range; :meth:`.Emulator.outside` says so in words."""
    inside = matter_density({**emulator.fixed, **point}) <= LARGEST_DENSITY
    for name, (low, high) in emulator.box.items():
        inside &= (low <= point[name]) & (point[name] <= high)
    return inside
