"""Every sensor on the fixture trees, and on broken ones."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest
from board_writer import BOARDS, copied_board, put

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
    assert "directory" in kernel_file.read_number(tmp_path, 0, 1)[1]


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
    for place in ("ina3221x", "ina3221/", "intel-rapl"):
        assert any(place in one.where and one.found is None for one in sensor.looked)
    assert len(sensor.looked) == 3 and all(one.found is None for one in sensor.looked)


def test_source_that_was_asked_for_is_the_only_one_tried(pc: Path, nano: Path) -> None:
    assert power.find(pc, "ina3221").read().source == "none"
    assert power.find(nano, "rapl").read().total_rail is None
    assert power.find(nano, "none").read().reasons["total"].endswith("--power-source none")


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
