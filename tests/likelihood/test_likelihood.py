import copy
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from cobaya.bib import get_bib_info
from cobaya.doc import doc_script
from cobaya.input import load_input, update_info
from cobaya.log import LoggedError
from cobaya.model import get_model
from cobaya.run import run
from cobaya.yaml import yaml_load, yaml_load_file

import cobaya_cnnlens
import yaml
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.cnnlens import TOLERATED, WATCHED, CNNLens, Watch
from cobaya_cnnlens.likelihood.fields import NUISANCES
from cobaya_cnnlens.likelihood.release import (
    digest_of_numbers,
    read_release,
    write_release,
)
from cobaya_cnnlens.likelihood.selfcheck import (
    CLASS_SETTINGS,
    different_settings,
    theory_offset,
)
from cobaya_cnnlens.theory.camb import (
    CambSettings,
    Cosmology,
    convergence_from_potential,
    settings_record,
)
from cobaya_cnnlens.theory.emulated import EmulatedCAMB
from cobaya_cnnlens.theory.emulator_files import read_emulator, write_emulator

from ..conftest import LENSING_INPUTS, REPOSITORY, at_fiducial_power

NAME = "cobaya_cnnlens.CNNLens"
# The instrument of the simulations, known exactly.
INSTRUMENT = {f"cnnlens_{name}": 0 for name in NUISANCES}
FAST = {"cobaya_cnnlens.EmulatedCAMB": {"emulator": "lcdm"}}


@pytest.fixture
def path(release, tmp_path):
    """Noise enough that made-up spectra and derivatives leave every bin with power."""
    write_release(replace(release, noise=20 * release.noise), tmp_path / "r.json")
    return str(tmp_path / "r.json")


CAMB = {"camb": {"extra_args": {"lens_potential_accuracy": 1}}}


def info(path, theory=FAST, **options):
    return {
        "likelihood": {NAME: {"release": path, **options}},
        "theory": copy.deepcopy(theory),
        "params": {
            "omch2": {"prior": {"min": 0.08, "max": 0.16}},
            "ombh2": 0.0222,
            "As": 2.21e-9,
            "ns": 0.9624,
            "tau": 0.0943,
            "H0": 67.94,
            **INSTRUMENT,
        },
    }


def test_through_cobaya_and_camb(path):
    """logp through Cobaya equals the pure function on the spectra that CAMB itself gives."""
    import camb

    model = get_model(info(path, CAMB))
    posterior = model.logposterior({"omch2": 0.12})
    likelihood = model.likelihood[NAME]
    results = camb.get_results(
        camb.set_params(
            ombh2=0.0222,
            omch2=0.12,
            As=2.21e-9,
            ns=0.9624,
            tau=0.0943,
            H0=67.94,
            lmax=1199,
            lens_potential_accuracy=1,
        )
    )
    clpp = results.get_lens_potential_cls(1199, raw_cl=True)[:, 0]
    clee = results.get_unlensed_total_cls(1199, CMB_unit="muK", raw_cl=True)[:, 1]
    clkk = convergence_from_potential(clpp)
    pure = BandpowerLikelihood(read_release(path))
    assert posterior.loglikes[0] == pytest.approx(pure.log_likelihood(clkk, clee), rel=1e-4)
    assert likelihood.log_likelihood(clkk, clee) == pure.log_likelihood(clkk, clee)
    np.testing.assert_allclose(likelihood.model(), pure.model(clkk, clee), rtol=1e-4)
    np.testing.assert_allclose(
        likelihood.residuals(), likelihood.bandpowers - likelihood.model(), rtol=1e-12
    )
    derived = dict(zip(model.parameterization.derived_params(), posterior.derived, strict=True))
    assert derived["cnnlens_chi2"] == pytest.approx(-2 * posterior.loglikes[0])
    assert derived["cnnlens_pte"] == pytest.approx(pure.pte(derived["cnnlens_chi2"]))


@pytest.fixture
def coarse_release(release, tmp_path, camb_once):
    """The synthetic release with CAMB's own spectra at accuracy 1 as its fiducial."""
    settings = CambSettings(lmax=1300, lens_potential_accuracy=1.0, halofit_version="mead2020")
    spectra = camb_once(Cosmology(), settings)
    made = replace(
        release,
        fiducial_kk=spectra.kk[:1201],
        fiducial_ee=spectra.ee[:1201],
        theory=settings_record(Cosmology(), settings),
    )
    write_release(made, tmp_path / "coarse.json")
    return str(tmp_path / "coarse.json")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"lens_potential_accuracy": 1.0, "halofit_version": "mead2020"}, "reproduces"),
        (
            {"lens_potential_accuracy": 1.0, "halofit_version": "original"},
            "what differs: halofit_version: original (release: mead2020)",
        ),
    ],
)
def test_theory_is_checked_at_the_fiducial(coarse_release, extra, said, caplog):
    """The same settings pass; another nonlinear model is told with its size in σ."""
    likelihood = BandpowerLikelihood(read_release(coarse_release))
    theories = {"camb": {"extra_args": {"num_massive_neutrinos": 1, **extra}}}
    content = info(coarse_release)
    content["params"]["mnu"] = 0.06
    content["theory"] = theories
    with caplog.at_level("INFO"):
        get_model(content)
    assert said in caplog.text
    if "halofit" in said:
        offset = theory_offset(theories, likelihood)
        assert f"off by {offset.sigmas:.2f} sigma" in caplog.text
        assert offset.sigmas > 0.1


