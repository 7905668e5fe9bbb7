"""Whose work each moment of the engine was: shares sum to one, nothing is lost by merging."""

from __future__ import annotations

import math
import random
import time

import pytest

from edge_agent.engine.work_spans import MAX_SPANS, Phase, StepClock, WorkSpans, halved
from edge_agent.measured import Span

Part = tuple[WorkSpans, Phase, int]


def step(clock: StepClock, begin_s: float, end_s: float, *parts: Part) -> None:
    clock.begin(list(parts), begin_s)
    clock.end(end_s)


def work(spans: list[Span]) -> float:
    return math.fsum(span.share * (span.end_s - span.start_s) for span in spans)


def test_a_lone_requests_spans_are_contiguous_from_first_prefill_to_last_token() -> None:
    clock, mine = StepClock(), WorkSpans()
    step(clock, 10.0, 10.5, (mine, "prefill", 64))
    step(clock, 10.6, 11.0, (mine, "prefill", 36))
    for token in range(20):
        step(clock, 11.01 + token, 12.0 + token, (mine, "decode", 1))
    assert clock.leave(mine, 31.0) == [
        Span(10.0, 11.0, "prefill", 1.0, 100),
        Span(11.0, 31.0, "decode", 1.0, 20),
    ]


def test_time_in_which_the_engine_had_nothing_to_do_is_nobodys() -> None:
    clock, one, two = StepClock(), WorkSpans(), WorkSpans()
    step(clock, 1.0, 2.0, (one, "decode", 1))
    clock.leave(one, 2.0)
    clock.idle()
    step(clock, 5.0, 6.0, (two, "prefill", 4))
    assert two.records() == [Span(5.0, 6.0, "prefill", 1.0, 4)]


def test_shares_are_the_tokens_of_the_call() -> None:
    clock, one, two = StepClock(), WorkSpans(), WorkSpans()
    step(clock, 0.0, 1.0, (one, "decode", 1), (two, "prefill", 3))
    assert (one.records()[0].share, two.records()[0].share) == (0.25, 0.75)


def test_a_window_is_cut_where_a_request_ends_within_a_call() -> None:
    clock, one, two = StepClock(), WorkSpans(), WorkSpans()
    clock.begin([(one, "decode", 1), (two, "decode", 1)], 0.0)
    ended = clock.leave(one, 1.0)
    clock.end(1.5)
    assert ended == [Span(0.0, 1.0, "decode", 0.5, 1)]
    assert two.records() == [Span(0.0, 1.0, "decode", 0.5, 1), Span(1.0, 1.5, "decode", 1.0, 0)]


def test_an_aborted_call_costs_time_and_counts_no_tokens() -> None:
    clock, mine = StepClock(), WorkSpans()
    clock.begin([(mine, "prefill", 512)], 0.0)
    clock.abort(1.0)
    step(clock, 1.0, 2.0, (mine, "prefill", 100))
    assert mine.records() == [Span(0.0, 2.0, "prefill", 1.0, 100)]


def test_a_request_that_leaves_between_two_calls_keeps_what_it_had() -> None:
    clock, one, two = StepClock(), WorkSpans(), WorkSpans()
    step(clock, 0.0, 1.0, (one, "decode", 1), (two, "decode", 1))
    assert clock.leave(one, 1.2) == [Span(0.0, 1.0, "decode", 0.5, 1)]
    step(clock, 1.3, 2.0, (two, "decode", 1))
    assert two.records()[-1] == Span(1.0, 2.0, "decode", 1.0, 1)


def test_a_request_that_waited_in_the_queue_has_no_spans() -> None:
    assert StepClock().leave(WorkSpans(), 1.0) == []


def test_shares_of_overlapping_requests_sum_to_the_engines_busy_time() -> None:
    draw = random.Random(3)
    clock, now, busy_s = StepClock(), 100.0, 0.0
    running: dict[WorkSpans, int] = {}
    ended: list[list[Span]] = []
    for _ in range(400):
        while len(running) < 4 and draw.random() < 0.5:
            running[WorkSpans()] = draw.randrange(1, 40)
        if not running:
            clock.idle()
            now += 1.0
            continue
        began = now
        clock.begin([(mine, "decode", draw.randrange(1, 64)) for mine in running], now)
        for mine in list(running):
            now += 0.001 + draw.random() / 100
            running[mine] -= 1
            if running[mine] == 0:
                ended.append(clock.leave(mine, now))
                del running[mine]
        now += 0.01 if running else 0.0
        clock.end(now)
        busy_s += now - began
    ended += [mine.records() for mine in running]
    assert len(ended) > 40
    assert all(abs(share - 1.0) < 1e-9 for share in _windows(ended).values())
    assert math.fsum(map(work, ended)) == pytest.approx(busy_s, rel=1e-9)


def _windows(requests: list[list[Span]]) -> dict[tuple[float, float], float]:
    """Sum of the shares between every two instants at which anything changes, where any is > 0."""
    cuts = sorted({at for spans in requests for span in spans for at in (span.start_s, span.end_s)})
    sums: dict[tuple[float, float], float] = {}
    for start, end in zip(cuts, cuts[1:], strict=False):
        shares = [
            span.share
            for spans in requests
            for span in spans
            if span.start_s <= start and end <= span.end_s
        ]
        if shares:
            sums[start, end] = math.fsum(shares)
    return sums


def test_the_number_of_spans_is_bounded_and_merging_keeps_work_and_tokens() -> None:
    mine = WorkSpans()
    expected = 0.0
    for index in range(5000):
        start, end, share = index * 1.0, index + 0.9, 0.2 + index % 7 / 10
        mine.add(start, end, "prefill" if index < 100 else "decode", share, 1)
        expected += share * (end - start)
    spans = mine.records()
    assert MAX_SPANS // 2 <= len(spans) <= MAX_SPANS
    assert work(spans) == pytest.approx(expected, rel=1e-9)
    assert sum(span.tokens for span in spans) == 5000
    assert (spans[0].start_s, spans[-1].end_s) == (0.0, 4999.9)
    assert all(a.end_s <= b.start_s for a, b in zip(spans, spans[1:], strict=False))


def test_phases_are_never_merged_with_each_other() -> None:
    spans = [Span(0.0, 1.0, "prefill", 1.0, 8), Span(1.0, 2.0, "decode", 1.0, 1)]
    assert halved(spans) == spans


def test_a_pause_between_merged_spans_lowers_the_share() -> None:
    spans = [Span(0.0, 1.0, "decode", 1.0, 1), Span(3.0, 4.0, "decode", 1.0, 1)]
    assert halved(spans) == [Span(0.0, 4.0, "decode", 0.5, 2)]


def test_the_bookkeeping_of_a_token_costs_microseconds() -> None:
    clock, mine, other = StepClock(), WorkSpans(), WorkSpans()
    tokens = 5000
    fastest = math.inf
    for _ in range(3):
        began = time.thread_time()
        for index in range(tokens):
            clock.begin([(mine, "decode", 1), (other, "decode", 1)], float(index))
            clock.end(index + 1.0)
        fastest = min(fastest, (time.thread_time() - began) / tokens / 2)
    assert fastest < 10e-6
