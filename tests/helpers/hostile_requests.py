"""The table of hostile requests: every class has ten, every case the statuses it may end in.

Used by tests/server/test_hostile.py against a fake engine, and by benchmarks/hostile.py against a
daemon.
"""

from __future__ import annotations

import hostile_json
import hostile_wire
from hostile_case import Case, Outcome, Target, run_case

__all__ = ["CASES", "Case", "Outcome", "Target", "run_case"]

CASES: tuple[Case, ...] = (*hostile_json.CASES, *hostile_wire.CASES)
