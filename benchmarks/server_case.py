"""One case of llama-server's tests: the requests, what the last answer must hold, and its checks.

Why it exists: server_cases_chat.py and server_cases_rest.py are tables of such cases. A path such
as "choices.0.message.content" leads into an answer's body. Not here: sending (server_cases.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ABSENT = object()


@dataclass(frozen=True)
class Ask:
    """One request. A header that is None is not sent, "{token}" in one is the server's token;
    `may_end_early`: no answer within `timeout_s` is as good as one."""

    path: str
    body: Any = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    timeout_s: float = 180.0
    may_end_early: bool = False
    verb: str = ""

    @property
    def names(self) -> set[str]:
        """Its members and headers, by which a refusal may name what it refuses."""
        sent = {name for name, value in self.headers.items() if value is not None}
        return {*(self.body if isinstance(self.body, dict) else ()), *sent}

    @property
    def method(self) -> str:
        return self.verb or ("GET" if self.body is None else "POST")


@dataclass(frozen=True)
class Reply:
    """`body` is JSON, or {"events", "text"} of a stream."""

    status: int
    headers: Mapping[str, str]
    body: Any

    def at(self, path: str) -> Any:
        """The value at a path, "" being the whole body; ABSENT where there is none."""
        head = {"status": self.status, "headers": self.headers}
        keys = path.split(".") if path else []
        value: Any = head if path.partition(".")[0] in head else self.body
        for key in keys:
            try:
                value = value[int(key)] if isinstance(value, list) else value[key]
            except (LookupError, TypeError, ValueError):
                return ABSENT
        return value

    def short(self) -> str:
        return f"{self.status} {str(self.body)[:160]}"


Step = Ask | list[Ask] | Callable[[list[Reply]], Ask]
Check = Callable[[Any], bool]
Compare = Callable[[list[Reply]], bool]


@dataclass(frozen=True)
class Case:
    """`wants` are literals or checks by path in the last reply; `compare` sees all of them."""

    file: str
    name: str
    steps: Sequence[Step]
    wants: Mapping[str, Any]
    compare: Compare | None = None

    def faults(self, replies: list[Reply]) -> Iterator[str]:
        """What is not as wanted, one sentence each."""
        *before, last = replies
        yield from (f"an earlier answer is {one.short()}" for one in before if one.status >= 400)
        for path, want in {"status": 200, **self.wants}.items():
            value = last.at(path)
            holds = want(value) if callable(want) else value == want
            if not holds:
                shown = "absent" if value is ABSENT else f"{value!r:.120}"
                hint = f" ({last.short()})" if path == "status" else ""
                wanted = getattr(want, "__name__", repr(want))
                yield f"{path} is {shown}, not {wanted}{hint}"
                return
        if self.compare and not self.compare(replies):
            yield f"the answers do not go together: {[reply.short() for reply in replies][-3:]}"


# ---- checks ------------------------------------------------------------------------------------


def named(text: str, check: Check) -> Check:
    """A check that is shown by this text when it fails."""
    check.__name__ = text
    return check


def matching(pattern: str) -> Check:
    found = re.compile(pattern, re.DOTALL)
    return named(f"text like {pattern}", lambda v: isinstance(v, str) and bool(found.search(v)))


def between(low: float, high: float) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, int | float) and low <= value <= high

    return named(f"from {low} to {high}", check)


def of_length(low: int, high: int | None = None) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, list | str) and low <= len(value) <= (high or len(value))

    return named(f"of length {low} to {high or 'any'}", check)


def each(check: Check) -> Check:
    def all_of(value: Any) -> bool:
        return isinstance(value, list) and all(map(check, value))

    return named(f"each {getattr(check, '__name__', '')}", all_of)


def is_a(kind: type) -> Check:
    return named(f"a {kind.__name__}", lambda value: type(value) is kind)


def leading_to(path: str, check: Any) -> Check:
    """A check of what lies at `path` in a value."""

    def inner(value: Any) -> bool:
        found = Reply(0, {}, value).at(path)
        return bool(check(found)) if callable(check) else found == check

    return named(f"{path} {getattr(check, '__name__', check)}", inner)


GIVEN = named("given", lambda value: value is not ABSENT)
NOT_GIVEN = named("absent", lambda value: value is ABSENT)
TEXT = of_length(1)
FINGERPRINT = matching("^b")
REFUSED = {"status": between(400, 501), "error.message": TEXT}
BAD = {"status": 400, "error.message": TEXT}
