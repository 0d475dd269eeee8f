"""CMB lensing with a learned estimator: a Cobaya likelihood, and the pipeline that makes it."""

__version__ = "0.1.0"
__all__ = ["CNNLens", "EmulatedCAMB", "NodeCAMB", "__version__"]


def __getattr__(name: str):
    # Cobaya is imported only when one of its components is asked for.
    if name == "CNNLens":
        from .likelihood import CNNLens

        return CNNLens
    if name == "NodeCAMB":
        from .nodes import NodeCAMB

        return NodeCAMB
    if name == "EmulatedCAMB":
        from .emulated import EmulatedCAMB

        return EmulatedCAMB
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
