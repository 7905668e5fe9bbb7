"""One hostile request: its bytes, and the only statuses that are a correct answer to it.

Flows in: a row of the table. Flows out: the outcome of sending it to a live server on a real
socket. Used by tests/server/test_hostile.py (fake engine) and benchmarks/hostile.py (real daemon).
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Target:
    """Where the server listens; `model` is a registered name."""

    host: str
    port: int
    token: str
    model: str = "default"


@dataclass(frozen=True)
class Case:
    """`broken_http`: so broken that plain text or a close without an answer is also correct."""

    kind: str
    name: str
    request: Callable[[Target], bytes]
    allowed: frozenset[int]
    broken_http: bool = False


@dataclass(frozen=True)
class Outcome:
    """`status` None: the connection closed, or (when `hung`) stayed silent, without an answer."""

    status: int | None
    seconds: float
    typed: bool
    hung: bool

    def is_right(self, case: Case) -> bool:
        if self.status is None:
            return case.broken_http and not self.hung
        return self.status in case.allowed and (self.typed or case.broken_http)


def head(
    target: Target,
    line: str,
    headers: dict[str, str | None] | None = None,
) -> bytes:
    """Request line and headers of a correct client; a header whose value is None is left out."""
    fields: dict[str, str | None] = {
        "Host": f"{target.host}:{target.port}",
        "Authorization": f"Bearer {target.token}",
        "Connection": "close",
        **(headers or {}),
    }
    text = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"{line} HTTP/1.1\r\n{text}\r\n".encode("latin-1")


def post(
    path: str, body: Any, headers: dict[str, str | None] | None = None
) -> Callable[[Target], bytes]:
    """A POST; `body` is bytes, or a value to be sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields: dict[str, str | None] = {
        "Content-Type": "application/json",
        "Content-Length": str(len(raw)),
        **(headers or {}),
    }
    return lambda target: head(target, f"POST {path}", fields) + raw


def run_case(host: str, port: int, token: str, case: Case) -> Outcome:
    """Send the case and read to the end of the connection."""
    start = time.monotonic()
    hung = False
    received = b""
    with socket.create_connection((host, port), timeout=ANSWER_TIMEOUT_S) as peer:
        with suppress(OSError):  # refused before all was sent; the answer may still be there
            peer.sendall(case.request(Target(host, port, token)))
        try:
            while piece := peer.recv(65536):
                received += piece
        except TimeoutError:
            hung = True
        except OSError:
            pass
    return _outcome(received, time.monotonic() - start, hung)


def _outcome(received: bytes, seconds: float, hung: bool) -> Outcome:
    lines, _, rest = received.partition(b"\r\n\r\n")
    if lines.startswith(b"HTTP/1.1 100 "):
        lines, _, rest = rest.partition(b"\r\n\r\n")
    parts = lines.split(b" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        return Outcome(None, seconds, False, hung)
    return Outcome(int(parts[1]), seconds, _is_typed(rest), hung)


def _is_typed(body: bytes) -> bool:
    """Whether the body is a JSON error in one of the three dialects, without a traceback."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    message = error if isinstance(error, str) else error.get("message")
    return bool(message) and "Traceback" not in message
