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
    document = _running(client.get("/status"))
    if options.json:
        terminal.document(document)
    elif not document["models"]:
        terminal.note("no model is loaded; the next request loads one")
    else:
        rows = [
            (
                str(model["name"]),
                str(model["adapter"] or "-"),
                size_text(model["memory_bytes"]),
                str(model["n_ctx"]),
                until_text(model["expires_at"], time.time()),
            )
            for model in document["models"]
        ]
        terminal.table(("NAME", "ADAPTER", "MEMORY", "CONTEXT", "UNTIL"), rows)
    return 0


def _running(status: Mapping[str, Any]) -> dict[str, Any]:
    """What `ps --json` prints of GET /status. Memory is that of weights, KV cache and buffers;
    `expires_at` is Unix seconds, null: the model stays."""
    info, engine = status.get("model_info"), status.get("engine") or {}
    if info is None:
        return {"models": []}
    return {
        "models": [
            {
                "name": info["name"],
                "adapter": engine.get("adapter"),
                "memory_bytes": info["tensor_bytes"] + info["kv_bytes"] + info["compute_bytes"],
                "n_ctx": info["n_ctx"],
                "expires_at": engine.get("expires_at"),
            }
        ]
    }


def stop(options: StopOptions, terminal: Terminal) -> int:
    """Unload a model; the daemon goes on, and the next request loads it again.

    Examples:
      edge-agent stop
      edge-agent stop smollm2-135m
    """
    client = find_daemon(options.state_dir, terminal.environ)
    stopped = client.post("/engine/unload", {"model": options.model})["model"]
    if options.json:
        terminal.document({"stopped": stopped})
    elif stopped:
        terminal.line(f"stopped {stopped}")
    else:
        terminal.note(f"{options.model} is not loaded" if options.model else "no model is loaded")
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


def until_text(expires_at: float | None, now_s: float) -> str:
    """Time left until a model is unloaded. `expires_at` is Unix seconds, None for never."""
    if expires_at is None:
        return "forever"
    left_s = expires_at - now_s
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
