"""`cnnlens check` passes what is right, and names each fault of what is wrong."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from cobaya.yaml import yaml_load_file
from typer.testing import CliRunner

import yaml
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.release import DATA_DIRECTORY, read_release, shipped_releases
from cobaya_cnnlens.theory.emulator_files import SHIPPED, shipped_emulators
from cobaya_cnnlens.validate import verification
from cobaya_cnnlens.validate.reference import content_of, read_reference
from cobaya_cnnlens.validate.verification import (
    check_emulator,
    check_input,
    check_installation,
    check_release,
    limit_of,
    noiseless,
    with_defaults,
)

from ..conftest import LENSING_INPUTS, REPOSITORY

NAME, EMULATOR = "cobaya_cnnlens.CNNLens", "cobaya_cnnlens.EmulatedCAMB"
CAMB = {"halofit_version": "mead2020", "lens_potential_accuracy": 8, "num_massive_neutrinos": 1}
# C^φφ times four, as a theory with another convention has it.
SCALED = f"""
from {EMULATOR.partition(".")[0]} import EmulatedCAMB

class Scaled(EmulatedCAMB):
    emulator = "lcdm"

    def get_Cl(self, **given):
        spectra = super().get_Cl(**given)
        return spectra | {{"pp": 4.0 * spectra["pp"]}}
"""


def written(folder, theory=None, release="refined_fiducial", name="my.yaml", **options):
    """The fast example with another theory or release, as a file."""
    info = yaml_load_file(str(REPOSITORY / "yaml" / "omegac_fast.yaml"))
    info["likelihood"][NAME] |= {"release": str(release), **options}
    info["theory"] = theory or info["theory"]
    path = folder / name
    path.write_text(yaml.safe_dump(info, sort_keys=False))
    return path


def faults(checks):
    return [check.fault for check in checks.checks if check.fault]


@pytest.fixture
def camb_stands_in(monkeypatch):
    """The emulator stands in for CAMB, off by what its settings would do to C^κκ."""
    asked = []

    def spectra_of(theories, likelihood, cosmology):
        extra = (theories.get("camb") or {}).get("extra_args")
        stand_in = theories if extra is None else {EMULATOR: {"emulator": "lcdm"}}
        clkk, clee = true_spectra_of(stand_in, likelihood, cosmology)
        if extra is not None:
            asked.append(extra)
            L = np.arange(len(clkk)) / 3000.0
            if extra.get("lens_potential_accuracy") != 8:
                clkk = clkk * (1.0 - 0.14 * L**1.5)
            if extra.get("halofit_version") != "mead2020":
                clkk = clkk * (1.0 + 0.02 * L)
        return clkk, clee

    true_spectra_of = verification.spectra_of
    monkeypatch.setattr(verification, "spectra_of", spectra_of)
    return asked


def test_the_reference_is_that_of_the_shipped_files():
    """Where this fails, `python -m tests.reference FOLDER` makes the reference anew."""
    reference = read_reference()
    assert list(reference.release) == shipped_releases()
    assert list(reference.emulator) == shipped_emulators()
    for name in reference.release:
        assert check_release(name, reference).fault == ""
    for name in reference.emulator:
        assert check_emulator(name, reference).fault == ""
    assert set(reference.posteriors) == {path.stem for path in LENSING_INPUTS}
    for path in LENSING_INPUTS:
        content = content_of(with_defaults(yaml_load_file(str(path))))
        name, differences = reference.closest(content)
        assert differences == []
        assert (
            reference.posteriors[name].content == content == reference.posteriors[path.stem].content
        )


@pytest.mark.parametrize("noise_debias", ["data", "fixed"])
@pytest.mark.parametrize("name", ["refined_low", "survey_mock"])
def test_the_mock_without_noise_has_no_chi2_at_its_point(name, noise_debias):
    """The survey's own noise, power and rotation leave nothing; a model off by 0.1 σ is at the
    limit."""
    release = read_release(name)
    mock = BandpowerLikelihood(noiseless(release, noise_debias), noise_debias)
    assert mock.chi2(release.fiducial_kk) == pytest.approx(0.0, abs=1e-12)
    off = release.fiducial_kk * (1.0 + 0.1 * mock._amplitude_error)
    assert mock.chi2(off) == pytest.approx(limit_of(0.0), rel=0.03)
    if noise_debias == "data" and name != "survey_mock":
        joint = BandpowerLikelihood(noiseless(release, "data"), primary=True)
        chi2 = joint.chi2(release.fiducial_kk, release.fiducial_ee)
        assert chi2 == pytest.approx(0.0, abs=1e-12)


def test_a_good_installation_passes(camb_stands_in, monkeypatch):
    """CAMB is asked with the settings of the release, once for each point."""
    result = check_installation()
    assert result.passed, result.table()
    assert camb_stands_in == [CAMB, CAMB]
    items = [check.item for check in result.checks]
    assert items[0] == "packages"
    assert {"camb, mock point", "camb, second point", "emulator mnu, second point"} <= set(items)
    printed = CliRunner().invoke(app, ["check"])
    assert printed.exit_code == 0
    assert printed.stdout.splitlines()[1:] == result.table().splitlines()[1:]


def test_an_installation_with_old_packages_or_other_numbers_is_told(camb_stands_in, monkeypatch):
    versions = {"camb": "1.3.5", "scipy": None}

    def version(name):
        found = versions.get(name, "99")
        if found is None:
            raise verification.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(verification.metadata, "version", version)
    fault = verification._check_packages().fault
    assert fault.startswith("camb 1.3.5 (needed: >=2.0.1); scipy missing (needed: >=")
    reference = read_reference()
    off = replace(reference, chi2_data=reference.chi2_data + 2.0, chi2_second=20.0)
    theory = {EMULATOR: {"emulator": "lcdm"}}
    assert "another chi2 for the shipped data" in verification._check_data(theory, off).fault
    component = verification.CNNLens({"release": verification.MOCK})
    first, second = verification.check_theory(theory, component, off.chi2_second, "emulator")
    assert first.fault == ""
    assert "right at the mock point and wrong here" in second.fault


@pytest.mark.parametrize(
    "path", [p for p in LENSING_INPUTS if EMULATOR in p.read_text()], ids=lambda p: p.stem
)
def test_the_shipped_inputs_pass(path):
    result = check_input(path)
    assert result.passed, result.table()
    assert result.remarks[0].startswith("The data, options and priors are those of the")
    compared = "feedback" not in path.stem  # whose theory has no fiducial cosmology of the release
    assert any("second point" in check.item for check in result.checks) is compared
    assert {check.verdict for check in result.checks} <= {"passes", "not compared"}
    assert (result.checks[-1].verdict == "passes") is compared


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"lens_potential_accuracy": 1}, "lens_potential_accuracy: 1 (release: 8.0)."),
        ({"halofit_version": "takahashi"}, "halofit_version: takahashi (release: mead2020)."),
        ({"lens_potential_accuracy": None}, "lens_potential_accuracy: default (release: 8.0)."),
    ],
)
def test_settings_of_camb_are_named(tmp_path, camb_stands_in, changes, said):
    """Only the one that differs is; CAMB's own default of the halofit version is the release's."""
    settings = {k: v for k, v in (CAMB | changes).items() if v is not None}
    result = check_input(written(tmp_path, {"camb": {"extra_args": settings}}))
    if said is None:
        assert result.passed, result.table()
        assert len(camb_stands_in) == 2
        return
    (fault,) = faults(result)
    assert fault.endswith(f"Set as in the release what differs: {said}")
    assert len(camb_stands_in) == 1


def test_another_release_under_a_shipped_name_is_named(tmp_path, monkeypatch):
    """By a path, by its own name, and as a file that hides the shipped one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(DATA_DIRECTORY / "refined_low.json", "refined_fiducial.json")
    shutil.copy(DATA_DIRECTORY / "refined_low.json", "refined_fiducial")
    for release in ("refined_fiducial.json", "refined_fiducial"):
        (fault,) = faults(check_input(written(tmp_path, release=release)))
        assert fault.startswith("other release: its numbers are not those of the shipped refined_f")
        assert "It is refined_low." in fault
        assert fault.endswith("or give your own another name.")
    shutil.copy(DATA_DIRECTORY / "refined_low.json", "mine.json")
    result = check_input(written(tmp_path, release="mine.json"))
    assert result.passed
    assert result.remarks == (
        "The closest shipped input is omegac_fast.yaml; it differs in release: refined_low "
        "(there: refined_fiducial).",
    )


