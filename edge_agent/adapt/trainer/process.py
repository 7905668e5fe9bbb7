"""The trainer process: `python -m edge_agent.adapt.trainer.process --fd N`.

Why it exists: training takes hours, all the memory that it is allowed and every idle cycle. In a
process of its own it can be slow, paused, killed and resumed while answers go on. Flows in:
ToTrainer records (adapt/messages.py) on socket N, which the front passes on; the first one is
Start. Flows out: FromTrainer records. A reader thread sees EOF and ends the process at once,
whatever the main thread computes. NumPy is imported after Start, because Start says how many
threads BLAS shall use. Not here: the run (training_run.py).
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

from edge_agent.adapt.messages import FromTrainer, Start, Stop, ToTrainer, TrainerFailed
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
"""When memory runs out, the kernel kills this process first: only a few steps are lost then."""
_READ_BYTES = 1 << 16


class TrainerFrontLink:
    """The socket to the front. `send` is called by one thread at a time (Reporter's lock)."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder: FrameDecoder[ToTrainer] = FrameDecoder(msgspec.msgpack.Decoder(ToTrainer))

    def send(self, record: FromTrainer) -> None:
        """Send a record. Blocks while the front is slow; ends this process when it is gone."""
        try:
            self._connection.sendall(encode(record))
        except OSError:
            os._exit(EXIT_LOST_FRONT)

    def read(self) -> list[ToTrainer]:
        """The next messages. Ends this process at EOF, which is safe, because the checkpoints are
        complete at any moment."""
        try:
            data = self._connection.recv(_READ_BYTES)
            if not data:
                os._exit(EXIT_LOST_FRONT)
            return self._decoder.feed(data)
        except (OSError, WireError) as error:
            logger.error("the front's socket failed: %s", error)
            os._exit(EXIT_LOST_FRONT)

    def first(self, orders: FrontOrders) -> Start:
        """The first message, which must be a Start. Messages that came with it go to `orders`."""
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
    """Carry out one Start. Returns an exit code; does not return when the front goes away."""
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
    """Carry out the run. Returns the last record of this process."""
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
    """BLAS threads: as many as the resumed run began with, or as Start says for a new run."""
    path = Path(start.run_dir) / manifest.FILE_NAME
    began = manifest.read(path) if start.resume else None
    wanted = start.settings.n_threads if began is None else began.circumstances.n_threads
    return blas.choose_threads(wanted)


def step_back() -> None:
    """Take the lowest priority, become the OOM killer's first choice, and write no core file (it
    would hold the training data).

    With autogroups (sched(7)) niceness counts only within a session. The trainer leads a session of
    its own, which would get as much CPU time as the worker's session, so its autogroup is made nice
    too.
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
    os._exit(code)  # BLAS's threads are not joined


if __name__ == "__main__":
    main()
