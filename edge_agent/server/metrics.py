"""GET /metrics for Prometheus: `edge_agent_*` in base units, energy and temperature included.

Flows in: a GenerationRow for every request (observe), the code of every refusal (rejected), the
sampler's snapshots (watch), and at each scrape the state of engine and board (attach). Flows out:
Prometheus text. A value that cannot be read is absent, never 0 or NaN. Labels are bounded: models
are the registered ones, rails and zones those of the board, everything else a fixed list. FAMILIES
is the only list of names; docs/make_grafana.py makes the Grafana dashboard from it. Not here:
measuring, and prometheus_client's own HTTP server, which is never started.
"""

from __future__ import annotations

import math
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Exported

from edge_agent import __version__
from edge_agent.server.route import Route
from edge_agent.store.rows import GenerationRow
from edge_agent.supervisor.engine_status import EngineStatus

if TYPE_CHECKING:
    from edge_agent.monitor.board_sampler import Snapshot

PREFIX = "edge_agent_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus text exposition format, which every scraper reads; newer formats add nothing here."""

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]
Values = Iterable[tuple[Labels, float | None]]


@dataclass(frozen=True)
class MetricFamily:
    """One metric: its kind, its HELP line and the names of its labels."""

    kind: Kind
    help: str
    labels: Labels = ()


FAMILIES: Mapping[str, MetricFamily] = {
    "prompt_tokens_total": MetricFamily(
        "counter", "Prompt tokens computed; cached ones not counted"
    ),
    "generated_tokens_total": MetricFamily("counter", "Tokens generated"),
    "prefill_seconds_total": MetricFamily("counter", "Time spent on prompts"),
    "decode_seconds_total": MetricFamily("counter", "Time from first to last token of each answer"),
    "request_duration_seconds": MetricFamily("histogram", "From a request's arrival to its end"),
    "time_to_first_token_seconds": MetricFamily("histogram", "From arrival to the first token"),
    "time_per_output_token_seconds": MetricFamily(
        "histogram", "Mean per answer, after its first token"
    ),
    "energy_joules_total": MetricFamily(
        "counter",
        "Energy of answers that were measured; phase unsplit: too short to tell the phases apart",
        ("rail", "phase"),
    ),
    "power_watts": MetricFamily("gauge", "Power now", ("rail",)),
    "temperature_celsius": MetricFamily("gauge", "Temperature now", ("zone",)),
    "memory_available_bytes": MetricFamily("gauge", "MemAvailable, or what a container has left"),
    "memory_rss_anon_bytes": MetricFamily("gauge", "Anonymous memory of a process", ("process",)),
    "cpu_load_ratio": MetricFamily("gauge", "Busy share of all cores, 0 to 1"),
    "gpu_load_ratio": MetricFamily("gauge", "Busy share of the GPU, 0 to 1"),
    "gpu_clock_hertz": MetricFamily("gauge", "Clock of the GPU"),
    "cpu_clock_hertz": MetricFamily("gauge", "Clock of the fastest core"),
    "model_loaded": MetricFamily(
        "gauge", "1 for the loaded model, 0 for registered others", ("model",)
    ),
    "requests_in_flight": MetricFamily("gauge", "Requests being computed"),
    "requests_queued": MetricFamily("gauge", "Requests that wait for a slot"),
    "requests_total": MetricFamily(
        "counter", "Requests that reached the engine, by how they ended", ("api", "outcome")
    ),
    "requests_rejected_total": MetricFamily(
        "counter", "Requests refused before they reached the engine", ("reason",)
    ),
    "worker_restarts_total": MetricFamily("counter", "Workers started in place of a crashed one"),
    "throttle_events_total": MetricFamily(
        "counter",
        "The kernel's own count where it keeps one, else how often the alarm was seen to start",
        ("cause",),
    ),
    "sampler_missed_ticks_total": MetricFamily(
        "counter", "Ticks of the sampler that came too late"
    ),
    "guard_stage": MetricFamily("gauge", "0 normal, 1 refuses requests, 2 shrunk, 3 unloaded"),
    "build_info": MetricFamily("gauge", "Always 1", ("version",)),
}

BUCKETS = {
    "request_duration_seconds": (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500),
    "time_to_first_token_seconds": (0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100),
    "time_per_output_token_seconds": (
        0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5,
    ),
}  # fmt: skip
"""Upper bounds in seconds, from a 135 M model on a PC to a 1 B model on a Nano's CPU."""


@dataclass(frozen=True)
class Live:
    """Where a scrape reads the present state. The callables must be quick and must not raise."""

    status: Callable[[], EngineStatus]
    models: Callable[[], Iterable[str]]
    """Names of the registered models."""
    snapshot: Callable[[], Snapshot | None] = lambda: None
    guard_stage: Callable[[], int | None] = lambda: None


