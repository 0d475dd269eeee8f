"""Errors that a user can mend: the message names the file or field, and what to do."""


class CNNLensError(ValueError):
    """Base of all errors of this package that stem from input."""


class ConfigError(CNNLensError):
    """A configuration that cannot be used."""


class ProductError(CNNLensError):
    """A product file that is missing, damaged, or made from another configuration."""


class EmulatorError(CNNLensError):
    """An emulator that cannot be used, or is asked for a point outside its box."""


class InstrumentError(CNNLensError):
    """A beam, transfer function or inverse variance that cannot be used."""


class MapError(CNNLensError):
    """A user's map that cannot be used."""


class NetworkError(CNNLensError):
    """A network file that cannot be used."""


class ReleaseError(CNNLensError):
    """A release that cannot be used."""


class SpectrumError(CNNLensError):
    """A spectrum that is too short, not finite, or of the wrong shape."""


class TheoryError(CNNLensError):
    """Parameters for which the theory code gives no spectra."""


class SpectrumWarning(UserWarning):
    """A spectrum that a cosmology could have, but that looks like a mistake."""
