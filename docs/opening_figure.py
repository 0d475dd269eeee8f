"""The figure that opens the README: one patch, reconstructed by two estimators, and their noise.

    python docs/opening_figure.py     # writes docs/_static/opening.png; a minute, pipeline install

The maps are of one patch of 5 deg x 5 deg at 1 µK-arcmin with a beam of 1 arcmin. The quadratic
estimator is the EB estimator with pure B modes. Its map is Wiener-filtered with its analytic noise,
as the network's already is. The noise curves are those of
`cnnlens evaluate training/config/refined.yaml`, from the bandpowers that ship.
"""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.networks import paths
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.reconstruct.learned import learned_estimator
from cobaya_cnnlens.reconstruct.n0 import band_of, n0_eb
from cobaya_cnnlens.reconstruct.quadratic import QuadraticEstimator
from cobaya_cnnlens.simulate.patches import PatchGeometry
from cobaya_cnnlens.simulate.periodic import PeriodicSkies
from cobaya_cnnlens.validate.noise import noise_table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Where the maps that are shown end.
SHOWN_LMAX = 1500
OUT = Path(__file__).parent / "_static" / "opening.png"

run = Run(load_config("training/config/refined.yaml"))
patch, instrument, theory = run.config.patch, run.config.instrument, run.spectra()
n = patch.n_pixels
box = PatchGeometry(size_deg=2 * patch.size_deg, n_pixels=2 * n, pad=0)
skies, generator = PeriodicSkies(box, instrument, theory), np.random.default_rng(3)
e, phi = skies.draw("e", generator), skies.draw("phi", generator)
maps = skies.lensed(e, phi) + skies.noise(generator)
kappa = skies.convergence(phi)[:n, :n] * run.mask
q, u = (
    np.ascontiguousarray(part[None, :n, :n] * run.mask, dtype=np.float32)
    for part in (maps.real, maps.imag)
)

network = learned_estimator(paths(run), patch, instrument, run.mask, run.spectra)
refined = network.reconstruct(q, u)[0]
quadratic = QuadraticEstimator(
    patch, instrument, run.mask, theory, combination="eb", leakage="pure"
)
L = np.arange(2, 3501)
noise = n0_eb(L, theory, instrument, band_of(patch, theory, round(patch.fundamental)))
signal = theory.kk[2:3501]
l = 2 * np.pi * np.fft.fftfreq(n, patch.pixel)
multipoles = np.hypot(*np.meshgrid(l, l))
wiener = np.interp(multipoles, L, signal / (signal + noise), right=0.0)
eb = np.fft.ifft2(wiener * np.fft.fft2(quadratic.reconstruct(q, u)[0])).real * run.mask


def smoothed(values):
    """A map without the multipoles that no estimator recovers."""
    return np.fft.ifft2((multipoles < SHOWN_LMAX) * np.fft.fft2(values)).real


kappa, eb, refined = (smoothed(values) for values in (kappa, eb, refined))
figure, axes = plt.subplots(
    1, 4, figsize=(13, 3.5), layout="constrained", width_ratios=(1, 1, 1, 1.35)
)
half, scale = 0.5 * patch.size_deg, 3 * kappa.std()
shown = {
    rf"true $\kappa$, $L < {SHOWN_LMAX}$": kappa,
    rf"quadratic estimator, $\rho$ = {np.corrcoef(kappa.ravel(), eb.ravel())[0, 1]:.2f}": eb,
    rf"network, $\rho$ = {np.corrcoef(kappa.ravel(), refined.ravel())[0, 1]:.2f}": refined,
}
for axis, (title, values) in zip(axes, shown.items(), strict=False):
    axis.imshow(
        values, origin="lower", extent=(-half, half, -half, half), vmin=-scale, vmax=scale,
        cmap="RdBu_r",
    )  # fmt: skip
    axis.set_title(title, size=10)
    axis.set_xlabel("deg")
axes[0].set_ylabel("deg")

table, axis = noise_table(run), axes[3]
axis.loglog(table.L, signal[np.round(table.L).astype(int) - 2], "k", label=r"$C_L^{\kappa\kappa}$")
axis.loglog(table.L, table.n0_eb, "C0", label="quadratic EB, analytic")
axis.loglog(table.L, table.n0_iterated, "C2--", label="iterative EB, analytic")
axis.errorbar(table.L, table.noise, table.noise_error, fmt="C3o", ms=3, label="network, measured")
axis.set(xlabel="$L$", title="noise of the reconstruction", ylim=(2e-9, 2e-7))
axis.title.set_size(10)
axis.legend(frameon=False, fontsize=8)
figure.savefig(OUT, dpi=110)
# A palette of 256 colours, each within 3% of what was drawn, takes a quarter of the bytes.
with Image.open(OUT) as drawn:
    drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(OUT, optimize=True)
print(OUT)