def test_class_reproduces_the_spectra_of_camb(release, fiducial):
    """CLASS, set as the README says, gives the bandpowers of an accurate CAMB to a quarter of a
    percent; with its own reach in k it does not, and is told so by the setting's name."""
    pytest.importorskip("classy")
    made = replace(
        release,
        fiducial_kk=fiducial.kk[:1201],
        fiducial_ee=fiducial.ee[:1201],
        theory=settings_record(Cosmology(), CambSettings()),
    )
    likelihood = BandpowerLikelihood(made)
    neutrinos = {"N_ncdm": 1, "N_ur": 2.0308}
    found = theory_offset({"classy": {"extra_args": CLASS_SETTINGS | neutrinos}}, likelihood)
    assert abs(found.worst_change) < 0.0025
    assert found.settings == ()
    default = theory_offset({"classy": {"extra_args": neutrinos}}, likelihood)
    assert default.worst_change < -0.005
    assert default.settings == ("k_max_limber_over_l_max_scalars: 0.001 (release: 0.02)",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (CLASS_SETTINGS, []),
        (CLASS_SETTINGS | {"hmcode_version": 2020}, []),
        ({}, ["k_max_limber_over_l_max_scalars: 0.001 (release: 0.02)"]),
        (
            {**CLASS_SETTINGS, "non_linear": "halofit"},
            ["non_linear: halofit (release: hmcode)"],
        ),
        (
            {"non linear": "none", "k_max_limber_over_l_max_scalars": 0.02},
            ["non_linear: none (release: hmcode)"],
        ),
    ],
)
def test_settings_of_class_that_differ(given, said):
    made_with = {"halofit_version": "mead2020", "lens_potential_accuracy": 8.0}
    assert list(different_settings({"classy": {"extra_args": given}}, made_with)) == said


def test_a_theory_that_cannot_be_checked_is_told(coarse_release, monkeypatch, caplog):
    """A failing check warns and goes on; `check_theory: false` does not make it."""

    def fail(*_):
        raise ValueError("no such parameter")

    monkeypatch.setattr("cobaya_cnnlens.likelihood.cnnlens.theory_offset", fail)
    for check in (True, False):
        caplog.clear()
        with caplog.at_level("WARNING"):
            get_model(info(coarse_release, check_theory=check))
        told = "gives no spectra at the release's fiducial cosmology, by which it is checked: Value"
        assert (told in caplog.text) is check


def test_offset_of_a_theory_is_what_its_spectra_give(coarse_release):
    """Two halofit versions, once through Cobaya's block, once through CAMB itself."""
    import camb

    release = read_release(coarse_release)
    likelihood = BandpowerLikelihood(release)
    extra = {"lens_potential_accuracy": 1.0, "halofit_version": "original", "mnu": 0.06}
    extra["num_massive_neutrinos"] = 1
    node = {"class": "cobaya_cnnlens.NodeCAMB", "nodes": {"omch2": 0.002}, "extra_args": extra}
    offset = theory_offset({"camb": node}, likelihood)
    cosmology = {k: v for k, v in release.theory["cosmology"].items() if k != "mnu"}
    results = camb.get_results(camb.set_params(lmax=1300, **cosmology, **extra))
    clkk = convergence_from_potential(results.get_lens_potential_cls(1300, raw_cl=True)[:, 0])
    clee = results.get_unlensed_total_cls(1300, CMB_unit="muK", raw_cl=True)[:, 1]
    change = likelihood.model(clkk, clee) - likelihood.model(
        release.fiducial_kk, release.fiducial_ee
    )
    assert offset.sigmas == pytest.approx(np.sqrt(change @ likelihood.inverse @ change), rel=0.02)
    ours = likelihood.model(release.fiducial_kk, release.fiducial_ee)
    assert offset.worst_bin == np.argmax(np.abs(change / ours))


@pytest.mark.parametrize(
    "settings",
    [
        {"N_ncdm": 1, "deg_ncdm": 3, "N_ur": 0.00641},
        {"N_ncdm": 3, "m_ncdm": "0.02,0.02,0.02", "N_ur": 0.00641},
        {"N_ncdm": 2, "m_ncdm": "0.05,0.01", "T_ncdm": "0.71611,0.71611"},
        {"omega_ncdm": 0.00064},
        {},
    ],
)
def test_class_is_checked_with_the_neutrinos_of_the_release(settings, monkeypatch):
    """However the user's own are given: their sum, not each, is the release's mass."""
    release = read_release("refined_fiducial")
    blocks = []

    def stop(content):
        blocks.append(content)
        raise LoggedError("stop", "here")

    monkeypatch.setattr("cobaya.model.get_model", stop)
    given = {"classy": {"extra_args": {**CLASS_SETTINGS, **settings, "H0": 70}}}
    with pytest.raises(LoggedError, match="here"):
        theory_offset(given, BandpowerLikelihood(release))
    (content,) = blocks
    extra = content["theory"]["classy"]["extra_args"]
    assert extra == CLASS_SETTINGS | {"N_ncdm": 1, "m_ncdm": 0.06, "N_ur": 2.0308}
    assert content["params"] == {
        "omega_b": 0.0222, "omega_cdm": 0.1185, "A_s": 2.21e-9, "n_s": 0.9624,
        "tau_reio": 0.0943, "H0": 67.94,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("theory", "said"),
    [
        (
            {"camb": {"extra_args": {"num_massive_neutrinos": 0}}},
            "CAMBError: non-zero neutrino mass with zero num_massive_neutrinos. Mend",
        ),
        (
            {"camb": {"extra_args": {"lens_potential_acuracy": 1}}},
            "not recognized: Unrecognized parameter: lens_potential_acuracy. Mend",
        ),
        (
            {"camb": {"extra_args": {"halofit_version": "mead2025"}}},
            "mead2025",
        ),
    ],
)
def test_the_error_of_the_theory_itself_is_told(coarse_release, theory, said, caplog):
    """Once, in one line, and not that its spectra are missing."""
    with caplog.at_level("WARNING"):
        CNNLens({"release": coarse_release})._check_theory(theory)
    (record,) = caplog.records
    assert said in record.getMessage()
    assert "KeyError" not in record.getMessage()
    assert "\n" not in record.getMessage()


