"""A user's survey: footprints become tiles, maps the tiles' Q and U, those κ̂, and wrong input one
clear error. Toy pixels: tiles of 20° with 32² pixels, whose Nyquist multipole is 288."""

import importlib.util
import shutil
from dataclasses import replace

import healpy
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import ConfigError, MapError, ProductError
from cobaya_cnnlens.maps import cutting, grids, reconstruction, tiles
from cobaya_cnnlens.maps.cutting import cut, fill
from cobaya_cnnlens.maps.grids import HealpixGrid, read_sky
from cobaya_cnnlens.maps.job import Job
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.plan import array_path, make_plan, read_plan
from cobaya_cnnlens.maps.reconstruction import TileReconstruction
from cobaya_cnnlens.maps.survey_files import Sources
from cobaya_cnnlens.maps.tile_maps import TileMaps
from cobaya_cnnlens.maps.tiles import Footprint, Tile, choose_tiles
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.plots.survey_figure import plan_figure
from cobaya_cnnlens.reconstruct.refined import RefiningUNet
from cobaya_cnnlens.simulate.instrument import ARCMIN, cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry, point_patches, polarisation_at
from cobaya_cnnlens.simulate.skies import unit_alm
from cobaya_cnnlens.simulate.tiling import (
    largest_overlap,
    project,
    ring_centres,
    rings,
    unit_vectors,
)

from ..conftest import REPOSITORY

NSIDE, LMAX = 256, 230
SIDE, TAPER = 20.0, 2.0
GEOMETRY = PatchGeometry(SIDE, 32)
LEVEL = 60.0  # µK-arcmin
THETA, PHI = healpy.pix2ang(NSIDE, np.arange(12 * NSIDE**2))
LATITUDE, LONGITUDE = 90.0 - np.degrees(THETA), np.degrees(PHI)
CORNERS = (100.0, 160.0, -20.0, 40.0)  # longitudes, latitudes of the footprint
HOLES = np.array([[112.0, -5.0], [131.0, 12.0], [148.0, 5.0]])  # longitude, latitude
RADIUS = 1.2
car = pytest.mark.skipif(importlib.util.find_spec("pixell") is None, reason="CAR maps need pixell")


def sees(theta, phi):
    """The footprint, a box without three holes."""
    west, east, south, north = np.radians(CORNERS)
    inside = (phi > west) & (phi < east) & (0.5 * np.pi - theta > south)
    inside &= 0.5 * np.pi - theta < north
    for lon, lat in np.radians(HOLES):
        cosine = np.cos(theta) * np.sin(lat) + np.sin(theta) * np.cos(lat) * np.cos(phi - lon)
        inside &= cosine < np.cos(np.radians(RADIUS))
    return inside


SEEN = sees(THETA, PHI)
AREA = healpy.nside2pixarea(NSIDE)


@pytest.fixture(scope="module", autouse=True)
def few_turns():
    """Tiles are chosen among fewer places, in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SHIFTS", 4)
        patch.setattr(tiles, "TURNS", 12)
        yield


@pytest.fixture(scope="module")
def elm():
    alm = unit_alm(LMAX, np.random.default_rng(3)) * 3e-2
    alm[[0, 1, LMAX + 1]] = 0
    return alm


def write(path, planes, units=None, **cards):
    names = ["Q_STOKES", "U_STOKES"] if len(planes) == 2 else ["W"]
    healpy.write_map(
        path, planes, column_names=names, column_units=units, overwrite=True, dtype=np.float64
    )
    with fits.open(path, mode="update") as file:
        for key, value in cards.items():
            file[1].header[key] = value
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory, elm):
    """Two splits, of twice and of three times the coadd's variance at the footprint's south and
    of much less at its north, NaN or UNSEEN where the mask is shut, with their inverse variance."""
    folder = tmp_path_factory.mktemp("survey")
    q, u = healpy.alm2map_spin([elm, np.zeros_like(elm)], NSIDE, 2, LMAX)
    ivar = AREA / (LEVEL * ARCMIN) ** 2 * np.where(LATITUDE > 10.0, 4.0, 1.0)
    generator = np.random.default_rng(4)
    found = {"mask": write(folder / "mask.fits", [SEEN.astype(float)])}
    for i, (share, unseen) in enumerate(((1 / 3, np.nan), (2 / 3, healpy.UNSEEN))):
        noise = generator.standard_normal((2, len(q))) / np.sqrt(share * ivar)
        planes = [np.where(SEEN, m + n, unseen) for m, n in zip((q, u), noise, strict=True)]
        found[f"map{i}"] = write(folder / f"map{i}.fits", planes, "uK")
        found[f"ivar{i}"] = write(folder / f"ivar{i}.fits", [share * ivar * SEEN])
        clean = [np.where(SEEN, m, unseen) for m in (q, u)]
        found[f"clean{i}"] = write(folder / f"clean{i}.fits", clean, "uK")
    return found


def sources(files, maps="map", **changes):
    given = Sources(
        (files[f"{maps}0"], files[f"{maps}1"]), files["mask"], (files["ivar0"], files["ivar1"])
    )
    return replace(given, **changes)


@pytest.fixture(scope="module")
def plan(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "toy.yaml"
    return make_plan(path, sources(files), GEOMETRY, TAPER)


# Tiles


def test_rings_at_any_place_do_not_overlap():
    """Nor do rings turned about the pole; and one of the places is as full as that of a sky."""
    counts = []
    for shift in (0.0, 0.3, 0.6):
        found = rings(SIDE, shift)
        counts.append(sum(map(len, found)))
        turned = [ring + np.array([0.0, 0.1 * i]) for i, ring in enumerate(found)]
        assert largest_overlap(np.concatenate(turned), SIDE) < 1e-3
    assert max(counts) >= 0.95 * len(ring_centres(SIDE))


def test_a_footprint_that_is_a_tile_holds_that_tile():
    """A patch's own outline, anywhere along a ring: kept whole, to a tenth of its side, and no
    second one beside it."""
    ring = rings(SIDE, 0.25)[3]
    centre = ring[2] + np.array([0.0, 5 / 12 * 2 * np.pi / len(ring)])

    def inside(theta, phi):
        points = unit_vectors(np.stack([theta, phi], axis=1))
        x, y = project(points, centre)
        half = np.radians(0.5 * SIDE)
        return (
            (np.abs(x) < half) & (np.abs(y) < half) & (points @ unit_vectors(centre[None])[0] > 0)
        )

    found = choose_tiles(Footprint.of(inside, SIDE), SIDE, TAPER, 0.6)
    np.testing.assert_allclose(found, [centre], atol=1e-9)


def test_the_seen_fraction_is_that_of_the_mask(plan):
    """By points of the footprint as by the tile's own pixels, which the holes and edges take."""
    by_points = plan.footprint.fractions(plan.centres, SIDE, TAPER)
    by_pixels = [tile.seen_fraction for tile in plan.tiles]
    np.testing.assert_allclose(by_points, by_pixels, atol=0.05)
    assert min(by_pixels) >= 0.6
    assert min(by_pixels) < 0.97


