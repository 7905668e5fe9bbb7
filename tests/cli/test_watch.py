"""`status --watch`, `status` and --verbose on documents as the daemon sends them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from board_writer import copied_board
from cli_runner import Screen
from fake_engine import FakeSupervisor
from http_front import serving
from rich.console import Console

from edge_agent.cli.commands import watch as watching
from edge_agent.cli.commands.engine import status_rows
from edge_agent.cli.commands.watch import (
    StatusOptions,
    looks,
    one_line,
    rows,
    sparkline,
    view,
    watch,
)
from edge_agent.cli.terminal import Terminal
from edge_agent.cli.timing_block import timing_block
from edge_agent.client.connection import Ending

MEASURED = {
    "prefill_j": 3.1, "decode_j": 9.2, "total_j": 12.3, "marginal_j": None, "j_per_token": 0.144,
    "mean_w": 5.2, "peak_w": 6.1, "idle_w": None, "n_samples": 47, "rail": "POM_5V_IN",
    "source": "ina3221", "shared": False, "reason": None,
}  # fmt: skip
TIMINGS = {"cache_n": 0, "prompt_n": 5, "prompt_ms": 50.0, "predicted_n": 64, "predicted_ms": 900.0}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Status and telemetry of a real front above a fixture board."""
    base = tmp_path_factory.mktemp("watch")
    root = copied_board("jetson-nano_jetpack4", base / "board")
    (base / "state").mkdir()
    with serving(base / "state", FakeSupervisor(), senses=True, sensors_root=root) as front:
        while not (front.get("/telemetry?seconds=60").json()["points"]):
            pass
        front.post("/v1/completions", {"prompt": "x"})
        return front.get("/status").json(), front.get("/telemetry?seconds=60").json()


def shown(status: Any, telemetry: Any, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(view(status, telemetry))
    return out.getvalue()


def test_screen_shows_power_heat_memory_and_the_last_generation(documents: Any) -> None:
    text = shown(*documents)
    for part in (
        "2.44 W",
        "CPU-therm 34.5",
        "POM_5V_GPU",
        "0 of 2 busy",
        "tiny",
        "stop",
        "1.48 GHz",
    ):
        assert part in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_screen_fits_its_width(documents: Any, width: int) -> None:
    assert max(len(line) for line in shown(*documents, width).splitlines()) <= width


def test_what_was_not_measured_says_so(documents: Any) -> None:
    status, telemetry = documents
    bare = {**status, "sensors": None}
    empty = {**telemetry, "points": []}
    assert dict(rows(bare, empty))["power"].startswith("not measured")
    assert "not measured" in dict(rows(status, telemetry))["idle"]


def test_line_mode_has_the_moving_figures(documents: Any) -> None:
    line = one_line(*documents)
    assert "power 2.44 W" in line and "\n" not in line
    assert "daemon gone" in one_line(None, None) and "daemon gone" in shown(None, None)


def test_sparkline_scales_to_the_highest_and_leaves_gaps() -> None:
    assert sparkline([0, 5, None, 10]) == "▁▅ █"
    assert sparkline([]) == "" and sparkline([0, 0]) == "▁▁"
    assert len(sparkline(list(range(60)))) == 30


def test_daemon_that_is_gone_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(io.StringIO(), io.StringIO(), io.StringIO(), {})
    options = StatusOptions(state_dir=tmp_path, interval=0.1)
    found = looks(options, terminal)
    assert next(found) == (None, None)
    assert next(found) == (None, None)


def stop_after(n: int, monkeypatch: pytest.MonkeyPatch, documents: Any) -> None:
    def some(options: object, terminal: object) -> Any:
        yield from [documents] * n
        raise KeyboardInterrupt

    monkeypatch.setattr(watching, "looks", some)


def test_json_is_one_document_a_line(documents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(2, monkeypatch, documents)
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        watch(StatusOptions(json=True), Terminal(io.StringIO(), out, io.StringIO(), {}))
    assert [set(json.loads(line)) for line in out.getvalue().splitlines()] == [
        {"status", "telemetry"}
    ] * 2


def test_live_view_gives_the_cursor_back_on_ctrl_c(
    documents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(2, monkeypatch, documents)
    screen = Screen()
    with pytest.raises(KeyboardInterrupt):
        watch(StatusOptions(), Terminal(io.StringIO(), screen, io.StringIO(), {"TERM": "xterm"}))
    assert "2.44 W" in screen.getvalue()
    assert screen.getvalue().rfind("\x1b[?25h") >= screen.getvalue().rfind("\x1b[?25l")


def test_status_once_lists_rails_and_heat(documents: Any) -> None:
    found = dict(status_rows(documents[0]))
    assert "POM_5V_IN 2.44 W" in found["rails"] and "GPU-therm 33.0 C" in found["temperatures"]
    assert found["power"] == "2.44 W"


def test_verbose_block_tells_joules_and_heat() -> None:
    ending = Ending("m", "stop", {}, TIMINGS, MEASURED, 51.5)
    block = "\n".join(timing_block(ending, 1.0, 0.0))
    assert "12.30 J (3.10 prefill, 9.20 decode)" in block
    assert "0.1440 J" in block and "rail POM_5V_IN" in block and "51.5 C" in block


def test_verbose_block_says_why_there_are_no_joules() -> None:
    def block_of(reason: str) -> str:
        nothing = {**MEASURED, "total_j": None, "reason": reason}
        return "\n".join(timing_block(Ending("m", "stop", {}, TIMINGS, nothing), 1.0, 0.0))

    block = block_of("no power sensor found")
    where = "`edge-agent doctor` lists where it looked"
    assert f"energy:               not measured (no power sensor found; {where})" in block
    assert "not measured (only 3 power samples)" in block_of("only 3 power samples")
    assert "temperature:          not measured" in block
