"""The lines of Ollama's answers: one JSON document each, durations in nanoseconds.

Flows in: the engine's chunks. Flows out: dicts and bytes. `line` runs once a token, so everything
but the time and the text is encoded once per request. Not here: when they are sent (ollama.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import msgspec

from edge_agent.records import Chunk, Done
from edge_agent.server.openai_events import chosen_json, measured_json
from edge_agent.server.reply import encoded


class Lines:
    """`place` puts a text where the API wants it; `started` is monotonic, `clock` Unix seconds."""

    def __init__(
        self,
        model: str,
        place: Callable[[str], dict[str, Any]],
        clock: Callable[[], float],
        started: float,
        load_s: float = 0.0,
    ) -> None:
        self.model = model
        self._place = place
        self._clock = clock
        self._started = started
        self._load_s = load_s
        template = encoded({"model": model, "created_at": 1, **place("@"), "done": False}) + b"\n"
        self._before, rest = template.split(b":1,", 1)
        self._between, self._after = rest.split(b'"@"')
        self._second: float = -1
        self._second_text = ""

    def line(self, chunk: Chunk | Done) -> bytes:
        """The line of one chunk, b'' when it carries nothing."""
        if chunk.logprobs:
            return encoded({**self._piece(chunk), "done": False}) + b"\n"
        if not chunk.text:
            return b""
        now = self._created_at().encode()
        text = encoded(chunk.text)
        return b'%b:"%b",%b%b%b' % (self._before, now, self._between, text, self._after)

    def ending(self, done: Done) -> bytes:
        """The last piece, then the line with the figures, whose text some clients ignore."""
        figures = self.whole(msgspec.structs.replace(done, text="", logprobs=[]))
        return self.line(done) + encoded(figures) + b"\n"

    def whole(self, done: Done) -> dict[str, Any]:
        """The one document of an answer that is not streamed."""
        timings = done.timings
        return {
            **self._piece(done),
            "done": True,
            "done_reason": done.finish_reason,
            "total_duration": nanoseconds(time.monotonic() - self._started),
            "load_duration": nanoseconds(self._load_s),
            "prompt_eval_count": timings.prompt_tokens,
            "prompt_eval_duration": nanoseconds(timings.prefill_s),
            "eval_count": timings.completion_tokens,
            "eval_duration": nanoseconds(timings.decode_s),
            **measured_json(done),
        }

    def idle(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""
        head = {"model": self.model, "created_at": self._created_at()}
        return {**head, **self._place(""), "done": True, "done_reason": reason}

    def _piece(self, chunk: Chunk | Done) -> dict[str, Any]:
        head = {"model": self.model, "created_at": self._created_at(), **self._place(chunk.text)}
        if chunk.logprobs:
            head["logprobs"] = [chosen_json(one) for one in chunk.logprobs]
        return head

    def _created_at(self) -> str:
        """RFC 3339 with microseconds; the calendar is worked out once a second."""
        second, part = divmod(self._clock(), 1)
        if second != self._second:
            self._second, self._second_text = second, rfc3339(second).removesuffix("Z")
        return f"{self._second_text}.{int(part * 1e6):06d}Z"


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat().replace("+00:00", "Z")


def as_response(text: str) -> dict[str, Any]:
    """Where /api/generate puts a text."""
    return {"response": text}


def as_message(text: str) -> dict[str, Any]:
    """Where /api/chat puts a text."""
    return {"message": {"role": "assistant", "content": text}}
