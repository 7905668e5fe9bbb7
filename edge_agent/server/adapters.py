"""/adapters: list, activate, deactivate, roll back, remove, export and import adapters.

Flows in: names, and for an import the path of a file on this machine (Unix socket only: whoever
may use that is a user of this machine, a network client is not). Flows out: rows with the gate's
report, and the adapter's file. Not here: what may be activated (models/adapter_registry.py), the
canary (adapt/activation.py), llama-server's API (lora.py).
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, BinaryIO, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from edge_agent.adapt import activation
from edge_agent.errors import AdapterRefused
from edge_agent.server.body import read_request
from edge_agent.server.error_body import FieldError, Refusal
from edge_agent.server.model_name import requested_model
from edge_agent.server.reply import Stream, json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import Body
from edge_agent.server.service import SERVICE, Service

GGUF = "application/octet-stream"
PIECE_BYTES = 64 * 1024
REASON = "a user asked for it"
MAX_PATH_CHARACTERS = 4096


class AdapterBody(BaseModel):
    """`is_proved`: it is active and its canary has answered. `gate`: the report, when judged."""

    model: str
    name: str
    sha256: str
    path: str
    size_bytes: int
    base_sha256: str
    source: Literal["trained", "imported"]
    status: Literal["candidate", "passed", "failed", "rolled_back"]
    gate: dict[str, Any] | None
    settings: dict[str, Any] | None
    created_at: float
    id: int
    is_active: bool
    is_proved: bool


class AdapterList(BaseModel):
    adapters: list[AdapterBody]


class ModelRequest(Body):
    """`model` absent: see models/which_model.py."""

    model: str | None = None


class ActivateRequest(ModelRequest):
    """POST /adapters/activate"""

    name: str = Field(min_length=1)
    force: bool = Field(False, description="Also one that no gate has let pass.")


class AdapterImport(ModelRequest):
    """POST /adapters/import"""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1, max_length=MAX_PATH_CHARACTERS, description="Absolute.")


class Active(BaseModel):
    """What `model` is answered with from now on; null is the base."""

    model: str
    active: str | None


async def list_adapters(request: web.Request) -> web.Response:
    """?model=NAME: of that model only. `gate` is the verdict without its figures."""
    service = request.app[SERVICE]
    asked = requested_model(request.query.get("model"))
    model = None if asked is None else _model(service, asked)
    registry = service.registry
    rows = registry.adapters(model)
    return json_response({"adapters": [registry.document(row, is_brief=True) for row in rows]})


async def get_adapter(request: web.Request) -> web.Response:
    registry = request.app[SERVICE].registry
    return json_response(registry.document(registry.adapter(*_named(request))))


async def activate(request: web.Request) -> web.Response:
    """Answers when the canary has."""
    service, body = await _read(request, ActivateRequest)
    model = _model(service, body.model)
    await activation.activate(service.supervisor, model, body.name, force=body.force, reason=REASON)
    return _active(service, model)


async def deactivate(request: web.Request) -> web.Response:
    service, body = await _read(request, ModelRequest)
    model = _model(service, body.model)
    await asyncio.to_thread(service.registry.deactivate, model, REASON)
    return _active(service, model)


async def rollback(request: web.Request) -> web.Response:
    service, body = await _read(request, ModelRequest)
    model = _model(service, body.model, may_guess=False)
    await asyncio.to_thread(service.registry.rollback, model, REASON)
    return _active(service, model)


async def remove(request: web.Request) -> web.Response:
    model, name = _named(request, may_guess=False)
    await asyncio.to_thread(request.app[SERVICE].registry.remove, model, name)
    return web.Response()


async def import_adapter(request: web.Request) -> web.Response:
    _check_local(request)
    service, body = await _read(request, AdapterImport)
    if not body.path.startswith("/"):
        raise FieldError("path", "it is not absolute", "the daemon has another directory")
    model, registry = _model(service, body.model), service.registry
    row = await asyncio.to_thread(
        registry.add, model, body.name, Path(body.path), source="imported"
    )
    return json_response(registry.document(row))


async def export(request: web.Request) -> web.StreamResponse:
    """The file, piece by piece."""
    service = request.app[SERVICE]
    row = service.registry.adapter(*_named(request))
    path = service.settings.state_dir / row.path
    file = await asyncio.to_thread(_opened, path)
    with file:
        if request.method == "HEAD":
            return web.Response(content_type=GGUF)
        stream = Stream(request, GGUF, service.limits)
        await stream.open()
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            await stream.write(piece)
    return await stream.close()


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        why = error.strerror or str(error)
        hint = "remove the adapter, then learn or import it again"
        raise AdapterRefused(f"the adapter {path} cannot be read", why, hint) from error


async def _read(request: web.Request, kind: type[Any]) -> tuple[Service, Any]:
    service = request.app[SERVICE]
    return service, await read_request(request, kind, service.limits, service.n_ctx())


def _model(service: Service, name: str | None, *, may_guess: bool = True) -> str:
    """The model's own name, whatever tag follows it. Raises ModelNotFound, UsageError."""
    row, _ = service.supervisor.which_model(requested_model(name), may_guess=may_guess)
    return row.name


def _named(request: web.Request, *, may_guess: bool = True) -> tuple[str, str]:
    """Model and adapter of the path; `default` names no model."""
    model = _model(request.app[SERVICE], request.match_info["model"], may_guess=may_guess)
    return model, request.match_info["name"]


def _active(service: Service, model: str) -> web.Response:
    row = service.registry.active(model)
    return json_response({"model": model, "active": row.name if row else None})


def _check_local(request: web.Request) -> None:
    """Raises Refusal 403."""
    transport = request.transport
    peer = transport.get_extra_info("socket") if transport else None
    if peer is None or peer.family != socket.AF_UNIX:
        raise Refusal(
            403,
            "unix_socket_only",
            "adapters are imported through the Unix socket only",
            "the path names a file of this machine",
            "`edge-agent adapters import FILE` uses it",
        )


ROUTES = (
    Route(
        "GET", "/adapters", list_adapters, "Registered adapters", AdapterList, query=("model",)
    ),
    Route("POST", "/adapters/activate", activate, "Answer with it", Active, body=ActivateRequest),
    Route("POST", "/adapters/deactivate", deactivate, "Back to the base", Active,
          body=ModelRequest),
    Route("POST", "/adapters/rollback", rollback, "Back to the one before", Active,
          body=ModelRequest),
    Route("POST", "/adapters/import", import_adapter, "Register a file of this machine",
          AdapterBody, body=AdapterImport),
    Route("GET", "/adapters/{model}/{name}", get_adapter, "One adapter", AdapterBody),
    Route("DELETE", "/adapters/{model}/{name}", remove, "Remove an adapter and its file"),
    Route("GET", "/adapters/{model}/{name}/file", export, "The adapter's file"),
)  # fmt: skip
