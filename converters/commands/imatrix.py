"""edge-convert imatrix: measure how much each column of the weights matters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from converters.commands.options import ThreadOptions
from edge_agent.cli.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class ImatrixOptions(ThreadOptions):
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="GGUF file, best f16 or q8_0.")]
    data: Annotated[
        Path,
        typer.Option(
            help='Text, or .jsonl with {"messages": [...]} or {"text": "..."} in each line.',
            metavar="FILE",
        ),
    ]
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write.", metavar="FILE")
    ] = Path("imatrix.gguf")
    chunks: Annotated[
        int | None,
        typer.Option(help="Most chunks of 512 tokens [all].", metavar="N", min=1, max=1 << 20),
    ] = None


def imatrix(options: ImatrixOptions, terminal: Terminal) -> int:
    """Compute an importance matrix from text or chats, for --imatrix.

    Chats are rendered with the model's own template. llama-quantize can read the file too.

    Examples:
      edge-convert imatrix model-f16.gguf --data wiki.txt -o imatrix.gguf
      edge-convert imatrix model-f16.gguf --data train.jsonl && edge-convert quantize \\
        model-f16.gguf -o model-q4_k_m.gguf --type q4_k_m --imatrix imatrix.gguf
    """
    from converters.imatrix import compute
    from converters.imatrix_file import write_imatrix
    from converters.output_file import check_output
    from converters.quantizer import How

    check_output(options.output, options.model, options.data)
    with terminal.progress(counts_bytes=False) as progress:
        how = How(options.threads, progress)
        found = compute(options.model, options.data, how, options.chunks)
    write_imatrix(options.output, found)
    if options.json:
        document = {"path": str(options.output), "weights": len(found.sums)}
        terminal.document({**document, "chunks": found.chunk_count})
    else:
        terminal.line(
            f"{options.output}: {len(found.sums)} weights,"
            f" {found.chunk_count} chunks of {found.chunk_size} tokens"
        )
    return 0
