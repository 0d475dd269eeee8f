"""CAMB at nodes, against CAMB itself at points between them; and what is kept of it on disk."""

import threading

import camb
import numpy as np
import pytest
from cobaya.log import LoggedError

from cobaya_cnnlens.theory import nodes
from cobaya_cnnlens.theory.camb import sigma8
from cobaya_cnnlens.theory.nodes import NodeCAMB, NodeFiles

LMAX = 300
COSMOLOGY = {"omch2": 0.1185, "ombh2": 0.0222, "As": 2.21e-9, "ns": 0.9624, "H0": 67.94}
SETTINGS = {"lens_potential_accuracy": 0, "tau": 0.0943, "AccuracyBoost": 0.8}


def theory(folder, spacings=None, lmax=LMAX, **extra):
    made = NodeCAMB(
        {
            "nodes": spacings or {"omch2": 0.002},
            "extra_args": SETTINGS | extra,
            "cache": str(folder),
        }
    )
    made.must_provide(Cl={"pp": lmax}, unlensed_Cl={"ee": lmax})
    return made


def spectra(made, **changes):
    state = {}
    assert made.calculate(state, True, **(COSMOLOGY | changes))
    return state


def against_camb(state, lmax=LMAX, rtol=3e-4, **changes):
    """The same point by CAMB alone."""
    given = COSMOLOGY | SETTINGS | changes
    parameters = camb.set_params(lmax=lmax, **given)
    results = camb.get_results(parameters)
    pp = results.get_lens_potential_cls(lmax, raw_cl=True)[:, 0]
    ee = results.get_unlensed_scalar_cls(lmax, CMB_unit="muK", raw_cl=True)[:, 1]
    np.testing.assert_allclose(state["pp"], pp, rtol=rtol)
    np.testing.assert_allclose(state["ee"], ee, rtol=rtol)
    assert state["derived"]["omegam"] == pytest.approx(parameters.omegam, rel=1e-5)
    assert state["derived"]["sigma8"] == pytest.approx(sigma8(parameters), rel=3e-4)


@pytest.fixture
def runs(monkeypatch):
    """Where CAMB was run."""
    asked, run = [], NodeCAMB._run_camb

    def counted(self, at):
        asked.append(at)
        return run(self, at)

    monkeypatch.setattr(NodeCAMB, "_run_camb", counted)
    return asked


@pytest.fixture
def counted(monkeypatch):
    """A CAMB of no cost: where it was run, with values that tell a place from another."""
    asked = []

    def run(self, at):
        asked.append(at)
        n = sum(self._lengths()) + 2
        return np.full(n, np.log(1e-3 + sum(at.values())) + 1e-3 * len(self._made_for[0]))

    monkeypatch.setattr(NodeCAMB, "_run_camb", run)
    return asked


@pytest.mark.slow
def test_between_nodes_it_is_camb_whatever_the_other_parameters(tmp_path):
    """Also after another parameter has changed, and has changed back."""
    made = theory(tmp_path)
    for changes in ({"omch2": 0.1193}, {"ns": 0.99, "omch2": 0.1193}, {"omch2": 0.1207}):
        against_camb(spectra(made, **changes), **changes)


def test_two_parameters(tmp_path, monkeypatch):
    """ln C_l that is a cubic in either parameter comes out exactly."""

    def logarithm(omch2, H0):
        x, y = omch2 / 0.1 - 1.0, H0 / 70.0 - 1.0
        return 0.3 + x - 2.0 * x**3 + y**2 + x * y + 3.0 * x**3 * y**2

    def run(self, at):
        return np.full(sum(self._lengths()) + 2, logarithm(**at))

    monkeypatch.setattr(NodeCAMB, "_run_camb", run)
    made = theory(tmp_path, {"H0": 1.5, "omch2": 0.003})
    for omch2, H0 in ((0.1193, 68.7), (0.12, 60.0), (0.0911, 71.3)):
        found = spectra(made, omch2=omch2, H0=H0)
        np.testing.assert_allclose(found["pp"][2:], np.exp(logarithm(omch2, H0)), rtol=1e-10)
        assert found["derived"]["omegam"] == pytest.approx(np.exp(logarithm(omch2, H0)))


