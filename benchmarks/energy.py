"""How far are the joules from the truth? Synthetic power whose integral is known, board by board.

The signal is written into a copy of a board's sensor tree, in the units and steps of its chip. The
real sensor reads it at jittered ticks of which some are missing, the real history keeps it, and the
real energy_of integrates it. Time is simulated, so this takes seconds and needs no quiet machine.
Exit status 1 when the worst error is 1 % or more. Not covered: the error of the chip itself (an
INA3221 is good for about 1 %, and its converter averages).

    .venv/bin/python benchmarks/energy.py --seeds 50     # last line: one JSON document
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from edge_agent.measured import Energy, Span
from edge_agent.monitor.board_sampler import GAP_PERIODS, MIN_GAP_S
from edge_agent.monitor.energy import Trace, energy_of
from edge_agent.monitor.power_history import PowerHistory
from edge_agent.monitor.sensors import power
from edge_agent.monitor.sensors.readings import Power

TARGET = 0.01
HZ = 20.0
JITTER_S = 0.002
LATE_SHARE, LATE_S = 0.05, 0.03
MISSING_SHARE = 0.02
BEGIN_S, FIRST_TOKEN_S, END_S, SEEN_S = 100.0, 101.5, 110.0, 110.2
RAPL_RANGE_UJ = 30_000_000
"""So small that the counter wraps around within a request."""
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "sysfs"
IIO = "sys/bus/i2c/drivers/ina3221x"
HWMON = "sys/bus/i2c/drivers/ina3221"
RAPL = "sys/class/powercap/intel-rapl:0"
SUPPLY_MV, STEP_MA = 5000, 8
"""An INA3221 with a shunt of 5 milliohms has steps of 8 mA (data sheet: 40 microvolts)."""


class Signal(NamedTuple):
    """Watts at an instant, and their exact integral since 0."""

    watts: Callable[[float], float]
    joules: Callable[[float], float]


def _sine(mean_w: float, swing_w: float, hz: float) -> Signal:
    w = 2 * math.pi * hz
    return Signal(
        lambda t: mean_w + swing_w * math.sin(w * t),
        lambda t: mean_w * t + swing_w * (1 - math.cos(w * t)) / w,
    )


def _bursts(low_w: float, high_w: float, period_s: float) -> Signal:
    """High for the first half of each period."""

    def joules(t: float) -> float:
        whole, rest = divmod(t, period_s)
        high_s = whole * period_s / 2 + min(rest, period_s / 2)
        return low_w * t + (high_w - low_w) * high_s

    return Signal(lambda t: high_w if t % period_s < period_s / 2 else low_w, joules)


SIGNALS = {
    "constant": Signal(lambda t: 5.0, lambda t: 5.0 * t),
    "ramp": Signal(lambda t: 2.0 + 0.04 * t, lambda t: 2.0 * t + 0.02 * t * t),
    "sine": _sine(6.0, 2.0, 0.7),
    "bursts": _bursts(4.0, 9.0, 3.7),
}


def _number(path: Path, value: float) -> None:
    path.write_text(f"{value:.0f}\n")


def _write_iio(root: Path, signal: Signal, t: float) -> None:
    device = next((root / IIO).glob("*/iio:device*"))
    rail = next(p for p in device.glob("rail_name_*") if p.read_text().strip() == "POM_5V_IN")
    _number(device / f"in_power{rail.name[-1]}_input", signal.watts(t) * 1e3)


def _write_hwmon(root: Path, signal: Signal, t: float) -> None:
    device = next((root / HWMON).glob("*/hwmon/hwmon*"))
    label = next(p for p in device.glob("in*_label") if p.read_text().strip() == "VDD_IN")
    channel = label.name[2]
    milliamperes = signal.watts(t) / SUPPLY_MV * 1e6
    _number(device / f"in{channel}_input", SUPPLY_MV)
    _number(device / f"curr{channel}_input", round(milliamperes / STEP_MA) * STEP_MA)


def _write_rapl(root: Path, signal: Signal, t: float) -> None:
    _number(root / RAPL / "energy_uj", signal.joules(t) * 1e6 % RAPL_RANGE_UJ)


def writer(root: Path) -> Callable[[Path, Signal, float], None] | None:
    """The function that writes this board's power files; None for a board without power files."""
    if (root / IIO).exists():
        return _write_iio
    if (root / HWMON).exists():
        return _write_hwmon
    if (root / RAPL).exists():
        _number(root / RAPL / "max_energy_range_uj", RAPL_RANGE_UJ)
        return _write_rapl
    return None


