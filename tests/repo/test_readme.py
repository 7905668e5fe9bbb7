"""The README cannot rot: its length, its commands, its rooms and its picture are compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_lines import PROGRAMS, command_lines, command_names

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAX_LINES = 160
MAX_PICTURE_BYTES = 200_000


def section(title: str) -> str:
    """The text between this heading and the next."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def listed_commands() -> dict[str, list[str]]:
    """Program -> its commands in the table; a row's later spans belong to its first program."""
    found: dict[str, list[str]] = {program: [] for program in PROGRAMS}
    for row in section("Commands").splitlines():
        cell = row.split("|")[1] if row.startswith("| `") else ""
        program = ""
        for span in re.findall(r"`([^`]+)`", cell):
            words = span.split()
            if words[0] in PROGRAMS:
                program, *words = words
            found[program].append(words[0])
    return found


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_is_in_the_table_and_no_other(program: str) -> None:
    assert sorted(listed_commands()[program]) == sorted(command_names(program))


def test_quick_start_shows_serving_learning_converting_and_measuring() -> None:
    shown = {" ".join(line.split()[:2]) for line in command_lines(ROOT / "README.md")}
    wanted = {"serve", "run", "adapt", "adapters", "bench", "report"}
    assert {f"edge-agent {name}" for name in wanted} <= shown
    assert "edge-convert verify" in shown


def test_every_room_is_listed_and_no_other() -> None:
    package = ROOT / "edge_agent"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    listed = re.findall(r"^  ([a-z_]+)/ ", section("Rooms"), re.MULTILINE)
    assert sorted(listed) == sorted(rooms)


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_one_picture_stands_above_the_first_section_and_is_small() -> None:
    head = README.partition("\n## ")[0]
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", head)
    assert 0 < (ROOT / picture).stat().st_size < MAX_PICTURE_BYTES
    assert README.count("![") == 1
