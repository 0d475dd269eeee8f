"""1/f noise against its formula, what a tile is seen with, and classes of tiles."""

import healpy
import numpy as np
import pytest

from cobaya_cnnlens.errors import InstrumentError
from cobaya_cnnlens.maps.cutting import cut
from cobaya_cnnlens.reconstruct.n0 import polarisation_noise
from cobaya_cnnlens.reconstruct.wiener import WienerFilter
from cobaya_cnnlens.simulate.bandpowers import Bins, FlatSpectra, e_and_b
from cobaya_cnnlens.simulate.depth import TileDepth, depth_classes, tile_depths
from cobaya_cnnlens.simulate.instrument import (
    Instrument,
    Systematics,
    convolve_beam,
    cosine_mask,
    draw_noise,
)
from cobaya_cnnlens.simulate.modes import mode_vectors
from cobaya_cnnlens.simulate.one_over_f import BOX, OneOverF, unit_noise
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import Box, PeriodicSkies
from cobaya_cnnlens.simulate.skies import scale_alm, unit_alm
from cobaya_cnnlens.simulate.tile_instrument import TileInstrument

GEOMETRY = PatchGeometry(n_pixels=64, size_deg=5.0, pad=4)
ISOTROPIC = OneOverF(knee=400.0, slope=3.0)
STRIPED = OneOverF(knee=400.0, slope=2.0, anisotropy=5.0, scan_deg=30.0)


@pytest.mark.parametrize("excess", [ISOTROPIC, STRIPED])
def test_noise_has_the_power_of_the_formula(excess):
    """Cell by cell, Δ² n⁻² ⟨|f_l|²⟩ = Δ²(1 + (l_knee/l_eff)^s), 400 draws: χ² of all modes, and the
    largest excess alone."""
    n, pixel, draws = 32, GEOMETRY.pixel, 400
    generator = np.random.default_rng(1)
    power = np.mean(
        [np.abs(np.fft.rfft2(excess.draw(n, pixel, generator))) ** 2 for _ in range(draws)], axis=0
    )
    ly, lx = mode_vectors(n, pixel)
    first = 2.0 * np.pi / (n * pixel)
    # Of the cell of each mode, without what lies below the first mode, on a finer grid.
    y, x = (np.indices((25, 25)).reshape(2, -1, 1, 1) - 12.0) / 25.0 * first
    ly, lx = ly + y, lx + x
    turn = np.radians(excess.scan_deg)
    along = lx * np.cos(turn) + ly * np.sin(turn)
    across = -lx * np.sin(turn) + ly * np.cos(turn)
    with np.errstate(divide="ignore"):
        effective = np.sqrt(along**2 + (across / excess.anisotropy) ** 2)
        expected = 1.0 + (excess.knee / effective) ** excess.slope
    expected = np.where(np.hypot(ly, lx) < first, 0.0, expected).mean(0)
    assert power[0, 0] < 1e-6
    # Columns whose modes are complex.
    ratio = power[:, 1:-1] / n**2 / expected[:, 1:-1]
    assert ratio.mean() == pytest.approx(1.0, abs=5 / np.sqrt(ratio.size * draws))
    assert np.std(ratio) == pytest.approx(1 / np.sqrt(draws), rel=0.15)
    at = np.unravel_index(np.argmax(expected[:, 1:-1]), ratio.shape)
    assert ratio[at] == pytest.approx(1.0, abs=4.5 / np.sqrt(draws))


def test_excess_by_direction():
    """Twice white at l_knee along the scan, and at a l_knee across it."""
    knee = np.array(400.0)
    east = OneOverF(400.0, 3.0, 5.0)
    assert east.ratio(0.0 * knee, knee) == 2.0
    assert east.ratio(5.0 * knee, 0.0 * knee) == 2.0
    north = OneOverF(400.0, 3.0, 5.0, scan_deg=90.0)
    assert north.ratio(knee, 0.0 * knee) == pytest.approx(2.0, rel=1e-12)
    assert ISOTROPIC.mean_ratio(800.0) == pytest.approx(1 + 0.125, rel=1e-12)


