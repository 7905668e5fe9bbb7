"""The daemon's listening sockets: a Unix socket, and TCP on 127.0.0.1 only.

Flows in: settings, and systemd's $LISTEN_FDS when the .socket unit has already opened the sockets.
Flows out: listening sockets, and the two addresses for STATE/run.json. A stale socket file is
removed only when nothing answers on it; a file that is not a socket is never removed. Not here:
what is served (server/).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import Settings
from edge_agent.errors import UsageError

LOOPBACK = "127.0.0.1"
FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""
VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
BACKLOG = 64
PRIVATE_MODE = 0o600
GROUP_MODE = 0o660
PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Listeners:
    """`made` is the socket file to remove at the end; None when systemd owns it."""

    sockets: tuple[socket.socket, ...]
    unix_path: Path | None
    port: int | None
    made: Path | None = None

    def close(self) -> None:
        """Close all sockets. Our socket file goes first, so that nobody connects to a closing
        daemon."""
        if self.made is not None:
            self.made.unlink(missing_ok=True)
        for listening in self.sockets:
            listening.close()

    def __str__(self) -> str:
        tcp = f"http://{LOOPBACK}:{self.port}" if self.port else None
        return " and ".join(str(part) for part in (self.unix_path, tcp) if part)


def open_listeners(settings: Settings, environ: Mapping[str, str]) -> Listeners:
    """The sockets that systemd passed, or else new ones. Raises UsageError.

    Example: `listening = open_listeners(settings, os.environ); print(listening)`
    """
    passed = _passed(environ)
    if passed:
        return _adopt(passed)
    path = settings.socket_path
    # systemd's RuntimeDirectory belongs to the service's group, a state directory to one user.
    mode = GROUP_MODE if environ.get("RUNTIME_DIRECTORY") else PRIVATE_MODE
    tcp = None if settings.port is None else _bind_tcp(settings.port)
    try:
        unix = _bind_unix(path, mode)
    except UsageError:
        if tcp is not None:
            tcp.close()
        raise
    if tcp is None:
        return Listeners((unix,), path, None, made=path)
    return Listeners((unix, tcp), path, int(tcp.getsockname()[1]), made=path)


def _passed(environ: Mapping[str, str]) -> list[socket.socket]:
    """Sockets that systemd passed to this very process (LISTEN_PID), in the order of the .socket
    unit."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for descriptor in range(FIRST_FD, FIRST_FD + int(count)):
        try:
            passed = socket.socket(fileno=descriptor)
        except OSError as error:
            raise UsageError(
                f"file descriptor {descriptor} passed by systemd is no socket", str(error)
            ) from error
        passed.set_inheritable(False)
        sockets.append(passed)
    return sockets


def _adopt(sockets: list[socket.socket]) -> Listeners:
    """Check that systemd's sockets listen, on a Unix path or on 127.0.0.1. Raises UsageError."""
    unix_path, port = None, None
    for passed in sockets:
        address = passed.getsockname()
        if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            hint = "use ListenStream= with Accept=no in the .socket unit"
            raise UsageError(f"the socket {address} passed by systemd does not listen", "", hint)
        if passed.family == socket.AF_UNIX and isinstance(address, str):
            unix_path = Path(address)
        elif passed.family == socket.AF_INET and address[0] == LOOPBACK:
            port = int(address[1])
        else:
            raise UsageError(
                f"the socket unit listens on {address!r}",
                f"edge-agent serves a Unix socket and {LOOPBACK} only",
                "correct ListenStream= in edge-agent.socket; reach it from elsewhere through ssh",
            )
    return Listeners(tuple(sockets), unix_path, port)


def _bind_tcp(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOOPBACK, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        hint = "stop what uses it, or give --port N (0 = any free one)"
        why = error.strerror or str(error)
        raise UsageError(f"cannot listen on {LOOPBACK}:{port}", why, hint) from error
    return listening


def _bind_unix(path: Path, mode: int) -> socket.socket:
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # bind() creates the file with the umask's permissions. Start with the narrowest and widen
    # afterwards, so that at no moment others can connect.
    previous = os.umask(0o177)
    try:
        listening.bind(str(path))
        os.chmod(path, mode)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        hint = "give another path with --socket (at most 107 bytes, in an existing directory)"
        why = error.strerror or str(error)
        raise UsageError(f"cannot listen on {path}", why, hint) from error
    finally:
        os.umask(previous)
    return listening


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a daemon that has ended. Raises UsageError when something else is
    there."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return
    if not is_socket:
        hint = "give another path with --socket"
        raise UsageError(f"cannot listen on {path}", "a file that is no socket is there", hint)
    if _answers(path):
        hint = "stop that daemon, or give another path with --socket"
        raise UsageError(f"cannot listen on {path}", "another process answers there", hint)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _answers(path: Path) -> bool:
    """Whether somebody listens; a full backlog or a missing permission counts as an answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True
