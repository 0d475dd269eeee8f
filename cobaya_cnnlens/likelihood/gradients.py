"""The likelihood and the emulator as one function of JAX: gradients, compiled and vectorised.

JAX runs the same algebra as NumPy does: :meth:`.Emulator.spectra`, then
:meth:`.BandpowerLikelihood.unchecked_log_likelihood`. docs/gradients.md samples ΛCDM with it by
NumPyro. This is the one module that needs JAX: ``pip install '.[jax]'``.
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

# In place of A_L = 1 a point may hold this.
LENSING_AMPLITUDE = "Alens"


def log_likelihood(likelihood: BandpowerLikelihood, emulator: Emulator) -> Callable[..., Any]:
    """ln L of parameters, as a function for ``jax.grad``, ``jax.jit`` and ``jax.vmap``.

    It needs JAX's double precision, in which ``with jax.enable_x64(True):`` puts whatever it holds
    without a change of any other code's. In single precision ln L is off by 5e-6 of itself.

    Parameters
    ----------
    likelihood : of a release
    emulator : of the spectra

    Returns
    -------
    function : of a point and, as of :meth:`.BandpowerLikelihood.model`, of nuisances or None. The
        point maps the emulator's parameters to numbers, and perhaps ``Alens``, which multiplies
        C_L^κκ. Its value is −∞ outside the emulator's box and where the model has no likelihood.

    Raises
    ------
    CNNLensError
        If the emulator's spectra end before those that the likelihood needs. The function raises
        it in single precision, and :class:`.EmulatorError` for a point with other parameters.

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
    """Whether a point lies in the emulator's box, as :meth:`.Emulator.outside` tells in words."""
    inside = matter_density({**emulator.fixed, **point}) <= LARGEST_DENSITY
    for name, (low, high) in emulator.box.items():
        inside &= (low <= point[name]) & (point[name] <= high)
    return inside
