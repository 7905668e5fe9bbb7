"""PromptBuilder over a fake model: letters for tokens, so that ids can be read."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from chat_templates import CHATML
from prompt_models import TEMPLATES, prompts_of, write_bpe

from edge_agent.errors import RequestError
from edge_agent.prompt.chat_template import ChatTemplate
from edge_agent.prompt.encoding import encode
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.records import Generate, Message, Sampling

START, END, BOS = 900, 901, 902


class LetterVocabulary:
    n_tokens, bos, eos, add_bos = 1000, BOS, END, False
    added_ids = {"<|im_start|>": START, "<|im_end|>": END}
    control_texts = frozenset(added_ids)

    def text(self, token: int) -> str:
        return {BOS: "<bos>", END: "<|im_end|>"}.get(token, "")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        assert parse_special and not add_special
        controls = {**self.added_ids, "<bos>": BOS}
        pieces = re.split("(" + "|".join(map(re.escape, controls)) + ")", text)
        return [
            id_
            for piece in pieces
            for id_ in ([controls[piece]] if piece in controls else map(ord, piece))
        ]


class FakeModel:
    chat_template = None

    def __init__(self, pre: str, add_bos: bool) -> None:
        self.vocabulary = LetterVocabulary()
        self.vocabulary.add_bos = add_bos
        self._pre = pre

    def metadata(self, key: str) -> str | None:
        return self._pre if key == "tokenizer.ggml.pre" else None


def builder(pre: str = "smollm", add_bos: bool = False) -> PromptBuilder:
    return PromptBuilder(FakeModel(pre, add_bos), "llama")  # type: ignore[arg-type]


def request(**prompt: object) -> Generate:
    return Generate(id=1, sampling=Sampling(), max_tokens=1, **prompt)  # type: ignore[arg-type]


def said(text: str) -> Generate:
    return request(messages=[Message("user", text)])


def test_control_tokens_are_ids_and_a_users_own_stay_text() -> None:
    parts = builder().parts(said("hi<|im_end|>"))
    assert parts == [START, "user\nhi<|im_end|>", END, "\n", START, "assistant\n"]


def test_there_is_exactly_one_bos_where_the_vocabulary_asks_for_it() -> None:
    assert builder(add_bos=True).parts(said("hi")).count(BOS) == 1
    assert builder(add_bos=True).parts(request(text="raw")) == [BOS, "raw"]
    assert BOS not in builder().parts(said("hi"))


def test_qwen_text_is_normalized_and_other_text_is_as_sent() -> None:
    decomposed = "cafe\u0301"
    assert builder("qwen2").parts(request(text=decomposed)) == [
        unicodedata.normalize("NFC", decomposed)
    ]
    assert builder("smollm").parts(request(text=decomposed)) == [decomposed]


@pytest.mark.parametrize("prompt", [{"text": ""}, {"tokens": []}, {"tokens": [5, 1000]}])
def test_an_impossible_prompt_is_the_clients_error(prompt: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        builder().parts(request(**prompt))


def test_a_raw_prompt_has_control_tokens_only_where_its_sender_may_write_them() -> None:
    text = "a<|im_end|>"
    assert builder().parts(request(text=text)) == [text]
    assert builder().parts(request(text=text, parse_special=True)) == [ord("a"), END]


@pytest.mark.parametrize(("text", "ids"), [("<bos>a", [BOS, 97]), ("a", [BOS, 97]), ("", [BOS])])
def test_a_raw_prompt_has_one_bos_also_where_its_sender_wrote_it(text: str, ids: list[int]) -> None:
    assert builder(add_bos=True).parts(request(text=text, parse_special=True)) == ids
    assert builder().parts(request(text="<bos>a", parse_special=True)) == [BOS, 97]


def test_a_raw_prompt_in_the_templates_words_gives_the_ids_of_the_chat(tmp_path: Path) -> None:
    with prompts_of(write_bpe(tmp_path / "model.gguf", CHATML)) as prompts:
        asked = [
            Message("user", "What is\n2+2?"),
            Message("assistant", "4"),
            Message("user", "Why?"),
        ]
        parts = prompts.parts(request(messages=asked))
        raw = prompts.parts(request(text=prompts.as_text(asked), parse_special=True))
        assert raw == encode(parts, [], prompts.vocabulary, prompts.control_ids)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_begun_answer_ends_the_prompt_and_forges_nothing(tmp_path: Path, name: str) -> None:
    with prompts_of(write_bpe(tmp_path / "model.gguf", TEMPLATES[name])) as prompts:
        asked = [Message("user", "2+2?")]
        begun = [*asked, Message("assistant", "The<|im_end|> answer ")]
        *before, last = prompts.parts(request(messages=asked))
        assert prompts.parts(request(messages=begun, continues=True)) == [
            *before,
            f"{last}The<|im_end|> answer ",
        ]
        assert prompts.as_text(begun, continues=True) == prompts.as_text(asked) + begun[1].content
        assert prompts.parts(request(messages=begun)) != prompts.parts(
            request(messages=begun, continues=True)
        )


def test_an_answer_may_begin_a_chat_except_with_gemma() -> None:
    begun = [Message("assistant", "Once")]
    assert builder().parts(request(messages=begun, continues=True)) == [START, "assistant\nOnce"]
    with pytest.raises(RequestError, match="without a user turn"):
        ChatTemplate("gemma").render(begun, continues=True)
