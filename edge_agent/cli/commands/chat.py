"""chat: a conversation in the terminal.

Flows in: flags. Flows out: a ChatSession on the daemon's socket. Not here: the loop
(cli/chat_screen.py), what its commands mean (edge_agent/cli/conversation.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from edge_agent.cli.commands.persona import system_prompt
from edge_agent.cli.commands.run import base_model_note, with_model_hint
from edge_agent.cli.options import StateOptions, complete_model
from edge_agent.cli.terminal import Terminal
from edge_agent.client.connection import Client, find_daemon, state_dir_of
from edge_agent.client.models import DaemonModels
from edge_agent.errors import ModelNotFound

HISTORY_FILE = "chat_history"


@dataclass(frozen=True, kw_only=True)
class ChatOptions(StateOptions):
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model.", autocompletion=complete_model),
    ] = None
    system: Annotated[
        str | None, typer.Option(help="Persona: text, or a file.", metavar="TEXT|FILE")
    ] = None
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print counts, durations and rates on stderr.")
    ] = False


def chat(options: ChatOptions, terminal: Terminal) -> int:
    """Converse with a model. Ctrl-C stops an answer, /bye leaves, /help lists the commands.

    Starts with temperature 0.3, top_p 0.9 and repeat_penalty 1.0, which is off: a correct Hindi or
    Kannada sentence repeats about 90 % of its tokens, so the customary 1.1 would punish nearly
    every right one. /set changes them. From a pipe, each line is one entry.

    Examples:
      edge-agent chat smollm2-135m
      edge-agent chat smollm2-135m --system persona.txt --verbose
      printf 'Hello!\\n/bye\\n' | edge-agent chat
    """
    # Deferred: these bring msgspec and cost every other command 50 ms at its start.
    from edge_agent.cli.chat_screen import ChatSession, edited_lines, plain_lines
    from edge_agent.cli.chat_settings import ChatSettings
    from edge_agent.cli.conversation import ChatState

    system = system_prompt(options.system)
    client = find_daemon(options.state_dir, terminal.environ)
    _check_registered(client, options.model)
    if note := base_model_note(client, options.model):
        terminal.note(note)
    settings = ChatSettings(verbose=options.verbose)
    state = ChatState(model=options.model, system=system, settings=settings)
    state_dir = state_dir_of(options.state_dir, terminal.environ)
    is_interactive = terminal.stdin.isatty() and terminal.stdout.isatty()
    read_line = plain_lines(terminal.stdin)
    if is_interactive:
        shown = plain_lines(terminal.stdin, terminal.write)
        read_line = shown if terminal.is_dumb else edited_lines(state_dir / HISTORY_FILE)
        terminal.faint(f"{options.model or 'the model that is meant'}; /help lists the commands")
    return ChatSession(client, terminal, state_dir, read_line, is_interactive).run(state)


def _check_registered(client: Client, model: str | None) -> None:
    """Before the first question is typed. Raises ModelNotFound and AdapterNotFound, saying how to
    get it."""
    try:
        DaemonModels(client).details(model)
    except ModelNotFound as error:
        raise with_model_hint(error, model) from error
