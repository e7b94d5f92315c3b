"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real rows and benchmarks named by AURORA_REAL_DATA; skips where there is none."""
    folder = os.environ.get("AURORA_REAL_DATA")
    if not folder:
        pytest.skip("AURORA_REAL_DATA names no folder of real data")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"AURORA_REAL_DATA={folder} is not a folder")
    return path
