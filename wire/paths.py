"""Files and folders as people write them in a config: ~ is the home folder, and nothing is no path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

from pydantic import AfterValidator, BeforeValidator


def _given(value: object) -> object:
    # Path("") is the current folder, where retention would delete what it finds.
    if isinstance(value, str) and not value.strip():
        raise ValueError("empty; expected a path, or leave it out for the default")
    return value


def _given_or_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # no home is known, as of a service's user
        raise ValueError(f"{path}: {error}; write the folder out") from None


def _expanded_or_none(path: Path | None) -> Path | None:
    return None if path is None else _expanded(path)


# A setting that has a path in any case, and one that may have none: empty text, as in `MEDIA_DIR=`, is none.
SomePath = Annotated[Path, BeforeValidator(_given), AfterValidator(_expanded)]
MaybePath = Annotated[Optional[Path], BeforeValidator(_given_or_none), AfterValidator(_expanded_or_none)]  # noqa: UP045
