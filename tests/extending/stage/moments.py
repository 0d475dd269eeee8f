"""Variance and skewness of κ̂ in every patch of a sky: a stage with one product for each sky."""

from typing import Annotated

import numpy as np
import typer

from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.reconstructions import Bandpowers
from cobaya_cnnlens.pipeline.run import Run
from cobaya_cnnlens.pipeline.stage import Stage


class Moments(Stage[Run]):
    kind = "moments"  # of the product, and its folder
    algorithm = 1  # raised when `make` gives other numbers: older products are refused then
    # What a message names where the product is missing.
    command = "moments CONFIG --set {} --index {}"

    def keys(self, set_name: str, indices: list[int] | None = None) -> list[tuple[str, int]]:
        """What tells the products apart: set and number of each sky."""
        return [(set_name, index) for index in self.config.indices(set_name, indices)]

    def recipe(self, set_name: str, index: int) -> dict:
        """All that determines them: sky, instrument and estimator; not the bins."""
        by_bins = Bandpowers(self.run).recipe(set_name, index)
        return {k: v for k, v in by_bins.items() if k != "bandpowers"} | {"moments": self.algorithm}

    def make(self, set_name: str, index: int) -> dict[str, np.ndarray]:
        """⟨κ̂²⟩ and ⟨κ̂³⟩/⟨κ̂²⟩^{3/2} over the pixels of each patch, (n_patches,) each."""
        sky = observe_sky(self.run, set_name, index)
        kappa = self.run.estimator.reconstruct(sky.q, sky.u)
        variance = (kappa**2).mean((1, 2))
        return {"variance": variance, "skewness": (kappa**3).mean((1, 2)) / variance**1.5}


def command(
    config: str,
    set_name: Annotated[str, typer.Option("--set", help="Which skies.")] = "test",
    index: Annotated[int, typer.Option(help="Which of them.")] = 0,
) -> None:
    """Measure the moments of one sky and print them."""
    moments = Moments(Run(load_config(config)))
    moments.measure(set_name, [index])
    for name, values in moments.arrays(set_name, index).items():
        typer.echo(f"{name} {values.mean():.3e} ± {values.std() / len(values) ** 0.5:.1e}")


if __name__ == "__main__":
    typer.run(command)
