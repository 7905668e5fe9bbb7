"""The conversation with one worker process, as the front's event loop sees it.

Flows in: a command line, then records.ToWorker. Flows out: one `Inbox` for each request, which
gives the records with the request's id and raises when no more can come. All requests share one
socket. When the worker dies (a signal, an exit, a malformed frame), every open inbox ends with a
WorkerFailed that says how. An inbox that nobody reads holds at most MAX_UNREAD frames; then its
request is cancelled. Not here: starting and ending a process (child_process.py), which model is
loaded and when a worker is restarted (loaded_model.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.errors import EdgeAgentError, RequestError, WorkerFailed, error_from_code
from edge_agent.records import (
    AdapterRef,
    Cancel,
    Chunk,
    Failed,
    FromWorker,
    Load,
    Loaded,
    ModelInfo,
    Ping,
    Pong,
    ToWorker,
)
from edge_agent.store.store import ModelRow
from edge_agent.supervisor.child_process import ChildProcess, describe_exit
from edge_agent.wire import WireError, encode, to_front

WORKER_ARGV = (sys.executable, "-m", "edge_agent.engine.worker")

MAX_UNREAD = 4096
"""Frames that may wait in one inbox: a whole default context, some 100 KB without logprobs."""
WORKER_ENVIRON = {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "ARMV8"}
"""The worker uses NumPy but no BLAS. OpenBLAS shall start no threads, and shall not look for the
type of processor: that is an illegal instruction on a Nano's Cortex-A57. Other processors than ARM
do not know the name and ignore it."""
OOM_SCORE_ADJ = 500
"""When memory runs out, the kernel shall kill the worker, which is replaced, and not the front."""


class Inbox:
    """The answers to one request. Closing it before the last one cancels the request."""

    def __init__(self, link: WorkerLink, request_id: int) -> None:
        self.id = request_id
        self._link = link
        self._frames: asyncio.Queue[FromWorker | EdgeAgentError] = asyncio.Queue()
        self.is_discarded = False

    async def get(self) -> FromWorker:
        """The next record. Raises WorkerFailed, or what the worker's Failed record says."""
        frame = await self._frames.get()
        if isinstance(frame, EdgeAgentError):
            raise frame
        return frame

    def put(self, frame: FromWorker | EdgeAgentError) -> None:
        """For the link: deliver a record, unless the inbox is closed."""
        if self.is_discarded:
            return
        if self._frames.qsize() < MAX_UNREAD:
            self._frames.put_nowait(frame)
            return
        self._frames = asyncio.Queue()
        why = f"{MAX_UNREAD} pieces of it wait unread"
        self._frames.put_nowait(RequestError("the client does not read its answer", why))
        self.close()

    def close(self) -> None:
        """Cancel the request unless it has ended; drop what the worker still sends."""
        if not self.is_discarded:
            self.is_discarded = True
            self._link.cancel(self.id)