def test_lensing_amplitude_needs_no_nodes(tmp_path, runs):
    """At any Alens, also below two spacings of its nodes, and as a node parameter alone."""
    made = theory(tmp_path, {"Alens": 0.1, "omch2": 0.002})
    one = spectra(made, Alens=1.0)
    for amplitude in (0.05, 0.13, 1.37):
        found = spectra(made, Alens=amplitude)
        np.testing.assert_allclose(found["pp"], amplitude * one["pp"], rtol=1e-13)
        np.testing.assert_array_equal(found["ee"], one["ee"])
    against_camb(found, Alens=1.37)
    assert len(runs) == 4
    alone = spectra(theory(tmp_path, {"Alens": 0.1}), Alens=0.05)
    np.testing.assert_allclose(alone["ee"], one["ee"], rtol=3e-4)
    assert len(runs) == 5


def test_no_node_has_a_negative_mass(tmp_path, counted):
    """Near zero the four nodes begin at zero: CAMB would take a negative mass without a word."""
    spectra(theory(tmp_path, {"mnu": 0.1}), mnu=0.04)
    assert [at["mnu"] for at in counted] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    counted.clear()
    spectra(theory(tmp_path, {"ombh2": 0.01}), ombh2=0.015)
    assert [at["ombh2"] for at in counted] == pytest.approx([0.01, 0.02, 0.03, 0.04])


def test_weights_are_those_of_the_cubic():
    """Exact for cubics, wherever the four nodes begin."""
    for position, lowest, first in ((5.3, None, 4), (0.3, 0, 0), (0.3, None, -1), (2.0, 1, 1)):
        start, weights = nodes._cubic(position, lowest)
        assert start == first
        at = start + np.arange(4.0)
        for power in range(4):
            assert weights @ at**power == pytest.approx(position**power, abs=1e-12)


@pytest.mark.slow
def test_more_multipoles_later(tmp_path, monkeypatch):
    """A requirement that comes after the first point makes nodes that reach it."""
    made = theory(tmp_path, lmax=200)
    spectra(made)
    made.must_provide(Cl={"pp": LMAX})
    with monkeypatch.context() as patch:
        reach, set_params = [], camb.set_params
        patch.setattr(
            camb, "set_params", lambda **given: reach.append(given["lmax"]) or set_params(**given)
        )
        state = spectra(made)
    assert reach == [LMAX] * 4
    assert (len(state["pp"]), len(state["ee"])) == (LMAX + 1, 201)
    other = theory(tmp_path / "other", lmax=200)
    other.must_provide(Cl={"pp": LMAX})
    for name, values in spectra(other).items():
        assert np.all(np.array(values) == np.array(state[name])), name


def test_requirements_added_to_a_model(tmp_path):
    """Through Cobaya, at the point that it has just computed."""
    from cobaya.model import get_model

    block = {"class": "cobaya_cnnlens.NodeCAMB", "nodes": {"omch2": 0.002}}
    block |= {"extra_args": SETTINGS, "cache": str(tmp_path)}
    fixed = {k: v for k, v in COSMOLOGY.items() if k != "omch2"}
    model = get_model(
        {
            "likelihood": {"one": None},
            "theory": {"camb": block},
            "params": {"omch2": {"prior": [0.1, 0.14]}, **fixed},
        }
    )
    model.add_requirements({"Cl": {"pp": 100}, "unlensed_Cl": {"ee": 100}})
    model.logposterior({"omch2": 0.12})
    before = model.provider.get_Cl()["pp"]
    model.add_requirements({"Cl": {"pp": 250}})
    model.logposterior({"omch2": 0.12})
    after = model.provider.get_Cl()["pp"]
    assert (len(before), len(after)) == (101, 251)
    np.testing.assert_allclose(after[2:90], before[2:90], rtol=2e-3)


