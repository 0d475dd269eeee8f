"""The pipeline: its configuration, a run of it, and the stages that make skies and estimators.

A stage is a module, here or in :mod:`~cobaya_cnnlens.calibrate` and
:mod:`~cobaya_cnnlens.validate`, that owns its product: ``KIND``, what it is; ``ALGORITHM``, a number
that is raised when the stage changes what it makes, so that older products are refused;
``path(run, …)``, where it lies; ``recipe(run, …)``, everything that determined it; ``measure(run,
…)``, which makes what is missing; and ``read(run, …)``.
"""
