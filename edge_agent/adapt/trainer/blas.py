"""The BLAS threads of a run: chosen before NumPy is loaded, checked after.

Why it exists: the last bits of a matrix product depend on the number of threads that share it, so a
resumed run must use as many threads as it began with. OpenBLAS reads the number once, when it is
loaded. Flows in: the number that the user wants. Flows out: environment variables, then the number
that the loaded library reports. Not here: remembering the number (manifest.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.machine import default_threads

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
"""Environment variables with the number of threads, one for each BLAS library."""
_CORTEX_A57 = "0xd07"
"""The "CPU part" of a Jetson Nano's cores in /proc/cpuinfo."""
_PREFIXES, _SUFFIXES = ("scipy_openblas_", "openblas_"), ("64_", "_64", "")
"""Prefixes and suffixes of OpenBLAS's functions: NumPy's wheels rename the functions, the packages
of Linux distributions do not."""


@dataclass(frozen=True)
class Blas:
    """A loaded BLAS library. `n_threads` is None when the library does not report it."""

    description: str
    n_threads: int | None


def choose_threads(wanted: int | None) -> int:
    """`wanted` threads, at most as many as cores that this process may use; None: as many as
    machine.py says."""
    return min(len(os.sched_getaffinity(0)), wanted) if wanted else default_threads()


def announce(n_threads: int, environ: MutableMapping[str, str]) -> None:
    """Set the variables for the BLAS library that this process loads later."""
    environ.update(dict.fromkeys(VARIABLES, str(n_threads)))
    if platform.machine() == "aarch64" and _CORTEX_A57 in _cpuinfo():
        # OpenBLAS asks the CPU for its type; under a Nano's kernel 4.9 that instruction is illegal.
        environ.setdefault("OPENBLAS_CORETYPE", "CORTEXA57")


def settings(environ: Mapping[str, str]) -> str:
    """The other OPENBLAS_ variables as one text: block sizes and kernels change the last bits of
    results, too."""
    found = {key: value for key, value in environ.items() if key.startswith("OPENBLAS_")}
    found.pop(VARIABLES[0], None)
    return " ".join(f"{key}={value}" for key, value in sorted(found.items()))


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def loaded() -> Blas:
    """The BLAS library in this process. Call it after the import of NumPy."""
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
