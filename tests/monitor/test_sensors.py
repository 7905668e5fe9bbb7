"""Every sensor on the fixture trees, and on broken ones."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import board_trees
import pytest
from board_writer import BOARDS, copied_board, put
from hanging_file import LIMIT_S, hanging
from waiting import until

from edge_agent.monitor.sensors import (
    alarms,
    board,
    cpu,
    gpu,
    jtop,
    kernel_file,
    memory,
    power,
    rapl,
    thermal,
)

NANO, ORIN5, ORIN6 = (
    "jetson-nano_jetpack4",
    "jetson-orin-nano_jetpack5",
    "jetson-orin-nano_jetpack6",
)
PC, NOTHING = "pc_ubuntu24", "nothing"
IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
HWMON = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
ENERGY = "sys/class/powercap/intel-rapl:0/energy_uj"
RANGE_UJ = 65_532_610_987


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return copied_board(NANO, tmp_path / "nano")


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    return copied_board(ORIN6, tmp_path / "orin")


@pytest.fixture
def pc(tmp_path: Path) -> Path:
    return copied_board(PC, tmp_path / "pc")


# ---- one file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"garbage\n", "is not a number"),
        (b"65535\n", "outside"),
        (b"-3\n", "outside"),
        (b"nan\n", "outside"),
        (b"\xff\xfe\n", "is not a number"),
    ],
)
def test_a_broken_file_is_none_with_path_and_reason(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "in1_input"
    path.write_bytes(content)
    value, reason = kernel_file.read_number(path, 0, 32_767)
    assert value is None and str(path) in reason and why in reason


def test_a_file_that_cannot_be_opened_or_read_is_none(tmp_path: Path) -> None:
    assert "No such file" in kernel_file.read_number(tmp_path / "absent", 0, 1)[1]
    assert "not a regular file" in kernel_file.read_number(tmp_path, 0, 1)[1]


# ---- power -----------------------------------------------------------------------------------


def test_jetpack_4_gives_milliwatts_by_rail() -> None:
    reading = power.find(BOARDS / NANO).read()
    assert reading.source == "ina3221" and reading.total_rail == "POM_5V_IN"
    assert set(reading.watts) == {"POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"}
    assert reading.watts["POM_5V_CPU"] == pytest.approx(0.412)


@pytest.mark.parametrize("tree", [ORIN5, ORIN6])
def test_jetpack_5_and_6_give_volts_times_amperes_without_the_sum_channel(tree: str) -> None:
    reading = power.find(BOARDS / tree).read()
    assert reading.total_rail == "VDD_IN"
    assert set(reading.watts) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    millivolts, milliamperes = (
        int((BOARDS / tree / HWMON / name).read_text()) for name in ("in1_input", "curr1_input")
    )
    assert reading.watts["VDD_IN"] == pytest.approx(millivolts * milliamperes / 1e6)


def test_unused_channel_is_no_rail(orin: Path) -> None:
    put(orin / HWMON / "in3_label", "NC")
    assert "NC" not in power.find(orin).read().watts


def test_total_is_never_a_sum_of_rails(orin: Path) -> None:
    put(orin / HWMON / "in1_label", "VDD_MYSTERY")
    reading = power.find(orin).read()
    assert reading.total_rail is None and "whole board" in reading.reasons["total"]


def test_lost_converter_is_none_and_the_other_rails_go_on(nano: Path) -> None:
    put(nano / IIO / "in_power1_input", 65535)
    reading = power.find(nano).read()
    assert reading.watts["POM_5V_GPU"] is None
    assert "65535" in reading.reasons["watts.POM_5V_GPU"]
    assert reading.watts["POM_5V_IN"] is not None


def test_file_that_vanishes_later_is_none_with_its_path(nano: Path) -> None:
    sensor = power.find(nano)
    (nano / IIO / "in_power0_input").unlink()
    reading = sensor.read()
    assert reading.watts["POM_5V_IN"] is None
    assert "in_power0_input: No such file" in reading.reasons["watts.POM_5V_IN"]


def test_nothing_found_names_every_place_looked_at() -> None:
    sensor = power.find(BOARDS / NOTHING)
    reading = sensor.read()
    assert reading.source == "none" and reading.total_rail is None
    for place in ("ina3221x", "ina3221/", "ina238", "intel-rapl"):
        assert any(place in one.where and one.found is None for one in sensor.looked)
    assert len(sensor.looked) == 4 and all(one.found is None for one in sensor.looked)


def test_source_that_was_asked_for_is_the_only_one_tried(pc: Path, nano: Path) -> None:
    assert power.find(pc, "ina3221").read().source == "none"
    assert power.find(nano, "rapl").read().total_rail is None
    assert power.find(nano, "none").read().reasons["total"].endswith("--power-source none")


# ---- which rail is the whole board ------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "total", "watts"),
    [
        (board_trees.nano, "POM_5V_IN", 2.44),
        (board_trees.tx2, "VDD_IN", 7.6),
        (board_trees.xavier_nx, "VDD_IN", 6.0),
        (board_trees.orin_nano, "VDD_IN", 5.5),
        (board_trees.orin_nx, "VDD_IN", 5.5),
        (board_trees.agx_thor, "VIN", 131.2),
    ],
)
def test_a_board_that_measures_its_input_has_that_as_its_total(
    write: Callable[[Path], None], total: str, watts: float, tmp_path: Path
) -> None:
    write(tmp_path)
    reading = power.find(tmp_path).read()
    assert (reading.source, reading.total_rail, reading.reasons) == ("ina3221", total, {})
    assert reading.watts[total] == pytest.approx(watts)
    assert None not in reading.watts.values() and "NC" not in reading.watts


@pytest.mark.parametrize(
    "write",
    [board_trees.agx_xavier_jetpack4, board_trees.agx_xavier_jetpack5, board_trees.agx_orin],
)
def test_a_board_that_does_not_has_no_total_and_says_so(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path)
    reading = power.find(tmp_path).read()
    assert reading.total_rail is None and len(reading.watts) >= 4
    assert "feeds the whole board" in reading.reasons["total"]
    assert all(name in reading.reasons["total"] for name in reading.watts)


def test_an_ina238_is_the_input_of_a_thor_or_where_its_label_says_so(tmp_path: Path) -> None:
    thor = tmp_path / "thor"
    board_trees.agx_thor(thor)
    (thor / "proc/device-tree/model").unlink()
    assert power.find(thor).read().total_rail == "VIN", "its other rails tell which board it is"
    board_trees.write_ina238(thor, "2-0045", 5, 4_000_000)
    reading = power.find(thor).read()
    assert reading.total_rail is None and reading.watts["INA238.1"] == 4.0, "two, both unnamed"
    orin = tmp_path / "orin"
    board_trees.agx_orin(orin)
    device = board_trees.write_ina238(orin, "8-0044", 9, 61_000_000)
    assert power.find(orin).read().total_rail is None, "of a carrier board that nobody knows"
    put(device / "in1_label", "VIN")
    assert power.find(orin).read().total_rail == "VIN"
    put(device / "power1_input", 700_000_000)
    reading = power.find(orin).read()
    assert reading.watts["VIN"] is None and "outside" in reading.reasons["watts.VIN"]


def test_a_rail_of_an_agx_may_take_more_than_60_watts(tmp_path: Path) -> None:
    board_trees.write_iio(tmp_path, "1-0040", 0, (("VDD_IN", 19_000, 3300), ("GPU", 19_000, 3200)))
    assert power.find(tmp_path).read().watts == {"VDD_IN": 62.7, "GPU": 60.8}
    board_trees.write_hwmon(tmp_path / "b", "1-0040", 1, (("VDD_IN", 32_000, 59_000),))
    assert power.find(tmp_path / "b").read().watts == {"VDD_IN": None}, "1,888 W are none"


def test_the_gpu_of_a_thor_has_clocks_and_no_load(tmp_path: Path) -> None:
    device = tmp_path / "sys/class/devfreq/gpu-gpc-0"
    device.mkdir(parents=True)
    put(device / "cur_freq", 1_575_000_000)
    put(device / "max_freq", 1_575_000_000)
    reading = gpu.find(tmp_path).read()
    assert (reading.name, reading.load, reading.clock_hz) == ("gpu-gpc-0", None, 1.575e9)
    assert "device/load: No such file" in reading.reasons["load"]


# ---- RAPL ------------------------------------------------------------------------------------


def test_counter_counts_from_find_and_leaves_subzones_out(pc: Path) -> None:
    sensor = rapl.find(pc)
    put(pc / ENERGY, 123456789 + 2_500_000)
    reading = sensor.read()
    assert reading.joules == {"package-0": pytest.approx(2.5)}
    assert reading.total_rail == "package-0" and reading.watts == {}


def test_counter_that_wraps_around_goes_on(pc: Path) -> None:
    put(pc / ENERGY, RANGE_UJ - 1_000_000)
    sensor = rapl.find(pc)
    put(pc / ENERGY, 2_000_000)
    assert sensor.read().joules["package-0"] == pytest.approx(3.0)


def test_step_back_is_no_wrap_of_a_whole_range(pc: Path) -> None:
    put(pc / ENERGY, 9_000_000)
    sensor = rapl.find(pc)
    put(pc / ENERGY, 8_999_000)
    reading = sensor.read()
    assert reading.joules["package-0"] is None
    assert "went back" in reading.reasons["joules.package-0"]
    put(pc / ENERGY, 10_000_000)
    assert sensor.read().joules["package-0"] == pytest.approx(1.0)


def test_several_packages_have_no_total(pc: Path) -> None:
    second = pc / "sys/class/powercap/intel-rapl:1"
    second.mkdir()
    put(second / "name", "package-1")
    put(second / "energy_uj", 5)
    reading = rapl.find(pc).read()
    assert reading.total_rail is None and "several packages" in reading.reasons["total"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_counter_for_root_only_says_so(pc: Path) -> None:
    (pc / ENERGY).chmod(0)
    sensor = power.find(pc)
    assert sensor.read().reasons == {"total": "no power sensor but RAPL, which only root may read"}
    assert any("chmod a+r" in one.reason and ENERGY in one.reason for one in sensor.looked)


def test_a_counter_that_cannot_be_read_is_no_power_sensor(pc: Path) -> None:
    (pc / ENERGY).unlink()
    sensor = power.find(pc)
    assert sensor.read().reasons == {"total": "no power sensor that can be read"}
    assert any(ENERGY in one.reason for one in sensor.looked)


def test_the_reason_beside_every_answer_is_short_and_the_places_are_listed(tmp_path: Path) -> None:
    for source, reason in (("auto", "no power sensor found"), ("ina3221", "no INA3221 found")):
        sensor = power.find(tmp_path, source)  # type: ignore[arg-type]
        assert sensor.read().reasons == {"total": reason}
        assert str(tmp_path / power.JETPACK4) in sensor.looked[0].where


# ---- jtop ------------------------------------------------------------------------------------


def test_jtop_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    reading = power.find(BOARDS / NANO, "jtop").read()
    assert reading.total_rail is None and "not installed" in reading.reasons["total"]


class FakeClient:
    """Stands for jtop's client; the service is not here."""

    def __init__(self, interval: float) -> None:
        self.power = {
            "rail": {"POM_5V_GPU": {"power": 300, "avg": 999}},
            "tot": {"name": "POM_5V_IN", "power": 2440, "avg": 999},
        }

    def start(self) -> None:
        if self.power is None:
            raise RuntimeError("Mismatch version")

    def ok(self) -> bool:
        return True


