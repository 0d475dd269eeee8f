"""One set of checks for the tiles of a survey: each with its own noise and holes, with faults
planted in all tiles or in one. tests/maps/test_maps.py has those of patches."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cobaya_cnnlens.errors import MapError
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.maps import reconstruction
from cobaya_cnnlens.maps.map_setup import MapSetup
from cobaya_cnnlens.maps.tile_maps import TilePatches
from cobaya_cnnlens.maps.tiles import Tile
from cobaya_cnnlens.simulate.instrument import cosine_mask
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import PeriodicSkies

LEVELS = (1.0, 1.5, 3.0, 5.0)  # µK-arcmin
PLAN = SimpleNamespace(path=Path("plan.yaml"), lmax=6500)


@pytest.fixture(scope="module")
def setup():
    return MapSetup.of_release(read_release("refined_fiducial"))


@pytest.fixture(scope="module")
def skies(setup):
    """Lensed and beamed Q + iU of patches without noise, (4, 128, 128)."""
    clear = replace(setup.instrument, noise_uk_arcmin=0.0)
    skies = PeriodicSkies(PatchGeometry(10.0, 256), clear, setup.theory)
    generator = np.random.default_rng(8)
    draws = [(skies.draw("e", generator), skies.draw("phi", generator)) for _ in LEVELS]
    return np.array([skies.lensed(*draw)[:128, :128] for draw in draws])


def tiles(setup, skies, change=None, of=slice(None), declared=1.0, holes=4):
    """Tiles with two splits of these skies and noise, of which ``change`` makes others for the
    tiles ``of``; the plan's noise is ``declared`` times theirs."""
    generator = np.random.default_rng(3)
    geometry = replace(setup.patch, pad=0)
    y, x = np.mgrid[:128, :128]
    taper, found = cosine_mask(geometry, setup.instrument.taper_deg), []
    wrong = np.zeros(len(LEVELS), bool)
    wrong[of] = True
    for number, (sky, level) in enumerate(zip(skies, LEVELS, strict=True)):
        ivar = np.full((2, 128, 128), 0.5 * (setup.patch.pixel / np.radians(level / 60)) ** 2)
        for cy, cx in generator.uniform(0, 128, (holes, 2)):
            ivar[:, (y - cy) ** 2 + (x - cx) ** 2 < 6.0] = 0.0
        seen = ivar > 0
        noise = generator.standard_normal((2, *ivar.shape))
        noise /= np.sqrt(np.where(seen, ivar, 1.0))
        p = sky + noise[0] + 1j * noise[1]
        if change is not None and wrong[number]:
            p = change(p)
        if wrong[number]:
            ivar /= declared**2
        tile = Tile(number, np.array([1.2, 0.1 * number]), geometry, taper, ivar)
        p = p * tile.mask
        found.append(TilePatches.of_splits(tile, p.real, p.imag))
    return found


def check(setup, maps):
    return reconstruction.check(PLAN, setup, maps)


def turned(angle):
    return lambda p: p * np.exp(2j * np.radians(angle))


FAULTS = {
    "U of the other sign": (np.conj, "the sign of U is the other one, .*POLCCONV"),
    "Q and U swapped": (lambda p: 1j * np.conj(p), "Q and U are swapped, .*exchange them"),
    "turned by 1 degree": (turned(1.0), r"the polarisation is turned by (0\.[89]|1\.[01])"),
    "turned by -30 degrees": (turned(-30.0), r"the polarisation is turned by -(29|30)\."),
    "in K": (lambda p: 1e-6 * p, "the rms of Q and U is .*look at their unit"),
    "gain of 1.4": (lambda p: 1.4 * p, "the power of E is (1.9|2)"),
}


@pytest.mark.parametrize("holes", [0, 8])
def test_tiles_as_they_should_be_raise_no_warning(setup, skies, holes):
    assert check(setup, tiles(setup, skies, holes=holes)) == []
    for one in tiles(setup, skies, holes=holes):
        assert check(setup, [one]) == []
    # The sign of both is a convention that no spectrum depends on.
    assert check(setup, tiles(setup, skies, np.negative)) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("of", "named"), [(slice(None), "all tiles"), ([1], "tile 1")], ids=["all", "one"]
)
def test_what_no_instrument_does_is_refused(setup, skies, fault, of, named):
    change, message = FAULTS[fault]
    with pytest.raises(MapError, match=rf"plan\.yaml: in {named} {message}"):
        check(setup, tiles(setup, skies, change, of))


