"""What the workflow's jobs cost: CPU-seconds of every job of a configuration, from unit costs.

A job costs its start, what belongs to a sky whatever its patches, and its patches::

    sky          S (l_max/5000)³ + P s                     P patches
    bandpowers   P (o + k)                                 o: to observe a patch, k: its κ̂
    features     P f
    derivatives  B + P k + Σ_bands [T + P (t + 2k)]        B: the sky, T, t: a band's transforms,
                                                           T = T_EE (l_top/4400)³ in C^EE, and
                                                           T_κκ (l_max/5000)³ more in C^κκ
    curvature    2 (B + P k)
    nuisances    2 × systematics × (P_sky o + P k)
    power        P (o + e); derivatives and nuisances as above with e in k's place
    train        steps × batch × pixels × a network's cost

Units are of patches of 128² pixels at 1 µK-arcmin, and go with the pixels; they are CPU-seconds on
two cores of an AMD EPYC (AVX2) that were shared with other work, by ``python
tests/benchmarks/costs.py``, or as the source of a unit says. Another machine is faster or slower by
about one factor for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..calibrate import (
    assemble,
    bandpowers,
    cosmologies,
    curvature,
    derivatives,
    nuisances,
    power,
)
from ..errors import ConfigError
from ..likelihood.fields import NUISANCES
from ..pipeline import features, mean_field, networks, skies
from ..pipeline.config import WHOLE, Config
from ..pipeline.run import Run


@dataclass(frozen=True)
class Unit:
    """CPU-seconds of one thing, and what measured them."""

    cpu_s: float
    of: str
    source: str


BENCHMARK = "tests/benchmarks/costs.py"
NETWORKS = "training/networks/README.md"
UNITS = {
    "start": Unit(18.7, "a job's start: Snakemake, twice under Slurm, and imports", BENCHMARK),
    "spectra": Unit(8.3, "CAMB at a cosmology", BENCHMARK),
    "sky": Unit(39.9, "a sky, l to 5000", BENCHMARK),
    "sky patch": Unit(0.018, "a patch of a sky", BENCHMARK),
    "observation": Unit(
        0.005, "a patch read, with beam, noise and mask", "`cnnlens power`: 8 s for 1,543 patches"
    ),
    "e and b": Unit(0.0005, "E and B power of a patch", BENCHMARK),
    "bench": Unit(35.6, "a sky whose bands are scaled, l to 5000", BENCHMARK),
    "bench patch": Unit(0.11, "a patch of such a sky", BENCHMARK),
    "band": Unit(12.2, "a band up to l = 4400", BENCHMARK),
    "kk band": Unit(16.7, "what one of C^κκ takes beside that", BENCHMARK),
    "band patch": Unit(0.005, "a patch of a band, without its κ̂", BENCHMARK),
    "refined": Unit(0.75, "κ̂ of a patch by the refining network, features included", NETWORKS),
    "features": Unit(0.7, "features of a patch", NETWORKS),
    "resunet": Unit(
        0.125, "κ̂ of a patch by a ResUNet of width 16", "docs/measured.md: 16 patches a second"
    ),
    "quadratic": Unit(0.008, "κ̂ of a patch by the quadratic estimator", BENCHMARK),
    "wiener": Unit(0.11, "κ̂ of a patch by the quadratic estimator of filtered maps", BENCHMARK),
    "iterated": Unit(
        0.8, "κ̂ of a patch by nine passes of the iterated estimator", "tests/benchmarks/ascent.py"
    ),
    "probable": Unit(0.4, "κ̂ of a patch by six passes of the ascent", "tests/benchmarks/ascent.py"),
    "train resunet": Unit(
        0.525, "a whole patch in a step of training, ResUNet of width 16", f"{NETWORKS}: 91 minutes"
    ),
    "train refined": Unit(
        0.19,
        "a patch in a step of training, refining network of width 40",
        BENCHMARK,
    ),
    "table": Unit(60.0, "a release or a table", "docs/measured.md: up to a minute and a half"),
}
# By how much calibration may widen a survey's errors: the variance of N from n patches over that of
# a survey of as many tiles is tiles / n.
SHARE = 0.02
WHOLE_SKY_DEG2 = 41_253
# A job's time limit is this many times its cost, for slower machines, within these bounds.
MARGIN, LEAST_MINUTES, MOST_MINUTES = 3.0, 30, 1440
# Memory of a job that holds a sky's patches: a sky of 1,543 took 8.5 GB.
LEAST_MB, PATCH_MB = 4000, 5.0


@dataclass(frozen=True)
class Job:
    """One job of the workflow: its ``rule``, the file it makes, CPU-seconds, and which files
    it needs."""

    rule: str
    path: Path
    cpu_s: float
    needs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Jobs of one rule: all of a target's, and those that are left with their CPU-seconds."""

    rule: str
    jobs: int
    left: int
    cpu_s: float


