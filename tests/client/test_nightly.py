"""What a night does after each kind of earlier night: the files are real, the daemon is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from edge_agent.adapt.lesson import LessonRequest
from edge_agent.adapt.lesson_files import FEEDBACK, LessonFiles
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.client.lessons import BesideLessons, LessonDraft
from edge_agent.client.nightly import Nightly

TONIGHT, YESTERDAY = "night-20261202", "night-20261201"
REFUSED = {"state": "finished", "gate": {"passed": False}, "is_active": False}
PASSED = {"state": "finished", "gate": {"passed": True}, "is_active": True}
FAILED = {"state": "failed", "error": {"code": "data_refused"}}


@dataclass
class Board:
    """A daemon's answers, and what a night asked of it."""

    state_dir: Path
    waiting: int = 12
    rows: list[int] = field(default_factory=lambda: [1, 2])
    done: list[str] = field(default_factory=list)

    @property
    def client(self) -> Board:
        return self

    def get(self, path: str) -> Mapping[str, Any]:
        if path == "/status":
            return {"state_dir": str(self.state_dir)}
        return {"waiting": {"corrections": self.waiting, "approved": 0, "bad": 0}}

    def feedback(self, model: str) -> Iterator[dict[str, Any]]:
        yield from ({"messages": [], "id": number} for number in self.rows)

    def run(self, lesson: LessonDraft) -> Iterator[dict[str, Any]]:
        self.done.append(f"run {lesson.name}")
        return iter(())

    def resume(self, name: str) -> Iterator[dict[str, Any]]:
        self.done.append(f"resume {name}")
        return iter(())

    def judge(self, name: str) -> Iterator[dict[str, Any]]:
        self.done.append(f"judge {name}")
        return iter(())

    def left(
        self, name: str, outcome: Mapping[str, Any] | None = None, *files: str, model: str = "tiny"
    ) -> None:
        """What an earlier night left."""
        lessons = LessonFiles(self.state_dir)
        lessons.write_feedback(name, [{"messages": [], "id": number} for number in (1, 2)])
        lessons.write_request(LessonRequest(name, model, FEEDBACK))
        for file in files:
            (lessons.directory(name) / file).write_text("{}")
        if outcome is not None:
            lessons.write_outcome(name, outcome)

    def night(self) -> str | list[str]:
        nightly = Nightly(cast(BesideLessons, self), "tiny", 10)
        found = nightly.begin("20261202", RunSettings())
        return found if isinstance(found, str) else self.done


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_the_first_night_learns_what_waits(board: Board) -> None:
    assert board.night() == [f"run {TONIGHT}"]


def test_too_few_corrections_wait_on(board: Board) -> None:
    board.waiting = 9
    assert board.night() == "fewer than 10 corrections wait for tiny: nothing to learn"


def test_with_yesterdays_adapter_active_everything_is_learned_anew(board: Board) -> None:
    board.left(YESTERDAY, PASSED, "result.json")
    assert board.night() == [f"run {TONIGHT}"]


def test_a_refused_night_is_not_repeated_with_the_same_rows(board: Board) -> None:
    board.left(YESTERDAY, REFUSED, "result.json")
    assert board.night() == (
        f"{YESTERDAY} learned these 2 rows and was refused: nothing new to learn"
    )
    board.rows.append(3)
    assert board.night() == [f"run {TONIGHT}"]
    board.rows.pop()
    (board.state_dir / "adapt" / YESTERDAY / "feedback.jsonl").unlink()
    assert board.night() == [f"run {TONIGHT}"] * 2, "nobody can say that they are the same"


@pytest.mark.parametrize("name", [YESTERDAY, TONIGHT])
def test_a_night_that_was_cut_off_goes_on_whatever_waits(board: Board, name: str) -> None:
    board.left(name, None, "manifest.json")
    board.waiting = 0
    assert board.night() == [f"resume {name}"]


def test_what_was_trained_and_not_judged_is_judged(board: Board) -> None:
    """The daemon was gone, or busy with another lesson, when it should have judged."""
    board.left(YESTERDAY, None, "manifest.json", "result.json")
    board.waiting = 0
    assert board.night() == [f"judge {YESTERDAY}"]


def test_a_second_start_in_one_night_learns_nothing_twice(board: Board) -> None:
    board.left(TONIGHT, PASSED, "manifest.json", "result.json")
    assert board.night() == (
        f"{TONIGHT} was learned and judged already: the next lesson is tomorrow's"
    )


def test_a_failed_night_is_followed_by_a_new_one(board: Board) -> None:
    board.left(YESTERDAY, FAILED, "manifest.json")
    assert board.night() == [f"run {TONIGHT}"]


def test_a_failed_lesson_of_tonight_goes_on_from_its_checkpoint_or_begins_anew(
    board: Board,
) -> None:
    board.left(TONIGHT, FAILED)
    assert board.night() == [f"run {TONIGHT}"]
    board.done.clear()
    board.left(TONIGHT, FAILED, "manifest.json")
    assert board.night() == [f"resume {TONIGHT}"]


def test_two_models_may_learn_in_one_night(board: Board) -> None:
    board.left(TONIGHT, PASSED, "manifest.json", "result.json", model="other")
    assert board.night() == [f"run {TONIGHT}-tiny"]


def test_an_outcome_of_an_earlier_version_counts_as_judged(board: Board) -> None:
    board.left(TONIGHT, {"gate": {"passed": True}}, "manifest.json", "result.json")
    assert "judged already" in str(board.night())


def test_torn_files_of_an_earlier_night_do_not_stop_this_one(board: Board) -> None:
    board.left(YESTERDAY, PASSED)
    directory = board.state_dir / "adapt" / YESTERDAY
    (directory / "request.json").write_text("{")
    (directory / "outcome.json").write_text("[")
    assert board.night() == [f"run {TONIGHT}"]


def test_the_last_outcome_is_found_again(board: Board) -> None:
    lessons = LessonFiles(board.state_dir)
    assert lessons.last_outcome() is None
    board.left(YESTERDAY, PASSED)
    assert lessons.last_outcome() == PASSED
    lessons.write_request(LessonRequest(YESTERDAY, "tiny", FEEDBACK))
    assert lessons.last_outcome() is None, "a new run of its name has begun"
    assert json.loads((board.state_dir / "adapt" / YESTERDAY / "request.json").read_text())
