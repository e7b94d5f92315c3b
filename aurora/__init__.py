"""Aurora: a Chinese instruction tune of Mixtral-8x7B in 4 bits, as a reproducible DVC pipeline."""

import logging
import sys

# Where the package `kernels` is installed, bitsandbytes fetches compiled code from a hub while it is imported,
# and elsewhere it asks to install that package.
sys.modules.setdefault("kernels", None)  # pyrefly: ignore[no-matching-overload] - None stops an import
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
