"""Power p̂ of E and B of the patches themselves, from which :mod:`.debias` corrects the noise bias.

The noise bias depends on the E power of a patch, on the gain, and on the noise. The maps measure
all three: E in bins half as wide as those of κ̂, up to multipoles where noise dominates, and B there
in one bin. The change of p̂ with the spectra is measured on the same skies of fixed phases and noise
as that of the bandpowers. No network runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..likelihood.fields import NUISANCES
from ..pipeline import skies
from ..pipeline.observation import observe_sky
from ..pipeline.run import Run
from ..simulate.bandpowers import Bins, FlatSpectra, e_and_b
from ..simulate.instrument import Systematics
from ..simulate.patches import PatchGeometry
from ..simulate.tiling import some
from . import derivatives, nuisances
from .debias import SimulatedChanges
from .derivatives import BandDerivatives, NoiseDerivatives, PerturbedSky

KIND = "power"
ALGORITHM = 1
# A bin of κ̂ holds a whole number of bins of E, each at least this many fundamental modes wide.
LEAST_WIDTH = 0.8
# B is taken between these fractions of the Nyquist multipole, E up to the second.
NOISE_BAND = (0.7, 0.98)
# Patches at a time.
CHUNK = 128


class EBPower:
    """Measures E and B of masked patches.

    Parameters
    ----------
    geometry : of the patches
    bins : of κ̂
    mask : that the maps carry already, (n, n)

    Attributes
    ----------
    e_edges, b_edges : of the bins of E, (n_e + 1,), and of the one of B, (2,)
    """

    def __init__(self, geometry: PatchGeometry, bins: Bins, mask: np.ndarray):
        mode = 2.0 * np.pi / (geometry.n_pixels * geometry.pixel)
        parts = max(1, int(bins.width / (LEAST_WIDTH * mode)))
        low, high = (round(fraction * geometry.nyquist) for fraction in NOISE_BAND)
        width = bins.width / parts
        self._e = FlatSpectra(
            geometry, Bins(bins.lmin, width, int((high - bins.lmin) / width)), mask
        )
        self._b = FlatSpectra(geometry, Bins(low, high - low, 1), mask)
        self.e_edges, self.b_edges = self._e.bins.edges.astype(float), self._b.bins.edges

    def __call__(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Measure masked patches, with their noise and beam.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        ⟨EE*⟩ of every bin and ⟨BB*⟩ in µK², (n, n_e + 1)
        """
        chunks = []
        for start in range(0, len(q), CHUNK):
            e, b = e_and_b(self._e, q[start : start + CHUNK], u[start : start + CHUNK])
            chunks.append(np.hstack([self._e.cross(e, e), self._b.cross(b, b)]))
        return np.concatenate(chunks)


def power_of(run: Run) -> EBPower:
    """What measures the patches of a configuration.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    from Q and U to their power
    """
    return EBPower(run.config.patch, run.bandpowers.bins, run.mask)


