"""The two engines that a benchmark can drive: a worker of its own, or the running daemon.

Flows in: the requests of a test. Flows out: RequestRun: token counts, and when each phase began and
ended on this machine's monotonic clock. The worker is the program that the daemon uses, started
here and ended by closing its socket; it times raw decode calls without sampling. The daemon is
asked over HTTP like any client, so its times include tokenizing, sampling and HTTP. Not here:
repetitions, statistics, energy (trials.py).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_agent.client.connection import Client, Ending
from edge_agent.errors import EdgeAgentError, WorkerFailed, error_from_code
from edge_agent.measured import Span
from edge_agent.records import (
    Chunk,
    Done,
    EngineSettings,
    Failed,
    FromWorker,
    Generate,
    Load,
    Loaded,
    Message,
    ModelInfo,
    RawDone,
    RawRun,
    Sampling,
    ToWorker,
)
from edge_agent.wire import encode, to_front

READ_BYTES = 64 * 1024
EXIT_S = 5.0
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class RequestRun:
    """One request of one repetition. Times are seconds of the monotonic clock."""

    start_s: float
    first_s: float
    """When the first token arrived; for a raw run of the worker, the end of prefill."""
    end_s: float
    prompt_tokens: int
    completion_tokens: int
    spans: list[Span] = field(default_factory=list)
    first_is_token: bool = False
    """Whether a token had been decoded by `first_s`: a client's answer yes, a raw run no."""

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_s - self.start_s

    @property
    def e2e_s(self) -> float:
        """Time from sending the request to the end of the answer."""
        return self.end_s - self.start_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for fewer than two tokens."""
        n = self.completion_tokens - 1
        return (self.end_s - self.first_s) / n if n > 0 else None


class BenchEngine(Protocol):
    """The interface that trials.py uses. Every method raises the engine's typed errors."""

    name: str
    pid: int | None

    def raw(self, number: int, n_prompt: int, n_gen: int, n_depth: int) -> RequestRun: ...
    def chat(self, conversations: Sequence[list[Message]], n_predict: int) -> list[RequestRun]:
        """Answer all conversations at the same time, with exactly n_predict tokens each."""
        ...


