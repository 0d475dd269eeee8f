"""Would data drawn from the posterior look like these? Posterior-predictive χ² of a Cobaya chain.

For θ of the posterior, d_rep ~ N(µ(θ), C) and p = P(χ²(d_rep, µ(θ)) > χ²(d, µ(θ))), averaged over
the posterior (Gelman, Meng & Stern 1996, Statistica Sinica 6, 733, eqs. 7-8). For a given θ the
probability over d_rep is known, so that only the average over θ is by samples: it is the PTE of
:meth:`.BandpowerLikelihood.pte`, which also knows that C comes from a finite number of simulations.
The same data made the posterior, so p lies nearer to 1/2 than a PTE at the truth, which is uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CNNLensError
from ..likelihood.bandpowers import BandpowerLikelihood
from ..likelihood.declarations import BLINDED
from ..table import text_table
from .chains import chain_input, chain_root, load_chain

# Replicated data per sample of the posterior, for the band of the figure.
REPLICAS = 50


@dataclass(frozen=True)
class Predictive:
    """What a posterior predicts for its own data.

    Attributes
    ----------
    edges : of the bins in use, (n_bins, 2)
    data : d_b, (n_bins,)
    models : µ_b of equally probable samples of the posterior, (n_samples, n_bins)
    chi2 : χ²(d, µ) of those, (n_samples,)
    p : the posterior-predictive probability
    best, best_model, best_chi2, best_pte : the sample of highest posterior, its µ_b, and χ² and PTE
        there, for which no parameter counts as fitted
    band : 2.5, 16, 50, 84 and 97.5% of replicated data, (5, n_bins)
    difference : largest difference of −2 ln L from those that the chain holds: not zero if the
        theory or the release is not what it was
    blinded : whether the bandpowers have a hidden offset
    """

    edges: np.ndarray
    data: np.ndarray
    models: np.ndarray
    chi2: np.ndarray
    p: float
    best: dict[str, float]
    best_model: np.ndarray
    best_chi2: float
    best_pte: float
    band: np.ndarray
    difference: float
    blinded: bool

    @property
    def model_band(self) -> np.ndarray:
        """16 and 84% of ``models``, (2, n_bins)."""
        return np.percentile(self.models, [16, 84], axis=0)

    def table(self) -> str:
        """As text: the posterior-predictive p, and χ² and PTE at the best fit."""
        mean = self.chi2.mean()
        at = ", ".join(f"{name} = {value:.6g}" for name, value in self.best.items())
        less = f"{mean - self.best_chi2:.2f} (about the number of parameters that the data fix)"
        rows = {
            "chi2(d, mu)": f"{mean:.2f} on average",
            "posterior-predictive p": f"{self.p:.4f}",
            "best sample": at,
            "chi2 there": f"{self.best_chi2:.2f}",
            "PTE there": f"{self.best_pte:.4f} (no parameter counted as fitted)",
            "chi2 less that on average": less,
            "largest difference from the chi2 in the chain": f"{self.difference:.2g}",
        }
        head = f"{len(self.chi2)} samples of the posterior, {len(self.data)} bins"
        table = text_table({head: ("", rows), "": ("", rows.values())})
        return f"{BLINDED}\n{table}" if self.blinded else table


def predictive_p(likelihood: BandpowerLikelihood, models: np.ndarray) -> float:
    """The posterior-predictive probability.

    Parameters
    ----------
    likelihood : the likelihood whose model is used
    models : µ_b of posterior samples of equal weight, (n, n_bins)

    Returns
    -------
    p : 0 to 1
    """
    chi2: Any = likelihood.chi2_of(models)  # `pte` takes arrays too
    return float(np.mean(likelihood.pte(chi2)))


def predictive(root: str, samples: int = 200, seed: int = 0) -> Predictive:
    """Posterior-predictive check of a chain, with the likelihood and theory that made it.

    Parameters
    ----------
    root : of the chain, as in ``output`` of the Cobaya input, or one of its files
    samples : of the posterior; the theory runs once for each
    seed : of the replicated data that the band is made of

    Returns
    -------
    check : p, the best fit, and the predicted band

    Raises
    ------
    CNNLensError
        if the chain or its input is missing, or the input has not exactly one CNNLens likelihood
    """
    root = chain_root(root)
    model, name = _model(f"{root}.updated.yaml", chain_input(root))
    chain = load_chain(root).samples
    sampled = list(model.parameterization.sampled_params())
    columns = [chain.paramNames.numberOfName(p) for p in sampled]
    # The chain at equal steps of its cumulative weight, and after them the highest posterior.
    cumulative = np.cumsum(chain.weights) / chain.weights.sum()
    rows = np.searchsorted(cumulative, (np.arange(samples) + 0.5) / samples)
    rows = np.append(rows, np.argmin(chain.loglikes))
    component = model.likelihood[name]
    unique, place = np.unique(rows, return_inverse=True)
    points = (dict(zip(sampled, x, strict=True)) for x in chain.samples[np.ix_(unique, columns)])
    models = np.array([_bandpowers(model, component, point) for point in points])
    model.close()
    likelihood = component.likelihood
    chi2 = likelihood.chi2_of(models)
    difference = np.nan
    # Cobaya computes this column anew when it post-processes a chain; derived parameters it keeps.
    column = f"chi2__{name}"
    if chain.paramNames.hasParam(column):
        stored = chain.samples[unique, chain.paramNames.numberOfName(column)]
        ours = -2.0 * np.array([likelihood.log_likelihood_of(value) for value in chi2])
        difference = float(np.abs(ours - stored).max())
    *sampled_rows, best = place
    drawn = models[sampled_rows]
    n = len(likelihood.bins)
    return Predictive(
        edges=np.stack([likelihood.release.edges[likelihood.bins + k] for k in (0, 1)], axis=1),
        data=likelihood.bandpowers[:n],
        models=drawn[:, :n],
        chi2=chi2[sampled_rows],
        p=predictive_p(likelihood, drawn),
        best=dict(zip(sampled, chain.samples[rows[-1], columns].tolist(), strict=True)),
        best_model=models[best][:n],
        best_chi2=float(chi2[best]),
        best_pte=float(likelihood.pte(chi2[best])),
        band=_replicated_band(likelihood, drawn, seed)[:, :n],
        difference=difference,
        blinded=likelihood.release.blinding is not None,
    )


def _replicated_band(likelihood: BandpowerLikelihood, models: np.ndarray, seed: int) -> np.ndarray:
    """Percentiles of data that are drawn from the likelihood at models, (5, n_data)."""
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    noise = np.linalg.cholesky(likelihood.covariance)
    draws = generator.standard_normal((REPLICAS, len(models), len(noise))) @ noise.T
    replicas = models + draws * likelihood.scatter(models)
    return np.percentile(replicas.reshape(-1, len(noise)), [2.5, 16, 50, 84, 97.5], axis=0)


def _model(path: str, info: dict[str, Any]) -> tuple[Any, str]:
    """Cobaya's model of a chain's input, and the name of its CNNLens likelihood."""
    from cobaya.log import LoggedError
    from cobaya.model import get_model

    from ..likelihood.cnnlens import CNNLens

    for block in (info.get("likelihood") or {}).values():
        if isinstance(block, dict) and "check_theory" in block:
            block["check_theory"] = False  # that is for the start of a run
    sections = ("likelihood", "theory", "params", "prior", "packages_path")
    try:
        model = get_model({k: info[k] for k in sections if k in info})
    except LoggedError as error:
        raise CNNLensError(f"{path}: the chain's model cannot be made again: {error}") from None
    names = [name for name, own in model.likelihood.items() if isinstance(own, CNNLens)]
    if len(names) != 1:
        raise CNNLensError(f"{path}: {len(names)} likelihoods of CNNLens, where one is needed")
    return model, names[0]


def _bandpowers(model: Any, component: Any, point: dict[str, float]) -> np.ndarray:
    if not np.isfinite(model.logposterior(point).logpost):
        raise CNNLensError(f"the chain's point {point} has no posterior; was its input changed?")
    parameters = model.parameterization.to_input(point)
    return component.model([parameters[name] for name in component.nuisance_parameters])
