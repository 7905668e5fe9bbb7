"""PromptBuilder over a fake model: letters for tokens, so that ids can be read."""

from __future__ import annotations

import unicodedata

import pytest

from edge_agent.errors import RequestError
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.records import Generate, Message, Sampling

START, END, BOS = 900, 901, 902


class LetterVocabulary:
    n_tokens, bos, eos, add_bos = 1000, BOS, END, False
    added_ids = {"<|im_start|>": START, "<|im_end|>": END}
    control_texts = frozenset(added_ids)

    def text(self, token: int) -> str:
        return {BOS: "<bos>", END: "<|im_end|>"}.get(token, "")


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
