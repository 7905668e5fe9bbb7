"""The table of hostile requests: ten of every class, each with the statuses that are correct.

Used by tests/server/test_hostile.py with a fake engine and by benchmarks/hostile.py with a daemon.
"""

from __future__ import annotations

import hostile_json
import hostile_wire
from hostile_case import Case, Outcome, Target, run_case

__all__ = ["CASES", "Case", "Outcome", "Target", "run_case"]

CASES: tuple[Case, ...] = (*hostile_json.CASES, *hostile_wire.CASES)