def test_tiles_lie_in_the_footprint_side_by_side(plan):
    assert largest_overlap(plan.centres, SIDE) < 1e-3
    # 60° × 60° less the sphere's curvature hold three rows of two or three.
    assert len(plan.tiles) >= 6
    assert plan.area_deg2 < plan.footprint.area_deg2
    assert plan.footprint.area_deg2 == pytest.approx(
        SEEN.sum() * np.degrees(np.degrees(AREA)), rel=0.02
    )


def test_a_tile_knows_its_depth_holes_and_weight(plan):
    """Closed forms: the noise of a pixel is its level over its side; a quarter of the variance
    north of 10°; each hole is a hole of one tile, and hides the pixels that it touches."""
    for tile in plan.tiles:
        at = tile.pointing
        north = (0.5 * np.pi - at.theta > np.radians(12.0)).reshape(32, 32)
        south = (0.5 * np.pi - at.theta < np.radians(8.0)).reshape(32, 32)
        for where, level in ((north, 0.5 * LEVEL), (south, LEVEL)):
            rms = tile.rms[tile.seen & where]
            np.testing.assert_allclose(rms, level * ARCMIN / GEOMETRY.pixel, rtol=1e-4)
            of_split = tile.split_rms(1)[tile.seen & where]
            np.testing.assert_allclose(of_split, np.sqrt(1.5) * rms, rtol=1e-4)
        assert np.isinf(tile.rms[~tile.seen]).all()
        np.testing.assert_array_equal(tile.mask, cosine_mask(GEOMETRY, TAPER) * tile.seen)
        assert 0.5 * LEVEL * 0.999 < tile.depth < LEVEL * 1.001
        centres_seen = sees(at.theta, at.phi % (2 * np.pi)).reshape(32, 32)
        # Stricter than the pixels' centres, by the pixels that an edge crosses.
        assert not (tile.seen & ~centres_seen).any()
        assert (centres_seen & ~tile.seen).sum() < 0.15 * 32**2
    assert sum(int(tile.holes.max()) for tile in plan.tiles) == 3
    # A hole's size, one pixel more on every side at most.
    hidden = sum(int((tile.holes > 0).sum()) for tile in plan.tiles)
    one = np.pi * RADIUS**2 / (SIDE / 32) ** 2
    assert 3 * one < hidden < 3 * np.pi * (RADIUS + SIDE / 32) ** 2 / (SIDE / 32) ** 2


def test_the_weight_counts_modes():
    """Of half a patch, half; of a whole one, one, whatever its depth."""
    taper, flat = cosine_mask(GEOMETRY, TAPER), replace(GEOMETRY, pad=0)
    ivar = np.ones((2, 32, 32))
    whole = Tile(0, np.array([1.0, 0.0]), flat, taper, 7.0 * ivar)
    assert whole.weight == pytest.approx(1.0)
    ivar[1, :16] = 0.0  # one split does not see it
    half = replace(whole, split_ivar=ivar)
    assert half.weight == pytest.approx(0.5)
    assert half.seen_fraction == pytest.approx(0.5)


def test_a_plan_is_read_as_it_was_made(plan, files, tmp_path):
    read = read_plan(plan.path)
    assert read.identity == plan.identity
    assert read.sources == plan.sources
    np.testing.assert_array_equal(read.centres, plan.centres)
    for a, b in zip(read.tiles, plan.tiles, strict=True):
        np.testing.assert_array_equal(a.split_ivar, b.split_ivar)
        assert a.summary() == b.summary()
    # Made again, wherever: the same bytes of what it says.
    again = make_plan(tmp_path / "toy.yaml", sources(files), GEOMETRY, TAPER)
    assert again.path.read_bytes() == plan.path.read_bytes()
    # Another threshold, depth or mask is another plan.
    others = [
        make_plan(tmp_path / "other.yaml", sources(files), GEOMETRY, TAPER, 0.95),
        make_plan(tmp_path / "other.yaml", sources(files, ivar=(), level="60"), GEOMETRY, TAPER),
    ]
    assert len({plan.identity, *(other.identity for other in others)}) == 3
    assert len(others[0].tiles) < len(plan.tiles)


