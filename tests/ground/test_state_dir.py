"""The lock is the kernel's, the token is private, and files are old or new but never half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edge_agent import atomic_file
from edge_agent.errors import DaemonRunning, StoreError, UsageError
from edge_agent.state_dir import StateDir


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = StateDir(tmp_path / "s"), StateDir(tmp_path / "s")
    first.acquire()
    first.write_run({"pid": 4242})
    with pytest.raises(DaemonRunning, match="4242"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_the_directory_is_made_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "b")
    state.acquire()
    state.release()
    assert state.path.stat().st_mode & 0o777 == 0o700
    assert state.lock_file.stat().st_mode & 0o777 == 0o600


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from edge_agent.state_dir import StateDir
        state = StateDir(Path(sys.argv[1]))
        state.acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    state = StateDir(tmp_path)
    state.acquire()
    state.release()


def test_a_place_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be used"):
        StateDir(tmp_path / "file").acquire()
    with pytest.raises(UsageError, match="cannot be used"):
        StateDir(Path("/proc/edge-agent")).acquire()


def test_the_token_is_made_once_and_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    token = state.token()
    assert len(token) >= 32 and state.token() == token
    state.token_file.chmod(0o644)
    assert state.token() == token
    assert state.token_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"\n", b"short\n", b"\xff" * 64, b"a" * 20 + b"\0" * 20])
def test_a_token_cut_by_a_crash_is_replaced(tmp_path: Path, content: bytes) -> None:
    state = StateDir(tmp_path)
    state.token_file.write_bytes(content)
    token = state.token()
    assert len(token) >= 32 and state.token() == token


def test_a_token_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("x" * 40)
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="token"):
        StateDir(tmp_path).token()


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b"\xff"])
def test_a_run_file_that_says_nothing_is_none(tmp_path: Path, content: bytes | None) -> None:
    state = StateDir(tmp_path)
    if content is not None:
        state.run_file.write_bytes(content)
    assert state.read_run() is None
    state.remove_run()
    state.remove_run()


def test_run_json_round_trips(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.write_run({"pid": 1, "worker_pid": None})
    assert (
        json.loads(state.run_file.read_text()) == state.read_run() == {"pid": 1, "worker_pid": None}
    )


# ---- atomic_file -------------------------------------------------------------------------------


def test_writing_replaces_and_leaves_no_debris(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    previous = os.umask(0o022)
    try:
        atomic_file.write(target, b"new", 0o640)
    finally:
        os.umask(previous)
    assert target.read_bytes() == b"new" and target.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    with pytest.raises(OSError):
        atomic_file.write(target, b"new")
    assert list(tmp_path.iterdir()) == [target]


SYSCALLS = ("openat", "write", "fsync", "rename", "close", "fchmod")


@pytest.mark.parametrize("step", range(1, 9))
def test_a_kill_at_any_step_leaves_old_or_new(tmp_path: Path, step: int) -> None:
    """The process kills itself at the n-th file operation of the write."""
    target = tmp_path / "x"
    target.write_bytes(b"old" * 5000)
    program = """
        import os, signal, sys
        from pathlib import Path
        from edge_agent import atomic_file
        left = int(sys.argv[2])
        def hook(event, args):
            global left
            if event in ("open", "os.rename", "os.chmod") or event == "step":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        real = os.fsync
        def fsync(fd):
            sys.audit("step"); real(fd); sys.audit("step")
        os.fsync = fsync
        sys.addaudithook(hook)
        atomic_file.write(Path(sys.argv[1]), b"new" * 5000)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(target), str(step)]
    subprocess.run(command, check=False)
    assert target.read_bytes() in (b"old" * 5000, b"new" * 5000)
