"""The BLAS threads of a run: chosen before NumPy is loaded, checked after.

Why it exists: a matrix product's last bits depend on how many threads shared it, so a run that is
resumed must have as many as it began with; OpenBLAS reads their number once, when it is loaded.
Flows in: what the user wants. Flows out: environment variables, then what the library says. Not
here: who remembers it (manifest.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import psutil

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_CORTEX_A57 = "0xd07"
_PREFIXES, _SUFFIXES = ("scipy_openblas_", "openblas_"), ("64_", "_64", "")
"""Of OpenBLAS's functions: NumPy's wheels rename them, distributions do not."""


@dataclass(frozen=True)
class Blas:
    """`n_threads` None: a library that does not say."""

    description: str
    n_threads: int | None


def choose_threads(wanted: int | None) -> int:
    """`wanted`, else the physical cores (hyper-threads slow products); at most those allowed."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, wanted or psutil.cpu_count(logical=False) or allowed))


def announce(n_threads: int, environ: MutableMapping[str, str]) -> None:
    """For the BLAS that is loaded later in this process."""
    environ.update(dict.fromkeys(VARIABLES, str(n_threads)))
    if platform.machine() == "aarch64" and _CORTEX_A57 in _cpuinfo():
        # Asking the processor what it is is an illegal instruction under a Nano's kernel 4.9.
        environ.setdefault("OPENBLAS_CORETYPE", "CORTEXA57")


def settings(environ: Mapping[str, str]) -> str:
    """Everything else that such variables say: block sizes and kernels reach the last bits too."""
    found = {key: value for key, value in environ.items() if key.startswith("OPENBLAS_")}
    found.pop(VARIABLES[0], None)
    return " ".join(f"{key}={value}" for key, value in sorted(found.items()))


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def loaded() -> Blas:
    """The library of this process, once NumPy has been imported."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    for path in dict.fromkeys(line.split(maxsplit=5)[5] for line in maps if "blas" in line.lower()):
        library = ctypes.CDLL(path)
        for prefix in _PREFIXES:
            for suffix in _SUFFIXES:
                found = _asked(library, prefix, suffix)
                if found is not None:
                    return found
    return Blas("unknown BLAS", None)


def _asked(library: ctypes.CDLL, prefix: str, suffix: str) -> Blas | None:
    try:
        threads = getattr(library, f"{prefix}get_num_threads{suffix}")
        config = getattr(library, f"{prefix}get_config{suffix}")
    except AttributeError:
        return None
    config.restype = ctypes.c_char_p
    return Blas(config().decode("ascii", "replace").strip(), int(threads()))
