"""Noise of LensIt's quadratic and MAP estimators over that of the refining network, and their
correlations, on the same masked patches of a dense test sky at 1 µK-arcmin.

    python tests/benchmarks/foreign_estimator.py [PATCHES]

LensIt is the flat-sky code of J. Carron (Carron & Lewis 2017, arXiv:1704.08230). Install it first;
on Python 3.11 its build needs a Fortran compiler, but nothing here uses what that compiles:

    pip install pyfftw finufft setuptools wheel
    pip install --no-build-isolation --no-deps git+https://github.com/carronj/LensIt

Its version of April 2026 (dfbb1bf) gave the results in docs/measured.md. All estimators get the
same maps, beam, white noise, pixels with data and fiducial spectra. LensIt's filter knows the mask;
its periodic box is 6.25 deg wide. Its MAP iterations subtract a mean field, which its own
Monte-Carlo estimator gives for random displacements; our MAP estimator subtracts none. This file
adds to LensIt the exact adjoint of lensing under a mask, Fourier derivatives of φ in place of
finite differences, and a filter that leaves the mean of Q and of U free.

Makes test sky 0 of training/config/refined.yaml if it is not there, in a minute and a half; 7 s a
patch, kept in products/refined/lensit. The first lines compare its analytic noise with ours.
"""

import contextlib
import functools
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from paired import Paired

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.release_networks import NETWORKS
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.reconstruct.features import FEATURES, KAPPA_UNIT, PASSES, features_of
from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing
from cobaya_cnnlens.reconstruct.n0 import Filter, n0_ee, n0_mv
from cobaya_cnnlens.reconstruct.refined import RefinedEstimator, load_refining
from cobaya_cnnlens.simulate.instrument import ARCMIN

try:
    import finufft  # noqa: F401  (without it LensIt interpolates by splines)
    from lensit.ffs_covs import ell_mat, ffs_cov, ffs_specmat
    from lensit.ffs_deflect import ffs_deflect
    from lensit.ffs_deflect.ffs_deflect import ffs_displacement, ffs_id_displacement
    from lensit.ffs_iterators.ffs_iterator_nufft import ffs_iterator_cstMF
    from lensit.ffs_qlms import qlms
    from lensit.misc.misc_utils import cl_inverse
    from lensit.qcinv import (
        chain_samples,
        ffs_ninv_filt,
        multigrid,
        opfilt_cinv,
        opfilt_cinv_noBB,
    )
except ImportError as error:
    raise SystemExit(
        f"This benchmark needs LensIt and finufft ({error}). Install them with the two commands at "
        "the top of this file."
    ) from error

# Only its interpolation by splines needs boxes of 2ⁿ pixels.
ffs_deflect.Log2ofPowerof2 = lambda shape: np.ceil(np.log2(shape)).astype(int)
opfilt_cinv._type = opfilt_cinv_noBB._type = "QU"
ROOT = Path(__file__).parents[2]
BOX = 160  # pixels along a side
LS = (300, 1000, 2000)  # of the analytic noise
ITERATIONS = 14
MEAN_FIELD_SAMPLES = 6
# Residual of conjugate gradients, and error of the non-uniform FFT. With a tenth and a hundredth of
# them the correlation with the truth changes by at most 0.001, after 8 iterations of one patch.
TOLERANCE, EPSILON = 1e-4, 1e-5
# Bins of the table, in bins of the configuration.
EDGES = (0, 1, 3, 6, 9, 12, 15, 19, 24)


def remembered(method):
    """The same method, with the arrays kept that LensIt reads from disk or makes at every call."""

    @functools.wraps(method)
    def call(self, *args):
        arrays = self.__dict__.setdefault("_remembered", {})
        if (key := (method.__name__, *args)) not in arrays:
            arrays[key] = method(self, *args)
        return arrays[key]

    return call


for owner, names in (
    (ell_mat.ell_mat, ("get_ellmat", "get_e2iphi_mat")),
    (ell_mat.ffs_alm, ("_cond", "get_cossin_2iphi", "get_ikx", "get_iky")),
):
    for name in names:
        setattr(owner, name, remembered(getattr(owner, name)))


