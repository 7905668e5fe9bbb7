"""Watts by rail: chooses the power source, and reads the power monitors of a Jetson.

JetPack 4 has NVIDIA's own driver of the INA3221, which shows an industrial-I/O device with power in
milliwatts; later ones have the kernel's hwmon driver (Documentation/hwmon/ina3221.rst) with
millivolts and milliamperes. An AGX Thor measures its input with an INA238, in microwatts
(Documentation/hwmon/ina238.rst). Flows in: the root directory that stands for /. Flows out: Power.
Not here: RAPL (rapl.py), jtop (jtop.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edge_agent.monitor.sensors import jtop, rapl
from edge_agent.monitor.sensors.kernel_file import listing, read_number, read_text
from edge_agent.monitor.sensors.readings import MAX_W, TOTAL_RAILS, Looked, Power
from edge_agent.records import PowerChoice

JETPACK4 = "sys/bus/i2c/drivers/ina3221x"
JETPACK5 = "sys/bus/i2c/drivers/ina3221"
INPUT = "sys/bus/i2c/drivers/ina238"
THOR_RAIL = "VDD_CPU_SOC_MSS"
MAX_MV, MAX_MA = 32_767.0, 60_000.0
"""Above these a value is an error: the converter's bus range is 26 V (Documentation/hwmon)."""
LOST_MW = 65_535.0
"""What NVIDIA's driver shows for a converter that has lost its measurement."""
CHANNELS = 3


class PowerSensor(Protocol):
    """The interface of every power source."""

    looked: tuple[Looked, ...]

    def read(self) -> Power: ...


@dataclass(frozen=True)
class _Rail:
    """One channel: a file of power, of which `units` make a watt, or a file of millivolts and one
    of milliamperes."""

    name: str
    power: str | None = None
    units: float = 1e3
    millivolts: str = ""
    milliamperes: str = ""

    def watts(self) -> tuple[float | None, str]:
        if self.power is not None:
            value, reason = read_number(self.power, 0, MAX_W * self.units)
            if value == LOST_MW and self.units == 1e3:
                return None, f"{self.power}: {value:.0f} is what a lost measurement shows"
            return (None if value is None else value / self.units), reason
        volts, reason = read_number(self.millivolts, 0, MAX_MV)
        amperes, other = read_number(self.milliamperes, 0, MAX_MA)
        if volts is None or amperes is None:
            return None, reason or other
        watts = volts * amperes / 1e6
        return (watts, "") if watts <= MAX_W else (None, f"{self.name}: {watts:.0f} W is no power")


@dataclass
class Ina3221:
    """The rails of every INA3221 and INA238 chip that was found."""

    rails: tuple[_Rail, ...]
    looked: tuple[Looked, ...]

    def read(self) -> Power:
        watts: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for rail in self.rails:
            watts[rail.name], reason = rail.watts()
            if reason:
                reasons[f"watts.{rail.name}"] = reason
        total = next((name for name in TOTAL_RAILS if name in watts), None)
        if total is None:
            reasons["total"] = f"none of the rails {', '.join(watts)} feeds the whole board"
        return Power("ina3221", total, watts, reasons=reasons)


@dataclass
class NoPower:
    """There is no power source.

    `reason` is short, because it stands beside every answer; `looked` lists the places that were
    searched and why a sensor there cannot be used, as `edge-agent doctor` shows them.
    """

    looked: tuple[Looked, ...] = field(default=())
    reason: str = "no power sensor found"

    def read(self) -> Power:
        return Power("none", None, reasons={"total": self.reason})


def find(root: Path, source: PowerChoice = "auto") -> PowerSensor:
    """The sensor to read: the source that was asked for; with "auto" the INA3221, else RAPL.

    Example: `watts = power.find(Path("/")).read().watts`
    """
    if source == "none":
        return NoPower(reason="power is switched off by --power-source none")
    if source == "jtop":
        return jtop.find(root)
    rails, looked = _rails(root)
    if rails and source in ("auto", "ina3221"):
        return Ina3221(rails, looked)
    if source == "ina3221":
        return NoPower(looked, "no INA3221 found")
    counter = rapl.find(root)
    looked = (*looked, *counter.looked)
    if counter.is_usable or source == "rapl":
        counter.looked = looked
        return counter
    if any(rapl.NOT_ALLOWED in one.reason for one in looked):
        return NoPower(looked, "no power sensor but RAPL, which only root may read")
    is_broken = any(one.reason for one in looked)
    return NoPower(looked, "no power sensor that can be read" if is_broken else NoPower.reason)


def _rails(root: Path) -> tuple[tuple[_Rail, ...], tuple[Looked, ...]]:
    old, new = _iio_rails(root), _hwmon_rails(root)
    at_input = _input_rails(root, {rail.name for rail in new})
    looked = (
        _looked("power rails, INA3221, JetPack 4", root / JETPACK4 / "*/iio:device*", old),
        _looked("power rails, INA3221, JetPack 5 and 6", root / JETPACK5 / "*/hwmon/hwmon*", new),
        _looked("power at the input, INA238", root / INPUT / "*/hwmon/hwmon*", at_input),
    )
    return (*(old or new), *at_input), looked


def _looked(what: str, where: Path, rails: list[_Rail]) -> Looked:
    names = ", ".join(rail.name for rail in rails)
    return Looked(what, str(where), f"{len(rails)} rails: {names}" if rails else None)


def _iio_rails(root: Path) -> list[_Rail]:
    rails = []
    for device in listing(root / JETPACK4, "*/iio:device*"):
        for channel in range(CHANNELS):
            name, _ = read_text(device / f"rail_name_{channel}")
            if name and name != "NC":
                rails.append(_Rail(name, str(device / f"in_power{channel}_input")))
    return rails


def _input_rails(root: Path, other_rails: Collection[str]) -> list[_Rail]:
    """The kernel's driver knows no names. Without a label, the only INA238 of an AGX Thor measures
    its input; what one on another carrier board measures is not known."""
    devices = listing(root / INPUT, "*/hwmon/hwmon*")
    model, _ = read_text(root / "proc/device-tree/model")
    is_thor = len(devices) == 1 and ("Thor" in (model or "") or THOR_RAIL in other_rails)
    rails = []
    for number, device in enumerate(devices):
        named = (read_text(device / name)[0] for name in ("in1_label", "power1_label", "label"))
        name = next(filter(None, named), None) or ("VIN" if is_thor else f"INA238.{number}")
        rails.append(_Rail(name, str(device / "power1_input"), 1e6))
    return rails


def _hwmon_rails(root: Path) -> list[_Rail]:
    """Channels 1 to 3; in7 is left out, because the kernel sums shunt voltages there."""
    rails = []
    for device in listing(root / JETPACK5, "*/hwmon/hwmon*"):
        for channel in range(1, CHANNELS + 1):
            name, _ = read_text(device / f"in{channel}_label")
            if name and name != "NC":
                volts, amperes = f"in{channel}_input", f"curr{channel}_input"
                rail = _Rail(name, None, 0, str(device / volts), str(device / amperes))
                rails.append(rail)
    return rails
