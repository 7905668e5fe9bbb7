"""When a trainer pauses and goes on, with the time handed in; the kernel's power supplies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.adapt.pause_policy import (
    AMPLE_BYTES,
    CALM_S,
    QUIET_S,
    BoardConditions,
    PauseLimits,
    PausePolicy,
)
from edge_agent.monitor.sensors.supply import on_battery

LIMITS = PauseLimits(celsius=85.0, available_bytes=300 << 20)
CALM = BoardConditions(0.0, celsius=60.0, available_bytes=900 << 20, on_battery=False)


def test_idle_pauses_for_a_request_and_goes_on_after_a_quiet_while() -> None:
    policy = PausePolicy("idle", LIMITS)
    assert policy.decide(CALM) is None
    assert policy.decide(replace(CALM, now_s=1.0, in_flight=1)) == "a request is being answered"
    assert policy.decide(replace(CALM, now_s=1.0 + QUIET_S - 0.1)) is not None
    assert policy.decide(replace(CALM, now_s=1.0 + QUIET_S)) is None


@pytest.mark.parametrize("name", ["always", "exclusive"])
def test_other_policies_compute_beside_requests(name: str) -> None:
    assert PausePolicy(name, LIMITS).decide(replace(CALM, in_flight=4)) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"celsius": 85.0}, "heat"),
        ({"available_bytes": 299 << 20}, "memory"),
        ({"on_battery": True}, "battery"),
        ({"guard_reason": "memory pressure"}, "guard"),
    ],
)
def test_every_policy_pauses_for_the_board(change: dict[str, object], word: str) -> None:
    policy = PausePolicy("always", LIMITS)
    reason = policy.decide(replace(CALM, now_s=5.0, **change))  # type: ignore[arg-type]
    assert reason is not None and word in reason
    assert policy.decide(replace(CALM, now_s=5.0 + CALM_S - 1)) == reason
    assert policy.decide(replace(CALM, now_s=5.0 + CALM_S)) is None


def test_what_is_not_known_pauses_nothing() -> None:
    assert PausePolicy("idle", PauseLimits()).decide(BoardConditions(0.0)) is None
    assert PausePolicy("idle", LIMITS).decide(BoardConditions(0.0)) is None


def test_a_board_of_4_gb_is_short_of_memory_and_an_unknown_one_is_left_alone() -> None:
    assert BoardConditions(0.0, available_bytes=4 << 30).is_short_of_memory
    assert not BoardConditions(0.0, available_bytes=AMPLE_BYTES).is_short_of_memory
    assert not BoardConditions(0.0).is_short_of_memory


def supply(root: Path, name: str, **values: str) -> None:
    directory = root / "sys/class/power_supply" / name
    directory.mkdir(parents=True)
    for key, value in values.items():
        (directory / key).write_text(f"{value}\n")


def test_a_board_without_supplies_says_nothing(tmp_path: Path) -> None:
    assert on_battery(tmp_path) is None


def test_mains_that_is_online_is_no_battery(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="1")
    supply(tmp_path, "BAT0", type="Battery", status="Charging")
    assert on_battery(tmp_path) is False


def test_a_discharging_battery_is_one(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging")
    assert on_battery(tmp_path) is True


def test_the_battery_of_a_mouse_is_not_the_boards(tmp_path: Path) -> None:
    supply(tmp_path, "hid", type="Battery", status="Discharging", scope="Device")
    assert on_battery(tmp_path) is None