@pytest.mark.parametrize(
    ("of", "named"), [(slice(None), "all tiles"), ([1], "tile 1")], ids=["all", "one"]
)
@pytest.mark.parametrize("declared", [1 / 3, 0.5, 2.0, 3.0])
def test_noise_that_is_not_the_plans_is_refused(setup, skies, declared, of, named):
    """3 µK-arcmin for 1, and 1 for 3."""
    maps = tiles(setup, skies, of=of, declared=declared)
    with pytest.raises(MapError, match=rf"in {named} the amplitude at the highest multipoles is"):
        check(setup, maps)


def test_what_is_suspicious_is_a_warning(setup, skies):
    [small] = check(setup, tiles(setup, skies, turned(0.35)))
    assert "the polarisation is turned by 0." in small
    noisy, *_ = check(setup, tiles(setup, skies, declared=1 / 1.25))
    assert "in all tiles the amplitude at the highest multipoles is 1.2" in noisy
    [noisy] = check(setup, tiles(setup, skies, of=[2], declared=1 / 1.3))
    assert "in tile 2 the amplitude at the highest multipoles is 1." in noisy
    [loud] = [w for w in check(setup, tiles(setup, skies, lambda p: 1.12 * p)) if "of E" in w]
    assert "in all tiles the power of E is 1.2" in loud


def test_b_of_an_unlensed_sky_is_no_fault_of_an_instrument(setup, skies):
    """A null test's maps pass with a warning; 64 times the power of B does not."""
    unlensed = replace(setup.theory, kk=np.zeros_like(setup.theory.kk))
    clear = replace(setup.instrument, noise_uk_arcmin=0.0)
    periodic = PeriodicSkies(PatchGeometry(10.0, 256), clear, unlensed)
    generator = np.random.default_rng(4)
    draws = [(periodic.draw("e", generator), periodic.draw("phi", generator)) for _ in LEVELS]
    flat = np.array([periodic.lensed(*draw)[:128, :128] for draw in draws])
    told = check(setup, tiles(setup, flat)[:2])
    assert "the power of B is 0." in " ".join(told)

    drawn = np.random.default_rng(6)

    def with_dust(p):
        """White B on top, below what an rms or the highest multipoles would tell."""
        modes = np.fft.fft2(drawn.standard_normal((2, 128, 128)))
        l = 2 * np.pi * np.hypot(*np.meshgrid(*[np.fft.fftfreq(128, setup.patch.pixel)] * 2))
        q, u = np.fft.ifft2(modes * (l < 2200)).real
        return p + 8.0 * (q + 1j * u)

    with pytest.raises(MapError, match=r"in all tiles the power of (E|B) is"):
        check(setup, tiles(setup, skies, with_dust))


def test_a_tile_of_which_little_was_seen_is_told(setup, skies):
    maps = tiles(setup, skies)
    ivar = maps[2].tile.split_ivar.copy()
    ivar[:, :, :120] = 0.0
    hidden = replace(maps[2].tile, split_ivar=ivar)
    q, u = (np.stack([m, m]) * hidden.mask for m in (maps[2].q, maps[2].u))
    maps[2] = TilePatches.of_splits(hidden, q, u)
    [told] = check(setup, maps)
    assert "too little was seen of tile 2 to check its Q and U" in told


def test_the_same_tile_twice_is_refused(setup, skies):
    maps = tiles(setup, np.stack([skies[0], skies[1], skies[1], skies[2]]))
    with pytest.raises(MapError, match="tiles 1 and 2 hold the same sky"):
        check(setup, maps)


def test_coarse_maps_are_told(setup, skies):
    coarse = SimpleNamespace(path=PLAN.path, lmax=4096)
    [told] = reconstruction.check(coarse, setup, tiles(setup, skies))
    assert "the maps end at l = 4096" in told
    # Of those that end below a patch's own multipoles the rms is checked alone.
    coarse.lmax = 300
    ends, little = reconstruction.check(coarse, setup, tiles(setup, skies))
    assert "the maps end at l = 300" in ends
    assert "too little was seen of all tiles to check its Q and U" in little
    with pytest.raises(MapError, match=r"in all tiles the rms of Q and U is .*look at their unit"):
        reconstruction.check(coarse, setup, tiles(setup, skies, lambda p: 1e6 * p))
