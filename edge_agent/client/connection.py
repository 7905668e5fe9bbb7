"""The command line's way to the daemon: HTTP over its Unix socket, blocking, standard library only.

Flows in: a path and a JSON body. Flows out: JSON documents, or generators over server-sent events
and NDJSON lines whose closing closes the connection (which is how an answer is cancelled: the
daemon frees the slot of a client that left). Error bodies of all three dialects the daemon speaks
come back as the exceptions of errors.py. Not here: TCP and tokens, retries, anything asynchronous.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.errors import DaemonNotRunning, EdgeAgentError, WorkerFailed, error_from_code
from edge_agent.state_dir import StateDir

SERVICE_SOCKET = Path("/run/edge-agent/agent.sock")
"""systemd/edge-agent.socket listens here, mode 0660, group edge-agent."""
GROUP_HINT = "sudo usermod -aG edge-agent $USER, then log in again"

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 900.0
"""Silence after which a request is given up: a first load on a Jetson compiles CUDA for minutes."""
MAX_LINE_BYTES = 8 * 1024 * 1024
PIECE_BYTES = 64 * 1024
_CODE_OF_STATUS = {
    400: "invalid_request",
    404: "model_not_found",
    409: "daemon_running",
    422: "model_format_error",
    429: "overloaded",
    502: "download_error",
    503: "worker_failed",
    507: "model_refused",
}
"""For Ollama's dialect, whose error bodies are a sentence without a code."""


@dataclass(frozen=True)
class Ending:
    """What the daemon says about an answer after its last piece.

    `timings` has llama-server's names (prompt_n, prompt_ms, predicted_n, predicted_ms, cache_n),
    `usage` OpenAI's, `energy` those of records.Energy; it is empty when the daemon told nothing.
    """

    model: str
    finish_reason: str
    usage: Mapping[str, Any]
    timings: Mapping[str, Any]
    energy: Mapping[str, Any] = field(default_factory=dict)
    temperature_celsius: float | None = None
    id: str = ""
    """Of the response: what feedback on it names."""


class _UnixConnection(http.client.HTTPConnection):
    """http.client over AF_UNIX. A path longer than the kernel's 107 bytes is an OSError."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._read_timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = connect(self._path)
        self.sock.settimeout(self._read_timeout_s)


def connect(path: Path) -> socket.socket:
    """A connected stream socket. Raises OSError, also for a path no address can hold."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(frozen=True)
