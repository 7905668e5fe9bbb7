"""One trainer process and the conversation with it, seen from an event loop.

Why it exists: learning runs in a process of its own, so that it can be slow, paused, killed or
resumed while answers go on. Flows in: a Start message. Flows out: the trainer's records in order,
ended by Finished, Stopped or a typed error; a process that dies without a word is a TrainingFailed
that names the signal and says how to go on. The trainer ends within a second of this end's closing.
Not here: when to pause (pause_policy.py), what to do with an adapter (lesson_runner.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence

import msgspec

from edge_agent.adapt.messages import FromTrainer, Start, ToTrainer, TrainerFailed
from edge_agent.errors import EdgeAgentError, TrainingFailed, error_from_code
from edge_agent.supervisor.worker_link import EXIT_GRACE_S, READ_BYTES, describe_exit
from edge_agent.wire import FrameDecoder, WireError, encode

TRAINER_ARGV = (sys.executable, "-m", "edge_agent.adapt.trainer.process")


class TrainerLink:
    """A running trainer. Made by `spawn`; `close` ends it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(
        cls, start: Start, environ: Mapping[str, str], argv: Sequence[str] = TRAINER_ARGV
    ) -> TrainerLink:
        """Start the process and tell it what to do. Raises TrainingFailed."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await _start(argv, _environ(start, environ), theirs.fileno())
            reader, writer = await asyncio.open_connection(sock=ours)
        except OSError as error:
            ours.close()
            hint = "check memory, process limits and the installation"
            raise TrainingFailed("the trainer could not be started", str(error), hint) from error
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        link = cls(process, reader, writer)
        link.send(start)
        return link

    def send(self, message: ToTrainer) -> None:
        """Best effort: a trainer that is gone says so through `records`."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def records(self) -> AsyncGenerator[FromTrainer, None]:
        """Everything the trainer says until it ends. Raises its typed error, TrainingFailed."""
        decoder: FrameDecoder[FromTrainer] = FrameDecoder(msgspec.msgpack.Decoder(FromTrainer))
        last: FromTrainer | None = None
        try:
            while data := await self._reader.read(READ_BYTES):
                for last in decoder.feed(data):
                    if isinstance(last, TrainerFailed):
                        raise error_from_code(last.code, last.what, last.why, last.hint)
                    yield last
        except WireError as error:
            raise _died(f"it sent what no trainer sends: {error}") from error
        except ConnectionError:
            pass  # a reset instead of an end: the exit status says more
        code = await self._process.wait()
        if code != 0:
            raise _died(describe_exit(code))

    async def close(self) -> None:
        """EOF to the trainer, which then exits by itself, or is killed. Idempotent."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), EXIT_GRACE_S)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def _died(why: str) -> EdgeAgentError:
    return TrainingFailed(
        "the trainer died", why, "`edge-agent adapt resume` goes on from its last checkpoint"
    )


def _environ(start: Start, environ: Mapping[str, str]) -> dict[str, str]:
    """BLAS makes its threads when it is loaded, so their number comes from here."""
    n_threads = start.settings.n_threads
    threads = {} if n_threads is None else {"OPENBLAS_NUM_THREADS": str(n_threads)}
    return {**environ, **threads}


async def _start(
    argv: Sequence[str], environ: Mapping[str, str], descriptor: int
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv,
        "--fd",
        str(descriptor),
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=(descriptor,),
        env={**environ, "GGML_NO_BACKTRACE": "1"},
        # Ctrl-C in the terminal is for whoever started it: that process ends the trainer in order.
        start_new_session=True,
        cwd=os.sep,
    )