def test_nodes_are_kept_for_the_next_run(tmp_path, counted):
    """Read back to the last bit by who asks for the same; anew for anything else."""
    first = spectra(theory(tmp_path))
    assert len(counted) == 4
    again = spectra(theory(tmp_path))
    assert len(counted) == 4
    np.testing.assert_array_equal(first["pp"], again["pp"])
    for other in (
        lambda: spectra(theory(tmp_path, tau=0.05)),
        lambda: spectra(theory(tmp_path, lmax=LMAX + 1)),
        lambda: spectra(theory(tmp_path), ns=0.97),
        lambda: spectra(theory(tmp_path), w=-0.9),
    ):
        counted.clear()
        other()
        assert len(counted) == 4
        other()
        assert len(counted) == 4


def test_nodes_of_other_multipoles_are_not_used(tmp_path, counted):
    """Also where both spectra together have as many."""
    for i, (pp, ee) in enumerate(((200, 300), (300, 200), (200, 300))):
        made = theory(tmp_path, lmax=pp)
        made.must_provide(unlensed_Cl={"ee": ee})
        state = spectra(made)
        assert len(counted) == (4, 8, 8)[i]
    assert (len(state["pp"]), len(state["ee"])) == (201, 301)


@pytest.mark.parametrize(("of", "name"), [(camb, "__version__"), (nodes, "ALGORITHM")])
def test_nodes_of_another_version_are_not_used(tmp_path, counted, monkeypatch, of, name):
    spectra(theory(tmp_path))
    monkeypatch.setattr(of, name, "another")
    spectra(theory(tmp_path))
    assert len(counted) == 8


