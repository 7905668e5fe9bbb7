"""The streaming client of every benchmark: it times an SSE answer line by line.

Flows in: an address and a JSON body. Flows out: a StreamResult with the arrival time of every
piece, the tokens and timings that the server sent, and how the stream ended. It uses the standard
library only, so that every measured server pays the same few microseconds; lines are kept raw while
the clock runs and parsed afterwards. Not here: statistics, the servers themselves.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DATA = b"data: "
DONE = b"[DONE]"


@dataclass(frozen=True)
class Address:
    """A server on loopback TCP; `token` is its bearer token, if it wants one."""

    port: int
    token: str | None = None
    host: str = "127.0.0.1"

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        return {**headers, "Authorization": f"Bearer {self.token}"} if self.token else headers


@dataclass(frozen=True)
class StreamResult:
    """One answer. Times are seconds of time.monotonic(); `ending` says how the stream ended:

    complete (a finish_reason came), error_event (a typed error inside the stream), refused (a typed
    error instead of a stream), cut (the connection ended in the middle), malformed (a line that is
    no SSE or no JSON), hung (no end before the deadline), unreachable.
    """

    ending: str
    sent_s: float
    end_s: float
    piece_s: list[float] = field(default_factory=list)
    text: str = ""
    status: int | None = None
    timings: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    detail: str = ""

    @property
    def ttft_s(self) -> float:
        """From just before the connection is opened to the first piece of text."""
        return self.piece_s[0] - self.sent_s

    @property
    def completion_tokens(self) -> int:
        return int(self.timings.get("predicted_n") or self.usage.get("completion_tokens") or 0)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, including those taken from the prefix cache."""
        fresh = self.timings.get("prompt_n", 0) + self.timings.get("cache_n", 0)
        return int(self.usage.get("prompt_tokens") or fresh)

    @property
    def decode_tok_s(self) -> float:
        """Tokens after the first over the time between the first and the last piece."""
        return (self.completion_tokens - 1) / (self.piece_s[-1] - self.piece_s[0])


def ask_json(
    address: Address, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = 60.0
) -> tuple[int, Any]:
    """(status, document) of a GET, or of a POST when there is a body.

    Raises OSError, ValueError.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
    try:
        connection.request(method, path, body=data, headers=address.headers())
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def stream(
    address: Address, path: str, body: Mapping[str, Any], deadline_s: float = 120.0
) -> StreamResult:
    """POST `body` and read the SSE answer to its end; a server's failure is a result, not an
    exception."""
    sent_s = time.monotonic()
    deadline = sent_s + deadline_s
    lines: list[tuple[float, bytes]] = []
    status, ending = 200, ""
    try:
        with socket.create_connection((address.host, address.port), deadline_s) as sock:
            response = _post(sock, path, json.dumps(body).encode(), address)
            status = response.status
            _read_lines(sock, response, deadline, lines)
    except TimeoutError:
        ending = "hung"
    except (OSError, http.client.HTTPException) as error:
        if not lines:
            return StreamResult("unreachable", sent_s, time.monotonic(), detail=repr(error))
        ending = "cut"
    return _parse(lines, status, ending, sent_s, time.monotonic())


def _post(
    sock: socket.socket, path: str, body: bytes, address: Address
) -> http.client.HTTPResponse:
    """Send the request by hand, because http.client hides the socket whose time limit must be
    changed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fields = {**address.headers(), "Host": f"{address.host}:{address.port}"}
    fields |= {"Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    sock.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    response = http.client.HTTPResponse(sock, method="POST")
    response.begin()
    return response


def _read_lines(
    sock: socket.socket,
    response: http.client.HTTPResponse,
    deadline: float,
    lines: list[tuple[float, bytes]],
) -> None:
    """Fill `lines` until the body ends. Raises TimeoutError at the deadline, OSError."""
    while True:
        sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        line = response.readline()
        if not line:
            return
        if line.strip():
            lines.append((time.monotonic(), line))


def _parse(
    lines: list[tuple[float, bytes]], status: int, ending: str, sent_s: float, end_s: float
) -> StreamResult:
    """The result that the raw lines give."""
    if status != 200:
        return _refused(lines, status, ending, sent_s, end_s)
    pieces, found, text = [], {}, []
    for at_s, line in lines:
        payload = line.strip().removeprefix(DATA)
        if payload == DONE or line.startswith((b":", b"event:")):
            continue
        try:
            event = json.loads(payload)
            piece = _piece(event)
        except (ValueError, AttributeError, TypeError, KeyError, IndexError):
            ending, found["detail"] = ending or "malformed", repr(line[:200])
            break
        if piece:
            pieces.append(at_s)
            text.append(piece)
        _collect(event, found)
    ending = ending or found.pop("ending", "cut")
    found.pop("ending", None)
    return StreamResult(ending, sent_s, end_s, pieces, "".join(text), status, **found)


def _piece(event: dict[str, Any]) -> str:
    """The text of an event of /v1/completions or /v1/chat/completions."""
    choices = event.get("choices") or []
    if not choices:
        return ""
    return choices[0].get("text") or choices[0].get("delta", {}).get("content") or ""


def _collect(event: dict[str, Any], found: dict[str, Any]) -> None:
    for key in ("timings", "usage"):
        if event.get(key):
            found[key] = event[key]
    if event.get("error"):
        found["ending"], found["detail"] = "error_event", json.dumps(event["error"])
    elif any(choice.get("finish_reason") for choice in event.get("choices") or []):
        found["ending"] = "complete"


def _refused(
    lines: list[tuple[float, bytes]], status: int, ending: str, sent_s: float, end_s: float
) -> StreamResult:
    body = b"".join(line for _, line in lines)
    try:
        typed = bool(json.loads(body).get("error"))
    except (ValueError, AttributeError):
        typed = False
    ending = ending or ("refused" if typed else "malformed")
    return StreamResult(ending, sent_s, end_s, status=status, detail=repr(body[:300]))
