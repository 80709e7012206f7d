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


@pytest.fixture(autouse=True)
def no_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps every test off the Hugging Face hub, and out of the cache of whoever runs it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "no-hugging-face"))
    for name in ("HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
