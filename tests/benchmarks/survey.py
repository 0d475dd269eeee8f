"""κ̂ of a survey's tiles from a HEALPix and from a CAR map of the same sky, and from the sky itself.

    python tests/benchmarks/survey.py [NSIDE] [FOLDER]

One sky of lensed spectra, beam and noise of 1 µK-arcmin to l = 1.95 NSIDE (2048 if not given), on a
footprint of 12° × 6° with 6 holes of 10′ each, as HEALPix and as CAR of 1′, unseen pixels NaN.
Both go through `survey plan` and `survey reconstruct` with the shipped refining network. Beside
them, the tiles' pixels synthesised from the sky's own a_lm: what differs then is quadrature and
what was filled where nothing is seen. Minutes on two cores, and 2 GB of memory; four times that for
NSIDE 4096.
"""

import sys
import tempfile
import time
from pathlib import Path

import ducc0
import healpy
import numpy as np
from astropy.io import fits
from pixell import curvedsky, enmap

from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps import cutting
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.plan import make_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.release_estimator import release_estimator
from cobaya_cnnlens.maps.survey_files import Sources
from cobaya_cnnlens.maps.tile_maps import TileMaps
from cobaya_cnnlens.pipeline.release_networks import find_networks
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.theory.camb import lensed_polarisation

NSIDE = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
LMAX, STEP = round(1.95 * NSIDE), 1.0
LONGITUDES, LATITUDES = (100.0, 112.0), (-33.0, -27.0)
HOLES, DIAMETER = 6, 10.0

folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
folder.mkdir(exist_ok=True)
release = read_release("refined_fiducial")
setup = MapSetup.of_release(release)
instrument = setup.instrument
loaded = []


def estimator():
    if not loaded:
        loaded.append(release_estimator(setup, find_networks(release))())
    return loaded[0]


began = time.time()


def clock(what):
    print(f"{time.time() - began:5.0f} s  {what}", flush=True)


generator = np.random.default_rng(17)
l = np.arange(LMAX + 1)
theory = setup.theory
lensed = lensed_polarisation(theory, max(LMAX, theory.lmax))
spectra = [np.pad(cl, (0, max(LMAX + 1 - len(cl), 0)))[: LMAX + 1] for cl in lensed]
spectra = [cl * instrument.beam(l) ** 2 + ARCMIN**2 for cl in spectra]
for cl in spectra:
    cl[:2] = 0.0
alm = np.array([scale_alm(unit_alm(LMAX, generator), np.sqrt(cl)) for cl in spectra])
places = np.radians(
    np.stack([generator.uniform(*LATITUDES, HOLES), generator.uniform(*LONGITUDES, HOLES)], axis=1)
)


def seen(theta, phi):
    """The footprint without its holes."""
    latitude, longitude = 0.5 * np.pi - theta, phi % (2 * np.pi)
    inside = (latitude > np.radians(LATITUDES[0])) & (latitude < np.radians(LATITUDES[1]))
    inside &= (longitude > np.radians(LONGITUDES[0])) & (longitude < np.radians(LONGITUDES[1]))
    for b, a in places:
        cosine = np.sin(b) * np.sin(latitude)
        cosine = cosine + np.cos(b) * np.cos(latitude) * np.cos(longitude - a)
        inside &= cosine < np.cos(0.5 * DIAMETER * ARCMIN)
    return inside


def healpix_files():
    rings = ducc0.healpix.Healpix_Base(NSIDE, "RING").sht_info()
    polar = np.radians([90.0 - LATITUDES[1] - 0.1, 90.0 - LATITUDES[0] + 0.1])
    chosen = (rings["theta"] > polar[0]) & (rings["theta"] < polar[1])
    rings = {key: values[chosen] for key, values in rings.items()}
    first = int(rings["ringstart"][0])
    rings["ringstart"] = rings["ringstart"] - rings["ringstart"][0]
    q, u = ducc0.sht.synthesis(alm=alm, spin=2, lmax=LMAX, **rings)
    known = seen(*healpy.pix2ang(NSIDE, first + np.arange(len(q))))
    planes = np.full((3, 12 * NSIDE**2), np.float32(healpy.UNSEEN))
    pixels = first + np.flatnonzero(known)
    planes[:, pixels] = np.stack([q[known], u[known], 1.0 + 0 * q[known]])
    common = {"partial": True, "dtype": np.float32, "overwrite": True}
    names = ["Q_STOKES", "U_STOKES"]
    healpy.write_map(folder / "h.fits", planes[:2], column_names=names, column_units="uK", **common)
    healpy.write_map(folder / "h_mask.fits", planes[2], **common)
    return Sources((str(folder / "h.fits"),), str(folder / "h_mask.fits"), level="1")


