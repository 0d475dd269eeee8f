"""Lensing and BAO: distances, sound horizon and H0 from an angle, through Cobaya, against CAMB."""

import camb
import numpy as np
import pytest
from cobaya.bib import get_bib_info
from cobaya.input import update_info
from cobaya.log import LoggedError
from cobaya.model import Model, get_model
from cobaya.yaml import yaml_load_file

import yaml
from cobaya_cnnlens.likelihood.document import NUISANCES
from cobaya_cnnlens.theory.camb import Cosmology, hubble_constant
from cobaya_cnnlens.theory.emulated import EmulatedCAMB

from ..conftest import REPOSITORY

LENSING, BAO = "cobaya_cnnlens.CNNLens", "cobaya_cnnlens.DESIDR2BAO"
EMULATED = "cobaya_cnnlens.EmulatedCAMB"
COSMOLOGY = {"ombh2": 0.0222, "omch2": 0.1185, "ns": 0.9624, "As": 2.21e-9}
INSTRUMENT = {f"cnnlens_{name}": 0 for name in NUISANCES}
DESI = REPOSITORY / "cobaya_cnnlens" / "likelihood" / "data"


def content(theory=None, likelihoods=(BAO,), **params):
    """An input: lensing and others, the emulator beside another theory if one is given."""
    lensing = {LENSING: {"release": "refined_fiducial", "check_theory": False}}
    return {
        "likelihood": lensing | dict.fromkeys(likelihoods),
        "theory": {EMULATED: {"emulator": "lcdm"}} if theory is None else theory,
        "params": {**COSMOLOGY, **INSTRUMENT, **params},
    }


def evaluated(info, **point):
    """ln L of each likelihood, and derived parameters."""
    model = get_model(info)
    loglikes, derived = model.loglikes(point)
    names = model.parameterization.derived_params()
    return dict(zip(info["likelihood"], loglikes, strict=True)), dict(
        zip(names, derived, strict=True)
    )


