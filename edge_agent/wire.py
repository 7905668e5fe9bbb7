"""Frames on the socket between front and child: 4 bytes of length (big-endian), then msgpack.

Flows in: records.ToWorker and records.FromWorker, or the trainer's messages (adapt/messages.py).
Flows out: bytes, and records again at the other end. Nothing is unpickled. A frame that is longer
than MAX_FRAME_BYTES or has the wrong shape raises WireError, after which the receiver must close
the socket. Not here: sockets, threads, event loops.
"""

from __future__ import annotations

import struct
from typing import Generic, TypeVar

import msgspec

from edge_agent.records import FromWorker, ToWorker

MAX_FRAME_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct(">I")
_ENCODER = msgspec.msgpack.Encoder()

Record = TypeVar("Record")


class WireError(Exception):
    """The peer sent a frame that no process of this project would send."""


def encode(record: msgspec.Struct) -> bytes:
    """One frame, header included. Raises WireError when it would exceed MAX_FRAME_BYTES."""
    body = _ENCODER.encode(record)
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"frame of {len(body)} bytes exceeds {MAX_FRAME_BYTES}")
    return _HEADER.pack(len(body)) + body


class FrameDecoder(Generic[Record]):
    """Turns a byte stream back into records, whatever the sizes of the pieces it arrives in.

    >>> decoder = to_front()
    >>> from edge_agent.records import Pong
    >>> frame = encode(Pong(7))
    >>> decoder.feed(frame[:3]), decoder.feed(frame[3:])
    ([], [Pong(id=7)])
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[Record]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Record]:
        """The records that `data` completes, in order. Raises WireError."""
        buffer = self._buffer
        buffer += data
        records: list[Record] = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"frame of {length} bytes announced, {MAX_FRAME_BYTES} allowed")
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            records.append(self._decode(bytes(buffer[start + _HEADER.size : end])))
            start = end
        del buffer[:start]
        return records

    def _decode(self, body: bytes) -> Record:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(
                f"frame of {len(body)} bytes is not one of our records: {error}"
            ) from error


def to_worker() -> FrameDecoder[ToWorker]:
    """A decoder for the records that the worker receives."""
    return FrameDecoder(msgspec.msgpack.Decoder(ToWorker))


def to_front() -> FrameDecoder[FromWorker]:
    """A decoder for the records that the front receives."""
    return FrameDecoder(msgspec.msgpack.Decoder(FromWorker))
