"""One likelihood call, without theory, beside those of other people's codes and a CAMB call.

The calls take turns, so that whatever else the machine does meets all of them alike. A code that is
not installed is left out: candl with the test extra, act_dr6_lenslike from PyPI. Of the latter the
data need a download; its call is timed on made-up arrays of the sizes that it loads.
"""

import sys
import timeit
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.export import export_release, linear_model
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.theory.camb import CambSettings, Cosmology, compute_spectra

ROUNDS, SECONDS = 60, 0.02  # SECONDS: about what a call is repeated for in one round

release = read_release("refined_fiducial")
likelihood = BandpowerLikelihood(release)
clkk, clee = release.fiducial_kk.copy(), release.fiducial_ee.copy()


def exported(format, folder):
    """The module that comes with an export that has our correction."""
    path = export_release(release, format, folder, "linear")
    sys.path.insert(0, str(path.parent))
    return import_module(path.stem)


def of_candl(folder):
    import candl

    with redirect_stdout(StringIO()):
        other = candl.LensLike(exported("candl", folder).Likelihood.data_set_file)
    n = linear_model(release).lmax + 1
    ell = np.arange(2, n)
    spectra = {"Dl": {"kk": clkk[2:n], "EE_unlensed": ell * (ell + 1) * clee[2:n] / (2 * np.pi)}}
    calls = {"candl": lambda: float(other.log_like(spectra))}
    try:
        import jax
    except ModuleNotFoundError:
        return calls
    compiled = jax.jit(other.log_like)
    return calls | {"candl, jax.jit": lambda: float(compiled(spectra))}


def of_cmblikes(folder):
    other = exported("cmblikes", folder).Likelihood()
    ell = np.arange(len(clkk))
    spectra = {"pp": 4 * clkk / (2 * np.pi), "uu": ell * (ell + 1) * clee / (2 * np.pi)}
    return {"cobaya's CMBlikes": lambda: other.log_likelihood(spectra)}


def of_act(_):
    from act_dr6_lenslike import act_dr6_lenslike as act

    n, n_bins, trim = 3000, 10, 2998  # act_baseline
    matrix = np.random.default_rng(0).standard_normal((n, n))
    ell = np.arange(4001)
    spectra = [np.ones(len(ell)) for _ in range(5)]
    data = {
        "include_planck": False,
        "binmat_act": np.full((n_bins, n), 1.0 / n),
        "data_binned_clkk": np.ones(n_bins),
        "cinv": np.eye(n_bins),
        # Far larger than any cache, so that one matrix can stand for all.
        "dAL_dC": np.broadcast_to(matrix, (4, n, n)),
        "fAL": np.ones(n),
        **{f"dN1_{name}": matrix for name in ("kk", "tt", "ee", "bb", "te")},
        **{f"fiducial_cl_{name}": np.ones(n) for name in ("kk", "tt", "ee", "bb", "te")},
    }

    def call(corrections):
        used = data | {"likelihood_corrections": corrections}
        kk, *cmb = spectra
        return lambda: act.generic_lnlike(used, ell, kk, ell, *cmb, trim_lmax=trim)

    return {
        "act_dr6_lenslike, lens_only": call(False),
        "act_dr6_lenslike, with its corrections": call(True),
    }


calls = {"ours": lambda: likelihood.log_likelihood(clkk, clee)}
with TemporaryDirectory() as folder:
    for name, make in (("candl", of_candl), ("CMBlikes", of_cmblikes), ("act", of_act)):
        try:
            calls |= make(Path(folder) / name)
        except ModuleNotFoundError as error:
            print(f"left out: {error.name} is not installed")
    numbers = [max(1, round(SECONDS / timeit.timeit(call, number=1))) for call in calls.values()]
    plan = list(zip(calls.values(), numbers, strict=True))
    times = np.array(
        [[timeit.timeit(call, number=n) / n for call, n in plan] for _ in range(ROUNDS)]
    )
print(f"one call, us: fastest, median of {ROUNDS}; over ours: median, 16% and 84%")
for name, column in zip(calls, times.T, strict=True):
    low, middle, high = np.percentile(column / times[:, 0], [16, 50, 84])
    print(
        f"{name:40s} {1e6 * column.min():10.1f} {1e6 * np.median(column):10.1f}"
        f" {middle:10.1f}  ({low:.1f}-{high:.1f})"
    )


def best(function, number, repeat):
    return min(timeit.repeat(function, number=number, repeat=repeat)) / number


load = best(lambda: BandpowerLikelihood(read_release("refined_fiducial")), 3, 7)
settings = CambSettings(lmax=likelihood.lmax_ee, lens_potential_accuracy=4.0)
camb = best(lambda: compute_spectra(Cosmology(), settings), 1, 3)
print(f"reading a release {1e3 * load:9.1f} ms")
print(f"one CAMB call     {camb:9.2f} s    CAMB / ours = {camb / times[:, 0].min():.0f}")
