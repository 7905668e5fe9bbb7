"""What a container may use, on recorded forms of /proc and /sys/fs/cgroup (SYNTHETIC values)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_agent import machine
from edge_agent.machine import (
    MemoryInfo,
    control_groups,
    default_threads,
    read_memory,
    usable_processors,
)

MIB = 1 << 20
MEMINFO = "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\n"
V2 = "30 23 0:26 {} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_CPU = (
    "33 30 0:30 {} /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:11 - cgroup cgroup rw,cpu,cpuacct\n"
)
V1_MEMORY = "36 30 0:33 {} /sys/fs/cgroup/memory ro,nosuid master:15 - cgroup cgroup rw,memory\n"
V1_SYSTEMD = "31 30 0:27 {} /sys/fs/cgroup/systemd ro master:9 - cgroup cgroup rw,name=systemd\n"
NO_V1_LIMIT = "9223372036854771712"
V1_LINES = "9:memory:{0}\n4:cpu,cpuacct:{0}\n1:name=systemd:{0}\n0::/\n"


def tree(root: Path, cgroup: str, mountinfo: str, files: Mapping[str, object]) -> Path:
    """A root with /proc/self and the files of /sys/fs/cgroup."""
    found = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo, "proc/meminfo": MEMINFO}
    for name, content in {**found, **{f"sys/fs/cgroup/{n}": c for n, c in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def stat(inactive_mib: int, active_mib: int = 0, prefix: str = "") -> str:
    counts = {"inactive_file": inactive_mib, "active_file": active_mib, "inactive_anon": 99}
    lines = [f"{name} {count * MIB}" for name, count in counts.items()]
    return "\n".join(["file 1", *(f"{prefix}{line}" for line in lines)])


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 6)


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("cpu_max", "threads"),
    [
        ("50000 100000", 1), ("100000 100000", 1), ("150000 100000", 2), ("1000 1000000", 1),
        ("600000 100000", 6), ("6400000 100000", 6), ("max 100000", 6), ("", 6), ("what", 6),
        ("² 9", 6),
    ],
)  # fmt: skip
def test_threads_are_the_quota_rounded_up_and_at_most_the_affinity(
    cpu_max: str, threads: int, tmp_path: Path
) -> None:
    root = tree(tmp_path, "0::/", V2.format("/"), {"cpu.max": cpu_max})
    assert usable_processors(root) == default_threads(root) == threads


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(("quota", "threads"), [("50000", 1), ("250000", 3), ("-1", 6), ("0", 6)])
def test_version_1_has_quota_and_period_in_two_files(
    quota: str, threads: int, tmp_path: Path
) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": quota, "cpu,cpuacct/cpu.cfs_period_us": 100000}
    mounts = V1_SYSTEMD.format("/") + V1_CPU.format("/")
    assert usable_processors(tree(tmp_path, V1_LINES.format("/"), mounts, files)) == threads


@pytest.mark.usefixtures("many_cores")
def test_the_smallest_quota_along_the_path_counts(tmp_path: Path) -> None:
    at = "agents.slice/edge-agent.service"
    files = {"cpu.max": "max 100000", f"{at}/cpu.max": "400000 100000"}
    files |= {"agents.slice/cpu.max": "200000 100000"}
    root = tree(tmp_path, f"0::/{at}", V2.format("/"), files)
    quota, path = control_groups(root).processors()
    assert quota == 2.0 and path == str(root / "sys/fs/cgroup/agents.slice/cpu.max")
    assert usable_processors(root) == 2


def test_page_cache_is_free_and_the_rest_is_not(tmp_path: Path) -> None:
    files = {
        "memory.max": 512 * MIB, "memory.current": 400 * MIB, "memory.stat": stat(100, 50),
    }  # fmt: skip
    root = tree(tmp_path, "0::/", V2.format("/"), files)
    memory = read_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (512 * MIB, 262 * MIB)
    assert memory.source == f"what {root}/sys/fs/cgroup/memory.max leaves"


def test_the_group_that_leaves_least_counts_and_never_less_than_nothing(tmp_path: Path) -> None:
    files = {
        "a/memory.max": 600 * MIB, "a/memory.current": 590 * MIB, "a/memory.stat": stat(10),
        "a/b/memory.max": 500 * MIB, "a/b/memory.current": 100 * MIB, "a/b/memory.stat": stat(0),
        "a/b/c/memory.max": "max", "a/b/c/memory.current": 100 * MIB,
    }  # fmt: skip
    root = tree(tmp_path, "0::/a/b/c", V2.format("/"), files)
    memory = read_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (500 * MIB, 20 * MIB)
    (root / "sys/fs/cgroup/a/memory.current").write_text(f"{900 * MIB}\n")
    assert read_memory(root).available_bytes == 0


def test_memory_high_is_a_limit_too(tmp_path: Path) -> None:
    files = {"memory.max": 900 * MIB, "memory.high": 300 * MIB, "memory.current": MIB}
    memory = read_memory(tree(tmp_path, "0::/", V2.format("/"), files))
    assert (memory.total_bytes, memory.available_bytes) == (300 * MIB, 299 * MIB)


def test_version_1_counts_the_page_cache_of_the_whole_subtree(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": 1024 * MIB, "memory/memory.usage_in_bytes": 800 * MIB,
        "memory/memory.stat": stat(1) + "\n" + stat(500, 100, "total_"),
    }  # fmt: skip
    mounts = V1_MEMORY.format("/docker/0123") + V1_SYSTEMD.format("/docker/0123")
    root = tree(tmp_path, V1_LINES.format("/docker/0123"), mounts, files)
    memory = read_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (1024 * MIB, 824 * MIB)


def test_a_container_without_a_namespace_finds_its_group_at_the_mount(tmp_path: Path) -> None:
    """JetPack 4's Docker: the path is the machine's, what is mounted is the container's group."""
    files = {"memory/memory.limit_in_bytes": 64 * MIB, "memory/memory.usage_in_bytes": 0}
    for start, path in (("/docker/a", "/docker/a"), ("/docker/a", "/docker/b"), ("/..", "/")):
        root = tree(tmp_path, V1_LINES.format(path), V1_MEMORY.format(start), files)
        assert read_memory(root).available_bytes == 64 * MIB