class Costs:
    """CPU-seconds of a configuration's jobs, by rule.

    Parameters
    ----------
    run : of the configuration
    """

    def __init__(self, run: Run):
        self.run, config = run, run.config
        self._config = config
        pixels = (config.patch.n_pixels / 128) ** 2
        transforms = (config.sky.lmax / 5000) ** 3
        per_patch = ("patch", "observation", "e and b", "features")
        self._unit = {
            name: unit.cpu_s
            * (pixels if name.endswith(per_patch) else 1.0)
            * (transforms if name in ("sky", "bench", "kk band") else 1.0)
            for name, unit in UNITS.items()
        }
        self._start = self._unit["start"]
        self._kappa = pixels * _estimate(config)

    def patches(self, set_name: str) -> int:
        """Of one sky of a set."""
        return self.run.n_patches if set_name in WHOLE else len(self.run.spread)

    def memory_mb(self, set_name: str) -> int:
        """Of a job that holds a sky of a set; most of it goes with the pixels."""
        pixels = (self._config.patch.n_pixels / 128) ** 2
        return max(LEAST_MB, math.ceil(2000 + PATCH_MB * pixels * self.patches(set_name)))

    def sky(self, set_name: str) -> float:
        """One sky of a set."""
        unit = self._unit
        return self._start + unit["sky"] + self.patches(set_name) * unit["sky patch"]

    def bandpowers(self, set_name: str) -> float:
        """κ̂ of one sky of a set, and its power."""
        return self._start + self.patches(set_name) * self._seen(self._kappa)

    def features(self, set_name: str) -> float:
        """One file of features."""
        n = min(self._config.refining.batch, self.patches(set_name))
        return self._start + n * self._seen(self._unit["features"])

    def train(self) -> float:
        """All steps of training."""
        config, network = self._config, self._config.network
        patches = sum(
            p.steps * p.batch * ((p.crop or config.patch.n_pixels) / 128) ** 2
            for p in config.training.phases
        )
        width = 16 if network.kind == "resunet" else 40
        each = self._unit[f"train {network.kind}"] * (network.width / width) ** 2
        return self._start + patches * each

    def mean_field(self) -> float:
        """κ̂ of the training skies that it is measured on."""
        n = self._config.baseline.mean_field_skies * self.patches("train")
        return self._start + n * self._seen(self._kappa)

    def curvature(self) -> float:
        """A sky at two shifted cosmologies."""
        n = self._scaled()
        return self._start + 2 * (self._bench(n) + n * self._kappa + self._unit["spectra"])

    def derivatives(self) -> float:
        """All bands of a sky."""
        return self._bands(self._kappa)

    def nuisances(self) -> float:
        """A test sky under each systematic."""
        return self._systematics(self._kappa)

    def power(self, what: str) -> float:
        """E and B of a set's sky, or of what scales its bands or is off."""
        each = self._unit["e and b"]
        if what == derivatives.SET:
            shifted = 2 * (self._bench(self._scaled()) + self._unit["spectra"])
            return self._bands(each) + shifted
        if what == nuisances.KIND:
            return self._systematics(each)
        return self._start + self.patches(what) * self._seen(each)

    def coverage(self) -> float:
        """A sky of drawn cosmology."""
        n = self.patches("coverage")
        return self._start + self._unit["spectra"] + self._bench(n) + n * self._kappa

    def fit(self) -> float:
        """A test sky at the cosmologies of the fit."""
        fit = self._config.points.fit
        n = self.patches("test")
        n = min(fit.patches or n, n)
        each = self._unit["spectra"] + self._bench(n) + n * self._seen(self._kappa)
        return self._start + len(fit.at) * each

    def nulls(self) -> float:
        """A sky deflected by a curl."""
        n = min(self._config.nulls.patches or self.patches("test"), self.patches("test"))
        return self._start + self._bench(n) + n * self._seen(self._kappa)

    def tiles(self, n: int) -> float:
        """κ̂ of the patches of a survey."""
        return self._start + n * self._seen(self._kappa)

    def table(self) -> float:
        """A release, or a table."""
        return self._start + self._unit["table"]

    def _seen(self, kappa: float) -> float:
        return self._unit["observation"] + kappa

    def _scaled(self) -> int:
        """Patches whose bands are scaled."""
        n = self.patches(derivatives.SET)
        return min(self._config.derivatives.patches or n, n)

    def _bench(self, n: int) -> float:
        return self._unit["bench"] + n * self._unit["bench patch"]

    def _bands(self, kappa: float) -> float:
        settings, n = self._config.derivatives, self._scaled()
        tops = [*settings.kk_edges[1:], *settings.ee_edges[1:]]
        transforms = self._unit["band"] * sum((top / 4400) ** 3 for top in tops)
        transforms += self._unit["kk band"] * (len(settings.kk_edges) - 1)
        each = n * (self._unit["band patch"] + 2 * self._seen(kappa))
        own = self._bench(n) + n * self._seen(kappa)
        return self._start + own + transforms + len(tops) * each

    def _systematics(self, kappa: float) -> float:
        n = self.patches(nuisances.SET)
        measured = min(self._config.nuisances.patches or n, n)
        each = n * self._unit["observation"] + measured * kappa
        return self._start + 2 * len(NUISANCES) * each


