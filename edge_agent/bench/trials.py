"""Runs a benchmark plan: idle baseline, then every test on one engine, with the board watched.

Flows in: a plan, an engine and the board's sampler. Flows out: one Outcome per test as soon as it
is finished, so that an interrupted run keeps what it has. The order is: measure the idle board;
then for each test cool down to the temperature before the first test, warm up, repeat. Power,
temperature and memory are sampled on the same clock as the runs. Not here: the fields of a document
(document.py), options and printing (cli/commands/bench.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from edge_agent.bench.engines import BenchEngine, RequestRun
from edge_agent.bench.prompts import conversation
from edge_agent.measured import Energy, Span
from edge_agent.monitor.board_sampler import BoardSampler, Snapshot
from edge_agent.monitor.energy import MIN_SAMPLES, energy_of

Scenario = Literal["prefill", "decode", "prefill+decode", "chat"]

COOL_DOWN_MARGIN_CELSIUS = 3.0
COOL_DOWN_STEP_S = 1.0
SETTLE_S = 0.15
"""Wait after the last repetition, so that one more power sample covers its end."""
NO_IDLE = "no idle baseline was measured"


@dataclass(frozen=True)
class Trial:
    """One test, which is one row of the result."""

    scenario: Scenario
    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    language: str | None = None
    concurrency: int = 1

    @property
    def label(self) -> str:
        """The name that llama-bench gives the test: pp512, tg128, pp512+tg128 @ d1024."""
        if self.scenario == "chat":
            return f"chat {self.language} x{self.concurrency}"
        parts = [f"pp{self.n_prompt}"] * bool(self.n_prompt) + [f"tg{self.n_gen}"] * bool(
            self.n_gen
        )
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")


@dataclass(frozen=True)
class TrialPlan:
    """Which tests to run, how often, and how to wait between them."""

    tests: tuple[Trial, ...]
    repetitions: int
    warmup: bool
    delay_s: float
    idle_s: float
    cool_down_to_celsius: float | None
    """None: the temperature before the first test plus COOL_DOWN_MARGIN_CELSIUS."""
    cool_down_s: float

    @property
    def steps(self) -> int:
        """Repetitions of all tests, warm-ups included: the total of a progress bar."""
        return len(self.tests) * (self.repetitions + self.warmup)


@dataclass(frozen=True)
class Baseline:
    """The board before any test."""

    idle_w: float | None
    idle_reason: str
    celsius: float | None


@dataclass(frozen=True)
class Outcome:
    """Everything measured of one test. `runs[i]` are the requests of repetition i."""

    test: Trial
    runs: tuple[tuple[RequestRun, ...], ...]
    energy: Energy
    temperature_start_celsius: float | None
    temperature_max_celsius: float | None
    throttle: tuple[str, ...]
    memory_peak_bytes: int | None
    seen: tuple[Snapshot, ...]
    started_unix: float
    notes: tuple[str, ...] = ()


@dataclass
class Bench:
    """`tick` receives the test's label after every repetition, `notice` receives sentences.

    Example: `bench = Bench(plan, sampler); outcomes = list(bench.run(engine, bench.baseline()))`
    """

    plan: TrialPlan
    sampler: BoardSampler
    tick: Callable[[str], None] = lambda label: None
    notice: Callable[[str], None] = lambda sentence: None
    sleep: Callable[[float], None] = time.sleep
    unix: Callable[[], float] = time.time
    _seen: list[Snapshot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler.subscribe(self._seen.append)

    def baseline(self) -> Baseline:
        """Idle watts, the median over `idle_s`, and the temperature. No work may run meanwhile."""
        if self.plan.idle_s <= 0:
            return Baseline(None, f"{NO_IDLE}: --idle-s 0", self._celsius())
        start_s = time.monotonic()
        self.sleep(self.plan.idle_s)
        end_s = time.monotonic()
        trace = self.sampler.trace(start_s, end_s)
        inside = [
            watts
            for at_s, watts in zip(trace.times_s, trace.watts, strict=True)
            if start_s <= at_s <= end_s
        ]
        if len(inside) < MIN_SAMPLES:
            reason = trace.reason or f"{len(inside)} power samples, {MIN_SAMPLES} are needed"
            return Baseline(None, f"{NO_IDLE}: {reason}", self._celsius())
        return Baseline(median(inside), "", self._celsius())

    def run(self, engine: BenchEngine, baseline: Baseline) -> Iterator[Outcome]:
        """Run every test of the plan on one engine. Raises the engine's errors."""
        self.sampler.set_busy(True)
        try:
            for test in self.plan.tests:
                yield self._test(engine, test, baseline)
        finally:
            self.sampler.set_busy(False)

    def _test(self, engine: BenchEngine, test: Trial, baseline: Baseline) -> Outcome:
        notes = self._cool_down(baseline)
        if self.plan.warmup:
            _repeat(engine, test, 0)
            self.tick(test.label)
        self._seen.clear()
        started_unix, start_celsius = self.unix(), self._celsius()
        runs = []
        for number in range(self.plan.repetitions):
            self.sleep(self.plan.delay_s)
            runs.append(tuple(_repeat(engine, test, number + 1)))
            self.tick(test.label)
        self.sleep(SETTLE_S)
        return self._outcome(test, tuple(runs), baseline, start_celsius, started_unix, notes)

    def _outcome(
        self,
        test: Trial,
        runs: tuple[tuple[RequestRun, ...], ...],
        baseline: Baseline,
        start_celsius: float | None,
        started_unix: float,
        notes: list[str],
    ) -> Outcome:
        seen = tuple(self._seen) or tuple(filter(None, [self.sampler.snapshot()]))
        temperatures = [start_celsius, *(one.thermal.hottest_celsius for one in seen)]
        memory = [one.rss_anon_bytes.get("worker") for one in seen]
        return Outcome(
            test=test,
            runs=runs,
            energy=self._energy(runs, baseline),
            temperature_start_celsius=start_celsius,
            temperature_max_celsius=max(
                (celsius for celsius in temperatures if celsius is not None), default=None
            ),
            throttle=tuple(sorted({cause for one in seen for cause in one.alarms.active})),
            memory_peak_bytes=max((size for size in memory if size is not None), default=None),
            seen=seen,
            started_unix=started_unix,
            notes=tuple(notes),
        )

    def _energy(self, runs: Sequence[Sequence[RequestRun]], baseline: Baseline) -> Energy:
        """Energy of all repetitions together, because one is often too short for ten samples.

        Requests of a repetition that ran at the same time share the board: the shares of their
        spans sum to one.
        """
        spans: list[Span] = [span for group in runs for run in group for span in run.spans]
        if not spans:
            return Energy(reason="no repetition was run")
        tokens = sum(run.completion_tokens for group in runs for run in group)
        start_s = min(span.start_s for span in spans)
        end_s = max(span.end_s for span in spans)
        trace = self.sampler.trace(start_s, end_s)
        return energy_of(spans, trace, baseline.idle_w, tokens)

    def _cool_down(self, baseline: Baseline) -> list[str]:
        """Wait until the board is as cool as before the first test. Returns what to note of the
        wait."""
        limit = self.plan.cool_down_to_celsius
        if limit is None and baseline.celsius is not None:
            limit = baseline.celsius + COOL_DOWN_MARGIN_CELSIUS
        celsius = self._celsius()
        if limit is None or celsius is None:
            return ["no cool-down: there is no thermal zone"]
        waited_s = 0.0
        while celsius is not None and celsius > limit and waited_s < self.plan.cool_down_s:
            if waited_s == 0:
                self.notice(f"cooling down from {celsius:.1f} to {limit:.1f} C")
            self.sleep(COOL_DOWN_STEP_S)
            waited_s += COOL_DOWN_STEP_S
            celsius = self._celsius()
        if celsius is not None and celsius > limit:
            return [f"started at {celsius:.1f} C: not down to {limit:.1f} C in {waited_s:.0f} s"]
        return [f"cooled down for {waited_s:.0f} s"] if waited_s else []

    def _celsius(self) -> float | None:
        seen = self.sampler.snapshot()
        return None if seen is None else seen.thermal.hottest_celsius


def _repeat(engine: BenchEngine, test: Trial, number: int) -> list[RequestRun]:
    """One repetition; number 0 is the warm-up.

    Every repetition asks the same questions, so that the spread is the machine's and not the
    questions'.
    """
    if test.scenario != "chat" or test.language is None:
        return [engine.raw(number, test.n_prompt, test.n_gen, test.n_depth)]
    turns = [conversation(test.language, i) for i in range(test.concurrency)]
    return engine.chat(turns, test.n_gen)