def test_an_emulator_that_ends_before_the_fiducial_is_told(coarse_release, caplog):
    moved = replace(read_release(coarse_release))
    moved.theory["cosmology"]["omch2"] = 0.2
    write_release(moved, coarse_release)
    CNNLens({"release": coarse_release})._check_theory(FAST)
    assert "no spectra at ombh2 = 0.0222, omch2 = 0.2" in caplog.text


def test_what_a_block_fixes_takes_the_release_s_value():
    """Another mass of the neutrinos is another cosmology, which says nothing of the theory."""
    likelihood = BandpowerLikelihood(read_release("refined_fiducial"))
    likelihood.doubt_said = True
    extra = {"num_massive_neutrinos": 1, "lens_potential_accuracy": 1, "halofit_version": "mead"}
    found = [
        theory_offset({"camb": {"extra_args": extra | more}}, likelihood).sigmas
        for more in ({}, {"mnu": 0.3}, {"H0": 72.0, "tau": 0.05})
    ]
    assert found[1:] == [pytest.approx(found[0], rel=1e-3)] * 2
    settings = list(different_settings({"camb": {"extra_args": {"num_massive_neutrinos": 3}}}, {}))
    assert settings == ["num_massive_neutrinos: 3 (release: 1)"]


def scaled_theory(factor):
    """The emulator with C_L^φφ times a factor, as a user's own theory may have it."""

    class Scaled(EmulatedCAMB):
        emulator = "lcdm"

        def get_Cl(self, **given):
            found = super().get_Cl(**given)
            return found | {"pp": factor * found["pp"]}

    return {"scaled": {"external": Scaled}}


@pytest.mark.parametrize(
    ("factor", "words"),
    [(2 / np.pi, "multiply that by π/2"), (4.0, "divide that by 4"), (0.5, "C_L^κκ/2")],
)
def test_a_factor_of_the_theory_is_named_at_the_start(factor, words, caplog):
    """By the check of the theory; without it at the first point, and no other."""
    for check in (True, False):
        caplog.clear()
        content = emulated({NAME: survey("refined_low", check_theory=check)}, **INSTRUMENT)
        model = get_model(content | {"theory": scaled_theory(factor)})
        assert (words in caplog.text) is check
        for omch2 in (0.1185, 0.1186):
            assert np.isfinite(model.loglike({"omch2": omch2})[0])
        assert caplog.text.count(words) == 1 + check


def test_a_point_of_a_wide_prior_is_not_told(caplog):
    """Power that some cosmology has, and no form of C_L^κκ."""
    model = get_model(emulated({NAME: survey("refined_low")}, **INSTRUMENT))
    model.loglike({"omch2": 0.13})
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_doubts_of_spectra_given_without_a_theory(caplog):
    component = CNNLens({"release": "refined_low"})
    kk = component.release_data.fiducial_kk
    component.log_likelihood(kk)
    assert not caplog.records or "CAMB" not in caplog.text
    for _ in range(2):
        component.log_likelihood(2 / np.pi * kk)
    assert caplog.text.count("CAMB's own scaling") == 1


def test_every_theory_can_give_what_is_asked_for():
    """C_l^TT to l = 1, without which CLASS would have nothing to lens; ours is zero."""
    model = get_model(emulated({NAME: survey("refined_low")}, **INSTRUMENT))
    assert model.likelihood[NAME].get_requirements()["Cl"] == {"pp": 4400, "tt": 1}
    model.loglike({"omch2": 0.12})
    assert model.provider.get_Cl()["tt"].tolist() == [0.0, 0.0]
    with pytest.raises(LoggedError, match="has no 'Cl: tt'; use cobaya's own camb"):
        model.add_requirements({"Cl": {"tt": 2}})


@pytest.mark.slow
def test_class_against_the_emulator():
    """The shipped input as it is, at the fiducial."""
    pytest.importorskip("classy")
    content = yaml_load_file(str(REPOSITORY / "yaml" / "omegac_class.yaml"))
    content["likelihood"][NAME]["check_theory"] = False
    wanted = get_model(emulated({NAME: survey("refined_fiducial")}, **INSTRUMENT))
    keys = ("likelihood", "theory", "params")
    found = get_model({key: content[key] for key in keys}).loglike({"omega_cdm": 0.1185})[0]
    assert found == pytest.approx(wanted.loglike({"omch2": 0.1185})[0], abs=0.3)


PATHS = {
    "a Path": (lambda folder: folder / "r.json", lambda folder: folder / "e.npz"),
    "the home folder": (lambda _: "~/r.json", lambda _: Path("~/e.npz")),
    "a list": (lambda folder: [folder / "r.json"], lambda _: "~/e.npz"),
    "a tuple": (lambda _: (Path("~/r.json"),), lambda _: "lcdm"),
}


