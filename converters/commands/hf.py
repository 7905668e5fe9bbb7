"""edge-convert hf: a Hugging Face directory becomes a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from converters.commands.options import TypeOptions
from converters.commands.writing import write
from edge_agent.cli.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class HfOptions(TypeOptions):
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory with config.json and safetensors.")
    ]
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write [DIR-TYPE.gguf].", metavar="FILE"),
    ] = None


def hf(options: HfOptions, terminal: Terminal) -> int:
    """Convert a Hugging Face model directory to one quantized GGUF file.

    Gemma 3 (the text part of multimodal ones too), Qwen 2, 2.5 and 3, Llama (SmolLM2 too). Runs no
    code from the checkpoint and needs neither torch nor a network.

    Examples:
      edge-convert hf ./gemma-3-1b-it -o gemma.gguf --type q4_k_m
      edge-convert hf ./qwen --type auto --memory 4G --ctx 2048
      edge-convert hf ./qwen --type q4_0 --token-embedding-type q4_0 --tensor-type ffn_down=q6_k
    """
    from converters.hf_to_gguf import load

    name = options.directory.resolve().name
    path = options.output or Path(f"{name}-{options.type.lower()}.gguf")
    metadata, tensors = load(options.directory)
    return write(path, metadata, tensors, options, terminal)
