"""Make ./.venv: every package pinned by hash, llama.cpp compiled once per machine and set of flags.

In: requirements.lock, dev/build_flags (and CMAKE_ARGS), pyproject.toml. Out: a virtual environment
with edge-agent installed in editable form, and a stamp in it, so that a second run is a comparison
of one digest. The compiled llama-cpp-python wheel is kept in ~/.cache/edge-agent/wheels under a key
of its version, its flags and this processor, so that a fresh clone on one machine does not compile
again. (pip's own cache forgets the flags, and would hand out a wheel built with others.)

Needs Python 3.10 or newer and a C++ compiler, nothing else: it uses the standard library only.

    python3 dev/install.py [VENV]          # what `make venv` runs
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
FLAGS = ROOT / "dev" / "build_flags"
WHEELS = Path.home() / ".cache" / "edge-agent" / "wheels"
COMPILED = "llama-cpp-python"
OLDEST_PYTHON = (3, 10)


class InstallError(Exception):
    """Text for the user: what failed, and what to do next."""


def note(text: str) -> None:
    print(f"install: {text}", file=sys.stderr, flush=True)


def build_flags(text: str, extra: str) -> str:
    """dev/build_flags without comments, then the caller's CMAKE_ARGS, as CMake takes them."""
    lines = (line.strip() for line in text.splitlines())
    return " ".join([line for line in lines if line and not line.startswith("#")] + extra.split())


def split_lock(text: str) -> tuple[str, str]:
    """The lock's entries, (all but COMPILED, COMPILED alone): pip must compile only that one."""
    entries = re.split(r"\n(?=\S)", text)
    compiled = [entry for entry in entries if entry.startswith(f"{COMPILED}==")]
    others = [entry for entry in entries if not entry.startswith(f"{COMPILED}==")]
    return "\n".join(others) + "\n", "\n".join(compiled) + "\n"


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


def install(venv: Path, flags: str) -> None:
    """Bring `venv` to the state the lock describes. Raises InstallError."""
    others, compiled = split_lock(LOCK.read_text())
    python = make_venv(venv)
    note("installing the pinned packages (about a minute when they are not in pip's cache)")
    pinned = venv / "pinned.txt"
    pinned.write_text(others)
    pip(python, "install", "--require-hashes", "--no-deps", "-r", str(pinned))
    wheel = compiled_wheel(python, compiled, flags)
    pip(python, "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    pip(python, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))


def stamp_text(venv: Path, environ: Mapping[str, str]) -> str:
    """Changes whenever the environment would: lock, project file, flags, processor, place."""
    project = (ROOT / "pyproject.toml").read_text()
    flags = build_flags(FLAGS.read_text(), environ.get("CMAKE_ARGS", ""))
    return digest(LOCK.read_text(), project, flags, processor(), str(venv))


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        note(
            f"Python {oldest} or newer is needed, this is {platform.python_version()}: set PYTHON="
        )
        return 1
    venv = Path(arguments[0] if arguments else ROOT / ".venv").absolute()
    flags = build_flags(FLAGS.read_text(), os.environ.get("CMAKE_ARGS", ""))
    wanted = stamp_text(venv, os.environ)
    stamp = venv / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    try:
        install(venv, flags)
    except InstallError as error:
        note(str(error))
        return 1
    stamp.write_text(wanted)
    note(f"{venv} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