class WorkerEngine:
    """A worker process that lives as long as the `with` block.

    Example: `with WorkerEngine(path, "tiny", EngineSettings()) as one: one.raw(0, 512, 0, 0)`
    """

    name = "worker"

    def __init__(self, path: Path, model: str, settings: EngineSettings) -> None:
        """Start a worker and load the model. Raises every error of loading."""
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "edge_agent.engine.worker", "--fd", str(theirs.fileno())]
        env = {**os.environ, "GGML_NO_BACKTRACE": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env)
        theirs.close()
        self._decoder = to_front()
        self._frames: list[FromWorker] = []
        self._ids = 0
        self.pid: int | None = self._process.pid
        try:
            self._send(Load(model, str(path), settings))
            self.info = self._loaded()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, which ends the worker within a second."""
        self._socket.close()
        try:
            self._process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def raw(self, number: int, n_prompt: int, n_gen: int, n_depth: int) -> RequestRun:
        self._send(RawRun(self._next_id(), n_prompt, n_gen, n_depth))
        done = self._answer()
        if not isinstance(done, RawDone):
            raise _out_of_turn(done)
        start_s, first_s, end_s = done.prefill_start_s, done.prefill_end_s, done.decode_end_s
        spans = _spans(start_s, first_s, end_s, n_prompt, n_gen)
        return RequestRun(start_s, first_s, end_s, n_prompt, n_gen, spans)

    def chat(self, conversations: Sequence[list[Message]], n_predict: int) -> list[RequestRun]:
        sent_s = time.monotonic()
        open_ids: dict[int, float | None] = {}
        for messages in conversations:
            number = self._next_id()
            open_ids[number] = None
            self._send(
                Generate(
                    number,
                    GREEDY,
                    n_predict,
                    messages=messages,
                    cache_prompt=False,
                    ignore_eos=True,
                )
            )
        runs: list[RequestRun] = []
        while len(runs) < len(conversations):
            frame = self._answer()
            if isinstance(frame, Chunk):
                open_ids[frame.id] = open_ids[frame.id] or time.monotonic()
            elif isinstance(frame, Done):
                runs.append(_chat_run(frame, sent_s, open_ids[frame.id], time.monotonic()))
            else:
                raise _out_of_turn(frame)
        return runs

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    def _send(self, record: ToWorker) -> None:
        try:
            self._socket.sendall(encode(record))
        except OSError as error:
            raise self._lost() from error

    def _answer(self) -> FromWorker:
        """The next frame. Raises the error that a Failed carries, and WorkerFailed when the worker
        died."""
        while not self._frames:
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise self._lost()
            self._frames = list(self._decoder.feed(data))
        frame = self._frames.pop(0)
        if isinstance(frame, Failed):
            raise error_from_code(frame.code, frame.what, frame.why, frame.hint)
        return frame

    def _loaded(self) -> ModelInfo:
        frame = self._answer()
        if not isinstance(frame, Loaded):
            raise _out_of_turn(frame)
        return frame.info

    def _lost(self) -> WorkerFailed:
        code = self._process.wait(EXIT_S)
        why = f"signal {-code}" if code < 0 else f"exit status {code}"
        return WorkerFailed("the benchmark's worker died", why, "run it again; see its log above")


@dataclass
class DaemonEngine:
    """A running daemon, asked over its Unix socket."""

    client: Client
    model: str
    pid: int | None
    name: str = "daemon"

    def raw(self, number: int, n_prompt: int, n_gen: int, n_depth: int) -> RequestRun:
        """Complete a prompt of token ids. `n_depth` must be 0: HTTP has no separate depth."""
        ids = [1 + (number * 7919 + i * 104729) % 1000 for i in range(max(1, n_prompt))]
        body = {"prompt": ids, "max_tokens": max(1, n_gen)}
        return self._ask("/v1/completions", body)

    def chat(self, conversations: Sequence[list[Message]], n_predict: int) -> list[RequestRun]:
        runs: list[RequestRun | EdgeAgentError] = []

        def one(messages: list[Message]) -> None:
            turns = [{"role": turn.role, "content": turn.content} for turn in messages]
            try:
                body = {"messages": turns, "max_tokens": n_predict}
                runs.append(self._ask("/v1/chat/completions", body))
            except EdgeAgentError as error:
                runs.append(error)

        threads = [threading.Thread(target=one, args=(messages,)) for messages in conversations]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for run in runs:
            if isinstance(run, EdgeAgentError):
                raise run
        return [run for run in runs if isinstance(run, RequestRun)]

    def _ask(self, path: str, body: Mapping[str, Any]) -> RequestRun:
        common = {"model": self.model, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        start_s = time.monotonic()
        first_s: float | None = None
        ending = Ending("", "", {}, {})
        for part in self.client.answer(path, {**body, **common}):
            if isinstance(part, Ending):
                ending = part
            else:
                first_s = first_s or time.monotonic()
        end_s = time.monotonic()
        prompt, completion = (
            int(ending.usage.get(f"{name}_tokens", 0)) for name in ("prompt", "completion")
        )
        middle_s = first_s or end_s
        spans = _spans(start_s, middle_s, end_s, prompt, completion)
        return RequestRun(start_s, middle_s, end_s, prompt, completion, spans, first_is_token=True)


def _spans(start_s: float, middle_s: float, end_s: float, prompt: int, gen: int) -> list[Span]:
    """Prefill and decode of a request that ran alone; a phase without tokens gives no span."""
    spans = [
        Span(start_s, middle_s, "prefill", 1.0, prompt),
        Span(middle_s, end_s, "decode", 1.0, gen),
    ]
    return [span for span in spans if span.tokens and span.end_s > span.start_s]


def _chat_run(done: Done, sent_s: float, first_s: float | None, end_s: float) -> RequestRun:
    timings = done.timings
    first = first_s if first_s is not None else end_s
    counts = timings.prompt_tokens, timings.completion_tokens
    return RequestRun(sent_s, first, end_s, *counts, done.spans, first_is_token=True)


def _out_of_turn(frame: object) -> WorkerFailed:
    return WorkerFailed("the benchmark's worker answered out of turn", f"a {type(frame).__name__}")
