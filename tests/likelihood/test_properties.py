"""Properties of releases and of the model that hold whatever the numbers are."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import NUISANCES, Group, Release
from cobaya_cnnlens.likelihood.release import (
    debiased_by_data,
    read_release,
    without,
    write_release,
)

from ..conftest import BY_MULTIPOLE, synthetic_release, with_lengths
from ..fuzz_release import fuzz

few = settings(max_examples=40, deadline=None)


@st.composite
def releases(draw) -> Release:
    """Releases of 2 to 5 bins whose data, noise, derivatives and covariance are random."""
    release = without(synthetic_release(draw(st.integers(2, 5))), Group.PRIMARY)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = release.n_bins
    root = np.eye(n) + 0.2 * generator.standard_normal((n, n))
    size = release.bandpowers * draw(st.floats(0.01, 10))
    changes = {
        name: getattr(release, name) * generator.uniform(-2, 2, getattr(release, name).shape)
        for name in ("bandpowers", "kk_derivatives", "curvature", "noise")
    }
    covariance = np.outer(size, size) * (root @ root.T)
    return replace(release, **changes, patch_covariance=0.5 * (covariance + covariance.T))


def spectra(release, kk=0.0, ee=0.0):
    """The fiducial spectra tilted by so much from one end to the other."""
    pairs = ((release.fiducial_kk, kk), (release.fiducial_ee, ee))
    return tuple(cl * (1 + np.linspace(-x, x, len(cl))) for cl, x in pairs)


tilt = st.floats(-0.3, 0.3)


@few
@given(releases())
def test_round_trip(tmp_path_factory, release):
    path = tmp_path_factory.mktemp("r") / "r.json"
    write_release(release, path)
    again = read_release(path)
    for field in fields(Release):
        one, two = getattr(release, field.name), getattr(again, field.name)
        if isinstance(one, np.ndarray):
            # Ten digits are written, of numbers by multipole seven; windows without trailing zeros.
            size, digits = two.shape[-1], 7 if field.name in BY_MULTIPOLE else 10
            np.testing.assert_allclose(two, one[..., :size], rtol=10.0 ** (1 - digits), atol=0)
            assert not one[..., size:].any()
        elif isinstance(one, dict):
            assert one.items() <= two.items()  # units are added to the instrument
        else:
            assert one == two
    theory = spectra(release, 0.1, 0.1)
    one, two = (
        BandpowerLikelihood(r, statistics="hartlap").chi2(*theory) for r in (release, again)
    )
    # Seven digits of the windows and of the fiducial spectra.
    assert two == pytest.approx(one, rel=1e-5)


@few
@given(releases(), st.floats(0, 1200), st.floats(0, 1200), tilt)
def test_selection_of_bins(release, low, high, kk):
    """The bins in use are those that lie inside, with their block of the covariance."""
    inside = [
        b for b in range(release.n_bins) if release.edges[b] >= low and release.edges[b + 1] <= high
    ]
    if not inside:
        with pytest.raises(CNNLensError, match="leave no bin"):
            BandpowerLikelihood(release, statistics="hartlap", L_min=low, L_max=high)
        return
    theory = spectra(release, kk)
    some = BandpowerLikelihood(release, statistics="gaussian", L_min=low, L_max=high)
    residual = BandpowerLikelihood(release, statistics="hartlap").residuals(*theory)[inside]
    block = debiased_by_data(release).covariance[np.ix_(inside, inside)]
    expected = residual @ np.linalg.solve(block, residual)
    assert some.chi2(*theory) == pytest.approx(expected, rel=1e-7)


@few
@given(releases(), st.randoms(use_true_random=False), tilt, tilt)
def test_order_of_bins_does_not_matter(release, source, kk, ee):
    order = list(range(release.n_bins))
    source.shuffle(order)
    permuted = with_lengths(release, n_bins=order)
    # The reader wants ascending edges; only the algebra is permuted here.
    permuted = replace(permuted, edges=release.edges)
    theory = spectra(release, kk, ee)
    one, two = (
        BandpowerLikelihood(r, statistics="hartlap").chi2(*theory) for r in (release, permuted)
    )
    assert two == pytest.approx(one, rel=1e-7)


@few
@given(releases())
def test_no_correction_at_the_fiducial(release):
    theory = spectra(release)
    fixed = BandpowerLikelihood(release, "fixed", "hartlap").model(*theory)
    model = BandpowerLikelihood(release, "data", "hartlap").model(*theory, np.zeros(len(NUISANCES)))
    np.testing.assert_allclose(model, fixed, rtol=1e-9, atol=1e-12 * np.abs(fixed).max())


@few
@given(releases(), tilt, tilt)
def test_the_model_is_linear_in_the_spectra(release, kk, ee):
    """Along any change of the spectra µ is a straight line."""
    for options in ({}, {"noise_debias": "fixed"}):
        likelihood = BandpowerLikelihood(release, statistics="hartlap", **options)
        centre = likelihood.model(*spectra(release))
        whole, half, back = (
            likelihood.model(*spectra(release, f * kk, f * ee)) - centre for f in (1.0, 0.5, -1.0)
        )
        tolerance = {"rtol": 1e-7, "atol": 1e-10 * np.abs(centre).max()}
        np.testing.assert_allclose(half, 0.5 * whole, **tolerance)
        np.testing.assert_allclose(back, -whole, **tolerance)


def test_malformed_files_are_refused(tmp_path):
    """Four hundred of them; `python -m tests.fuzz_release 100000` for more."""
    assert fuzz(400, tmp_path, seed=3, quiet=True) == 400
