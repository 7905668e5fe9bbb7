"""The chat loop: reads entries, streams answers, and reads and writes saved conversations.

Flows in: lines (prompt_toolkit on a terminal, plain lines from a pipe) and the daemon's pieces of
text. Flows out: the answer on stdout, everything else on stderr. Ctrl-C during an answer closes its
HTTP stream, which frees the slot, and keeps the text that had arrived. An error of the daemon ends
the answer and not the chat. Not here: what an entry means (conversation.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from edge_agent import atomic_file
from edge_agent.cli.chat_lesson import ChatLesson
from edge_agent.cli.conversation import (
    COMMAND_WORDS,
    Action,
    Ask,
    ChatState,
    Complain,
    Judge,
    Learn,
    Leave,
    LoadChat,
    Save,
    Say,
    Undo,
    answered,
    corrected,
    document,
    from_document,
    handle,
    opens_block,
)
from edge_agent.cli.quoted_block import QUOTES
from edge_agent.cli.terminal import Terminal
from edge_agent.cli.timing_block import load_s_since, ready_worker, timing_block
from edge_agent.client.connection import Client, Ending
from edge_agent.errors import EdgeAgentError, TemplateError, UsageError
from edge_agent.sampling_bounds import DEFAULT_MAX_TOKENS

MAX_SAVED_BYTES = 16 * 1024 * 1024
TOO_LONG = ("context_length_exceeded", "request_too_large")
LEAVE_HINT = "(/bye or Ctrl-D leaves; /help lists the commands)"
ReadLine = Callable[[str], str]
"""Takes the prompt, returns a line without its newline. Raises EOFError at the end of input,
KeyboardInterrupt on Ctrl-C."""


@dataclass(frozen=True)
class ChatSession:
    """One chat. `read_line` supplies the entries; `state_dir` holds saved conversations.

    Example: `ChatSession(client, terminal, state_dir, plain_lines(stdin), False).run(ChatState())`
    """

    client: Client
    terminal: Terminal
    state_dir: Path
    read_line: ReadLine
    is_interactive: bool

    def run(self, state: ChatState) -> int:
        """Run until /bye or the end of input and return 0. Raises KeyboardInterrupt for input of a
        pipe."""
        while True:
            try:
                state, actions = handle(state, self._entry())
                for action in actions:
                    if isinstance(action, Leave):
                        return 0
                    state = self._do(state, action)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if not self.is_interactive:
                    raise
                self.terminal.note(LEAVE_HINT)

    def _entry(self) -> str:
        """One entry: a line, or the lines of a block, which Ctrl-C drops and the end of the input
        closes. Raises what `read_line` raises for the first line."""
        entry = self.read_line(">>> ")
        if not opens_block(entry):
            return entry
        while True:
            try:
                line = self.read_line("... ")
            except EOFError:
                return f"{entry}\n{QUOTES}"
            except KeyboardInterrupt:
                if not self.is_interactive:
                    raise
                self.terminal.note("(block dropped)")
                return ""
            entry += "\n" + line
            if line.rstrip().endswith(QUOTES):
                return entry

    def _do(self, state: ChatState, action: Action) -> ChatState:
        try:
            if isinstance(action, Ask):
                return self._ask(state)
            if isinstance(action, Save):
                self.terminal.note(f"saved to {save(state, action.target, self.state_dir)}")
            elif isinstance(action, LoadChat):
                state = load(action.target, self.state_dir)
                self.terminal.note(f"{len(state.turns)} turns loaded")
            elif isinstance(action, Judge):
                kept = self.client.post("/v1/feedback", state.feedback(action))
                self.terminal.note(f"kept as feedback {kept['id']}, for the next lesson: /learn")
                if action.correction is not None:
                    state = corrected(state, action.correction)
            elif isinstance(action, Learn):
                self._lesson().learn(state.model)
            elif isinstance(action, Undo):
                self._lesson().undo(state.model)
            elif isinstance(action, Say):
                self.terminal.note(action.text)
            elif isinstance(action, Complain):
                self.terminal.error(UsageError(action.what, "", action.hint))
        except EdgeAgentError as error:
            self.terminal.error(error)
        return state

    def _lesson(self) -> ChatLesson:
        ask = self.read_line if self.is_interactive else None
        return ChatLesson(self.client, self.terminal, ask)

    def _ask(self, state: ChatState) -> ChatState:
        """Stream one answer. Text from before a stop or an error is kept and marked as cut."""
        pieces: list[str] = []
        verbose = state.settings.verbose
        worker = ready_worker(self.client) if verbose else None
        started = time.monotonic()
        try:
            ending = self._stream(state, pieces)
            if verbose:
                total_s = time.monotonic() - started
                lines = timing_block(ending, total_s, load_s_since(self.client, worker))
                self.terminal.faint("\n".join(lines))
            elif ending.finish_reason == "length":
                self.terminal.faint(_cut_note(state, ending))
            cut = ending.finish_reason == "length"
            return answered(state, "".join(pieces), cut=cut, response_id=ending.id)
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            self.terminal.line()
            self.terminal.faint("(stopped)")
        except EdgeAgentError as error:
            if pieces:
                self.terminal.line()
            self.terminal.error(_with_chat_hint(error, state))
        return answered(state, "".join(pieces), cut=True)

    def _stream(self, state: ChatState, pieces: list[str]) -> Ending:
        stream = self.client.answer("/v1/chat/completions", state.request())
        ending = Ending("", "", {}, {})
        with closing(stream):
            for piece in stream:
                if isinstance(piece, Ending):
                    ending = piece
                    continue
                pieces.append(piece)
                self.terminal.write(piece)
        self.terminal.line()
        return ending


def plain_lines(stdin: TextIO, show: Callable[[str], None] = lambda prompt: None) -> ReadLine:
    """Lines as they come, for a pipe and for a terminal without a cursor.

    `show` prints the prompt; a pipe has none, so that stdout holds nothing but answers.
    """

    def read_line(prompt: str) -> str:
        show(prompt)
        line = stdin.readline()
        if not line:
            show("\n")
            raise EOFError
        return line.rstrip("\r\n")

    return read_line


def edited_lines(history_file: Path) -> ReadLine:
    """A line editor with history, Tab for a command's name, and Alt-Enter for a new line. The
    history file has mode 0600.

    Where the history file cannot be written (the service's state directory), the history lasts for
    this chat only.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History = InMemoryHistory()
    if make_private(history_file):
        history = FileHistory(str(history_file))
    session: PromptSession[str] = PromptSession(
        history=history,
        key_bindings=keys,
        completer=WordCompleter(COMMAND_WORDS, sentence=True),
        complete_while_typing=False,
    )
    return lambda prompt: session.prompt(prompt)


def make_private(path: Path) -> bool:
    """Create `path` with mode 0600, or narrow it to that mode. False when neither is possible."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return True


def saved_path(target: str, state_dir: Path) -> Path:
    """The file of a saved conversation: `monday` is STATE/chats/monday.json.

    A `target` with a slash, a ".json" or a "~" is a path.
    """
    if "/" in target or target.endswith(".json") or target.startswith("~"):
        return Path(target).expanduser()
    return state_dir / "chats" / f"{target}.json"


def save(state: ChatState, target: str, state_dir: Path) -> Path:
    """Write the conversation completely or not at all. Returns the path. Raises UsageError."""
    path = saved_path(target, state_dir)
    data = json.dumps(document(state), ensure_ascii=False, indent=2).encode("utf-8", "replace")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_file.write(path, data + b"\n", 0o600)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}", str(error), "give another path") from error
    return path


def load(target: str, state_dir: Path) -> ChatState:
    """Read a saved conversation. Raises UsageError."""
    path = saved_path(target, state_dir)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SAVED_BYTES + 1)
        if len(data) > MAX_SAVED_BYTES:
            raise ValueError(f"it is longer than {MAX_SAVED_BYTES} bytes")
        return from_document(json.loads(data))
    except UsageError as error:
        raise UsageError(f"cannot load {path}", str(error), error.hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot load {path}", str(error), "`/save NAME` writes one") from error


def _cut_note(state: ChatState, ending: Ending) -> str:
    """Why an answer ended before the model ended it: its own limit, or the slot's context."""
    given = state.settings.max_tokens
    limit = DEFAULT_MAX_TOKENS if given is None else given
    if limit < 0 or ending.usage.get("completion_tokens", limit) < limit:
        return "(cut: the context is full; /clear forgets the conversation and makes room)"
    return "(cut at the token limit; /set max_tokens N raises it)"


def _with_chat_hint(error: EdgeAgentError, state: ChatState) -> EdgeAgentError:
    """What helps in a chat: room for the question, or the command for a base model."""
    if error.code in TOO_LONG and len(state.turns) > 1:
        hint = "/clear forgets the conversation and makes room; then ask again"
        return EdgeAgentError(error.what, error.why, hint)
    if not isinstance(error, TemplateError):
        return error
    name = state.model or "MODEL"
    hint = f"a base model completes text: edge-agent run --raw {name} 'Once upon a time'"
    return TemplateError(error.what, error.why, hint)
