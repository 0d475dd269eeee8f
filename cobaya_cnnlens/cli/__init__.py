"""``cnnlens``: one command per stage of the pipeline, and the tools around a release."""


def run() -> None:
    """Entry point."""
    from .main import run as run_commands

    run_commands()
