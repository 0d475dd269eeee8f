"""One sky of 160 patches with all six fields; beside it lenspyx on the full sky at nside 2048."""

import time

import numpy as np
from lenspyx.lensing import alm2lenmap_spin

from cobaya_cnnlens.simulate import shards
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.skies import scale_alm
from cobaya_cnnlens.theory.camb import compute_spectra

settings, geometry = shards.SkySettings(), PatchGeometry()
spectra = compute_spectra()
pointing = shards.pointing_of(geometry, 4, 16)
times = []
for index in range(3):
    start = time.perf_counter()
    sky = shards.draw_sky(spectra, settings.lmax, 1, "benchmark", index)
    shards.sample_patches(sky, settings, geometry, pointing)
    times.append(time.perf_counter() - start)
    print(f"sky {index}: {times[-1]:.1f} s for 160 patches of (Q~, U~, Q, U, E, kappa)")

l = np.arange(settings.lmax + 1)
dlm = scale_alm(sky.philm, np.sqrt(l * (l + 1.0)))
start = time.perf_counter()
alm2lenmap_spin(sky.elm[None], [dlm, None], 2, geometry=("healpix", {"nside": 2048}), epsilon=1e-5)
lenspyx = time.perf_counter() - start
print(f"lenspyx, lensed Q and U only, full sky at nside 2048: {lenspyx:.1f} s")
print(f"ours / lenspyx = {min(times) / lenspyx:.2f}")
