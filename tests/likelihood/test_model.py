import itertools
import re
from dataclasses import fields, replace

import numpy as np
import pytest

from cobaya_cnnlens.errors import CNNLensError, SpectrumError, SpectrumWarning
from cobaya_cnnlens.likelihood.bandpowers import STATISTICS, BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import ARRAYS, NUISANCES, Group
from cobaya_cnnlens.likelihood.release import (
    debiased_by_data,
    read_release,
    with_fixed_debias,
    without,
)
from cobaya_cnnlens.likelihood.spectra import (
    FORMS,
    KAPPA,
    UNLENSED_E,
    Bands,
    candidates,
    factor_of,
)
from cobaya_cnnlens.likelihood.statistics import hartlap_factor, hotelling_pte, sellentin_heavens
from cobaya_cnnlens.theory.camb import convergence_from_potential, potential_from_convergence
from cobaya_cnnlens.theory.emulator_files import read_emulator

from ..conftest import at_fiducial_power, of_nuisances, synthetic_release, with_lengths


@pytest.fixture
def release():
    """The synthetic release, whose own power corrects nothing."""
    return at_fiducial_power(synthetic_release())


@pytest.fixture
def likelihood(release):
    return BandpowerLikelihood(release, primary=True)


def changed(release, kk=0.0, ee=0.0):
    return release.fiducial_kk * (1 + kk), release.fiducial_ee * (1 + ee)


def test_derivatives_by_finite_difference(release, likelihood):
    """Scaling one band moves µ by its column; of C^κκ also by the windows, of C^EE only p̂."""
    kk, ee = changed(release)
    base = likelihood.model(kk, ee)
    kk_derivatives = np.vstack(
        [debiased_by_data(release).kk_derivatives, release.power_kk_derivatives]
    )
    for j, (low, high) in enumerate(itertools.pairwise(release.kk_edges)):
        moved = kk.copy()
        moved[low:high] *= 1.01
        signal = release.windows[:, low:high] @ kk[low : min(high, release.windows.shape[1])]
        change = kk_derivatives[:, j] + np.append(signal, np.zeros(3))
        np.testing.assert_allclose((likelihood.model(moved, ee) - base) / 0.01, change, rtol=1e-8)
    for j, (low, high) in enumerate(itertools.pairwise(release.ee_edges)):
        moved = ee.copy()
        moved[low:high] *= 1.01
        change = (likelihood.model(kk, moved) - base) / 0.01
        np.testing.assert_array_equal(change[:5], 0.0)
        np.testing.assert_allclose(change[5:], release.power_ee_derivatives[:, j], atol=1e-13)


def test_the_jacobian_is_that_of_the_model(release, likelihood):
    """Exactly: the model is linear in the spectra, and a parabola in the nuisances."""
    generator = np.random.default_rng(9)
    x = of_nuisances(0.01, -0.02, 0.3)
    kk, ee = (
        (cl, cl * (1 + 0.1 * generator.uniform(-1, 1, len(cl))))
        for cl in (release.fiducial_kk, release.fiducial_ee)
    )
    jacobian = likelihood.jacobian(x)
    of_spectra = (
        jacobian.kk @ (kk[1] - kk[0])[: likelihood.lmax_kk + 1]
        + jacobian.ee @ (ee[1] - ee[0])[: likelihood.lmax_ee + 1]
    )
    moved = likelihood.model(kk[1], ee[1], x) - likelihood.model(kk[0], ee[0], x)
    np.testing.assert_allclose(moved, of_spectra, rtol=1e-9, atol=1e-13)
    for i, step in enumerate(0.1 * np.eye(len(NUISANCES))):
        pair = (likelihood.model(kk[0], ee[0], x + sign * step) for sign in (1, -1))
        slope = np.subtract(*pair) / 0.2
        np.testing.assert_allclose(jacobian.nuisances[:, i], slope, rtol=1e-9, atol=1e-13)
    no_ee = BandpowerLikelihood(release).jacobian()
    assert not no_ee.ee.any()
    np.testing.assert_array_equal(no_ee.kk, jacobian.kk[: len(no_ee.kk)])


@pytest.mark.parametrize("statistics", STATISTICS)
def test_fisher_is_the_curvature_where_the_model_equals_the_data(release, statistics):
    """−∂² ln L by differences, of two parameters, at a model that is not the fiducial's."""
    likelihood = BandpowerLikelihood(release, statistics=statistics)
    kk = 1.2 * release.fiducial_kk
    tilt = kk * np.linspace(-1, 1, len(kk))
    likelihood.bandpowers = model = likelihood.model(kk)
    slopes = likelihood.jacobian().kk @ np.array([kk, tilt]).T[: likelihood.lmax_kk + 1]
    fisher, step = likelihood.fisher(slopes, model), 1e-4

    def log_likelihood(a, b):
        return likelihood.unchecked_log_likelihood(kk + step * (a * kk + b * tilt))

    mixed = log_likelihood(1, 1) - log_likelihood(1, -1) - log_likelihood(-1, 1)
    mixed = (mixed + log_likelihood(-1, -1)) / 4.0
    first, second = (log_likelihood(*at) + log_likelihood(*-at) for at in np.eye(2))
    curvature = -np.array([[first, mixed], [mixed, second]]) / step**2  # ln L is zero at the model
    np.testing.assert_allclose(fisher, curvature, rtol=1e-5)
    scale = np.linalg.norm(likelihood.scatter(model)) / np.sqrt(len(model))
    assert (scale > 1.05) == (statistics == "hamimeche-lewis")
    with pytest.raises(CNNLensError, match=r"slopes have shape \(5,\).*each of the 5 data"):
        likelihood.fisher(slopes[:, 0])


