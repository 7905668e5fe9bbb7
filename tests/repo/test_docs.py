"""The documentation cannot rot: index, links, command lines, generated pages and named facts."""

from __future__ import annotations

import re
from pathlib import Path

import make_files
import pytest
import typer
from command_lines import PROGRAMS, command_lines, parse

from edge_agent.config import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.glob("*.md"),
        *(ROOT / "recipes").rglob("README.md"),
        *(ROOT / "systemd").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
)
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {anchor(heading) for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links that lead to no file, or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", FENCE.sub("", page.read_text())):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_heading = not fragment or target.suffix != ".md" or fragment in anchors(target)
        if not target.exists() or not is_heading:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_nothing_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`, three\n[a](#one-two-three) [b](#four) [c](none.md) [d](https://x)"
    )
    assert broken_links(page) == ["#four", "none.md"]


def test_index_lists_every_page_once() -> None:
    rows = re.findall(r"^\| \[([\w-]+\.md)\]\(\1\)", (DOCS / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(page.name for page in DOCS.glob("*.md") if page.stem != "README")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_of_a_page_can_be_given(page: Path) -> None:
    if page != DOCS / "cli.md":
        for line in command_lines(page):
            parse(line)


@pytest.mark.parametrize(
    "line", ["edge-train sft --magic 1", "edge-agent sing", "edge-convert hf -x"]
)
def test_a_wrong_command_line_is_seen(line: str) -> None:
    with pytest.raises(pytest.fail.Exception):
        parse(line)


def test_each_recipe_of_the_experiments_is_there() -> None:
    for recipe in ("gemma-3-1b", "qwen2.5-0.5b", "qwen2.5-7b-qlora"):
        page = ROOT / "recipes" / recipe / "README.md"
        assert "why it differs" in page.read_text()
        assert "repetition_penalty" in page.read_text()
        assert len(command_lines(page)) >= 3


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_has_help(program: str) -> None:
    commands = typer.main.get_command(PROGRAMS[program].build_app()).commands  # type: ignore[attr-defined]
    assert [key for key, command in commands.items() if not command.help] == []


def test_every_file_has_its_line_and_its_docstring() -> None:
    """Raises ValueError, naming the file, when a module has no docstring."""
    expected = make_files.page(ROOT)
    assert (DOCS / "files.md").read_text() == expected, "run `make fix`: it writes docs/files.md"


def test_rooms_within_rooms_are_listed_below_them(tmp_path: Path) -> None:
    inner = tmp_path / "house" / "room" / "closet"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent, inner.parent.parent):
        (folder / "__init__.py").write_text(f'"""The {folder.name}."""\n')
    (inner / "shelf.py").write_text('"""A shelf.\n\nFlows in: books.\n"""\n')
    rows = [" ".join(row.split()) for row in make_files.lines(tmp_path / "house")]
    assert rows == ["house/ The house", "room/ The room", "closet/ The closet", "shelf.py A shelf"]


def test_a_module_without_a_docstring_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="bare.py has no docstring"):
        make_files.purpose(tmp_path / "bare.py")


def test_the_default_port_is_the_real_one() -> None:
    port = Settings.model_fields["port"].default
    assert f"Default port {port}" in (DOCS / "limits.md").read_text()
    assert f"port {port}" in (DOCS / "http.md").read_text()
