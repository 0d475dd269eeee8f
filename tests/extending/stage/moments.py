"""Variance and skewness of κ̂ in every patch of a sky: a stage with one product for each sky."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cobaya_cnnlens import products
from cobaya_cnnlens.calibrate import bandpowers
from cobaya_cnnlens.pipeline.loading import load_config
from cobaya_cnnlens.pipeline.observation import observe_sky
from cobaya_cnnlens.pipeline.run import Run

KIND = "moments"
ALGORITHM = 1  # raised when what is below gives other numbers: older products are refused then
# What a message names where the product is missing.
products.COMMANDS[KIND] = "moments CONFIG --set {set} --index {index}"


def path(run: Run, set_name: str, index: int) -> Path:
    """Where the moments of one sky lie."""
    return run.config.products / "moments" / set_name / f"sky_{index:04d}.h5"


def recipe(run: Run, set_name: str, index: int) -> dict:
    """All that determines them, and nothing else: sky, instrument and estimator; not the bins."""
    by_bins = bandpowers.recipe(run, set_name, index)
    return {k: v for k, v in by_bins.items() if k != "bandpowers"} | {"moments": ALGORITHM}


def measure(run: Run, set_name: str, index: int) -> None:
    """⟨κ̂²⟩ and ⟨κ̂³⟩/⟨κ̂²⟩^{3/2} over the pixels of each patch, unless that is done."""
    run.config.check_index(set_name, index)
    where, wanted = path(run, set_name, index), recipe(run, set_name, index)
    if products.exists(where, KIND, wanted):
        return
    sky = observe_sky(run, set_name, index)
    kappa = run.estimator.reconstruct(sky.q, sky.u)
    variance = (kappa**2).mean((1, 2))
    skewness = (kappa**3).mean((1, 2)) / variance**1.5
    products.write_product(where, KIND, wanted, {"variance": variance, "skewness": skewness})


def read(run: Run, set_name: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Variance and skewness, (n_patches,) each; a product of another recipe is refused."""
    where, wanted = path(run, set_name, index), recipe(run, set_name, index)
    with products.open_product(where, KIND, wanted) as product:
        return product.array("variance"), product.array("skewness")


def command(
    config: str,
    set_name: Annotated[str, typer.Option("--set", help="Which skies.")] = "test",
    index: Annotated[int, typer.Option(help="Which of them.")] = 0,
) -> None:
    """Measure the moments of one sky and print them."""
    run = Run(load_config(config))
    measure(run, set_name, index)
    for name, values in zip(("variance", "skewness"), read(run, set_name, index), strict=True):
        typer.echo(f"{name} {values.mean():.3e} ± {values.std() / len(values) ** 0.5:.1e}")


if __name__ == "__main__":
    typer.run(command)
