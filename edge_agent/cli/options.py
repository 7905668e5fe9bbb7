"""Flags written once: a frozen dataclass per command becomes typer's parameters.

Flows in: a dataclass whose fields are annotated with typer.Option or typer.Argument, and a function
of (options, terminal). Flows out: a command on the typer app; its return value is the exit code.
This keeps each flag's name, type, default and help in one line and functions free of a dozen
parameters. Not here: the commands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from edge_agent.cli.terminal import Terminal
from edge_agent.errors import EdgeAgentError


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """Flags of every edge-agent command."""

    state_dir: Annotated[
        Path | None,
        typer.Option(
            help="State directory [EDGE_AGENT_STATE_DIR, else ~/.local/state/edge-agent].",
            metavar="DIR",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Options(StateOptions):
    """Flags of every command a program might read."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False


class PipeClosed(Exception):
    """The reader of our output has left."""


OptionsType = TypeVar("OptionsType")
Command = Callable[[OptionsType, Terminal], int]


def add_command(
    app: typer.Typer, name: str, options: type[OptionsType], function: Command[OptionsType]
) -> None:
    """Register `function` as `name`.

    Its docstring is the help; the part from the line `Examples:` on keeps its line breaks.
    """
    hints = get_type_hints(options, include_extras=True)
    help_text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("Examples:\n")

    def call(typer_context: typer.Context, **given: Any) -> int:
        terminal: Terminal = typer_context.obj
        if "state_dir" in given:
            given["state_dir"] = given["state_dir"] or terminal.state_dir
        try:
            return function(options(**given), terminal)
        except BrokenPipeError as error:
            # typer would turn it into exit code 1 and leave our stdout unflushed.
            raise PipeClosed from error

    parameters = [
        inspect.Parameter("typer_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    ]
    for field in fields(options):  # type: ignore[arg-type]
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(
            inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name])
        )
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, help=help_text, epilog=f"\b\nExamples:\n{examples}")(call)


def command_group(help_text: str) -> typer.Typer:
    """A command whose commands follow (`edge-agent adapters list`); alone it shows its help."""

    def show_help(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            ctx.obj.line(ctx.get_help())

    group = typer.Typer(help=help_text, rich_markup_mode=None)
    group.callback(invoke_without_command=True)(show_help)
    return group


def complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of registered models for the shell's TAB; silent when they cannot be read."""
    import os

    from edge_agent.client.models import open_library

    given = ctx.params.get("state_dir") or ctx.find_root().params.get("state_dir")
    try:
        with open_library(given, os.environ, timeout_s=2.0) as library:
            names = [entry.name for entry in library.entries()]
    except (EdgeAgentError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]
