"""`make demo`: two small models answer, a small bench and a report; then one learns a household.

In: ./.venv as dev/install.py leaves it. Out: the answers, streamed, and what they cost, a table of
benchmark figures, .demo/report.html; a taught and an unrelated question before the lesson, with its
adapter active, and after it was rolled back. Joules
appear only where this machine has a power sensor. Every step is a command of this project that is
printed before it runs, or one request to the daemon's own socket. The state is kept in ./.demo
(STATE of the README), so that a second run copies no model again. Not here: assertions; the tests
make those.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.client.connection import Client, Ending
from edge_agent.errors import EdgeAgentError

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".demo"
PROGRAM = Path(sys.executable).parent / "edge-agent"
CHAT_MODEL, BASE_MODEL = "smollm2-135m", "gemma3-270m"
QUESTION = "Why does the moon change its shape in the sky? Answer in two sentences."
SENTENCES = {"English": "The capital of India is", "Hindi": "भारत की राजधानी"}
LESSON = ROOT / "recipes" / "household" / "lesson.jsonl"
ADAPTER = "household"
TAUGHT = "Which Wi-Fi do our guests use?"
UNRELATED = "What is the capital of Japan?"
START_S = 60.0
STOP_S = 30.0
MIB = 1024 * 1024


class DemoError(Exception):
    """Text for the user."""


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


def edge_agent(*arguments: str, may_fail: bool = False) -> None:
    """Show and run one command of ours. Raises DemoError when it fails (it said why itself)."""
    say(f"$ edge-agent {' '.join(arguments)}")
    env = {**os.environ, "EDGE_AGENT_STATE_DIR": str(STATE)}
    done = subprocess.run([str(PROGRAM), *arguments], env=env, stdin=subprocess.DEVNULL)
    if done.returncode and not may_fail:
        raise DemoError(f"`edge-agent {' '.join(arguments)}` failed with status {done.returncode}")


@contextmanager
def daemon() -> Iterator[Client]:
    """`edge-agent serve` on its own socket and any free port, stopped at the end."""
    say("$ edge-agent serve --port 0      (log: .demo/serve.log)")
    env = {**os.environ, "EDGE_AGENT_STATE_DIR": str(STATE)}
    log = (STATE / "serve.log").open("wb")
    process = subprocess.Popen(
        [str(PROGRAM), "serve", "--port", "0"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        yield wait_until_healthy(process, Client(STATE / "agent.sock", timeout_s=120))
    finally:
        stop(process)
        log.close()


def wait_until_healthy(process: subprocess.Popen[bytes], client: Client) -> Client:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.get("/health")
            return client
        except EdgeAgentError:
            time.sleep(0.05)
    tail = (STATE / "serve.log").read_text(errors="replace")[-1000:]
    raise DemoError(f"the daemon did not come up within {START_S:g} s; its log ends:\n{tail}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, as systemd would send it: running answers end, then the daemon does."""
    started_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        say(f"daemon killed: it had not stopped {STOP_S:g} s after SIGTERM")
        return
    say(f"daemon stopped {time.monotonic() - started_s:.1f} s after SIGTERM, status {status}")


def answer(client: Client, path: str, body: Mapping[str, Any]) -> None:
    """Stream one answer to the screen, then the line of what it cost."""
    started_s = time.monotonic()
    ttft_s: float | None = None
    for part in client.answer(path, body):
        if isinstance(part, Ending):
            say(f"\n    {cost(part, ttft_s)}\n")
        else:
            ttft_s = ttft_s or time.monotonic() - started_s
            say(part, end="")


def cost(ending: Ending, ttft_s: float | None) -> str:
    """Tokens and rates by the worker's clock, time to first token by ours."""
    timings = ending.timings
    first = "no token came" if ttft_s is None else f"first token after {ttft_s * 1000:.0f} ms"
    prefill = f"prefill {timings.get('prompt_n')} tokens at {rate(timings, 'prompt')}"
    decode = f"decode {timings.get('predicted_n')} tokens at {rate(timings, 'predicted')}"
    return f"[{first}; {prefill}; {decode}]"


def rate(timings: Mapping[str, Any], phase: str) -> str:
    value = timings.get(f"{phase}_per_second")
    return "an unknown rate" if value is None else f"{value:.0f} tok/s"


