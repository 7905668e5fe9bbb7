"""Writes docs/grafana.json, a Grafana dashboard, from the names and kinds in server/metrics.py.

Run `.venv/bin/python docs/make_grafana.py > docs/grafana.json` after changing a metric;
tests/server/test_metrics.py compares. In Grafana: Dashboards, New, Import, upload the file, choose
the Prometheus data source. A name that /metrics does not have is a KeyError here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge_agent.server.metrics import FAMILIES, PREFIX

SELECTOR = '{instance=~"$instance"}'
RANGE = "[$__rate_interval]"
COLUMNS, WIDTH, HEIGHT = 3, 8, 8
"""Grafana's grid has 24 columns."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One chart: an expression and a legend for each line, and Grafana's name of the unit."""

    title: str
    unit: str
    lines: Sequence[tuple[str, str]]
    description: str = ""


def rate(name: str) -> str:
    """Growth of a counter per second, one line for each of its labels."""
    family = FAMILIES[name]
    assert family.kind == "counter", name
    by = f" by ({', '.join(('instance', *family.labels))})"
    return f"sum{by} (rate({PREFIX}{name}{SELECTOR}{RANGE}))"


def total(name: str) -> str:
    """The same over all labels."""
    return f"sum by (instance) ({rate(name)})"


def gauge(name: str) -> str:
    assert FAMILIES[name].kind == "gauge", name
    return f"{PREFIX}{name}{SELECTOR}"


def quantile(share: float, name: str) -> str:
    assert FAMILIES[name].kind == "histogram", name
    buckets = f"rate({PREFIX}{name}_bucket{SELECTOR}{RANGE})"
    return f"histogram_quantile({share}, sum by (instance, le) ({buckets}))"


def quantiles(name: str) -> list[tuple[str, str]]:
    return [(quantile(share, name), f"p{share * 100:.0f}") for share in (0.5, 0.95)]


PANELS = (
    Panel(
        "Speed",
        "none",
        [
            (f"{rate('generated_tokens_total')} / {rate('decode_seconds_total')}", "decode"),
            (f"{rate('prompt_tokens_total')} / {rate('prefill_seconds_total')}", "prefill"),
        ],
        "Tokens per second of engine time, mean of the interval; no line while nothing is asked.",
    ),
    Panel("Power", "watt", [(gauge("power_watts"), "{{rail}}")], "Rails are parts of the total."),
    Panel(
        "Energy per generated token",
        "joule",
        [(f"{total('energy_joules_total')} / {rate('generated_tokens_total')}", "J/token")],
        "Prefill included. Too low while answers too short to be measured are among them.",
    ),
    Panel("Temperature", "celsius", [(gauge("temperature_celsius"), "{{zone}}")]),
    Panel(
        "Memory",
        "bytes",
        [
            (gauge("memory_available_bytes"), "available"),
            (gauge("memory_rss_anon_bytes"), "{{process}}"),
        ],
    ),
    Panel(
        "Load",
        "percentunit",
        [(gauge("cpu_load_ratio"), "CPU"), (gauge("gpu_load_ratio"), "GPU")],
    ),
    Panel(
        "Clocks",
        "hertz",
        [(gauge("cpu_clock_hertz"), "CPU"), (gauge("gpu_clock_hertz"), "GPU")],
    ),
    Panel("Time to first token", "s", quantiles("time_to_first_token_seconds")),
    Panel("Time per output token", "s", quantiles("time_per_output_token_seconds")),
    Panel("Request duration", "s", quantiles("request_duration_seconds")),
    Panel(
        "Requests now",
        "none",
        [(gauge("requests_in_flight"), "computed"), (gauge("requests_queued"), "queued")],
    ),
    Panel(
        "Requests ended",
        "reqps",
        [
            (rate("requests_total"), "{{api}} {{outcome}}"),
            (rate("requests_rejected_total"), "refused {{reason}}"),
        ],
    ),
    Panel("Energy by phase", "watt", [(rate("energy_joules_total"), "{{rail}} {{phase}}")]),
    Panel(
        "Trouble",
        "none",
        [
            (gauge("guard_stage"), "guard stage"),
            (rate("worker_restarts_total"), "worker restarts/s"),
            (rate("throttle_events_total"), "{{cause}}/s"),
            (rate("sampler_missed_ticks_total"), "missed ticks/s"),
        ],
    ),
    Panel(
        "Model and version",
        "none",
        [(gauge("model_loaded"), "{{model}}"), (gauge("build_info"), "edge-agent {{version}}")],
    ),
)


def panel_json(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": row * HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend}
            for index, (expr, legend) in enumerate(panel.lines)
        ],
    }


def variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus"}
    yield {
        "name": "instance",
        "type": "query",
        "datasource": DATASOURCE,
        "query": f"label_values({PREFIX}build_info, instance)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> str:
    """The whole document."""
    assert "build_info" in FAMILIES
    document = {
        "uid": "edge-agent",
        "title": "edge-agent",
        "tags": ["edge-agent"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(variables())},
        "panels": [panel_json(number, panel) for number, panel in enumerate(PANELS)],
    }
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(dashboard())
