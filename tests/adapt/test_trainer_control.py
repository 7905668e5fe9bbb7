"""What is said about a trainer that ends otherwise than it should."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from waiting import DEADLINE_S

from edge_agent.adapt.messages import Start
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer_control import TrainerLink
from edge_agent.errors import TrainingFailed

PEER = "import os, socket, sys; peer = socket.socket(fileno=int(sys.argv[2])); peer.recv(99); "
START = Start("/tmp", "a", "tiny", "/tmp/m", "00", "/tmp/d", RunSettings(n_threads=3))


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ("os.kill(os.getpid(), 9)", r"signal SIGKILL \(9\)"),
        ("os._exit(3)", "exit status 3"),
        ("peer.sendall(bytes([0, 0, 0, 3]) + b'abc'); peer.recv(1)", "what no trainer sends"),
    ],
)
def test_a_trainer_that_dies_says_how_and_where_the_run_goes_on(then: str, why: str) -> None:
    async def work() -> None:
        link = await TrainerLink.spawn(START, os.environ, (sys.executable, "-c", PEER + then))
        try:
            with pytest.raises(TrainingFailed, match=why) as failed:
                async for _ in link.records():
                    pass
            assert "adapt resume" in failed.value.hint
        finally:
            await link.close()

    asyncio.run(asyncio.wait_for(work(), DEADLINE_S))


def test_a_trainer_starts_in_the_root_with_the_threads_of_its_run(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = (
        f"{PEER} open({str(told)!r}, 'w').write(os.getcwd() + os.environ['OPENBLAS_NUM_THREADS'])"
    )

    async def work() -> None:
        link = await TrainerLink.spawn(START, os.environ, (sys.executable, "-c", script))
        async for _ in link.records():
            pass
        await link.close()

    asyncio.run(asyncio.wait_for(work(), DEADLINE_S))
    assert told.read_text() == "/3"
