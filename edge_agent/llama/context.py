"""One llama.cpp context: the KV cache of all slots, the batch, and decoding.

Why it exists: one context serves all slots, so their tokens share a decode call. Flows in: a Model,
EngineSettings, the final n_ctx and number of slots, and rows of (token, position, slot). Flows out:
logits, which the samplers read by row. One thread owns a context; other threads may only call
`Abort.request`. Not here: which tokens are decoded (engine/scheduler.py), and how the next token is
chosen (sampling.py).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

from edge_agent.errors import ModelRefused
from edge_agent.llama.binding import LogTail, lib
from edge_agent.llama.model import Model
from edge_agent.records import EngineSettings

_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
_FLASH = {"auto": -1, "off": 0, "on": 1}
_BUFFER_LINE = re.compile(r"(compute|KV|RS) buffer size\s*=\s*([0-9.]+) MiB")
_ABORTED = 2
READING_ROWS = 16
"""Rows of one decode call that may have logits, even with fewer slots: scoring a chat needs logits
for every token. With SmolLM2 and Gemma 3 270M, 16 rows take no more compute buffer than 4."""


class Abort:
    """Stops a running decode call from another thread, without Python in ggml's loop.

    ggml calls its abort callback after every graph node, some 500 times per token, and a Python
    callback would take the GIL each time. So the callback is libc's strlen on a buffer of two
    bytes: the empty string gives 0, which means "go on"; one character gives 1, which means "stop".
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        self._flag = ctypes.create_string_buffer(2)
        self._callback = ctypes.cast(libc.strlen, lib.ggml_abort_callback)

    def attach(self, context_handle: Any) -> None:
        """Let this object abort the decode calls of a llama_context."""
        lib.llama_set_abort_callback(
            context_handle, self._callback, ctypes.cast(self._flag, ctypes.c_void_p)
        )

    def request(self) -> None:
        """Abort the decode call that runs now, or the next one until `clear`."""
        self._flag[0] = b"x"

    def clear(self) -> None:
        """Let the next decode call run."""
        self._flag[0] = b"\0"


class DecodeFailed(RuntimeError):
    """llama_decode returned a code after which the context cannot be trusted."""


def _params(settings: EngineSettings, n_ctx: int, slots: int, n_outputs: int) -> Any:
    """llama_context_params for `slots` sequences of `n_ctx` tokens each."""
    params = lib.llama_context_default_params()
    params.n_ctx = n_ctx * slots
    params.n_batch = params.n_ubatch = max(settings.n_batch, slots)
    params.n_seq_max = slots
    params.n_outputs_max = n_outputs
    params.kv_unified = False
    params.swa_full = settings.swa_full
    params.n_threads = params.n_threads_batch = settings.n_threads or 1
    params.flash_attn_type = _FLASH[settings.flash_attn]
    params.type_k, params.type_v = _KV_TYPES[settings.type_k], _KV_TYPES[settings.type_v]
    params.no_perf = True
    return params