@pytest.mark.parametrize(("release", "emulator"), PATHS.values(), ids=PATHS)
def test_paths_as_users_give_them(release, emulator, tmp_path, monkeypatch):
    """Read, and as texts in the chain's input, from which it is begun again."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_release(read_release("refined_low"), tmp_path / "r.json")
    made = read_emulator("lcdm")
    write_emulator(made.tables, made.record, tmp_path / "e.npz")
    content = emulated({NAME: survey(release(tmp_path))}, **INSTRUMENT)
    content["theory"] = {"cobaya_cnnlens.EmulatedCAMB": {"emulator": emulator(tmp_path)}}
    chain_of(content, tmp_path / "c")
    kept = yaml.safe_load((tmp_path / "c.updated.yaml").read_text())
    model = get_model({key: kept[key] for key in ("likelihood", "theory", "params")})
    assert np.isfinite(model.loglike({"omch2": 0.12})[0])


def test_an_input_copied_elsewhere_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in LENSING_INPUTS:
        (tmp_path / path.name).write_text(path.read_text())
        copied = update_info(yaml_load_file(path.name))
        assert "cnnlens_chi2" in copied["params"], path.name


def test_short_theory_is_one_clear_error(path, monkeypatch):
    model = get_model(info(path, primary=True))
    likelihood = model.likelihood[NAME]
    short = {"pp": np.ones(2000), "ee": np.ones(900)}
    monkeypatch.setattr(likelihood.provider, "get_Cl", lambda **_: short)
    monkeypatch.setattr(likelihood.provider, "get_unlensed_Cl", lambda **_: short)
    with pytest.raises(LoggedError, match="C_l\\^ee ends at l = 899; it must reach 1199"):
        likelihood.logp(**INSTRUMENT)
    short["pp"] = short["pp"][:50]
    with pytest.raises(LoggedError, match="C_L\\^pp ends at L = 49; it must reach 1099"):
        likelihood.logp(**INSTRUMENT)


def test_spectra_in_a_wrong_form_stop_the_run(path):
    """Cobaya would give every point no likelihood, and never say why."""
    model = get_model(info(path, primary=True))
    spectra = model.likelihood[NAME].release_data
    wrong = (spectra.fiducial_kk, 1e-12 * spectra.fiducial_ee)
    model.likelihood[NAME].theory_spectra = lambda: wrong
    with pytest.raises(LoggedError, match=r"C_l\^EE has .* it looks like C_l in K²; give µK²"):
        model.loglike({"omch2": 0.12})


@pytest.mark.parametrize("stop", [False, True])
def test_a_point_whose_spectra_are_senseless(path, caplog, stop):
    """After others it has no likelihood, as a point that CAMB refuses; or stops, if asked to."""
    model = get_model(info(path, stop_at_error=stop))
    likelihood = model.likelihood[NAME]
    kk, ee = likelihood.release_data.fiducial_kk, likelihood.release_data.fiducial_ee
    likelihood.theory_spectra = lambda: (kk, ee)
    assert np.isfinite(model.loglike({"omch2": 0.12})[0])
    likelihood.theory_spectra = lambda: (np.nan * kk, ee)
    if stop:
        with pytest.raises(LoggedError, match="C_L\\^κκ is not finite; check the theory"):
            model.loglike({"omch2": 0.121})
        return
    for value in (0.121, 0.122):
        assert model.loglike({"omch2": value})[0] == -np.inf
    said = [r for r in caplog.records if "such a point has no likelihood" in r.getMessage()]
    assert len(said) == 1
    likelihood.theory_spectra = lambda: (kk, ee)
    assert np.isfinite(model.loglike({"omch2": 0.123})[0])


def test_derived_parameters_near_the_best_fit(path):
    """Where the probability to exceed is neither 0 nor 1."""
    model = get_model(info(path))
    likelihood = model.likelihood[NAME]
    release = likelihood.release_data
    likelihood.theory_spectra = lambda: (1.03 * release.fiducial_kk, release.fiducial_ee)
    found = model.logposterior({"omch2": 0.12}, as_dict=True)["derived"]
    chi2 = likelihood.likelihood.chi2(*likelihood.theory_spectra())
    assert found["cnnlens_chi2"] == pytest.approx(chi2)
    assert found["cnnlens_pte"] == pytest.approx(likelihood.likelihood.pte(chi2))
    assert 0.01 < found["cnnlens_pte"] < 0.99


def test_options_reach_the_model(path):
    """Through Cobaya as through the pure function, each option by itself."""
    model = get_model(info(path))
    usual = model.loglike({"omch2": 0.13})[0]
    spectra = model.likelihood[NAME].theory_spectra()
    release = read_release(path)
    for options in (
        {"noise_debias": "fixed"},
        {"statistics": "sellentin-heavens"},
        {"L_min": 200},
        {"L_max": 900.0},
        {"calibration_errors": False},
    ):
        seen = get_model(info(path, **options)).loglike({"omch2": 0.13})[0]
        assert seen == pytest.approx(
            BandpowerLikelihood(release, **options).log_likelihood(*spectra)
        )
        assert seen != pytest.approx(usual, rel=1e-4)


def test_nuisances_reach_the_model(path):
    """Sampled by default under Gaussian priors; each moves the likelihood as the model says."""
    content = info(path)
    content["params"] = {k: v for k, v in content["params"].items() if k not in INSTRUMENT}
    model = get_model(content)
    stated = CNNLens.get_defaults()["params"]
    widths = {name: stated[name]["prior"]["scale"] for name in INSTRUMENT}
    assert [*widths.values()][:3] == [0.005, 0.01, 0.01]
    assert list(model.parameterization.sampled_params()) == ["omch2", *widths]
    pure = BandpowerLikelihood(read_release(path))
    for i, (name, width) in enumerate(widths.items()):
        x = np.zeros(len(widths))
        x[i] = 2 * width
        point = {"omch2": 0.12, **dict(zip(widths, x, strict=True))}
        seen = model.logposterior(point)
        spectra = model.likelihood[NAME].theory_spectra()
        assert seen.loglike == pytest.approx(pure.log_likelihood(*spectra, x))
        still = model.logposterior({"omch2": 0.12, **dict.fromkeys(widths, 0.0)})
        assert seen.loglike != pytest.approx(still.loglike, abs=1e-4), name
        assert sum(still.logpriors) - sum(seen.logpriors) == pytest.approx(2.0)


def told_of_range(likelihood, spectra, points, caplog):
    """What is said while ``points`` of these spectra pass."""
    caplog.clear()
    likelihood.theory_spectra = lambda: spectra
    with caplog.at_level("WARNING"):
        for _ in range(points):
            likelihood.logp(**INSTRUMENT)
    return caplog.text


def test_a_posterior_beyond_the_range_is_told_once(release, tmp_path, caplog):
    """Where most points near the best fit lie beyond what was measured; not for a single point."""
    far = (1.45 * release.fiducial_kk, None)
    release = at_fiducial_power(replace(release, curvature=0 * release.curvature))
    moved = BandpowerLikelihood(release).model(*far)
    write_release(replace(release, bandpowers=moved), tmp_path / "far.json")
    likelihood = get_model(info(str(tmp_path / "far.json"))).likelihood[NAME]
    assert not told_of_range(likelihood, far, WATCHED - 1, caplog)
    text = told_of_range(likelihood, far, 1, caplog)
    assert "100% of the points within 4 of the lowest" in text
    assert "measured to 10%" in text
    assert not told_of_range(likelihood, far, 2 * WATCHED, caplog)
    fixed = get_model(info(str(tmp_path / "far.json"), noise_debias="fixed")).likelihood[NAME]
    assert not told_of_range(fixed, far, WATCHED, caplog)


@pytest.mark.parametrize("noise_debias", ["data", "fixed"])
def test_a_poor_fit_is_told_once(release, tmp_path, caplog, noise_debias):
    """Of the lowest χ² near which the chain is, whatever its first points were."""
    release = at_fiducial_power(release)
    sigma = np.sqrt(np.diag(release.covariance))
    fiducial = (release.fiducial_kk, release.fiducial_ee)
    for name, pull, told in (("poor", 5.0, True), ("good", 1.0, False)):
        data = release.bandpowers + pull * sigma * np.array([1, -1, 1, -1, 1])
        write_release(replace(release, bandpowers=data), tmp_path / f"{name}.json")
        options = {"noise_debias": noise_debias, "statistics": "hartlap"}
        likelihood = get_model(info(str(tmp_path / f"{name}.json"), **options)).likelihood[NAME]
        assert not told_of_range(likelihood, fiducial, WATCHED - 1, caplog)
        text = told_of_range(likelihood, fiducial, 1, caplog)
        assert ("the data do not fit: the lowest chi^2 so far is" in text) is told
        assert not told_of_range(likelihood, fiducial, 2 * WATCHED, caplog)


def test_tails_and_burn_in_beyond_the_range_are_not_told(path, caplog):
    """A chain that begins far off, finds the data's cosmology, and visits its tails."""
    likelihood = get_model(info(path)).likelihood[NAME]
    release = likelihood.release_data
    near, far = ((factor * release.fiducial_kk, release.fiducial_ee) for factor in (1.0, 1.3))
    assert not told_of_range(likelihood, far, WATCHED - 1, caplog)
    assert not told_of_range(likelihood, near, 1, caplog)
    for _ in range(3):
        assert not told_of_range(likelihood, far, WATCHED, caplog)
        assert not told_of_range(likelihood, near, WATCHED, caplog)


