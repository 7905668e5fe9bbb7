"""The README's quick start, run as it stands: one shell, in order, nothing but `make venv` before.

Real models, a real daemon. The benchmark is made shorter by a flag more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
END_JOBS = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"


def script() -> str:
    """The shell blocks of the section."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("\n## Quick start\n")[2].partition("\n## ")[0]
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
    lines, n_benches = re.subn(
        r"^(edge-agent bench .*)$", r"\1 -r 1 --idle-s 0", lines, flags=re.MULTILINE
    )
    assert n_benches == 1
    return f"{END_JOBS}{lines}wait\n"


def test_the_quick_start_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_AGENT_")}
    environ |= {"HOME": str(tmp_path), "EDGE_AGENT_PORT": "0"}
    # `timeout` ends the whole group of processes, the daemon too.
    command = ["timeout", "800", "bash", "-eu", "-o", "pipefail", "-x", "-c", script()]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert "/dashboard/enter#" in done.stdout
    assert re.search(r"^passed$", done.stdout, re.MULTILINE), said
    assert "smollm2-q8" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "report.md").exists() and "Traceback" not in said
    log = (tmp_path / "serve.log").read_text()
    assert "stopping" in log and "Traceback" not in log, log
