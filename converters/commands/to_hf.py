"""edge-convert to-hf: a GGUF file becomes a Hugging Face directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from converters.commands.options import ThreadOptions
from edge_agent.cli.terminal import Terminal, size_text
from edge_agent.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ToHfOptions(ThreadOptions):
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="GGUF file.")]
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory to make.", metavar="DIR")
    ]
    dtype: Annotated[
        str, typer.Option(help="f32 (exact), f16 or bf16 (both round).", metavar="DTYPE")
    ] = "f32"


def to_hf(options: ToHfOptions, terminal: Terminal) -> int:
    """Write a GGUF model as a directory that transformers loads.

    The weights are the file's dequantized values; config.json says which file they came from.

    Examples:
      edge-convert to-hf gemma-3-270m-q4_k_m.gguf -o gemma-hf
    """
    from converters.gguf_to_hf import DTYPES, convert
    from converters.quantizer import How

    if options.dtype not in DTYPES:
        raise UsageError(f"--dtype is {options.dtype!r}", "", f"give one of {', '.join(DTYPES)}")
    with terminal.progress() as progress:
        how = How(options.threads, progress)
        n_bytes = convert(options.model, options.output, options.dtype, how)
    if options.json:
        terminal.document({"path": str(options.output), "weights_bytes": n_bytes})
    else:
        terminal.line(f"{options.output}: {size_text(n_bytes)} of {options.dtype} weights")
    return 0