def test_a_likelihood_without_checks_is_that_with_them(release):
    x = of_nuisances(0.01, -0.02, 0.3)
    for statistics in STATISTICS:
        likelihood = BandpowerLikelihood(release, statistics=statistics, primary=True)
        spectra = changed(release, 0.02, 0.03)
        expected = likelihood.log_likelihood(*spectra, x)
        assert likelihood.unchecked_log_likelihood(*spectra, x) == pytest.approx(expected, 1e-12)


@pytest.mark.parametrize("noise_debias", ["data", "fixed"])
@pytest.mark.parametrize("L_min", [None, 600])
def test_model_is_the_sum_of_its_terms(noise_debias, L_min):
    """µ of a shipped release, its terms one by one as the module's docstring writes them."""
    shipped = read_release("refined_high")
    likelihood = BandpowerLikelihood(shipped, noise_debias, L_min=L_min)
    l = np.arange(len(shipped.fiducial_kk))
    for tilt in (0, 0.05, -0.2, 0.4):
        kk = shipped.fiducial_kk * (1 + tilt * (1 + l / 3000))
        want = shipped.windows @ kk[: shipped.windows.shape[1]]
        if noise_debias == "data":
            power = [
                [((2 * l + 1) * c)[low:high].sum() for c in (kk, shipped.fiducial_kk)]
                for low, high in itertools.pairwise(shipped.kk_edges)
            ]
            changes = np.array([one / other - 1 for one, other in power])
            want += debiased_by_data(shipped).kk_derivatives @ changes
        kk[0] = np.nan  # no release looks there
        np.testing.assert_allclose(likelihood.model(kk, None), want[likelihood.bins], rtol=1e-10)


def test_nuisances_are_a_parabola_each(release, likelihood):
    """The model moves by A x + B x², bin by bin, and the bins in use are the right ones."""
    theory = release.fiducial_kk, release.fiducial_ee
    x = of_nuisances(0.01, -0.02, 0.3)
    moved = (likelihood.model(*theory, x) - likelihood.model(*theory))[:5]
    by_hand = sum(
        release.nuisance_first[:, i] * x[i] + release.nuisance_second[:, i] * x[i] ** 2
        for i in range(len(NUISANCES))
    )
    np.testing.assert_allclose(moved, by_hand, rtol=1e-10)
    np.testing.assert_array_equal(
        likelihood.model(*theory, of_nuisances()), likelihood.model(*theory)
    )
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
        (likelihood.model(kk, moved) - likelihood.model(kk, ee))[5:],
        release.power_ee_derivatives[:, 1] * change,
        rtol=1e-8,
    )


def test_fixed_debias_is_linear_in_the_signal(release):
    fixed = BandpowerLikelihood(release, "fixed")
    kk, ee = changed(release)
    np.testing.assert_array_equal(fixed.model(kk, ee), fixed.model(kk, 2 * ee))
    np.testing.assert_allclose(fixed.model(1.1 * kk, ee), 1.1 * fixed.model(kk, ee))


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


@pytest.fixture(scope="module")
def cut():
    """A shipped release without bins and bands beyond L = 1500, for CAMB that takes a second."""
    whole = with_lengths(
        read_release("refined_fiducial"), n_bins=range(11), n_kk=range(6), n_ee=range(7)
    )
    return replace(whole, windows=whole.windows[:, :1500])


# omch2, ln(1e10 As), H0, A_L, Σm_ν: corners of the widest priors; the last two have the least and
# the most C^κκ of all 32 corners.
CORNERS = (
    *((0.1185, 3.0956, 67.94, 1.0, 0.06), (0.16, 2.5, 50, 0.5, 1.0), (0.08, 3.7, 50, 1.0, 0.06)),
    *((0.08, 2.5, 90, 0.5, 1.0), (0.16, 3.7, 50, 2.0, 0.0)),
)


def spectra_at(corner, lmax, boost=0.6):
    """C_L^κκ, unlensed and lensed C_l^EE (µK²) by CAMB at low accuracy."""
    import camb

    omch2, log_as, h0, a_lens, mnu = corner
    parameters = camb.set_params(
        ombh2=0.0222, omch2=omch2, H0=h0, mnu=mnu, tau=0.0943, ns=0.9624,
        As=1e-10 * np.exp(log_as), lmax=lmax, lens_potential_accuracy=0, AccuracyBoost=boost,
    )  # fmt: skip
    results = camb.get_results(parameters)
    clpp = a_lens * results.get_lens_potential_cls(lmax, raw_cl=True)[:, 0]
    found = {"CMB_unit": "muK", "raw_cl": True}
    return (
        convergence_from_potential(clpp),
        results.get_unlensed_scalar_cls(lmax, **found)[:, 1].copy(),
        results.get_lensed_scalar_cls(lmax, **found)[:, 1].copy(),
    )


