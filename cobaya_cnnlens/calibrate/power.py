"""Power of E and B of the patches themselves, from which a survey tells the noise of its own κ̂.

N depends on the power of E that a patch shows, on the gain, and on the noise. Of all three the maps
speak: E in bins half as wide as those of κ̂, to where it is noise (κ̂'s noise feels E far beyond κ̂'s
last bin), and B there. As the derivatives, the answer of these powers to the spectra is measured on
skies of fixed phases and noise, the same that gave the answer of κ̂; no network is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
from .derivatives import BandDerivatives, Bench, NoiseDerivatives

KIND = "power"
ALGORITHM = 1
# Bins of E are whole parts of those of κ̂, and of none less than this many modes' width.
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
        """Masked Q̃, Ũ in µK, (n, ny, nx) → ⟨EE*⟩ of every bin and ⟨BB*⟩, (n, n_e + 1) in µK², with
        noise and beam as they are."""
        found = []
        for start in range(0, len(q), CHUNK):
            e, b = e_and_b(self._e, q[start : start + CHUNK], u[start : start + CHUNK])
            found.append(np.hstack([self._e.cross(e, e), self._b.cross(b, b)]))
        return np.concatenate(found)


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


def path(run: Run, what: str, index: int) -> Path:
    """Where the power of one sky lies; ``what`` is a set, or "nuisances".

    Parameters
    ----------
    run : the configuration and what follows from it
    what : a set of skies, or "nuisances"
    index : number of the sky in its set

    Returns
    -------
    the file, under ``products``
    """
    return run.config.products / KIND / what / f"sky_{index:04d}.h5"


def recipe(run: Run, what: str, index: int) -> dict:
    """What determines the power of one sky.

    Parameters
    ----------
    run : the configuration and what follows from it
    what : a set of skies, or "nuisances"
    index : number of the sky in its set

    Returns
    -------
    mapping for JSON
    """
    config = run.config
    set_name = nuisances.SET if what == "nuisances" else what
    own = {
        derivatives.SET: {
            "derivatives": config.derivatives.recipe(),
            "omch2_step": config.derivatives.omch2_step,
        },
        "nuisances": {"nuisances": config.nuisances.recipe()},
    }
    return {
        "sky": skies.recipe(run, set_name, index),
        "power_algorithm": ALGORITHM,
        "what": what,
        "instrument": config.instrument.recipe(),
        "bandpowers": config.bandpowers.model_dump(),
        **own.get(what, {}),
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
    return [(what, index) for what, count in counts.items() for index in range(count)]


def measure(run: Run, wanted: Iterable[tuple[str, int]] | None = None, nthreads: int = 0) -> None:
    """Measure what of :func:`entries`, or of ``wanted``, is not there yet.

    A set's product holds ``power`` (n_patches, n_power). That of the derivatives holds ``power`` of
    its patches; ``kk`` and ``ee``, derivatives with respect to ln C of each band,
    (n_bands, n_patches, n_power); and ``shifted``, at ω_c − step and ω_c + step. That of the
    nuisances holds, by name, the power at −step and +step, (2, n_patches, n_power).

    Parameters
    ----------
    run : the configuration and what follows from it
    wanted : set of skies or "nuisances", and number of the sky; all of :func:`entries` by default
    nthreads : threads of the transforms; 0 for all cores
    """
    todo = [
        entry
        for entry in (entries(run) if wanted is None else wanted)
        if not products.exists(path(run, *entry), KIND, recipe(run, *entry))
    ]
    for what, index in tqdm(todo, desc=KIND, unit="sky", disable=not todo):
        if what == derivatives.SET:
            arrays = _derivatives(run, index, nthreads)
        elif what == "nuisances":
            arrays = _nuisances(run, index)
        else:
            seen = observe_sky(run, what, index)
            arrays = {"power": power_of(run)(seen.q, seen.u)}
        products.write_product(path(run, what, index), KIND, recipe(run, what, index), arrays)


def _derivatives(run: Run, index: int, nthreads: int) -> dict[str, np.ndarray]:
    measured = power_of(run)
    bench = Bench(run, index, nthreads, measured=measured)
    found: dict[str, list[np.ndarray]] = {"kk": [], "ee": []}
    for kind, band in tqdm(bench.bands(), desc=f"{KIND}, derivatives/{index}", unit="band"):
        found[kind].append(bench.measure(kind, band)["auto"])
    shifted = [
        Bench(run, index, nthreads, run.config.cosmology.vary(omch2=omch2), measured=measured)
        for omch2 in run.config.shifted_omch2()
    ]
    return {
        "power": bench.unperturbed()["auto"],
        "shifted": np.stack([b.unperturbed()["auto"] for b in shifted]),
        **{name: np.stack(values) for name, values in found.items()},
    }


def _nuisances(run: Run, index: int) -> dict[str, np.ndarray]:
    measured, arrays = power_of(run), {}
    patches = run.config.nuisances.patches
    for name in NUISANCES:
        step = getattr(run.config.nuisances, name)
        seen = [
            observe_sky(run, nuisances.SET, index, systematics=Systematics(**{name: x}))
            for x in (-step, step)
        ]
        arrays[name] = np.stack(
            [measured(*(some(maps, patches) for maps in (sky.q, sky.u))) for sky in seen]
        )
    return arrays


def read(
    run: Run, what: str, indices: Iterable[int], patches: int | None = None
) -> dict[str, np.ndarray]:
    """What :func:`measure` kept of some skies; patches are the last axis but one.

    Parameters
    ----------
    run : the configuration and what follows from it
    what : a set of skies, or "nuisances"
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
        where, wanted = path(run, what, index), recipe(run, what, index)
        with products.open_product(where, KIND, wanted, run.config.shipped) as product:
            arrays = {name: product.array(name) for name in product.names()}
            parts.append({name: some(array, patches, -2) for name, array in arrays.items()})
    return {name: np.concatenate([p[name] for p in parts], axis=-2) for name in parts[0]}


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
    found = read(run, derivatives.SET, range(config.skies.derivatives))
    indices = range(config.nuisances.skies)
    centre = read(run, nuisances.SET, indices, config.nuisances.patches)["power"]
    by_name = read(run, "nuisances", indices)
    both = np.stack([by_name[name] for name in NUISANCES], axis=-1)
    settings = config.derivatives
    kk, ee = (
        BandDerivatives(np.array(edges), found[name].transpose(1, 2, 0))
        for name, edges in (("kk", settings.kk_edges), ("ee", settings.ee_edges))
    )
    return SimulatedChanges(
        NoiseDerivatives(kk, ee, found["power"]),
        found["shifted"],
        nuisances.orders(run, centre, both),
    )