class Client:
    """A daemon at `socket_path`. Every call is one connection, so nothing has to be closed."""

    socket_path: Path
    timeout_s: float = ANSWER_TIMEOUT_S

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`. Raises what the daemon answered, DaemonNotRunning."""
        return self._document("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._document("POST", path, body)

    def delete(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._document("DELETE", path, body)

    def lines(self, path: str, body: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
        """Objects of an NDJSON stream (GET without a body); an `error` in one of them is raised."""
        with self._response("GET" if body is None else "POST", path, body) as response:
            for line in _lines(response):
                yield _checked(json_object(line), response.status)

    def pieces(self, path: str) -> Iterator[bytes]:
        """A file the daemon sends, piece by piece."""
        with (
            self._response("GET", path, None) as response,
            _typed(self.socket_path, self.timeout_s),
        ):
            while piece := response.read(PIECE_BYTES):
                yield piece

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Objects of a server-sent event stream up to [DONE].

        Raises WorkerFailed when the stream ends without it, and the error an event carries.
        """
        with self._response("POST", path, body) as response:
            for line in _lines(response):
                field, _, value = line.partition(b":")
                if field != b"data":
                    continue
                if value.strip() == b"[DONE]":
                    return
                yield _checked(json_object(value), response.status)
        raise WorkerFailed(
            "the answer broke off", "the daemon closed the stream before its end", "ask again"
        )

    def answer(self, path: str, body: Mapping[str, Any]) -> Generator[str | Ending, None, None]:
        """Pieces of text as they come, then one Ending. Close the generator to cancel.

        `path` is /v1/chat/completions or /v1/completions.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        model, finish_reason, response_id = "", "", ""
        usage: Mapping[str, Any] = {}
        timings: Mapping[str, Any] = {}
        energy: Mapping[str, Any] = {}
        temperature_celsius: float | None = None
        for event in self.events(path, body):
            model = str(event.get("model") or model)
            response_id = str(event.get("id") or response_id)
            usage = event.get("usage") or usage
            timings = event.get("timings") or timings
            energy = event.get("energy") or energy
            temperature_celsius = event.get("temperature_celsius", temperature_celsius)
            for choice in event.get("choices") or []:
                finish_reason = choice.get("finish_reason") or finish_reason
                text = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
                if text:
                    yield text
        yield Ending(model, finish_reason, usage, timings, energy, temperature_celsius, response_id)

    def _document(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        with self._response(method, path, body) as response:
            # Only an announced emptiness is an answer: http.client reads a cut head as one too.
            is_empty = response.getheader("Content-Length") == "0"
            return {} if is_empty else json_object(response.read())

    @contextmanager
    def _response(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        """An answered request; its connection is closed on the way out, whatever happens."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        connection = _UnixConnection(self.socket_path, self.timeout_s)
        try:
            with _typed(self.socket_path, self.timeout_s):
                # A body refused half-way (too long) breaks the pipe; the answer then says why.
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body=data, headers=headers)
                response = connection.getresponse()
                if response.status >= 400:
                    raise error_from_body(response.status, response.read(MAX_LINE_BYTES))
                yield response
        finally:
            connection.close()


def error_from_body(status: int, raw: bytes) -> EdgeAgentError:
    """The exception an error body of OpenAI's, llama-server's or Ollama's shape stands for."""
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if isinstance(body, dict) and body.get("error"):
        return _from_object(status, body)
    return EdgeAgentError(
        f"the daemon answered with status {status}",
        raw[:200].decode("utf-8", "replace").strip(),
        "check with `edge-agent status` that it is an edge-agent daemon of this version",
    )


def json_object(raw: bytes) -> dict[str, Any]:
    """A JSON object the daemon sent. Raises EdgeAgentError for anything else."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    raise EdgeAgentError(
        "the daemon sent something that is not a JSON object",
        repr(raw[:80]),
        "restart it: it may be of another version than this command",
    )


def _from_object(status: int, body: Mapping[str, Any]) -> EdgeAgentError:
    """`what`, `why` and `hint` are ours and optional; a message alone is a `what`."""
    error = body["error"]
    parts = error if isinstance(error, dict) else {**body, "message": error}
    code = parts.get("code")
    if not isinstance(code, str):
        code = _CODE_OF_STATUS.get(status, "internal_error")
    what = str(parts.get("what") or parts.get("message") or f"status {status}")
    return error_from_code(code, what, str(parts.get("why") or ""), str(parts.get("hint") or ""))


def _checked(event: dict[str, Any], status: int) -> dict[str, Any]:
    """An error inside a stream whose head already said 200."""
    if event.get("error"):
        raise _from_object(503 if status == 200 else status, event)
    return event


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Non-empty lines as they arrive. A line longer than MAX_LINE_BYTES is an error."""
    while line := response.readline(MAX_LINE_BYTES):
        if len(line) >= MAX_LINE_BYTES:
            raise EdgeAgentError(f"the daemon sent a line of more than {MAX_LINE_BYTES} bytes")
        if line.strip():
            yield line


@contextmanager
def _typed(path: Path, timeout_s: float) -> Iterator[None]:
    """Socket and protocol trouble as our errors."""
    try:
        yield
    except TimeoutError as error:
        raise EdgeAgentError(
            f"the daemon on {path} said nothing for {timeout_s:g} s",
            "it may be stopped or stuck",
            "look with `edge-agent status` and in its log, then restart it",
        ) from error
    except (FileNotFoundError, ConnectionRefusedError, PermissionError) as error:
        why = error.strerror or str(error)
        raise DaemonNotRunning(f"no daemon answers on {path}", why, START_HINT) from error
    except (OSError, http.client.HTTPException) as error:
        raise WorkerFailed(
            f"the connection to the daemon on {path} broke off",
            str(error) or type(error).__name__,
            "ask again; `edge-agent status` tells whether it still runs",
        ) from error


START_HINT = (
    "start one with `edge-agent serve --model smollm2-135m`, "
    "or as a service with `systemctl start edge-agent`"
)


def state_dir_of(given: Path | None, environ: Mapping[str, str]) -> Path:
    """The state directory of this command, absolute."""
    if given is not None:
        return given.expanduser().absolute()
    from edge_agent.config import state_dir_from

    return state_dir_from(environ)


def socket_paths(
    given: Path | None, environ: Mapping[str, str], service_socket: Path = SERVICE_SOCKET
) -> list[Path]:
    """Sockets to try, in this order; STATE/run.json knows a socket moved by `serve --socket`."""
    state = state_dir_of(given, environ)
    run = StateDir(state).read_run() or {}
    named_socket = run.get("socket")
    moved = [Path(named_socket)] if isinstance(named_socket, str) else []
    own = [*moved, state / "agent.sock"]
    is_named = given is not None or bool(environ.get("EDGE_AGENT_STATE_DIR"))
    return list(dict.fromkeys(own if is_named else [service_socket, *own]))


def find_daemon(
    given: Path | None, environ: Mapping[str, str], timeout_s: float = ANSWER_TIMEOUT_S
) -> Client:
    """The first daemon that accepts a connection. Raises DaemonNotRunning."""
    refusals: list[str] = []
    hint = START_HINT
    for path in socket_paths(given, environ):
        try:
            connect(path).close()
        except OSError as error:
            refusals.append(f"{path}: {error.strerror or error}")
            hint = GROUP_HINT if isinstance(error, PermissionError) else hint
        else:
            return Client(path, timeout_s)
    raise DaemonNotRunning("no daemon answers", "; ".join(refusals), _with_state_dir(hint, given))


def _with_state_dir(hint: str, given: Path | None) -> str:
    """The hint's command must start the daemon this very command would find."""
    if given is None:
        return hint
    return hint.replace("edge-agent serve", f"edge-agent serve --state-dir {given}")
