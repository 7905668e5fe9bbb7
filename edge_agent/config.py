"""Every setting of the daemon: its name, type, default, bounds and help text, each written once.

Flows in: command-line flags (their text by setting name), the environment (EDGE_AGENT_*), two
optional TOML files (STATE/config.toml, then /etc/edge-agent/config.toml) and the defaults below, in
that order of precedence. Flows out: one frozen `Settings`, which `serve` hands to the daemon as
JSON. Problems leave as UsageError that names the flag, the variable, or the key and its file. Not
here: the command line (cli/options.py makes flags from `declared_settings`), and a bind address:
the daemon listens on a Unix socket and on 127.0.0.1, and no setting can change that.

>>> Settings(state_dir="/tmp/x", slots=2, ctx="max").engine_settings().n_ctx
0
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from edge_agent.errors import UsageError
from edge_agent.records import EngineSettings, FlashAttention, KvType, LoadMode, PowerChoice
from edge_agent.setting import Setting, settings_of
from edge_agent.units import parse_unit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "EDGE_AGENT_"
CONFIG_FILE = "config.toml"
SYSTEM_CONFIG_DIR = "/etc/edge-agent"
_ENGINE = EngineSettings()


def state_dir_from(environ: Mapping[str, str]) -> Path:
    """The state directory nobody gave a flag for, absolute.

    $EDGE_AGENT_STATE_DIR, else $STATE_DIRECTORY (systemd's StateDirectory=; the first of a
    colon-separated list), else ~/.local/state/edge-agent (XDG base directory specification).
    """
    given = (
        environ.get(ENV_PREFIX + "STATE_DIR") or environ.get("STATE_DIRECTORY", "").split(":")[0]
    )
    home = environ.get("HOME") or "~"
    return _absolute(Path(given or Path(home, ".local", "state", "edge-agent")))


class Settings(BaseSettings):
    """Resolved settings. `load_settings` constructs them and turns problems into UsageError.

    A name that ends in _bytes or _s takes text with a unit too: "512M", "5m". `flag` and `metavar`
    are for the command line (setting.py).
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )

    state_dir: Path = Field(
        default_factory=lambda: state_dir_from(os.environ),
        description="Directory of models, database, token and socket; flag or environment only.",
    )
    socket: Path | None = Field(None, description="Unix socket to serve on [STATE/agent.sock].")
    port: int | None = Field(
        11435, ge=0, le=65535, description="Port on 127.0.0.1; 0 any free one, none no TCP."
    )
    model: str | None = Field(
        None,
        description="Model to load at start; the default of requests that name none.",
        json_schema_extra={"metavar": "NAME"},
    )
    ctx: int | None = Field(
        None,
        ge=0,
        description="Tokens of context per slot; max (or 0): the model's own"
        " [up to 4096, if it fits].",
        json_schema_extra={"metavar": "N|max"},
    )
    slots: int | None = Field(
        None, ge=1, le=64, description="Requests decoded together [what fits]."
    )
    threads: int | None = Field(None, ge=1, le=512, description="Threads [usable physical cores].")
    n_gpu_layers: int = Field(
        _ENGINE.n_gpu_layers, ge=-1, description="Layers on the GPU; -1 all of them."
    )
    load_mode: LoadMode = Field(_ENGINE.load_mode, description="How the weights get into memory.")
    flash_attn: FlashAttention = Field(_ENGINE.flash_attn, description="Flash attention.")
    type_k: KvType = Field(_ENGINE.type_k, description="Type of the cached keys.")
    type_v: KvType = Field(_ENGINE.type_v, description="Type of the cached values.")
    swa_full: bool = Field(
        _ENGINE.swa_full,
        description="Keep the whole context of sliding-window layers (more prefix reuse).",
    )
    memory_budget_bytes: int | None = Field(
        None,
        ge=1,
        description="Refuse models that need more: 1500M, 2G, 2GiB [what is available].",
        json_schema_extra={"flag": "--memory"},
    )
    max_queue: int = Field(16, ge=0, le=4096, description="Requests that may wait for a slot.")
    keep_alive_s: float = Field(
        300.0, description="Unload after so long unused: 300, 5m; negative never."
    )
    crash_budget: int = Field(
        5, ge=1, description="Worker crashes within crash_window_s that quarantine a model."
    )
    crash_window_s: float = Field(300.0, gt=0, description="Window of the crash budget.")
    worker_timeout_s: float = Field(
        60.0, gt=0, description="A busy worker silent for so long is killed."
    )
    load_timeout_s: float = Field(
        900.0,
        gt=0,
        description="A load that takes longer is killed (a first CUDA load compiles for minutes).",
    )
    drain_s: float = Field(10.0, ge=0, description="How long a stop waits for running requests.")
    keep_generations: int = Field(
        100_000, ge=1, description="Rows of generation history kept; older ones are pruned."
    )
    keep_adapters: int = Field(
        3, ge=1, le=64, description="Adapters kept per model; the oldest not active goes."
    )
    sensors_root: Path = Field(
        Path("/"),
        description="Read every sensor below this directory (DIR/sys, DIR/proc, DIR/etc).",
        json_schema_extra={"metavar": "DIR"},
    )
    power_source: PowerChoice = Field(
        "auto", description="Where watts come from; auto: INA3221, else RAPL."
    )
    sample_idle_hz: float = Field(
        10.0, gt=0, le=100, description="Power samples a second while nothing is generated."
    )
    sample_busy_hz: float = Field(
        20.0, gt=0, le=100, description="Power samples a second while something is generated."
    )
    keep_samples_days: float = Field(
        30.0, ge=0, description="Days the history of watts, heat and memory is kept; 0 writes none."
    )
    guard: bool = Field(True, description="Stop admitting, shrink, unload under pressure or heat.")
    guard_available_bytes: int | None = Field(
        None, ge=0, description="MemAvailable below which the guard acts [5 % of the memory]."
    )
    guard_psi_percent: float = Field(
        20.0, gt=0, le=100, description="Share of 10 s stalled on memory at which the guard acts."
    )
    guard_celsius: float = Field(
        90.0, gt=0, description="Hottest zone at which the guard acts [or 5 below its trip point]."
    )
    log_text: bool = Field(False, description="Keep prompts and answers in the history.")
    feedback: bool = Field(
        True, description="Remember the last answers, in memory, so that users can correct them."
    )
    feedback_quota: int = Field(
        200, ge=1, le=1000, description="Feedback of one user on one model that may wait."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _resolve_unit(cls, value: object, info: ValidationInfo) -> object:
        return parse_unit(str(info.field_name), value) if isinstance(value, str) else value

    @field_validator("state_dir", "socket", "sensors_root", mode="after")
    @classmethod
    def _make_absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else _absolute(path)

    @field_validator("port", mode="before")
    @classmethod
    def _port_none(cls, value: object) -> object:
        """TOML has no null and a flag is text, so the word `none` means no TCP."""
        return None if value == "none" else value

    @field_validator("ctx", mode="before")
    @classmethod
    def _ctx_max(cls, value: object) -> object:
        return 0 if value == "max" else value

    @property
    def socket_path(self) -> Path:
        return self.socket or self.state_dir / "agent.sock"

    def engine_settings(self) -> EngineSettings:
        return EngineSettings(
            n_ctx=self.ctx,
            slots=self.slots,
            n_threads=self.threads,
            flash_attn=self.flash_attn,
            load_mode=self.load_mode,
            type_k=self.type_k,
            type_v=self.type_v,
            swa_full=self.swa_full,
            n_gpu_layers=self.n_gpu_layers,
            memory_budget_bytes=self.memory_budget_bytes,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        flags = init_settings()
        state_dir = flags.get("state_dir") or state_dir_from(os.environ)
        files = (
            InitSettingsSource(settings_cls, init_kwargs=_read_toml(path))
            for path in config_paths(_absolute(Path(str(state_dir))), os.environ)
        )
        return (init_settings, env_settings, *files)


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Resolve everything. A flag that is None was not given. Raises UsageError."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise _usage_error(error, given) from error
    except SettingsError as error:
        raise UsageError(
            "the environment holds a setting that cannot be read", str(error)
        ) from error


@cache
def declared_settings() -> dict[str, Setting]:
    """Every setting by its name, with its flag and help text."""
    return settings_of(Settings.model_json_schema())


def settings_from_json(text: str) -> Settings:
    """The inverse of `settings.model_dump_json()`; what the text gives wins over every file.

    Raises UsageError.
    """
    try:
        return Settings.model_validate_json(text)
    except ValidationError as error:
        raise _usage_error(error, {}) from error


def config_paths(state_dir: Path, environ: Mapping[str, str]) -> tuple[Path, Path]:
    """The TOML files looked at, the stronger one first.

    $CONFIGURATION_DIRECTORY (systemd's ConfigurationDirectory=) replaces /etc/edge-agent.
    """
    system = environ.get("CONFIGURATION_DIRECTORY", "").split(":")[0] or SYSTEM_CONFIG_DIR
    return state_dir / CONFIG_FILE, Path(system) / CONFIG_FILE


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(
            f"{path} cannot be resolved", str(error), "give an absolute path"
        ) from error


def _read_toml(path: Path) -> dict[str, Any]:
    """The settings in one file; {} when there is none. Raises UsageError."""
    try:
        values: dict[str, Any] = tomllib.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        hint = "make it readable or remove it"
        raise UsageError(f"cannot read {path}", error.strerror or str(error), hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid TOML", str(error), "correct that line") from error
    for key in values:
        _check_key(key, path)
    return values


def _check_key(key: str, path: Path) -> None:
    known = [name for name in Settings.model_fields if name != "state_dir"]
    if key in known:
        return
    if key == "state_dir":
        why = "a file inside or beside the state directory cannot move it"
        raise UsageError(f"state_dir in {path}", why, f"set {ENV_PREFIX}STATE_DIR or --state-dir")
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    raise UsageError(
        f"unknown setting `{key}` in {path}",
        "a misspelt setting would silently keep its default",
        f"{hint}known: {', '.join(sorted(known))}",
    )


def _usage_error(error: ValidationError, flags: Mapping[str, Any]) -> UsageError:
    """The first problem pydantic found, in our three parts."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        known = "known: " + ", ".join(sorted(Settings.model_fields))
        return UsageError(f"unknown setting `{name}`", "no setting has this name", known)
    if name not in Settings.model_fields:
        return UsageError("the settings cannot be read", str(problem["msg"]))
    why = str(problem["msg"]).removeprefix("Value error, ")
    value = str(flags.get(name, problem["input"]))[:80]
    return UsageError(f"{_origin(name, flags)} is {value}", why, declared_settings()[name].help)


def _origin(name: str, flags: Mapping[str, Any]) -> str:
    """Where the value of a setting came from, in the words its owner would search for."""
    if name in flags:
        return declared_settings()[name].flag
    variable = (ENV_PREFIX + name).lower()
    for given, value in os.environ.items():
        if given.lower() == variable and value:
            return given
    state_dir = Path(str(flags.get("state_dir") or state_dir_from(os.environ)))
    for path in config_paths(state_dir, os.environ):
        if name in _read_toml(path):
            return f"`{name}` in {path}"
    return f"setting `{name}`"