def test_the_watch_counts_what_carries_the_posterior():
    """A third of the points near the lowest χ² beyond: told; a tenth: not."""
    for every, told in ((3, True), (10, False)):
        watch = Watch()
        fractions = [
            watch.count(i % every == 0) for i in range(WATCHED) if watch.near(20.0 + i % 3)
        ]
        assert fractions[-1] == pytest.approx(1 / every, abs=0.01)
        assert (fractions[-1] > TOLERATED) is told
    watch = Watch()
    assert watch.near(20.0)
    assert not watch.near(24.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_debias": "none"}, "noise_debias is 'none'; choose one of"),
        ({"noise_debia": "fixed"}, "noise_debia"),
        ({"statistics": "t"}, "statistics is 't'; choose one of"),
        ({"release": "no_such_release"}, "no such release"),
        ({"release": 3}, "option 'release' is 3"),
        ({"calibration_errors": "false"}, "option 'calibration_errors' is 'false'; give true or"),
        ({"calibration_errors": 0}, "option 'calibration_errors' is 0; give true or false"),
        ({"check_theory": "no"}, "option 'check_theory' is 'no'; give true or false"),
        ({"L_min": "100"}, "option 'L_min' is '100'; give a number"),
        ({"L_max": True}, "option 'L_max' is True; give a number"),
        ({"L_max": float("nan")}, "option 'L_max' is nan; give a number"),
        ({"statistics": None}, "option 'statistics' is None; give a word"),
        ({"suffix": 2}, "option 'suffix' is 2; give a text"),
        ({"instrument": "Known"}, "option 'instrument' is 'Known'; choose one of"),
        ({"instrument": True}, "option 'instrument' is True; give a word"),
        ({"params": {"cnnlens_gian": 0}}, "'params' has cnnlens_gian, unknown .* cnnlens_gain, "),
        ({"params": {"gain": 0, "cnnlens_Beam": 0}}, "'params' has gain, cnnlens_Beam, unknown"),
        ({"suffix": "_n", "params": {"cnnlens_gain": 0}}, "has cnnlens_gain, .* cnnlens_gain_n, "),
        ({"params": ["cnnlens_gain"]}, r"'params' is \['cnnlens_gain'\]; give a mapping"),
    ],
)
def test_wrong_options_are_one_clear_error(path, options, message, capsys):
    content = info(path)
    content["likelihood"][NAME] |= options
    with pytest.raises(LoggedError, match=message):
        get_model(content)


def emulated(likelihoods, **params):
    """The fiducial cosmology, with omch2 sampled, from the emulator."""
    fixed = {"ombh2": 0.0222, "As": 2.21e-9, "ns": 0.9624, "H0": 67.94}
    sampled = {"omch2": {"prior": {"min": 0.11, "max": 0.13}, "ref": 0.1185, "proposal": 0.0005}}
    return {"likelihood": likelihoods, "theory": FAST, "params": sampled | fixed | params}


def survey(release="refined_fiducial", **options):
    return {"class": NAME, "release": release, "check_theory": False, **options}


