"""Runs `edge-agent` commands: in this process on given streams, or as the real program."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_engine import model_row

from edge_agent.cli.main import main_with
from edge_agent.cli.terminal import Terminal
from edge_agent.state_dir import StateDir
from edge_agent.store.store import Store


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def document(self) -> Any:
        return json.loads(self.out)


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def cli(
    *argv: str,
    state_dir: Path | None = None,
    stdin: str | None = "",
    environ: Mapping[str, str] | None = None,
    on_screen: bool = False,
) -> Outcome:
    """Run one command in this process. `stdin` None stands for a terminal."""
    out = Screen() if on_screen else io.StringIO()
    err = io.StringIO()
    reader = Screen() if stdin is None else io.StringIO(stdin)
    given = {"EDGE_AGENT_STATE_DIR": str(state_dir)} if state_dir else {}
    code = main_with(argv, Terminal(reader, out, err, {**given, **(environ or {})}))
    return Outcome(code, out.getvalue(), err.getvalue())


def program(
    *argv: str, state_dir: Path, stdin: Any = subprocess.DEVNULL, data: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real program."""
    return subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", *argv],
        env={**os.environ, "EDGE_AGENT_STATE_DIR": str(state_dir)},
        **({"input": data} if data is not None else {"stdin": stdin}),
        capture_output=True,
        text=True,
    )


def filled(tmp_path: Path) -> StateDir:
    """A state directory without a daemon, with two models that share one file."""
    state = StateDir(tmp_path)
    state.models.mkdir()
    (state.models / "x.gguf").write_bytes(b"gguf")
    with Store(state.database) as store:
        store.add_model(model_row("tiny", str(state.models / "x.gguf")))
        store.add_model(model_row("twin", "models/x.gguf"))
    return state
