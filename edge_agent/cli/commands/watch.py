"""`status --watch`: the daemon and its board on one screen, renewed every second.

Flows in: GET /status and GET /telemetry. Flows out: rich's live view on a terminal, one line a look
elsewhere, one JSON document a look with --json. A daemon that goes away is waited for. Not here:
`status` once (engine.py), sensors (the daemon's).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent import json_lines
from edge_agent.cli.options import Options
from edge_agent.cli.terminal import Terminal, size_text
from edge_agent.client.connection import find_daemon
from edge_agent.errors import EdgeAgentError

if TYPE_CHECKING:
    from rich.console import RenderableType


TIMEOUT_S = 5.0
SECONDS = 60
GENERATIONS = 5
BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 30
NOT_MEASURED = "not measured"

Document = Mapping[str, Any]


def watch(options: StatusOptions, terminal: Terminal) -> int:
    """Until Ctrl-C."""
    if options.json:
        for status, telemetry in looks(options, terminal):
            text = json_lines.dumps({"status": status, "telemetry": telemetry})
            terminal.line(text)
    elif terminal.is_tty and not terminal.is_dumb:
        _live(options, terminal)
    else:
        for status, telemetry in looks(options, terminal):
            terminal.line(one_line(status, telemetry))
    return 0


def looks(
    options: StatusOptions, terminal: Terminal
) -> Iterator[tuple[Document | None, Document | None]]:
    """One pair of documents every interval; (None, None) while no daemon answers."""
    while True:
        began_s = time.monotonic()
        try:
            client = find_daemon(options.state_dir, terminal.environ, TIMEOUT_S)
            yield client.get("/status"), client.get(f"/telemetry?seconds={SECONDS}")
        except EdgeAgentError:
            yield None, None
        time.sleep(max(0.0, options.interval - (time.monotonic() - began_s)))


def _live(options: StatusOptions, terminal: Terminal) -> None:
    """rich restores the terminal however this ends."""
    from rich.live import Live

    with Live(console=terminal.console(terminal.stdout), auto_refresh=False) as live:
        for status, telemetry in looks(options, terminal):
            live.update(view(status, telemetry), refresh=True)


def one_line(status: Document | None, telemetry: Document | None) -> str:
    """For logs: time of day and the figures that move."""
    now = time.strftime("%H:%M:%S")
    if status is None:
        return f"{now} daemon gone, waiting"
    figures = {name: value for name, value in rows(status, telemetry) if name in LINE_FIELDS}
    return f"{now} " + "; ".join(f"{name} {value}" for name, value in figures.items())


LINE_FIELDS = ("engine", "slots", "speed", "power", "heat", "memory", "throttling", "guard")


def view(status: Document | None, telemetry: Document | None) -> RenderableType:
    """The whole screen."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if status is None:
        return Text("daemon gone, waiting; Ctrl-C ends this")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows(status, telemetry):
        grid.add_row(name, Text(value))
    return Group(grid, Text(), _generations(telemetry))