def copied(plan, folder):
    for path in (plan.path, array_path(plan.path)):
        shutil.copy(path, folder / path.name)
    path = folder / plan.path.name
    return path, yaml.safe_load(path.read_text())


def test_tiles_may_be_taken_out_of_a_plan_and_not_moved(plan, tmp_path):
    path, content = copied(plan, tmp_path)
    taken = content["tiles"].pop(1)
    path.write_text(yaml.safe_dump(content))
    read = read_plan(path)
    assert [tile.number for tile in read.tiles] == [0, *range(2, len(plan.tiles))]
    assert read.identity == plan.identity
    for change, message in (
        ({"latitude": taken["latitude"] + 1}, r"toy.yaml: tile 1 was changed: latitude"),
        ({"tile": 99}, "holds a tile 99"),
        ({"tile": 0}, "tile 0 was changed"),
    ):
        wrong = {**content, "tiles": [*content["tiles"], {**taken, **change}]}
        path.write_text(yaml.safe_dump(wrong))
        with pytest.raises(ConfigError, match=message):
            read_plan(path)
    path.write_text(yaml.safe_dump({**content, "tiles": content["tiles"][:1] * 2}))
    with pytest.raises(ConfigError, match="holds a tile twice"):
        read_plan(path)
    content["recipe"]["seen"] = 0.1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ProductError, match="seen"):
        read_plan(path)
    for text in ("no: plan", "[", "tiles: 3\nrecipe: {}\nsources: {maps: x}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no plan of a survey"):
            read_plan(path)


def test_the_figure_shows_the_tiles(plan):
    axis = plan_figure(plan).axes[0]
    [drawn] = [c for c in axis.collections if c.get_array() is not None]
    np.testing.assert_allclose(drawn.get_array(), [tile.depth for tile in plan.tiles])
    assert f"{len(plan.tiles)} tiles" in axis.get_title()
    assert "3 holes" in axis.get_title()
    # A tile lies at its longitude from the middle, by the label's words, east on the left.
    middle = float(axis.get_xlabel().split("− ")[1].split("°")[0])
    assert axis.xaxis_inverted()
    for tile, path in zip(plan.tiles, drawn.get_paths(), strict=True):
        latitude, longitude = 90 - np.degrees(tile.centre[0]), np.degrees(tile.centre[1])
        expected = [(longitude - middle) * np.cos(np.radians(latitude)), latitude]
        low, high = path.vertices.min(0), path.vertices.max(0)
        np.testing.assert_allclose(0.5 * (low + high), expected, atol=0.15 * SIDE)
        # Its whole side is drawn: along the meridian through its middle exactly.
        assert high[1] - low[1] == pytest.approx(SIDE, rel=0.15)
        assert high[1] - low[1] >= SIDE * 0.999


# Q and U


@pytest.fixture(scope="module")
def clean(files, tmp_path_factory):
    """The same survey of maps without noise, cut."""
    folder = tmp_path_factory.mktemp("clean")
    plan = make_plan(folder / "clean.yaml", sources(files, "clean"), GEOMETRY, TAPER)
    TileMaps(plan, folder / "clean").measure()
    return plan, folder / "clean"


def truth(elm, plan):
    p = polarisation_at(elm, LMAX, point_patches(plan.centres, plan.geometry))
    return p.reshape(-1, 32, 32)


def away(tile, steps):
    """Pixels so many from anything unseen, (n, n); the patch's own edge does not count."""
    from scipy.ndimage import binary_erosion

    return binary_erosion(tile.seen, np.ones((3, 3)), iterations=steps, border_value=1)


def test_patches_of_a_map_with_holes_are_the_skys(clean, elm):
    """Synthesis at the pixels of the same a_lm, though the map is NaN in holes and beyond: to 4% of
    the rms two pixels from them (a field with as much power at all scales; of the CMB's, see
    docs/survey.md), and better away."""
    plan, folder = clean
    p = truth(elm, plan)
    off = {2: [], 5: []}
    for found, true in zip(TileMaps(plan, folder).masked(), p, strict=True):
        tile = found.tile
        assert not (found.q[~tile.seen]).any()
        for steps, errors in off.items():
            inner = away(tile, steps) & (tile.taper > 0.1)
            made = (found.q + 1j * found.u)[inner] / tile.taper[inner]
            errors.append(np.std(made - true[inner]) / np.std(true))
    assert max(off[2]) < 0.05
    assert np.mean(off[5]) < 0.02


def test_a_smooth_sky_does_not_ring_at_holes(files, clean, elm, tmp_path):
    """Of a sky to l = 60 even the pixels beside a hole or the survey's edge are right; where maps
    simply end, the step there rings."""
    like, _ = clean
    smooth = healpy.almxfl(elm, (np.arange(LMAX + 1) <= 60).astype(float))
    q, u = healpy.alm2map_spin([smooth, np.zeros_like(smooth)], NSIDE, 2, LMAX)
    path = write(tmp_path / "smooth.fits", [np.where(SEEN, m, np.nan) for m in (q, u)], "uK")
    given = Sources((path,), files["mask"], level=str(LEVEL))
    plan = make_plan(tmp_path / "p.yaml", given, GEOMETRY, TAPER, like=like)
    TileMaps(plan, tmp_path / "out").measure()
    p = polarisation_at(smooth, LMAX, point_patches(plan.centres, plan.geometry))
    found = [
        ((m.q + 1j * m.u - t * m.tile.mask), m.tile.seen & ~away(m.tile, 1))
        for m, t in zip(
            TileMaps(plan, tmp_path / "out").masked(), p.reshape(-1, 32, 32), strict=True
        )
    ]
    beside = np.concatenate([difference[edge] for difference, edge in found])
    assert np.sqrt(np.mean(np.abs(beside) ** 2)) / np.std(p) < 0.05


