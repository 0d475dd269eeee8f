"""What a refining network learns from: features of observed patches, some in a file.

Training patches are seen by instruments drawn at random (:class:`.Variation`), each with noise of
its own; those of the validation set by the configuration's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from .. import products
from ..errors import ConfigError
from ..reconstruct.features import PASSES, RefiningPatches, features_of
from ..reconstruct.probable import ProbableLensing
from ..simulate.instrument import convolve_beam, cosine_mask
from ..simulate.skies import seed_sequence
from . import skies

if TYPE_CHECKING:
    from .run import Run

KIND = "features"
# Of the ascent too, whose passes the features are.
ALGORITHM = 1
ARRAYS = tuple(RefiningPatches.__annotations__)


def parts(run: Run, set_name: str) -> list[tuple[int, int]]:
    """Sky and number of every file of a set, "train" or "validation": the latter as far as
    ``training.validation_patches`` goes.

    Raises
    ------
    ConfigError
        for another set
    """
    config = run.config
    if set_name not in ("train", "validation"):
        raise ConfigError(f"features are made of 'train' and 'validation' skies, not '{set_name}'")
    each = -(-run.n_patches // config.refining.batch)
    found = [(index, part) for index in range(config.set_size(set_name)) for part in range(each)]
    if set_name == "validation":
        return found[: -(-config.training.validation_patches // config.refining.batch)]
    return found


def path(run: Run, set_name: str, index: int, part: int) -> Path:
    """Where the features of some patches of a sky lie."""
    return run.config.products / KIND / set_name / f"sky_{index:04d}_{part:02d}.h5"


def recipe(run: Run, set_name: str, index: int, part: int) -> dict:
    """What determines the features of some patches of a sky."""
    return {
        "sky": skies.recipe(run, set_name, index),
        "instrument": asdict(run.config.instrument),
        **({"variation": asdict(run.config.refining.variation)} if set_name == "train" else {}),
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
    wanted = [
        (index, part)
        for index, part in parts(run, set_name)
        if index in indices and (numbers is None or part in set(numbers))
    ]
    missing = [
        (index, part)
        for index, part in wanted
        if not products.exists(
            path(run, set_name, index, part), KIND, recipe(run, set_name, index, part)
        )
    ]
    made: dict[float, ProbableLensing] = {}
    maps: dict[int, tuple] = {}
    bar = tqdm(missing, desc=f"features/{set_name}", unit="file", disable=not missing)
    for index, part in bar:
        if index not in maps:
            maps = {index: skies.read(run, set_name, index, ("lensed_q", "lensed_u", "e", "kappa"))}
        found = _features(run, set_name, index, part, maps[index], made, threads)
        products.write_product(
            path(run, set_name, index, part), KIND, recipe(run, set_name, index, part), vars(found)
        )


def _features(run: Run, set_name, index, part, maps, made, threads) -> RefiningPatches:
    config = run.config
    batch = config.refining.batch
    rows = range(part * batch, min((part + 1) * batch, len(maps[0])))
    q, u, e, kappa = (values[rows.start : rows.stop] for values in maps)
    q, u = (convolve_beam(values, config.instrument, config.patch) for values in (q, u))
    taper, level, rms, noise = _seen_by(run, set_name, index, part, rows)
    if taper not in made:
        mask = cosine_mask(config.patch, taper)
        made[taper] = ProbableLensing(
            config.patch, config.instrument, mask, run.spectra(), PASSES, threads
        )
    mask = made[taper].mask
    q, u = ((values + n) * mask for values, n in zip((q, u), noise, strict=True))
    features = np.stack(list(features_of(made[taper], q, u, rms, threads)))
    kappa, e = (config.patch.crop(values) * mask for values in (kappa, e))
    return RefiningPatches(
        features.astype(np.float16), kappa.astype(np.float32), e.astype(np.float32), level
    )


def _seen_by(run: Run, set_name, index, part, rows):
    """Taper in degrees, noise levels (n,), rms per pixel and noise of Q and of U in µK."""
    config, n = run.config, run.config.patch.n_pixels
    generators = [
        np.random.default_rng(seed_sequence(config.seed, f"features/{set_name}", index, patch))
        for patch in rows
    ]
    if set_name == "train":
        variation = config.refining.variation
        taper = variation.taper(part, config.instrument)
        drawn = [variation.draw(config.patch, config.instrument, g) for g in generators]
    else:
        taper = config.instrument.taper_deg
        rms = np.broadcast_to(config.instrument.noise_rms(config.patch), (n, n))
        drawn = [(config.instrument.noise_uk_arcmin, rms)] * len(rows)
    level, rms = np.array([d[0] for d in drawn]), np.array([d[1] for d in drawn])
    noise = np.stack([g.standard_normal((2, n, n)) for g in generators], axis=1)
    return taper, level, rms, noise * np.where(np.isfinite(rms), rms, 0.0)


def read(run: Run, set_name: str) -> RefiningPatches:
    """All features of a set.

    Raises
    ------
    products.ProductError
        if a file is missing, damaged, or of another configuration
    """
    found: list[dict] = []
    wanted = parts(run, set_name)
    for index, part in tqdm(wanted, desc=f"features of {set_name}", unit="file"):
        file, made_of = path(run, set_name, index, part), recipe(run, set_name, index, part)
        with products.open_product(file, KIND, made_of) as product:
            found.append({name: product.array(name) for name in ARRAYS})
    return RefiningPatches(*(np.concatenate([f[name] for f in found]) for name in ARRAYS))
