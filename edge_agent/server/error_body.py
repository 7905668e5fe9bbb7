"""Every error as HTTP: the JSON that OpenAI's, Ollama's and llama-server's clients expect.

Flows in: any exception that a handler raised. Flows out: status, headers and body, in the dialect
of the request's path. The three parts of our errors become one message, and also stand beside it
for our own client. Refusal and FieldError are the errors that exist only in HTTP (the sender, the
framing, a wrong field); errors that the CLI can meet too are in errors.py. Not here: an error
inside a running stream (openai.py, ollama.py write it).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from aiohttp import web

from edge_agent.errors import EdgeAgentError, Overloaded, RequestError, ShuttingDown
from edge_agent.json_lines import escaped

Dialect = Literal["openai", "ollama", "llama_server"]
LLAMA_SERVER_PATHS = frozenset(
    {
        *("/health", "/v1/health", "/props", "/slots", "/lora-adapters"),
        *("/tokenize", "/detokenize", "/apply-template", "/completion", "/completions"),
    }
)
RETRY_AFTER_RESTART_S = 1
"""Retry-After in seconds: replacing a worker takes about one, restarting the daemon a few."""

_LOG = logging.getLogger(__name__)


class Refusal(EdgeAgentError):
    """An HTTP request that is refused before any model sees it."""

    def __init__(self, status: int, code: str, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.status = status
        self.code = code
        self.headers: Mapping[str, str] = {}

    def with_headers(self, headers: Mapping[str, str]) -> Refusal:
        """The same refusal, to be sent with these response headers."""
        self.headers = headers
        return self


class FieldError(RequestError):
    """A field of a request body that is not valid. `param` is its path, as in `messages.0.role`."""

    def __init__(self, param: str, why: str, hint: str = "") -> None:
        super().__init__(f"field '{param}' is not valid" if param else "invalid body", why, hint)
        self.param = param


def dialect_of(path: str) -> Dialect:
    """The dialect that clients of `path` read; OpenAI's for paths of our own, as the best known."""
    if path.startswith("/api/") or path == "/":
        return "ollama"
    return "llama_server" if path in LLAMA_SERVER_PATHS else "openai"


def message_of(error: EdgeAgentError) -> str:
    """The three parts on one line: "what failed: why. What to do next"."""
    return f"{error}. {error.hint}" if error.hint else str(error)


def error_json(error: EdgeAgentError, dialect: Dialect) -> dict[str, Any]:
    """The error's JSON document in one dialect."""
    message = message_of(error)
    parts = {"what": error.what, "why": error.why, "hint": error.hint}
    if dialect == "ollama":
        return {"error": message, "code": error.code, **parts}
    if dialect == "llama_server":
        kind = "unavailable_error" if error.status == 503 else _type_of(error.status)
        return {"error": {"code": error.status, "message": message, "type": kind}}
    param = error.param if isinstance(error, FieldError) else None
    head = {"message": message, "type": _type_of(error.status), "param": param, "code": error.code}
    return {"error": {**head, **parts}}


def _type_of(status: int) -> str:
    """OpenAI's `type` for a status."""
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    if status in named:
        return named[status]
    return "server_error" if status >= 500 else "invalid_request_error"


def error_headers(error: EdgeAgentError) -> dict[str, str]:
    """Retry-After in whole seconds where a retry can succeed, or the headers of a refusal."""
    if isinstance(error, Overloaded):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, ShuttingDown) or error.code == "worker_failed":
        return {"Retry-After": str(RETRY_AFTER_RESTART_S)}
    return dict(error.headers) if isinstance(error, Refusal) else {}


def error_response(error: EdgeAgentError, path: str) -> web.Response:
    """A whole HTTP answer. 408 and 413 leave a body unread and close the connection."""
    response = web.Response(
        status=error.status,
        headers=error_headers(error),
        body=escaped(msgspec.json.encode(error_json(error, dialect_of(path)))),
        content_type="application/json",
    )
    if error.status in (408, 413):
        response.force_close()
    return response


def typed(error: Exception, asked: str = "the request") -> EdgeAgentError:
    """Any exception as one of ours; an unexpected one is logged. `asked` names the request."""
    if isinstance(error, EdgeAgentError):
        return error
    if isinstance(error, web.HTTPException):
        return _from_aiohttp(error, asked)
    _LOG.error("%s failed unexpectedly", asked, exc_info=error)
    return EdgeAgentError(
        f"the daemon failed to answer {asked}",
        f"an unexpected {type(error).__name__}",
        "the daemon's log has the details; please report them",
    )


def _from_aiohttp(error: web.HTTPException, asked: str) -> EdgeAgentError:
    codes = {404: "not_found", 405: "method_not_allowed", 417: "expectation_failed"}
    code = codes.get(error.status, "invalid_request")
    refusal = Refusal(
        error.status,
        code,
        f"{asked} is not served",
        error.reason,
        "GET /openapi.json lists what this daemon serves",
    )
    allow = error.headers.get("Allow")
    return refusal.with_headers({"Allow": allow}) if allow else refusal
