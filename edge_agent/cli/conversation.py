"""A conversation and its commands as plain values: no terminal, no daemon, no clock.

Flows in: a ChatState and one entry of the user (a line or a block of lines). Flows out: the next
state, and what the session must do: print something, ask for an answer, write or read a file,
leave. Not here: reading lines, streaming, files (chat_screen.py).

>>> state, actions = handle(ChatState(), "/set temperature 0.7")
>>> state.settings.temperature, actions
(0.7, (Say(text='temperature = 0.7'),))
>>> state, actions = handle(state, "India Capital?")
>>> actions, [turn.content for turn in state.turns]
((Ask(),), ['India Capital?'])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from edge_agent.cli.chat_settings import (
    KEYS,
    ChatSettings,
    changed,
    setting_text,
    settings_text,
    stored_settings,
)
from edge_agent.cli.quoted_block import QUOTES, is_quoted, unquoted
from edge_agent.errors import UsageError

SAVE_VERSION = 1
_COMMAND = re.compile(r"/(\?|[a-zA-Z][^\s/]*)(?:\s+(.*))?", re.DOTALL)
_NEAR = 0.75
"""difflib's ratio from which a word is taken for a slip of a command: halp, sett, regne."""
HELP = """\
/system [TEXT]    show or replace the system prompt
/set [KEY VALUE]  show or change a setting: {keys}
/show             model, system prompt and settings
/clear            forget the conversation, keep settings and system prompt
/regen            answer the last question again
/good, /bad       mark the last answer as right or wrong, for the next lesson
/correct TEXT     give the right answer to the last question, for the next lesson
/learn            teach the model what was corrected, and say what became of it
/undo             take back what the model has learned last
/save NAME|PATH   write the conversation to a JSON file
/load NAME|PATH   continue a saved conversation
/help, /?         this text
/bye              leave (so does Ctrl-D)

Ctrl-C stops the answer. Alt-Enter starts a new line. A line that begins with \"\"\" opens a block
of lines, which one that ends with \"\"\" or Ctrl-D closes and Ctrl-C drops; a block is a question.
"""


@dataclass(frozen=True)
class Turn:
    """One message. `cut`: the answer was stopped or broke off; `content` is what arrived."""

    role: str
    content: str
    cut: bool = False
    id: str = ""
    """The id of the daemon's response; "" when it sent none."""
    correction: str = ""
    """What the answer should have been: the conversation goes on from it."""


