"""The state directory: who may use it, and the small files in it that scripts read.

Flows in: its path. Flows out: STATE/lock (held while this process lives), STATE/token (the bearer
token of the TCP port) and STATE/run.json (the daemon that runs now). The lock is flock(2) on an
open file, so the kernel drops it however the process ends. The lock file itself is never removed;
it may exist without a holder. Not here: the database (store/store.py), the model files
(models/pull.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from edge_agent import atomic_file
from edge_agent.errors import DaemonRunning, StoreError, UsageError

TOKEN_BYTES = 32
"""Random bytes of the token; OWASP asks for at least 64 bits in a session identifier."""
MIN_TOKEN_CHARACTERS = 16


class StateDir:
    """Paths and small files under one directory. `acquire` takes the lock, `release` drops it.

    state = StateDir(Path("~/.local/share/edge-agent").expanduser())
    state.acquire()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "edge-agent.db"
        self.models = path / "models"
        self.run_file = path / "run.json"
        self.token_file = path / "token"
        self.lock_file = path / "lock"
        self._lock: int | None = None

    def acquire(self) -> None:
        """Create the directory (0700) and take the lock. Raises UsageError, DaemonRunning."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.lock_file, flags, 0o600)
        except OSError as error:
            hint = "choose another one with --state-dir, or correct its owner and permissions"
            raise UsageError(
                f"the state directory {self.path} cannot be used", _reason(error), hint
            ) from error
        self._lock = self._locked(descriptor)

    def _locked(self, descriptor: int) -> int:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise DaemonRunning(
                f"the state directory {self.path} is in use",
                self._holder(),
                "`edge-agent status` shows it; stop it, or give another --state-dir",
            ) from error
        return descriptor

    def _holder(self) -> str:
        run = self.read_run()
        if run is None:
            return f"another process holds {self.lock_file}"
        return f"another process holds {self.lock_file} (run.json names pid {run.get('pid')})"

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def token(self) -> str:
        """The bearer token, made on first use. Raises StoreError.

        A token shorter than MIN_TOKEN_CHARACTERS (a crash cut the file) is replaced.
        """
        try:
            text = self._read_token()
            if len(text) < MIN_TOKEN_CHARACTERS:
                text = secrets.token_urlsafe(TOKEN_BYTES)
                atomic_file.write(self.token_file, text.encode() + b"\n", 0o600)
            return text
        except OSError as error:
            hint = "correct its owner and permissions, or remove it to get a new one"
            raise StoreError(f"{self.token_file} cannot be used", _reason(error), hint) from error

    def _read_token(self) -> str:
        try:
            descriptor = os.open(self.token_file, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return ""
        with open(descriptor, "rb") as file:
            # Whoever may read the token may use the port, so only the owner may read it.
            os.fchmod(file.fileno(), 0o600)
            text = file.read(4096).decode("ascii", "replace").strip()
        return text if text.isascii() and text.isprintable() else ""

    def write_run(self, values: Mapping[str, object]) -> None:
        """Replace run.json. Raises StoreError."""
        try:
            atomic_file.write(self.run_file, json.dumps(dict(values)).encode() + b"\n", 0o644)
        except OSError as error:
            hint = "free some space or correct the permissions"
            raise StoreError(f"{self.run_file} cannot be written", _reason(error), hint) from error

    def read_run(self) -> dict[str, object] | None:
        """The content of run.json; None when the file is missing or holds no JSON object."""
        try:
            values = json.loads(self.run_file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return values if isinstance(values, dict) else None

    def remove_run(self) -> None:
        self.run_file.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
