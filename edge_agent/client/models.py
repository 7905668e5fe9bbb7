"""The models and the measurements on this machine, for the CLI, with or without a daemon.

Flows in: the daemon or the state directory (local_state.py). Flows out: frozen details, the events
of a pull, benchmark documents, telemetry. Not here: downloading and checking (models/pull.py, run
as a process of its own, because this one must stay quick to start), the database (store/store.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_agent.client.connection import ANSWER_TIMEOUT_S, Client
from edge_agent.client.local_state import LocalState, open_state
from edge_agent.errors import (
    AdapterNotFound,
    AdapterRefused,
    DownloadError,
    ModelNotFound,
    error_from_code,
)
from edge_agent.model_names import DEFAULT_NAME
from edge_agent.store.rows import ModelRow

MAX_BENCHMARKS = 10_000
PART_BYTES = 512 * 1024
"""Half of what the daemon takes at once (server/history.py)."""
PART_DOCUMENTS = 100


@dataclass(frozen=True)
class ModelDetails(ModelRow):
    """One registered model. `name` is as asked for: MODEL, MODEL:base or MODEL:ADAPTER."""

    adapter: str | None = None
    """The one that answers; None: the model itself does."""


@contextmanager
def open_models(
    state_dir: Path | None, environ: Mapping[str, str], timeout_s: float = ANSWER_TIMEOUT_S
) -> Iterator[Models]:
    """The daemon's models if one answers, else the state directory's. Raises DaemonRunning."""
    with open_state(state_dir, environ, timeout_s) as found:
        yield DaemonModels(found) if isinstance(found, Client) else LocalModels(found)


@dataclass(frozen=True)
class DaemonModels:
    """Through /registry/models of the running daemon.

    Every method raises ModelNotFound for an unknown name, and what the daemon answers.
    """

    client: Client

    def registered(self) -> list[ModelDetails]:
        """In the order of their registration."""
        return [ModelDetails(**one) for one in self.client.get("/registry/models")["models"]]

    def details(self, name: str | None) -> ModelDetails:
        """`name` None: the model that is meant (models/which_model.py)."""
        return ModelDetails(**self.client.get(_path(name)))

    def has(self, name: str) -> bool:
        """Whether a request could name it."""
        try:
            return bool(self.details(name))
        except (ModelNotFound, AdapterNotFound, AdapterRefused):
            return False

    def remove(self, name: str) -> None:
        """With its adapters and its file."""
        self.client.delete(_path(name), {})

    def pull(self, source: str, name: str | None) -> Iterator[dict[str, Any]]:
        """Progress {status, completed, total} in bytes; the last one has status `success`."""
        body = {"model": source, "stream": True, **({"name": name} if name else {})}
        yield from self.client.lines("/api/pull", body)

    def benchmarks(self, n: int) -> list[dict[str, Any]]:
        """The last n stored benchmark documents (at most 10,000), newest first."""
        found = self.client.get(f"/benchmarks?n={min(n, MAX_BENCHMARKS)}")
        return list(found.get("benchmarks") or [])

    def add_benchmarks(self, documents: Sequence[Mapping[str, Any]]) -> int:
        """Store them; durable on return, which tells how many. Raises RequestError for one that
        cannot be stored: those before it may have been."""
        bodies = ({"benchmarks": part} for part in _parts(documents))
        return sum(int(self.client.post("/benchmarks", body).get("stored", 0)) for body in bodies)

    def telemetry(self, seconds: float) -> dict[str, Any]:
        """{now, points, generations} of the last `seconds` as GET /telemetry answers it."""
        return self.client.get(f"/telemetry?seconds={seconds:g}")

    def health(self) -> dict[str, Any]:
        """{events, storage_error} as GET /status answers them."""
        status = self.client.get("/status")
        return {name: status.get(name) for name in ("events", "storage_error")}


def _path(name: str | None) -> str:
    return f"/registry/models/{quote(name or DEFAULT_NAME, safe='')}"


def _parts(documents: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Lists that fit into one request body each; a document too large for any goes alone."""
    part: list[Mapping[str, Any]] = []
    size = 0
    for document in documents:
        # As long as connection.py writes it, escapes included.
        length = len(json.dumps(document))
        if part and (size + length > PART_BYTES or len(part) >= PART_DOCUMENTS):
            yield part
            part, size = [], 0
        part.append(document)
        size += length
    if part:
        yield part


@dataclass(frozen=True)
class LocalModels:
    """The same, directly."""

    local: LocalState

    def registered(self) -> list[ModelDetails]:
        from edge_agent.models.registered_models import model_document

        registry, rows = self.local.registry, self.local.store.models()
        return [ModelDetails(**model_document(registry, row, None)) for row in rows]

    def details(self, name: str | None) -> ModelDetails:
        from edge_agent.models.registered_models import model_document

        row, tag = self.local.which_model(name)
        return ModelDetails(**model_document(self.local.registry, row, tag))

    def remove(self, name: str) -> None:
        from edge_agent.models.registered_models import remove_model

        local = self.local
        remove_model(local.store, local.registry, local.state.path, name)

    def pull(self, source: str, name: str | None) -> Iterator[dict[str, Any]]:
        from edge_agent.store.store import ModelRow

        for event in run_pull(pull_command(source, name, self.local.state.path)):
            if event.get("status") == "success":
                self.local.store.add_model(ModelRow(**event["model"]))
            yield event

    def benchmarks(self, n: int) -> list[dict[str, Any]]:
        return self.local.store.benchmarks(min(n, MAX_BENCHMARKS))

    def add_benchmarks(self, documents: Sequence[Mapping[str, Any]]) -> int:
        return self.local.store.add_benchmarks(documents).result()

    def telemetry(self, seconds: float) -> dict[str, Any]:
        """Stored rows only: without a daemon nobody reads the sensors."""
        from edge_agent.store.rows import without_texts

        now = time.time()
        rows = self.local.store.recent_generations(20)
        return {
            "now": now,
            "points": [asdict(row) for row in self.local.store.samples(now - seconds, now)],
            "generations": [without_texts(row) for row in rows],
        }

    def health(self) -> dict[str, Any]:
        return self.local.store.health()


Models = DaemonModels | LocalModels


def pull_command(source: str, name: str | None, state_dir: Path) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "edge_agent.models.pull",
        "pull",
        "--state-dir",
        str(state_dir),
    ]
    if name:
        command += ["--name", name]
    return [*command, "--", source]


def run_pull(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Events of the pull process; it ends with the generator. Raises what it reports.

    An exit without a result is a DownloadError: the file registered before, if any, stays.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            yield from _events(process)
        finally:
            if process.poll() is None:
                process.terminate()


def _events(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event.get("status") == "error":
            parts = (str(event.get(key) or "") for key in ("what", "why", "hint"))
            raise error_from_code(str(event.get("code")), *parts)
        yield event
        if event.get("status") == "success":
            return
    raise DownloadError(
        "the pull ended without a result",
        f"its process exited with status {process.wait()}",
        "run it again: a download resumes where it stopped",
    )


def parameter_size(n_params: int) -> str:
    """As the daemon's /api/tags writes it: 268.10M, 1.00B."""
    return f"{n_params / 1e9:.2f}B" if n_params >= 1e9 else f"{n_params / 1e6:.2f}M"