def fake_jtop(monkeypatch: pytest.MonkeyPatch, client: type) -> None:
    module = types.ModuleType("jtop")
    module.jtop = client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jtop", module)


def test_jtop_gives_its_power_and_never_its_avg(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_jtop(monkeypatch, FakeClient)
    reading = jtop.find(Path("/")).read()
    assert reading.watts == {"POM_5V_GPU": 0.3, "POM_5V_IN": 2.44}
    assert jtop._watts({"power": 131_200}) == 131.2 and jtop._watts({"power": 501_000}) is None
    assert reading.total_rail == "POM_5V_IN"


def test_jtop_total_that_is_a_sum_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Summing(FakeClient):
        def __init__(self, interval: float) -> None:
            super().__init__(interval)
            self.power["tot"]["name"] = "ALL"

    fake_jtop(monkeypatch, Summing)
    reading = jtop.find(Path("/")).read()
    assert reading.total_rail is None and "sum" in reading.reasons["total"]


def test_jtop_of_another_version_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mismatched(FakeClient):
        def start(self) -> None:
            raise RuntimeError("Mismatch version jtop service")

    fake_jtop(monkeypatch, Mismatched)
    assert "Mismatch version" in jtop.find(Path("/")).read().reasons["total"]


# ---- the others ------------------------------------------------------------------------------


def test_zones_are_celsius_and_the_constant_one_is_left_out() -> None:
    reading = thermal.find(BOARDS / NANO).read()
    assert reading.zones_celsius["CPU-therm"] == 34.5
    assert "PMIC-Die" not in reading.zones_celsius and reading.hottest_celsius == 39.0
    assert reading.critical_celsius["CPU-therm"] == 97.0


def test_zone_that_is_off_is_none_and_not_the_coldest(nano: Path) -> None:
    put(nano / "sys/devices/virtual/thermal/thermal_zone1/temp", -256000)
    reading = thermal.find(nano).read()
    assert reading.zones_celsius["CPU-therm"] is None
    assert "-256000" in reading.reasons["zones_celsius.CPU-therm"]


def test_memory_in_bytes_with_swap_zram_and_pressure() -> None:
    reading = memory.find(BOARDS / ORIN6).read()
    assert reading.total_bytes and reading.available_bytes and reading.psi_full_percent == 0.0
    assert reading.zram_used_bytes == 6 * 12288
    old = memory.find(BOARDS / NANO).read()
    assert old.psi_some_percent is None and "4.20" in old.reasons["psi_some_percent"]


def test_broken_meminfo_is_none_with_a_reason(nano: Path) -> None:
    (nano / "proc/meminfo").write_text("MemTotal: lots\n\nMemFree\n")
    reading = memory.find(nano).read()
    assert reading.available_bytes is None
    assert "MemAvailable" in reading.reasons["available_bytes"]


def test_a_containers_limit_is_its_memory_and_page_cache_is_available(orin: Path) -> None:
    group = orin / "sys/fs/cgroup"
    group.mkdir(parents=True)
    put(group / "memory.max", 1 << 30)
    put(group / "memory.current", 900 << 20)
    put(group / "memory.stat", f"anon 1\ninactive_file {600 << 20}\nactive_file {100 << 20}")
    reading = memory.find(orin).read()
    assert (reading.total_bytes, reading.available_bytes) == (1 << 30, 824 << 20)


def test_rss_anon_is_that_of_a_real_process() -> None:
    size = memory.rss_anon_bytes(BOARDS / NOTHING, os.getpid())
    assert size is not None and size > 1 << 20
    assert memory.rss_anon_bytes(BOARDS / NOTHING, 2**30) is None


def test_processor_time_and_clocks() -> None:
    reading = cpu.find(BOARDS / NANO).read()
    assert reading.clock_hz == 1.479e9 and reading.busy_s is not None
    assert 0 < reading.busy_s < (reading.total_s or 0)
    assert cpu.find(BOARDS / NOTHING).read().reasons.keys() >= {"busy_s", "clock_hz"}


def test_gpu_load_is_a_share_of_one() -> None:
    reading = gpu.find(BOARDS / NANO).read()
    assert (reading.name, reading.load, reading.clock_hz) == ("57000000.gpu", 0.213, 921_600_000)
    assert "no GPU" in gpu.find(BOARDS / PC).read().reasons["load"]


def test_alarms_name_the_rail_or_the_cause_and_fans_are_none(orin: Path) -> None:
    assert alarms.find(orin).read().active == ()
    put(orin / HWMON / "curr1_crit_alarm", 1)
    put(orin / "sys/devices/virtual/thermal/cooling_device1/cur_state", 2)
    put(orin / "sys/class/hwmon/hwmon2/oc2_event_cnt", 7)
    reading = alarms.find(orin).read()
    assert reading.active == ("over_current:VDD_IN", "thermal:cpufreq-cpu0")
    assert reading.counts["over_current:oc2"] == 7


def test_board_facts_come_without_nul_and_with_the_modes_name() -> None:
    nano, orin = board.find(BOARDS / NANO).read(), board.find(BOARDS / ORIN5).read()
    assert nano.model == "NVIDIA Jetson Nano Developer Kit" and nano.jetpack == "4"
    assert nano.power_mode == "0 MAXN" and nano.os == "Ubuntu 18.04.6 LTS"
    assert (orin.l4t, orin.jetpack, orin.power_mode) == ("35.5.0", "5", "1 25W")
    assert orin.kernel == "5.10.192-tegra" and orin.governor == "schedutil"


def test_machine_with_nothing_gives_reasons_everywhere() -> None:
    root = BOARDS / NOTHING
    for reading in (
        power.find(root).read(),
        thermal.find(root).read(),
        memory.find(root).read(),
        gpu.find(root).read(),
    ):
        assert reading.reasons
    assert board.find(root).read().model is None and "model" in board.find(root).read().reasons


# ---- a file that does not answer --------------------------------------------------------------

TEMP = "sys/devices/virtual/thermal/thermal_zone0/temp"
POLICY = "sys/devices/system/cpu/cpufreq"


def read_of(root: Path, find: Callable[[Path], Any]) -> Any:
    return kernel_file.in_time(lambda: find(root).read())


@pytest.mark.parametrize(
    ("find", "name", "is_there"),
    [
        (thermal.find, TEMP, lambda read: read.hottest_celsius == 47.25),
        (thermal.find, TEMP.replace("temp", "type"), lambda read: len(read.zones_celsius) == 3),
        (power.find, f"{HWMON}/curr2_input", lambda read: read.watts["VDD_IN"] is not None),
        (power.find, f"{HWMON}/in1_input", lambda read: read.watts["VDD_SOC"] is not None),
        (power.find, f"{HWMON}/in2_label", lambda read: read.total_rail == "VDD_IN"),
        (gpu.find, "sys/class/devfreq/17000000.gpu/device/load", lambda read: read.clock_hz),
        (gpu.find, "sys/class/devfreq/17000000.gpu/cur_freq", lambda read: read.load is not None),
        (cpu.find, f"{POLICY}/policy0/scaling_cur_freq", lambda read: read.clock_hz),
        (cpu.find, "proc/stat", lambda read: read.clock_hz),
        (memory.find, "sys/block/zram0/mm_stat", lambda read: read.available_bytes),
        (memory.find, "proc/pressure/memory", lambda read: read.available_bytes),
        (alarms.find, f"{HWMON}/curr1_crit_alarm", lambda read: read.counts),
        (board.find, "etc/nv_tegra_release", lambda read: read.model),
    ],
)
def test_only_the_file_that_does_not_answer_is_left_out(
    find: Callable[[Path], Any], name: str, is_there: Callable[[Any], Any], orin: Path
) -> None:
    with hanging(orin / name):
        assert is_there(read_of(orin, find))
        assert list(kernel_file.left_out(orin)) == [str(orin / name)]
        began_s = time.monotonic()
        assert is_there(find(orin).read()), "the file is not tried again"
        assert time.monotonic() - began_s < LIMIT_S


def test_several_files_that_do_not_answer_cost_their_own_values_only(orin: Path) -> None:
    zones = sorted(orin.glob("sys/devices/virtual/thermal/thermal_zone[12]/temp"))
    with hanging(*zones):
        reading = read_of(orin, thermal.find)
    missing = [name for name, celsius in reading.zones_celsius.items() if celsius is None]
    assert len(missing) == 2 and reading.hottest_celsius == 47.25
    for name in missing:
        assert "did not return within" in reading.reasons[f"zones_celsius.{name}"]


def test_a_file_that_answers_late_is_tried_again_after_a_minute(
    orin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = orin / TEMP
    with hanging(path) as goes_on:
        assert "did not return" in kernel_file.in_time(lambda: kernel_file.read_text(path))[1]
        monkeypatch.setattr(kernel_file, "RETRY_AFTER_S", 0.0)
        kernel_file._left_out[str(path)].retry_at_s = 0.0
        assert kernel_file.read_text(path)[0] is None, "a thread hangs in it still"
        goes_on.set()
        until(lambda: not kernel_file._left_out[str(path)].is_stuck)
        assert kernel_file.read_text(path) == ("47250", "")
    assert kernel_file.left_out(orin) == {}


def test_a_named_pipe_and_a_directory_are_reasons_at_once(orin: Path) -> None:
    path = orin / TEMP
    path.unlink()
    os.mkfifo(path)
    reading = thermal.find(orin).read()
    assert reading.zones_celsius["cpu-thermal"] is None and reading.hottest_celsius is not None
    assert "not a regular file" in reading.reasons["zones_celsius.cpu-thermal"]


def test_work_in_time_gives_its_result_or_its_error() -> None:
    assert kernel_file.in_time(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        kernel_file.in_time(lambda: 1 // 0)


def test_a_long_file_of_procfs_is_read_to_its_end() -> None:
    text, _ = kernel_file.read_text("/proc/self/smaps", 1 << 20)
    assert text is not None and len(text) > 8192
