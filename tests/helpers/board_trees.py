"""SYNTHETIC Jetson boards: the power files of each, in the form in which its kernel gives them.

Names, addresses and units are those of NVIDIA's developer guides and of the kernel's documentation
(hwmon/ina3221, hwmon/ina238); the values are made up. None was recorded on a board.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from board_writer import put

Rails = Sequence[tuple[str, int, int]]
"""Name, millivolts, milliamperes."""


def write_model(root: Path, name: str) -> None:
    path = root / "proc/device-tree/model"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"NVIDIA Jetson {name}\0")


def write_iio(root: Path, address: str, number: int, rails: Rails) -> None:
    """An INA3221 under JetPack 4."""
    device = root / f"sys/bus/i2c/drivers/ina3221x/{address}/iio:device{number}"
    device.mkdir(parents=True)
    put(device / "name", "ina3221x")
    for channel, (name, millivolts, milliamperes) in enumerate(rails):
        put(device / f"rail_name_{channel}", name)
        put(device / f"in_voltage{channel}_input", millivolts)
        put(device / f"in_current{channel}_input", milliamperes)
        put(device / f"in_power{channel}_input", millivolts * milliamperes // 1000)


def write_hwmon(root: Path, address: str, number: int, rails: Rails) -> None:
    """An INA3221 under JetPack 5 to 7. Channels 4 to 6 are shunt voltages, 7 is their sum."""
    device = root / f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{number}"
    device.mkdir(parents=True)
    put(device / "name", "ina3221")
    for channel, (name, millivolts, milliamperes) in enumerate(rails, 1):
        put(device / f"in{channel}_label", name)
        put(device / f"in{channel}_enable", 0 if name == "NC" else 1)
        put(device / f"in{channel}_input", millivolts)
        put(device / f"curr{channel}_input", milliamperes)
        put(device / f"curr{channel}_max_alarm", 0)
        put(device / f"in{channel + 3}_input", milliamperes // 100)
    put(device / "in7_label", "sum of shunt voltages")
    put(device / "in7_input", 123)


def write_ina238(root: Path, address: str, number: int, microwatts: int, label: str = "") -> Path:
    """An INA238; the kernel's driver gives no label. Returns its directory."""
    device = root / f"sys/bus/i2c/drivers/ina238/{address}/hwmon/hwmon{number}"
    device.mkdir(parents=True)
    put(device / "name", "ina238")
    put(device / "in0_input", 4)
    put(device / "in1_input", 20_000)
    put(device / "curr1_input", microwatts // 20_000)
    put(device / "power1_input", microwatts)
    put(device / "temp1_input", 41_000)
    if label:
        put(device / "in1_label", label)
    return device


def nano(root: Path) -> None:
    write_model(root, "Nano Developer Kit")
    rails = (("POM_5V_IN", 5000, 488), ("POM_5V_GPU", 5000, 8), ("POM_5V_CPU", 5000, 82))
    write_iio(root, "6-0040", 0, rails)


def tx2(root: Path) -> None:
    write_model(root, "TX2 Developer Kit")
    soc = (("VDD_SYS_GPU", 19_000, 90), ("VDD_SYS_SOC", 19_000, 60), ("VDD_4V0_WIFI", 4800, 4))
    module = (("VDD_IN", 19_000, 400), ("VDD_SYS_CPU", 19_000, 70), ("VDD_SYS_DDR", 19_000, 61))
    carrier = (("VDD_MUX", 19_000, 450), ("VDD_5V0_IO_SYS", 5000, 20), ("VDD_3V3_SYS", 3300, 9))
    for number, rails in enumerate((soc, module, carrier)):
        write_iio(root, f"0-004{number}", number, rails)


def xavier_nx(root: Path) -> None:
    write_model(root, "Xavier NX Developer Kit")
    rails = (("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 240))
    write_hwmon(root, "7-0040", 4, rails)


AGX_XAVIER = (
    (("GPU", 19_000, 300), ("CPU", 19_000, 200), ("SOC", 19_000, 150)),
    (("CV", 19_000, 10), ("VDDRQ", 19_000, 40), ("SYS5V", 5000, 500)),
)


def agx_xavier_jetpack4(root: Path) -> None:
    write_model(root, "AGX Xavier Developer Kit")
    for number, rails in enumerate(AGX_XAVIER):
        write_iio(root, f"1-004{number}", number, rails)


def agx_xavier_jetpack5(root: Path) -> None:
    write_model(root, "AGX Xavier Developer Kit")
    for number, rails in enumerate(AGX_XAVIER):
        write_hwmon(root, f"1-004{number}", number, rails)


def orin_nano(root: Path) -> None:
    write_model(root, "Orin Nano Developer Kit")
    rails = (("VDD_IN", 5000, 1100), ("VDD_CPU_GPU_CV", 5000, 250), ("VDD_SOC", 5000, 290))
    write_hwmon(root, "1-0040", 1, rails)


def orin_nx(root: Path) -> None:
    orin_nano(root)
    write_model(root, "Orin NX Developer Kit")


def agx_orin(root: Path) -> None:
    write_model(root, "AGX Orin Developer Kit")
    first = (("VDD_GPU_SOC", 19_000, 1500), ("VDD_CPU_CV", 19_000, 400), ("VIN_SYS_5V0", 5000, 900))
    write_hwmon(root, "1-0040", 3, first)
    write_hwmon(root, "1-0041", 4, (("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 19_000, 60), ("NC", 0, 0)))


def agx_thor(root: Path) -> None:
    """At full power; its GPU alone takes 98 W."""
    write_model(root, "AGX Thor Developer Kit")
    rails = (
        ("VDD_GPU", 20_000, 4900), ("VDD_CPU_SOC_MSS", 20_000, 1100), ("VIN_SYS_5V0", 5000, 1400)
    )  # fmt: skip
    write_hwmon(root, "2-0040", 2, rails)
    write_ina238(root, "2-0044", 3, 131_200_000)
