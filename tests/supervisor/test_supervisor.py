"""Supervision against a real process that misbehaves on command (tests/helpers/fakes.py)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import fakes
import pytest
from supervised import add, run, supervising, text_of
from waiting import ManualClock, until_async

from edge_agent.clocks import Clocks
from edge_agent.config import Settings
from edge_agent.errors import (
    ContextExceeded,
    EdgeAgentError,
    ModelNotFound,
    ModelQuarantined,
    ModelRefused,
    Overloaded,
    RequestError,
    ShuttingDown,
    UsageError,
    WorkerFailed,
)
from edge_agent.monitor.monitor import _pids
from edge_agent.records import (
    Began,
    Chunk,
    Done,
    Generate,
    Generation,
    QuerySlots,
    Sampling,
    Tokenize,
    Tokens,
)
from edge_agent.store.store import ModelRow, Store
from edge_agent.supervisor import loaded_model, model_turns
from edge_agent.supervisor.supervisor import Supervisor
from edge_agent.supervisor.worker_link import MAX_UNREAD, WorkerLink


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "edge-agent.db") as store:
        yield store


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for another model waits hardly longer than the requests that run."""
    monkeypatch.setattr(model_turns, "TURN_S", 0.1)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def sent(row: ModelRow, kind: str) -> list[dict[str, object]]:
    return [record for record in fakes.log_of(row) if record["type"] == kind]


# ---- answering ---------------------------------------------------------------------------------