def test_the_pixels_window_is_divided_out(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "_pixel_window", lambda path, grid, lmax: np.full(lmax + 1, 0.5))
    plan, folder = clean
    halved = replace(plan, sources=replace(plan.sources, pixel_window=True))
    TileMaps(halved, tmp_path).measure()
    pairs = zip(
        TileMaps(halved, tmp_path).masked(),
        TileMaps(plan, folder).masked(),
        strict=True,
    )
    for one, two in pairs:
        np.testing.assert_allclose(one.u, 2 * two.u, atol=1e-5 * two.u.std())


def test_filling_leaves_no_step(elm):
    """A hole in a smooth map is filled to a few per cent of what zeros leave; known pixels stay."""
    grid = HealpixGrid(64, "C")
    theta, phi = healpy.pix2ang(64, np.arange(grid.size))
    smooth = np.cos(3 * theta) * np.sin(2 * phi) + 0.5
    middle = healpy.ang2vec(1.2, 1.0)
    hole = healpy.query_disc(64, middle, np.radians(4.0))
    known = np.ones(grid.size, bool)
    known[hole] = False
    [filled] = fill(grid, [smooth], known, 8)
    np.testing.assert_allclose(filled[known], smooth[known], rtol=1e-6)
    assert np.abs(filled - smooth)[hole].max() < 0.05 * np.abs(smooth[hole]).max()
    # Beyond the reach it is zero.
    wide = healpy.query_disc(64, middle, np.radians(40.0))
    known[wide] = False
    [filled] = fill(grid, [smooth], known, 8)
    assert not filled[healpy.query_disc(64, middle, np.radians(25.0))].any()


def test_white_noise_of_a_map_is_white_noise_of_the_patches():
    """With the variance 1/(Δ² ρ) that the tile says, and no more at high multipoles: a_lm that go
    to the corner of the patches' modes do not alias."""
    generator = np.random.default_rng(5)
    grid = HealpixGrid(NSIDE, "C")
    noise = generator.standard_normal((2, grid.size))
    centres = np.radians([[t, p] for t in (50, 90, 130) for p in range(0, 360, 36)])
    flat = replace(GEOMETRY, pad=0)
    lmax = int(np.sqrt(2) * flat.nyquist)
    p = cut(grid.harmonics(*noise, lmax, 0), lmax, centres, flat)
    power = (np.abs(np.fft.fft2(p)) ** 2).mean(0) / 32**2 * flat.pixel**2 / (2 * AREA)
    l = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32))) * 2
    for low in (0.0, 0.25, 0.5, 0.75):
        ring = (l >= low) & (l < low + 0.25)
        error = 1 / np.sqrt(len(centres) * ring.sum())
        assert power[ring].mean() == pytest.approx(1.0, abs=4 * error + 0.01), low


def test_the_coadd_is_the_mean_by_inverse_variance(plan, clean, tmp_path):
    """Noise of the splits and of the coadd is what the tile says of each."""
    TileMaps(plan, tmp_path).measure()
    pairs = zip(TileMaps(plan, tmp_path).masked(), TileMaps(*clean).masked(), strict=True)
    ratios = {"coadd": [], 0: [], 1: []}
    for noisy, quiet in pairs:
        tile = noisy.tile
        inner = tile.mask > 0.1
        by = tile.mask[inner]
        ratios["coadd"].append(((noisy.q - quiet.q)[inner] / by / tile.rms[inner]).std())
        for split in (0, 1):
            noise = (noisy.split_u[split] - quiet.split_u[split])[inner] / by
            ratios[split].append((noise / tile.split_rms(split)[inner]).std())
    for name, found in ratios.items():
        # Of some 600 pixels of each of the tiles; the modes at Nyquist, 6% of 32², are not there.
        assert np.mean(found) == pytest.approx(0.97, abs=0.03), name


def test_cutting_resumes(plan, tmp_path, monkeypatch):
    """A split that is there is not cut again; one of another plan is refused, and so are maps that
    are not those of the plan."""
    TileMaps(plan, tmp_path).measure()
    TileMaps(plan, tmp_path).path(1).unlink()
    counted, original = [], cut
    monkeypatch.setattr(cutting, "cut", lambda *a: counted.append(1) or original(*a))
    TileMaps(plan, tmp_path).measure()
    TileMaps(plan, tmp_path).measure()
    assert len(counted) == 1
    changed = replace(plan, recipe={**plan.recipe, "seen": 0.7})
    with pytest.raises(ProductError, match="made from another configuration"):
        TileMaps(changed, tmp_path).measure()


def test_maps_that_changed_are_refused(files, tmp_path):
    moved = {key: shutil.copy(path, tmp_path) for key, path in files.items()}
    plan = make_plan(tmp_path / "p.yaml", sources(moved), GEOMETRY, TAPER)
    fits.setval(moved["map1"], "HISTORY", value="again", ext=1)
    with pytest.raises(MapError, match=r"map1\.fits: is not the file that .*p\.yaml was made from"):
        TileMaps(plan, tmp_path / "out").measure()


