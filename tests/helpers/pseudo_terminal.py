"""`edge-agent chat` on a pseudo-terminal: what it shows, and a keyboard."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waiting import DEADLINE_S


class Screen:
    """The far end of a pseudo-terminal: what was shown so far, and a keyboard."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.shown = ""
        self.raw = ""

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def wait_for(self, text: str) -> str:
        """Everything up to and including `text`, which is then forgotten."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.shown:
            left_s = deadline - time.monotonic()
            assert left_s > 0 and self._read(left_s), f"never shown: {text!r} in {self.shown!r}"
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self.descriptor], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self.descriptor, 65536).decode("utf-8", "replace")
        except OSError:
            return False
        self.raw += data
        self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data)
        return True


@contextmanager
def on_a_terminal(
    state_dir: Path, *arguments: str, **variables: str
) -> Iterator[tuple[Screen, int]]:
    """`edge-agent chat` on a pty of its own session, so that Ctrl-C reaches it and not us."""
    pid, descriptor = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "edge_agent.cli", "chat", *arguments]
        environ = {
            **os.environ,
            "EDGE_AGENT_STATE_DIR": str(state_dir),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            **variables,
        }
        os.execve(command[0], command, environ)
    try:
        yield Screen(descriptor), pid
    finally:
        os.close(descriptor)
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
