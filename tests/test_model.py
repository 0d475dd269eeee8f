import itertools
from dataclasses import replace

import numpy as np
import pytest

from cobaya_cnnlens.errors import CNNLensError, SpectrumError
from cobaya_cnnlens.model import BandpowerLikelihood
from cobaya_cnnlens.release import read_release

from .conftest import synthetic_release


@pytest.fixture
def likelihood(release):
    return BandpowerLikelihood(release, "linear")


def changed(release, kk=0.0, ee=0.0):
    return release.fiducial_kk * (1 + kk), release.fiducial_ee * (1 + ee)


def test_no_correction_at_the_fiducial(release):
    spectra = changed(release)
    linear = BandpowerLikelihood(release).model(*spectra)
    fixed = BandpowerLikelihood(release, "fixed").model(*spectra)
    np.testing.assert_allclose(linear, fixed, rtol=1e-12)
    np.testing.assert_allclose(
        fixed, release.windows @ release.fiducial_kk[: release.windows.shape[1]], rtol=1e-12
    )


def test_chi2_is_the_closed_form(release):
    from cobaya_cnnlens.statistics import hartlap_factor

    data = release.bandpowers * np.linspace(0.9, 1.1, 5)
    likelihood = BandpowerLikelihood(replace(release, bandpowers=data), statistics="gaussian")
    spectra = changed(release)
    r = data - release.bandpowers
    expected = r @ np.linalg.solve(release.covariance, r)
    assert likelihood.chi2(*spectra) == pytest.approx(expected, rel=1e-9)
    hartlap = BandpowerLikelihood(replace(release, bandpowers=data))
    assert hartlap.chi2(*spectra) == pytest.approx(expected * hartlap_factor(500, 5), rel=1e-9)
    assert hartlap.log_likelihood(*spectra) == pytest.approx(-0.5 * hartlap.chi2(*spectra))


def test_derivatives_by_finite_difference(release, likelihood):
    """Scaling one band of C^κκ or C^EE moves µ by its column, and C^κκ also by the windows."""
    kk, ee = changed(release)
    base = likelihood.model(kk, ee)
    for j, (low, high) in enumerate(zip(release.kk_edges, release.kk_edges[1:], strict=False)):
        moved = kk.copy()
        moved[low:high] *= 1.01
        signal = release.windows[:, low:high] @ kk[low : min(high, release.windows.shape[1])]
        np.testing.assert_allclose(
            (likelihood.model(moved, ee) - base) / 0.01,
            signal + release.kk_derivatives[:, j],
            rtol=1e-8,
        )
    for j, (low, high) in enumerate(zip(release.ee_edges, release.ee_edges[1:], strict=False)):
        moved = ee.copy()
        moved[low:high] *= 1.01
        np.testing.assert_allclose(
            (likelihood.model(kk, moved) - base) / 0.01, release.ee_derivatives[:, j], rtol=1e-7
        )


def test_second_order_is_the_square_of_the_amplitude(release):
    """µ − µ_linear = Q t², t = a·δ: even in δ, and nothing for δ across the direction."""
    linear, quadratic = (BandpowerLikelihood(release, d) for d in ("linear", "quadratic"))

    def extra(kk, ee):
        spectra = changed(release, kk, ee)
        return quadratic.model(*spectra) - linear.model(*spectra)

    for kk, ee in ((0.1, 0.0), (-0.1, 0.0), (0.03, -0.2)):
        t = 5.0 * kk + 0.4 * ee
        np.testing.assert_allclose(extra(kk, ee), t**2 * release.curvature, rtol=1e-6)
    np.testing.assert_allclose(extra(0.04, -0.5), 0.0, atol=1e-6 * release.bandpowers.max())


@pytest.mark.parametrize("noise_debias", ["quadratic", "linear", "fixed"])
@pytest.mark.parametrize("L_min", [None, 600])
def test_model_is_the_sum_of_its_terms(noise_debias, L_min):
    """µ of a shipped release, its terms one by one as the module's docstring writes them."""
    shipped = read_release("laptop_high")
    likelihood = BandpowerLikelihood(shipped, noise_debias, L_min=L_min)
    l = np.arange(len(shipped.fiducial_kk))

    def changes(edges, cl, fiducial):
        power = [
            [((2 * l + 1) * c)[low:high].sum() for c in (cl, fiducial)]
            for low, high in itertools.pairwise(edges)
        ]
        return np.array([one / other - 1 for one, other in power])

    for a, b in ((0, 0), (0.05, 0.02), (-0.2, 0.1), (0.4, -0.3)):
        kk = shipped.fiducial_kk * (1 + a * (1 + l / 3000))
        ee = shipped.fiducial_ee * (1 + b * np.cos(l / 200))
        want = shipped.windows @ kk[: shipped.windows.shape[1]]
        if noise_debias != "fixed":
            d_kk = changes(shipped.kk_edges, kk, shipped.fiducial_kk)
            d_ee = changes(shipped.ee_edges, ee, shipped.fiducial_ee)
            want += shipped.kk_derivatives @ d_kk + shipped.ee_derivatives @ d_ee
        if noise_debias == "quadratic":
            t = shipped.kk_direction @ d_kk + shipped.ee_direction @ d_ee
            want += shipped.curvature * t**2
        kk[0] = np.nan  # no release looks there
        got = likelihood.model(kk, ee)
        np.testing.assert_allclose(got, want[likelihood.bins], rtol=1e-10)


