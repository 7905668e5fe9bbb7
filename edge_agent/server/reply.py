"""Sends bytes to a client that may be slow, gone or hostile.

Flows in: whole JSON documents, or the pieces of a stream. Flows out: bytes on the connection. A
reader who stops reading costs at most Limits.write_buffer_bytes twice (ours and the kernel's) and
Limits.drain_s, then its connection is dropped, which cancels the generation behind it. Not here:
what the bytes mean (openai.py, ollama.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, cast

import msgspec
from aiohttp import web
from aiohttp.http_writer import StreamWriter

from edge_agent.json_lines import escaped
from edge_agent.server.limits import Limits

EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"


def json_response(document: Any, status: int = 200) -> web.Response:
    """A JSON answer; `document` is anything msgspec encodes."""
    return web.Response(status=status, body=encoded(document), content_type="application/json")


class ReaderGone(ConnectionError):
    """The client left, or did not read for Limits.drain_s."""


class Stream:
    """A response sent piece by piece; the headers leave with the first piece.

    `write` is called once a token: it costs one system call and no copy beyond it.
    """

    def __init__(self, request: web.Request, content_type: str, limits: Limits) -> None:
        self.is_open = False
        self._request = request
        self._limits = limits
        self._response = web.StreamResponse(
            headers={"Content-Type": content_type, "Cache-Control": "no-cache"}
        )
        self._writer: StreamWriter

    async def open(self) -> None:
        """Prepare the headers and bound the buffers. Raises ReaderGone."""
        self.is_open = True
        transport = self._request.transport
        if transport is None:
            raise ReaderGone("the client left before the first byte")
        cast(asyncio.WriteTransport, transport).set_write_buffer_limits(
            self._limits.write_buffer_bytes
        )
        peer = transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._limits.write_buffer_bytes)
        self._writer = cast(StreamWriter, await self._response.prepare(self._request))

    async def write(self, piece: bytes) -> None:
        """Sends one piece. Raises ReaderGone (a ConnectionError, as aiohttp's own)."""
        await self._writer.write(piece, drain=False)
        if self._request.protocol.writing_paused:
            await _or_drop(self._writer.drain(), self._request, self._limits.drain_s)

    async def close(self, last: bytes = b"") -> web.StreamResponse:
        """Sends the last piece and ends the response."""
        await _or_drop(self._response.write_eof(last), self._request, self._limits.drain_s)
        return self._response


async def _or_drop(writing: Any, request: web.BaseRequest, limit_s: float) -> None:
    try:
        await asyncio.wait_for(writing, limit_s)
    except asyncio.TimeoutError:
        transport = request.transport
        if transport is not None:
            cast(asyncio.WriteTransport, transport).abort()
        raise ReaderGone(f"the client read nothing for {limit_s:g} s") from None


async def finish(
    request: web.Request, response: web.StreamResponse, limits: Limits
) -> web.StreamResponse:
    """Sends a whole response under the drain deadline; a no-op for a stream already ended."""
    await response.prepare(request)
    with contextlib.suppress(ReaderGone):
        await _or_drop(response.write_eof(), request, limits.drain_s)
    return response


def encoded(value: Any) -> bytes:
    """One JSON value in bytes, on one line for every reader: what streams are made of."""
    return escaped(msgspec.json.encode(value))
