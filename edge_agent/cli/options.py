"""Flags written once: a frozen dataclass per command becomes typer's parameters.

Flows in: a dataclass whose fields are annotated with typer.Option, typer.Argument or SettingFlags,
and a function of (options, terminal). Flows out: a command on the typer app; its return value is
the exit code. Each flag's name, type, default and help stand in one place: in the dataclass, or,
for SettingFlags, in the settings model the flags belong to. Not here: the commands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from edge_agent.cli.terminal import Terminal
from edge_agent.errors import EdgeAgentError, UsageError

if TYPE_CHECKING:
    from edge_agent.setting import Setting, WrongSetting

StateDirOption = Annotated[
    Path | None,
    typer.Option(
        help="State directory [EDGE_AGENT_STATE_DIR, else ~/.local/state/edge-agent].",
        metavar="DIR",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """Flags of every edge-agent command."""

    state_dir: StateDirOption = None


@dataclass(frozen=True, kw_only=True)
class Options(StateOptions):
    """Flags of every command a program might read."""

    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False


class PipeClosed(Exception):
    """The process that read our output has closed the pipe."""


@dataclass(frozen=True)
class SettingFlags:
    """Marks a field of an options class that holds settings as they were typed: {name: text}.

    Every setting of `declared()`, or those in `names`, becomes a flag; what was not given is left
    out. A switch is a bool. `declared` is called when the command is used, because it loads the
    library of its model.
    """

    declared: Callable[[], Mapping[str, Setting]]
    names: tuple[str, ...] = ()

    def parameters(self) -> Iterator[tuple[str, Any]]:
        """(name, annotation) of each flag."""
        declared = self.declared()
        for name in self.names or declared:
            setting = declared[name]
            flag, no_flag = setting.flag, "--no-" + setting.flag.removeprefix("--")
            if setting.is_switch:
                option = typer.Option(f"{flag}/{no_flag}", help=setting.help)
                yield name, Annotated[bool | None, option]
                continue
            complete = complete_model if name == "model" else None
            option = typer.Option(
                flag, help=setting.help, metavar=setting.metavar, autocompletion=complete
            )
            yield name, Annotated[str | None, option]


def flag_error(setting: Setting, typed: object, wrong: WrongSetting) -> UsageError:
    """The error of a flag whose text its settings model does not take."""
    return UsageError(f"{setting.flag} is {typed}", wrong.why, wrong.hint)


OptionsType = TypeVar("OptionsType")
Command = Callable[[OptionsType, Terminal], int]


def add_command(
    app: typer.Typer, name: str, options: type[OptionsType], function: Command[OptionsType]
) -> None:
    """Register `function` as `name`.

    Its docstring is the help; the part from the line `Examples:` on keeps its line breaks. Its
    parameters are made when the command is used: `edge-agent list` need not load what `serve`
    takes its flags from.
    """
    help_text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("Examples:\n")
    register = partial(
        typer.Typer.command, name=name, help=help_text, epilog=f"\b\nExamples:\n{examples}"
    )

    class LateCommand(TyperCommand):
        def make_context(self, *given: Any, **extra: Any) -> Any:
            alone = typer.Typer(
                rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
            )
            register(alone)(_typer_function(options, function))
            return typer.main.get_command(alone).make_context(*given, **extra)

    register(app, cls=LateCommand)(lambda: None)


def _typer_function(
    options: type[OptionsType], function: Command[OptionsType]
) -> Callable[..., int]:
    """A function with one parameter for each flag, as typer wants it."""
    names = {
        marked: [name for name, _ in marker.parameters()] for marked, marker in _marks(options)
    }

    def call(typer_context: typer.Context, **given: Any) -> int:
        terminal: Terminal = typer_context.obj
        if "state_dir" in given:
            given["state_dir"] = given["state_dir"] or terminal.state_dir
        for marked, settings in names.items():
            typed = {name: given.pop(name) for name in settings}
            given[marked] = {name: text for name, text in typed.items() if text is not None}
        try:
            return function(options(**given), terminal)
        except BrokenPipeError as error:
            # typer would turn it into exit code 1 and leave our stdout unflushed.
            raise PipeClosed from error

    parameters = list(_parameters(options))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _marks(options: type[Any]) -> Iterator[tuple[str, SettingFlags]]:
    """The fields of an options class that are annotated with SettingFlags."""
    for name, hint in get_type_hints(options, include_extras=True).items():
        yield from (
            (name, extra) for extra in get_args(hint)[1:] if isinstance(extra, SettingFlags)
        )


def _parameters(options: type[Any]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(options, include_extras=True)
    marked = dict(_marks(options))
    keyword = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    yield keyword("typer_context", annotation=typer.Context)
    for field in fields(options):
        if field.name in marked:
            for name, annotation in marked[field.name].parameters():
                yield keyword(name, annotation=annotation, default=None)
            continue
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield keyword(field.name, annotation=hints[field.name], default=default)


def command_group(help_text: str) -> typer.Typer:
    """A group of commands (`edge-agent adapters list`), which prints its help without a command."""

    def show_help(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            ctx.obj.line(ctx.get_help())

    group = typer.Typer(help=help_text, rich_markup_mode=None)
    group.callback(invoke_without_command=True)(show_help)
    return group


def complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of registered models for the shell's completion; [] when they cannot be read."""
    import os

    from edge_agent.client.models import open_models

    given = ctx.params.get("state_dir") or ctx.find_root().params.get("state_dir")
    try:
        with open_models(given, os.environ, timeout_s=2.0) as library:
            names = [model.name for model in library.registered()]
    except (EdgeAgentError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]
