"""The EB quadratic estimator on periodic skies without a mask, beside what is known of it.

Response against the analytic one, of lensed and of lensed-gradient spectra; the auto-spectrum less
C_L against N0 + N1; and its cost. python tests/benchmarks/quadratic.py [SKIES [PAIRS]]
"""

import sys
import time

import numpy as np
from tqdm import tqdm

from cobaya_cnnlens.calibrate.response import standard_error
from cobaya_cnnlens.reconstruct.n0 import Filter, n0_eb, response_eb
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra
from cobaya_cnnlens.simulate.instrument import Instrument
from cobaya_cnnlens.simulate.modes import mode_vectors
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import PeriodicSkies
from cobaya_cnnlens.simulate.skies import seed_sequence
from cobaya_cnnlens.theory.camb import CambSettings, Cosmology, compute_spectra, gradient_spectra
from cobaya_cnnlens.validate.n1 import n1_eb

SKIES, PAIRS = (int(x) for x in [*sys.argv[1:], 400, 400][:2])
GEOMETRY = PatchGeometry(size_deg=10.0, n_pixels=384, pad=0)
INSTRUMENT, BAND, BINS = Instrument(1.0, 1.0), Filter(72, 4600), Bins(100, 126, 23)

theory = compute_spectra(Cosmology(), CambSettings())
gradient = gradient_spectra(Cosmology(), CambSettings())
n = GEOMETRY.n_pixels
measured = FlatSpectra(GEOMETRY, BINS, np.ones((n, n)))
skies = PeriodicSkies(GEOMETRY, INSTRUMENT, theory)
estimator = QuadraticEstimator(GEOMETRY, INSTRUMENT, np.ones((n, n)), theory, band=BAND)
rows, seconds = [], 0.0
for index in tqdm(range(SKIES), desc="skies", unit="sky"):
    generator = np.random.default_rng(seed_sequence(0, "benchmark/quadratic", index))
    phi = skies.draw("phi", generator)
    maps = skies.lensed(skies.draw("e", generator), phi) + skies.noise(generator)
    start = time.perf_counter()
    found = measured.transform(estimator.reconstruct(maps.real[None], maps.imag[None]))
    seconds += time.perf_counter() - start
    true = measured.transform(skies.convergence(phi)[None])
    rows.append([measured.cross(a, b)[0] for a, b in ((found, found), (true, found), (true, true))])
auto, cross, truth = np.array(rows).transpose(1, 0, 2)
response = cross.mean(0) / truth.mean(0)
response_error = standard_error(cross - response * truth) / truth.mean(0)
excess = auto - response**2 * truth

L = np.arange(20.0, 3200.0, 30.0)
ell = np.hypot(*mode_vectors(n, GEOMETRY.pixel))
kk = np.interp(ell, np.arange(len(theory.kk)), theory.kk)


def binned(curve, weight=1.0):
    """A curve at L over the bins' modes."""
    weight = np.broadcast_to(weight, ell.shape)
    return measured.average_plane(np.interp(ell, L, curve) * weight) / measured.average_plane(
        np.array(weight)
    )


n0 = binned(n0_eb(L, theory, INSTRUMENT, BAND))
analytic = binned(response_eb(L, theory, gradient, INSTRUMENT, BAND), kk)
n1 = n1_eb(GEOMETRY, INSTRUMENT, theory, BINS, PAIRS, 0, BAND)
expected = n0 + n1.n1
print("     L   R lensed  R gradient   +-      N1/N0   +-     (auto - R^2 C)/(N0 + N1)  +-")
for b, centre in enumerate(BINS.centres):
    ratio = excess[:, b].mean() / expected[b]
    error = np.hypot(standard_error(excess[:, b]), ratio * n1.error[b]) / expected[b]
    print(
        f"{centre:6.0f}   {response[b]:.4f}    {response[b] / analytic[b]:.4f}   "
        f"{response_error[b]:.4f}   {n1.n1[b] / n0[b]:.3f}  {n1.error[b] / n0[b]:.3f}   "
        f"{ratio:10.4f}               {error:.4f}"
    )
print(f"{1e3 * seconds / SKIES:.1f} ms a map of {n} x {n} pixels; {SKIES} skies, {PAIRS} pairs")