def _estimate(config: Config) -> float:
    """CPU-seconds of κ̂ of a patch of 128² pixels. An estimator of another package is taken for the
    iterated one."""
    if config.baseline is not None:
        kind, passes = config.baseline.kind, config.baseline.passes
        scale = {"iterated": passes / 9, "probable": passes / 6}.get(kind, 1.0)
        return scale * UNITS[kind if kind in UNITS else "iterated"].cpu_s
    network = config.network
    names = network.pretrained if isinstance(network.pretrained, list) else [network.pretrained]
    if network.kind == "refined":
        return len(names) * UNITS["refined"].cpu_s
    times = len(names) * config.reconstruction.symmetries * (network.width / 16) ** 2
    return times * UNITS["resunet"].cpu_s


@dataclass(frozen=True)
class Survey:
    """A survey's area in square degrees, how many ``tiles`` cover it, and CPU-seconds of their
    κ̂."""

    area_deg2: float
    tiles: int
    cpu_s: float


def stages_of(
    members: Mapping[str, Config], file: str, everything: bool = False, releases: bool = False
) -> list[Stage]:
    """Jobs by rule, in the order of the workflow, that its default target needs.

    Parameters
    ----------
    members : configurations by the path that commands take, as
        :func:`cobaya_cnnlens.pipeline.loading.load_study` gives them
    file : of which they are; a study's target is the comparison of its members
    everything : as if no file were there yet
    releases : what its target of that name needs, which differs for a study
    """
    runs = {path: Run(config) for path, config in members.items()}
    jobs, targets = _workflow(runs, file)
    if releases:
        targets = [path for run in runs.values() for path in _results(run)]
    all_of = _wanted(jobs, targets, lambda path: False)
    left = all_of if everything else _wanted(jobs, targets, Path.exists)
    rules = dict.fromkeys(job.rule for job in jobs.values() if job.path in all_of)
    return [
        Stage(
            rule,
            *(sum(job.rule == rule for job in some.values()) for some in (all_of, left)),
            sum(job.cpu_s for job in left.values() if job.rule == rule),
        )
        for rule in rules
    ]


