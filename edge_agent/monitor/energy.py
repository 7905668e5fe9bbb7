"""Joules of a stretch of time and of a request, from power samples taken around it.

Flows in: a Trace (samples in order of time) and the spans that the worker noted. Flows out:
Integral and records.Energy. The functions are pure. Watts are integrated by the trapezoid rule over
the monotonic clock; prefill and decode are kept apart; energy is given in total and above idle
(marginal); below MIN_SAMPLES samples no energy is given. Not here: taking samples
(board_sampler.py), which rail (sensors/).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_agent.measured import Energy, Span

MIN_SAMPLES = 10
GAP_MATTERS = 0.01
"""Share of a phase without power samples from which on it is said."""

_ROUNDING_S = 1e-9
"""Of a difference between two monotonic times; an interval as long as the limit is no gap."""


@dataclass(frozen=True)
class Trace:
    """Power samples of a window, oldest first. Monotonic seconds, watts of one rail.

    A counter (RAPL) fills `joules` too, cumulative and as long as `times_s`; each of its watts is
    then the mean of the interval before the sample.
    """

    times_s: Sequence[float]
    watts: Sequence[float]
    joules: Sequence[float]
    source: str
    rail: str | None
    max_gap_s: float
    """A longer interval is a gap: what happened in it is not known."""
    reason: str = ""
    """Why there is no power, or none at the end; empty while there is."""


@dataclass(frozen=True)
class Integral:
    """`covered_s` is the part of the window between samples that are close enough."""

    joules: float
    covered_s: float
    n_samples: int
    """Samples at or after the start and before the end."""
    peak_w: float | None
    """Highest of these samples, None when there are none."""


def integrate(trace: Trace, start_s: float, end_s: float) -> Integral:
    """Energy between two instants: trapezoid of watts, or end minus start of a counter.

    Both ends are interpolated within their interval. The newest sample is held for at most one
    `max_gap_s` beyond it; nothing is assumed before the oldest.
    """
    times, values = trace.times_s, trace.joules or trace.watts
    first, last = bisect_left(times, start_s), bisect_left(times, end_s)
    peak = max(trace.watts[first:last], default=None)
    ends = _end_points(trace, start_s, end_s)
    at = [*ends[0][:1], *times[first:last], *ends[1][:1]]
    value = [*ends[0][1:], *values[first:last], *ends[1][1:]]
    joules = covered = 0.0
    limit_s = trace.max_gap_s + _ROUNDING_S
    for t0, t1, v0, v1 in zip(at, at[1:], value, value[1:], strict=False):
        seconds = t1 - t0
        if seconds <= limit_s:
            covered += seconds
            joules += v1 - v0 if trace.joules else (v0 + v1) / 2.0 * seconds
    return Integral(joules, covered, max(0, last - first), peak)


def _end_points(
    trace: Trace, start_s: float, end_s: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Time and interpolated value at both ends of a window; () for an end nothing is known of."""
    times = trace.times_s
    if not times:
        return (), ()
    start_s, end_s = max(start_s, times[0]), min(end_s, times[-1] + trace.max_gap_s)
    if end_s <= start_s:
        return (), ()
    return _point(trace, start_s), _point(trace, end_s)


def _point(trace: Trace, at_s: float) -> tuple[float, ...]:
    """Time and value at an instant not before the oldest sample; () within a gap."""
    times, values = trace.times_s, trace.joules or trace.watts
    right = bisect_right(times, at_s)
    t0, v0 = times[right - 1], values[right - 1]
    if right == len(times):
        return at_s, v0 + (trace.watts[-1] * (at_s - t0) if trace.joules else 0.0)
    t1, v1 = times[right], values[right]
    if t1 - t0 > trace.max_gap_s + _ROUNDING_S:
        return ()
    return at_s, v0 + (v1 - v0) * (at_s - t0) / (t1 - t0)


