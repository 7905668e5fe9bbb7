"""What is wrong with this machine for this project, and what to do about each thing.

In: the root of a file system (a test passes a small tree), the environment, the state directory
and the registered models. Out: a list of `Check`, in the order a person would look. It changes
nothing, needs no daemon and no root. llama.cpp is asked in a short process of its own, because a
broken build must not take `doctor` with it. Facts about Jetson boards carry their source. Not here:
reading sensors (sensors/).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from edge_agent.llama.symbols import WANTED
from edge_agent.machine import usable_processors
from edge_agent.monitor.llama_probe import probe_llama_cpp
from edge_agent.monitor.sensors import (
    alarms,
    board,
    cpu,
    gpu,
    kernel_file,
    memory,
    power,
    rapl,
    thermal,
)
from edge_agent.monitor.sensors.readings import Looked
from edge_agent.store.store import ModelRow

Status = Literal["ok", "warn", "fail", "info"]

MIB = 1 << 20
LOW_AVAILABLE_BYTES = 700 * MIB
"""Gemma 3 270M needs 253 MB of weights, 100 MB of cache and buffers, and room to breathe."""
LOW_DISK_BYTES = 512 * MIB

# Processes of a running desktop; the 15-character limit is the kernel's (/proc/PID/comm).
DESKTOP = ("gdm3", "gdm-x-session", "gdm-wayland-ses", "lightdm", "sddm", "Xorg", "gnome-shell")
_L4T = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")


@dataclass(frozen=True)
class DoctorCheck:
    """One finding. `hint` says what to do and is empty only for ok and info."""

    name: str
    status: Status
    detail: str
    hint: str = ""


Probe = Callable[[Mapping[str, str]], str]
"""Prints llama.cpp's system info for an environment; raises OSError or RuntimeError."""


def examine(
    root: Path,
    environ: Mapping[str, str],
    state_dir: Path,
    models: Sequence[ModelRow] = (),
    probe: Probe | None = None,
) -> list[DoctorCheck]:
    """All findings. Reads below `root` and `state_dir` only, apart from the llama.cpp probe. A file
    that does not answer is left out after half a second."""

    def of_root(*checks: Callable[[Path], DoctorCheck]) -> list[DoctorCheck]:
        return [kernel_file.in_time(partial(check, root)) for check in checks]

    return [
        *of_root(check_board, check_l4t, check_cpu, check_memory, check_limits),
        *of_root(check_swap, check_desktop),
        check_llama_cpp(environ, is_jetson(root), probe or probe_llama_cpp),
        check_socket(state_dir),
        check_state_dir(state_dir),
        *check_models(state_dir, models),
        *of_root(check_power, check_thermal),
    ]


# ---- the board ---------------------------------------------------------------------------------


def read_text(path: Path) -> str | None:
    """The text of a small kernel file, without NULs; None when it cannot be read."""
    return kernel_file.read_text(path, 1 << 20)[0]


def is_jetson(root: Path) -> bool:
    return read_text(root / "etc/nv_tegra_release") is not None


def check_board(root: Path) -> DoctorCheck:
    """The device tree's model on ARM, the DMI product on a PC."""
    for place in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        if text := read_text(root / place):
            return DoctorCheck("board", "info", f"{text} (/{place})")
    return DoctorCheck("board", "info", "unknown: neither a device tree nor DMI names it")


def check_l4t(root: Path) -> DoctorCheck:
    """JetPack's base release; 36.4.7 by name because of its broken allocations."""
    text = read_text(root / "etc/nv_tegra_release")
    if text is None:
        return DoctorCheck("jetpack", "info", "not a Jetson (no /etc/nv_tegra_release)")
    match = _L4T.search(text)
    if match is None:
        return DoctorCheck(
            "jetpack", "warn", f"unreadable release: {text[:80]}", "report this line"
        )
    major, revision = int(match[1]), match[2]
    detail = f"L4T {major}.{revision} (JetPack {board.JETPACKS.get(match[1], '?')})"
    if (major, revision) == (36, "4.7"):
        # NvMapMemAllocInternalTagged error 12; ggml-org/llama.cpp issue 23732.
        return DoctorCheck(
            "jetpack",
            "warn",
            f"{detail}: GPU allocations above about 1.1 GB fail in this release",
            "upgrade to L4T 36.5 or later, or keep larger models on the CPU (--n-gpu-layers 0)",
        )
    return DoctorCheck("jetpack", "ok", detail)


