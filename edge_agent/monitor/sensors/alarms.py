"""Whether the board is being slowed down now: over-current, under-voltage, heat.

Flows in: the root directory that stands for /. Flows out: Alarms. Three kinds of files are read:
the INA3221's alarm bits (Documentation/hwmon/ina3221.rst: currN_crit_alarm, currN_max_alarm),
NVIDIA's over-current throttle with its event counters (soctherm-oc, ocN_event_cnt; JetPack 5 and
6), and cooling devices that slow a processor and are in a state above 0
(Documentation/driver-api/thermal/sysfs-api.rst). Fans are left out, because they cool and do not
slow anything. Not here: clocks (cpu.py, gpu.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_agent.monitor.sensors.kernel_file import listing, read_number, read_text
from edge_agent.monitor.sensors.readings import Alarms, Looked

INA3221 = "sys/bus/i2c/drivers/ina3221"
COOLING = "sys/devices/virtual/thermal"
HWMON = "sys/class/hwmon"
FANS = ("fan", "pwm")


@dataclass
class AlarmSensor:
    """(cause, path) pairs: `bits` are active when they are not 0, `counters` count events."""

    bits: tuple[tuple[str, str], ...]
    counters: tuple[tuple[str, str], ...]
    looked: tuple[Looked, ...]

    def read(self) -> Alarms:
        active: list[str] = []
        counts: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for cause, path in self.bits:
            value, reason = read_number(path, 0, 1e6)
            if value:
                active.append(cause)
            if reason:
                reasons[cause] = reason
        for cause, path in self.counters:
            value, reason = read_number(path, 0, 1e12)
            if value is not None:
                counts[cause] = int(value)
            if reason:
                reasons[cause] = reason
        return Alarms(tuple(dict.fromkeys(active)), counts, reasons)


def find(root: Path) -> AlarmSensor:
    """Look for the three kinds of files below `root`."""
    rails, cooling = _rail_alarms(root), _cooling(root)
    counters = tuple(
        (f"over_current:{path.name.removesuffix('_event_cnt')}", str(path))
        for path in listing(root / HWMON, "hwmon*/oc*_event_cnt")
    )
    looked = (
        _looked("rail alarms", root / INA3221 / "*/hwmon/hwmon*/curr*_alarm", len(rails)),
        _looked("over-current counters", root / HWMON / "hwmon*/oc*_event_cnt", len(counters)),
        _looked("cooling devices", root / COOLING / "cooling_device*", len(cooling)),
    )
    return AlarmSensor((*rails, *cooling), counters, looked)


def _looked(what: str, where: Path, count: int) -> Looked:
    return Looked(what, str(where), f"{count} files" if count else None)


def _rail_alarms(root: Path) -> tuple[tuple[str, str], ...]:
    found = []
    for path in listing(root / INA3221, "*/hwmon/hwmon*/curr*_alarm"):
        channel = path.name.removeprefix("curr").partition("_")[0]
        label, _ = read_text(path.parent / f"in{channel}_label")
        if label and label != "NC":
            found.append((f"over_current:{label}", str(path)))
    return tuple(found)


def _cooling(root: Path) -> tuple[tuple[str, str], ...]:
    found = []
    for path in listing(root / COOLING, "cooling_device*"):
        kind, _ = read_text(path / "type")
        if kind and not any(word in kind.lower() for word in FANS):
            found.append((f"thermal:{kind}", str(path / "cur_state")))
    return tuple(found)
