"""edge-train distill-logits: a small model learns the token distributions of a large one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.commands.options import JsonOptions
from edge_agent.cli.terminal import Terminal, duration_text
from train_host.commands.sft import MOST, MOST_SEED, CacheDir, cache_directory, report_cost

if TYPE_CHECKING:
    from train_host.distill import DistillJob


@dataclass(frozen=True, kw_only=True)
class DistillOptions(JsonOptions):
    teacher: Annotated[
        str, typer.Option(help="Directory, hf:OWNER/NAME, or a GGUF file.", metavar="MODEL")
    ]
    data: Annotated[Path, typer.Option(help="Rows, as for sft.", metavar="FILE")]
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Run directory to make.", metavar="RUN")
    ]
    model: Annotated[
        str | None, typer.Option(help="The student, of the teacher's family.", metavar="MODEL")
    ] = None
    keep_layers: Annotated[
        str | None,
        typer.Option(help="Instead of --model: these blocks of the teacher.", metavar="0-5,12-17"),
    ] = None
    on_policy: Annotated[
        bool,
        typer.Option(
            "--on-policy/--off-policy",
            help="Learn on answers that the student writes, or on those of the rows.",
        ),
    ] = True
    beta: Annotated[
        float, typer.Option(help="0: KL(teacher||student), 1: the reverse.", min=0.0, max=1.0)
    ] = 0.0
    max_steps: Annotated[int, typer.Option(metavar="N", min=1, max=MOST)] = 200
    batch_size: Annotated[
        int, typer.Option(help="Answers of a step.", metavar="N", min=1, max=1 << 20)
    ] = 4
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak rate.", min=1e-9, max=10)] = (
        1e-4
    )
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer of the student.", metavar="N", min=1, max=1 << 20)
    ] = 64
    max_length: Annotated[
        int,
        typer.Option(
            help="Tokens; longer rows are left out and counted.", metavar="N", min=8, max=1 << 20
        ),
    ] = 512
    validation_share: Annotated[
        float, typer.Option(help="Part of the rows kept back to measure on.", min=0.0, max=0.5)
    ] = 0.1
    save_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints [a tenth of the run].", metavar="N", min=1, max=MOST
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 1
    threads: Annotated[
        int | None, typer.Option(help="Threads [physical cores].", metavar="N", min=1, max=1024)
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest complete checkpoint, if any.")
    ] = False
    cache: CacheDir = None


def job_of(options: DistillOptions, cache: Path) -> DistillJob:
    from train_host.distill import DistillJob

    given = {field.name: getattr(options, field.name) for field in fields(DistillJob)}
    return DistillJob(**{**given, "cache": cache})


def distill_logits(options: DistillOptions, terminal: Terminal) -> int:
    """Teach a small model a large model's distribution over the next token at every position.

    Both must have the same tokenizer. Every weight of the student learns, in float32. A wider head
    of the teacher is cut to the student's width, which removes only padding. The result is a run:
    `edge-train export RUN`.

    Examples:
      edge-train distill-logits --teacher ./qwen-7b --model ./qwen-0.5b --data d.jsonl -o small
      edge-train distill-logits --teacher ./gemma --keep-layers 0-5,12-17 --data d.jsonl -o cut
    """
    from train_host.distill import distill
    from train_host.resumable_run import Console

    job = job_of(options, options.cache or cache_directory(terminal))
    with terminal.progress(counts_bytes=False) as progress:
        document = distill(job, Console(progress, terminal.note))
    if options.json:
        terminal.document(document)
    else:
        terminal.line(
            f"{document['result']}: {document['steps']} steps in"
            f" {duration_text(document['train_s'])},"
            f" KL to the teacher on {document['kl_rows']} rows"
            f" {document['kl_before']:.4f} to {document['kl_after']:.4f} nats a token"
        )
        report_cost(document, terminal)
    return 0
