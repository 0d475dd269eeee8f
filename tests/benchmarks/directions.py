"""How many directions of C^EE the response surface needs, by leaving out cosmologies of its fit.

    python tests/benchmarks/directions.py [CONFIG]

Each cosmology of ``points.fit`` is left out in turn, and predicted by a surface of the others. The
residual is of the same patches, so that their scatter cancels. It is printed as a shift of omch2 in
sigma of the first survey. CAMB runs at the cosmologies of the fit, 20 s of a core each.
"""

import sys
from dataclasses import replace

import numpy as np

from cobaya_cnnlens.calibrate import debias
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.spectra import terms
from cobaya_cnnlens.pipeline.assemble import bandpower_changes, calibration_of, make_release
from cobaya_cnnlens.pipeline.cosmologies import Points
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.perturbations import shifted_changes, shifted_cosmologies
from cobaya_cnnlens.pipeline.power import Power
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.validate.omch2 import fisher

run = Run(load_config(sys.argv[1] if len(sys.argv) > 1 else "training/config/refined.yaml"))
likelihood = BandpowerLikelihood(make_release(run, run.config.first_survey))
down, up = (likelihood.model(run.spectra(at).kk) for at in shifted_cosmologies(run))
slope = (up - down) / (2.0 * run.config.derivatives.omch2_step)
_, (gain,) = fisher(slope[None], likelihood.covariance)
calibration, test = calibration_of(run)
simulated = (
    bandpower_changes(run, calibration),
    Power(run).changes(),
    calibration.debias(test.auto),
    Power(run).read("test", range(run.config.skies.test))["power"],
    shifted_changes(run),
)
points = Points(run).fit_points(calibration.response)
n_kk = len(run.config.derivatives.kk_edges) - 1


def residual(n_directions, out):
    """Mean change of d' at a cosmology that the surface left out, less what the surface says."""
    keep = np.arange(len(points.bands)) != out
    some = {name: getattr(points, name)[keep] for name in ("noise", "power", "bands")}
    fitted = debias.fit(*simulated, replace(points, **some, n_directions=n_directions), 160)
    kk, power = points.bands[out, :n_kk], points.power[out]
    changed = points.noise[out] - power @ fitted.coefficients.T
    changed = changed - fitted.derivatives.kk.values @ kk
    w = fitted.second.amplitudes(power.mean(0), kk)
    return changed.mean(0) - fitted.second.values @ terms(w)


print(f"{len(points.bands)} cosmologies, {points.noise.shape[1]} patches")
for n_directions in range(1, 5):
    shifts = np.array([gain @ residual(n_directions, k) for k in range(len(points.bands))])
    rms, median = np.sqrt(np.mean(shifts**2)), np.median(np.abs(shifts))
    print(f"{n_directions} directions: shift of omch2 rms {rms:.2f}, median {median:.2f} sigma")
