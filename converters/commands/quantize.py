"""edge-convert quantize: a GGUF file becomes a smaller one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from converters.commands.options import TypeOptions
from converters.commands.writing import write
from edge_agent.cli.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(TypeOptions):
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="GGUF file.")]
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.", metavar="FILE")]
    allow_requantize: Annotated[
        bool,
        typer.Option(
            "--allow-requantize",
            help="Quantize tensors that are quantized already: the losses add up.",
        ),
    ] = False


def quantize(options: QuantizeOptions, terminal: Terminal) -> int:
    """Write a GGUF file anew with other tensor types.

    The types are those llama-quantize would choose; tensors that already have theirs are copied.

    Examples:
      edge-convert quantize model-f16.gguf -o model-q4_k_m.gguf --type q4_k_m --imatrix imatrix.gguf
      edge-convert quantize model-q8_0.gguf -o small.gguf --type q4_0 --allow-requantize
    """
    from converters.output_file import check_output
    from converters.quantize import load

    check_output(options.output, options.model)
    metadata, tensors = load(options.model)
    return write(
        options.output,
        metadata,
        tensors,
        options,
        terminal,
        allow_requantize=options.allow_requantize,
    )
