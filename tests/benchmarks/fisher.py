"""Errors of lensing-only ΛCDM by Fisher matrix, and what an instrument that is off does to ω_c.

    python tests/benchmarks/fisher.py [RELEASE …]

σ of (ω_c, ln A_s, H0) of a release with flat priors on these three alone: all three free, then
each alone. Then that of the amplitude of C_L^κκ, and by how much ω_c alone moves, in its σ, if the
instrument's noise is 1% or its gain 0.5% high and no nuisance is sampled. Each with every noise
debias that the release allows.
"""

import sys

import numpy as np

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import NUISANCES
from cobaya_cnnlens.likelihood.release import read_release, shipped_releases
from cobaya_cnnlens.theory.camb import CambSettings, Cosmology, compute_spectra

STEPS = {"omch2": 0.002, "lnAs": 0.02, "H0": 1.0}


def spectra_at(release, settings, **change):
    cosmology = Cosmology(**release.theory["cosmology"])
    if "lnAs" in change:
        change = {"As": cosmology.As * np.exp(change["lnAs"])}
    elif change:
        ((name, step),) = change.items()
        change = {name: getattr(cosmology, name) + step}
    return compute_spectra(cosmology.vary(**change), settings).kk


def errors(likelihood, at):
    """σ of the three parameters and, of each alone, with the others fixed."""
    slopes = []
    for name, step in STEPS.items():
        above, below = (likelihood.model(at[name, sign], None) for sign in (1, -1))
        slopes.append((above - below) / (2 * step))
    slopes = np.array(slopes)
    fisher = slopes @ np.linalg.inv(likelihood.covariance) @ slopes.T
    return np.sqrt(np.diag(np.linalg.inv(fisher))), 1 / np.sqrt(np.diag(fisher))


def shifts(likelihood, at):
    """Of ω_c alone in its σ: noise 1% and gain .5% high in the maps."""
    kk = at["fiducial"]
    above, below = (likelihood.model(at["omch2", sign], None) for sign in (1, -1))
    slope = (above - below) / (2 * STEPS["omch2"])
    gain = slope @ np.linalg.inv(likelihood.covariance)
    gain = gain / np.sqrt(gain @ slope)
    still = likelihood.model(kk, None)
    x = {name: np.zeros(len(NUISANCES)) for name in ("noise", "gain")}
    x["noise"][NUISANCES.index("noise")], x["gain"][NUISANCES.index("gain")] = 0.01, 0.005
    return [gain @ (likelihood.model(kk, None, v) - still) for v in x.values()]


def amplitude_error(likelihood, kk):
    """σ of the amplitude of C_L^κκ with all else fixed."""
    slope = (likelihood.model(1.01 * kk) - likelihood.model(0.99 * kk)) / 0.02
    return 1 / np.sqrt(slope @ np.linalg.inv(likelihood.covariance) @ slope)


def main(names):
    for name in names:
        release = read_release(name)
        settings = CambSettings(**release.theory.get("settings", {}))
        at = {"fiducial": spectra_at(release, settings)}
        for parameter, step in STEPS.items():
            for sign in (1, -1):
                at[parameter, sign] = spectra_at(release, settings, **{parameter: sign * step})
        print(f"{release.name}, {release.n_patches} patches: sigma of {', '.join(STEPS)}; alone")
        for way in release.noise_debiases:
            likelihood = BandpowerLikelihood(release, way)
            print(f"  {way:8s}", *(f"{v:9.5f}" for part in errors(likelihood, at) for v in part))
            shifted = ", ".join(f"{v:+.3f}" for v in shifts(likelihood, at))
            amplitude = 100 * amplitude_error(likelihood, at["fiducial"])
            print(f"  {way}: sigma of the amplitude of C_L^kappakappa alone: {amplitude:.2f}%")
            print(f"  {way}: omch2 shifts by noise +1%, gain +.5%, in sigma: {shifted}")


if __name__ == "__main__":
    main(sys.argv[1:] or shipped_releases())