def boards() -> list[str]:
    """Fixture trees that measure power."""
    found = [path.name for path in FIXTURES.iterdir() if path.is_dir()]
    return sorted(
        name for name in found if any((FIXTURES / name / at).exists() for at in (IIO, HWMON, RAPL))
    )


def ticks(seed: int) -> Iterator[float]:
    """20 instants a second, none on time, some late, some missing."""
    draw = random.Random(seed)
    for number in range(int((SEEN_S - BEGIN_S + 1.0) * HZ)):
        late_s = LATE_S * draw.random() if draw.random() < LATE_SHARE else 0.0
        if draw.random() >= MISSING_SHARE:
            yield BEGIN_S - 1.0 + number / HZ + abs(draw.gauss(0.0, JITTER_S)) + late_s


def add(history: PowerHistory, at_s: float, reading: Power) -> None:
    """Add a reading as the sampler does."""
    rail = reading.total_rail or ""
    watts, joules = reading.watts.get(rail), reading.joules.get(rail)
    if joules is not None:
        history.add_joules(at_s, joules, is_idle=False)
    elif watts is not None:
        history.add_watts(at_s, watts, is_idle=False)


def trace_of(root: Path, signal: Signal, seed: int) -> Trace:
    """The history after the signal has run on the board below `root`."""
    write = writer(root)
    if write is None:
        raise ValueError(f"{root} has no power sensor")
    write(root, signal, BEGIN_S - 2.0)
    sensor = power.find(root)
    history = PowerHistory(HZ, max(GAP_PERIODS / HZ, MIN_GAP_S), MIN_GAP_S)
    reading = sensor.read()
    for at_s in sorted(ticks(seed)):
        write(root, signal, at_s)
        reading = sensor.read()
        add(history, at_s, reading)
    return history.trace(BEGIN_S, END_S, reading.source, reading.total_rail)


def measured(trace: Trace) -> Energy:
    """The energy of a request that ran alone: 1.5 s of prefill, 8.5 s of decode."""
    spans = [
        Span(BEGIN_S, FIRST_TOKEN_S, "prefill", 1.0, 100),
        Span(FIRST_TOKEN_S, END_S, "decode", 1.0, 50),
    ]
    return energy_of(spans, trace, None, 50)


def error_of(root: Path, signal: Signal, seed: int) -> float:
    """Relative error of total_j, with its sign. Raises ValueError when nothing was measured."""
    energy = measured(trace_of(root, signal, seed))
    if energy.total_j is None:
        raise ValueError(f"nothing measured below {root}: {energy.reason}")
    return energy.total_j / (signal.joules(END_S) - signal.joules(BEGIN_S)) - 1.0


def run(seeds: int) -> dict[str, Any]:
    rows = []
    print(f"{'board':28} {'signal':10} {'median':>9} {'worst':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        for board in boards():
            root = Path(scratch) / board
            shutil.copytree(FIXTURES / board, root)
            for name, signal in SIGNALS.items():
                errors = [error_of(root, signal, seed) for seed in range(seeds)]
                worst = max(map(abs, errors))
                print(f"{board:28} {name:10} {median(errors):9.4%} {worst:9.4%}")
                rows.append(
                    {"board": board, "signal": name, "median": median(errors), "worst": worst}
                )
    return {"rows": rows, "worst": max(row["worst"] for row in rows), "target": TARGET}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    result = run(parser.parse_args().seeds)
    print(json.dumps(result))
    return 0 if result["worst"] < TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
