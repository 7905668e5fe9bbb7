"""Memory: available, swap, compressed swap, memory pressure, and one process's own pages.

Flows in: the root directory that stands for /. Flows out: Memory, in bytes, from proc(5),
Documentation/accounting/psi.rst and Documentation/admin-guide/blockdev/zram.rst; in a container,
what its limit leaves (machine.py). Not here: how much a model will need (engine/memory_check.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_agent.machine import ControlGroups, MemoryInfo, control_groups, within
from edge_agent.monitor.sensors.kernel_file import listing, read_text
from edge_agent.monitor.sensors.readings import Looked, Memory

_PSI = re.compile(r"^(some|full) avg10=([0-9.]+)", re.MULTILINE)
_FIELDS = {"MemTotal", "MemAvailable", "SwapTotal", "SwapFree"}
MEM_USED_TOTAL = 2
"""Column of mm_stat (from 0): memory of the compressed pages, the allocator's waste included."""


@dataclass
class MemorySensor:
    """`zram` are the mm_stat files of all zram devices."""

    root: Path
    zram: tuple[Path, ...]
    groups: ControlGroups
    looked: tuple[Looked, ...]

    def read(self) -> Memory:
        reasons: dict[str, str] = {}
        fields, reason = meminfo(self.root)
        if reason:
            reasons["available_bytes"] = reason
        total_bytes, available_bytes = fields.get("MemTotal"), fields.get("MemAvailable")
        group = self.groups.memory()
        if group is not None and total_bytes is not None and available_bytes is not None:
            now = within(MemoryInfo(total_bytes, available_bytes), group)
            total_bytes, available_bytes = now.total_bytes, now.available_bytes
        some, full = self._pressure(reasons)
        total, free = fields.get("SwapTotal"), fields.get("SwapFree")
        return Memory(
            total_bytes=total_bytes,
            available_bytes=available_bytes,
            swap_total_bytes=total,
            swap_used_bytes=None if total is None or free is None else total - free,
            zram_used_bytes=self._zram_bytes(reasons),
            psi_some_percent=some,
            psi_full_percent=full,
            reasons=reasons,
        )

    def _pressure(self, reasons: dict[str, str]) -> tuple[float | None, float | None]:
        text, reason = read_text(self.root / "proc/pressure/memory")
        if text is None:
            reasons["psi_some_percent"] = f"{reason} (kernels before 4.20 and L4T 4.9 have none)"
            return None, None
        found = {kind: float(value) for kind, value in _PSI.findall(text)}
        return found.get("some"), found.get("full")

    def _zram_bytes(self, reasons: dict[str, str]) -> int | None:
        if not self.zram:
            reasons["zram_used_bytes"] = "no zram device"
            return None
        used = 0
        for path in self.zram:
            text, reason = read_text(path)
            columns = (text or "").split()
            if len(columns) <= MEM_USED_TOTAL or not columns[MEM_USED_TOTAL].isdigit():
                reasons["zram_used_bytes"] = reason or f"{path}: {text!r} has no third column"
                return None
            used += int(columns[MEM_USED_TOTAL])
        return used


def find(root: Path) -> MemorySensor:
    """Look for memory files and zram devices below `root`."""
    zram = tuple(listing(root / "sys/block", "zram*/mm_stat"))
    places = (
        ("memory", root / "proc/meminfo"),
        ("memory pressure (PSI)", root / "proc/pressure/memory"),
    )
    looked = [
        Looked(what, str(at), "readable" if read_text(at)[0] else None) for what, at in places
    ]
    found = f"{len(zram)} devices" if zram else None
    looked.append(Looked("compressed swap", str(root / "sys/block/zram*/mm_stat"), found))
    return MemorySensor(root, zram, groups_below(root), tuple(looked))


def groups_below(root: Path) -> ControlGroups:
    """The control groups of this process, read as every other file of the kernel."""
    return control_groups(root, lambda path: read_text(path, 1 << 16)[0])


def meminfo(root: Path) -> tuple[dict[str, int], str]:
    """Fields of /proc/meminfo in bytes (the kernel's kB are 1024 bytes), and "" or why one is
    missing."""
    text, reason = read_text(root / "proc/meminfo", 16_384)
    fields = {}
    for line in (text or "").splitlines():
        name, _, value = line.partition(":")
        number = value.split()[0] if value.split() else ""
        if name in _FIELDS and number.isdigit():
            fields[name] = int(number) * 1024
    if text is not None and "MemAvailable" not in fields:
        reason = f"{root / 'proc/meminfo'} has no MemAvailable"
    return fields, reason


def rss_anon_bytes(root: Path, pid: int) -> int | None:
    """RssAnon of a process: its own pages, without the pages that are mapped from the model's file.

    None when there is no such process. When `root` is a test's directory without this process, the
    machine's own /proc is read.
    """
    for base in (root, Path("/")):
        text, _ = read_text(base / f"proc/{pid}/status")
        for line in (text or "").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None
