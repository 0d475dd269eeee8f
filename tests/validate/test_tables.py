"""Results as text: every number that a result holds is printed, in columns under their heads."""

import doctest
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

from cobaya_cnnlens import table
from cobaya_cnnlens.likelihood.summary import release_table
from cobaya_cnnlens.table import plus_minus, text_table
from cobaya_cnnlens.validate.analytic import AnalyticNoise
from cobaya_cnnlens.validate.emulator_errors import Errors
from cobaya_cnnlens.validate.forecast import Forecast
from cobaya_cnnlens.validate.foregrounds import Bias, Foreground, ForegroundTable
from cobaya_cnnlens.validate.noise import Comparison, NoiseTable
from cobaya_cnnlens.validate.nuisance_checks import NuisanceCheck
from cobaya_cnnlens.validate.null_tests import NullTable, NullTest, PowerRatio
from cobaya_cnnlens.validate.omch2 import Recovered, Recovery
from cobaya_cnnlens.validate.points import PointsTable
from cobaya_cnnlens.validate.predictive import Predictive
from cobaya_cnnlens.validate.primary import JointCovariance, joint_covariance
from cobaya_cnnlens.validate.ranks import CoverageTable, SimulatedRanks
from cobaya_cnnlens.validate.survey_nulls import SurveyNulls

from ..conftest import synthetic_release

L = np.array([99.5, 226.5, 353.5])
DUST = Foreground("dust", "bright", 8.8)


def some(*shape, seed=0):
    """Numbers from 0.1 to 0.9."""
    return np.random.default_rng(seed).uniform(0.1, 0.9, shape)


def null(name):
    return NullTest(name, "what x it", L, some(3), some(3, seed=1), 160, 0.2, 0.1, 2.5, 0.4)


def coverage():
    sky = np.repeat(np.arange(4), 3)
    truth = np.linspace(0.109, 0.128, 12)
    sets = SimulatedRanks(np.full((9, 10), 1.2), some(9, 2))
    width = np.full(12, 0.001)
    mean = truth + 0.001 * (some(12) - 0.5)
    return CoverageTable("omch2", 16, (0.1085, 0.1285), sky, truth, mean, width, some(12), sets)


def joint(seed):
    bands = {name: some(40, 3, seed=(seed, i)) for i, name in enumerate(("kk", "ee", "bb"))}
    return joint_covariance(np.array([36, 163, 290, 417]), **bands)


RECOVERED = Recovered(0.1185, 1, 0.118 + 0.001 * some(20), 0.0001, 2)
RATIO = PowerRatio("unlensed", L, some(3), some(3, seed=1))
BIAS = Bias(DUST, "data", some(3), some(3, seed=1), 0.3, 0.05)
RESULTS = [
    NoiseTable(L, *(some(3, seed=i) for i in range(9))),
    Comparison(
        ("one", "two", "three"),
        L,
        *(some(3, 3, seed=i) for i in range(4)),
        np.array([True, True, False]),
        some(3, 3, seed=4),
        some(3),
    ),
    Predictive(
        *(np.stack([L - 60, L + 60], 1), L, some(5, 3), some(5), 0.41, {"omch2": 0.1183}),
        *(L, 2.2, 0.53, some(5, 3), 1e-4, False),
    ),
    Forecast(
        ("resunet_1uk",),
        *(0.01 * some(1, seed=i) for i in range(4)),
        *(some(1, seed=i) for i in range(2)),
    ),
    PointsTable(
        *("some", [{"omch2": 0.1085}, {"H0": 70.0, "ns": 0.95}]),
        *(
            160,
            64,
            24,
            some(2),
            some(2, seed=1),
            some(2, seed=6),
            some(2, seed=2),
            some(2, 3),
            some(2, 3, seed=5),
        ),
        *(30 * some(2, seed=3), some(2, seed=4)),
    ),
    Recovery(
        {"low": {"data": RECOVERED, "fixed": replace(RECOVERED, patches_each=5)}},
        {"low": (20.0 + some(20), some(20))},
        {"low": 24},
    ),
    coverage(),
    joint(0),
    NullTable(L, 2, [null("unlensed")], [null("mean test")], [RATIO], [RATIO]),
    SurveyNulls("field", 12, 3000, [null("curl")], {"network": "no other was given"}, (1.1, 0.9)),
    ForegroundTable(
        *(L, 150.0, 160, 40, {"data": 0.0003, "fixed": 0.0004}),
        [BIAS, replace(BIAS, debias="fixed", omch2=-0.7)],
        [DUST],
    ),
    NuisanceCheck("gain", 0.01, some(3), some(3, seed=1), some(3, seed=2)),
    Errors(some(7, 5), *(some(7, seed=i) for i in range(5))),
    AnalyticNoise("eb", L, some(3), some(3, seed=1)),
]
# Fields that are for figures, for the same in other units, or behind what is printed.
NOT_PRINTED = {
    Predictive: {"edges", "data", "models", "best_model", "band"},
    CoverageTable: {"sky"},
    JointCovariance: {"blocks", "mean"},
    Errors: {"at"},
}


