import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate.windows import expected_e_and_b, expected_pure_b
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.pipeline.config import Config
from cobaya_cnnlens.pipeline.observation import ObservedPatches, observe_sky
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra, e_and_b, pure_b
from cobaya_cnnlens.simulate.instrument import Instrument, convolve_beam, cosine_mask
from cobaya_cnnlens.simulate.modes import mode_vectors
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.validate import primary
from cobaya_cnnlens.validate.primary import KIND as PRIMARY
from cobaya_cnnlens.validate.primary import (
    joint_covariance,
    primary_bandpowers,
    read_joint,
)

from ..written import HASH, N_BINS, PER_SKY, Written, covariance_of_mean, small

EDGES = np.array([36, 163, 290, 417])


def samples(n, correlation, generator):
    """Three blocks of three bins; the first bin of "kk" and the last of "bb" are correlated."""
    draws = generator.standard_normal((n, 9))
    draws[:, 8] = correlation * draws[:, 0] + np.sqrt(1 - correlation**2) * draws[:, 8]
    scale = np.repeat([1e-8, 1e-4, 1e-6], 3)
    return dict(
        zip(("kk", "ee", "bb"), np.split(scale * (1 + 0.1 * draws), 3, axis=1), strict=True)
    )


def test_known_correlation_is_found():
    joint = joint_covariance(EDGES, **samples(4000, 0.5, np.random.default_rng(0)))
    r = joint.block("kk", "bb")
    error = joint.error_of(r)
    assert abs(r[0, 2] - 0.5) < 4 * error[0, 2]
    assert error[0, 2] == pytest.approx(0.75 / np.sqrt(3999), rel=0.1)
    np.testing.assert_allclose(joint.covariance[6:, 6:].diagonal(), 1e-14, rtol=0.1)
    np.testing.assert_array_equal(joint.block("bb", "kk"), joint.block("kk", "bb").T)


def test_correlation_with_the_power_of_several_bins():
    """That of samples whose bins below L are summed, each over its mean."""
    measured = samples(400, 0.5, np.random.default_rng(4))
    joint = joint_covariance(EDGES, **measured)
    together = (measured["kk"] / measured["kk"].mean(0))[:, :2].sum(1)
    found = joint.correlation_with_power(EDGES[2])
    for row, values in zip(found, measured.values(), strict=True):
        for r, each in zip(row, values.T, strict=True):
            assert r == pytest.approx(np.corrcoef(together, each)[0, 1], abs=1e-9)
    np.testing.assert_allclose(joint.error_of(found), (1 - found**2) / np.sqrt(399))


def test_independent_blocks_are_not_correlated():
    """Gaussian bandpowers of nothing in common: (r/error)² of the pairs is χ²; and .3 in one of
    them is noticed."""

    def excess(correlation):
        joint = joint_covariance(EDGES, **samples(1920, correlation, np.random.default_rng(1)))
        pairs = np.concatenate([joint.block("kk", b) for b in ("ee", "bb")])
        return stats.chi2(pairs.size).sf(np.sum(pairs**2) * (joint.n_sim - 1))

    assert 0.01 < excess(0.0) < 0.99
    assert excess(0.3) < 1e-6


def gaussian_q_and_u(clee, clbb, geometry, n_patches, generator):
    """Q, U cut from wide periodic Gaussian maps of E and B."""
    wide, n = 512, geometry.n_padded
    ly, lx = np.meshgrid(*(2 * np.pi * np.fft.fftfreq(wide, geometry.pixel),) * 2, indexing="ij")
    l, angle = np.hypot(ly, lx), np.arctan2(lx, -ly)
    q, u = [], []
    while len(q) < n_patches:
        e, b = (
            np.fft.fft2(generator.standard_normal((wide, wide)))
            * np.sqrt(np.interp(l, np.arange(len(cl)), cl, right=0.0))
            / geometry.pixel
            for cl in (clee, clbb)
        )
        cos2, sin2 = np.cos(2 * angle), np.sin(2 * angle)
        for maps, modes in ((q, e * cos2 - b * sin2), (u, e * sin2 + b * cos2)):
            field = np.fft.ifft2(modes).real
            maps += [field[i : i + n, j : j + n] for i in (0, 256) for j in (0, 256)]
    return np.array(q), np.array(u)


def test_e_and_b_power_of_observed_patches():
    """Beam divided out, pure B: bandpowers of Gaussian Q, U seen through a 6' beam are what theory
    gives for the mask without any beam."""
    geometry = PatchGeometry(n_pixels=64, pad=16)
    instrument = Instrument(noise_uk_arcmin=0.0, beam_fwhm_arcmin=6.0, taper_deg=0.5)
    l = np.arange(2301, dtype=float)
    clee, clbb = 1e-4 * np.exp(-l / 500), 2e-6 * np.exp(-l / 800)
    generator = np.random.default_rng(2)
    q, u = gaussian_q_and_u(clee, clbb, geometry, 160, generator)
    q, u = (convolve_beam(maps, instrument, geometry) for maps in (q, u))
    mask = cosine_mask(geometry, instrument.taper_deg)
    spectra = FlatSpectra(geometry, Bins(186, 150, 6), mask)
    config = SimpleNamespace(patch=geometry, instrument=instrument)
    seen_by = SimpleNamespace(config=config, bandpowers=spectra)
    found = primary_bandpowers(seen_by, ObservedPatches(q, u, q, q))
    expected = {
        "ee": expected_e_and_b(spectra, clee, clbb)[0],
        "bb": expected_pure_b(spectra, clbb),
    }
    for name, power in found.items():
        error = power.std(0, ddof=1) / np.sqrt(len(power))
        np.testing.assert_allclose(power.mean(0), expected[name], atol=4 * error.max(), rtol=0.02)


