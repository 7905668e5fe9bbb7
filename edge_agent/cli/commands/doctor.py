"""doctor: what is wrong with this machine, and what to do about each thing.

Flows in: the machine, the state directory, the registered models. Flows out: a table or one JSON
document; exit code 1 when a check failed. Not here: the checks (edge_agent/monitor/doctor.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent.cli.commands.engine import event_line
from edge_agent.cli.options import Options
from edge_agent.cli.terminal import Terminal
from edge_agent.client.connection import find_daemon, state_dir_of
from edge_agent.client.models import ModelDetails, open_models
from edge_agent.errors import DaemonNotRunning, EdgeAgentError

if TYPE_CHECKING:
    from edge_agent.monitor.doctor import DoctorCheck
    from edge_agent.monitor.sensors.readings import Looked

ROOT = Path("/")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    sensors_root: Annotated[
        Path, typer.Option(metavar="DIR", help="Examine the machine below DIR instead of /.")
    ] = ROOT


def doctor(options: DoctorOptions, terminal: Terminal) -> int:
    """Check board, system, llama.cpp, memory, sensors and models. Exit code 1 if one fails.

    Needs no daemon and no root, and changes nothing.

    Examples:
      edge-agent doctor
      edge-agent doctor --json
      edge-agent doctor --sensors-root ./copied-board
    """
    from edge_agent.monitor.doctor import check_storage, examine, sensors

    state_dir = state_dir_of(options.state_dir, terminal.environ)
    models, health, unread = _stored(options, terminal, state_dir)
    root = options.sensors_root
    looked = sensors(root)
    checks = examine(root, terminal.environ, state_dir, models)
    checks.append(check_storage(health.get("storage_error")))
    events = health.get("events") or []
    is_healthy = all(check.status != "fail" for check in checks)
    if options.json:
        document = {"healthy": is_healthy, "checks": [asdict(check) for check in checks]}
        document["sensors"] = [asdict(one) for one in looked]
        terminal.document({**document, "events": events, "models_unread": unread or None})
    else:
        _show(terminal, checks, looked, events)
        if unread:
            terminal.note(f"note: the registered models were not checked: {unread}")
    return 0 if is_healthy else 1


def _show(
    terminal: Terminal,
    checks: Sequence[DoctorCheck],
    looked: Sequence[Looked],
    events: Sequence[Mapping[str, Any]],
) -> None:
    for check in checks:
        terminal.line(f"{check.status:<5} {check.name}: {check.detail}")
        if check.hint:
            terminal.line(f"      hint: {check.hint}")
    terminal.line("sensors looked for:")
    for one in looked:
        found = one.found or "nothing"
        reason = f" ({one.reason})" if one.reason else ""
        terminal.line(f"      {one.what}: {found}{reason} at {one.where}")
    if events:
        terminal.line("last events:")
    for event in events:
        terminal.line(f"      {event_line(event)}")


def _stored(
    options: Options, terminal: Terminal, state_dir: Path
) -> tuple[list[ModelDetails], dict[str, Any], str]:
    """The registered models and the store's health; or neither, and why they could not be read.
    Creates no directory."""
    try:
        find_daemon(options.state_dir, terminal.environ)
    except DaemonNotRunning:
        if not (state_dir / "edge-agent.db").exists():
            return [], {}, ""
    try:
        with open_models(options.state_dir, terminal.environ) as library:
            return list(library.registered()), library.health(), ""
    except EdgeAgentError as error:
        return [], {}, str(error)
