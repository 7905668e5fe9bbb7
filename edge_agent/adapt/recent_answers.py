"""The last answers, in memory only, so that a user can say afterwards which one was good.

Flows in: every chat answer of this daemon. Flows out: the one a piece of feedback is about, by its
id or as its user's last one. Nothing of it is written anywhere; it ends with the process. Not here:
what is made of it (feedback.py).

>>> from edge_agent.records import Message
>>> answers = RecentAnswers()
>>> answers.remember(RecentAnswer("ab12", "uid:0", "tiny", (Message("user", "Hi"),), "Hello"))
>>> answers.find("chatcmpl-ab12").text, answers.last("uid:1")
('Hello', None)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edge_agent.records import Message

MAX_ANSWERS = 64
MAX_ANSWER_BYTES = 32 * 1024
"""UTF-8 bytes of one answer and the chat before it; longer ones are too long to learn anyway."""
MAX_BYTES = 1024 * 1024
"""Of all of them together: the front process has a small memory."""


@dataclass(frozen=True)
class RecentAnswer:
    """One answer and the chat it ended; `id` as the response had it, without its prefix."""

    id: str
    user: str
    model: str
    messages: tuple[Message, ...]
    text: str
    adapter: str | None = None
    is_cut: bool = False
    """Stopped by the user or at the token limit."""

    def n_bytes(self) -> int:
        texts = (self.text, *(turn.content for turn in self.messages))
        return sum(len(text.encode("utf-8", "replace")) for text in texts)


class RecentAnswers:
    """Used by the event loop only."""

    def __init__(self) -> None:
        self._answers: deque[tuple[RecentAnswer, int]] = deque()
        self._bytes = 0

    def remember(self, answer: RecentAnswer) -> None:
        """Keep it unless it is too long; the oldest ones give way."""
        size = answer.n_bytes()
        if size > MAX_ANSWER_BYTES:
            return
        self._answers.append((answer, size))
        self._bytes += size
        while len(self._answers) > MAX_ANSWERS or self._bytes > MAX_BYTES:
            self._bytes -= self._answers.popleft()[1]

    def find(self, response_id: str) -> RecentAnswer | None:
        """By the id of the response. Whoever knows it has seen the answer."""
        plain = response_id.rpartition("-")[2]
        return next((one for one, _ in reversed(self._answers) if one.id == plain), None)

    def last(self, user: str) -> RecentAnswer | None:
        return next((one for one, _ in reversed(self._answers) if one.user == user), None)
