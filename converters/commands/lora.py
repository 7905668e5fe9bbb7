"""edge-convert lora: a PEFT adapter becomes a GGUF adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from converters.commands.options import JsonOptions
from edge_agent.cli.terminal import Terminal, size_text


@dataclass(frozen=True, kw_only=True)
class LoraOptions(JsonOptions):
    directory: Annotated[
        Path, typer.Argument(metavar="PEFT_DIR", help="Directory with adapter_config.json.")
    ]
    base: Annotated[Path, typer.Option(help="The model it was trained on: directory or GGUF file.")]
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.", metavar="FILE")]


def lora(options: LoraOptions, terminal: Terminal) -> int:
    """Convert a PEFT LoRA adapter to a GGUF adapter.

    The adapter is loaded beside its unchanged base, by `edge-agent adapters import` or llama-server
    --lora. rsLoRA, and modules with their own rank or alpha, are supported. DoRA, modules_to_save
    and adapters of a tied head are refused.

    Examples:
      edge-convert lora ./my-adapter --base gemma-q8_0.gguf -o my-adapter.gguf
    """
    from converters.lora_to_gguf import convert
    from converters.output_file import check_output

    check_output(options.output, options.base)
    n_weights = convert(options.directory, options.base, options.output)
    size = options.output.stat().st_size
    if options.json:
        document = {"path": str(options.output), "weights": n_weights, "file_bytes": size}
        terminal.document(document)
    else:
        terminal.line(f"{options.output}: {n_weights} weights adapted, {size_text(size)}")
    return 0
