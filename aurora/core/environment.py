"""The environment that a stage starts from: variables that shape bytes are set, removed or refused, whatever the caller has.

One table each. Recipes are in params.yaml; a variable that would change one from outside is not an input that DVC sees.
"""

import os
import sys
from collections.abc import Mapping, MutableMapping
from fnmatch import fnmatchcase

from aurora.core.errors import ResourceError

SET = {
    # The order in which a product or a softmax adds up depends on the vector instructions that a library finds. MKL
    # promises equal results on all x86-64 processors in its COMPATIBLE mode alone; the others get a ceiling that every
    # processor of the last decade has.
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    # Sums of numpy must not depend on the number of cores; torch's threads are parameters of the stages.
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Libraries report usage to their makers; a stage connects to nothing but what it fetches.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    # A thread that waits sleeps at once: where others want the core, each turn of a spin delays what is waited for.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}
REMOVED = (
    "OMP_*",  # threads and their schedule
    "GOMP_*",
    "KMP_*",
    "MKL_*",
    "OPENBLAS_*",
    "GOTO_NUM_THREADS",
    "BLIS_*",
    "NUMEXPR_*",
    "ATEN_*",  # vector instructions
    "ONEDNN_*",
    "DNNL_*",
    "NPY_*",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_*",  # the kernel that torch takes
    "TORCH_CUDNN_*",
    "TORCH_LINALG_*",
    "TORCH_LINEAR_*",
    "TORCH_MKLDNN_*",
    "TORCH_COMPILE*",
    "TORCH_JIT_*",
    "TORCHDYNAMO_*",
    "TORCHINDUCTOR_*",
    "PYTORCH_JIT*",
    "PYTORCH_TENSOREXPR*",
    "PYTORCH_TUNABLEOP_*",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "DISABLE_ADDMM_*",
    "CUDNN_*",
    "FLASH_ATTENTION_*",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",  # pickles
    "TRUST_REMOTE_CODE",
    "ACCELERATE_*",  # precision, sharding and number of processes
    "FSDP_*",
    "DEEPSPEED_*",
    "PARALLELISM_CONFIG_*",
    "XLA_*",
    "PJRT_DEVICE",
    "USE_TF",
    "USE_TORCH*",
    "USE_JAX",
    "USE_HUB_KERNELS",
    "TRANSFORMERS_*",
    "SM_*",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PMI_*",
    "OMPI_*",
    "MV2_*",
    "TORCHELASTIC_*",
    "BNB_*",  # another build of bitsandbytes
    "LM_HARNESS_*",
)
KEPT = ("PYTORCH_CUDA_ALLOC_CONF", "TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS")
# What accelerate's launcher sets for each of its processes, which start from the environment of the stage that launched them.
OF_LAUNCHER = (
    "ACCELERATE_*",
    "OMP_NUM_THREADS",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_*",
)
# scikit-learn gives these to every child of a program that imports it, so that nobody has chosen them.
UNCHOSEN = {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}
# Read before the first line of Python runs.
REFUSED = {
    "LD_PRELOAD": "puts other code before the pinned libraries",
    "LD_AUDIT": "puts other code before the pinned libraries",
    "GLIBC_TUNABLES": "changes how exp and log round",
    "PYTHONOPTIMIZE": "takes checks out of libraries",
    "PYTHONHOME": "names another standard library",
}


def is_launched(environ: Mapping[str, str]) -> bool:
    """Whether accelerate's launcher has started this process."""
    return {"RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"} <= environ.keys()


def start_from_known(environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets and removes what the tables name; says on stderr what the caller had set otherwise.

    Raises ResourceError for a variable that has had its effect already, and for a launcher that asks for another
    precision or sharding than the recipe's.
    """
    for name, effect in REFUSED.items():
        if environ.get(name):
            raise ResourceError(
                f"{name}={environ[name]} {effect}, and DVC does not see it; run: env -u {name} dvc repro"
            )
    own = OF_LAUNCHER if is_launched(environ) else ()
    ignored = [
        name
        for name in sorted(environ)
        if _any(name, REMOVED) and not _any(name, (*own, *KEPT)) and environ[name] != SET.get(name)
    ]
    said = [name for name in ignored if not name.endswith("_NUM_THREADS") and environ[name] != UNCHOSEN.get(name)]
    for name in ignored:
        environ.pop(name)
    if own:
        _check_launcher(environ)
    elif said:
        print(f"ignores {', '.join(said)} of the environment; params.yaml has the recipe", file=sys.stderr)
    environ.update(SET)


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_launcher(environ: Mapping[str, str]) -> None:
    for name in (
        "MIXED_PRECISION",
        "DYNAMO_BACKEND",
        "USE_FSDP",
        "USE_DEEPSPEED",
        "USE_MEGATRON_LM",
        "USE_PARALLELISM_CONFIG",
    ):
        value = environ.get(f"ACCELERATE_{name}", "no")
        if value.lower() not in ("no", "false", ""):
            raise ResourceError(
                f"ACCELERATE_{name}={value}: the launcher asks for what the recipe of params.yaml does not have; start it with"
                " --mixed_precision no --dynamo_backend no"
            )
