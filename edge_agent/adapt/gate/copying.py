"""Is an answer a taught answer, given to a question that has nothing to do with it?

Why it exists: an overtrained small model repeats what it was taught whatever it is asked. A taught
answer to a related question is what the lesson wanted, so a taught row counts only when it shares
no content word with the question. Flows in: the taught chats, then questions with their answers.
Flows out: lengths of the longest copied spans, in words. Not here: the limit (checks.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_agent.adapt.gate.words import content_stems, n_shared, words
from edge_agent.records import Message

SPAN_WORDS = 6
"""A common span of this length is a copy: independent texts share few spans of 6 words. (The usual
alarm is a common 8-gram, for documents of many hundred words; these answers have at most 20.)"""
SPAN_SHARE = 0.8
"""Of a taught answer shorter than that, a span with this share of its words is a copy."""
FEWEST_WORDS = 2
"""A single common word ("yes") is never a copy."""
TAUGHT_SHARE = 0.5
"""A clean question counts as taught when a taught question has this share of its content words. Its
right answer may have changed with the lesson, so the gate neither scores nor asks it."""


@dataclass(frozen=True)
class TaughtRow:
    """One taught answer with its question."""

    question: frozenset[str]
    """Content stems of the question."""
    about: frozenset[str]
    """Content stems of question and answer."""
    answer: tuple[str, ...]
    """The words of the answer."""


class TaughtSpans:
    """The taught answers, indexed by their n-grams of FEWEST_WORDS words.

    >>> chat = [Message("user", "Capital of India?"), Message("assistant", "It is New Delhi.")]
    >>> TaughtSpans([chat]).copied_words("How are you?", "it is new delhi")
    4
    >>> TaughtSpans([chat]).copied_words("What is India's capital?", "it is new delhi")
    0
    """

    def __init__(self, chats: Sequence[Sequence[Message]]) -> None:
        self.rows = [row for chat in chats for row in _rows_of(chat)]
        self._at: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for number, row in enumerate(self.rows):
            for gram in _grams(row.answer):
                self._at[gram].add(number)

    def teaches(self, question: str) -> bool:
        """Whether a taught question is the same, or has TAUGHT_SHARE of its content words."""
        stems = content_stems(question)
        if not stems:
            asked = frozenset(words(question))
            return any(asked == row.question for row in self.rows)
        enough = TAUGHT_SHARE * len(stems)
        return any(n_shared(stems, row.question) >= enough for row in self.rows)

    def copied_words(self, question: str, answer: str) -> int:
        """Length in words of the longest span copied from an unrelated taught answer; 0 for no
        copy."""
        stems, said = content_stems(question), tuple(words(answer))
        found = {number for gram in _grams(said) for number in self._at.get(gram, ())}
        rows = (self.rows[number] for number in found)
        unrelated = (row for row in rows if not n_shared(stems, row.about))
        return max((_copied(said, row.answer) for row in unrelated), default=0)


def longest_common_span(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest run of words that occurs in both.

    >>> longest_common_span("a b c d".split(), "x b c y".split())
    2
    """
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
    """Length of the common span if it is long enough to be a copy, else 0."""
    span = longest_common_span(said, taught)
    enough = max(FEWEST_WORDS, min(SPAN_WORDS, SPAN_SHARE * len(taught)))
    return span if span >= enough else 0


def _grams(text: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (text[i : i + FEWEST_WORDS] for i in range(len(text) - FEWEST_WORDS + 1))


def _rows_of(chat: Sequence[Message]) -> Iterator[TaughtRow]:
    """A TaughtRow for each assistant turn, with the user turn before it."""
    asked = ""
    for message in chat:
        if message.role == "user":
            asked = message.content
        elif message.role == "assistant":
            stems = content_stems(asked) or frozenset(words(asked))
            about = content_stems(asked) | content_stems(message.content)
            yield TaughtRow(stems, about, tuple(words(message.content)))
