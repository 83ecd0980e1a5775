"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
#: Real lists, real slices and golden vectors; absent in a plain clone.
SHARED = Path(os.environ.get("CTMASKNET_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project, or a skip that says so."""
    if not SHARED.is_dir():
        pytest.skip(
            f"no folder {SHARED.name}/ with real data and golden vectors beside the project"
        )
    return SHARED
