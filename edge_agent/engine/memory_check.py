"""Does a model fit into memory? Decided before a byte of its weights is loaded.

Why it exists: on a board CPU and GPU share one memory, and a model that does not fit can stop the
whole board. Three sizes are known beforehand: the tensors (from the header), the KV cache (computed
by gguf/model_file.py) and the compute buffer (a dry run of llama.cpp with no_alloc). Flows in: the
checked header, EngineSettings, and the memory that is available (machine.py). Flows out: an
Admission, or ModelRefused with the three sizes and the largest settings that would fit. Not here:
watching the memory afterwards (monitor/pressure_guard.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.errors import ModelRefused
from edge_agent.gguf.model_file import GgufFile, kv_cache_bytes
from edge_agent.machine import MemoryInfo, default_slots
from edge_agent.records import EngineSettings, MemoryPlan

DEFAULT_N_CTX = 4096
SMALLEST_N_CTX = 512
_GRAIN = 256
"""llama.cpp rounds the context of a sequence up to a multiple of this many tokens."""
_PROCESS_BYTES = 96 * 1024 * 1024
"""Interpreter, libraries and vocabulary; measured 60 to 90 MB with Gemma's 262,144 tokens."""


@dataclass(frozen=True)
class Admission:
    """A plan that fits. `notes` tell the user, for example, that the context was cut."""

    plan: MemoryPlan
    notes: tuple[str, ...]


def admit(
    gguf: GgufFile,
    settings: EngineSettings,
    memory: MemoryInfo,
    compute_bytes: Callable[[int, int], int],
) -> Admission:
    """Choose n_ctx (tokens per slot) and the number of slots so that the model fits.

    `compute_bytes(n_ctx, slots)` is the dry run: bytes of the compute buffer. Without a wanted
    n_ctx, DEFAULT_N_CTX is halved until the model fits or SMALLEST_N_CTX is reached. Raises
    ModelRefused when no candidate fits.
    """
    slots = settings.slots or default_slots(memory)
    wanted = wanted_n_ctx(gguf.n_ctx_train, settings.n_ctx)
    budget = _budget(settings, memory)
    candidates = _shrinking(wanted) if settings.n_ctx is None else [wanted]
    for n_ctx in candidates:
        plan = _plan(gguf, settings, n_ctx, slots, compute_bytes)
        if plan.total_bytes + _PROCESS_BYTES <= budget:
            return Admission(plan, _notes(settings, plan, wanted, gguf))
    limit = "--memory" if budget == settings.memory_budget_bytes else memory.source
    raise _refusal(gguf, settings, plan, (budget, limit), compute_bytes)


def still_fits(plan: MemoryPlan, settings: EngineSettings, memory: MemoryInfo) -> bool:
    """Whether an earlier plan fits into the memory that is available now. The plan holds all sizes,
    so neither the header nor a dry run is needed."""
    return plan.total_bytes + _PROCESS_BYTES <= _budget(settings, memory)


def wanted_n_ctx(n_ctx_train: int, n_ctx: int | None) -> int:
    """Tokens a slot shall have where memory allows: for the setting `n_ctx` (None, 0: the model's
    own maximum) and the context that the model was trained for."""
    if n_ctx is None:
        n_ctx = DEFAULT_N_CTX
    n_ctx = min(n_ctx or n_ctx_train, n_ctx_train)
    return -(-n_ctx // _GRAIN) * _GRAIN


def _shrinking(wanted: int) -> list[int]:
    sizes = [wanted]
    while sizes[-1] // 2 >= SMALLEST_N_CTX:
        sizes.append(-(-(sizes[-1] // 2) // _GRAIN) * _GRAIN)
    return sizes


def _budget(settings: EngineSettings, memory: MemoryInfo) -> int:
    if settings.memory_budget_bytes is None:
        return memory.available_bytes
    return min(settings.memory_budget_bytes, memory.available_bytes)


def _plan(
    gguf: GgufFile,
    settings: EngineSettings,
    n_ctx: int,
    slots: int,
    compute_bytes: Callable[[int, int], int],
) -> MemoryPlan:
    kv_bytes = kv_cache_bytes(
        gguf,
        n_ctx=n_ctx,
        slots=slots,
        type_k=settings.type_k,
        type_v=settings.type_v,
        swa_full=settings.swa_full,
        n_ubatch=settings.n_batch,
    )
    return MemoryPlan(n_ctx, slots, gguf.tensor_bytes, kv_bytes, compute_bytes(n_ctx, slots))


def _notes(
    settings: EngineSettings, plan: MemoryPlan, wanted: int, gguf: GgufFile
) -> tuple[str, ...]:
    notes = [f"needs {_mib(plan.total_bytes)} MiB: {_three(plan)}"]
    if plan.n_ctx < wanted:
        notes.append(f"context cut from {wanted} to {plan.n_ctx} tokens a slot to fit in memory")
    if settings.n_ctx and settings.n_ctx > gguf.n_ctx_train:
        notes.append(
            f"--ctx {settings.n_ctx} cut to the {gguf.n_ctx_train} the model was trained for"
        )
    return tuple(notes)


def _refusal(
    gguf: GgufFile,
    settings: EngineSettings,
    plan: MemoryPlan,
    limit: tuple[int, str],
    compute_bytes: Callable[[int, int], int],
) -> ModelRefused:
    """An error with the three sizes and, if any would fit, smaller values of --ctx and --slots.
    `limit`: the bytes that the model must fit into, and what sets them."""
    budget, source = limit
    hint = "choose a smaller or more strongly quantized model, or free memory"
    for n_ctx in _shrinking(plan.n_ctx):
        for slots in dict.fromkeys((plan.slots, 1)):
            smaller = _plan(gguf, settings, n_ctx, slots, compute_bytes)
            if smaller.total_bytes + _PROCESS_BYTES <= budget:
                hint = f"--ctx {n_ctx} --slots {slots} would fit ({_mib(smaller.total_bytes)} MiB)"
                break
        else:
            continue
        break
    return ModelRefused(
        f"{gguf.path.name} needs {_mib(plan.total_bytes + _PROCESS_BYTES)} MiB",
        f"{_three(plan)}, {_mib(_PROCESS_BYTES)} MiB process; {source} is {_mib(budget)} MiB",
        hint,
    )


def _three(plan: MemoryPlan) -> str:
    return (
        f"{_mib(plan.tensor_bytes)} MiB tensors, {_mib(plan.kv_bytes)} MiB KV cache "
        f"({plan.slots} x {plan.n_ctx} tokens), {_mib(plan.compute_bytes)} MiB compute buffer"
    )


def _mib(n_bytes: int) -> int:
    return -(-n_bytes // (1024 * 1024))
