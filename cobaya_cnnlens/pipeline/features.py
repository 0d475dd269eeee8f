"""Features of observed patches, which a refining network reads; a file holds those of a batch.

Each training patch is observed by an instrument drawn at random (:class:`.Variation`), with noise
of its own. Patches of other sets are observed by the configuration's instrument, with the noise
that all stages give that sky. Features of test skies are optional: with them on disk, several
networks reconstruct the same skies at the cost of one filter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..reconstruct.features import PASSES, RefiningPatches, features_of
from ..reconstruct.files import FEATURES_ALGORITHM
from ..reconstruct.map_lensing import MAPLensing
from ..simulate.instrument import convolve_beam, cosine_mask
from ..simulate.skies import seed_sequence
from ..simulate.varied import Variation
from . import skies
from .config import WHOLE
from .observation import ObservedPatches, observe_sky

if TYPE_CHECKING:
    from .run import Run

KIND = "features"
ALGORITHM = FEATURES_ALGORITHM
ARRAYS = tuple(RefiningPatches.__annotations__)
# Of the instruments that see training patches.
VARIATION = Variation()


def parts(run: Run, set_name: str) -> list[tuple[int, int]]:
    """The files of a set.

    Parameters
    ----------
    run, set_name : the configuration, and the set of skies

    Returns
    -------
    number of the sky, and of the file within it
    """
    n_patches = run.n_patches if set_name in WHOLE else len(run.spread)
    each = -(-n_patches // run.config.refining.batch)
    return [(i, part) for i in range(run.config.set_size(set_name)) for part in range(each)]


def learned_from(run: Run, set_name: str) -> list[tuple[int, int]]:
    """Sky and number of the files that training reads: all of "train", and "validation" as far as
    ``training.validation_patches`` goes.

    Parameters
    ----------
    run, set_name : the configuration, and the set of skies

    Returns
    -------
    number of the sky, and of the file within it
    """
    files, config = parts(run, set_name), run.config
    if set_name == "validation":
        return files[: -(-config.training.validation_patches // config.refining.batch)]
    return files


def path(run: Run, set_name: str, index: int, part: int) -> Path:
    """Where the features of some patches of a sky lie.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one
    part : number of the file within the sky

    Returns
    -------
    the file, under the features' directory
    """
    return run.config.feature_directory / set_name / f"sky_{index:04d}_{part:02d}.h5"


def recipe(run: Run, set_name: str, index: int, part: int) -> dict[str, Any]:
    """What determines the features of some patches of a sky.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one
    part : number of the file within the sky

    Returns
    -------
    mapping for JSON
    """
    return {
        "sky": skies.recipe(run, set_name, index),
        "instrument": run.config.instrument.recipe(),
        **({"variation": asdict(VARIATION)} if set_name == "train" else {}),
        "part": part,
        "batch": run.config.refining.batch,
        "passes": PASSES,
        "feature_algorithm": ALGORITHM,
    }


def measure(
    run: Run,
    set_name: str,
    indices: Iterable[int] | None = None,
    numbers: Iterable[int] | None = None,
    threads: int = 0,
) -> None:
    """Make the missing features of a set, one file after another.

    Parameters
    ----------
    indices, numbers : of which skies, and which of their files; all by default
    threads : patches at a time; 0 for one per core. Features do not depend on it
    """
    indices = range(run.config.set_size(set_name)) if indices is None else list(indices)
    for index in indices:
        run.config.check_index(set_name, index)
    asked_for = [
        (index, part)
        for index, part in parts(run, set_name)
        if index in indices and (numbers is None or part in set(numbers))
    ]
    missing = [
        (index, part)
        for index, part in asked_for
        if not products.exists(
            path(run, set_name, index, part), KIND, recipe(run, set_name, index, part)
        )
    ]
    made: dict[float, MAPLensing] = {}
    maps: dict[int, ObservedPatches] = {}
    bar = tqdm(missing, desc=f"features/{set_name}", unit="file", disable=not missing)
    for index, part in bar:
        if index not in maps:
            maps = {index: _sky(run, set_name, index)}
        batch = run.config.refining.batch
        rows = range(part * batch, min((part + 1) * batch, len(maps[index].q)))
        observe = _drawn if set_name == "train" else _as_configured
        patches = _features(run, *observe(run, index, part, rows, maps[index]), made, threads)
        file, made_of = path(run, set_name, index, part), recipe(run, set_name, index, part)
        products.write_product(file, KIND, made_of, vars(patches))


def _sky(run: Run, set_name: str, index: int) -> ObservedPatches:
    """A sky's patches, as observed; those of the training set with the beam and no more."""
    if set_name != "train":
        return observe_sky(run, set_name, index)
    config = run.config
    q, u, e, kappa = skies.read(run, set_name, index, ("lensed_q", "lensed_u", "e", "kappa"))
    q, u = (convolve_beam(maps, config.instrument, config.patch) for maps in (q, u))
    return ObservedPatches(q, u, *(config.patch.crop(maps) for maps in (e, kappa)))


