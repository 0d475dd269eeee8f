"""The report's sections on what κ̂ is used for: cosmology, and the networks themselves."""

from __future__ import annotations

import json
from pathlib import Path

from ..calibrate.assemble import make_release
from ..calibrate.response import standard_error
from ..errors import CNNLensError, NetworkError
from ..pipeline import networks
from ..reconstruct.files import weights_in
from ..validate import paper
from ..validate.noise import compare, noise_table
from ..validate.omch2 import null_significance, recovered_omch2, ways_of
from . import pictures
from .material import Material, level_of
from .page import Measured, Missing, Picture, Section, Table
from .sections import MERGE


def cosmology(material: Material, section: Section) -> None:
    run = material.networks[0]
    config, level = run.config, level_of(run)
    release = make_release(run, config.first_survey, packages=False)
    estimates: dict = {}
    rows = []
    for debias in reversed(ways_of(release)):
        label = "fixed debias" if debias == "fixed" else "debias from the data"
        for name, survey in config.surveys.items():
            found = recovered_omch2(run, release, name, 1, debias)
            estimates.setdefault(label, {})[name] = found.estimates
            quoted, spread = (
                paper.OMCH2.get(name, (None, None)) if debias == "fixed" else (None,) * 2
            )
            rows.append(
                (
                    survey.omch2,
                    label,
                    len(found.estimates),
                    Measured(found.mean, found.error),
                    float(found.scatter),
                    quoted,
                    spread,
                )
            )
    truths = {name: survey.omch2 for name, survey in config.surveys.items()}
    caption = f"Maximum-likelihood ω_c of single patches at {level:g} µK′ (§6.3)"
    section.pictures.append(Picture(caption, pictures.cosmology(estimates, truths)))
    columns = ("true ω_c", "debias", "patches", "mean", "scatter", "paper's mean", "its scatter")
    caption = (
        f"ω_c of single patches at {level:g} µK′, the paper's setting, of {paper.OMCH2_PATCHES} "
        "realisations; the paper has the fixed debias only"
    )
    section.tables.append(Table("omch2", caption, columns, rows))
    rows = []
    for name in config.surveys:
        _, sigma = null_significance(run, release, name)
        quoted = paper.NULL_SIGMA.get(name, (None, None))
        mean = Measured(float(sigma.mean()), float(standard_error(sigma)))
        rows.append((config.surveys[name].omch2, mean, float(sigma.std(ddof=1)), *quoted))
    columns = ("true ω_c", "mean σ", "scatter", "paper", "its scatter")
    caption = "Significance at which single patches reject the fiducial cosmology (eq. 16)"
    section.tables.append(Table("null_hypothesis", caption, columns, rows))


def cutout(material: Material, section: Section) -> None:
    study = material.study(material.plan.cutout)
    found = {run.config.name: noise_table(run) for run in study}
    left = {name: 1.0 - t.correlation**2 for name, t in found.items()}
    caption = "Part of κ's power that κ̂ does not know, by size of the patch (Fig. 12)"
    figure = pictures.ratio(
        {name: t.L for name, t in found.items()}, left, r"$1-\rho_L^2$", "size of the cut-out"
    )
    section.pictures.append(Picture(caption, figure))


def seeds(material: Material, section: Section) -> None:
    study = material.study(material.plan.seeds)
    each = [run for run in study if not isinstance(run.config.network.pretrained, list)]
    table = compare(each, MERGE, material.curves)
    if table.scatter is None:
        raise CNNLensError(f"{material.plan.seeds}: fewer than three networks on the same patches")
    rows = [
        (f"{L:.0f}", float(s), paper.SEED_SCATTER)
        for L, s in zip(table.L, table.scatter, strict=True)
    ]
    columns = ("L", f"scatter, {len(each)} networks", "paper, 20 networks, all bins")
    caption = "Scatter of one patch's bandpower between initialisations (eq. 18)"
    section.tables.append(Table("seed_scatter", caption, columns, rows))


def learning(material: Material, section: Section) -> None:
    histories = {}
    for path in material.plan.trained:
        run = material.run(path)
        config, directory = run.config, networks.training_directory(run)
        command = f"cnnlens train {path}"
        if config.network.pretrained is not None:
            section.notes.append(f"{config.name}: its network was trained elsewhere.")
            continue
        try:
            history = read_history(directory / "state.json")
        except CNNLensError as error:
            section.missing.append(Missing(f"training of {config.name}", str(error), command))
            continue
        if history:
            histories[config.name] = history
        else:
            why = f"{directory}: no finished epoch."
            section.missing.append(Missing(f"training of {config.name}", why, command))
    if histories:
        caption = "Loss against epoch: validation full, training dotted"
        section.pictures.append(Picture(caption, pictures.learning(histories)))


def read_history(path: Path) -> list[dict]:
    """Losses by epoch of a training run's state, read without Keras; none if there is no run."""
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())["history"]
    except (ValueError, KeyError) as error:
        raise NetworkError(
            f"{path}: damaged ({error!r}); delete the folder and train again"
        ) from None


def coverage(material: Material, section: Section) -> None:
    from ..likelihood.release import read_release
    from ..validate.coverage import INTERVALS, coverage_tables
    from .figures import draw_coverage

    run = material.run(material.plan.coverage)
    release = read_release(material.plan.release)
    rows = []
    for patches_each in (run.config.coverage.patches_each, 1):
        tables = coverage_tables(run, release, patches_each)
        if patches_each > 1:
            caption = "Rank of the truth in the posteriors, and pulls, of disjoint mock surveys"
            section.pictures.append(Picture(caption, draw_coverage(tables)))
        for table in tables:
            covered = [Measured(*table.covered(p)) for p in INTERVALS]
            size = (table.parameter, patches_each, len(table.rank), table.n_skies)
            rows.append((*size, *covered, table.uniformity, Measured(*table.bias())))
    columns = ("", "patches", "surveys", "skies", "in 68%", "in 95%", "p(uniform ranks)", "bias")
    caption = (
        f"Posteriors with the {release.name} release's likelihood; parameters of every sky drawn "
        "from the prior. Errors: block bootstrap over the skies; ranks: among simulated surveys "
        "that share a calibration error"
    )
    section.tables.append(Table("coverage", caption, columns, rows))


def network(material: Material, section: Section) -> None:
    rows = []
    for run in material.networks:
        for path in networks.paths(run):
            rows.append((run.config.name, weights_in(path), paper.PARAMETERS))
    section.notes.append(
        "The paper's network is width 64, of 5,401,418 parameters and a receptive field of "
        f"{paper.RECEPTIVE_FIELD} pixels when built from its description, which the tests check. "
        f"Its times ({paper.EPOCH_SECONDS} s an epoch, {paper.PATCH_MILLISECONDS} ms a patch on a "
        "P100 GPU) depend on the machine and are no product: tests/benchmarks/network.py prints "
        "ours beside them."
    )
    columns = ("network", "numbers in its file", "paper's parameters")
    section.tables.append(Table("network", "The networks (§§4, 5)", columns, rows))
