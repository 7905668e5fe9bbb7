"""list, show, pull, rm: the models registered on this machine.

Flows in: names and sources. Flows out: tables or one JSON document. Not here: whether a daemon or
the state directory itself is asked (client/models.py), fetching (edge_agent/models/pull.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.cli.options import Options, complete_model
from edge_agent.cli.terminal import Progress, Terminal, size_text
from edge_agent.client.models import ModelDetails, open_models, parameter_size
from edge_agent.errors import DownloadError


@dataclass(frozen=True, kw_only=True)
class NamedOptions(Options):
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model.", autocompletion=complete_model)
    ]


@dataclass(frozen=True, kw_only=True)
class PullOptions(Options):
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="embedded:NAME, hf:owner/repo[:quant], a GGUF file or an export directory.",
        ),
    ]
    name: Annotated[str | None, typer.Option(help="Register under this name.", metavar="NAME")] = (
        None
    )


def list_models(options: Options, terminal: Terminal) -> int:
    """List the registered models.

    Examples:
      edge-agent list
      edge-agent list --json
    """
    with open_models(options.state_dir, terminal.environ) as library:
        found = library.registered()
    if options.json:
        terminal.document({"models": [_brief(model) for model in found]})
    elif not found:
        terminal.note("no models yet: edge-agent pull embedded:smollm2-135m")
    else:
        headers = ("NAME", "SIZE", "PARAMETERS", "QUANTIZATION", "FAMILY", "SHA-256", "ADDED")
        terminal.table(headers, [_row(model) for model in found])
    return 0


def _brief(model: ModelDetails) -> dict[str, Any]:
    """All but the chat template, which may be long."""
    return {key: value for key, value in asdict(model).items() if key != "chat_template"}


def _row(model: ModelDetails) -> tuple[str, ...]:
    return (
        model.name,
        size_text(model.size_bytes),
        parameter_size(model.n_params),
        model.quantization,
        model.architecture,
        model.sha256[:12],
        _day(model.added_at),
    )


def _day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).date().isoformat()


def show(options: NamedOptions, terminal: Terminal) -> int:
    """Show what is known about one model.

    Examples:
      edge-agent show smollm2-135m
      edge-agent show smollm2-135m --json
    """
    with open_models(options.state_dir, terminal.environ) as library:
        details = library.details(options.model.removesuffix(":latest"))
    if options.json:
        terminal.document(asdict(details))
        return 0
    shown = asdict(details)
    template = shown.pop("chat_template")
    shown["n_params"] = parameter_size(details.n_params)
    shown["size_bytes"] = size_text(details.size_bytes)
    shown["added_at"] = _day(details.added_at)
    labels = {
        **{"n_params": "parameters", "n_ctx_train": "context (training)", "sha256": "SHA-256"},
        **{"size_bytes": "size", "added_at": "added"},
    }
    rows = [
        (labels.get(key, key), "-" if value is None else str(value)) for key, value in shown.items()
    ]
    kind = f"{len(template)} characters" if template else "none in the file"
    terminal.table(("FIELD", "VALUE"), [*rows, ("chat template", kind)])
    return 0


def pull(options: PullOptions, terminal: Terminal) -> int:
    """Fetch a model, check it and register it.

    An interrupted download continues where it stopped when pulled again. HF_ENDPOINT and HF_TOKEN
    are obeyed.

    Examples:
      edge-agent pull embedded:smollm2-135m
      edge-agent pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:q4_k_m
      edge-agent pull ./finetuned.gguf --name mine
      edge-agent pull ./my-run/export
    """
    source = absolute_source(options.source)
    with open_models(options.state_dir, terminal.environ) as library:
        with terminal.progress() as show_progress:
            last = _follow(library.pull(source, options.name), show_progress)
        details = library.details(str(last["model"]["name"]))
    if options.json:
        terminal.document({"status": "success", "model": asdict(details)})
    else:
        terminal.line(f"{details.name}: {details.description}, SHA-256 {details.sha256}")
    return 0


def rm(options: NamedOptions, terminal: Terminal) -> int:
    """Remove a model and its file, its adapters too.

    Examples:
      edge-agent rm smollm2-135m
    """
    name = options.model.removesuffix(":latest")
    with open_models(options.state_dir, terminal.environ) as library:
        library.remove(name)
    if options.json:
        terminal.document({"removed": name})
    else:
        terminal.line(f"removed {name}")
    return 0


_SCHEMES = ("embedded:", "hf:")


def absolute_source(source: str) -> str:
    """A path is resolved here, because the daemon has another working directory."""
    path = Path(source).expanduser()
    is_path = source.startswith(("/", ".", "~")) or path.suffix == ".gguf" or path.exists()
    return str(path.absolute()) if is_path and not source.startswith(_SCHEMES) else source


def _follow(events: Iterable[dict[str, Any]], show: Progress) -> dict[str, Any]:
    """Shows every event and returns the last. Raises DownloadError when none says success."""
    event: dict[str, Any] = {}
    for event in events:
        show(str(event.get("status") or ""), event.get("completed"), event.get("total"))
    if event.get("status") != "success":
        raise DownloadError(
            "the pull ended without a result",
            f"its last word was {event.get('status')!r}",
            "pull it again",
        )
    return event