# κ̂


class Fake:
    """κ̂ that is Q over the noise, where something was seen."""

    def __init__(self):
        self.tiles = 0

    def reconstruct(self, q, u, rms):
        self.tiles += len(q)
        return np.where(np.isfinite(rms), q / rms, 0.0)


def toy_configuration(folder):
    """Of a refining network that changes nothing, on patches as the tiles here."""
    RefiningUNet(4).save(folder / "n.keras")
    content = yaml.safe_load((REPOSITORY / "training" / "config" / "test.yaml").read_text())
    return content | {
        "patch": {"size_deg": SIDE, "n_pixels": 32, "pad": 4},
        "instrument": {"noise_uk_arcmin": LEVEL, "beam_fwhm_arcmin": 1.0, "taper_deg": TAPER},
        "network": {"kind": "refined", "width": 4, "pretrained": str(folder / "n.keras")},
        "bandpowers": {"lmin": 18, "width": 60, "n_bins": 4},
        "products": str(folder / "products"),
        "centres": {"nside": 1, "poles": 4},
        "sky": {"lmax": 400, "band_limit": 280},
        "camb": {"lmax": 2600, "lens_potential_accuracy": 1},
        "derivatives": {"kk_edges": [2, 100, 281], "ee_edges": [2, 200, 400], "step": 0.1},
        "surveys": {"fiducial": {"omch2": 0.1185}},
        "training": {"phases": [{"steps": 10, "batch": 2, "learning_rate": 1e-3}]},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(toy_configuration(folder)))
    return path, Run(load_config(path))


