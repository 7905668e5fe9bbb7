"""llama.cpp's C functions, through llama-cpp-python's ctypes declarations.

Why it exists: `import llama_cpp` also imports the high-level `Llama` class with diskcache (which
unpickles), jinja2 and a web of helpers we never call: 0.4 s and 30 MB for nothing. Only the
declarations module is loaded here, under its real name. Flows out: `lib`, the module of functions;
`LogTail`, the last lines llama.cpp said. Not here: models, contexts, samplers.
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

logger = logging.getLogger(__name__)

_LEVELS = {2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_DEBUG = 1
_CONTINUATION = 5


def _declarations() -> Any:
    """llama_cpp.llama_cpp without the package's own __init__."""
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("llama-cpp-python is not installed in this environment")
        package = ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


lib: Any = _declarations()


_installed: list[LogTail] = []


class LogTail:
    """Keeps llama.cpp's last lines, so that a refused load can say why, and forwards warnings."""

    def __init__(self, keep: int = 400) -> None:
        self.lines: deque[str] = deque(maxlen=keep)
        self._level = logging.INFO
        self._partial = ""
        self.is_muted = False
        """Set once a model answers: an aborted call is no error, and is logged as four."""
        self._is_quiet = False
        self._callback = lib.llama_log_callback(self._receive)

    def install(self) -> None:
        """Route llama.cpp's log here, until another LogTail is installed."""
        _installed[:] = [self]  # llama.cpp calls it even while it frees: it must not be collected
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, user_data: object) -> None:
        if level != _CONTINUATION:
            self._level = _DEBUG if level == _DEBUG else _LEVELS.get(level, logging.INFO)
        if self._level == _DEBUG or self.is_muted:
            return  # debugging gives thousands of lines a graph
        self._partial += text.decode("utf-8", "replace")
        while "\n" in self._partial:
            line, self._partial = self._partial.split("\n", 1)
            if line.strip():
                self.lines.append(line)
                if not self._is_quiet:
                    logger.log(self._level, "%s", line)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block lines are kept for `errors`, but not logged, even when muted."""
        before = self.is_muted, self._is_quiet
        self.is_muted, self._is_quiet = False, True
        self.lines.clear()
        try:
            yield
        finally:
            self.is_muted, self._is_quiet = before

    def errors(self, most: int = 3) -> str:
        """The last lines that speak of an error, oldest first, joined by '; '."""
        words = ("error", "failed", "invalid", "missing", "unknown", "unsupported")
        found = [line for line in self.lines if any(word in line.lower() for word in words)]
        return "; ".join(found[-most:])


def system_info() -> str:
    """The CPU and GPU features llama.cpp was built with, in its own words."""
    return str(lib.llama_print_system_info().decode("utf-8", "replace")).strip()


def has_amx() -> bool:
    """Whether llama.cpp would use its AMX kernels, which crash on the first batch of some models
    (llama.cpp #20824). dev/install.py leaves them out; a wheel from elsewhere may have them."""
    return "AMX_INT8 = 1" in system_info()


def build_name() -> str:
    """Which llama.cpp this is: the binding's release and the library's own version."""
    own = lib.llama_version().decode("utf-8", "replace")
    return f"llama-cpp-python {metadata.version('llama-cpp-python')}, llama.cpp {own}"


def start_backend() -> LogTail:
    """Once per process, before anything else of llama.cpp."""
    log = LogTail()
    log.install()
    lib.llama_backend_init()
    return log
