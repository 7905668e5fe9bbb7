"""Logits of two models on the same tokens, one model in memory after the other.

Why it exists: two models of 270M parameters in float32, their scratch copies and three buffers of
logits took 4.5 GB at once. Here A is evaluated first and its logits are kept in a file, then B in
float32, then B as it is served. Flows in: two models and windows of tokens. Flows out: the figures.
A plan of memory and disk is announced before the work, and refused where it does not fit. Not here:
gates and verdicts (verify.py).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from converters.checkpoint import open_checkpoint
from converters.divergence import BitsPerByte, Divergence, log_softmax
from converters.gguf_output import write_model
from converters.logits import WINDOW, LlamaLogits, LogitSource, TorchLogits
from converters.quantize import load as load_gguf
from converters.quantizer import How
from converters.rows import F32
from edge_agent.cli.terminal import size_text
from edge_agent.errors import ConversionError
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama.type_plan import TypeRequest
from edge_agent.machine import read_memory

BLOCK = 32
"""Positions compared at once: in float64 one position of Gemma takes 2 MB in each of six arrays."""
BLOCK_ARRAYS = 6
PROCESS_BYTES = 400_000_000
"""Interpreter, libraries, two vocabularies; measured 250 to 400 MB."""


def _silent(text: str) -> None:
    return None


@dataclass(frozen=True)
class VerifyRoom:
    """`memory_bytes` None: what is available. `announce` is called once with the plan."""

    memory_bytes: int | None = None
    announce: Callable[[str], None] = _silent


@dataclass(frozen=True)
class Window:
    """Tokens of one evaluation, and the bytes of those after the first."""

    tokens: list[int]
    n_bytes: int


@dataclass
class LogitFigures:
    """Everything that is collected window by window."""

    weights: Divergence = field(default_factory=Divergence)
    served: Divergence = field(default_factory=Divergence)
    floor: Divergence = field(default_factory=Divergence)
    bits_a: BitsPerByte = field(default_factory=BitsPerByte)
    bits_b: BitsPerByte = field(default_factory=BitsPerByte)
    n_tokens: int = 0


@dataclass(frozen=True)
class Plan:
    """Bytes: `own` memory at the peak, `mapped` weights that the kernel may drop, `disk` files."""

    own: int
    mapped: int
    disk: int

    def __str__(self) -> str:
        return (
            f"takes up to {size_text(self.own)} of memory and {size_text(self.mapped)} of mapped"
            f" weights, and keeps {size_text(self.disk)} in {tempfile.gettempdir()} meanwhile"
        )


def plan(a: Path, b: Path, windows: Sequence[Window]) -> Plan:
    """What `compare_logits` will take. Raises ConversionError, ModelFormatError."""
    sides = [_Side.of(path) for path in (a, b)]
    width = max(side.n_vocab for side in sides)
    rows = sum(len(window.tokens) for window in windows)
    logits = WINDOW * width * 4
    work = logits + BLOCK_ARRAYS * BLOCK * width * 8 + PROCESS_BYTES
    held = max(side.n_params * 4 if side.is_directory else side.packed_bytes for side in sides)
    scratch = max(side.scratch_bytes for side in sides)
    mapped = max(side.n_params * 4 for side in sides)
    return Plan(work + held, mapped, 2 * rows * width * 4 + scratch)


@dataclass(frozen=True)
class _Side:
    """Sizes of one model. `packed_bytes`: a file's weights; llama.cpp may repack them in memory."""

    n_params: int
    n_vocab: int
    packed_bytes: int
    scratch_bytes: int
    is_directory: bool

    @staticmethod
    def of(path: Path) -> _Side:
        if path.is_dir():
            tensors = open_checkpoint(path).tensors.values()
            widest = max((t.shape[0] for t in tensors if len(t.shape) == 2), default=0)
            return _Side(sum(t.n_elements for t in tensors), widest, 0, 0, True)
        file = read_gguf(path)
        scratch = 0 if file.quantization == "F32" else file.n_params * 4
        packed = sum(tensor.n_bytes for tensor in file.tensors)
        return _Side(file.n_params, file.n_vocab, packed if scratch else 0, scratch, False)


