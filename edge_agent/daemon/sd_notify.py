"""Tells systemd how the daemon is: READY, STATUS, WATCHDOG, STOPPING, EXTEND_TIMEOUT.

Flows in: $NOTIFY_SOCKET and $WATCHDOG_USEC from the environment given. Flows out: one datagram a
message, as sd_notify(3) describes. Without a notify socket every call does nothing, so the daemon
is the same in a terminal. Not here: deciding when it is well enough to say so (front.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Ours alone: a child that inherited them could speak for the daemon."""


class Notifier:
    """One sender for the life of the process."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_period_s = _watchdog_period_s(environ) if self._address else None
        """Half of WatchdogSec=, as sd_watchdog_enabled(3) advises; None: nobody watches."""

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={_one_line(status)}")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for more time, before READY or while stopping; repeat before it runs out."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # A full or vanished notify socket must not take the daemon down: systemd then acts on
        # the missing message, which is the honest outcome.
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
            sender.connect(self._address)
            sender.send(message.encode())


def _address(value: str) -> str | None:
    """The socket's address: a path, or a name in the abstract namespace written with @."""
    if value.startswith("@"):
        return "\0" + value[1:]
    return value if value.startswith("/") else None


def _watchdog_period_s(environ: Mapping[str, str]) -> float | None:
    pid = environ.get("WATCHDOG_PID", "")
    usec = environ.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 1e6 / 2


def _one_line(text: str) -> str:
    return " ".join(text.split())