class Context:
    """KV cache and compute buffers for `slots` independent sequences of n_ctx tokens each."""

    def __init__(  # noqa: PLR0913 - what llama.cpp wants to know, all by name
        self,
        model: Model,
        settings: EngineSettings,
        log: LogTail,
        *,
        n_ctx: int,
        slots: int,
        outputs: int | None = None,
        observer: Any = None,
    ) -> None:
        """Allocate the KV cache and the compute buffers.

        `n_ctx` is in tokens per slot. `outputs` limits the rows with logits in one decode call;
        None means READING_ROWS, or one row per slot when there are more slots. `observer` is a
        ggml_backend_sched_eval_callback that must live as long as the context.

        Raises ModelRefused when llama.cpp cannot allocate the buffers.
        """
        n_batch = max(settings.n_batch, slots)
        self.n_outputs = outputs or max(slots, min(READING_ROWS, n_batch))
        params = _params(settings, n_ctx, slots, self.n_outputs)
        if observer is not None:
            params.cb_eval = observer
        log.lines.clear()
        handle = lib.llama_init_from_model(model.handle, params)
        if not handle:
            raise ModelRefused(
                f"no context of {slots} x {n_ctx} tokens could be made",
                log.errors() or "llama.cpp gave no reason",
                "ask for less with --ctx or --slots",
            )
        self.handle = handle
        self.n_batch = n_batch
        self.n_ctx = int(lib.llama_n_ctx_seq(handle))
        self.buffer_bytes = _logged_buffers(log)
        self.abort = Abort()
        self.abort.attach(handle)
        self._memory = lib.llama_get_memory(handle)
        self._batch = _Batch(n_batch)
        self._adapters: list[tuple[int, float]] = []

    def close(self) -> None:
        """Free all buffers. Safe to call twice."""
        if self.handle:
            lib.llama_free(self.handle)
            self.handle = None

    # ---- one decode call ----

    def clear_batch(self) -> None:
        """Start an empty batch."""
        self._batch.raw.n_tokens = 0

    def add(self, token: int, position: int, slot: int, *, output: bool) -> int:
        """Append one token to the batch. Returns its row, by which `logits` finds its logits."""
        batch = self._batch
        row = int(batch.raw.n_tokens)
        batch.tokens[row] = token
        batch.positions[row] = position
        batch.slots[row] = slot
        batch.outputs[row] = output
        batch.raw.n_tokens = row + 1
        return row

    def decode(self) -> bool:
        """Run the batch. Returns False when the call was aborted: the caller must then remove the
        batch's tokens from the KV cache with `truncate`.

        Raises DecodeFailed for every other outcome (llama.h: 1 = no KV slot, negative = fatal).
        """
        code = lib.llama_decode(self.handle, self._batch.raw)
        if code == 0:
            return True
        if code == _ABORTED:
            return False
        raise DecodeFailed(f"llama_decode returned {code} for {self._batch.raw.n_tokens} tokens")

    def synchronize(self) -> None:
        """Wait until the device has finished the last `decode`. Returns at once on a CPU."""
        lib.llama_synchronize(self.handle)

    def logits(self, row: int) -> Any:
        """Pointer to n_vocab floats of a row that was added with output=True."""
        return lib.llama_get_logits_ith(self.handle, row)

    def set_adapters(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """Apply exactly these adapters, (handle, scale) each, from the next decode call on.

        A call with the adapters that are applied already does nothing. Otherwise llama.cpp plans
        its graphs again in the next decode call, which takes 2 to 3 ms with 30 layers. A handle
        must not be freed while it is applied: llama.cpp compares addresses, and a new adapter may
        get the address of a freed one. Raises ModelRefused when llama.cpp refuses the adapters.
        """
        wanted = [(_address(handle), scale) for handle, scale in adapters]
        if wanted == self._adapters:
            return
        handles = [ctypes.c_void_p(address) for address, _ in wanted]
        kind = lib.llama_adapter_lora_p_ctypes
        array = (kind * len(wanted))(*[ctypes.cast(handle, kind) for handle in handles])
        scales = (ctypes.c_float * len(wanted))(*[scale for _, scale in wanted])
        code = lib.llama_set_adapters_lora(self.handle, array, len(wanted), scales)
        if code != 0:
            raise ModelRefused(
                f"{len(wanted)} adapters could not be made active",
                f"llama.cpp returned {code}",
                "try them one by one",
            )
        self._adapters = wanted

    # ---- the KV cache ----

    def truncate(self, slot: int, length: int) -> bool:
        """Remove the tokens of a slot from position `length` on. Returns False when this cache
        cannot remove them."""
        return bool(lib.llama_memory_seq_rm(self._memory, slot, length, -1))

    def clear(self) -> None:
        """Remove all tokens of all slots and overwrite the cache with zeros. Without flash
        attention a masked cell is still multiplied by 0, and 0 times a left-over NaN is NaN."""
        lib.llama_memory_clear(self._memory, True)

    def first_position(self, slot: int) -> int:
        """The smallest position that the cache still holds of a slot; -1 for an empty slot. It is
        above 0 where a sliding window has dropped the first tokens."""
        return int(lib.llama_memory_seq_pos_min(self._memory, slot))


class _Batch:
    """A llama_batch and the arrays that it points to."""

    def __init__(self, size: int) -> None:
        self.tokens = (ctypes.c_int32 * size)()
        self.positions = (ctypes.c_int32 * size)()
        self.slots = (ctypes.c_int32 * size)()
        self.outputs = (ctypes.c_int8 * size)()
        self._counts = (ctypes.c_int32 * size)(*([1] * size))
        pointer = ctypes.POINTER(ctypes.c_int32)
        item = ctypes.sizeof(ctypes.c_int32)
        base = ctypes.addressof(self.slots)
        self._slot_pointers = (pointer * size)(
            *[ctypes.cast(base + index * item, pointer) for index in range(size)]
        )
        self.raw = lib.llama_batch()
        self.raw.n_tokens = 0
        self.raw.token = ctypes.cast(self.tokens, pointer)
        self.raw.pos = ctypes.cast(self.positions, pointer)
        self.raw.n_seq_id = ctypes.cast(self._counts, pointer)
        self.raw.seq_id = ctypes.cast(self._slot_pointers, ctypes.POINTER(pointer))
        self.raw.logits = ctypes.cast(self.outputs, ctypes.POINTER(ctypes.c_int8))


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _logged_buffers(log: LogTail) -> dict[str, int]:
    """Bytes of the compute, KV and RS (recurrent state) buffers. llama.cpp reports them only in its
    log."""
    found = {"compute": 0, "KV": 0, "RS": 0}
    for line in log.lines:
        match = _BUFFER_LINE.search(line)
        if match:
            found[match.group(1)] += int(float(match.group(2)) * 1024 * 1024)
    return found
