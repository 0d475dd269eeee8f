"""Null tests measured: maps without lensing, or with another κ than the one that they are
compared with.

:class:`SkyNulls` has a method for each. Every null gives κ̂ of some maps and the κ that it must not
correlate with, patch by patch. All maps carry the noise of their sky.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import CNNLensError
from ..pipeline.observation import ObservedPatches, observe_sky, sky_noise
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..simulate import patches, shards
from ..simulate.bandpowers import FlatSpectra
from ..simulate.instrument import convolve_beam
from ..simulate.modes import mode_vectors, polarisation_angles
from ..simulate.skies import seed_sequence
from ..simulate.tiling import evenly, some

KIND = "nulls"
ALGORITHM = 1
# Set of skies of the nulls that are not of the test set.
SETS = {"training": "train"}
NULLS = ("training", "unlensed", "swapped", "noise", "b_only", "parity", "curl")
# Arrays of a product that are averaged over skies; the others are by patch.
AVERAGED = ("mean_field", "beyond_mask")
# Draws of random signs that a mean field is judged by, and how many at a time.
N_FLIPS, CHUNK = 2000, 250


def check_names(run: Run, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """Names of null tests in their order; for None all that the configuration allows: without noise
    there is no map of noise alone, and with an instrument without any symmetry the mean field of
    noise or of B is no null.

    Parameters
    ----------
    run : a configuration, with its products and networks
    names : names of null tests; all that the configuration allows by default

    Returns
    -------
    names : of null tests, in their order

    Raises
    ------
    CNNLensError
        for one that does not exist, or that the configuration does not allow
    """
    config = run.config
    without = {"noise"} if config.instrument.noise_uk_arcmin == 0 else set()
    if config.instrument.symmetry is None:
        without = {"noise", "b_only"}
    possible = [name for name in NULLS if name not in without]
    chosen = set(possible if names is None else names)
    if unknown := chosen - set(possible):
        raise CNNLensError(
            f"no null test '{min(unknown)}' of configuration '{config.name}'; choose of "
            f"{', '.join(possible)}"
        )
    return tuple(name for name in possible if name in chosen)


def path(run: Run, null: str, index: int) -> Path:
    """Path of the bandpowers of one null test on one sky.

    Parameters
    ----------
    run : a configuration, with its products and networks
    null : name of the null test
    index : number of the sky

    Returns
    -------
    path : of the product
    """
    return run.config.products / KIND / null / f"sky_{index:04d}.h5"


def recipe(run: Run, null: str, index: int) -> dict[str, Any]:
    """What determines the bandpowers of one null test on one sky.

    Parameters
    ----------
    run : a configuration, with its products and networks
    null : name of the null test
    index : number of the sky

    Returns
    -------
    recipe : of the product
    """
    return {
        **Bandpowers(run).recipe(SETS.get(null, "test"), index),
        "null_algorithm": ALGORITHM,
        "null": null,
        **({"patches": n} if (n := run.config.nulls.patches) is not None else {}),
    }


def measure(
    run: Run,
    names: Iterable[str] | None = None,
    indices: Iterable[int] | None = None,
    nthreads: int = 0,
) -> None:
    """Measure the null tests that have no product yet, sky by sky.

    A product holds, by patch and (n_patches, n_bins) each, ``auto`` ⟨κ̂κ̂*⟩, ``truth`` ⟨κκ*⟩ and
    ``cross`` ⟨κκ̂*⟩, the last of the pair of patches i and i + n/2 for ``swapped``, (n_patches/2,
    n_bins); ``even`` for ``parity``: ⟨κ̂κ̂*⟩ of the maps as they are, ``auto`` being that of κ̂_odd.
    Of the mean κ̂ over the sky's patches there is ``mean_field``, see :func:`mean_field`, with the
    draws below it, (1 + N_FLIPS, n_bins), and for ``noise`` and ``b_only`` the same of
    :func:`beyond_mask`, ``beyond_mask``.

    Parameters
    ----------
    run : a configuration, with its products and networks
    names : names of null tests; all that the configuration allows by default
    indices : numbers of the skies; all by default
    nthreads : threads of the transforms; 0 takes all cores. Results do not depend on it
    """
    names = check_names(run, names)
    todo: dict[int, list[str]] = {}
    for index in range(run.config.nulls.skies) if indices is None else indices:
        for name in names:
            run.config.check_index(SETS.get(name, "test"), index)
            if not products.exists(path(run, name, index), KIND, recipe(run, name, index)):
                todo.setdefault(index, []).append(name)
    total = sum(map(len, todo.values()))
    with tqdm(total=total, desc="nulls", unit="null", disable=not total) as bar:
        for index, missing in todo.items():
            sky = SkyNulls(run, index, nthreads)
            for name in missing:
                arrays = getattr(sky, name)()
                products.write_product(
                    path(run, name, index), KIND, recipe(run, name, index), arrays
                )
                bar.update()


def read(run: Run, null: str, indices: Iterable[int]) -> dict[str, np.ndarray]:
    """What :func:`measure` kept of a null on some skies, their patches one after another; mean
    fields are averaged over the skies.

    Parameters
    ----------
    run : a configuration, with its products and networks
    null : name of the null test
    indices : numbers of the skies

    Returns
    -------
    arrays : by name as :func:`measure` lists them

    Raises
    ------
    products.ProductError
        if a null has not been measured, or was with another network or configuration
    """
    skies = []
    for index in indices:
        with products.open_product(
            path(run, null, index), KIND, recipe(run, null, index)
        ) as product:
            skies.append({key: product.array(key) for key in product.names()})
    return {
        key: (np.mean if key in AVERAGED else np.concatenate)([sky[key] for sky in skies], axis=0)
        for key in skies[0]
    }


class SkyNulls:
    """Nulls of one sky; the method of a null returns the arrays of its product."""

    def __init__(self, run: Run, index: int, nthreads: int = 0):
        self.run, self.config, self.estimator = run, run.config, run.estimator
        self.index, self.nthreads = index, nthreads
        self.spectra, self.mask = run.bandpowers, run.data_mask.astype(np.float32)

    @cached_property
    def observed(self) -> ObservedPatches:
        """The test sky as it is observed."""
        return self._observe_set("test")

    def _observe_set(self, set_name: str, lensed: bool = True) -> ObservedPatches:
        sky = observe_sky(self.run, set_name, self.index, lensed=lensed)
        n_patches = self.config.nulls.patches
        return ObservedPatches(*(some(maps, n_patches) for maps in vars(sky).values()))

    @cached_property
    def instrument_noise(self) -> np.ndarray:
        """Noise of the test sky's Q and U."""
        noise = sky_noise(self.run, "test", self.index, self.run.n_patches)
        return some(noise, self.config.nulls.patches, axis=1)

    @cached_property
    def estimate(self) -> np.ndarray:
        """κ̂ of the test sky."""
        return self._reconstruct(self.observed.q, self.observed.u)

    def training(self) -> dict[str, np.ndarray]:
        """Unlensed Q, U of training skies; the κ that the network was trained to find in the
        lensed ones (Caldeira et al. 2018, eq. 14)."""
        sky = self._observe_set("train", lensed=False)
        return self._compare(self._reconstruct(sky.q, sky.u), sky.kappa)

    def unlensed(self) -> dict[str, np.ndarray]:
        """Unlensed Q, U of test skies, and their κ (Caldeira et al. 2018, Fig. 11)."""
        sky = self._observe_set("test", lensed=False)
        return self._compare(self._reconstruct(sky.q, sky.u), sky.kappa)

    def swapped(self) -> dict[str, np.ndarray]:
        """Test maps, and κ of the patch half a sky away."""
        half = len(self.estimate) // 2
        if half == 0:
            raise CNNLensError("the null test 'swapped' needs two patches of a sky, not one")
        estimate, true = (self.spectra.transform(m) for m in (self.estimate, self.observed.kappa))
        # κ̂_i holds κ_i, so that κ_i κ̂_j* and κ_j κ̂_i* are no two samples.
        pairs = slice(0, half), slice(half, 2 * half)
        cross = [self.spectra.cross(true[a], estimate[b]) for a, b in (pairs, pairs[::-1])]
        compared = self._compare(self.estimate, self.observed.kappa)
        return {**compared, "cross": np.mean(cross, axis=0)}

    def noise(self) -> dict[str, np.ndarray]:
        """Noise alone; κ of the test sky."""
        return self._mask_free(self._reconstruct(*(self.instrument_noise * self.mask)))

    def b_only(self) -> dict[str, np.ndarray]:
        """B of the lensed spectrum but Gaussian, no E, with noise; κ of the test sky."""
        generator = np.random.default_rng(
            seed_sequence(self.config.seed, "nulls/b_only", self.index)
        )
        cl = self.run.spectra().lensed_bb
        q, u = gaussian_b(self.run, cl, len(self.observed.q), generator)
        return self._mask_free(self._reconstruct(*self._observe(q, u)))

    def parity(self) -> dict[str, np.ndarray]:
        """Test maps; κ̂_odd = ½[κ̂(d) − P κ̂(P d)], with P the mirror x → −x, U → −U.

        (κ, d) and (Pκ, Pd) are equally likely, so that ⟨κκ̂_odd*⟩ = 0 for every function of the
        maps.
        """
        mirrored = self._reconstruct(self.observed.q[..., ::-1], -self.observed.u[..., ::-1])
        odd = 0.5 * (self.estimate - mirrored[..., ::-1])
        even = self.spectra.auto(self.estimate)
        return {**self._compare(odd, self.observed.kappa), "even": even}

    def curl(self) -> dict[str, np.ndarray]:
        """E of the test sky deflected by ∇φ turned by 90°; its κ = ½ L²φ.

        Of an estimator that is equivariant under mirrors the two are of opposite parity.
        """
        config = self.config
        theory = self.run.spectra(config.set_cosmology("test"))
        sky = shards.draw_sky(theory, config.sky.lmax, config.seed, "test", self.index)
        pointing = self.run.pointing_of("test")
        if config.nulls.patches is not None:
            chosen = evenly(self.run.n_patches, config.nulls.patches)
            pointing = shards.some_patches(pointing, config.patch, chosen)
        gradient = patches.gradient_at(sky.philm, sky.lmax, pointing, self.nthreads)
        deflection = patches.deflect_by(turned(gradient), pointing, self.nthreads)
        p = patches.lensed_polarisation_at(sky.elm, sky.lmax, pointing, deflection, self.nthreads)
        n = config.patch.n_padded
        q, u = (maps.reshape(-1, n, n) for maps in (p.real, p.imag))
        return self._compare(self._reconstruct(*self._observe(q, u)), self.observed.kappa)

    def _observe(self, *padded: np.ndarray) -> Iterator[np.ndarray]:
        """Q and U of padded patches with beam, the test sky's noise, and mask."""
        config = self.config
        return (
            (convolve_beam(maps, config.instrument, config.patch) + noise).astype(np.float32)
            * self.mask
            for maps, noise in zip(padded, self.instrument_noise, strict=True)
        )

    def _reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        estimate = self.estimator.reconstruct(np.ascontiguousarray(q), np.ascontiguousarray(u))
        if not np.isfinite(estimate).all():
            raise CNNLensError("the convergence reconstructed in a null test is not finite")
        return estimate

    def _mask_free(self, estimate: np.ndarray) -> dict[str, np.ndarray]:
        odd = beyond_mask(estimate, self.config.instrument.symmetry == "square")
        remainder = {"beyond_mask": self._mean_field(self.spectra.transform(odd))}
        return {**self._compare(estimate, self.observed.kappa), **remainder}

    def _compare(self, estimate: np.ndarray, kappa: np.ndarray) -> dict[str, np.ndarray]:
        estimate_modes, true = self.spectra.transform(estimate), self.spectra.transform(kappa)
        return {
            "auto": self.spectra.cross(estimate_modes, estimate_modes),
            "cross": self.spectra.cross(true, estimate_modes),
            "truth": self.spectra.cross(true, true),
            "mean_field": self._mean_field(estimate_modes),
        }

    def _mean_field(self, modes: np.ndarray) -> np.ndarray:
        seed = seed_sequence(self.config.seed, "nulls/signs", self.index)
        power, draws = mean_field(self.spectra, modes, np.random.default_rng(seed))
        return np.concatenate([power[None], draws])