def test_nuisances_are_a_parabola_each(release, likelihood):
    """The model moves by A x + B x², bin by bin, and the bins in use are the right ones."""
    theory = release.fiducial_kk, release.fiducial_ee
    x = np.array([0.01, -0.02, 0.03, 0.4])
    moved = likelihood.model(*theory, x) - likelihood.model(*theory)
    by_hand = sum(
        release.nuisance_first[:, i] * x[i] + release.nuisance_second[:, i] * x[i] ** 2
        for i in range(4)
    )
    np.testing.assert_allclose(moved, by_hand, rtol=1e-10)
    np.testing.assert_array_equal(likelihood.model(*theory, np.zeros(4)), likelihood.model(*theory))
    some = BandpowerLikelihood(release, L_min=200)
    moved = some.model(*theory, x) - some.model(*theory)
    np.testing.assert_allclose(moved, by_hand[some.bins], rtol=1e-10)


def test_bands_are_weighted_by_their_number_of_modes(release, likelihood):
    """A change of part of a band counts by (2l+1) C_l, the variance it holds."""
    kk, ee = changed(release)
    moved = ee.copy()
    moved[300:350] *= 1.2
    l = np.arange(len(ee))
    variance = (2 * l + 1) * ee
    change = 0.2 * variance[300:350].sum() / variance[300:700].sum()
    np.testing.assert_allclose(
        likelihood.model(kk, moved) - likelihood.model(kk, ee),
        release.ee_derivatives[:, 1] * change,
        rtol=1e-8,
    )


def test_fixed_debias_ignores_ee(release):
    fixed = BandpowerLikelihood(release, "fixed")
    kk, ee = changed(release)
    np.testing.assert_array_equal(fixed.model(kk, ee), fixed.model(kk, 2 * ee))
    np.testing.assert_allclose(fixed.model(1.1 * kk, ee), 1.1 * fixed.model(kk, ee))


def test_order_of_bins_does_not_matter(release):
    order = np.array([3, 0, 4, 1, 2])
    # Only the likelihood's linear algebra is permuted: edges keep their order for the reader.
    permuted = replace(
        release,
        bandpowers=1.1 * release.bandpowers[order],
        patch_covariance=release.patch_covariance[np.ix_(order, order)],
        noise_covariance=release.noise_covariance[np.ix_(order, order)],
        derivative_covariance=release.derivative_covariance[np.ix_(order, order)],
        windows=release.windows[order],
        kk_derivatives=release.kk_derivatives[order],
        curvature=release.curvature[order],
        ee_derivatives=release.ee_derivatives[order],
    )
    spectra = changed(release, 0.03, -0.02)
    one = BandpowerLikelihood(replace(release, bandpowers=1.1 * release.bandpowers)).chi2(*spectra)
    assert BandpowerLikelihood(permuted).chi2(*spectra) == pytest.approx(one, rel=1e-10)


def test_residuals_and_data_are_reachable(release, likelihood):
    spectra = changed(release)
    np.testing.assert_array_equal(likelihood.bandpowers, release.bandpowers)
    np.testing.assert_allclose(likelihood.residuals(*spectra), 0, atol=1e-20)
    assert likelihood.pte(0.0) == 1.0


def test_spectra_that_are_too_short(release, likelihood):
    kk, ee = changed(release)
    assert (likelihood.lmax_kk, likelihood.lmax_ee) == (1099, 1199)
    with pytest.raises(SpectrumError, match="ends at L = 1098, the release needs L = 1099"):
        likelihood.model(kk[:1099], ee)
    with pytest.raises(SpectrumError, match="ends at l = 899, the release needs l = 1199"):
        likelihood.model(kk, ee[:900])
    with pytest.raises(SpectrumError, match="ends at l = 1198, the release needs l = 1199"):
        likelihood.model(kk, ee[:1199])
    likelihood.model(kk[:1100], ee[:1200])


