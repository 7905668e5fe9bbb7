"""edge-train merge: a run's adapter is added to its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from converters.commands.options import ThreadOptions
from edge_agent.cli.terminal import Terminal, size_text
from edge_agent.errors import UsageError
from train_host.commands.sft import CacheDir, MovedBase, cache_directory


@dataclass(frozen=True, kw_only=True)
class MergeOptions(ThreadOptions):
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")]
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory to make.", metavar="DIR")
    ]
    dtype: Annotated[str, typer.Option(help="f32, f16 or bf16 (least exact).", metavar="DTYPE")] = (
        "f32"
    )
    model: MovedBase = None
    cache: CacheDir = None


def merge(options: MergeOptions, terminal: Terminal) -> int:
    """Add what a run learned to its base: one model directory, summed in float32.

    `edge-train export` does this by itself; the directory is for other programs.

    Examples:
      edge-train merge my-run -o my-model
      edge-train merge my-run -o my-model --dtype bf16
    """
    from converters.gguf_to_hf import DTYPES
    from converters.quantizer import How
    from train_host import merge as merging
    from train_host.model_source import with_base
    from train_host.run_directory import read_run

    if options.dtype not in DTYPES:
        raise UsageError(
            f"--dtype is {options.dtype!r}",
            "there is no such data type",
            f"give one of {', '.join(DTYPES)}",
        )
    cache = options.cache or cache_directory(terminal)
    run = with_base(read_run(options.run), options.model, cache)
    with terminal.progress() as progress:
        how = How(options.threads, progress)
        n_bytes = merging.merge(run, options.output, options.dtype, how)
    if options.json:
        terminal.document({"path": str(options.output), "weights_bytes": n_bytes})
    else:
        terminal.line(f"{options.output}: {size_text(n_bytes)} of {options.dtype} weights")
    return 0
