"""``python -m cobaya_cnnlens`` is ``cnnlens``."""

from .cli.main import run

run()