class Metrics:
    """The metrics of one application, in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        # prometheus_client would add a second series, the time of creation, to each counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(PREFIX + name, family.help, family.labels, registry=self._registry)
            for name, family in FAMILIES.items()
            if family.kind == "counter" and name not in LIVE_COUNTERS
        }
        self._histograms = {
            name: Histogram(
                PREFIX + name, FAMILIES[name].help, buckets=buckets, registry=self._registry
            )
            for name, buckets in BUCKETS.items()
        }
        self._live: Live | None = None
        self._alarms = _Alarms()
        self._registry.register(self)

    def attach(self, live: Live) -> None:
        """From now on scrapes also show the present state. A later call replaces an earlier one."""
        self._live = live

    def observe(self, row: GenerationRow) -> None:
        """Count one request that reached the engine, however it ended."""
        outcome = row.error_code or row.finish_reason or "unknown"
        self._counters["requests_total"].labels(row.api, outcome).inc()
        self._count("prompt_tokens_total", (row.prompt_tokens or 0) - (row.cached_tokens or 0))
        self._count("generated_tokens_total", row.completion_tokens)
        self._count("prefill_seconds_total", row.prefill_s)
        self._count("decode_seconds_total", row.decode_s)
        self._histograms["request_duration_seconds"].observe(max(0.0, row.duration_s))
        if row.ttft_s is not None and row.completion_tokens:
            self._histograms["time_to_first_token_seconds"].observe(row.ttft_s)
        if row.decode_s is not None and (row.completion_tokens or 0) > 1:
            tpot_s = row.decode_s / ((row.completion_tokens or 0) - 1)
            self._histograms["time_per_output_token_seconds"].observe(tpot_s)
        for phase, joules in _joules(row):
            rail = row.energy_rail or "unknown"
            self._counters["energy_joules_total"].labels(rail, phase).inc(joules)

    def rejected(self, code: str) -> None:
        """Count one refused request; `code` is EdgeAgentError.code, one of a fixed list."""
        self._counters["requests_rejected_total"].labels(code).inc()

    def watch(self, snapshot: Snapshot) -> None:
        """For BoardSampler.subscribe: count the alarms that have begun since the last snapshot."""
        self._alarms.see(snapshot.alarms.active)

    def text(self) -> bytes:
        """The text of one scrape."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Exported]:
        """The live values; the registry calls this at each scrape."""
        yield _family("build_info", [((__version__,), 1.0)])
        live = self._live
        if live is None:
            return
        yield from _of_engine(live.status(), live.models())
        yield _family("guard_stage", [((), live.guard_stage())])
        snapshot = live.snapshot()
        if snapshot is not None:
            yield from _of_board(snapshot)
            yield _family("throttle_events_total", self._alarms.counts(snapshot))

    def _count(self, name: str, amount: float | None) -> None:
        if amount is not None and amount > 0:
            self._counters[name].inc(amount)


LIVE_COUNTERS = {"worker_restarts_total", "throttle_events_total", "sampler_missed_ticks_total"}
"""Counters that the supervisor, the kernel or the sampler keeps; a scrape only reads them."""


class _Alarms:
    """How often each alarm began, as seen by one snapshot a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: frozenset[str] = frozenset()
        self._begun: Tally[str] = Tally()

    def see(self, active: Iterable[str]) -> None:
        now = frozenset(active)
        with self._lock:
            self._begun.update(now - self._active)
            self._active = now

    def counts(self, snapshot: Snapshot) -> Values:
        """By cause: the kernel's own count where it keeps one, else ours."""
        with self._lock:
            seen: dict[str, float] = dict(self._begun)
        kept = {**seen, **snapshot.alarms.counts}
        if snapshot.cpu.throttle_count is not None:
            kept["cpu"] = snapshot.cpu.throttle_count
        return [((cause,), float(count)) for cause, count in sorted(kept.items())]


def _joules(row: GenerationRow) -> Iterator[tuple[str, float]]:
    """(phase, joules); the sum is the row's total. "unsplit" is energy that belongs to no one
    phase."""
    phases = {"prefill": row.prefill_j, "decode": row.decode_j}
    known = {phase: joules for phase, joules in phases.items() if joules is not None}
    yield from ((phase, max(0.0, joules)) for phase, joules in known.items())
    rest = (row.total_j or 0.0) - sum(known.values())
    if len(known) < len(phases) and rest > 0:
        yield "unsplit", rest


def _of_engine(status: EngineStatus, models: Iterable[str]) -> Iterator[Exported]:
    loaded = status.info.name if status.info else None
    yield _family("model_loaded", [((name,), float(name == loaded)) for name in models])
    yield _family("requests_in_flight", [((), status.in_flight)])
    yield _family("requests_queued", [((), status.queued)])
    yield _family("worker_restarts_total", [((), status.restarts)])


def _of_board(snapshot: Snapshot) -> Iterator[Exported]:
    power = dict(snapshot.power.watts)
    if snapshot.power.total_rail is not None:
        # A RAPL counter gives joules; the sampler computes watts from two readings.
        power[snapshot.power.total_rail] = snapshot.total_w
    yield _family("power_watts", _labelled(power))
    yield _family("temperature_celsius", _labelled(snapshot.thermal.zones_celsius))
    yield _family("memory_available_bytes", [((), snapshot.memory.available_bytes)])
    yield _family("memory_rss_anon_bytes", _labelled(snapshot.rss_anon_bytes))
    yield _family("cpu_load_ratio", [((), snapshot.cpu_load)])
    yield _family("gpu_load_ratio", [((), snapshot.gpu.load)])
    yield _family("gpu_clock_hertz", [((), snapshot.gpu.clock_hz)])
    yield _family("cpu_clock_hertz", [((), snapshot.cpu.clock_hz)])
    yield _family("sampler_missed_ticks_total", [((), snapshot.missed_ticks)])


def _labelled(values: Mapping[str, float | None] | Mapping[str, int | None]) -> Values:
    return [((name,), value) for name, value in values.items()]


def _family(name: str, values: Values) -> Exported:
    """The known and finite values of one metric; the others are left out."""
    family = FAMILIES[name]
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(PREFIX + name, family.help, labels=family.labels)
    for labels, value in values:
        if value is not None and math.isfinite(value):
            metric.add_metric(labels, value)
    return metric


METRICS = web.AppKey("metrics", Metrics)


async def metrics(request: web.Request) -> web.Response:
    body = request.app[METRICS].text()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


ROUTES = (Route("GET", "/metrics", metrics, "Prometheus metrics"),)
