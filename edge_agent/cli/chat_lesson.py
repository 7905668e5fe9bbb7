"""A lesson without leaving the chat: /learn teaches what was corrected, /undo takes it back.

    what waits ~> plan ~> Enter ~> the daemon learns and judges ~> verdict ~> /undo

Flows in: the chat's model, the daemon's documents and events. Flows out: notes on stderr, because
a chat's stdout holds nothing but answers. The lesson is the daemon's: Ctrl-C leaves it going and
gets back to the chat. Not here: the words (lesson_text.py, verdict.py), the chat (chat_screen.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.cli.lesson_text import (
    event_text,
    findings,
    longest_text,
    rehearsal_text,
    waiting_text,
)
from edge_agent.cli.terminal import Progress, Terminal, size_text
from edge_agent.cli.verdict import LessonVerdict, verdict_lines
from edge_agent.client.adapters import DaemonAdapters
from edge_agent.client.connection import Client
from edge_agent.client.feedback import DaemonFeedback
from edge_agent.client.lessons import TIMEOUT_S, DaemonLessons, LessonDraft
from edge_agent.client.models import DaemonModels
from edge_agent.errors import DataRefused, EdgeAgentError, error_from_code
from edge_agent.model_names import BASE_TAG, split_name

UNDER_WAY = ("running", "paused", "judging")
GOES_ON = (
    "the daemon goes on with it: /learn looks again, so does `edge-agent adapt status`;"
    " `edge-agent adapt pause` holds it"
)
NOT_STARTED = "not started; what was corrected still waits"


@dataclass(frozen=True)
class ChatLesson:
    """The lessons of one chat. `ask` reads one line; None, in a pipe: a lesson starts unasked."""

    client: Client
    terminal: Terminal
    ask: Callable[[str], str] | None

    def learn(self, named: str | None) -> None:
        """Watch the lesson under way, or teach `named` (None: the daemon's default) what waits.

        Raises what the daemon answers; KeyboardInterrupt only in a pipe.
        """
        try:
            now = self.client.get("/adapt")
            if now.get("state") in UNDER_WAY:
                self.terminal.note(f"{now['name']} is being learned")
                self._watch(self._patient.lines("/adapt/events", None), named)
                return
            lesson = self._wanted(named)
        except KeyboardInterrupt:
            if self.ask is None:
                raise
            self.terminal.note(f"\n{NOT_STARTED}")
            return
        if lesson is not None:
            self._watch(DaemonLessons(self._patient).run(lesson), named)

    def undo(self, named: str | None) -> None:
        """Go back to what answered before the active adapter. Raises what the daemon answers."""
        model = self._model(named)
        library = DaemonAdapters(self.client)
        active = [one["name"] for one in library.adapters(model) if one["is_active"]]
        if not active:
            self.terminal.note(f"{model} answers without an adapter: nothing to take back")
            return
        left = library.rollback(model)["active"]
        who = f"adapter {left}" if left else "the model itself"
        self.terminal.note(
            f"{active[0]} is taken back; {who} answers for {model}. What was corrected is kept: the"
            " next lesson learns it again, `edge-agent feedback rm NUMBER` forgets it."
        )

    @property
    def _patient(self) -> Client:
        return replace(self.client, timeout_s=TIMEOUT_S)

    def _model(self, named: str | None) -> str:
        """Without a tag. Raises ModelNotFound, AdapterNotFound."""
        return split_name(DaemonModels(self.client).details(named).name)[0]

    def _wanted(self, named: str | None) -> LessonDraft | None:
        """The lesson that was planned and agreed to; None when there is none."""
        model = self._model(named)
        waiting = DaemonFeedback(self.client).waiting(model)
        self.terminal.note(f"{waiting_text(waiting)} for {model}")
        if not waiting["corrections"] + waiting["approved"]:
            self.terminal.note("/correct TEXT gives the right answer to the last question")
            return None
        name = time.strftime("chat-%Y%m%d-%H%M%S")
        lesson = LessonDraft(name, named, None, RunSettings())
        self.terminal.faint("planning ...")
        planned = _refused_in_words(lambda: DaemonLessons(self._patient).plan(lesson))
        self._show_plan(planned, lesson.settings.epochs)
        if not planned.get("fits", True):
            why = f"it may take {size_text(planned.get('memory_bytes'))}"
            hint = "close other programs; `edge-agent adapt plan --from feedback` says more"
            raise EdgeAgentError("the lesson does not fit into memory", why, hint)
        if self._agreed():
            return lesson
        self.terminal.note(NOT_STARTED)
        return None

    def _show_plan(self, planned: Mapping[str, Any], epochs: int) -> None:
        rows, size = planned["n_train"] + planned["n_validation"], planned["bytes"]["total"]
        for line in (
            f"{rows} row{'s' * (rows != 1)} to learn, earlier corrections among them"
            f"; {size_text(size)} of memory",
            rehearsal_text(planned),
            longest_text(planned, epochs),
            *findings(planned),
        ):
            self.terminal.note(line)

    def _agreed(self) -> bool:
        """Enter and y start the lesson, n and the end of the input do not."""
        words = {"": True, "y": True, "yes": True, "n": False, "no": False}
        while self.ask is not None:
            try:
                said = self.ask("start? [Y/n] ").strip().lower()
            except EOFError:
                return False
            if said in words:
                return words[said]
        return True

    def _watch(self, events: Iterator[Mapping[str, Any]], named: str | None) -> None:
        """Show the lesson until its verdict. Ctrl-C leaves it to the daemon."""
        last: Mapping[str, Any] = {}
        try:
            with self._progress() as show:
                for last in events:
                    if (text := event_text(last)) is not None:
                        show(text, last.get("step"), last.get("n_steps") or None)
        except KeyboardInterrupt:
            if self.ask is None:
                raise
            self.terminal.note(f"\n{GOES_ON}")
            return
        self._show_end(last, named)

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        """A bar; where none can be drawn, a note for each phase."""
        terminal, seen = self.terminal, [""]
        if terminal.stderr.isatty() and not terminal.is_dumb:
            with terminal.progress(counts_bytes=False) as show:
                yield show
            return

        def note(status: str, completed: int | None, total: int | None) -> None:
            phase = status.partition(",")[0]
            if phase != seen[0]:
                seen[0] = phase
                terminal.note(f"{phase} ...")

        yield note

    def _show_end(self, last: Mapping[str, Any], named: str | None) -> None:
        """Raises the error that ended the lesson."""
        if error := last.get("error"):
            raise error_from_code(error["code"], error["what"], error["why"], error["hint"])
        result = last.get("result")
        if result is None:
            self.terminal.note("stopped; `edge-agent adapt resume` goes on from its checkpoint")
            return
        is_active = result["is_active"]
        verdict = LessonVerdict(result["model"], result["name"], result["gate"], is_active)
        for line in verdict_lines(verdict, self.terminal.columns):
            self.terminal.note(line)
        if is_active:
            self.terminal.note("/undo takes it back; /clear forgets what was said before it")
        if is_active and split_name(named or "")[1] == BASE_TAG:
            self.terminal.note(f"this chat asks {named}, which has no adapter")


def _refused_in_words(plan: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Rows of feedback have no file that could be put right. Raises DataRefused."""
    try:
        return plan()
    except DataRefused as error:
        hint = (
            "correct the question again, or `edge-agent feedback list` and `edge-agent feedback rm"
            " NUMBER`; then /learn"
        )
        raise DataRefused(error.what, error.why, hint) from error