@dataclass
class _Phase:
    """Sums over the spans of one phase. `seconds` is what they last, covered or not."""

    joules: float = 0.0
    """The request's share."""
    board_j: float = 0.0
    seconds: float = 0.0
    covered_s: float = 0.0
    shared_s: float = 0.0
    """Covered time, span by span times the share: what the idle watts are charged for."""
    n_samples: int = 0
    peak_w: float | None = None

    def add(self, span: Span, part: Integral) -> None:
        self.joules += span.share * part.joules
        self.board_j += part.joules
        self.seconds += span.end_s - span.start_s
        self.covered_s += part.covered_s
        self.shared_s += span.share * part.covered_s
        self.n_samples += part.n_samples
        self.peak_w = _highest((self.peak_w, part.peak_w))

    @property
    def is_measured(self) -> bool:
        return self.n_samples >= MIN_SAMPLES

    @property
    def has_gaps(self) -> bool:
        return self.seconds - self.covered_s > GAP_MATTERS * self.seconds


def energy_of(
    spans: Sequence[Span], trace: Trace, idle_w: float | None, completion_tokens: int
) -> Energy:
    """The joules of one request: the board's power over each span, times the request's share.

    `mean_w` and `peak_w` are the board's while the request ran. Joules of a request with gaps are
    what was measured; the reason names the missing time, and `j_per_token` is None.
    """
    phases = {"prefill": _Phase(), "decode": _Phase()}
    for span in spans:
        phases[span.phase].add(span, integrate(trace, span.start_s, span.end_s))
    prefill, decode = phases["prefill"], phases["decode"]
    n_samples = prefill.n_samples + decode.n_samples
    is_shared = any(span.share < 1.0 for span in spans)
    reasons = _reasons(prefill, decode, trace, idle_w)
    if n_samples < MIN_SAMPLES:
        return Energy(
            idle_w=idle_w, n_samples=n_samples, rail=trace.rail, source=trace.source,
            shared=is_shared, reason=reasons,
        )  # fmt: skip
    total_j = prefill.joules + decode.joules
    covered_s = prefill.covered_s + decode.covered_s
    charged_s = prefill.shared_s + decode.shared_s
    decode_j = decode.joules if decode.is_measured else None
    has_rate = decode_j is not None and completion_tokens > 0 and not decode.has_gaps
    return Energy(
        prefill_j=prefill.joules if prefill.is_measured else None,
        decode_j=decode_j,
        total_j=total_j,
        marginal_j=None if idle_w is None else total_j - idle_w * charged_s,
        j_per_token=decode.joules / completion_tokens if has_rate else None,
        mean_w=(prefill.board_j + decode.board_j) / covered_s if covered_s > 0 else None,
        peak_w=_highest((prefill.peak_w, decode.peak_w)),
        idle_w=idle_w,
        n_samples=n_samples,
        rail=trace.rail,
        source=trace.source,
        shared=is_shared,
        reason=reasons,
    )


def _reasons(prefill: _Phase, decode: _Phase, trace: Trace, idle_w: float | None) -> str | None:
    """Why some of the figures are missing or incomplete; None when none is."""
    n_samples = prefill.n_samples + decode.n_samples
    if n_samples < MIN_SAMPLES:
        return _too_few(n_samples, prefill, decode, trace)
    reasons = [
        f"only {phase.n_samples} power samples during {name}, {MIN_SAMPLES} are needed"
        for name, phase in (("prefill", prefill), ("decode", decode))
        if phase.seconds > 0 and not phase.is_measured
    ]
    reasons += _gap((prefill, decode))
    if idle_w is None:
        reasons.append("no marginal_j: the idle power of the board is not known yet")
    return "; ".join(reasons) or None


def _too_few(n_samples: int, prefill: _Phase, decode: _Phase, trace: Trace) -> str:
    if trace.reason:
        return trace.reason
    if prefill.seconds + decode.seconds == 0:
        return "the engine never worked on this request"
    found = f"only {n_samples} power samples, {MIN_SAMPLES} are needed"
    gap = _gap((prefill, decode))
    return f"{found}: {gap[0] if gap else 'the answer was too short'}"


def _gap(phases: Iterable[_Phase]) -> list[str]:
    """At most one sentence."""
    phases = list(phases)
    if not any(phase.has_gaps for phase in phases):
        return []
    seconds = sum(phase.seconds for phase in phases)
    missing = seconds - sum(phase.covered_s for phase in phases)
    return [f"power was not read during {missing:.2f} s of {seconds:.2f} s, which do not count"]


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
