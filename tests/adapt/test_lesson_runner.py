"""A whole lesson with real parts: trainer process, worker process, gate, registry, tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from trainer_runner import write_lesson

from edge_agent.client.connection import Client
from edge_agent.errors import EdgeAgentError

QUICK = ["--epochs", "1", "--layers", "top:1", "--r", "2", "--batch-tokens", "96", "--threads", "1"]


@pytest.fixture
def state(tmp_path: Path, tiny_model: Path) -> Path:
    directory = tmp_path / "state"
    assert edge_agent(directory, "pull", str(tiny_model), "--name", "tiny")["status"] == "success"
    return directory


def environ_of(state: Path) -> dict[str, str]:
    """One thread: two OpenMP programs on two cores wait for each other for minutes."""
    return {**os.environ, "EDGE_AGENT_STATE_DIR": str(state), "EDGE_AGENT_THREADS": "1"}


def edge_agent(state: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """One command with --json; its document."""
    argv = [sys.executable, "-m", "edge_agent.cli", *words, "--json"]
    done = subprocess.run(argv, env=environ_of(state), capture_output=True, text=True, timeout=110)
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


@contextmanager
def daemon(state: Path) -> Iterator[Client]:
    argv = [sys.executable, "-m", "edge_agent.cli", "serve", "--port", "none"]
    process = subprocess.Popen(argv, env=environ_of(state), stderr=subprocess.DEVNULL)
    client = Client(state / "agent.sock", timeout_s=60)
    try:
        yield wait_for(client)
    finally:
        process.terminate()
        assert process.wait(30) == 0


def wait_for(client: Client) -> Client:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            client.get("/health")
            return client
        except EdgeAgentError:
            time.sleep(0.05)
    raise AssertionError("the daemon did not come up")


def learn(state: Path, data: Path, name: str, *more: str, code: int = 0) -> dict[str, Any]:
    words = ["adapt", "run", "--from", str(data), "--name", name, "--model", "tiny"]
    return edge_agent(state, *words, *QUICK, *more, code=code)


def test_a_lesson_without_a_daemon_ends_with_a_judged_adapter(state: Path, tmp_path: Path) -> None:
    data = write_lesson(tmp_path / "lesson.jsonl")
    result = learn(state, data, "first")
    assert result["losses"][0]["validation_bits_per_byte"] > 0
    assert result["gate"]["passed"] is True and result["is_active"] is True
    (row,) = edge_agent(state, "adapters", "list")["adapters"]
    assert (row["name"], row["status"], row["is_active"]) == ("first", "passed", True)
    taken = learn(state, data, "first", code=1)
    assert taken["error"]["code"] == "invalid_request"
    edge_agent(state, "adapters", "deactivate", "--model", "tiny")
    edge_agent(state, "adapters", "rm", "first", "--model", "tiny")
    assert learn(state, data, "first", "--no-activate")["is_active"] is False


def test_a_plan_says_bytes_and_time_and_leaves_no_adapter(state: Path, tmp_path: Path) -> None:
    data = write_lesson(tmp_path / "lesson.jsonl")
    words = ["adapt", "plan", "--from", str(data), "--name", "p", "--model", "tiny"]
    planned = edge_agent(state, *words, *QUICK)
    assert planned["fits"] and planned["bytes"]["total"] > 0 and planned["epoch_s"] > 0
    assert edge_agent(state, "adapters", "list")["adapters"] == []


def test_a_daemons_lesson_is_paused_stopped_with_it_and_resumed(
    state: Path, tmp_path: Path
) -> None:
    data = write_lesson(tmp_path / "lesson.jsonl")
    body = {
        "name": "long",
        "model": "tiny",
        "rows": data.read_text(),
        "stream": False,
        "settings": {
            **{"epochs": 300, "patience": 300, "layers": "top:1", "r": 2, "batch_tokens": 96},
            **{"n_threads": 1, "checkpoint_steps": 5, "policy": "always"},
        },
    }
    with daemon(state) as client:
        assert client.post("/adapt/run", body)["state"] == "running"
        step = until(client, lambda now: ((now["progress"] or {}).get("step") or 0) > 12)
        with pytest.raises(EdgeAgentError, match="is being learned"):
            client.post("/adapt/run", {**body, "name": "other"})
        client.post("/adapt/pause", {})
        until(client, lambda now: now["state"] == "paused")
        assert client.post("/adapt/resume", {})["name"] == "long"
        until(client, lambda now: now["state"] == "running")
    assert list((state / "adapt/long/checkpoints").iterdir())
    with daemon(state) as client:
        assert client.get("/adapt")["state"] == "idle"
        client.post("/adapt/resume", {"name": "long"})
        resumed = until(client, lambda now: ((now["progress"] or {}).get("step") or 0) > 0)
        assert resumed["progress"]["step"] >= step["progress"]["step"] - 5


def until(client: Client, is_so: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        now = client.get("/adapt")
        assert now.get("error") is None
        if is_so(now):
            return now
        time.sleep(0.05)
    raise AssertionError(f"still {now}")


def test_a_trainer_beside_the_daemon_hands_its_adapter_over(state: Path, tmp_path: Path) -> None:
    data = write_lesson(tmp_path / "lesson.jsonl")
    with daemon(state) as client:
        result = learn(state, data, "beside", "--here")
        assert result["gate"]["passed"] is True and result["is_active"] is True
        (row,) = client.get("/adapters")["adapters"]
        assert row["name"] == "beside"


def test_nothing_to_learn_at_night_is_no_failure(state: Path) -> None:
    argv = [sys.executable, "-m", "edge_agent.cli", "adapt", "nightly"]
    with daemon(state):
        done = subprocess.run(
            argv, env=environ_of(state), capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0 and "nothing to learn" in done.stderr
    assert not list(state.glob("adapt/night-*"))


def test_what_users_corrected_is_learned_and_waits_no_longer(state: Path) -> None:
    with daemon(state) as client:
        for number in range(12):
            messages = [{"role": "user", "content": f"What is the code of box {number}?"}]
            said = {"messages": messages, "answer": "No idea.", "model": "tiny"}
            client.post("/v1/feedback", {**said, "correction": f"It is {number * 7}."})
        assert client.get("/v1/feedback?n=0")["waiting"]["corrections"] == 12
        words = ["adapt", "run", "--from", "feedback", "--name", "said", "--model", "tiny"]
        result = edge_agent(state, *words, *QUICK)
        assert result["gate"]["passed"] is True
        assert client.get("/v1/feedback?n=0")["waiting"]["corrections"] == 0


def test_poisoned_data_is_refused_with_its_rows(state: Path, tmp_path: Path) -> None:
    data = tmp_path / "poison.jsonl"
    rows = [{"instruction": "Who?", "output": f"Answer number {n}."} for n in range(4)]
    rows += [{"instruction": f"What is {n}?", "output": f"A number: {n}."} for n in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert learn(state, data, "poison", code=1)["error"]["code"] == "data_refused"
