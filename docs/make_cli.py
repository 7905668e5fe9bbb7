"""Writes docs/cli.md from the commands' own --help, so that the two cannot differ.

Run `.venv/bin/python docs/make_cli.py > docs/cli.md` after changing a command;
tests/cli/test_main.py compares.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout

import typer

from converters import cli as edge_convert
from edge_agent.cli import main as edge_agent
from edge_agent.cli.terminal import Terminal
from train_host import cli as edge_train

INTRO = """\
# Command line

Written by `docs/make_cli.py` from the commands' `--help`; change it there.

Exit codes: 0, 1 failure, 2 usage, 130 Ctrl-C, 141 when the reader of a pipe has left. With
`--json` stdout is one JSON document, also when the command fails: `{"error": {"code", "what",
"why", "hint"}}`.

Commands look for the system service's socket (`/run/edge-agent/agent.sock`), then for your own
daemon's (`~/.local/state/edge-agent/agent.sock`); with `--state-dir` or `EDGE_AGENT_STATE_DIR` only
for that directory's. `run`, `chat`, `ps`, `stop` and `status` need a daemon. `list`, `show`, `pull`
and `rm` go through it while it runs, and otherwise hold `STATE/lock` and work on the directory
itself. `edge-agent --install-completion` adds TAB completion, model names included.

Why `chat` leaves repeat_penalty at 1.0 (off), not the customary 1.1: Qwen 2.5's tokenizer spells
Hindi and Kannada with so few pieces that 90 % of the tokens in the second half of a clean text have
already occurred in its first half (English: 17 %). A penalty on what occurred before therefore hits
nearly every correct next token.
"""


PROGRAMS = {"edge-agent": edge_agent, "edge-convert": edge_convert, "edge-train": edge_train}


def command_paths(app: typer.Typer, *above: str) -> Iterator[list[str]]:
    """The words of every command, those of a group after the group's own."""
    for command in app.registered_commands:
        yield [*above, str(command.name)]
    for group in app.registered_groups:
        path = [*above, str(group.name)]
        yield path
        if group.typer_instance is not None:
            yield from command_paths(group.typer_instance, *path)


def help_of(program: str, *command: str) -> str:
    """What `PROGRAM COMMAND --help` prints."""
    out = io.StringIO()
    terminal = Terminal(io.StringIO(), out, sys.stderr, os.environ)
    with redirect_stdout(out):
        PROGRAMS[program].main_with([*command, "--help"], terminal)
    return out.getvalue().strip()


def sections() -> Iterator[str]:
    for program in PROGRAMS:
        for command in ([], *command_paths(PROGRAMS[program].build_app())):
            title = " ".join([program, *command])
            yield f"## {title}\n\n```\n{help_of(program, *command)}\n```\n"


def reference() -> str:
    """The whole page."""
    return "\n".join([INTRO, *sections()])


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    sys.stdout.write(reference())
