"""Every hostile request of the table ends in the 4xx it is tabled with, and never by a deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hostile_case import Outcome
from hostile_requests import CASES, Case, run_case
from http_front import TOKEN, Front, serving

from edge_agent.server.limits import Limits

LIMITS = Limits(linger_s=0.3, header_s=3600.0, body_s=3600.0)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with serving(tmp_path_factory.mktemp("hostile"), limits=LIMITS) as front:
        yield front


def test_the_table_has_thirty_classes_of_ten() -> None:
    kinds = Counter(case.kind for case in CASES)
    assert len(kinds) >= 30
    assert set(kinds.values()) == {10}
    assert all(400 <= status < 500 for case in CASES for status in case.allowed)


@pytest.mark.parametrize("kind", sorted({case.kind for case in CASES}))
def test_hostile_requests_end_as_tabled(front: Front, kind: str) -> None:
    wrong = []
    for case in CASES:
        if case.kind == kind:
            outcome = run_case("127.0.0.1", front.port, TOKEN, case)
            if not outcome.is_right(case):
                wrong.append((case.name, sorted(case.allowed), outcome))
    assert wrong == []
    assert front.supervisor.requests == []
    assert front.get("/health").status == 200


def test_the_judge_can_say_no() -> None:
    case = Case("x", "x", lambda target: b"", frozenset({400}))
    assert Outcome(400, 0, typed=True, hung=False).is_right(case)
    assert not Outcome(200, 0, typed=True, hung=False).is_right(case)
    assert not Outcome(400, 0, typed=False, hung=False).is_right(case)
    assert not Outcome(None, 0, typed=False, hung=False).is_right(case)
