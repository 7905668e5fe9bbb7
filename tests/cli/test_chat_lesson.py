"""/learn and /undo: through the sockets of a real front, and on a real terminal.

The trainer is a script here (tests/adapt/test_lesson_runner.py has the real one).
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from http_front import Front, serving
from pseudo_terminal import on_a_terminal
from waiting import POLL_S

from edge_agent.adapt.lesson import LessonRequest
from edge_agent.adapt.lesson_files import LessonFiles
from edge_agent.adapt.lesson_runner import LessonRunner
from edge_agent.adapt.messages import Planned
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.cli.chat_screen import ChatSession, plain_lines
from edge_agent.cli.conversation import COMMAND_WORDS, ChatState, Learn, Undo, handle
from edge_agent.cli.terminal import Terminal
from edge_agent.client.connection import Client
from edge_agent.errors import DataRefused, EdgeAgentError
from edge_agent.server.adapt import ADAPTATION

REHEARSED = {"kind": "kl", "rows": 90, "tokens": 4100, "bytes": 143_000, "seconds": 5.0}
PLANNED = Planned(
    {"total": 80_000_000}, [1], 3, 0, 90, 40, 1, 2.0, {}, [], True, rehearsal=REHEARSED
)
GATE = {
    "passed": True,
    "reasons": [],
    "advice": [],
    "samples": [{"prompt": "one", "before": "Hello", "after": "One it is."}],
}
REFUSED = {**GATE, "passed": False, "reasons": ["canned: 0.8"], "advice": ["Give more wordings."]}
TRAINING = {"event": "progress", "phase": "train", "step": 3, "n_steps": 14, "loss": 1.25}
FINDING = {"row": 2, "reason": "contradiction", "text": "'q' is answered 'a', 'b' in row 1"}
CORRECTED = "one\n/correct One it is.\n"


@dataclass
class ScriptedLesson:
    """Stands for LessonRunner's trainer: its plan, its events, its verdict."""

    front: Front
    gate: dict[str, Any] = field(default_factory=lambda: GATE)
    planned: Planned = PLANNED
    refused: EdgeAgentError | None = None
    has_ended: bool = True
    """False: the lesson goes on until a test says so."""
    begun: list[LessonRequest] = field(default_factory=list)

    @property
    def files(self) -> LessonFiles:
        return LessonFiles(self.front.settings.state_dir)

    def check_free(self) -> None: ...

    async def plan(self, request: LessonRequest) -> Planned:
        if self.refused is not None:
            raise self.refused
        return self.planned

    async def begin(self, request: LessonRequest) -> None:
        self.begun.append(request)

    async def follow(self) -> AsyncGenerator[dict[str, Any], None]:
        yield {"event": "progress", "phase": "prefix", "step": 0, "note": "states: 3 of 20"}
        yield TRAINING
        while not self.has_ended:
            await asyncio.sleep(POLL_S)
        yield {"event": "judging", "note": "as it is: questions, 3 of 30"}
        request = self.begun[-1]
        registry = self.front.supervisor.registry
        source = self.front.settings.state_dir / "source"
        source.write_text(request.name)
        registry.add("tiny", request.name, source, source="trained")
        registry.set_gate("tiny", request.name, self.gate, self.gate["passed"])
        if self.gate["passed"]:
            registry.activate("tiny", request.name, force=False, reason="passed")
        yield {"event": "end", **self.status(), **self.ended()}

    def ended(self) -> dict[str, Any]:
        name = self.begun[-1].name
        result = {"model": "tiny", "name": name, "gate": self.gate}
        return {"state": "finished", "result": {**result, "is_active": self.gate["passed"]}}

    def status(self) -> dict[str, Any]:
        if not self.begun:
            return {"state": "idle", "name": None}
        state = "finished" if self.has_ended else "running"
        return {"state": state, "name": self.begun[-1].name}

    @property
    def active(self) -> str | None:
        row = self.front.supervisor.registry.active("tiny")
        return row.name if row else None


@contextmanager
def learning(tmp_path: Path) -> Iterator[ScriptedLesson]:
    with serving(tmp_path, model="tiny") as front:
        lesson = ScriptedLesson(front)
        front.app._state[ADAPTATION] = cast(LessonRunner, lesson)
        yield lesson


def chat_with(front: Front, entries: str, state: ChatState | None = None) -> str:
    """What a chat on a pipe says on stderr."""
    out, err = io.StringIO(), io.StringIO()
    stdin = io.StringIO(entries)
    terminal = Terminal(stdin, out, err, {})
    client = Client(front.socket_path)
    session = ChatSession(client, terminal, Path("/nonexistent"), plain_lines(stdin), False)
    assert session.run(state or ChatState()) == 0
    return err.getvalue()


def test_both_commands_are_listed_completed_and_taken() -> None:
    assert handle(ChatState(), "/learn")[1] == (Learn(),)
    assert handle(ChatState(), "/undo")[1] == (Undo(),)
    (said,) = handle(ChatState(), "/help")[1]
    assert "/learn " in str(said) and "/undo " in str(said)
    assert {"/learn", "/undo", "/help"} <= set(COMMAND_WORDS)


