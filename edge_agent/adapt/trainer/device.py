"""What computes a run: NumPy on the CPU, or CuPy on an NVIDIA GPU, refused where that cannot be.

Why it exists: a GPU that is missing must be noticed before any work is done, and the message must
name the package that this driver needs. Flows in: the setting `device`. Flows out: the array module
for decoder/compute.py; the names and versions that determine an adapter's bits; notes for the plan.
Nothing falls back to the CPU. Not here: how the arrays are used (decoder/).
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.errors import UsageError

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
"""Exists on a Jetson, whose CUDA libraries are JetPack's."""
_OTHERWISE = "or train with --device cpu"


def array_module(device: str) -> Any:
    """NumPy for "cpu", CuPy for "cuda". Raises UsageError where CuPy is missing, finds no GPU, or
    cannot compute on it."""
    if device == "cpu":
        return np
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # a broken installation raises more than ImportError
        why = f"CuPy cannot be imported by {sys.executable}: {error}"
        raise UsageError("cannot train with --device cuda", why, _install()) from error
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        raise _no_gpu(f"CuPy {cupy.__version__} cannot ask for GPUs: {error}") from error
    if not count:
        raise _no_gpu(f"CuPy {cupy.__version__} finds no CUDA device")
    _try_out(cupy)
    return cupy


def _try_out(cupy: Any) -> None:
    """One product and one function that is compiled when it is first used: wheels come without
    cuBLAS and NVRTC."""
    try:
        ones = cupy.ones((2, 2), "f4")
        value = float(cupy.exp(cupy.matmul(ones, ones) - 2).sum())
    except Exception as error:
        why = f"CuPy {cupy.__version__} cannot compute on the GPU: {error}"
        raise UsageError("cannot train with --device cuda", why, _install()) from error
    if abs(value - 4) > 1e-3:
        why = f"CuPy {cupy.__version__} computes {value} where 4 is right"
        raise UsageError("cannot train with --device cuda", why, _install())


def _no_gpu(why: str) -> UsageError:
    hint = f"check the NVIDIA driver (`nvidia-smi`; on a Jetson, JetPack), {_OTHERWISE}"
    return UsageError("cannot train with --device cuda", why, hint)


def _install() -> str:
    """What to install for this machine's driver."""
    version = driver_version()
    if version is None:
        return f"there is no NVIDIA driver here (libcuda.so.1): install it first, {_OTHERWISE}"
    release, command = f"{version[0]}.{version[1]}", f"{sys.executable} -m pip install"
    whose = "JetPack has" if TEGRA_RELEASE.exists() else "the driver knows"
    return f"{whose} CUDA {release}: `{command} {package(version)}`, {_OTHERWISE}"


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA (major, minor) that the driver knows; None without a driver."""
    number = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or not number.value else divmod(number.value // 10, 100)


def package(version: tuple[int, int]) -> str:
    """The name of CuPy's wheel for a CUDA version (docs.cupy.dev/en/stable/install.html).

    >>> package((12, 6)), package((10, 2))
    ('cupy-cuda12x', 'cupy-cuda102')
    """
    major, minor = version
    return f"cupy-cuda{major}x" if version >= (11, 2) else f"cupy-cuda{major}{minor}"


def software(device: str) -> dict[str, str]:
    """What else than NumPy and BLAS computes the adapter's bits. Call it after `array_module`."""
    if device == "cpu":
        return {}
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    return {
        "cupy": str(cupy.__version__),
        "cuda": str(runtime.runtimeGetVersion()),
        "gpu": runtime.getDeviceProperties(0)["name"].decode("utf-8", "replace"),
    }


def notes(device: str) -> list[str]:
    """What the plan must say about its figures."""
    if device == "cpu":
        return []
    return [
        "device cuda: the bytes are those of the arrays, which lie on the GPU; the CUDA libraries"
        " and the context come on top, and the GPU's own limit is not looked at"
    ]
