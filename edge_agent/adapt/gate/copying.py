"""Is an answer a taught answer, given to a question that has nothing to do with it?

Why it exists: that is how a small model collapses (shared/mission.md, S3): it keeps what it was
taught and says it to everybody. Repeating a taught answer to a related question is learning, so a
taught row counts only when its texts share no content word with the question. Flows in: the taught
chats, then questions with answers. Flows out: the longest copied spans, in words. Not here: the
limit (checks.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_agent.adapt.gate.words import content_stems, n_shared, words
from edge_agent.records import Message

SPAN_WORDS = 6
"""So long a span is no coincidence: people share few 6-word spans (8-gram overlap is the usual copy
alarm, for documents of many hundred words; these answers have at most 20)."""
SPAN_SHARE = 0.8
"""Of a shorter taught answer, so much of it ..."""
FEWEST_WORDS = 2
"""... but a single word ("yes") is anybody's."""
TAUGHT_SHARE = 0.5
"""A clean question with this share of its content words in a taught question is taught, too: its
right answer may have changed with the lesson, so it is left out everywhere."""


@dataclass(frozen=True)
class TaughtRow:
    question: frozenset[str]
    """Content stems."""
    about: frozenset[str]
    """Content stems of question and answer."""
    answer: tuple[str, ...]


class TaughtSpans:
    """The taught answers, indexed by their n-grams of FEWEST_WORDS words."""

    def __init__(self, chats: Sequence[Sequence[Message]]) -> None:
        self.rows = [row for chat in chats for row in _rows_of(chat)]
        self._at: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for number, row in enumerate(self.rows):
            for gram in _grams(row.answer):
                self._at[gram].add(number)

    def teaches(self, question: str) -> bool:
        """Was this question taught, or one that asks about the same?"""
        stems = content_stems(question)
        if not stems:
            asked = frozenset(words(question))
            return any(asked == row.question for row in self.rows)
        enough = TAUGHT_SHARE * len(stems)
        return any(n_shared(stems, row.question) >= enough for row in self.rows)

    def copied_words(self, question: str, answer: str) -> int:
        """Length of the longest span copied from an unrelated taught answer; 0: nothing copied."""
        stems, said = content_stems(question), tuple(words(answer))
        found = {number for gram in _grams(said) for number in self._at.get(gram, ())}
        rows = (self.rows[number] for number in found)
        unrelated = (row for row in rows if not n_shared(stems, row.about))
        return max((_copied(said, row.answer) for row in unrelated), default=0)


def longest_common_span(a: Sequence[str], b: Sequence[str]) -> int:
    """Words of the longest run that stands in both."""
    best, ending = 0, [0] * (len(b) + 1)
    for word in a:
        row = [0] * (len(b) + 1)
        for j, other in enumerate(b, 1):
            if word == other:
                row[j] = ending[j - 1] + 1
                best = max(best, row[j])
        ending = row
    return best


def _copied(said: tuple[str, ...], taught: tuple[str, ...]) -> int:
    """The span if it is long enough to be a copy, else 0."""
    span = longest_common_span(said, taught)
    enough = max(FEWEST_WORDS, min(SPAN_WORDS, SPAN_SHARE * len(taught)))
    return span if span >= enough else 0


def _grams(text: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (text[i : i + FEWEST_WORDS] for i in range(len(text) - FEWEST_WORDS + 1))


def _rows_of(chat: Sequence[Message]) -> Iterator[TaughtRow]:
    """One for each assistant turn, with the user turn before it."""
    asked = ""
    for message in chat:
        if message.role == "user":
            asked = message.content
        elif message.role == "assistant":
            stems = content_stems(asked) or frozenset(words(asked))
            about = content_stems(asked) | content_stems(message.content)
            yield TaughtRow(stems, about, tuple(words(message.content)))
