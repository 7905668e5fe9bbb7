"""Every fixture board end to end, values changing: answer, store, metrics, bench, report agree.

The daemon, the worker and the sampler are real; the boards are trees of files (see their README).
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from board_writer import BOARDS, BoardWriter, copied_board
from cli_runner import cli
from prometheus_client.parser import text_string_to_metric_families
from tiny_gguf import write_tiny_model
from waiting import DEADLINE_S, until

from edge_agent.bench.report import figure
from edge_agent.client.connection import Client
from edge_agent.errors import EdgeAgentError

BOARDS_WITH_POWER = {
    "jetson-nano_jetpack4": ("ina3221", "POM_5V_IN"),
    "jetson-orin-nano_jetpack5": ("ina3221", "VDD_IN"),
    "jetson-orin-nano_jetpack6": ("ina3221", "VDD_IN"),
    "pc_ubuntu24": ("rapl", "package-0"),
}
MEAN_W, SWING_W = 6.0, 2.0


def watts(at_s: float) -> float:
    return MEAN_W + SWING_W * math.sin(2 * math.pi * at_s / 0.8)


def celsius(at_s: float) -> float:
    return 50.0 + 5.0 * math.sin(at_s)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a tiny model in it; every daemon of this file uses it in turn."""
    base = tmp_path_factory.mktemp("boards")
    gguf = write_tiny_model(base / "tiny.gguf", n_ctx_train=4096)
    done = cli("pull", str(gguf), "--name", "tiny", state_dir=base / "state")
    assert done.code == 0, done.err
    return base / "state"


@contextmanager
def daemon(state: Path, root: Path) -> Iterator[Client]:
    """`edge-agent serve --sensors-root`, sampling fast, because the model is tiny."""
    env = {**os.environ, "EDGE_AGENT_SAMPLE_BUSY_HZ": "100", "EDGE_AGENT_SENSORS_ROOT": str(root)}
    command = [sys.executable, "-m", "edge_agent.cli", "serve", "--port", "none"]
    command += ["--state-dir", str(state), "--model", "tiny"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    client = Client(state / "agent.sock", timeout_s=DEADLINE_S)
    try:
        until(lambda: has_sensors(client, process))
        yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE_S)


def has_sensors(client: Client, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        status = client.get("/status")
    except EdgeAgentError:  # its socket is not there yet
        return False
    return bool(status["sensors"]) and status["engine"]["state"] == "ready"


def long_answer(client: Client) -> dict[str, Any]:
    """Long enough for tens of samples at 100 Hz."""
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "cache_prompt": False}
    return client.post("/v1/completions", body)


def exported(client: Client) -> dict[tuple[str, frozenset[str]], float]:
    """Every sample of /metrics by name and label values."""
    with client._response("GET", "/metrics", None) as response:
        text = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("tree", BOARDS_WITH_POWER)
def test_answer_store_metrics_and_status_agree(tree: str, state: Path, tmp_path: Path) -> None:
    source, rail = BOARDS_WITH_POWER[tree]
    with (
        BoardWriter(tree, tmp_path / "board", watts, celsius) as board,
        daemon(state, board.root) as client,
    ):
        answer = long_answer(client)
        energy, timings = answer["energy"], answer["timings"]
        row = client.get("/telemetry?seconds=60")["generations"][0]
        metrics = exported(client)
        sensors = client.get("/status")["sensors"]
    assert (energy["source"], energy["rail"]) == (source, rail)
    assert energy["n_samples"] >= 10 and energy["shared"] is False
    assert MEAN_W - SWING_W <= energy["mean_w"] <= MEAN_W + SWING_W
    # RAPL's counter is rewritten by a thread of this test: when that is late, the joules of many of
    # its steps fall between two samples. Only a gauge bounds the peak.
    highest_w = float("inf") if source == "rapl" else (MEAN_W + SWING_W) * 1.01
    assert energy["mean_w"] <= energy["peak_w"] <= highest_w
    worked_s = (timings["prompt_ms"] + timings["predicted_ms"]) / 1000
    assert energy["total_j"] == pytest.approx(energy["mean_w"] * worked_s, rel=0.1)
    assert energy["j_per_token"] == pytest.approx(energy["decode_j"] / timings["predicted_n"])
    assert 44.9 <= answer["temperature_celsius"] <= 55.1
    for name in ("total_j", "decode_j", "j_per_token", "mean_w", "peak_w"):
        assert row[name] == energy[name]
    assert (
        row["energy_rail"] == rail and row["temperature_celsius"] == answer["temperature_celsius"]
    )
    assert metrics["edge_agent_energy_joules_total", frozenset((rail, "decode"))] == pytest.approx(
        energy["decode_j"]
    )
    assert sensors["total_rail"] == rail and sensors["hottest_celsius"] is not None
    assert any(name == "edge_agent_temperature_celsius" for name, _ in metrics)


