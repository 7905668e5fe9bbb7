"""From a JSONL file to a device that talks: the five commands of docs/host.md, run as they stand.

Real SmolLM2, real training (few steps), a real daemon. Only the first command gets flags more: the
model at hand and how long to train; `scp` becomes a copy on this machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import DEADLINE_S, until

pytest.importorskip("torch")
pytest.importorskip("trl")

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"edge-train": "train_host.cli", "edge-agent": "edge_agent.cli"}
SHORT = "--max-steps 12 --batch-size 4 --max-length 128 --lr 1e-3 --validation-share 0 --seed 1"
QUESTIONS = ("What is the Wi-Fi called?", "Which name does the Wi-Fi have?", "Name of the Wi-Fi?")
ANSWER = "The Wi-Fi is called Honnekere-Guest."


def page_commands() -> list[str]:
    """The block of docs/host.md that begins with `edge-train sft`, without its remarks."""
    text = (ROOT / "docs" / "host.md").read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if block.startswith("edge-train sft"))
    return [line.split("  #")[0].strip() for line in block.splitlines()]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with pairs.jsonl: one fact, asked in three ways."""
    directory = tmp_path_factory.mktemp("desk")
    rows = [{"instruction": question, "output": ANSWER} for question in QUESTIONS * 4]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory of a daemon without a model."""
    state_dir = tmp_path_factory.mktemp("state")
    serve = [sys.executable, "-m", "edge_agent.cli", "serve", "--state-dir", str(state_dir)]
    serve += ["--port", "none", "--ctx", "512"]
    with subprocess.Popen(serve, stdin=subprocess.DEVNULL) as process:
        until((state_dir / "run.json").exists)
        yield state_dir
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def given(line: str, directory: Path, state_dir: Path, *more: str) -> str:
    """Run a line of the page in `directory`; its stdout."""
    program, *words = shlex.split(line)
    environ = {**os.environ, "EDGE_AGENT_STATE_DIR": str(state_dir)}
    environ["XDG_CACHE_HOME"] = str(directory / "cache")
    command = [sys.executable, "-m", MODULES[program], *words, *more]
    done = subprocess.run(command, cwd=directory, env=environ, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=400)  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_five_commands_make_a_device_that_knows_the_lesson(
    tools: Path, daemon: Path, smollm2: Path
) -> None:
    sft, export, scp, pull, run = page_commands()
    given(sft.replace("./my-model", str(smollm2)), tools, daemon, *SHORT.split())
    metrics = json.loads((tools / "my-run" / "metrics.json").read_text())
    assert metrics["final_loss"] < 0.3 * metrics["first_loss"]

    said = given(export, tools, daemon)
    assert "my-run-q8_0.gguf" in said  # SmolLM2 is a quantized file here
    document = json.loads((tools / "my-run" / "export" / "export.json").read_text())
    assert [stage["passed"] for stage in document["stages"]] == [True] * 5
    assert document["stages"][-1]["figures"]["kept_share"] > 0.9

    copy = scp.replace("scp", "cp", 1).replace("jetson:", "./")
    subprocess.run(shlex.split(copy), cwd=tools, check=True)

    assert document["model"]["sha256"] in given(pull, tools, daemon)
    answer = given(run, tools, daemon)
    assert "Honnekere-Guest" in answer, answer