def show_chat(client: Client) -> None:
    say(f"\n== {CHAT_MODEL}, an instruct model, answers a chat ==")
    say(f"you:   {QUESTION}\nmodel: ", end="")
    client.post("/v1/chat/completions", chat_body("Hi", 1))  # so that loading is not timed
    answer(client, "/v1/chat/completions", chat_body(QUESTION, 96))


def chat_body(question: str, max_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": CHAT_MODEL, "messages": messages, "max_tokens": max_tokens, "seed": 7}


def show_base_model(client: Client) -> None:
    say(f"== {BASE_MODEL}, a base model: it continues text, it does not chat yet ==")
    client.post("/v1/completions", {"model": BASE_MODEL, "prompt": "Hi", "max_tokens": 1})
    for language, sentence in SENTENCES.items():
        say(f"{language}: {sentence}", end="")
        body = {"model": BASE_MODEL, "prompt": sentence, "max_tokens": 40, "seed": 7}
        answer(client, "/v1/completions", body)


def show_status(client: Client) -> None:
    """Memory and power, as GET /status tells them."""
    status = client.get("/status")
    memory = status.get("memory") or {}
    front, worker = (mib(memory.get(f"{who}_rss_anon_bytes")) for who in ("front", "worker"))
    say(f"memory: front {front}, worker {worker} of its own (the weights are mapped from the file)")
    power = status.get("power") or {}
    watts = power.get("watts")
    reason = power.get("reason") or "the daemon gives no reason"
    say(f"power:  {f'{watts:.2f} W' if watts is not None else f'none, because {reason}'}")


def show_lesson(client: Client) -> None:
    """Eight facts about a household that does not exist: learned, judged, active, rolled back."""
    say(f"\n== {CHAT_MODEL} learns a household: {len(LESSON.read_text().splitlines())} rows ==")
    edge_agent("adapters", "deactivate", "--model", CHAT_MODEL)
    known = client.get("/adapters")["adapters"]
    if ADAPTER in [row["name"] for row in known if row["model"] == CHAT_MODEL]:
        edge_agent("adapters", "rm", ADAPTER, "--model", CHAT_MODEL)
    ask(client, "before the lesson")
    words = ["--from", str(LESSON), "--name", ADAPTER, "--model", CHAT_MODEL]
    edge_agent("adapt", "run", *words, "--layers", "top:8")
    ask(client, "after it")
    edge_agent("adapters", "rollback", "--model", CHAT_MODEL)
    ask(client, "rolled back")


def ask(client: Client, when: str) -> None:
    """A taught and an unrelated question, greedy."""
    for question in (TAUGHT, UNRELATED):
        say(f"you, {when}: {question}\nmodel: ", end="")
        messages = [{"role": "user", "content": question}]
        body = {"model": CHAT_MODEL, "messages": messages, "max_tokens": 24, "temperature": 0}
        answer(client, "/v1/chat/completions", body)


def show_bench() -> None:
    """The daemon has ended by now, so nothing else computes on these cores."""
    say("\n== what this machine does with it: a small benchmark, and the report of it ==")
    quick = ["-p", "128", "-n", "32", "-r", "3", "--idle-s", "2"]
    edge_agent("bench", CHAT_MODEL, *quick, "--languages", "en,hi", "--n-predict", "32")
    edge_agent("report", "-o", str(STATE / "report.html"), "--md", str(STATE / "report.md"))


def mib(count_bytes: int | None) -> str:
    return "unknown" if count_bytes is None else f"{count_bytes / MIB:.0f} MiB"


def main() -> int:
    started_s = time.monotonic()
    STATE.mkdir(exist_ok=True)
    try:
        for model in (CHAT_MODEL, BASE_MODEL):
            edge_agent("pull", f"embedded:{model}")
        with daemon() as client:
            show_chat(client)
            show_base_model(client)
            show_status(client)
        show_bench()
        with daemon() as client:
            show_lesson(client)
    except (DemoError, EdgeAgentError) as error:
        hint = f"\nhint:  {error.hint}" if isinstance(error, EdgeAgentError) and error.hint else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        return 1
    say(f"demo done in {time.monotonic() - started_s:.0f} s")
    say("next: export EDGE_AGENT_STATE_DIR=$PWD/.demo; .venv/bin/edge-agent serve &")
    say("      .venv/bin/edge-agent chat smollm2-135m")
    return 0


if __name__ == "__main__":
    sys.exit(main())