# Taper in degrees, noise levels (n,) in µK-arcmin, rms per pixel (n, ny, nx) in µK, and patches.
_Observed = tuple[float, np.ndarray, np.ndarray, ObservedPatches]


def _as_configured(run: Run, index: int, part: int, rows: range, sky: ObservedPatches) -> _Observed:
    """The patches ``rows`` of a sky as the configuration's instrument sees them."""
    config, n = run.config, run.config.patch.n_pixels
    rms = np.broadcast_to(config.instrument.noise_rms(config.patch), (len(rows), n, n))
    level = np.full(len(rows), config.instrument.noise_uk_arcmin)
    patches = ObservedPatches(*(maps[rows.start : rows.stop] for maps in vars(sky).values()))
    return config.instrument.taper_deg, level, rms, patches


def _drawn(run: Run, index: int, part: int, rows: range, sky: ObservedPatches) -> _Observed:
    """As :func:`_as_configured`, each patch seen by an instrument of its own."""
    config, n = run.config, run.config.patch.n_pixels
    generators = [
        np.random.default_rng(seed_sequence(config.seed, "features/train", index, patch))
        for patch in rows
    ]
    taper = VARIATION.taper(part, config.instrument)
    drawn = [VARIATION.draw(config.patch, config.instrument, g) for g in generators]
    level, rms = np.array([d[0] for d in drawn]), np.array([d[1] for d in drawn])
    noise = np.stack([g.standard_normal((2, n, n)) for g in generators], axis=1)
    noise = noise * np.where(np.isfinite(rms), rms, 0.0)
    q, u, e, kappa = (maps[rows.start : rows.stop] for maps in vars(sky).values())
    mask = cosine_mask(config.patch, taper)
    maps = ((q + noise[0]) * mask, (u + noise[1]) * mask, e * mask, kappa * mask)
    return taper, level, rms, ObservedPatches(*maps)


def _features(
    run: Run,
    taper: float,
    level: np.ndarray,
    rms: np.ndarray,
    patches: ObservedPatches,
    made: dict[float, MAPLensing],
    threads: int,
) -> RefiningPatches:
    """Features of observed patches; ``made`` keeps the filters by their taper."""
    config = run.config
    if taper not in made:
        mask = cosine_mask(config.patch, taper)
        made[taper] = MAPLensing(
            config.patch, config.instrument, mask, run.spectra(), PASSES, threads
        )
    values = np.stack(list(features_of(made[taper], patches.q, patches.u, rms, threads)))
    kappa, e = (maps.astype(np.float32) for maps in (patches.kappa, patches.e))
    return RefiningPatches(values.astype(np.float16), kappa, e, level)


def exist(run: Run, set_name: str, index: int) -> bool:
    """Whether all features of a sky are there.

    Parameters
    ----------
    run, set_name, index : the configuration, the set of skies and the number of one

    Returns
    -------
    True if none is missing
    """
    return all(
        products.exists(path(run, set_name, *part), KIND, recipe(run, set_name, *part))
        for part in parts(run, set_name)
        if part[0] == index
    )


def read(run: Run, set_name: str, files: Iterable[tuple[int, int]]) -> RefiningPatches:
    """Features of a set.

    Parameters
    ----------
    run : the configuration and what follows from it
    set_name : name of the set of skies
    files : number of the sky, and of the file within it, of each

    Returns
    -------
    features and true maps of all patches

    Raises
    ------
    products.ProductError
        if a file is missing, damaged, or of another configuration
    """
    arrays: list[dict[str, np.ndarray]] = []
    for index, part in tqdm(files, desc=f"features of {set_name}", unit="file", leave=False):
        file, made_of = path(run, set_name, index, part), recipe(run, set_name, index, part)
        with products.open_product(file, KIND, made_of) as product:
            arrays.append({name: product.array(name) for name in ARRAYS})
    return RefiningPatches(*(np.concatenate([a[name] for a in arrays]) for name in ARRAYS))
