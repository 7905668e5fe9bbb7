"""Questions the engine answers at once, between two decode calls, without a slot.

Flows in: records.Tokenize, Detokenize, ApplyTemplate, Ping. Flows out: the record that answers.
Not here: requests that need a decode call (scheduler.py).
"""

from __future__ import annotations

from edge_agent.llama.model import ModelVocabulary
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.records import (
    ApplyTemplate,
    Detokenize,
    FromWorker,
    Ping,
    Pong,
    Text,
    Tokenize,
    Tokens,
)

Question = Tokenize | Detokenize | ApplyTemplate | Ping


def answer(question: Question, vocabulary: ModelVocabulary, prompts: PromptBuilder) -> FromWorker:
    """The answer to `question`.

    Raises RequestError for ids or text that the vocabulary cannot take, and TemplateError when the
    chat template cannot be run.
    """
    match question:
        case Ping():
            return Pong(question.id)
        case Tokenize():
            ids = vocabulary.tokenize(
                question.content,
                add_special=question.add_special,
                parse_special=question.parse_special,
            )
            pieces = [vocabulary.spelled(token) for token in ids if question.with_pieces]
            return Tokens(question.id, ids, pieces)
        case Detokenize():
            return Text(question.id, vocabulary.detokenize(question.tokens))
        case ApplyTemplate():
            return Text(
                question.id, prompts.as_text(question.messages, continues=question.continues)
            )