@pytest.fixture(scope="module")
def corners():
    return [spectra_at(corner, 1650) for corner in CORNERS]


def dls(cl):
    l = np.arange(len(cl))
    return l * (l + 1.0) / (2 * np.pi) * cl


def wrong_forms(kk, ee):
    """Every wrong form of the two spectra, with the words that name it."""
    l = np.arange(len(kk))
    x = l * (l + 1.0)
    pp = potential_from_convergence(kk)
    zeros = [0.0, 0.0]
    t2 = 2.7255e6**2
    return (
        (dls(kk), ee, r"C_L\^κκ .* looks like D_L = L\(L\+1\) C_L/2π"),
        (pp, ee, r"C_L\^κκ .* looks like C_L\^φφ; give C_L\^κκ = \[L\(L\+1\)\]²/4 C_L\^φφ"),
        (x * pp, ee, r"C_L\^κκ .* looks like L\(L\+1\) C_L\^φφ(/2π)?;"),
        (dls(pp), ee, r"C_L\^κκ .* looks like L\(L\+1\) C_L\^φφ(/2π)?;"),
        (t2 * kk, ee, r"C_L\^κκ .* looks like C_L\^κκ times T_CMB² in µK²; leave T_CMB out"),
        (ee, kk, r"C_L\^κκ .* looks like unlensed C_l\^EE; are the arguments swapped\?"),
        (kk, dls(ee), r"C_l\^EE .* looks like D_l = l\(l\+1\) C_l/2π; give C_l"),
        (kk, 1e-12 * ee, r"C_l\^EE .* looks like C_l in (K²|units of T_CMB²); give µK²"),
        (kk, 1e-6 * ee, r"C_l\^EE .* looks like C_l in mK²; give µK²"),
        (kk, ee / t2, r"C_l\^EE .* looks like C_l in (K²|units of T_CMB²); give µK²"),
        (kk, dls(ee) / t2, r"C_l\^EE .* looks like D_l in (K²|units of T_CMB²); give"),
        (np.r_[kk[2:], zeros], ee, r"C_L\^κκ has power at L = 0, as if its first entry were L = 2"),
        (kk, np.r_[ee[2:], zeros], r"C_l\^EE has power at l = 0, as if its first entry were l = 2"),
        (np.r_[zeros, kk], ee, r"C_L\^κκ begins at L = 4, as if L = 0 and 1 were there twice"),
        (kk, np.r_[zeros, ee], r"C_l\^EE begins at l = 4, as if l = 0 and 1 were there twice"),
        (np.r_[0.0, kk], ee, r"C_L\^κκ begins at L = 3, as if L = 0 were there twice"),
        (kk, np.r_[0.0, ee], r"C_l\^EE begins at l = 3, as if l = 0 were there twice"),
        (np.where(l < 900, kk, 0.0), ee, r"C_L\^κκ is zero or negative at .* L = 900 to"),
        (np.where(abs(l - 700) > 9, kk, -kk), ee, r"C_L\^κκ .* at 19 multipoles from L = 691 to"),
        (np.where(l < 40, 0.0, kk), ee, r"C_L\^κκ .* from L = 2 to 39, which no cosmology gives"),
        (kk, np.where(l < 300, ee, 0.0), r"C_l\^EE is zero or negative .* l = 300 to"),
        (kk, 60 * ee, r"C_l\^EE .* which no cosmology gives"),
        (kk, 0.02 * ee, r"C_l\^EE .* which no cosmology gives"),
        (-kk, ee, r"C_L\^κκ .* which no cosmology gives; give the raw C_L"),
        (kk, 0 * ee, r"C_l\^EE .* which no cosmology gives; give the raw C_l in µK²"),
    )


def test_wrong_forms_are_named(cut, corners):
    """Whatever the cosmology, none gets as far as a χ²; the message says what it looks like."""
    likelihood, lensing = BandpowerLikelihood(cut, primary=True), BandpowerLikelihood(cut)
    for kk, ee, _ in corners:
        for wrong_kk, wrong_ee, words in wrong_forms(kk, ee):
            for call in (likelihood.model, likelihood.chi2, likelihood.log_likelihood):
                with pytest.raises(SpectrumError, match=words) as caught:
                    call(wrong_kk, wrong_ee)
                assert "\n" not in str(caught.value)
            if wrong_kk is not kk:
                with pytest.raises(SpectrumError, match=words):
                    lensing.chi2(wrong_kk, wrong_ee)
    # At the fiducial units are told apart, and so are the potential's forms.
    kk, ee, _ = corners[0]
    for wrong, said in ((1e-12 * ee, "in K²"), (ee / 2.7255e6**2, "in units of T_CMB²")):
        with pytest.raises(SpectrumError, match=said):
            likelihood.chi2(kk, wrong)
    deflection = np.arange(len(kk)) * np.arange(1.0, len(kk) + 1) * potential_from_convergence(kk)
    for wrong, said in ((deflection, "C_L^φφ;"), (deflection / (2 * np.pi), "C_L^φφ/2π;")):
        with pytest.raises(SpectrumError, match=re.escape(f"looks like L(L+1) {said}")):
            likelihood.chi2(wrong, ee)