def test_every_tile_is_reconstructed_with_its_own_noise(plan, run, tmp_path, monkeypatch):
    """κ̂ is told the coadd's rms; bandpowers are of κ̂; a killed run goes on where it was; two jobs
    make the same file; the image lies where the tile does."""
    setup, fake = MapSetup.of_run(run[1]), Fake()
    products = TileReconstruction(plan, setup, tmp_path)
    monkeypatch.setattr(reconstruction, "check", lambda *_: [])
    TileReconstruction(plan, setup, tmp_path).measure(lambda: fake)
    assert fake.tiles == len(plan.tiles)
    whole = TileReconstruction(plan, setup, tmp_path).read()
    assert whole.power.shape[0] == len(plan.tiles)
    cut = list(TileMaps(plan, tmp_path).masked())
    for i, (tile, maps) in enumerate(zip(plan.tiles, cut, strict=True)):
        tile_bandpowers = TileReconstruction(plan, setup, tmp_path).read_tile(tile)
        expected = np.where(tile.seen, maps.q / tile.rms, 0.0)
        np.testing.assert_allclose(tile_bandpowers["kappa"], expected, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(whole.auto[i], setup.spectra.auto(expected[None])[0], rtol=1e-4)
        image = products.image_path(tile)
        np.testing.assert_allclose(
            fits.getdata(image)[:, ::-1], tile_bandpowers["kappa"], rtol=1e-6
        )
        longitude, latitude = WCS(fits.getheader(image)).wcs_pix2world(15.5, 15.5, 0)
        np.testing.assert_allclose(
            [longitude, latitude],
            [np.degrees(tile.centre[1]) % 360, 90 - np.degrees(tile.centre[0])],
            atol=1e-6,
        )
    products.tile_path(plan.tiles[2]).unlink()
    TileReconstruction(plan, setup, tmp_path).measure(lambda: fake)
    assert fake.tiles == len(plan.tiles) + 1
    # Another estimator's κ̂ is not taken for this one's.
    other = replace(setup, recipe={**setup.recipe, "network": "b" * 64})
    with pytest.raises(ProductError, match=r"estimator\.network"):
        TileReconstruction(plan, other, tmp_path).measure(lambda: fake)
    jobs = replace(TileReconstruction(plan, setup, tmp_path), folder=tmp_path / "jobs")
    for number in (1, 2):
        made = fake.tiles
        jobs.measure(lambda: fake, job=Job(number, 2))
        assert fake.tiles - made == len(plan.tiles[number - 1 :: 2])
    assert not jobs.path.exists()
    assert (
        jobs.measure(lambda: pytest.fail("all tiles are there")).read_bytes()
        == (tmp_path / "bandpowers.h5").read_bytes()
    )


def test_from_maps_to_kappa_by_commands(files, run, tmp_path, monkeypatch):
    """`survey plan` and `survey reconstruct` with a refining network that changes nothing: the most
    probable lensing under each tile's noise."""
    from cobaya_cnnlens.reconstruct.features import PASSES
    from cobaya_cnnlens.reconstruct.map_lensing import MAPLensing

    path = tmp_path / "plan.yaml"
    result = CliRunner().invoke(
        app,
        [
            *("survey", "plan", files["map0"], files["map1"], "--mask", files["mask"]),
            *("--ivar", files["ivar0"], "--ivar", files["ivar1"], "--out", str(path)),
            *("--patch-deg", "20", "--patch-pixels", "32", "--taper", "2"),
        ],
    )
    assert result.exception is None, result.exception
    assert "tiles, " in result.output
    assert path.with_suffix(".png").exists()
    content = yaml.safe_load(path.read_text())
    content["tiles"] = content["tiles"][:2]
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(reconstruction, "check", lambda *_: ["turned"])
    result = CliRunner().invoke(
        app, ["survey", "reconstruct", str(path), "--config", str(run[0]), "--out", str(tmp_path)]
    )
    assert result.exception is None, result.exception
    assert f"warning: {path}: turned" in result.output
    plan, made = read_plan(path), run[1]
    ascent = MAPLensing(
        made.config.patch, made.config.instrument, made.mask, made.spectra(), PASSES
    )
    setup = MapSetup.of_run(made)
    assert TileReconstruction(plan, setup, tmp_path).read().warnings == ("turned",)
    for maps in TileMaps(plan, tmp_path).masked():
        expected = made.mask * ascent.reconstruct(maps.q[None], maps.u[None], maps.tile.rms)[0]
        kappa = TileReconstruction(plan, setup, tmp_path).read_tile(maps.tile)["kappa"]
        np.testing.assert_allclose(kappa, expected, atol=5e-3 * expected.std())


def test_maps_that_no_instrument_gives_are_refused(plan, run, tmp_path):
    """The toy's Q and U are no CMB's."""
    with pytest.raises(MapError, match=r"toy\.yaml: in .*, more than any instrument is off"):
        TileReconstruction(plan, MapSetup.of_run(run[1]), tmp_path).measure(Fake)
    assert not (tmp_path / "tiles").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "training/config/resunet_1uk.yaml"], "'network.kind' is not 'refined'"),
        (["--release", "refined_fiducial"], "planned with --patch-deg 20, .*with 5; plan again"),
        ([], "give either --release NAME or --config FILE"),
    ],
)
def test_an_estimator_that_does_not_fit_is_refused(plan, arguments, message, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    result = CliRunner().invoke(app, ["survey", "reconstruct", str(plan.path), *arguments])
    assert isinstance(result.exception, ConfigError), result.exception
    with pytest.raises(ConfigError, match=message):
        raise result.exception


# Wrong input


def test_an_assumed_frame_stays_a_warning_of_the_plan(plan, files, tmp_path):
    """Where COORDSYS is missing, in whichever file; it is read with the plan."""
    [warning, *_] = read_plan(plan.path).warnings
    assert "no COORDSYS in its header: taken as equatorial" in warning
    known = {key: shutil.copy(path, tmp_path) for key, path in files.items()}
    for path in known.values():
        fits.setval(path, "COORDSYS", value="C", ext=1)
    made = make_plan(tmp_path / "p.yaml", sources(known), GEOMETRY, TAPER)
    assert "COORDSYS" not in " ".join(read_plan(made.path).warnings)
    fits.delval(known["ivar1"], "COORDSYS", ext=1)
    made = make_plan(tmp_path / "p.yaml", sources(known), GEOMETRY, TAPER)
    assert "COORDSYS" in " ".join(made.warnings)


def test_a_map_that_is_zero_beyond_its_footprint(files, plan, tmp_path):
    """Without a mask, of a level alone, has the footprint of one that is NaN there, holes too."""
    q, u = healpy.read_map(files["map0"], field=(0, 1))
    zeros = [np.where(SEEN, m, 0.0) for m in (q, u)]
    path = write(tmp_path / "zero.fits", zeros, "uK")
    made = make_plan(tmp_path / "p.yaml", Sources((path,), level="60"), GEOMETRY, TAPER)
    np.testing.assert_array_equal(made.centres, plan.centres)
    for one, two in zip(made.tiles, plan.tiles, strict=True):
        np.testing.assert_array_equal(one.seen, two.seen)


def refused(given, message, **options):
    with pytest.raises((MapError, ConfigError), match=message):
        make_plan("/dev/null/plan.yaml", given, GEOMETRY, TAPER, **options)


def test_a_mask_of_another_shape(files, tmp_path):
    mask = write(tmp_path / "m.fits", [np.ones(12 * 64**2)])
    refused(sources(files, mask=mask), r"map0\.fits: HEALPix nside 256, and .*m\.fits is .*side 64")
    mask = write(tmp_path / "m.fits", [1.0 * SEEN], COORDSYS="G")
    refused(sources(files, mask=mask), r"of other coordinates .*map0\.fits has no COORDSYS")
    mask = write(tmp_path / "m.fits", [2.0 * SEEN])
    refused(sources(files, mask=mask), r"m\.fits: a mask of values from 0 to 2")
    mask = write(tmp_path / "m.fits", [0.0 * SEEN])
    refused(sources(files, mask=mask), "nothing was seen where the mask is open")
    both = write(tmp_path / "m.fits", [1.0 * SEEN, 1.0 * SEEN])
    refused(sources(files, mask=both), "it must hold one plane")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "1 pixels of the inverse variance are negative, the first"),
        (np.nan, "1 pixels of the inverse variance are not finite, the first"),
    ],
)
def test_inverse_variance_that_is_none(files, tmp_path, value, message):
    ivar = 1.0 * SEEN
    ivar[np.flatnonzero(SEEN)[1000]] = value
    path = write(tmp_path / "w.fits", [ivar])
    refused(sources(files, ivar=(files["ivar0"], path)), rf"w\.fits: {message} number .*; write 0")
    # Unseen pixels as HEALPix marks them are none of these.
    ivar = np.where(SEEN, 1.0, healpy.UNSEEN)
    path = write(tmp_path / "w.fits", [ivar])
    made = make_plan(tmp_path / "p.yaml", sources(files, ivar=(path,)), GEOMETRY, TAPER)
    expected = np.sqrt(AREA) / ARCMIN
    assert made.tiles[0].depth == pytest.approx(expected, rel=1e-4)


