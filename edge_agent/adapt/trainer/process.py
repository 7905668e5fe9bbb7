"""The trainer process: `python -m edge_agent.adapt.trainer.process --fd N`.

Why it exists: learning takes hours, all the memory it may have and every idle cycle; in a process
of its own it can be slow, paused, killed and resumed while answers go on. Flows in: ToTrainer
(messages.py) on the socket N inherited from the front, the first being Start. Flows out:
FromTrainer. A reader thread sees EOF and ends the process at once, whatever is being computed.
NumPy is imported after Start, which says how many threads BLAS shall make. Not here: the run
(training_run.py).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_agent.adapt.messages import (
    FromTrainer,
    Start,
    Stop,
    ToTrainer,
    TrainerFailed,
)
from edge_agent.adapt.trainer import blas, heap, manifest
from edge_agent.adapt.trainer.pauses import FrontOrders
from edge_agent.adapt.trainer.reporter import Reporter
from edge_agent.errors import EdgeAgentError, StoreError, TrainingFailed
from edge_agent.wire import FrameDecoder, WireError, encode

logger = logging.getLogger("edge_agent.trainer")

EXIT_LOST_FRONT = 0
EXIT_FAILED = 10
NICENESS = 19
OOM_SCORE_ADJ = 900
"""The first that the kernel shall take when memory runs out: nothing is lost but a few steps."""
_READ_BYTES = 1 << 16


class TrainerFrontLink:
    """The socket to the front. `send` is called by one thread at a time (Reporter's lock)."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder: FrameDecoder[ToTrainer] = FrameDecoder(msgspec.msgpack.Decoder(ToTrainer))

    def send(self, record: FromTrainer) -> None:
        """Blocks while the front is slow; a front that is gone ends this process."""
        try:
            self._connection.sendall(encode(record))
        except OSError:
            os._exit(EXIT_LOST_FRONT)

    def read(self) -> list[ToTrainer]:
        """The next messages. Ends this process at EOF: its checkpoints are whole at any moment."""
        try:
            data = self._connection.recv(_READ_BYTES)
            if not data:
                os._exit(EXIT_LOST_FRONT)
            return self._decoder.feed(data)
        except (OSError, WireError) as error:
            logger.error("the front's socket failed: %s", error)
            os._exit(EXIT_LOST_FRONT)

    def first(self, orders: FrontOrders) -> Start:
        """The Start every trainer's life begins with; what came with it goes to `orders`."""
        while not (messages := self.read()):
            pass
        head, *rest = messages
        if not isinstance(head, Start):
            logger.error("first message is %s, not Start", type(head).__name__)
            os._exit(EXIT_LOST_FRONT)
        for message in rest:
            orders.take(message)
        return head


def _read_forever(link: TrainerFrontLink, orders: FrontOrders) -> None:
    while True:
        for message in link.read():
            orders.take(message)


def serve(connection: socket.socket) -> int:
    """Carry out one Start. Returns an exit code, or never when the front goes away."""
    link, orders = TrainerFrontLink(connection), FrontOrders()
    start = link.first(orders)
    threading.Thread(target=_read_forever, args=(link, orders), name="reader", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: orders.take(Stop()))
    with Reporter(link.send) as reporter:
        last = _carried_out(start, orders, reporter)
    link.send(last)
    connection.shutdown(socket.SHUT_WR)
    return EXIT_FAILED if isinstance(last, TrainerFailed) else 0


def _carried_out(start: Start, orders: FrontOrders, reporter: Reporter) -> FromTrainer:
    """The last record of this process."""
    try:
        blas.announce(_threads(start), os.environ)
        from edge_agent.adapt.trainer.training_run import carry_out

        return carry_out(start, orders, reporter)
    except EdgeAgentError as error:
        return TrainerFailed(error.code, error.what, error.why, error.hint)
    except OSError as error:
        logger.exception("the disk failed")
        hint = "correct the disk or its permissions, then `edge-agent adapt resume`"
        return TrainerFailed(StoreError.code, f"{start.run_dir} cannot be used", str(error), hint)
    except MemoryError as error:
        hint = "give it more with --memory, or take fewer layers or smaller rows"
        why = f"out of memory: {error}"
        return TrainerFailed(TrainingFailed.code, f"training {start.name} failed", why, hint)
    except Exception as error:
        logger.exception("the trainer failed")
        hint = "this is a defect; the run keeps its last checkpoint"
        return TrainerFailed(
            TrainingFailed.code, f"training {start.name} failed", repr(error), hint
        )


def _threads(start: Start) -> int:
    """As many as the run began with, else as Start says."""
    path = Path(start.run_dir) / manifest.FILE_NAME
    began = manifest.read(path) if start.resume else None
    wanted = start.settings.n_threads if began is None else began.circumstances.n_threads
    return blas.choose_threads(wanted)


def step_back() -> None:
    """Lowest priority, first choice of the OOM killer, no core file (it would hold the data).

    Niceness counts within a session (sched(7), the autogroup feature). The trainer leads one of its
    own, which would get as much of the processor as the worker's: that has to be nice, too.
    """
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICENESS))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="edge_agent.adapt.trainer.process", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the front")
    parser.add_argument("--log-level", default="WARNING")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=arguments.log_level, stream=sys.stderr, format="trainer: %(levelname)s %(message)s"
    )
    step_back()
    heap.map_large_blocks()
    code = serve(socket.socket(fileno=arguments.fd))
    sys.stderr.flush()
    os._exit(code)  # BLAS's threads need no farewell


if __name__ == "__main__":
    main()
