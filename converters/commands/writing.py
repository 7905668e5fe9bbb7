"""The last step of hf, quantize and merge: choose the types, write the file, report.

Flows in: metadata, tensors and a command's options. Flows out: the file, and the summary on the
terminal. Not here: where the tensors come from.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from converters.commands.options import TypeOptions, type_request
from edge_agent.cli.terminal import Terminal, size_text
from edge_agent.errors import UsageError

if TYPE_CHECKING:
    from converters.gguf_container import Metadata
    from converters.gguf_output import SourceTensor, Written


def write(
    path: Path,
    metadata: Metadata,
    tensors: list[SourceTensor],
    options: TypeOptions,
    terminal: Terminal,
    *,
    allow_requantize: bool = True,
) -> int:
    """Write the model, report, and return exit code 0. Raises UsageError, ConversionError."""
    from converters.gguf_output import write_model
    from converters.quantizer import How

    request, imatrix = type_request(options)
    if imatrix is not None and options.imatrix is not None:
        metadata |= imatrix.keys(options.imatrix)
        matrices = {t.name for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2}
        missing = matrices - set(imatrix.sums)
        if missing and len(missing) < len(matrices):
            terminal.note(
                f"the importance matrix lacks {len(missing)} of {len(matrices)} matrices,"
                f" such as {min(missing)}"
            )
    if request.file_type == "AUTO":
        from converters.memory_plan import choose_type

        memory = memory_bytes(options.memory)
        request, plan = choose_type(metadata, tensors, request, memory, options.ctx)
        terminal.note(
            f"auto: {request.file_type}, which takes {size_text(plan.total_bytes)}"
            f" with {plan.slots} x {plan.n_ctx} tokens"
        )
    with terminal.progress() as progress:
        how = How(options.threads, progress, allow_requantize)
        written = write_model(path, metadata, tensors, request, how)
    _report(written, options, terminal)
    return 0


def memory_bytes(text: str | None) -> int:
    """The bytes of --memory. Raises UsageError."""
    from edge_agent.units import parse_size

    hint = "say how much there is: 4G"
    if text is None:
        raise UsageError("--type auto needs --memory", "", hint)
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"--memory is {text!r}", str(error), hint) from error


def _report(written: Written, options: TypeOptions, terminal: Terminal) -> None:
    if options.json:
        terminal.document(asdict(written))
        return
    counts = sorted(written.types.items(), key=lambda item: (-item[1], item[0]))
    types = ", ".join(f"{count} {name}" for name, count in counts)
    terminal.line(
        f"{written.path}: {written.file_type}, {size_text(written.file_bytes)},"
        f" {written.bits_per_weight:.2f} bits per weight ({types})"
    )
    terminal.note(f"peak memory {size_text(written.peak_rss_bytes)}, mapped files included")
