"""Every command line of the recipes and of docs/host.md is one that the programs take."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest

from edge_agent.cli import main as edge_agent
from edge_agent.cli.terminal import Terminal
from train_host import cli as edge_train

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"edge-train": edge_train, "edge-agent": edge_agent}
LAUNCHED = re.compile(r"(torchrun|accelerate launch) .*?-m train_host\.cli ")
BLOCK = r"^```\w*\n(.*?)^```$"
PAGES = sorted(
    [*(ROOT / "recipes").glob("*/README.md"), ROOT / "docs" / "host.md", ROOT / "README.md"]
)


def commands(page: Path) -> list[str]:
    """Lines of code blocks and spans in backticks that begin with one of our programs."""
    text = page.read_text()
    blocks = [line for block in re.findall(BLOCK, text, re.DOTALL | re.MULTILINE)
              for line in block.replace("\\\n", " ").splitlines()
              if not line.startswith(" ")]  # fmt: skip
    prose = re.sub(BLOCK, "", text, flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", prose)
    spans = [span for span in spans if not re.search(r"\b[A-Z]{3,}\b", span)]  # a placeholder
    found = []
    for line in [*blocks, *spans]:
        line = LAUNCHED.sub("edge-train ", line.strip()).split(" #")[0].split(" &")[0]
        line = line.removeprefix(".venv/bin/").removeprefix(".venv-host/bin/")
        if line.split(" ")[0] in PROGRAMS and len(line.split()) > 2 and "..." not in line:
            found.append(line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_the_command_lines_of_a_page_can_be_given(page: Path) -> None:
    for line in commands(page):
        program, *words = shlex.split(line)
        parse(program, words, line)


def parse(program: str, words: list[str], line: str) -> None:
    """The parser alone: nothing is run. Raises what a wrong command line raises."""
    import typer

    command = typer.main.get_command(PROGRAMS[program].build_app())
    terminal = Terminal(io.StringIO(), io.StringIO(), io.StringIO(), {})
    context = command.make_context(program, list(words), obj=terminal)
    while hasattr(context.command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        try:
            name, inner, args = context.command.resolve_command(context, rest)
            context = inner.make_context(name, args, parent=context, obj=terminal)
        except Exception as error:
            pytest.fail(f"{line}: {error}")


def test_a_wrong_flag_would_be_seen() -> None:
    with pytest.raises(pytest.fail.Exception):
        parse("edge-train", ["sft", "--magic", "1"], "edge-train sft --magic 1")


def test_each_recipe_of_the_experiments_is_there() -> None:
    names = {page.parent.name for page in PAGES}
    assert {"gemma-3-1b", "qwen2.5-0.5b", "qwen2.5-7b-qlora"} <= names
    for name in ("gemma-3-1b", "qwen2.5-0.5b", "qwen2.5-7b-qlora"):
        page = ROOT / "recipes" / name / "README.md"
        text = page.read_text()
        assert "why it differs" in text and "repetition_penalty" in text
        assert len(commands(page)) >= 3


def test_every_command_of_edge_train_is_in_the_readmes_table_and_no_other() -> None:
    table = (ROOT / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    names = [command.name for command in edge_train.build_app().registered_commands]
    assert sorted(re.findall(r"^\| `edge-train ([a-z-]+)", table, re.MULTILINE)) == sorted(names)
