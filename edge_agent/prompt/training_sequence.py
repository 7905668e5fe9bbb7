"""A chat as token ids for training, equal to the ids that the server would use for the same chat.

Why it exists: training on ids that differ from the server's teaches the wrong thing, and no error
shows it. So the ids before each answer are made by the server's own code (prompt_builder.py,
encoding.py), as in a slot that continues its conversation. Then follow the answer's text, tokenized
as one string with special parsing off, and the token that ends the turn. The answer's tokens and
the end token are learned; the header of the assistant's turn is not. Flows in: messages. Flows out:
`Encoded`. Not here: files of chats (adapt/trainer/dataset.py), lengths, batches.

A template may show an earlier answer differently from the way it was given: Qwen 3 leaves out the
empty think block. Then no single sequence is right for both turns, and the chat is cut into several
sequences, so that each answer is learned once, after exactly the prompt that asks for it. An answer
is learned as the template writes it: Gemma strips white space, Qwen 3 drops the thought. Messages
after the last answer are ignored.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edge_agent.errors import RequestError
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama.binding import start_backend
from edge_agent.llama.model import Model, ModelVocabulary
from edge_agent.prompt.encoding import Part, encode
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.records import EngineSettings, Generate, Message, Sampling

_HINT = "train with a model whose chat template is one of the known families"


@dataclass(frozen=True)
class Encoded:
    """One sequence. `learned[i]` says whether the prediction of token i, from the tokens before it,
    is trained.

    `n_bytes`: UTF-8 bytes of the learned answers, without the tokens that end the turns.
    """

    ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    n_bytes: int = 0


def encode_turns(prompts: PromptBuilder, messages: Sequence[Message]) -> list[Encoded]:
    """The sequences of a chat, in which every answer is learned exactly once.

    There is one sequence unless the template changes earlier answers. Raises RequestError when the
    chat has no answer, when the template refuses the roles, and when the text after the prompt is
    not the answer; TemplateError when there is no usable template.

        with vocabulary_only(Path("model.gguf")) as prompts:
            encode_turns(prompts, [Message("user", "2+2?"), Message("assistant", "4")])[0].ids
    """
    found: list[Encoded] = []
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        asked = _parts(prompts, messages[:place])
        answer, end = _answer(prompts, asked, messages[: place + 1])
        before = found[-1] if found else Encoded()
        ids = encode(asked, before.ids, prompts.vocabulary, prompts.control_ids)
        if ids[: len(before.ids)] == before.ids:
            del found[-1:]
        else:
            before = Encoded()
            ids = encode(asked, [], prompts.vocabulary, prompts.control_ids)
        learned = [*_answer_ids(prompts.vocabulary, answer), end]
        found.append(_extended(before, ids, learned, answer))
    if not found:
        raise RequestError(
            "the chat has no assistant turn", "there is nothing to learn in it", "add an answer"
        )
    return found


def _extended(before: Encoded, prompt: list[int], learned: list[int], answer: str) -> Encoded:
    unlearned = [False] * (len(prompt) - len(before.ids))
    return Encoded(
        prompt + learned,
        [*before.learned, *unlearned, *[True] * len(learned)],
        before.n_bytes + len(answer.encode("utf-8", "surrogatepass")),
    )


def _parts(prompts: PromptBuilder, messages: Sequence[Message]) -> list[Part]:
    """The parts of the chat's prompt, made as the server makes those of a request."""
    return prompts.parts(Generate(id=0, sampling=Sampling(), max_tokens=1, messages=list(messages)))


def _answer(
    prompts: PromptBuilder, asked: Sequence[Part], messages: Sequence[Message]
) -> tuple[str, int]:
    """The last message as the template writes it, and the control token that follows it.

    `asked` are the parts of the prompt for this answer. Raises RequestError when the template does
    not continue `asked` with the answer and a control token that ends a generation.
    """
    rest = _rest(asked, _parts(prompts, messages))
    if rest is None and "</think>" in messages[-1].content:
        content = messages[-1].content.split("</think>")[-1].lstrip("\n")
        spoken = [*messages[:-1], Message("assistant", content)]
        rest = _rest(asked, _parts(prompts, spoken))
    if rest is None:
        raise _unusable(
            prompts, "it does not continue its own prompt when the answer is added to the chat"
        )
    answer = rest.pop(0) if rest and isinstance(rest[0], str) else ""
    end = rest[0] if rest else None
    if not isinstance(answer, str) or not isinstance(end, int):
        raise _unusable(prompts, "it does not end an answer with a control token")
    if end not in prompts.vocabulary.eog_ids:
        text = prompts.vocabulary.text(end)
        raise _unusable(prompts, f"it ends an answer with {text!r}, which does not stop the server")
    return answer, end


def _rest(asked: Sequence[Part], answered: Sequence[Part]) -> list[Part] | None:
    """The parts of `answered` that follow `asked`; None when `answered` does not begin with it."""
    *head, last = asked
    n_head = len(head)
    if list(answered[:n_head]) != head or len(answered) == n_head:
        return None
    joint, behind = answered[n_head], list(answered[n_head + 1 :])
    if isinstance(last, str) and isinstance(joint, str) and joint.startswith(last):
        return [joint[len(last) :], *behind] if joint != last else behind
    return behind if joint == last else None


def _answer_ids(vocabulary: ModelVocabulary, answer: str) -> list[int]:
    """Ids of the answer, tokenized as one string.

    Some vocabularies put a space before every string. Then the answer is tokenized behind a line
    break, and the ids of the line break are removed.
    """
    if not answer:
        return []
    ids = vocabulary.tokenize(answer, add_special=False, parse_special=False)
    if b"".join(map(vocabulary.piece, ids)) == answer.encode("utf-8"):
        return ids
    line = vocabulary.tokenize("\n", add_special=False, parse_special=False)
    behind = vocabulary.tokenize(f"\n{answer}", add_special=False, parse_special=False)
    return behind[len(line) :] if behind[: len(line)] == line else ids


def _unusable(prompts: PromptBuilder, why: str) -> RequestError:
    return RequestError(f"cannot learn from chats with the {prompts.renderer} template", why, _HINT)


class VocabularyPrompts(PromptBuilder):
    """The prompts of a model file whose weights are not loaded. Close it, or use it in a `with`
    block."""

    def __init__(self, path: Path) -> None:
        self._model = Model(path, EngineSettings(), start_backend(), vocab_only=True)
        super().__init__(self._model, self._model.metadata("general.architecture") or "unknown")

    def close(self) -> None:
        """Free the vocabulary (50 MB with Gemma) and end the sandbox process, if there is one."""
        super().close()
        self._model.close()
        # Otherwise glibc keeps the memory of 262,144 small strings.
        ctypes.CDLL(None).malloc_trim(0)

    def __enter__(self) -> VocabularyPrompts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def vocabulary_only(path: Path) -> VocabularyPrompts:
    """Prompts of the model file at `path`, for a process that has no llama.cpp context.

    Raises ModelFormatError when `read_gguf` or llama.cpp refuses the file.
    """
    read_gguf(path)
    return VocabularyPrompts(path)