def turned(gradient: np.ndarray) -> np.ndarray:
    """Turn ∇φ by 90°: the deflection of a curl potential.

    Parameters
    ----------
    gradient : along south and east in radians, (n, 2)

    Returns
    -------
    deflection : along the same in radians, (n, 2)
    """
    return np.stack([-gradient[:, 1], gradient[:, 0]], axis=1)


def gaussian_b(
    run: Run, clbb: np.ndarray, n_patches: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw Q and U of a Gaussian B field without E, periodic on the padded patch.

    Parameters
    ----------
    run : a configuration, with its products and networks
    clbb : C_l^BB in µK² from l = 0; nothing beyond its end or the Nyquist multipole
    n_patches : number of patches
    generator : of random numbers

    Returns
    -------
    q, u : in µK, (n_patches, n_padded, n_padded) each
    """
    patch = run.config.patch
    n, pixel = patch.n_padded, patch.pixel
    ly, lx = mode_vectors(n, pixel)
    cos2, sin2 = polarisation_angles(ly, lx)
    ell = np.hypot(ly, lx)
    power = np.interp(ell, np.arange(len(clbb)), clbb, right=0.0)
    power[ell >= patch.nyquist] = 0.0
    b = np.fft.rfft2(generator.standard_normal((n_patches, n, n))) * np.sqrt(power) / pixel
    q, u = (np.fft.irfft2(b * angle, s=(n, n)) for angle in (-sin2, cos2))
    return q, u


def beyond_mask(maps: np.ndarray, square: bool = True) -> np.ndarray:
    """Maps (..., n, n) less their mean over the symmetries of the square, or over those of y, the
    mirror x → −x, if not ``square``.

    Of isotropic inputs behind a mask with these symmetries, an equivariant estimator's mean field
    is all in what is taken off.

    Parameters
    ----------
    maps : (..., n, n)
    square : whether all eight symmetries of the square count

    Returns
    -------
    maps : the remainder, (..., n, n)
    """
    quarters = range(4) if square else range(1)
    rotated = [np.rot90(maps, turns, axes=(-2, -1)) for turns in quarters]
    return maps - sum(m + m[..., ::-1] for m in rotated) / (2.0 * len(rotated))


def mean_field(
    spectra: FlatSpectra, modes: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Power of the mean map, Σ_{p≠q} f_p f_q*/[n(n − 1)], (n_bins,), and the same of the maps with
    random signs, (N_FLIPS, n_bins): what it would be if the maps were independent and of zero mean.

    Parameters
    ----------
    spectra : of the patches
    modes : of the patches' maps, (n_patches, n, n//2 + 1)
    generator : of the random signs
    """
    n = len(modes)
    signs = generator.choice([-1.0, 1.0], size=(N_FLIPS + 1, n)).astype(modes.real.dtype)
    signs[0] = 1.0
    own = spectra.cross(modes, modes).sum(0)
    powers = []
    for start in range(0, len(signs), CHUNK):
        total = np.tensordot(signs[start : start + CHUNK], modes, axes=1)
        powers.append(spectra.cross(total, total))
    mean_powers = (np.concatenate(powers) - own) / (n * (n - 1.0))
    return mean_powers[0], mean_powers[1:]