class AnyMean:
    """N⁻¹ that leaves the means of Q and U free: waves longer than the box are nearly constant."""

    def apply_maps(self, _, maps, inplace=True):
        weight = self.ninv_rad["q"]
        weighted = weight * maps
        weighted -= weight * weighted.sum((1, 2), keepdims=True) / weight.sum()
        if inplace:
            maps[:] = weighted
        return weighted


class PlainFilter(AnyMean, ffs_ninv_filt.ffs_ninv_filt):
    """LensIt's Wiener filter of masked maps."""


class LensedFilter(AnyMean, ffs_ninv_filt.ffs_ninv_filt_wl):
    """The same of lensed maps, with the exact adjoint of its lensing, as LensIt has it unmasked."""

    def set_ffi(self, f, *_):
        self.f = self.fi = f

    def apply_Rt(self, _, values):
        modes = self._upg(self.lib_datalm.map2alm(values))
        modes = self.lib_skyalm.almxfl(modes, self.cl_transf)
        return self.f.lens_alm_adjoint(self.lib_skyalm, modes)


class Iterator(ffs_iterator_cstMF):
    """LensIt's MAP iterations with a given mean field; ∇φ by Fourier transforms."""

    def _calc_ffinv(self, it, key):
        phi = self.get_Plm(it, key)
        for name, part in zip(self._getfnames_f(key, it), gradient(self.lib_qlm, phi), strict=True):
            np.save(name, part)
        Path(self.lib_dir, f"f_{it:04d}_libdir").mkdir(exist_ok=True)


class Phases:
    """Unit white noise of Q and U on the pixels of the box."""

    def get_sim(self, index):
        return np.random.default_rng([2, index]).standard_normal((2, BOX, BOX))


def gradient(lib, phi):
    """∂φ/∂x and ∂φ/∂y on the pixels."""
    return [lib.alm2map(phi * ik) for ik in (lib.get_ikx(), lib.get_iky())]


