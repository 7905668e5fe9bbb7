"""What was measured of one answer: times, joules, the stretches of work.

Flows in: the worker's clock, the sampler's energy. Flows out: frozen structs inside records.Done,
in rows of the store and in bodies of HTTP. Units are suffixes (_s seconds, _w watts, _j joules).
Imports nothing of ours. Not here: measuring (engine/scheduler.py, monitor/energy.py).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field


class Timings(Struct, frozen=True):
    """Measured in the worker on the monotonic clock."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queued_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    """From the request's arrival in the worker to its first sampled token."""


class Span(Struct, frozen=True):
    """When the engine worked on a request (monotonic seconds), and the request's share of the work:
    its tokens / all tokens of the decode call. Equal neighbouring calls are one span."""

    start_s: float
    end_s: float
    phase: Literal["prefill", "decode"]
    share: float
    tokens: int
    """Prompt tokens prefilled, or tokens generated, for this request in this time."""


class Energy(Struct, frozen=True):
    """Joules of one request, as every API shows them. None: not measured; `reason` says why."""

    prefill_j: float | None = None
    decode_j: float | None = None
    total_j: float | None = None
    marginal_j: float | None = None
    """total_j less the energy of the idle board: idle_w times each span's time and share."""
    j_per_token: float | None = None
    """decode_j / tokens generated."""
    mean_w: float | None = None
    peak_w: float | None = None
    idle_w: float | None = None
    n_samples: int = 0
    rail: str | None = None
    source: str = "none"
    shared: bool = False
    reason: str | None = None


class Measured(Struct, frozen=True):
    """What the front's sensors measured while a request ran."""

    energy: Energy
    temperature_celsius: float | None = None
    """Highest reading of the hottest zone during the request."""
    memory_peak_bytes: int | None = None
    """Highest RssAnon of the worker seen during the request."""
    throttle: list[str] = field(default_factory=list)
    """Alarms that were active at any time during the request."""