def by_camb(H0, mnu=0.06, **changes):
    """ln L of DESI DR2 from CAMB and the published numbers alone, and CAMB's r_drag."""
    results = camb.get_background(
        camb.set_params(**{**COSMOLOGY, **changes}, H0=H0, mnu=mnu, tau=0.09)
    )
    rdrag = results.get_derived_params()["rdrag"]
    residuals = []
    for line in (DESI / "desi_dr2_bao_mean.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        z, value, kind = line.split()
        z = float(z)
        dm, dh = results.comoving_radial_distance(z), 299792.458 / results.hubble_parameter(z)
        distance = {"DM": dm, "DH": dh, "DV": np.cbrt(z * dm**2 * dh)}[kind[:2]]
        residuals.append(distance / rdrag - float(value))
    residuals = np.array(residuals)
    covariance = np.loadtxt(DESI / "desi_dr2_bao_cov.txt")
    return -0.5 * residuals @ np.linalg.solve(covariance, residuals), rdrag


# z → quantity, value (arXiv:2503.14738, Table IV), error (of the covariance that was released).
PUBLISHED = {
    0.295: [("DV", 7.942, 0.0761)],
    0.510: [("DM", 13.588, 0.1684), ("DH", 21.863, 0.4289)],
    0.706: [("DM", 17.351, 0.1799), ("DH", 19.455, 0.3339)],
    0.934: [("DM", 21.576, 0.1618), ("DH", 17.641, 0.2010)],
    1.321: [("DM", 27.601, 0.3246), ("DH", 14.176, 0.2246)],
    1.484: [("DM", 30.512, 0.7636), ("DH", 12.817, 0.5180)],
    2.330: [("DM", 38.989, 0.5317), ("DH", 8.632, 0.1011)],
}


def test_the_values_are_those_that_desi_published():
    """Those of one redshift are anticorrelated, those of different redshifts independent."""
    lines = (DESI / "desi_dr2_bao_mean.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    covariance = np.loadtxt(DESI / "desi_dr2_bao_cov.txt")
    found: dict = {z: [] for z in PUBLISHED}
    for (z, value, kind), variance in zip(rows, np.diag(covariance), strict=True):
        found[float(z)].append((kind[:2], round(float(value), 3), round(np.sqrt(variance), 4)))
    assert {z: sorted(of, reverse=True) for z, of in found.items()} == PUBLISHED
    z = np.array([float(row[0]) for row in rows])
    pairs = (z[:, None] == z) & ~np.eye(len(z), dtype=bool)
    assert (covariance[pairs] < 0).all()
    assert (covariance[z[:, None] != z] == 0).all()
    np.testing.assert_array_equal(covariance, covariance.T)


@pytest.mark.parametrize("changes", [{}, {"H0": 72.0}, {"omch2": 0.11, "H0": 65.0}])
def test_lensing_and_bao_run_on_the_emulator_alone(changes):
    """ln L of the BAO is that of CAMB and of the published numbers."""
    changes = {"H0": 67.94} | changes
    found, derived = evaluated(content(**changes, rdrag=None))
    expected, rdrag = by_camb(**changes)
    assert np.isfinite(found[LENSING])
    assert found[BAO] == pytest.approx(expected, abs=0.02)
    assert derived["rdrag"] == pytest.approx(rdrag, rel=1e-4)


def test_bao_of_massive_neutrinos():
    found, _ = evaluated(content({EMULATED: {"emulator": "mnu"}}, H0=67.94, mnu=0.3))
    assert found[BAO] == pytest.approx(by_camb(67.94, mnu=0.3)[0], abs=0.05)


@pytest.mark.parametrize("point", [{}, {"omch2": 0.105}, {"ombh2": 0.0205, "omch2": 0.135}])
@pytest.mark.parametrize(
    ("angle", "value"), [("cosmomc_theta", 0.0104), ("theta_MC_100", 1.04), ("thetastar", 0.0104)]
)
def test_h0_comes_from_an_angle(point, angle, value):
    found, derived = evaluated(content(**point, **{angle: value}, H0=None, rdrag=None))
    name, factor = ("cosmomc_theta", 0.01) if angle == "theta_MC_100" else (angle, 1.0)
    expected = camb.set_params(**{**COSMOLOGY, **point}, **{name: factor * value}, mnu=0.06).H0
    assert derived["H0"] == pytest.approx(expected, rel=1e-4)
    assert found[BAO] == pytest.approx(by_camb(expected, **point)[0], abs=0.05)


def test_an_angle_as_cobaya_samples_it():
    """θ_MC_100 dropped, cosmomc_theta from it; where CAMB finds no H0 there is no likelihood."""
    sampled = {
        "theta_MC_100": {"prior": {"min": 0.5, "max": 10}, "drop": True},
        "cosmomc_theta": {"value": "lambda theta_MC_100: 1e-2*theta_MC_100", "derived": False},
    }
    model = get_model(content(**sampled, H0=None))
    at = [model.loglike({"theta_MC_100": value})[0] for value in (1.0407, 1.045, 0.6, 5.0)]
    assert np.isfinite(at[:2]).all()
    assert at[2:] == [-np.inf, -np.inf]
    sampled["theta_MC_100"]["drop"] = False
    again = get_model(content(**sampled, H0=None)).loglike({"theta_MC_100": 1.0407})[0]
    assert again == at[0]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "needs H0 (or one of cosmomc_theta, theta_MC_100, thetastar)"),
        ({"H0": 68, "cosmomc_theta": 0.0104}, "H0 and cosmomc_theta are all input parameters"),
        ({"H0": 68, "theta_MC_100": 1.04}, "H0 and theta_MC_100 are all input parameters"),
        ({"thetastar": 0.0104, "cosmomc_theta": 0.0104}, "each fixes H0; keep one of them"),
        ({"theta_MC_100": 1.04, "cosmomc_theta": 0.0103}, "contradict each other"),
    ],
)
def test_h0_is_given_once(params, message):
    with pytest.raises(LoggedError) as raised:
        get_model(content(**params)).loglikes({})
    assert message in str(raised.value)


@pytest.mark.parametrize("provides", ["cl", ["Cl", "distances"], "camb"])
def test_what_an_emulator_may_provide_is_listed(provides):
    with pytest.raises(LoggedError, match=r"'provides' has .*; choose of Cl, unlensed_Cl, Hubble"):
        EmulatedCAMB({"emulator": "lcdm", "provides": provides})


@pytest.mark.parametrize("missing", ["ombh2", "ns", "As"])
def test_a_missing_parameter_is_named(missing):
    info = content(H0=68)
    del info["params"][missing]
    with pytest.raises(LoggedError, match=f"the emulator 'lcdm' needs {missing}"):
        get_model(info)


@pytest.mark.parametrize("settings", [{"lens_potential_accuracy": 8}, {"lmax": 4000}, {"mnu": 0.1}])
def test_settings_of_camb_have_no_place(settings):
    theory = {EMULATED: {"emulator": "lcdm", "extra_args": settings}}
    with pytest.raises(LoggedError) as raised:
        get_model(content(theory, H0=68))
    assert "was made with lmax: 5600, lens_potential_accuracy: 8.0" in str(raised.value)
    assert "Remove 'extra_args'" in str(raised.value)


def test_distances_and_their_units():
    """As Cobaya's own theories give them: an array for one redshift too, c/H in Mpc."""
    model = get_model(content(H0=67.94))
    model.loglikes({})
    emulated = model.provider
    truth = camb.get_background(camb.set_params(**COSMOLOGY, H0=67.94, mnu=0.06))
    z = np.array([0.3, 1.1])
    np.testing.assert_allclose(emulated.get_Hubble(z), truth.hubble_parameter(z), rtol=1e-8)
    np.testing.assert_allclose(emulated.get_Hubble(0.3, units="1/Mpc"), [truth.h_of_z(0.3)])
    found = emulated.get_angular_diameter_distance(0.3)
    np.testing.assert_allclose(found, [truth.angular_diameter_distance(0.3)], rtol=1e-8)
    with pytest.raises(LoggedError, match=r"H\(z\) in 'h/Mpc': give one of"):
        emulated.get_Hubble(0.3, units="h/Mpc")


