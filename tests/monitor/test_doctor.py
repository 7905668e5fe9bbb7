import json
import shutil
import socket
from pathlib import Path

import pytest
from board_writer import copied_board
from hanging_file import hanging

from edge_agent.monitor.doctor import (
    DoctorCheck,
    check_llama_cpp,
    examine,
    sensors,
)
from edge_agent.monitor.llama_probe import probe_llama_cpp
from edge_agent.store.store import ModelRow

TREES = Path(__file__).resolve().parents[1] / "fixtures" / "sysfs"
NANO, ORIN, PC = "jetson-nano_jetpack4", "jetson-orin-nano_jetpack6", "pc_ubuntu24"


def findings(tree, state_dir: Path, models=(), build: str = "b1\nCPU : NEON = 1") -> dict:
    root = tree if isinstance(tree, Path) else TREES / tree
    checks = examine(root, {}, state_dir, models, probe=lambda environ: build)
    return {check.name: check for check in checks}


def row(path: Path, size: int) -> ModelRow:
    return ModelRow(
        name="m",
        sha256="0" * 64,
        path=str(path),
        size_bytes=size,
        source="embedded:smollm2-135m",
        architecture="llama",
        description="llama 135M Q4_1",
        n_params=1,
        n_ctx_train=1,
        quantization="Q4_1",
        chat_template=None,
        added_at=0.0,
    )


def test_every_board_is_named_from_its_own_tree(tmp_path):
    names = {tree: findings(tree, tmp_path)["board"].detail for tree in (NANO, ORIN, PC)}
    assert names[NANO].startswith("NVIDIA Jetson Nano Developer Kit (")
    assert "Orin Nano" in names[ORIN]
    assert "ThinkCentre" in names[PC]


def test_release_with_broken_allocations_is_named_with_the_way_out(tmp_path):
    check = findings(ORIN, tmp_path)["jetpack"]
    assert check.status == "warn"
    assert "36.4.7" in check.detail and "1.1 GB" in check.detail
    assert "36.5" in check.hint


def test_other_releases_are_fine_and_a_pc_is_no_jetson(tmp_path):
    assert findings(NANO, tmp_path)["jetpack"] == DoctorCheck(
        "jetpack", "ok", "L4T 32.7.6 (JetPack 4)"
    )
    assert findings(PC, tmp_path)["jetpack"].status == "info"


def test_fixed_release_is_not_warned_about(tmp_path):
    tree = tmp_path / "root"
    shutil.copytree(TREES / ORIN, tree)
    release = tree / "etc/nv_tegra_release"
    release.write_text(release.read_text().replace("4.7", "5.0"))
    assert findings(tree, tmp_path)["jetpack"].status == "ok"


def test_cores_that_a_power_mode_switched_off_are_reported(tmp_path):
    check = findings(NANO, tmp_path)["cpu"]
    assert check.status == "warn" and "0-1 of 0-3" in check.detail and "nvpmodel" in check.hint
    assert findings(ORIN, tmp_path)["cpu"].status == "ok"


def test_little_memory_and_a_desktop_are_reported_together(tmp_path):
    nano, pc = findings(NANO, tmp_path), findings(PC, tmp_path)
    assert nano["memory"].status == "warn" and "500 MiB available" in nano["memory"].detail
    assert nano["desktop"].status == "warn" and "Xorg, gnome-shell" in nano["desktop"].detail
    assert pc["memory"].status == "ok" and pc["desktop"].status == "ok"


def test_zram_is_fine_but_swap_on_a_card_is_not(tmp_path):
    assert findings(NANO, tmp_path)["swap"].status == "ok"
    assert findings(ORIN, tmp_path)["swap"].status == "warn"
    assert findings(PC, tmp_path)["swap"].detail.startswith("none")


@pytest.mark.parametrize(
    ("tree", "source"),
    [(NANO, "INA3221, total POM_5V_IN"), (ORIN, "INA3221, total VDD_IN"), (PC, "RAPL")],
)
def test_power_sensor_of_each_generation_is_found(tmp_path, tree, source):
    check = findings(tree, tmp_path)["power"]
    assert check.status == "ok" and check.detail.startswith(source)


def test_missing_power_sensor_is_reported_and_the_places_are_listed(tmp_path):
    check = findings(tmp_path / "empty", tmp_path)["power"]
    assert check.status == "info" and "null: no power sensor found" in check.detail
    assert "/sys" not in check.detail, "each place has a line of its own"
    assert any("/intel-rapl" in one.where for one in sensors(tmp_path / "empty"))


def test_every_place_a_sensor_was_looked_for_is_listed(tmp_path):
    from cli_runner import cli

    root = str(TREES / NANO)
    done = cli("doctor", "--sensors-root", root, "--json", state_dir=tmp_path)
    looked = {one["what"]: one["found"] for one in done.document()["sensors"]}
    assert "POM_5V_IN" in looked["power rails, INA3221, JetPack 4"]
    assert looked["power rails, INA3221, JetPack 5 and 6"] is None
    assert "CPU-therm" in looked["thermal zones"]
    board = {one["name"]: one["detail"] for one in done.document()["checks"]}["board"]
    assert "Jetson Nano" in board


