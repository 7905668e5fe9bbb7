"""Which LoRA adapters are in memory, and which one the next decode call applies.

Flows in: records.AdapterRef. Flows out: calls of Context.set_adapters, only when something changes.
An adapter is loaded when the first request that names it gets a slot: its file must have the
SHA-256 of the reference, a header that fits the base and finite values everywhere. What no file
shows, values so large that the answer is NaN, is seen in the first row of logits it computes
(`prove`). A file that fails is the request's failure, never the worker's. Not here: whose turn it
is (adapter_turns.py), names and gates (adapt/).
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
"""SHA-256 and scale: what a KV cache depends on. None stands for the base."""
KEPT = 4
"""Adapters that stay in memory while nobody uses them."""
_HINT = "give a GGUF LoRA adapter made for this very model"


def key_of(adapter: AdapterRef | None) -> AdapterKey | None:
    """None for the base, which scale 0 is too. Raises RequestError for a scale that is none."""
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
    """Load all of them and apply them at scale 1; their handles. Raises AdapterRefused."""
    if not paths:
        return []
    file = read_gguf(base)
    handles = [_checked(Path(path), None, file, model, log) for path in paths]
    context.set_adapters([(handle, 1.0) for handle in handles])
    return handles


def _checked(
    path: Path, adapter: AdapterRef | None, base: GgufFile, model: Model, log: LogTail
) -> Any:
    """A handle of the very file that was checked, whatever its name means by now.

    Raises AdapterRefused.
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
        """`always`: handles applied at scale 1 where a request names no adapter."""
        self._model = model
        self._context = context
        self._base = base
        self._log = log
        self._always = [(handle, 1.0) for handle in always]
        self._file: GgufFile | None = None
        self._handles: dict[str, Any] = {}
        """By SHA-256, the least recently used first."""
        self._active: AdapterKey | None = None
        self._proven: set[AdapterKey] = set()
        self._refused: set[AdapterKey] = set()

    @property
    def loaded(self) -> list[str]:
        """SHA-256 of each, the least recently used first."""
        return list(self._handles)

    def load(self, adapter: AdapterRef | None, used: Collection[AdapterKey | None]) -> None:
        """Have it in memory, and at most KEPT others that none of `used` names.

        Raises AdapterRefused, RequestError.
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
        """Apply this one, which is loaded, to the next decode call. Free when it is already."""
        if key is None:
            self._context.set_adapters(self._always)
        else:
            self._context.set_adapters([(self._handles[key[0]], key[1])])
        self._active = key

    def is_proven(self, key: AdapterKey | None) -> bool:
        """Whether its logits have been seen to be numbers, or it is the base."""
        return key is None or key in self._proven

    def prove(self, adapter: AdapterRef, is_finite: bool) -> None:
        """Its first row of logits has been looked at. Raises AdapterRefused, from now on always."""
        key = key_of(adapter)
        if key is None:
            return
        if not is_finite:
            self._refused.add(key)
            raise _not_finite(adapter.path)
        self._proven.add(key)

    def _read(self, adapter: AdapterRef) -> Any:
        """The base's header is read at the first one: 0.1 s with Gemma's vocabulary."""
        self._file = self._file or read_gguf(self._base)
        return _checked(Path(adapter.path), adapter, self._file, self._model, self._log)

    def _free_idle(self, used: Collection[str]) -> None:
        """Also what the context applies is used: see Context.set_adapters."""
        for sha256 in list(self._handles):
            if len(self._handles) <= KEPT:
                return
            if sha256 not in used:
                free_adapter(self._handles.pop(sha256))


def _check_sha256(stream: BinaryIO, adapter: AdapterRef) -> None:
    """Raises AdapterRefused, OSError."""
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
