"""Joules of known signals, gaps, shares and everything that must stay null."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

import energy as signals
import pytest

from edge_agent.measured import Span
from edge_agent.monitor.energy import Trace, energy_of, integrate

HZ = 20.0


def trace_of(
    times: list[float], watts: list[float], *, joules: list[float] | None = None, reason: str = ""
) -> Trace:
    return Trace(times, watts, joules or [], "ina3221", "VDD_IN", 0.3, reason)


def steady(seconds: float, watts: float = 5.0) -> Trace:
    """Constant power from 0 on, 20 samples a second."""
    times = [index / HZ for index in range(int(seconds * HZ) + 1)]
    return trace_of(times, [watts] * len(times))


def lone(prefill_s: float, decode_s: float) -> list[Span]:
    end_s = prefill_s + decode_s
    return [
        Span(0.0, prefill_s, "prefill", 1.0, 100),
        Span(prefill_s, end_s, "decode", 1.0, 10),
    ]


# ---- integrate ----


@pytest.mark.parametrize("board", signals.boards())
@pytest.mark.parametrize("name", signals.SIGNALS)
def test_a_known_integral_is_met_within_one_percent_on_every_board(
    board: str, name: str, tmp_path: Path
) -> None:
    root = tmp_path / board
    shutil.copytree(signals.FIXTURES / board, root)
    errors = [signals.error_of(root, signals.SIGNALS[name], seed) for seed in range(2)]
    assert max(map(abs, errors)) < 0.01


def test_three_kinds_of_boards_are_tried() -> None:
    assert len(signals.boards()) >= 3


def test_both_ends_of_a_window_are_interpolated_on_a_ramp() -> None:
    trace = trace_of([0.0, 0.1, 0.2, 0.3], [0.0, 1.0, 2.0, 3.0])
    part = integrate(trace, 0.05, 0.25)
    assert part.joules == pytest.approx(0.3, rel=1e-9)
    assert part.covered_s == pytest.approx(0.2) and part.n_samples == 2 and part.peak_w == 2.0


def test_a_window_inside_one_interval_has_joules_and_no_samples() -> None:
    part = integrate(trace_of([0.0, 0.1], [0.0, 1.0]), 0.04, 0.06)
    assert part.joules == pytest.approx(0.5 * 0.02) and (part.n_samples, part.peak_w) == (0, None)


def test_a_counter_is_end_minus_start() -> None:
    trace = trace_of([0.0, 0.1, 0.2], [9.0, 10.0, 30.0], joules=[0.0, 1.0, 4.0])
    assert integrate(trace, 0.05, 0.2).joules == pytest.approx(0.5 + 3.0)


def test_a_gap_adds_neither_joules_nor_time() -> None:
    trace = trace_of([0.0, 0.1, 0.2, 1.2, 1.3], [5.0] * 5)
    part = integrate(trace, 0.0, 1.3)
    assert part.covered_s == pytest.approx(0.3) and part.joules == pytest.approx(1.5)


def test_the_newest_sample_is_held_for_one_gap_at_most() -> None:
    trace = trace_of([0.0, 0.1], [4.0, 6.0])
    assert integrate(trace, 0.1, 0.2).joules == pytest.approx(0.6)
    assert integrate(trace, 0.1, 9.0).covered_s == pytest.approx(0.3)
    assert integrate(trace, 0.5, 0.6).joules == 0.0


def test_nothing_is_assumed_before_the_oldest_sample() -> None:
    part = integrate(trace_of([1.0, 1.1], [4.0, 6.0]), 0.0, 1.1)
    assert part.covered_s == pytest.approx(0.1) and part.joules == pytest.approx(0.5)


def test_an_empty_trace_has_no_joules() -> None:
    assert integrate(trace_of([], []), 0.0, 1.0).covered_s == 0.0


def test_windows_that_touch_add_up_to_the_whole() -> None:
    draw = random.Random(1)
    times = sorted(draw.uniform(0.0, 10.0) for _ in range(200))
    trace = trace_of(times, [draw.uniform(2.0, 9.0) for _ in times])
    cuts = sorted([0.0, 10.0, *(draw.uniform(0.0, 10.0) for _ in range(50))])
    parts = [integrate(trace, start, end) for start, end in zip(cuts, cuts[1:], strict=False)]
    whole = integrate(trace, 0.0, 10.0)
    assert math.fsum(part.joules for part in parts) == pytest.approx(whole.joules, rel=1e-9)
    assert sum(part.n_samples for part in parts) == whole.n_samples == 200


# ---- energy_of ----


def test_a_lone_request_has_both_phases_their_sum_and_joules_per_token() -> None:
    energy = energy_of(lone(1.0, 2.0), steady(4.0), 2.0, 10)
    assert energy.prefill_j == pytest.approx(5.0) and energy.decode_j == pytest.approx(10.0)
    assert energy.total_j == pytest.approx(15.0) and energy.marginal_j == pytest.approx(9.0)
    assert energy.j_per_token == pytest.approx(1.0)
    assert (energy.mean_w, energy.peak_w, energy.idle_w) == (pytest.approx(5.0), 5.0, 2.0)
    assert (energy.source, energy.rail, energy.n_samples) == ("ina3221", "VDD_IN", 60)
    assert energy.shared is False and energy.reason is None


def test_shares_of_requests_that_overlap_sum_to_the_whole() -> None:
    trace = steady(10.0)
    shares = (0.1, 0.3, 0.6)
    spans = [[Span(1.0, 7.0, "decode", share, 9)] for share in shares]
    energies = [energy_of(mine, trace, 2.0, 9) for mine in spans]
    assert math.fsum(e.total_j or 0.0 for e in energies) == pytest.approx(30.0, rel=1e-9)
    assert math.fsum(e.marginal_j or 0.0 for e in energies) == pytest.approx(18.0, rel=1e-9)
    assert all(e.shared for e in energies)
    assert all(e.mean_w == pytest.approx(5.0) for e in energies), "the board's, not the share's"


def test_under_ten_samples_everything_is_null_and_why_is_said() -> None:
    energy = energy_of(lone(0.1, 0.1), steady(1.0), 2.0, 4)
    assert (energy.total_j, energy.prefill_j, energy.mean_w, energy.peak_w) == (None,) * 4
    assert energy.n_samples == 4 and energy.idle_w == 2.0
    assert energy.reason == "only 4 power samples, 10 are needed: the answer was too short"


def test_a_phase_of_few_samples_is_null_and_still_part_of_the_total() -> None:
    energy = energy_of(lone(0.2, 2.0), steady(3.0), 2.0, 10)
    assert energy.prefill_j is None and energy.decode_j == pytest.approx(10.0)
    assert energy.total_j == pytest.approx(11.0)
    assert energy.reason == "only 4 power samples during prefill, 10 are needed"


def test_a_short_decode_has_no_joules_per_token() -> None:
    energy = energy_of(lone(2.0, 0.2), steady(3.0), 2.0, 10)
    assert (energy.decode_j, energy.j_per_token) == (None, None)
    assert energy.prefill_j == pytest.approx(10.0)


def test_an_answer_of_no_tokens_has_no_joules_per_token() -> None:
    assert energy_of(lone(1.0, 1.0), steady(3.0), 2.0, 0).j_per_token is None


def test_without_idle_watts_only_the_marginal_joules_are_missing() -> None:
    energy = energy_of(lone(1.0, 1.0), steady(3.0), None, 10)
    assert energy.marginal_j is None and energy.total_j == pytest.approx(10.0)
    assert energy.reason is not None and "idle power" in energy.reason


def test_no_sensor_is_null_with_the_sensors_own_reason() -> None:
    trace = Trace([], [], [], "none", None, 0.3, "no power sensor found")
    energy = energy_of(lone(1.0, 1.0), trace, None, 10)
    assert (energy.total_j, energy.source, energy.rail) == (None, "none", None)
    assert energy.reason == "no power sensor found"


def test_a_request_that_never_ran_says_so() -> None:
    energy = energy_of([], steady(1.0), 2.0, 0)
    assert energy.reason == "the engine never worked on this request"


def test_a_gap_is_named_and_spoils_joules_per_token_only() -> None:
    full = steady(6.0)
    kept = [index for index, time_s in enumerate(full.times_s) if not 2.0 < time_s < 3.0]
    trace = trace_of([full.times_s[i] for i in kept], [full.watts[i] for i in kept])
    energy = energy_of(lone(1.0, 4.0), trace, 2.0, 10)
    assert energy.total_j == pytest.approx(20.0) and energy.marginal_j == pytest.approx(12.0)
    assert energy.mean_w == pytest.approx(5.0) and energy.j_per_token is None
    assert energy.reason == "power was not read during 1.00 s of 5.00 s, which do not count"


def test_one_lost_sample_does_not_matter() -> None:
    full = steady(6.0)
    trace = trace_of([*full.times_s[:40], *full.times_s[41:]], list(full.watts[1:]))
    energy = energy_of(lone(1.0, 4.0), trace, 2.0, 10)
    assert energy.total_j == pytest.approx(25.0) and energy.reason is None


def test_peak_is_the_boards_highest_sample_while_the_request_ran() -> None:
    trace = steady(5.0)
    watts = list(trace.watts)
    watts[10], watts[50], watts[90] = 50.0, 8.0, 60.0
    spans = [Span(1.0, 4.0, "decode", 0.5, 10)]
    energy = energy_of(spans, trace_of(list(trace.times_s), watts), 2.0, 10)
    assert energy.peak_w == 8.0