class LensIt:
    """LensIt's estimates of masked patches.

    Parameters
    ----------
    config : for the patch and the instrument
    theory : fiducial spectra
    mask : divided out of the maps, (n, n); pixels where it is zero have no data
    folder : for LensIt's files
    """

    def __init__(self, config, theory, mask, folder):
        self.n, self.folder = config.patch.n_pixels, folder
        self.side, self.lmax = BOX * config.patch.pixel, Filter().lmax
        self.inverse_mask = np.divide(1.0, mask, out=np.zeros_like(mask), where=mask > 0)
        lmax, zero, one = self.lmax, np.zeros(self.lmax + 1), np.ones(self.lmax + 1)
        ee, bb, unlensed = (
            cl[: lmax + 1] for cl in (theory.lensed_ee, theory.lensed_bb, theory.ee)
        )
        self.lensed_cls = {"tt": one, "te": zero, "ee": ee, "bb": bb}
        self.unlensed_cls = {"tt": one, "te": zero, "ee": unlensed, "bb": zero}
        self.beam = config.instrument.beam(np.arange(lmax + 1))
        self.white = (config.instrument.noise_uk_arcmin * ARCMIN) ** 2
        self.lib, analytic = self.modes(BOX)
        self.pp = theory.pp[: self.lib.ellmax + 1]
        self.n0 = analytic.get_N0cls("QU", self.lib, use_cls_len=True)[0]
        self.curvature = cl_inverse(analytic.get_N0cls("QU", self.lib, use_cls_len=False)[0])
        weight = np.zeros((BOX, BOX))
        weight[: self.n, : self.n] = (mask > 0) / self.white
        libraries, weights = (self.lib, self.lib), dict.fromkeys("tqu", weight)
        still = ffs_id_displacement((BOX, BOX), self.lib.lsides)
        self.plain = PlainFilter(*libraries, self.lensed_cls, self.beam, weights)
        self.lensed = LensedFilter(*libraries, self.unlensed_cls, self.beam, weights, still, still)
        self.chain = chain_samples.get_isomgchain(lmax, (BOX, BOX), tol=TOLERANCE, iter_max=400)

    def modes(self, pixels):
        """Modes of the box with so many pixels along a side, and LensIt's analytic results."""
        box = ell_mat.ell_mat(f"{self.folder}/box{pixels}", (pixels, pixels), (self.side,) * 2)
        lib = ell_mat.ffs_alm_pyFFTW(box, filt_func=lambda ell: (ell > 1) & (ell <= self.lmax))
        spectra = self.unlensed_cls, self.lensed_cls, self.beam
        noise = {name: np.full(self.lmax + 1, self.white) for name in "tqu"}
        return lib, ffs_cov.ffs_diagcov_alm(f"{self.folder}/{pixels}", lib, *spectra, noise)

    def analytic_noise(self, L):
        """N0^κ of its quadratic estimator on pixels of half the side, on which no mode aliases."""
        lib, analytic = self.modes(2 * BOX)
        n0 = analytic.get_N0cls("QU", lib)[0]
        ell = np.arange(L - 20, L + 21)
        ell = ell[n0[ell] > 0]
        return np.mean(0.25 * ell**4.0 * n0[ell])

    def solver(self, kind, wiener):
        """Its conjugate gradients, for polarisation."""
        return multigrid.multigrid_chain(kind, "QU", self.chain, wiener)

    def mean_field(self):
        """Modes of the slope's mean field, averaged over displacements and the square's symmetries.

        The displacements have the power that a MAP estimate has.
        """
        power = self.pp**2 * cl_inverse(self.pp + cl_inverse(self.curvature))
        shift, total = (BOX - self.n) // 2, 0.0
        for index in range(MEAN_FIELD_SAMPLES):
            white = np.random.default_rng([1, index]).standard_normal((BOX, BOX))
            white = self.lib.map2alm(white * np.sqrt(self.lib.nbar()))
            phi = self.lib.almxfl(white, np.sqrt(power))
            self.lensed.set_ffi(
                ffs_displacement(*gradient(self.lib, phi), self.lib.lsides, nuffteps=EPSILON)
            )
            solver = self.solver(opfilt_cinv_noBB, self.lensed)
            estimator = qlms.MFestimator(
                self.lensed, opfilt_cinv_noBB, solver, self.lib, pix_pha=Phases()
            )
            total = total + self.lib.alm2map(estimator.get_MFqlms("QU", 12, index)[0])
        total = np.roll(total / MEAN_FIELD_SAMPLES, (shift, shift), (0, 1))
        turned = [np.rot90(m, k) for m in (total, total[::-1]) for k in range(4)]
        return self.lib.map2alm(np.roll(np.mean(turned, axis=0), (-shift, -shift), (0, 1)))

    def estimates(self, q, u, mean_field):
        """κ̂ of the quadratic and of the MAP estimator, (2, n, n).

        Parameters
        ----------
        q, u : masked maps in µK, (n, n)
        mean_field : of :meth:`mean_field`
        """
        lib = self.lib
        maps = np.zeros((2, BOX, BOX))
        maps[:, : self.n, : self.n] = q * self.inverse_mask, u * self.inverse_mask
        filtered = np.zeros((2, lib.alm_size), complex)
        self.solver(opfilt_cinv, self.plain).solve(filtered, maps, finiop="MLIK")
        residual = maps - self.plain.apply_Rs("QU", filtered)
        residual = self.plain.apply_Rts("QU", self.plain.apply_maps("QU", residual))
        legs = (ffs_specmat.TEB2TQUlms("QU", lib, modes) for modes in (filtered, residual))
        slope = qlms.get_qlms_wl("QU", lib, *legs, lib)[0]
        start = lib.almxfl(slope, cl_inverse(cl_inverse(self.n0) + cl_inverse(self.pp)))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            np.save(f"{folder}/filtered.npy", filtered)
            iterator = Iterator(
                folder,
                "QU",
                self.lensed,
                maps,
                lib,
                start,
                self.curvature,
                mean_field,
                self.pp,
                chain_descr=self.chain,
                opfilt=opfilt_cinv_noBB,
                soltn0=f"{folder}/filtered.npy",
                verbose=False,
                nufft_epsilon=EPSILON,
            )
            for number in range(ITERATIONS):
                phi = iterator.iterate(number, "p")
        return np.array([self.kappa(lib.almxfl(slope, self.n0)), self.kappa(phi)])

    def kappa(self, phi):
        """κ = ½ L²φ on the patch."""
        squared = self.lib.get_kx() ** 2 + self.lib.get_ky() ** 2
        return self.lib.alm2map(0.5 * squared * phi)[: self.n, : self.n]