def test_two_surveys_in_one_run():
    """Each has its own χ² and nuisances; what they share is tied in the input."""
    both = {"low": survey("refined_low"), "north": survey("refined_high", suffix="_north")}
    tied = {f"{name}_north": f"lambda {name}: {name}" for name in INSTRUMENT}
    model = get_model(emulated(both, **INSTRUMENT | tied))
    found = model.logposterior({"omch2": 0.12})
    derived = dict(zip(model.parameterization.derived_params(), found.derived, strict=True))
    assert derived["cnnlens_chi2"] == pytest.approx(-2 * found.loglikes[0])
    assert derived["cnnlens_chi2_north"] == pytest.approx(-2 * found.loglikes[1])
    for i, release in enumerate(("refined_low", "refined_high")):
        alone = get_model(emulated({"one": survey(release)}, **INSTRUMENT))
        assert alone.loglike({"omch2": 0.12})[0] == pytest.approx(found.loglikes[i])
    apart = get_model(emulated(both, **INSTRUMENT))
    assert list(apart.parameterization.sampled_params())[1:] == [f"{n}_north" for n in INSTRUMENT]
    moved = apart.loglikes({"omch2": 0.12, **dict.fromkeys(tied, 0.0), "cnnlens_gain_north": 0.01})
    assert moved[0][0] == pytest.approx(found.loglikes[0])
    assert moved[0][1] != pytest.approx(found.loglikes[1], abs=0.1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (survey(), survey(suffix="_b")),
        (survey(["refined_low", "refined_high"]), survey("refined_low", suffix="_b")),
        (survey(L_max=1500), survey(suffix="_b", L_min=1000, noise_debias="fixed")),
    ],
)
def test_a_survey_counts_once(first, second):
    with pytest.raises(LoggedError, match="the same bandpowers of the same survey"):
        get_model(emulated({"a": first, "b": second}, **INSTRUMENT))


def test_bins_of_a_survey_may_be_shared_out():
    known = {"instrument": "known"}
    parts = {"a": survey(L_max=1300, **known), "b": survey(suffix="_b", L_min=1300, **known)}
    assert np.isfinite(get_model(emulated(parts)).loglike({"omch2": 0.12})[0])


