"""The report, from products whose answers are known."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate import bandpowers
from cobaya_cnnlens.cli.main import app
from cobaya_cnnlens.errors import CNNLensError, NetworkError
from cobaya_cnnlens.pipeline.loading import load_study
from cobaya_cnnlens.pipeline.observation import ObservedPatches
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.reconstruct.files import weights_in
from cobaya_cnnlens.reconstruct.n0 import delensed_part
from cobaya_cnnlens.report.material import Material, load_plan
from cobaya_cnnlens.report.page import Measured
from cobaya_cnnlens.validate import exhibits
from cobaya_cnnlens.validate.delensing import b_power_left
from cobaya_cnnlens.validate.paper import compared_errors, verdict

from .conftest import REPOSITORY, write_network

RESPONSE = 0.5
MODES, PATCHES = 100, 200
# Noise over signal of the network's κ̂ and of the other estimators'.
NOISE = {"network_1uk": 1.0, "naive": 2.0, "iterated": 0.5}


@pytest.fixture
def study(tmp_path):
    """A study of a network, one estimator with twice its noise and one with half of it."""
    kernel, bias = np.zeros((1, 1, 3, 4)), np.zeros(5)
    write_network(tmp_path / "network.keras", {"layers/one": kernel, "layers/two": bias})
    path = tmp_path / "study.yaml"
    path.write_text(
        f"""
base: {REPOSITORY}/training/config/test.yaml
name: study
products: {tmp_path}/products
skies_from: {tmp_path}/skies
members:
  network_1uk: {{network: {{pretrained: {tmp_path}/network.keras}}}}
  naive: {{baseline: {{kind: quadratic}}}}
  iterated: {{baseline: {{kind: map}}}}
