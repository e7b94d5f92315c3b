"""Fixtures that many tests share."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from stand_ins.hub_server import LocalHub

ROOT = Path(__file__).parent.parent
# Small models gain nothing from threads, and tests run on every core at once; torch reads this where it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in its background with SIGINT ignored, and so would run what a test wants to interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files with long tests first, so that no process works alone at the end."""
    long = {item.path for item in items if item.get_closest_marker("minutes")}
    items.sort(key=lambda item: item.path not in long)


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


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """What the certificates of the local servers are signed by."""
    return trustme.CA()


@pytest.fixture
def hub(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A local hub over https, which huggingface_hub and aurora.hub take for the real one, in an empty folder."""
    from huggingface_hub import constants, file_download, set_client_factory
    from huggingface_hub.utils import _http

    from aurora import hub as downloads

    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    authority.cert_pem.write_to_path(tmp_path.with_suffix(".pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path.with_suffix(".pem")))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "PAUSES", (0.0, 0.0))
    for module in (_http, file_download):  # the library's pauses between its tries
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    monkeypatch.chdir(tmp_path)
    set_client_factory(_http.default_client_factory)  # closes the client that trusts another test's surroundings
    with LocalHub(authority) as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
    set_client_factory(_http.default_client_factory)