def test_a_nested_group_inside_a_container_is_found(tmp_path: Path) -> None:
    mounts = V1_MEMORY.format("/docker/a\\134x2d")
    files = {
        "memory/memory.limit_in_bytes": 64 * MIB,
        "memory/job/memory.limit_in_bytes": 32 * MIB,
    }
    root = tree(tmp_path, V1_LINES.format("/docker/a\\x2d/job"), mounts, files)
    assert read_memory(root).available_bytes == 32 * MIB


def test_both_versions_at_once_are_both_read(tmp_path: Path) -> None:
    unified = V2.format("/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    files = {
        "unified/x/memory.max": "max", "memory/y/memory.limit_in_bytes": 128 * MIB,
        "memory/memory.limit_in_bytes": NO_V1_LIMIT,
    }  # fmt: skip
    root = tree(tmp_path, "9:memory:/y\n0::/x", unified + V1_MEMORY.format("/"), files)
    assert read_memory(root).available_bytes == 128 * MIB


@pytest.mark.parametrize("limit", [NO_V1_LIMIT, "max", "", "-1", str(64 << 30)])
def test_no_limit_and_one_above_the_machine_are_what_the_machine_has(
    limit: str, tmp_path: Path
) -> None:
    files = {"memory.max": limit, "memory/memory.limit_in_bytes": limit}
    mounts = V2.format("/") + V1_MEMORY.format("/")
    root = tree(tmp_path, V1_LINES.format("/"), mounts, files)
    assert read_memory(root) == MemoryInfo(8192 * MIB, 6144 * MIB)


def test_without_mountinfo_the_usual_places_are_read(tmp_path: Path) -> None:
    files = {"memory.max": 256 * MIB, "memory.current": 0, "cpu.max": "50000 100000"}
    root = tree(tmp_path, "0::/", "", files)
    (root / "proc/self/mountinfo").unlink()
    assert read_memory(root).available_bytes == 256 * MIB and usable_processors(root) == 1
    (root / "proc/self/cgroup").unlink()
    assert read_memory(root).available_bytes == 256 * MIB and usable_processors(root) == 1


def test_a_machine_without_control_groups_is_the_machine(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    assert read_memory(tmp_path) == MemoryInfo(8192 * MIB, 6144 * MIB)
    assert control_groups(tmp_path).processors() == (None, "")


def test_this_machines_own_groups_can_be_read() -> None:
    assert 1 <= usable_processors() <= len(os.sched_getaffinity(0))
    assert 0 < read_memory().available_bytes <= read_memory().total_bytes
    assert machine.default_slots(MemoryInfo(512 * MIB, MIB)) == 2