def car_files():
    corners = np.radians(
        [[LATITUDES[0] - 0.3, LONGITUDES[1] + 0.3], [LATITUDES[1] + 0.3, LONGITUDES[0] - 0.3]]
    )
    shape, wcs = enmap.geometry2(pos=corners, res=STEP * ARCMIN, proj="car")
    sky = curvedsky.alm2map(alm, enmap.zeros((2, *shape), wcs), spin=2)
    latitude, longitude = enmap.posmap(shape, wcs)
    known = seen(0.5 * np.pi - latitude, longitude)
    sky[:, ~known] = np.nan
    enmap.write_map(str(folder / "c.fits"), sky.astype(np.float32))
    for key, value in (("BUNIT", "uK"), ("POLCCONV", "COSMO")):
        fits.setval(folder / "c.fits", key, value=value)
    enmap.write_map(str(folder / "c_mask.fits"), enmap.ndmap(known.astype(np.float32), wcs))
    return Sources((str(folder / "c.fits"),), str(folder / "c_mask.fits"), level="1")


plans, kappas, powers = {}, {}, {}
for name, files in (("HEALPix", healpix_files), ("CAR", car_files)):
    sources = files()
    clock(f"{name}: files written")
    plan = make_plan(
        folder / f"{name}.yaml",
        sources,
        setup.patch,
        instrument.taper_deg,
        like=plans.get("HEALPix"),
    )
    clock(f"{name}: survey plan, {len(plan.tiles)} tiles")
    TileMaps(plan, folder / name).measure()
    clock(f"{name}: Q and U of the tiles")
    TileReconstruction(plan, setup, folder / name).measure(estimator)
    clock(f"{name}: kappa-hat")
    tile_bandpowers = [
        TileReconstruction(plan, setup, folder / name).read_tile(tile) for tile in plan.tiles
    ]
    plans[name], kappas[name] = plan, np.stack([f["kappa"] for f in tile_bandpowers])
    powers[name] = np.stack([f["auto"] for f in tile_bandpowers])
plan = plans["HEALPix"]
np.testing.assert_allclose(plan.centres, plans["CAR"].centres)
cut = cutting.cut(alm, LMAX, plan.centres, plan.geometry)
for name in plans:
    tiles = plans[name].tiles
    rms = np.stack([tile.rms for tile in tiles])
    masked = cut * np.stack([tile.mask for tile in tiles])
    known = next(TileMaps(plans[name], folder / name).masked())
    off = np.std((known.q + 1j * known.u) - masked[0]) / np.std(masked[0])
    print(f"{name}: Q, U of tile 0 off the sky's by {off:.1e} of their rms")
    kappas[f"the sky, seen as {name}"] = estimator().reconstruct(masked.real, masked.imag, rms)
seen_of = {name: np.stack([tile.seen for tile in plans[name].tiles]) for name in plans}
print(f"pixels seen in one and not in the other: {(seen_of['HEALPix'] != seen_of['CAR']).sum()}")
for a, b in (
    ("HEALPix", "CAR"),
    ("HEALPix", "the sky, seen as HEALPix"),
    ("CAR", "the sky, seen as CAR"),
):
    error = [np.std(x - y) / np.std(y) for x, y in zip(kappas[a], kappas[b], strict=True)]
    print(f"{a} against {b}: rms difference of kappa-hat / its rms, by tile:", end=" ")
    print(*(f"{e:.1e}" for e in error))
# Under one mask: without the pixels at the edges of holes that one of the two saw.
pairs = [list(TileMaps(plans[name], folder / name).masked()) for name in plans]
common = [one.tile.seen & two.tile.seen for one, two in zip(*pairs, strict=True)]
same = []
for pair in pairs:
    q, u = (np.stack([getattr(m, x) for m in pair]) * common for x in "qu")
    rms = np.where(common, np.stack([m.tile.rms for m in pairs[0]]), np.inf)
    same.append(estimator().reconstruct(q, u, rms))
error = [np.std(x - y) / np.std(y) for x, y in zip(*same, strict=True)]
print("HEALPix against CAR, of the pixels that both saw:", *(f"{e:.1e}" for e in error))
ratios = {
    "": powers["CAR"].mean(0) / powers["HEALPix"].mean(0),
    ", of the pixels that both saw": np.divide(
        *(setup.spectra.auto(k).mean(0) for k in same[::-1])
    ),
}
for name, ratio in ratios.items():
    print(f"CAR over HEALPix{name}, bandpowers - 1:", *(f"{r - 1:+.1e}" for r in ratio))
