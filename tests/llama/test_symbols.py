"""The list of what is called of llama.cpp is the calls, and a library that lacks one is named."""

from __future__ import annotations

import ast
import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
from waiting import DEADLINE_S
from worker_process import WorkerProcess

from edge_agent.config import Settings
from edge_agent.errors import LibraryMismatch
from edge_agent.llama import symbols
from edge_agent.llama.binding import lib
from edge_agent.records import EngineSettings, Failed, Load
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
ROOM = ROOT / "edge_agent" / "llama"


def nodes() -> Iterator[ast.AST]:
    for path in sorted(ROOM.glob("*.py")):
        yield from ast.walk(ast.parse(path.read_text()))


def attributes_of(*names: str) -> set[str]:
    """`x` of every `name.x` in the room."""
    return {
        node.attr
        for node in nodes()
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in names
    }


def test_the_list_of_declarations_is_what_the_room_uses() -> None:
    assert attributes_of("lib") - {"_lib"} - set(symbols.FIELDS) == set(symbols.DECLARED.split())


def test_the_list_of_exports_is_what_the_room_declares_itself() -> None:
    names = {
        node.args[0].value
        for node in nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "c_function"
        and isinstance(node.args[0], ast.Constant)
    }
    assert names == set(symbols.EXPORTED.split())


def test_the_list_of_fields_is_what_the_room_sets() -> None:
    structs = ("llama_context_params", "llama_model_params", "llama_model_quantize_params")
    listed = {field for struct in structs for field in symbols.FIELDS[struct].split()}
    assert attributes_of("params", "parameters") == listed
    others = {field for fields in symbols.FIELDS.values() for field in fields.split()} - listed
    used = {node.attr for node in nodes() if isinstance(node, ast.Attribute)}
    by_position = {"bias", "token", "logit", "p"}
    assert others - by_position <= used


def test_the_wanted_version_is_that_of_the_project_file() -> None:
    assert f'"{symbols.WANTED}",' in (ROOT / "pyproject.toml").read_text()


def test_the_installed_library_has_everything() -> None:
    assert symbols.missing(lib) == []


def without(*names: str) -> Any:
    """A module of declarations that lacks some names and is otherwise the installed one."""
    kept = {name: value for name, value in vars(lib).items() if name not in names}
    return SimpleNamespace(**kept)


def test_a_missing_function_is_named_with_the_version_and_the_command() -> None:
    with pytest.raises(LibraryMismatch) as caught:
        symbols.check(without("llama_set_adapters_lora"))
    error = caught.value
    assert error.what.startswith("llama-cpp-python 0.")
    assert error.what.endswith("does not have llama_set_adapters_lora")
    assert error.why and error.hint == f"pip install '{symbols.WANTED}'"


def test_a_missing_field_is_named_with_its_struct() -> None:
    """ctypes would take the value and llama.cpp never see it."""
    declarations = without("llama_model_params")
    fields = [field for field in lib.llama_model_params._fields_ if field[0] != "load_mode"]
    declarations.llama_model_params = SimpleNamespace(_fields_=fields)
    with pytest.raises(LibraryMismatch, match=r"does not have llama_model_params\.load_mode:"):
        symbols.check(declarations)


def test_a_missing_function_of_the_shared_library_is_named() -> None:
    declarations = without("_lib")
    declarations._lib = SimpleNamespace(
        **dict.fromkeys(set(symbols.EXPORTED.split()) - {"ggml_init"})
    )
    assert symbols.missing(declarations) == ["ggml_init"]


BROKEN = """
import sys, types
sys.modules["llama_cpp.llama_cpp"] = {stand_in}
from edge_agent.engine import worker
worker.main()
"""


def worker_with(stand_in: str) -> list[str]:
    return [sys.executable, "-c", BROKEN.format(stand_in=stand_in)]


@pytest.mark.parametrize(
    ("stand_in", "expected"),
    [
        ("types.ModuleType('llama_cpp.llama_cpp')", "does not have ggml_abort_callback, "),
        ("None", "cannot be loaded"),
    ],
)
def test_a_worker_with_an_unfit_library_answers_the_load_with_the_error(
    stand_in: str, expected: str, tiny_model: Path
) -> None:
    with WorkerProcess(worker_with(stand_in)) as process:
        process.send(Load("test", str(tiny_model), EngineSettings()))
        answer = process.receive()
        assert isinstance(answer, Failed)
        assert answer.code == "library_mismatch" and expected in answer.what
        assert process.process.wait(DEADLINE_S) == 10


def test_the_user_sees_which_function_the_library_lacks(tmp_path: Path) -> None:
    async def ask(store: Store) -> None:
        argv = tuple(worker_with("types.ModuleType('llama_cpp.llama_cpp')"))
        supervisor = Supervisor(Settings(state_dir=tmp_path), store, argv)
        try:
            async for _ in supervisor.generate(None, fakes.generate()):
                pass
        finally:
            await supervisor.close(0)

    with Store(tmp_path / "edge-agent.db") as store:
        store.add_model(fakes.register(tmp_path))
        with pytest.raises(LibraryMismatch, match="does not have ggml_abort") as caught:
            asyncio.run(ask(store))
    assert caught.value.hint == f"pip install '{symbols.WANTED}'"