def test_empty_root_raises_nothing(tmp_path):
    assert all(check.detail for check in findings(tmp_path / "empty", tmp_path).values())


def test_cpu_only_build_is_a_warning_on_a_jetson_only(tmp_path):
    assert findings(NANO, tmp_path)["llama.cpp"].status == "warn"
    assert findings(PC, tmp_path)["llama.cpp"].status == "ok"
    cuda = findings(ORIN, tmp_path, build="b1\nCUDA : ARCHS = 870")["llama.cpp"]
    assert cuda.status == "ok"


def test_llama_cpp_that_kills_its_process_is_a_finding_and_not_our_death(tmp_path):
    broken = tmp_path / "llama_cpp"
    broken.mkdir()
    (broken / "__init__.py").write_text("")
    (broken / "llama_cpp.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGABRT)")
    environ = {"PYTHONPATH": str(tmp_path)}
    check = check_llama_cpp(environ, jetson=False, probe=probe_llama_cpp)
    assert check.status == "fail" and "signal 6" in check.detail and check.hint


def test_llama_cpp_that_lacks_a_function_is_named(tmp_path):
    other = tmp_path / "llama_cpp"
    other.mkdir()
    (other / "llama_cpp.py").write_text("")
    (other / "__init__.py").write_text("")
    check = check_llama_cpp({"PYTHONPATH": str(tmp_path)}, jetson=False, probe=probe_llama_cpp)
    assert check.status == "fail" and "does not have ggml_abort_callback" in check.detail
    assert "Error" not in check.detail and "pip install 'llama-cpp-python>=" in check.hint


def test_real_llama_cpp_tells_its_features(tmp_path):
    check = check_llama_cpp({}, jetson=False, probe=probe_llama_cpp)
    assert check.status == "ok" and "CPU" in check.detail


def test_socket_states_are_told_apart(tmp_path):
    assert findings(PC, tmp_path)["daemon"].status == "info"
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        (tmp_path / "run.json").write_text(json.dumps({"socket": str(path)}))
        assert findings(PC, tmp_path)["daemon"].status == "ok"
    stale = findings(PC, tmp_path)["daemon"]
    assert stale.status == "warn" and "does not answer" in stale.detail


def test_damaged_run_file_is_not_fatal(tmp_path):
    (tmp_path / "run.json").write_text("{half")
    assert findings(PC, tmp_path)["daemon"].status == "info"


def test_models_are_compared_with_their_rows(tmp_path):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "a.gguf"
    path.write_bytes(b"12345")
    assert findings(PC, tmp_path, [row(path, 5)])["model m"].status == "ok"
    assert findings(PC, tmp_path, [row(Path("models/a.gguf"), 5)])["model m"].status == "ok"
    cut = findings(PC, tmp_path, [row(path, 6)])["model m"]
    assert cut.status == "fail" and "5 bytes" in cut.detail and "pull embedded" in cut.hint
    assert findings(PC, tmp_path, [row(tmp_path / "gone", 5)])["model m"].status == "fail"
    assert findings(PC, tmp_path)["models"].status == "info"


def test_state_directory_that_cannot_be_made_is_a_failure(tmp_path):
    assert findings(PC, tmp_path / "new" / "deeper")["state"].status == "ok"
    (tmp_path / "file").write_text("")
    assert findings(PC, tmp_path / "file" / "state")["state"].status == "fail"


def test_every_warning_and_failure_says_what_to_do(tmp_path):
    for tree in (NANO, ORIN, PC):
        for check in findings(tree, tmp_path).values():
            assert check.hint or check.status in ("ok", "info"), check


@pytest.mark.parametrize(
    ("name", "check"),
    [("proc/meminfo", "memory"), ("sys/devices/virtual/thermal/thermal_zone1/temp", "heat")],
)
def test_a_file_that_does_not_answer_ends_no_examination(name: str, check: str, tmp_path: Path):
    root = copied_board(ORIN, tmp_path / "orin")
    with hanging(root / name):
        found = findings(root, tmp_path)
        assert len(sensors(root)) >= 10
    detail = found[check].detail + found[check].hint
    assert "unknown" in detail or "did not return" in detail and "47.2 C" in detail
    assert found["power"].status == "ok" and "VDD_IN" in found["power"].detail


def test_a_containers_limits_are_shown(tmp_path: Path):
    root = copied_board(PC, tmp_path / "pc")
    assert findings(root, tmp_path)["limits"].status == "ok"
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("50000 100000\n")
    check = findings(root, tmp_path)["limits"]
    assert (
        check.status == "info" and "0.5 processors" in check.detail and "1 thread" in check.detail
    )
    (group / "memory.max").write_text(f"{400 << 20}\n")
    (group / "memory.current").write_text(f"{100 << 20}\n")
    check = findings(root, tmp_path)["limits"]
    assert check.status == "warn" and "memory.max leaves is 300 MiB of 400 MiB" in check.detail