def test_forms_are_put_right_exactly(cut):
    """The fiducial in each wrong form, put right, is the fiducial: its bands are off by nothing."""
    kk, ee = cut.fiducial_kk[:1600], cut.fiducial_ee[:1600]
    bands = {
        KAPPA: Bands(cut.kk_edges, cut.fiducial_kk),
        UNLENSED_E: Bands(cut.ee_edges, cut.fiducial_ee),
    }
    seen = set()
    for wrong_kk, wrong_ee, _ in (*wrong_forms(kk, ee)[:11], (kk, dls(ee) * 1e-12, "")):
        quantity = KAPPA if wrong_kk is not kk else UNLENSED_E
        given = {KAPPA: wrong_kk, UNLENSED_E: wrong_ee}
        miss, what, _ = min(candidates(quantity, given, bands))
        assert miss < 1e-9
        seen.add((quantity, what))
    every = {(quantity, form[0]) for quantity, forms in FORMS.items() for form in forms}
    assert seen == every | {(KAPPA, "unlensed C_l^EE")}


def test_cosmologies_are_not_refused(cut, corners):
    for options in ({}, {"noise_debias": "fixed"}, {"primary": True}):
        likelihood = BandpowerLikelihood(cut, **options)
        for kk, ee, lensed in corners:
            assert np.isfinite(likelihood.log_likelihood(kk, ee))
            likelihood.chi2(kk, lensed)  # cannot be told from unlensed: cosmologies do as much
            likelihood.chi2(0 * kk, ee)  # no lensing is a hypothesis that can be tested
    power = np.array([cut.windows @ kk[:1500] for kk, _, _ in corners])
    assert (power[-2] / power[0]).max() < 0.2
    assert (power[-1] / power[0]).min() > 5


@pytest.mark.slow
def test_cosmologies_at_every_corner():
    """The shipped release whole, at the accuracy of a chain."""
    likelihood = BandpowerLikelihood(read_release("refined_fiducial"), primary=True)
    sides = ((0.08, 0.16), (2.5, 3.7), (50, 90), (0.5, 2.0), (0.0, 1.0))
    for corner in itertools.product(*sides):
        kk, ee, _ = spectra_at(corner, 4450, boost=1)
        likelihood.chi2(kk, ee)
        for wrong_kk, wrong_ee, words in wrong_forms(kk, ee):
            with pytest.raises(SpectrumError, match=words):
                likelihood.chi2(wrong_kk, wrong_ee)


@pytest.mark.parametrize(("release", "debias"), [("refined_low", "fixed"), ("refined_low", "data")])
def test_ee_that_plays_no_part_is_checked_where_it_is_given(release, debias):
    """It may be left out; a wrong one is refused, as it is where it plays a part."""
    shipped = read_release(release)
    kk, ee = shipped.fiducial_kk, shipped.fiducial_ee
    likelihood = BandpowerLikelihood(shipped, debias)
    want = likelihood.chi2(kk)
    for call in (likelihood.chi2(kk, ee), likelihood.chi2(kk, 2 * ee), likelihood.chi2(kk, None)):
        assert call == want
    assert likelihood.log_likelihood(kk) == -0.5 * want
    np.testing.assert_array_equal(likelihood.residuals(kk), likelihood.residuals(kk, ee))
    for wrong, words in (
        (np.zeros(3), "ends at l = 2"),
        (np.full(5000, np.nan), "is not finite"),
        (dls(ee), r"looks like D_l = l\(l\+1\) C_l/2π"),
        (1e-12 * ee, "looks like C_l in K²"),
        (kk, "which no cosmology gives"),
        (np.r_[ee[2:], 0, 0], "as if its first entry were l = 2"),
    ):
        for call in (likelihood.model, likelihood.chi2, likelihood.log_likelihood):
            with pytest.raises(SpectrumError, match=words):
                call(kk, wrong)
    with pytest.raises(SpectrumError, match="looks like D_L"):
        likelihood.chi2(dls(kk))
    with pytest.raises(SpectrumError, match=r"unlensed C_l\^EE is None; primary: true needs it"):
        BandpowerLikelihood(shipped, primary=True).chi2(kk)