def test_spectra_that_are_not_finite(release, likelihood):
    kk, ee = changed(release)
    kk[500] = np.nan
    with pytest.raises(SpectrumError, match="not finite"):
        likelihood.chi2(kk, ee)


def test_unknown_options(release):
    with pytest.raises(CNNLensError, match="noise_debias is 'cubic'; choose one of"):
        BandpowerLikelihood(release, "cubic")
    with pytest.raises(CNNLensError, match="statistics is 'poisson'"):
        BandpowerLikelihood(release, statistics="poisson")


def test_coverage_of_a_gaussian_survey():
    """Data drawn from the covariance give χ² distributed as χ² with n_bins degrees of freedom."""
    from scipy import stats

    release = synthetic_release()
    generator = np.random.default_rng(0)
    likelihood = BandpowerLikelihood(release, statistics="gaussian")
    draws = generator.multivariate_normal(np.zeros(5), release.covariance / 1e-18, size=2000) * 1e-9
    chi2 = [d @ likelihood.inverse @ d for d in draws]
    assert stats.kstest(chi2, stats.chi2(5).cdf).pvalue > 0.01


def test_bins_in_an_L_range(release):
    """Selected bins have the χ² of the marginal distribution; bins half inside are left out."""
    data = replace(release, bandpowers=release.bandpowers * np.linspace(0.9, 1.1, 5))
    chosen = BandpowerLikelihood(data, statistics="gaussian", L_min=200, L_max=836)
    np.testing.assert_array_equal(chosen.bins, [1, 2, 3])
    whole = BandpowerLikelihood(data, statistics="gaussian")
    spectra = changed(release, 0.03, -0.02)
    r = whole.residuals(*spectra)[1:4]
    want = r @ np.linalg.solve(release.covariance[1:4, 1:4], r)
    assert chosen.chi2(*spectra) == pytest.approx(want, rel=1e-9)
    np.testing.assert_allclose(chosen.model(*spectra), whole.model(*spectra)[1:4], rtol=1e-12)
    with pytest.raises(CNNLensError, match="L_max is '2000'; give a number"):
        BandpowerLikelihood(release, L_max="2000")
    with pytest.raises(CNNLensError, match="L_min: 40 and L_max: 230 leave no bin"):
        BandpowerLikelihood(release, L_min=40, L_max=230)


def test_calibration_errors_can_be_left_out(release):
    without = BandpowerLikelihood(release, calibration_errors=False)
    np.testing.assert_array_equal(without.covariance, release.patch_covariance / 40)
    np.testing.assert_array_equal(BandpowerLikelihood(release).covariance, release.covariance)


def test_log_likelihoods_of_the_three_statistics(release):
    from cobaya_cnnlens.statistics import hartlap_factor, hotelling_pte, sellentin_heavens

    spectra = changed(release, 0.1, 0.1)
    gaussian, hartlap, t = (
        BandpowerLikelihood(release, statistics=name)
        for name in ("gaussian", "hartlap", "sellentin-heavens")
    )
    t2 = gaussian.chi2(*spectra)
    factor = hartlap_factor(500, 5)
    assert gaussian.log_likelihood(*spectra) == pytest.approx(-t2 / 2)
    assert hartlap.log_likelihood(*spectra) == pytest.approx(-factor * t2 / 2)
    assert t.log_likelihood(*spectra) == pytest.approx(sellentin_heavens(t2, 500))
    for likelihood in (hartlap, t):
        pte = likelihood.pte(likelihood.chi2(*spectra))
        assert pte == pytest.approx(hotelling_pte(t2, 500, 5))


def test_excursion_along_and_across_omch2(release):
    """t is the amplitude along the direction of ω_c; what it leaves is what the bands move apart
    from that."""
    likelihood = BandpowerLikelihood(release)
    along = np.concatenate([release.kk_direction, release.ee_direction])
    along = along / (along @ along)

    def spectra(changes):
        kk, ee = release.fiducial_kk.copy(), release.fiducial_ee.copy()
        for cl, edges, part in (
            (kk, release.kk_edges, changes[:2]),
            (ee, release.ee_edges, changes[2:]),
        ):
            for low, high, change in zip(edges, edges[1:], part, strict=False):
                cl[low:high] *= 1.0 + change
        return kk, ee

    t, rest = likelihood.excursion(*spectra(1.5 * along))
    assert (t, rest) == pytest.approx((1.5, 0.0), abs=1e-12)
    across = np.array([0.3, -0.2, 0.0, 0.0, 0.0])  # 2 × .3 − 3 × .2 = 0
    t, rest = likelihood.excursion(*spectra(across))
    assert (t, rest) == pytest.approx((0.0, 0.3), abs=1e-12)