def test_no_nodes_are_kept_where_none_are_wanted(tmp_path, counted, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for options, made in (({"cache": False}, 0), ({}, 4)):
        theory_ = NodeCAMB({"nodes": {"omch2": 0.002}, **options})
        theory_.must_provide(Cl={"pp": LMAX})
        spectra(theory_)
        assert len(list(tmp_path.rglob("*.npz"))) == made


def test_damaged_nodes_are_made_again(tmp_path, counted):
    spectra(theory(tmp_path))
    one, two, three, four = sorted(tmp_path.glob("*.npz"))
    one.write_bytes(b"")
    two.write_bytes(two.read_bytes()[:1500])
    flipped = bytearray(three.read_bytes())
    flipped[1400] ^= 4
    three.write_bytes(flipped)
    four.write_bytes(b"no archive")
    spectra(theory(tmp_path))
    assert len(counted) == 8
    spectra(theory(tmp_path))
    assert len(counted) == 8


def test_a_node_under_a_wrong_name_is_not_used(tmp_path, counted):
    """The recipe inside decides."""
    spectra(theory(tmp_path))
    files = sorted(tmp_path.glob("*.npz"))
    files[0].write_bytes(files[1].read_bytes())
    spectra(theory(tmp_path))
    assert len(counted) == 5


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path, counted, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level("WARNING"):
        spectra(theory(tmp_path / "file"))
    assert len(counted) == 4
    assert [r.getMessage() for r in caplog.records if "nodes are not kept" in r.getMessage()] != []
    assert len(caplog.records) == 1


def test_processes_share_the_work(tmp_path, counted, monkeypatch):
    """Of processes that need the same nodes at once each node is made by one, and the others go on
    with the rest meanwhile. (Locks of a file know threads apart as they do processes.)"""
    quick = NodeCAMB._run_camb
    inside, met, together = [], [], threading.Event()

    def slow(self, at):
        """Until all three are at a node, each at its own."""
        inside.append(at)
        if len(inside) == 3:
            together.set()
        met.append(together.wait(timeout=10))
        return quick(self, at)

    monkeypatch.setattr(NodeCAMB, "_run_camb", slow)
    made = [theory(tmp_path) for _ in range(3)]
    found = {}

    def work(i):
        found[i] = spectra(made[i])["pp"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({at["omch2"] for at in inside[:3]}) == 3
    assert all(met)
    assert len(counted) == 4
    assert len({at["omch2"] for at in counted}) == 4
    for i in (1, 2):
        np.testing.assert_array_equal(found[i], found[0])
    assert not list(tmp_path.glob("*.lock"))


def test_what_a_dead_process_locked_is_free(tmp_path):
    """A lock file that nobody holds keeps nobody out."""
    files = NodeFiles(tmp_path)
    recipe = {"a": 1}
    files.path(recipe).with_suffix(".lock").write_text("")
    with files.alone(recipe, wait=False) as ours:
        assert ours
        with files.alone(recipe, wait=False) as second:
            assert not second


def test_a_node_that_another_makes_is_waited_for(tmp_path):
    files, recipe, ours = NodeFiles(tmp_path), {"a": 1}, []

    def wait():
        with files.alone(recipe, wait=True) as mine:
            ours.append(mine)

    waiting = threading.Thread(target=wait)
    with files.alone(recipe, wait=False):
        waiting.start()
        waiting.join(timeout=0.2)
        assert not ours
    waiting.join()
    assert ours == [True]


@pytest.mark.parametrize("values", [np.ones(4), np.ones((3, 1)), np.ones(3, "f4"), [1, np.nan, 1]])
def test_a_node_of_another_form_is_not_used(tmp_path, values):
    files = NodeFiles(tmp_path)
    files.write({"a": 1}, np.ones(3))
    np.testing.assert_array_equal(files.read({"a": 1}, 3), np.ones(3))
    files.write({"a": 1}, np.array(values))
    assert files.read({"a": 1}, 3) is None


def test_a_sampled_parameter_without_nodes_fills_no_disk(tmp_path, counted, caplog):
    made = theory(tmp_path)
    with caplog.at_level("WARNING"):
        for i in range(2 * nodes.MAX_TABLES):
            spectra(made, ns=0.9 + 0.001 * i)
    assert len(list(tmp_path.glob("*.npz"))) == 4 * nodes.MAX_TABLES
    assert caplog.text.count("beside those of 'nodes' vary") == 1


def test_what_camb_refuses_is_one_line(tmp_path, caplog):
    """A point that CAMB refuses has no likelihood; a setting that it does not know ends the run."""
    made = theory(tmp_path)
    with caplog.at_level("WARNING"):
        for _ in range(2):
            assert made.calculate({}, True, **(COSMOLOGY | {"H0": -3.0})) is False
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert "H0 = -3.0" in record.getMessage()
    made.stop_at_error = True
    with pytest.raises(LoggedError, match="CAMB refuses ombh2"):
        made.calculate({}, True, **(COSMOLOGY | {"H0": -3.0}))
    for settings in ({"halofit_version": "mead2099"}, {"no_such": 1}, {"mnu": "a"}):
        with pytest.raises(LoggedError, match=f"CAMB cannot be run with .*{next(iter(settings))}"):
            spectra(theory(tmp_path, **settings))


def test_spectra_that_have_no_logarithm_are_told(tmp_path, monkeypatch):
    class Nothing:
        get_lens_potential_cls = get_unlensed_scalar_cls = lambda *_, **__: np.zeros((LMAX + 1, 4))

    monkeypatch.setattr(camb, "get_results", lambda _: Nothing())
    monkeypatch.setattr(nodes, "sigma8", lambda _: 0.8)
    made = theory(tmp_path)
    made.stop_at_error = True
    with pytest.raises(LoggedError, match="not positive at ombh2"):
        spectra(made)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": {}}, "must name one or 2"),
        ({"nodes": {"omega": 0.1}}, "'omega' is not a CAMB parameter"),
        ({"nodes": {"omch2": -1.0}}, "spacing of 'omch2' is -1.0; it must be a positive"),
        ({"nodes": {"omch2": True}}, "spacing of 'omch2' is True"),
        ({"nodes": {"omch2": "0.002"}}, "spacing of 'omch2' is '0.002'"),
        ({"nodes": {"omch2": float("inf")}}, "spacing of 'omch2' is inf"),
        ({"nodes": ["omch2"]}, r"option 'nodes' is \['omch2'\]"),
        ({"nodes": {"omch2": 0.002}, "extra_args": "mnu"}, "option 'extra_args' is 'mnu'"),
        ({"nodes": {"omch2": 0.002}, "cache": True}, "option 'cache' is True"),
        ({"nodes": {"omch2": 0.002}, "cache": 3}, "option 'cache' is 3"),
    ],
)
def test_options_of_a_wrong_type(options, message):
    with pytest.raises(LoggedError, match=message):
        NodeCAMB(options)


def test_floating_point_errors_that_the_caller_raises(tmp_path, counted):
    with np.errstate(all="raise"):
        spectra(theory(tmp_path))
