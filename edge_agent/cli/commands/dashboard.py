"""dashboard: a one-time link to the daemon's page on the loopback port.

Flows in: a running daemon. Flows out: its address with a code that works once. Not here: the page
(server/dashboard.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from edge_agent.cli.options import Options
from edge_agent.cli.terminal import Terminal
from edge_agent.client.connection import find_daemon

TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class DashboardOptions(Options):
    open: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False


def dashboard(options: DashboardOptions, terminal: Terminal) -> int:
    """Print a link to the dashboard: chat, live charts, last generations.

    The link works once, for five minutes, on this machine. From another one, forward the same port
    first: ssh -L PORT:127.0.0.1:PORT.

    Examples:
      edge-agent dashboard
      edge-agent dashboard --open
    """
    client = find_daemon(options.state_dir, terminal.environ, TIMEOUT_S)
    document = client.post("/dashboard/link", {})
    if options.json:
        terminal.document(document)
    else:
        terminal.line(str(document["url"]))
        terminal.faint("works once, for five minutes")
    if options.open:
        import webbrowser

        webbrowser.open(str(document["url"]))
    return 0