@pytest.mark.parametrize("release", ["refined_fiducial", "refined_low", "survey_mock"])
@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (2 / np.pi, r"CAMB's own scaling: multiply that by π/2"),
        (4.0, r"looks like \[L\(L\+1\)\]² C_L\^φφ: divide that by 4"),
        (0.25, "divided by 4 once too often"),
        (2.0, r"\[L\(L\+1\)\]² C_L\^φφ/2: divide that by 2"),
        (np.pi / 2, "multiplied by π/2 once too often"),
        (1 / (2 * np.pi), "C_L\\^κκ/2π"),
        (2.7255**-2, "over T_CMB² in K²"),
    ],
)
def test_known_factors_are_named_once(release, factor, words):
    """At the fiducial, whatever the data's truth; only once, and without being refused."""
    likelihood = BandpowerLikelihood(read_release(release), "fixed")
    kk = factor * likelihood.release.fiducial_kk
    with pytest.warns(SpectrumWarning, match=words) as told:
        first = likelihood.log_likelihood(kk)
    assert len(told) == 1
    assert likelihood.log_likelihood(kk) == first < -200


def test_a_factor_is_named_where_the_data_fit_without_it():
    """At a cosmology that is not the fiducial, whose bands the factor therefore does not tell."""
    likelihood = BandpowerLikelihood(read_release("refined_high"))
    kk, *_ = read_emulator("lcdm")(
        {"logA": 3.0956, "ns": 0.9624, "ombh2": 0.0222, "omch2": 0.129, "H0": 67.94}
    )
    assert likelihood.pte(likelihood.chi2(kk)) > 1e-3
    for factor, words in ((2 / np.pi, "CAMB's own scaling"), (4.0, "divide that by 4")):
        bands = Bands(likelihood.release.kk_edges, likelihood.release.fiducial_kk)
        assert factor_of(bands.power(factor * kk)) is None
        assert words in likelihood.factor(factor * kk)
        # A theory code at its default accuracy loses power at small scales.
        coarse = kk * (1.0 - 0.14 * (np.arange(len(kk)) / 3000.0) ** 2)
        assert words in likelihood.factor(factor * coarse)
    assert likelihood.factor(kk) is likelihood.factor(coarse) is None


@pytest.mark.parametrize("factor", [0.1, 2.5, 10.0])
def test_power_beyond_the_calibration_is_told(factor):
    likelihood = BandpowerLikelihood(read_release("refined_fiducial"), statistics="gaussian")
    data = likelihood.release
    with pytest.warns(SpectrumWarning, match="beyond what its calibration covers"):
        likelihood.chi2(factor * data.fiducial_kk, data.fiducial_ee)


def test_the_calibration_ends_at_one_along_its_direction():
    """A change that leaves no band apart from it, up to 1.3 times the fit's farthest."""
    likelihood = BandpowerLikelihood(read_release("refined_fiducial"))
    release = likelihood.release
    along = release.kk_direction / (release.kk_direction @ release.kk_direction)
    for t, told in ((-0.5, False), (0.9, False), (1.1, True), (1.3, True)):
        kk = release.fiducial_kk.copy()
        for low, high, change in zip(release.kk_edges, release.kk_edges[1:], along, strict=False):
            kk[low:high] *= 1.0 + t * change
        said = likelihood.doubt(kk) or ""
        assert ("beyond what its calibration covers" in said) is told, (t, said)


def test_power_that_the_calibration_covers_is_not_told():
    """Cosmologies of the fit, whose power is 0.6 to 1.6 of the fiducial's; no lensing at all."""
    likelihood = BandpowerLikelihood(read_release("refined_fiducial"))
    emulator = read_emulator("lcdm")
    for point in (
        {"omch2": 0.1297, "ombh2": 0.0227, "ns": 0.9465, "logA": 2.839, "H0": 62.39},
        {"omch2": 0.1160, "ombh2": 0.0217, "ns": 0.9780, "logA": 3.334, "H0": 74.98},
        {"omch2": 0.1386, "ombh2": 0.0232, "ns": 0.9813, "logA": 3.157, "H0": 63.12},
        {"omch2": 0.1028, "ombh2": 0.0227, "ns": 0.9714, "logA": 2.866, "H0": 83.48},
    ):
        assert likelihood.chi2(emulator(point)[0]) > 30
    likelihood.chi2(0 * likelihood.release.fiducial_kk)
    assert not likelihood.doubt_said


def test_monopole_and_dipole(release, likelihood):
    """κ and E have no monopole; a dipole, or "undefined", is nobody's mistake."""
    kk, ee = changed(release)
    want = likelihood.chi2(kk, ee)
    for l, value, good in ((0, 1e-9, False), (1, 1e-9, True), (0, np.nan, True), (1, np.nan, True)):
        for i in range(2):
            spectra = [kk.copy(), ee.copy()]
            spectra[i][l] = value
            if good:
                assert likelihood.chi2(*spectra) == want
            else:
                with pytest.raises(SpectrumError, match=r"has power at . = 0"):
                    likelihood.chi2(*spectra)


