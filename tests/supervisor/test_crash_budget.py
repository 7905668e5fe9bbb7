"""The crash budget on a clock the test owns."""

from __future__ import annotations

import pytest

from edge_agent.clocks import Clocks
from edge_agent.errors import ModelQuarantined
from edge_agent.supervisor.crash_budget import CrashBudget


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def quarantine(time: Time) -> CrashBudget:
    return CrashBudget(3, 100.0, Clocks(unix=lambda: 1e9, monotonic=time))


def test_crashes_further_apart_than_the_window_never_quarantine(
    quarantine: CrashBudget, time: Time
) -> None:
    for _ in range(20):
        assert quarantine.add_crash("a", 1.0, "SIGSEGV") is None
        time.now += 51
    quarantine.check("a", 1.0)
    assert quarantine.crashes("a") == 1


def test_the_budget_is_per_model_and_stays_spent(quarantine: CrashBudget, time: Time) -> None:
    verdicts = [quarantine.add_crash("a", 1.0, f"crash {n}") for n in range(3)]
    assert verdicts[:2] == [None, None] and verdicts[2] is not None
    assert (verdicts[2].since, "crash 2" in verdicts[2].reason) == (1e9, True)
    time.now += 10_000
    with pytest.raises(ModelQuarantined, match="crash 2"):
        quarantine.check("a", 1.0)
    quarantine.check("b", 1.0)


def test_lifting_forgets_the_crashes_too(quarantine: CrashBudget) -> None:
    for _ in range(3):
        quarantine.add_crash("a", 1.0, "SIGSEGV")
    assert quarantine.lift() == ["a"]
    quarantine.check("a", 1.0)
    assert quarantine.add_crash("a", 1.0, "SIGSEGV") is None
