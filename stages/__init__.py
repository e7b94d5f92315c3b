"""The stages of dvc.yaml, one script each. What holds for all of them stands here, and runs before any of their imports.

The order in which a matrix product or a softmax adds up depends on the vector instructions that a library finds.
MKL promises equal results on all x86-64 processors in its COMPATIBLE mode alone; ATen and oneDNN get a ceiling that
every processor of the last decade has. So a stage that runs on CPU gives the same bytes on another machine.
"""

import logging
import os
import sys
import warnings
from importlib.util import find_spec

os.environ |= {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# Libraries tell their makers what is used; a stage connects to nothing but what it fetches.
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
# Threads that wait for each other spin only briefly: with other work on the machine, long spinning costs most of it.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if not all(map(find_spec, ("pyarrow", "pydantic", "ruamel"))):
    sys.exit(
        f"error: {sys.executable} lacks what Aurora is made of; run: make environment && . .venv/bin/activate"
    )

from aurora.core.declared import require_versions
from aurora.core.errors import AuroraError
from aurora.core.lifetime import end_with_dvc

try:
    require_versions()
except AuroraError as error:
    sys.exit(f"error: {error}")
end_with_dvc()

# What libraries say here about arguments that Aurora or TRL chose, and no user can act on.
logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
