"""Joules of a PC's processor package, from the counters of Intel's and AMD's RAPL.

RAPL is "running average power limit". Flows in: the root directory that stands for /. Flows out:
Power with the joules that each package has used since `find`, with the wrap-around of the kernel's
counter resolved (Documentation/power/powercap/powercap.rst: energy_uj, max_energy_range_uj). A
package is not the whole computer, and the rail's name says so. Sub-zones (core, uncore, dram) are
left out, because their package contains them. Not here: watts (monitor/board_sampler.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_agent.monitor.sensors.kernel_file import listing, read_number, read_text
from edge_agent.monitor.sensors.readings import Looked, Power

POWERCAP = "sys/class/powercap"
MAX_UJ = 1e15
WRAP_SHARE = 0.5
"""A counter that decreased counts as wrapped around when the step across its end is at most this
share of its range; otherwise it was reset and the step is unknown."""
NOT_ALLOWED = "root only since 2020 (CVE-2020-8694); sudo chmod a+r it, or run as root"


@dataclass
class _Domain:
    """One package, or the platform. `total_uj` is counted from the first reading on."""

    name: str
    path: str
    range_uj: float | None
    last_uj: float | None = None
    total_uj: float = 0.0

    def joules(self) -> tuple[float | None, str]:
        now_uj, reason = read_number(self.path, 0, MAX_UJ)
        if now_uj is None:
            return None, f"{reason} ({NOT_ALLOWED})" if "ermission" in reason else reason
        step_uj = 0.0 if self.last_uj is None else now_uj - self.last_uj
        if step_uj < 0:
            step_uj += self.range_uj or 0.0
            if not 0 <= step_uj <= WRAP_SHARE * (self.range_uj or 0.0):
                return None, f"{self.path} went back to {now_uj:.0f}"
        self.total_uj += step_uj
        self.last_uj = now_uj
        return self.total_uj / 1e6, ""


@dataclass
class Rapl:
    """All top-level domains."""

    domains: list[_Domain]
    looked: tuple[Looked, ...]

    @property
    def is_usable(self) -> bool:
        """Whether there is a counter and every counter may be read."""
        return any(one.found and not one.reason for one in self.looked)

    def read(self) -> Power:
        """Joules of each domain. The total is psys (the platform) where it exists, else the only
        package."""
        joules: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for domain in self.domains:
            joules[domain.name], reason = domain.joules()
            if reason:
                reasons[f"joules.{domain.name}"] = reason
        packages = [name for name in joules if name != "psys"]
        total = "psys" if "psys" in joules else packages[0] if len(packages) == 1 else None
        if total is None:
            reasons["total"] = "several packages and no psys counter" if packages else "no RAPL"
        return Power("rapl", total, {}, joules, reasons)


def find(root: Path) -> Rapl:
    """Every top-level domain below `root` (intel-rapl:N; AMD's driver uses the same names)."""
    domains = []
    for path in listing(root / POWERCAP, "intel-rapl:[0-9]*"):
        name, _ = read_text(path / "name")
        if path.name.count(":") == 1 and name:
            range_uj, _ = read_number(path / "max_energy_range_uj", 1, MAX_UJ)
            domains.append(_Domain(name, str(path / "energy_uj"), range_uj))
    return Rapl(domains, (_looked(root, domains),))


def _looked(root: Path, domains: list[_Domain]) -> Looked:
    what, where = "energy counters, RAPL", str(root / POWERCAP / "intel-rapl:*")
    if not domains:
        return Looked(what, where, None)
    reasons = [reason for _, reason in (domain.joules() for domain in domains) if reason]
    return Looked(what, where, ", ".join(domain.name for domain in domains), "; ".join(reasons))
