"""Sequential, bounded reads from an untrusted binary file.

Why it exists: counts and lengths in a hostile file must not decide how much memory or time reading
it takes. Flows in: a binary stream and its size. Flows out: bytes, little-endian numbers and
strings, each with a limit given by the caller; Malformed when the file ends early or exceeds a
limit. The cursor reads through a window of 1 MiB and never maps the file: a file that is truncated
during the reading gives an error and not a SIGBUS. Not here: what the bytes mean (header.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

WINDOW_BYTES = 1 << 20
MAX_HEADER_BYTES = 48 << 20
"""For comparison: Gemma 3's header has 6.4 MB, one with 200,000 tokens and merges about 11 MB."""
MAX_ELEMENT_BYTES = 1 << 16
MAX_STRINGS = 1 << 20
"""Limit on the strings in all arrays together. It bounds the time, because strings are read one by
one. Gemma's vocabulary with merges has 777,000."""


class Malformed(Exception):
    """Why a file is refused, as one sentence. model_file.py turns it into a ModelFormatError,
    adapter_file.py into an AdapterRefused."""


class Cursor:
    """A read position in a stream; every read past the file's end or past MAX_HEADER_BYTES raises
    Malformed."""

    def __init__(self, stream: BinaryIO, file_bytes: int) -> None:
        self._stream = stream
        self._end = min(file_bytes, MAX_HEADER_BYTES)
        self._limited = file_bytes > MAX_HEADER_BYTES
        self._window = b""
        self._at = 0
        self._base = 0
        self._strings_left = MAX_STRINGS

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._base + self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if self._at + count > len(self._window):
            self._refill(count)
        start = self._at
        self._at += count
        return self._window[start : self._at]

    def number(self, form: str) -> int | float | bool:
        """One little-endian number of the given struct format."""
        value: int | float | bool = struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]
        return value

    def unsigned(self, form: str, limit: int, what: str) -> int:
        """One unsigned number that must not exceed `limit`."""
        value = int(self.number(form))
        if value > limit:
            raise Malformed(f"{what} is {value}, at most {limit} is accepted")
        return value

    def string(self, limit: int, what: str) -> bytes:
        """A string: 8 bytes of length, then the bytes."""
        return self.take(self.unsigned("Q", limit, f"the length of {what}"))

    def strings(self, count: int) -> Iterator[list[bytes]]:
        """The next `count` strings, in lists of at most 4096.

        Lists and not single strings, because one call per string would double the time.
        """
        self._strings_left -= count
        if self._strings_left < 0:
            raise Malformed(f"its arrays hold more than {MAX_STRINGS} strings")
        for start in range(0, count, 4096):
            yield self._some_strings(min(4096, count - start))

    def _some_strings(self, count: int) -> list[bytes]:
        length_of = struct.Struct("<Q").unpack_from
        window, at = self._window, self._at
        found: list[bytes] = []
        for _ in range(count):
            if at + 8 > len(window):
                window, at = self._moved(at, 8)
            length: int = length_of(window, at)[0]
            if length > MAX_ELEMENT_BYTES:
                raise Malformed(f"a string in an array has {length} bytes")
            at += 8
            if at + length > len(window):
                window, at = self._moved(at, length)
            found.append(window[at : at + length])
            at += length
        self._at = at
        return found

    def _moved(self, at: int, count: int) -> tuple[bytes, int]:
        self._at = at
        self._refill(count)
        return self._window, self._at

    def skip(self, count: int) -> None:
        """Pass over `count` bytes without keeping them."""
        while count > 0:
            step = min(count, WINDOW_BYTES)
            self.take(step)
            count -= step

    def _refill(self, count: int) -> None:
        if self.position + count > self._end:
            why = "is larger than 48 MiB" if self._limited else "continues past the end of the file"
            raise Malformed(f"the header {why}")
        rest = self._window[self._at :]
        self._base, self._at = self.position, 0
        wanted = min(max(count, WINDOW_BYTES), self._end - self._base) - len(rest)
        self._window = rest + self._stream.read(wanted)
        if len(self._window) < count:
            raise Malformed("the file became shorter while it was read")