def test_what_is_no_spectrum(release, likelihood):
    kk, ee = changed(release)
    for bad, words in (
        (None, "C_L^κκ is None; give an array of real numbers"),
        ("kk", "C_L^κκ is 'kk'; give an array"),
        (3.0, "C_L^κκ has shape (); give one dimension"),
        (np.tile(kk, (2, 1)), "C_L^κκ has shape (2, 1201); give one dimension"),
        (kk[:, None], "C_L^κκ has shape (1201, 1); give one dimension"),
        (kk.astype(complex), "C_L^κκ is "),
        ({"kk": kk}, "C_L^κκ is "),
        ([kk, kk[:3]], "C_L^κκ is "),
        (np.array([]), "C_L^κκ ends at L = -1"),
    ):
        for call in (likelihood.model, likelihood.chi2):
            with pytest.raises(SpectrumError, match=re.escape(words)):
                call(bad, ee)
            with pytest.raises(SpectrumError, match="unlensed C_l"):
                call(kk, bad)
        with pytest.raises(SpectrumError, match=re.escape(words)):
            likelihood.model.excursion(bad)
    want = likelihood.chi2(1.1 * kk, ee)
    assert likelihood.chi2((1.1 * kk).tolist(), ee.tolist()) == pytest.approx(want)
    assert likelihood.chi2((1.1 * kk).astype(np.float32), ee) == pytest.approx(want, rel=1e-4)


def test_flags_that_are_texts_or_numbers(release):
    """bool("false") is true."""
    for bad in ("false", "no", 0, None):
        with pytest.raises(CNNLensError, match=r"calibration_errors is .*; give true or false"):
            BandpowerLikelihood(release, calibration_errors=bad)
    without = BandpowerLikelihood(release, calibration_errors=np.False_).covariance
    np.testing.assert_array_equal(without, release.patch_covariance / release.n_patches)


def test_nuisances_of_the_wrong_shape(release, likelihood):
    spectra = changed(release)
    n = len(NUISANCES)
    for bad in (0.01, [0.01] * (n - 1), [0.01] * (n + 1), [[0.01] * n], "gain", {"gain": 0.01}):
        with pytest.raises(CNNLensError, match=f"give {n} numbers: gain, beam, noise"):
            likelihood.chi2(*spectra, bad)
    with pytest.raises(SpectrumError, match="not finite"):
        likelihood.chi2(*spectra, [np.nan] * n)


def test_releases_made_by_hand(release):
    """What the reader would refuse is one clear error here too."""
    with pytest.raises(CNNLensError, match="release is 'refined_high'; give what read_release"):
        BandpowerLikelihood("refined_high")
    empty = release.fiducial_ee.copy()
    empty[300:700] = 0.0
    for change, words in (
        ({"fiducial_ee": empty}, "'fiducial.ee' must be positive within its bands"),
        ({"fiducial_kk": np.full(1201, np.nan)}, "'fiducial.kk' must be positive within its bands"),
        ({"bandpowers": release.bandpowers[:4]}, "'data.bandpowers' has shape (4,); 5 entries"),
        ({"windows": release.windows[0]}, "'windows.values' must have 2 dimensions"),
        ({"windows": release.windows[:3]}, "'windows.values' has shape (3, 1100); 5 entries"),
        ({"patch_covariance": np.eye(4)}, "'covariance.patch' has shape (4, 4); 5 entries"),
        ({"kk_direction": np.ones(3)}, "'noise_bias.kk_direction' has shape (3,); 2 entries"),
        ({"edges": release.edges[::-1]}, "'bins.edges' must ascend"),
    ):
        with pytest.raises(CNNLensError, match=re.escape(f"synthetic: field {words}")):
            BandpowerLikelihood(replace(release, **change))
    none = replace(release, kk_direction=np.zeros(2))
    with pytest.raises(CNNLensError, match=r"'noise_bias\.kk_direction' is zero"):
        BandpowerLikelihood(none)
    none = replace(none, curvature=np.zeros(5))
    assert np.isfinite(BandpowerLikelihood(none).chi2(*changed(release)))
    u, beyond = BandpowerLikelihood(none, "fixed").model.excursion(1.1 * release.fiducial_kk)
    assert (u, beyond) == pytest.approx((0.0, 0.1))


def test_callers_floating_point_settings_do_not_matter(release):
    shipped = read_release("refined_fiducial")
    tiny = shipped.fiducial_kk.copy(), shipped.fiducial_ee.copy()
    tiny[1][4000:] = 1e-320
    x = of_nuisances(1e-200)
    want = BandpowerLikelihood(shipped).chi2(*tiny, x)
    infinite = tiny[0].copy()
    infinite[2500] = np.inf
    small = replace(release, patch_covariance=1e-280 * release.patch_covariance)
    with np.errstate(all="raise"):
        likelihood = BandpowerLikelihood(read_release("refined_fiducial"))
        assert likelihood.chi2(*tiny, x) == want
        likelihood.model.excursion(tiny[0])
        for bad in (infinite, np.full(5000, 1e300)):
            with pytest.raises(SpectrumError):
                likelihood.chi2(bad, tiny[1])
        BandpowerLikelihood(small)


