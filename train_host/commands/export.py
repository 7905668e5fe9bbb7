"""edge-train export: a run becomes files for the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from converters.commands.options import ThreadOptions, tensor_type
from edge_agent.cli.terminal import Terminal, size_text
from train_host.commands.sft import CacheDir, MovedBase, cache_directory


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ThreadOptions):
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")]
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Directory to make [RUN/export].", metavar="DIR"),
    ] = None
    type: Annotated[
        str | None,
        typer.Option(
            help="As llama-quantize names them: q8_0, q5_k_m, q4_k_m, q4_0, ... [q4_k_m; q8_0 when"
            " the base was quantized; for a qat run the type it was trained for].",
            metavar="TYPE",
        ),
    ] = None
    token_embedding_type: Annotated[
        str | None, typer.Option(help="Type of token_embd.weight.", metavar="TYPE")
    ] = None
    name: Annotated[
        str | None, typer.Option(help="Name of the files [the run's].", metavar="NAME")
    ] = None
    imatrix_chunks: Annotated[
        int,
        typer.Option(
            help="Chunks of 512 tokens of the training rows for the importance matrix; 0: none.",
            metavar="N",
            min=0,
            max=1 << 20,
        ),
    ] = 100
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check the model after each step.")
    ] = True
    model: MovedBase = None
    cache: CacheDir = None
    data_license: Annotated[
        str | None, typer.Option(help="Licence of the rows, for the card.", metavar="TEXT")
    ] = None


def export(options: ExportOptions, terminal: Terminal) -> int:
    """Merge, convert and quantize the result of a run, with a check after each step.

    The directory holds the model, the adapter in GGUF form, the importance matrix, a model card and
    export.json with every hash; `edge-agent pull DIR` reads it. It appears complete or not at all.

    Examples:
      edge-train export my-run
      edge-train export my-run --type q8_0 -o my-run/export-q8_0 --data-license CC-BY-4.0
    """
    from converters.quantizer import How
    from train_host import export as exporting
    from train_host.model_source import with_base
    from train_host.run_directory import read_run

    cache = options.cache or cache_directory(terminal)
    run = with_base(read_run(options.run), options.model, cache)
    wanted = exporting.ExportRequest(
        type=options.type.upper() if options.type else exporting.default_type(run),
        token_embedding_type=tensor_type(options.token_embedding_type),
        name=options.name,
        chunks=options.imatrix_chunks,
        is_verified=options.verify,
        data_licence=options.data_license,
    )
    out = options.output or options.run / "export"
    with terminal.progress() as progress:
        document = exporting.export(run, out, wanted, How(options.threads, progress))
    if options.json:
        terminal.document({"path": str(out), **document})
    else:
        _print(out, document, terminal)
    return 0


def _print(out: Path, document: dict[str, Any], terminal: Terminal) -> None:
    rows = []
    for stage in document["stages"]:
        passed = {True: "yes", False: "NO", None: "-"}[stage["passed"]]
        found = stage.get("figures") or {}
        kl = found.get("kl_mean")
        rows.append((stage["stage"], stage["made"], passed, "-" if kl is None else f"{kl:.2e}"))
    terminal.table(("STEP", "MADE", "PASSED", "KL"), rows)
    for note in document["notes"]:
        terminal.note(note)
    terminal.line(f"{out}: {document['model']['file']}, {size_text(document['model']['bytes'])}")
    terminal.note(f"next: copy {out} to the device, then `edge-agent pull {out}`")