def test_power_of_a_sky_that_was_measured(tmp_path):
    """E of the masked maps, pure B of the unmasked ones, the beam divided out mode by mode; noise
    and all. What is there is not measured again."""
    config = Config.model_validate(small(tmp_path / "products"))
    Skies(Run(config), 1).measure("test", [1])
    primary.measure(Run(config), indices=[1])
    path, recipe = primary.path(Run(config), "test", 1), primary.recipe(Run(config), "test", 1)
    with products.open_product(path, PRIMARY, recipe) as product:
        found = {name: product.array(name) for name in ("ee", "bb")}
    spectra = Run(config).bandpowers
    beam = config.instrument.beam(np.hypot(*mode_vectors(48, config.patch.pixel)))
    masked, bare = (observe_sky(Run(config), "test", 1, masked=choice) for choice in (True, False))
    e, _ = e_and_b(spectra, masked.q, masked.u)
    b = pure_b(spectra, bare.q, bare.u)
    np.testing.assert_allclose(found["ee"], spectra.cross(e / beam, e / beam), rtol=1e-4)
    np.testing.assert_allclose(found["bb"], spectra.cross(b / beam, b / beam), rtol=1e-4)
    before = path.stat().st_mtime_ns
    primary.measure(Run(config), indices=[1])
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_what_is_written(tmp_path, suffix):
    joint = joint_covariance(EDGES, **samples(50, 0.5, np.random.default_rng(3)))
    path = joint.write(tmp_path / "new" / f"joint{suffix}", {"set": "test"})
    read = np.load(path) if suffix == ".npz" else json.loads(path.read_text())
    assert list(read["blocks"]) == ["kk", "ee", "bb"]
    assert list(read["units"]) == ["1", "muK2", "muK2"]
    for name in ("edges", "mean", "covariance"):
        np.testing.assert_array_equal(np.array(read[name]), getattr(joint, name))
    assert int(read["n_sim"]) == 50
    provenance = read["provenance"]
    assert (json.loads(str(provenance)) if suffix == ".npz" else provenance) == {"set": "test"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_bad_requests(tmp_path):
    joint = joint_covariance(EDGES, **samples(50, 0.5, np.random.default_rng(3)))
    with pytest.raises(CNNLensError, match=r"suffix is '\.txt'; choose one of"):
        joint.write(tmp_path / "joint.txt")
    with pytest.raises(CNNLensError, match="10 simulated patches cannot give a covariance"):
        joint_covariance(EDGES, **samples(10, 0.5, np.random.default_rng(3)))


@pytest.mark.parametrize("true_kappa", [False, True])
def test_joint_covariance_of_products(tmp_path, true_kappa):
    """Blocks κκ, EE, BB of the same patches in order; κκ debiased, or of the true κ."""
    written = Written(Config.model_validate(small(tmp_path / "products")))
    config = written.config
    n = config.skies.test * PER_SKY
    power = np.random.default_rng(7).random((2, n, N_BINS))
    power *= np.array([1e-4, 1e-6])[:, None, None]
    for i in range(config.skies.test):
        rows = slice(i * PER_SKY, (i + 1) * PER_SKY)
        arrays = {"ee": power[0, rows], "bb": power[1, rows]}
        recipe = primary.recipe(Run(config), "test", i)
        products.write_product(primary.path(Run(config), "test", i), PRIMARY, recipe, arrays)
    joint = read_joint(Run(config, HASH), true_kappa=true_kappa)
    kk = written.truth if true_kappa else written.truth + written.n
    samples = np.concatenate([kk, power[0], power[1]], axis=1)
    assert joint.blocks == ("kk", "ee", "bb")
    assert joint.n_sim == n
    np.testing.assert_allclose(joint.mean, samples.mean(0), rtol=1e-7)
    expected = n * covariance_of_mean(samples)
    sigma = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(
        joint.covariance / np.outer(sigma, sigma), expected / np.outer(sigma, sigma), atol=1e-7
    )
    r = joint.correlation
    np.testing.assert_allclose(r, np.corrcoef(samples, rowvar=False), atol=1e-7)
    np.testing.assert_allclose(joint.error_of(r), (1 - r**2) / np.sqrt(n - 1), rtol=1e-12)
    np.testing.assert_array_equal(joint.block("kk", "bb"), r[:N_BINS, 2 * N_BINS :])
    some = read_joint(Run(config, HASH), indices=[1, 2], true_kappa=true_kappa)
    np.testing.assert_allclose(some.mean, samples[PER_SKY:].mean(0), rtol=1e-7)