def test_a_correction_is_learned_judged_and_taken_back(tmp_path: Path) -> None:
    with learning(tmp_path) as lesson:
        said = chat_with(lesson.front, f"{CORRECTED}/learn\none\n")
        (request,) = lesson.begun
        assert (request.model, request.data, request.activate) == ("tiny", "feedback", True)
        assert lesson.active == request.name
        for part in (
            *("1 correction waits to be learned for tiny", "3 rows to learn", "80 MB of memory"),
            *("90 rows are rehearsed (kl)", f"at most {RunSettings().epochs} epochs: "),
            *("prefix ...", "train ...", "judging ...", f"tiny answers with {request.name} now"),
            *("before: Hello\nafter:  One it is.", "/undo takes it back"),
        ):
            assert part in said, part
        said = chat_with(lesson.front, "/undo\n/undo\n")
        assert lesson.active is None
        assert f"{request.name} is taken back; the model itself answers for tiny" in said
        assert "nothing to take back" in said


def test_a_refused_lesson_says_why_and_what_to_add(tmp_path: Path) -> None:
    with learning(tmp_path) as lesson:
        lesson.gate = REFUSED
        said = chat_with(lesson.front, f"{CORRECTED}/learn\none\n")
        assert f"Refused: {lesson.begun[0].name} is kept and does not answer." in said
        assert "- Give more wordings.\n  canned: 0.8\n" in said
        assert "/undo" not in said and lesson.active is None


def test_without_corrections_nothing_is_planned(tmp_path: Path) -> None:
    with learning(tmp_path) as lesson:
        said = chat_with(lesson.front, "/learn\none\n")
    assert "nothing waits to be learned for tiny\n/correct TEXT" in said and not lesson.begun


def test_what_the_audit_found_is_shown_and_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    with learning(tmp_path) as lesson:
        lesson.planned = Planned(
            {"total": 1}, [1], 3, 0, 9, 4, 1, None, {"flagged": 1}, [FINDING], True
        )
        said = chat_with(lesson.front, f"{CORRECTED}/learn\none\n")
        assert "row 2 is left out: the same question has different answers: 'q'" in said
        lesson.refused = DataRefused("1 rows are flagged", "in 1 rows the answer loops", "line")
        said = chat_with(lesson.front, "two\n/correct Two.\n/learn\nthree\n")
        assert "error: 1 rows are flagged: in 1 rows the answer loops" in said
        assert "`edge-agent feedback rm NUMBER`; then /learn" in said
        assert len(lesson.begun) == 1


def test_a_lesson_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    with learning(tmp_path) as lesson:
        lesson.planned = Planned(
            {"total": 9}, [1], 3, 0, 9, 4, 1, 1.0, {}, [], False, memory_bytes=5
        )
        said = chat_with(lesson.front, f"{CORRECTED}/learn\n")
    assert "error: the lesson does not fit into memory: it may take 5 B" in said
    assert not lesson.begun


@pytest.mark.parametrize("name", ["tiny:base", "tiny"])
def test_a_chat_with_the_base_is_told_that_it_has_no_adapter(tmp_path: Path, name: str) -> None:
    with learning(tmp_path) as lesson:
        said = chat_with(lesson.front, f"{CORRECTED}/learn\n", ChatState(model=name))
    assert ("this chat asks tiny:base, which has no adapter" in said) == (name == "tiny:base")


def test_a_later_question_follows_on_the_right_answer(tmp_path: Path) -> None:
    """A lesson would otherwise teach both answers to the first question."""
    with learning(tmp_path) as lesson:
        chat_with(lesson.front, f"{CORRECTED}two\n/correct Two it is.\n")
        rows = lesson.front.get("/v1/feedback").json()["feedback"]
        asked = lesson.front.supervisor.requests[-1].messages or []
    assert [turn.content for turn in asked] == ["one", "One it is.", "two"]
    assert [turn["content"] for turn in rows[0]["messages"]] == ["one", "One it is.", "two"]
    assert [row["answer"] for row in rows] == ["Hello wörld", "Hello wörld"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_on_a_terminal_it_asks_first_and_ctrl_c_leaves_the_lesson_to_the_daemon(
    tmp_path: Path,
) -> None:
    with (
        learning(tmp_path) as lesson,
        on_a_terminal(tmp_path, "tiny", COLUMNS="100") as (screen, pid),
    ):
        for keys in ("one\r", "/correct One it is.\r", "/learn\r"):
            screen.wait_for(">>>")
            screen.type(keys)
        for keys in ("perhaps\r", "n\r"):
            screen.wait_for("start? [Y/n]")
            screen.type(keys)
        screen.wait_for("not started; what was corrected still waits")
        screen.wait_for(">>>")
        screen.type("/learn\r")
        screen.wait_for("start? [Y/n]")
        screen.type("\x03")
        screen.wait_for("not started")
        assert not lesson.begun

        lesson.has_ended = False
        screen.wait_for(">>>")
        screen.type("/lea\t")
        screen.wait_for("/learn")
        screen.type("\r")
        screen.wait_for("start? [Y/n]")
        screen.type("\r")
        screen.wait_for("train, loss 1.250")
        screen.type("\x03")
        screen.wait_for("the daemon goes on with it: /learn looks again")
        screen.wait_for(">>>")
        screen.type("/learn\r")
        screen.wait_for("is being learned")
        lesson.has_ended = True
        screen.wait_for("Passed: tiny answers with chat-")
        screen.wait_for("ASKED")
        screen.wait_for("One it is.")
        screen.wait_for(">>>")
        assert lesson.active == lesson.begun[0].name
        screen.type("/undo\r")
        screen.wait_for("is taken back")
        assert lesson.active is None
        screen.wait_for(">>>")
        screen.type("/bye\r")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
