"""POST /api/pull: a model is fetched by a process of its own, and registered when it is whole.

Flows in: a source (hf:..., a path, embedded:...). Flows out: the child's progress lines in Ollama's
shape and one new row in the store. The child imports the hub client and reads untrusted files, so
that the front never does. Not here: the sources (models/pull.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from aiohttp import web

from edge_agent.errors import DownloadError, Overloaded, error_from_code
from edge_agent.server.body import read_request
from edge_agent.server.error_body import error_json, typed
from edge_agent.server.ollama_schema import PullProgress, PullRequest
from edge_agent.server.reply import NDJSON, Stream, encoded, json_response
from edge_agent.server.route import Route
from edge_agent.server.service import SERVICE
from edge_agent.store.store import ModelRow

PULL_COMMAND: web.AppKey[Sequence[str]] = web.AppKey("pull_command", Sequence[str])
PULL_LOCK = web.AppKey("pull_lock", asyncio.Lock)
DEFAULT_COMMAND = (sys.executable, "-m", "edge_agent.models.pull", "pull")
MAX_LINE_BYTES = 4 * 1024 * 1024
"""The last line carries the model's chat template."""
TERMINATE_S = 5.0


async def pull(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    body = await read_request(request, PullRequest, service.limits, service.n_ctx())
    lock = request.app[PULL_LOCK]
    if lock.locked():
        raise Overloaded("another pull is running", "one runs at a time", "wait for it", 5)
    argv = pull_argv(request.app[PULL_COMMAND], body, service.settings.state_dir)
    async with lock, aclosing(progress_of(argv)) as lines:
        if body.stream is False:
            async for line in lines:
                await _register(request, line)
            return json_response({"status": "success"})
        return await _relay(request, lines)


def pull_argv(command: Sequence[str], body: PullRequest, state_dir: Path) -> list[str]:
    """The child's command line; a source cannot start with '-', so it is never an option."""
    name = body.new_name()
    named = ["--name", name] if name else []
    return [*command, body.source(), "--state-dir", str(state_dir), *named]


async def _relay(
    request: web.Request, lines: AsyncGenerator[dict[str, Any], None]
) -> web.StreamResponse:
    stream = Stream(request, NDJSON, request.app[SERVICE].limits)
    opened = False
    try:
        async for line in lines:
            await _register(request, line)
            if not opened:
                await stream.open()
                opened = True
            await stream.write(encoded(_without_model(line)) + b"\n")
        return await stream.close()
    except ConnectionError:
        raise
    except Exception as error:
        if not opened:
            raise
        return await stream.close(encoded(error_json(typed(error), "ollama")) + b"\n")


def _without_model(line: dict[str, Any]) -> dict[str, Any]:
    """Clients hear the model's name; the row stays here."""
    shown = {key: value for key, value in line.items() if key != "model"}
    return {**shown, "model": {"name": line["model"]["name"]}} if "model" in line else shown


async def _register(request: web.Request, line: dict[str, Any]) -> None:
    """Adds the model of the last line to the store, before the client hears of success."""
    if line.get("status") != "success":
        return
    try:
        row = ModelRow(**line["model"])
    except (KeyError, TypeError) as error:
        raise DownloadError("the pull ended without a usable model", str(error)) from error
    await asyncio.to_thread(request.app[SERVICE].store.add_model, row)


async def progress_of(argv: Sequence[str]) -> AsyncGenerator[dict[str, Any], None]:
    """The child's lines up to and including success. Raises the child's typed error.

    Closing the generator ends the child; what it had fetched stays for the next attempt.
    """
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
    )
    assert child.stdout is not None
    try:
        while line := await child.stdout.readline():
            document = _parse(line)
            if document.get("status") == "error":
                raise _child_error(document)
            yield document
            if document.get("status") == "success":
                return
        raise DownloadError("the pull ended early", "its process gave no result", "try again")
    except ValueError as error:
        raise DownloadError("the pull's process cannot be understood", str(error)) from error
    finally:
        await _end(child)


def _parse(line: bytes) -> dict[str, Any]:
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError(f"a line is not an object: {line[:80]!r}")
    return document


def _child_error(document: dict[str, Any]) -> Exception:
    parts = [str(document.get(part, "")) for part in ("code", "what", "why", "hint")]
    return error_from_code(*parts)


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), TERMINATE_S)
    except asyncio.TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


ROUTES = (
    Route(
        "POST",
        "/api/pull",
        pull,
        "Fetch and register a model",
        PullProgress,
        body=PullRequest,
        streams=(NDJSON, PullProgress),
    ),
)
