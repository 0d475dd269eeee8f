"""Which estimator a configuration asks for: its network, or a baseline without one.

A kind of baseline is one entry of :data:`ESTIMATORS`. Another package adds its own by an entry
point of the group ``cobaya_cnnlens.estimators``, named as the kind, that leads to such an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from ..simulate.instrument import Instrument
from . import networks
from .mean_field import MeanField

if TYPE_CHECKING:
    from ..reconstruct import Estimator
    from .config import Config
    from .sections.estimator_settings import Baseline
    from .simulation import Simulation

GROUP = "cobaya_cnnlens.estimators"


class MaskedEstimator:
    """κ̂ less its mean field, times the mask: what a network is trained to return.

    Parameters
    ----------
    estimator : of the convergence on the whole patch
    mask, mean_field : (n, n)
    """

    def __init__(self, estimator: Estimator, mask: np.ndarray, mean_field: np.ndarray | float):
        self._estimator, self._mask, self._mean_field = estimator, mask, mean_field

    def reconstruct(self, q: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Reconstruct masked patches.

        Parameters
        ----------
        q, u : masked Q̃ and Ũ in µK, (n, ny, nx) each

        Returns
        -------
        masked κ̂, (n, ny, nx)
        """
        return self._mask * (self._estimator.reconstruct(q, u) - self._mean_field)


def build_estimator(run: Simulation) -> Estimator:
    """The configuration's network or networks, or its baseline with the mean field of training
    skies, which is measured first if there is none yet.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    from masked Q and U to masked κ̂
    """
    if run.config.baseline is None:
        return network_estimator(run)
    builder, *_ = registered(run.config.baseline.kind)
    bare = builder(run)
    mean_field = MeanField(run, bare)
    mean_field.measure()
    return MaskedEstimator(bare, run.mask, mean_field.read())


def network_estimator(run: Simulation) -> Estimator:
    """The configuration's network, or its networks' mean, applied as the configuration says.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    from masked Q and U to masked κ̂
    """
    from ..reconstruct.learned import learned_estimator

    config = run.config
    networks.check_kind(run)
    return learned_estimator(
        networks.paths(run),
        config.patch,
        config.instrument,
        run.mask,
        run.spectra,
        config.reconstruction.symmetries,
        config.reconstruction.jit_compile,
        config.reconstruction.lmin_b,
    )


def filtered_for(run: Simulation) -> Instrument:
    """The instrument as filters take it, with a noise of at least :data:`LOWEST_LEVEL`.

    Parameters
    ----------
    run : the configuration and what follows from it

    Returns
    -------
    the instrument
    """
    from ..reconstruct.map_lensing import LOWEST_LEVEL

    instrument = run.config.instrument
    return replace(instrument, noise_uk_arcmin=max(instrument.noise_uk_arcmin, LOWEST_LEVEL))


def _quadratic(run: Simulation) -> Estimator:
    from ..reconstruct.quadratic import QuadraticEstimator

    baseline = run.config.baseline
    assert baseline is not None  # this is the builder of its kind
    return QuadraticEstimator(
        run.config.patch,
        filtered_for(run),
        run.mask,
        run.spectra(),
        combination=baseline.combination,
        leakage=baseline.leakage,
    )


def _wiener(run: Simulation) -> Estimator:
    from ..reconstruct.map_lensing import TOLERANCES, MAPLensing

    # The only pass: its filter converges as that of the last of many does.
    last = TOLERANCES[-1:]
    patches = (run.config.patch, filtered_for(run), run.mask, run.spectra())
    lmin_b = run.config.reconstruction.lmin_b
    return MAPLensing(*patches, passes=1, tolerances=last, lmin_b=lmin_b)


def _map(run: Simulation) -> Estimator:
    from ..reconstruct.map_lensing import MAPLensing

    baseline, patch = run.config.baseline, run.config.patch
    assert baseline is not None  # this is the builder of its kind
    patches, lmin_b = (patch, filtered_for(run), run.mask), run.config.reconstruction.lmin_b
    return MAPLensing(*patches, run.spectra(), baseline.passes, lmin_b=lmin_b)


def _quadratic_label(baseline: Baseline) -> str:
    return f"{baseline.combination.upper()} QE, {baseline.leakage}"


# What builds a kind of estimator from a run: beamed, noisy, masked Q̃, Ũ → κ̂ on the whole patch;
# how figures name it, by its configuration or always the same; and, of one that has options of its
# own in `baseline`, the pydantic model that they are checked by.
ESTIMATORS: dict[str, tuple[Any, ...]] = {
    "quadratic": (_quadratic, _quadratic_label),
    "wiener": (_wiener, "Wiener QE of E and B"),
    "map": (_map, "MAP"),
}


def registered(kind: str) -> tuple[Any, ...]:
    """The entry of a kind of estimator, this package's or another's.

    Parameters
    ----------
    kind : name of the kind

    Returns
    -------
    an entry of :data:`ESTIMATORS`

    Raises
    ------
    ValueError
        if there is none
    """
    if kind in ESTIMATORS:
        return ESTIMATORS[kind]
    others = {point.name: point for point in _entry_points()}
    if kind not in others:
        raise ValueError(
            f"no estimator {kind!r:.40}; there are {', '.join(sorted({*ESTIMATORS, *others}))}"
        )
    return others[kind].load()


def _entry_points() -> Iterable[metadata.EntryPoint]:
    return metadata.entry_points(group=GROUP)


def label_of(baseline: Baseline) -> str:
    """A short name of a baseline.

    Parameters
    ----------
    baseline : the configuration's section

    Returns
    -------
    e.g. "EB QE, pure"
    """
    label: str | Callable[[Baseline], str] = registered(baseline.kind)[1]
    return label(baseline) if callable(label) else label


def name_of(config: Config) -> str:
    """A short name of what makes κ̂ in a configuration, as releases record it.

    Parameters
    ----------
    config : the pipeline's configuration

    Returns
    -------
    e.g. "ResUNet"
    """
    if config.baseline is not None:
        return label_of(config.baseline)
    return {"resunet": "ResUNet", "refined": "refining network"}[config.network.kind]


def with_own_options(config: Config) -> Config:
    """A configuration whose baseline is known, its own options checked and completed.

    Parameters
    ----------
    config : the pipeline's configuration

    Returns
    -------
    the configuration, with the defaults of options that its baseline's kind has and others do not

    Raises
    ------
    ValueError
        for a kind that is not registered, an option that it does not have, or a wrong value
    """
    if (baseline := config.baseline) is None:
        return config
    _, _, *options = registered(baseline.kind)
    given = baseline.model_extra or {}
    if options:
        # An option of its own may have the name of one that Baseline declares.
        own = baseline.model_fields_set & options[0].model_fields.keys()
        given = given | {name: getattr(baseline, name) for name in own}
        completed = options[0].model_validate(given).model_dump()
        return config.model_copy(update={"baseline": baseline.model_copy(update=completed)})
    if given:
        raise ValueError(
            f"no option {min(given)!r:.40} of the estimator '{baseline.kind}'; remove it or "
            "correct its spelling"
        )
    return config