def text_of(result) -> str:
    if isinstance(result, JointCovariance):
        return result.table(joint(1), largest=2)
    if isinstance(result, NuisanceCheck):
        return result.table(L)
    return result.table()


def changed(value):
    """Something else of the same kind, or None of what has no other."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        return f"{value}'"
    if isinstance(value, np.ndarray):
        if value.dtype == bool:
            return np.ones_like(value) if not value.all() else None
        uneven = np.linspace(1.05, 1.3, value.size).reshape(value.shape)
        return uneven * value if value.dtype.kind == "f" else value + 1
    if isinstance(value, int | float):
        return type(value)(1.5 * value)
    if isinstance(value, dict):
        return {k: v if (new := changed(v)) is None else new for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(v if (new := changed(v)) is None else new for v in value)
    if is_dataclass(value):
        new = {f.name: changed(getattr(value, f.name)) for f in fields(value)}
        return replace(value, **{name: x for name, x in new.items() if x is not None})
    raise AssertionError(f"{value!r} of an unknown kind")


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_every_number_of_a_result_is_printed(result):
    """A number that changes by 5% or more changes the text, which is tidy."""
    text = text_of(result)
    assert "nan" not in text
    for line in text.splitlines():
        assert line == line.rstrip()
        assert len(line) <= 180
    for field in fields(result):
        new = changed(getattr(result, field.name))
        if new is None or field.name in NOT_PRINTED.get(type(result), ()):
            continue
        assert text_of(replace(result, **{field.name: new})) != text, field.name


def test_a_release_is_told_whole():
    """Name, provenance, and a line of numbers for each bin, twice: bandpowers and nuisances."""
    release = synthetic_release()
    rows = [line.split() for line in release_table(release).splitlines()]
    assert rows[0] == [release.name]
    assert ["patches", "in", "the", "survey", str(release.n_patches)] in rows
    for b in range(release.n_bins):
        bandpowers, shifts = (
            row for row in rows if row[:1] == [f"{release.edges[b]}-{release.edges[b + 1]}"]
        )
        assert bandpowers[1] == f"{1e9 * (release.bandpowers - release.correction)[b]:.3f}"
        assert bandpowers[-1] == f"{release.response[b]:.4f}"
        assert len(shifts) == 1 + len(release.nuisance_steps) + 1  # and the rotation


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        ("", ["a", "long one"], ["head      x", "a         1", "long one  2"]),
        (".1f", [-10.0, 2.5], [" head  x", "-10.0  1", "  2.5  2"]),
        (">", ["1 ± 2", "10 ± 20"], ["   head  x", "  1 ± 2  1", "10 ± 20  2"]),
        ("+d", [1, -2000], [" head  x", "   +1  1", "-2000  2"]),
    ],
)
def test_columns_stand_under_their_heads(form, values, expected):
    """Text to the left, numbers to the right; a title of any length above."""
    columns = {"head": (form, values), "x": ("d", [1, 2])}
    assert text_table(columns).splitlines() == expected
    assert text_table(columns, "a title that is longer\nthan the rest").splitlines()[2:] == expected


def test_the_example_is_what_is_printed():
    assert doctest.testmod(table) == (0, 1)


def test_columns_have_as_many_rows():
    with pytest.raises(ValueError, match="shorter"):
        text_table({"a": ("d", [1, 2]), "b": ("d", [1])})
    assert text_table({"a": ("d", [])}) == "a"


def test_errors_have_no_sign():
    assert plus_minus([1.0, -0.5], [0.25, 0.5], "+.2f") == ["+1.00 ± 0.25", "-0.50 ± 0.50"]
    assert plus_minus([1e-9], [2e-11], ".1e") == ["1.0e-09 ± 2.0e-11"]
