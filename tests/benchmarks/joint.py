"""What is counted twice, and how often, where the lensing of patches is joined with their own E.

    python tests/benchmarks/joint.py [CONFIG] [RELEASE]

A toy run in ω_c and ln A_s, all else fixed, of surveys of 160 test patches at the fiducial
cosmology: lensing bandpowers alone, E power of the same patches alone (bins of 63.5, as the debias
from the data takes it), and both, with the covariance between them and without. For each the error
that the Gaussian posterior claims, and the scatter of its mean over the surveys.

Then, of `primary: true`: the largest correlation of a lensing bandpower with the power of the same
patches, and how far the linear model of that power is off at the configuration's held-out
cosmologies, in errors of a 160-patch survey: rms and largest over the bins.
"""

import sys

import numpy as np

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.pipeline import cosmologies
from cobaya_cnnlens.pipeline.assemble import calibration_of
from cobaya_cnnlens.pipeline.cosmologies import Points
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.perturbations import bands_of
from cobaya_cnnlens.pipeline.power import Power
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run

PATCHES = 160
STEPS = {"omch2": 0.002, "As": 4e-11}


def slopes(run, likelihood, release):
    """Of the model of the bandpowers and of the E power, (2, n_bins + n_e); ln A_s is second."""
    fiducial, rows = run.config.cosmology, []
    for name, step in STEPS.items():
        both = []
        for sign in (1, -1):
            cosmology = fiducial.vary(**{name: getattr(fiducial, name) + sign * step})
            theory = run.spectra(cosmology)
            kk, ee = np.split(bands_of(run, run.spectra(cosmology)), [len(release.kk_edges) - 1])
            e = (release.power_kk_derivatives @ kk + release.power_ee_derivatives @ ee)[:-1]
            both.append(np.concatenate([likelihood.model(theory.kk, theory.ee), e]))
        scale = fiducial.As if name == "As" else 1.0
        rows.append(scale * (both[0] - both[1]) / (2 * step))
    return np.array(rows)


def power_as_data(run, release):
    """Correlation of the lensing with the power, and the power's model at other cosmologies."""
    likelihood = BandpowerLikelihood(release, primary=True)
    n = len(likelihood.bins)
    sigma = np.sqrt(np.diag(likelihood.covariance))
    correlation = (likelihood.covariance / np.outer(sigma, sigma))[:n, n:]
    print(f"\nlargest correlation of d' with the power: {np.abs(correlation).max():.3f}")
    fiducial = run.spectra()
    still_model = likelihood.model(fiducial.kk, fiducial.ee)[n:]
    for group in run.config.points.at:
        for point in cosmologies.points_of(run, group):
            moved = Points(run).read(point).power
            change = (moved - Points(run).at_fiducial(point).power).mean(0)
            theory = run.spectra(run.config.cosmology.vary(**point.change))
            off = (change - likelihood.model(theory.kk, theory.ee)[n:] + still_model) / sigma[n:]
            moves = np.sqrt(np.mean((change / sigma[n:]) ** 2))
            rms, most = np.sqrt(np.mean(off**2)), np.abs(off).max()
            what = ", ".join(f"{name} {value:g}" for name, value in point.change.items())
            print(f"{what:68s} moves {moves:5.1f}, model off by {rms:4.2f}, {most:4.2f}")


def main(config="training/config/refined.yaml", name="refined_fiducial"):
    run, release = Run(load_config(config)), read_release(name)
    calibration, _ = calibration_of(run)
    own = Power(run).read("test", range(run.config.skies.test))["power"]
    print(f"{release.name}: {len(own) // PATCHES} surveys of {PATCHES} patches at the fiducial")
    print("data                       claimed: omch2    ln As     scatter: omch2    ln As")
    likelihood = BandpowerLikelihood(release)
    d = calibration.debias(Bandpowers(run).read("test").auto) - release.correction_of(own)
    samples = np.hstack([d, own[:, :-1]])
    n_bins = d.shape[1]
    with_cross = np.cov(samples, rowvar=False) / PATCHES
    without_cross = with_cross.copy()
    without_cross[:n_bins, n_bins:] = without_cross[n_bins:, :n_bins] = 0.0
    model = slopes(run, likelihood, release)
    groups = samples[: len(samples) // PATCHES * PATCHES]
    groups = groups.reshape(-1, PATCHES, samples.shape[1]).mean(1) - samples.mean(0)
    lensing, e = np.arange(n_bins), np.arange(n_bins, samples.shape[1])
    everything = np.concatenate([lensing, e])
    for label, used, covariance in (
        ("lensing alone", lensing, with_cross),
        ("E alone", e, with_cross),
        ("both, covariance", everything, with_cross),
        ("both, no covariance", everything, without_cross),
    ):
        inverse = np.linalg.inv(covariance[np.ix_(used, used)])
        s = model[:, used]
        fisher = s @ inverse @ s.T
        claimed = np.sqrt(np.diag(np.linalg.inv(fisher)))
        means = groups[:, used] @ inverse @ s.T @ np.linalg.inv(fisher)
        scatter = means.std(0, ddof=1)
        error = scatter / np.sqrt(2 * (len(groups) - 1))
        print(
            f"{label:22s} {claimed[0]:16.5f} {claimed[1]:8.4f}  "
            f"{scatter[0]:12.5f} +- {error[0]:.5f} {scatter[1]:8.4f} +- {error[1]:.4f}"
        )
    power_as_data(run, release)


if __name__ == "__main__":
    main(*sys.argv[1:])
