"""edge-convert merge: add an adapter to its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from converters.commands.options import TypeOptions
from converters.commands.writing import write
from edge_agent.cli.terminal import Terminal, size_text
from edge_agent.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class MergeOptions(TypeOptions):
    base: Annotated[Path, typer.Option(help="Model: directory or GGUF file.")]
    adapter: Annotated[Path, typer.Option(help="Adapter: PEFT directory or GGUF file.")]
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="FILE.gguf, quantized to --type, or a directory in --dtype.",
            metavar="PATH",
        ),
    ]
    dtype: Annotated[
        str,
        typer.Option(
            help="Type of a directory's weights: f32, f16 or bf16 (least exact).", metavar="DTYPE"
        ),
    ] = "f32"


def merge(options: MergeOptions, terminal: Terminal) -> int:
    """Add a LoRA adapter to its base and write one model.

    The sum is formed in float32 and goes straight into the quantizer. A quantized base is allowed:
    the result then carries that loss, and its card says so.

    Examples:
      edge-convert merge --base ./gemma --adapter ./my-adapter -o merged.gguf --type q4_k_m
      edge-convert merge --base gemma-q8_0.gguf --adapter my-adapter.gguf -o ./merged --dtype f16
    """
    from converters.gguf_to_hf import DTYPES
    from converters.merge import is_multimodal, open_merged, write_hf
    from converters.output_file import check_output
    from converters.quantizer import How

    if options.dtype not in DTYPES:
        raise UsageError(f"--dtype is {options.dtype!r}", "", f"give one of {', '.join(DTYPES)}")
    is_file = options.output.suffix == ".gguf"
    if is_file:
        check_output(options.output, options.base, options.adapter)
    merged = open_merged(options.base, options.adapter)
    if merged.base.is_quantized:
        is_coarse = is_file and options.type.upper() not in ("Q8_0", "F16", "BF16", "F32")
        more = f"; {options.type} may round the adapter away, q8_0 keeps it" if is_coarse else ""
        lost = f"the base is {merged.base.quantization}: what quantizing it lost is not restored"
        terminal.note(f"{lost}{more}")
    if is_multimodal(merged.base.path):
        terminal.note("the base is multimodal: only its text model is written")
    if is_file:
        return write(options.output, merged.metadata(), merged.tensors(), options, terminal)
    with terminal.progress() as progress:
        how = How(options.threads, progress)
        n_bytes = write_hf(merged, options.output, options.dtype, how)
    if options.json:
        terminal.document({"path": str(options.output), "weights_bytes": n_bytes})
    else:
        terminal.line(f"{options.output}: {size_text(n_bytes)} of {options.dtype} weights")
    return 0
