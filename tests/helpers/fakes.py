"""FAKES: a worker that misbehaves on command, and a daemon with a small API around it.

There is no model. `python tests/helpers/fakes.py --fd N` is a worker that follows wire.py's
protocol; its behaviour stands in the model file (a Script for the load) and in each prompt (a
Plan), both JSON. `python tests/helpers/fakes.py daemon --settings JSON` is the real daemon with
this worker and a tiny API. Every record that the worker receives is appended to the file
`<path>.log` beside the model.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from waiting import until

from edge_agent.measured import Timings
from edge_agent.monitor.monitor import Monitor
from edge_agent.records import (
    Began,
    Cancel,
    CheckAdapter,
    Chunk,
    Done,
    Failed,
    FromWorker,
    Generate,
    Load,
    Loaded,
    ModelInfo,
    Ping,
    Pong,
    QuerySlots,
    Sampling,
    Score,
    Scores,
    SlotStates,
    Text,
    Tokenize,
    Tokens,
    ToWorker,
)
from edge_agent.wire import encode, to_worker

if TYPE_CHECKING:
    from edge_agent.store.store import ModelRow

WORKER_ARGV = (sys.executable, str(Path(__file__).resolve()))
SHA256 = "ab" * 32


@dataclass(frozen=True)
class Script:
    """How a load goes. `then`: loaded, die (by SIGABRT), wedge, refuse, or mute (send nothing)."""

    then: str = "loaded"
    held: bool = False
    """Whether the load waits for `release`."""
    slots: int = 1
    crash_once: bool = False
    """Die in the first load only, which the file `<path>.crashed` records."""


@dataclass(frozen=True)
class Plan:
    """What a prompt makes the worker do: send some chunks, then do `then`."""

    chunks: int = 2
    every_s: float = 0.0
    then: str = "done"
    """done, die:SIGNAL, exit:N, wedge (send nothing any more), garbage, error:CODE, tokens."""
    obeys_cancel: bool = True
    held: bool = False
    """Whether everything after the first chunk waits for `release`."""
    text: str | None = None
    """Text of an answer that is not streamed; None: the text of the chunks."""


def generate(**plan: object) -> Generate:
    """A request whose prompt is a Plan."""
    text = json.dumps(asdict(Plan(**plan)))  # type: ignore[arg-type]
    return Generate(id=0, sampling=Sampling(), max_tokens=100, text=text)


def register(root: Path, name: str = "tiny", **script: object) -> ModelRow:
    """Write a Script as a model file and return its row; the caller adds the row to a store."""
    from edge_agent.store.store import ModelRow  # late: the worker starts faster without it

    path = root / f"{name}.gguf"
    path.write_text(json.dumps(asdict(Script(**script))))  # type: ignore[arg-type]
    return ModelRow(
        name=name,
        sha256=SHA256,
        path=str(path),
        size_bytes=path.stat().st_size,
        source="fake",
        architecture="llama",
        description="a fake",
        n_params=1,
        n_ctx_train=512,
        quantization="F32",
        chat_template=None,
        added_at=1.0,
    )


def release(path: str) -> None:
    """Let loads and answers of the model at `path` that are held go on, now and later."""
    gate_of(path).touch()


def gate_of(path: str) -> Path:
    """The file whose existence releases them."""
    return Path(path + ".released")


def log_of(row: ModelRow) -> list[dict[str, object]]:
    """The records that this model's workers received, oldest first."""
    log = Path(row.path + ".log")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def plan_of(request: Generate) -> Plan:
    """The Plan in the prompt. A prompt without one (a canary's) follows `<adapter>.plan`."""
    text = request.text or ""
    if not text.startswith("{"):
        sidecar = Path(request.adapter.path + ".plan") if request.adapter else Path("/nonexistent")
        text = sidecar.read_text() if sidecar.exists() else "{}"
    return Plan(**json.loads(text))