def minutes(cpu_s: float, threads: int, attempt: int = 1) -> int:
    """A job's time limit: :data:`MARGIN` times its cost on so many cores, and so many times that at
    a further attempt."""
    wanted = math.ceil(MARGIN * attempt * cpu_s / (60 * threads))
    return min(max(wanted, LEAST_MINUTES), MOST_MINUTES)


def of_survey(
    members: Mapping[str, Config], file: str, area_deg2: float
) -> tuple[dict[str, Config], Survey]:
    """A configuration with as many test skies as a survey asks for, and the survey: its patches,
    neighbours overlapping within their tapers, and no more of :data:`SHARE` from the noise of N.

    Raises
    ------
    ConfigError
        if it is a study, or the area none, or more than the sky
    """
    if file not in members:
        raise ConfigError(
            f"{file} is a study of {len(members)} members; --area takes one, as in "
            f"{next(iter(members))}"
        )
    if not 0 < area_deg2 <= WHOLE_SKY_DEG2:
        raise ConfigError(
            f"--area is {area_deg2:g}; give square degrees, above 0 and up to {WHOLE_SKY_DEG2}"
        )
    config = members[file]
    side = config.patch.size_deg - config.instrument.taper_deg
    tiles = math.ceil(area_deg2 / side**2)
    run = Run(config)
    wanted = math.ceil(tiles / SHARE / run.n_patches)
    counts = config.skies.model_copy(update={"test": max(wanted, config.nuisances.skies)})
    survey = Survey(area_deg2, tiles, Costs(run).tiles(tiles))
    return {file: config.model_copy(update={"skies": counts})}, survey


def _workflow(runs: Mapping[str, Run], file: str) -> tuple[dict[Path, Job], list[Path]]:
    """All jobs by the file each makes, and the files that the default target wants."""
    jobs = {job.path: job for run in runs.values() for job in _jobs(run)}
    if file in runs:
        return jobs, _results(runs[file])
    measured = [p for run in runs.values() for p in _bandpowers(run, "validation", "test")]
    run = next(iter(runs.values()))
    path = run.config.products.parent / f"{Path(file).stem}.txt"
    return {**jobs, path: Job("table", path, Costs(run).table(), tuple(measured))}, [path]


def _wanted(jobs, targets, there) -> dict[Path, Job]:
    """What has to be run for the targets, by path. A file that is there needs nothing, unless
    something that it was made of is made again."""
    every = _needed(jobs, targets, {}, lambda path: False)
    found = _needed(jobs, targets, {}, there)
    while stale := [
        path
        for path, job in every.items()
        if path not in found and any(need in found for need in job.needs)
    ]:
        found = _needed(
            jobs, stale, found, lambda path, stale=stale: path not in stale and there(path)
        )
    return found


def _needed(jobs, targets, found, there) -> dict[Path, Job]:
    """Jobs that make what is not there of the targets and of what they need, beside those found."""
    found, todo = dict(found), list(targets)
    while todo:
        path = todo.pop()
        if path in found or path not in jobs or there(path):
            continue
        found[path] = jobs[path]
        todo += jobs[path].needs
    return found


