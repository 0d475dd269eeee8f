"""The names by which other people's code and inputs find things."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import cobaya_cnnlens
from cobaya_cnnlens import likelihood


def test_other_names_are_no_modules():
    for name in ("bandpower", "config", "model", "release"):
        with pytest.raises(ModuleNotFoundError, match=name):
            importlib.import_module(f"cobaya_cnnlens.{name}")
    with pytest.raises(AttributeError, match="bandpower"):
        _ = cobaya_cnnlens.bandpower
    with pytest.raises(AttributeError, match="no attribute 'CNNlens'"):
        _ = cobaya_cnnlens.CNNlens


@pytest.mark.parametrize("module", [cobaya_cnnlens, likelihood])
def test_public_names_are_there(module):
    """When they are asked for; and type checkers, which cannot ask, are told of each."""
    names = set(module.__all__) - {"__version__"}
    for name in names:
        assert getattr(module, name) is not None
    assert names <= set(dir(module))
    told = [
        node
        for block in ast.parse(Path(module.__file__).read_text()).body
        if isinstance(block, ast.If)
        for node in block.body
    ]
    assert {alias.asname for node in told for alias in node.names} == names
    for node in told:
        for alias in node.names:
            home = importlib.import_module(f".{node.module}", module.__name__)
            assert getattr(home, alias.name) is getattr(module, alias.name)


@pytest.mark.parametrize("name", ["cobaya_cnnlens.CNNLens", "cobaya_cnnlens.likelihood.CNNLens"])
def test_cobaya_finds_the_likelihood(name, capsys):
    """As an input names it, with its options and, by ``cobaya-doc``, its documentation."""
    from cobaya.component import get_component_class
    from cobaya.doc import doc_script

    found = get_component_class(name, kind="likelihood")
    assert found is cobaya_cnnlens.CNNLens
    assert found.get_defaults()["noise_debias"] == "data"
    doc_script([name])
    assert "noise_debias" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("pass", "cobaya camb numpy h5py tensorflow healpy matplotlib"),
        (
            "cobaya_cnnlens.read_release('refined_fiducial')",
            "cobaya camb keras healpy matplotlib jax",
        ),
        (
            "cobaya_cnnlens.CNNLens; cobaya_cnnlens.NodeCAMB; cobaya_cnnlens.BandpowerLikelihood",
            "camb tensorflow keras healpy ducc0 h5py snakemake pydantic jax",
        ),
    ],
)
def test_the_package_loads_only_what_is_asked_for(code, heavy):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, cobaya_cnnlens; {code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(heavy.split()) & set(done.stdout.split())
