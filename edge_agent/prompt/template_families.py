"""The prompts of the known families of chat templates, as control tokens and plain text.

Why it exists: the families that this project supports are rendered without running their template.
Flows in: messages, none where the assistant's turn is the first. Flows out: items that end with the
generation prompt and have no BOS. Thinking is off. Not here: which family a model belongs to, any
other template (chat_template.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.errors import RequestError
from edge_agent.records import Message


class Control(NamedTuple):
    """A control token, named by its text in the vocabulary."""

    text: str


Item = Control | str


def as_text(items: Iterable[Item]) -> str:
    """The prompt as people read it (/apply-template). Never tokenize it: a control token and the
    same text of a user look alike."""
    return "".join(item.text if isinstance(item, Control) else item for item in items)


def _turn(role: str, content: str) -> Iterator[Item]:
    yield from (Control("<|im_start|>"), f"{role}\n{content}", Control("<|im_end|>"), "\n")


def _chatml(messages: Sequence[Message], default_system: str | None = None) -> Iterator[Item]:
    """ChatML. `default_system` is added when the first message is not a system message."""
    if default_system is not None and [turn.role for turn in messages[:1]] != ["system"]:
        yield from _turn("system", default_system)
    for message in messages:
        yield from _turn(message.role, message.content)
    yield from (Control("<|im_start|>"), "assistant\n")


def _qwen2(messages: Sequence[Message]) -> Iterator[Item]:
    return _chatml(messages, "You are a helpful assistant.")


def _qwen25(messages: Sequence[Message]) -> Iterator[Item]:
    return _chatml(messages, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")


def _smollm2(messages: Sequence[Message]) -> Iterator[Item]:
    return _chatml(messages, "You are a helpful AI assistant named SmolLM, trained by Hugging Face")


def _qwen3(messages: Sequence[Message]) -> Iterator[Item]:
    """Qwen3 without thinking: earlier thoughts are dropped, and the prompt ends with an empty think
    block.

    <think> and </think> are user-defined tokens of the vocabulary (not of control type), so they
    are `Control` items where the template writes them.
    """
    last_query = max(
        (i for i, message in enumerate(messages) if _is_query(message)), default=len(messages) - 1
    )
    for i, message in enumerate(messages):
        if message.role != "assistant":
            yield from _turn(message.role, message.content)
            continue
        thought, content = _split_thought(message.content)
        yield from (Control("<|im_start|>"), "assistant\n")
        if i > last_query and (i == len(messages) - 1 or thought):
            yield from _think_block(thought.strip("\n"))
            content = content.lstrip("\n")
        yield from (content, Control("<|im_end|>"), "\n")
    yield from (Control("<|im_start|>"), "assistant\n", *_think_block(""))


def _think_block(thought: str) -> tuple[Item, ...]:
    return (Control("<think>"), f"\n{thought}\n", Control("</think>"), "\n\n")


def _is_query(message: Message) -> bool:
    """Whether a message is a user's own, and not a tool's response sent with the role user."""
    wrapped = message.content.startswith("<tool_response>") and message.content.endswith(
        "</tool_response>"
    )
    return message.role == "user" and not wrapped


def _split_thought(content: str) -> tuple[str, str]:
    if "</think>" not in content:
        return "", content
    before, after = content.split("</think>")[0], content.split("</think>")[-1]
    return before.rstrip("\n").split("<think>")[-1].lstrip("\n"), after.lstrip("\n")


def _gemma(messages: Sequence[Message]) -> Iterator[Item]:
    """Gemma 3: the system text opens the first user turn; the assistant's role is `model`.

    Google's template refuses roles that do not alternate. But chat clients repeat a user turn after
    a failed answer, and frameworks send several system messages. So neighbouring messages of one
    role are joined by a blank line, as Ollama does; roles that still do not alternate are refused.
    """
    turns = _merged(messages)
    has_system = bool(turns) and turns[0].role == "system"
    system = turns.pop(0).content + "\n\n" if has_system else ""
    for i, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[i % 2]:
            raise RequestError(
                f"message with role {turn.role!r} in place {i + 1} after the system text",
                "Gemma's turns alternate user, assistant, user, ... and start with the user",
                "put system messages first and begin with a user message",
            )
        role = "model" if turn.role == "assistant" else "user"
        prefix = system if i == 0 else ""
        yield from (Control("<start_of_turn>"), f"{role}\n{prefix}{turn.content.strip()}")
        yield from (Control("<end_of_turn>"), "\n")
    if not turns:
        raise RequestError(
            "messages without a user turn",
            "Gemma has no system role: its text goes into the first user turn",
            "add a user message",
        )
    yield from (Control("<start_of_turn>"), "model\n")


def _merged(messages: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            joined = f"{merged.pop().content.strip()}\n\n{message.content.strip()}"
            merged.append(Message(message.role, joined))
        else:
            merged.append(message)
    return merged


@dataclass(frozen=True)
class TemplateFamily:
    """One renderer of this module, and the control tokens that it writes."""

    items: Callable[[Sequence[Message]], Iterator[Item]]
    marks: tuple[str, ...]

    def render(self, messages: Sequence[Message]) -> list[Item]:
        return joined(self.items(messages))


_CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
FAMILIES: dict[str, TemplateFamily] = {
    "gemma": TemplateFamily(_gemma, ("<start_of_turn>", "<end_of_turn>")),
    "chatml": TemplateFamily(_chatml, _CHATML_MARKS),
    "qwen2": TemplateFamily(_qwen2, _CHATML_MARKS),
    "qwen2.5": TemplateFamily(_qwen25, _CHATML_MARKS),
    "qwen3": TemplateFamily(_qwen3, _CHATML_MARKS),
    "smollm2": TemplateFamily(_smollm2, _CHATML_MARKS),
}


def joined(pieces: Iterable[Item]) -> list[Item]:
    """The items with adjacent strings joined and empty strings left out."""
    items: list[Item] = []
    for piece in pieces:
        if isinstance(piece, str) and items and isinstance(items[-1], str):
            items[-1] += piece
        elif piece != "":
            items.append(piece)
    return items
