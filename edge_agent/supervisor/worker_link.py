"""One worker process and the conversation with it, seen from the front's event loop.

Flows in: a command line, then records.ToWorker. Flows out: one `Inbox` per request, which yields
the records that carry its id and raises when they can no longer come. Requests share one socket and
are told apart by id. The worker's death, however it comes (signal, exit, a frame that is none of
ours), ends every open inbox with WorkerFailed that names the signal. Memory is bounded: an inbox
that nobody reads is cancelled at MAX_UNREAD frames. Not here: which model, when to restart, budgets
(supervisor.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edge_agent.errors import EdgeAgentError, RequestError, WorkerFailed, error_from_code
from edge_agent.records import (
    Cancel,
    Chunk,
    Failed,
    FromWorker,
    Load,
    Loaded,
    Ping,
    Pong,
    ToWorker,
)
from edge_agent.wire import WireError, encode, to_front

WORKER_ARGV = (sys.executable, "-m", "edge_agent.engine.worker")

READ_BYTES = 64 * 1024
MAX_UNREAD = 4096
"""Frames waiting in one inbox: a whole default context, a few hundred KB without logprobs."""
EXIT_GRACE_S = 2.0
"""A worker must exit within 1 s of its socket's EOF; after twice that it is killed."""
STDERR_FD = 2
WORKER_ENVIRON = {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "ARMV8"}
"""The worker uses NumPy but no BLAS: no thread pool, and no guess at the processor, which is an
illegal instruction on a Nano's Cortex-A57 (elsewhere than on ARM the name is unknown, and ignored).
"""
OOM_SCORE_ADJ = 500
"""Under memory pressure the kernel shall take the worker, which is replaced, not the front."""


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
        """For the link: deliver, unless nobody listens any more."""
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
        """Tell the worker to stop if it has not finished; what it still sends is dropped."""
        if not self.is_discarded:
            self.is_discarded = True
            self._link.cancel(self.id)


class WorkerLink:
    """A running worker. Made by `spawn`; `closed` is set once it is dead and reaped."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        monotonic: Callable[[], float],
    ) -> None:
        self.pid = process.pid
        self.closed = asyncio.Event()
        self.failure: WorkerFailed | None = None
        """Why it died; set before `closed`."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.last_frame_s = monotonic()
        """When the worker last said anything, or when it last began to have something to do."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._monotonic = monotonic
        self._inboxes: dict[int | None, Inbox] = {}
        self._next_id = 1
        self._kill_reason = ""
        self._is_ending = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def spawn(
        cls, argv: Sequence[str], environ: Mapping[str, str], monotonic: Callable[[], float]
    ) -> WorkerLink:
        """Start `argv` + `--fd N`. Raises WorkerFailed when the system cannot."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await _start(argv, environ, theirs.fileno())
            reader, writer = await asyncio.open_connection(sock=ours)
        except OSError as error:
            ours.close()
            hint = "check memory, process limits and the installation"
            raise WorkerFailed("the worker could not be started", str(error), hint) from error
        _make_expendable(process.pid)
        return cls(process, reader, writer, monotonic)

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
        self._writer.write(frame)
        return inbox

    async def flush(self) -> None:
        """Wait until the worker has taken most of what was sent; its death ends the wait too."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    def cancel(self, request_id: int) -> None:
        """Ask for an early end; the inbox stays counted until the worker confirms it."""
        if request_id in self._inboxes and self.is_open:
            self._writer.write(encode(Cancel(request_id)))

    def ping(self) -> None:
        """Ask the engine thread for a sign of life; the Pong only moves `last_frame_s`."""
        if self.is_open:
            self._writer.write(encode(Ping(self.take_id())))

    def kill(self, reason: str) -> None:
        """SIGKILL; `reason` explains it in every WorkerFailed."""
        self._kill_reason = self._kill_reason or reason
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Unload: EOF to the worker, then SIGKILL after EXIT_GRACE_S. Returns when it is gone."""
        self._writer.close()
        try:
            # Unsent bytes keep the socket open as long as the worker does not read them.
            await asyncio.wait_for(self.closed.wait(), EXIT_GRACE_S)
        except asyncio.TimeoutError:
            self.kill(f"it did not exit within {EXIT_GRACE_S:g} s of being told to")
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
            while data := await self._reader.read(READ_BYTES):
                self.last_frame_s = self._monotonic()
                for record in decoder.feed(data):
                    self._deliver(record)
        except WireError as error:
            self.kill(f"it sent what no worker sends: {error}")
        except OSError:
            # A reset instead of an end: the exit status below says more than the socket can.
            pass
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
        """Reap the process, say why it died, release whoever waits."""
        self._is_ending = True
        self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), EXIT_GRACE_S)
        except asyncio.TimeoutError:
            self.kill(f"it did not exit within {EXIT_GRACE_S:g} s of its socket's end")
            await self._process.wait()
        why = describe_exit(self._process.returncode or 0, self._kill_reason)
        hint = "send the request again; a new worker answers it"
        self.failure = WorkerFailed(f"the worker (pid {self.pid}) died", why, hint)
        self.closed.set()
        # Let whoever waits on `closed` count the crash before any client can hear of it.
        await asyncio.sleep(0)
        self.fail_open(self.failure)


def describe_exit(returncode: int, kill_reason: str = "") -> str:
    """A subprocess return code in words; negative ones are signals.

    >>> describe_exit(-11), describe_exit(3)
    ('signal SIGSEGV (11)', 'exit status 3')
    """
    if kill_reason:
        return kill_reason
    if returncode >= 0:
        return f"exit status {returncode}"
    number = -returncode
    try:
        return f"signal {signal.Signals(number).name} ({number})"
    except ValueError:
        return f"signal {number}"


async def _start(
    argv: Sequence[str], environ: Mapping[str, str], descriptor: int
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv,
        "--fd",
        str(descriptor),
        stdin=subprocess.DEVNULL,
        # The journal gets what llama.cpp prints; stdout of the daemon stays empty.
        stdout=STDERR_FD,
        pass_fds=(descriptor,),
        # ggml would otherwise start gdb on an abort, which keeps a dying worker alive.
        env={**WORKER_ENVIRON, **environ, "GGML_NO_BACKTRACE": "1"},
        # Ctrl-C in the daemon's terminal is for the daemon, which drains.
        start_new_session=True,
    )


def _make_expendable(pid: int) -> None:
    """No core file (it would hold prompts), first choice of the OOM killer. Best effort."""
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
