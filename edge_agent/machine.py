"""What this process may use of the machine: processors and memory, a container's limits included.

Ground file: it imports nothing of ours. Why it exists: in a container the kernel still shows the
whole machine in /proc. As many threads as cores under half a core's quota stop each other, and a
model that fits the machine is killed at the container's limit. Flows in: the root directory that
stands for /, control groups of version 1 and 2 below it (Documentation/admin-guide/cgroup-v2.rst,
cgroup-v1/memory.rst, scheduler/sched-bwc.rst). A group's parents limit it too: the smallest value
along the path counts. Flows out: numbers. Not here: whether a model fits (engine/memory_check.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
NO_LIMIT_BYTES = 1 << 60
"""Version 1 shows "no limit" as a number close to 2^63."""
_MOUNTS = (
    ("", "/", "/sys/fs/cgroup"), ("cpu", "/", "/sys/fs/cgroup/cpu"),
    ("cpu", "/", "/sys/fs/cgroup/cpu,cpuacct"), ("memory", "/", "/sys/fs/cgroup/memory"),
)  # fmt: skip
"""Controllers, root and place of each hierarchy where /proc/self/mountinfo cannot be read."""
_SMALL_BOARD_BYTES = 4_500_000_000

Read = Callable[[Path], "str | None"]


def read_file(path: Path) -> str | None:
    """The text of a small file of the kernel; None when it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes that this process and its neighbours have in all, and that are free or can be freed."""

    total_bytes: int
    available_bytes: int
    source: str = "MemAvailable"
    """What `available_bytes` is: the kernel's figure, or what a control group leaves."""


@dataclass(frozen=True)
class ControlGroups:
    """The groups of this process that can be seen, its own before their parents."""

    directories: tuple[Path, ...]
    read: Read = read_file

    def processors(self) -> tuple[float | None, str]:
        """Processors' worth of time by the smallest quota, and its file; None: no quota."""
        quotas = [found for at in self.directories if (found := self._quota(at))]
        return min(quotas) if quotas else (None, "")

    def memory(self) -> MemoryInfo | None:
        """The smallest limit, and the least that one leaves; None: no limit.

        Page cache counts as free, as it does in MemAvailable: the kernel drops it when a group
        reaches its limit.
        """
        found = [(at, *limit) for at in self.directories if (limit := self._memory_limit(at))]
        if not found:
            return None
        left = [(limit - self._kept(at), name) for at, limit, name in found]
        least, name = min(left)
        return MemoryInfo(min(limit for _, limit, _ in found), max(0, least), f"what {name} leaves")

    def _number(self, path: Path) -> int | None:
        text = self.read(path) or ""
        return int(text) if text.isdecimal() else None

    def _quota(self, group: Path) -> tuple[float, str] | None:
        text = self.read(group / "cpu.max")
        path = group / ("cpu.cfs_quota_us" if text is None else "cpu.max")
        if text is None:
            text = f"{self.read(path)} {self.read(group / 'cpu.cfs_period_us')}"
        numbers = [int(word) for word in text.split() if word.isdecimal()]
        return (numbers[0] / numbers[1], str(path)) if len(numbers) == 2 and all(numbers) else None

    def _memory_limit(self, group: Path) -> tuple[int, str] | None:
        names = ("memory.max", "memory.high", "memory.limit_in_bytes")
        paths = [group / name for name in names]
        limits = [(n, str(at)) for at in paths if (n := self._number(at)) is not None]
        return min((one for one in limits if one[0] < NO_LIMIT_BYTES), default=None)

    def _kept(self, group: Path) -> int:
        """Bytes that the group uses and cannot drop: all but page cache. Files in memory (tmpfs)
        are not page cache here: the kernel counts them with the anonymous pages."""
        used = self._number(group / "memory.current")
        if used is None:
            used = self._number(group / "memory.usage_in_bytes") or 0
        stat = dict(re.findall(r"^(\w+) (\d+)$", self.read(group / "memory.stat") or "", re.M))
        prefix = "total_" if "total_inactive_file" in stat else ""
        cache = (int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
        return max(0, used - sum(cache))


def control_groups(root: Path = ROOT, read: Read = read_file) -> ControlGroups:
    """The groups of this process by /proc/self/cgroup, where they are mounted below `root`."""
    mounts = list(_mounts(read(root / "proc/self/mountinfo") or "")) or _MOUNTS
    listed = re.findall(r"^\d+:(.*?):(.+)$", read(root / "proc/self/cgroup") or "", re.M)
    found: list[Path] = []
    for controllers, path in listed or [("", "/"), ("cpu", "/"), ("memory", "/")]:
        wanted = set(controllers.split(","))
        for mounted, start, place in mounts:
            if wanted & set(mounted.split(",")) & {"", "cpu", "memory"}:
                found += _upwards(root / place.lstrip("/"), os.path.relpath(path, start))
    return ControlGroups(tuple(dict.fromkeys(found)), read)


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, str]]:
    """Controllers ("" for version 2), root and mount point of each hierarchy (proc(5))."""
    for line in mountinfo.split("\n"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            start, place = (
                re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)
                for field in fields[3:5]
            )
            yield ("" if kind[0] == "cgroup2" else kind[2]), start, place


def _upwards(mount: Path, inside: str) -> list[Path]:
    """The group at `inside` and its parents up to the mount. A path that leads out of the mount is
    another namespace's: what is mounted is then the process's own group."""
    if inside.startswith(".."):
        return [mount]
    path = Path(inside)
    return [mount / one for one in (path, *path.parents)]


def usable_processors(root: Path = ROOT) -> int:
    """As many threads as can run at the same time: by affinity, and by the quota, rounded up."""
    allowed = len(os.sched_getaffinity(0))
    quota, _ = control_groups(root).processors()
    return allowed if quota is None else max(1, min(allowed, -int(-quota // 1)))


def default_threads(root: Path = ROOT) -> int:
    """One thread per usable physical core: hyper-threads slow matrix products down."""
    import psutil  # late: the front process does without it

    usable = usable_processors(root)
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def read_memory(root: Path = ROOT) -> MemoryInfo:
    """MemTotal and MemAvailable below `root` (the file counts KiB), or less where a control group
    limits this process. Raises OSError without /proc/meminfo."""
    text = (root / "proc/meminfo").read_text()
    kib = dict(re.findall(r"^(\w+): +(\d+) kB$", text, re.M))
    found = MemoryInfo(int(kib["MemTotal"]) * 1024, int(kib["MemAvailable"]) * 1024)
    return within(found, control_groups(root).memory())


def within(machine: MemoryInfo, group: MemoryInfo | None) -> MemoryInfo:
    """The smaller of what the machine has and what a control group allows."""
    if group is None:
        return machine
    least = min((machine, group), key=lambda one: one.available_bytes)
    total = min(machine.total_bytes, group.total_bytes)
    return MemoryInfo(total, least.available_bytes, least.source)


def default_slots(memory: MemoryInfo) -> int:
    """2 slots on a board with 4 GB, otherwise 4."""
    return 2 if memory.total_bytes < _SMALL_BOARD_BYTES else 4
