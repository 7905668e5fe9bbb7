"""adapters: list, show, activate, deactivate, rollback, rm, export, import.

Flows in: names and files. Flows out: tables or one JSON document. Not here: whether a daemon or the
state directory itself is asked (client/adapters.py), learning one (adapt.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.cli.options import Options, add_command, command_group, complete_model
from edge_agent.cli.terminal import Terminal, duration_text, size_text
from edge_agent.cli.verdict import LessonVerdict, verdict_lines
from edge_agent.client.adapters import open_adapters
from edge_agent.errors import EdgeAgentError, UsageError

HELP = "Adapters: what a model has learned on this machine, and which one answers."
FEEDBACK = "feedback"
"""What `adapt run --from` calls it."""
UNTRIED_NOTE = "note: it is tried out when the daemon starts, and rolled back if it fails"


def complete_adapter(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of registered adapters for the shell's TAB; silent when they cannot be read."""
    given = ctx.params.get("state_dir") or ctx.find_root().params.get("state_dir")
    try:
        with open_adapters(given, os.environ, timeout_s=2.0) as library:
            found = library.adapters(ctx.params.get("model"))
    except (EdgeAgentError, OSError):
        return []
    names = sorted({str(one["name"]) for one in found})
    return [name for name in names if name.startswith(incomplete)]


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    model: Annotated[
        str | None,
        typer.Option(
            help="Model [configured, loaded or only one].",
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class NamedOptions(ModelOptions):
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Adapter.", autocompletion=complete_adapter)
    ]


@dataclass(frozen=True, kw_only=True)
class ActivateOptions(NamedOptions):
    force: Annotated[bool, typer.Option("--force", help="Also one that no gate has let pass.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class ExportOptions(NamedOptions):
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File [NAME.gguf].", metavar="FILE")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ImportOptions(ModelOptions):
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF LoRA adapter.")]
    name: Annotated[
        str | None, typer.Option(help="Register under this name [the file's].", metavar="NAME")
    ] = None


def build_group() -> typer.Typer:
    """The commands below `edge-agent adapters`."""
    group = command_group(HELP)
    add_command(group, "list", ModelOptions, list_adapters)
    add_command(group, "show", NamedOptions, show)
    add_command(group, "activate", ActivateOptions, activate)
    add_command(group, "deactivate", ModelOptions, deactivate)
    add_command(group, "rollback", ModelOptions, rollback)
    add_command(group, "rm", NamedOptions, rm)
    add_command(group, "export", ExportOptions, export)
    add_command(group, "import", ImportOptions, import_adapter)
    return group


def list_adapters(options: ModelOptions, terminal: Terminal) -> int:
    """List the adapters of every model, or of one. The active one has a star.

    Examples:
      edge-agent adapters list
      edge-agent adapters list --model gemma3-270m --json
    """
    with open_adapters(options.state_dir, terminal.environ) as library:
        found = library.adapters(options.model)
    if options.json:
        terminal.document({"adapters": found})
    elif not found:
        terminal.note("no adapters yet: edge-agent adapt run --from FILE --name NAME")
    else:
        headers = ("MODEL", "NAME", "ACTIVE", "STATUS", "SOURCE", "SIZE", "SHA-256", "CREATED")
        terminal.table(headers, [_row(one) for one in found])
    return 0


def _row(adapter: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(adapter["model"]),
        str(adapter["name"]),
        _activity(adapter),
        str(adapter["status"]),
        str(adapter["source"]),
        size_text(adapter["size_bytes"]),
        str(adapter["sha256"])[:12],
        _day(adapter["created_at"]),
    )


def _activity(adapter: Mapping[str, Any]) -> str:
    if not adapter["is_active"]:
        return ""
    return "*" if adapter["is_proved"] else "* (not tried out yet)"


def _day(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).date().isoformat()


def show(options: NamedOptions, terminal: Terminal) -> int:
    """Show one adapter: its file, how it was trained, what its gate found.

    Examples:
      edge-agent adapters show lesson
      edge-agent adapters show lesson --json
    """
    with open_adapters(options.state_dir, terminal.environ) as library:
        found = library.adapter(options.model, options.name)
    if options.json:
        terminal.document(found)
        return 0
    shown = {key: value for key, value in found.items() if key not in ("gate", "settings", "id")}
    shown["created_at"] = _day(found["created_at"])
    rows = [(key.replace("_", " "), str(value)) for key, value in shown.items()]
    rows += [(f"setting {key}", str(value)) for key, value in _scalars(found["settings"])]
    terminal.table(("FIELD", "VALUE"), [*rows, *_check_rows(found["gate"])])
    terminal.line()
    if said := _learned(found):
        terminal.line(said)
    verdict = LessonVerdict(
        found["model"], found["name"], found["gate"], found["is_active"], found["status"]
    )
    for line in verdict_lines(verdict, terminal.columns):
        terminal.line(line)
    return 0


def _scalars(settings: Mapping[str, Any] | None) -> Iterable[tuple[str, Any]]:
    """Without what only a program reads: losses and the like."""
    found = (settings or {}).items()
    return [(key, value) for key, value in found if isinstance(value, (str, int, float))]


def _learned(found: Mapping[str, Any]) -> str | None:
    """What it was taught and what that took; None for an imported adapter, and for one that an
    earlier version trained.

    >>> settings = {"rows": 12, "data": "feedback", "train_s": 75.0, "joules": None}
    >>> _learned({"settings": settings, "created_at": 0.0})
    'Learned 12 rows that users corrected or liked, 1970-01-01 00:00 UTC: 1m15s, no joules known.'
    """
    settings = found["settings"] or {}
    if settings.get("rows") is None:
        return None
    source = "that users corrected or liked" if settings.get("data") == FEEDBACK else "of a file"
    at = datetime.fromtimestamp(found["created_at"], timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    joules = settings.get("joules")
    energy = "no joules known" if joules is None else f"{joules:.0f} J"
    time = duration_text(settings["train_s"])
    return f"Learned {settings['rows']} rows {source}, {at}: {time}, {energy}."


def _check_rows(gate: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Each check's figures (adapt/gate/gate.py)."""
    return [
        (f"check {name}", " ".join(f"{key} {value}" for key, value in check.items()))
        for name, check in ((gate or {}).get("checks") or {}).items()
    ]


def activate(options: ActivateOptions, terminal: Terminal) -> int:
    """Answer with an adapter from now on, whoever asks MODEL.

    The daemon loads it, asks it two short questions, and takes it back when it does not answer.

    Examples:
      edge-agent adapters activate lesson
      edge-agent adapters activate lesson --force --json
    """
    with open_adapters(options.state_dir, terminal.environ) as library:
        active = library.activate(options.model, options.name, options.force)
        if not library.is_tried_out:
            terminal.note(UNTRIED_NOTE)
    return _say_active(active, options.json, terminal)


def deactivate(options: ModelOptions, terminal: Terminal) -> int:
    """Answer with the model itself from now on.

    Examples:
      edge-agent adapters deactivate
    """
    with open_adapters(options.state_dir, terminal.environ) as library:
        return _say_active(library.deactivate(options.model), options.json, terminal)


def rollback(options: ModelOptions, terminal: Terminal) -> int:
    """Go back to what answered before, and mark the adapter that is left.

    Without --model: of the configured or the only model, not of the loaded one.

    Examples:
      edge-agent adapters rollback
      edge-agent adapters rollback --model gemma3-270m --json
    """
    with open_adapters(options.state_dir, terminal.environ) as library:
        return _say_active(library.rollback(options.model), options.json, terminal)


def _say_active(document: Mapping[str, Any], is_json: bool, terminal: Terminal) -> int:
    if is_json:
        terminal.document(document)
    else:
        name = f"adapter {document['active']}" if document["active"] else "the base"
        terminal.line(f"{document['model']} is answered by {name}")
    return 0


def rm(options: NamedOptions, terminal: Terminal) -> int:
    """Remove an adapter that is not active, and its file.

    Without --model: of the configured or the only model, not of the loaded one.

    Examples:
      edge-agent adapters rm lesson
    """
    with open_adapters(options.state_dir, terminal.environ) as library:
        library.remove(options.model, options.name)
    if options.json:
        terminal.document({"removed": options.name})
    else:
        terminal.line(f"removed {options.name}")
    return 0


def export(options: ExportOptions, terminal: Terminal) -> int:
    """Write an adapter's file, a GGUF that stock llama.cpp loads with --lora.

    Examples:
      edge-agent adapters export lesson
      edge-agent adapters export lesson -o /media/usb/lesson.gguf
    """
    path = (options.output or Path(f"{options.name}.gguf")).expanduser().absolute()
    if path.exists():
        raise UsageError(f"{path} exists", "it is not overwritten", "choose another with -o")
    with open_adapters(options.state_dir, terminal.environ) as library:
        size_bytes = _write(path, library.export(options.model, options.name))
    if options.json:
        terminal.document({"path": str(path), "size_bytes": size_bytes})
    else:
        terminal.line(f"{path}, {size_text(size_bytes)}")
    return 0


def _write(path: Path, pieces: Iterable[bytes]) -> int:
    """All of it under its name, or nothing; the bytes written. Raises UsageError."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temp.open("xb") as file:
            size_bytes = sum(file.write(piece) for piece in pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except OSError as error:
        hint = "choose another place with -o"
        raise UsageError(f"cannot write {path}", error.strerror or str(error), hint) from error
    finally:
        temp.unlink(missing_ok=True)
    return size_bytes


def import_adapter(options: ImportOptions, terminal: Terminal) -> int:
    """Register a GGUF LoRA adapter made for this very model.

    No gate has judged it: `activate --force` uses it all the same.

    Examples:
      edge-agent adapters import lesson.gguf
      edge-agent adapters import lesson.gguf --name monday --model gemma3-270m
    """
    from edge_agent.models.pull import name_from_file

    path = options.file.expanduser().absolute()
    name = options.name or name_from_file(path.name)
    with open_adapters(options.state_dir, terminal.environ) as library:
        found = library.add(options.model, name, path)
    if options.json:
        terminal.document(found)
    else:
        terminal.line(f"{found['model']}:{found['name']}, SHA-256 {found['sha256']}")
    return 0