def _jobs(run: Run) -> Iterator[Job]:
    """All jobs of a configuration, as the workflow's rules have them."""
    config, costs = run.config, Costs(run)
    sets = ("train", "validation", "test", *(f"survey-{name}" for name in config.surveys))
    for name in sets:
        for file in _skies(run, name):
            yield Job("sky", file, costs.sky(name))
    yield from _estimator(run, costs)
    estimator = _of_estimator(run)
    for name in sets[1:]:
        for file, sky in zip(_bandpowers(run, name), _skies(run, name), strict=True):
            yield Job("bandpowers", file, costs.bandpowers(name), (*estimator, sky))
    for index in range(config.skies.derivatives):
        shifted = curvature.path(run, index)
        yield Job("curvature", shifted, costs.curvature(), estimator)
        scaled = derivatives.path(run, index)
        yield Job("derivatives", scaled, costs.derivatives(), (*estimator, shifted))
    for index in range(config.nuisances.skies):
        sky = skies.path(run, nuisances.SET, index)
        yield Job("nuisances", nuisances.path(run, index), costs.nuisances(), (*estimator, sky))
    if config.data_debias:
        for what, index in power.entries(run):
            yield Job(
                "power", power.path(run, what, index), costs.power(what), _seen(run, what, index)
            )
    if config.points.fit is not None:
        yield Job("fit", cosmologies.fit_path(run), costs.fit(), estimator)
    yield from _tables(run, costs)


def _estimator(run: Run, costs: Costs) -> Iterator[Job]:
    """What makes the network, or a baseline's mean field."""
    config = run.config
    if config.baseline is not None:
        file = mean_field.path(run)
        yield Job("mean_field", file, costs.mean_field(), tuple(_skies(run, "train")))
    elif not config.network.pretrained:
        learned = [file for name in ("train", "validation") for file in _skies(run, name)]
        if config.network.kind == "refined":
            learned = []
            for name in ("train", "validation"):
                for index, part in features.learned_from(run, name):
                    file, sky = features.path(run, name, index, part), skies.path(run, name, index)
                    yield Job("features", file, costs.features(name), (sky,))
                    learned.append(file)
        yield Job("train", networks.path(run), costs.train(), tuple(learned))


def _tables(run: Run, costs: Costs) -> Iterator[Job]:
    """Releases and what is printed of a configuration."""
    config = run.config
    both = tuple(_bandpowers(run, "validation", "test"))
    if not config.surveys:
        yield Job("noise_table", config.products / "noise.txt", costs.table(), both)
        return
    calibrated = [derivatives.path(run, i) for i in range(config.skies.derivatives)]
    calibrated += [curvature.path(run, i) for i in range(config.skies.derivatives)]
    calibrated += [nuisances.path(run, i) for i in range(config.nuisances.skies)]
    if config.data_debias:
        calibrated += [power.path(run, *entry) for entry in power.entries(run)]
    if config.points.fit is not None:
        calibrated.append(cosmologies.fit_path(run))
    made = []
    for name in config.surveys:
        data = _bandpowers(run, f"survey-{name}")
        made.append(assemble.path(run, name))
        yield Job("release", made[-1], costs.table(), (*both, *data, *calibrated))
    yield Job("tables", config.products / "tables.txt", 2 * costs.table(), tuple(made))


def _results(run: Run) -> list[Path]:
    products, surveys = run.config.products, run.config.surveys
    if not surveys:
        return [products / "noise.txt"]
    return [*(assemble.path(run, name) for name in surveys), products / "tables.txt"]


def _of_estimator(run: Run) -> tuple[Path, ...]:
    return (mean_field.path(run),) if run.config.baseline else networks.paths(run)


def _skies(run: Run, name: str) -> list[Path]:
    return [skies.path(run, name, index) for index in range(run.config.set_size(name))]


def _bandpowers(run: Run, *names: str) -> list[Path]:
    return [
        bandpowers.path(run, name, index)
        for name in names
        for index in range(run.config.set_size(name))
    ]


def _seen(run: Run, what: str, index: int) -> tuple[Path, ...]:
    """The sky whose power is measured; the derivatives' are kept by none."""
    if what == derivatives.SET:
        return ()
    return (skies.path(run, nuisances.SET if what == nuisances.KIND else what, index),)
