"""The README cannot rot: its commands, its tree, its links and its addresses are compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import readme_tree
import typer
from typer.main import get_command

from converters import cli as convert_cli
from edge_agent.cli.main import build_app
from edge_agent.config import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMAND = re.compile(r"`edge-agent ([a-z]+)\b")


def existing_commands() -> set[str]:
    return set(get_command(build_app()).commands)  # type: ignore[attr-defined]


def command_table() -> str:
    return README.partition("## Commands")[2].partition("\n## ")[0]


def test_every_command_is_in_the_table_and_no_other() -> None:
    rows = [row for row in command_table().splitlines() if row.startswith("| `edge-agent ")]
    listed = [name for row in rows for name in COMMAND.findall(row.split("|")[1])]
    assert sorted(listed) == sorted(existing_commands())


def test_every_conversion_is_in_the_table_and_no_other() -> None:
    names = set(get_command(convert_cli.build_app()).commands)  # type: ignore[attr-defined]
    listed = re.findall(r"^\| `edge-convert ([a-z-]+)", command_table(), re.MULTILINE)
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("document", ["README.md", "docs/http.md", "benchmarks/README.md"])
def test_commands_named_in_prose_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    named = {*COMMAND.findall(text), *re.findall(r"bin/edge-agent ([a-z]+)\b", text)}
    assert named <= existing_commands()


@pytest.mark.parametrize("app", [build_app(), convert_cli.build_app()])
def test_every_command_has_help(app: typer.Typer) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert [name for name, command in commands.items() if not command.help] == []


def test_every_file_has_its_line_and_its_docstring() -> None:
    """Raises ValueError, naming the file, when a module has no docstring."""
    expected = readme_tree.with_tree(README, readme_tree.tree(ROOT))
    assert expected == README, "run `make fix`: it rewrites the README's tree"


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test", "check"} <= named <= targets


def test_relative_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_default_port_is_the_real_one() -> None:
    assert f"Default port {Settings.model_fields['port'].default}" in README


def test_a_module_without_a_docstring_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="bare.py has no docstring"):
        readme_tree.purpose(tmp_path / "bare.py")


def test_a_readme_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="end of tree"):
        readme_tree.with_tree("# no tree here\n", "```\n```\n")
