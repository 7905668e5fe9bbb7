"""Which machine this is and in which mode, which every benchmark document must state.

Flows in: the root directory that stands for /. Flows out: Board, from the device tree's model,
/etc/nv_tegra_release, nvpmodel's own status and configuration files, os-release, cpuinfo and
cpufreq. No command is run, because `nvpmodel -q` needs root. Not here: values that change from
second to second (the other sensors).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.monitor.sensors.kernel_file import listing, read_text
from edge_agent.monitor.sensors.readings import Board, Looked

_L4T = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
JETPACKS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
"""L4T's major release -> JetPack's (developer.nvidia.com/embedded/jetpack-archive)."""
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_STATUS = re.compile(r"pmode:(\d+)")
DMI = "sys/class/dmi/id/product_name"
ARM_PARTS = {
    "0xd07": "Cortex-A57", "0x003": "Denver 2", "0x004": "Carmel", "0xd42": "Cortex-A78AE",
    "0xd83": "Neoverse-V3AE",
}  # fmt: skip
"""MIDR part numbers of the Jetsons' cores (arch/arm64/include/asm/cputype.h)."""
_RELEASE = 65_536
"""Bytes read at most of files that are longer than a sysfs value (nvpmodel.conf, cpuinfo)."""


@dataclass
class BoardSensor:
    """Reads every file anew at each `read`; a change of the power mode is therefore seen."""

    root: Path
    looked: tuple[Looked, ...] = field(default=())

    def read(self) -> Board:
        reasons: dict[str, str] = {}
        model, reason = self._model()
        if model is None:
            reasons["model"] = reason
        release, reason = self._l4t()
        if release is None:
            reasons["l4t"] = reason
        mode, reason = self._power_mode()
        if mode is None:
            reasons["power_mode"] = reason
        cpu, cores = self._cpu()
        governors = {read_text(at)[0] for at in self._policies("scaling_governor")} - {None}
        return Board(
            model=model,
            l4t=release,
            jetpack=JETPACKS.get((release or "").partition(".")[0]),
            kernel=read_text(self.root / "proc/sys/kernel/osrelease")[0],
            os=self._os(),
            cpu=cpu,
            cores=cores,
            power_mode=mode,
            governor=", ".join(sorted(str(one) for one in governors)) or None,
            reasons=reasons,
        )

    def _model(self) -> tuple[str | None, str]:
        model, reason = read_text(self.root / "proc/device-tree/model")
        return (model, "") if model else (read_text(self.root / DMI)[0], reason)

    def _l4t(self) -> tuple[str | None, str]:
        text, reason = read_text(self.root / "etc/nv_tegra_release")
        match = _L4T.search(text or "")
        return (f"{match[1]}.{match[2]}", "") if match else (None, reason or "not an L4T release")

    def _power_mode(self) -> tuple[str | None, str]:
        """The active mode as "ID NAME", or None and the reason.

        nvpmodel keeps the active ID in its status file and the names in its configuration.
        """
        status, reason = read_text(self.root / "var/lib/nvpmodel/status")
        match = _STATUS.search(status or "")
        if match is None:
            return None, reason or f"nvpmodel's status is {status!r}"
        number = str(int(match[1]))
        config, _ = read_text(self.root / "etc/nvpmodel.conf", _RELEASE)
        names = {found[1]: found[2] for found in _MODE.finditer(config or "")}
        return f"{number} {names[number]}" if number in names else number, ""

    def _os(self) -> str | None:
        text, _ = read_text(self.root / "etc/os-release")
        match = re.search(r'^PRETTY_NAME="?([^"\n]+)', text or "", re.MULTILINE)
        return match[1] if match else None

    def _cpu(self) -> tuple[str | None, int | None]:
        text, _ = read_text(self.root / "proc/cpuinfo", _RELEASE)
        cores = len(re.findall(r"^processor\s*:", text or "", re.MULTILINE))
        named = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text or "", re.MULTILINE)
        part = re.search(r"^CPU part\s*:\s*(\S+)$", text or "", re.MULTILINE)
        arm = ARM_PARTS.get(part[1], f"ARM part {part[1]}") if part else None
        return arm or (named[1].strip() if named else None), cores or None

    def _policies(self, name: str) -> list[Path]:
        return listing(self.root / "sys/devices/system/cpu/cpufreq", f"policy*/{name}")


def find(root: Path) -> BoardSensor:
    """Look for the files that identify a Jetson below `root`; the PC's files need no search."""
    places = ("proc/device-tree/model", "etc/nv_tegra_release", "var/lib/nvpmodel/status")
    looked = tuple(Looked("board", str(root / at), read_text(root / at)[0]) for at in places)
    return BoardSensor(root, looked)
