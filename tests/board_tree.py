"""Copies of the fixture boards that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

BOARDS = Path(__file__).parent / "fixtures" / "sysfs"


def copied_board(name: str, root: Path) -> Path:
    """The tree `name` below `root`, which is returned."""
    shutil.copytree(BOARDS / name, root)
    return root
