"""The report's sections: each figure and each number of Caldeira et al. 2018, ours beside it.

A section takes the material and a :class:`Section` to fill. What it cannot show it lists as
missing, with the command that makes it; an error ends the section there.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from ..calibrate.assemble import make_release
from ..calibrate.measure import read_bandpowers
from ..config import Config
from ..errors import CNNLensError, NetworkError
from ..reconstruct.files import estimator_hash
from ..reconstruct.n0 import delensed_part
from ..simulate.stage import spectra_for
from . import paper, pictures
from .material import Material
from .page import Measured, Missing, Picture, Section, Table
from .tables import compare, noise_table, null_significance, recovered_omch2

# Bins taken together where curves and tables are shown, and the range of L in which an estimator
# is said to be below another.
MERGE = 2
RANGE = (300.0, 2500.0)


def maps(material: Material, section: Section) -> None:
    shown = _gather(material, section, material.networks, material.exhibit, "exhibit")
    if not shown:
        return
    by_noise = {_level(c): e for c, e in shown}
    first = next(iter(by_noise.values()))
    size = material.networks[0].patch.size_deg
    inputs = [
        [(f"{symbol}, {level:g} µK′", getattr(e, name)) for level, e in by_noise.items()]
        for name, symbol in (("q", "Q̃"), ("u", "Ũ"))
    ]
    section.pictures.append(
        Picture("Inputs: observed Q̃, Ũ (Fig. 5)", pictures.maps(inputs, size, "µK"))
    )
    with_e = {level: e for level, e in by_noise.items() if e.e_found is not None}
    if with_e:
        rows = [
            [("true E", first.e), *((f"Ê, {n:g} µK′", e.e_found) for n, e in with_e.items())],
            [None, *((f"E − Ê, {n:g} µK′", e.e - e.e_found) for n, e in with_e.items())],
        ]
        caption = "E: the truth, what the network returns, and the difference (Figs 1 and 6)"
        section.pictures.append(Picture(caption, pictures.maps(rows, size, "µK")))
    rows = [
        [("true κ", first.kappa), *((f"κ̂, {n:g} µK′", e.kappa_found) for n, e in by_noise.items())],
        [None, *((f"κ − κ̂, {n:g} µK′", e.kappa - e.kappa_found) for n, e in by_noise.items())],
    ]
    caption = "κ: the truth, what the network returns, and the difference (Figs 1 and 7)"
    section.pictures.append(Picture(caption, pictures.maps(rows, size)))


def spectra(material: Material, section: Section) -> None:
    exhibits = _gather(material, section, material.networks, material.exhibit, "exhibit")
    tables = _gather(material, section, material.networks, lambda c: material.noise(c, 1))
    if not tables:
        return
    kappa = {}
    for config, _ in tables:
        test = read_bandpowers(config, estimator_hash(config), "test")
        auto, cross, truth = (getattr(test, k).mean(0) for k in ("auto", "cross", "truth"))
        kappa[_level(config)] = truth, auto, auto - 2.0 * cross + truth
    L = tables[0][1].L
    caption = "Power of true and recovered E and κ; below, of the difference (Fig. 8)"
    png = pictures.spectra(L, {_level(c): e for c, e in exhibits}, kappa)
    section.pictures.append(Picture(caption, png))
    if (quiet := {_level(c): t for c, t in tables}.get(0.0)) is not None:
        rows = [
            (
                f"{L[b]:.0f}",
                float(quiet.power[b]),
                paper.NOISELESS_POWER,
                "better" if quiet.power[b] >= paper.NOISELESS_POWER else "worse",
            )
            for b in range(0, len(L), 3)
        ]
        columns = ("L", "⟨κ̂κ̂*⟩/⟨κκ*⟩", "paper, at least", "verdict")
        caption = "Power of κ recovered without noise (§6.1), every third bin"
        section.tables.append(Table("recovered_power", caption, columns, rows))


def noise(material: Material, section: Section) -> None:
    levels, rows = {}, []
    for level, configs in material.levels.items():
        found = _gather(material, section, configs, lambda c: material.noise(c, MERGE))
        if not found or found[0][0].baseline is not None:
            continue
        names = {c.name: material.label(c) for c, _ in found}
        levels[level] = {names[c.name]: t for c, t in found}
        table = compare([c for c, _ in found], [estimator_hash(c) for c, _ in found], MERGE)
        network = found[0][1]
        iterated = network.n0_iterated > 1e-4 * network.n0_eb
        columns = ("L", "N_L of the network", "over N0(EB)", "over N0(iterated)")
        columns += tuple(f"{names[name]} / network" for name in table.names[1:])
        body = [
            (
                f"{L:.0f}",
                Measured(network.noise[b], network.noise_error[b]),
                Measured(*(x[b] / network.n0_eb[b] for x in (network.noise, network.noise_error))),
                Measured(table.excess[0, b], table.excess_error[0, b]) if iterated[b] else None,
                *(
                    Measured(r[b], e[b])
                    for r, e in zip(table.relative[1:], table.relative_error[1:], strict=True)
                ),
            )
            for b, L in enumerate(table.L)
        ]
        caption = (
            f"{level:g} µK′: reconstruction noise of the network, over the analytic N0 of the EB "
            "and the iterated EB estimator, and that of the others over the network's on the same "
            "patches"
        )
        section.tables.append(Table(f"noise_{level:g}uk", caption, columns, body))
        low, high = RANGE
        inside = (table.L - low) * (high - table.L) > 0
        for i, name in enumerate(table.names[1:], 1):
            margin = (table.relative[i] - 1.0) / table.relative_error[i]
            b = np.flatnonzero(inside)[np.argmin(margin[inside])]
            rows.append(
                (
                    f"{level:g}",
                    names[name],
                    f"{table.L[b]:.0f}",
                    Measured(table.relative[i, b], table.relative_error[i, b]),
                    "level" if abs(margin[b]) <= 2 else "better" if margin[b] > 0 else "worse",
                )
            )
    if not levels:
        return
    theory = spectra_for(material.networks[0], material.networks[0].cosmology)
    caption = "Reconstruction noise and analytic curves (Fig. 9)"
    section.pictures.append(Picture(caption, pictures.noise(levels, theory.kk)))
    caption = (
        f"Where in {RANGE[0]:.0f} < L < {RANGE[1]:.0f} each other estimator comes closest to the "
        "network: its N_L over the network's there"
    )
    columns = ("µK′", "estimator", "L", "N_L / network's", "the network is")
    section.tables.insert(0, Table("network_against_others", caption, columns, rows))


def errors(material: Material, section: Section) -> None:
    found = _gather(material, section, material.networks, lambda c: material.noise(c, 1))
    if not found:
        return
    tables = {_level(c): t for c, t in found}
    section.pictures.append(
        Picture("Relative error of one patch's bandpowers (Fig. 10)", pictures.errors(tables))
    )
    n_patches = {
        _level(c): len(read_bandpowers(c, estimator_hash(c), "test").auto) for c, _ in found
    }
    rows = []
    for level, table in tables.items():
        for where, quoted in paper.BANDPOWER_ERROR.get(level, {}).items():
            b = 0 if where == "first" else int(np.argmin(np.abs(table.L - where)))
            ours = float(table.relative_error[b])
            error = paper.scatter_error(ours, n_patches[level])
            beside = paper.scatter_error(quoted)
            judged = paper.verdict(ours, error, quoted, beside)
            at = f"{table.L[b]:.0f}"
            rows.append((f"{level:g}", at, Measured(ours, error), Measured(quoted, beside), judged))
    columns = ("µK′", "L", "σ(d)/C", "paper", "verdict")
    caption = "Relative error of one patch's bandpower in bins of 127 (§6.1), errors of the scatter"
    section.tables.append(Table("bandpower_errors", caption, columns, rows))


def correlation(material: Material, section: Section) -> None:
    ell = np.array([100, 200, 300, 500, 750, 1000, 1500, 2000])
    tables: dict = {}
    left: dict = {}
    for level, configs in material.levels.items():
        chosen = [c for c in configs if material.label(c) in ("network", "iterated, maps")]
        for config, table in _gather(material, section, chosen, lambda c: material.noise(c, 1)):
            label = material.label(config)
            theory = spectra_for(config, config.cosmology)
            rho = np.interp(np.arange(len(theory.pp)), table.L, table.correlation)
            rho[: config.bandpowers.lmin] = 0.0
            rho[int(table.L[-1]) :] = 0.0
            tables.setdefault(label, {})[level] = table
            left.setdefault(label, {})[level] = delensed_part(ell, theory, rho)
    if not tables:
        return
    section.notes.append(
        "ρ_L is that of masked maps of one patch. The B power left assumes that E is known and "
        "takes the first order in φ: C^BB of C^EE and (1 − ρ_L²) C^φφ, with ρ = 0 where no bin "
        "measures it, below L = 36 above all. The paper shows neither."
    )
    caption = "Correlation of κ̂ with κ, and what delensing by κ̂ leaves of the B power"
    section.pictures.append(Picture(caption, pictures.correlation(tables, ell, left)))
    rows = [
        (f"{level:g}", label, *(float(x) for x in values[:6]))
        for label, by_level in left.items()
        for level, values in by_level.items()
    ]
    columns = ("µK′", "estimator", *(f"l = {x}" for x in ell[:6]))
    section.tables.append(Table("b_power_left", "Lensed B power left", columns, rows))


def cosmology(material: Material, section: Section) -> None:
    config = material.networks[0]
    level = _level(config)
    digest = estimator_hash(config)
    release = make_release(config, digest, next(iter(config.surveys)), packages=False)
    estimates: dict = {}
    rows = []
    for debias, label in (("fixed", "fixed debias"), ("quadratic", "corrected debias")):
        for name, survey in config.surveys.items():
            found = recovered_omch2(config, digest, release, name, 1, debias)
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
        _, sigma = null_significance(config, digest, release, name)
        quoted = paper.NULL_SIGMA.get(name, (None, None))
        scatter = float(sigma.std(ddof=1))
        mean = Measured(float(sigma.mean()), scatter / len(sigma) ** 0.5)
        rows.append((config.surveys[name].omch2, mean, scatter, *quoted))
    columns = ("true ω_c", "mean σ", "scatter", "paper", "its scatter")
    caption = "Significance at which single patches reject the fiducial cosmology (eq. 16)"
    section.tables.append(Table("null_hypothesis", caption, columns, rows))


def cutout(material: Material, section: Section) -> None:
    study = material.study(material.plan.cutout)
    found = {c.name: noise_table(c, estimator_hash(c)) for c in study.values()}
    left = {name: 1.0 - t.correlation**2 for name, t in found.items()}
    caption = "Part of κ's power that κ̂ does not know, by size of the patch (Fig. 12)"
    png = pictures.ratio(
        {name: t.L for name, t in found.items()}, left, r"$1-\rho_L^2$", "size of the cut-out"
    )
    section.pictures.append(Picture(caption, png))


def seeds(material: Material, section: Section) -> None:
    study = material.study(material.plan.seeds)
    each = {p: c for p, c in study.items() if not isinstance(c.network.pretrained, list)}
    hashes = [estimator_hash(config) for config in each.values()]
    table = compare(list(each.values()), hashes, MERGE)
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
    from ..reconstruct.training import TrainingRun, training_recipe

    histories = {}
    for path in material.plan.trained:
        config = material.config(path)
        command = f"cnnlens train {path}"
        if config.network.pretrained is not None:
            section.notes.append(f"{config.name}: its network was trained elsewhere.")
            continue
        try:
            history = TrainingRun(config.training_directory, training_recipe(config)).history
        except CNNLensError as error:
            section.missing.append(Missing(f"training of {config.name}", str(error), command))
            continue
        if history:
            histories[config.name] = history
        else:
            why = f"{config.training_directory}: no finished epoch."
            section.missing.append(Missing(f"training of {config.name}", why, command))
    if histories:
        caption = "Loss against epoch: validation full, training dotted"
        section.pictures.append(Picture(caption, pictures.learning(histories)))


def coverage(material: Material, section: Section) -> None:
    from ..release import read_release
    from .coverage import INTERVALS, coverage_table
    from .figures import draw_coverage

    config = material.config(material.plan.coverage)
    release = read_release(material.plan.release)
    rows = []
    for patches_each in (config.coverage.patches_each, 1):
        table = coverage_table(config, estimator_hash(config), release, patches_each)
        if patches_each > 1:
            caption = "Rank of the truth in the posteriors, and pulls, of disjoint mock surveys"
            section.pictures.append(Picture(caption, pictures.png(draw_coverage(table))))
        covered = [Measured(*table.covered(p)) for p in INTERVALS]
        bias = Measured(*table.bias())
        rows.append(
            (patches_each, len(table.rank), table.n_skies, *covered, table.uniformity, bias)
        )
    columns = ("patches", "surveys", "skies", "in 68%", "in 95%", "p(uniform ranks)", "bias of ω_c")
    caption = (
        f"Posteriors of ω_c with the {release.name} release's likelihood; ω_c of every sky drawn "
        "from the prior"
    )
    section.tables.append(Table("coverage", caption, columns, rows))


def network(material: Material, section: Section) -> None:
    rows = []
    for config in material.networks:
        for path in config.network_paths:
            rows.append((config.name, weights_in(path), paper.PARAMETERS))
    section.notes.append(
        "The paper's network is width 64, of 5,401,418 parameters and a receptive field of "
        f"{paper.RECEPTIVE_FIELD} pixels when built from its description, which the tests check. "
        f"Its times ({paper.EPOCH_SECONDS} s an epoch, {paper.PATCH_MILLISECONDS} ms a patch on a "
        "P100 GPU) depend on the machine and are no product: tests/benchmarks/network.py prints "
        "ours beside them."
    )
    columns = ("network", "numbers in its file", "paper's parameters")
    section.tables.append(Table("network", "The networks (§§4, 5)", columns, rows))


def weights_in(path: Path) -> int:
    """How many numbers the weights of a ``.keras`` file are, normalisation included."""
    try:
        with zipfile.ZipFile(path) as archive:
            weights = io.BytesIO(archive.read("model.weights.h5"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise NetworkError(f"{path}: not a Keras file ({error}); train the network again") from None
    sizes = []
    with h5py.File(weights) as file:
        file.visititems(lambda _, x: sizes.append(x.size) if isinstance(x, h5py.Dataset) else None)
    return sum(sizes)


def _level(config: Config) -> float:
    return config.instrument.noise_uk_arcmin


def _gather(
    material: Material,
    section: Section,
    configs: list[Config],
    read: Callable,
    stage: str = "reconstruct",
) -> list[tuple[Config, object]]:
    """Each configuration with what ``read`` finds for it; where that fails it is missing."""
    found = []
    for config in configs:
        try:
            found.append((config, read(config)))
        except CNNLensError as error:
            path = material.path(config)
            section.missing.append(Missing(config.name, str(error), command(stage, path)))
    return found


def command(stage: str, path: str) -> str:
    """What makes the products of a stage for a configuration."""
    if stage == "reconstruct":
        sets = ("validation", "test")
        return " && ".join(f"cnnlens reconstruct '{path}' --set {name}" for name in sets)
    return f"cnnlens {stage} '{path}'"