def test_arrays_cannot_be_written_to(release):
    """Not those of the likelihood, not those of its release, and what was handed in is copied."""
    data = release.bandpowers.copy()
    likelihood = BandpowerLikelihood(replace(release, bandpowers=data))
    spectra = changed(release, 0.1)
    want = likelihood.chi2(*spectra)
    data *= 2
    handed_out = [
        *(getattr(likelihood, name) for name in ("bins", "bandpowers", "covariance", "inverse")),
        *(getattr(likelihood.release, f.name) for f in fields(likelihood.release)),
        likelihood.release.covariance,
    ]
    arrays = [array for array in handed_out if isinstance(array, np.ndarray)]
    assert len(arrays) == 5 + 1 + len(ARRAYS)
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    mu = likelihood.model(*spectra)
    mu *= 2  # a caller's own
    assert likelihood.chi2(*spectra) == want


def test_a_release_of_known_numbers():
    """Two bins, two bands each, every number by hand: µ, the covariance's three parts, Hartlap's
    factor of the bins in use, u, x and x²."""
    kk = np.zeros(6)
    kk[2:] = 2.0
    changes = {
        "edges": np.array([2, 4, 6]),
        "bandpowers": np.array([9.0, 7.0]),
        "n_patches": 4,
        "n_sim": 11,
        "patch_covariance": np.array([[8.0, 4.0], [4.0, 8.0]]),
        "noise_covariance": np.array([[1.0, 0.0], [0.0, 2.0]]),
        "derivative_covariance": np.array([[1.0, 1.0], [1.0, 1.0]]),
        "windows": np.array([[0, 0, 1.0, 2.0, 0, 0], [0, 0, 0, 0, 1.0, 1.0]]),
        "kk_edges": np.array([2, 4, 6]),
        "kk_derivatives": np.array([[0.5, 0.0], [0.0, 1.0]]),
        "curvature": np.zeros(2),
        "kk_direction": np.array([1.0, 0.0]),
        "nuisance_first": np.stack([of_nuisances(1.0), of_nuisances(0, 0, 10.0)]),
        "nuisance_second": np.stack([of_nuisances(0, 2.0), of_nuisances(0, 0, 100.0)]),
        "fiducial_kk": kk,
    }
    small = at_fiducial_power(without(synthetic_release(2, **changes), Group.PRIMARY, Group.FIXED))
    # C^κκ: 3 at L = 2, 3, else the fiducial 2: δ = ½ and 0.
    kk = kk.copy()
    kk[2:4] = 3.0
    for noise_debias, want in (("fixed", [3 + 6.0, 4.0]), ("data", [9 + 0.25, 4.0])):
        likelihood = BandpowerLikelihood(small, noise_debias)
        np.testing.assert_allclose(likelihood.model(kk, None), want, rtol=1e-13)
        moved = likelihood.model(kk, None, of_nuisances(0.1, 0.3, -0.2))
        np.testing.assert_allclose(moved - want, [0.1 + 0.18, -2 + 4], rtol=1e-12)
        assert likelihood.model.excursion(kk)[0] == pytest.approx(0.5)
    ee = None
    # Covariance 8/4 + 1 + 1 = 4, 4/4 + 0 + 1 = 2, 8/4 + 2 + 1 = 5.
    np.testing.assert_allclose(small.covariance, [[4, 2], [2, 5]])
    # A fixed bias has no derivatives, nor their errors: 3, 1, 4. Residuals are 0 and 3.
    fixed = BandpowerLikelihood(small, "fixed", "hartlap")
    np.testing.assert_allclose(fixed.residuals(kk, ee), [0, 3])
    # χ² = 9 × 3/(12 − 1); Hartlap (11 − 2 − 2)/(11 − 1).
    assert fixed.hartlap == 0.7
    assert fixed.chi2(kk, ee) == pytest.approx(0.7 * 27 / 11)
    assert fixed.log_likelihood(kk, ee) == pytest.approx(-0.35 * 27 / 11)
    np.testing.assert_allclose(fixed.inverse, 0.7 * np.array([[4, -1], [-1, 3]]) / 11)
    # One bin in use: Hartlap's factor of one bin, and its variance alone.
    one = BandpowerLikelihood(small, "fixed", "hartlap", L_min=4)
    assert one.hartlap == (11 - 1 - 2) / (11 - 1)
    assert one.chi2(kk, ee) == pytest.approx(0.8 * 9 / 4)
    assert one.pte(one.chi2(kk, ee)) == pytest.approx(hotelling_pte(9 / 4, 11, 1))
    # The patches' scatter alone: 2, 1, 2.
    scatter = BandpowerLikelihood(small, "fixed", "gaussian", calibration_errors=False)
    assert scatter.chi2(kk, ee) == pytest.approx(9 * 2 / (4 - 1))
    assert scatter.pte(3.0) == pytest.approx(np.exp(-1.5))  # χ² of two degrees of freedom
    # Sellentin–Heavens: T² without Hartlap's factor.
    student = BandpowerLikelihood(small, "fixed", "sellentin-heavens")
    assert student.chi2(kk, ee) == pytest.approx(27 / 11)
    assert student.log_likelihood(kk, ee) == pytest.approx(-5.5 * np.log(1 + 2.7 / 11))


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
    """Bins half inside are left out; limits may be of any type of number."""
    for kind in (int, np.int64, np.float32, np.uint16):
        chosen = BandpowerLikelihood(release, L_min=kind(200), L_max=kind(836))
        np.testing.assert_array_equal(chosen.bins, [1, 2, 3])
    for wrong in ("2000", True, np.True_, 2000j):
        with pytest.raises(CNNLensError, match=r"L_max is .*; give a number"):
            BandpowerLikelihood(release, L_max=wrong)
    with pytest.raises(CNNLensError, match="L_min: 40 and L_max: 230 leave no bin"):
        BandpowerLikelihood(release, L_min=40, L_max=230)


