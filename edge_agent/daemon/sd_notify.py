"""Tells systemd the daemon's state: READY, STATUS, WATCHDOG, STOPPING, EXTEND_TIMEOUT.

Flows in: $NOTIFY_SOCKET and $WATCHDOG_USEC of a given environment. Flows out: one datagram per
message, as sd_notify(3) describes. Without a notify socket every call does nothing, so the daemon
runs unchanged in a terminal. Not here: when to send which message (front.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Removed from the environment of children, which could otherwise send messages as the daemon."""


class Notifier:
    """One sender for the life of the process."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_period_s = _watchdog_period_s(environ) if self._address else None
        """Half of WatchdogSec=, as sd_watchdog_enabled(3) advises; None: no watchdog is set."""

    def ready(self, status: str) -> None:
        """The start is complete."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        """Ping the watchdog."""
        self._send("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        """The stop has begun."""
        self._send(f"STOPPING=1\nSTATUS={_one_line(status)}")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for `seconds` more, before READY or while stopping; must be repeated before they run
        out."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # A full or vanished notify socket must not stop the daemon. systemd acts on the missing
        # message (it restarts the service), which is right when it cannot be reached.
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
            sender.connect(self._address)
            sender.send(message.encode())


def _address(value: str) -> str | None:
    """The socket's address: a path, or "@name" in the abstract namespace; None: no socket."""
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
