"""edge-convert inspect: what a GGUF file contains, and how much memory serving it will take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converters.commands.options import JsonOptions
from edge_agent.cli.terminal import Terminal, size_text

if TYPE_CHECKING:
    from edge_agent.gguf.model_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class InspectOptions(JsonOptions):
    model: Annotated[Path, typer.Argument(metavar="FILE", help="GGUF file.")]
    ctx: Annotated[
        int,
        typer.Option(
            help="Context of the memory plan, tokens a slot.", metavar="N", min=256, max=1 << 24
        ),
    ] = 4096
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor too.")] = False


def inspect(options: InspectOptions, terminal: Terminal) -> int:
    """Show a GGUF file's metadata, its bytes by tensor type and its memory plan.

    Examples:
      edge-convert inspect model.gguf
      edge-convert inspect model.gguf --ctx 2048 --tensors
      edge-convert inspect model.gguf --json
    """
    from converters.memory_plan import plan_file
    from edge_agent.gguf.model_file import read_gguf

    gguf = read_gguf(options.model)
    plan = plan_file(options.model, 1 << 60, min(options.ctx, gguf.n_ctx_train))
    if options.json:
        terminal.document(_document(gguf, plan))
        return 0
    rows = [(key, str(value)) for key, value in sorted(gguf.summary().items())]
    terminal.table(("KEY", "VALUE"), [(key, value.replace("\n", " ")[:80]) for key, value in rows])
    terminal.line()
    terminal.table(("TYPE", "TENSORS", "SIZE", "OF FILE"), _type_rows(gguf))
    terminal.line()
    if options.tensors:
        tensors = [(t.name, t.type, str(list(t.shape)), size_text(t.n_bytes)) for t in gguf.tensors]
        terminal.table(("TENSOR", "TYPE", "SHAPE", "SIZE"), tensors)
        terminal.line()
    parts = (
        ("tensors", plan.tensor_bytes),
        (f"KV cache, {plan.slots} x {plan.n_ctx} tokens", plan.kv_bytes),
        ("compute buffer", plan.compute_bytes),
        ("all", plan.total_bytes),
    )
    terminal.table(("MEMORY", "SIZE"), [(name, size_text(size)) for name, size in parts])
    return 0


def _type_rows(gguf: GgufFile) -> list[tuple[str, str, str, str]]:
    counts, sizes = _by_type(gguf)
    return [
        (name, str(counts[name]), size_text(size), f"{100 * size / gguf.tensor_bytes:.1f} %")
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])
    ]


def _by_type(gguf: GgufFile) -> tuple[dict[str, int], dict[str, int]]:
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for tensor in gguf.tensors:
        counts[tensor.type] = counts.get(tensor.type, 0) + 1
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.n_bytes
    return counts, sizes


def _document(gguf: GgufFile, plan: Any) -> dict[str, Any]:
    counts, sizes = _by_type(gguf)
    memory = {name: getattr(plan, name) for name in ("n_ctx", "slots", "tensor_bytes")}
    memory |= {name: getattr(plan, name) for name in ("kv_bytes", "compute_bytes", "total_bytes")}
    return {
        "path": str(gguf.path),
        "file_bytes": gguf.file_bytes,
        "n_params": gguf.n_params,
        "bits_per_weight": 8 * gguf.tensor_bytes / gguf.n_params,
        "metadata": gguf.summary(),
        "types": {name: {"tensors": counts[name], "bytes": sizes[name]} for name in counts},
        "tensors": [
            {"name": t.name, "type": t.type, "shape": list(t.shape), "bytes": t.n_bytes}
            for t in gguf.tensors
        ],
        "memory": memory,
    }