def growth(_self):
    """A likelihood of something that an emulator does not have."""
    return -float(_self.provider.get_fsigma8(0.5)[0])


def comoving(_self):
    return -1e-4 * float(_self.provider.get_comoving_radial_distance(0.5)[0])


@pytest.mark.parametrize(
    ("emulator", "likelihoods"),
    [
        ({"provides": ["Cl"]}, (BAO,)),
        ({"provides": "Cl"}, (BAO,)),
        ({}, ("growth", BAO)),
        ({"provides": ["Cl", "Hubble"]}, (BAO, "growth")),
    ],
)
def test_an_emulator_beside_camb(emulator, likelihoods):
    """Each computes what only it is asked for; the derived parameters are the emulator's."""
    theory = {EMULATED: {"emulator": "lcdm", **emulator}, "camb": None}
    info = content(theory, likelihoods, H0=67.94, sigma8=None, omegam=None, rdrag=None)
    if "growth" in info["likelihood"]:
        info["likelihood"]["growth"] = {"external": growth, "requires": {"fsigma8": {"z": [0.5]}}}
    found, derived = evaluated(info)
    expected, rdrag = by_camb(67.94)
    assert found[BAO] == pytest.approx(expected, abs=0.02)
    assert derived["rdrag"] == pytest.approx(rdrag, rel=1e-4)
    if "growth" in found:
        assert -0.6 < found["growth"] < -0.3


def test_the_theory_is_checked_beside_camb(caplog):
    theory = {EMULATED: {"emulator": "lcdm", "provides": ["Cl"]}, "camb": None}
    info = content(theory, H0=67.94)
    info["likelihood"][LENSING]["check_theory"] = True
    with caplog.at_level("INFO"):
        get_model(info)
    assert "the theory reproduces the release's fiducial bandpowers" in caplog.text


def test_another_likelihood_of_distances():
    info = content(likelihoods=(), H0=67.94)
    needs = {"comoving_radial_distance": {"z": [0.5]}}
    info["likelihood"]["comoving"] = {"external": comoving, "requires": needs}
    truth = camb.get_background(camb.set_params(**COSMOLOGY, H0=67.94, mnu=0.06))
    expected = -1e-4 * truth.comoving_radial_distance(0.5)
    assert evaluated(info)[0]["comoving"] == pytest.approx(expected, rel=1e-8)


def test_a_camb_of_which_nothing_is_asked_is_named():
    info = content({EMULATED: {"emulator": "lcdm"}, "camb": None}, H0=67.94)
    with pytest.raises(LoggedError) as raised:
        get_model(info)
    assert "nothing is asked of the theory 'camb'" in str(raised.value)
    assert "Remove 'camb' from the input" in str(raised.value)
    # Cobaya's `post` leaves such a theory out by itself.
    full = update_info(info)
    model = Model(
        *(full[k] for k in ("params", "likelihood")),
        None,
        full["theory"],
        skip_unused_theories=True,
    )
    assert np.isfinite(model.loglikes({})[0]).all()


def test_no_h0_for_an_angle():
    from cobaya_cnnlens.errors import TheoryError

    with pytest.raises(TheoryError, match=r"CAMB refuses cosmomc_theta = 0\.02 for "):
        hubble_constant(Cosmology(), {"cosmomc_theta": 0.02})


def test_the_shipped_input_needs_no_data_to_be_installed(tmp_path, monkeypatch):
    """From any folder, without Cobaya's folder of packages; its proposal is of its parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COBAYA_PACKAGES_PATH", raising=False)
    info = yaml_load_file(str(REPOSITORY / "yaml" / "bao.yaml"))
    sampler = info.pop("sampler")["mcmc"]
    info.pop("output")
    model = get_model(info)
    assert sampler["covmat_params"] == list(model.parameterization.sampled_params())
    assert (np.linalg.eigvalsh(np.array(sampler["covmat"], dtype=float)) > 0).all()
    point = dict(zip(sampler["covmat_params"], model.prior.reference(random_state=1), strict=True))
    assert np.isfinite(model.logposterior(point).logpost)


def test_cobaya_cites_desi():
    _, found = get_bib_info(BAO)
    (cited,) = found["likelihood"].values()
    assert 'eprint = "2503.14738"' in cited


def test_the_updated_input_has_no_path_of_this_machine():
    updated = get_model(content(H0=68)).info()["likelihood"][BAO]
    assert "/" not in yaml.safe_dump({k: v for k, v in updated.items() if k != "version"})
