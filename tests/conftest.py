"""Fixtures every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real videos, weights and data beside the checkout; tests that want it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} is not there")
    return SHARED
