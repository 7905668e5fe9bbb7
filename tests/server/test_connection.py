"""Slow, silent and vanishing clients; draining; what is recorded."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeSupervisor
from http_front import TOKEN, Front, eventually, serving

from edge_agent.errors import WorkerFailed
from edge_agent.server.limits import Limits
from edge_agent.server.status import proc_bytes

TURNS = [{"role": "user", "content": "hi"}]
FAST = Limits(header_s=0.4, body_s=0.4, linger_s=0.1, drain_s=0.4)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with serving(tmp_path, limits=FAST) as front:
        yield front


def closed_after_s(peer: socket.socket, drip: bytes = b"", limit_s: float = 5.0) -> float:
    """Seconds until the server closes; `drip` is sent a byte each 50 ms meanwhile."""
    start, pending = time.monotonic(), drip
    peer.settimeout(0.05)
    while time.monotonic() - start < limit_s:
        try:
            if pending:
                peer.send(pending[:1])
                pending = pending[1:]
            if not peer.recv(4096):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    peer.close()
    return time.monotonic() - start


@pytest.mark.parametrize("head", [b"", b"GET /health HTTP/1.1\r\nHost: loc"])
def test_idle_and_half_a_header_are_closed(front: Front, head: bytes) -> None:
    assert closed_after_s(front.send(head)) < 1


def test_dripped_header_is_closed(front: Front) -> None:
    head = b"GET /health HTTP/1.1\r\nX: " + b"a" * 500
    assert closed_after_s(front.connect(), drip=head) < 1


def test_dripped_second_header_on_a_kept_connection_is_closed(front: Front) -> None:
    peer = front.send(f"GET /health HTTP/1.1\r\nHost: localhost:{front.port}\r\n\r\n".encode())
    assert peer.recv(4096).startswith(b"HTTP/1.1 200")
    assert closed_after_s(peer, drip=b"GET /health HTTP/1.1\r\nX: " + b"a" * 500) < 1


def test_stalled_body_is_408_then_closed(front: Front) -> None:
    raw = front.raw_post("/v1/chat/completions", {"messages": TURNS})
    peer = front.send(raw[:-5])
    assert peer.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert closed_after_s(peer) < 1


def test_dripped_body_is_408(front: Front) -> None:
    raw = front.raw_post("/v1/chat/completions", {"messages": TURNS, "user": "x" * 500})
    assert closed_after_s(front.send(raw[:-400]), drip=raw[-400:]) < 1.5


def test_large_body_is_413_before_it_is_sent(front: Front) -> None:
    head = front.raw_post("/tokenize", {"content": "x"}).replace(
        b"Content-Length: 16", b"Content-Length: 5000000"
    )
    peer = front.send(head)
    assert peer.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert closed_after_s(peer) < 1


def test_large_chunked_body_is_413(front: Front) -> None:
    head = front.raw_post("/tokenize", {"content": "x"}).split(b"\r\n\r\n")[0]
    head = head.replace(b"Content-Length: 16", b"Transfer-Encoding: chunked") + b"\r\n\r\n"
    peer = front.send(head)
    for _ in range(5):
        peer.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    assert peer.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert closed_after_s(peer) < 1


@pytest.mark.parametrize("how", ["fin", "reset", "half_close"])
@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_cancels_its_generation(front: Front, how: str, stream: bool) -> None:
    front.supervisor.pieces = ["x"] * 10_000
    front.supervisor.pause_s = 0.01 if stream else 30
    body = {"messages": TURNS, "stream": stream}
    peer = front.send(front.raw_post("/v1/chat/completions", body))
    assert eventually(lambda: front.supervisor.running == 1)
    if stream:
        peer.recv(100)
    if how == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half_close":
        peer.shutdown(socket.SHUT_WR)
    else:
        peer.close()
    assert eventually(lambda: front.supervisor.cancelled == 1, within_s=0.25)
    assert eventually(lambda: front.store.recent_generations(1))
    (row,) = front.store.recent_generations(9)
    assert (row.finish_reason, row.error_code) == ("cancelled", None)
    peer.close()


def test_reader_that_stops_is_dropped_and_costs_little(front: Front) -> None:
    front.supervisor.pieces = ["x" * 1000] * 4000
    before = proc_bytes(Path(f"/proc/{os.getpid()}/status"), "RssAnon")
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(("127.0.0.1", front.port))
    start = time.monotonic()
    peer.sendall(front.raw_post("/v1/completions", {"prompt": "x", "stream": True}))
    assert eventually(lambda: front.supervisor.cancelled == 1, within_s=3)
    after = proc_bytes(Path(f"/proc/{os.getpid()}/status"), "RssAnon")
    assert time.monotonic() - start < 2
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
        received += peer.recv(16384)
        time.sleep(0.01)
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
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert TOKEN and front.get("/health").status == 200
