"""A finished project, and its exports, made once by the command."""

from pathlib import Path

import pytest
from stand_ins.finished_project import write_project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("finished"))
