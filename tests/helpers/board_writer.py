"""A FAKE board whose power and temperature change while others read its files.

Files are replaced by rename, so that a reader never sees half a value, which it never does in sysfs
either.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

BOARDS = Path(__file__).resolve().parents[1] / "fixtures" / "sysfs"
STEP_S = 0.001
Signal = Callable[[float], float]


def copied_board(name: str, root: Path) -> Path:
    """Copy the fixture tree `name` to `root` and return `root`."""
    shutil.copytree(BOARDS / name, root)
    return root


class BoardWriter:
    """Writes watts(t) of the total rail and celsius(t) of every zone; t is in monotonic seconds."""

    def __init__(
        self, tree: str, root: Path, watts: Signal, celsius: Signal, period_s: float = 0.02
    ) -> None:
        self.root = copied_board(tree, root)
        self._watts, self._celsius, self._period_s = watts, celsius, period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began_s = time.monotonic()
        self._counted_j = 0.0
        self._counted_until_s = self._began_s

    def __enter__(self) -> BoardWriter:
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def joules(self, start_s: float, end_s: float) -> float:
        """Integral of the power signal, by the midpoint rule in fine steps."""
        n = max(1, round((end_s - start_s) / STEP_S))
        width = (end_s - start_s) / n
        return sum(self._watts(start_s + (i + 0.5) * width) for i in range(n)) * width

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self.write()

    def write(self) -> None:
        """Write every file once, with the values of this moment."""
        now_s = time.monotonic()
        watts = self._watts(now_s)
        for path in self.root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/in_power0_input"):
            put(path, round(1000 * watts))
        for path in self.root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr1_input"):
            millivolts = float((path.parent / "in1_input").read_text())
            put(path, round(1e6 * watts / millivolts))
        self._counted_j += self.joules(self._counted_until_s, now_s)
        self._counted_until_s = now_s
        for path in self.root.glob("sys/class/powercap/intel-rapl:0/energy_uj"):
            put(path, 1_000_000 + round(1e6 * self._counted_j))
        for path in self.root.glob("sys/devices/virtual/thermal/thermal_zone*/temp"):
            if (path.parent / "type").read_text() != "PMIC-Die\n":
                put(path, round(1000 * self._celsius(now_s)))


def put(path: Path, value: object) -> None:
    """Replace a file's content, in the form in which the kernel shows it."""
    temp = path.with_name(f".{path.name}.new")
    temp.write_text(f"{value}\n")
    os.replace(temp, path)
