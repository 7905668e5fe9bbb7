"""Rows of training data: what is read, what is refused and where, how it is split and encoded."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_models import TEMPLATES, prompts_of, write_bpe

from edge_agent.adapt.trainer.dataset import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    ChatRow,
    encode_rows,
    parse_rows,
    read_rows,
    split,
)
from edge_agent.errors import DataRefused, RequestError
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.prompt.training_sequence import encode_turns
from edge_agent.records import Message


def line(**document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def texts(row: ChatRow) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in row.messages]


def refusal(*lines: bytes) -> DataRefused:
    with pytest.raises(DataRefused) as refused:
        parse_rows(lines, "data.jsonl")
    return refused.value


# ---- reading -----------------------------------------------------------------------------------


def test_the_three_forms_become_chats(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [
        line(instruction="Translate", input="water", output="पानी"),
        b"",
        line(instruction="Who are you?", input="", output="Asha.", system="Be brief.", id=7),
        line(messages=said("a", "b", "c", "d", system="S")),
        b"   ",
        line(prompt="ನೀನು ಯಾರು?", completion="ಆಶಾ.", source="feedback:asha"),
        line(prompt=said("a"), completion=[{"role": "assistant", "content": "b"}]),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    rows = read_rows(path)
    assert [row.number for row in rows] == [1, 3, 4, 6, 7]
    assert [row.source for row in rows] == ["file", "file", "file", "feedback:asha", "file"]
    assert texts(rows[0]) == [("user", "Translate\n\nwater"), ("assistant", "पानी")]
    assert texts(rows[1]) == [("system", "Be brief."), ("user", "Who are you?"),
                              ("assistant", "Asha.")]  # fmt: skip
    assert [role for role, _ in texts(rows[2])] == ["system", *["user", "assistant"] * 2]
    assert texts(rows[3]) == [("user", "ನೀನು ಯಾರು?"), ("assistant", "ಆಶಾ.")]
    assert texts(rows[4]) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{", "not JSON: Expecting property name"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff{}", "not UTF-8 at byte 1"),
        (b'["a"]', "not an object but a list"),
        (b"{}", "found only nothing"),
        (line(question="a", answer="b"), "found only answer, question"),
        (line(instruction="a", prompt="b", output="c"), "found instruction and prompt"),
        (line(instruction="a"), "output is missing"),
        (line(instruction="a", output=7), "output is not text"),
        (line(instruction="a", input=["b"], output="c"), "input is not text"),
        (line(instruction="a", output=" \n"), "an empty answer"),
        (line(instruction="  ", output="a"), "an empty question"),
        (line(prompt="a", completion=None), "completion is missing"),
        (line(prompt=said("a"), completion="b"), "completion is not a list of messages"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "not valid Unicode"),
        (line(messages=[]), "messages is not a list"),
        (line(messages="hi"), "messages is not a list"),
        (line(messages=["hi"]), "message 1 of messages is not an object"),
        (line(messages=[{"role": "tool", "content": "a"}]), "message 1 has the role 'tool'"),
        (line(messages=[{"role": "user", "content": [{"text": "a"}]}]), "content is not text"),
        (line(messages=said("a")), "there is no assistant turn"),
        (line(messages=said("a", "b", "c")), "the last message is not the assistant's"),
        (line(messages=said("a", "b")[::-1]), "message 1 is assistant's where user's is expected"),
        (line(messages=said(*"ab") + said(*"ab", system="s")), "message 3 is system's where user"),
        (line(messages=said(*"ab", system="s")[:1] + said(*"ab") + said("c", "d")[1:]),
         "message 4 is assistant's"),
        (line(prompt="a", completion="b" * MAX_LINE_BYTES), "longer than 1 MB"),
    ],
)  # fmt: skip
def test_a_bad_line_is_refused_with_its_number_and_the_reason(bad: bytes, why: str) -> None:
    error = refusal(line(prompt="a", completion="b"), bad)
    assert "1 of 2 rows of data.jsonl" in error.what
    assert error.why.startswith("line 2: ") and why in error.why
    assert error.hint


def test_ten_bad_lines_are_shown_and_the_others_counted() -> None:
    error = refusal(*[b"{"] * 7, line(prompt="a", completion="b"), *[b"[]"] * 6)
    assert error.what.startswith("13 of 14 rows")
    assert error.why.count("line ") == 10
    assert "line 11: " in error.why and "line 12: " not in error.why
    assert error.why.endswith("; and 3 more")


def test_the_lines_behind_one_that_is_too_long_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"x" * (3 * MAX_LINE_BYTES) + b"\n" + b"{}\n")
    with pytest.raises(DataRefused, match="2 of 2 rows") as refused:
        read_rows(path)
    assert "line 1: it is longer" in refused.value.why and "line 2: one of" in refused.value.why


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n\n")
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    reasons = {"absent": "No such file", "empty": "it holds no row", "huge": "larger than 64 MB",
               "fifo": "not a regular file", ".": "directory"}  # fmt: skip
    for name, why in reasons.items():
        with pytest.raises(DataRefused) as refused:
            read_rows(tmp_path / name)
        assert why in refused.value.why or why == "directory", name


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["messages", "prompt", "role", "content", "output"]), inner),
    max_leaves=6,
).map(lambda document: json.dumps(document).encode()))  # fmt: skip
def test_whatever_a_line_holds_the_error_is_typed(line: bytes) -> None:
    try:
        rows = parse_rows([line], "x")
    except DataRefused as error:
        assert error.why
    else:
        assert rows[0].messages[-1].role == "assistant"


# ---- splitting ---------------------------------------------------------------------------------


def chat_row(number: int, asked: str, answer: str = "yes") -> ChatRow:
    return ChatRow(number, (Message("user", asked), Message("assistant", answer)))


ROWS = [chat_row(n, f"question {n}") for n in range(200)]


def test_the_split_is_the_share_and_always_the_same() -> None:
    train, held = split(ROWS, 0.1)
    assert 10 <= len(held) <= 32, "20 of 200, by chance"
    assert sorted(row.number for row in train + held) == list(range(200))
    assert split(ROWS, 0.1) == (train, held)
    shuffled = random.Random(3).sample(ROWS, len(ROWS))
    assert {row.number for row in split(shuffled, 0.1)[1]} == {row.number for row in held}


def test_a_row_keeps_its_side_when_others_are_added() -> None:
    before = {row.number for row in split(ROWS[:100], 0.1)[1]}
    after = {row.number for row in split(ROWS, 0.1)[1]}
    assert before == {number for number in after if number < 100}


def test_spellings_of_one_question_stand_on_one_side() -> None:
    spellings = ["Who are you?", "who are  you", "WHO ARE YOU!", "“Who are you”", "Who are you ?"]
    for share in (0.1, 0.3, 0.5, 0.7):
        rows = ROWS + [chat_row(300 + n, text, f"a{n}") for n, text in enumerate(spellings)]
        held = {row.number for row in split(rows, share)[1]}
        assert len(held & set(range(300, 305))) in (0, 5)


def test_small_sets_keep_something_to_learn_and_from_ten_on_something_to_measure() -> None:
    assert split(ROWS[:9], 0.5) == (ROWS[:9], [])
    for n in range(10, 60):
        train, held = split(ROWS[:n], 0.01)
        assert len(held) >= 1 and len(train) >= 1
        train, held = split(ROWS[:n], 0.99)
        assert len(held) >= 1 and len(train) >= 1
    assert split(ROWS, 0.0) == (ROWS, [])
    same = [chat_row(n, "who?") for n in range(20)]
    assert split(same, 0.5) == (same, [])


def test_where_answers_have_several_questions_a_fact_asked_once_is_never_kept_back() -> None:
    """It could not be learned from the others: its loss would end training early."""
    facts = [chat_row(n, f"wording {n}", f"fact {n // 5}") for n in range(60)]
    once = [chat_row(100 + n, f"talk {n}", f"reply {n}") for n in range(60)]
    train, held = split(facts + once, 0.2)
    assert held and all(row.number < 60 for row in held)
    assert sorted(row.number for row in train + held) == [*range(60), *range(100, 160)]
    most_once = [*once, chat_row(999, "one more", "reply of its own")]
    assert any(row.number >= 100 for row in split(facts + most_once, 0.2)[1])


def test_a_question_with_two_answers_stands_on_one_side() -> None:
    facts = [chat_row(n, f"wording {n}", f"fact {n // 5}") for n in range(60)]
    twins = [chat_row(100 + n, f"wording {n}", f"another {n}") for n in range(60)]
    train, held = split(facts + twins, 0.2)
    assert held and not {row.number % 100 for row in train} & {row.number % 100 for row in held}


# ---- encoding ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PromptBuilder]]:
    directory = tmp_path_factory.mktemp("prompts")
    chatml = write_bpe(directory / "chatml.gguf", TEMPLATES["chatml"])
    qwen3 = write_bpe(directory / "qwen3.gguf", TEMPLATES["qwen3"])
    with prompts_of(chatml) as one, prompts_of(qwen3) as other:
        yield {"chatml": one, "qwen3": other}


def test_samples_are_what_the_template_code_says(prompts: dict[str, PromptBuilder]) -> None:
    rows = [chat_row(1, "hello", "the"), chat_row(2, "नमस्ते", "ಹೌದು")]
    samples, rejected = encode_rows(rows, prompts["chatml"], 512)
    assert rejected == {}
    assert [sample.row for sample in samples] == [1, 2]
    for row, sample in zip(rows, samples, strict=True):
        (encoded,) = encode_turns(prompts["chatml"], row.messages)
        assert (list(sample.ids), sample.learned) == (encoded.ids, encoded.learned)
        assert len(sample) == len(encoded.ids)
    assert [sample.n_bytes for sample in samples] == [3, 12]


def test_rows_that_are_too_long_are_counted_and_never_cut(
    prompts: dict[str, PromptBuilder],
) -> None:
    rows = [chat_row(1, "a", "b"), chat_row(2, "a", "b" * 600), chat_row(3, "a" * 600, "b")]
    samples, rejected = encode_rows(rows, prompts["chatml"], 100)
    assert [sample.row for sample in samples] == [1]
    assert rejected == {"too_long": 2}
    exact = len(samples[0])
    assert encode_rows(rows[:1], prompts["chatml"], exact)[1] == {}
    assert encode_rows(rows[:1], prompts["chatml"], exact - 1) == ([], {"too_long": 1})


def test_a_row_of_several_answers_is_one_sample_or_one_for_each(
    prompts: dict[str, PromptBuilder],
) -> None:
    turns = (Message("user", "a"), Message("assistant", "b")) * 3
    rows = [ChatRow(5, turns)]
    assert [sample.row for sample in encode_rows(rows, prompts["chatml"], 512)[0]] == [5]
    assert [sample.row for sample in encode_rows(rows, prompts["qwen3"], 512)[0]] == [5] * 3


def test_a_template_that_cannot_be_learned_with_is_said_at_once(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}answer: "
    with (
        prompts_of(write_bpe(tmp_path / "t.gguf", template)) as builder,
        pytest.raises(RequestError, match="cannot learn from chats"),
    ):
        encode_rows([chat_row(1, "a", "b")], builder, 512)


def test_reading_and_auditing_load_neither_numpy_nor_llama_cpp() -> None:
    """The front reads rows to show them."""
    program = (
        "import sys, json, edge_agent.adapt.trainer.dataset, edge_agent.adapt.trainer.audit;"
        "print(json.dumps(sorted({'numpy', 'llama_cpp', 'gguf'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
