"""Two models and one worker: how often it changes, and how long a request can be passed by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import fakes
import pytest
from msgspec.structs import replace
from supervised import add, run, supervising, text_of
from waiting import ManualClock, until_async

from edge_agent.errors import ModelQuarantined, ModelRefused, ShuttingDown, WorkerFailed
from edge_agent.records import AdapterRef, Began, Generate
from edge_agent.store.store import Store
from edge_agent.supervisor import model_turns
from edge_agent.supervisor.model_turns import MAX_PASSED, TURN_S, ModelTurns
from edge_agent.supervisor.supervisor import Supervisor


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "edge-agent.db") as store:
        yield store


def loads(store: Store) -> list[str]:
    """Models in the order in which they were loaded."""
    events = [event for event in store.recent_events(200) if event.kind == "model_loaded"]
    return [event.detail.split()[0] for event in reversed(events)]


async def one_after_another(
    supervisor: Supervisor, names: Sequence[str], done: list[str], **plan: object
) -> None:
    """A client that asks again as soon as it was answered."""
    for name in names:
        await text_of(supervisor, name, **plan)
        done.append(name)


# ---- the rule ---------------------------------------------------------------------------------


def test_later_requests_pass_an_earlier_one_so_often_and_no_more(tmp_path: Path) -> None:
    a, b = fakes.register(tmp_path, "a"), fakes.register(tmp_path, "b")
    turns = ModelTurns(ManualClock())
    with turns.waiting(b) as waits:
        for _ in range(MAX_PASSED):
            with turns.waiting(a) as later:
                assert turns.let_pass(later)
        assert waits.passed == MAX_PASSED
        with turns.waiting(a) as one_too_many:
            assert not turns.let_pass(one_too_many)
            assert turns.next_after(a) == b
        assert turns.let_pass(waits)
    assert turns.next_after(a) is None and not turns.is_wanted(b)


def test_a_turn_ends_by_time_counted_from_the_load_and_the_arrival(tmp_path: Path) -> None:
    a, b = fakes.register(tmp_path, "a"), fakes.register(tmp_path, "b")
    clock = ManualClock()
    turns = ModelTurns(clock)
    with turns.waiting(b) as waits, turns.waiting(a) as later:
        clock.now_s = 30.0
        turns.begin(load_s=1.0)
        assert turns.let_pass(later), "the time before the load of a is no turn of it"
        clock.now_s += TURN_S
        assert turns.left_s(waits) == 0.0 and not turns.let_pass(later)
        turns.begin(load_s=30.0)
        clock.now_s += 59.0
        assert turns.left_s(waits) == 1.0 and turns.let_pass(later), "twice the load's time"


def test_the_model_that_was_asked_for_first_is_next(tmp_path: Path) -> None:
    a, b, c = (fakes.register(tmp_path, name) for name in "abc")
    turns = ModelTurns(ManualClock())
    with ExitStack() as stack:
        for row in (a, c, b, c):
            stack.enter_context(turns.waiting(row))
        assert turns.next_after(a) == c and turns.next_after(c) == a


# ---- with a worker ----------------------------------------------------------------------------


def test_two_clients_with_a_model_each_change_it_once(store: Store) -> None:
    add(store, "a")
    add(store, "b")

    async def work() -> None:
        async with supervising(store) as supervisor:
            clients = (one_after_another(supervisor, [name] * 4, [], chunks=1) for name in "ab")
            await asyncio.gather(*clients)

    run(work())
    assert loads(store) == ["a", "b"]


def test_requests_for_two_models_at_once_change_it_once(store: Store) -> None:
    add(store, "a")
    add(store, "b")

    async def work() -> None:
        async with supervising(store) as supervisor:
            await asyncio.gather(*(text_of(supervisor, name, chunks=1) for name in "abababab"))

    run(work())
    assert loads(store) == ["a", "b"]


def test_a_client_that_never_stops_asking_is_interrupted_after_so_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_turns, "MAX_PASSED", 3)
    first = add(store, "a")
    add(store, "b")
    done: list[str] = []

    async def work() -> None:
        async with supervising(store) as supervisor:
            endless = asyncio.create_task(
                one_after_another(supervisor, ["a"] * 12, done, held=True)
            )
            await until_async(lambda: supervisor.status().in_flight == 1)
            waits = asyncio.create_task(one_after_another(supervisor, ["b"], done))
            await until_async(lambda: supervisor.status().queued == 1)
            fakes.release(first.path)
            await asyncio.gather(endless, waits)

    run(work())
    assert done.index("b") <= 4, "the one that ran, and three that passed it"
    assert loads(store) == ["a", "b", "a"]


def test_a_turn_that_lasts_too_long_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_turns, "TURN_S", 0.05)
    add(store, "a")
    add(store, "b")

    async def work() -> None:
        async with supervising(store) as supervisor:
            await supervisor.ensure_loaded("a")
            busy = asyncio.create_task(text_of(supervisor, "a", chunks=20, every_s=0.02))
            await until_async(lambda: supervisor.status().in_flight == 1)
            waits = asyncio.create_task(text_of(supervisor, "b", chunks=1))
            await until_async(lambda: supervisor.status().model == "b")
            assert supervisor.status().state == "loading"
            later = asyncio.create_task(text_of(supervisor, "a", chunks=1))
            assert (await busy).endswith("20 ") and await waits and await later

    run(work())
    assert loads(store) == ["a", "b", "a"]


def test_adapters_of_one_model_are_no_change(store: Store, tmp_path: Path) -> None:
    add(store, "a", slots=4)

    def with_adapter(number: int) -> Generate:
        ref = AdapterRef(str(tmp_path / f"{number}.gguf"), f"{number}" * 64)
        return replace(fakes.generate(chunks=1), adapter=ref)

    async def answer(supervisor: Supervisor, number: int) -> list[str]:
        events = supervisor.generate("a", with_adapter(number))
        return [event.text async for event in events if not isinstance(event, Began)]

    async def work() -> None:
        async with supervising(store) as supervisor:
            await asyncio.gather(*(answer(supervisor, number % 2) for number in range(8)))

    run(work())
    assert loads(store) == ["a"]


def test_a_client_that_leaves_the_line_changes_nothing(store: Store) -> None:
    first = add(store, "a")
    add(store, "b")

    async def work() -> None:
        async with supervising(store) as supervisor:
            running = asyncio.create_task(text_of(supervisor, "a", held=True))
            await until_async(lambda: supervisor.status().in_flight == 1)
            waits = asyncio.create_task(text_of(supervisor, "b"))
            await until_async(lambda: supervisor.status().queued == 1)
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
            fakes.release(first.path)
            await running
            assert await text_of(supervisor, "a", chunks=1) == "1 "

    run(work())
    assert loads(store) == ["a"]


def test_a_model_that_cannot_be_loaded_is_the_error_of_its_own_waiters(store: Store) -> None:
    add(store, "a")
    broken = add(store, "b", then="refuse")

    async def work() -> None:
        async with supervising(store) as supervisor:
            names = "ababab"
            outcomes = await asyncio.gather(
                *(text_of(supervisor, name, chunks=1) for name in names), return_exceptions=True
            )
            kinds = [type(outcome) for outcome in outcomes]
            assert kinds == [str, ModelRefused] * 3
            assert await text_of(supervisor, "a", chunks=1) == "1 "

    run(work())
    assert len([one for one in fakes.log_of(broken) if one["type"] == "load"]) == 1


def test_a_quarantined_model_is_said_at_once_and_the_loaded_one_stays(store: Store) -> None:
    first = add(store, "a")
    add(store, "b", then="die")

    async def work() -> None:
        async with supervising(store, crash_budget=1) as supervisor:
            with pytest.raises(WorkerFailed):
                await text_of(supervisor, "b")
            running = asyncio.create_task(text_of(supervisor, "a", held=True))
            await until_async(lambda: supervisor.status().in_flight == 1)
            with pytest.raises(ModelQuarantined):
                await text_of(supervisor, "b")
            fakes.release(first.path)
            await running

    run(work())
    assert loads(store) == ["a"]


def test_closing_ends_those_who_wait_for_their_turn(store: Store) -> None:
    add(store, "a")
    add(store, "b")

    async def work() -> None:
        async with supervising(store) as supervisor:
            running = asyncio.create_task(text_of(supervisor, "a", held=True))
            await until_async(lambda: supervisor.status().in_flight == 1)
            waits = asyncio.create_task(text_of(supervisor, "b"))
            await until_async(lambda: supervisor.status().queued == 1)
            await supervisor.close(0)
            outcomes = await asyncio.gather(running, waits, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [ShuttingDown] * 2

    run(work())


# ---- how many may come in before a model is loaded --------------------------------------------


@pytest.mark.parametrize(("configured", "actual"), [(None, 4), (3, 3)])
def test_a_cold_start_takes_as_many_requests_as_a_loaded_model(
    configured: int | None, actual: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.supervisor.loaded_model.default_slots", lambda _: 4)
    add(store, "a", slots=actual)

    async def work() -> None:
        async with supervising(store, slots=configured) as supervisor:
            for _ in ("cold", "warm"):
                count = actual + 16 + 1
                outcomes = await asyncio.gather(
                    *(text_of(supervisor, chunks=1) for _ in range(count)), return_exceptions=True
                )
                refused = [one for one in outcomes if not isinstance(one, str)]
                assert len(refused) == 1, "one more than slots and queue together"

    run(work())