"""
    )
    (tmp_path / "plan.yaml").write_text(
        f"title: Side by side\nout: {tmp_path}/report\nestimators: study.yaml\n"
        "trained: [study.yaml#network_1uk]\n"
    )
    for config in load_study(path).values():
        write_bandpowers(config, NOISE[config.name.removeprefix("study_")])
    return path


def write_bandpowers(config, noise):
    """Bandpowers of κ̂ = R(κ + n), κ and n of power 1 and ``noise``, κ the same for all."""
    digest = Run(config).estimator_id
    for k, name in enumerate(("validation", "test")):
        generator = np.random.default_rng(k)
        shape = (PATCHES, MODES, config.bandpowers.n_bins)
        kappa, extra = generator.standard_normal((2, *shape))
        found = RESPONSE * (kappa + np.sqrt(noise) * extra)
        arrays = {"auto": found**2, "cross": kappa * found, "truth": kappa**2}
        products.write_product(
            bandpowers.path(Run(config), name, 0),
            "bandpowers",
            bandpowers.recipe(Run(config, digest), name, 0),
            {key: values.mean(1) for key, values in arrays.items()},
        )


@pytest.fixture(autouse=True)
def flat_curves(monkeypatch):
    """Analytic curves are tested elsewhere, and take seconds."""
    for name in ("n0_eb", "n0_iterated"):
        monkeypatch.setattr(f"cobaya_cnnlens.validate.noise.{name}", lambda L, *_: np.ones_like(L))


def run(study, *options):
    result = CliRunner().invoke(app, ["report", str(study.with_name("plan.yaml")), *options])
    assert isinstance(result.exception, SystemExit), result.exception
    folder = study.with_name("report")
    return result, folder, json.loads((folder / "tables.json").read_text())


def test_noise_and_verdicts(study):
    result, folder, content = run(study)
    assert result.exit_code == 1  # maps and surveys are missing
    found = content["tables"]["noise_1uk"]["rows"]
    for row in found:
        assert row["N_L of the network"] == pytest.approx(
            1.0, abs=4 * row["N_L of the network error"]
        )
        for label, expected in (("EB QE, naive", 2.0), ("MAP", 0.5)):
            ratio, error = (row[f"{label} / network{end}"] for end in ("", " error"))
            assert ratio == pytest.approx(expected, abs=4 * error)
    closest = {r["estimator"]: r for r in content["tables"]["network_against_others"]["rows"]}
    assert closest["EB QE, naive"]["the network is"] == "better"
    assert closest["MAP"]["the network is"] == "worse"
    with open(folder / "noise_1uk.csv") as file:
        written = list(csv.DictReader(file))
    assert [row["L"] for row in written] == [row["L"] for row in found]
    [weights] = content["tables"]["network"]["rows"]
    assert weights["numbers in its file"] == 17


class Reader(HTMLParser):
    """Images and open elements of a page."""

    def __init__(self):
        super().__init__()
        self.images, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_the_same_again(study):
    _, folder, _ = run(study)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    page = first["index.html"].decode()
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert len(reader.images) >= 4
    assert all(
        i["src"].startswith("data:image/png;base64,iVBOR") and i["alt"] for i in reader.images
    )
    assert "http" not in page
    run(study)
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
# What a reader's browser finds: images that did not load, and how far the page sticks out sideways.
PROBE = """<script>addEventListener("load", () => {
  const bad = [...document.images].filter(i => !(i.complete && i.naturalWidth > 100)).length;
  const out = document.documentElement.scrollWidth - innerWidth;
  document.title = JSON.stringify({images: document.images.length, bad, out, width: innerWidth});
})</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(study, width):
    _, folder, _ = run(study)
    page = folder / "probed.html"
    page.write_text((folder / "index.html").read_text().replace("</body>", PROBE + "</body>"))
    # A frame has the width it is given; a window may not be as narrow.
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe src="probed.html" style="width:{width}px;height:900px;border:0" '
        'onload="document.title = this.contentDocument.title"></iframe>'
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    dom = subprocess.run(
        [BROWSER, *options, "--virtual-time-budget=20000", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert found["width"] == width
    assert found["images"] >= 4
    assert found["bad"] == 0
    assert found["out"] <= 0


def test_missing_products_are_named_with_their_command(study):
    naive = load_study(study)[f"{study}#naive"]
    bandpowers.path(Run(naive), "test", 0).unlink()
    result, _, content = run(study)
    assert result.exit_code == 1
    named = [gap for gap in content["missing"] if gap["what"] == "study_naive"]
    assert [gap["command"] for gap in named] == [
        " && ".join(
            f"cnnlens reconstruct '{study}#naive' --set {s}" for s in ("validation", "test")
        )
    ]
    assert "test/sky_0000.h5: no such file" in named[0]["why"]
    assert named[0]["command"] in result.output
    # The rest is there.
    assert "MAP / network" in content["tables"]["noise_1uk"]["rows"][0]
    assert "EB QE, naive / network" not in content["tables"]["noise_1uk"]["rows"][0]


def test_wrong_plans_and_files(study, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(plan.read_text() + "seed: seeds.yaml\n")
    result = CliRunner().invoke(app, ["report", str(plan)])
    assert isinstance(result.exception, CNNLensError)
    assert "'seed'" in str(result.exception)
    (tmp_path / "network.keras").write_bytes(b"no zip")
    with pytest.raises(NetworkError, match="cannot be read as a Keras model"):
        weights_in(tmp_path / "network.keras")


def test_measured_text():
    assert str(Measured(0.12345, 0.0123)) == "0.123 ± 0.012"
    assert str(Measured(12.3456, 2.5)) == "12.3 ± 2.5"
    assert str(Measured(1.234e-8, 1.2e-10)) == "1.234e-08 ± 1.2e-10"
    assert str(Measured(0.5)) == "0.5"


def test_verdict():
    assert verdict(1.0, 0.1, 1.5, 0.1) == "better"
    assert verdict(1.5, 0.1, 1.0) == "worse"
    assert verdict(1.0, 0.2, 1.3, 0.2) == "level"


def test_the_papers_errors_are_those_of_the_same_bins():
    """The first bin, and the one nearest to a multipole, at noise levels that the paper has."""
    L = np.array([100.0, 900.0, 1490.0, 2950.0])
    table = SimpleNamespace(L=L, relative_error=np.array([0.3, 9.0, 0.33, 2.0]))
    first, middle, last = compared_errors(1.0, table, 200)
    assert [c.L for c in (first, middle, last)] == [100, 1490, 2950]
    assert [c.ours for c in (first, middle, last)] == [0.3, 0.33, 2.0]
    assert first.error == pytest.approx(0.3 / np.sqrt(400))
    assert (first.quoted, first.quoted_error) == (0.33, pytest.approx(0.33 / np.sqrt(2240)))
    assert [c.verdict for c in (first, middle, last)] == ["level", "level", "worse"]
    assert compared_errors(2.0, table, 200) == []


def test_b_modes_are_left_where_no_bin_measures(small_config, fiducial, monkeypatch):
    """κ̂ of ρ_L = 1 in all bins leaves the B that lenses at other L make; of ρ_L = 0, all of it."""
    run, ell = Run(small_config), np.array([200, 500])
    monkeypatch.setattr(Run, "spectra", lambda *_: fiducial)
    low, bins = small_config.bandpowers.lmin, run.bandpowers.bins.centres
    of = {
        rho: b_power_left(run, SimpleNamespace(L=bins, correlation=np.full(len(bins), rho)), ell)
        for rho in (0.0, 1.0)
    }
    np.testing.assert_allclose(of[0.0], 1.0, atol=1e-6)
    assert (of[1.0] > 0).all()
    assert (of[1.0] < 0.5).all()
    rho = np.zeros(len(fiducial.pp))
    rho[low : int(bins[-1])] = 1.0
    np.testing.assert_allclose(of[1.0], delensed_part(ell, fiducial, rho))


def test_exhibit_of_known_fields(small_config, monkeypatch):
    generator = np.random.default_rng(0)
    n = small_config.patch.n_pixels
    q, u, e, kappa = generator.standard_normal((4, 45, n, n))
    monkeypatch.setattr(exhibits, "observe_sky", lambda *_: ObservedPatches(q, u, e, kappa))

    class Halved:
        def reconstruct_both(self, q, u):
            return {"e": 0.5 * e, "kappa": q + u}

    config = small_config
    exhibits.measure(Run(config, "a", Halved()))
    found = exhibits.read(Run(config, "a"))
    np.testing.assert_allclose(found.kappa_found, (q + u)[exhibits.PATCH])
    np.testing.assert_allclose(found.e_truth, Run(config).bandpowers.auto(e))
    np.testing.assert_allclose(found.e_auto, 0.25 * found.e_truth)
    np.testing.assert_allclose(found.e_difference, 0.25 * found.e_truth)

    class KappaAlone:
        def reconstruct(self, q, u):
            return q

    exhibits.path(Run(config)).unlink()
    exhibits.measure(Run(config, "b", KappaAlone()))
    assert exhibits.read(Run(config, "b")).e_found is None


def test_shipped_plan():
    plan = load_plan(REPOSITORY / "training" / "report.yaml")
    material = Material(plan)
    assert list(material.levels) == [0.0, 1.0, 2.0, 5.0]
    for runs in material.levels.values():
        labels = [material.label(run) for run in runs]
        assert labels[0] == "network"
        assert len(set(labels)) == 5
    assert len(material.study(plan.seeds)) >= 3
