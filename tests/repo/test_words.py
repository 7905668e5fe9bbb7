"""The words of the code: each document and file that a text names is in the repository; each
example in a docstring is true."""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edge_agent", "converters", "train_host")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "dev", "docs")
TEXTS = {".py", ".md", ".css", ".html", ".js", ".json"}
ELSEWHERE = re.compile(
    r"\breliability [A-Z]\d+|\banchors[/ ]\w+|\bshared/\w+"
    r"|\b(?:mission|reliability|runtime|lora|jetson|data_and_evaluation)\.md"
)
"""Names of documents that stood beside the repository and not in it."""
PYTHON_FILE = re.compile(r"(?<![\w*./-])[\w./-]*\w\.py\b")
LLAMA_CPP = {"convert_hf_to_gguf.py"}
"""Files of llama.cpp that our texts name."""


def words_of(source: str) -> Iterator[str]:
    """Every docstring and comment of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def missing_files(module: Path) -> list[str]:
    """Python files that `module` names and that are in none of the folders above it."""
    named = {name for text in words_of(module.read_text()) for name in PYTHON_FILE.findall(text)}
    folders = [parent for parent in module.parents if parent.is_relative_to(ROOT)]
    return sorted(
        name
        for name in named - LLAMA_CPP
        if not any((folder / name).is_file() for folder in folders)
    )


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def with_examples() -> list[str]:
    """Modules of edge_agent that show an example; train_host's need torch, which may be missing."""
    paths = [
        path for path in modules("edge_agent") if re.search(r"^\s*>>> ", path.read_text(), re.M)
    ]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


def test_documents_elsewhere_and_missing_files_are_seen(tmp_path: Path) -> None:
    text = "as in " + "shared/" + "design.md and reliability " + "M5"
    assert ELSEWHERE.findall(text) == ["shared/" + "design", "reliability " + "M5"]
    source = '"""See a.py, gguf/b.py, *_c.py and d.pyi."""\n# and e.py\n'
    found = {name for text in words_of(source) for name in PYTHON_FILE.findall(text)}
    assert found == {"a.py", "gguf/b.py", "e.py"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_text_names_a_document_that_is_not_in_the_repository(folder: str) -> None:
    paths = [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in TEXTS]
    assert paths, f"{folder} has no texts"
    found = {str(path.relative_to(ROOT)): ELSEWHERE.findall(path.read_text()) for path in paths
             if "log" not in path.parts and path != Path(__file__).resolve()}  # fmt: skip
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_python_file_that_a_docstring_or_comment_names_exists(package: str) -> None:
    found = {str(path.relative_to(ROOT)): missing_files(path) for path in modules(package)}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("module", with_examples())
def test_every_example_in_a_docstring_is_true(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
