"""Rows of float32 become packed tensors in a file, a slab at a time, on all cores.

Why it exists: ggml's quantizer uses one thread per call and takes float32. One thread reads,
unpacks, packs and writes a slab that fits the processor's cache before it takes the next one, so
memory stays small for a model of any size and there is no intermediate file. Flows in: jobs. Flows
out: bytes in an OutputFile, and progress. Not here: which type a tensor gets
(edge_agent/llama/type_plan.py).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.output_file import OutputFile
from converters.rows import F32, FLOAT_TYPES, PackedRows, Rows
from edge_agent.errors import ConversionError
from edge_agent.llama import ggml
from edge_agent.machine import usable_processors

SLAB_ELEMENTS = 1 << 18
"""Elements of a slab: 1 MiB of float32, half of a small core's share of the cache."""

Progress = Callable[[str, int | None, int | None], None]
"""Called with (status, completed, total), like the function that Terminal.progress() yields."""


def _silent(status: str, completed: int | None, total: int | None) -> None:
    return None


@dataclass(frozen=True)
class How:
    """The user's choices about the writing itself. `threads` None: all cores."""

    threads: int | None = None
    progress: Progress = _silent
    allow_requantize: bool = True


@dataclass(frozen=True)
class TensorJob:
    """One tensor: the source of its rows, its type in the file and its offset there."""

    rows: Rows
    type: str
    offset: int
    importance: F32 | None = None

    @property
    def n_bytes(self) -> int:
        return self.rows.n_rows * ggml.row_bytes(self.type, self.rows.n_columns)


class Quantizer:
    """Runs jobs in several threads, each with its own buffers."""

    def __init__(self, output: OutputFile, how: How) -> None:
        self._output = output
        self._threads = how.threads or usable_processors()
        self._progress = how.progress
        self._local = threading.local()

    def run(self, jobs: Sequence[TensorJob]) -> None:
        """Write every job. Raises the ConversionError of the first slab that fails."""
        total = sum(job.n_bytes for job in jobs)
        done = 0

        def report(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            self._progress(f"writing {self._output.path.name}", done, total)

        slabs = _slabs(jobs)
        with ThreadPoolExecutor(self._threads) as pool:
            waiting: set[Future[int]] = set()
            try:
                for job, first, count in slabs:
                    waiting.add(pool.submit(self._write, job, first, count))
                    if len(waiting) >= 4 * self._threads:
                        waiting = _collect(waiting, report)
                while waiting:
                    waiting = _collect(waiting, report)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _write(self, job: TensorJob, first: int, count: int) -> int:
        n_columns = job.rows.n_columns
        row = ggml.row_bytes(job.type, n_columns)
        values, packed = self._buffers(count * n_columns, count * row)
        rows = values.reshape(count, n_columns)
        as_it_is = _verbatim(job, first, count)
        if as_it_is is not None:
            packed = as_it_is
        else:
            job.rows.read(first, rows)
            ggml.quantize(job.type, rows, packed, job.importance)
        if job.type != "F32":
            ggml.dequantize(job.type, packed, rows)
            _check_packed(job, first, rows)
        self._output.write_at(job.offset + first * row, packed.data)
        return count * row

    def _buffers(self, n_values: int, n_bytes: int) -> tuple[F32, NDArray[np.uint8]]:
        """This thread's own buffers, enlarged for a tensor with wider rows than any before."""
        values = getattr(self._local, "values", None)
        if values is None or values.size < n_values:
            self._local.values = values = np.empty(max(n_values, SLAB_ELEMENTS), np.float32)
            self._local.packed = np.empty(values.nbytes, np.uint8)
        return values[:n_values], self._local.packed[:n_bytes]


def _check_packed(job: TensorJob, first: int, unpacked: F32) -> None:
    """Raise ConversionError when what was packed is no longer finite: F16 ends at 65,504, and so do
    the scales of quantized blocks."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(unpacked.sum()) or np.isfinite(unpacked).all():
            return
    job.rows.read(first, unpacked)
    raise ConversionError(
        f"the tensor {job.rows.name} does not fit into {job.type}",
        f"it has a weight of {float(np.abs(unpacked).max()):.3g}, which becomes infinity or NaN",
        f"keep it in more bits: --tensor-type {re.escape(job.rows.name)}=bf16, or --type bf16",
    )


def _verbatim(job: TensorJob, first: int, count: int) -> NDArray[np.uint8] | None:
    """The bytes of rows that already have the requested quantized type, else None.

    They are copied, because unpacking and packing again would change values.
    """
    rows = job.rows
    if not isinstance(rows, PackedRows) or rows.type != job.type or job.type in FLOAT_TYPES:
        return None
    return rows.data[first : first + count] if rows.order is None and not rows.shift else None


def _slabs(jobs: Sequence[TensorJob]) -> Iterator[tuple[TensorJob, int, int]]:
    for job in jobs:
        step = max(1, SLAB_ELEMENTS // job.rows.n_columns)
        for first in range(0, job.rows.n_rows, step):
            yield job, first, min(step, job.rows.n_rows - first)


def _collect(waiting: set[Future[int]], report: Callable[[int], None]) -> set[Future[int]]:
    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        report(future.result())
    return waiting