def check_cpu(root: Path) -> DoctorCheck:
    """Processor count and kind, and cores that a power mode has switched off."""
    text = read_text(root / "proc/cpuinfo") or ""
    count = len(re.findall(r"^processor\s*:", text, re.MULTILINE))
    name = re.search(r"^(?:model name|Processor|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    kind = "aarch64" if "CPU implementer" in text else "x86_64" if "flags" in text else "?"
    detail = f"{count} processors, {kind}" + (f", {name[1].strip()}" if name else "")
    cpu = root / "sys/devices/system/cpu"
    online, present = read_text(cpu / "online"), read_text(cpu / "present")
    if online and present and online != present:
        return DoctorCheck(
            "cpu",
            "warn",
            f"{detail}; online {online} of {present}",
            "a power mode keeps cores off: sudo nvpmodel -q shows it, sudo nvpmodel -m 0 is full",
        )
    return DoctorCheck(
        "cpu", "ok" if count else "warn", detail, "" if count else "/proc is not readable"
    )


# ---- memory ------------------------------------------------------------------------------------


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name from /proc/meminfo, whose unit is KiB (man 5 proc)."""
    text = read_text(root / "proc/meminfo") or ""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(value) * 1024 for name, value in found}


def check_memory(root: Path) -> DoctorCheck:
    """MemAvailable is what admission compares with, or less by `check_limits`; CPU and GPU share it
    on a Jetson."""
    memory = _meminfo(root)
    if "MemAvailable" not in memory:
        return DoctorCheck("memory", "warn", "unknown", "/proc/meminfo has no MemAvailable line")
    available, total = memory["MemAvailable"], memory.get("MemTotal", 0)
    detail = f"{available // MIB} MiB available of {total // MIB} MiB"
    if available < LOW_AVAILABLE_BYTES:
        hint = "stop other programs (a desktop takes about 600 MB), or use a smaller model"
        return DoctorCheck("memory", "warn", detail, hint)
    return DoctorCheck("memory", "ok", detail)


def check_limits(root: Path) -> DoctorCheck:
    """The control groups of this process: a container's, or those of a systemd service."""
    groups = memory.groups_below(root)
    quota, path = groups.processors()
    group = groups.memory()
    if quota is None and group is None:
        return DoctorCheck("limits", "ok", "no control group limits processors or memory")
    found = []
    if quota is not None:
        count = usable_processors(root)
        found.append(f"{quota:g} processors by {path}: {count} thread{'s' * (count > 1)}")
    if group is None:
        return DoctorCheck("limits", "info", found[0])
    left, total = group.available_bytes // MIB, group.total_bytes // MIB
    found.append(f"{group.source} is {left} MiB of {total} MiB")
    if group.available_bytes < LOW_AVAILABLE_BYTES:
        hint = "give the container more memory (docker run --memory), or use a smaller model"
        return DoctorCheck("limits", "warn", "; ".join(found), hint)
    return DoctorCheck("limits", "info", "; ".join(found))


def check_swap(root: Path) -> DoctorCheck:
    """zram is compressed memory and harmless; swap on an SD card is slow and wears it out."""
    lines = (read_text(root / "proc/swaps") or "").splitlines()[1:]
    devices = [line.split()[0] for line in lines if line.split()]
    total = _meminfo(root).get("SwapTotal", 0) // MIB
    if not devices:
        return DoctorCheck(
            "swap",
            "info",
            "none: when memory is short, a process is killed at once",
            "on a 4 GB board zram helps: sudo systemctl enable --now nvzramconfig",
        )
    on_card = [name for name in devices if "zram" not in name]
    detail = f"{total} MiB on {', '.join(devices)}"
    if on_card and is_jetson(root):
        hint = "prefer zram: a model that swaps to an SD card answers at a crawl and wears it out"
        return DoctorCheck("swap", "warn", detail, hint)
    return DoctorCheck("swap", "ok", detail)


def check_desktop(root: Path) -> DoctorCheck:
    """Desktop processes by name in /proc; on a small board they cost about 600 MB."""
    running = set()
    for comm in (root / "proc").glob("[0-9]*/comm"):
        if (name := read_text(comm)) in DESKTOP:
            running.add(name)
    if not running:
        return DoctorCheck("desktop", "ok", "none runs")
    return DoctorCheck(
        "desktop",
        "warn" if is_jetson(root) else "info",
        f"{', '.join(sorted(running))} running",
        "free its memory with: sudo systemctl isolate multi-user.target"
        " (for good: set-default instead of isolate)",
    )


# ---- llama.cpp ---------------------------------------------------------------------------------


def check_llama_cpp(environ: Mapping[str, str], jetson: bool, probe: Probe) -> DoctorCheck:
    """Build and features; a CPU-only build is worth a word on a board with a GPU."""
    try:
        text = probe(environ)
    except (OSError, RuntimeError) as error:
        hint = f"pip install '{WANTED}' (in a clone: make venv), then try again"
        return DoctorCheck("llama.cpp", "fail", f"cannot be loaded: {error}", hint)
    detail = " | ".join(line.strip() for line in text.splitlines() if line.strip())
    if jetson and "CUDA" not in text:
        hint = "rebuild llama-cpp-python with CMAKE_ARGS=-DGGML_CUDA=ON (CUDA 11 or newer)"
        return DoctorCheck("llama.cpp", "warn", f"built without CUDA: {detail}", hint)
    return DoctorCheck("llama.cpp", "ok", detail)


# ---- our own files -----------------------------------------------------------------------------


def check_socket(state_dir: Path) -> DoctorCheck:
    """Does anybody answer on the socket that STATE/run.json names (else STATE/agent.sock)?"""
    path = _socket_path(state_dir)
    if not path.is_socket():
        return DoctorCheck(
            "daemon", "info", f"not running ({path} is not there)", "edge-agent serve"
        )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        try:
            connection.connect(os.fspath(path))
        except PermissionError:
            return DoctorCheck(
                "daemon", "fail", f"{path}: no permission", "join the group edge-agent"
            )
        except OSError as error:
            hint = "its daemon is gone or hangs: edge-agent serve replaces a stale socket"
            return DoctorCheck("daemon", "warn", f"{path} does not answer: {error.strerror}", hint)
    return DoctorCheck("daemon", "ok", f"answers on {path}")


def _socket_path(state_dir: Path) -> Path:
    try:
        run = json.loads(read_text(state_dir / "run.json") or "{}")
    except ValueError:
        run = {}
    named = run.get("socket") if isinstance(run, dict) else None
    return Path(named) if isinstance(named, str) else state_dir / "agent.sock"


def check_state_dir(state_dir: Path) -> DoctorCheck:
    """Can it be written, and is there room for a model?"""
    place = state_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        hint = "correct its owner and permissions, or choose another one with --state-dir"
        return DoctorCheck("state", "fail", f"{place} cannot be written", hint)
    free = shutil.disk_usage(place).free
    detail = f"{state_dir}: {free // MIB} MiB free"
    if free < LOW_DISK_BYTES:
        return DoctorCheck(
            "state", "warn", detail, "free some space: edge-agent rm NAME removes a model"
        )
    return DoctorCheck("state", "ok", detail)


def check_storage(error: str | None) -> DoctorCheck:
    """Whether the latest write to the database failed, as the store says (Store.last_error)."""
    if error is None:
        return DoctorCheck("database", "ok", "the last write did not fail")
    hint = "free some space or check the disk; the daemon goes on and tries again"
    return DoctorCheck("database", "fail", f"the last write failed: {error}", hint)


def check_models(state_dir: Path, models: Sequence[ModelRow]) -> list[DoctorCheck]:
    """Each registered file: there, and of the registered size (its hash is checked on load)."""
    if not models:
        hint = "edge-agent pull embedded:smollm2-135m"
        return [DoctorCheck("models", "info", "none registered", hint)]
    return [_check_model(state_dir, model) for model in models]


def _check_model(state_dir: Path, model: ModelRow) -> DoctorCheck:
    name, path = f"model {model.name}", state_dir / model.path
    hint = f"edge-agent rm {model.name}, then edge-agent pull {model.source}"
    try:
        size = path.stat().st_size
    except OSError as error:
        return DoctorCheck(name, "fail", f"{path}: {error.strerror}", hint)
    if size != model.size_bytes:
        return DoctorCheck(
            name, "fail", f"{path} has {size} bytes and not {model.size_bytes}", hint
        )
    return DoctorCheck(name, "ok", f"{model.description}, {size // MIB} MiB")


# ---- sensors -----------------------------------------------------------------------------------


def check_power(root: Path) -> DoctorCheck:
    """Whether answers will carry joules: a reading of the rail that feeds the whole board."""
    sensor = power.find(root)
    reading = sensor.read()
    rail = reading.total_rail
    if rail is None:
        denied = next((one.reason for one in sensor.looked if rapl.NOT_ALLOWED in one.reason), "")
        if denied:
            hint = "sudo chmod a+r on that file until the next boot"
            return DoctorCheck("power", "warn", denied, hint)
        reason = reading.reasons.get("total", "")
        return DoctorCheck(
            "power", "info", f"watts will be null: {reason}; the sensors list has the places"
        )
    if rail in reading.joules:
        return DoctorCheck("power", "ok", f"RAPL counter {rail} of {len(reading.joules)}")
    rails = ", ".join(
        f"{name} {'unreadable' if watts is None else f'{watts:.2f} W'}"
        for name, watts in reading.watts.items()
    )
    if reading.watts[rail] is None:
        return DoctorCheck("power", "warn", f"INA3221, {reading.reasons.get(f'watts.{rail}')}")
    return DoctorCheck("power", "ok", f"INA3221, total {rail}: {rails}")


def check_thermal(root: Path) -> DoctorCheck:
    reading = thermal.find(root).read()
    hottest = reading.hottest_celsius
    if hottest is None:
        return DoctorCheck("heat", "info", "temperatures will be null: no thermal zone can be read")
    unread = "".join(f"; {reason}" for reason in reading.reasons.values())
    n_zones = len(reading.zones_celsius)
    return DoctorCheck("heat", "ok", f"{n_zones} zones, hottest {hottest:.1f} C{unread}")


def sensors(root: Path) -> list[Looked]:
    """Every place a sensor was looked for, found or not."""
    found = (power, thermal, memory, cpu, gpu, alarms, board)

    def looked() -> list[Looked]:
        return [one for module in found for one in module.find(root).looked]

    return kernel_file.in_time(looked)
