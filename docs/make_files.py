"""Writes docs/files.md: every Python file of the project, with the first line of its docstring.

Flows in: the packages' sources. Flows out: the page. `make fix` runs it; tests/repo/test_docs.py
compares. A folder without an __init__.py is listed when it lies at the top. Not here: tests.

    .venv/bin/python docs/make_files.py > docs/files.md
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("edge_agent", "converters", "train_host", "benchmarks", "dev", "docs")
COLUMN = 32
INTRO = """\
# Files

Written by `docs/make_files.py` from the first lines of the files' docstrings; change it there.
tests/ROOM/test_FILE.py is the test of a file.
"""


def purpose(path: Path) -> str:
    """First sentence or line of a module's docstring, without its full stop.

    Raises ValueError when the module has none.
    """
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise ValueError(f"{path} has no docstring: say why it exists, what flows in and out")
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")


def lines(folder: Path, depth: int = 0) -> Iterator[str]:
    """The folder, its files, then its folders, each level indented by two."""
    init = folder / "__init__.py"
    yield line(f"{folder.name}/", purpose(init) if init.exists() else "", depth)
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield line(path.name, purpose(path), depth + 1)
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from lines(inner, depth + 1)


def line(name: str, text: str, depth: int) -> str:
    return f"{'  ' * depth + name:{COLUMN}} {text}".rstrip()


def page(root: Path) -> str:
    """The whole page: a section for each top-level folder."""
    sections = [INTRO]
    for name in FOLDERS:
        rows = "\n".join(lines(root / name))
        sections.append(f"## {name}\n\n```\n{rows}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    sys.stdout.write(page(ROOT))
