"""Joint covariance of the lensing bandpowers with the primary CMB of the same patches.

A patch whose κ scatters upwards has more lensing B power as well (Benoit-Lévy, Smith & Hu 2012,
arXiv:1205.0474; Peloton et al. 2017, arXiv:1611.01446), and κ̂ is made of the same E and B: whoever
adds this likelihood to one of C^EE and C^BB of the same sky needs the blocks between them. They
come from the simulations that give the lensing covariance itself.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import products
from ..calibrate.covariance import sample_covariance
from ..errors import CNNLensError
from ..files import atomic_write
from ..pipeline.assemble import calibration_of, make_release
from ..pipeline.observation import ObservedPatches, observe_sky
from ..pipeline.power import Power
from ..pipeline.reconstructions import Bandpowers
from ..pipeline.run import Run
from ..pipeline.skies import Skies
from ..simulate.bandpowers import e_and_b, pure_b
from ..simulate.modes import mode_vectors
from ..table import plus_minus, text_table

KIND = "primary"
ALGORITHM = 1
UNITS = {"kk": "1", "ee": "muK2", "bb": "muK2"}
FORMATS = (".npz", ".json")


@dataclass(frozen=True)
class JointCovariance:
    """Covariance of one patch's bandpowers; divide it by the number of patches of a survey.

    Attributes
    ----------
    blocks : names in order: "kk" debiased lensing, "ee" and "bb" lensed E and B (µK²)
    edges : of the bins, the same for all, (n_bins + 1,)
    mean : (n_blocks · n_bins,)
    covariance : (n_blocks · n_bins, n_blocks · n_bins)
    n_sim : simulated patches
    """

    blocks: tuple[str, ...]
    edges: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    n_sim: int

    @property
    def correlation(self) -> np.ndarray:
        """Of ``covariance``, same shape."""
        sigma = np.sqrt(np.diag(self.covariance))
        return self.covariance / np.outer(sigma, sigma)

    def error_of(self, correlation: np.ndarray) -> np.ndarray:
        """Standard error (1 − r²)/√(n_sim − 1) of correlation coefficients of Gaussian bandpowers.

        Parameters
        ----------
        correlation : coefficients r, any shape

        Returns
        -------
        error : the same shape
        """
        return (1.0 - correlation**2) / np.sqrt(self.n_sim - 1.0)

    def correlation_with_power(self, lmax: float) -> np.ndarray:
        """Correlate every bandpower with the first block's power below a multipole.

        It shows what the errors of single pairs hide.

        Parameters
        ----------
        lmax : largest multipole of the first block's power, whose bins are taken together, each
            over its mean

        Returns
        -------
        correlation : (n_blocks, n_bins)
        """
        n = len(self.edges) - 1
        low = self.edges[1:] <= lmax
        weight = np.zeros(len(self.mean))
        weight[:n][low] = 1.0 / self.mean[:n][low]
        covariance = self.covariance @ weight
        sigma = np.sqrt(np.diag(self.covariance) * (weight @ covariance))
        return (covariance / sigma).reshape(len(self.blocks), n)

    def block(self, row: str, column: str) -> np.ndarray:
        """The block of :attr:`correlation` that belongs to two kinds of bandpowers.

        Parameters
        ----------
        row : name of the block of the rows
        column : name of the block of the columns

        Returns
        -------
        block : (n_bins, n_bins)
        """
        n = len(self.edges) - 1
        i, j = (self.blocks.index(name) for name in (row, column))
        return self.correlation[i * n : (i + 1) * n, j * n : (j + 1) * n]

    def table(self, true: JointCovariance, largest: int = 8) -> str:
        """As text: the largest correlations of lensing with E and with B.

        Parameters
        ----------
        true : the same with bandpowers of the true κ
        largest : how many of each pair of blocks

        Returns
        -------
        table : as text
        """
        blocks = [f"{self.n_sim} patches; correlation coefficients with their Monte-Carlo errors"]
        bins = [f"{low}-{high}" for low, high in itertools.pairwise(self.edges)]
        for other in self.blocks[1:]:
            r = self.block("kk", other)
            # Σ z² of all pairs, each z of unit variance if there is no correlation.
            z2 = float(np.sum(r**2) * (self.n_sim - 1.0))
            order = np.argsort(-np.abs(r), axis=None)[:largest]
            rows, columns = np.unravel_index(order, r.shape)
            errors = self.error_of(r)[rows, columns]
            title = (
                f"kk x {other}: mean {r.mean():+.4f}, sum of (r/error)^2 {z2:.0f} "
                f"for {r.size} pairs"
            )
            pairs: dict[str, tuple[str, Any]] = {
                "L of kk": (">", [bins[i] for i in rows]),
                f"l of {other}": (">", [bins[j] for j in columns]),
                "r": (">", plus_minus(r[rows, columns], errors, "+.3f")),
                "with the true kappa": ("+.3f", true.block("kk", other)[rows, columns]),
            }
            blocks.append(text_table(pairs, title))
        return "\n\n".join(blocks)

    def write(self, path: str | Path, provenance: dict[str, Any] | None = None) -> Path:
        """Write the covariance for other codes: ``.npz`` (numpy) or ``.json``.

        Both hold ``blocks`` (names, in the matrix's order), ``units`` (of each block's bandpowers),
        ``edges``, ``mean``, ``covariance`` (of one patch), ``n_sim`` and ``provenance``; in
        ``.npz`` that is JSON text.

        Parameters
        ----------
        path : of the file, ``.npz`` or ``.json``
        provenance : where the numbers come from, by name

        Returns
        -------
        path : of the file

        Raises
        ------
        CNNLensError
            for another suffix
        """
        path = Path(path)
        if path.suffix not in FORMATS:
            raise CNNLensError(f"{path}: suffix is {path.suffix!r}; choose one of {FORMATS}")
        content: dict[str, Any] = vars(self) | {"units": [UNITS[name] for name in self.blocks]}
        with atomic_write(path) as partial:
            if path.suffix == ".npz":
                np.savez(partial, **content, provenance=json.dumps(provenance or {}))
            else:
                lists = {
                    k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in content.items()
                }
                partial.write_text(json.dumps(lists | {"provenance": provenance or {}}, indent=1))
        return path


def joint_covariance(edges: np.ndarray, **measured: np.ndarray) -> JointCovariance:
    """The joint covariance of bandpowers of the same patches.

    Parameters
    ----------
    edges : of the bins, (n_bins + 1,)
    **measured : bandpowers by block, (n_patches, n_bins) each

    Returns
    -------
    joint : mean and covariance of one patch

    Raises
    ------
    CNNLensError
        if there are too few patches for the number of bandpowers
    """
    samples = np.hstack(list(measured.values()))
    covariance = sample_covariance(samples)
    return JointCovariance(tuple(measured), edges, samples.mean(0), covariance, len(samples))


def primary_bandpowers(run: Run, sky: ObservedPatches) -> dict[str, np.ndarray]:
    """⟨EE*⟩ and ⟨BB*⟩ of *unmasked* observed patches in µK², {"ee", "bb"} of (n_patches, n_bins).

    E of the masked Q, U; pure B, so that no E leaks in. Every mode is divided by the beam; noise is
    not subtracted, which no covariance would see.

    Parameters
    ----------
    run : a configuration, with its products and networks
    sky : observed patches

    Returns
    -------
    power : ``ee`` and ``bb``, (n_patches, n_bins) in µK² each
    """
    config, spectra = run.config, run.bandpowers
    beam = config.instrument.response(*mode_vectors(config.patch.n_pixels, config.patch.pixel))
    e, _ = e_and_b(spectra, sky.q * spectra.mask, sky.u * spectra.mask)
    b = pure_b(spectra, sky.q, sky.u)
    return {name: spectra.cross(m / beam, m / beam) for name, m in (("ee", e), ("bb", b))}


def path(run: Run, set_name: str, index: int) -> Path:
    """Path of the primary spectra of one sky.

    Parameters
    ----------
    run : a configuration, with its products and networks
    set_name : set of skies, for example ``test`` or ``survey-fiducial``
    index : number of the sky

    Returns
    -------
    path : of the product
    """
    return run.config.products / KIND / set_name / f"sky_{index:04d}.h5"


def recipe(run: Run, set_name: str, index: int) -> dict[str, Any]:
    """What determines the primary spectra of one sky.

    Parameters
    ----------
    run : a configuration, with its products and networks
    set_name : set of skies, for example ``test`` or ``survey-fiducial``
    index : number of the sky

    Returns
    -------
    recipe : of the product
    """
    return {
        "sky": Skies(run).recipe(set_name, index),
        "primary_algorithm": ALGORITHM,
        "instrument": run.config.instrument.recipe(),
        "bandpowers": run.config.bandpowers.model_dump(),
    }


def measure(run: Run, set_name: str = "test", indices: Iterable[int] | None = None) -> None:
    """Measure the E and B power of the skies of a set that have none yet, not even shipped.

    Parameters
    ----------
    run : a configuration, with its products and networks
    set_name : set of skies, for example ``test`` or ``survey-fiducial``
    indices : numbers of the skies; all by default
    """
    for index in tqdm(_indices(run, set_name, indices), desc=f"primary/{set_name}", unit="sky"):
        product = path(run, set_name, index), KIND, recipe(run, set_name, index)
        if not products.exists(*product, run.config.shipped):
            sky = observe_sky(run, set_name, index, masked=False)
            products.write_product(*product, primary_bandpowers(run, sky))


def read(run: Run, set_name: str, indices: Iterable[int]) -> dict[str, np.ndarray]:
    """Read the E and B power of some skies.

    Parameters
    ----------
    run : a configuration, with its products and networks
    set_name : set of skies, for example ``test`` or ``survey-fiducial``
    indices : numbers of the skies

    Returns
    -------
    power : ``ee`` and ``bb``, (n_patches, n_bins) in µK² each

    Raises
    ------
    products.ProductError
        if a sky has not been measured
    """
    spectra = []
    for index in indices:
        place = path(run, set_name, index), KIND, recipe(run, set_name, index)
        with products.open_product(*place, run.config.shipped) as product:
            spectra.append({name: product.array(name) for name in ("ee", "bb")})
    return {name: np.concatenate([sky[name] for sky in spectra]) for name in ("ee", "bb")}


def read_joint(
    run: Run, set_name: str = "test", indices: Iterable[int] | None = None, true_kappa: bool = False
) -> JointCovariance:
    """The joint covariance from the products of a set; of lensing that is debiased by its own power
    where the configuration's releases are.

    Parameters
    ----------
    run : a configuration with bandpowers and primary spectra
    set_name : set of skies, for example ``test`` or ``survey-fiducial``
    indices : numbers of the skies; all by default
    true_kappa : bandpowers of the true κ as "kk" instead of the debiased ones: what lensing itself
        correlates

    Returns
    -------
    joint : mean and covariance of one patch

    Raises
    ------
    products.ProductError
        if a sky has not been reconstructed or measured, or its power has not
    """
    indices = _indices(run, set_name, indices)
    lensing = Bandpowers(run).read(set_name, indices)
    kk = lensing.truth if true_kappa else calibration_of(run)[0].debias(lensing.auto)
    if run.config.data_debias and not true_kappa:
        own = Power(run).read(set_name, indices)["power"]
        kk = kk - make_release(run, run.config.first_survey).correction_of(own)
    edges = run.bandpowers.bins.edges
    return joint_covariance(edges, kk=kk, **read(run, set_name, indices))


def _indices(run: Run, set_name: str, indices: Iterable[int] | None) -> list[int]:
    indices = list(range(run.config.set_size(set_name)) if indices is None else indices)
    for index in indices:
        run.config.check_index(set_name, index)
    return indices