def test_units(files, tmp_path):
    """Missing, given, and of the inverse variance: the same plan in K as in µK."""
    q, u = healpy.read_map(files["map0"], field=(0, 1))
    bare = write(tmp_path / "bare.fits", [1e-6 * q, 1e-6 * u], "")
    for key in ("TUNIT1", "TUNIT2"):
        fits.setval(bare, key, value="", ext=1)
    one = replace(sources(files), maps=(bare,), ivar=(), level="60")
    refused(one, r"bare\.fits: no unit in TUNIT1 and TUNIT2; write the unit .*--unit")
    weight = 1e12 * healpy.read_map(files["ivar0"])
    ivar = write(tmp_path / "w.fits", [weight], "")
    fits.setval(ivar, "TUNIT1", value="", ext=1)
    in_k = make_plan(
        tmp_path / "k.yaml", replace(one, ivar=(ivar,), level=None, unit="K"), GEOMETRY, TAPER
    )
    in_uk = make_plan(
        tmp_path / "uk.yaml",
        replace(sources(files), maps=(files["map0"],), ivar=(files["ivar0"],)),
        GEOMETRY,
        TAPER,
    )
    assert in_k.tiles[0].depth == pytest.approx(in_uk.tiles[0].depth, rel=1e-5)
    said = write(tmp_path / "said.fits", [weight], "1/K^2")
    by_header = replace(sources(files), maps=(files["map0"],), ivar=(said,))
    made = make_plan(tmp_path / "h.yaml", by_header, GEOMETRY, TAPER)
    assert made.tiles[0].depth == pytest.approx(in_uk.tiles[0].depth, rel=1e-5)
    refused(replace(by_header, ivar=(ivar,)), r"w\.fits: gives noise of .* look at its unit")
    refused(replace(by_header, maps=(), ivar=(ivar,)), r"w\.fits: TUNIT1 is missing; .*--unit")
    refused(replace(one, unit="Jy"), "--unit Jy: give uK")


def test_splits_of_different_coverage(files, tmp_path):
    q, u = healpy.read_map(files["map1"], field=(0, 1))
    north = LATITUDE > 38.0
    part = write(tmp_path / "part.fits", [np.where(north, np.nan, m) for m in (q, u)], "uK")
    given = replace(sources(files), maps=(files["map0"], part))
    lacking = (north & SEEN).sum() / SEEN.sum()
    assert lacking > 0.01
    refused(given, rf"part\.fits: this split lacks {100 * lacking:.3g}% .*--mask of what all")
    copy = shutil.copy(files["map0"], tmp_path / "copy.fits")
    link = tmp_path / "link.fits"
    link.symlink_to(files["map0"])
    for again in (files["map0"], str(copy), str(link)):
        given = replace(sources(files), maps=(files["map0"], again))
        refused(given, "a map is given twice")


def test_a_footprint_too_small_for_a_tile(files, tmp_path):
    small = SEEN & (LATITUDE < -12.0)
    mask = write(tmp_path / "m.fits", [1.0 * small])
    refused(sources(files, mask=mask), r"too small or too ragged for a tile of 20 degrees: at best")


def test_depth_is_given_once(files):
    refused(sources(files, level="5"), "give either --ivar or --level")
    refused(sources(files, ivar=()), "give either --ivar or --level")
    refused(sources(files, ivar=(files["ivar0"],) * 3), "3 --ivar for 2 splits")
    refused(Sources(), "no map and no footprint")
    refused(sources(files, mask="gone.fits"), r"gone\.fits: no such file")
    refused(sources(files, ivar=(), level="1e9"), "--level 1e9: give the noise in µK-arcmin")
    refused(sources(files), "--seen 1.5: give a fraction", least=1.5)
    with pytest.raises(ConfigError, match="a plan is a YAML file"):
        make_plan("plan.txt", sources(files), GEOMETRY, TAPER)


def test_a_footprint_alone(files, tmp_path):
    """Has the same tiles, of the level that is given, and no maps to reconstruct."""
    alone = Sources(mask=files["mask"], level="7")
    plan = make_plan(tmp_path / "p.yaml", alone, GEOMETRY, TAPER)
    assert len(plan.tiles) >= 6
    assert plan.tiles[0].depth == pytest.approx(7.0, rel=1e-4)
    with pytest.raises(MapError, match="the plan of a footprint alone; plan again"):
        TileMaps(read_plan(plan.path), tmp_path / "out").measure()


def test_a_map_of_levels_is_a_depth(files, tmp_path):
    levels = write(tmp_path / "l.fits", [np.where(SEEN, 30.0, 0.0)])
    plan = make_plan(tmp_path / "p.yaml", sources(files, ivar=(), level=levels), GEOMETRY, TAPER)
    tile = plan.tiles[0]
    assert tile.depth == pytest.approx(30.0, rel=1e-4)
    # Of the coadd: two splits share it.
    np.testing.assert_allclose(tile.split_ivar[0], tile.split_ivar[1])


# CAR


