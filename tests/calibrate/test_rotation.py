"""The rotation of the polarisation from EB: that of rotated maps, and its error."""

import numpy as np
import pytest

from cobaya_cnnlens.calibrate.rotation import rotation_of
from cobaya_cnnlens.simulate.bandpowers import Bins, EBPower
from cobaya_cnnlens.simulate.instrument import Systematics, cosine_mask
from cobaya_cnnlens.simulate.modes import mode_vectors, polarisation_angles
from cobaya_cnnlens.simulate.patches import PatchGeometry

GEOMETRY = PatchGeometry(n_pixels=64, pad=0)
BINS = Bins(36, 127, 4)


def e_modes(n):
    """Q and U of skies without B."""
    ly, lx = mode_vectors(64, GEOMETRY.pixel)
    cos2, sin2 = polarisation_angles(ly, lx)
    l = np.maximum(np.hypot(ly, lx), 72.0)
    e = np.fft.rfft2(np.random.default_rng(1).standard_normal((n, 64, 64))) * l**-1.5
    return (np.fft.irfft2(e * part, s=(64, 64)) for part in (cos2, sin2))


def mirrored(maps):
    """Upside down; of U with the other sign it is the mirror image of the polarisation."""
    return np.roll(maps[..., ::-1, :], 1, axis=-2)


@pytest.mark.parametrize("angle", [0.01, 0.2, -3.0, 20.0])
def test_a_rotated_sky_gives_back_its_angle(angle):
    """A sky and its mirror image, which is as likely, have no EB between them under a mask and its
    mirror image, here one with holes. Rotated they have exactly that of the angle."""
    q, u = e_modes(3)
    holes = np.random.default_rng(2).random((64, 64)) > 0.2
    mask = cosine_mask(GEOMETRY, 0.5) * holes
    q, u = Systematics(angle=angle).distort(
        np.concatenate([q, mirrored(q)]), np.concatenate([u, -mirrored(u)])
    )
    masks = np.concatenate([np.stack([mask] * 3), np.stack([mirrored(mask)] * 3)])
    sums = EBPower(GEOMETRY, BINS, mask).rotation(q * masks, u * masks)
    assert np.abs(sums[:, 0]).max() > 1e-4 * sums[:, 1].max()
    ((measured, _, share),) = rotation_of(sums)
    assert measured == pytest.approx(angle, abs=1e-9)
    assert share == 1.0


def test_the_error_is_the_scatter():
    """Of many surveys of unlike patches, weighted; a single patch does not tell its error."""
    generator = np.random.default_rng(3)
    scale = generator.uniform(0.5, 2.0, 50)
    weight = 1.0 / scale
    x = 0.03 * scale * generator.standard_normal((2000, 50))
    y = 1.0 + 0.1 * generator.standard_normal((2000, 50))
    four = np.radians(4 * 5.0)
    turned = np.cos(four) * x + np.sin(four) * y, np.cos(four) * y - np.sin(four) * x
    measured = np.array([rotation_of(sums, weight)[0] for sums in np.stack(turned, -1)])
    assert measured[:, 0].mean() == pytest.approx(5.0, abs=4 * measured[:, 0].std() / np.sqrt(2000))
    mean_square = np.mean(measured[:, 1] ** 2)
    assert mean_square == pytest.approx(measured[:, 0].var(), rel=4 * np.sqrt(2 / 2000))
    assert not rotation_of(np.ones((1, 2))).size
    assert not rotation_of(None).size
