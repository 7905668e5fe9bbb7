"""All real, all together: the program, its daemon, its worker, SmolLM2, the official clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from waiting import DEADLINE_S, until

from edge_agent.client.connection import Client

pytestmark = pytest.mark.model

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
QUESTION: Any = [{"role": "user", "content": "Name a city and how many people live there."}]
PROGRAM = str(Path(sys.executable).parent / "edge-agent")


@dataclass(frozen=True)
class Daemon:
    """A daemon in a process of its own; `run` is its run.json as it stands now."""

    state_dir: Path
    process: subprocess.Popen[bytes]

    @property
    def run(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.state_dir / "run.json").read_text())
        return document

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.run['port']}"

    @property
    def token(self) -> str:
        return (self.state_dir / "token").read_text().strip()

    def is_ready(self) -> bool:
        assert self.process.poll() is None
        return (self.state_dir / "run.json").exists() and bool(self.run.get("worker_pid"))

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *argv, "--state-dir", str(self.state_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def status(self) -> dict[str, Any]:
        return dict(Client(Path(self.run["socket"]), DEADLINE_S).get("/status"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    state_dir = tmp_path_factory.mktemp("live")
    pull = [PROGRAM, "pull", "embedded:smollm2-135m", "--state-dir", str(state_dir)]
    subprocess.run(pull, check=True, capture_output=True)
    serve = [PROGRAM, "serve", "--state-dir", str(state_dir), "--port", "0", "--ctx", "1024"]
    serve += ["--slots", "2", "--model", "smollm2-135m", "--crash-budget", "1000"]
    with subprocess.Popen(serve, stdin=subprocess.DEVNULL) as process:
        daemon = Daemon(state_dir, process)
        until(daemon.is_ready)
        yield daemon
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


@pytest.fixture
def ai(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=daemon.url + "/v1", api_key=daemon.token, max_retries=0) as client:
        yield client


@pytest.fixture
def llama(daemon: Daemon) -> Iterator[ollama.Client]:
    headers = {"Authorization": f"Bearer {daemon.token}"}
    with ollama.Client(host=daemon.url, headers=headers) as client:
        yield client


def test_openai_client_chats(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(model="smollm2-135m", messages=QUESTION, max_tokens=24)
    assert answer.choices[0].message.content and answer.usage
    assert answer.usage.completion_tokens <= 24 and answer.usage.prompt_tokens > 10


def test_openai_client_streams_what_it_would_have_answered_at_once(ai: openai.OpenAI) -> None:
    same: Any = {"model": "smollm2-135m", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    whole = ai.chat.completions.create(**same, extra_body={"cache_prompt": False})
    stream = ai.chat.completions.create(
        **same,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"cache_prompt": False},
    )
    events = list(stream)
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].usage == whole.usage and events[-1].usage


def test_openai_client_gets_json_of_its_schema(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(
        model="smollm2-135m",
        messages=QUESTION,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}},
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"city", "people"}


def test_ollama_client_chats_streams_and_keeps_to_a_schema(llama: ollama.Client) -> None:
    options = {"num_predict": 60, "temperature": 0}
    whole = llama.chat(model="smollm2-135m", messages=QUESTION, options=options)
    parts = list(llama.chat("smollm2-135m", messages=QUESTION, options=options, stream=True))
    assert whole.message.content and parts[-1].done and parts[-1].eval_count
    shaped = llama.chat("smollm2-135m", messages=QUESTION, options=options, format=SCHEMA)
    assert set(json.loads(shaped.message.content or "")) == {"city", "people"}
    assert [model.model for model in llama.list().models] == ["smollm2-135m"]
    assert llama.ps().models[0].context_length == 1024


def test_a_second_turn_prefills_only_what_is_new(ai: openai.OpenAI) -> None:
    first: Any = {"role": "user", "content": "Here are numbers: " + "one two three four " * 60}
    one = ai.chat.completions.create(model="smollm2-135m", messages=[first], max_tokens=16)
    turns = [
        first,
        {"role": "assistant", "content": one.choices[0].message.content},
        {"role": "user", "content": "Thanks!"},
    ]
    two = ai.chat.completions.create(model="smollm2-135m", messages=turns, max_tokens=8)
    assert one.usage and two.usage and two.usage.prompt_tokens_details
    cached = two.usage.prompt_tokens_details.cached_tokens or 0
    assert cached >= one.usage.prompt_tokens and two.usage.prompt_tokens - cached < 25


def test_a_killed_worker_costs_its_stream_an_error_and_nothing_else(
    daemon: Daemon, ai: openai.OpenAI
) -> None:
    stream = ai.completions.create(
        model="smollm2-135m", prompt="Once", max_tokens=800, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    before = daemon.run["worker_pid"]
    with pytest.raises(openai.APIError, match="worker"):
        for number, _ in enumerate(stream):
            if number == 3:
                os.kill(before, signal.SIGKILL)
    answer = ai.chat.completions.create(model="smollm2-135m", messages=QUESTION, max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    assert daemon.run["worker_pid"] != before and daemon.process.poll() is None


def test_a_client_that_leaves_frees_its_slot(daemon: Daemon, ai: openai.OpenAI) -> None:
    stream = ai.completions.create(
        model="smollm2-135m", prompt="Once", max_tokens=900, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    next(iter(stream))
    stream.close()
    until(lambda: not daemon.status()["engine"]["in_flight"])


def test_the_command_line_answers_and_reports(daemon: Daemon) -> None:
    run = daemon.command("run", "--json", "--max-tokens", "8", "smollm2-135m", "Say hello.")
    document = json.loads(run.stdout)
    assert run.returncode == 0 and document["text"] and document["usage"]["completion_tokens"] <= 8
    status = json.loads(daemon.command("status", "--json").stdout)
    assert status["engine"]["state"] == "ready" and status["power"]["watts"] is None
    assert status["memory"]["front_rss_anon_bytes"] < 70e6
    unknown = daemon.command("run", "nosuchmodel", "hi")
    assert unknown.returncode == 1 and "error:" in unknown.stderr and "hint:" in unknown.stderr
    assert daemon.command("run", "--temperature", "hot", "x").returncode == 2


def test_a_second_daemon_on_the_same_state_is_refused(daemon: Daemon) -> None:
    second = daemon.command("serve", "--port", "0")
    assert second.returncode == 1 and "hint:" in second.stderr
