"""The real worker process over its real socket: a tiny random model, SmolLM2 where words count."""

from __future__ import annotations

import codecs
import hashlib
import math
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tiny_gguf import write_tiny_model
from waiting import DEADLINE_S, until
from worker_process import GREEDY, WorkerProcess, chat

from edge_agent.gguf.model_file import read_gguf
from edge_agent.records import (
    ApplyTemplate,
    Cancel,
    Chunk,
    Detokenize,
    Done,
    EngineSettings,
    Failed,
    Generate,
    Load,
    Ping,
    Pong,
    QuerySlots,
    Sampling,
    SlotStates,
    Text,
    Tokenize,
    Tokens,
)

LONG = "word " * 200


@pytest.fixture(scope="module")
def worker(tiny_model: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        process.load(tiny_model, EngineSettings(n_ctx=512, slots=2, n_threads=1))
        yield process


@pytest.fixture(scope="module")
def talker(smollm2: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess() as process:
        process.load(smollm2, EngineSettings(n_ctx=1024, slots=2, n_threads=2))
        yield process


def failure(worker: WorkerProcess, request: Generate) -> Failed:
    worker.send(request)
    answer = worker.receive()
    assert isinstance(answer, Failed), answer
    return answer


def test_what_was_loaded_and_decided_is_told(tiny_model: Path) -> None:
    digest = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    with WorkerProcess() as process:
        info = process.load(tiny_model, sha256=digest)
    assert (info.architecture, info.n_ctx, info.slots, info.sha256) == ("llama", 512, 2, digest)
    assert info.kv_bytes > 0 and info.compute_bytes > 0 and info.notes


def test_a_file_that_changed_since_it_was_registered_is_refused(tiny_model: Path) -> None:
    with WorkerProcess() as process:
        process.send(Load("test", str(tiny_model), EngineSettings(), sha256="0" * 64))
        answer = process.receive()
        assert isinstance(answer, Failed) and answer.code == "model_corrupt"
        assert process.process.wait(DEADLINE_S) == 10


def test_a_broken_file_is_a_typed_refusal(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 100)
    with WorkerProcess() as process:
        process.send(Load("test", str(broken), EngineSettings()))
        answer = process.receive()
    assert isinstance(answer, Failed) and (answer.id, answer.code) == (None, "model_format_error")


def test_a_model_of_nan_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    gguf = read_gguf(tiny_model)
    norm = next(tensor for tensor in gguf.tensors if tensor.name == "output_norm.weight")
    damaged = bytearray(tiny_model.read_bytes())
    start = gguf.data_start + norm.offset
    damaged[start : start + 4] = struct.pack("<f", math.nan)
    path = tmp_path / "nan.gguf"
    path.write_bytes(damaged)
    with WorkerProcess() as process:
        process.send(Load("test", str(path), EngineSettings(n_ctx=512, slots=1)))
        answer = process.receive()
    assert isinstance(answer, Failed) and answer.code == "model_format_error"
    assert "NaN" in answer.what


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(tiny_model: Path) -> None:
    with WorkerProcess() as process:
        settings = EngineSettings(memory_budget_bytes=1_000_000)
        process.send(Load("test", str(tiny_model), settings))
        answer = process.receive()
    assert isinstance(answer, Failed) and answer.code == "model_refused"


def test_a_limit_of_0_computes_the_prompt_and_minus_1_fills_the_context(
    worker: WorkerProcess,
) -> None:
    prompt = "word " * 80
    text, done = worker.answer(chat(1, prompt, max_tokens=0))
    assert (text, done.finish_reason, done.timings.completion_tokens) == ("", "length", 0)
    assert done.timings.prompt_tokens > 200 and done.timings.prefill_s > 0
    _, done = worker.answer(chat(2, prompt, max_tokens=-1, ignore_eos=True))
    assert done.timings.cached_tokens == done.timings.prompt_tokens - 1
    assert done.timings.prompt_tokens + done.timings.completion_tokens == 512 + 1


def test_ids_of_the_tokens_come_with_the_text_when_they_are_wanted(worker: WorkerProcess) -> None:
    whole = chat(1, "Hi", max_tokens=8, ignore_eos=True, stream=False, return_tokens=True)
    _, done = worker.answer(whole)
    assert len(done.tokens) == 8
    worker.send(msgspec.structs.replace(whole, id=2, stream=True))
    streamed: list[int] = []
    while not isinstance(record := worker.receive(), Done):
        assert isinstance(record, Chunk)
        streamed += record.tokens
    assert streamed + record.tokens == done.tokens
    assert worker.answer(chat(3, "Hi", max_tokens=8))[1].tokens == []


def test_greedy_answers_repeat_and_streaming_changes_nothing(worker: WorkerProcess) -> None:
    one, done = worker.answer(chat(1, "hello", cache_prompt=False))
    two, _ = worker.answer(chat(2, "hello", cache_prompt=False, stream=False))
    assert one == two and done.timings.completion_tokens == 16 and done.finish_reason == "length"


def test_the_same_seed_gives_the_same_text_when_alone(worker: WorkerProcess) -> None:
    def run(request_id: int, seed: int) -> str:
        hot = Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=seed)
        return worker.answer(chat(request_id, "hi", sampling=hot, cache_prompt=False))[0]

    assert run(1, 7) == run(2, 7) != run(3, 8)


def test_requests_together_finish_as_many_as_came_in(worker: WorkerProcess) -> None:
    worker.send(*[chat(index, "hello " * (1 + 20 * index)) for index in range(6)])
    timings = [done.timings for _, done in worker.finish(*range(6)).values()]
    assert all(answer.completion_tokens == 16 for answer in timings)
    assert max(answer.queued_s for answer in timings) > 0


def test_a_cancelled_request_ends_and_its_neighbour_is_unchanged(worker: WorkerProcess) -> None:
    alone, _ = worker.answer(chat(1, "hello", max_tokens=60, cache_prompt=False))
    worker.send(chat(2, LONG[:800], max_tokens=400), chat(3, "hello", max_tokens=60))
    worker.send(Cancel(2))
    ended = worker.finish(2, 3)
    assert [ended[index][1].finish_reason for index in (2, 3)] == ["cancelled", "length"]
    assert len(ended[3][0]) == len(alone)


def test_a_cancelled_request_in_the_queue_never_starts(worker: WorkerProcess) -> None:
    worker.send(*[chat(index, "busy", max_tokens=100) for index in (1, 2)])
    worker.send(chat(3, "waits"), Cancel(3))
    record = worker.receive()
    while not (isinstance(record, Done) and record.id == 3):
        record = worker.receive()
    assert (record.finish_reason, record.timings.completion_tokens) == ("cancelled", 0)
    worker.finish(1, 2)


def test_a_lone_answers_spans_reach_from_first_prefill_to_last_token(
    worker: WorkerProcess,
) -> None:
    before = time.monotonic()
    _, done = worker.answer(chat(1, LONG[:400], max_tokens=12, cache_prompt=False))
    timings, spans = done.timings, done.spans
    assert [span.phase for span in spans] == ["prefill", "decode"]
    assert all(span.share == 1.0 for span in spans)
    assert [span.tokens for span in spans] == [timings.prompt_tokens, timings.completion_tokens - 1]
    assert before < spans[0].start_s and spans[0].end_s == spans[1].start_s
    after = time.monotonic()
    assert spans[1].end_s < after
    assert 0 < timings.prefill_s + timings.decode_s < after - before


def test_answers_that_overlap_share_every_moment_of_the_engine(worker: WorkerProcess) -> None:
    worker.send(*[chat(index, "hello " * (1 + 9 * index), max_tokens=40) for index in range(4)])
    requests = [done.spans for _, done in worker.finish(*range(4)).values()]
    ends = {at for spans in requests for span in spans for at in (span.start_s, span.end_s)}
    cuts = sorted(ends)
    alone = 0
    for start, end in zip(cuts, cuts[1:], strict=False):
        inside = [s for spans in requests for s in spans if s.start_s <= start and end <= s.end_s]
        assert not inside or abs(sum(span.share for span in inside) - 1.0) < 1e-9
        alone += len(inside) < 2
    assert alone < len(cuts) - 1, "nothing overlapped: the test shows nothing"


def test_a_cancelled_answer_tells_when_the_engine_worked_on_it(worker: WorkerProcess) -> None:
    worker.send(chat(1, "hello", max_tokens=400, ignore_eos=True))
    worker.receive()
    worker.send(Cancel(1))
    _, done = worker.collect(1)
    assert done.finish_reason == "cancelled" and done.spans
    assert sum(span.tokens for span in done.spans if span.phase == "prefill") > 0


def test_an_answer_stops_when_the_context_is_full(worker: WorkerProcess) -> None:
    _, done = worker.answer(chat(1, "hello", max_tokens=-1, ignore_eos=True))
    timings = done.timings
    assert done.finish_reason == "length"
    assert timings.prompt_tokens + timings.completion_tokens == 512 + 1  # the last is never decoded


def test_a_prompt_longer_than_a_slot_is_refused(worker: WorkerProcess) -> None:
    assert failure(worker, chat(1, LONG * 3)).code == "context_length_exceeded"


def test_impossible_requests_are_refused_one_by_one(worker: WorkerProcess) -> None:
    outside = Sampling(logit_bias={10**6: 1.0})
    assert failure(worker, chat(1, "x", sampling=outside)).code == "invalid_request"
    bad = Generate(id=2, sampling=GREEDY, max_tokens=1, tokens=[-1])
    assert failure(worker, bad).code == "invalid_request"
    empty = Generate(id=3, sampling=GREEDY, max_tokens=1, text="")
    assert failure(worker, empty).code == "invalid_request"
    assert worker.answer(chat(4, "still alive"))[1].finish_reason == "length"


def test_questions_are_answered_between_decode_calls(worker: WorkerProcess) -> None:
    worker.send(chat(1, "busy", max_tokens=200), Ping(2), QuerySlots(3))
    seen = []
    while len(seen) < 2:
        record = worker.receive()
        if isinstance(record, Pong | SlotStates):
            seen.append(record)
    states = seen[1]
    assert isinstance(states, SlotStates) and len(states.slots) == 2
    worker.collect(1)


def test_text_goes_to_ids_and_back(worker: WorkerProcess) -> None:
    worker.send(Tokenize(1, "hello <|im_end|>", with_pieces=True))
    plain = worker.receive()
    worker.send(Tokenize(2, "hello <|im_end|>", parse_special=True))
    special = worker.receive()
    assert isinstance(plain, Tokens) and isinstance(special, Tokens)
    assert b"".join(plain.pieces) == b"hello <|im_end|>" and len(special.tokens) < len(plain.tokens)
    worker.send(Detokenize(3, special.tokens), ApplyTemplate(4, list(chat(0, "hi").messages or [])))
    assert worker.receive() == Text(3, "hello <|im_end|>")
    rendered = worker.receive()
    assert isinstance(rendered, Text) and "<|im_start|>user\nhi<|im_end|>" in rendered.text


def test_the_worker_leaves_within_a_second_also_inside_a_decode_call(tiny_model: Path) -> None:
    process = WorkerProcess()
    process.load(tiny_model, EngineSettings(n_ctx=512, slots=1))
    process.send(chat(1, "hello", max_tokens=-1, ignore_eos=True))
    process.receive()
    process.socket.close()
    assert process.process.wait(10) == 0, "ten times the promise"


def test_garbage_on_the_socket_ends_the_worker(tiny_model: Path) -> None:
    process = WorkerProcess()
    process.load(tiny_model)
    process.socket.sendall(b"\x00\x00\x00\x03abc")
    assert process.process.wait(DEADLINE_S) == 0
    process.socket.close()


def test_a_killed_worker_is_seen_as_end_of_stream(tiny_model: Path) -> None:
    process = WorkerProcess()
    process.load(tiny_model)
    process.process.send_signal(signal.SIGKILL)
    with pytest.raises(EOFError, match="-9"):
        process.receive()
    process.socket.close()


# ---- with a model that speaks ----


def has_begun_a_prompt(process: WorkerProcess) -> bool:
    """Asked before its first token: whether a part of a prompt was decoded, and not all of it."""
    process.send(QuerySlots(99))
    states = process.receive()
    assert isinstance(states, SlotStates), f"too late: {states}"
    return any(slot.state == "prefill" and slot.n_past > 0 for slot in states.slots)


@pytest.mark.model
def test_a_second_turn_prefills_only_what_is_new(talker: WorkerProcess) -> None:
    first, one = talker.answer(chat(1, LONG + "What is this?", max_tokens=40))
    _, two = talker.answer(chat(2, LONG + "What is this?", first, "Thanks. Name a fruit."))
    new = two.timings.prompt_tokens - two.timings.cached_tokens
    assert one.timings.cached_tokens == 0 and one.timings.prompt_tokens > 200
    assert two.timings.cached_tokens >= one.timings.prompt_tokens and new < 25


@pytest.mark.model
def test_a_prompt_aborted_in_the_middle_leaves_a_usable_slot(smollm2: Path) -> None:
    counting = "one two three four five six seven eight nine ten " * 12
    with WorkerProcess() as process:
        process.load(smollm2, EngineSettings(n_ctx=1024, slots=1, n_threads=2))
        process.send(chat(1, counting * 5))
        until(lambda: has_begun_a_prompt(process))
        process.send(Cancel(1))
        _, aborted = process.collect(1)
        reused, done = process.answer(chat(2, counting, max_tokens=8))
        fresh, _ = process.answer(chat(3, counting, max_tokens=8, cache_prompt=False))
    assert (aborted.finish_reason, aborted.timings.completion_tokens) == ("cancelled", 0)
    assert done.timings.completion_tokens == 8 and reused == fresh


@pytest.mark.model
def test_a_long_prompt_gives_way_to_a_newcomer_and_both_are_answered(smollm2: Path) -> None:
    counting = "one two three four five six seven eight nine ten " * 12
    with WorkerProcess() as process:
        process.load(smollm2, EngineSettings(n_ctx=1024, slots=2, n_threads=2))
        process.send(chat(1, counting * 5, max_tokens=4))
        until(lambda: has_begun_a_prompt(process))
        process.send(chat(2, "Say hi.", max_tokens=4))
        ended = process.finish(1, 2)
        again, _ = process.answer(chat(3, "Say hi.", max_tokens=4, cache_prompt=False))
    assert ended[2][1].timings.ttft_s < ended[1][1].timings.ttft_s
    assert ended[2][0] == again and ended[1][1].timings.completion_tokens == 4


@pytest.mark.model
def test_an_answer_keeps_to_its_schema(talker: WorkerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    import json

    text, done = talker.answer(chat(1, "Invent a person.", max_tokens=80, json_schema=schema))
    person = json.loads(text)
    assert set(person) == {"name", "age"} and done.finish_reason == "stop"


def spelled(worker: WorkerProcess, request: Generate) -> tuple[str, list[bytes]]:
    """The text and the bytes of each token with a logprob, which begins in the text sent so far."""
    worker.send(request)
    text, pieces = "", list[bytes]()
    while True:
        record = worker.receive()
        assert isinstance(record, Chunk | Done), record
        text += record.text
        before = decoded(b"".join(pieces))
        pieces += [one.token.raw for one in record.logprobs]
        if isinstance(record, Done):
            return text, pieces
        assert text.startswith(before)


def decoded(raw: bytes) -> str:
    """As the answer's text: invalid bytes replaced, an incomplete character at the end left out."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(raw)


def test_logprobs_spell_the_text_also_in_half_characters_and_before_a_stop(
    worker: WorkerProcess,
) -> None:
    bias = dict.fromkeys(worker_tokens(worker, "é🙂"), 100.0)
    random = Sampling(temperature=2.0, top_k=0, seed=5, logit_bias=bias)
    for stream in (True, False):
        options = {"max_tokens": 80, "logprobs": 2, "stream": stream, "sampling": random}
        text, pieces = spelled(worker, Generate(id=1, text="a", **options))  # type: ignore[arg-type]
        assert len(pieces) == 80 and decoded(b"".join(pieces)) == text
        middle = next(text[i : i + 2] for i in range(9, 60) if text.find(text[i : i + 2]) == i)
        begun = Generate(id=2, text="a", stop=[middle, "none of it"], **options)  # type: ignore[arg-type]
        text, pieces = spelled(worker, begun)
        assert middle not in text and decoded(b"".join(pieces)).startswith(text)
        assert len(decoded(b"".join(pieces[:-1]))) < len(text), "the last one begins in the text"


def worker_tokens(worker: WorkerProcess, text: str) -> list[int]:
    worker.send(Tokenize(9, text, add_special=False))
    answer = worker.receive()
    assert isinstance(answer, Tokens)
    return answer.tokens


@pytest.mark.model
def test_logprobs_are_those_of_the_raw_row(talker: WorkerProcess) -> None:
    _, done = talker.answer(chat(1, "Say hi.", max_tokens=5, logprobs=3, stream=False))
    assert len(done.logprobs) == 5
    for chosen in done.logprobs:
        top = [entry.logprob for entry in chosen.top]
        assert top == sorted(top, reverse=True) and chosen.token.id == chosen.top[0].id
        assert sum(math.exp(value) for value in top) <= 1.0 + 1e-9


@pytest.mark.model
def test_a_stop_string_is_not_shown(talker: WorkerProcess) -> None:
    whole, _ = talker.answer(chat(1, "Count from one to ten.", max_tokens=30, cache_prompt=False))
    stop = whole[10:14]
    cut, done = talker.answer(
        chat(2, "Count from one to ten.", max_tokens=30, stop=[stop], cache_prompt=False)
    )
    assert cut == whole[: whole.index(stop)]
    assert (done.finish_reason, done.stop_text) == ("stop", stop)


@pytest.mark.model
def test_penalties_look_at_generated_tokens_only(talker: WorkerProcess) -> None:
    prompt = "Repeat: apple apple apple apple"
    plain, _ = talker.answer(chat(1, prompt, max_tokens=1, cache_prompt=False))
    punished = Sampling(temperature=0.0, repeat_penalty=2.0, presence_penalty=2.0)
    same, _ = talker.answer(chat(2, prompt, max_tokens=1, sampling=punished, cache_prompt=False))
    assert plain == same


def test_a_prefix_is_reused_only_while_the_sliding_window_holds_it(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "g.gguf", architecture="gemma3", sliding_window=64)

    def story(request_id: int, n_words: int, **fields: bool) -> Generate:
        text = "once " * n_words
        return Generate(id=request_id, sampling=GREEDY, max_tokens=4, text=text, **fields)

    with WorkerProcess() as process:
        process.load(path, EngineSettings(n_ctx=512, slots=1, n_batch=64, n_threads=1))
        first, again, near, early, fresh = (
            process.answer(story(index, n_words, cache_prompt=index != 5))
            for index, n_words in ((1, 80), (2, 80), (3, 78), (4, 10), (5, 10))
        )
    n = first[1].timings.prompt_tokens
    assert n > 150, "the prompt must be longer than window and batch"
    assert again[1].timings.cached_tokens == n - 1 and again[0] == first[0]
    assert near[1].timings.cached_tokens > 100
    assert early[1].timings.cached_tokens == 0 and early[0] == fresh[0]
