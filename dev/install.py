"""Make ./.venv: every package pinned by hash, llama.cpp compiled once per machine and set of flags.

In: requirements.lock (with --host requirements-host.lock too), dev/build_flags (and CMAKE_ARGS),
pyproject.toml. Out: a virtual environment
with edge-agent installed in editable form, and a stamp in it, so that a second run is a comparison
of one digest. The compiled llama-cpp-python wheel is kept in ~/.cache/edge-agent/wheels under a key
of its version, its flags and this processor, so that a fresh clone on one machine does not compile
again. (pip's own cache forgets the flags, and would hand out a wheel built with others.)

torch comes in two builds of one version: for the CPU, and for CUDA with 3 GB of libraries beside
it. PyPI has the second. When pip can reach the first as well (find-links or extra-index-url), that
one is taken and the CUDA libraries are left out (docs/host.md).

Needs Python 3.10 or newer (3.11 with --host) and a C++ compiler, nothing else: it uses the standard
library only.

    python3 dev/install.py [VENV]          # what `make venv` runs
    python3 dev/install.py --host [VENV]   # what `make host` runs
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HOST_LOCK = ROOT / "requirements-host.lock"
FLAGS = ROOT / "dev" / "build_flags"
WHEELS = Path.home() / ".cache" / "edge-agent" / "wheels"
COMPILED = "llama-cpp-python"
OLDEST_PYTHON = (3, 10)
OLDEST_HOST_PYTHON = (3, 11)
TORCH = "torch=="
CUDA = ("cuda-", "nvidia-", "triton==")
"""Entries of the host's lock that only a torch for CUDA needs."""


class InstallError(Exception):
    """Text for the user: what failed, and what to do next."""


def note(text: str) -> None:
    print(f"install: {text}", file=sys.stderr, flush=True)


def build_flags(text: str, extra: str, features: str = "") -> str:
    """dev/build_flags without comments, then the caller's CMAKE_ARGS, as CMake takes them.

    On a processor whose `features` have AMX, its kernels are left out: they crash on the first
    batch of some models (llama.cpp #20824; SmolLM2 in Q4_1 on a Sapphire Rapids, dev/log).
    """
    lines = (line.strip() for line in text.splitlines())
    flags = [line for line in lines if line and not line.startswith("#")]
    if "amx_int8" in features:
        flags += ["-DCMAKE_C_FLAGS=-mno-amx-int8", "-DCMAKE_CXX_FLAGS=-mno-amx-int8"]
    return " ".join(flags + extra.split())


def split_lock(text: str) -> tuple[str, str]:
    """The lock's entries, (all but COMPILED, COMPILED alone): pip must compile only that one."""
    return apart(text, (f"{COMPILED}==",))


def apart(lock: str, starts: tuple[str, ...]) -> tuple[str, str]:
    """The lock's entries, (those that begin with none of `starts`, those that do)."""
    entries = re.split(r"\n(?=\S)", lock)
    others = [entry for entry in entries if not entry.startswith(starts)]
    chosen = [entry for entry in entries if entry.startswith(starts)]
    return "\n".join(others) + "\n", "\n".join(chosen) + "\n"


def processor() -> str:
    """What -march=native depends on: a wheel built here may crash on an older processor."""
    wanted = ("flags", "Features", "CPU part")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    features = sorted({line for line in lines if line.startswith(wanted)})
    return platform.machine() + "\n" + "\n".join(features)


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def run(command: list[str], env: dict[str, str] | None = None) -> None:
    """Run a command with its output shown. Raises InstallError when it fails."""
    if subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL).returncode:
        raise InstallError(f"`{' '.join(command)}` failed; its output above says why")


def make_venv(venv: Path) -> Path:
    """The environment's Python; created when missing. Raises InstallError."""
    python = venv / "bin" / "python"
    if not python.exists():
        note(f"creating {venv} with Python {platform.python_version()}")
        command = [sys.executable, "-m", "venv", str(venv)]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            raise InstallError(f"{venv} could not be created; on Debian: apt install python3-venv")
    return python


