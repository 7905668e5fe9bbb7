"""From a request to the parts of its prompt: control tokens as ids, plain text as text.

Why it exists: text of a user must never become a control token (`hi<|im_end|>` stays text). So a
prompt is not one string but a list of fixed ids and strings, and each string is later tokenized as
a whole with special parsing off. Only a raw prompt whose sender writes the template himself
(`Generate.parse_special`) is tokenized with special parsing on. A prompt begins with exactly one
BOS where the vocabulary asks for it. Flows in: records.Generate. Flows out: `Part`s for
encoding.encode. Not here: the templates (chat_template.py), tokenizing (encoding.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from edge_agent.errors import RequestError, TemplateError
from edge_agent.llama.model import Model, ModelVocabulary
from edge_agent.prompt.chat_template import ChatTemplate, SpecialTokens, identify
from edge_agent.prompt.encoding import Part
from edge_agent.prompt.grammar import schema_to_gbnf
from edge_agent.prompt.template_families import Control, Item, as_text
from edge_agent.records import Generate, Message

_NFC_TOKENIZERS = ("qwen2",)
"""Values of tokenizer.ggml.pre whose families normalize text to Unicode NFC in their own tokenizer.
llama.cpp does not normalize, so it is done here."""


class PromptBuilder:
    """Builds the prompts of one model from its template and its control tokens.

    For example, with a loaded Model:

        prompts = PromptBuilder(model, "gemma3")
        parts = prompts.parts(Generate(id=1, sampling=Sampling(), max_tokens=64, text="Once"))
    """

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
        """Name of the template's renderer (ChatTemplate.name), for ModelInfo."""
        return self._template.name

    def close(self) -> None:
        """End the template's sandbox process, if one was started."""
        self._template.close()

    def parts(self, generate: Generate) -> list[Part]:
        """The parts of the prompt of `generate`: of its messages, its text or its token ids.

        Raises RequestError for an empty prompt, for ids outside the vocabulary and for messages
        that the template refuses; TemplateError for a template that cannot be used.
        """
        if generate.messages is not None:
            items = self._template.render(generate.messages, continues=generate.continues)
            return self._with_bos(self._resolve(items))
        if generate.text is not None:
            parts = self._text_parts(self._normal(generate.text), generate.parse_special)
            if not parts:
                raise RequestError("the prompt is empty", "", "send at least one character")
            return parts
        return self._checked(generate.tokens or [])

    def _text_parts(self, text: str, parse_special: bool) -> list[Part]:
        """A raw prompt with one BOS, the one that its sender wrote if he did."""
        if not parse_special:
            return self._with_bos([text] if text else [])
        ids = self.vocabulary.tokenize(text, add_special=False, parse_special=True)
        return list(ids) if ids[:1] == [self.vocabulary.bos] else self._with_bos(list(ids))

    def grammar(self, schema: dict[str, Any] | None) -> str | None:
        """The GBNF grammar of a JSON schema; None without a schema. Raises SchemaError."""
        return None if schema is None else schema_to_gbnf(schema)

    def as_text(self, messages: Sequence[Message], *, continues: bool = False) -> str:
        """The prompt of a chat as text, without BOS, for /apply-template."""
        return as_text(self._template.render(messages, continues=continues))

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
