"""The patterns of JSON Schema (ECMA-262 regular expressions) as languages for automaton.py.

Why it exists: zod, pydantic and .NET write `pattern`s into their schemas, and an answer must match
them. Flows in: a pattern's text. Flows out: the language of all strings in which it finds a match;
or PatternError with the place. Supported: literals, `.`, classes, escapes of characters and of the
classes d, w, s and their opposites, groups, alternatives, quantifiers (also lazy ones), `^`, `$`
and lookahead outside of repetitions. Not supported: backreferences, which are not regular; word
boundaries, lookbehind, Unicode properties, flags. Characters are code points, as with the flag u.
Not here: automata, the schema around it.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.prompt.automaton import EVERY, Language, Languages, Ranges, difference, union

MAX_PATTERN_CHARS = 1024
MAX_REPEAT = 512
MAX_GROUPS_DEEP = 24

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_EVERYTHING: Ranges = ((0, 0x10FFFF),)
_SETS = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_SETS |= {name.upper(): difference(_EVERYTHING, ranges) for name, ranges in _SETS.items()}
_LETTERS = {"0": 0, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_UNSUPPORTED = {
    **dict.fromkeys("bB", "word boundaries"),
    **dict.fromkeys("k123456789", "backreferences"),
    **dict.fromkeys("pP", "Unicode properties"),
}
SUPPORTED = (
    "supported: literals, ., [classes], \\d \\w \\s, groups, |, ? * + {m,n}, ^ $,"
    " and lookahead outside of repetitions"
)


class PatternError(Exception):
    """`place` counts characters from 1."""

    def __init__(self, why: str, place: int) -> None:
        super().__init__(f"{why} at character {place}")


@dataclass(frozen=True)
class _Chars:
    ranges: Ranges


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Either:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    low: int
    high: int | None
    place: int


@dataclass(frozen=True)
class _Edge:
    """`^` or `$`."""

    is_start: bool
    place: int


@dataclass(frozen=True)
class _Lookahead:
    part: _Node
    is_negative: bool


_Node = _Chars | _Sequence | _Either | _Repeat | _Edge | _Lookahead


def language(languages: Languages, pattern: str) -> Language:
    """All strings in which `pattern` matches somewhere. Raises PatternError, TooLarge."""
    tree = _Reader(pattern).tree()
    maker = _Maker(languages)
    anywhere = languages.chars(EVERY)
    return languages.either(
        maker.before(tree, languages.anything, at_start=True),
        languages.sequence(
            languages.repeat(anywhere, 1, None),
            maker.before(tree, languages.anything, at_start=False),
        ),
    )


# ---- syntax --------------------------------------------------------------------------------------


class _Reader:
    """Recursive descent over one pattern."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN_CHARS:
            raise PatternError(f"more than {MAX_PATTERN_CHARS} characters", MAX_PATTERN_CHARS + 1)
        self._text = text
        self._at = 0
        self._depth = 0

    def tree(self) -> _Node:
        node = self._alternatives()
        if self._at < len(self._text):
            raise self._error("an unmatched )")
        return node

    def _error(self, why: str, at: int | None = None) -> PatternError:
        return PatternError(why, (self._at if at is None else at) + 1)

    def _take(self, text: str) -> bool:
        """Whether `text` comes next; then it is passed."""
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _next(self) -> str:
        if self._at == len(self._text):
            raise self._error("the pattern ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _alternatives(self) -> _Node:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else _Either(tuple(parts))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._quantified())
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _quantified(self) -> _Node:
        place = self._at
        node = self._atom()
        bounds = self._quantifier()
        if bounds is None:
            return node
        if isinstance(node, (_Edge, _Lookahead)):
            raise self._error("a quantifier after an assertion", place)
        self._take("?")  # lazy: the same strings match
        if self._quantifier() is not None:
            raise self._error("a second quantifier", self._at - 1)
        return _Repeat(node, *bounds, place + 1)

    def _quantifier(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        start = self._at
        end = self._text.find("}", start)
        if end < 0 or not self._take("{"):
            return None
        low, comma, high = self._text[start + 1 : end].partition(",")
        numbers = [number for number in (low, high) if number]
        if not low or not all(n.isascii() and n.isdigit() for n in numbers):
            self._at = start
            return None
        if any(len(n) > 6 or int(n) > MAX_REPEAT for n in numbers):
            raise self._error(f"a repetition of more than {MAX_REPEAT}", start)
        self._at = end + 1
        least, most = int(low), int(high) if high else None if comma else int(low)
        if most is not None and least > most:
            raise self._error("a repetition whose bounds are out of order", start)
        return least, most

    def _atom(self) -> _Node:
        place = self._at
        char = self._next()
        if char == "(":
            return self._group(place)
        if char == "[":
            return _Chars(self._class(place))
        if char == "\\":
            return _Chars(self._escape(place))
        if char == ".":
            return _Chars(difference(_EVERYTHING, _LINE_ENDS))
        if char in "^$":
            return _Edge(char == "^", place + 1)
        if char in "*+?":
            raise self._error("a quantifier without anything before it", place)
        return _Chars(((ord(char), ord(char)),))

    def _group(self, place: int) -> _Node:
        self._depth += 1
        if self._depth > MAX_GROUPS_DEEP:
            raise self._error(f"groups nested deeper than {MAX_GROUPS_DEEP}", place)
        look = self._group_kind(place)
        inner = self._alternatives()
        if not self._take(")"):
            raise self._error("a group without its )", place)
        self._depth -= 1
        return inner if look is None else _Lookahead(inner, look)

    def _group_kind(self, place: int) -> bool | None:
        """None for a group; for a lookahead, whether it is negative."""
        if not self._take("?") or self._take(":"):
            return None
        for sign in "=!":
            if self._take(sign):
                return sign == "!"
        if self._take("<=") or self._take("<!"):
            raise self._error("lookbehind is not supported", place)
        end = self._text.find(">", self._at)
        if (self._take("<") or self._take("P<")) and end > 0:
            self._at = end + 1
            return None
        raise self._error("this kind of group is not supported", place)

    def _escape(self, place: int) -> Ranges:
        char = self._next()
        if char in _SETS:
            return _SETS[char]
        if char in _UNSUPPORTED:
            raise self._error(f"{_UNSUPPORTED[char]} are not supported", place)
        code = self._code(char, place)
        return ((code, code),)

    def _code(self, char: str, place: int) -> int:
        """The code point of an escape after its backslash and first character."""
        if char in _LETTERS:
            return _LETTERS[char]
        if char == "x":
            return self._hex(2, place)
        if char == "u":
            return self._unicode(place)
        if char == "c":
            return ord(self._next()) % 32
        if char.isascii() and char.isalnum():
            raise self._error(f"the escape \\{char} is not supported", place)
        return ord(char)

    def _unicode(self, place: int) -> int:
        if self._take("{"):
            end = self._text.find("}", self._at)
            code = self._hex(max(end - self._at, 1), place)
            self._at += 1
            return code
        code = self._hex(4, place)
        if 0xD800 <= code < 0xDC00 and self._take("\\u"):
            return 0x10000 + (code - 0xD800) * 0x400 + self._hex(4, place) - 0xDC00
        return code

    def _hex(self, digits: int, place: int) -> int:
        text = self._text[self._at : self._at + digits]
        self._at += digits
        if (
            len(text) != digits
            or digits > 8
            or not all(c in "0123456789abcdefABCDEF" for c in text)
        ):
            raise self._error("an escape without its hexadecimal digits", place)
        return min(int(text, 16), 0x10FFFF)

    def _class(self, place: int) -> Ranges:
        is_negated = self._take("^")
        members: list[Ranges] = []
        while not self._take("]"):
            if self._at == len(self._text):
                raise self._error("a class without its ]", place)
            at = self._at
            first = self._member()
            if self._text[self._at : self._at + 2] in ("-]", "-") or not self._take("-"):
                members.append(first)
                continue
            last = self._member()
            if _is_set(first) or _is_set(last):
                members += [first, last, ((0x2D, 0x2D),)]
                continue
            if first[0] > last[0]:
                raise self._error("a range whose ends are out of order", at)
            members.append(((first[0][0], last[0][1]),))
        ranges = union(*members)
        return difference(_EVERYTHING, ranges) if is_negated else ranges

    def _member(self) -> Ranges:
        place = self._at
        char = self._next()
        if char == "\\" and self._take("b"):
            return ((8, 8),)
        if char == "\\":
            return self._escape(place)
        return ((ord(char), ord(char)),)


def _is_set(ranges: Ranges) -> bool:
    return len(ranges) != 1 or ranges[0][0] != ranges[0][1]


# ---- meaning -------------------------------------------------------------------------------------


class _Maker:
    """Languages of trees. Each is made together with what follows it, because `$` and a lookahead
    limit all that follows."""

    def __init__(self, languages: Languages) -> None:
        self._languages = languages

    def before(self, node: _Node, rest: Language, at_start: bool) -> Language:
        """`node`, then `rest`, to the end of the string."""
        make = self._languages
        match node:
            case _Chars(ranges):
                return make.sequence(make.chars(ranges), rest)
            case _Either(parts):
                return make.either(*(self.before(part, rest, at_start) for part in parts))
            case _Sequence(parts):
                return self._sequence(parts, rest, at_start)
            case _Repeat():
                return self._repeat(node, rest, at_start)
            case _Edge(is_start=True):
                return rest if at_start else make.nothing
            case _Edge():
                return make.both(make.empty, rest)
            case _Lookahead(part, is_negative):
                ahead = self.before(part, make.anything, at_start)
                return make.both(make.all_but(ahead) if is_negative else ahead, rest)

    def _sequence(self, parts: tuple[_Node, ...], rest: Language, at_start: bool) -> Language:
        starts: list[bool] = []
        is_certain = True
        for part in parts:
            edge = _assertion(part, only_start=True)
            if edge is not None and not is_certain:
                raise PatternError("^ after what may be empty is not supported", edge)
            starts.append(at_start)
            if not _can_be_empty(part):
                at_start, is_certain = False, True
            elif _can_take(part) and at_start:
                at_start, is_certain = False, False
        for part, begins in zip(reversed(parts), reversed(starts), strict=True):
            rest = self.before(part, rest, begins)
        return rest

    def _repeat(self, node: _Repeat, rest: Language, at_start: bool) -> Language:
        make = self._languages
        if _assertion(node.part) is None:
            part = self.before(node.part, make.empty, at_start)
            return make.sequence(make.repeat(part, node.low, node.high), rest)
        if node.high != 1:
            raise PatternError("an assertion inside a repetition is not supported", node.place)
        once = self.before(node.part, rest, at_start)
        return once if node.low else make.either(once, rest)


def _inner(node: _Node) -> tuple[_Node, ...]:
    if isinstance(node, (_Sequence, _Either)):
        return node.parts
    return (node.part,) if isinstance(node, (_Repeat, _Lookahead)) else ()


def _assertion(node: _Node, only_start: bool = False) -> int | None:
    """The place of the first assertion inside `node`, with `only_start` of the first `^`."""
    if isinstance(node, _Edge) and (node.is_start or not only_start):
        return node.place
    if isinstance(node, _Lookahead) and not only_start:
        return 0
    return next(
        (at for one in _inner(node) if (at := _assertion(one, only_start)) is not None), None
    )


def _can_take(node: _Node) -> bool:
    """Whether a match of `node` can have characters."""
    if isinstance(node, (_Edge, _Lookahead)) or (isinstance(node, _Repeat) and node.high == 0):
        return False
    return isinstance(node, _Chars) or any(map(_can_take, _inner(node)))


def _can_be_empty(node: _Node) -> bool:
    match node:
        case _Chars():
            return False
        case _Repeat():
            return node.low == 0 or _can_be_empty(node.part)
        case _Either():
            return any(map(_can_be_empty, node.parts))
        case _Sequence():
            return all(map(_can_be_empty, node.parts))
    return True
