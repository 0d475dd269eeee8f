import numpy as np
import pytest

from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.simulate.patches import PatchGeometry, point_patch
from cobaya_cnnlens.simulate.tiling import (
    _edge,
    largest_overlap,
    project,
    ring_centres,
    unit_vectors,
)


def test_rings_do_not_overlap_and_fill_the_sky():
    centres = ring_centres(5.0)
    assert largest_overlap(centres, 5.0) < 1e-4
    # Patches of 25 square degrees: nine tenths of the sky lie in one.
    assert len(centres) * 25.0 > 0.88 * 41253


def test_crowded_patches_overlap():
    """The check sees what it is for: a ring of two patches too many, and two patches 4.9° apart."""
    centres = ring_centres(5.0)
    equator = centres[np.isclose(centres[:, 0], np.pi / 2)]
    n = len(equator) + 2
    crowded = np.stack([np.full(n, np.pi / 2), 2 * np.pi * np.arange(n) / n], axis=1)
    assert largest_overlap(crowded, 5.0) > 0.04
    apart = np.array([[1.2, 0.0], [1.2 + np.radians(4.9), 0.0]])
    assert largest_overlap(apart, 5.0) == pytest.approx(0.1, abs=5e-3)


def test_edges_are_those_of_the_patches_pixels():
    """Corner pixels of a patch lie half a pixel inside the corners of its edge."""
    geometry = PatchGeometry(size_deg=5.0, n_pixels=64, pad=0)
    centre = np.array([0.4, 1.0])
    pixels = point_patch(centre, geometry)
    x, y = project(unit_vectors(np.stack([pixels.theta, pixels.phi], axis=1)), centre)
    half = 0.5 * np.radians(5.0) - 0.5 * geometry.pixel
    assert x.max() == pytest.approx(half)
    assert y.min() == pytest.approx(-half)
    latitude, longitude = _edge(np.pi / 2 - centre[0], half)
    theta = np.pi / 2 - latitude
    assert theta.min() == pytest.approx(pixels.theta.min(), abs=1e-5)
    assert longitude.max() + centre[1] == pytest.approx(pixels.phi.max(), abs=1e-5)


def test_an_impossible_side_is_refused():
    with pytest.raises(CNNLensError, match="between 0"):
        ring_centres(70.0)
