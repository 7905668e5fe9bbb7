"""serve: resolve the settings, then become the daemon.

Flows in: flags, environment, TOML. Flows out: an exec of `python -m edge_agent.daemon --settings
JSON`, so that the daemon's process holds none of the command line's libraries. Not here: names,
defaults and help texts of the settings (config.py), anything the daemon does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from edge_agent.cli.options import SettingFlags, StateOptions
from edge_agent.cli.terminal import Terminal

if TYPE_CHECKING:
    from edge_agent.setting import Setting

FLAGS = (
    *("socket", "port", "model", "ctx", "slots", "threads", "n_gpu_layers", "memory_budget_bytes"),
    *("max_queue", "keep_alive_s", "crash_budget", "sensors_root", "power_source", "log_text"),
)
"""The settings with a flag. The others are for the environment and the TOML files."""


def _declared() -> Mapping[str, Setting]:
    from edge_agent.config import declared_settings

    return declared_settings()


@dataclass(frozen=True, kw_only=True)
class ServeOptions(StateOptions):
    """A setting that is not given is decided by environment, TOML files and config.Settings."""

    settings: Annotated[dict[str, Any], SettingFlags(_declared, FLAGS)] = field(
        default_factory=dict
    )


def serve(options: ServeOptions, terminal: Terminal) -> int:
    """Run the daemon in this terminal until Ctrl-C.

    Flags come before the environment (EDGE_AGENT_SLOTS=2), STATE/config.toml and
    /etc/edge-agent/config.toml, which know every setting.

    Examples:
      edge-agent serve --model smollm2-135m
      edge-agent serve --port 0 --ctx max --slots 1 --memory 1500M
    """
    command = daemon_command({"state_dir": options.state_dir, **options.settings})
    os.execv(command[0], command)


def daemon_command(flags: Mapping[str, Any]) -> list[str]:
    """The process to become. `flags`: text by setting name. Raises UsageError."""
    from edge_agent.config import load_settings

    settings = load_settings(flags)
    return [sys.executable, "-m", "edge_agent.daemon", "--settings", settings.model_dump_json()]
