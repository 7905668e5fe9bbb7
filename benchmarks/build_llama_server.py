"""Build llama.cpp's own programs, the peers that the benchmarks measure against.

Flows in: the source archive of the installed version of llama-cpp-python, which contains its
llama.cpp, and the CMake arguments of dev/build_flags. Flows out:
~/.cache/edge-agent/llama.cpp-<version>/build/bin/. Both sides are then the same C++ revision, built
with Release (-O3), -march=native, shared libraries and OpenMP. Not here: patches to the peer, or
anything that edge-agent itself needs to run.

    nice -n 19 .venv/bin/python benchmarks/build_llama_server.py      # about 15 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "dev"))
from install import FLAGS, build_flags, processor

DISTRIBUTION = "llama-cpp-python"
TARGETS = ("llama-server", "llama-bench", "llama-imatrix", "llama-quantize")

# The wheel's own CMakeLists sets the first two. The others leave out parts that are not measured;
# the web page of llama-server would also be fetched over the network at build time.
PEER_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def peer_root(release: str) -> Path:
    """The directory of the peer of this llama-cpp-python release."""
    return Path.home() / ".cache" / "edge-agent" / f"llama.cpp-{release}"


def peer_program(name: str) -> Path:
    """Path of a built peer program.

    Raises FileNotFoundError that names the command that builds it.
    """
    path = peer_root(version(DISTRIBUTION)) / "build" / "bin" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; build it: .venv/bin/python benchmarks/build_llama_server.py"
        )
    return path


def fetch_source(release: str, target: Path) -> None:
    """Unpack the release's source archive to `target` (renamed into place when complete)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch]
        download += ["--no-binary", DISTRIBUTION, f"{DISTRIBUTION}=={release}"]
        subprocess.run(download, check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        (tree,) = (path for path in Path(scratch).iterdir() if path.is_dir())
        tree.rename(target)


def build(source: Path, build_dir: Path, flags: list[str], jobs: int) -> None:
    """Configure and compile TARGETS; CMake's output goes to this program's."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None:
        raise FileNotFoundError("cmake is not on PATH; run `make venv` first, or install cmake")
    configure = [cmake, "-S", str(source / "vendor" / "llama.cpp"), "-B", str(build_dir)]
    subprocess.run([*configure, *flags], check=True)
    compile_ = [cmake, "--build", str(build_dir), f"-j{jobs}", "--target", *TARGETS]
    subprocess.run(compile_, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--source-only", action="store_true", help="fetch it, build nothing")
    args = parser.parse_args()
    root = peer_root(version(DISTRIBUTION))
    source = root / "src"
    if not source.is_dir():
        print(f"fetching the source of {DISTRIBUTION} {version(DISTRIBUTION)} ...", flush=True)
        fetch_source(version(DISTRIBUTION), source)
    if args.source_only:
        print(source)
        return
    shared = build_flags(FLAGS.read_text(), os.environ.get("CMAKE_ARGS", ""), processor())
    flags = [*PEER_FLAGS, *shared.split()]
    build(source, root / "build", flags, args.jobs)
    for name in TARGETS:
        print(peer_program(name))


if __name__ == "__main__":
    main()
