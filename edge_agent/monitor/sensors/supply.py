"""Whether the board runs on a battery: the kernel's power supply class.

Flows in: a root. Flows out: True, False, or None where no supply says anything (most Jetsons have
no such device: then nothing is known, and nothing is assumed). Source:
Documentation/ABI/testing/sysfs-class-power (type, online, status).
"""

from __future__ import annotations

from pathlib import Path

_SUPPLIES = "sys/class/power_supply"


def on_battery(root: Path) -> bool | None:
    """A mains or USB supply that is online: False. None is online, and a battery is there: True."""
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