def test_a_theory_in_other_units_is_named(tmp_path):
    """As Cobaya loads it, from a file of the user's own."""
    (tmp_path / "my_theory.py").write_text(SCALED)
    theory = {"my_theory.Scaled": {"python_path": str(tmp_path), "emulator": "lcdm"}}
    (fault,) = faults(check_input(written(tmp_path, theory)))
    assert "it looks like [L(L+1)]² C_L^φφ: divide that by 4" in fault


def test_a_truncated_emulator_is_named(tmp_path, monkeypatch):
    """One of the user's own, and one that takes the place of the shipped one."""
    monkeypatch.chdir(tmp_path)
    whole = (SHIPPED / "emulator_lcdm.npz").read_bytes()
    for name in ("mine.npz", "lcdm"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        path = written(tmp_path, {EMULATOR: {"emulator": name}})
        (fault,) = faults(check_input(path))
        assert fault.startswith("the emulator is truncated or damaged: ")
        assert "File is not a zip file" in fault
        printed = CliRunner().invoke(app, ["check", str(path)])
        assert printed.exit_code == 1
        assert f"fault: emulator {name}: the emulator is truncated" in printed.stdout


def test_an_emulator_of_other_settings_is_named(tmp_path):
    """One that is whole, of another halofit version: its file says which."""
    import json

    with np.load(SHIPPED / "emulator_lcdm.npz") as file:
        arrays = dict(file)
    record = json.loads(str(arrays["record"]))
    record["settings"]["halofit_version"] = "takahashi"
    arrays |= {"record": np.array(json.dumps(record)), "kk_mean": arrays["kk_mean"] + 0.01}
    np.savez_compressed(tmp_path / "other.npz", **arrays)
    path = written(tmp_path, {EMULATOR: {"emulator": str(tmp_path / "other.npz")}})
    (fault,) = faults(check_input(path))
    assert "halofit_version: takahashi (release: mead2020)" in fault


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "cannot be read as a Cobaya input"),
        ("likelihood: {one: null}", "section 'theory' is missing"),
        ("theory: {camb: null}", "section 'likelihood' is missing"),
        ("- 1", "section 'likelihood' is missing"),
        ("likelihood: {gaussian_mixture: null}\ntheory: {camb: null}", "has no cobaya_cnnlens.CNN"),
        ("likelihood: {cobaya_cnnlens.CNNLens: }\ntheory: {cambb: null}", "'cambb'"),
        (None, "cannot be read as a Cobaya input"),
    ],
)
def test_what_is_no_input_is_told(tmp_path, content, said):
    path = tmp_path / "my.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CNNLensError, match=said) as caught:
        check_input(path)
    assert str(path) in str(caught.value)


def test_a_picture_is_of_a_chain_alone(tmp_path):
    done = CliRunner().invoke(app, ["check", "my.yaml", "--out", str(tmp_path / "p.png")])
    assert isinstance(done.exception, CNNLensError)
    assert "--out is for the picture of a chain" in str(done.exception)
