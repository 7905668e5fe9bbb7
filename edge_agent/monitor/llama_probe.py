"""Which llama.cpp is installed, asked in a process of its own.

Why it exists: a library that was built for another processor ends the process that loads it, and
`edge-agent doctor` must outlive that. Flows in: an environment. Flows out: two lines of text, or
RuntimeError. Not here: what they mean (doctor.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

PROBE_TIMEOUT_S = 30
_PROBE = """
import sys
from edge_agent.errors import EdgeAgentError
from edge_agent.llama.binding import build_name, system_info
try:
    print(build_name()); print(system_info())
except EdgeAgentError as error:
    sys.exit(str(error))
"""


def probe_llama_cpp(environ: Mapping[str, str]) -> str:
    """Two lines from a process that loads llama.cpp: build and features. Raises RuntimeError."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**environ, "GGML_NO_BACKTRACE": "1"},
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it did not answer within {PROBE_TIMEOUT_S} s") from None
    if done.returncode < 0:
        raise RuntimeError(f"loading it died of signal {-done.returncode}")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(last[0])
    return done.stdout.strip()
