"""From token pieces to text that may be shown: whole characters, nothing of a stop string.

Why it exists: a token may end inside a UTF-8 character, and a stop string may be spread over
several tokens, so text is held back until it is known to belong to the answer. Flows in: the bytes
of one token after the other. Flows out: text. The module is pure. Not here: the end-of-generation
tokens (scheduler.py).

>>> stream = TextStream(["END"])
>>> [stream.push(piece) for piece in (b"caf\\xc3", b"\\xa9 E", b"N", b"D more")], stream.stopped
(['caf', 'é ', '', ''], 'END')
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """One answer's text. `stopped` is the stop string that ended it, else None; `began` counts the
    characters before the last piece, `shown` those given out."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self.began = self.shown = 0
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: bytes) -> str:
        """The text that can be shown after `piece`; '' once stopped. Invalid bytes give U+FFFD."""
        if self.stopped is not None:
            return ""
        self.began = self.shown + len(self._held)
        text = self._unstopped(self._held + self._decoder.decode(piece))
        self.shown += len(text)
        return text

    def _unstopped(self, text: str) -> str:
        """What of `text` no stop string can take back; the rest is held."""
        if not self._stops:
            return text
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            position, self.stopped = min(found)
            self._held = ""
            return text[:position]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text that is still held back, when no stop string ended the answer. An incomplete
        character is dropped."""
        held, self._held = self._held, ""
        self.shown += len(held)
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
