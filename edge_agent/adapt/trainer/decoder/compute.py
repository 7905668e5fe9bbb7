"""How arrays are worked on: the array module, its threads, reused buffers, a count of GEMM work.

Why it exists: with BLAS at 450 GFLOP/s on two cores, what is not a matrix product decides the
speed. So such work runs over blocks of rows that stay in the cache, the blocks are shared among
threads (NumPy lets go of the interpreter lock), and every large array is a buffer that is used
again: fresh memory costs a page fault per 4 KiB. Results do not depend on who computes a block, so
a run is repeated bit for bit with the same number of threads. Flows in: functions over rows. Not
here: what is computed (elementwise.py, attention.py), unpacking (packed_weights.py).
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
"""Of one block of rows: three such blocks of float32 fit the 1 MiB second-level cache of a core."""
SCRATCH_ARRAYS = 3
"""Blocks of scratch that a function over rows may use."""

Work = Callable[[slice, "Scratch"], None]
"""A function of some rows and of scratch that is its own while it runs."""


def blas_threads() -> int:
    """Threads that OpenBLAS was told to use when it was loaded: its variable, else every core."""
    told = os.environ.get("OPENBLAS_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) > 0 else len(os.sched_getaffinity(0))


class Buffers:
    """Named arrays that are allocated once, grow when they must, and are used again."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._flat: dict[str, Array] = {}

    def take(self, name: str, *shape: int) -> Array:
        """The buffer `name` as an array of `shape`; holds what was last written there, if it is
        no larger than before, and anything otherwise."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.size < size:
            self._flat.pop(name, None)  # first, so that both never exist
            flat = self._flat[name] = self._compute.empty(size)
        return flat[:size].reshape(shape)

    @property
    def n_bytes(self) -> int:
        return sum(flat.nbytes for flat in self._flat.values())


class Scratch:
    """SCRATCH_ARRAYS blocks of one thread."""

    def __init__(self, compute: Compute) -> None:
        self._buffers = Buffers(compute)

    def take(self, number: int, *shape: int) -> Array:
        return self._buffers.take(str(number), *shape)


class Compute:
    """The array module `xp` (NumPy, or one with its interface), a dtype, threads.

    `flops` counts multiply-adds times two of every matrix product so far.
    """

    def __init__(self, n_threads: int = 1, dtype: Any = np.float32, xp: Any = np) -> None:
        self.xp = xp
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.n_threads = n_threads if xp is np else 1
        self.flops = 0
        self._scratch = [Scratch(self) for _ in range(self.n_threads)]
        self._pool = ThreadPoolExecutor(self.n_threads - 1) if self.n_threads > 1 else None

    def empty(self, *shape: int) -> Array:
        found: Array = self.xp.empty(shape, self.dtype)
        return found

    def array(self, values: Any) -> Array:
        """`values` in the dtype, where `xp` computes."""
        found: Array = self.xp.asarray(values, self.dtype)
        return found

    def to_host(self, values: Array) -> Array:
        """A NumPy array of `values`, the same one where `xp` is NumPy."""
        found: Array = values if self.xp is np else self.xp.asnumpy(values)
        return found

    def matmul(self, a: Array, b: Array, out: Array) -> Array:
        """a @ b into `out`, counted. Any of them may be a slice of columns: BLAS takes strides."""
        self.flops += 2 * out.size * a.shape[-1]
        self.xp.matmul(a, b, out=out)
        return out

    def split(self, shape: tuple[int, ...], work: Work) -> None:
        """Call `work` on blocks of rows of an array of `shape`, in several threads: together they
        cover the first axis once."""
        if self.xp is not np:
            work(slice(0, shape[0]), self._scratch[0])
            return
        self.share(shape[0], max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:]))), work)

    def share(self, n_rows: int, step: int, work: Work) -> None:
        """As `split`, with at most `step` rows in a block."""
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
