"""Adapters and scores in the real worker: whose answer it is, what is refused, what is measured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bad_adapters import BadAdapter, write_bad_adapters
from random_adapter import reference, write_adapter
from tiny_gguf import write_tiny_model
from worker_process import WorkerProcess, chat

from converters.divergence import log_softmax
from converters.logits import LlamaLogits
from edge_agent.engine.adapter_pool import KEPT, AdapterPool
from edge_agent.errors import AdapterRefused
from edge_agent.llama.binding import start_backend
from edge_agent.llama.context import READING_ROWS, Context
from edge_agent.llama.model import Model
from edge_agent.prompt.training_sequence import encode_turns, vocabulary_only
from edge_agent.records import (
    AdapterRef,
    Cancel,
    CheckAdapter,
    Chunk,
    Done,
    EngineSettings,
    Failed,
    FromWorker,
    Message,
    Score,
    Scores,
    Text,
)

EXACT = EngineSettings(
    n_ctx=512, slots=2, n_threads=1, flash_attn="off", type_k="f32", type_v="f32"
)
FORGETFUL = (  # earlier answers are shown by their first three letters
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'][:3] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STORY = "the hello world and the other on of it is in an "


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    """Seven different ones, all strong."""
    directory = tmp_path_factory.mktemp("adapters")
    return [write_adapter(directory / f"{seed}.gguf", tiny_model, seed) for seed in range(7)]


@pytest.fixture(scope="module")
def worker(tiny_model: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        process.load(tiny_model, EXACT)
        yield process


def answer(worker: WorkerProcess, adapter: AdapterRef | None = None, text: str = STORY) -> str:
    """Greedy, alone, without anything cached."""
    return worker.answer(chat(1, text, adapter=adapter, cache_prompt=False))[0]


def ask(worker: WorkerProcess, request: Score | CheckAdapter) -> FromWorker:
    worker.send(request)
    return worker.receive()


def check(worker: WorkerProcess, adapter: AdapterRef) -> FromWorker:
    return ask(worker, CheckAdapter(9, adapter))


# ---- which adapter answers ----


def test_an_adapter_changes_the_answer_and_the_base_is_the_same_afterwards(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    before = answer(worker)
    changed = [answer(worker, adapter) for adapter in adapters[:2]]
    assert answer(worker) == before
    assert len({before, *changed}) == 3
    assert [answer(worker, adapter) for adapter in adapters[:2]] == changed
    assert answer(worker) == before


def test_scale_0_is_the_base_and_other_scales_are_other_answers(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    path, sha256 = adapters[0].path, adapters[0].sha256
    assert answer(worker, AdapterRef("", "", 0.0)) == answer(worker)
    texts = {answer(worker, AdapterRef(path, sha256, scale)) for scale in (-1.0, 0.5, 1.0)}
    assert len(texts) == 3


def test_a_scale_that_is_no_number_is_an_invalid_request(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    worker.send(chat(1, "hi", adapter=AdapterRef(adapters[0].path, adapters[0].sha256, math.inf)))
    failed = worker.receive()
    assert isinstance(failed, Failed) and failed.code == "invalid_request"


def test_requests_with_different_adapters_at_once_answer_as_each_does_alone(
    tiny_model: Path, adapters: list[AdapterRef]
) -> None:
    """Six adapters and the base, twice, in four slots: more than are kept, queued and swapped."""
    wanted = [None, *adapters[:6]] * 2
    with WorkerProcess() as process:
        process.load(tiny_model, EngineSettings(n_ctx=512, slots=4, n_threads=1))
        alone = [answer(process, adapter) for adapter in wanted[:7]] * 2
        requests = [
            chat(index, STORY, adapter=adapter, cache_prompt=False)
            for index, adapter in enumerate(wanted)
        ]
        process.send(*requests)
        ended = process.finish(*range(len(wanted)))
    assert len(set(alone)) == 7
    assert [ended[index][0] for index in range(len(wanted))] == alone


def test_adapters_take_turns_of_eight_tokens_and_those_of_one_share_them(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    one, two = adapters[:2]
    requests = [
        chat(index, "hello", adapter=adapter, max_tokens=100, ignore_eos=True)
        for index, adapter in ((1, one), (2, two))
    ]
    worker.send(*requests)  # at once: the first must not have ended before the second arrives
    tokens: list[int] = []  # the id of the request each new token belongs to, in order
    counts, n_ended = {1: 0, 2: 0}, 0
    while n_ended < 2:
        record = worker.receive()
        if isinstance(record, Chunk):
            tokens += [record.id] * (record.completion_tokens - counts[record.id])
            counts[record.id] = record.completion_tokens
        n_ended += isinstance(record, Done)
    runs = [len(list(run)) for _, run in groupby(tokens)]
    middle = runs[2:-3]
    assert len(middle) > 10 and sum(middle) / len(middle) == pytest.approx(8, abs=0.5)


def test_a_newcomer_with_another_adapter_is_answered_long_before_the_first_ends(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    worker.send(chat(1, "hello", adapter=adapters[0], max_tokens=300, ignore_eos=True))
    while not (isinstance(record := worker.receive(), Chunk) and record.completion_tokens > 20):
        pass
    worker.send(chat(2, STORY, adapter=adapters[1], max_tokens=20))
    n_tokens = record.completion_tokens
    while not (isinstance(record := worker.receive(), Done) and record.id == 2):
        if isinstance(record, Chunk) and record.id == 1:
            n_tokens = record.completion_tokens
    assert n_tokens < 150
    worker.collect(1)


def test_a_cached_prefix_belongs_to_its_adapter_and_scale(
    tiny_model: Path, adapters: list[AdapterRef]
) -> None:
    one = adapters[0]
    half = AdapterRef(one.path, one.sha256, 0.5)
    with WorkerProcess() as process:
        process.load(tiny_model, EXACT)

        def cached(adapter: AdapterRef | None) -> int:
            return process.answer(chat(1, STORY, adapter=adapter))[1].timings.cached_tokens

        assert cached(None) == 0
        assert cached(None) > 20
        assert cached(one) == 0
        assert cached(one) > 20
        assert cached(AdapterRef("", "", 0.0)) > 20
        assert cached(half) == 0
        assert cached(adapters[1]) == 0
        assert cached(one) == 0, "there are two slots, and two others came since"


def test_adapters_for_all_requests_still_do_and_another_replaces_them(
    tiny_model: Path, adapters: list[AdapterRef], worker: WorkerProcess
) -> None:
    with WorkerProcess() as process:
        always = [adapters[0].path]
        process.load(tiny_model, msgspec.structs.replace(EXACT, adapters=always))
        first = answer(process)
        other = answer(process, adapters[1])
        assert answer(process) == first
    assert (first, other) == (answer(worker, adapters[0]), answer(worker, adapters[1]))


# ---- what is refused ----

FOR_THE_FRONT = {  # they cannot hurt the worker; edge_agent/gguf/adapter_file.py refuses them
    "made for another base", "activated LoRA", "a link", "quantized matrices", "bfloat16",
    "r above the rank of the weight", "a finite value too large",
}  # fmt: skip


def test_bad_adapters_are_refused_and_the_worker_answers_as_before(
    worker: WorkerProcess, tiny_model: Path, tmp_path: Path
) -> None:
    before = answer(worker)
    refused = set()
    for bad in write_bad_adapters(tiny_model, tmp_path):
        if bad.kind == "more than 1 GiB":
            continue  # hashing it takes seconds
        reply = check(worker, _reference(bad))
        assert isinstance(reply, Text) or reply.code == "adapter_refused", reply
        if isinstance(reply, Failed):
            assert str(bad.path) in reply.what and reply.why and reply.hint
            refused.add(bad.kind)
        else:
            assert bad.kind in FOR_THE_FRONT
    assert len(refused) >= 38
    assert answer(worker) == before


def _reference(bad: BadAdapter) -> AdapterRef:
    return reference(bad.path) if bad.path.is_file() else AdapterRef(str(bad.path), "0" * 64)


def test_a_file_that_is_not_the_registered_one_is_refused(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    worker.send(chat(1, "hi", adapter=AdapterRef(adapters[6].path, "0" * 64)))
    failed = worker.receive()
    assert isinstance(failed, Failed) and failed.code == "adapter_refused"
    assert adapters[6].sha256 in failed.why


def test_an_adapter_that_changes_nothing_is_refused(
    worker: WorkerProcess, tiny_model: Path, tmp_path: Path
) -> None:
    def untrained(arrays: dict[str, np.ndarray]) -> None:
        for name in arrays:
            arrays[name] *= 0 if name.endswith("_b") else 1

    adapter = write_adapter(tmp_path / "a.gguf", tiny_model, change=untrained)
    failed = check(worker, adapter)
    assert isinstance(failed, Failed) and "changes nothing" in failed.why


@pytest.mark.parametrize("flash", ["off", "on"])
def test_an_adapter_that_computes_nan_is_refused_and_leaves_no_trace(
    tiny_model: Path, tmp_path: Path, flash: str
) -> None:
    """The file is a good one; without flash attention a NaN in a masked cell is one."""
    adapter = write_adapter(tmp_path / "huge.gguf", tiny_model)
    huge = msgspec.structs.replace(adapter, scale=1e30)
    settings = EngineSettings(n_ctx=512, slots=1, n_threads=1, flash_attn=flash)  # type: ignore[arg-type]
    with WorkerProcess() as process:
        process.load(tiny_model, settings)
        before = answer(process, text="hello")
        process.send(chat(2, STORY, adapter=huge))
        first = process.receive()
        assert answer(process, text="hello") == before
        second = check(process, huge)
    assert isinstance(first, Failed) and first.code == "adapter_refused" and "NaN" in first.what
    assert isinstance(second, Failed) and second.code == "adapter_refused"


def test_an_adapter_that_fits_passes_the_check(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    assert check(worker, adapters[3]) == Text(9, "")


# ---- what is in memory ----


def test_idle_adapters_are_freed_but_never_the_one_in_use(
    tiny_model: Path, adapters: list[AdapterRef]
) -> None:
    log = start_backend()
    model = Model(tiny_model, EXACT, log)
    context = Context(model, EXACT, log, n_ctx=512, slots=2)
    pool = AdapterPool(model, context, tiny_model, log)
    keys = [(adapter.sha256, 1.0) for adapter in adapters]
    for adapter, key in zip(adapters[:KEPT], keys, strict=False):
        pool.load(adapter, ())
        pool.use(key)
    assert pool.loaded == [sha256 for sha256, _ in keys[:KEPT]]
    pool.use(keys[0])
    pool.load(adapters[4], {keys[1]})
    assert pool.loaded == [keys[index][0] for index in (0, 1, 3, 4)]
    pool.load(adapters[5], set(keys[:5]))
    assert len(pool.loaded) == KEPT + 1, "more than are kept while all are used"
    with pytest.raises(AdapterRefused):
        pool.load(AdapterRef("/nowhere", "0" * 64), ())
    context.close()
    model.close()


@pytest.mark.model
def test_without_repacking_the_worker_holds_no_second_copy(gemma3: Path) -> None:
    def anonymous_kib(repack: bool) -> int:
        with WorkerProcess() as process:
            settings = EngineSettings(n_ctx=512, slots=1, n_threads=2, repack=repack)
            process.load(gemma3, settings)
            status = Path(f"/proc/{process.process.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0])

    saved = anonymous_kib(True) - anonymous_kib(False)
    assert saved > 10_000


# ---- scores ----

TURNS = [
    Message("user", "hello"),
    Message("assistant", STORY * 2),
    Message("user", "and the other?"),
    Message("assistant", "nö <|im_end|> " + STORY),
]


def expected(model: Path, messages: list[Message], adapter: Path | None = None) -> list[float]:
    """The same, from all logits of a context of this process."""
    with vocabulary_only(model) as prompts:
        chats = encode_turns(prompts, messages)
    source = LlamaLogits(model, exact=True, threads=1, adapters=[adapter] if adapter else [])
    found = []
    for item in chats:
        rows = log_softmax(source.logits(item.ids).astype(np.float64))
        places = [at for at, learned in enumerate(item.learned) if learned]
        found += [float(rows[at - 1, item.ids[at]]) for at in places]
    source.close()
    return found


def test_scores_are_the_log_probabilities_of_every_answer(
    worker: WorkerProcess, tiny_model: Path, adapters: list[AdapterRef]
) -> None:
    for adapter in (None, adapters[0]):
        scores = ask(worker, Score(1, TURNS, adapter))
        assert isinstance(scores, Scores)
        path = Path(adapter.path) if adapter else None
        reference_values = expected(tiny_model, TURNS, path)
        np.testing.assert_allclose(scores.logprobs, reference_values, atol=2e-4)
        assert len(scores.logprobs) > 3 * READING_ROWS, "several calls"
        assert scores.n_bytes == sum(len(m.content.encode()) for m in TURNS[1::2])
        assert scores.prompt_tokens > len(scores.logprobs)


def test_a_score_does_not_depend_on_who_was_in_the_slot_before(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    first = ask(worker, Score(1, TURNS))
    worker.answer(chat(2, *[message.content for message in TURNS[:3]]))
    ask(worker, Score(1, TURNS, adapters[0]))
    again = ask(worker, Score(1, TURNS))
    assert isinstance(first, Scores) and first == again


def test_a_template_that_rewrites_earlier_turns_is_scored_turn_by_turn(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "forgetful.gguf", chat_template=FORGETFUL)
    with vocabulary_only(model) as prompts:
        assert len(encode_turns(prompts, TURNS)) == 2
    with WorkerProcess() as process:
        process.load(model, EXACT)
        scores = ask(process, Score(1, TURNS))
    assert isinstance(scores, Scores)
    np.testing.assert_allclose(scores.logprobs, expected(model, TURNS), atol=2e-4)


def test_scores_beside_answers_starve_nobody_and_stay_the_same(
    worker: WorkerProcess, adapters: list[AdapterRef]
) -> None:
    alone = ask(worker, Score(1, TURNS, adapters[1]))
    worker.send(chat(2, "hello", adapter=adapters[0], max_tokens=300, ignore_eos=True))
    worker.send(Score(3, TURNS, adapters[1]), Score(4, TURNS, adapters[1]))
    scores: list[Scores] = []
    most = 0  # tokens the answer got between two scores
    n_tokens = n_last = 0
    while len(scores) < 2:
        record = worker.receive()
        if isinstance(record, Chunk):
            n_tokens = record.completion_tokens
        elif isinstance(record, Scores):
            scores.append(record)
            most, n_last = max(most, n_tokens - n_last), n_tokens
        else:
            raise AssertionError(f"the answer ended first: {record}")
    worker.collect(2)
    assert most > 20, "the answer stood still"
    assert isinstance(alone, Scores)
    for record in scores:
        np.testing.assert_allclose(record.logprobs, alone.logprobs, atol=2e-4)


def test_a_score_can_be_cancelled_and_one_that_cannot_be_is_refused(
    worker: WorkerProcess, tiny_model: Path
) -> None:
    busy = [chat(index, "hello", max_tokens=60, ignore_eos=True) for index in (1, 2)]
    worker.send(*busy, Score(3, TURNS), Cancel(3))
    while not (isinstance(record := worker.receive(), Done) and record.id == 3):
        pass
    assert record.finish_reason == "cancelled"
    worker.finish(1, 2)
    worker.send(Score(4, [Message("user", "x"), Message("assistant", STORY * 10)]), Cancel(4))
    record = worker.receive()
    assert isinstance(record, Scores | Done) and record.id == 4
    too_long = ask(worker, Score(5, [Message("user", "x"), Message("assistant", STORY * 40)]))
    assert isinstance(too_long, Failed) and too_long.code == "context_length_exceeded"
    silent = ask(worker, Score(6, [Message("user", "x")]))
    assert isinstance(silent, Failed) and silent.code == "invalid_request"


@pytest.mark.model
def test_a_real_model_answers_as_before_once_an_adapter_is_gone(
    smollm2: Path, tmp_path: Path
) -> None:
    weak, strong = (
        write_adapter(tmp_path / f"{strength}.gguf", smollm2, 3, strength=strength)
        for strength in (0.05, 0.5)
    )
    question = "Name three fruits and say how they taste."
    taught = [Message("user", question), Message("assistant", "Apples are sweet.")]
    with WorkerProcess() as process:
        process.load(smollm2, EngineSettings(n_ctx=1024, slots=2, n_threads=2))
        before = answer(process, text=question)
        score = ask(process, Score(5, taught))
        texts = [answer(process, adapter, question) for adapter in (weak, strong)]
        process.send(*[chat(i, question, adapter=a) for i, a in enumerate((None, weak, strong))])
        process.finish(0, 1, 2)
        assert answer(process, text=question) == before
        assert ask(process, Score(5, taught)) == score
        assert [answer(process, adapter, question) for adapter in (weak, strong)] == texts
    assert len({before, *texts}) == 3 and isinstance(score, Scores)
    digest = hashlib.sha256(Path(weak.path).read_bytes()).hexdigest()
    assert digest == weak.sha256, "nobody touched the file"
