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
from typing import Any

import numpy as np
from tqdm import tqdm

from ..reconstruct.features import PASSES, RefiningPatches, features_of
from ..reconstruct.files import FEATURES_ALGORITHM
from ..reconstruct.map_lensing import MAPLensing
from ..simulate.instrument import convolve_beam, cosine_mask
from ..simulate.skies import seed_sequence
from ..simulate.varied import Variation
from .observation import ObservedPatches, observe_sky
from .sections.sky_settings import WHOLE
from .simulation import Simulation
from .skies import Skies
from .stage import Stage

# Of the instruments that see training patches.
VARIATION = Variation()


class Features(Stage[Simulation]):
    """Features of observed patches: a file for each batch (``part``) of a sky's patches.

    Parameters
    ----------
    run : the configuration and what follows from it
    threads : patches that are filtered at a time; 0 for one per core
    """

    kind = "features"
    algorithm = FEATURES_ALGORITHM
    command = "features CONFIG --set {} --index {}"
    unit = "file"

    def __init__(self, run: Simulation, threads: int = 0):
        super().__init__(run, threads)
        # The last sky that was asked for, and the filters by their taper.
        self._sky: tuple[tuple[str, int], ObservedPatches] | None = None
        self._filters: dict[float, MAPLensing] = {}

    def keys(
        self,
        set_name: str,
        indices: Iterable[int] | None = None,
        parts: Iterable[int] | None = None,
    ) -> list[tuple[str, int, int]]:
        """The files of a set."""
        n_patches = self.run.n_patches if set_name in WHOLE else len(self.run.spread)
        each = range(-(-n_patches // self.config.refining.batch))
        chosen = each if parts is None else sorted(set(parts) & set(each))
        skies = self.config.indices(set_name, indices)
        return [(set_name, index, part) for index in skies for part in chosen]

    def learned_from(self, set_name: str) -> list[tuple[str, int, int]]:
        """The files that training reads: all of "train", and "validation" as far as
        ``training.validation_patches`` goes.

        Parameters
        ----------
        set_name : of the set of skies

        Returns
        -------
        keys of the files
        """
        files, config = self.keys(set_name), self.config
        if set_name == "validation":
            return files[: -(-config.training.validation_patches // config.refining.batch)]
        return files

    def path(self, set_name: str, index: int, part: int) -> Path:
        """Where the features of some patches of a sky lie."""
        return self.config.feature_directory / set_name / f"sky_{index:04d}_{part:02d}.h5"

    def recipe(self, set_name: str, index: int, part: int) -> dict[str, Any]:
        """What determines the features of some patches of a sky."""
        return {
            "sky": Skies(self.run).recipe(set_name, index),
            "instrument": self.config.instrument.recipe(),
            **({"variation": asdict(VARIATION)} if set_name == "train" else {}),
            "part": part,
            "batch": self.config.refining.batch,
            "passes": PASSES,
            **({"lmin_b": lmin_b} if (lmin_b := self.config.reconstruction.lmin_b) else {}),
            "feature_algorithm": self.algorithm,
        }

    def make(self, set_name: str, index: int, part: int) -> dict[str, np.ndarray]:
        """Observe patches and filter them."""
        if self._sky is None or self._sky[0] != (set_name, index):
            self._sky = (set_name, index), _sky(self.run, set_name, index)
        sky, batch = self._sky[1], self.config.refining.batch
        rows = range(part * batch, min((part + 1) * batch, len(sky.q)))
        observe = _drawn if set_name == "train" else _as_configured
        taper, level, rms, patches = observe(self.run, index, part, rows, sky)
        if taper not in self._filters:
            mask = cosine_mask(self.config.patch, taper)
            self._filters[taper] = MAPLensing(
                self.config.patch,
                self.config.instrument,
                mask,
                self.run.spectra(),
                PASSES,
                self.threads,
                lmin_b=self.config.reconstruction.lmin_b,
            )
        values = features_of(self._filters[taper], patches.q, patches.u, rms, self.threads)
        kappa, e = (maps.astype(np.float32) for maps in (patches.kappa, patches.e))
        stacked = np.stack(list(values)).astype(np.float16)
        return vars(RefiningPatches(stacked, kappa, e, level))

    def read(self, files: Iterable[tuple[str, int, int]]) -> RefiningPatches:
        """Read the features of some files.

        Parameters
        ----------
        files : keys of the files

        Returns
        -------
        features and true maps of all patches

        Raises
        ------
        products.ProductError
            if a file is missing, damaged, or of another configuration
        """
        names = tuple(RefiningPatches.__annotations__)
        bar = tqdm(files, desc=self.kind, unit=self.unit, leave=False)
        parts = [self.arrays(*key, names=names) for key in bar]
        return RefiningPatches(*(np.concatenate([part[name] for part in parts]) for name in names))


def _sky(run: Simulation, set_name: str, index: int) -> ObservedPatches:
    """A sky's patches, as observed; those of the training set with the beam and no more."""
    if set_name != "train":
        return observe_sky(run, set_name, index)
    config = run.config
    q, u, e, kappa = Skies(run).read(set_name, index, ("lensed_q", "lensed_u", "e", "kappa"))
    q, u = (convolve_beam(maps, config.instrument, config.patch) for maps in (q, u))
    return ObservedPatches(q, u, *(config.patch.crop(maps) for maps in (e, kappa)))


# Taper in degrees, noise levels (n,) in µK-arcmin, rms per pixel (n, ny, nx) in µK, and patches.
_Observed = tuple[float, np.ndarray, np.ndarray, ObservedPatches]


def _as_configured(
    run: Simulation, index: int, part: int, rows: range, sky: ObservedPatches
) -> _Observed:
    """The patches ``rows`` of a sky as the configuration's instrument sees them."""
    config, n = run.config, run.config.patch.n_pixels
    rms = np.broadcast_to(config.instrument.noise_rms(config.patch), (len(rows), n, n))
    level = np.full(len(rows), config.instrument.noise_uk_arcmin)
    patches = ObservedPatches(*(maps[rows.start : rows.stop] for maps in vars(sky).values()))
    return config.instrument.taper_deg, level, rms, patches


def _drawn(run: Simulation, index: int, part: int, rows: range, sky: ObservedPatches) -> _Observed:
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
