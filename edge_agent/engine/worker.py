"""The worker process: `python -m edge_agent.engine.worker --fd N`.

Why it exists: a malformed grammar, a truncated file or one flipped bit can kill a process that
calls llama.cpp, so this process can be replaced at any time and holds nothing but the model. Flows
in: records.ToWorker on socket N, which the front passes on; the first message is Load. Flows out:
records.FromWorker. Two threads: the reader, which sees EOF and cancellations at once, and the
engine, the only one that calls llama.cpp. Not here: scheduling (scheduler.py), HTTP (server/),
restarts (supervisor/).
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence

from edge_agent.engine.loading import LoadedEngine, load
from edge_agent.engine.scheduler import Scheduler
from edge_agent.errors import EdgeAgentError
from edge_agent.llama.binding import start_backend
from edge_agent.llama.context import DecodeFailed
from edge_agent.records import Failed, FromWorker, Load, Loaded, ToWorker
from edge_agent.wire import FrameDecoder, WireError, encode, to_worker

logger = logging.getLogger("edge_agent.worker")

EXIT_LOST_FRONT = 0
EXIT_LOAD_REFUSED = 10
EXIT_CONTEXT_LOST = 11
_READ_BYTES = 1 << 16


class WorkerFrontLink:
    """The socket to the front. `send` is called by the engine thread only."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder: FrameDecoder[ToWorker] = to_worker()
        self._early: list[ToWorker] = []

    def send(self, record: FromWorker) -> None:
        """Send a record. Blocks while the front is slow; ends this process when it is gone."""
        try:
            self._connection.sendall(encode(record))
        except OSError:
            os._exit(EXIT_LOST_FRONT)

    def read(self) -> list[ToWorker]:
        """The next messages; the list may be empty. Ends this process at EOF, whatever the engine
        thread is doing."""
        if self._early:
            early, self._early = self._early, []
            return early
        try:
            data = self._connection.recv(_READ_BYTES)
            if not data:
                os._exit(EXIT_LOST_FRONT)
            return self._decoder.feed(data)
        except (OSError, WireError) as error:
            logger.error("the front's socket failed: %s", error)
            os._exit(EXIT_LOST_FRONT)

    def first(self) -> Load:
        """The first message, which must be a Load; any other message ends this process."""
        while not (messages := self.read()):
            pass
        head, *self._early = messages
        if not isinstance(head, Load):
            logger.error("first message is %s, not Load", type(head).__name__)
            os._exit(EXIT_LOST_FRONT)
        return head


def _read_forever(link: WorkerFrontLink, inbox: _Inbox) -> None:
    while True:
        for message in link.read():
            inbox.put(message)


class _Inbox:
    """Keeps the messages that arrive while the model loads, then passes them to the scheduler."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scheduler: Scheduler | None = None
        self._early: list[ToWorker] = []

    def put(self, message: ToWorker) -> None:
        with self._lock:
            if self._scheduler is None:
                self._early.append(message)
                return
            scheduler = self._scheduler
        scheduler.submit(message)

    def connect(self, scheduler: Scheduler) -> None:
        with self._lock:
            for message in self._early:
                scheduler.submit(message)
            self._scheduler = scheduler


def serve(connection: socket.socket) -> int:
    """Load the model and answer until the front is gone, which ends the process.

    Returns an exit code only when the model is refused or the context can no longer be trusted.
    """
    link = WorkerFrontLink(connection)
    request = link.first()
    inbox = _Inbox()
    threading.Thread(target=_read_forever, args=(link, inbox), name="reader", daemon=True).start()
    try:
        log = start_backend()
        engine = load(request, log)
    except EdgeAgentError as error:
        link.send(Failed(None, error.code, error.what, error.why, error.hint))
        return EXIT_LOAD_REFUSED
    scheduler = _scheduler(engine, link, request)
    log.is_muted = True
    link.send(Loaded(engine.info))
    inbox.connect(scheduler)
    try:
        scheduler.run()
    except DecodeFailed as error:
        logger.error("%s", error)
    return EXIT_CONTEXT_LOST


def _scheduler(engine: LoadedEngine, link: WorkerFrontLink, request: Load) -> Scheduler:
    return Scheduler(engine, link.send, prefill_call_s=request.settings.prefill_call_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="edge_agent.engine.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the front")
    parser.add_argument("--log-level", default="WARNING")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=arguments.log_level, stream=sys.stderr, format="worker: %(levelname)s %(message)s"
    )
    code = serve(socket.socket(fileno=arguments.fd))
    sys.stderr.flush()
    os._exit(code)  # ggml's threads are not joined


if __name__ == "__main__":
    main()
