"""Runs `edge-convert` commands in this process on given streams."""

from __future__ import annotations

import io

from cli_runner import Outcome

from converters.cli import main_with
from edge_agent.cli.terminal import Terminal


def convert(*argv: str) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    code = main_with(argv, Terminal(io.StringIO(), out, err, {}))
    return Outcome(code, out.getvalue(), err.getvalue())
