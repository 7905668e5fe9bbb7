"""The command lines on a Markdown page, and the parsers of the three programs to try them with.

Flows in: a page. Flows out: its lines that begin with one of our programs. Nothing is run here.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from converters import cli as edge_convert
from edge_agent.cli import main as edge_agent
from edge_agent.cli.terminal import Terminal
from train_host import cli as edge_train

PROGRAMS: dict[str, Any] = {
    "edge-agent": edge_agent,
    "edge-convert": edge_convert,
    "edge-train": edge_train,
}
LAUNCHED = re.compile(r"(torchrun|accelerate launch) .*?-m train_host\.cli ")
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r" #| &| > |; do |\)$")
"""What ends a command line on a page: a remark, the background, a redirection."""


def command_names(program: str) -> set[str]:
    """`serve`, `run`, ...: the commands at the top."""
    return set(typer.main.get_command(PROGRAMS[program].build_app()).commands)  # type: ignore[attr-defined]


def command_lines(page: Path) -> list[str]:
    """Lines of code blocks, and spans in backticks, that begin with one of our programs."""
    text = page.read_text()
    prose = BLOCK.sub("", text)
    spans = [span for span in re.findall(r"`([^`\n]+)`", prose) if not _has_placeholder(span)]
    return [
        line for line in (_cleaned(line) for line in [*_blocks(text), *spans]) if _is_ours(line)
    ]


def _blocks(text: str) -> Iterator[str]:
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith(" "):
                yield line.partition("$(")[2].partition(" | ")[0] if "=$(" in line else line


def _has_placeholder(span: str) -> bool:
    return re.search(r"\b[A-Z]{3,}\b", span) is not None


def _cleaned(line: str) -> str:
    line = SHELL.split(LAUNCHED.sub("edge-train ", line.strip()))[0]
    return line.removeprefix("until ").removeprefix(".venv/bin/").removeprefix(".venv-host/bin/")


def _is_ours(line: str) -> bool:
    """`--install-completion` is left out: its parser writes to the user's ~/.bashrc at once."""
    if "--install-completion" in line:
        return False
    return line.split(" ")[0] in PROGRAMS and len(line.split()) > 1 and "..." not in line


def parse(line: str) -> None:
    """Give the line to its program's parser. Fails the test when the parser refuses it.

    A line that only names a command (`edge-train sft`) needs no arguments.
    """
    program, *words = shlex.split(line)
    command = typer.main.get_command(PROGRAMS[program].build_app())
    terminal = Terminal(io.StringIO(), io.StringIO(), io.StringIO(), {})
    is_name = all(re.fullmatch(r"[a-z][a-z-]*", word) for word in words)
    try:
        context: Any = command.make_context(program, list(words), obj=terminal)
        while hasattr(context.command, "resolve_command"):
            rest = [*context._protected_args, *context.args]
            if not rest:
                return
            name, inner, args = context.command.resolve_command(context, rest)
            context = inner.make_context(
                name, args, parent=context, obj=terminal, resilient_parsing=is_name
            )
    except Exception as error:
        pytest.fail(f"{line}: {error}")