@dataclass(frozen=True)
class ChatState:
    """The whole conversation. `model` None means the daemon's default."""

    model: str | None = None
    system: str = ""
    settings: ChatSettings = ChatSettings()
    turns: tuple[Turn, ...] = ()

    def request(self) -> dict[str, Any]:
        """Body of POST /v1/chat/completions for the turns so far."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        turns = [
            {"role": turn.role, "content": turn.correction or turn.content} for turn in self.turns
        ]
        model = {"model": self.model} if self.model else {}
        return {**model, "messages": [*head, *turns], **self.settings.request_fields()}

    def feedback(self, judgement: Judge) -> dict[str, Any]:
        """Body of POST /v1/feedback on the last turn, which must be an answer.

        The daemon remembers recent answers by their id. Messages and answer are sent as well, for
        an answer that it no longer remembers.
        """
        *before, answer = self.turns
        asked = replace(self, turns=tuple(before)).request()
        fields = {"id": answer.id or None, "model": self.model}
        fields |= {"rating": judgement.rating, "correction": judgement.correction}
        given = {name: value for name, value in fields.items() if value is not None}
        return {**given, "messages": asked["messages"], "answer": answer.content}


@dataclass(frozen=True)
class Say:
    text: str


@dataclass(frozen=True)
class Complain:
    """The entry cannot be followed; the state is unchanged."""

    what: str
    hint: str = ""


@dataclass(frozen=True)
class Ask:
    """Send state.request() and pass the answer to `answered`."""


@dataclass(frozen=True)
class Save:
    target: str


@dataclass(frozen=True)
class LoadChat:
    target: str


@dataclass(frozen=True)
class Judge:
    """Send state.feedback(self)."""

    rating: Literal["up", "down"] | None = None
    correction: str | None = None


@dataclass(frozen=True)
class Learn:
    """Teach what waits, and show the verdict."""


@dataclass(frozen=True)
class Undo:
    """Take the active adapter back."""


@dataclass(frozen=True)
class Leave:
    pass


Action = Say | Complain | Ask | Save | LoadChat | Judge | Learn | Undo | Leave
Result = tuple[ChatState, tuple[Action, ...]]


def handle(state: ChatState, line: str) -> Result:
    """Take one entry. Never raises: an entry that cannot be followed gives a Complain.

    An entry that starts with a command's name is a command, one that nearly does is a slip. Any
    other is a question, also `/tmp is full`, and so is what stands between three quotes.
    """
    text = line.strip()
    if is_quoted(text):
        return _question(state, unquoted(text))
    command = _COMMAND.fullmatch(text)
    if command is None:
        return _question(state, text)
    name, argument = command.group(1), (command.group(2) or "").strip()
    if function := _COMMANDS.get(name):
        return function(state, argument)
    if meant := _meant(name, argument):
        hint = f"did you mean /{meant}? /help lists all; a question may stand between {QUOTES}"
        return state, (Complain(f"unknown command /{name}", hint),)
    return _question(state, text)


def opens_block(entry: str) -> bool:
    """Whether `entry`, or the text of its command, begins with three quotes that nothing closes.

    >>> [opens_block(entry) for entry in ('\"\"\"one', '/system \"\"\"', 'what is \"\"\" for?')]
    [True, True, False]
    """
    text = entry.strip()
    command = _COMMAND.fullmatch(text)
    if command and command.group(1) in _COMMANDS:
        text = command.group(2) or ""
    return text.startswith(QUOTES) and QUOTES not in text[len(QUOTES) :]


def answered(state: ChatState, text: str, *, cut: bool = False, response_id: str = "") -> ChatState:
    """The state with the answer added; an empty answer adds nothing, so /regen can ask again."""
    if not text:
        return state
    return replace(state, turns=(*state.turns, Turn("assistant", text, cut, response_id)))


def corrected(state: ChatState, text: str) -> ChatState:
    """The state whose last answer should have been `text`. A later question follows on it: the
    lesson would otherwise hold the wrong answer too, before the right answers to later questions.
    """
    *before, answer = state.turns
    return replace(state, turns=(*before, replace(answer, correction=text)))


def document(state: ChatState) -> dict[str, Any]:
    """The state as /save writes it."""
    return {"v": SAVE_VERSION, **asdict(state)}


def from_document(value: Any) -> ChatState:
    """The inverse of `document`. Raises UsageError that names the damaged part."""
    if not isinstance(value, dict) or value.get("v") != SAVE_VERSION:
        raise UsageError("this is not a saved conversation", f'no "v": {SAVE_VERSION} in it')
    model, system = value.get("model"), value.get("system", "")
    if not (model is None or isinstance(model, str)) or not isinstance(system, str):
        raise UsageError("the saved conversation is damaged", "`model` or `system` is no text")
    settings = stored_settings(value.get("settings", {}))
    turns = value.get("turns", [])
    if not isinstance(turns, list):
        raise UsageError("the saved conversation is damaged", "`turns` is no list")
    return ChatState(model, system, settings, tuple(_turn(turn) for turn in turns))


def _question(state: ChatState, text: str) -> Result:
    """Add a question, in place of an earlier one that got no answer: templates want turns to
    alternate. A blank one is nothing."""
    if not text.strip():
        return state, ()
    turns = state.turns
    if turns and turns[-1].role == "user":
        turns = turns[:-1]
    return replace(state, turns=(*turns, Turn("user", text))), (Ask(),)


def _system(state: ChatState, text: str) -> Result:
    if not text:
        return state, (Say(state.system or "no system prompt; /system TEXT sets one"),)
    return replace(state, system=unquoted(text)), (Say("system prompt replaced"),)


def _set(state: ChatState, text: str) -> Result:
    key, _, value = text.partition(" ")
    if not key:
        return state, (Say(settings_text(state.settings)),)
    key = key.replace("-", "_")
    try:
        settings = changed(state.settings, key, value.strip())
    except UsageError as error:
        return state, (Complain(str(error), error.hint),)
    return replace(state, settings=settings), (Say(setting_text(settings, key)),)


def _show(state: ChatState, _: str) -> Result:
    model = state.model or "the daemon's default"
    turns = f"{len(state.turns)} turns"
    lines = [f"model = {model}", f"system = {state.system or '(none)'}", turns]
    return state, (Say("\n".join([*lines, settings_text(state.settings)])),)


def _clear(state: ChatState, _: str) -> Result:
    return replace(state, turns=()), (Say("conversation forgotten"),)


def _regen(state: ChatState, _: str) -> Result:
    turns = state.turns
    while turns and turns[-1].role != "user":
        turns = turns[:-1]
    if not turns:
        return state, (Complain("nothing to answer again", "ask something first"),)
    return replace(state, turns=turns), (Ask(),)


def _judgement(rating: Literal["up", "down"]) -> Callable[[ChatState, str], Result]:
    def command(state: ChatState, _: str) -> Result:
        return _judged(state, Judge(rating))

    return command


def _correct(state: ChatState, text: str) -> Result:
    text = unquoted(text)
    if not text.strip():
        return state, (Complain("/correct needs the right answer", "/correct New Delhi"),)
    return _judged(state, Judge(correction=text))


def _judged(state: ChatState, judgement: Judge) -> Result:
    if not state.turns or state.turns[-1].role != "assistant":
        return state, (Complain("there is no answer yet", "ask something first"),)
    if judgement.rating == "up" and state.turns[-1].cut:
        hint = "/correct TEXT says how it goes on; /regen asks again"
        return state, (Complain("half an answer cannot be learned", hint),)
    return state, (judgement,)


def _file(name: str, action: type[Save] | type[LoadChat]) -> Callable[[ChatState, str], Result]:
    def command(state: ChatState, target: str) -> Result:
        if not target:
            return state, (Complain(f"/{name} needs a name or a path", f"/{name} monday"),)
        return state, (action(target),)

    return command


def _help(state: ChatState, _: str) -> Result:
    return state, (Say(HELP.format(keys=", ".join(KEYS)).rstrip()),)


def _learn(state: ChatState, _: str) -> Result:
    return state, (Learn(),)


def _undo(state: ChatState, _: str) -> Result:
    return state, (Undo(),)


def _bye(state: ChatState, _: str) -> Result:
    return state, (Leave(),)


_COMMANDS: Mapping[str, Callable[[ChatState, str], Result]] = {
    "system": _system,
    "set": _set,
    "show": _show,
    "clear": _clear,
    "regen": _regen,
    "good": _judgement("up"),
    "bad": _judgement("down"),
    "correct": _correct,
    "learn": _learn,
    "undo": _undo,
    "save": _file("save", Save),
    "load": _file("load", LoadChat),
    "help": _help,
    "?": _help,
    "bye": _bye,
    "exit": _bye,
    "quit": _bye,
}


COMMAND_WORDS = tuple(f"/{name}" for name in _COMMANDS)


def _meant(name: str, argument: str) -> str | None:
    """The command of which `name` is a slip or, alone on its line, the beginning."""
    name = name.lower()
    close = get_close_matches(name, _COMMANDS, 1, _NEAR)
    begun = [] if argument else [command for command in _COMMANDS if command.startswith(name)]
    return next(iter([*close, *begun]), None)


def _turn(value: Any) -> Turn:
    roles = ("user", "assistant")
    if (
        not isinstance(value, dict)
        or value.get("role") not in roles
        or not isinstance(value.get("content"), str)
    ):
        raise UsageError("the saved conversation is damaged", "a turn has no role or no content")
    response_id = value.get("id", "")
    known_id = response_id if isinstance(response_id, str) else ""
    correction = value.get("correction", "")
    right = correction if isinstance(correction, str) else ""
    return Turn(value["role"], value["content"], value.get("cut") is True, known_id, right)
