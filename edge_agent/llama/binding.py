"""llama.cpp's C functions, through llama-cpp-python's ctypes declarations.

Why it exists: `import llama_cpp` also imports the high-level `Llama` class with diskcache (which
unpickles), jinja2 and other modules that this project never calls; they cost 0.4 s and 30 MB. This
module imports only the submodule of declarations, under its real name. Flows out: `lib`, the module
of C functions; `LogTail`, the last lines that llama.cpp logged. A library that cannot be loaded or
lacks a function (symbols.py) is an error when llama.cpp is started, not when this module is
imported, so that the process that imports it can report the error. Not here: models (model.py),
contexts (context.py), samplers (sampling.py).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import importlib.util
import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any

from edge_agent.llama import symbols

logger = logging.getLogger(__name__)

_LEVELS = {2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_DEBUG = 1
_CONTINUATION = 5


def _declarations() -> Any:
    """The module llama_cpp.llama_cpp, imported without running the package's __init__."""
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("llama-cpp-python is not installed in this environment")
        package = ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def _imported() -> tuple[Any, str]:
    """The declarations, or an empty module and the reason."""
    try:
        return _declarations(), ""
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return ModuleType("llama_cpp.llama_cpp"), str(error)


lib, _failure = _imported()


def check_library() -> None:
    """Raises LibraryMismatch when llama.cpp cannot be loaded or lacks what this room calls."""
    if _failure:
        raise symbols.mismatch("cannot be loaded", _failure)
    symbols.check(lib)


def c_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function that llama-cpp-python does not declare, or declares with other types.

    libllama is linked against libggml-base, so the loader finds ggml's functions through libllama.
    Raises LibraryMismatch.
    """
    check_library()
    function = lib._lib[name]
    function.restype, function.argtypes = result, arguments
    return function


_installed: list[LogTail] = []


class LogTail:
    """Keeps the last lines of llama.cpp's log, so that an error can quote them, and forwards each
    line to Python's logging."""

    def __init__(self, keep: int = 400) -> None:
        self.lines: deque[str] = deque(maxlen=keep)
        self._level = logging.INFO
        self._partial = ""
        self.is_muted = False
        """True: lines are neither kept nor forwarded. The engine mutes the log once a model
        answers, because llama.cpp logs every aborted call as four errors and an abort is normal."""
        self._is_quiet = False
        self._callback = lib.llama_log_callback(self._receive)

    def install(self) -> None:
        """Route llama.cpp's log here, until another LogTail is installed."""
        _installed[:] = [self]  # llama.cpp logs until the process ends, so this must stay alive
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, user_data: object) -> None:
        if level != _CONTINUATION:
            self._level = _DEBUG if level == _DEBUG else _LEVELS.get(level, logging.INFO)
        if self._level == _DEBUG or self.is_muted:
            return  # llama.cpp writes thousands of debug lines for each graph
        self._partial += text.decode("utf-8", "replace")
        while "\n" in self._partial:
            line, self._partial = self._partial.split("\n", 1)
            if line.strip():
                self.lines.append(line)
                if not self._is_quiet:
                    logger.log(self._level, "%s", line)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the `with` block, keep lines for `errors` even when muted, and forward none."""
        before = self.is_muted, self._is_quiet
        self.is_muted, self._is_quiet = False, True
        self.lines.clear()
        try:
            yield
        finally:
            self.is_muted, self._is_quiet = before

    def errors(self, most: int = 3) -> str:
        """The last `most` kept lines that contain a word for an error, oldest first, joined by
        '; '."""
        words = ("error", "failed", "invalid", "missing", "unknown", "unsupported")
        found = [line for line in self.lines if any(word in line.lower() for word in words)]
        return "; ".join(found[-most:])


def system_info() -> str:
    """The CPU and GPU features of this llama.cpp, as llama_print_system_info lists them."""
    return str(lib.llama_print_system_info().decode("utf-8", "replace")).strip()


def has_amx() -> bool:
    """Whether this llama.cpp has AMX kernels. They crash on the first batch of some models
    (llama.cpp issue #20824). dev/install.py builds without them; other wheels may have them."""
    return "AMX_INT8 = 1" in system_info()


def build_name() -> str:
    """Which llama.cpp this is: the binding's release and the library's own version.

    Raises LibraryMismatch.
    """
    check_library()
    own = lib.llama_version().decode("utf-8", "replace")
    return f"llama-cpp-python {metadata.version('llama-cpp-python')}, llama.cpp {own}"


def start_backend() -> LogTail:
    """Start llama.cpp and route its log into the LogTail that is returned.

    Call this once per process, before any other function of llama.cpp. Raises LibraryMismatch.

        log = start_backend()
        model = Model(path, EngineSettings(), log)
    """
    check_library()
    log = LogTail()
    log.install()
    lib.llama_backend_init()
    return log
