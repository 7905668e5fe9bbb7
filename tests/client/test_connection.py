"""The HTTP client over Unix sockets: the real front, and peers that misbehave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_engine import FakeSupervisor
from http_front import serving
from waiting import DEADLINE_S, until

from edge_agent.client.connection import Client, Ending, error_from_body, find_daemon, socket_paths
from edge_agent.errors import (
    DaemonNotRunning,
    EdgeAgentError,
    ModelNotFound,
    ModelRefused,
    Overloaded,
    WorkerFailed,
)

QUESTION = {"messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


@contextmanager
def peer(tmp_path: Path, reply: bytes) -> Iterator[Client]:
    """A daemon that sends `reply` to whoever asks and hangs up."""
    path = tmp_path / "peer.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(reply)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield Client(path, timeout_s=DEADLINE_S)
    finally:
        thread.join(DEADLINE_S)
        listener.close()


def http_reply(body: bytes, kind: str = "text/event-stream") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def test_an_answer_arrives_in_pieces_and_ends_with_its_figures(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        *pieces, ending = Client(front.socket_path).answer(CHAT, QUESTION)
    assert pieces == ["Hel", "lo ", "wörld"]
    assert isinstance(ending, Ending)
    assert (ending.model, ending.finish_reason) == ("tiny", "stop")
    assert ending.usage["prompt_tokens_details"]["cached_tokens"] == 4
    assert ending.timings["prompt_n"] == 6


def test_plain_completions_arrive_the_same_way(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        *pieces, _ = Client(front.socket_path).answer("/v1/completions", {"prompt": "Once"})
        assert front.supervisor.requests[0].text == "Once"
    assert pieces == ["Hel", "lo ", "wörld"]


def test_closing_the_stream_cancels_the_answer(tmp_path: Path) -> None:
    with serving(tmp_path, FakeSupervisor(["x"] * 9, n_let_pass=1)) as front:
        stream = Client(front.socket_path).answer(CHAT, QUESTION)
        assert next(stream) == "x"
        stream.close()
        until(lambda: front.supervisor.cancelled == 1)


def test_a_refusal_comes_back_as_its_own_exception(tmp_path: Path) -> None:
    error = Overloaded("the queue is full", "16 requests wait", "wait a little")
    full = pytest.raises(Overloaded, match="the queue is full")
    with serving(tmp_path, FakeSupervisor(error=error)) as front, full:
        list(Client(front.socket_path).answer(CHAT, QUESTION))


def test_an_error_in_the_middle_keeps_what_came_before(tmp_path: Path) -> None:
    error = WorkerFailed("the worker died", "signal 9", "ask again")
    seen = []
    died = pytest.raises(WorkerFailed, match="the worker died")
    with serving(tmp_path, FakeSupervisor(error=error, fail_after=2)) as front, died:
        for piece in Client(front.socket_path).answer(CHAT, QUESTION):
            seen.append(piece)
    assert seen == ["Hel", "lo "]


def test_ollama_s_errors_are_typed_by_their_status(tmp_path: Path) -> None:
    with serving(tmp_path) as front, pytest.raises(ModelNotFound, match="nosuch"):
        Client(front.socket_path).post("/api/show", {"model": "nosuch"})


def test_an_answer_without_a_body_is_an_empty_document(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        assert Client(front.socket_path).delete("/api/delete", {"model": "other"}) == {}


def test_a_prompt_too_long_is_refused_with_the_daemon_s_reason(tmp_path: Path) -> None:
    with serving(tmp_path) as front, pytest.raises(EdgeAgentError, match="bytes") as caught:
        list(Client(front.socket_path).answer("/v1/completions", {"prompt": "x" * 6_000_000}))
    assert not isinstance(caught.value, WorkerFailed)


def test_a_stream_cut_short_is_never_taken_for_an_answer(tmp_path: Path) -> None:
    cut = http_reply(b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n')
    with peer(tmp_path, cut) as client, pytest.raises(WorkerFailed, match="broke off"):
        list(client.answer(CHAT, QUESTION))


@pytest.mark.parametrize("reply", [b"", b"\0\1garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-L"])
def test_a_peer_that_hangs_up_is_a_typed_error(tmp_path: Path, reply: bytes) -> None:
    with peer(tmp_path, reply) as client, pytest.raises(EdgeAgentError):
        client.get("/status")


@pytest.mark.parametrize("body", [b"data: [1]\n\n", b"data: {broken\n\n", b"data: \xff\n\n"])
def test_events_that_are_no_objects_are_a_typed_error(tmp_path: Path, body: bytes) -> None:
    with peer(tmp_path, http_reply(body)) as client, pytest.raises(EdgeAgentError, match="JSON"):
        list(client.answer(CHAT, QUESTION))


def test_a_silent_daemon_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(EdgeAgentError, match=r"said nothing for 0\.2 s"):
            Client(tmp_path / "s", timeout_s=0.2).get("/status")


def test_a_missing_socket_says_how_to_start_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonNotRunning) as caught:
        Client(tmp_path / "none").get("/status")
    assert "edge-agent serve --model smollm2-135m" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "body", "kind", "what"),
    [
        (507, b'{"error": {"message": "too big", "code": "model_refused"}}', ModelRefused, "too b"),
        (507, b'{"error": "too big"}', ModelRefused, "too big"),
        (503, b'{"error": {"code": 503, "message": "loading"}}', WorkerFailed, "loading"),
        (418, b'{"error": "odd"}', EdgeAgentError, "odd"),
        (500, b"<html>", EdgeAgentError, "status 500"),
        (500, b'{"error": null}', EdgeAgentError, "status 500"),
    ],
)
def test_error_bodies_of_every_dialect_are_understood(
    status: int, body: bytes, kind: type, what: str
) -> None:
    error = error_from_body(status, body)
    assert type(error) is kind
    assert what in str(error)


def test_the_parts_of_an_error_survive_when_the_daemon_sends_them() -> None:
    body = b'{"error": {"code": "overloaded", "what": "full", "why": "16 wait", "hint": "wait"}}'
    error = error_from_body(429, body)
    assert (error.what, error.why, error.hint) == ("full", "16 wait", "wait")


def test_the_service_comes_before_the_user_s_own_daemon(tmp_path: Path) -> None:
    service = tmp_path / "run" / "agent.sock"
    environ = {"HOME": str(tmp_path)}
    own = tmp_path / ".local/state/edge-agent/agent.sock"
    assert socket_paths(None, environ, service) == [service, own]


def test_a_named_state_directory_is_the_only_one_looked_at(tmp_path: Path) -> None:
    service = tmp_path / "run" / "agent.sock"
    assert socket_paths(tmp_path, {}, service) == [tmp_path / "agent.sock"]
    environ = {"EDGE_AGENT_STATE_DIR": str(tmp_path)}
    assert socket_paths(None, environ, service) == [tmp_path / "agent.sock"]


def test_run_json_leads_to_a_moved_socket(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        state = tmp_path / "state"
        state.mkdir()
        (state / "run.json").write_text(f'{{"socket": "{front.socket_path}"}}')
        client = find_daemon(state, {})
        assert client.socket_path == front.socket_path
        assert client.get("/health") == {"status": "ok"}


def test_a_stale_socket_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "agent.sock"))
    with pytest.raises(DaemonNotRunning) as caught:
        find_daemon(tmp_path, {})
    assert str(tmp_path / "agent.sock") in caught.value.why
    assert f"--state-dir {tmp_path}" in caught.value.hint


def test_a_path_too_long_for_a_socket_is_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonNotRunning):
        find_daemon(tmp_path / ("x" * 150), {})