def path(run: Run, name: str, index: int) -> Path:
    """Where the power of one sky lies.

    Parameters
    ----------
    run : the configuration and what follows from it
    name : of a set of skies, or "nuisances"
    index : number of the sky in its set

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / KIND / name / f"sky_{index:04d}.h5"


def recipe(run: Run, name: str, index: int) -> dict[str, Any]:
    """What determines the power of one sky.

    Parameters
    ----------
    run : the configuration and what follows from it
    name : of a set of skies, or "nuisances"
    index : number of the sky in its set

    Returns
    -------
    mapping for JSON
    """
    config = run.config
    set_name = nuisances.SET if name == "nuisances" else name
    settings: dict[str, dict[str, Any]] = {
        derivatives.SET: {
            "derivatives": config.derivatives.recipe(),
            "omch2_step": config.derivatives.omch2_step,
        },
        "nuisances": {"nuisances": config.nuisances.recipe()},
    }
    return {
        "sky": skies.recipe(run, set_name, index),
        "power_algorithm": ALGORITHM,
        "what": name,
        "instrument": config.instrument.recipe(),
        "bandpowers": config.bandpowers.model_dump(),
        **settings.get(name, {}),
    }


def entries(run: Run) -> list[tuple[str, int]]:
    """The power that a configuration's releases need.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    set of skies or "nuisances", and number of the sky
    """
    config = run.config
    counts = {
        "test": config.skies.test,
        **{f"survey-{name}": survey.skies for name, survey in config.surveys.items()},
        derivatives.SET: config.skies.derivatives,
        "nuisances": config.nuisances.skies,
    }
    return [(name, index) for name, count in counts.items() for index in range(count)]


def measure(run: Run, asked: Iterable[tuple[str, int]] | None = None, nthreads: int = 0) -> None:
    """Measure the power that is not there yet.

    A set's product holds ``power`` (n_patches, n_power). That of the derivatives holds ``power`` of
    its patches; ``kk`` and ``ee``, derivatives with respect to ln C of each band,
    (n_bands, n_patches, n_power); and ``shifted``, at ω_c − step and ω_c + step. That of the
    nuisances holds, by name, the power at −step and +step, (2, n_patches, n_power).

    Parameters
    ----------
    run : the configuration and what follows from it
    asked : set of skies or "nuisances", and number of the sky; all of :func:`entries` by default
    nthreads : threads of the transforms; 0 for all cores
    """
    todo = [
        entry
        for entry in (entries(run) if asked is None else asked)
        if not products.exists(path(run, *entry), KIND, recipe(run, *entry))
    ]
    for name, index in tqdm(todo, desc=KIND, unit="sky", disable=not todo):
        if name == derivatives.SET:
            arrays = _derivatives(run, index, nthreads)
        elif name == "nuisances":
            arrays = _nuisances(run, index)
        else:
            sky = observe_sky(run, name, index)
            arrays = {"power": power_of(run)(sky.q, sky.u)}
        products.write_product(path(run, name, index), KIND, recipe(run, name, index), arrays)


def _derivatives(run: Run, index: int, nthreads: int) -> dict[str, np.ndarray]:
    measured = power_of(run)
    sky = PerturbedSky(run, index, nthreads, measured=measured)
    by_band: dict[str, list[np.ndarray]] = {"kk": [], "ee": []}
    for kind, band in tqdm(sky.bands(), desc=f"{KIND}, derivatives/{index}", unit="band"):
        by_band[kind].append(sky.measure(kind, band)["auto"])
    shifted = [
        PerturbedSky(
            run, index, nthreads, run.config.cosmology.vary(omch2=omch2), measured=measured
        )
        for omch2 in run.config.shifted_omch2()
    ]
    return {
        "power": sky.unperturbed()["auto"],
        "shifted": np.stack([moved.unperturbed()["auto"] for moved in shifted]),
        **{name: np.stack(values) for name, values in by_band.items()},
    }


def _nuisances(run: Run, index: int) -> dict[str, np.ndarray]:
    measured, arrays = power_of(run), {}
    patches = run.config.nuisances.patches
    for name in NUISANCES:
        step = getattr(run.config.nuisances, name)
        observed = [
            observe_sky(run, nuisances.SET, index, systematics=Systematics(**{name: x}))
            for x in (-step, step)
        ]
        arrays[name] = np.stack(
            [measured(*(some(maps, patches) for maps in (sky.q, sky.u))) for sky in observed]
        )
    return arrays


def read(
    run: Run, name: str, indices: Iterable[int], patches: int | None = None
) -> dict[str, np.ndarray]:
    """What :func:`measure` kept of some skies; patches are the last axis but one.

    Parameters
    ----------
    run : the configuration and what follows from it
    name : of a set of skies, or "nuisances"
    indices : numbers of the skies
    patches : of each sky, spread evenly over it; all by default

    Returns
    -------
    arrays by name, patches the last axis but one

    Raises
    ------
    products.ProductError
        if it has not been measured, or was for another configuration
    """
    parts: list[dict[str, np.ndarray]] = []
    for index in indices:
        file, made_of = path(run, name, index), recipe(run, name, index)
        with products.open_product(file, KIND, made_of, run.config.shipped) as product:
            arrays = {key: product.array(key) for key in product.names()}
            parts.append({key: some(array, patches, -2) for key, array in arrays.items()})
    return {key: np.concatenate([part[key] for part in parts], axis=-2) for key in parts[0]}


def changes(run: Run) -> SimulatedChanges:
    """How p̂ changes with the spectra and the instrument, from the products of a configuration.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    changes of p̂ in µK²

    Raises
    ------
    products.ProductError
        if it has not been measured, or was for another configuration
    """
    config = run.config
    perturbed = read(run, derivatives.SET, range(config.skies.derivatives))
    indices = range(config.nuisances.skies)
    centre = read(run, nuisances.SET, indices, config.nuisances.patches)["power"]
    by_name = read(run, "nuisances", indices)
    below_above = np.stack([by_name[name] for name in NUISANCES], axis=-1)
    settings = config.derivatives
    kk, ee = (
        BandDerivatives(np.array(edges), perturbed[name].transpose(1, 2, 0))
        for name, edges in (("kk", settings.kk_edges), ("ee", settings.ee_edges))
    )
    return SimulatedChanges(
        NoiseDerivatives(kk, ee, perturbed["power"]),
        perturbed["shifted"],
        nuisances.orders(run, centre, below_above),
    )
