"""edge-convert hf: a Hugging Face directory becomes a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.commands.options import TypeOptions
from converters.commands.writing import memory_bytes, write
from edge_agent.cli.terminal import Terminal
from edge_agent.errors import ConversionError

if TYPE_CHECKING:
    from converters.gguf_container import Metadata
    from converters.gguf_output import SourceTensor


@dataclass(frozen=True, kw_only=True)
class HfOptions(TypeOptions):
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory with config.json and safetensors.")
    ]
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write [DIR-TYPE.gguf].", metavar="FILE"),
    ] = None
    ignore_field: Annotated[
        list[str] | None,
        typer.Option(
            help="Convert as if config.json did not have this member; repeatable. The file names"
            " it.",
            metavar="NAME",
        ),
    ] = None
    compare: Annotated[
        bool,
        typer.Option(
            help="Compare 64 tokens of logits with transformers, where torch is installed and two"
            " float32 copies fit --memory [what is available]."
        ),
    ] = True


def hf(options: HfOptions, terminal: Terminal) -> int:
    """Convert a Hugging Face model directory to one quantized GGUF file.

    Gemma 3 (the text part of multimodal ones too), Qwen 2, 2.5 and 3, Llama (SmolLM2 too). Runs no
    code from the checkpoint and needs neither torch nor a network. A member of config.json that
    changes the model and that llama.cpp does not compute is refused by name.

    Examples:
      edge-convert hf ./gemma-3-1b-it -o gemma.gguf --type q4_k_m
      edge-convert hf ./qwen --type auto --memory 4G --ctx 2048
      edge-convert hf ./qwen --type q4_0 --token-embedding-type q4_0 --tensor-type ffn_down=q6_k
    """
    from converters.hf_to_gguf import load
    from converters.output_file import check_output

    name = options.directory.resolve().name
    path = options.output or Path(f"{name}-{options.type.lower()}.gguf")
    check_output(path)
    metadata, tensors = load(options.directory, options.ignore_field or ())
    comparison = _compare(metadata, tensors, options, terminal) if options.compare else ""
    code = write(path, metadata, tensors, options, terminal)
    if comparison:
        terminal.note(comparison)
    return code


def _compare(
    metadata: Metadata, tensors: list[SourceTensor], options: HfOptions, terminal: Terminal
) -> str:
    """Compare with transformers before anything is written; returns what came of it, one line.

    Raises ConversionError when the logits differ; after --ignore-field they may.
    """
    from converters.quantizer import How
    from converters.source_check import N_TOKENS, check_source

    memory = None if options.memory is None else memory_bytes(options.memory)
    try:
        with terminal.progress() as progress:
            how = How(options.threads, progress)
            check = check_source(options.directory, metadata, tensors, memory, how)
    except ConversionError as error:
        if not options.ignore_field:
            raise
        return f"warning: {error.what}: {error.why}"
    if check.kl_mean is None:
        return f"not compared with transformers: {check.reason}"
    return f"compared with transformers: KL {check.kl_mean:.1e} over {N_TOKENS} tokens"
