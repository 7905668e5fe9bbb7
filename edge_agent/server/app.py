"""Assembles the HTTP front: routes, the checks before every handler, the handling of every error.

Flows in: supervisor, store, settings and token. Flows out: an aiohttp Application that is served
both on the Unix socket and on 127.0.0.1, and the runner that limits its connections. Not here:
sockets, signals, processes (daemon/front.py).

    connection -> framing, peer, drain (_guard) -> handler -> error in the caller's dialect (_outer)
"""

from __future__ import annotations

import asyncio
import logging
import time

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from edge_agent.config import Settings
from edge_agent.errors import ShuttingDown
from edge_agent.monitor.monitor import Monitor
from edge_agent.server import (
    adapt,
    adapters,
    completion,
    dashboard,
    feedback,
    history,
    llama_server,
    lora,
    metrics,
    models,
    ollama,
    openai,
    openapi,
    pull,
    status,
)
from edge_agent.server.auth import CALLER, check_framing, check_peer
from edge_agent.server.error_body import Refusal, error_response, typed
from edge_agent.server.limits import Limits
from edge_agent.server.reply import finish
from edge_agent.server.route import Route
from edge_agent.server.service import SERVICE, Service
from edge_agent.server.session import Sessions
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor

API = (
    *openai.ROUTES,
    *ollama.ROUTES,
    *models.ROUTES,
    *pull.ROUTES,
    *llama_server.ROUTES,
    *completion.ROUTES,
    *lora.ROUTES,
    *adapt.ROUTES,
    *adapters.ROUTES,
    *status.ROUTES,
    *history.ROUTES,
    *metrics.ROUTES,
    *dashboard.ROUTES,
    *feedback.ROUTES,
)
OPENAPI = web.AppKey("openapi", bytes)


def build_app(
    supervisor: Supervisor,
    store: Store,
    settings: Settings,
    token: str,
    monitor: Monitor,
    *,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
) -> web.Application:
    """The application. Serve it through `build_runner`.

    Example: `runner = build_runner(build_app(supervisor, store, settings, state.token(), monitor))`
    """
    app = web.Application(middlewares=[_outer, _guard])
    app[SERVICE] = Service(supervisor, store, settings, token, time.time, limits, monitor)
    _connect(app, monitor)
    app[dashboard.SESSIONS] = Sessions()
    app[pull.PULL_COMMAND] = pull.DEFAULT_COMMAND
    app[pull.PULL_LOCK] = asyncio.Lock()
    routes = (*API, Route("GET", "/openapi.json", _openapi, "This document"))
    app[OPENAPI] = openapi.document(routes)
    for route in routes:
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, route.path, route.handler, expect_handler=_expect)
    return app


def _connect(app: web.Application, monitor: Monitor) -> None:
    """Give /metrics and /telemetry the board's monitor."""
    service = app[SERVICE]
    supervisor, store = service.supervisor, service.store
    app[metrics.METRICS] = service.metrics
    sampler, guard = monitor.sampler, monitor.guard
    app[history.TELEMETRY] = monitor.telemetry
    sampler.subscribe(service.metrics.watch)
    service.metrics.attach(
        metrics.Live(
            supervisor.status,
            lambda: [row.name for row in store.models()],
            snapshot=sampler.snapshot,
            guard_stage=lambda: guard.stage if guard else None,
        )
    )


def build_runner(app: web.Application) -> web.AppRunner:
    """A runner that enforces the limits of a connection. One runner can serve several sites.

    aiohttp closes a connection when the headers of its next request are not complete within
    keepalive_timeout, even if single bytes keep arriving. A client that disconnects cancels its
    handler.
    """
    limits = app[SERVICE].limits
    return web.AppRunner(
        app,
        access_log=None,
        logger=_server_logger(),
        handler_cancellation=True,
        keepalive_timeout=limits.header_s,
        lingering_time=limits.linger_s,
        max_line_size=8190,
        max_field_size=8190,
        max_headers=limits.header_fields,
        auto_decompress=False,
    )


def _server_logger() -> logging.Logger:
    """A logger without the tracebacks of broken HTTP, which is the client's error and answered with
    400."""
    logger = logging.getLogger("edge_agent.server.http")
    if not logger.filters:
        logger.addFilter(_is_our_problem)
    return logger


def _is_our_problem(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


async def _openapi(request: web.Request) -> web.Response:
    return web.Response(body=request.app[OPENAPI], content_type="application/json")


async def _expect(request: web.Request) -> web.Response | None:
    """Let Expect: 100-continue pass, refuse any other with 417. body.py sends the 100 after the
    checks."""
    if request.headers["Expect"].lower() == "100-continue":
        return None
    refusal = Refusal(417, "expectation_failed", "this Expect header is not known")
    return error_response(refusal, request.path)


@web.middleware
async def _outer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around every request: an exception becomes an error in the caller's dialect; every answer is
    sent under the drain deadline of a slow reader."""
    limits = request.app[SERVICE].limits
    try:
        response = await handler(request)
    except ConnectionError:
        raise
    except Exception as error:
        known = typed(error, _asked(request))
        request.app[SERVICE].metrics.rejected(known.code)
        response = error_response(known, request.path)
    return await finish(request, response, limits)


def _asked(request: web.Request) -> str:
    return f"{request.method} {request.path[:200]}"


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The checks of every request, before its body is read."""
    service = request.app[SERVICE]
    check_framing(request, service.limits.header_bytes, service.limits.header_fields)
    request[CALLER] = check_peer(request, service.token, request.app[dashboard.SESSIONS])
    draining = service.supervisor.status().state == "stopping"
    if draining and request.method in ("POST", "DELETE"):
        raise ShuttingDown("the daemon is stopping", "it takes no new work", "retry in a moment")
    return await handler(request)
