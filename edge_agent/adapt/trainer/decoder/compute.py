"""How arrays are worked on: the array module, its threads, reused buffers, a count of GEMM work.

Why it exists: with BLAS at 450 GFLOP/s on two cores, the work that is not a matrix product decides
the speed. So this work runs over blocks of rows that fit the cache; threads share the blocks (NumPy
releases the GIL); and every large array is a buffer that is used again, because fresh memory costs
a page fault per 4 KiB. Which thread computes a block does not matter, so a run gives the same bits
again with the same number of threads. Flows in: functions over rows. Flows out: their results, in
arrays that the caller owns. Not here: what is computed (elementwise.py, attention.py), unpacking
(packed_weights.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK_ELEMENTS = 1 << 16
"""Elements of one block of rows: three such blocks of float32 fit a core's 1 MiB L2 cache."""
SCRATCH_ARRAYS = 3
"""Scratch arrays, each as large as a block, that a function over rows may use."""

Work = Callable[[slice, "Scratch"], None]
"""A function of a slice of rows and of a Scratch that no other call uses at the same time."""


def blas_threads() -> int:
    """Threads that OpenBLAS uses: OPENBLAS_NUM_THREADS when it was loaded, else every core."""
    told = os.environ.get("OPENBLAS_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) > 0 else len(os.sched_getaffinity(0))


class Buffers:
    """Named arrays that are allocated once, used again, and replaced when they are too small."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._flat: dict[str, Array] = {}

    def take(self, name: str, *shape: int) -> Array:
        """The buffer `name` as an array of `shape`.

        It holds what was last written there. If it had to grow, its contents are undefined.
        """
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.size < size:
            self._flat.pop(name, None)  # free the old array before the new one is allocated
            flat = self._flat[name] = self._compute.empty(size)
        return flat[:size].reshape(shape)

    @property
    def n_bytes(self) -> int:
        return sum(flat.nbytes for flat in self._flat.values())


class Scratch:
    """The scratch arrays of one thread, numbered from 0 to SCRATCH_ARRAYS - 1."""

    def __init__(self, compute: Compute) -> None:
        self._buffers = Buffers(compute)

    def take(self, number: int, *shape: int) -> Array:
        return self._buffers.take(str(number), *shape)


class Compute:
    """The array module `xp` (NumPy, or one with its interface), a dtype, threads.

    compute = Compute(n_threads=2)
    out = compute.matmul(a, b, out=compute.empty(len(a), b.shape[1]))
    """

    def __init__(self, n_threads: int = 1, dtype: Any = np.float32, xp: Any = np) -> None:
        self.xp = xp
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.n_threads = n_threads if xp is np else 1
        self._scratch = [Scratch(self) for _ in range(self.n_threads)]
        self._pool = ThreadPoolExecutor(self.n_threads - 1) if self.n_threads > 1 else None

    def empty(self, *shape: int) -> Array:
        """A new array of `shape` with undefined contents."""
        found: Array = self.xp.empty(shape, self.dtype)
        return found

    def array(self, values: Any) -> Array:
        """`values` as an array of `xp` with the dtype."""
        found: Array = self.xp.asarray(values, self.dtype)
        return found

    def to_host(self, values: Array) -> Array:
        """`values` as a NumPy array; the same object where `xp` is NumPy."""
        found: Array = values if self.xp is np else self.xp.asnumpy(values)
        return found

    def matmul(self, a: Array, b: Array, out: Array) -> Array:
        """Write a @ b to `out` and count its operations. Each of the three may be a slice of
        columns, because BLAS takes strides."""
        self.xp.matmul(a, b, out=out)
        return out

    def split(self, shape: tuple[int, ...], work: Work) -> None:
        """Call `work` for blocks of rows of an array of `shape`, in several threads. The blocks
        cover the first axis exactly once."""
        if self.xp is not np:
            work(slice(0, shape[0]), self._scratch[0])
            return
        self.share(shape[0], max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:]))), work)

    def share(self, n_rows: int, step: int, work: Work) -> None:
        """As `split`, for `n_rows` rows with at most `step` rows in a block."""
        n_parts = min(self.n_threads, -(-n_rows // step))
        bounds = [n_rows * part // n_parts for part in range(n_parts + 1)] if n_parts else [0]

        def run(part: int) -> None:
            for first in range(bounds[part], bounds[part + 1], step):
                rows = slice(first, min(first + step, bounds[part + 1]))
                work(rows, self._scratch[part])

        others = [self._pool.submit(run, part) for part in range(1, n_parts)] if self._pool else []
        if n_parts:
            run(0)
        for other in others:
            other.result()
