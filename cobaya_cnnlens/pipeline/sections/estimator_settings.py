"""Sections of the estimator: the network and its training, or a baseline without one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from . import FilePath, Section

# Kinds of baseline that leave out what was not seen.
FILTERS = ("wiener", "map")


class Network(Section):
    """The network and where it comes from.

    Attributes
    ----------
    pretrained : a network to use as it is, instead of training, or several whose mean κ̂ is used
    initial : a trained network of the same width that training starts from
    kind : "resunet", the paper's on the maps, or "refined", a residual U-net on MAP features
        (:mod:`cobaya_cnnlens.reconstruct.refined`)
    width : channels: 64 in the paper's; at half the patch's resolution for "refined"
    dropout : its rate, of "resunet"
    seed : of the first weights
    """

    pretrained: FilePath | Annotated[list[FilePath], Field(min_length=1)] | None = None
    initial: FilePath | None = None
    kind: Literal["resunet", "refined"] = "resunet"
    width: int = Field(default=64, gt=0, le=1024)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=1, ge=0, lt=2**32)


class Phase(Section):
    """One phase of training.

    Attributes
    ----------
    steps, batch : number of batches, and of patches in each
    crop : pixels along a side that a batch holds; 0 for the whole patch
    learning_rate, final_rate : at the start, and at the end of schedule "cosine"
    warmup : steps in which the rate rises to ``learning_rate``
    schedule : "cosine", or, of the last phase, "plateau": halved after 3 stale epochs, stopped
        after 10, as in the paper
    """

    steps: int = Field(gt=0, le=10**9)
    batch: int = Field(default=32, gt=0, le=100_000)
    crop: int = Field(default=0, ge=0)
    learning_rate: float = Field(gt=0, le=10)
    final_rate: float = Field(default=0.0, ge=0, le=10)
    warmup: int = Field(default=0, ge=0)
    schedule: str = Field(default="cosine", pattern="^(cosine|plateau)$")


class Training(Section):
    """How the network is trained; see ``training/README.md`` for what each choice bought.

    The loss is the mean squared error of E and κ in units of their variance.

    Attributes
    ----------
    phases : one after another
    clip_norm : largest norm of a gradient; None for no limit
    augment : whether patches are turned and flipped at random
    fresh_noise : whether each batch has noise of its own; else each patch has one realisation, as
        in the paper
    steps_per_epoch : after which the state is kept
    validation_patches : on which the loss is measured after each epoch
    jit_compile : whether XLA compiles the step, which takes a minute
    seed : of batches and noise
    """

    phases: list[Phase] = Field(min_length=1)
    clip_norm: float | None = Field(default=1.0, gt=0, le=1e6)
    augment: bool = True
    fresh_noise: bool = True
    steps_per_epoch: int = Field(default=200, gt=0, le=10**9)
    validation_patches: int = Field(default=160, gt=0, le=10**7)
    jit_compile: bool = True
    seed: int = Field(default=1, ge=0, lt=2**32)

    def check(self, n_pixels: int) -> None:
        """Refuse crops that do not fit, and rates that rise.

        Parameters
        ----------
        n_pixels : along a side of a patch
        """
        sizes = {"patch.n_pixels": n_pixels}
        for i, phase in enumerate(self.phases):
            sizes[f"training.phases.{i}.crop"] = phase.crop
            if phase.schedule == "plateau" and i + 1 < len(self.phases):
                raise ValueError(f"training.phases.{i}: only the last phase can be a plateau")
            if phase.final_rate > phase.learning_rate or phase.warmup > phase.steps:
                raise ValueError(
                    f"training.phases.{i}: final_rate must not lie above learning_rate, nor "
                    "warmup above steps"
                )
        for key, size in sizes.items():
            if size % 4 or size > n_pixels:
                raise ValueError(
                    f"{key} is {size}; the network needs multiples of 4, at most the patch's "
                    f"{n_pixels} pixels"
                )

    def check_refined(self, network: Network, n_pixels: int) -> None:
        """Refuse what a refining network does not take.

        Parameters
        ----------
        network : the section
        n_pixels : along a side of a patch
        """
        if network.dropout:
            raise ValueError("network.dropout is of kind 'resunet'; remove it")
        if n_pixels % 16:
            raise ValueError(
                f"patch.n_pixels is {n_pixels}; a refining network needs multiples of 16"
            )
        if any(phase.crop or phase.schedule != "cosine" for phase in self.phases):
            raise ValueError(
                "a refining network learns whole patches at rates that fall as a cosine; leave "
                "crop and schedule out of training.phases"
            )


class Refining(Section):
    """Files of the features from which a refining network learns.

    Attributes
    ----------
    batch : patches in a file
    """

    batch: int = Field(default=96, gt=0, le=10_000)


class Reconstruction(Section):
    """How the estimator is applied.

    Attributes
    ----------
    symmetries : 8 averages κ̂ over the symmetries of the square, at eight times the cost of 1
    jit_compile : whether XLA compiles the network, which is not worth it for a small one
    lmin_b : B modes below this multipole carry no weight in the filter of a refining network, and
        of the baselines "wiener" and "map"
    """

    symmetries: Literal[1, 8] = 1
    jit_compile: bool = True
    lmin_b: int = Field(default=0, ge=0, le=5000)

    def recipe(self) -> dict[str, int]:
        """What changes κ̂, where it is not the default.

        Returns
        -------
        recipe : mapping for JSON
        """
        return {
            **({"symmetries": self.symmetries} if self.symmetries != 1 else {}),
            **({"lmin_b": self.lmin_b} if self.lmin_b else {}),
        }


class Baseline(Section):
    """An estimator without a network, to be measured in a network's place.

    Its mean field comes from the first training sky. A kind that another package registers may have
    options of its own: :func:`.estimators.with_own_options` checks kind and options.

    Attributes
    ----------
    kind : "quadratic"; "wiener", the quadratic estimator of Wiener-filtered maps; or "map", the
        maximum a posteriori (MAP) iteration
    combination : of filtered E and B in the quadratic estimator
    leakage : of E into B by the mask: left in ("naive", as in the paper) or taken out ("pure")
    passes : quasi-Newton steps of the MAP iteration, of which 6 are best
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: str = Field(max_length=50)
    combination: Literal["eb", "ee", "mv"] = "eb"
    leakage: Literal["naive", "pure"] = "naive"
    passes: int = Field(default=6, ge=2, le=1000)
