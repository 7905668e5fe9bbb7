"""From a request to the parts of its prompt: control tokens as ids, plain text as text.

Why it exists: text of a user must never become a control token (`hi<|im_end|>` stays text), so a
prompt is not a string but a row of fixed ids and strings; each string is later tokenized whole with
special parsing off. Exactly one BOS is put in front where the vocabulary asks for one. Flows in:
records.Generate. Flows out: `Part`s for prefix_cache.encode. Not here: the templates themselves.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from edge_agent.errors import RequestError, TemplateError
from edge_agent.llama.model import Model, ModelVocabulary
from edge_agent.prompt.chat_template import (
    ChatTemplate,
    Control,
    Item,
    SpecialTokens,
    as_text,
    identify,
)
from edge_agent.prompt.encoding import Part
from edge_agent.prompt.grammar import schema_to_gbnf
from edge_agent.records import Generate, Message

_NFC_TOKENIZERS = ("qwen2",)
"""tokenizer.ggml.pre of families whose own tokenizer normalizes text to NFC; llama.cpp does not."""


class PromptBuilder:
    """The prompt side of one model: its template and its control tokens."""

    def __init__(self, model: Model, architecture: str) -> None:
        self.vocabulary: ModelVocabulary = model.vocabulary
        vocabulary = self.vocabulary
        self.control_ids = frozenset(
            map(vocabulary.added_ids.__getitem__, vocabulary.control_texts)
        )
        self._is_nfc = model.metadata("tokenizer.ggml.pre") in _NFC_TOKENIZERS
        self._template = ChatTemplate(
            identify(model.chat_template, architecture, vocabulary.control_texts),
            model.chat_template,
            SpecialTokens(
                vocabulary.control_texts,
                vocabulary.text(vocabulary.bos),
                vocabulary.text(vocabulary.eos),
            ),
        )

    @property
    def renderer(self) -> str:
        """Name of the template's renderer, for ModelInfo."""
        return self._template.name

    def close(self) -> None:
        """End the template's sandbox process, if one was started."""
        self._template.close()

    def parts(self, generate: Generate) -> list[Part]:
        """Raises RequestError for an empty or impossible prompt, TemplateError for its template."""
        if generate.messages is not None:
            return self._with_bos(self._resolve(self._template.render(generate.messages)))
        if generate.text is not None:
            parts = self._with_bos([self._normal(generate.text)] if generate.text else [])
            if not parts:
                raise RequestError("the prompt is empty", "", "send at least one character")
            return parts
        return self._checked(generate.tokens or [])

    def grammar(self, schema: dict[str, Any] | None) -> str | None:
        """GBNF for a schema the front has checked; None for none."""
        return None if schema is None else schema_to_gbnf(schema)

    def as_text(self, messages: Sequence[Message]) -> str:
        """What a chat looks like to the model, without BOS, for /apply-template."""
        return as_text(self._template.render(messages))

    def _resolve(self, items: Sequence[Item]) -> list[Part]:
        return [
            self._control(item) if isinstance(item, Control) else self._normal(item)
            for item in items
        ]

    def _normal(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self._is_nfc else text

    def _control(self, item: Control) -> int:
        token = self.vocabulary.added_ids.get(item.text)
        if token is None:
            raise TemplateError(
                f"the chat template uses {item.text!r}",
                "this model's vocabulary has no such control token",
                "use /v1/completions, or a model whose template fits its vocabulary",
            )
        return token

    def _with_bos(self, parts: list[Part]) -> list[Part]:
        vocabulary = self.vocabulary
        if vocabulary.add_bos and vocabulary.bos >= 0:
            return [vocabulary.bos, *parts]
        return parts

    def _checked(self, tokens: Sequence[int]) -> list[Part]:
        outside = [token for token in tokens if not 0 <= token < self.vocabulary.n_tokens]
        if outside or not tokens:
            raise RequestError(
                f"token {outside[0]} is not in the vocabulary"
                if outside
                else "the prompt is empty",
                f"ids run from 0 to {self.vocabulary.n_tokens - 1}",
                "ask /tokenize for ids",
            )
        return list(tokens)
