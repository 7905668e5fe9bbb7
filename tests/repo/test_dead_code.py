"""`make check` runs vulture without the tests; here its list of exceptions is kept short."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def test_every_name_that_vulture_shall_ignore_still_occurs() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["vulture"]
    files = (path for folder in settings["paths"] for path in (ROOT / folder).rglob("*.py"))
    words = {word for path in files for word in re.findall(r"\w+", path.read_text())}
    assert set(settings["ignore_names"]) - words == set()
