"""Regular languages over the characters of a JSON string, and their deterministic automata.

Why it exists: a `pattern`, a `format`, lookaheads and bounds on the length all limit one string,
and a grammar can state their intersection only as an automaton. An automaton also gives llama.cpp
a grammar without ambiguity and without loops over nothing. Flows in: operations on languages, by
ecma_pattern.py. Flows out: states for grammar.py. The method: J. A. Brzozowski, "Derivatives of
Regular Expressions", JACM 1964; the simplifications that make the number of derivatives finite are
those of Owens, Reppy and Turon, JFP 2009. Not here: the syntax of patterns, GBNF.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Ranges = tuple[tuple[int, int], ...]
"""Code points as inclusive ranges, in order and apart from each other."""

EVERY: Ranges = ((0x08, 0x0A), (0x0C, 0x0D), (0x20, 0xD7FF), (0xE000, 0x10FFFF))
"""The characters of an answer: those that JSON may write raw, and those with an escape of one
letter. Other control characters and lone surrogates are left out."""
MAX_STATES = 1000
MAX_SIZE = 10_000
"""Most ranges of characters in one automaton: a bound on the length of its grammar."""
MAX_STEPS = 100_000
"""Terms made for one automaton, by their parts: a bound on the time, about 0.1 s on a PC."""


class TooLarge(Exception):
    """The automaton would be larger than MAX_STATES or MAX_SIZE, or take more than MAX_STEPS."""


@dataclass(frozen=True)
class State:
    """`moves`: (characters, index of the next state) each; the characters are disjoint."""

    accepts: bool
    moves: tuple[tuple[Ranges, int], ...]


@dataclass(frozen=True)
class Automaton:
    """States from which a word can still be completed; the first one begins. Without any
    state there is no word. `steps`: what it took, of MAX_STEPS."""

    states: tuple[State, ...]
    steps: int = field(default=0, compare=False)

    @property
    def size(self) -> int:
        """The number of ranges in all moves."""
        return sum(len(ranges) for state in self.states for ranges, _ in state.moves)


def union(*sets: Ranges) -> Ranges:
    """All code points of the sets.

    >>> union(((1, 3),), ((2, 5), (9, 9)))
    ((1, 5), (9, 9))
    """
    merged: list[tuple[int, int]] = []
    for low, high in sorted(one for ranges in sets for one in ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def intersection(one: Ranges, other: Ranges) -> Ranges:
    """The code points that are in both sets."""
    common = ((max(low, bottom), min(high, top)) for low, high in one for bottom, top in other)
    return union(tuple((low, high) for low, high in common if low <= high))


def difference(whole: Ranges, taken: Ranges) -> Ranges:
    """The code points of `whole` that are not in `taken`."""
    left: list[tuple[int, int]] = []
    for low, high in whole:
        for bottom, top in union(taken):
            if low < bottom <= high:
                left.append((low, bottom - 1))
            if bottom <= high and top >= low:
                low = top + 1
        if low <= high:
            left.append((low, high))
    return tuple(left)


@dataclass(frozen=True, eq=False)
class Language:
    """A term; equal terms of one Languages are one object."""

    kind: str
    parts: tuple[Language, ...] = ()
    ranges: Ranges = ()
    low: int = 0
    high: int | None = None
    has_empty: bool = False
    """Whether the empty string belongs to it."""
    number: int = 0


@dataclass
class Languages:
    """Makes and simplifies terms, and counts the steps of what is made from them."""

    steps: int = 0
    _terms: dict[tuple[object, ...], Language] = field(default_factory=dict)
    _derived: dict[tuple[Language, int], Language] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nothing = self._term("nothing")
        self.empty = self._term("empty", has_empty=True)
        self.anything = self._term("anything", has_empty=True)

    def _term(
        self,
        kind: str,
        parts: tuple[Language, ...] = (),
        *,
        ranges: Ranges = (),
        bounds: tuple[int, int | None] = (0, None),
        has_empty: bool = False,
    ) -> Language:
        self.steps += 1 + len(parts)
        if self.steps > MAX_STEPS:
            raise TooLarge(f"it takes more than {MAX_STEPS} steps")
        key = (kind, parts, ranges, bounds)
        if key not in self._terms:
            number = len(self._terms)
            self._terms[key] = Language(kind, parts, ranges, *bounds, has_empty, number)
        return self._terms[key]

    def chars(self, ranges: Ranges) -> Language:
        """One character of `ranges`."""
        inside = intersection(ranges, EVERY)
        return self._term("chars", ranges=inside) if inside else self.nothing

    def sequence(self, *parts: Language) -> Language:
        flat: list[Language] = []
        for part in parts:
            flat.extend(part.parts if part.kind == "sequence" else [part])
        if self.nothing in flat:
            return self.nothing
        flat = [part for part in flat if part is not self.empty]
        if len(flat) < 2:
            return flat[0] if flat else self.empty
        return self._term("sequence", tuple(flat), has_empty=all(p.has_empty for p in flat))

    def either(self, *parts: Language) -> Language:
        flat = self._flat("either", parts, without=self.nothing)
        if self.anything in flat:
            return self.anything
        if len(flat) < 2:
            return flat[0] if flat else self.nothing
        return self._term("either", flat, has_empty=any(p.has_empty for p in flat))

    def both(self, *parts: Language) -> Language:
        flat = self._flat("both", parts, without=self.anything)
        if self.nothing in flat:
            return self.nothing
        if self.empty in flat:
            return self.empty if all(p.has_empty for p in flat) else self.nothing
        if len(flat) < 2:
            return flat[0] if flat else self.anything
        return self._term("both", flat, has_empty=all(p.has_empty for p in flat))

    def _flat(
        self, kind: str, parts: Iterable[Language], without: Language
    ) -> tuple[Language, ...]:
        flat: set[Language] = set()
        for part in parts:
            flat.update(part.parts if part.kind == kind else [part])
        return tuple(sorted(flat - {without}, key=lambda one: one.number))

    def all_but(self, part: Language) -> Language:
        if part.kind == "all_but":
            return part.parts[0]
        if part is self.nothing:
            return self.anything
        if part is self.anything:
            return self.nothing
        return self._term("all_but", (part,), has_empty=not part.has_empty)

    def repeat(self, part: Language, low: int, high: int | None) -> Language:
        """`part`, `low` to `high` times; None: without a limit."""
        if part is self.nothing or part is self.empty or high == 0:
            return self.empty if low == 0 or part is self.empty else self.nothing
        if (low, high) == (1, 1):
            return part
        if part.has_empty:
            low = 0
        return self._term("repeat", (part,), bounds=(low, high), has_empty=low == 0)

    def after(self, term: Language, char: int) -> Language:
        """The derivative: what may follow `char` in the words of `term` that begin with it."""
        key = (term, char)
        if key not in self._derived:
            self._derived[key] = self._after(term, char)
        return self._derived[key]

    def _after(self, term: Language, char: int) -> Language:
        match term.kind:
            case "anything":
                return term
            case "chars":
                inside = any(low <= char <= high for low, high in term.ranges)
                return self.empty if inside else self.nothing
            case "either":
                return self.either(*(self.after(part, char) for part in term.parts))
            case "both":
                return self.both(*(self.after(part, char) for part in term.parts))
            case "all_but":
                return self.all_but(self.after(term.parts[0], char))
            case "sequence":
                return self._after_sequence(term.parts, char)
            case "repeat":
                part, high = term.parts[0], term.high
                rest = self.repeat(part, max(term.low - 1, 0), None if high is None else high - 1)
                return self.sequence(self.after(part, char), rest)
        return self.nothing

    def _after_sequence(self, parts: Sequence[Language], char: int) -> Language:
        choices = []
        for i, part in enumerate(parts):
            choices.append(self.sequence(self.after(part, char), *parts[i + 1 :]))
            if not part.has_empty:
                break
        return self.either(*choices)

    # ---- automaton -------------------------------------------------------------------------------

    def automaton(self, term: Language) -> Automaton:
        """What accepts the words of `term`. Raises TooLarge."""
        classes = self._classes()
        found: dict[Language, int] = {term: 0}
        moves: list[dict[int, list[Ranges]]] = []
        for state in (pending := [term]):
            onward: dict[int, list[Ranges]] = {}
            for ranges in classes:
                following = self.after(state, ranges[0][0])
                if following is self.nothing:
                    continue
                if following not in found:
                    found[following] = len(found)
                    pending.append(following)
                onward.setdefault(found[following], []).append(ranges)
            moves.append(onward)
            if len(found) > MAX_STATES:
                raise TooLarge(f"it needs more than {MAX_STATES} states")
        accepts = [state.has_empty for state in pending]
        states = _trimmed(accepts, [{to: union(*r) for to, r in m.items()} for m in moves])
        made = Automaton(states, self.steps)
        if made.size > MAX_SIZE:
            raise TooLarge(f"it needs more than {MAX_SIZE} ranges of characters")
        return made

    def _classes(self) -> list[Ranges]:
        """EVERY, split into sets of characters that no term tells apart."""
        sets = [term.ranges for term in self._terms.values() if term.kind == "chars"]
        edges = sorted(
            {edge for one in (EVERY, *sets) for low, high in one for edge in (low, high + 1)}
        )
        apart: dict[tuple[bool, ...], list[tuple[int, int]]] = {}
        for low, after in zip(edges, edges[1:], strict=False):
            if intersection(((low, low),), EVERY):
                seen = tuple(bool(intersection(((low, low),), one)) for one in sets)
                apart.setdefault(seen, []).append((low, after - 1))
        return [union(tuple(ranges)) for ranges in apart.values()]


def _trimmed(accepts: Sequence[bool], moves: Sequence[dict[int, Ranges]]) -> tuple[State, ...]:
    """The states that lead to an accepting one, numbered anew."""
    into: dict[int, set[int]] = {}
    for i, onward in enumerate(moves):
        for to in onward:
            into.setdefault(to, set()).add(i)
    alive = {i for i, does in enumerate(accepts) if does}
    for i in (pending := list(alive)):
        for before in into.get(i, ()):
            if before not in alive:
                alive.add(before)
                pending.append(before)
    if 0 not in alive:
        return ()
    number = {old: new for new, old in enumerate(sorted(alive))}
    return tuple(
        State(
            accepts[old],
            tuple((ranges, number[to]) for to, ranges in moves[old].items() if to in alive),
        )
        for old in number
    )
