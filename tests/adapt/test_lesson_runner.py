"""A whole lesson with real parts: trainer process, worker process, gate, registry, tiny model."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from random_adapter import write_adapter
from tiny_state import register_tiny
from trainer_runner import write_lesson
from waiting import DEADLINE_S, until

from edge_agent.adapt import feedback, lesson_runner
from edge_agent.adapt.gate.gate import GateReport
from edge_agent.adapt.lesson import LessonRequest
from edge_agent.adapt.lesson_files import FEEDBACK
from edge_agent.adapt.lesson_runner import LessonRunner
from edge_agent.adapt.messages import Finished
from edge_agent.adapt.pause_policy import PauseConditions
from edge_agent.client.connection import Client
from edge_agent.config import Settings
from edge_agent.errors import EdgeAgentError
from edge_agent.gguf import adapter_file, value_scan
from edge_agent.records import AdapterRef
from edge_agent.store.feedback_table import FeedbackQuery
from edge_agent.store.rows import FeedbackRow
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor
from edge_agent.supervisor.worker_link import WORKER_ARGV

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
    done = subprocess.run(argv, env=environ_of(state), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


@contextmanager
def daemon(state: Path) -> Iterator[Client]:
    argv = [sys.executable, "-m", "edge_agent.cli", "serve", "--port", "none"]
    process = subprocess.Popen(argv, env=environ_of(state), stderr=subprocess.DEVNULL)
    client = Client(state / "agent.sock", timeout_s=DEADLINE_S)
    try:
        until(lambda: is_up(client))
        yield client
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def is_up(client: Client) -> bool:
    try:
        client.get("/health")
    except EdgeAgentError:
        return False
    return True


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
        step = lesson_when(client, lambda now: ((now["progress"] or {}).get("step") or 0) > 12)
        with pytest.raises(EdgeAgentError, match="is being learned"):
            client.post("/adapt/run", {**body, "name": "other"})
        client.post("/adapt/pause", {})
        lesson_when(client, lambda now: now["state"] == "paused")
        assert client.post("/adapt/resume", {})["name"] == "long"
        lesson_when(client, lambda now: now["state"] == "running")
    assert list((state / "adapt/long/checkpoints").iterdir())
    with daemon(state) as client:
        assert client.get("/adapt")["state"] == "idle"
        client.post("/adapt/resume", {"name": "long"})
        resumed = lesson_when(client, lambda now: ((now["progress"] or {}).get("step") or 0) > 0)
        assert resumed["progress"]["step"] >= step["progress"]["step"] - 5


def lesson_when(client: Client, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        now = client.get("/adapt")
        assert now.get("error") is None
        return now if is_so(now) else None

    return until(look) or {}


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
            argv, env=environ_of(state), capture_output=True, text=True, timeout=DEADLINE_S
        )
    assert done.returncode == 0 and "nothing to learn" in done.stderr
    assert not list(state.glob("adapt/night-*"))


@pytest.mark.parametrize("where", [(), ("--here",)])
def test_what_users_corrected_is_learned_and_waits_no_longer(
    state: Path, where: tuple[str, ...]
) -> None:
    with daemon(state) as client:
        for number in range(12):
            messages = [{"role": "user", "content": f"What is the code of box {number}?"}]
            said = {"messages": messages, "answer": "No idea.", "model": "tiny"}
            client.post("/v1/feedback", {**said, "correction": f"It is {number * 7}."})
        assert client.get("/v1/feedback?n=0")["waiting"]["corrections"] == 12
        words = ["adapt", "run", "--from", "feedback", "--name", "said", "--model", "tiny"]
        result = edge_agent(state, *words, *where, *QUICK, "--layers", "all", "--epochs", "12")
        assert result["gate"]["passed"] is True, result["gate"]["reasons"]
        assert client.get("/v1/feedback?n=0")["waiting"]["corrections"] == 0
        kept = client.get("/adapters/tiny/said")["settings"]
        assert (kept["rows"], kept["data"], kept["joules"]) == (12, FEEDBACK, None)
    with daemon(state) as client:  # the morning's
        last = client.get("/adapt")["last"]
        assert (last["name"], last["state"], last["rows"]) == ("said", "finished", 12)
        assert last["is_active"] is True and last["ended_at"] > last["started_at"]
        client.post("/adapters/deactivate", {"model": "tiny"})
        assert client.get("/adapt")["last"]["is_active"] is False


def test_poisoned_data_is_refused_with_its_rows(state: Path, tmp_path: Path) -> None:
    data = tmp_path / "poison.jsonl"
    rows = [{"instruction": "Who?", "output": f"Answer number {n}."} for n in range(4)]
    rows += [{"instruction": f"What is {n}?", "output": f"A number: {n}."} for n in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert learn(state, data, "poison", code=1)["error"]["code"] == "data_refused"
    outcome = json.loads((state / "adapt/poison/outcome.json").read_text())
    assert (outcome["state"], outcome["error"]["code"]) == ("failed", "data_refused")


# ---- judging what a trainer has finished -------------------------------------------------------


@dataclass
class Judging:
    """A lesson runner in this process, over a real worker, and a gate that lets all pass."""

    store: Store
    supervisor: Supervisor
    runner: LessonRunner
    worker_checks: list[str] = field(default_factory=list)
    """SHA-256 of each adapter that the worker was asked to check."""
    scanned: list[str] = field(default_factory=list)
    """Name of each tensor whose values this process has looked at."""

    def finish(self, name: str, base: Path, data: str = "lesson.jsonl") -> Path:
        """What a trainer leaves in STATE/adapt/NAME; the path of its adapter."""
        directory = self.runner.files.directory(name)
        adapter = write_adapter(directory / "adapter.gguf", base, seed=1)
        self.runner.files.write_request(LessonRequest(name, "tiny", data))
        finished = Finished(adapter.path, adapter.sha256, [1], [], 1.0, 1.0, 1, 1)
        (directory / "result.json").write_bytes(msgspec.json.encode(finished))
        (directory / "split.json").write_text('{"train": [], "validation": []}')
        return Path(adapter.path)

    async def judge(self, name: str) -> dict[str, Any]:
        self.runner.judge(name)
        async for _ in self.runner.follow():
            pass
        return self.runner.status()


@asynccontextmanager
async def judging(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Judging]:
    settings = Settings(state_dir=tmp_path, ctx=512, slots=2, threads=1)

    async def passing(*args: object, **options: object) -> GateReport:
        return GateReport(True, [], [], [], 0.0)

    monkeypatch.setattr(lesson_runner, "run_gate", passing)
    with Store(tmp_path / "edge-agent.db") as store:
        register_tiny(store, tiny_model)
        supervisor = Supervisor(settings, store, WORKER_ARGV)
        runner = LessonRunner(store, supervisor, PauseConditions(settings), tmp_path)
        found = Judging(store, supervisor, runner)
        count_checks(found, monkeypatch)
        try:
            yield found
        finally:
            await runner.close()
            await supervisor.close(0)


def count_checks(found: Judging, monkeypatch: pytest.MonkeyPatch) -> None:
    check_adapter, check_values = found.supervisor.check_adapter, value_scan.check_values

    async def counted(model: str, adapter: AdapterRef) -> None:
        found.worker_checks.append(adapter.sha256)
        await check_adapter(model, adapter)

    def scanned(stream: Any, data_start: int, tensor: Any) -> bool:
        found.scanned.append(tensor.name)
        return check_values(stream, data_start, tensor)

    monkeypatch.setattr(found.supervisor, "check_adapter", counted)
    monkeypatch.setattr(adapter_file, "check_values", scanned)


SAID = FeedbackRow(1.0, "tiny", "", "given", '[{"role":"user","content":"q"}]', "A", rating=1)


def say(store: Store, *users: str) -> list[int]:
    """The same feedback from each user; the ids of the rows."""
    return feedback.add(store, [replace(SAID, user=user) for user in users], quota=99)


@pytest.mark.parametrize("here", [False, True])
def test_only_the_rows_that_were_learned_wait_no_longer(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    """What another user says in the same words meanwhile still waits; a removed row stays away."""

    async def work() -> None:
        async with judging(tmp_path, tiny_model, monkeypatch) as found:
            learned, removed = say(found.store, "uid:7", "uid:8")
            rows = feedback.training_rows(found.store, "tiny")
            if here:  # the lines of /v1/feedback/export
                rows = [{"messages": row["messages"], "id": row["id"]} for row in rows]
            found.finish("first", tiny_model, data=FEEDBACK)
            found.runner.files.write_feedback("first", rows)
            feedback.remove(found.store, removed)
            (later,) = say(found.store, "uid:9")
            assert (await found.judge("first"))["state"] == "finished"
            found_rows = feedback.page(found.store, FeedbackQuery())
            assert {row.id: row.used_in for row in found_rows} == {learned: "first", later: None}

    asyncio.run(asyncio.wait_for(work(), DEADLINE_S))


def test_a_lesson_that_an_earlier_version_began_marks_no_row(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines have no ids."""

    async def work() -> None:
        async with judging(tmp_path, tiny_model, monkeypatch) as found:
            say(found.store, "uid:7")
            (row,) = feedback.training_rows(found.store, "tiny")
            found.finish("first", tiny_model, data=FEEDBACK)
            found.runner.files.write_feedback("first", [{"messages": row["messages"]}])
            assert (await found.judge("first"))["state"] == "finished"
            assert feedback.waiting(found.store).approved == 1

    asyncio.run(asyncio.wait_for(work(), DEADLINE_S))


