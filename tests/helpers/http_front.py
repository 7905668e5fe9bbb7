"""A real front on real sockets, in a thread with its own event loop, over a fake supervisor."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from fake_engine import FakeSupervisor, model_row
from waiting import DEADLINE_S

from edge_agent.config import Settings
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.monitor.monitor import Monitor
from edge_agent.monitor.monitor import build as build_monitor
from edge_agent.server.app import build_app, build_runner
from edge_agent.server.limits import Limits
from edge_agent.server.pull import DEFAULT_COMMAND, PULL_COMMAND
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor

TOKEN = "test-token"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def text(self) -> str:
        return self.body.decode()

    def events(self) -> list[Any]:
        """Server-sent events as JSON values; '[DONE]' stays a string."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == ""
        data = [part.removeprefix("data: ") for part in parts]
        return [one if one == "[DONE]" else json.loads(one) for one in data]

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Front:
    supervisor: FakeSupervisor
    store: Store
    settings: Settings
    app: web.Application
    socket_path: Path
    port: int = 0
    monitor: Monitor | None = None
    """The one that reads sensors; None: the app has one that never starts, on a bare machine."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Answer:
        """One request over TCP; `body` is a value to be sent as JSON, or bytes."""
        sent = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            sent["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.call("POST", path, body, **options)

    def get(self, path: str, **options: Any) -> Answer:
        return self.call("GET", path, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)

    def send(self, raw: bytes) -> socket.socket:
        peer = self.connect()
        peer.sendall(raw)
        return peer

    def raw_post(self, path: str, body: Any) -> bytes:
        """The bytes of a correct POST."""
        data = json.dumps(body).encode()
        return (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        ).encode() + data


async def _serve(front: Front, ready: threading.Event, stop: asyncio.Event) -> None:
    if front.monitor is not None:
        front.monitor.start()
    runner = build_runner(front.app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    await web.UnixSite(runner, str(front.socket_path)).start()
    front.port = runner.addresses[0][1]
    ready.set()
    await stop.wait()
    await runner.cleanup()
    _close_abandoned(front.loop)
    await asyncio.sleep(0)


def _close_abandoned(loop: asyncio.AbstractEventLoop) -> None:
    """A client that leaves before its first byte, as `doctor` does, leaves a transport that aiohttp
    has let go of; the garbage collector would warn about it in whatever test runs next."""
    for found in gc.get_objects():
        if isinstance(found, asyncio.Transport) and getattr(found, "_loop", None) is loop:
            found.abort()


@contextmanager
def serving(
    tmp_path: Path,
    supervisor: FakeSupervisor | None = None,
    limits: Limits | None = None,
    pull_command: tuple[str, ...] = DEFAULT_COMMAND,
    senses: bool = False,
    **settings: Any,
) -> Iterator[Front]:
    """A running front. `senses`: with a real sampler that reads below settings["sensors_root"]."""
    supervisor = supervisor or FakeSupervisor()
    chosen = Settings(state_dir=tmp_path, port=0, **settings)
    store = Store(tmp_path / "edge-agent.db", log_text=chosen.log_text)
    for name in supervisor.known:
        store.add_model(model_row(name, f"models/{name}.gguf"))
    supervisor.store, supervisor.configured = store, chosen.model
    supervisor.registry = AdapterRegistry(
        store, tmp_path, chosen.keep_adapters, check=lambda path, base, sha256: None
    )
    engine = cast(Supervisor, supervisor)
    bare = {"sensors_root": tmp_path / "no-sensors", "guard": False}
    monitor = build_monitor(chosen if senses else chosen.model_copy(update=bare), store, engine)
    app = build_app(engine, store, chosen, TOKEN, monitor, limits=limits or Limits())
    app[PULL_COMMAND] = pull_command
    front = Front(supervisor, store, chosen, app, tmp_path / "agent.sock")
    front.monitor = monitor if senses else None
    ready, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(
        target=front.loop.run_until_complete, args=(_serve(front, ready, stop),), daemon=True
    )
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield front
    finally:
        front.loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        if senses:
            monitor.close()
        front.loop.close()
        store.close()
