"""serve: resolves the settings, then becomes the daemon.

Flows in: flags, environment, TOML. Flows out: an exec of `python -m edge_agent.daemon --settings
JSON`, so that the daemon's process holds none of the command line's libraries. Not here: the
settings themselves (config.py), anything the daemon does.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.cli.options import StateOptions, complete_model
from edge_agent.cli.terminal import Terminal
from edge_agent.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


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


def parse_size(text: str) -> int:
    """Bytes. 2G and 2GB are decimal, 2Gi and 2GiB binary. Raises UsageError.

    >>> parse_size("1500M"), parse_size("2GiB"), parse_size("4096")
    (1500000000, 2147483648, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--memory is {text!r}", "this is no size", "give 1500M, 2G or 2GiB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[unit.lower()])


def parse_duration(text: str) -> float:
    """Seconds; a bare number is seconds, negative means never. Raises UsageError.

    >>> parse_duration("5m"), parse_duration("1h30m"), parse_duration("-1"), parse_duration("2.5s")
    (300.0, 5400.0, -1.0, 2.5)
    """
    match = re.fullmatch(r"(-?)((?:\d+(?:\.\d+)?(?:ms|s|m|h))+|\d+(?:\.\d+)?)", text.strip())
    if match is None:
        hint = "give seconds, or 5m, 1h30m; -1 for never"
        raise UsageError(f"--keep-alive is {text!r}", "this is no duration", hint)
    sign, body = match.groups()
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", body) or [(body, "s")]
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return -seconds if sign else seconds
