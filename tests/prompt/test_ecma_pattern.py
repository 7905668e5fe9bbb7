"""Patterns as automata: Python's own regular expressions are the oracle."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.prompt.automaton import EVERY, Languages, State, TooLarge
from edge_agent.prompt.ecma_pattern import PatternError, language


def states_of(pattern: str, low: int = 0, high: int | None = None) -> tuple[State, ...]:
    languages = Languages()
    term = language(languages, pattern)
    if low or high is not None:
        length = languages.repeat(languages.chars(EVERY), low, high)
        term = languages.both(term, length)
    return languages.automaton(term).states


def accepts(states: Sequence[State], text: str) -> bool:
    at = 0 if states else None
    for char in map(ord, text):
        if at is None:
            return False
        moves = [to for ranges, to in states[at].moves if any(a <= char <= b for a, b in ranges)]
        assert len(moves) < 2, "deterministic"
        at = moves[0] if moves else None
    return at is not None and states[at].accepts


def words(states: Sequence[State], dice: random.Random, n: int = 40) -> list[str]:
    """`n` strings that the automaton accepts, by walking at random."""
    found: list[str] = []
    while len(found) < n:
        at, text = 0, ""
        while states[at].moves and not (states[at].accepts and dice.random() < 0.3):
            ranges, at = dice.choice(states[at].moves)
            low, high = dice.choice(ranges)
            text += chr(dice.randint(low, min(high, low + 60)))
        found.append(text)
    return found


PATTERNS = [
    *("", "a", "^a", "a$", "^$", "^a|b$|c", "(^a|x)b", "a*?b+?", "^[^a-c]{2,3}$", r"^[\w.-]+$"),
    *(r"^\d{3}-?\d$", r"\D\W", "^(a*)*b$", "^((a?)?)?$", "^(?:ab|a)(?:bc|c)$", "^[a-]b|[^-a]$"),
    *("^(?!foo)\\w+$", "^(?=.*x)(?=.*y)[xyz]*$", "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "a(?=b)b"),
    *("^(x(?=y)y?)?z", '^["\\\\\n\t/]+$', r"\x41\u0042", "^a{2,}b{0}c{1}$", "^{x}$"),
    *("^(?P<year>\\d{2})(?P<month>\\d)$", "^[a-z]{1,200}$", "^😀{2}$"),
    r"^(?!\.)(?!.*\.\.)[a.]+@(b+\.)+c{2,}$",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_automaton_accepts_what_the_pattern_matches(pattern: str) -> None:
    states, dice = states_of(pattern), random.Random(7)
    oracle = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    for word in words(states, dice):
        assert oracle.search(word), word
        spoiled = list(word + "a")
        spoiled[dice.randrange(len(spoiled))] = dice.choice('abxyz09.-"\\\n @é')
        assert accepts(states, "".join(spoiled)) == bool(oracle.search("".join(spoiled))), spoiled


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[]a$", "", "a"),
        ("^[^]$", "\n", "ab"),
        (r"^\s$", "\ufeff", "_"),
        (r"^\u{1F600}\ud83d\ude00$", "😀😀", "😀"),
        ("^a{,2}$", "a{,2}", "a"),
        (r"^[\w-.]$", "-", ","),
        (r"^(?<name>\cJ|[\b])$", "\b", "J"),
        (r"^.$", "😀", "\u2028"),
        ("a$", "xa", "a\n"),
    ],
)
def test_what_ecma_262_reads_in_its_own_way(pattern: str, good: str, bad: str) -> None:
    states = states_of(pattern)
    assert accepts(states, good) or not states
    assert not accepts(states, bad)


def is_assertion(atom: str) -> bool:
    return atom[:3] in ("(?=", "(?!") or atom == "$"


_ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", r"\d", "(?:a|bc)", "(?=a)", "(?!b)", "$"])
_PIECES = st.tuples(_ATOMS, st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}"])).map(
    lambda both: both[0] if is_assertion(both[0]) else "".join(both)
)


@given(st.lists(_PIECES, max_size=5), st.booleans(), st.text("abc1\n", max_size=6))
@settings(max_examples=300, deadline=None)
def test_random_patterns_agree_with_the_oracle(
    pieces: list[str], anchored: bool, text: str
) -> None:
    pattern = ("^" if anchored else "") + "".join(pieces)
    expected = bool(re.search(pattern.replace("$", r"\Z"), text, re.ASCII))
    assert accepts(states_of(pattern), text) == expected


def test_lengths_are_part_of_the_automaton() -> None:
    states = states_of("^(ab)*$", 3, 5)
    assert [n for n in range(9) if accepts(states, ("ab" * n)[:n])] == [4]
    assert states_of("^a{9}$", 0, 8) == ()


def test_control_characters_without_a_short_escape_and_surrogates_are_left_out() -> None:
    assert states_of("^\\x01$") == () and states_of("^[\\ud800]$") == ()
    assert accepts(states_of("^[^x]$"), "\U0001f600") and not accepts(states_of("^[^x]$"), "\x01")


@pytest.mark.parametrize(
    ("pattern", "place", "why"),
    [
        (r"(a)\1", 4, "backreferences"),
        (r"x\bfoo", 2, "word boundaries"),
        ("(?<=a)b", 1, "lookbehind"),
        ("(?<!a)b", 1, "lookbehind"),
        (r"[\p{L}]", 2, "Unicode properties"),
        ("(?i)a", 1, "this kind of group"),
        ("a(b", 2, "without its )"),
        ("ab)", 3, "unmatched"),
        ("a[b", 2, "without its ]"),
        ("[b-a]", 2, "out of order"),
        ("*a", 1, "without anything before it"),
        ("^*a", 1, "after an assertion"),
        ("a**", 3, "second quantifier"),
        ("a{3,2}", 2, "out of order"),
        ("a{1,513}", 2, "more than 512"),
        ("ab\\", 4, "ends too early"),
        (r"\xZ1", 1, "hexadecimal"),
        (r"a\A", 2, "escape \\A"),
        ("(a$)+b", 1, "inside a repetition"),
        ("x?^a", 3, "after what may be empty"),
        ("(" * 25 + ")" * 25, 25, "deeper than 24"),
        ("a" * 1025, 1025, "more than 1024"),
    ],
)
def test_what_is_not_supported_is_named_with_its_place(pattern: str, place: int, why: str) -> None:
    with pytest.raises(PatternError) as caught:
        states_of(pattern)
    assert why in str(caught.value) and str(caught.value).endswith(f"at character {place}")


@pytest.mark.parametrize(
    "pattern",
    ["(a|b)*a(a|b){20}$", "a?" * 500, "".join(f"(?=.*{c})" for c in "abcdefghijklmno")]
    + ["((((a{0,512}){0,512}){0,512}){0,512}b", "[a-z]{0,500}[a-f]{0,500}[b-e]{0,500}$"],
)
def test_a_pattern_whose_automaton_explodes_is_refused_in_time(pattern: str) -> None:
    with pytest.raises((TooLarge, PatternError)):
        states_of(pattern)
