"""Which socket a command talks to, and how to say that none answers.

Flows in: --state-dir (or nothing) and the environment. Flows out: a Client on the first socket that
accepts a connection, or DaemonNotRunning with everything that was looked at. With a state directory
named, only its daemon counts; otherwise the system service comes before the user's own daemon. Not
here: HTTP (connection.py), the files of a state directory (state_dir.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge_agent.client.connection import ANSWER_TIMEOUT_S, START_HINT, Client, connect
from edge_agent.errors import DaemonNotRunning
from edge_agent.state_dir import StateDir

SERVICE_SOCKET = Path("/run/edge-agent/agent.sock")
"""systemd/edge-agent.socket listens here, mode 0660, group edge-agent."""
GROUP_HINT = "sudo usermod -aG edge-agent $USER, then log in again"


def state_dir_of(given: Path | None, environ: Mapping[str, str]) -> Path:
    """The state directory of this command, absolute."""
    if given is not None:
        return given.expanduser().absolute()
    from edge_agent.config import state_dir_from

    return state_dir_from(environ)


def socket_paths(
    given: Path | None, environ: Mapping[str, str], service_socket: Path = SERVICE_SOCKET
) -> list[Path]:
    """Sockets to try, in this order; STATE/run.json knows a socket moved by `serve --socket`."""
    state = state_dir_of(given, environ)
    run = StateDir(state).read_run() or {}
    named_socket = run.get("socket")
    moved = [Path(named_socket)] if isinstance(named_socket, str) else []
    own = [*moved, state / "agent.sock"]
    is_named = given is not None or bool(environ.get("EDGE_AGENT_STATE_DIR"))
    return list(dict.fromkeys(own if is_named else [service_socket, *own]))


def find_daemon(
    given: Path | None, environ: Mapping[str, str], timeout_s: float = ANSWER_TIMEOUT_S
) -> Client:
    """The first daemon that accepts a connection. Raises DaemonNotRunning."""
    refusals: list[str] = []
    hint = START_HINT
    for path in socket_paths(given, environ):
        try:
            connect(path).close()
        except OSError as error:
            refusals.append(f"{path}: {error.strerror or error}")
            hint = GROUP_HINT if isinstance(error, PermissionError) else hint
        else:
            return Client(path, timeout_s)
    raise DaemonNotRunning("no daemon answers", "; ".join(refusals), _with_state_dir(hint, given))


def _with_state_dir(hint: str, given: Path | None) -> str:
    """The hint's command must start the daemon this very command would find."""
    if given is None:
        return hint
    return hint.replace("edge-agent serve", f"edge-agent serve --state-dir {given}")
