"""Slow, silent and vanishing clients; draining; what is recorded."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeSupervisor
from http_front import TOKEN, Front, serving
from waiting import until

from edge_agent.errors import WorkerFailed
from edge_agent.server.limits import Limits
from edge_agent.server.status import proc_bytes

TURNS = [{"role": "user", "content": "hi"}]
IMPATIENT = Limits(header_s=0.4, body_s=0.4, linger_s=0.1, drain_s=0.4)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with serving(tmp_path, limits=Limits(linger_s=0.1)) as front:
        yield front


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Front]:
    """For clients that are too slow: nobody who hurries is waited for so little."""
    with serving(tmp_path, limits=IMPATIENT) as front:
        yield front


def until_closed(peer: socket.socket, drip: bytes = b"") -> bytes:
    """What the server sends before it closes; until then `drip` is sent each 50 ms, without end."""
    received = bytearray()
    peer.settimeout(0.05)

    def is_closed() -> bool:
        try:
            peer.sendall(drip)
            piece = peer.recv(4096)
        except TimeoutError:
            return False
        except OSError:
            return True
        received.extend(piece)
        return not piece

    until(is_closed)
    peer.close()
    return bytes(received)


@pytest.mark.parametrize("head", [b"", b"GET /health HTTP/1.1\r\nHost: loc"])
def test_idle_and_half_a_header_are_closed(impatient: Front, head: bytes) -> None:
    until_closed(impatient.send(head))


def test_dripped_header_is_closed(impatient: Front) -> None:
    until_closed(impatient.send(b"GET /health HTTP/1.1\r\nX: "), drip=b"a")


def test_dripped_second_header_on_a_kept_connection_is_closed(impatient: Front) -> None:
    head = f"GET /health HTTP/1.1\r\nHost: localhost:{impatient.port}\r\n\r\n".encode()
    peer = impatient.send(head)
    assert peer.recv(4096).startswith(b"HTTP/1.1 200")
    peer.sendall(b"GET /health HTTP/1.1\r\nX: ")
    until_closed(peer, drip=b"a")


def test_stalled_body_is_408_then_closed(impatient: Front) -> None:
    raw = impatient.raw_post("/v1/chat/completions", {"messages": TURNS})
    assert until_closed(impatient.send(raw[:-5])).startswith(b"HTTP/1.1 408 ")


def test_dripped_body_is_408(impatient: Front) -> None:
    raw = impatient.raw_post("/v1/chat/completions", {"messages": TURNS, "user": "x" * 5000})
    peer = impatient.send(raw[:-4900])
    assert until_closed(peer, drip=b"x").startswith(b"HTTP/1.1 408 ")


def test_large_body_is_413_before_it_is_sent(front: Front) -> None:
    head = front.raw_post("/tokenize", {"content": "x"}).replace(
        b"Content-Length: 16", b"Content-Length: 5000000"
    )
    assert until_closed(front.send(head)).startswith(b"HTTP/1.1 413 ")


def test_large_chunked_body_is_413(front: Front) -> None:
    head = front.raw_post("/tokenize", {"content": "x"}).split(b"\r\n\r\n")[0]
    head = head.replace(b"Content-Length: 16", b"Transfer-Encoding: chunked") + b"\r\n\r\n"
    peer = front.send(head)
    for _ in range(5):
        peer.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    assert until_closed(peer).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("how", ["fin", "reset", "half_close"])
@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_cancels_its_generation(front: Front, how: str, stream: bool) -> None:
    front.supervisor.n_let_pass = 1 if stream else 0
    body = {"messages": TURNS, "stream": stream}
    peer = front.send(front.raw_post("/v1/chat/completions", body))
    until(lambda: front.supervisor.running == 1)
    if stream:
        peer.recv(100)
    if how == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half_close":
        peer.shutdown(socket.SHUT_WR)
    else:
        peer.close()
    until(lambda: front.supervisor.cancelled == 1)
    until(lambda: front.store.recent_generations(1))
    (row,) = front.store.recent_generations(9)
    assert (row.finish_reason, row.error_code) == ("cancelled", None)
    peer.close()


def test_reader_that_stops_is_dropped_and_costs_little(impatient: Front) -> None:
    front = impatient
    front.supervisor.pieces = ["x" * 1000] * 4000
    before = proc_bytes(Path(f"/proc/{os.getpid()}/status"), "RssAnon")
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(("127.0.0.1", front.port))
    peer.sendall(front.raw_post("/v1/completions", {"prompt": "x", "stream": True}))
    until(lambda: front.supervisor.cancelled == 1)
    after = proc_bytes(Path(f"/proc/{os.getpid()}/status"), "RssAnon")
    assert before is not None and after is not None
    assert after - before < 2 * 2**20
    peer.close()


def test_slow_but_steady_reader_gets_everything(front: Front) -> None:
    front.supervisor.pieces = ["x" * 1000] * 400
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    peer.connect(("127.0.0.1", front.port))
    peer.sendall(front.raw_post("/v1/completions", {"prompt": "x", "stream": True}))
    received = b""
    while b"[DONE]" not in received:
        received += peer.recv(1024)
    assert received.count(b"x" * 1000) == 400
    peer.close()


def test_draining_refuses_work_and_still_answers_questions(front: Front) -> None:
    front.supervisor.become("stopping")
    answer = front.post("/v1/completions", {"prompt": "x"})
    assert (answer.status, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert answer.headers["Retry-After"] == "1"
    assert front.post("/api/pull", {"model": "hf:a/b"}).status == 503
    assert front.get("/status").json()["engine"]["state"] == "stopping"
    assert front.get("/health").status == 503


def test_generations_are_recorded_without_their_text(front: Front) -> None:
    front.post("/v1/completions", {"prompt": "secret"})
    front.supervisor.error = WorkerFailed("the worker died")
    front.supervisor.fail_after = 1
    front.post("/api/generate", {"model": "other", "prompt": "secret"})
    failed, done = front.store.recent_generations(9)
    assert (done.api, done.model, done.finish_reason) == ("openai_completion", "tiny", "stop")
    assert (done.prompt_tokens, done.cached_tokens, done.completion_tokens) == (10, 4, 3)
    assert (done.prefill_s, done.decode_s, done.prompt_text) == (0.006, 0.03, None)
    assert (failed.api, failed.error_code) == ("ollama_generate", "worker_failed")
    assert (failed.model, failed.finish_reason, failed.completion_tokens) == ("other", None, 1)
    assert front.get("/status").json()["requests"] == {"total": 2, "failed": 1, "in_flight": 0}


def test_text_is_recorded_when_the_user_asked_for_it(tmp_path: Path) -> None:
    with serving(tmp_path, log_text=True) as front:
        front.post("/v1/chat/completions", {"messages": TURNS, "stream": True})
        (row,) = front.store.recent_generations(9)
    assert (row.prompt_text, row.completion_text) == ("user: hi", "Hello wörld")


def test_unforeseen_exception_is_a_500_without_a_traceback(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeSupervisor):
        def _events(self, request: object) -> list[object]:  # type: ignore[override]
            raise ZeroDivisionError("secret detail")

    front.supervisor.__class__ = Broken
    answer = front.post("/v1/completions", {"prompt": "x"})
    assert answer.status == 500
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    assert "secret detail" in caplog.text
    assert front.store.recent_generations(1)[0].error_code == "internal_error"


def test_broken_http_is_400_and_not_logged(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    peer = front.send(b"\x16\x03\x01 not http\r\n\r\n")
    assert peer.recv(4096).startswith(b"HTTP/1.0 400 ")
    peer.close()
    assert caplog.records == []


def test_headers_too_long_in_sum_are_431(front: Front) -> None:
    many = {f"X-{n}": "a" * 4000 for n in range(5)}
    assert front.get("/health", headers=many).status == 431


def test_absolute_target_is_400(front: Front) -> None:
    head = f"GET http://localhost:{front.port}/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    peer = front.send(head.encode())
    assert peer.recv(4096).startswith(b"HTTP/1.1 400 ")
    peer.close()


def test_thousand_connections_leave_no_descriptor_behind(front: Front) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        front.connect().close()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert TOKEN and front.get("/health").status == 200
