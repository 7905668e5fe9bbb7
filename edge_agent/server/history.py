"""GET /telemetry, GET and POST /benchmarks: the board's recent and stored past, for page and CLI.

Flows in: a stretch of time, a number of documents, or the documents that `edge-agent bench` made.
Flows out: points, generations without their texts, benchmark documents as they were stored. Many
documents are sent in pages, so that they are never in memory all at once. Not here: measuring
(monitor/telemetry.py, bench/trials.py), storing (store/store.py).
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from edge_agent.errors import StoreError
from edge_agent.monitor.telemetry import KEEP_POINTS, Telemetry
from edge_agent.server.body import parse_json, read_body, validate
from edge_agent.server.error_body import FieldError
from edge_agent.server.reply import Stream, json_response
from edge_agent.server.route import Route
from edge_agent.server.service import SERVICE
from edge_agent.store.rows import MAX_NAME_CHARACTERS, BenchmarkRow, without_texts

TELEMETRY = web.AppKey("telemetry", Telemetry)

MAX_BODY_BYTES = 1024 * 1024
MAX_DOCUMENTS = 256
"""Documents of one POST, which MAX_BODY_BYTES bounds as well."""
MAX_ANSWERED = 10_000
PAGE = 16
"""Documents in memory at a time while an answer is sent; one is at most 64 KB."""
MAX_SECONDS = 366 * 86_400
GENERATIONS = 20
HISTORY_POINTS = 1000
"""The most points of a stretch that is read from the database."""


class PointBody(BaseModel):
    """The board over the `span_s` seconds before `at`; null where nothing was measured."""

    at: float
    span_s: float
    watts: float | None
    peak_w: float | None
    celsius: float | None
    mem_available_bytes: int | None
    worker_rss_anon_bytes: int | None
    front_rss_anon_bytes: int | None
    cpu_load: float | None
    gpu_load: float | None
    gpu_clock_hz: float | None
    cpu_clock_hz: float | None
    tok_s: float | None
    throttle: str


class TelemetryAnswer(BaseModel):
    """`generations` are the last 20 answers, newest first, without their texts."""

    now: float
    points: list[PointBody]
    generations: list[dict[str, Any]]


class BenchmarkDocument(BaseModel):
    """One test of one run; further members are stored unchanged."""

    model_config = ConfigDict(extra="allow")

    v: Literal[1]
    run_id: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)
    model: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)
    scenario: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)


class Benchmarks(BaseModel):
    """Benchmark documents; in an answer the newest is first."""

    model_config = ConfigDict(extra="forbid")

    benchmarks: list[BenchmarkDocument] = Field(min_length=1, max_length=MAX_DOCUMENTS)


class Stored(BaseModel):
    """How many documents were stored."""

    stored: int


async def telemetry(request: web.Request) -> web.Response:
    """One point a second up to ten minutes; beyond, stored history in at most 1,000 points."""
    service = request.app[SERVICE]
    seconds = _number(request, "seconds", 300.0, MAX_SECONDS)
    if seconds <= KEEP_POINTS:
        points = request.app[TELEMETRY].points(seconds)
    else:
        now = service.clock()
        points = await asyncio.to_thread(service.store.samples, now - seconds, now, HISTORY_POINTS)
    rows = await asyncio.to_thread(service.store.recent_generations, GENERATIONS)
    generations = [without_texts(row) for row in rows]
    return json_response({"now": service.clock(), "points": points, "generations": generations})


async def benchmarks(request: web.Request) -> web.StreamResponse:
    """Stream stored documents, newest first."""
    service = request.app[SERVICE]
    left = int(_number(request, "n", 100, MAX_ANSWERED))
    if request.method == "HEAD":
        return web.Response(content_type="application/json")
    rows = await asyncio.to_thread(service.store.benchmark_rows, min(left, PAGE))
    stream = Stream(request, "application/json", service.limits)
    await stream.open()
    await stream.write(b'{"benchmarks":[')
    separator = ""
    while rows:
        page = ",".join(row.document for row in rows)
        await stream.write(f"{separator}{page}".encode())
        separator, left = ",", left - len(rows)
        rows = await _older(request, min(left, PAGE), rows[-1]) if left else []
    return await stream.close(b"]}")


async def _older(request: web.Request, n: int, than: BenchmarkRow) -> list[BenchmarkRow]:
    """The next page. When the disk fails now, the status is already sent: the connection is cut."""
    try:
        return await asyncio.to_thread(request.app[SERVICE].store.benchmark_rows, n, than.id)
    except StoreError as error:
        if request.transport is not None:
            request.transport.close()
        raise ConnectionError(f"benchmarks could not be read on: {error}") from error


async def add_benchmarks(request: web.Request) -> web.Response:
    """Store all documents or none; they are durable when the answer arrives."""
    service = request.app[SERVICE]
    limits = service.limits
    members = parse_json(await read_body(request, MAX_BODY_BYTES, limits.body_s), limits.json_depth)
    validate(Benchmarks, members)
    written = service.store.add_benchmarks(members["benchmarks"])
    return json_response({"stored": await asyncio.wrap_future(written)})


def _number(request: web.Request, name: str, default: float, most: float) -> float:
    """A query parameter above 0 and at most `most`. Raises FieldError."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise FieldError(name, f"{text[:40]!r} is not a number above 0 and at most {most:g}")
    return value


ROUTES = (
    Route(
        "GET", "/telemetry", telemetry, "Recent points and answers", TelemetryAnswer,
        query=("seconds",),
    ),
    Route("GET", "/benchmarks", benchmarks, "Stored benchmarks", Benchmarks, query=("n",)),
    Route("POST", "/benchmarks", add_benchmarks, "Store benchmarks", Stored, body=Benchmarks),
)  # fmt: skip
