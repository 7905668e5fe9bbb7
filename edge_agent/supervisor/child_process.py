"""A child process of the front, and the socket that connects the two.

Why it exists: the worker and the trainer are started, heard and ended in the same way. Flows in: a
command line, which gets `--fd N`, the child's end of a socketpair; later bytes for the child. Flows
out: the child's bytes, and in words how it ended. The child leaves by itself when it reads EOF; one
that does not is killed after EXIT_GRACE_S. It writes no core file, because that would hold prompts.
Not here: the records on the socket (worker_link.py, adapt/trainer_control.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence

READ_BYTES = 64 * 1024
EXIT_GRACE_S = 2.0
"""A child must exit within 1 s of its socket's EOF; after twice that it is killed."""
STDERR_FD = 2


class ChildProcess:
    """A running child. Made by `spawn`; `end` ends it."""

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
        self._kill_reason = ""

    @classmethod
    async def spawn(
        cls, argv: Sequence[str], environ: Mapping[str, str], cwd: str | None = None
    ) -> ChildProcess:
        """Start `argv` + `--fd N` in `cwd` (None: ours). Raises OSError when the system cannot."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await _start(argv, environ, cwd, theirs.fileno())
            reader, writer = await asyncio.open_connection(sock=ours)
        except OSError:
            ours.close()
            raise
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        return cls(process, reader, writer)

    def write(self, frame: bytes) -> None:
        """Send bytes, or drop them when the socket is closed: `read` and `wait` tell more then."""
        if not self._writer.is_closing():
            self._writer.write(frame)

    async def flush(self) -> None:
        """Wait until the child has taken most of what was written, or is dead."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def read(self) -> bytes:
        """What the child has sent; b"" at its end. Raises OSError (a reset instead of an end)."""
        return await self._reader.read(READ_BYTES)

    def kill(self, reason: str) -> None:
        """SIGKILL. The first `reason` given is what `wait` says."""
        self._kill_reason = self._kill_reason or reason
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> str:
        """How the child has ended, in words; "" for exit status 0, unless it was killed."""
        code = await self._process.wait()
        return self._kill_reason or (describe_exit(code) if code else "")

    async def end(self, of: str) -> str:
        """Close the socket, kill the child unless it exits within EXIT_GRACE_S; then as `wait`.

        `of` completes the reason: "it did not exit within 2 s of ...".
        """
        self._writer.close()
        try:
            return await asyncio.wait_for(self.wait(), EXIT_GRACE_S)
        except asyncio.TimeoutError:
            self.kill(f"it did not exit within {EXIT_GRACE_S:g} s of {of}")
            return await self.wait()


def describe_exit(returncode: int) -> str:
    """A subprocess return code in words; negative ones are signals.

    >>> describe_exit(-11), describe_exit(3)
    ('signal SIGSEGV (11)', 'exit status 3')
    """
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name} ({-returncode})"
    except ValueError:
        return f"signal {-returncode}"


async def _start(
    argv: Sequence[str], environ: Mapping[str, str], cwd: str | None, descriptor: int
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv,
        "--fd",
        str(descriptor),
        stdin=subprocess.DEVNULL,
        # llama.cpp prints to stdout: that goes to the journal, and our stdout stays empty.
        stdout=STDERR_FD,
        pass_fds=(descriptor,),
        # On an abort ggml would start gdb, which keeps a dying process alive.
        env={**environ, "GGML_NO_BACKTRACE": "1"},
        # Ctrl-C in the terminal is for the parent, which ends the child in order.
        start_new_session=True,
        cwd=cwd,
    )
