"""How non-linear and baryonic models of the matter power move omch2 and the amplitude of C_L^κκ.

    python tests/benchmarks/nonlinear.py [RELEASE]

Each model is taken for the truth, and the release's own for the theory, with all other parameters
fixed. Shifts are in sigma of the bins in use. CAMB runs eight times, 20 s of a core each.
"""

import sys

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.table import text_table
from cobaya_cnnlens.theory.camb import (
    CambSettings,
    Cosmology,
    camb_parameters,
    convergence_from_potential,
)
from cobaya_cnnlens.validate.omch2 import fisher

MODELS = {
    "feedback, logT_AGN 7.3": {"halofit_version": "mead2020_feedback", "HMCode_logT_AGN": 7.3},
    "feedback, logT_AGN 7.8": {"halofit_version": "mead2020_feedback", "HMCode_logT_AGN": 7.8},
    "feedback, logT_AGN 8.3": {"halofit_version": "mead2020_feedback", "HMCode_logT_AGN": 8.3},
    "mead2016": {"halofit_version": "mead2016"},
    "takahashi": {"halofit_version": "takahashi"},
}
CUTS = (1000, 1500, None)
STEP = 0.002

release = read_release(sys.argv[1] if len(sys.argv) > 1 else "refined_fiducial")
cosmology = Cosmology(**release.theory["cosmology"])
settings = CambSettings(lmax=4500, lens_potential_accuracy=8.0)


def convergence(cosmology, model=None):
    import camb

    parameters = camb_parameters(cosmology, settings)
    if model:
        parameters.NonLinearModel.set_params(**model)
    results = camb.get_results(parameters)
    return convergence_from_potential(
        results.get_lens_potential_cls(settings.lmax, raw_cl=True)[:, 0]
    )


fiducial = convergence(cosmology)
up, down = (convergence(cosmology.vary(omch2=cosmology.omch2 + s * STEP)) for s in (1, -1))
others = {name: convergence(cosmology, model) for name, model in MODELS.items()}
print(f"{release.name}: {release.n_patches} patches; the theory is {settings.halofit_version}")
for L_max in CUTS:
    likelihood = BandpowerLikelihood(release, L_max=L_max)
    still = likelihood.model(fiducial)
    slopes = {
        "omch2": (likelihood.model(up) - likelihood.model(down)) / (2 * STEP),
        "amplitude": (likelihood.model(1.01 * fiducial) - likelihood.model(0.99 * fiducial)) / 0.02,
    }
    columns = {"": ("", list(others))}
    for name, slope in slopes.items():
        (sigma,), (gain,) = fisher(slope[None], likelihood.covariance)
        shifts = [gain @ (likelihood.model(kk) - still) for kk in others.values()]
        columns[f"{name}, sigma {sigma:.5f}"] = ("+.2f", shifts)
    print(f"\n{text_table(columns, f'L_max {L_max}: shifts in sigma')}")
