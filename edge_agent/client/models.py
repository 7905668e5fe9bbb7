"""The models and the measurements on this machine, for the CLI, with or without a daemon.

Flows in: a state directory. Flows out: frozen entries, the events of a pull, benchmark documents,
telemetry. While a daemon runs everything goes through it, so that one process writes; without one,
STATE/lock is held for as long as the library is open. Not here: downloading and checking
(models/pull.py, run as a process of its own, because this one must stay quick to start), the
database (store/store.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge_agent.client.connection import ANSWER_TIMEOUT_S, Client, find_daemon, state_dir_of
from edge_agent.errors import DaemonNotRunning, DownloadError, error_from_code
from edge_agent.state_dir import StateDir

if TYPE_CHECKING:
    from edge_agent.models.adapter_registry import AdapterRegistry
    from edge_agent.store.store import ModelRow, Store

MAX_BENCHMARKS = 10_000
PART_BYTES = 512 * 1024
"""Half of what the daemon takes at once (server/history.py)."""
PART_DOCUMENTS = 100


@dataclass(frozen=True)
class ModelEntry:
    """One registered model as `list` shows it. None: the daemon did not say."""

    name: str
    size_bytes: int | None
    sha256: str | None
    architecture: str | None
    parameters: str | None
    quantization: str | None
    added_at: str | None
    """RFC 3339, UTC."""


@dataclass(frozen=True)
class ModelDetails:
    """One registered model as `show` shows it."""

    name: str
    architecture: str | None
    description: str | None
    n_params: int | None
    quantization: str | None
    n_ctx_train: int | None
    sha256: str | None
    source: str | None
    path: str | None
    chat_template: str | None
    adapter: str | None = None
    """The active one; None: the model itself answers."""


class Models(Protocol):
    """Every method raises ModelNotFound for an unknown name, and what the daemon answers."""

    def entries(self) -> list[ModelEntry]: ...
    def details(self, name: str) -> ModelDetails: ...
    def remove(self, name: str) -> None: ...

    def pull(self, source: str, name: str | None) -> Iterator[dict[str, Any]]:
        """Progress {status, completed, total} in bytes; the last one has status `success`."""
        ...

    def benchmarks(self, n: int) -> list[dict[str, Any]]:
        """The last n stored benchmark documents (at most 10,000), newest first."""
        ...

    def add_benchmarks(self, documents: Sequence[Mapping[str, Any]]) -> int:
        """Store them; durable on return, which tells how many. Raises RequestError for one that
        cannot be stored: those before it may have been."""
        ...

    def telemetry(self, seconds: float) -> dict[str, Any]:
        """{now, points, generations} of the last `seconds` as GET /telemetry answers it."""
        ...

    def health(self) -> dict[str, Any]:
        """{events, storage_error} as GET /status answers them."""
        ...


@contextmanager
def open_library(
    state_dir: Path | None, environ: Mapping[str, str], timeout_s: float = ANSWER_TIMEOUT_S
) -> Iterator[Models]:
    """The daemon's models if one answers, else the state directory's. Raises DaemonRunning."""
    try:
        client = find_daemon(state_dir, environ, timeout_s)
    except DaemonNotRunning:
        pass
    else:
        yield DaemonModels(client)
        return
    from edge_agent.store.store import Store

    state = StateDir(state_dir_of(state_dir, environ))
    state.acquire()
    try:
        with Store(state.database) as store:
            yield LocalModels(state, store)
    finally:
        state.release()


@dataclass(frozen=True)
class DaemonModels:
    """Through Ollama's endpoints of the running daemon."""

    client: Client

    def entries(self) -> list[ModelEntry]:
        tags = self.client.get("/api/tags").get("models", [])
        return [_entry_of_tag(tag) for tag in tags if ":" not in str(tag.get("name"))]

    def details(self, name: str) -> ModelDetails:
        shown = self.client.post("/api/show", {"model": name})
        facts = shown.get("model_info") or {}
        architecture = facts.get("general.architecture")
        modelfile = str(shown.get("modelfile") or "")
        path = modelfile.partition("\nADAPTER ")[0].removeprefix("FROM ").strip()
        return ModelDetails(
            name=name,
            architecture=architecture,
            description=facts.get("general.description"),
            n_params=facts.get("general.parameter_count"),
            quantization=(shown.get("details") or {}).get("quantization_level"),
            n_ctx_train=facts.get(f"{architecture}.context_length"),
            sha256=facts.get("edge_agent.sha256"),
            source=facts.get("edge_agent.source"),
            path=path or None,
            chat_template=shown.get("template") or None,
            adapter=facts.get("edge_agent.adapter"),
        )

    def remove(self, name: str) -> None:
        self.client.delete("/api/delete", {"model": name})

    def pull(self, source: str, name: str | None) -> Iterator[dict[str, Any]]:
        body = {"model": source, "stream": True, **({"name": name} if name else {})}
        yield from self.client.lines("/api/pull", body)

    def benchmarks(self, n: int) -> list[dict[str, Any]]:
        found = self.client.get(f"/benchmarks?n={min(n, MAX_BENCHMARKS)}")
        return list(found.get("benchmarks") or [])

    def add_benchmarks(self, documents: Sequence[Mapping[str, Any]]) -> int:
        bodies = ({"benchmarks": part} for part in _parts(documents))
        return sum(int(self.client.post("/benchmarks", body).get("stored", 0)) for body in bodies)

    def telemetry(self, seconds: float) -> dict[str, Any]:
        return self.client.get(f"/telemetry?seconds={seconds:g}")

    def health(self) -> dict[str, Any]:
        status = self.client.get("/status")
        return {name: status.get(name) for name in ("events", "storage_error")}


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
    """Directly; STATE/lock is held by open_library."""

    state: StateDir
    store: Store

    def entries(self) -> list[ModelEntry]:
        return [_entry_of_row(row) for row in self.store.models()]

    def details(self, name: str) -> ModelDetails:
        from edge_agent.model_names import split_name

        model, tag = split_name(name)
        row = self.store.model(model)
        adapter = self._registry().chosen(model, tag)
        return ModelDetails(
            name=name,
            architecture=row.architecture,
            description=row.description,
            n_params=row.n_params,
            quantization=row.quantization,
            n_ctx_train=row.n_ctx_train,
            sha256=row.sha256,
            source=row.source,
            path=row.path,
            chat_template=row.chat_template,
            adapter=adapter.name if adapter else None,
        )

    def remove(self, name: str) -> None:
        """Rows go first: a crash may leave a file nobody names, never a name without one."""
        row = self.store.remove_model(name)
        self._registry().remove_all(name)
        path = self.state.path / row.path
        shared = any(self.state.path / other.path == path for other in self.store.models())
        if path.parent == self.state.models and not shared:
            path.unlink(missing_ok=True)

    def _registry(self) -> AdapterRegistry:
        from edge_agent.models.adapter_registry import AdapterRegistry

        return AdapterRegistry(self.store, self.state.path)

    def pull(self, source: str, name: str | None) -> Iterator[dict[str, Any]]:
        from edge_agent.store.store import ModelRow

        for event in run_pull(pull_command(source, name, self.state.path)):
            if event.get("status") == "success":
                self.store.add_model(ModelRow(**event["model"]))
            yield event

    def benchmarks(self, n: int) -> list[dict[str, Any]]:
        return self.store.benchmarks(min(n, MAX_BENCHMARKS))

    def add_benchmarks(self, documents: Sequence[Mapping[str, Any]]) -> int:
        return self.store.add_benchmarks(documents).result()

    def telemetry(self, seconds: float) -> dict[str, Any]:
        """Stored rows only: without a daemon nobody reads the sensors."""
        from edge_agent.store.rows import without_texts

        now = time.time()
        rows = self.store.recent_generations(20)
        return {
            "now": now,
            "points": [asdict(row) for row in self.store.samples(now - seconds, now)],
            "generations": [without_texts(row) for row in rows],
        }

    def health(self) -> dict[str, Any]:
        return self.store.health()


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


def _entry_of_tag(tag: Mapping[str, Any]) -> ModelEntry:
    details = tag.get("details") or {}
    return ModelEntry(
        name=str(tag.get("name")),
        size_bytes=tag.get("size"),
        sha256=str(tag.get("digest") or "").removeprefix("sha256:") or None,
        architecture=details.get("family"),
        parameters=details.get("parameter_size"),
        quantization=details.get("quantization_level"),
        added_at=tag.get("modified_at"),
    )


def _entry_of_row(row: ModelRow) -> ModelEntry:
    added = datetime.fromtimestamp(row.added_at, timezone.utc)
    return ModelEntry(
        name=row.name,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        architecture=row.architecture,
        parameters=parameter_size(row.n_params),
        quantization=row.quantization,
        added_at=added.isoformat().replace("+00:00", "Z"),
    )


def parameter_size(n_params: int) -> str:
    """As the daemon's /api/tags writes it: 268.10M, 1.00B."""
    return f"{n_params / 1e9:.2f}B" if n_params >= 1e9 else f"{n_params / 1e6:.2f}M"
