"""edge-train sft: rows of text become an adapter or a model."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from converters.commands.options import JsonOptions
from edge_agent.cli.terminal import Terminal, duration_text, size_text
from train_host.settings import Wishes

CACHE = "edge-agent/train"
MOST, MOST_SEED = 1_000_000_000, 2**32 - 1
"""Largest numbers of steps, and the largest seed that NumPy takes."""
CacheDir = Annotated[
    Path | None, typer.Option(help=f"Converted models [~/.cache/{CACHE}].", metavar="DIR")
]
MovedBase = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The run's base, where it is now [where it was]; its hash is compared.",
        metavar="MODEL",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SftOptions(JsonOptions):
    model: Annotated[
        str, typer.Option(help="Directory, hf:OWNER/NAME, or a GGUF file.", metavar="MODEL")
    ]
    data: Annotated[
        Path,
        typer.Option(
            help="JSON lines: instruction (input) output, prompt completion, or messages.",
            metavar="FILE",
        ),
    ]
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Run directory to make.", metavar="RUN")
    ]
    method: Annotated[
        str,
        typer.Option(
            help="lora; qlora (base in NF4, on CUDA or a CPU); full; or qat"
            " (every weight through the quantizer of --qat-type).",
            metavar="METHOD",
        ),
    ] = Wishes.method
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks that learn: all, top:K, or numbers: 10,11.", metavar="WHICH"),
    ] = None
    r: Annotated[
        int | None,
        typer.Option(
            "--r",
            "-r",
            help="Rank of LoRA [16] (not -r under torchrun).",
            metavar="N",
            min=1,
            max=1 << 16,
        ),
    ] = None
    lora_alpha: Annotated[
        float | None, typer.Option(help="Scale is lora_alpha / r [32].", min=0.001, max=65536)
    ] = None
    lora_dropout: Annotated[float, typer.Option(min=0.0, max=0.9)] = Wishes.lora_dropout
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="Go on from this adapter: a PEFT directory, or a GGUF file (of the device, too)."
            " It decides r, lora_alpha and layers.",
            metavar="PATH",
        ),
    ] = None
    order: Annotated[
        Path | None,
        typer.Option(
            help="The order of the rows: each line has the number of a line of --data, from 1.",
            metavar="FILE",
        ),
    ] = None
    qat_type: Annotated[
        str, typer.Option(help="The type to which the run will be exported.", metavar="TYPE")
    ] = Wishes.qat_type
    learning_rate: Annotated[
        float | None,
        typer.Option("--lr", help="Peak rate [2e-4; 2e-5 for full and qat].", min=1e-9, max=1e30),
    ] = None
    epochs: Annotated[float, typer.Option(help="Passes over the data, at most.", max=1e6)] = (
        Wishes.epochs
    )
    max_steps: Annotated[
        int | None,
        typer.Option(help="Optimizer steps instead of --epochs.", metavar="N", min=1, max=MOST),
    ] = None
    batch_size: Annotated[
        int,
        typer.Option(help="Rows of a step, over all processes.", metavar="N", min=1, max=1 << 20),
    ] = Wishes.batch_size
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Rows at a time in one process [up to 4].", metavar="N", min=1, max=1 << 20
        ),
    ] = None
    max_length: Annotated[
        int,
        typer.Option(
            help="Tokens; longer rows are left out and counted.", metavar="N", min=8, max=1 << 20
        ),
    ] = Wishes.max_length
    packing: Annotated[
        bool,
        typer.Option(
            "--packing/--no-packing",
            help="Fill rows of --max-length with several samples, which do not see each other.",
        ),
    ] = Wishes.packing
    dtype: Annotated[
        str, typer.Option(help="auto (bf16 on a GPU that has it), bf16 or fp32.", metavar="DTYPE")
    ] = Wishes.dtype
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Recompute activations: less memory, more time [from 1 B parameters on].",
        ),
    ] = None
    validation_share: Annotated[
        float, typer.Option(help="Part of the rows kept back to validate on; 0: none.")
    ] = Wishes.validation_share
    patience: Annotated[
        int,
        typer.Option(
            help="Stop after so many validations without fewer bits per byte; 0: never.",
            min=0,
            max=MOST,
        ),
    ] = Wishes.patience
    save_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints, each validated [a tenth of the run].",
            metavar="N",
            min=1,
            max=MOST,
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = Wishes.seed
    threads: Annotated[
        int | None, typer.Option(help="Threads [physical cores].", metavar="N", min=1, max=1024)
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest complete checkpoint, if any.")
    ] = False
    cache: CacheDir = None


def sft(options: SftOptions, terminal: Terminal) -> int:
    """Fine-tune a model on answers, with the device's own tokens and templates.

    Every assistant turn is learned, its end included, and nothing else. The run directory holds all
    settings, a log, sealed checkpoints and the result: adapter/, or model/ for full and qat. With
    several processes: torchrun or accelerate launch, -m train_host.cli sft ...

    Examples:
      edge-train sft --model ./gemma-3-1b-it --data pairs.jsonl -o my-run
      edge-train sft --model gemma.gguf --data pairs.jsonl -o my-run --layers top:4 --max-steps 200
      edge-train sft --model ./qwen --data pairs.jsonl -o my-run --method qat --qat-type q4_0
      edge-train sft --model gemma.gguf --data more.jsonl -o more --adapter my-run/adapter
      torchrun --nproc-per-node 8 -m train_host.cli sft --model ./qwen --data d.jsonl -o my-run
    """
    from train_host.resumable_run import Console
    from train_host.sft import SftJob, train

    wishes = Wishes(**{field.name: getattr(options, field.name) for field in fields(Wishes)})
    cache = options.cache or cache_directory(terminal)
    job = SftJob(
        model=options.model,
        data=options.data,
        output=options.output,
        cache=cache,
        wishes=wishes,
        environ=terminal.environ,
        adapter=options.adapter,
        order=options.order,
        resume=options.resume,
    )
    with terminal.progress(counts_bytes=False) as progress:
        document = train(job, Console(progress, terminal.note))
    if not document:
        return 0  # only the first of several processes gets a document and reports
    if options.json:
        terminal.document(document)
    else:
        _report(document, terminal)
    return 0


def cache_directory(terminal: Terminal) -> Path:
    """The directory of converted models below XDG_CACHE_HOME, else ~/.cache."""
    root = terminal.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / CACHE


def _report(document: dict[str, Any], terminal: Terminal) -> None:
    terminal.line(
        f"{document['result']}: {document['steps']} steps in {duration_text(document['train_s'])},"
        f" loss {document['first_loss']:.4f} to {document['final_loss']:.4f}"
    )
    if document["bits_per_byte"] is not None:
        before = document["bits_per_byte_before"]
        terminal.line(
            f"validation {before:.4f} to {document['bits_per_byte']:.4f} bits per byte,"
            f" best at step {document['best_step']}, ended by {document['stopped']}"
        )
    report_cost(document, terminal)


def report_cost(document: dict[str, Any], terminal: Terminal) -> None:
    """Print speed, memory and energy of a metrics.json."""
    memory = size_text(document["peak_memory_bytes"])
    terminal.line(f"{document['tok_s']:.0f} real tokens/s, peak memory {memory}")
    joules, reason = document["energy"]["joules"], document["energy"]["reason"]
    terminal.line(f"energy: {reason if joules is None else f'{joules:.0f} J'}")
