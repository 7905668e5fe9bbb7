"""A child on a socketpair: how it is started, heard and ended, whatever it does."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from waiting import DEADLINE_S, has_ended

from edge_agent.supervisor import child_process
from edge_agent.supervisor.child_process import ChildProcess

PEER = "import os, socket, sys, time; peer = socket.socket(fileno=int(sys.argv[2])); "
ECHO = PEER + "[peer.sendall(data) for data in iter(lambda: peer.recv(99), b'')]"
DEAF = PEER + "peer.sendall(b'x'); time.sleep(600)"


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE_S))


async def child(script: str) -> ChildProcess:
    return await ChildProcess.spawn((sys.executable, "-c", script), os.environ)


def test_bytes_go_both_ways_and_the_end_of_the_socket_ends_the_child() -> None:
    async def work() -> None:
        echo = await child(ECHO)
        echo.write(b"hello")
        await echo.flush()
        assert await echo.read() == b"hello"
        assert await echo.end("being told to") == ""
        assert await echo.end("being told to") == "" and has_ended(echo.pid)
        echo.write(b"dropped")

    run(work())


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("os._exit(3)", "exit status 3"),
        ("os.kill(os.getpid(), 11)", "signal SIGSEGV (11)"),
        ("os.kill(os.getpid(), 64)", "signal SIGRTMAX (64)"),
        ("os._exit(0)", ""),
    ],
)
def test_how_a_child_ended_is_said_in_words(then: str, words: str) -> None:
    async def work() -> None:
        dying = await child(PEER + then)
        assert await dying.read() == b""
        assert await dying.end("its end") == words

    run(work())


def test_a_child_that_does_not_exit_is_killed_after_the_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_process, "EXIT_GRACE_S", 0.05)

    async def work() -> None:
        deaf = await child(DEAF)
        assert await deaf.read() == b"x"
        assert await deaf.end("being told to") == "it did not exit within 0.05 s of being told to"
        assert has_ended(deaf.pid)

    run(work())


def test_the_first_reason_for_a_kill_is_the_one_that_is_said() -> None:
    async def work() -> None:
        deaf = await child(DEAF)
        deaf.kill("it was silent")
        deaf.kill("it was told to exit")
        assert await deaf.end("being told to") == "it was silent"

    run(work())


def test_a_child_writes_no_core_file_and_starts_no_debugger() -> None:
    async def work() -> None:
        deaf = await child(DEAF)
        assert await deaf.read() == b"x"
        proc = Path(f"/proc/{deaf.pid}")
        limits = (proc / "limits").read_text()
        assert "Max core file size        0                    0" in limits
        assert b"GGML_NO_BACKTRACE=1" in (proc / "environ").read_bytes()
        assert os.getsid(deaf.pid) == deaf.pid
        deaf.kill("the test is over")
        await deaf.end("its end")

    run(work())


def test_what_cannot_be_started_is_an_error_and_leaves_no_descriptor() -> None:
    async def work() -> None:
        with pytest.raises(FileNotFoundError):
            await ChildProcess.spawn(("/nonexistent",), os.environ)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(FileNotFoundError):
            await ChildProcess.spawn(("/nonexistent",), os.environ)
        assert len(os.listdir("/proc/self/fd")) == before

    run(work())
