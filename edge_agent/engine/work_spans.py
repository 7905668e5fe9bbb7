"""Whose work each moment of the engine was: what a front needs to share joules among requests.

Flows in: who takes part in a decode call, with how many tokens, and when it ended. Flows out:
records.Span of each request. Every moment the engine is busy belongs to some requests whose shares
sum to 1: a window runs from the end of the one before, sampling included, and when a request ends
within a call the window is cut there. Not here: power (the front has it), batching (scheduler.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edge_agent.records import Span

MAX_SPANS = 512
"""Per request. 512 spans are about 20 kB on the socket."""
_SAME_SHARE = 1e-9

Phase = Literal["prefill", "decode"]


class WorkSpans:
    """The spans of one request, oldest first. Lists of plain values, since this runs per token."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._phase: Phase = "prefill"
        self._start_s = self._end_s = self._share = 0.0
        self._tokens = 0
        """The newest span, still growing; it lasts no time before the first `add`."""

    def add(self, start_s: float, end_s: float, phase: Phase, share: float, tokens: int) -> None:
        """Append a window that does not begin before the last one ended."""
        if (
            start_s == self._end_s
            and phase == self._phase
            and abs(share - self._share) <= _SAME_SHARE
        ):
            self._end_s = end_s
            self._tokens += tokens
            return
        self._close()
        self._start_s, self._end_s = start_s, end_s
        self._phase, self._share, self._tokens = phase, share, tokens

    def records(self) -> list[Span]:
        """All of them, at most MAX_SPANS."""
        return [*self._spans, self._newest()] if self._end_s > self._start_s else list(self._spans)

    def _newest(self) -> Span:
        return Span(self._start_s, self._end_s, self._phase, self._share, self._tokens)

    def _close(self) -> None:
        if self._end_s > self._start_s:
            self._spans.append(self._newest())
        if len(self._spans) >= MAX_SPANS:
            self._spans = halved(self._spans)


def halved(spans: Sequence[Span]) -> list[Span]:
    """Every two neighbours of the same phase as one, whose share keeps share x time."""
    merged: list[Span] = []
    index = 0
    while index < len(spans):
        pair = spans[index : index + 2]
        if len(pair) == 2 and pair[0].phase == pair[1].phase:
            merged.append(_together(*pair))
            index += 2
        else:
            merged.append(pair[0])
            index += 1
    return merged


def _together(one: Span, two: Span) -> Span:
    """Time between the two, in which neither worked, lowers the share."""
    worked = one.share * (one.end_s - one.start_s) + two.share * (two.end_s - two.start_s)
    seconds = two.end_s - one.start_s
    return Span(one.start_s, two.end_s, one.phase, worked / seconds, one.tokens + two.tokens)


class StepClock:
    """Cuts the engine's busy time into windows and gives each to those who take part in a call."""

    def __init__(self) -> None:
        self._since: float | None = None
        """End of the last window; None while the engine is idle."""
        self._parts: list[tuple[WorkSpans, Phase, int]] = []
        self._is_told = False
        """The tokens of this call have been counted already (a request ended within it)."""

    def idle(self) -> None:
        """Nothing to do: the time until the next call is nobody's."""
        self._since = None

    def begin(self, parts: list[tuple[WorkSpans, Phase, int]], now: float) -> None:
        """A decode call starts. `parts`: spans, phase and tokens put in of who takes part."""
        if self._since is None:
            self._since = now
        self._parts = parts
        self._is_told = False

    def end(self, now: float) -> None:
        """The call, and the sampling after it, are over."""
        self._cut(now)
        self._parts = []

    def abort(self, now: float) -> None:
        """The call was given up: its time counts, its tokens do not."""
        self._is_told = True
        self.end(now)

    def leave(self, spans: WorkSpans, now: float) -> list[Span]:
        """The request of these spans has ended, within a call or between two. Its records."""
        if any(part[0] is spans for part in self._parts):
            self._cut(now)
            self._parts = [part for part in self._parts if part[0] is not spans]
        return spans.records()

    def _cut(self, now: float) -> None:
        if self._since is None or not self._parts:
            return
        total = sum(tokens for _, _, tokens in self._parts)
        for spans, phase, tokens in self._parts:
            counted = 0 if self._is_told else tokens
            spans.add(self._since, now, phase, tokens / total, counted)
        self._since = now
        self._is_told = True