def car_image(path, planes, step=0.25, **cards):
    """A plate carrée by astropy's own WCS, longitude to the left."""
    west, east, south, north = (CORNERS[0] - 1, CORNERS[1] + 1, CORNERS[2] - 1, CORNERS[3] + 1)
    nx, ny = round((east - west) / step), round((north - south) / step)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---CAR", "DEC--CAR"]
    wcs.wcs.crval = [0.5 * (west + east), 0.0]
    wcs.wcs.cdelt = [-step, step]
    wcs.wcs.crpix = [0.5 * nx + 0.5, 0.5 - south / step]
    y, x = np.mgrid[:ny, :nx]
    longitude, latitude = np.radians(wcs.wcs_pix2world(x.ravel(), y.ravel(), 0))
    values = planes(0.5 * np.pi - latitude, longitude % (2 * np.pi))
    image = fits.PrimaryHDU(np.reshape(values, (-1, ny, nx)).squeeze(), wcs.to_header())
    for key, value in cards.items():
        image.header[key] = value
    image.writeto(path, overwrite=True)
    return str(path)


@pytest.fixture(scope="module")
def car_files(tmp_path_factory, elm):
    folder = tmp_path_factory.mktemp("car")

    def polarisation(theta, phi):
        from cobaya_cnnlens.simulate.patches import Pointing

        p = polarisation_at(elm, LMAX, Pointing(theta, phi, np.zeros_like(theta)))
        return np.where(sees(theta, phi), [p.real, -p.imag], np.nan)

    return {
        "map": car_image(folder / "c.fits", polarisation, BUNIT="uK", POLCCONV="IAU"),
        "mask": car_image(folder / "m.fits", lambda *at: 1.0 * sees(*at)),
    }


def test_a_car_map_without_pixell(car_files, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        grids.importlib.util, "find_spec", lambda n: None if n == "pixell" else original(n)
    )
    with pytest.raises(MapError, match=r"m\.fits: a CAR map, .*pip install '\.\[survey\]'"):
        read_sky(car_files["mask"])


@car
def test_a_car_map_is_the_same_survey(car_files, clean, elm, tmp_path):
    """As the HEALPix map of the same sky: the same tiles, and their Q and U to 5% of the rms two
    pixels from what is not seen; by the convention of U that the header says."""
    given = Sources((car_files["map"],), car_files["mask"], level=str(LEVEL))
    other, folder = clean
    plan = make_plan(tmp_path / "car.yaml", given, GEOMETRY, TAPER, like=other)
    np.testing.assert_array_equal(plan.centres, other.centres)
    assert plan.identity != other.identity
    TileMaps(plan, tmp_path / "car").measure()
    pairs = zip(
        TileMaps(plan, tmp_path / "car").masked(),
        TileMaps(other, folder).masked(),
        strict=True,
    )
    for at, (one, two) in enumerate(pairs):
        inner = away(one.tile, 2) & away(two.tile, 2) & (one.tile.taper > 0.1)
        p, other_p = (m.q[inner] + 1j * m.u[inner] for m in (one, two))
        assert np.std(p - other_p) < 0.05 * np.std(p), at
        true = polarisation_at(elm, LMAX, point_patches([one.tile.centre], plan.geometry))
        true = (true.reshape(32, 32) * one.tile.taper)[inner]
        assert np.std(p - true) < 0.05 * np.std(true), at
        assert one.tile.depth == pytest.approx(LEVEL, rel=1e-4)


@car
def test_a_car_inverse_variance_counts_the_pixels_area(car_files, tmp_path):
    """Of white noise, the variance of a pixel falls as the pixels' area towards the poles."""
    step = np.radians(0.25)

    def ivar(theta, phi):
        area = 2.0 * step * np.sin(0.5 * step) * np.sin(theta)
        return area / (LEVEL * ARCMIN) ** 2 * sees(theta, phi)

    weight = car_image(tmp_path / "w.fits", ivar, BUNIT="uK^-2")
    given = Sources((car_files["map"],), car_files["mask"], (weight,))
    plan = make_plan(tmp_path / "p.yaml", given, GEOMETRY, TAPER)
    for tile in plan.tiles:
        np.testing.assert_allclose(tile.rms[tile.seen], LEVEL * ARCMIN / GEOMETRY.pixel, rtol=2e-3)


@car
def test_wrong_car_maps(car_files, files, tmp_path):
    bare = shutil.copy(car_files["map"], tmp_path / "bare.fits")
    fits.delval(bare, "POLCCONV")
    given = Sources((str(bare),), car_files["mask"], level="60")
    refused(given, r"bare\.fits: POLCCONV is missing; write IAU or COSMO")
    fits.setval(bare, "POLCCONV", value="IAU")
    fits.delval(bare, "BUNIT")
    refused(given, r"bare\.fits: no unit in BUNIT; .*--unit")
    refused(
        replace(given, unit="uK", mask=files["mask"]), "CAR 248 x 248 pixels of 15', and .*side"
    )
    coarse = car_image(tmp_path / "m.fits", lambda *at: 1.0 * sees(*at), step=0.5)
    refused(replace(given, unit="uK", mask=coarse), "CAR 248 x 248 .*is CAR 124 x 124")
    shifted = shutil.copy(car_files["mask"], tmp_path / "s.fits")
    fits.setval(shifted, "CRVAL1", value=131.0)
    refused(replace(given, unit="uK", mask=str(shifted)), r"of another header \(CRVAL")
    refused(
        replace(given, unit="uK", pixel_window=True), "--pixel-window is for HEALPix .*apply_window"
    )
    tan = shutil.copy(car_files["mask"], tmp_path / "t.fits")
    fits.setval(tan, "CTYPE1", value="RA---TAN")
    refused(replace(given, mask=str(tan)), r"t\.fits: CTYPE1 is 'RA---TAN'")
