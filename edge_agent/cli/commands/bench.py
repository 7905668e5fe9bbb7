"""bench: measure models on this machine, with energy and heat, and keep the result.

Flows in: models, llama-bench's options, a state directory. Flows out: one document per test in the
store and a table, or the documents as JSON, JSON lines, CSV or Markdown; the table's last line is
one JSON document. Not here: flags (bench_options.py), carrying a plan out
(edge_agent/bench/trials.py), what a document holds (edge_agent/bench/document.py).
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent import json_lines
from edge_agent.cli.commands.bench_options import (
    BenchOptions,
    engine_settings,
    plan_of,
    power_choice,
)
from edge_agent.cli.terminal import Terminal
from edge_agent.errors import DaemonRunning, EdgeAgentError

if TYPE_CHECKING:
    from edge_agent.bench.engines import BenchEngine
    from edge_agent.bench.trials import Bench, TrialPlan
    from edge_agent.records import EngineSettings, ModelInfo


@dataclass(frozen=True)
class BenchTarget:
    """One model to measure."""

    name: str
    path: Path
    sha256: str | None


def bench(options: BenchOptions, terminal: Terminal) -> int:
    """Measure prefill, decode and chats: tok/s, ttft, joules per token, heat, memory.

    Lists are comma-separated; ranges are FIRST-LAST+STEP or FIRST-LAST*FACTOR. The board rests
    first (--idle-s) and cools down between tests. Nothing else should run meanwhile.

    Examples:
      edge-agent bench
      edge-agent bench smollm2-135m -p 128,512 -n 64 -r 3 --scenario raw
      edge-agent bench gemma3-270m --languages hi --concurrency 1,2,4 --jsonl > orin.jsonl
      edge-agent bench --daemon --scenario chat
    """
    plan = plan_of(options)
    targets = _targets(options, terminal)
    documents: list[dict[str, Any]] = []
    try:
        for document in _documents(options, terminal, plan, targets):
            documents.append(document)
    finally:
        stored = _keep(options, terminal, documents)
    print_documents(options, terminal, documents, stored)
    return 0


def _targets(options: BenchOptions, terminal: Terminal) -> list[BenchTarget]:
    """Raises ModelNotFound."""
    from edge_agent.client.connection import state_dir_of
    from edge_agent.client.models import open_models
    from edge_agent.models.which_model import no_model

    asked = options.models or []
    files = [Path(name) for name in asked if name.endswith(".gguf")]
    targets = [BenchTarget(path.stem, path.absolute(), None) for path in files]
    if asked and len(files) == len(asked):
        return targets
    state = state_dir_of(options.state_dir, terminal.environ)
    with open_models(options.state_dir, terminal.environ) as library:
        names = [name for name in asked if not name.endswith(".gguf")]
        for name in names or [model.name for model in library.registered()]:
            found = library.details(name)
            targets.append(BenchTarget(found.name, state / found.path, found.sha256))
    if not targets:
        raise no_model()
    return targets


# ---- doing it --------------------------------------------------------------------------------


def _documents(
    options: BenchOptions, terminal: Terminal, plan: TrialPlan, targets: Sequence[BenchTarget]
) -> Iterator[dict[str, Any]]:
    """One document per test, each as soon as its test is finished."""
    from edge_agent.bench.trials import Bench
    from edge_agent.monitor.board_sampler import BoardSampler

    settings = engine_settings(options, plan)
    if options.daemon:
        settings = settings[:1]
    else:
        _refuse_beside_daemon(options, terminal)
    pids: dict[str, int] = {}
    sampler = BoardSampler(
        options.sensors_root.absolute(),
        source=power_choice(options),
        pids=lambda: pids,
    )
    run_id = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    with ExitStack() as stack:
        stack.callback(sampler.close)
        sampler.start()
        total = len(targets) * len(settings) * plan.steps
        tick = stack.enter_context(_bar(terminal, total))
        runner = Bench(plan, sampler, tick=tick, notice=terminal.note)
        terminal.note(f"idle baseline: {plan.idle_s:g} s" if plan.idle_s else "no idle baseline")
        baseline = runner.baseline()
        for target, chosen in itertools.product(targets, settings):
            with _engine(options, terminal, target, chosen) as (engine, info):
                if engine.pid is not None:
                    pids["worker"] = engine.pid
                describe = _describer(options, runner, target, chosen, info, run_id)
                for outcome in runner.run(engine, baseline):
                    yield describe(engine, outcome)


def _refuse_beside_daemon(options: BenchOptions, terminal: Terminal) -> None:
    """Raises DaemonRunning when a daemon has a model loaded: the two would share the cores."""
    from edge_agent.client.connection import find_daemon
    from edge_agent.errors import DaemonNotRunning

    try:
        client = find_daemon(options.state_dir, terminal.environ, 5.0)
        engine = client.get("/status").get("engine") or {}
    except DaemonNotRunning:
        return
    if engine.get("state") in ("ready", "loading", "restarting"):
        raise DaemonRunning(
            "a daemon has a model loaded",
            "two engines on the same cores and memory would measure each other",
            "unload it with `edge-agent stop`, or measure the daemon itself with --daemon",
        )


@contextmanager
def _engine(
    options: BenchOptions, terminal: Terminal, target: BenchTarget, settings: EngineSettings
) -> Iterator[tuple[BenchEngine, ModelInfo]]:
    """A worker of our own, or, with --daemon, the daemon after it has loaded the model."""
    from edge_agent.bench.engines import DaemonEngine, WorkerEngine
    from edge_agent.client.connection import find_daemon

    if not options.daemon:
        with WorkerEngine(target.path, target.name, settings) as worker:
            yield worker, worker.info
        return
    client = find_daemon(options.state_dir, terminal.environ, 600.0)
    client.post("/engine/load", {"model": target.name})
    status = client.get("/status")
    yield DaemonEngine(client, target.name, status.get("worker_pid")), _info(status)


def _info(status: dict[str, Any]) -> ModelInfo:
    import msgspec

    from edge_agent.records import ModelInfo

    return msgspec.convert(status.get("model_info"), ModelInfo)


def _describer(
    options: BenchOptions,
    runner: Bench,
    target: BenchTarget,
    settings: EngineSettings,
    info: ModelInfo,
    run_id: str,
) -> Any:
    """A function that makes the document of an engine and an Outcome."""
    from edge_agent.bench.bandwidth import bytes_per_token, read_bandwidth
    from edge_agent.bench.document import Subject, document
    from edge_agent.gguf.model_file import read_gguf
    from edge_agent.monitor.sensors.readings import Board

    gguf = read_gguf(target.path)
    seen = runner.sampler.snapshot()
    bandwidth = read_bandwidth(info.n_threads)

    def describe(engine: BenchEngine, outcome: Any) -> dict[str, Any]:
        test = outcome.test
        subject = Subject(
            run_id=run_id,
            engine=engine.name,
            model=target.name,
            info=info,
            settings=settings,
            quantization=gguf.quantization,
            sha256=target.sha256,
            board=seen.board if seen else Board(),
            board_name=options.board_name or socket.gethostname(),
            bandwidth_bytes_per_s=bandwidth,
            bytes_per_token=bytes_per_token(gguf, settings, test.n_depth + test.n_gen / 2),
        )
        plan = runner.plan
        return document(subject, outcome, repetitions=plan.repetitions, warmup=plan.warmup)

    return describe


@contextmanager
def _bar(terminal: Terminal, total: int) -> Iterator[Any]:
    """A progress bar with remaining time on a terminal; elsewhere nothing is shown."""
    if not terminal.stderr.isatty():
        yield lambda label: None
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = terminal.console(terminal.stderr)
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("bench", total=total)
        yield lambda label: bar.update(task, advance=1, description=label)


# ---- what comes of it ------------------------------------------------------------------------


def _keep(options: BenchOptions, terminal: Terminal, documents: list[dict[str, Any]]) -> bool:
    """Whether the documents were stored. Called after Ctrl-C too, with those that were finished; an
    error of the store is printed and not raised, because the results are still to be shown."""
    from edge_agent.client.models import open_models

    if not options.store or not documents:
        return False
    try:
        with open_models(options.state_dir, terminal.environ) as library:
            library.add_benchmarks(documents)
    except EdgeAgentError as error:
        terminal.error(error)
        return False
    return True


def print_documents(
    options: BenchOptions, terminal: Terminal, documents: list[dict[str, Any]], stored: bool
) -> None:
    from edge_agent.bench import table

    if options.json:
        terminal.document(documents)
    elif options.jsonl:
        for document in documents:
            terminal.line(json_lines.dumps(document))
    elif options.csv:
        terminal.line(table.as_csv(documents))
    elif options.md:
        terminal.line(table.markdown(documents))
    else:
        terminal.table(table.HEADERS, table.rows(documents))
        for reason in table.reasons(documents):
            terminal.note(reason)
        medians = {f"{one['model']} {table.label(one)}": one["median_ts"] for one in documents}
        summary = {
            "run_id": documents[0]["run_id"] if documents else None,
            "documents": len(documents),
            "stored": stored,
            "median_tok_s": medians,
        }
        terminal.line(json_lines.dumps(summary))
