"""Frames survive any cut; what is no frame of ours is an error and never an object."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.measured import Timings
from edge_agent.records import (
    Cancel,
    Chunk,
    Done,
    Failed,
    FromWorker,
    Generate,
    Message,
    Ping,
    Pong,
    Sampling,
    TokenLogprob,
    Tokens,
    ToWorker,
)
from edge_agent.records import ChosenLogprob as Chosen
from edge_agent.wire import MAX_FRAME_BYTES, WireError, encode, to_front, to_worker

TIMINGS = Timings(1, 2, 3, 0.1, 0.2, 0.3, 0.4)
TOKEN = TokenLogprob(7, "a\ufffd", b"a\xe0", -0.5)
FROM_WORKER: list[FromWorker] = [
    Pong(1),
    Chunk(2, "नमस्ते", 3, [Chosen(TOKEN, [TOKEN, TOKEN])]),
    Done(2, "", "stop", TIMINGS, stop_text="\n"),
    Failed(None, "model_refused", "what", "why", "hint"),
    Tokens(4, [1, 2], [b"\xff", b""]),
]
TO_WORKER: list[ToWorker] = [
    Ping(9),
    Cancel(8),
    Generate(
        id=7,
        sampling=Sampling(seed=3, logit_bias={5: -1.5}),
        max_tokens=4,
        messages=[Message("user", "hi")],
        json_schema={"type": "object", "properties": {"a": {"enum": [1, None, "x"]}}},
    ),
]


@given(st.data())
def test_any_cut_of_a_stream_gives_the_same_records(data: st.DataObject) -> None:
    stream = b"".join(encode(record) for record in FROM_WORKER)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = to_front()
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [record for piece in pieces for record in decoder.feed(piece)] == FROM_WORKER


def test_the_worker_reads_what_the_front_writes() -> None:
    assert to_worker().feed(b"".join(encode(record) for record in TO_WORKER)) == TO_WORKER


@given(st.binary(max_size=64))
def test_random_bodies_are_wire_errors_or_records_but_nothing_else(body: bytes) -> None:
    try:
        records = to_front().feed(struct.pack(">I", len(body)) + body)
    except WireError:
        return
    assert all(isinstance(record, FromWorker) for record in records)


@given(st.sampled_from(FROM_WORKER), st.data())
def test_a_flipped_byte_never_escapes_as_another_exception(
    record: FromWorker, data: st.DataObject
) -> None:
    frame = bytearray(encode(record))
    place = data.draw(st.integers(4, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))
    records: list[FromWorker] = []
    with contextlib.suppress(WireError):
        records = to_front().feed(bytes(frame))
    assert len(records) <= 1


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">I", MAX_FRAME_BYTES + 1),
        b"\xff\xff\xff\xff",
        encode(Ping(1)),  # right frame, wrong direction
        struct.pack(">I", 1) + b"\xc1",
        struct.pack(">I", 0),
        struct.pack(">I", 3000) + b"\x91" * 3000,
    ],
)
def test_what_cannot_be_a_record_is_a_wire_error(frame: bytes) -> None:
    with pytest.raises(WireError):
        to_front().feed(frame)


def test_an_announced_length_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(WireError, match="announced"):
        to_front().feed(struct.pack(">I", MAX_FRAME_BYTES + 1))


def test_a_frame_too_long_to_read_is_not_written() -> None:
    with pytest.raises(WireError, match="exceeds"):
        encode(Chunk(1, "x" * MAX_FRAME_BYTES, 1))
