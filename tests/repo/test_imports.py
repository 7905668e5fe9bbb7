"""The architecture as import rules: who may know whom, and what the front process must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from converters.extras import load_extra
from edge_agent.errors import EdgeAgentError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edge_agent", "converters", "train_host")  # a package may import those before it
NOT_IN_THE_FRONT = {
    "llama_cpp", "numpy", "gguf", "rich", "prompt_toolkit", "typer", "huggingface_hub",
}  # fmt: skip
# Whoever can write such a file or socket runs code in the reader. multiprocessing pickles too.
UNPICKLERS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing"}

LOADERS = {"import_module", "__import__", "load_extra"}


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names of every import in `source`, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _name(node.func) in LOADERS:
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def top_level(module: str) -> str:
    return module.partition(".")[0]


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def offenders(files: list[Path], forbidden: set[str]) -> list[str]:
    """`path imports name` for each import of a forbidden top-level module."""
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imported_modules(path.read_text())
        if top_level(module) in forbidden
    ]


def test_imports_are_seen_wherever_they_stand() -> None:
    source = "import a.b\ndef f():\n    from c import d\n    importlib.import_module('e.f')\n"
    source += "    load_extra('g', '')\n"
    assert {top_level(module) for module in imported_modules(source)} == {"a", "c", "e", "g"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_those_before_them(package: str) -> None:
    later = set(PACKAGES[PACKAGES.index(package) + 1 :])
    assert files_of(package), f"{package} has no files"
    assert offenders(files_of(package), later) == []


def test_only_the_llama_package_imports_llama_cpp() -> None:
    llama = ROOT / "edge_agent" / "llama"
    others = [p for name in PACKAGES for p in files_of(name) if llama not in p.parents]
    assert offenders(others, {"llama_cpp"}) == []
    assert offenders(files_of("edge_agent/llama"), {"llama_cpp"}), "the rule would be about nothing"


def test_nothing_on_the_device_unpickles() -> None:
    assert offenders(files_of("edge_agent"), UNPICKLERS) == []


def front_modules() -> list[str]:
    """The daemon and every module of server/, whether or not the daemon imports it today."""
    server = files_of("edge_agent/server")
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in server]
    return ["edge_agent.daemon.front", *(name.removesuffix(".__init__") for name in dotted)]


def test_the_front_process_loads_no_native_model_code_and_no_terminal() -> None:
    """In a process of its own: whatever these modules import in turn counts too."""
    program = f"import sys, {', '.join(front_modules())}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = {top_level(module) for module in done.stdout.split()}
    assert "aiohttp" in loaded
    assert loaded & NOT_IN_THE_FRONT == set()


def declared(extra: str | None = None) -> set[str]:
    """Normalized names (PEP 503) of the dependencies, or of what one extra adds to them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["optional-dependencies"][extra] if extra else project["dependencies"]
    found = set()
    for entry in listed:
        included = re.match(r"edge-agent\[(\w+)\]", entry)
        match = re.match(r"[A-Za-z0-9._-]+", entry)
        assert match is not None, entry
        found |= declared(included.group(1)) if included else {normalized(match.group())}
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_distributions(package: str) -> set[str]:
    """Normalized names of the distributions that a package's modules come from."""
    # Python 3.10 knows neither where llama_cpp comes from nor that tomllib will be standard.
    known = {**packages_distributions(), "llama_cpp": ["llama-cpp-python"]}
    ours = {*PACKAGES, *sys.stdlib_module_names, "tomllib"}
    modules = {
        top_level(module)
        for path in files_of(package)
        for module in imported_modules(path.read_text())
    }
    return {normalized(known.get(module, [module])[0]) for module in modules - ours}


def test_the_device_declares_what_it_imports_and_nothing_else() -> None:
    """A package that only an extra brings along would be missing on the board."""
    # pydantic_core is pydantic's other half, pinned by it; jtop is AGPL and asked for by a setting;
    # CuPy fits one version of CUDA, so its user installs it (--device cuda).
    assert imported_distributions("edge_agent") - {"pydantic-core", "jtop", "cupy"} == declared()


@pytest.mark.parametrize(
    ("package", "extra", "others"),
    [("converters", "convert", "host"), ("train_host", "host", "convert")],
)
def test_an_extra_declares_what_its_package_imports(package: str, extra: str, others: str) -> None:
    """converters asks for torch too, of the extra host, when it verifies a directory."""
    imported = imported_distributions(package) - declared()
    assert imported - declared(others) == declared(extra) - declared(others)
    assert imported <= declared(extra) | declared(others)


@pytest.mark.parametrize("extra", ["host", "test"])
def test_who_trains_or_tests_can_convert(extra: str) -> None:
    assert declared("convert") < declared(extra)


def test_a_missing_library_names_the_extra_that_declares_it() -> None:
    for module in {"gguf", "sentencepiece", "tokenizers", "torch", "transformers"}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(EdgeAgentError) as caught:
                load_extra(module, "this test")
        named = re.search(r"edge-agent\[(\w+)\]", caught.value.hint)
        assert named is not None
        assert module in declared(named.group(1))