class WorkerLink:
    """A running worker. Made by `spawn`; `closed` is set once it is dead and reaped."""

    def __init__(self, child: ChildProcess, monotonic: Callable[[], float]) -> None:
        self.pid = child.pid
        self.closed = asyncio.Event()
        self.failure: WorkerFailed | None = None
        """Why it died; set before `closed`."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.last_frame_s = monotonic()
        """When the worker last sent anything, or when it last got work after having none."""
        self._child = child
        self._monotonic = monotonic
        self._inboxes: dict[int | None, Inbox] = {}
        self._next_id = 1
        self._is_ending = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def spawn(
        cls, argv: Sequence[str], environ: Mapping[str, str], monotonic: Callable[[], float]
    ) -> WorkerLink:
        """Start `argv` + `--fd N`. Raises WorkerFailed when the system cannot."""
        try:
            child = await ChildProcess.spawn(argv, {**WORKER_ENVIRON, **environ})
        except OSError as error:
            hint = "check memory, process limits and the installation"
            raise WorkerFailed("the worker could not be started", str(error), hint) from error
        _make_expendable(child.pid)
        return cls(child, monotonic)

    @property
    def is_open(self) -> bool:
        return not self._is_ending

    @property
    def busy(self) -> int:
        """Requests inside the worker, those being cancelled included."""
        return sum(1 for key in self._inboxes if key is not None)

    def take_id(self) -> int:
        """An id no other request on this link has."""
        self._next_id += 1
        return self._next_id

    def load(self, message: Load) -> Inbox:
        """Send the first message; its answers (Loaded, Failed) carry no id."""
        return self._open(None, message)

    def request(self, message: ToWorker) -> Inbox:
        """Send a message whose `id` came from `take_id`. Raises RequestError, WorkerFailed."""
        assert not isinstance(message, (Load, Cancel, Ping)), "not a request"
        return self._open(message.id, message)

    def _open(self, key: int | None, message: ToWorker) -> Inbox:
        if self.failure is not None:
            raise self.failure
        try:
            frame = encode(message)
        except (WireError, UnicodeError, OverflowError, TypeError, RecursionError) as error:
            # Half a surrogate pair, a 70-bit integer: legal in JSON, not in a frame.
            raise RequestError("the request cannot be passed on", str(error)) from error
        if not self._inboxes:
            self.last_frame_s = self._monotonic()
        inbox = self._inboxes[key] = Inbox(self, key or 0)
        self.idle.clear()
        self._child.write(frame)
        return inbox

    async def flush(self) -> None:
        """Wait until the worker has taken most of what was sent, or is dead."""
        await self._child.flush()

    def cancel(self, request_id: int) -> None:
        """Ask for an early end; the inbox stays counted until the worker confirms it."""
        if request_id in self._inboxes and self.is_open:
            self._child.write(encode(Cancel(request_id)))

    def ping(self) -> None:
        """Ask the engine thread for a sign of life; the Pong only moves `last_frame_s`."""
        if self.is_open:
            self._child.write(encode(Ping(self.take_id())))

    def kill(self, reason: str) -> None:
        """SIGKILL; `reason` explains it in every WorkerFailed."""
        self._child.kill(reason)

    async def close(self) -> None:
        """Unload: end the worker, by SIGKILL if need be. Returns when it is gone."""
        await self._child.end("being told to")
        await self.closed.wait()

    def fail_open(self, error: EdgeAgentError) -> None:
        """End every open inbox with `error`."""
        for inbox in self._inboxes.values():
            inbox.put(error)
        self._inboxes.clear()
        self.idle.set()

    # ---- the reading task ---------------------------------------------------------------------

    async def _read(self) -> None:
        decoder = to_front()
        try:
            while data := await self._child.read():
                self.last_frame_s = self._monotonic()
                for record in decoder.feed(data):
                    self._deliver(record)
        except WireError as error:
            self.kill(f"it sent what no worker sends: {error}")
        except OSError:
            pass  # a reset instead of an end: the exit status says more
        finally:
            await self._bury()

    def _deliver(self, record: FromWorker) -> None:
        if isinstance(record, Pong):
            return
        key = None if isinstance(record, Loaded) else record.id
        inbox = self._inboxes.get(key)
        if inbox is None:
            return
        if not isinstance(record, Chunk):
            del self._inboxes[key]
        if isinstance(record, Failed):
            inbox.put(error_from_code(record.code, record.what, record.why, record.hint))
        else:
            inbox.put(record)
        if not self._inboxes:
            self.idle.set()

    async def _bury(self) -> None:
        """Reap the process, say why it died, and end every wait for it."""
        self._is_ending = True
        why = await self._child.end("its socket's end") or describe_exit(0)
        hint = "send the request again; a new worker answers it"
        self.failure = WorkerFailed(f"the worker (pid {self.pid}) died", why, hint)
        self.closed.set()
        # The crash is counted by a task that waits for `closed`: before any client knows of it.
        await asyncio.sleep(0)
        self.fail_open(self.failure)


@dataclass
class Worker:
    """A worker that holds a model."""

    link: WorkerLink
    row: ModelRow
    info: ModelInfo
    keep_alive_s: float
    is_retired: bool = False
    watch: asyncio.Task[None] | None = None
    adapters: Counter[str] = field(default_factory=Counter)
    """Requests inside it by the SHA-256 of their adapter."""

    def at_work(self, adapter: AdapterRef | None, step: int) -> None:
        """One request more, or less, that is answered with `adapter`."""
        if adapter is not None:
            self.adapters[adapter.sha256] += step


def _make_expendable(pid: int) -> None:
    """Make the worker the first choice of the kernel when memory runs out. Best effort."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
