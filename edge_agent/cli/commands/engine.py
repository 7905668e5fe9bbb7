"""ps, stop, status: the running daemon and the model in it.

Flows in: a model's name, or nothing. Flows out: tables or the daemon's own JSON documents. Not
here: finding the daemon (client/connection.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any

import typer

from edge_agent.cli.commands.watch import StatusOptions, watch
from edge_agent.cli.options import Options, complete_model
from edge_agent.cli.terminal import Terminal, duration_text, size_text
from edge_agent.client.connection import find_daemon, socket_paths
from edge_agent.errors import DaemonNotRunning

QUICK_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class StopOptions(Options):
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Model [the loaded one].", autocompletion=complete_model
        ),
    ] = None


def ps(options: Options, terminal: Terminal) -> int:
    """Show the loaded model and its active adapter.

    Examples:
      edge-agent ps
      edge-agent ps --json
    """
    client = find_daemon(options.state_dir, terminal.environ, QUICK_TIMEOUT_S)
    document = client.get("/api/ps")
    if options.json:
        terminal.document(document)
        return 0
    models = document.get("models") or []
    if not models:
        terminal.note("no model is loaded; the next request loads one")
        return 0
    rows = [
        (
            str(model.get("name")),
            str(model.get("adapter") or "-"),
            size_text(model.get("size")),
            str(model.get("context_length") or "-"),
            until_text(model.get("expires_at"), time.time()),
        )
        for model in models
    ]
    terminal.table(("NAME", "ADAPTER", "MEMORY", "CONTEXT", "UNTIL"), rows)
    return 0


def stop(options: StopOptions, terminal: Terminal) -> int:
    """Unload a model; the daemon goes on, and the next request loads it again.

    Examples:
      edge-agent stop
      edge-agent stop smollm2-135m
    """
    client = find_daemon(options.state_dir, terminal.environ)
    loaded = [str(model.get("name")) for model in client.get("/api/ps").get("models") or []]
    name = options.model or (loaded[0] if loaded else None)
    if name is not None:
        client.post("/api/generate", {"model": name, "keep_alive": 0, "stream": False})
    was_loaded = name is not None and name.removesuffix(":latest") in loaded
    if options.json:
        terminal.document({"stopped": name if was_loaded else None})
    elif was_loaded:
        terminal.line(f"stopped {name}")
    else:
        terminal.note(f"{name} is not loaded" if name else "no model is loaded")
    return 0


def status(options: StatusOptions, terminal: Terminal) -> int:
    """Show the daemon: engine, model, memory, power, heat. Exit code 1 when none runs.

    With --watch until Ctrl-C: a live view on a terminal, else a line each time.

    Examples:
      edge-agent status
      edge-agent status --watch
      edge-agent status --json
    """
    if options.watch:
        return watch(options, terminal)
    try:
        client = find_daemon(options.state_dir, terminal.environ, QUICK_TIMEOUT_S)
        document = client.get("/status")
    except DaemonNotRunning as error:
        if not options.json:
            raise
        sockets = socket_paths(options.state_dir, terminal.environ)
        terminal.document({"running": False, "sockets": [str(path) for path in sockets]})
        terminal.error(error)
        return 1
    if options.json:
        terminal.document({"running": True, **document})
    else:
        terminal.table(("FIELD", "VALUE"), status_rows(document))
    return 0


def status_rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines of `status` for people; what the daemon does not tell is left out."""
    engine = document.get("engine") or {}
    info = document.get("model_info") or {}
    memory = document.get("memory") or {}
    requests = document.get("requests") or {}
    power = document.get("power") or {}
    worker = document.get("worker_pid") or "none"
    rows = [
        ("version", document.get("version")),
        ("process", f"{document.get('pid')} (worker {worker})"),
        ("state directory", document.get("state_dir")),
        ("socket", document.get("socket")),
        ("port", document.get("port")),
        ("engine", _joined(engine.get("state"), engine.get("reason"))),
        ("model", engine.get("model")),
        ("adapter", engine.get("adapter")),
        ("context", f"{info['n_ctx']} tokens x {info.get('slots')} slots" if info else None),
        ("chat template", info.get("chat_template")),
        ("requests", _counts(requests, "total", "failed", "in_flight")),
        ("queued", engine.get("queued")),
        ("worker history", _counts(engine, "crashes", "restarts")),
        ("memory, front", _size(memory.get("front_rss_anon_bytes"))),
        ("memory, worker", _size(memory.get("worker_rss_anon_bytes"))),
        ("memory, available", _size(memory.get("mem_available_bytes"))),
        ("power", _power(power)),
        *sensor_rows(document.get("sensors") or {}),
        ("last write", _failed(document.get("storage_error"))),
        *(("event", event_line(event)) for event in document.get("events") or []),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def sensor_rows(sensors: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """What the board says, by subsystem; only what was read."""
    rails = [
        f"{name} {rail['watts']:.2f} W"
        for name, rail in (sensors.get("rails") or {}).items()
        if rail.get("watts") is not None
    ]
    heat = [
        f"{name} {celsius:.1f} C"
        for name, celsius in (sensors.get("temperatures_celsius") or {}).items()
        if celsius is not None
    ]
    guard = sensors.get("guard") or {}
    stage = guard.get("stage")
    return [
        ("rails", ", ".join(rails)),
        ("idle power", f"{sensors['idle_w']:.2f} W" if sensors.get("idle_w") else None),
        ("temperatures", ", ".join(heat)),
        ("throttling", ", ".join(sensors.get("throttle") or [])),
        ("guard", f"stage {stage}: {guard.get('reason')}" if stage else None),
    ]


def event_line(event: Mapping[str, Any]) -> str:
    """One line of an EventRow as JSON: local time, kind, what happened.

    >>> event_line({"at": 0.0, "kind": "worker_crashed", "detail": "tiny: signal 11"})[-31:]
    'worker crashed: tiny: signal 11'
    """
    when = datetime.fromtimestamp(float(event["at"]), timezone.utc).astimezone()
    kind, detail = str(event["kind"]).replace("_", " "), " ".join(str(event["detail"]).split())
    return f"{when:%Y-%m-%d %H:%M:%S} {kind}: {detail}"


def until_text(expires_at: str | None, now_s: float) -> str:
    """Time left until a model is unloaded. `expires_at` is RFC 3339, None for never."""
    if not expires_at:
        return "forever"
    try:
        expires = datetime.fromisoformat(expires_at.replace("Z", "+00:00"))
    except ValueError:
        return expires_at
    left_s = expires.timestamp() - now_s
    return f"{duration_text(left_s)} from now" if left_s > 0 else "now"


def _joined(*parts: Any) -> str:
    return ": ".join(str(part) for part in parts if part)


def _counts(values: Mapping[str, Any], *names: str) -> str:
    known = [(name.replace("_", " "), values[name]) for name in names if name in values]
    return ", ".join(f"{value} {name}" for name, value in known)


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else size_text(size_bytes)


def _failed(storage_error: str | None) -> str | None:
    return f"failed: {storage_error}" if storage_error else None


def _power(power: Mapping[str, Any]) -> str | None:
    if power.get("watts") is not None:
        return f"{power['watts']:.2f} W"
    return f"unknown: {power['reason']}" if power.get("reason") else None
