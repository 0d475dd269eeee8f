"""Nulls of a mock survey as it is, and with what is planted in its maps.

    python tests/benchmarks/survey_nulls.py [FOLDER]

One lensed sky of the fiducial theory, its beam taken before lensing, on a CAR map of 1′, 16° × 16°
with eight 10′ holes, in two splits of 1 µK-arcmin together, of which one has 1.5 times the weight
of the other. It goes through `survey plan`, `survey reconstruct` and `survey nulls` with the
shipped refining network; then the tiles' Q and U are changed as they were cut: a gain of 2% of one
split, an angle of half a degree, radio sources to .9 Jy without a mask at 150 GHz.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits
from pixell import enmap

from cobaya_cnnlens import products
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps import tile_maps
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.plan import make_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.release_estimator import release_estimator
from cobaya_cnnlens.maps.survey_files import Sources
from cobaya_cnnlens.maps.tile_maps import TileMaps
from cobaya_cnnlens.maps.tile_nulls import Choices, TileNulls
from cobaya_cnnlens.pipeline.release_networks import find_networks
from cobaya_cnnlens.simulate.foregrounds import SourceCounts, source_patches
from cobaya_cnnlens.simulate.instrument import ARCMIN, convolve_beam
from cobaya_cnnlens.simulate.patches import (
    Pointing,
    deflect_by,
    gradient_at,
    lensed_polarisation_at,
)
from cobaya_cnnlens.simulate.shards import draw_sky
from cobaya_cnnlens.simulate.skies import scale_alm
from cobaya_cnnlens.validate.survey_nulls import survey_nulls

LONGITUDES, LATITUDES = (100.0, 116.0), (-8.0, 8.0)
LMAX, SHARES, HOLES, DIAMETER = 5000, (0.4, 0.6), 8, 10.0

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder.mkdir(exist_ok=True)
release = read_release("refined_fiducial")
setup = MapSetup.of_release(release)
instrument = setup.instrument
estimator = release_estimator(setup, find_networks(release))()
began = time.time()


def clock(what):
    print(f"{time.time() - began:5.0f} s  {what}", flush=True)


def make_maps():
    corners = np.radians([[LATITUDES[0], LONGITUDES[1]], [LATITUDES[1], LONGITUDES[0]]])
    shape, wcs = enmap.geometry2(pos=corners, res=ARCMIN, proj="car")
    latitude, longitude = (np.asarray(x) for x in enmap.posmap(shape, wcs))
    generator = np.random.default_rng(23)
    seen = np.ones(shape, bool)
    for _ in range(HOLES):
        y, x = (np.radians(generator.uniform(*limits)) for limits in (LATITUDES, LONGITUDES))
        apart = np.hypot(latitude - y, (longitude % (2 * np.pi) - x) * np.cos(y))
        seen &= apart > 0.5 * DIAMETER * ARCMIN
    at = Pointing(
        0.5 * np.pi - latitude.ravel(), longitude.ravel() % (2 * np.pi), np.zeros(latitude.size)
    )
    sky = draw_sky(setup.theory, LMAX, 23, "survey_nulls", 0)
    deflection = deflect_by(gradient_at(sky.philm, LMAX, at), at)
    elm = scale_alm(sky.elm, instrument.beam(np.arange(LMAX + 1)))
    p = lensed_polarisation_at(elm, LMAX, at, deflection).reshape(shape)
    area = np.asarray(enmap.pixsizemap(shape, wcs))
    names = {"mask": seen.astype(np.float32)}
    for i, share in enumerate(SHARES):
        ivar = share * area / (instrument.noise_uk_arcmin * ARCMIN) ** 2
        noise = generator.standard_normal((2, *shape)) / np.sqrt(ivar)
        planes = np.stack([p.real, p.imag]) + noise
        names |= {f"map{i}": np.where(seen, planes, np.nan), f"ivar{i}": ivar * seen}
    for name, planes in names.items():
        path = folder / f"{name}.fits"
        enmap.write_map(str(path), enmap.ndmap(planes.astype(np.float32), wcs))
        if name.startswith("map"):
            for key, value in (("BUNIT", "uK"), ("POLCCONV", "COSMO")):
                fits.setval(path, key, value=value)
        elif name.startswith("ivar"):
            fits.setval(path, "BUNIT", value="uK^-2")
    return {name: str(folder / f"{name}.fits") for name in names}


def judge(name, change):
    for split in range(2):
        clean = TileMaps(plan, folder / "clean").path(split)
        with products.open_product(clean, tile_maps.KIND) as product:
            arrays = {key: product.array(key) for key in product.names()}
        p = change(split, arrays["q"] + 1j * arrays["u"])
        p = np.where([tile.seen for tile in plan.tiles], p, 0.0).astype(np.complex64)
        arrays |= {"q": p.real, "u": p.imag}
        where = TileMaps(plan, folder / name).path(split)
        products.write_product(where, tile_maps.KIND, TileMaps(plan, folder).recipe(split), arrays)
    TileReconstruction(plan, setup, folder / name).measure(lambda: estimator)
    tests = TileNulls(TileReconstruction(plan, setup, folder / name), Choices.of(setup))
    tests.measure(lambda: estimator)
    table = survey_nulls(tests)
    clock(name)
    text = table.table()
    print(text if name == "as it is" else "\n".join(text.splitlines()[3:20]), flush=True)


def sources(_, p):
    generators = [np.random.default_rng([29, number]) for number in range(len(p))]
    found = source_patches(SourceCounts(900.0, 150.0), setup.patch, generators)
    q, u = convolve_beam(found, instrument, setup.patch)
    return p + q + 1j * u


files = make_maps()
clock("maps")
plan = make_plan(
    folder / "plan.yaml",
    Sources((files["map0"], files["map1"]), files["mask"], (files["ivar0"], files["ivar1"])),
    setup.patch,
    instrument.taper_deg,
)
clock(f"survey plan, {len(plan.tiles)} tiles")
TileMaps(plan, folder / "clean").measure()
clock("Q and U of the tiles")
judge("as it is", lambda _, p: p)
judge("gain of 2% of one split", lambda i, p: p * (1.0 + 0.02 * i))
judge("angle of half a degree", lambda _, p: p * np.exp(2j * np.radians(0.5)))
judge("sources to .9 Jy", sources)