def _generations(telemetry: Document | None) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for header in ("MODEL", "TOKENS", "TOK/S", "J/TOKEN", "ENDED"):
        table.add_column(header, overflow="fold")
    for one in ((telemetry or {}).get("generations") or [])[:GENERATIONS]:
        rate = _rate(one)
        cells = (
            str(one.get("model")),
            str(one.get("completion_tokens")),
            "-" if rate is None else f"{rate:.1f}",
            "-" if one.get("j_per_token") is None else f"{one['j_per_token']:.4f}",
            str(one.get("error_code") or one.get("finish_reason")),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _rate(generation: Document) -> float | None:
    tokens, seconds = generation.get("completion_tokens"), generation.get("decode_s")
    return tokens / seconds if tokens and seconds else None


def rows(status: Document, telemetry: Document | None) -> list[tuple[str, str]]:
    """(name, text) of everything worth a line."""
    engine, info = status.get("engine") or {}, status.get("model_info") or {}
    points = (telemetry or {}).get("points") or []
    state = ": ".join(str(x) for x in (engine.get("state"), engine.get("reason")) if x)
    slots = f"{engine.get('in_flight')} of {info['slots']} busy" if info else "no model loaded"
    found = [
        ("model", str(engine.get("model") or "none")),
        ("engine", state),
        ("slots", f"{slots}, {engine.get('queued')} waiting"),
        ("speed", _moving(points, "tok_s", "tok/s", "")),
    ]
    return [*found, *_sensors(status, points), *_process(status)]


def _sensors(status: Document, points: Sequence[Document]) -> list[tuple[str, str]]:
    sensors = status.get("sensors") or {}
    rails = [
        f"{name} {rail['watts']:.2f} W"
        for name, rail in (sensors.get("rails") or {}).items()
        if rail.get("watts") is not None and name != sensors.get("total_rail")
    ]
    idle_w = sensors.get("idle_w")
    guard = sensors.get("guard") or {}
    sampler = sensors.get("sampler") or {}
    blocked = ", ".join(sampler.get("blocked") or {})
    return [
        ("power", _moving(points, "watts", "W", str(sensors.get("total_reason") or ""))),
        ("rails", ", ".join(rails) or "-"),
        ("idle", _or_reason(idle_w, "W", sensors.get("idle_reason"))),
        ("heat", _heat(sensors)),
        ("cpu, gpu", f"{_load(sensors.get('cpu'))}, {_load(sensors.get('gpu'))}"),
        ("throttling", ", ".join(sensors.get("throttle") or []) or "none"),
        ("guard", f"stage {guard.get('stage')} {guard.get('reason') or ''}".strip()),
        (
            "sampler",
            f"{sampler.get('rate_hz')} Hz, {sampler.get('missed_ticks')} of "
            f"{sampler.get('ticks')} ticks missed" + (f", blocked: {blocked}" if blocked else ""),
        ),
    ]


def _process(status: Document) -> list[tuple[str, str]]:
    own, board = status.get("memory") or {}, (status.get("sensors") or {}).get("memory") or {}
    stall = board.get("psi_some_percent")
    parts = [
        f"{name} {_size(value)}"
        for name, value in (
            ("available", board.get("available_bytes", own.get("mem_available_bytes"))),
            ("worker", own.get("worker_rss_anon_bytes")),
            ("front", own.get("front_rss_anon_bytes")),
            ("swap", board.get("swap_used_bytes")),
            ("zram", board.get("zram_used_bytes")),
        )
    ]
    parts.append(f"stalled {NOT_MEASURED if stall is None else f'{stall:.0f} %'}")
    return [("memory", ", ".join(parts))]


def _moving(points: Sequence[Document], key: str, unit: str, reason: str) -> str:
    """The newest value and a minute of it."""
    values = [point.get(key) for point in points]
    known = [value for value in values if value is not None]
    if not known:
        return f"{NOT_MEASURED}: {reason or 'no reading yet'}"
    newest = values[-1]
    now = NOT_MEASURED if newest is None else f"{newest:.2f} {unit}"
    return f"{now:<14} {sparkline(values)}"


def sparkline(values: Sequence[float | None]) -> str:
    """At most SPARK_WIDTH blocks from zero to the highest; a space where nothing was read.

    >>> sparkline([0, 5, None, 10])
    '▁▅ █'
    """
    step = -(-len(values) // SPARK_WIDTH) or 1
    groups = [
        [v for v in values[i : i + step] if v is not None] for i in range(0, len(values), step)
    ]
    top = max((max(group) for group in groups if group), default=0) or 1
    last = len(BLOCKS) - 1
    return "".join(
        BLOCKS[min(last, int(max(group) / top * last + 0.5))] if group else " " for group in groups
    )


def _heat(sensors: Document) -> str:
    zones = (sensors.get("temperatures_celsius") or {}).items()
    known = [f"{name} {celsius:.1f}" for name, celsius in zones if celsius is not None]
    return f"{', '.join(known)} C" if known else f"{NOT_MEASURED}: no thermal zone"


def _load(part: Document | None) -> str:
    part = part or {}
    load, clock = part.get("load"), part.get("clock_hz")
    texts = [
        None if load is None else f"{100 * load:.0f} %",
        None if clock is None else f"{clock / 1e9:.2f} GHz",
    ]
    return " at ".join(text for text in texts if text) or NOT_MEASURED


def _or_reason(value: float | None, unit: str, reason: object) -> str:
    return f"{value:.2f} {unit}" if value is not None else f"{NOT_MEASURED}: {reason}"


def _size(value: int | None) -> str:
    return NOT_MEASURED if value is None else size_text(value)


@dataclass(frozen=True, kw_only=True)
class StatusOptions(Options):
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep it on the screen.")] = False
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Seconds between two looks.")
    ] = 1.0
