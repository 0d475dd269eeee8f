"""One likelihood call, without theory; beside it the CAMB call that a chain would make."""

import timeit

from cobaya_cnnlens.model import BandpowerLikelihood
from cobaya_cnnlens.release import read_release
from cobaya_cnnlens.theory import CambSettings, Cosmology, compute_spectra

release = read_release("laptop_fiducial")
likelihood = BandpowerLikelihood(release)
clkk, clee = release.fiducial_kk.copy(), release.fiducial_ee.copy()


def best(function, number, repeat=7):
    return min(timeit.repeat(function, number=number, repeat=repeat)) / number


call = best(lambda: likelihood.log_likelihood(clkk, clee), 2000)
load = best(lambda: BandpowerLikelihood(read_release("laptop_fiducial")), 3)
settings = CambSettings(lmax=likelihood.lmax_ee, lens_potential_accuracy=4.0)
camb = best(lambda: compute_spectra(Cosmology(), settings), 1, 3)
print(f"likelihood call   {1e6 * call:9.1f} us")
print(f"reading a release {1e3 * load:9.1f} ms")
print(f"one CAMB call     {camb:9.2f} s    CAMB / likelihood = {camb / call:.0f}")
