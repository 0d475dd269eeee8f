"""JAX's likelihood and gradient, against NumPy's and finite differences."""

import jax
import numpy as np
import pytest

from cobaya_cnnlens.errors import CNNLensError, EmulatorError
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import NUISANCES
from cobaya_cnnlens.likelihood.gradients import log_likelihood
from cobaya_cnnlens.likelihood.release import read_release
from cobaya_cnnlens.theory.emulator_files import read_emulator

FIDUCIAL = {"ombh2": 0.0222, "omch2": 0.1185, "ns": 0.9624, "H0": 67.94, "logA": 3.0956}
# Of the sides of the box. At it the error of the difference below is smallest: 1e-12 to 1e-10 of
# the derivative, by its next order at ten times the step and by rounding at a tenth.
STEP = 3e-4


CASES = {
    "with primary E": ("refined_fiducial", "lcdm", {"primary": True}),
    "neutrinos and feedback": (
        *("survey_mock", ["mnu", "feedback"]),
        {"statistics": "sellentin-heavens"},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request, double):
    """Likelihood, emulator, and the compiled value and gradient."""
    release, emulator, options = CASES[request.param]
    likelihood = BandpowerLikelihood(read_release(release), **options)
    emulator = read_emulator(emulator)
    function = log_likelihood(likelihood, emulator)
    return likelihood, emulator, jax.jit(jax.value_and_grad(function, argnums=(0, 1)))


def random_points(emulator, n):
    """Points a hundredth of the sides within the box, with a lensing amplitude and nuisances."""
    low, high = np.array([emulator.box[name] for name in emulator.parameters]).T
    generator = np.random.default_rng(6)
    while n:
        at = low + generator.uniform(0.01, 0.99, len(low)) * (high - low)
        point = dict(zip(emulator.parameters, at.tolist(), strict=True))
        if not emulator.outside(point):
            n -= 1
            x = 0.005 * generator.standard_normal(len(NUISANCES))
            yield {**point, "Alens": 1.02, **dict(zip(NUISANCES, x, strict=True))}


def divided(point):
    """What the function takes: parameters, and nuisances in their order."""
    x = np.array([point[name] for name in NUISANCES])
    return {name: value for name, value in point.items() if name not in NUISANCES}, x


def by_numpy(case, point):
    likelihood, emulator, _ = case
    parameters, x = divided(point)
    amplitude = parameters.pop("Alens")
    clkk, clee, _ = emulator(parameters)
    return likelihood.log_likelihood(amplitude * clkk, clee, x)


def slope_by_numpy(case, point, name):
    """∂ ln L by differences of fourth order."""
    low, high = case[1].box.get(name, (0.0, 0.3))
    width = STEP * (high - low)
    near, far = (
        by_numpy(case, {**point, name: point[name] + k * width})
        - by_numpy(case, {**point, name: point[name] - k * width})
        for k in (1, 2)
    )
    return (8.0 * near - far) / (12.0 * width)


@pytest.mark.filterwarnings("ignore:C_L:cobaya_cnnlens.errors.SpectrumWarning")
def test_the_value_and_the_gradient_are_those_of_numpy(case):
    """At random points of the box: ln L to 1e-12, its derivatives by every parameter and nuisance
    to 1e-7 of differences of NumPy's."""
    for point in random_points(case[1], 3):
        value, (slopes, of_x) = case[2](*divided(point))
        assert float(value) == pytest.approx(by_numpy(case, point), rel=1e-12)
        slopes = {**slopes, **dict(zip(NUISANCES, of_x, strict=True))}
        expected = {name: slope_by_numpy(case, point, name) for name in point}
        assert {name: float(v) for name, v in slopes.items()} == pytest.approx(expected, rel=1e-7)


def test_there_is_no_likelihood_outside_the_box(case):
    _, emulator, compiled = case
    middle = {name: 0.5 * (low + high) for name, (low, high) in emulator.box.items()}
    middle, known = {**middle, "Alens": 1.0}, np.zeros(len(NUISANCES))
    assert np.isfinite(compiled(middle, known)[0])
    assert compiled({**middle, "omch2": emulator.box["omch2"][1] + 1e-4}, known)[0] == -np.inf
    dense = {"H0": emulator.box["H0"][0], "omch2": 0.25}
    assert compiled({**middle, **dense}, known)[0] == -np.inf


def test_there_is_no_likelihood_without_power():
    release = read_release("refined_fiducial")
    function = log_likelihood(BandpowerLikelihood(release), read_emulator("lcdm"))
    no_power = np.array([0.0, 0.0, -300.0])
    assert jax.jit(function)(FIDUCIAL, no_power) == -np.inf


def test_the_gradient_is_finite_where_the_model_equals_the_data():
    """There T̂/T is one in every bin, and √ of zero has no derivative of its own."""
    release = read_release("refined_fiducial")
    likelihood, clkk = BandpowerLikelihood(release), release.fiducial_kk
    likelihood.bandpowers = likelihood.model(clkk)
    slope = jax.grad(lambda amplitude: likelihood.unchecked_log_likelihood(amplitude * clkk))
    gradient, curvature = jax.jit(jax.value_and_grad(slope))(1.0)
    of_amplitude = likelihood.jacobian().kk @ clkk[: likelihood.lmax_kk + 1]
    fisher = likelihood.fisher(of_amplitude[:, None], likelihood.bandpowers).item()
    assert abs(gradient) < 1e-12 * fisher
    assert float(curvature) == pytest.approx(-fisher, rel=1e-5)


def test_what_has_no_gradient_is_refused():
    release = read_release("refined_fiducial")
    emulator = read_emulator("lcdm")
    function = log_likelihood(BandpowerLikelihood(release), emulator)
    with pytest.raises(EmulatorError, match="lacks H0, has the unknown tau; give ombh2"):
        function({**{k: v for k, v in FIDUCIAL.items() if k != "H0"}, "tau": 0.06})
    with jax.enable_x64(False), pytest.raises(CNNLensError, match=r"single precision.*enable_x64"):
        function(FIDUCIAL)
    emulator._interpolate.kernel = "linear"
    with pytest.raises(EmulatorError, match=r"'linear' is not written for JAX.* cubic, quintic"):
        function(FIDUCIAL)
    emulator.lmax = 3000
    with pytest.raises(CNNLensError, match=r"end at l = 3000.*'refined_fiducial' needs l = 4400"):
        log_likelihood(BandpowerLikelihood(release), emulator)
