"""How many directions of C^EE the response surface needs, by leaving out cosmologies of its fit.

    python tests/benchmarks/directions.py [CONFIG]

Each cosmology of ``points.fit`` is left out in turn, and predicted by a surface of the others. The
difference is printed as a shift of omch2 in sigma of the first survey, beside the shift that the
scatter of the patches explains. CAMB runs at the cosmologies of the fit, 20 s of a core each.
"""

import sys
from dataclasses import replace

import numpy as np

from cobaya_cnnlens.calibrate import debias
from cobaya_cnnlens.calibrate.covariance import mean_covariance
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
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


def left_out(n_directions, out):
    """Shift of omch2 at a cosmology that the surface left out, and its standard error."""
    keep = np.arange(len(points.bands)) != out
    some = {name: getattr(points, name)[keep] for name in ("noise", "power", "bands")}
    fitted = debias.fit(*simulated, replace(points, **some, n_directions=n_directions), 160)
    kk, power = points.bands[out, :n_kk], points.power[out]
    changed = points.noise[out] - power @ fitted.coefficients.T
    changed = changed - fitted.derivatives.kk.values @ kk
    w = fitted.second.amplitudes(power.mean(0), kk)
    shift = gain @ (changed.mean(0) - fitted.second.values @ fitted.second.terms(w))
    error = mean_covariance(changed) + fitted.second.covariance(w)
    return shift, np.sqrt(gain @ error @ gain)


print(f"{len(points.bands)} cosmologies of {points.noise.shape[1]} patches each")
for n_directions in range(1, 5):
    shifts = np.array([left_out(n_directions, k) for k in range(len(points.bands))])
    shift, error = np.sqrt(np.mean(shifts**2, axis=0))
    print(f"{n_directions} directions: shift of omch2 rms {shift:.2f}, error {error:.2f} sigma")
