"""The report's sections on κ̂ itself: the figures and numbers of Caldeira et al. 2018, ours beside.

A section takes the material and a :class:`Section` to fill. What it cannot show it lists as
missing, with the command that makes it; an error ends the section there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..calibrate import bandpowers
from ..errors import CNNLensError
from ..pipeline.run import Run
from ..validate import exhibits, paper
from ..validate.delensing import b_power_left
from ..validate.noise import compare
from ..validate.nulls import nulls_table
from ..validate.stages import kappa_power
from . import pictures
from .material import Material, level_of
from .page import Measured, Missing, Picture, Section, Table

# Bins taken together where curves and tables are shown, and the range of L in which an estimator
# is said to be below another.
MERGE = 2
RANGE = (300.0, 2500.0)
# Maps of noise are files as large as their pixels are many.
MAPS_DPI = 70


def maps(material: Material, section: Section) -> None:
    shown = gather(material, section, material.networks, exhibits.read, "exhibit")
    if not shown:
        return
    by_noise = {level_of(c): e for c, e in shown}
    first = next(iter(by_noise.values()))
    size = material.networks[0].config.patch.size_deg
    inputs = [
        [(f"{symbol}, {level:g} µK′", getattr(e, name)) for level, e in by_noise.items()]
        for name, symbol in (("q", "Q̃"), ("u", "Ũ"))
    ]
    section.pictures.append(
        Picture("Inputs: observed Q̃, Ũ (Fig. 5)", pictures.maps(inputs, size, "µK"), MAPS_DPI)
    )
    with_e = {level: e for level, e in by_noise.items() if e.e_found is not None}
    if with_e:
        rows = [
            [("true E", first.e), *((f"Ê, {n:g} µK′", e.e_found) for n, e in with_e.items())],
            [None, *((f"E − Ê, {n:g} µK′", e.e - e.e_found) for n, e in with_e.items())],
        ]
        caption = "E: the truth, what the network returns, and the difference (Figs 1 and 6)"
        section.pictures.append(Picture(caption, pictures.maps(rows, size, "µK"), MAPS_DPI))
    rows = [
        [("true κ", first.kappa), *((f"κ̂, {n:g} µK′", e.kappa_found) for n, e in by_noise.items())],
        [None, *((f"κ − κ̂, {n:g} µK′", e.kappa - e.kappa_found) for n, e in by_noise.items())],
    ]
    caption = "κ: the truth, what the network returns, and the difference (Figs 1 and 7)"
    section.pictures.append(Picture(caption, pictures.maps(rows, size), MAPS_DPI))


def spectra(material: Material, section: Section) -> None:
    shown = gather(material, section, material.networks, exhibits.read, "exhibit")
    tables = gather(material, section, material.networks, lambda c: material.noise(c, 1))
    if not tables:
        return
    kappa = {level_of(run): kappa_power(run) for run, _ in tables}
    L = tables[0][1].L
    caption = "Power of true and recovered E and κ; below, of the difference (Fig. 8)"
    figure = pictures.spectra(L, {level_of(c): e for c, e in shown}, kappa)
    section.pictures.append(Picture(caption, figure))
    if (quiet := {level_of(c): t for c, t in tables}.get(0.0)) is not None:
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
    for level, runs in material.levels.items():
        found = gather(material, section, runs, lambda c: material.noise(c, MERGE))
        if not found or found[0][0].config.baseline is not None:
            continue
        names = {c.config.name: material.label(c) for c, _ in found}
        levels[level] = {names[c.config.name]: t for c, t in found}
        table = compare([run for run, _ in found], MERGE, material.curves)
        network = found[0][1]
        # Without noise delensing goes on for ever, and the analytic curve to zero.
        iterated = np.full(len(table.L), level > 0)
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
        for i, name in enumerate(table.names[1:], 1):
            b, verdict = table.closest(i, *RANGE)
            rows.append(
                (
                    f"{level:g}",
                    names[name],
                    f"{table.L[b]:.0f}",
                    Measured(table.relative[i, b], table.relative_error[i, b]),
                    verdict,
                )
            )
    if not levels:
        return
    theory = material.networks[0].spectra()
    caption = "Reconstruction noise and analytic curves (Fig. 9)"
    section.pictures.append(Picture(caption, pictures.noise(levels, theory.kk)))
    caption = (
        f"Where in {RANGE[0]:.0f} < L < {RANGE[1]:.0f} each other estimator comes closest to the "
        "network: its N_L over the network's there"
    )
    columns = ("µK′", "estimator", "L", "N_L / network's", "the network is")
    section.tables.insert(0, Table("network_against_others", caption, columns, rows))


def errors(material: Material, section: Section) -> None:
    found = gather(material, section, material.networks, lambda c: material.noise(c, 1))
    if not found:
        return
    tables = {level_of(c): t for c, t in found}
    section.pictures.append(
        Picture("Relative error of one patch's bandpowers (Fig. 10)", pictures.errors(tables))
    )
    n_patches = {level_of(c): len(bandpowers.read(c, "test").auto) for c, _ in found}
    rows = [
        (
            f"{level:g}",
            f"{c.L:.0f}",
            Measured(c.ours, c.error),
            Measured(c.quoted, c.quoted_error),
            c.verdict,
        )
        for level, table in tables.items()
        for c in paper.compared_errors(level, table, n_patches[level])
    ]
    columns = ("µK′", "L", "σ(d)/C", "paper", "verdict")
    caption = "Relative error of one patch's bandpower in bins of 127 (§6.1), errors of the scatter"
    section.tables.append(Table("bandpower_errors", caption, columns, rows))


def correlation(material: Material, section: Section) -> None:
    ell = np.array([100, 200, 300, 500, 750, 1000, 1500, 2000])
    tables: dict = {}
    left: dict = {}
    for level, runs in material.levels.items():
        chosen = [c for c in runs if material.label(c) in ("network", "MAP")]
        for run, table in gather(material, section, chosen, lambda c: material.noise(c, 1)):
            label = material.label(run)
            tables.setdefault(label, {})[level] = table
            left.setdefault(label, {})[level] = b_power_left(run, table, ell)
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


def nulls(material: Material, section: Section) -> None:
    found = gather(
        material,
        section,
        material.networks,
        nulls_table,
        "nulltest",
    )
    if not found:
        return
    section.notes.append(
        "Each null is ⟨κκ̂*⟩/⟨κκ*⟩ of inputs that hold no lensing by that κ, averaged over the bins "
        "by their errors, or the mean κ̂ of inputs that should have none; χ² is over all bins. "
        f"The paper's eq. 14 for the first: below {paper.TRAINING_CROSS:g}. Unlensed maps hold no "
        "lensed B, which is part of what the noise of κ̂ is made of, so that their κ̂ has less "
        f"power than N_L; the paper's Fig. 11 finds {paper.UNLENSED_POWER} differences."
    )
    unlensed = {
        f"{level_of(c):g} µK′": ratio
        for c, table in found
        for ratio in table.over_noise
        if ratio.name == "unlensed"
    }
    caption = "Power of κ̂/R of unlensed maps over N_L of the same patches, lensed (Fig. 11)"
    section.pictures.append(Picture(caption, pictures.unlensed(unlensed)))
    rows = [
        (
            f"{level_of(run):g}",
            test.what.replace("khat", "κ̂").replace("kappa", "κ"),
            test.n_samples,
            Measured(test.mean, test.mean_error),
            float(test.chi2),
            len(test.L),
            float(test.pte),
            test.verdict,
        )
        for run, table in found
        for test in table.tests
    ]
    columns = ("µK′", "null", "patches", "mean", "χ²", "bins", "PTE", "verdict")
    section.tables.append(Table("nulls", "Null tests (§6.2)", columns, rows))
    L = found[0][1].L
    shown = range(0, len(L), -(-len(L) // 6))
    rows = [
        (f"{level_of(c):g}", p.name, *(Measured(p.values[b], p.errors[b]) for b in shown))
        for c, table in found
        for p in [*table.over_noise, *table.over_own]
    ]
    columns = ("µK′", "input", *(f"L = {L[b]:.0f}" for b in shown))
    caption = "What need not vanish: power of κ̂/R over N_L; odd part and means over κ̂'s own power"
    section.tables.append(Table("null_powers", caption, columns, rows))


def gather(
    material: Material,
    section: Section,
    runs: list[Run],
    read: Callable,
    stage: str = "reconstruct",
) -> list[tuple[Run, object]]:
    """Each configuration with what ``read`` finds for it; where that fails it is missing."""
    found = []
    for run in runs:
        try:
            found.append((run, read(run)))
        except CNNLensError as error:
            path = material.path(run)
            section.missing.append(Missing(run.config.name, str(error), command(stage, path)))
    return found


def command(stage: str, path: str) -> str:
    """What makes the products of a stage for a configuration."""
    if stage == "reconstruct":
        sets = ("validation", "test")
        return " && ".join(f"cnnlens reconstruct '{path}' --set {name}" for name in sets)
    return f"cnnlens {stage} '{path}'"
