"""The quadratic estimator of Wiener-filtered maps, times a number."""

from pydantic import BaseModel, ConfigDict, Field

from cobaya_cnnlens.pipeline.estimators import registered


class Options(BaseModel):
    """What `baseline` takes beside `kind`; part of what a product is made of."""

    model_config = ConfigDict(extra="forbid")
    share: float = Field(0.9, gt=0, le=1)


class Scaled:
    def __init__(self, estimator, share):
        self.estimator, self.share = estimator, share

    def reconstruct(self, q, u):
        """Beamed, noisy, masked Q and U in µK → κ̂; all three (n, ny, nx)."""
        return self.share * self.estimator.reconstruct(q, u)


def build(run):
    """The estimator that a run asks for."""
    build_wiener, *_ = registered("wiener")
    return Scaled(build_wiener(run), run.config.baseline.share)


# What builds it, its name in tables, and its options if it has any.
entry = (build, "Wiener QE, scaled", Options)