def test_log_likelihoods_of_the_three_statistics(release):
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


def test_excursion_along_and_across_the_direction(release):
    """u is the amplitude along the direction; the rest is what the bands move apart from that."""
    likelihood = BandpowerLikelihood(release)
    along = release.kk_direction / (release.kk_direction @ release.kk_direction)

    def spectrum(changes):
        kk = release.fiducial_kk.copy()
        for low, high, change in zip(release.kk_edges, release.kk_edges[1:], changes, strict=False):
            kk[low:high] *= 1.0 + change
        return kk

    assert likelihood.model.excursion(spectrum(1.5 * along)) == pytest.approx((1.5, 0.0), abs=1e-12)
    across = np.array([0.25, -0.15])  # 1.5 × 0.25 − 2.5 × 0.15 = 0
    assert likelihood.model.excursion(spectrum(across)) == pytest.approx((0.0, 0.25), abs=1e-12)


def test_hamimeche_lewis_by_hand(release):
    """Xᵀ C⁻¹ X with X = T_fid g(T̂/T): of the fiducial's scatter, and so at twice the signal."""
    data = replace(release, bandpowers=1.1 * release.bandpowers)
    likelihood = BandpowerLikelihood(data, "fixed", "hamimeche-lewis")
    signal = release.windows @ release.fiducial_kk[: release.windows.shape[1]]
    for factor in (0.5, 1.0, 2.0):
        ratio = (data.bandpowers + data.noise) / (factor * signal + data.noise)
        g = np.sign(ratio - 1) * np.sqrt(2 * (ratio - np.log(ratio) - 1))
        x = (signal + data.noise) * g
        inverse = np.linalg.inv(with_fixed_debias(release).covariance) * likelihood.hartlap
        chi2 = likelihood.chi2(factor * release.fiducial_kk, release.fiducial_ee)
        assert chi2 == pytest.approx(x @ inverse @ x, rel=1e-8)
    plain = BandpowerLikelihood(data, "fixed", "hartlap")
    assert likelihood.pte(3.0) == plain.pte(3.0)
    near = replace(data, bandpowers=(1 + 1e-5) * release.bandpowers)
    both = [
        BandpowerLikelihood(near, "fixed", name).chi2(release.fiducial_kk, release.fiducial_ee)
        for name in ("hamimeche-lewis", "hartlap")
    ]
    assert both[0] == pytest.approx(both[1], rel=1e-4)


def test_the_total_power_holds_what_the_debias_subtracts(release):
    """T̂ = d + N and T = µ + N + d − d': the scatter of d' is that of the power of κ̂."""
    release = replace(release, power=1.2 * release.fiducial_power)
    debiased = debiased_by_data(release)
    subtracted = release.bandpowers - debiased.bandpowers
    assert np.abs(subtracted).max() > 0.01 * release.noise.max()
    likelihood = BandpowerLikelihood(release)
    fiducial = release.windows @ release.fiducial_kk[: release.windows.shape[1]] + release.noise
    for factor in (0.8, 1.2):
        model = likelihood.model(factor * release.fiducial_kk)
        total = model + release.noise + subtracted
        ratio = (release.bandpowers + release.noise) / total
        x = fiducial * np.sign(ratio - 1) * np.sqrt(2 * (ratio - np.log(ratio) - 1))
        inverse = np.linalg.inv(debiased.covariance) * likelihood.hartlap
        chi2 = likelihood.chi2(factor * release.fiducial_kk)
        assert chi2 == pytest.approx(x @ inverse @ x, rel=1e-8)
        np.testing.assert_allclose(likelihood.scatter(model), total / fiducial)


def test_hamimeche_lewis_needs_positive_power(release):
    low = release.bandpowers.copy()
    low[2] = -2.0 * release.noise[2]
    with pytest.raises(CNNLensError, match=r"the bandpowers of bins \[2\].*statistics: hartlap"):
        BandpowerLikelihood(replace(release, bandpowers=low), statistics="hamimeche-lewis")
    first_order = replace(release, nuisance_second=0.0 * release.nuisance_second)
    likelihood = BandpowerLikelihood(first_order, statistics="hamimeche-lewis")
    with pytest.raises(SpectrumError, match="not positive; check the theory"):
        likelihood.chi2(release.fiducial_kk, release.fiducial_ee, of_nuisances(-1.0))
