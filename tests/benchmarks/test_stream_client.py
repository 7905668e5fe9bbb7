"""The benchmarks' client tells a broken stream from a typed error, or crash.py proves nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from stream_client import Address, StreamResult, stream
from waiting import DEADLINE_S

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
PIECE = b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n'
CHAT_PIECE = b'data: {"choices": [{"index": 0, "delta": {"content": "b"}}]}\n\n'
END = (
    b'data: {"choices": [{"text": "", "finish_reason": "length"}],'
    b' "timings": {"predicted_n": 3}}\n\n'
)
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"code": "worker_failed", "message": "it died"}}\n\n'


@contextmanager
def server(answer: bytes, *, keep_open: bool = False) -> Iterator[Address]:
    """One connection: reads a request, sends `answer`, closes (or stays silent)."""
    release = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
            if keep_open:
                release.wait()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Address(listener.getsockname()[1], token="secret")
    finally:
        release.set()
        thread.join()
        listener.close()


def ask(answer: bytes, *, keep_open: bool = False, deadline_s: float = DEADLINE_S) -> StreamResult:
    with server(answer, keep_open=keep_open) as address:
        return stream(address, "/v1/completions", {"prompt": "x"}, deadline_s)


def test_a_whole_stream_is_complete_with_text_counts_and_times() -> None:
    result = ask(STREAM_HEAD + PIECE + CHAT_PIECE + PIECE + END + USAGE + DONE)
    assert (result.ending, result.text, result.status) == ("complete", "aba", 200)
    assert (result.completion_tokens, result.prompt_tokens) == (3, 5)
    assert len(result.piece_s) == 3
    assert result.ttft_s >= 0


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (STREAM_HEAD + PIECE + ERROR + DONE, "error_event"),
        (STREAM_HEAD + PIECE, "cut"),
        (STREAM_HEAD, "cut"),
        (STREAM_HEAD + PIECE + b'data: {"choices": [{"te', "malformed"),
        (STREAM_HEAD + PIECE + b"Traceback (most recent call last):\n", "malformed"),
        (b"", "unreachable"),
        (b"HTTP/1.1 500 Oops\r\nConnection: close\r\n\r\nTraceback", "malformed"),
    ],
)
def test_every_way_to_break_is_named(answer: bytes, ending: str) -> None:
    assert ask(answer).ending == ending


def test_a_typed_refusal_is_not_a_broken_stream() -> None:
    body = json.dumps({"error": {"code": "overloaded", "message": "queue full"}}).encode()
    head = b"HTTP/1.1 429 Busy\r\nContent-Length: %d\r\n\r\n" % len(body)
    result = ask(head + body)
    assert (result.ending, result.status) == ("refused", 429)
    assert "queue full" in result.detail


def test_a_chunked_body_that_stops_short_is_cut() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert ask(head + b"%x\r\n%s\r\n" % (len(PIECE), PIECE)).ending == "cut"


def test_silence_is_hung_at_the_deadline() -> None:
    assert ask(STREAM_HEAD + PIECE, keep_open=True, deadline_s=0.2).ending == "hung"


def test_nobody_listening_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert stream(Address(port), "/", {}).ending == "unreachable"
