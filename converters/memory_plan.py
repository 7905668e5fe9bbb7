"""How much memory a model will take on a board: for `--type auto`, before writing, and `inspect`.

Flows in: metadata and tensors that exist only as a plan, or a file. Flows out: a MemoryPlan from
the daemon's own memory check, so that this promise is what `edge-agent serve` will say. Not here:
the check itself (edge_agent/engine/memory_check.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converters.gguf_container import Metadata
from converters.gguf_output import SourceTensor, planned_types, write_hollow
from edge_agent.engine.loading import DryRun
from edge_agent.engine.memory_check import admit
from edge_agent.errors import ConversionError, ModelRefused
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama.binding import start_backend
from edge_agent.llama.type_plan import TypeRequest
from edge_agent.machine import MemoryInfo
from edge_agent.records import EngineSettings, MemoryPlan

AUTO = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
"""Types that auto tries, largest first. F32 is left out, because F16 has half its size and a KL
divergence below 1e-4."""


def choose_type(
    metadata: Metadata,
    tensors: Sequence[SourceTensor],
    request: TypeRequest,
    memory_bytes: int,
    n_ctx: int,
) -> tuple[TypeRequest, MemoryPlan]:
    """The first type of AUTO whose weights, KV cache and buffers fit. Raises ConversionError."""
    reason = ""
    for name in AUTO:
        wanted = replace(request, file_type=name)
        try:
            return wanted, _plan(metadata, tensors, wanted, memory_bytes, n_ctx)
        except ModelRefused as refusal:
            reason = str(refusal)
    raise ConversionError(
        f"no type makes this model fit in {memory_bytes / 1e9:.2f} GB",
        f"with {AUTO[-1]}: {reason}",
        "give a shorter --ctx, or take a smaller model",
    )


def plan_file(path: Path, memory_bytes: int, n_ctx: int) -> MemoryPlan:
    """The memory plan of `edge-agent serve` for this file. Raises ModelRefused when it does not
    fit."""
    settings = EngineSettings(n_ctx=n_ctx, memory_budget_bytes=memory_bytes)
    with DryRun(path, settings, start_backend()) as dry_run:
        memory = MemoryInfo(memory_bytes, memory_bytes)
        return admit(read_gguf(path), settings, memory, dry_run.compute_bytes).plan


def _plan(
    metadata: Metadata,
    tensors: Sequence[SourceTensor],
    request: TypeRequest,
    memory_bytes: int,
    n_ctx: int,
) -> MemoryPlan:
    types = planned_types(metadata, tensors, request)
    by_name = {tensor.name: tensor for tensor in tensors}
    with tempfile.TemporaryDirectory(prefix="edge-convert-") as scratch:
        path = Path(scratch) / "plan.gguf"
        write_hollow(path, metadata, [by_name[name].spec(kind) for name, kind in types.items()])
        return plan_file(path, memory_bytes, n_ctx)