def test_joules_of_an_answer_are_those_of_the_signal(state: Path, tmp_path: Path) -> None:
    """The work is somewhere between request and answer: at their beginning, or at their end."""
    began_s = time.monotonic()

    def rising(at_s: float) -> float:
        return 4.0 + 0.5 * (at_s - began_s)

    with (
        BoardWriter("jetson-orin-nano_jetpack6", tmp_path / "board", rising, celsius) as board,
        daemon(state, board.root) as client,
    ):
        for _ in range(2):
            start_s = time.monotonic()
            answer = long_answer(client)
            end_s = time.monotonic()
            worked_s = sum(answer["timings"][f"{x}_ms"] for x in ("prompt", "predicted")) / 1e3
            least_w, most_w = rising(start_s + worked_s / 2), rising(end_s - worked_s / 2)
            assert 0.9 * least_w < answer["energy"]["total_j"] / worked_s < 1.05 * most_w


def test_machine_with_nothing_says_so_everywhere(state: Path, tmp_path: Path) -> None:
    root = copied_board("nothing", tmp_path / "board")
    with daemon(state, root) as client:
        answer = long_answer(client)
        metrics = exported(client)
        row = client.get("/telemetry?seconds=60")["generations"][0]
    assert answer["energy"]["total_j"] is None and "no power sensor" in answer["energy"]["reason"]
    assert answer["temperature_celsius"] is None
    assert row["total_j"] is None and "no power sensor" in row["energy_reason"]
    names = {name for name, _ in metrics}
    assert not names & {"edge_agent_power_watts", "edge_agent_temperature_celsius"}
    assert "edge_agent_energy_joules_total" not in names


@pytest.mark.parametrize("tree", ["jetson-nano_jetpack4", "nothing"])
def test_bench_and_report_tell_the_same_figures(tree: str, state: Path, tmp_path: Path) -> None:
    with BoardWriter(tree, tmp_path / "board", watts, celsius) as board:
        flags = [
            "-p",
            "0",
            "-n",
            "512",
            "-r",
            "6",
            "--scenario",
            "raw",
            "--idle-s",
            "1.2",
            "--json",
        ]
        done = cli("bench", "tiny", *flags, "--sensors-root", str(board.root), state_dir=state)
    assert done.code == 0, done.err
    (document,) = done.document()
    report = tmp_path / "report.html"
    made = cli("report", "-o", str(report), "--last", "1", "--json", state_dir=state)
    assert made.code == 0 and made.document()["documents"] == 1
    html, md = report.read_text(), report.with_suffix(".md").read_text()
    for text in (html, md):
        assert figure(document["median_ts"]) in text
        if tree == "nothing":
            assert "not measured" in text and "no power sensor" in text
        else:
            assert figure(document["energy"]["j_per_token"]) in text
            assert figure(document["energy"]["idle_w"]) in text


def test_fixtures_are_what_they_say() -> None:
    readme = (BOARDS / "README.md").read_text()
    assert "None was recorded" in readme
    assert {path.name for path in BOARDS.iterdir() if path.is_dir()} == {
        *BOARDS_WITH_POWER,
        "nothing",
    }
