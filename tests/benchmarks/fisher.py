"""Errors of lensing-only ΛCDM by Fisher matrix: what the theory's C^EE adds through the noise.

    python tests/benchmarks/fisher.py [RELEASE …]

σ of (ω_c, ln A_s, H0) of a release with flat priors on these three alone: with the noise debias
from the data, with that from the theory, and with C^EE held at the fiducial in either. Ratios below
are those of "moving" over "held": one, if E says nothing through the noise. Last, by how much ω_c
alone moves, in its σ, if the theory's C^EE is 2% high, or the instrument's noise 1% or its gain .5%
and no nuisance is sampled.
"""

import sys

import numpy as np

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.document import NUISANCES
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
    found = compute_spectra(cosmology.vary(**change), settings)
    return found.kk, found.ee


def errors(likelihood, at, held):
    """σ of the three parameters and, of each alone, with the others fixed."""
    _, ee0 = at["fiducial"]
    slopes = []
    for name, step in STEPS.items():
        above, below = (
            likelihood.model(kk, ee0 if held else ee) for kk, ee in (at[name, 1], at[name, -1])
        )
        slopes.append((above - below) / (2 * step))
    slopes = np.array(slopes)
    fisher = slopes @ np.linalg.inv(likelihood.covariance) @ slopes.T
    return np.sqrt(np.diag(np.linalg.inv(fisher))), 1 / np.sqrt(np.diag(fisher))


def shifts(likelihood, at):
    """Of ω_c alone in its σ: C^EE 2% high in the theory, noise 1% and gain .5% high in the maps."""
    kk, ee = at["fiducial"]
    above, below = (likelihood.model(*at["omch2", sign]) for sign in (1, -1))
    slope = (above - below) / (2 * STEPS["omch2"])
    gain = slope @ np.linalg.inv(likelihood.covariance)
    gain = gain / np.sqrt(gain @ slope)
    still = likelihood.model(kk, ee)
    x = {name: np.zeros(len(NUISANCES)) for name in ("noise", "gain")}
    x["noise"][NUISANCES.index("noise")], x["gain"][NUISANCES.index("gain")] = 0.01, 0.005
    moved = [still - likelihood.model(kk, 1.02 * ee)]
    moved += [likelihood.model(kk, ee, v) - still for v in x.values()]
    return [gain @ m for m in moved]


def main(names):
    for name in names:
        release = read_release(name)
        settings = CambSettings(**release.theory.get("settings", {}))
        at = {"fiducial": spectra_at(release, settings)}
        for parameter, step in STEPS.items():
            for sign in (1, -1):
                at[parameter, sign] = spectra_at(release, settings, **{parameter: sign * step})
        print(f"{release.name}, {release.n_patches} patches: sigma of {', '.join(STEPS)}; alone")
        found = {}
        ways = ("data", "quadratic") if release.data_debias is not None else ("quadratic",)
        for way in ways:
            likelihood = BandpowerLikelihood(release, way)
            for held in (False, True):
                found[way, held] = errors(likelihood, at, held)
                label = f"{way}{', C^EE held' if held else ''}"
                print(f"  {label:24s}", *(f"{v:9.5f}" for part in found[way, held] for v in part))
            shifted = ", ".join(f"{v:+.3f}" for v in shifts(likelihood, at))
            print(f"  {way}: omch2 shifts by C^EE +2%, noise +1%, gain +.5%, in sigma: {shifted}")
        for way in ways:
            for part, what in enumerate(("together", "alone")):
                ratio = found[way, False][part] / found[way, True][part]
                print(f"  {way}, moving over held, {what}:", *(f"{r:.3f}" for r in ratio))


if __name__ == "__main__":
    main(sys.argv[1:] or shipped_releases())
