"""`make check` runs vulture without the tests; here its list of exceptions is kept short."""

from __future__ import annotations

import sys
from pathlib import Path

from vulture import Vulture

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def test_every_exception_is_needed_and_nothing_else_is_dead() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["vulture"]
    vulture = Vulture(ignore_decorators=settings["ignore_decorators"])
    vulture.scavenge([str(ROOT / path) for path in settings["paths"]])
    assert {item.name for item in vulture.get_unused_code()} == set(settings["ignore_names"])
