"""Measures one program from outside: its memory, its last line, and what other programs used.

Why it exists: a program that measures itself uses memory for that, and on two shared cores a figure
means something only with the load of others beside it. Flows in: a command, and an environment
without the machine's choice of BLAS kernels. Flows out: Measured. Not here: what is run.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PERIOD_S = 0.02
NOT_OURS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Some machines set these for old OpenBLAS builds; they make a current one half as fast."""
QUIET_CORES = 0.08
"""Cores that others may use on a machine that counts as quiet."""
QUIET_S = 3.0
_FIELD = re.compile(r"^(RssAnon|VmRSS):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Measured:
    """`document` is the last line of its output. `others_cores`: processor time per second that was
    neither this program's nor idle.

    Peaks are those of samples PERIOD_S apart. If the document has `window_s`, two times of the
    monotonic clock, only samples between them count.
    """

    document: dict[str, Any]
    seconds: float
    peak_anon_bytes: int
    peak_resident_bytes: int
    others_cores: float


class ChildFailed(Exception):
    """The program ended with a status other than 0."""


def run(command: Sequence[str], environ: Mapping[str, str]) -> Measured:
    """Run and measure. Raises ChildFailed with the end of the program's output."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began_s, busy_s = time.monotonic(), _busy_s()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=dict(environ)
        )
        samples: list[tuple[float, int, int]] = []
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            samples.append((time.monotonic(), *_memory(process.pid)))
            time.sleep(PERIOD_S)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began_s
        others_s = _busy_s() - busy_s - usage.ru_utime - usage.ru_stime
        errors.seek(0)
        output.seek(0)
        lines = output.read().splitlines()
        if process.returncode or not lines:
            said = errors.read()[-1500:]
            raise ChildFailed(f"{command[:3]} ended with {process.returncode}: {said}")
    document = json.loads(lines[-1])
    first_s, last_s = document.pop("window_s", (began_s, math.inf))
    inside = [sample for sample in samples if first_s <= sample[0] <= last_s]
    return Measured(
        document,
        seconds,
        max(anon for _, anon, _ in inside),
        max(resident for _, _, resident in inside),
        max(0.0, others_s / seconds),
    )


def environment(n_threads: int) -> dict[str, str]:
    """For a program whose BLAS and OpenMP use `n_threads` threads."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**kept, **dict.fromkeys(names, str(n_threads))}


def wait_for_quiet(limit_s: float) -> bool:
    """Whether others left the processor alone for QUIET_S; gives up after `limit_s`."""
    ends_s = time.monotonic() + limit_s
    while True:
        busy_s = _busy_s()
        time.sleep(QUIET_S)
        if (_busy_s() - busy_s) / QUIET_S < QUIET_CORES:
            return True
        if time.monotonic() > ends_s:
            print("the machine did not become quiet", file=sys.stderr)
            return False


def _memory(pid: int) -> tuple[int, int]:
    """RssAnon and VmRSS in bytes; zeros when the process has just ended."""
    try:
        found = dict(_FIELD.findall(Path(f"/proc/{pid}/status").read_text()))
    except OSError:
        return 0, 0
    return int(found.get("RssAnon", 0)) * 1024, int(found.get("VmRSS", 0)) * 1024


def _busy_s() -> float:
    """Processor seconds since boot that were not idle, of all cores (proc(5), the line `cpu`)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split(maxsplit=11)[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
