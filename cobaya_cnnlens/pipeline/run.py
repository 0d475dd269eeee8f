"""A run of the pipeline: a configuration, its simulation, and the estimator that it asks for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from . import networks
from .config import Config
from .simulation import Simulation

if TYPE_CHECKING:
    from ..reconstruct import Estimator


class Run(Simulation):
    """A configuration, with what its stages share; each is computed when first used.

    Parameters
    ----------
    config : the pipeline's configuration
    estimator_id : what stands for the estimator in recipes; from the configuration if None
    estimator : the estimator itself, in the place of the configuration's
    """

    def __init__(
        self,
        config: Config,
        estimator_id: str | None = None,
        estimator: Estimator | None = None,
    ):
        super().__init__(config)
        # What is given lies where the cached properties look first.
        given = {"estimator_id": estimator_id, "estimator": estimator}
        vars(self).update({name: value for name, value in given.items() if value is not None})

    def __reduce__(self) -> tuple[type[Run], tuple[Config, str | None]]:
        # Another process makes anew what it needs: Keras's networks are not sent.
        return Run, (self.config, vars(self).get("estimator_id"))

    @cached_property
    def estimator_id(self) -> str:
        """The hash of the network or networks, or of the baseline's recipe.

        Raises
        ------
        NetworkError
            if a network cannot be read, or was trained for another configuration
        """
        return networks.estimator_id(self)

    @cached_property
    def estimator(self) -> Estimator:
        """Maps → κ̂: the network or networks, for which Keras is loaded, or the baseline.

        Raises
        ------
        NetworkError
            as :attr:`estimator_id`
        """
        from .estimators import build_estimator

        return build_estimator(self)
