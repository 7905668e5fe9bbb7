"""The Jetson's GPU: load and clock, from its devfreq device.

Flows in: the root directory that stands for /. Flows out: Gpu. The file `load` holds thousandths
(NVIDIA's nvgpu driver), the clocks are in hertz (Documentation/ABI/testing/sysfs-class-devfreq).
Not here: discrete GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_agent.monitor.sensors.kernel_file import listing, read_number
from edge_agent.monitor.sensors.readings import Gpu, Looked

DEVFREQ = "sys/class/devfreq"
NAMES = ("gpu", "ga10b", "gv11b", "gp10b", "gm20b", "gpu-gpc-0")
"""Ends of the device's name: the chips of Orin, Xavier, TX2 and Nano, or just "gpu"; the last is
Thor's, whose driver shows clocks and no load."""
MAX_HZ = 1e10


@dataclass
class GpuSensor:
    """`device` is None when there is no GPU; `where` is the directory that was searched."""

    device: Path | None
    where: str
    looked: tuple[Looked, ...]

    def read(self) -> Gpu:
        if self.device is None:
            return Gpu(reasons={"load": f"no GPU below {self.where}"})
        load, load_reason = read_number(self.device / "device/load", 0, 1000)
        clock_hz, clock_reason = read_number(self.device / "cur_freq", 0, MAX_HZ)
        max_clock_hz, _ = read_number(self.device / "max_freq", 0, MAX_HZ)
        reasons = {"load": load_reason, "clock_hz": clock_reason}
        return Gpu(
            self.device.name,
            None if load is None else load / 1000,
            clock_hz,
            max_clock_hz,
            {name: reason for name, reason in reasons.items() if reason},
        )


def find(root: Path) -> GpuSensor:
    """Look for the GPU's devfreq device below `root`."""
    where = root / DEVFREQ
    devices = [path for path in listing(where, "*") if path.name.rpartition(".")[2] in NAMES]
    device = devices[0] if devices else None
    looked = Looked("GPU", str(where / "*"), device.name if device else None)
    return GpuSensor(device, str(where), (looked,))
