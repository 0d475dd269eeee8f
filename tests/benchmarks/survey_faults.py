"""Faults planted in the maps of a survey: whether `survey reconstruct` refuses them, or what κ̂ is.

    python tests/benchmarks/survey_faults.py [FOLDER] [NAME ...]

One sky of lensed spectra, beam and noise of 1 µK-arcmin on a footprint of 12° × 6°, as HEALPix maps
of nside 2048, each with one fault, goes through `survey plan` and `survey reconstruct` with the
shipped refining network. Of what is not refused, κ̂ is compared with that of the first maps that
are not refused: those without a fault, if no faults are named. Ten minutes on two cores, and 3 GB
of memory.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import ducc0
import healpy
import numpy as np

from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.plan import read_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.simulate.instrument import ARCMIN
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.theory.camb import lensed_polarisation

NSIDE, LMAX = 2048, 4000
LONGITUDES, LATITUDES = (100.0, 112.0), (-33.0, -27.0)


def with_hole(value):
    """Q + iU of pixels, with a hole of 5 minutes' radius in the middle filled with one value."""

    def change(p, pixels):
        centre = healpy.ang2vec(np.mean(LONGITUDES), np.mean(LATITUDES), lonlat=True)
        hole = healpy.query_disc(NSIDE, centre, np.radians(5 / 60))
        return np.where(np.isin(pixels, hole), value, p)

    return change


# By what Q + iU of the pixels is changed, and the noise of the maps where 1 µK-arcmin is declared.
FAULTS = {
    "none": (lambda p, _: p, 1.0),
    "U of the other sign": (lambda p, _: np.conj(p), 1.0),
    "Q and U swapped": (lambda p, _: 1j * np.conj(p), 1.0),
    "turned by 1 degree": (lambda p, _: p * np.exp(2j * np.radians(1.0)), 1.0),
    "3 µK-arcmin for 1": (lambda p, _: p, 3.0),
    "turned by 0.3 degrees": (lambda p, _: p * np.exp(2j * np.radians(0.3)), 1.0),
    "1.2 µK-arcmin for 1": (lambda p, _: p, 1.2),
    "gain of 1.03": (lambda p, _: 1.03 * p, 1.0),
    "a hole": (with_hole(np.nan), 1.0),
    "a hole of zeros": (with_hole(0.0), 1.0),
}


def skies(setup):
    """Q + iU of the beamed sky and of noise of 1 µK-arcmin in some rings, the first pixel of these,
    and which of their pixels the footprint has."""
    generator = np.random.default_rng(17)
    theory, l = setup.theory, np.arange(LMAX + 1)
    lensed = [
        cl[: LMAX + 1] * setup.instrument.beam(l) ** 2
        for cl in lensed_polarisation(theory, theory.lmax)
    ]
    rings = ducc0.healpix.Healpix_Base(NSIDE, "RING").sht_info()
    low, high = np.radians([90.0 - LATITUDES[1] - 0.1, 90.0 - LATITUDES[0] + 0.1])
    chosen = (rings["theta"] > low) & (rings["theta"] < high)
    rings = {key: values[chosen] for key, values in rings.items()}
    first = int(rings["ringstart"][0])
    rings["ringstart"] = rings["ringstart"] - rings["ringstart"][0]
    alm = np.array([scale_alm(unit_alm(LMAX, generator), np.sqrt(cl * (l > 1))) for cl in lensed])
    q, u = ducc0.sht.synthesis(alm=alm, spin=2, lmax=LMAX, **rings)
    rms = ARCMIN / np.sqrt(healpy.nside2pixarea(NSIDE))
    noise = rms * generator.standard_normal((2, len(q)))
    theta, phi = healpy.pix2ang(NSIDE, first + np.arange(len(q)))
    inside = (phi > np.radians(LONGITUDES[0])) & (phi < np.radians(LONGITUDES[1]))
    inside &= (theta > low + 0.1 * np.pi / 180) & (theta < high - 0.1 * np.pi / 180)
    return q + 1j * u, noise[0] + 1j * noise[1], first, inside


def write(path, values, pixels, names):
    planes = np.full((len(values), 12 * NSIDE**2), np.float32(healpy.UNSEEN))
    planes[:, pixels] = values
    healpy.write_map(
        path,
        planes,
        column_names=names,
        column_units="uK",
        coord="C",
        partial=True,
        dtype=np.float32,
        overwrite=True,
        extra_header=[("POLCCONV", "COSMO")],
    )


def cnnlens(*words):
    command = [sys.executable, "-m", "cobaya_cnnlens", "survey", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).absolute()
    folder.mkdir(exist_ok=True)
    setup = MapSetup.of_release(read_release("refined_fiducial"))
    sky, noise, first, inside = skies(setup)
    pixels = first + np.flatnonzero(inside)
    write(folder / "mask.fits", [np.ones(len(pixels))], pixels, ["MASK"])
    clean = None
    for i, name in enumerate(sys.argv[2:] or FAULTS):
        change, level = FAULTS[name]
        p = change((sky + level * noise)[inside], pixels)
        write(folder / "map.fits", [p.real, p.imag], pixels, ["Q_STOKES", "U_STOKES"])
        plan, out = folder / f"plan_{i}.yaml", folder / f"plan_{i}"
        made = cnnlens(
            "plan", folder / "map.fits", "--mask", folder / "mask.fits", "--level", 1, "--out", plan
        )
        done = cnnlens("reconstruct", plan, "--release", "refined_fiducial", "--out", out)
        told = [
            line
            for line in (made.stderr + done.stderr).splitlines()
            if line.startswith(("error:", "warning:"))
        ]
        loaded = read_plan(plan)
        if done.returncode == 0:
            kappa = np.stack(
                [TileReconstruction(loaded, setup, out).read_tile(t)["kappa"] for t in loaded.tiles]
            )
            clean = kappa if clean is None else clean
            off = 100 * np.std(kappa - clean) / np.std(clean)
            told.append(f"κ̂ off that of the first by {off:.1f}% of its rms")
        print(
            f"{name}: {len(loaded.tiles)} tiles, exit code {done.returncode}",
            *told,
            sep="\n    ",
            flush=True,
        )


if __name__ == "__main__":
    main()
