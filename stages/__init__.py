"""The stages of dvc.yaml, one script each. What applies to all of them is here, and runs before any of their imports.

Code comes from the sources of this repository and from the installed packages, and from nowhere else: no compiled file
of the repository is trusted, and no module in its root or on PYTHONPATH shadows a library.
"""

# ruff: noqa: E402 (what is imported before the search path is cleared is built into Python)
import marshal
import os
import sys
from importlib.machinery import FileFinder, SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location

ROOT = os.path.dirname(os.path.abspath(__path__[0]))  # noqa: PTH100, PTH120 (a file of the root could shadow pathlib)


class FromSource(SourceFileLoader):
    """Compiles each module anew: a .pyc counts as its source's where size and second agree, which an edit can keep."""

    def get_code(self, fullname: str):
        """The code of the module's source."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _finder(path: str) -> FileFinder:
    if not f"{path}/".startswith((f"{ROOT}/aurora/", f"{ROOT}/stages/")):
        raise ImportError(path)
    return FileFinder(path, (FromSource, [".py"]))


def _start_again_if_stale() -> None:
    """Python has read this file before anything here could say how: starts it again where that was a stale .pyc."""
    try:
        with open(__cached__, "rb") as file, open(__file__, "rb") as source:
            fresh = marshal.loads(file.read()[16:]) == compile(source.read(), __file__, "exec")
    except (OSError, NameError, TypeError, EOFError, ValueError):
        return  # it came from its source
    if not fresh:
        os.unlink(__cached__)  # noqa: PTH108
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _import_from_source(name: str) -> None:
    place = f"{ROOT}/{name}"
    file = f"{place}/__init__.py"
    spec = spec_from_file_location(name, file, loader=FromSource(name, file), submodule_search_locations=[place])
    assert spec is not None and spec.loader is not None  # the loader was given
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_start_again_if_stale()
shadowing = {ROOT, os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}  # noqa: PTH109
sys.path[:] = [path for path in sys.path if path and os.path.abspath(path) not in shadowing]  # noqa: PTH100
sys.path_hooks.insert(0, _finder)
for known in [path for path in sys.path_importer_cache if path.startswith(ROOT)]:
    del sys.path_importer_cache[known]
if "aurora" not in sys.modules:
    _import_from_source("aurora")

if not all(map(find_spec, ("pyarrow", "pydantic", "ruamel"))):
    sys.exit(f"error: {sys.executable} lacks what Aurora is made of; run: make environment && . .venv/bin/activate")

import logging
import warnings

from aurora.core.declared import require_versions
from aurora.core.environment import is_launched, start_from_known
from aurora.core.errors import AuroraError
from aurora.core.lifetime import end_with_dvc
from aurora.core.progress import calm_bars
from aurora.core.recorded import remove_recorded, require_cache, require_recorded_inputs

end_with_dvc()
try:
    start_from_known()
    calm_bars()
    require_versions()
    if "DVC_STAGE" in os.environ and not is_launched(os.environ):
        require_cache()
        require_recorded_inputs(os.environ["DVC_STAGE"])
        remove_recorded()
except AuroraError as error:
    sys.exit(f"error: {error}")

# What libraries say here about arguments that Aurora or TRL chose, and no user can act on.
logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