n_patches = int(sys.argv[1]) if len(sys.argv) > 1 else 32
config = load_config(ROOT / "training" / "config" / "refined.yaml")
run = Run(config)
Skies(run).measure("test", [0])
sky = observe_sky(run, "test", 0)
chosen = np.arange(n_patches) * len(sky.q) // n_patches
q, u = sky.q[chosen], sky.u[chosen]
mask, theory, instrument = run.mask, run.spectra(), config.instrument

kept = config.products / "lensit"
kept.mkdir(parents=True, exist_ok=True)


def kept_or(name, make):
    """An array that was made before, or is made now without LensIt's messages."""
    if not (file := kept / f"{name}.npy").exists():
        with contextlib.redirect_stdout(io.StringIO()):
            made = make()
        np.save(file, made)
        print(f"made {name}", flush=True)
    return np.load(file)


with tempfile.TemporaryDirectory() as folder:
    with contextlib.redirect_stdout(io.StringIO()):
        lensit = LensIt(config, theory, mask, folder)
        analytic = [lensit.analytic_noise(L) for L in LS]
    mean_field = kept_or("mean_field", lensit.mean_field)
    foreign = np.array(
        [
            kept_or(row, lambda row=row: lensit.estimates(sky.q[row], sky.u[row], mean_field))
            for row in chosen
        ]
    )

b_for_e = replace(theory, lensed_ee=theory.lensed_bb)
ours = [f(np.array(LS), t, instrument) for f, t in ((n0_mv, theory), (n0_ee, b_for_e))]
print("analytic noise of the quadratic estimator of EE, EB and BB, LensIt over ours, at L =", *LS)
print(*(f"{ratio:.3f}" for ratio in analytic * (1.0 / ours[0] + 1.0 / ours[1])))

ascent = MAPLensing(config.patch, instrument, mask, theory, PASSES)
features = np.stack(list(features_of(ascent, q, u)))
network = RefinedEstimator(None, [load_refining(NETWORKS / "refined.keras")])
kappa = {
    "LensIt quadratic": mask * foreign[:, 0],
    "LensIt MAP": mask * foreign[:, 1],
    "our MAP": KAPPA_UNIT * features[..., FEATURES.index("kappa_6")].astype(float),
    "network": network.refine(features)["kappa"],
}
left = 1.0 - 1.0 / n_patches  # of a power from which the mean map is taken
paired = Paired(run, sky.kappa[chosen] - sky.kappa[chosen].mean(0))
paired.power /= left
spectra = paired.spectra
measured = {name: paired.measured(maps) for name, maps in kappa.items()}
modes = {name: spectra.transform(maps - maps.mean(0)) for name, maps in kappa.items()}
with_network = {
    name: spectra.cross(reference, modes["network"]) / left for name, reference in modes.items()
}


def grouped(values):
    """Means over the modes of the table's bins."""
    sums = np.add.reduceat(values * spectra.modes, EDGES[:-1])
    return sums / np.add.reduceat(spectra.modes, EDGES[:-1])


def table(title, row):
    """Print a row for each estimator, with its bootstrap error."""
    print(f"\n{title}\n{'L':>22}", *(f"{L:7.0f}" for L in grouped(spectra.bins.centres)))
    for name in kappa:
        scatter = np.std([row(name, weight) for weight in paired.draws], axis=0)
        print(f"{name:>22}", *(f"{value:7.3f}" for value in row(name, paired.ones)))
        print(f"{'+-':>22}", *(f"{error:7.3f}" for error in scatter))


def noise_ratio(name, weight):
    """Over the noise of the network."""
    noise, other = (grouped(paired.noise(*measured[n], weight)) for n in (name, "network"))
    return noise / other


def with_truth(name, weight):
    """Correlation coefficient with the true κ."""
    auto, cross = (weight @ power for power in measured[name])
    return grouped(cross / np.sqrt(auto * (weight @ paired.power)))


def with_our_network(name, weight):
    """Correlation coefficient with the network's κ̂."""
    autos = (weight @ measured[name][0]) * (weight @ measured["network"][0])
    return grouped(weight @ with_network[name] / np.sqrt(autos))


print(f"\n{n_patches} patches; bins end at L =", *spectra.bins.edges[list(EDGES)])
table("noise over that of the network", noise_ratio)
table("correlation with the true κ", with_truth)
table("correlation with the network's κ̂", with_our_network)
table(
    "response", lambda name, weight: grouped((weight @ measured[name][1]) / (weight @ paired.power))
)
