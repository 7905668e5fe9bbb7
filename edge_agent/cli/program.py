"""How a command line program of this project runs, fails and ends.

The only place that prints errors. Flows in: an app of typer, its arguments and a terminal. Flows
out: an exit code: 0, 1 failure, 2 usage, 130 Ctrl-C, 141 when the reader of a pipe has left. An
error is `error: what: why` and `hint: what to do` on stderr, with --json also one JSON document on
stdout; never a traceback. Not here: the commands.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from edge_agent import __version__
from edge_agent.cli.options import PipeClosed
from edge_agent.cli.terminal import Terminal, error_document
from edge_agent.errors import EdgeAgentError, UsageError

INTERRUPTED = 130
PIPE_CLOSED = 141
"""128 + SIGINT and 128 + SIGPIPE, as a shell reports them."""


def new_app(name: str, text: str, epilog: str) -> typer.Typer:
    """An app with --version and -h, which prints its help when no command is given.

    `text` says what the program is for.
    """
    app = typer.Typer(
        help=text,
        epilog=epilog,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    def show_version(ctx: typer.Context, is_asked: bool) -> None:
        if is_asked:
            ctx.obj.line(f"{name} {__version__}")
            raise typer.Exit()

    option = typer.Option(
        False, "--version", callback=show_version, is_eager=True, help="Print the version."
    )

    def root(ctx: typer.Context, version: bool = option) -> None:
        if ctx.invoked_subcommand is None:
            ctx.obj.line(ctx.get_help())

    app.callback(invoke_without_command=True)(root)
    return app


def run_program(
    build_app: Callable[[], typer.Typer], name: str, argv: Sequence[str], terminal: Terminal
) -> int:
    """Run one command of the program `name` and return its exit code."""
    try:
        code = _invoke(build_app(), name, argv, terminal)
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
        return _report(_usage_error(error, name), argv, terminal)
    except Exception as error:
        return _report(_bug(error), argv, terminal)


def _invoke(app: typer.Typer, name: str, argv: Sequence[str], terminal: Terminal) -> int:
    result = app(args=list(argv), prog_name=name, standalone_mode=False, obj=terminal)
    return result if isinstance(result, int) else 0


def _report(error: EdgeAgentError, argv: Sequence[str], terminal: Terminal) -> int:
    """Print the error, with --json also as a document, and return the exit code."""
    try:
        if "--json" in argv:
            terminal.document(error_document(error))
        terminal.error(error)
    except BrokenPipeError:
        _drop_output(terminal)
    return 2 if isinstance(error, UsageError) else 1


def _usage_error(error: typer.TyperException, name: str) -> UsageError:
    """An error that typer found, with a hint at the help of the command that was given."""
    ctx = getattr(error, "ctx", None)
    command = ctx.command_path if ctx is not None else name
    return UsageError(error.format_message().rstrip("."), "", f"`{command} --help` shows the usage")


def _bug(error: Exception) -> EdgeAgentError:
    """An exception that no code expects: its type and its place, which a bug report needs."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {Path(frame.filename).name} line {frame.lineno}"
    return EdgeAgentError(
        "this command failed unexpectedly",
        f"{place}: {error}" if str(error) else place,
        "please report it with the command you gave and `edge-agent doctor --json`",
    )


def _drop_output(terminal: Terminal) -> None:
    """Send text that is still buffered to /dev/null: Python would fail to flush it at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (terminal.stdout, terminal.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(devnull, stream.fileno())
    os.close(devnull)
