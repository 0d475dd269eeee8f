"""What a rotation of the polarisation does to ω_c, with its measurement by EB and without.

    python tests/benchmarks/rotation.py [PATCHES] [CONFIG] [FOLDER]

Patches of a test sky that gave no calibration (160 by default) are observed with the same noise and
a rotation of the polarisation of ± 0.2 and ± 0.1°, of which the analysis is not told. It prints how
far ω_c moves, in σ of 160 patches, and the posterior's width over that without a rotation, without
the correction and with it: means of both signs, which share no first order. Errors are those of the
patches, paired. Then, of surveys drawn from all patches of that sky without a rotation: how far the
correction moves ω_c, and α̂; and the correlation of EB with the debiased bandpowers.

κ̂ of 160 patches takes ten CPU-minutes; it is kept in FOLDER batch by batch, so that a run can be
stopped, and one of fewer patches goes before. Needs the sky, `cnnlens skies CONFIG --set test
--index 1`.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cobaya_cnnlens.calibrate.rotation import rotation_of
from cobaya_cnnlens.likelihood.bandpowers import BandpowerLikelihood
from cobaya_cnnlens.likelihood.fields import Group
from cobaya_cnnlens.likelihood.release import read_release, without
from cobaya_cnnlens.pipeline.assemble import with_data
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky, sky_noise
from cobaya_cnnlens.pipeline.power import Power, power_of
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.skies import Skies
from cobaya_cnnlens.simulate.instrument import Systematics, convolve_beam
from cobaya_cnnlens.theory.emulator_files import read_emulator
from cobaya_cnnlens.validate.posterior_grid import POINTS, PosteriorGrid

ROOT = Path(__file__).parents[2]
SKY, SURVEY, BATCH, DRAWS = 1, 160, 16, 200
ANGLES = (0.2, 0.1)
# ω_c where the model is computed, ten σ to either side.
NODES = np.linspace(0.1155, 0.1215, 9)

arguments = dict(enumerate(sys.argv[1:]))
n_patches = int(arguments.get(0, SURVEY))
run = Run(load_config(arguments.get(1, ROOT / "training" / "config" / "refined.yaml")))
folder = Path(arguments.get(2, run.config.products / "rotation"))
folder.mkdir(parents=True, exist_ok=True)
release, power_and_rotation = read_release("refined_fiducial"), power_of(run)

auto = Bandpowers(run).read("test", [SKY]).auto
whole = {"auto": auto, "power": Power(run).read("test", [SKY])["power"]}
path = folder / "none.npy"
if not path.exists():
    sky = observe_sky(run, "test", SKY)
    np.save(path, power_and_rotation.rotation(sky.q, sky.u))
whole["rotation"] = np.load(path)
generator = np.random.default_rng(1)
chosen = generator.permutation(len(auto))[:n_patches]


def measured(angle, start, maps):
    """Bandpowers, power and EB of a batch whose polarisation is rotated."""
    path = folder / f"angle_{angle:g}_{start:03d}.npz"
    if not path.exists():
        q, u, noise = maps()
        rows = chosen[start : start + BATCH]
        turned = Systematics(angle=angle).distort(q[rows], u[rows])
        config = run.config
        q, u = (
            (convolve_beam(m, config.instrument, config.patch).astype(np.float32) + n[rows])
            * run.data_mask.astype(np.float32)
            for m, n in zip(turned, noise, strict=True)
        )
        np.savez(
            path,
            auto=run.bandpowers.auto(run.estimator.reconstruct(q, u)),
            power=power_and_rotation(q, u),
            rotation=power_and_rotation.rotation(q, u),
        )
    with np.load(path) as arrays:
        return dict(arrays)


def rotated(angle):
    """The chosen patches, rotated; their maps are read where a batch is missing."""
    known = []

    def maps():
        if not known:
            known.extend(Skies(run).read("test", SKY, ("lensed_q", "lensed_u")))
            known.append(sky_noise(run, "test", SKY, len(auto)))
        return known

    batches = [measured(angle, start, maps) for start in range(0, n_patches, BATCH)]
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


emulator, fiducial = read_emulator("lcdm"), run.config.cosmology
point = {"logA": np.log(1e10 * fiducial.As)}
point |= {name: getattr(fiducial, name) for name in ("ombh2", "ns", "H0")}
spectra = [emulator({**point, "omch2": omch2}) for omch2 in NODES]
grid = PosteriorGrid([NODES], [SimpleNamespace(kk=kk, ee=ee) for kk, ee, _ in spectra], POINTS[1])


def posteriors(patches, rows):
    """Mean and width of ω_c without the correction and with it, (2, 2), of a survey of so many
    patches as :data:`SURVEY`; α̂ and its error."""
    survey = with_data(release, **{name: values[rows] for name, values in patches.items()})
    mean_and_sigma = []
    for data in (without(survey, Group.ROTATION), survey):
        likelihood = BandpowerLikelihood(data)
        [one] = grid.posterior(likelihood, grid.table(likelihood), likelihood.bandpowers[None])
        mean_and_sigma.append([one.mean.item(), one.sigma.item()])
    return np.array(mean_and_sigma), survey.rotation[0, :2]


draws = [np.arange(n_patches), *generator.integers(0, n_patches, (DRAWS, n_patches))]
still = {name: values[chosen] for name, values in whole.items()}
of_still = np.array([posteriors(still, rows)[0] for rows in draws])
sigma = of_still[0, 0, 1] * np.sqrt(n_patches / SURVEY)
print(f"{n_patches} patches of test sky {SKY}; sigma(omch2) of {SURVEY}: {sigma:.6f}")
for angle in ANGLES:
    of_signs = [rotated(sign * angle) for sign in (1, -1)]
    signs = [[posteriors(patches, rows) for rows in draws] for patches in of_signs]
    for sign, values in zip("+-", signs, strict=True):
        angle_hat, error = values[0][1]
        print(f"angle {sign}{angle:g}: measured {angle_hat:+.4f} +- {error:.4f} deg")
    mean_and_sigma = np.mean([[value for value, _ in values] for values in signs], axis=0)
    shift = (mean_and_sigma[..., 0] - of_still[:, :1, 0]) / sigma
    width = mean_and_sigma[..., 1] / of_still[:, :1, 1]
    for k, name in enumerate(("without", "with")):
        print(
            f"  {name} the correction: omch2 {shift[0, k]:+.3f} +- {shift[1:, k].std():.3f} sigma, "
            f"width {width[0, k]:.4f} +- {width[1:, k].std():.4f}"
        )

rows = [generator.choice(len(auto), SURVEY, replace=False) for _ in range(DRAWS)]
drawn = [posteriors(whole, some) for some in rows]
moved = np.array(
    [
        (mean_and_sigma[1, 0] - mean_and_sigma[0, 0]) / mean_and_sigma[0, 1]
        for mean_and_sigma, _ in drawn
    ]
)
wider = np.mean([mean_and_sigma[1, 1] / mean_and_sigma[0, 1] for mean_and_sigma, _ in drawn])
pulls = np.array([angle_hat / error for _, (angle_hat, error) in drawn])
spread = moved.std() / np.sqrt(len(auto) / SURVEY)  # the sky has so many independent surveys
print(f"no rotation: the correction moves omch2 by {moved.mean():+.4f} +- {spread:.4f} sigma")
print(f"  that of one survey scatters by {moved.std():.4f}; width {wider:.5f}")
print(f"  alpha over its error: rms {np.sqrt((pulls**2).mean()):.3f}")
[[angle_hat, error, _]] = rotation_of(whole["rotation"])
print(f"  all {len(auto)} patches: {angle_hat:+.4f} +- {error:.4f} deg")
debiased = release.noise_subtracted(auto) - release.correction_of(whole["power"])
eb = whole["rotation"][:, 0]
correlations = np.sqrt(len(auto)) * np.array([np.corrcoef(eb, d)[0, 1] for d in debiased.T])
chi2 = float(correlations @ np.linalg.solve(np.corrcoef(debiased.T), correlations))
print(f"  correlation of EB with d': chi2 {chi2:.1f} of {len(correlations)} bins")