def test_a_finished_adapter_is_checked_and_scanned_once_before_it_is_active(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with judging(tmp_path, tiny_model, monkeypatch) as found:
            path = found.finish("first", tiny_model)
            status = await found.judge("first")
            assert (status["state"], status["error"]) == ("finished", None)
            assert status["result"]["is_active"] is True
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            assert found.worker_checks == [sha256]
            assert found.scanned and len(found.scanned) == len(set(found.scanned))
            active = found.supervisor.registry.active("tiny")
            assert active is not None and active.sha256 == sha256

    asyncio.run(asyncio.wait_for(work(), DEADLINE_S))


def test_a_result_that_changed_after_the_worker_checked_it_is_checked_once_more(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate judged one file; another one lies there when the registry copies it."""

    async def work() -> None:
        async with judging(tmp_path, tiny_model, monkeypatch) as found:
            path = found.finish("first", tiny_model)

            async def replaced(*args: object, **options: object) -> GateReport:
                write_adapter(path, tiny_model, seed=2)
                return GateReport(True, [], [], [], 0.0)

            monkeypatch.setattr(lesson_runner, "run_gate", replaced)
            status = await found.judge("first")
            assert status["state"] == "failed" and found.supervisor.registry.adapters() == []
            assert "is not the file that was judged" in status["error"]["what"]

    asyncio.run(asyncio.wait_for(work(), DEADLINE_S))
