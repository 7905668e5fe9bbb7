"""A FAKE of CuPy for machines without a GPU: NumPy inside, CuPy's refusals outside.

Why it exists: an array of CuPy is no array of NumPy, and whatever mixes the two fails only on a
machine with a GPU. `FakeArray` refuses as CuPy's array does (docs.cupy.dev, "Interoperability"): no
implicit conversion to NumPy, no arithmetic with NumPy arrays, no NumPy array as an index or as what
is assigned. It is stricter than CuPy in places, never more generous. It says nothing of speed, of
memory or of a GPU's last bits. `installed` puts it in the place of the package.
"""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

FUNCTIONS = frozenset(
    ["add", "ascontiguousarray", "divide", "empty", "exp", "full", "log", "matmul", "maximum"]
    + ["minimum", "multiply", "negative", "ones", "sqrt", "square", "subtract", "sum", "zeros"]
    + ["zeros_like"]
)
"""Of NumPy's functions those that the trainer calls, all of which CuPy has."""
METHODS = frozenset(["all", "any", "astype", "copy", "max", "mean", "reshape", "sum", "transpose"])
"""Methods of an array with the name of a function of NumPy."""


class FakeArray:
    """Stands for cupy.ndarray. `transfers` counts the copies between host and device."""

    __hash__ = None  # type: ignore[assignment]
    transfers = 0

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed (fake CuPy)")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        return _called(ufunc, *inputs, **kwargs)

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        return _called(function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self._inner, name)
        if isinstance(found, np.ndarray):
            return FakeArray(found)
        return (
            (lambda *args, **kwargs: _called(found, *args, **kwargs)) if callable(found) else found
        )

    def __getitem__(self, index: Any) -> Any:
        return _wrapped(self._inner[_unwrapped(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._inner[_unwrapped(index)] = _unwrapped(value)

    def __len__(self) -> int:
        return len(self._inner)

    def __bool__(self) -> bool:
        return bool(self._inner)

    def __float__(self) -> float:
        return float(self._inner)

    def __int__(self) -> int:
        return int(self._inner)


def _operator(name: str) -> Any:
    def apply(self: FakeArray, *others: Any) -> Any:
        found = getattr(self._inner, name)(*map(_unwrapped, others))
        return self if found is self._inner else _wrapped(found)

    return apply


for _name in ("add", "sub", "mul", "truediv", "matmul", "pow"):
    for _prefix in ("", "r", "i"):
        setattr(FakeArray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in ("neg", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(FakeArray, f"__{_name}__", _operator(f"__{_name}__"))


def _unwrapped(value: Any) -> Any:
    if isinstance(value, FakeArray):
        return value._inner
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'> (fake CuPy)")
    if isinstance(value, tuple | list):
        return type(value)(map(_unwrapped, value))
    return value


def _wrapped(value: Any) -> Any:
    """A reduction gives an array of no dimensions, as on a GPU, and never a NumPy scalar."""
    if isinstance(value, np.ndarray | np.generic):
        return FakeArray(np.asarray(value))
    return value


def _called(function: Any, *args: Any, **kwargs: Any) -> Any:
    if (name := getattr(function, "__name__", "")) in dir(np) and name not in FUNCTIONS | METHODS:
        raise TypeError(f"numpy.{name} is not known to the fake CuPy")
    if name == "tobytes":
        raise TypeError("take asnumpy to copy from the GPU (fake CuPy, stricter than CuPy)")
    out = kwargs.get("out")
    found = function(*map(_unwrapped, args), **{k: _unwrapped(v) for k, v in kwargs.items()})
    return out if isinstance(out, FakeArray) else _wrapped(found)


def _asarray(values: Any, dtype: Any = None) -> FakeArray:
    if isinstance(values, FakeArray):
        return FakeArray(np.asarray(values._inner, dtype))
    FakeArray.transfers += 1
    return FakeArray(np.array(values, dtype))


def _asnumpy(values: FakeArray) -> Any:
    FakeArray.transfers += 1
    return values._inner.copy()


def fake_cupy(n_gpus: int = 1) -> Any:
    """The module."""
    module: Any = ModuleType("cupy")
    for name in FUNCTIONS:
        setattr(module, name, partial(_called, getattr(np, name)))
    module.asarray, module.asnumpy, module.ndarray = _asarray, _asnumpy, FakeArray
    module.inf, module.finfo, module.__version__ = np.inf, np.finfo, "0.0-fake"
    runtime = SimpleNamespace(
        getDeviceCount=lambda: n_gpus,
        getDeviceProperties=lambda _: {"name": b"a fake GPU"},
        runtimeGetVersion=lambda: 12060,
    )
    module.cuda = SimpleNamespace(runtime=runtime)
    return module


def installed(monkeypatch: pytest.MonkeyPatch, n_gpus: int = 1) -> Any:
    """Put the fake where `import cupy` finds it, until the test ends."""
    module = fake_cupy(n_gpus)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module
