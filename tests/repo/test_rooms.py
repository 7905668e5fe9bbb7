"""The rooms of edge_agent: an import points to the same room or to one nearer the ground.

The order is the architecture (docs/architecture.md): whoever reads a room needs to know only those
before it. A class has one name in the whole project, so that a name in a traceback is one thing.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edge_agent", "converters", "train_host")
ROOMS = (
    *("ground", "store", "gguf", "llama", "models", "prompt", "supervisor", "engine", "monitor"),
    *("adapt", "server", "client", "daemon", "bench", "cli"),
)
"""From the ground up; `ground` are the files of edge_agent itself."""
PARTS_OF_ADAPT = ("gate", "adapt", "trainer.decoder", "trainer")
GROUND = {
    *(
        "__init__",
        "errors",
        "measured",
        "records",
        "config",
        "state_dir",
        "atomic_file",
        "clocks",
        "wire",
    ),
    *("model_names", "regular_file", "setting", "units", "sampling_bounds", "json_lines"),
    "machine",
}
OPTION_CLASS = "Options"
"""The option classes of typer are named after their command, which several programs may have."""

Imports = Mapping[str, set[str]]


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of edge_agent."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((root / "edge_agent").rglob("*.py"))
    }


def room_of(module: str) -> str:
    part = module.split(".")[1:2]
    return part[0] if part and part[0] in ROOMS else "ground"


def part_of_adapt(module: str) -> str | None:
    """Which part of adapt/ a module is in; None: it is elsewhere."""
    if room_of(module) != "adapt":
        return None
    inner = module.removeprefix("edge_agent.adapt.")
    for part in ("gate", "trainer.decoder", "trainer"):
        if inner == part or inner.startswith(f"{part}."):
            return part
    return "adapt"


def imports_of(source: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of `known` that `source` imports, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from {full if full in known else node.module} & known.keys()
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & known.keys()


def upward(imports: Imports) -> list[str]:
    """`module imports module` for each import of a room, or part of adapt, nearer the roof."""
    found = []
    for module, targets in imports.items():
        for target in sorted(targets):
            is_upward = ROOMS.index(room_of(target)) > ROOMS.index(room_of(module))
            ours, theirs = part_of_adapt(module), part_of_adapt(target)
            if ours and theirs:
                is_upward = PARTS_OF_ADAPT.index(theirs) > PARTS_OF_ADAPT.index(ours)
            if is_upward:
                found.append(f"{module} imports {target}")
    return found


def circles(imports: Imports) -> list[list[str]]:
    """Sets of modules that import each other, directly or through others."""
    reached = {module: reachable(module, imports) for module in imports}
    in_circles = {module for module in imports if module in reached[module]}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached.get(other, set())))
        for module in in_circles
    }
    return [list(group) for group in sorted(groups)]


def reachable(module: str, imports: Imports) -> set[str]:
    seen: set[str] = set()
    waiting = list(imports[module])
    while waiting:
        target = waiting.pop()
        if target not in seen:
            seen.add(target)
            waiting += imports.get(target, set())
    return seen


@pytest.fixture(scope="module")
def imports() -> Imports:
    known = modules_of(ROOT)
    return {
        module: {target for target in imports_of(path.read_text(), known) if target != module}
        for module, path in known.items()
    }


def test_the_rooms_are_those_of_the_order() -> None:
    folders = {path.parent.name for path in (ROOT / "edge_agent").glob("*/__init__.py")}
    assert folders == set(ROOMS) - {"ground"}
    assert {path.stem for path in (ROOT / "edge_agent").glob("*.py")} == GROUND


def test_no_import_points_to_a_later_room(imports: Imports) -> None:
    assert len(imports) > 100, "the rule would be about nothing"
    assert upward(imports) == []


def test_no_modules_import_each_other_in_a_circle(imports: Imports) -> None:
    assert circles(imports) == []


def test_an_upward_import_and_a_circle_would_be_seen() -> None:
    up = {"edge_agent.store.store": {"edge_agent.server.app"}}
    assert upward(up) == ["edge_agent.store.store imports edge_agent.server.app"]
    inner = {"edge_agent.adapt.gate.gate": {"edge_agent.adapt.trainer.plan"}}
    assert len(upward(inner)) == 1
    circle = {"edge_agent.a": {"edge_agent.b"}, "edge_agent.b": {"edge_agent.a"}}
    assert circles(circle) == [["edge_agent.a", "edge_agent.b"]]


def public_classes() -> dict[str, list[str]]:
    """Name -> files that define a public class of this name at their top level."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(str(path.relative_to(ROOT)))
    return found


def test_a_public_class_name_means_one_thing() -> None:
    twice = {
        name: paths
        for name, paths in public_classes().items()
        if len(paths) > 1 and not name.endswith(OPTION_CLASS)
    }
    assert twice == {}


NOT_FOR_THE_TRAINER = {"sqlite3", "aiohttp", "typer", "rich", "pydantic", "gguf", "torch"}
"""The trainer process has no store, no HTTP and no terminal. Of llama.cpp it uses the tokenizer and
what unpacks quantized weights."""


def test_the_trainer_loads_nothing_that_it_does_not_need() -> None:
    names = [module for module in modules_of(ROOT) if part_of_adapt(module) in PARTS_OF_ADAPT[2:]]
    program = f"import sys, {', '.join(names)}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    ours = {room_of(module) for module in loaded if module.startswith("edge_agent.")}
    assert ours <= {"ground", "gguf", "llama", "prompt", "monitor", "adapt"}
    assert {module.partition(".")[0] for module in loaded} & NOT_FOR_THE_TRAINER == set()