def test_noise_of_a_patch_is_no_periodic_one():
    """Its covariance at each separation is the sum over the modes of the box it is cut from,
    C(r) = m⁻² Σ P_l e^{il·r}: from one edge to the other as well as between neighbours."""
    n = 16
    maps = unit_noise((6000, n, n), ISOTROPIC, GEOMETRY.pixel, np.random.default_rng(2))
    m = BOX * n
    power = np.zeros((m, m))
    power[:, : m // 2 + 1] = ISOTROPIC.cell_ratio(m, GEOMETRY.pixel)
    power[:, m // 2 + 1 :] = power[(-np.arange(m)) % m][:, m // 2 - 1 : 0 : -1]
    expected = np.fft.ifft2(power).real
    # The periodic one of the patch alone would have the same covariance at 15 and at 1.
    assert expected[0, 15] < 0.7 * expected[0, 1]
    for lag in (0, 1, 5, 15):
        pairs = maps[:, :, : n - lag] * maps[:, :, lag:]
        error = pairs.mean((1, 2)).std() / np.sqrt(len(maps))
        assert pairs.mean() == pytest.approx(expected[0, lag], abs=4 * error), lag


def test_noise_of_a_patch_is_that_of_a_sky():
    """Its power is that of noise of the stated spectrum on the sphere, from the first mode of the
    box on, cut at many places. With the power at the modes of the box, it was 1.4 times as large in
    the first bin."""
    flat = PatchGeometry(20.0, 64, pad=0)
    spectra = FlatSpectra(flat, Bins(9, 18, 6), cosine_mask(flat, 2.0))
    excess, generator = OneOverF(80.0, 2.5), np.random.default_rng(3)
    lmax = int(flat.nyquist)
    ell = np.arange(lmax + 1.0)
    factor = flat.pixel * np.sqrt(excess.mean_ratio(ell)) * (ell >= flat.fundamental / BOX)
    theta, phi = healpy.pix2ang(2, np.arange(48))
    centres = np.stack([theta, phi], axis=1)
    powers = []
    for _ in range(8):
        alm = np.array([scale_alm(unit_alm(lmax, generator), factor) for _ in range(2)])
        of_sky = cut(alm, lmax, centres, flat, 1)
        of_patches = unit_noise((2, 200, 64, 64), excess, flat.pixel, generator)
        pairs = (of_sky.real, of_sky.imag), of_patches
        modes = [e_and_b(spectra, *(m * spectra.mask for m in pair)) for pair in pairs]
        powers.append([np.mean([spectra.cross(m, m).mean(0) for m in each], 0) for each in modes])
    of_sky, of_patches = np.mean(powers, axis=0)
    error = np.std(powers, axis=0, ddof=1)[0] / np.sqrt(len(powers))
    np.testing.assert_allclose(of_patches, of_sky, atol=4.0 * error.max(), rtol=0.06)


def test_white_noise_is_drawn_as_it_was():
    """Without an excess, and of none: the products of years hold their noise."""
    one, two = (np.random.default_rng(4) for _ in range(2))
    found = draw_noise((2, 3, 8, 8), Instrument(2.0), GEOMETRY, one)
    level = np.float32(2.0 / (5.0 * 60 / 64))
    np.testing.assert_array_equal(found, two.standard_normal((2, 3, 8, 8), np.float32) * level)
    flat = OneOverF(0.0, 3.0).draw(64, GEOMETRY.pixel, np.random.default_rng(5))
    assert flat.std() == pytest.approx(1.0, rel=0.04)


def test_analytic_noise_has_the_excess():
    """White over B² times 1 + (l_knee/l)^s."""
    with_excess = polarisation_noise(Instrument(2.0, 1.5, one_over_f=ISOTROPIC), 1000)
    white = polarisation_noise(Instrument(2.0, 1.5), 1000)
    l = np.arange(1, 1001)
    np.testing.assert_allclose((with_excess / white)[1:], 1 + (400.0 / l) ** 3, rtol=1e-10)


def test_the_filter_knows_the_excess():
    """On a periodic patch of one depth it is C b/(C b² + N_l) mode by mode, N_l with the excess;
    E and B, and a white filter differs."""
    geometry = PatchGeometry(n_pixels=32, size_deg=5.0, pad=0)
    instrument = Instrument(5.0, 20.0, one_over_f=STRIPED)
    clee = 3e-4 / (1.0 + (np.arange(1200) / 500.0) ** 2)
    box = Box(geometry, instrument, 1100, border=0)
    rms = np.full((32, 32), instrument.noise_rms(geometry))
    data = np.random.default_rng(6).standard_normal((2, 32, 32))
    data = data[0] + 1j * data[1]
    filtered = WienerFilter(box, clee, clee, rms, 1e-10).filter(data, None)
    signal = np.interp(box.ell, np.arange(1200), clee)
    noise = np.radians(5.0 / 60) ** 2 * STRIPED.ratio(box.ly, box.lx)
    beam = instrument.beam(box.ell)
    expected = np.conj(box.turn) * np.fft.fft2(data) * signal * beam / (signal * beam**2 + noise)
    inside = box.band & (box.ell < 0.9 * geometry.nyquist)
    scale = np.abs(expected[inside]).max()
    np.testing.assert_allclose(filtered[inside], expected[inside], atol=1e-6 * scale)


def test_periodic_skies_draw_the_excess(fiducial):
    geometry = PatchGeometry(n_pixels=32, size_deg=5.0, pad=0)
    skies = PeriodicSkies(geometry, Instrument(3.0, one_over_f=ISOTROPIC), fiducial)
    generator = np.random.default_rng(7)
    power = np.mean([np.abs(np.fft.fft2(skies.noise(generator))) ** 2 for _ in range(400)], axis=0)
    l = 2 * np.pi * 2 / (32 * geometry.pixel)
    white = 2 * 32**2 * (3.0 / (5.0 * 60 / 32)) ** 2
    at = power[[2, 30, 0, 0], [0, 0, 2, 30]].mean()
    assert at == pytest.approx(white * (1 + (400.0 / l) ** 3), rel=0.12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knee": -1.0}, "knee is -1"),
        ({"slope": -3.0}, "slope is -3; it lies between 0 and 6"),
        ({"anisotropy": 0.5}, "anisotropy is 0.5; it lies between 1"),
    ],
)
def test_excesses_that_are_refused(change, message):
    with pytest.raises(InstrumentError, match=message):
        OneOverF(**{"knee": 200.0, "slope": 3.0, **change})


@pytest.fixture
def depth():
    """From 1 to 3 times a noise across the tile, with a hole."""
    rms = 0.4 * np.linspace(1.0, 3.0, 64)[None, :] * np.ones((64, 1))
    rms[30:33, 40:44] = np.inf
    return rms


def test_a_tile_draws_its_depth(depth):
    """rms(x) times noise of unit white level, pixel by pixel; nothing in the hole."""
    survey = Instrument(9.0, 1.4, one_over_f=ISOTROPIC, depth_ratio=3.0)
    tile = TileInstrument.of(survey, depth, GEOMETRY)
    noise = tile.draw(400, GEOMETRY, np.random.default_rng(8))
    white = unit_noise(noise.shape, ISOTROPIC, GEOMETRY.pixel, np.random.default_rng(8))
    seen = np.isfinite(depth)
    np.testing.assert_allclose(noise[..., seen], white[..., seen] * depth[seen], rtol=1e-5)
    assert (noise[..., ~seen] == 0).all()
    louder = Systematics(noise=0.2).of(tile)
    np.testing.assert_allclose(louder.noise_rms(GEOMETRY)[seen], 1.2 * depth[seen], rtol=1e-12)
    level = np.degrees(GEOMETRY.pixel) * 60 / np.sqrt(np.mean(depth[seen] ** -2.0))
    assert tile.noise_uk_arcmin == pytest.approx(level, rel=1e-12)
    even = tile.at_level(2.0)
    assert even == Instrument(2.0, 1.4, one_over_f=ISOTROPIC)


def test_a_tile_sees_the_sky(depth):
    """Beam, then noise; what is in the hole is gone, and with the same generator it is the same."""
    tile = TileInstrument.of(Instrument(1.0, 6.0), depth, GEOMETRY)
    sky = np.random.default_rng(9).standard_normal((2, 5, 72, 72))
    q, u = tile.observe(*sky, GEOMETRY, np.random.default_rng(10))
    noise = tile.draw(5, GEOMETRY, np.random.default_rng(10))
    for seen, maps, part in zip((q, u), sky, noise, strict=True):
        expected = convolve_beam(maps, Instrument(1.0, 6.0), GEOMETRY) + part
        expected[:, ~np.isfinite(depth)] = 0.0
        np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_tiles_that_are_refused(depth):
    for wrong, message in (
        (depth[:, 1:], "shape"),
        (np.where(depth > 1, -1.0, depth), "must be positive"),
        (np.where(depth > 1, np.nan, depth), "must be positive"),
        (np.full((64, 64), np.inf), "finite somewhere"),
    ):
        with pytest.raises(InstrumentError, match=message):
            TileInstrument.of(Instrument(), wrong, GEOMETRY)


def test_depths_of_tiles():
    """Level, seen share of the mask and area of holes; what reaches the edge is no hole."""
    rms = np.ones((3, 64, 64))
    rms[1, 20:24, 30:35] = np.inf
    rms[1] *= 2.0
    rms[2, :, :16] = np.inf
    rms[2, 40, 40] = np.inf
    mask = np.ones((64, 64))
    found = tile_depths(rms, mask, GEOMETRY)
    pixel = 5.0 / 64
    np.testing.assert_allclose(found.level, np.array([1.0, 2.0, 1.0]) * 60 * pixel, rtol=1e-12)
    np.testing.assert_allclose(found.holes, pixel**2 * np.array([0, 20, 1]), rtol=1e-12)
    np.testing.assert_allclose(found.seen, [1.0, 1 - 20 / 4096, 0.75 - 1 / 4096], rtol=1e-12)
    tapered = tile_depths(rms, cosine_mask(GEOMETRY, 1.0), GEOMETRY)
    assert tapered.seen[2] > found.seen[2]


def test_classes_of_tiles():
    """Every class is as narrow as asked, none but it could be: in all of the numbers."""
    generator = np.random.default_rng(11)
    depth = TileDepth(
        np.exp(generator.uniform(0.0, 1.1, 300)),
        generator.choice([1.0, 0.8], 300),
        generator.choice([0.0, 1.0], 300, p=[0.7, 0.3]),
    )
    found = depth_classes(depth, level=0.1)
    assert (np.diff(found.depth.level) >= 0).all()
    for c in range(found.label.max() + 1):
        of = found.label == c
        ratio = depth.level[of].max() / depth.level[of].min() - 1.0
        assert found.spread.level[c] == pytest.approx(ratio, abs=1e-12)
        assert ratio <= 0.1 + 1e-12
        assert np.ptp(depth.seen[of]) == found.spread.seen[c] == 0
        assert np.ptp(depth.holes[of]) == found.spread.holes[c] == 0
        mean = np.exp(np.log(depth.level[of]).mean())
        assert found.depth.level[c] == pytest.approx(mean, rel=1e-12)
        nearest = np.abs(np.log(depth.level[of] / mean)).min()
        chosen = found.typical[c]
        assert of[chosen]
        assert abs(np.log(depth.level[chosen] / mean)) == pytest.approx(nearest, abs=1e-12)
    # A range of e^1.1 in steps of 1.1 needs 12; complete linkage takes less than twice as many.
    assert found.label.max() + 1 <= 4 * 24
    alone = depth_classes(TileDepth(*(np.array([x]) for x in (1.0, 1.0, 0.0))))
    assert alone.label.tolist() == alone.typical.tolist() == [0]
    with pytest.raises(InstrumentError, match="spread 'level' is 0"):
        depth_classes(depth, level=0.0)
