"""The front process: assembles the daemon's parts, announces the start, and stops in good order.

Flows in: `--settings JSON` as `edge-agent serve` resolved them, and signals. Flows out: the HTTP
API on the listeners, STATE/run.json, messages to systemd, plain lines on stderr. The start takes
the lock, then opens token, store, sockets and API, loads the configured model, and reports READY. A
stop (SIGTERM, SIGINT) refuses new connections and gives running requests drain_s; a second signal
ends them at once. SIGHUP is ignored, so that a daemon survives its terminal. This process imports
nothing that holds native model code. Not here: what a request does (server/).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TextIO

from aiohttp import web

from edge_agent import __version__
from edge_agent.adapt.activation import prove_unproved
from edge_agent.adapt.lesson_runner import LessonRunner
from edge_agent.adapt.pause_policy import PauseConditions
from edge_agent.config import Settings, load_settings, settings_from_json
from edge_agent.daemon import listeners, sd_notify
from edge_agent.daemon.listeners import Listeners, open_listeners
from edge_agent.daemon.sd_notify import Notifier
from edge_agent.errors import EdgeAgentError, StoreError, UsageError
from edge_agent.model_names import split_name
from edge_agent.monitor import monitor
from edge_agent.monitor.monitor import Monitor
from edge_agent.state_dir import StateDir
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor
from edge_agent.supervisor.worker_link import WORKER_ARGV

_LOG = logging.getLogger("edge_agent")

HANDLER_GRACE_S = 2.0
"""Time for the handlers to write their last bytes, after the engine has ended every request."""
PROGRESS_PERIOD_S = 5.0
"""Between two messages to systemd while a model loads."""
EXTEND_S = 30.0
"""What each of these messages adds to systemd's time limit; several periods, so none is late."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)

RunnerFactory = Callable[[Supervisor, Store, Settings, str, Monitor], web.AppRunner]


@dataclass(frozen=True)
class Daemon:
    """The parts that the tasks beside the HTTP server share."""

    settings: Settings
    state: StateDir
    supervisor: Supervisor
    store: Store
    listeners: Listeners
    notifier: Notifier
    started_at: float


def main(
    argv: Sequence[str] | None = None,
    *,
    environ: MutableMapping[str, str] = os.environ,
    stderr: TextIO = sys.stderr,
    worker_argv: Sequence[str] = WORKER_ARGV,
    runner_factory: RunnerFactory | None = None,
) -> int:
    """Serve until a signal. Returns the exit code: 0, 1 failure, 2 usage."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=stderr)
    # Other users must not read prompts in a core file or in a new file of the daemon.
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        settings = (
            settings_from_json(arguments.settings) if arguments.settings else load_settings({})
        )
        asyncio.run(_serve(settings, environ, worker_argv, runner_factory or _default_runner))
    except EdgeAgentError as error:
        _complain(error, stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_agent.daemon",
        description="The daemon itself. `edge-agent serve` resolves the settings and runs this.",
    )
    parser.add_argument("--settings", metavar="JSON", help="every setting, already resolved")
    return parser


def _complain(error: EdgeAgentError, stderr: TextIO) -> None:
    stderr.write(f"error: {error}\n")
    if error.hint:
        stderr.write(f"hint:  {error.hint}\n")


def _default_runner(
    supervisor: Supervisor, store: Store, settings: Settings, token: str, senses: Monitor
) -> web.AppRunner:
    # Imported late: a daemon that finds its lock or port taken then ends without loading the API.
    from edge_agent.server.app import build_app, build_runner

    return build_runner(build_app(supervisor, store, settings, token, senses))


async def _serve(
    settings: Settings,
    environ: MutableMapping[str, str],
    worker_argv: Sequence[str],
    runner_factory: RunnerFactory,
) -> None:
    """Assemble the parts, run until a signal, release the parts in the opposite order."""
    async with AsyncExitStack() as stack:
        from edge_agent.server.adapt import ADAPTATION

        stop = _stop_signals()
        state, store = _opened_state(settings, stack)
        listening = open_listeners(settings, environ)
        stack.callback(listening.close)
        notifier = _take_service_variables(environ)
        supervisor = Supervisor(settings, store, worker_argv, environ=dict(environ))
        supervisor.registry.note_start()
        daemon = Daemon(settings, state, supervisor, store, listening, notifier, time.time())
        senses = monitor.build(settings, store, supervisor)
        stack.callback(senses.close)
        senses.start()
        lesson_runner = LessonRunner(
            store, supervisor, PauseConditions(settings, senses), state.path, dict(environ)
        )
        stack.push_async_callback(lesson_runner.close)
        runner = runner_factory(supervisor, store, settings, state.token(), senses)
        runner.app[ADAPTATION] = lesson_runner
        await runner.setup()
        stack.push_async_callback(_clean_up, runner)
        for sock in listening.sockets:
            await web.SockSite(runner, sock).start()
        await _run(daemon, stop)
        for site in runner.sites:
            await site.stop()
        lesson_runner.stop()
        await _drain(daemon, stop)


def _opened_state(settings: Settings, stack: AsyncExitStack) -> tuple[StateDir, Store]:
    """The locked state directory and its store; `stack` releases both. Raises DaemonRunning,
    StoreError, ModelNotFound for a configured model that is not registered."""
    state = StateDir(settings.state_dir)
    state.acquire()
    stack.callback(state.release)
    store = Store(
        state.database, log_text=settings.log_text, keep_generations=settings.keep_generations
    )
    stack.callback(store.close)
    if settings.model is not None:
        store.model(split_name(settings.model)[0])
    return state, store


def _take_service_variables(environ: MutableMapping[str, str]) -> Notifier:
    """A Notifier for systemd's variables, which are removed so that no child can use them."""
    notifier = Notifier(environ)
    for name in (*sd_notify.VARIABLES, *listeners.VARIABLES):
        environ.pop(name, None)
    return notifier


