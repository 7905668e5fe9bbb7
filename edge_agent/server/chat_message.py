"""One turn of a conversation, as OpenAI's and Ollama's requests spell it.

Flows in: a JSON object of `messages`. Flows out: records.Message, text only. What clients send for
"nothing" (null, [] and "" beside tool_calls, images, audio) is taken as absent. A turn that holds a
tool call, a tool's result, an image or another part that is no text is refused; the error names the
turn and the member. `name` is ignored: no template here writes it. Source: OpenAI's API reference,
Ollama's docs/api.md. Not here: the other fields of a request (openai_schema.py, ollama_schema.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edge_agent.records import Message
from edge_agent.server.sampling_fields import Body, refused

MAX_MESSAGES = 1024
_NO_TOOLS = "tools are not supported: no model here calls one"
_WITHOUT_TOOLS = "leave the turns with tools out, or retell them as text of the user"
_TOOL_MEMBERS = ("tool_calls", "function_call")
_TOOL_ROLES = ("tool", "function")
_ONLY_TEXT = "send text only; the models here read nothing else"


class TextPart(Body):
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, part: Any) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise refused("type", f"parts of type {kind[:40]!r} are not supported", _ONLY_TEXT)
        return part


TextParts = Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)]


class TextTurn(Body):
    """What both dialects refuse in a turn."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_tools(cls, turn: Any) -> Any:
        if not isinstance(turn, dict):
            return turn
        if turn.get("role") in _TOOL_ROLES:
            raise refused("role", f"it is {turn['role']!r}, and {_NO_TOOLS}", _WITHOUT_TOOLS)
        for name in _TOOL_MEMBERS:
            if turn.get(name):
                raise refused(name, _NO_TOOLS, _WITHOUT_TOOLS)
        for name in ("images", "audio"):
            if turn.get(name):
                raise refused(name, f"{name} is not supported", _ONLY_TEXT)
        return turn


class ChatMessage(TextTurn):
    """OpenAI's turn. `developer` is its newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | TextParts | None = Field(None, description="null, []: nothing was said.")

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content in (None, []) and self.role != "assistant":
            why = f"it is missing, null or [], and a turn of the role {self.role} needs it"
            raise refused("content", why, "send a text or a list of text parts")
        return self

    def message(self) -> Message:
        """The engine's record. Text parts are joined by a line break, as llama-server does."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class Conversation(Body):
    """The turns of a chat. A last turn of the assistant is the beginning of the answer, as in
    llama-server; `continue_final_message` false closes that turn and asks for another."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    continue_final_message: bool | Literal["content"] | None = Field(
        None, description="vLLM's way to say that the last turn, the assistant's, is to go on."
    )
    add_generation_prompt: bool | None = Field(None, description="false only beside a last turn.")

    @model_validator(mode="after")
    def _has_one_turn_to_continue(self) -> Conversation:
        if self.continue_final_message and self.add_generation_prompt:
            why = "add_generation_prompt is true too, and one turn cannot both go on and begin"
            raise refused("continue_final_message", why, "set add_generation_prompt to false")
        if self.continue_final_message and not self.continues():
            why = "the last turn is not the assistant's"
            raise refused("continue_final_message", why, "leave it out, or add that turn")
        if self.add_generation_prompt is False and not self.continues():
            why = "it is false, and the prompt would end where no answer can begin"
            raise refused("add_generation_prompt", why, "leave it out")
        if self.continues() and [turn.role for turn in self.messages[-2:-1]] == ["assistant"]:
            raise refused("messages", "two turns of the assistant end it", "join them into one")
        return self

    def turns(self) -> list[Message]:
        return [turn.message() for turn in self.messages]

    def continues(self) -> bool:
        """Whether the last turn is the beginning of the answer."""
        return self.messages[-1].role == "assistant" and self.continue_final_message is not False


class OllamaMessage(TextTurn):
    """Ollama's turn."""

    role: Literal["system", "user", "assistant"]
    content: str = ""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, turn: Any) -> Any:
        is_null = isinstance(turn, dict) and turn.get("content", "") is None
        return {**turn, "content": ""} if is_null else turn

    def message(self) -> Message:
        return Message(role=self.role, content=self.content)