def pip(python: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
    run([str(python), "-m", "pip", "--disable-pip-version-check", "-qq", *arguments], env)


def compiled_wheel(python: Path, requirement: str, flags: str) -> Path:
    """The llama-cpp-python wheel for these flags and this processor, built when not kept yet."""
    folder = WHEELS / digest(requirement, flags, processor())
    if not folder.is_dir():
        build_wheel(python, requirement, flags, folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_wheel(python: Path, requirement: str, flags: str, folder: Path) -> None:
    """Compile into `folder`, which appears only when it is complete. Raises InstallError."""
    if shutil.which("c++") is None and "CXX" not in os.environ:
        raise InstallError("no C++ compiler on PATH; on Debian: apt install build-essential")
    note(f"building llama.cpp ({flags}), 5-10 minutes the first time on 2 cores")
    started_s = time.monotonic()
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    env = {**os.environ, "CMAKE_ARGS": flags, "CMAKE_BUILD_PARALLEL_LEVEL": jobs}
    env["PATH"] = f"{python.parent}:{env.get('PATH', '')}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        entry = Path(scratch) / "requirement.txt"
        entry.write_text(requirement)
        options = ["--no-deps", "--no-cache-dir", "--no-build-isolation", "--require-hashes"]
        options += ["--no-binary", COMPILED, "-w", f"{scratch}/wheel", "-r", str(entry)]
        pip(python, "wheel", *options, env=env)
        Path(scratch, "wheel").rename(folder)
    note(f"llama.cpp built in {time.monotonic() - started_s:.0f} s, kept in {folder}")


def install(venv: Path, flags: str, *, is_host: bool) -> None:
    """Bring `venv` to the state the locks describe. Raises InstallError."""
    others, compiled = split_lock(LOCK.read_text())
    python = make_venv(venv)
    note("installing the pinned packages (about a minute when they are not in pip's cache)")
    install_pinned(python, venv / "pinned.txt", others)
    if is_host:
        install_host(python, venv)
    wheel = compiled_wheel(python, compiled, flags)
    pip(python, "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    pip(python, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))


def install_pinned(python: Path, path: Path, entries: str, *, is_tried: bool = False) -> None:
    """Install lock entries, which stay in `path` for whoever wonders. Raises InstallError.

    A failure that is expected (`is_tried`) is not shown.
    """
    path.write_text(entries)
    quiet = ["-q"] if is_tried else []
    pip(python, "install", *quiet, "--require-hashes", "--no-deps", "-r", str(path))


def install_host(python: Path, venv: Path) -> None:
    """torch and what trains with it; CUDA's libraries only with a torch that needs them."""
    others, cuda = apart(HOST_LOCK.read_text(), CUDA)
    others, torch = apart(others, (TORCH,))
    note("installing torch and the packages around it")
    install_pinned(python, venv / "pinned-host.txt", others)
    try:
        install_pinned(python, venv / "pinned-torch.txt", cpu_build(torch), is_tried=True)
    except InstallError:
        note("pip finds no torch built for the CPU alone: taking PyPI's, some 3 GB with CUDA")
        install_pinned(python, venv / "pinned-torch.txt", torch + cuda)


def cpu_build(entry: str) -> str:
    """torch's entry of the lock, for the build that PyPI does not have: 1.2.3+cpu.

    pip would prefer PyPI's file to one on disk, because the index tells its hash beforehand.
    """
    return re.sub(rf"^{TORCH}(\S+)", rf"{TORCH}\1+cpu", entry)


def stamp_text(venv: Path, environ: Mapping[str, str], *, is_host: bool = False) -> str:
    """Changes whenever the environment would: locks, project file, flags, processor, place."""
    project = (ROOT / "pyproject.toml").read_text()
    flags = build_flags(FLAGS.read_text(), environ.get("CMAKE_ARGS", ""), processor())
    locks = LOCK.read_text() + (HOST_LOCK.read_text() if is_host else "")
    return digest(locks, project, flags, processor(), str(venv))


def main(arguments: list[str]) -> int:
    is_host = "--host" in arguments
    needed = OLDEST_HOST_PYTHON if is_host else OLDEST_PYTHON
    if sys.version_info < needed:
        oldest = ".".join(map(str, needed))
        note(
            f"Python {oldest} or newer is needed, this is {platform.python_version()}: set PYTHON="
        )
        return 1
    places = [argument for argument in arguments if argument != "--host"]
    default = ROOT / (".venv-host" if is_host else ".venv")
    venv = Path(places[0] if places else default).absolute()
    flags = build_flags(FLAGS.read_text(), os.environ.get("CMAKE_ARGS", ""), processor())
    wanted = stamp_text(venv, os.environ, is_host=is_host)
    stamp = venv / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    try:
        install(venv, flags, is_host=is_host)
    except InstallError as error:
        note(str(error))
        return 1
    stamp.write_text(wanted)
    note(f"{venv} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
