"""Writes the README's tree: one line a file, the first line of its own docstring.

In: the packages' sources. Out: the text between the two markers of README.md, rewritten in place.
`make fix` runs it and tests/repo/test_readme.py compares, so the README and the files cannot
disagree.

    .venv/bin/python dev/readme_tree.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("edge_agent", "converters", "train_host", "benchmarks", "dev")
BEGIN, END = "<!-- tree: make fix -->\n", "<!-- end of tree -->\n"
COLUMN = 30


def purpose(path: Path) -> str:
    """First line of a module's docstring without its full stop. Raises ValueError without one."""
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise ValueError(f"{path} has no docstring: say why it exists, what flows in and out")
    return text.splitlines()[0].removesuffix(".")


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


def tree(root: Path) -> str:
    """The whole block, fences included."""
    rows = [row for name in FOLDERS for row in lines(root / name)]
    return "\n".join(["```", *rows, "```", ""])


def with_tree(readme: str, block: str) -> str:
    """The README with `block` between its markers. Raises ValueError when a marker is missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs the markers {BEGIN.strip()} and {END.strip()}")
    return head + BEGIN + block + END + tail


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(with_tree(readme.read_text(), tree(ROOT)))


if __name__ == "__main__":
    main()
