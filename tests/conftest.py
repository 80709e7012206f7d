"""What tests share: the recordings beside the repository, and how a made-up Tape is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden recordings beside the repository; the test is skipped where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("needs ../shared/golden, which is not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The folder of recorded runs."""
    return shared / "golden" / "results"