def chain_of(info, output, **options):
    sampler = {"mcmc": {"max_samples": 12, "burn_in": 0, "seed": 1, "covmat": None}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas, on how cobaya writes its progress
        return run(info | {"output": str(output), "sampler": sampler}, no_mpi=True, **options)


def test_a_chain_is_not_resumed_with_other_data(tmp_path):
    """Another bandpower under the same name is refused; the same data under other words is not."""
    data = read_release("refined_fiducial")
    write_release(data, tmp_path / "r.json")
    content = emulated({NAME: survey(str(tmp_path / "r.json"))}, **INSTRUMENT)
    chain_of(content, tmp_path / "c")
    write_release(replace(data, description="the same"), tmp_path / "r.json")
    chain_of(content, tmp_path / "c", resume=True)
    write_release(replace(data, bandpowers=1.001 * data.bandpowers), tmp_path / "r.json")
    with pytest.raises(LoggedError, match=r"r\.json' is not the one that the chain was begun with"):
        chain_of(content, tmp_path / "c", resume=True)
    # The chain's own input is refused too, and its own change of version with one line.
    again = yaml.safe_load((tmp_path / "c.updated.yaml").read_text())
    with pytest.raises(LoggedError, match="is not the one that the chain was begun with"):
        get_model({k: again[k] for k in ("likelihood", "theory", "params")})
    chain_of(content, tmp_path / "c", resume=True, allow_changes=True)


def test_a_chain_is_not_resumed_with_another_emulator(tmp_path):
    made = read_emulator("lcdm")
    write_emulator(made.tables, made.record, tmp_path / "e.npz")
    content = emulated({NAME: survey()}, **INSTRUMENT)
    content["theory"] = {"cobaya_cnnlens.EmulatedCAMB": {"emulator": str(tmp_path / "e.npz")}}
    chain_of(content, tmp_path / "c")
    chain_of(content, tmp_path / "c", resume=True)
    made.tables.kk_mean[3] *= 1.0001
    write_emulator(made.tables, made.record, tmp_path / "e.npz")
    with pytest.raises(LoggedError, match=r"e\.npz' is not the one that the chain was begun with"):
        chain_of(content, tmp_path / "c", resume=True)


@pytest.mark.parametrize("component", [CNNLens, EmulatedCAMB])
def test_another_digest_counts_as_newer(component):
    """Cobaya refuses to resume when the chain's version is higher than the one asked for."""
    assert component.compare_versions("ab12", "cd34", equal=False)
    assert not component.compare_versions("ab12", "ab12", equal=False)
    assert component.compare_versions("ab12", "ab12")
    assert not component.compare_versions("ab12", "cd34")


def test_digest_is_of_what_enters_the_likelihood(release):
    digests = {digest_of_numbers(release)}
    for field in fields(release):
        value = getattr(release, field.name)
        changed = 1 + value if isinstance(value, int) else value
        if isinstance(value, np.ndarray):
            changed = value.copy()
            changed.flat[-1] += 1
        other = digest_of_numbers(replace(release, **{field.name: changed}))
        assert (other in digests) is (changed is value), field.name
        digests.add(other)


@pytest.mark.parametrize("L_min", [None, 800])
def test_the_worst_bin_is_one_of_the_release(L_min, tmp_path, caplog):
    """Spectra wrong in two bins are found in the one where the power changes by more of itself,
    whichever bins are in use; it is told by its multipoles."""
    data = read_release("refined_fiducial")
    fiducial = data.fiducial_kk.copy()
    bin_ = int(np.searchsorted(data.edges, 1300)) - 1
    fiducial[data.edges[bin_] : data.edges[bin_ + 1]] *= 1.1
    other = int(np.searchsorted(data.edges, 1000)) - 1
    fiducial[data.edges[other] : data.edges[other + 1]] *= 1.08
    wrong = replace(data, fiducial_kk=fiducial)
    likelihood = BandpowerLikelihood(wrong, "fixed", L_min=L_min)
    offset = theory_offset(FAST, likelihood)
    assert offset.worst_bin == bin_
    assert -0.095 < offset.worst_change < -0.05
    change = likelihood.model(data.fiducial_kk, data.fiducial_ee) - likelihood.model(
        fiducial, data.fiducial_ee
    )
    assert likelihood.bins[np.abs(change).argmax()] == other
    assert offset.sigmas == pytest.approx(np.sqrt(change @ likelihood.inverse @ change), rel=0.02)
    write_release(wrong, tmp_path / "r.json")
    options = {"check_theory": True, "L_min": L_min, "noise_debias": "fixed"}
    with caplog.at_level("WARNING"):
        get_model(emulated({NAME: survey(str(tmp_path / "r.json"), **options)}, **INSTRUMENT))
    assert f"most in L = {data.edges[bin_]}-{data.edges[bin_ + 1]}, by -" in caplog.text


@pytest.mark.parametrize(
    "path", [p for p in LENSING_INPUTS if "EmulatedCAMB" in p.read_text()], ids=lambda p: p.stem
)
def test_the_box_holds_the_priors_of_emulated_inputs(path):
    """Flat ones whole, Gaussian ones to five sigma."""
    content = yaml_load_file(str(path))
    emulator = read_emulator(content["theory"]["cobaya_cnnlens.EmulatedCAMB"]["emulator"])
    sides = dict(
        zip(
            emulator.parameters,
            zip(emulator.tables.low, emulator.tables.high, strict=True),
            strict=True,
        )
    )
    checked = 0
    for name, (low, high) in sides.items():
        prior = (content["params"].get(name) or {}) if name in content["params"] else {}
        prior = prior.get("prior") if isinstance(prior, dict) else None
        if prior is None:
            continue
        checked += 1
        spread = 5 * prior.get("scale", 0.0)
        assert low <= prior.get("min", prior.get("loc")) - spread + 1e-9, name
        assert prior.get("max", prior.get("loc")) + spread - 1e-9 <= high, name
    assert checked


@pytest.mark.parametrize("path", LENSING_INPUTS, ids=lambda p: p.stem)
def test_shipped_inputs_evaluate(path, tmp_path, monkeypatch):
    """Every input file, read from any folder, builds its model and gives a finite posterior at its
    reference point; its CAMB, or its emulator's, is set as the release's was, and run coarsely
    here."""
    monkeypatch.chdir(tmp_path)
    content = yaml_load_file(str(path))
    content.pop("sampler")
    content.pop("output")
    release = read_release(content["likelihood"][NAME]["release"])
    made_with = release.theory["settings"]
    if "classy" in content["theory"]:
        pytest.importorskip("classy")
        settings = content["theory"]["classy"]["extra_args"]
        assert CLASS_SETTINGS.items() <= settings.items()
        settings["k_max_limber_over_l_max_scalars"] = 0.001
        settings = made_with
    elif emulated := content["theory"].get("cobaya_cnnlens.EmulatedCAMB"):
        settings = read_emulator(emulated["emulator"]).record["settings"]
    else:
        block = content["theory"]["camb"]
        settings = dict(block["extra_args"])
        block["extra_args"]["lens_potential_accuracy"] = 1
        if "nodes" in block and path.stem != "omegac":  # four to sixteen runs of CAMB for one point
            del block["class"], block["nodes"]
    # An input with feedback is for real data; the mocks have none.
    feedback = "_feedback" if path.stem == "feedback" else ""
    assert settings["halofit_version"] == made_with["halofit_version"] + feedback
    assert settings["lens_potential_accuracy"] == made_with["lens_potential_accuracy"]
    content["likelihood"][NAME]["check_theory"] = False
    model = get_model(content)
    point = dict(
        zip(
            model.parameterization.sampled_params(),
            model.prior.reference(random_state=1),
            strict=True,
        )
    )
    assert np.isfinite(model.logposterior(point).logpost)


def test_a_known_instrument_is_fixed_at_zero():
    """Every nuisance, under its label and the suffix; the derived χ² and PTE stay."""
    defaults = CNNLens.get_defaults()["params"]
    for suffix in ("", "_north"):
        options = {"instrument": "known", "suffix": suffix}
        found = update_info({"likelihood": {NAME: options}})["params"]
        for name, content in defaults.items():
            fixed = {"derived": True} if content.get("derived") else {"value": 0}
            label = content["latex"] + (r"\ (\mathrm{north})" if suffix else "")
            assert found[f"{name}{suffix}"] == {"latex": label, **fixed}
    # The parameters of an input come after.
    sampled = {"prior": {"dist": "norm", "loc": 0, "scale": 0.02}}
    content = {"likelihood": {NAME: {"instrument": "known"}}, "params": {"cnnlens_beam": sampled}}
    assert update_info(content)["params"]["cnnlens_beam"]["prior"] == sampled["prior"]


@pytest.mark.parametrize(
    "given", [{}, {"cnnlens_gain": 0}, INSTRUMENT, {"cnnlens_pte": {"derived": True}}]
)
@pytest.mark.parametrize("suffix", ["", "_north"])
def test_parameters_in_the_block_leave_the_others(given, suffix):
    """Cobaya would put them in the place of all, and lose χ² and the other priors."""
    params = {f"{name}{suffix}": content for name, content in given.items()}
    content = emulated({NAME: survey(suffix=suffix, params=params or None)})
    model = get_model(content)
    names = [f"{name}{suffix}" for name in CNNLens.get_defaults()["params"]]
    assert set(names) <= set(model.parameterization.labels())
    sampled = [n for n in names[: len(INSTRUMENT)] if n not in params]
    assert list(model.parameterization.sampled_params()) == ["omch2", *sampled]
    found = model.logposterior({"omch2": 0.12, **dict.fromkeys(sampled, 0.0)}, as_dict=True)
    chi2 = found["derived"][f"cnnlens_chi2{suffix}"]
    assert chi2 == pytest.approx(-2 * sum(found["loglikes"].values()))


@pytest.mark.parametrize("path", LENSING_INPUTS, ids=lambda p: p.stem)
def test_inputs_fix_the_instrument_but_for_one(path):
    updated = update_info(yaml_load_file(str(path)))["params"]
    sampled = {name for name in INSTRUMENT if "prior" in updated[name]}
    assert sampled == (set(INSTRUMENT) if path.stem == "nuisances" else set())


def test_post_takes_the_known_instrument(tmp_path, monkeypatch):
    """An input of Cobaya's `post` in another folder: the chain's likelihood with another option."""
    monkeypatch.chdir(tmp_path)
    content = yaml_load_file(str(REPOSITORY / "yaml" / "omegac_fast.yaml"))
    content["likelihood"][NAME]["check_theory"] = False
    chain_of(content, "c")
    (tmp_path / "post.yaml").write_text(
        f"""\
output: c
post:
  suffix: fixed
  skip: 0
  remove: {{likelihood: {{{NAME}: }}}}
  add:
    likelihood:
      {NAME}:
        noise_debias: fixed
        check_theory: false
        instrument: known
"""
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas, on how cobaya writes its progress
        run(str(tmp_path / "post.yaml"), no_mpi=True)
    added = yaml_load_file(str(tmp_path / "c.post.fixed.updated.yaml"))
    assert added["likelihood"][NAME]["noise_debias"] == "fixed"
    assert all(added["params"][name]["value"] == 0 for name in INSTRUMENT)


def test_node_camb_against_camb(path):
    """CAMB at nodes and CAMB at the point itself, in spectra and derived parameters. Cobaya's CAMB
    gives spectra 0.1% lower when it is asked for sigma8 too, so that is compared by itself."""
    nodes, plain, derived = (info(path, CAMB, primary=True) for _ in range(3))
    nodes["theory"]["camb"] |= {"class": "cobaya_cnnlens.NodeCAMB", "nodes": {"omch2": 0.002}}
    for content in (nodes, plain, derived):
        content["theory"]["camb"]["extra_args"]["lens_potential_accuracy"] = 2
    for content in (nodes, derived):
        content["params"] |= {"sigma8": None, "omegam": None}
    found, expected, theirs = get_model(nodes), get_model(plain), get_model(derived)
    for omch2 in (0.1183, 0.12074):
        ours = found.logposterior({"omch2": omch2})
        expected.logposterior({"omch2": omch2})
        for one, two in zip(
            found.likelihood[NAME].theory_spectra(),
            expected.likelihood[NAME].theory_spectra(),
            strict=True,
        ):
            n = min(len(one), len(two))
            np.testing.assert_allclose(one[2:n], two[2:n], rtol=3e-4)
    ours = dict(zip(found.parameterization.derived_params(), ours.derived, strict=True))
    other = theirs.logposterior({"omch2": omch2}).derived
    other = dict(zip(theirs.parameterization.derived_params(), other, strict=True))
    assert ours["sigma8"] == pytest.approx(other["sigma8"], rel=5e-4)
    assert ours["omegam"] == pytest.approx(other["omegam"], rel=1e-6)


@pytest.mark.slow
def test_units_of_node_camb(path):
    content = info(path, CAMB)
    content["theory"]["camb"] |= {"class": "cobaya_cnnlens.NodeCAMB", "nodes": {"omch2": 0.002}}
    model = get_model(content)
    model.logposterior({"omch2": 0.12})
    provider = model.provider
    raw, scaled = (
        provider.get_unlensed_Cl(ell_factor=f, units="muK2")["ee"] for f in (False, True)
    )
    assert scaled[100] == pytest.approx(raw[100] * 100 * 101 / (2 * np.pi))
    raw, scaled = (provider.get_Cl(ell_factor=f, units="muK2")["pp"] for f in (False, True))
    assert scaled[100] == pytest.approx(raw[100] * (100 * 101) ** 2 / (2 * np.pi))


def test_node_camb_refuses_a_parameter_given_twice(path):
    content = info(path, CAMB)
    content["theory"]["camb"] |= {"class": "cobaya_cnnlens.NodeCAMB", "nodes": {"omch2": 0.002}}
    content["theory"]["camb"]["extra_args"] = {"ns": 0.96}
    with pytest.raises(LoggedError, match=r"'ns'.*both as parameters and in 'extra_args'"):
        get_model(content).logposterior({"omch2": 0.12})


COMPONENTS = {"CNNLens": "likelihood", "EmulatedCAMB": "theory", "NodeCAMB": "theory"}


@pytest.mark.parametrize(("name", "kind"), COMPONENTS.items())
def test_cobaya_documents_every_option(name, kind, capsys):
    """`cobaya-doc` prints each with its default, under a comment that says what it is."""
    doc_script([f"cobaya_cnnlens.{name}"])
    printed = capsys.readouterr().out
    options = yaml_load(printed)[kind][f"cobaya_cnnlens.{name}"]
    declared = set(getattr(cobaya_cnnlens, name).__annotations__)
    assert declared
    assert set(options) - {"params", "speed"} == declared
    lines = [line.strip() for line in printed.splitlines()]
    for option in declared - {"L_max"}:  # of L_min too
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{option}:"))
        assert lines[at - 1].startswith("#"), option


@pytest.mark.parametrize("file", ["omegac", "omegac_fast"])
def test_cobaya_cites_camb_the_paper_and_this_package(file):
    _, entries = get_bib_info(load_input(str(REPOSITORY / "yaml" / f"{file}.yaml")))
    (theory,), (ours,) = entries["theory"].values(), entries["likelihood"].values()
    assert "@article{Lewis:1999bs," in theory
    assert "@article{Caldeira:2018ojb," in ours
    assert "@misc{cobaya_cnnlens," in ours


@pytest.mark.parametrize("name", ["EmulatedCAMB", "NodeCAMB"])
def test_cobaya_cites_camb_for_the_theories(name):
    (cited,) = get_bib_info(f"cobaya_cnnlens.{name}")[1]["theory"].values()
    assert "@article{Lewis:1999bs," in cited
    assert "@misc{cobaya_cnnlens," in cited
