"""Sections of the configuration, checked by pydantic: one file for each step of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def plain_path(path: Path) -> Path:
    """Refuse a path that would garble what is printed.

    Parameters
    ----------
    path : from a configuration

    Returns
    -------
    the path

    Raises
    ------
    ValueError
        if it holds control characters
    """
    if not str(path).isprintable():
        raise ValueError("a path holds control characters; take them out")
    return path


FilePath = Annotated[Path, AfterValidator(plain_path)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
