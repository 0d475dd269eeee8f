"""κ̂ of the shipped network from a user's files beside κ̂ of the same sky taken at the pixels.

One sky with the lensed spectra, beam and white noise of resunet_1uk.yaml is written as FITS
images and as a HEALPix map, read back and reconstructed. What differs is single precision and, for
HEALPix, its quadrature and its band limit, of which the last rows show each alone.
"""

import tempfile
from pathlib import Path

import ducc0
import healpy
import numpy as np

from cobaya_cnnlens.maps.images import to_meridian, write_images
from cobaya_cnnlens.maps.patch_files import read_maps
from cobaya_cnnlens.maps.patch_maps import PatchMaps
from cobaya_cnnlens.pipeline.estimators import network_estimator
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.patches import PatchGeometry, point_patches
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.theory.camb import lensed_polarisation

NSIDE, LMAX = 2048, 6000
CENTRES = np.radians([[90.0 - latitude, 40.0 * i] for i, latitude in enumerate((0, 20, 40, 60))])

TRAINING = Path(__file__).parents[2] / "training"
config = load_config(TRAINING / "config" / "resunet_1uk.yaml")
estimator = network_estimator(Run(config))
mask = Run(config).mask
flat = PatchGeometry(config.patch.size_deg, config.patch.n_pixels, pad=0)
pointing = point_patches(CENTRES, flat)


def at_pixels(elm, blm, lmax):
    q, u = ducc0.sht.synthesis_general(
        alm=np.array([elm, blm]),
        spin=2,
        lmax=lmax,
        loc=np.stack([pointing.theta, pointing.phi], axis=1),
        epsilon=1e-7,
    )
    p = ((q + 1j * u) * np.exp(-2j * pointing.frame)).reshape(-1, flat.n_pixels, flat.n_pixels)
    return PatchMaps(p.real, p.imag, CENTRES)


def kappa(maps):
    return estimator.reconstruct(maps.q * mask, maps.u * mask)


def report(name, found, direct):
    error = np.std(found - direct) / np.std(direct)
    print(f"{name:44s} rms difference of kappa-hat / its rms = {error:.1e}")


generator = np.random.default_rng(3)
l = np.arange(LMAX + 1)
beam = config.instrument.beam(l)
noise = (config.instrument.noise_uk_arcmin * ARCMIN) ** 2
spectra = [
    cl[: LMAX + 1] * beam**2 + noise for cl in lensed_polarisation(Run(config).spectra(), LMAX)
]
for cl in spectra:
    cl[:2] = 0.0
elm, blm = (scale_alm(unit_alm(LMAX, generator), np.sqrt(cl)) for cl in spectra)
direct = kappa(at_pixels(elm, blm, LMAX))
with tempfile.TemporaryDirectory() as folder:
    found = []
    for i, centre in enumerate(CENTRES):
        path = Path(folder) / f"patch_{i}.fits"
        maps = at_pixels(elm, blm, LMAX)
        planes = np.array(to_meridian(maps.q[i], maps.u[i], centre, flat))
        write_images(path, planes, centre, flat, "uK", POLCCONV="COSMO")
        found.append(kappa(read_maps(path, config.patch))[0])
    report("FITS images (ZEA)", np.array(found), direct)
    path = Path(folder) / "sky.fits"
    sky = healpy.alm2map_spin([elm, blm], NSIDE, 2, LMAX)
    healpy.write_map(
        path,
        [np.zeros_like(sky[0]), *sky],
        column_names=("I_STOKES", "Q_STOKES", "U_STOKES"),
        column_units="uK",
        dtype=np.float32,
    )
    healpix = kappa(read_maps(path, config.patch, CENTRES))
    report(f"HEALPix nside {NSIDE}, a sky to l = {LMAX}", healpix, direct)
    keep = 2 * NSIDE
    cut = kappa(at_pixels(*(scale_alm(alm, (l <= keep).astype(float)) for alm in (elm, blm)), LMAX))
    report(f"the same, against the sky cut at l = {keep} = 2 nside", healpix, cut)
    report("that sky against the whole one", cut, direct)