def _stop_signals() -> asyncio.Queue[int]:
    """A queue that receives the number of each signal that asks for a stop."""
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[int] = asyncio.Queue()
    for number in SIGNALS:
        loop.add_signal_handler(number, received.put_nowait, number)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return received


async def _run(daemon: Daemon, stop: asyncio.Queue[int]) -> None:
    """Run the side tasks until the first stop signal; HTTP requests are served meanwhile."""
    _publish(daemon)
    side_tasks = [
        asyncio.create_task(_follow(daemon)),
        asyncio.create_task(_feed_watchdog(daemon)),
        asyncio.create_task(_become_ready(daemon)),
    ]
    try:
        await stop.get()
    finally:
        for task in side_tasks:
            task.cancel()
        await asyncio.gather(*side_tasks, return_exceptions=True)


async def _become_ready(daemon: Daemon) -> None:
    """Load the configured model and report readiness to systemd and the log.

    Then try out each adapter that an earlier daemon activated but could not try out before it
    ended.
    """
    _LOG.info("edge-agent %s, state in %s", __version__, daemon.state.path)
    model = daemon.settings.model
    if model is not None:
        await _preload(daemon, model)
    daemon.notifier.ready(_summary(daemon))
    _LOG.info("listening on %s", daemon.listeners)
    await prove_unproved(daemon.supervisor)


async def _preload(daemon: Daemon, model: str) -> None:
    """Load the configured model. A failure is reported and the daemon goes on.

    The daemon's API and CLI are the tools with which one repairs such a model.
    """
    loading = asyncio.ensure_future(daemon.supervisor.ensure_loaded(model))
    try:
        while not loading.done():
            daemon.notifier.extend_timeout(EXTEND_S)
            daemon.notifier.status(f"loading {model}")
            await asyncio.wait({loading}, timeout=PROGRESS_PERIOD_S)
        info = loading.result()
    except EdgeAgentError as error:
        _LOG.error("%s", error)
        if error.hint:
            _LOG.error("hint: %s", error.hint)
    else:
        _LOG.info("model %s loaded in %.2f s", model, info.load_s)
    finally:
        loading.cancel()


async def _follow(daemon: Daemon) -> None:
    """Rewrite run.json and the status line whenever the worker changes."""
    while True:
        await daemon.supervisor.wait_for_change()
        _publish(daemon)
        daemon.notifier.status(_summary(daemon))


def _publish(daemon: Daemon) -> None:
    """Write STATE/run.json, on which scripts rely: the process ids and the two addresses."""
    values = {
        "pid": os.getpid(),
        "worker_pid": daemon.supervisor.status().worker_pid,
        "socket": str(daemon.listeners.unix_path) if daemon.listeners.unix_path else None,
        "port": daemon.listeners.port,
        "version": __version__,
        "started_at": daemon.started_at,
    }
    try:
        if daemon.state.read_run() != values:
            daemon.state.write_run(values)
    except StoreError as error:
        _LOG.error("%s", error)


def _summary(daemon: Daemon) -> str:
    """One line for `systemctl status`."""
    status = daemon.supervisor.status()
    model = f" {status.model}" if status.model else ""
    reason = f": {status.reason}" if status.reason else ""
    return f"{status.state}{model}{reason}"


async def _feed_watchdog(daemon: Daemon) -> None:
    """Ping systemd's watchdog while this event loop runs and the store's writer thread is alive.

    A hung worker does not stop the pings, because the supervisor kills and replaces it.
    """
    period_s = daemon.notifier.watchdog_period_s
    while period_s is not None and daemon.store.is_alive():
        daemon.notifier.watchdog()
        await asyncio.sleep(period_s)


async def _clean_up(runner: web.AppRunner) -> None:
    """Let handlers write their last bytes; disconnect clients that do not read them in time."""
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(runner.cleanup(), HANDLER_GRACE_S)


async def _drain(daemon: Daemon, stop: asyncio.Queue[int]) -> None:
    """End the engine within drain_s, or at once when a second signal comes."""
    drain_s = daemon.settings.drain_s
    daemon.notifier.stopping(f"draining for at most {drain_s:g} s")
    daemon.notifier.extend_timeout(drain_s + EXTEND_S)
    _LOG.info("stopping; running requests have %g s, a second signal ends them", drain_s)
    closing = asyncio.create_task(daemon.supervisor.close(drain_s))
    hurried = asyncio.create_task(stop.get())
    await asyncio.wait({closing, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not closing.done():
        await daemon.supervisor.close(0)
    await closing
    hurried.cancel()
    with suppress(OSError):
        daemon.state.remove_run()