class FakeWorker:
    """One thread reads; each Generate runs in a thread of its own, so that Cancel and Ping are
    read."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._log: Path | None = None
        self._gate = Path()
        self._writing = threading.Lock()
        self._cancelled: dict[int, threading.Event] = {}
        self._script = Script()
        self._is_wedged = False

    def run(self) -> None:
        decoder = to_worker()
        while data := self._socket.recv(65536):
            for record in decoder.feed(data):
                self._note(record)
                self._answer(record)
        os._exit(0)  # as in the real worker, end of file ends it whatever its threads do

    def _note(self, record: ToWorker) -> None:
        if isinstance(record, Load):
            self._log, self._gate = Path(record.path + ".log"), gate_of(record.path)
        assert self._log is not None, "Load comes first"
        with self._log.open("ab") as log:
            log.write(msgspec.json.encode(record) + b"\n")

    def _send(self, record: FromWorker) -> None:
        with self._writing:
            if not self._is_wedged:
                self._socket.sendall(encode(record))

    def _answer(self, record: ToWorker) -> None:
        if isinstance(record, Load):
            self._load(record)
        elif isinstance(record, Generate):
            self._cancelled[record.id] = threading.Event()
            threading.Thread(target=self._generate, args=(record,), daemon=True).start()
        elif isinstance(record, CheckAdapter):
            self._send(Text(record.id, ""))
        elif isinstance(record, Score):
            self._send(Scores(record.id, [-0.5] * len(record.messages), 8, 16))
        elif isinstance(record, Cancel):
            self._cancelled.setdefault(record.id, threading.Event()).set()
        elif isinstance(record, Ping):
            self._send(Pong(record.id))
        elif isinstance(record, Tokenize):
            self._send(Tokens(record.id, list(record.content.encode())))
        elif isinstance(record, QuerySlots):
            self._send(SlotStates(record.id, [], 0))

    def _load(self, load: Load) -> None:
        script = self._script = Script(**json.loads(Path(load.path).read_text()))
        if script.held:
            until(self._gate.exists)
        marker = Path(load.path + ".crashed")
        if script.then == "die" or (script.crash_once and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGABRT)
        if script.then == "wedge":
            self._is_wedged = True
        if script.then == "refuse":
            self._send(Failed(None, "model_refused", "it does not fit", "2 > 1", "buy memory"))
            os._exit(0)
        if script.then == "loaded":
            self._send(Loaded(model_info(load, script.slots)))

    def _generate(self, request: Generate) -> None:
        plan = plan_of(request)
        cancelled = self._cancelled[request.id]
        for count in range(1, plan.chunks + 1):
            if count == 2 and plan.held:
                until(lambda: self._gate.exists() or (cancelled.is_set() and plan.obeys_cancel))
            if cancelled.wait(plan.every_s) and plan.obeys_cancel:
                return self._send(_done(request.id, count - 1, is_cancelled=True))
            if request.stream:
                self._send(Chunk(request.id, f"{count} ", count))
        chunks = "".join(f"{count} " for count in range(1, plan.chunks + 1))
        whole = "" if request.stream else chunks if plan.text is None else plan.text
        verb, _, detail = plan.then.partition(":")
        ends: dict[str, Callable[[], object]] = {
            "done": lambda: self._send(_done(request.id, plan.chunks, text=whole)),
            "die": lambda: os.kill(os.getpid(), signal.Signals[detail]),
            "exit": lambda: os._exit(int(detail)),
            "wedge": lambda: setattr(self, "_is_wedged", True),
            "garbage": lambda: self._socket.sendall(b"\0\0\0\3abc"),
            "error": lambda: self._send(Failed(request.id, detail, "what", "why", "hint")),
            "tokens": lambda: self._send(Tokens(request.id, [])),
        }
        ends[verb]()
        return None


def _done(request_id: int, tokens: int, is_cancelled: bool = False, text: str = "") -> Done:
    timings = Timings(3, 0, tokens, 0.0, 0.0, 0.0, 0.0)
    return Done(request_id, text, "cancelled" if is_cancelled else "stop", timings)


def model_info(load: Load, slots: int) -> ModelInfo:
    return ModelInfo(
        name=load.name, path=load.path, sha256=load.sha256, architecture="llama",
        description="a fake", n_params=1, file_bytes=1, n_vocab=256, n_ctx_train=512, n_ctx=512,
        slots=slots, n_threads=1, n_embd=1, n_layer=1, chat_template="none",
        chat_template_source="fake", bos_token="", eos_token="", tensor_bytes=1, kv_bytes=2,
        compute_bytes=3, load_s=0.01, system_info="", build="fake",
    )  # fmt: skip


def run_daemon(arguments: list[str]) -> int:
    """The real daemon with this worker, and an API of two paths in place of server/."""
    from aiohttp import web

    from edge_agent.config import Settings
    from edge_agent.daemon import front
    from edge_agent.errors import EdgeAgentError
    from edge_agent.store.store import Store
    from edge_agent.supervisor.supervisor import Supervisor

    def runner(
        supervisor: Supervisor, store: Store, settings: Settings, token: str, senses: Monitor
    ) -> web.AppRunner:
        async def status(request: web.Request) -> web.Response:
            return web.json_response({"state": supervisor.status().state, "token": token})

        async def stream(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                plan = generate(**await request.json())
                async for event in supervisor.generate(None, plan):
                    if isinstance(event, Began):
                        continue
                    await response.write(json.dumps(event.text).encode() + b"\n")
            except EdgeAgentError as error:
                await response.write(json.dumps({"error": error.code}).encode() + b"\n")
            return response

        app = web.Application()
        app.router.add_get("/status", status)
        app.router.add_post("/generate", stream)
        return web.AppRunner(app, access_log=None, handler_cancellation=True)

    return front.main(arguments, worker_argv=WORKER_ARGV, runner_factory=runner)


def main(argv: list[str]) -> int:
    if argv[:1] == ["daemon"]:
        return run_daemon(argv[1:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    FakeWorker(parser.parse_args(argv).fd).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