def test_a_request_loads_the_model_and_is_answered(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            assert supervisor.status().state == "idle"
            began, *events = [e async for e in supervisor.generate(None, fakes.generate(chunks=3))]
            assert began == Began("tiny")
            assert [event.text for event in events] == ["1 ", "2 ", "3 ", ""]
            assert isinstance(events[-1], Done)
            status = supervisor.status()
            assert (status.state, status.model, status.in_flight) == ("ready", "tiny", 0)
            assert status.worker_pid is not None and is_alive(status.worker_pid)

    run(work())


def test_many_requests_share_one_worker_without_mixing(store: Store) -> None:
    row = add(store, slots=4)

    async def work() -> None:
        async with supervising(store) as supervisor:
            counts = range(1, 16)
            tasks = [text_of(supervisor, chunks=n, every_s=0.005) for n in counts]
            texts = await asyncio.gather(*tasks)
            assert texts == ["".join(f"{i} " for i in range(1, n + 1)) for n in counts]

    run(work())
    assert len(sent(row, "load")) == 1


def test_name_with_latest_is_the_name_and_an_unknown_one_is_refused(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            assert (await supervisor.ensure_loaded("tiny:latest")).name == "tiny"
            with pytest.raises(ModelNotFound, match="other"):
                await supervisor.ensure_loaded("other")

    run(work())


def test_no_registered_model_is_said_and_not_an_index_error(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            with pytest.raises(ModelNotFound, match="none is registered"):
                await supervisor.ensure_loaded(None)

    run(work())


def test_a_missing_model_file_is_named(store: Store) -> None:
    row = add(store)
    Path(row.path).unlink()

    async def work() -> None:
        async with supervising(store) as supervisor:
            with pytest.raises(ModelNotFound, match=r"tiny\.gguf"):
                await supervisor.ensure_loaded(None)
            assert supervisor.status().crashes == 0

    run(work())


def test_questions_are_answered_and_slots_never_load(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            await supervisor.ask(None, QuerySlots(id=0))
            assert sent(row, "load") == []
            answer = await supervisor.ask(None, Tokenize(id=0, content="ab"))
            assert isinstance(answer, Tokens) and answer.tokens == [97, 98]

    run(work())


def test_a_typed_failure_reaches_its_request_only(store: Store) -> None:
    row = add(store, slots=2)

    async def work() -> None:
        async with supervising(store) as supervisor:
            other = asyncio.create_task(text_of(supervisor, chunks=20, held=True))
            with pytest.raises(ContextExceeded):
                await text_of(supervisor, then="error:context_length_exceeded")
            fakes.release(row.path)
            assert (await other).endswith("20 ")
            assert supervisor.status().crashes == 0

    run(work())


def test_half_a_surrogate_pair_is_a_bad_request_not_a_crash(store: Store) -> None:
    add(store)
    request = Generate(id=0, sampling=Sampling(), max_tokens=1, text="\ud800")

    async def work() -> None:
        async with supervising(store) as supervisor:
            with pytest.raises(RequestError):
                async for _ in supervisor.generate(None, request):
                    pass
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())


# ---- crashes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGKILL"])
def test_death_mid_stream_names_the_signal_and_the_next_request_is_answered(
    store: Store, name: str
) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            seen: list[Generation] = []
            with pytest.raises(WorkerFailed, match=name):
                async for event in supervisor.generate(None, fakes.generate(then=f"die:{name}")):
                    seen.append(event)
            assert [event.text for event in seen if isinstance(event, Chunk)] == ["1 ", "2 "]
            first = supervisor.status().worker_pid
            assert await text_of(supervisor, chunks=1) == "1 "
            status = supervisor.status()
            assert (status.state, status.crashes, status.restarts) == ("ready", 1, 1)
            assert status.worker_pid != first

    run(work())
    assert [event.kind for event in store.recent_events(9)].count("worker_crashed") == 1


def test_every_request_in_a_dead_worker_fails_at_once(store: Store) -> None:
    add(store, slots=2)

    async def work() -> None:
        async with supervising(store) as supervisor:
            others = [asyncio.create_task(text_of(supervisor, chunks=1, every_s=60)) for _ in "abc"]
            await until_async(lambda: supervisor.status().in_flight == 2)
            pid = supervisor.status().worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            outcomes = await asyncio.gather(*others, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [WorkerFailed] * 3

    run(work())


def test_an_idle_worker_that_dies_is_replaced_before_anybody_asks(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            await supervisor.ensure_loaded(None)
            pid = supervisor.status().worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGSEGV)
            await until_async(lambda: supervisor.status().restarts == 1)
            await until_async(lambda: supervisor.status().state == "ready")
            assert supervisor.status().worker_pid not in (pid, None)

    run(work())


def test_garbage_on_the_socket_is_a_crash(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            with pytest.raises(WorkerFailed, match="no worker sends"):
                await text_of(supervisor, then="garbage")
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())


def test_an_answer_to_another_question_ends_that_worker(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            with pytest.raises(WorkerFailed, match="another question"):
                await text_of(supervisor, then="tokens")
            await until_async(lambda: supervisor.status().crashes == 1)

    run(work())


def test_a_spent_crash_budget_quarantines_and_stop_lifts_it(store: Store) -> None:
    add(store)
    add(store, "other")

    async def work() -> None:
        async with supervising(store, crash_budget=2) as supervisor:
            for _ in range(2):
                with pytest.raises(WorkerFailed):
                    await text_of(supervisor, "tiny", then="die:SIGSEGV")
            with pytest.raises(ModelQuarantined, match="2 worker crashes.*SIGSEGV"):
                await text_of(supervisor, "tiny")
            status = supervisor.status()
            assert (status.state, status.model, status.crashes) == ("quarantined", "tiny", 2)
            assert "edge-agent stop" in status.reason
            assert await text_of(supervisor, "other", chunks=1) == "1 "
            await supervisor.unload()
            assert await text_of(supervisor, "tiny", chunks=1) == "1 "

    run(work())
    assert "model_quarantined" in [event.kind for event in store.recent_events(20)]


def test_pulling_the_model_again_lifts_its_quarantine(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store, crash_budget=1) as supervisor:
            with pytest.raises(WorkerFailed):
                await text_of(supervisor, then="die:SIGSEGV")
            with pytest.raises(ModelQuarantined):
                await text_of(supervisor)
            store.add_model(ModelRow(**{**vars(row), "added_at": row.added_at + 1}))
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())


def test_a_load_that_dies_is_a_crash_shared_by_all_its_waiters(store: Store) -> None:
    row = add(store, held=True, crash_once=True)

    async def work() -> None:
        async with supervising(store) as supervisor:
            waiters = [asyncio.create_task(text_of(supervisor)) for _ in range(4)]
            await until_async(lambda: supervisor.status().queued == 4)
            fakes.release(row.path)
            outcomes = await asyncio.gather(*waiters, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [WorkerFailed] * 4
            assert supervisor.status().crashes == 1
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())
    assert len(sent(row, "load")) == 2


def test_a_refused_load_is_typed_and_no_crash(store: Store) -> None:
    add(store, then="refuse")

    async def work() -> None:
        async with supervising(store) as supervisor:
            with pytest.raises(ModelRefused, match="2 > 1"):
                await text_of(supervisor)
            status = supervisor.status()
            assert (status.state, status.crashes) == ("idle", 0)
            assert "does not fit" in status.reason

    run(work())


def test_a_file_is_hashed_once_until_it_changes(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            for _ in range(2):
                await supervisor.ensure_loaded(None)
                await supervisor.unload()
            os.utime(row.path, (1, 1))
            await supervisor.ensure_loaded(None)

    run(work())
    loads = sent(row, "load")
    assert [load["sha256"] for load in loads] == [fakes.SHA256, None, fakes.SHA256]
    assert [load["plan"] is not None for load in loads] == [False, True, False]


# ---- hangs and timeouts ------------------------------------------------------------------------


def test_a_hung_worker_is_killed_and_counted(store: Store) -> None:
    add(store)
    clock = ManualClock()

    def pass_time(task: asyncio.Task[str]) -> bool:
        clock.now_s += 0.1
        return task.done()

    async def work() -> None:
        clocks = Clocks(monotonic=clock)
        async with supervising(store, clocks, worker_timeout_s=0.3) as supervisor:
            hung = asyncio.create_task(text_of(supervisor, then="wedge"))
            await until_async(lambda: pass_time(hung))
            with pytest.raises(WorkerFailed, match=r"silent for 0\.3 s"):
                await hung
            assert supervisor.status().crashes == 1
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())


def test_a_slow_worker_that_answers_pings_is_not_killed(store: Store) -> None:
    row = add(store)
    clock = ManualClock()

    async def work() -> None:
        clocks = Clocks(monotonic=clock)
        async with supervising(store, clocks, worker_timeout_s=0.2) as supervisor:
            slow = asyncio.create_task(text_of(supervisor, held=True))
            await until_async(lambda: sent(row, "generate"))
            worker = supervisor._loaded.worker
            assert worker is not None
            for _ in range(5):
                clock.now_s += 0.15
                await until_async(lambda: worker.link.last_frame_s == clock.now_s)
            fakes.release(row.path)
            assert await slow == "1 2 "
            assert supervisor.status().crashes == 0

    run(work())
    assert len(sent(row, "ping")) >= 3


def test_a_load_without_an_end_is_killed(store: Store) -> None:
    add(store, then="mute")

    async def work() -> None:
        async with supervising(store, load_timeout_s=0.2) as supervisor:
            with pytest.raises(WorkerFailed, match=r"longer than 0\.2 s"):
                await text_of(supervisor)

    run(work())


def test_a_stopped_worker_does_not_block_close(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            await supervisor.ensure_loaded(None)
            pid = supervisor.status().worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            await supervisor.close(0)
            assert not is_alive(pid)

    run(work())


# ---- clients that leave, or stay too long -------------------------------------------------------


def test_closing_a_stream_cancels_it_in_the_worker(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            stream = supervisor.generate(None, fakes.generate(chunks=1000, every_s=0.01))
            await stream.__anext__()
            await stream.aclose()
            assert supervisor.status().in_flight == 1, "counted until the worker confirms"
            await until_async(lambda: supervisor.status().in_flight == 0)

    run(work())
    (request,) = sent(row, "generate")
    assert [record["id"] for record in sent(row, "cancel")] == [request["id"]]


def test_a_finished_stream_is_not_cancelled(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            await text_of(supervisor)
            await supervisor.ask(None, Tokenize(id=0, content="barrier"))

    run(work())
    assert sent(row, "cancel") == []


def test_a_client_that_leaves_during_a_load_does_not_stop_the_load(store: Store) -> None:
    row = add(store, held=True)

    async def work() -> None:
        async with supervising(store) as supervisor:
            leaving = asyncio.create_task(text_of(supervisor))
            await until_async(lambda: supervisor.status().worker_pid)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            assert supervisor.status().state == "loading"
            fakes.release(row.path)
            await until_async(lambda: supervisor.status().state == "ready")

    run(work())
    assert sent(row, "generate") == []


def test_an_answer_nobody_reads_is_cancelled_at_the_bound(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            stream = supervisor.generate(None, fakes.generate(chunks=MAX_UNREAD * 2, every_s=0))
            await stream.__anext__()
            await until_async(lambda: supervisor.status().in_flight == 0)
            with pytest.raises(RequestError, match="does not read"):
                async for _ in stream:
                    pass

    run(work())
    assert len(sent(row, "cancel")) == 1


def test_a_full_queue_refuses_at_once_and_says_when_to_return(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store, max_queue=2) as supervisor:
            running = [asyncio.create_task(text_of(supervisor, held=True)) for _ in range(3)]
            await until_async(lambda: supervisor.status().in_flight == 1)
            assert supervisor.status().queued == 2
            with pytest.raises(Overloaded) as refused:
                await text_of(supervisor)
            assert 1 <= refused.value.retry_after_s <= 60
            fakes.release(row.path)
            await asyncio.gather(*running)
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())
    assert len(sent(row, "generate")) == 4


def test_cancelled_requests_still_in_the_worker_count_against_the_queue(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store, max_queue=0) as supervisor:
            plan = fakes.generate(held=True, obeys_cancel=False)
            stream = supervisor.generate(None, plan)
            await stream.__anext__()
            await stream.aclose()
            with pytest.raises(Overloaded):
                await text_of(supervisor)
            fakes.release(row.path)
            await until_async(lambda: supervisor.status().in_flight == 0)
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())


# ---- changing and unloading ---------------------------------------------------------------------


@pytest.mark.usefixtures("short_turns")
def test_another_model_waits_for_the_running_requests(store: Store) -> None:
    row = add(store, "a")
    add(store, "b")

    async def work() -> None:
        async with supervising(store) as supervisor:
            first = asyncio.create_task(text_of(supervisor, "a", chunks=10, held=True))
            await until_async(lambda: supervisor.status().in_flight == 1)
            pid = supervisor.status().worker_pid
            second = asyncio.create_task(text_of(supervisor, "b", chunks=1))
            await until_async(lambda: supervisor.status().state == "loading")
            fakes.release(row.path)
            assert await second == "1 "
            assert first.done() and (await first).endswith("10 ")
            assert supervisor.status().model == "b"
            assert pid is not None and not is_alive(pid)

    run(work())


@pytest.mark.usefixtures("short_turns")
def test_an_answer_names_its_model_although_another_is_loaded_meanwhile(store: Store) -> None:
    row = add(store, "a")
    add(store, "b")

    async def work() -> None:
        async with supervising(store, model="a") as supervisor:
            stream = supervisor.generate(None, fakes.generate(chunks=2, held=True))
            records = [await stream.__anext__()]
            second = asyncio.create_task(text_of(supervisor, "b", chunks=1))
            await until_async(lambda: supervisor.status().state == "loading")
            fakes.release(row.path)
            records += [record async for record in stream]
            await second
            assert supervisor.status().model == "b"
            assert records[0] == Began("a") and isinstance(records[-1], Done)

    run(work())


def test_a_steady_stream_of_one_model_does_not_starve_another(store: Store) -> None:
    add(store, "a", slots=2)
    add(store, "b")

    async def work() -> None:
        async with supervising(store) as supervisor:

            async def forever() -> None:
                while True:
                    await text_of(supervisor, "a", chunks=2, every_s=0.02)

            busy = [asyncio.create_task(forever()) for _ in range(2)]
            await until_async(lambda: supervisor.status().in_flight == 2)
            assert await text_of(supervisor, "b")
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)

    run(work())


@pytest.mark.usefixtures("short_turns")
def test_a_model_too_busy_to_change_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_model, "SWITCH_WAIT_S", 0.1)
    row = add(store, "a")
    add(store, "b")

    async def work() -> None:
        async with supervising(store) as supervisor:
            first = asyncio.create_task(text_of(supervisor, "a", chunks=10, held=True))
            await until_async(lambda: supervisor.status().in_flight == 1)
            with pytest.raises(Overloaded, match="busy"):
                await text_of(supervisor, "b")
            fakes.release(row.path)
            assert (await first).endswith("10 ")

    run(work())


def test_with_a_keep_alive_of_0_the_request_that_loaded_the_model_is_answered(
    store: Store,
) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store, keep_alive_s=0.0) as supervisor:
            assert await text_of(supervisor, chunks=2) == "1 2 "
            await until_async(lambda: supervisor.status().state == "idle")
            assert supervisor.status().restarts == 0
        loads = [event for event in store.recent_events(9) if event.kind == "model_loaded"]
        assert len(loads) == 1

    run(work())


def test_an_unused_model_is_unloaded_after_keep_alive(store: Store) -> None:
    add(store)

    async def work() -> None:
        clocks = Clocks(unix=lambda: 1000.0)
        async with supervising(store, clocks, keep_alive_s=600.0) as supervisor:
            await text_of(supervisor)
            status = supervisor.status()
            assert status.expires_at is not None and 1000 < status.expires_at <= 1600
            pid = status.worker_pid
            assert pid is not None
            await supervisor.ensure_loaded(None, keep_alive_s=0.01)
            await until_async(lambda: supervisor.status().state == "idle")
            await until_async(lambda: not is_alive(pid))
            assert supervisor.status().crashes == 0
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())


def test_another_thread_may_ask_for_the_worker_whose_memory_it_reads(store: Store) -> None:
    """The sampler's thread does, also while a keep-alive runs, which only the loop can tell."""
    add(store)

    async def work() -> None:
        async with supervising(store, keep_alive_s=600.0) as supervisor:
            await supervisor.ensure_loaded(None)
            seen = await asyncio.to_thread(_pids, supervisor)
            assert seen == {"front": os.getpid(), "worker": supervisor.status().worker_pid}

    run(work())


def test_a_request_without_a_name_means_what_was_loaded_last(store: Store) -> None:
    add(store, "first")
    add(store, "second")
    add(store, "broken", then="refuse")

    async def work() -> None:
        async with supervising(store) as supervisor:
            with pytest.raises(UsageError, match="not clear which model"):
                await text_of(supervisor)
            assert (await supervisor.ensure_loaded("second")).name == "second"
            assert (await supervisor.ensure_loaded(None)).name == "second"
            await supervisor.unload()
            with pytest.raises(EdgeAgentError):
                await supervisor.ensure_loaded("broken")
            assert (await supervisor.ensure_loaded(None)).name == "second"
            with pytest.raises(UsageError, match="not clear which model"):
                supervisor.which_model(None, may_guess=False)

    run(work())


def test_keep_alive_of_a_request_overrides_the_setting(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store, keep_alive_s=0.01) as supervisor:
            async for _ in supervisor.generate(None, fakes.generate(), keep_alive_s=-1):
                pass
            status = supervisor.status()
            assert (status.state, status.expires_at) == ("ready", None)
            stream = supervisor.generate(None, fakes.generate(held=True), keep_alive_s=0)
            await stream.__anext__()
            await stream.aclose()
            await until_async(lambda: supervisor.status().state == "idle")

    run(work())


def test_a_long_generation_outlives_keep_alive(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_model, "EXPIRY_RETRY_S", 600.0)
    row = add(store)

    async def work() -> None:
        clocks = Clocks(unix=lambda: 1000.0)
        async with supervising(store, clocks, keep_alive_s=0.05) as supervisor:
            long = asyncio.create_task(text_of(supervisor, chunks=4, held=True))
            await until_async(lambda: (supervisor.status().expires_at or 0) > 1100)
            fakes.release(row.path)
            assert (await long).endswith("4 ")

    run(work())


def test_unload_by_force_ends_requests_and_loads(store: Store) -> None:
    add(store)
    add(store, "mute", then="mute")

    async def work() -> None:
        async with supervising(store) as supervisor:
            running = asyncio.create_task(text_of(supervisor, "tiny", chunks=1, every_s=60))
            await until_async(lambda: supervisor.status().in_flight == 1)
            assert await supervisor.unload(force=True)
            loading = asyncio.create_task(text_of(supervisor, "mute"))
            await until_async(lambda: supervisor.status().worker_pid)
            assert not await supervisor.unload(force=True)
            for task in (running, loading):
                with pytest.raises(WorkerFailed, match="unloaded"):
                    await task
            assert supervisor.status().crashes == 0

    run(work())


# ---- stopping ----------------------------------------------------------------------------------


def test_close_lets_running_requests_end_and_refuses_new_ones(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            running = asyncio.create_task(text_of(supervisor, chunks=5, held=True))
            await until_async(lambda: supervisor.status().in_flight == 1)
            pid = supervisor.status().worker_pid
            closing = asyncio.create_task(supervisor.close(3600))
            await until_async(lambda: supervisor.status().state == "stopping")
            with pytest.raises(ShuttingDown):
                await text_of(supervisor)
            fakes.release(row.path)
            await closing
            assert (await running).endswith("5 ")
            assert pid is not None and not is_alive(pid)

    run(work())


def test_close_ends_what_does_not_end_within_the_bound(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            running = asyncio.create_task(text_of(supervisor, held=True))
            await until_async(lambda: supervisor.status().in_flight == 1)
            closing = asyncio.create_task(supervisor.close(3600))
            await until_async(lambda: supervisor.status().state == "stopping")
            await supervisor.close(0)
            await closing
            with pytest.raises(ShuttingDown):
                await running

    run(work())


def test_a_worker_that_cannot_start_is_typed(store: Store) -> None:
    add(store)

    async def work() -> None:
        supervisor = Supervisor(Settings(state_dir=store.path.parent), store, ("/nonexistent",))
        with pytest.raises(WorkerFailed, match="could not be started"):
            await supervisor.ensure_loaded(None)
        await supervisor.close(0)

    run(work())


def test_the_worker_is_expendable_and_holds_no_secret_sockets(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            await supervisor.ensure_loaded(None)
            process = Path(f"/proc/{supervisor.status().worker_pid}")
            assert int((process / "oom_score_adj").read_text()) >= 500
            limits = (process / "limits").read_text()
            assert "Max core file size        0                    0" in limits
            assert b"GGML_NO_BACKTRACE=1" in (process / "environ").read_bytes()
            database = [
                link for link in (process / "fd").iterdir() if "edge-agent.db" in os.readlink(link)
            ]
            assert database == []

    run(work())


def test_the_worker_exits_when_the_front_is_gone(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        link = await WorkerLink.spawn(fakes.WORKER_ARGV, dict(os.environ), time.monotonic)
        link._child._writer.transport.abort()
        await link.closed.wait()
        assert link.failure is not None and "exit status 0" in str(link.failure)

    run(work())
    assert row.name == "tiny"


def test_errors_are_always_of_our_tree(store: Store) -> None:
    """A storm of every misbehaviour at once leaves only typed errors and a working engine."""
    add(store, slots=2)
    plans = ["done", "die:SIGSEGV", "garbage", "error:template_error", "exit:3", "tokens"]

    async def work() -> None:
        async with supervising(store, crash_budget=1000, max_queue=64) as supervisor:
            storm = [text_of(supervisor, then=plans[i % len(plans)]) for i in range(30)]
            outcomes = await asyncio.gather(*storm, return_exceptions=True)
            assert all(isinstance(outcome, (str, EdgeAgentError)) for outcome in outcomes)
            assert await text_of(supervisor, chunks=1) == "1 "

    run(work())


def test_shrinking_reloads_with_one_slot_and_growing_with_all(store: Store) -> None:
    row = add(store, slots=4)

    async def work() -> None:
        async with supervising(store, slots=4) as supervisor:
            await supervisor.ensure_loaded(None)
            assert "one slot" in await supervisor.shrink(True)
            assert await supervisor.shrink(True) == "the number of slots stays as it is"
            assert "all slots" in await supervisor.shrink(False)
            assert supervisor.status().state == "ready"

    run(work())
    loads = sent(row, "load")
    assert [load["settings"]["slots"] for load in loads] == [4, 1, 4]
    assert [load["plan"] is None for load in loads] == [True, True, True]


def test_sharing_reloads_without_repacked_weights_and_back(store: Store) -> None:
    row = add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            await supervisor.share(True)
            await supervisor.ensure_loaded(None)
            await supervisor.share(True)
            await supervisor.share(False)
            await supervisor.share(False)
            assert supervisor.status().state == "ready"

    run(work())
    assert [load["settings"]["repack"] for load in sent(row, "load")] == [False, True]


def test_refusal_of_the_guard_reaches_requests_and_loads(store: Store) -> None:
    add(store)

    async def work() -> None:
        async with supervising(store) as supervisor:
            supervisor.refuse("heat: CPU-therm has 95.0 C")
            with pytest.raises(Overloaded, match="95.0 C"):
                await supervisor.ensure_loaded(None)
            with pytest.raises(Overloaded, match="95.0 C"):
                await text_of(supervisor)
            supervisor.refuse(None)
            assert await text_of(supervisor)

    run(work())
