"""Keras, set as the networks of this package need it, whatever a user's ``keras.json`` says.

Modules that use Keras take it from here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import NetworkError
from . import BACKENDS, check_backend, refused_backend


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """TensorFlow writes what it did not find on this machine straight to the standard error, before
    it reads ``TF_CPP_MIN_LOG_LEVEL``."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


check_backend()
try:
    with _silent():
        import keras
        from keras import layers
except ModuleNotFoundError as error:  # what is to be installed, or a backend of keras.json
    if (error.name or "").partition(".")[0] in ("keras", *BACKENDS):
        raise
    raise refused_backend(error.name or "") from None
except ValueError as error:  # a backend that Keras does not know
    raise NetworkError(
        f"Keras cannot be loaded ({error}); correct 'backend' in keras.json"
    ) from None

if keras.backend.backend() not in BACKENDS:
    raise refused_backend(keras.backend.backend())
keras.config.set_floatx("float32")

__all__ = ["Tensor", "channels_last", "keras", "layers"]

# A tensor of whichever backend, or a symbolic one of Keras: none of these packages has types.
Tensor = Any


def channels_last() -> None:
    """Give the layers that are made from now on the channels as the last axis, as maps here."""
    keras.config.set_image_data_format("channels_last")
