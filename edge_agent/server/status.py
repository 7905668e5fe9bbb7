"""GET /status: everything about this daemon in one JSON document, for the CLI and for people.

Flows in: the supervisor's status, the store's settings, /proc. Flows out: JSON. What cannot be
known is null with a reason, never a guess. Not here: reading sensors (monitor/monitor.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from pydantic import BaseModel

from edge_agent import __version__
from edge_agent.machine import read_memory
from edge_agent.server.reply import json_response
from edge_agent.server.route import Route
from edge_agent.server.service import SERVICE, Service

PROC = Path("/proc")


class MemoryStatus(BaseModel):
    front_rss_anon_bytes: int | None
    worker_rss_anon_bytes: int | None
    mem_available_bytes: int | None


class PowerStatus(BaseModel):
    """Of the rail that covers the whole board; every rail stands in `sensors`."""

    watts: float | None
    reason: str | None


class RequestCounts(BaseModel):
    total: int
    failed: int
    in_flight: int


class EventBody(BaseModel):
    at: float
    kind: str
    detail: str


class StatusAnswer(BaseModel):
    """`engine` is supervisor.EngineStatus, `model_info` records.ModelInfo."""

    version: str
    pid: int
    worker_pid: int | None
    state_dir: str
    socket: str
    port: int | None
    engine: dict[str, Any]
    model_info: dict[str, Any] | None
    memory: MemoryStatus
    power: PowerStatus
    sensors: dict[str, Any] | None
    requests: RequestCounts
    events: list[EventBody]
    """The last events that are not routine, newest first: crashes, rollbacks, the guard."""
    storage_error: str | None
    """Why the latest write to the database failed."""


async def status(request: web.Request) -> web.Response:
    return json_response(status_document(request.app[SERVICE], PROC))


def status_document(service: Service, proc: Path) -> dict[str, Any]:
    """`proc` is /proc, or a recorded tree in tests."""
    engine = service.supervisor.status()
    sensors = service.monitor.as_json()
    state = {name: value for name, value in vars(engine).items() if name != "info"}
    return {
        "version": __version__,
        "pid": os.getpid(),
        "worker_pid": engine.worker_pid,
        "state_dir": str(service.settings.state_dir),
        **addresses(service),
        "engine": state,
        "model_info": None if engine.info is None else msgspec.to_builtins(engine.info),
        "memory": {
            "front_rss_anon_bytes": proc_bytes(proc / str(os.getpid()) / "status", "RssAnon"),
            "worker_rss_anon_bytes": None
            if engine.worker_pid is None
            else proc_bytes(proc / str(engine.worker_pid) / "status", "RssAnon"),
            "mem_available_bytes": read_memory().available_bytes,
        },
        "power": _power(sensors),
        "sensors": sensors,
        "requests": vars(service.requests),
        **service.store.health(),
    }


def _power(sensors: dict[str, Any] | None) -> dict[str, Any]:
    if sensors is None:
        return {"watts": None, "reason": "the sensors have not been read yet"}
    return {"watts": sensors["total_w"], "reason": sensors["total_reason"]}


def addresses(service: Service) -> dict[str, Any]:
    """From STATE/run.json, which the daemon wrote when it knew its port; else as configured."""
    settings = service.settings
    try:
        run = msgspec.json.decode((settings.state_dir / "run.json").read_bytes(), type=dict)
    except (OSError, msgspec.DecodeError):
        run = {}
    return {
        "socket": run.get("socket", str(settings.socket_path)),
        "port": run.get("port", settings.port),
    }


def proc_bytes(path: Path, field: str) -> int | None:
    """`field` of a /proc file in bytes (the kernel prints 'Name:   123 kB'), None if not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


ROUTES = (Route("GET", "/status", status, "Daemon, engine, model, memory", StatusAnswer),)
