"""serve: resolves the settings, then becomes the daemon.

Flows in: flags, environment, TOML. Flows out: an exec of `python -m edge_agent.daemon --settings
JSON`, so that the daemon's process holds none of the command line's libraries. Not here: the
settings themselves (config.py), anything the daemon does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.cli.options import StateOptions, complete_model
from edge_agent.cli.terminal import Terminal
from edge_agent.cli.units import parse_duration, parse_size


@dataclass(frozen=True, kw_only=True)
class ServeOptions(StateOptions):
    """None: not given, so the environment, the TOML files and config.Settings decide."""

    socket: Annotated[
        Path | None, typer.Option(help="Unix socket [STATE/agent.sock].", metavar="PATH")
    ] = None
    port: Annotated[
        str | None,
        typer.Option(help="Port on 127.0.0.1; 0 any free one, none no TCP.", metavar="N"),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to load at start; the default of requests that name none.",
            metavar="NAME",
            autocompletion=complete_model,
        ),
    ] = None
    ctx: Annotated[
        str | None,
        typer.Option(help="Tokens of context per slot, or max: the model's own.", metavar="N|max"),
    ] = None
    slots: Annotated[str | None, typer.Option(help="Requests decoded together.", metavar="N")] = (
        None
    )
    threads: Annotated[str | None, typer.Option(help="Threads [physical cores].", metavar="N")] = (
        None
    )
    n_gpu_layers: Annotated[
        str | None, typer.Option(help="Layers on the GPU; -1 all of them.", metavar="N")
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(help="Refuse models that need more: bytes, 1500M, 2G.", metavar="SIZE"),
    ] = None
    max_queue: Annotated[
        str | None, typer.Option(help="Requests that may wait for a slot.", metavar="N")
    ] = None
    keep_alive: Annotated[
        str | None,
        typer.Option(help="Unload after so long unused: 300, 5m; -1 never.", metavar="DURATION"),
    ] = None
    crash_budget: Annotated[
        str | None,
        typer.Option(help="Worker crashes in 5 minutes that quarantine a model.", metavar="N"),
    ] = None
    sensors_root: Annotated[
        str | None, typer.Option(help="Read every sensor below DIR instead of /.", metavar="DIR")
    ] = None
    power_source: Annotated[
        str | None,
        typer.Option(help="auto (INA3221, else RAPL), ina3221, rapl, jtop, none.", metavar="NAME"),
    ] = None
    log_text: Annotated[
        bool | None,
        typer.Option("--log-text/--no-log-text", help="Keep prompts and answers in the history."),
    ] = None


def serve(options: ServeOptions, terminal: Terminal) -> int:
    """Run the daemon in this terminal until Ctrl-C.

    Flags come before the environment (EDGE_AGENT_SLOTS=2), STATE/config.toml and
    /etc/edge-agent/config.toml, which know every setting.

    Examples:
      edge-agent serve --model smollm2-135m
      edge-agent serve --port 0 --ctx max --slots 1 --memory 1500M
    """
    command = daemon_command(flags_of(options))
    os.execv(command[0], command)


def daemon_command(flags: Mapping[str, Any]) -> list[str]:
    """The process to become. Raises UsageError for settings that cannot be."""
    from edge_agent.config import load_settings

    settings = load_settings(flags)
    return [sys.executable, "-m", "edge_agent.daemon", "--settings", settings.model_dump_json()]


def flags_of(options: ServeOptions) -> dict[str, Any]:
    """Settings by their names in config.Settings. Raises UsageError."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    if "memory" in given:
        given["memory_budget_bytes"] = parse_size(given.pop("memory"))
    if "keep_alive" in given:
        given["keep_alive_s"] = parse_duration(given.pop("keep_alive"))
    return given
