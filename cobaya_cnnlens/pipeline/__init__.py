"""The pipeline: its configuration, a run of it, and the stages that make skies and estimators.

A stage is a module, here or in :mod:`~cobaya_cnnlens.calibrate` and
:mod:`~cobaya_cnnlens.validate`, that owns its product. ``KIND`` says what it is; ``ALGORITHM`` is a
number that is raised when the stage changes what it makes, so that older products are refused;
``path(run, …)`` is where it lies and ``recipe(run, …)`` everything that determined it;
``measure(run, …)`` makes what is missing, and ``read(run, …)`` reads it.
"""
