"""Which LoRA adapters are in memory, and which one the next decode call applies.

Why it exists: many adapters may be registered, and only those in use should take memory. Flows in:
records.AdapterRef. Flows out: calls of Context.set_adapters, only when the adapter changes. The
pool loads an adapter when the first request that names it gets a slot. The file must have the
SHA-256 of the reference, a header that fits the base, and finite values everywhere. Finite values
can still be so large that the answer is NaN, so the first row of logits that an adapter computes is
looked at too (`prove`). A bad file fails the request and not the worker. Not here: which adapter
has its turn (adapter_turns.py), names of adapters (models/adapter_registry.py), whether an adapter
may become active (adapt/gate/).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from edge_agent.errors import AdapterRefused, ModelRefused, RequestError
from edge_agent.gguf.adapter_file import check_open
from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.model_file import GgufFile, read_gguf
from edge_agent.llama.binding import LogTail
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model, free_adapter, load_adapter
from edge_agent.records import AdapterRef
from edge_agent.regular_file import open_regular, sha256_of_stream

AdapterKey = tuple[str, float]
"""SHA-256 and scale of an adapter: a KV cache depends on both. None stands for the base."""
KEPT = 4
"""Number of adapters kept in memory; unused ones above this number are freed."""
_HINT = "give a GGUF LoRA adapter made for this very model"


def key_of(adapter: AdapterRef | None) -> AdapterKey | None:
    """The key of an adapter; None for the base. An adapter at scale 0 is the base too.

    Raises RequestError for a scale that is NaN or infinite.
    """
    if adapter is None or adapter.scale == 0.0:
        return None
    if not math.isfinite(adapter.scale):
        raise RequestError(
            "the adapter's scale is not a number", f"it is {adapter.scale}", "1 applies it as it is"
        )
    return adapter.sha256, adapter.scale


def activate(
    paths: Sequence[str], base: Path, model: Model, context: Context, log: LogTail
) -> list[Any]:
    """Load the adapters of EngineSettings.adapters and apply them at scale 1. Returns the handles.

    Raises AdapterRefused when a file fails a check or llama.cpp refuses it.
    """
    if not paths:
        return []
    file = read_gguf(base)
    handles = [_checked(Path(path), None, file, model, log) for path in paths]
    context.set_adapters([(handle, 1.0) for handle in handles])
    return handles


def _checked(
    path: Path, adapter: AdapterRef | None, base: GgufFile, model: Model, log: LogTail
) -> Any:
    """Check the file at `path` and load it. `adapter` None: the SHA-256 is not compared.

    llama.cpp opens the file through /proc/self/fd, so it loads the bytes that were checked even if
    the path was replaced meanwhile. Raises AdapterRefused.
    """
    try:
        with open_regular(path, follow_links=False) as stream:
            if adapter is not None:
                _check_sha256(stream, adapter)
            check_open(stream, path, base, None)
            return load_adapter(f"/proc/self/fd/{stream.fileno()}", model, log)
    except (Malformed, OSError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise AdapterRefused(f"cannot use the adapter {path}", why, _HINT) from None
    except ModelRefused as error:
        what = f"cannot use the adapter {path}"
        raise AdapterRefused(what, error.why, error.hint) from None


class AdapterPool:
    """The adapters of one model and its one context."""

    def __init__(
        self, model: Model, context: Context, base: Path, log: LogTail, always: Sequence[Any] = ()
    ) -> None:
        """`always`: handles that are applied at scale 1 for requests that name no adapter."""
        self._model = model
        self._context = context
        self._base = base
        self._log = log
        self._always = [(handle, 1.0) for handle in always]
        self._file: GgufFile | None = None
        self._handles: dict[str, Any] = {}
        """llama.cpp handles by SHA-256, the least recently used first."""
        self._active: AdapterKey | None = None
        self._proven: set[AdapterKey] = set()
        self._refused: set[AdapterKey] = set()

    @property
    def loaded(self) -> list[str]:
        """SHA-256 of each adapter in memory, the least recently used first."""
        return list(self._handles)

    def load(self, adapter: AdapterRef | None, used: Collection[AdapterKey | None]) -> None:
        """Load `adapter` unless it is in memory, then free idle adapters beyond KEPT.

        `used` are the keys of the slots at work; their adapters are not freed. Raises
        AdapterRefused when the file fails a check or computed NaN before, RequestError for a scale
        that is no number.
        """
        key = key_of(adapter)
        if adapter is None or key is None:
            return
        if key in self._refused:
            raise _not_finite(adapter.path)
        handle = self._handles.pop(adapter.sha256, None)
        self._handles[adapter.sha256] = handle or self._read(adapter)
        self._free_idle({name[0] for name in (*used, key, self._active) if name})

    def use(self, key: AdapterKey | None) -> None:
        """Apply a loaded adapter from the next decode call on. Costs nothing when it is applied
        already."""
        if key is None:
            self._context.set_adapters(self._always)
        else:
            self._context.set_adapters([(self._handles[key[0]], key[1])])
        self._active = key

    def is_proven(self, key: AdapterKey | None) -> bool:
        """Whether a row of logits of this adapter has been seen to be finite. True for the base."""
        return key is None or key in self._proven

    def prove(self, adapter: AdapterRef, is_finite: bool) -> None:
        """Record whether the first row of logits of `adapter` is finite.

        Raises AdapterRefused when it is not; then `load` refuses this adapter from now on.
        """
        key = key_of(adapter)
        if key is None:
            return
        if not is_finite:
            self._refused.add(key)
            raise _not_finite(adapter.path)
        self._proven.add(key)

    def _read(self, adapter: AdapterRef) -> Any:
        """Check and load the file. The base's header is read for the first adapter only, because
        reading it takes 0.1 s with Gemma's vocabulary."""
        self._file = self._file or read_gguf(self._base)
        return _checked(Path(adapter.path), adapter, self._file, self._model, self._log)

    def _free_idle(self, used: Collection[str]) -> None:
        """Free adapters outside `used` until KEPT are left. `used` must contain the applied
        adapter, because Context.set_adapters forbids freeing it."""
        for sha256 in list(self._handles):
            if len(self._handles) <= KEPT:
                return
            if sha256 not in used:
                free_adapter(self._handles.pop(sha256))


def _check_sha256(stream: BinaryIO, adapter: AdapterRef) -> None:
    """Raises AdapterRefused when the file has another SHA-256, OSError when the disk fails."""
    found, _ = sha256_of_stream(stream)
    if found != adapter.sha256:
        raise AdapterRefused(
            f"{adapter.path} is not the adapter that was registered",
            f"its SHA-256 is {found}, expected {adapter.sha256}",
            "remove the adapter and train or import it again; check the disk",
        )


def _not_finite(path: str) -> AdapterRefused:
    return AdapterRefused(
        f"the adapter {path} computes NaN or infinity",
        "its values, or the scale it is applied with, are too large for this model",
        "train it again with a lower learning rate",
    )
