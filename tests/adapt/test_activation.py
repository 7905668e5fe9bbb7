"""Activation on a running engine: what the canary lets pass, and every way back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fakes
import pytest
from random_adapter import write_adapter
from running_daemon import RunningDaemon, make_state
from waiting import DEADLINE_S, until, until_async

from edge_agent.adapt.activation import activate, fault, prove_unproved
from edge_agent.config import Settings
from edge_agent.errors import (
    AdapterNotFound,
    AdapterRefused,
    ModelRefused,
    Overloaded,
    WorkerFailed,
)
from edge_agent.gguf.model_file import read_gguf
from edge_agent.measured import Timings
from edge_agent.models.adapter_registry import BASE, AdapterRegistry
from edge_agent.models.pull import model_row
from edge_agent.records import (
    Began,
    ChosenLogprob,
    Chunk,
    Done,
    Generate,
    Generation,
    Message,
    Sampling,
    TokenLogprob,
)
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor
from edge_agent.supervisor.worker_link import WORKER_ARGV

LOOP = "la " * 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "edge-agent.db") as store:
        yield store


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE_S))


def events(store: Store, kind: str) -> list[str]:
    return [event.detail for event in store.recent_events(99) if event.kind == kind]


# ---- with a worker that misbehaves on command ----------------------------------------------------


@asynccontextmanager
async def supervising(store: Store, **settings: Any) -> AsyncIterator[Supervisor]:
    """Adapters are any files here; the fake worker does what `<file>.plan` says."""
    root = store.path.parent
    if not store.models():
        store.add_model(fakes.register(root, slots=2))
    supervisor = Supervisor(Settings(state_dir=root, **settings), store, fakes.WORKER_ARGV)
    supervisor.registry = AdapterRegistry(store, root, check=lambda path, base, sha256: None)
    try:
        yield supervisor
    finally:
        await supervisor.close(0)


def add(supervisor: Supervisor, name: str, **plan: object) -> None:
    """An adapter that passed its gate, and how the worker answers a canary with it."""
    root = Path(supervisor._settings.state_dir)
    source = root / f"source-{name}"
    source.write_text(name)
    row = supervisor.registry.add("tiny", name, source, source="trained")
    supervisor.registry.set_gate("tiny", name, {}, True)
    text = json.dumps(asdict(fakes.Plan(**plan)))  # type: ignore[arg-type]
    (root / f"{row.path}.plan").write_text(text)


def active(supervisor: Supervisor) -> str | None:
    row = supervisor.registry.active("tiny")
    return row.name if row else None


def sent(store: Store, kind: str) -> list[dict[str, Any]]:
    return [record for record in fakes.log_of(store.models()[0]) if record["type"] == kind]


async def drive(supervisor: Supervisor, **plan: object) -> None:
    """One request for MODEL."""
    async for _ in supervisor.generate(None, fakes.generate(**plan)):
        pass


def test_an_adapter_that_answers_is_active_and_proved(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            row = await activate(supervisor, "tiny", "a")
            assert (row.name, active(supervisor)) == ("a", "a")
            assert supervisor.registry.is_proved("tiny")
            assert supervisor.status().adapter == "a"
            await drive(supervisor)

    run(work())
    assert len(sent(store, "check_adapter")) == 1
    canaries = sent(store, "generate")[:-1]
    assert len(canaries) == 2
    for canary in canaries:
        assert canary["sampling"]["temperature"] == 0 and canary["cache_prompt"] is False
        assert canary["adapter"]["path"].endswith("adapters/tiny/a.gguf")
    assert sent(store, "generate")[-1]["adapter"]["path"].endswith("adapters/tiny/a.gguf")


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"text": ""}, "its answer is empty"),
        ({"text": " \n"}, "its answer is empty"),
        ({"text": LOOP}, "its answer is a loop"),
        ({"then": "die:SIGSEGV"}, "SIGSEGV"),
        ({"then": "error:adapter_refused"}, "what"),
        ({"then": "garbage"}, "sent what no worker sends"),
    ],
)
def test_a_canary_that_fails_rolls_back_to_what_was_active_before(
    store: Store, plan: dict[str, object], why: str
) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "good")
            add(supervisor, "bad", **plan)
            await activate(supervisor, "tiny", "good")
            with pytest.raises(AdapterRefused, match="bad of tiny was rolled back") as refused:
                await activate(supervisor, "tiny", "bad")
            assert why in refused.value.why
            assert "good" in refused.value.hint
            assert active(supervisor) == "good" and supervisor.registry.is_proved("tiny")
            assert supervisor.registry.adapter("tiny", "bad").status == "rolled_back"
            await drive(supervisor)
            with pytest.raises(AdapterRefused, match="it was rolled back"):
                await activate(supervisor, "tiny", "bad")

    run(work())
    assert len(events(store, "adapter_rolled_back")) == 1
    assert sent(store, "generate")[-1]["adapter"]["path"].endswith("good.gguf")


def test_an_adapter_is_not_blamed_for_what_the_one_before_does_too(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "loops", text=LOOP)
            add(supervisor, "too", text=LOOP)
            supervisor.registry.activate("tiny", "loops", force=False, reason="test")
            supervisor.registry.prove("tiny", "loops")
            await activate(supervisor, "tiny", "too")
            assert active(supervisor) == "too" and supervisor.registry.is_proved("tiny")

    run(work())


def test_what_never_reached_the_engine_changes_nothing(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            with pytest.raises(AdapterNotFound):
                await activate(supervisor, "tiny", "nosuch")
            supervisor.refuse("memory: 10 MB are left")
            with pytest.raises(Overloaded):
                await activate(supervisor, "tiny", "a")
            assert active(supervisor) is None
            assert supervisor.registry.adapter("tiny", "a").status == "passed"

    run(work())
    assert events(store, "adapter_activated") == []


def test_an_engine_too_busy_for_the_canary_leaves_the_adapter_unblamed(store: Store) -> None:
    """The file was checked, the row is there, and then the guard lets nobody in."""

    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            check = supervisor.check_adapter

            async def check_and_close(model: str, adapter: Any) -> None:
                await check(model, adapter)
                supervisor.refuse("heat: 95 C")

            supervisor.check_adapter = check_and_close  # type: ignore[method-assign]
            with pytest.raises(Overloaded):
                await activate(supervisor, "tiny", "a")
            assert active(supervisor) is None
            assert supervisor.registry.adapter("tiny", "a").status == "passed"

    run(work())


def test_a_caller_that_leaves_does_not_stop_an_activation_half_way(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "slow", held=True)
            task = asyncio.create_task(activate(supervisor, "tiny", "slow"))
            await until_async(lambda: active(supervisor) == "slow")
            task.cancel()
            fakes.release(store.models()[0].path)
            await until_async(lambda: supervisor.registry.is_proved("tiny"))
            assert active(supervisor) == "slow"

    run(work())


# ---- crashes after the canary --------------------------------------------------------------------


def test_a_crash_soon_after_the_activation_takes_the_adapter_back(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            await activate(supervisor, "tiny", "a")
            with pytest.raises(WorkerFailed, match="SIGSEGV"):
                await drive(supervisor, then="die:SIGSEGV")
            await drive(supervisor)
            assert active(supervisor) is None
            assert supervisor.registry.adapter("tiny", "a").status == "rolled_back"

    run(work())
    assert "the worker died with it at work" in events(store, "adapter_rolled_back")[0]
    assert sent(store, "generate")[-1]["adapter"] is None


@pytest.mark.parametrize("asked", ["the base", "another model's crash", "long ago"])
def test_a_crash_that_is_not_the_adapters_leaves_it_active(store: Store, asked: str) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            await activate(supervisor, "tiny", "a")
            if asked == "long ago":
                move = "UPDATE activations SET at = at - 601"
                store.transact(lambda db: db.execute(move).rowcount)
            name = "tiny:base" if asked == "the base" else "tiny"
            if asked == "another model's crash":
                store.add_model(fakes.register(store.path.parent, "other"))
                name = "other"
            with pytest.raises(WorkerFailed):
                async for _ in supervisor.generate(name, fakes.generate(then="die:SIGKILL")):
                    pass
            await drive(supervisor)
            assert active(supervisor) == "a"

    run(work())


def test_an_active_adapter_the_worker_refuses_is_taken_back(store: Store) -> None:
    """Its file was damaged since: MODEL must be answered again, by what was there before."""

    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            await activate(supervisor, "tiny", "a")
            refusing = fakes.generate(then="error:adapter_refused")
            with pytest.raises(AdapterRefused):
                async for _ in supervisor.generate("tiny:a", refusing):
                    pass
            assert active(supervisor) is None
            await drive(supervisor)

    run(work())


def test_a_refusal_of_what_a_request_chose_itself_takes_nothing_back(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            row = await activate(supervisor, "tiny", "a")
            request = fakes.generate(then="error:adapter_refused")
            chosen = Generate(
                id=0,
                sampling=request.sampling,
                max_tokens=9,
                text=request.text,
                adapter=supervisor.registry.reference(row),
            )
            with pytest.raises(AdapterRefused):
                async for _ in supervisor.generate("tiny", chosen):
                    pass
            assert active(supervisor) == "a"

    run(work())


# ---- names ---------------------------------------------------------------------------------------


def test_each_name_reaches_the_worker_as_its_adapter(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            add(supervisor, "b")
            await activate(supervisor, "tiny", "a")
            began: list[Generation] = []
            for name in (None, "tiny", "tiny:latest", "tiny:base", "tiny:b"):
                began += [one async for one in supervisor.generate(name, fakes.generate())][:1]
            assert began == [Began("tiny", name) for name in ("a", "a", "a", None, "b")]
            with pytest.raises(AdapterNotFound, match="it has: a, b"):
                await supervisor.ensure_loaded("tiny:nosuch")
            await supervisor.score("tiny", [Message("user", "x")], BASE)
            await supervisor.score("tiny", [Message("user", "x")], None)

    run(work())
    assert [one["adapter"] for one in sent(store, "score")] == [None, None]
    used = [one["adapter"] and Path(one["adapter"]["path"]).stem for one in sent(store, "generate")]
    assert used[-5:] == ["a", "a", "a", None, "b"]


def test_the_configured_model_may_name_the_base(store: Store) -> None:
    async def work() -> None:
        async with supervising(store, model="tiny:base") as supervisor:
            add(supervisor, "a")
            await activate(supervisor, "tiny", "a")
            await drive(supervisor)

    run(work())
    assert sent(store, "generate")[-1]["adapter"] is None


def test_a_reserved_board_admits_nobody_until_it_is_given_back(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            supervisor.reserve("the board is learning")
            supervisor.refuse(None)
            with pytest.raises(Overloaded, match="the board is learning"):
                await drive(supervisor)
            supervisor.reserve(None)
            await drive(supervisor)

    run(work())


# ---- after a start -------------------------------------------------------------------------------


def test_what_was_activated_without_an_engine_is_tried_out_after_the_start(store: Store) -> None:
    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "good")
            add(supervisor, "bad", then="die:SIGABRT")
            registry = supervisor.registry
            registry.activate("tiny", "good", force=False, reason="no daemon")
            registry.note_start()
            await prove_unproved(supervisor)
            assert registry.is_proved("tiny")
            registry.activate("tiny", "bad", force=False, reason="no daemon")
            registry.note_start()
            await prove_unproved(supervisor)
            assert active(supervisor) == "good" and registry.is_proved("tiny")
            asked = len(sent(store, "generate"))
            await prove_unproved(supervisor)
            assert len(sent(store, "generate")) == asked

    run(work())
    assert len(events(store, "adapter_rolled_back")) == 1


def test_a_model_that_does_not_load_now_leaves_the_activation_for_the_next_start(
    store: Store,
) -> None:
    store.add_model(fakes.register(store.path.parent, then="refuse"))

    async def work() -> None:
        async with supervising(store) as supervisor:
            add(supervisor, "a")
            registry = supervisor.registry
            registry.activate("tiny", "a", force=False, reason="no daemon")
            registry.note_start()
            with pytest.raises(ModelRefused):
                await supervisor.ensure_loaded("tiny")
            await prove_unproved(supervisor)
            assert active(supervisor) == "a" and not registry.is_proved("tiny")
            registry.note_start()
            assert active(supervisor) is None

    run(work())


def prepared(tmp_path: Path, **new: object) -> Path:
    """A state directory where `old` is active and `new` was activated without a daemon."""
    state = make_state(tmp_path)
    with Store(state / "edge-agent.db") as store:
        registry = AdapterRegistry(store, state, check=lambda path, base, sha256: None)
        for name in ("old", "new"):
            source = tmp_path / name
            source.write_text(name)
            row = registry.add("tiny", name, source, source="trained")
            registry.activate("tiny", name, force=True, reason="test")
            if name == "old":
                registry.prove("tiny", name)
    text = json.dumps(asdict(fakes.Plan(**new)))  # type: ignore[arg-type]
    (state / f"{row.path}.plan").write_text(text)
    return state


def activation(state: Path) -> tuple[str | None, bool]:
    with Store(state / "edge-agent.db") as store:
        registry = AdapterRegistry(store, state)
        row = registry.active("tiny")
        return row.name if row else None, registry.is_proved("tiny")


def test_a_daemon_tries_out_what_was_activated_without_one(tmp_path: Path) -> None:
    state = prepared(tmp_path)
    daemon = RunningDaemon(state).ready()
    try:
        until(lambda: activation(state) == ("new", True))
    finally:
        assert daemon.stop() == 0


def test_a_daemon_killed_twice_before_the_canary_answered_serves_the_old_one(
    tmp_path: Path,
) -> None:
    state = prepared(tmp_path, chunks=1, every_s=60)
    for _ in range(2):
        daemon = RunningDaemon(state).ready()
        if activation(state) == ("old", True):
            break
        assert activation(state) == ("new", False)
        daemon.process.kill()
        daemon.stop()
    else:
        daemon = RunningDaemon(state).ready()
    try:
        assert daemon.generate()[-1] == ""
    finally:
        daemon.stop()
    assert activation(state) == ("old", True)
    model = Path(state / "tiny.gguf.log").read_text().splitlines()
    assert json.loads(model[-1])["adapter"]["path"].endswith("/old.gguf")


# ---- what an answer shows ------------------------------------------------------------------------


def done(text: str, *logprobs: float) -> Done:
    chosen = [ChosenLogprob(TokenLogprob(1, "x", b"x", value), []) for value in logprobs]
    return Done(1, text, "stop", Timings(1, 0, 1, 0, 0, 0, 0), None, chosen)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (done("New Delhi is the capital of India.", -0.1, -3.0), None),
        (done("नई दिल्ली भारत की राजधानी है।"), None),
        (done("New Delhi", -0.1, float("nan")), "NaN"),
        (done("New Delhi", float("-inf")), "NaN or infinity"),
        (done("   "), "empty"),
        (done("the the the the the the the the the the"), "loop"),
        (done("ಕಕಕಕಕಕಕಕಕಕಕಕಕಕಕಕ"), "loop"),
    ],
)
def test_faults_of_an_answer(answer: Done, why: str | None) -> None:
    found = fault(answer)
    assert found is None if why is None else why in str(found)


# ---- with the real worker ------------------------------------------------------------------------


QUESTION = Generate(
    id=0,
    sampling=Sampling(temperature=0.0),
    max_tokens=24,
    messages=[Message("user", "Hello there")],
    stream=False,
    cache_prompt=False,
)


@asynccontextmanager
async def real_engine(store: Store, tiny_model: Path) -> AsyncIterator[Supervisor]:
    sha256 = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    gguf = read_gguf(tiny_model)
    store.add_model(model_row(gguf, name="tiny", sha256=sha256, source="test", added_at=1.0))
    settings = Settings(state_dir=store.path.parent, ctx=512, slots=2, threads=1)
    supervisor = Supervisor(settings, store, WORKER_ARGV)
    try:
        yield supervisor
    finally:
        await supervisor.close(0)


async def text_of(supervisor: Supervisor, model: str) -> str:
    events = [event async for event in supervisor.generate(model, QUESTION)]
    assert isinstance(events[-1], Done)
    return events[-1].text


def add_random(supervisor: Supervisor, store: Store, name: str, base: Path, **how: Any) -> None:
    path = store.path.parent / f"source-{name}.gguf"
    write_adapter(path, base, **how)
    supervisor.registry.add("tiny", name, path, source="imported")


def test_a_real_worker_answers_with_the_adapter_and_afterwards_as_before(
    store: Store, tiny_model: Path
) -> None:
    async def work() -> None:
        async with real_engine(store, tiny_model) as supervisor:
            before = await text_of(supervisor, "tiny")
            add_random(supervisor, store, "one", tiny_model, seed=1)
            add_random(supervisor, store, "two", tiny_model, seed=2)
            pid = supervisor.status().worker_pid
            await activate(supervisor, "tiny", "one", force=True)
            assert supervisor.registry.is_proved("tiny")
            one = await text_of(supervisor, "tiny")
            assert one != before and one == await text_of(supervisor, "tiny:one")
            await activate(supervisor, "tiny", "two", force=True)
            two = await text_of(supervisor, "tiny")
            assert two not in (one, before)
            assert await text_of(supervisor, "tiny:base") == before
            assert supervisor.registry.rollback("tiny", "test") == "one"
            assert await text_of(supervisor, "tiny:latest") == one
            supervisor.registry.deactivate("tiny", "test")
            assert await text_of(supervisor, "tiny") == before
            assert supervisor.status().worker_pid == pid
            assert supervisor.status().crashes == 0

    run(work())


def test_a_real_worker_refuses_what_the_check_of_the_file_let_pass_and_lives(
    store: Store, tiny_model: Path
) -> None:
    """Finite weights so large that every answer is NaN, and a registry that looks at no file."""

    async def work() -> None:
        async with real_engine(store, tiny_model) as supervisor:
            root = store.path.parent
            supervisor.registry = AdapterRegistry(
                store, root, check=lambda path, base, sha256: None
            )
            before = await text_of(supervisor, "tiny")
            add_random(supervisor, store, "huge", tiny_model, strength=1e30)
            pid = supervisor.status().worker_pid
            with pytest.raises(AdapterRefused):
                await activate(supervisor, "tiny", "huge", force=True)
            assert active(supervisor) is None
            assert await text_of(supervisor, "tiny") == before
            assert supervisor.status().worker_pid == pid

    run(work())


def test_a_real_worker_killed_at_work_comes_back_with_the_base(
    store: Store, tiny_model: Path
) -> None:
    async def work() -> None:
        async with real_engine(store, tiny_model) as supervisor:
            before = await text_of(supervisor, "tiny")
            add_random(supervisor, store, "one", tiny_model)
            await activate(supervisor, "tiny", "one", force=True)
            endless = Generate(id=0, sampling=Sampling(), max_tokens=-1, text="a", ignore_eos=True)
            with pytest.raises(WorkerFailed, match="SIGKILL"):
                async for event in supervisor.generate("tiny", endless):
                    if isinstance(event, Chunk) and event.completion_tokens == 3:
                        os.kill(supervisor.status().worker_pid or 0, signal.SIGKILL)
            assert await text_of(supervisor, "tiny") == before
            assert active(supervisor) is None

    run(work())
