"""Temperatures by zone, from the kernel's thermal framework.

Flows in: the root directory that stands for /. Flows out: Thermal, in degrees Celsius (the files
hold thousandths; Documentation/driver-api/thermal/sysfs-api.rst). Zones that report a constant are
left out, because they would always be the hottest: the Nano's PMIC-Die reports 100. Not here: fans,
throttling (alarms.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.monitor.sensors.kernel_file import listing, read_number, read_text
from edge_agent.monitor.sensors.readings import Looked, Thermal

ZONES = "sys/devices/virtual/thermal"
CONSTANT_ZONES = ("PMIC-Die",)
LOWEST_MC, HIGHEST_MC = -40_000.0, 150_000.0
"""Thousandths of a degree. Outside lies what a sensor shows that is off: -256000, 0x7fffffff."""
TRIP_TYPES = ("hot", "critical")


@dataclass
class ThermalSensor:
    """`zones` maps the name of a zone to its file `temp`."""

    zones: dict[str, str]
    critical_celsius: dict[str, float]
    looked: tuple[Looked, ...] = field(default=())

    def read(self) -> Thermal:
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for name, path in self.zones.items():
            value, reason = read_number(path, LOWEST_MC, HIGHEST_MC)
            values[name] = None if value is None else value / 1000
            if reason:
                reasons[f"zones_celsius.{name}"] = reason
        if not values:
            reasons["zones_celsius"] = "no thermal zone"
        return Thermal(values, self.critical_celsius, reasons)


def find(root: Path) -> ThermalSensor:
    """Look for thermal zones below `root`."""
    zones: dict[str, str] = {}
    trips: dict[str, float] = {}
    for path in listing(root / ZONES, "thermal_zone*"):
        kind, _ = read_text(path / "type")
        if kind is None or kind in CONSTANT_ZONES:
            continue
        name = kind if kind not in zones else f"{kind}.{path.name.removeprefix('thermal_zone')}"
        zones[name] = str(path / "temp")
        trip = _lowest_trip(path)
        if trip is not None:
            trips[name] = trip
    where = str(root / ZONES / "thermal_zone*")
    found = f"{len(zones)} zones: {', '.join(zones)}" if zones else None
    return ThermalSensor(zones, trips, (Looked("thermal zones", where, found),))


def _lowest_trip(zone: Path) -> float | None:
    """The lowest hot or critical trip point of a zone in Celsius: there the kernel itself acts."""
    found = []
    for path in listing(zone, "trip_point_*_type"):
        kind, _ = read_text(path)
        if kind in TRIP_TYPES:
            value, _ = read_number(str(path).removesuffix("type") + "temp", 1, HIGHEST_MC)
            found += [] if value is None else [value / 1000]
    return min(found, default=None)
