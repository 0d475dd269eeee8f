"""The map of a survey: tiles that fill tapers, one map without seams, and what it says of itself.
Toy tiles of 20° with 64² pixels, whose Nyquist multipole is 576."""

from dataclasses import replace

import healpy
import numpy as np
import pytest
from astropy.io import fits

from cobaya_cnnlens.errors import ConfigError
from cobaya_cnnlens.maps.mosaic import Mosaic, Normalisation, bins_to, nside_for, pixels_within
from cobaya_cnnlens.maps.tiles import Footprint, Tile, choose_tiles, filling_tiles
from cobaya_cnnlens.simulate.bandpowers import Bins
from cobaya_cnnlens.simulate.instrument import cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry

SIDE, TAPER, N = 20.0, 2.0, 64
FLAT = PatchGeometry(SIDE, N, pad=0)
NSIDE, LMAX = 128, 480
BOX = np.radians([100.0, 160.0, -20.0, 40.0])  # longitudes, latitudes of the footprint


def sees(theta, phi):
    latitude = 0.5 * np.pi - theta
    return (phi > BOX[0]) & (phi < BOX[1]) & (latitude > BOX[2]) & (latitude < BOX[3])


@pytest.fixture(scope="module")
def centres():
    """Of tiles that do not overlap, and of those that fill their tapers."""
    footprint = Footprint.of(sees, SIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cobaya_cnnlens.maps.tiles.SHIFTS", 4)
        patch.setattr("cobaya_cnnlens.maps.tiles.TURNS", 12)
        own = choose_tiles(footprint, SIDE, TAPER, 0.6)
        return footprint, own, filling_tiles(footprint, own, SIDE, TAPER, 0.3)


def tile_at(number, centre, ivar=1.0):
    taper = cosine_mask(FLAT, TAPER)
    return Tile(number, centre, FLAT, taper, np.full((1, N, N), ivar, np.float32))


@pytest.fixture(scope="module")
def tiles(centres):
    _, own, filling = centres
    return [tile_at(i, centre) for i, centre in enumerate(np.concatenate([own, filling]))]


def uniform(tiles, response=1.0):
    """A normalisation of tiles that are all alike."""
    bins = bins_to(LMAX, FLAT)
    flat = np.full((1, bins.n_bins), response)
    return Normalisation(bins, np.zeros(len(tiles), int), flat, np.ones((1, bins.n_bins)))


def field(theta, phi):
    """A smooth κ, of multipoles to about 60."""
    return np.sin(31 * theta) * np.cos(23 * phi) + np.cos(12 * theta) + 0.5


def kappas(tiles, function=field):
    at = [tile.pointing for tile in tiles]
    return [function(p.theta, p.phi).reshape(N, N) * tiles[0].taper for p in at]


def test_further_tiles_fill_the_tapers_of_a_plan(centres):
    """Inside of the footprint nearly every point lies well within some tile; with the plan's alone,
    a third does not."""
    footprint, own, filling = centres
    theta, phi = healpy.pix2ang(footprint.nside, footprint.pixels)
    inside = (phi > BOX[0] + 0.1) & (phi < BOX[1] - 0.1)
    inside &= (0.5 * np.pi - theta > BOX[2] + 0.1) & (0.5 * np.pi - theta < BOX[3] - 0.1)
    alone = footprint.largest_taper(own, SIDE, TAPER)[inside]
    together = footprint.largest_taper(np.concatenate([own, filling]), SIDE, TAPER)[inside]
    print(
        alone.min(),
        (alone < 0.8).mean(),
        together.min(),
        (together < 0.8).mean(),
        len(own),
        len(filling),
    )
    assert (alone < 0.8).mean() > 0.2
    assert together.min() > 0.3
    assert (together < 0.8).mean() < 0.01


@pytest.mark.parametrize("function", [field, lambda theta, phi: np.full_like(theta, 0.7)])
def test_a_known_kappa_has_no_seams(tiles, function):
    """Across the edges of tiles κ̂ is the field itself, which the mask does not dampen."""
    mosaic = Mosaic.of(tiles, kappas(tiles, function), uniform(tiles), NSIDE)
    expected = function(*healpy.pix2ang(NSIDE, mosaic.pixels))
    well = mosaic.mask > 0.5
    np.testing.assert_allclose(mosaic.kappa[well], expected[well], atol=0.05)
    assert well.mean() > 0.8


def test_the_response_is_divided_out(tiles):
    half = [0.5 * kappa for kappa in kappas(tiles)]
    one = Mosaic.of(tiles, half, uniform(tiles, 0.5), NSIDE)
    other = Mosaic.of(tiles, kappas(tiles), uniform(tiles), NSIDE)
    np.testing.assert_allclose(one.kappa, other.kappa, rtol=1e-6)


def test_multipoles_beyond_the_largest_are_removed(tiles):
    normalisation = uniform(tiles)
    y = np.arange(N) * FLAT.pixel
    for ell, kept in ((4 * FLAT.fundamental, True), (1.15 * LMAX, False)):
        mode = np.cos(round(ell / FLAT.fundamental) * FLAT.fundamental * y)[:, None] + np.zeros(N)
        out = normalisation.normalised(mode, 0, FLAT)
        np.testing.assert_allclose(out, mode if kept else 0.0, atol=1e-9)


def test_deeper_tiles_count_more(tiles):
    """Of two tiles at one place, one with half of the noise of the other."""
    pair = [tiles[0], replace(tiles[0], number=1)]
    bins = bins_to(LMAX, FLAT)
    noise = np.array([[1.0], [2.0]]) * np.ones(bins.n_bins)
    normalisation = Normalisation(bins, np.array([0, 1]), np.ones((2, bins.n_bins)), noise)
    constant = [tiles[0].taper * value for value in (0.0, 3.0)]
    mosaic = Mosaic.of(pair, constant, normalisation, NSIDE)
    inner = mosaic.mask > 0.99
    # Weights of 2 : 1.
    np.testing.assert_allclose(mosaic.kappa[inner], 1.0, atol=0.01)
    np.testing.assert_allclose(mosaic.weight[inner], (1 / (2 / 3) + 1 / (4 / 3)) / 2, rtol=1e-6)


def test_the_map_is_empty_in_holes_and_goes_on_where_another_tile_sees(tiles):
    ivar = tiles[0].split_ivar.copy()
    ivar[:, 20:30, 20:30] = 0.0
    hole = replace(tiles[0], split_ivar=ivar)
    whole = np.isin(pixels_within(tiles[0], NSIDE)[0], pixels_within(hole, NSIDE)[0])
    missing = pixels_within(tiles[0], NSIDE)[0][~whole]
    area = len(missing) * healpy.nside2pixarea(NSIDE, degrees=True)
    assert area == pytest.approx((10 * SIDE / N) ** 2, rel=0.15)
    alone = Mosaic.of([hole], kappas([hole]), uniform([hole]), NSIDE)
    assert not np.isin(missing, alone.pixels).any()
    both = [hole, replace(tiles[0], number=1)]
    assert np.isin(missing, Mosaic.of(both, kappas(both), uniform(both), NSIDE).pixels).all()


def test_response_and_noise_are_those_of_tiles_of_one_depth(tiles):
    """Two classes of known R and N, of which one has four times the noise variance."""
    few = [tile_at(i, tiles[0].centre, 1.0 if i % 2 else 0.25) for i in range(4)]
    bins = Bins(9, 30, 3)
    truth = np.abs(np.random.default_rng(1).standard_normal((50, 4, 3))) + 1.0
    response = np.where(np.arange(4) % 2, 0.8, 0.4)[:, None]
    noise = np.where(np.arange(4) % 2, 0.5, 2.0)[:, None]
    auto = response**2 * (truth + noise)
    made = Normalisation.of(few, bins, auto, response * truth, truth)
    np.testing.assert_allclose(made.response[made.label], np.broadcast_to(response, (4, 3)))
    np.testing.assert_allclose(made.noise[made.label], np.broadcast_to(noise, (4, 3)))
    np.testing.assert_allclose(made.relative_noise, noise[:, 0] / 1.25)
    low = np.array([1.0, 1.0, 0.01])
    with pytest.raises(ConfigError, match=r"--lmax 99: the response .* give --lmax 69 or less"):
        Normalisation.of(few, bins, auto, low * truth, truth)


def test_the_file_says_what_it_is(tiles, tmp_path):
    mosaic = Mosaic.of(tiles, kappas(tiles), uniform(tiles), NSIDE)
    columns = {"KAPPA": mosaic.kappa, "MASK": mosaic.mask}
    table = {"L": np.array([50.0, 80.0]), "T_L": np.array([1.0, 0.99])}
    mosaic.write(tmp_path / "m.fits", "G", columns, table, L_MAX=float(LMAX))
    header = fits.getheader(tmp_path / "m.fits", 1)
    expected = {
        "COORDSYS": "G",
        "ORDERING": "RING",
        "NSIDE": NSIDE,
        "TTYPE2": "KAPPA",
        "L_MAX": LMAX,
    }
    assert {key: header[key] for key in expected} == expected
    kappa, mask = healpy.read_map(tmp_path / "m.fits", field=(0, 1))
    seen = kappa != healpy.UNSEEN
    np.testing.assert_array_equal(np.flatnonzero(seen), mosaic.pixels)
    np.testing.assert_allclose(kappa[seen], mosaic.kappa, rtol=1e-6)
    np.testing.assert_allclose(mask[seen], mosaic.mask, rtol=1e-6)
    with fits.open(tmp_path / "m.fits") as file:
        np.testing.assert_array_equal(file["SPECTRA"].data["T_L"], table["T_L"])


@pytest.mark.parametrize("lmax", [20, 540, 5000])
def test_multipoles_that_a_tile_does_not_have_are_refused(lmax):
    with pytest.raises(ConfigError, match=f"--lmax {lmax}: give a multipole from 72 to 524"):
        bins_to(lmax, FLAT)


def test_bins_end_at_the_largest_multipole_and_pixels_resolve_it():
    assert bins_to(LMAX, FLAT).edges[-1] == LMAX
    assert (nside_for(2000), nside_for(2048), nside_for(2049)) == (1024, 1024, 2048)
