"""Loops in one answer: repeated 4-grams, the same sentence twice in a row, a stuck end.

Flows in: an answer. Flows out: numbers and verdicts. Sources: seq-rep-4 (arXiv 1908.04319);
0.02 % of the sentences of human text repeat the one before (WikiText-103, arXiv 2206.02369). Not
here: the same answer to different questions (checks.py), taught text (copying.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.adapt.gate.words import sentences, words

N_GRAM = 4
LOOPING_SEQ_REP = 0.2
"""A good answer of 24 tokens may say one 4-gram twice (at most 1 in 10); a loop soon passes 1 in 5.
Human rows of the clean set have 0."""
TAIL_PERIODS, TAIL_LETTERS = 4, 12
"""A stuck end: one unit at least so often, and at least so long in all. Two or three times occurs
("very, very, very"), four times in twelve letters does not. It also sees loops inside one word: 24
tokens of a byte-like tokenizer hold one or two words of Kannada."""


def seq_rep(items: Sequence[str], n: int = N_GRAM) -> float:
    """Share of the n-grams that were there before: 1 - distinct / all; 0 for short texts."""
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def repeats_a_sentence(text: str) -> bool:
    """Is a sentence of two words or more followed by itself?"""
    found = sentences(text)
    return any(a == b and len(a) > 1 for a, b in zip(found, found[1:], strict=False))


def has_stuck_end(text: str) -> bool:
    """Does the text end in the same letters again and again, the last time perhaps cut?"""
    letters = text.strip().casefold()
    for period in range(1, len(letters) // TAIL_PERIODS + 1):
        same = 0
        while same + period < len(letters) and letters[-1 - same] == letters[-1 - same - period]:
            same += 1
        if same + period >= max(TAIL_PERIODS * period, TAIL_LETTERS):
            return True
    return False


def is_looping(text: str) -> bool:
    return (
        seq_rep(words(text)) >= LOOPING_SEQ_REP or repeats_a_sentence(text) or has_stuck_end(text)
    )
