"""Whether the board runs on a battery: the kernel's power supply class.

Flows in: the root directory that stands for /. Flows out: True, False, or None when no supply says
anything. Most Jetsons have no such device; then nothing is known and nothing is assumed. Source:
Documentation/ABI/testing/sysfs-class-power (type, online, status).
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.monitor.sensors.kernel_file import listing, read_text

_SUPPLIES = "sys/class/power_supply"


def on_battery(root: Path) -> bool | None:
    """False when a mains, USB or wireless supply is online; None when there is no battery either.

    Otherwise True when a battery discharges or a supply is offline.
    """
    mains, batteries = [], []
    for supply in listing(root / _SUPPLIES, "*"):
        kind, scope, online, status = (
            read_text(supply / name)[0] for name in ("type", "scope", "online", "status")
        )
        if kind in ("Mains", "USB", "Wireless"):
            mains.append(online)
        elif kind == "Battery" and scope != "Device":
            batteries.append(status)
    if "1" in mains:
        return False
    if not batteries:
        return None
    return "Discharging" in batteries or "0" in mains
