"""Whether the board runs on a battery: the kernel's power supply class.

Flows in: the root directory that stands for /. Flows out: True, False, or None when no supply says
anything. Most Jetsons have no such device; then nothing is known and nothing is assumed. Source:
Documentation/ABI/testing/sysfs-class-power (type, online, status).
"""

from __future__ import annotations

from pathlib import Path

_SUPPLIES = "sys/class/power_supply"


def on_battery(root: Path) -> bool | None:
    """False when a mains, USB or wireless supply is online; None when there is no battery either.

    Otherwise True when a battery discharges or a supply is offline.
    """
    mains, batteries = [], []
    for supply in sorted((root / _SUPPLIES).glob("*")):
        kind = _text(supply / "type")
        if kind in ("Mains", "USB", "Wireless"):
            mains.append(_text(supply / "online"))
        elif kind == "Battery" and _text(supply / "scope") != "Device":
            batteries.append(_text(supply / "status"))
    if "1" in mains:
        return False
    if not batteries:
        return None
    return "Discharging" in batteries or "0" in mains


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
