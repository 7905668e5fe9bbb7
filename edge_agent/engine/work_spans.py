"""Which requests each moment of the engine belongs to, so that the front can share joules out.

Flows in: the requests in each decode call, their numbers of tokens, and the time the call ended.
Flows out: records.Span of each request. While the engine is busy, its time is cut into windows. A
window runs from the end of the previous one to the end of a call and its sampling; it also ends
when a request ends. The shares of the requests in a window are their shares of the tokens and sum
to 1. Not here: power (monitor/energy.py), batching (batch.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edge_agent.measured import Span

MAX_SPANS = 512
"""Most spans of one request. 512 spans take about 20 kB on the socket."""
_SAME_SHARE = 1e-9

Phase = Literal["prefill", "decode"]


class WorkSpans:
    """The spans of one request, oldest first. The newest span is kept in plain attributes, because
    `add` runs for every token."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._phase: Phase = "prefill"
        self._start_s = self._end_s = self._share = 0.0
        self._tokens = 0
        """Tokens of the newest span, which still grows. Before the first `add` it lasts 0 s."""

    def add(self, start_s: float, end_s: float, phase: Phase, share: float, tokens: int) -> None:
        """Append a window, which must not begin before the last one ended. A window that continues
        the newest span with the same phase and share extends it."""
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
        """All spans, at most MAX_SPANS."""
        return [*self._spans, self._newest()] if self._end_s > self._start_s else list(self._spans)

    def _newest(self) -> Span:
        return Span(self._start_s, self._end_s, self._phase, self._share, self._tokens)

    def _close(self) -> None:
        if self._end_s > self._start_s:
            self._spans.append(self._newest())
        if len(self._spans) >= MAX_SPANS:
            self._spans = halved(self._spans)


def halved(spans: Sequence[Span]) -> list[Span]:
    """Join every two neighbours of the same phase. The share of the joined span keeps the sum of
    share x time, and with it the joules."""
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
    """The two spans as one. Time between them, in which neither worked, lowers the share."""
    worked = one.share * (one.end_s - one.start_s) + two.share * (two.end_s - two.start_s)
    seconds = two.end_s - one.start_s
    return Span(one.start_s, two.end_s, one.phase, worked / seconds, one.tokens + two.tokens)


class StepClock:
    """Cuts the engine's busy time into windows and gives each to the requests in the call."""

    def __init__(self) -> None:
        self._since: float | None = None
        """End of the last window; None while the engine is idle."""
        self._parts: list[tuple[WorkSpans, Phase, int]] = []
        self._is_told = False
        """The tokens of this call have been counted already, because a request ended within it."""

    def idle(self) -> None:
        """The engine has no work: the time until the next call belongs to no request."""
        self._since = None

    def begin(self, parts: list[tuple[WorkSpans, Phase, int]], now: float) -> None:
        """A decode call starts. `parts`: spans, phase and number of tokens of each request."""
        if self._since is None:
            self._since = now
        self._parts = parts
        self._is_told = False

    def end(self, now: float) -> None:
        """The call and the sampling after it have ended."""
        self._cut(now)
        self._parts = []

    def abort(self, now: float) -> None:
        """The call was aborted: its time counts, its tokens do not."""
        self._is_told = True
        self.end(now)

    def leave(self, spans: WorkSpans, now: float) -> list[Span]:
        """The request of `spans` has ended, within a call or between two calls. Returns its spans
        as records."""
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
