"""Watts from jetson-stats' service, for boards whose sensor files only root may read.

jetson-stats is AGPL-3.0 and not a dependency: this module imports it only when the user asks for it
with `--power-source jtop`. Flows in: the running jtop service. Flows out: Power, from the service's
`power` fields in milliwatts (its `avg` fields are not used, because they are not means). The
service refreshes about once a second, so short answers get no joules from it. Not here: the sensor
files themselves, which need no service (power.py).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.monitor.sensors.readings import MAX_W, TOTAL_RAILS, Looked, Power

WHAT, WHERE = "jtop service", "run/jtop.sock"
INTERVAL_S = 0.1
"""The interval asked for; the service uses the interval of its first client for all clients."""


@dataclass
class JtopSensor:
    """`client` is None when there is no connection; `reason` then says why."""

    client: Any
    reason: str
    looked: tuple[Looked, ...]

    def read(self) -> Power:
        if self.client is None:
            return Power("jtop", None, reasons={"total": self.reason})
        try:
            if not self.client.ok():
                return Power("jtop", None, reasons={"total": "the jtop service has stopped"})
            found = self.client.power
        except Exception as error:  # jtop's own exception class is known only when it is installed
            return Power("jtop", None, reasons={"total": f"jtop: {error}"})
        return _power(found)


def _power(found: Any) -> Power:
    """Convert jtop's {'rail': {name: {'power': mW}}, 'tot': {'name': ..., 'power': mW}}."""
    total = found.get("tot") or {}
    name = str(total.get("name"))
    watts = {str(rail): _watts(values) for rail, values in (found.get("rail") or {}).items()}
    reasons = {f"watts.{rail}": "jtop gave no power" for rail, w in watts.items() if w is None}
    if name not in TOTAL_RAILS:
        reasons["total"] = "jtop's total is a sum of rails on this board, which counts some twice"
        return Power("jtop", None, watts, reasons=reasons)
    return Power("jtop", name, {**watts, name: _watts(total)}, reasons=reasons)


def _watts(values: Any) -> float | None:
    milliwatts = values.get("power")
    is_number = isinstance(milliwatts, int | float) and 0 <= milliwatts <= MAX_W * 1000
    return milliwatts / 1000 if is_number else None


def find(root: Path) -> JtopSensor:
    """Connect to the service. `root` only shows where its socket would be; the library finds it
    itself."""
    where = str(root / WHERE)
    try:
        module = importlib.import_module("jtop")
    except ImportError:
        reason = "jetson-stats is not installed (sudo pip3 install jetson-stats; it is AGPL-3.0)"
        return JtopSensor(None, reason, (Looked(WHAT, where, None, reason),))
    try:
        client = module.jtop(interval=INTERVAL_S)
        client.start()
    except Exception as error:
        reason = f"jtop: {error} (client and service must have one version and one Python)"
        return JtopSensor(None, reason, (Looked(WHAT, where, None, reason),))
    return JtopSensor(client, "", (Looked(WHAT, where, "connected"),))