def compare_logits(
    a: Path, b: Path, windows: Sequence[Window], how: How, limits: VerifyRoom
) -> LogitFigures:
    """The figures of B against A. Raises ConversionError when the plan does not fit."""
    _admit(plan(a, b, windows), limits)
    figures = LogitFigures()
    with tempfile.TemporaryDirectory(prefix="edge-convert-") as scratch:
        kept_a = _Kept(Path(scratch) / "a.logits", windows)
        kept_b = _Kept(Path(scratch) / "b.logits", windows)
        for path, kept in ((a, kept_a), (b, kept_b)):
            exact = Path(scratch) / "exact.gguf"
            with closing(_exact(path, exact, how)) as source:
                kept.fill(source, path.name, how)
            exact.unlink(missing_ok=True)
        for number, window in enumerate(windows):
            _compare(figures, window, kept_a.rows(number), kept_b.rows(number))
        if not b.is_dir():
            with closing(LlamaLogits(b, exact=False, threads=how.threads)) as source:
                for number, window in enumerate(windows):
                    how.progress(f"serving {b.name}", number, len(windows))
                    served = source.logits(window.tokens)
                    _compare_served(figures, kept_a.rows(number), kept_b.rows(number), served)
    return figures


def _admit(found: Plan, limits: VerifyRoom) -> None:
    limits.announce(f"verify {found}")
    memory = limits.memory_bytes
    available = read_memory().available_bytes if memory is None else memory
    room = shutil.disk_usage(tempfile.gettempdir()).free
    for needed, there, what in (
        (found.own, available, "memory"),
        (found.disk, room, f"room in {tempfile.gettempdir()}"),
    ):
        if needed > there:
            raise ConversionError(
                "the comparison does not fit",
                f"it {found}, and there are {size_text(there)} of {what}",
                "give less text with --data, or set TMPDIR to a larger disk",
            )


class _Kept:
    """Logits of every window in one file, float32, row after row."""

    def __init__(self, path: Path, windows: Sequence[Window]) -> None:
        self._path, self._windows = path, windows
        self._width = 0

    def fill(self, source: LogitSource, name: str, how: How) -> None:
        with self._path.open("wb") as stream:
            for number, window in enumerate(self._windows):
                how.progress(f"evaluating {name}", number, len(self._windows))
                found = source.logits(window.tokens)
                self._width = found.shape[1]
                stream.write(np.ascontiguousarray(found, np.float32).data)

    def rows(self, number: int) -> F32:
        """(n_tokens, n_vocab) of one window, mapped."""
        before = sum(len(window.tokens) for window in self._windows[:number])
        shape = (len(self._windows[number].tokens), self._width)
        offset = before * self._width * 4
        return np.memmap(self._path, np.float32, "r", offset, shape)


def _exact(path: Path, scratch: Path, how: How) -> LogitSource:
    """A model in float32: a directory in torch, a file with its weights dequantized."""
    if path.is_dir():
        return TorchLogits(path, how.threads)
    if read_gguf(path).quantization != "F32":
        how.progress(f"dequantizing {path.name}", None, None)
        metadata, tensors = load_gguf(path)
        write_model(scratch, metadata, tensors, TypeRequest("F32"), How(how.threads))
        path = scratch
    return LlamaLogits(path, exact=True, threads=how.threads)


def _blocks(last: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, last)) for start in range(0, last, BLOCK))


def _compare(figures: LogitFigures, window: Window, logits_a: F32, logits_b: F32) -> None:
    width = min(logits_a.shape[1], logits_b.shape[1])
    last = len(window.tokens) - 1
    for rows in _blocks(last):
        a, b = (log_softmax(x[rows, :width]) for x in (logits_a, logits_b))
        following = window.tokens[rows.start + 1 : rows.stop + 1]
        figures.weights.add(a, b)
        figures.bits_a.add(a, following)
        figures.bits_b.add(b, following)
    figures.bits_a.n_bytes += window.n_bytes
    figures.bits_b.n_bytes += window.n_bytes
    figures.n_tokens += last


def _compare_served(figures: LogitFigures, logits_a: F32, logits_b: F32, served: F32) -> None:
    width = min(x.shape[1] for x in (logits_a, logits_b, served))
    for rows in _blocks(len(logits_a) - 1):
        a, b, c = (log_softmax(x[rows, :width]) for x in (logits_a, logits_b, served))
        figures.served.add(a, c)
        figures.floor.add(b, c)
