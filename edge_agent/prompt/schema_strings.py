"""What a schema of the type string allows: lengths, patterns and formats.

Flows in: a place of the type string. Flows out: a String node, whose automaton accepts the strings
that satisfy all keywords at once; or SchemaError. A format is a pattern of this module, narrower
than its standard (a URI is http or https, a year is 1000 to 2999), so that a small model's answer
ends. Beside a pattern, a format that is not known here is ignored: the pattern says more. Not here:
the syntax of patterns (ecma_pattern.py), the grammar (grammar.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from edge_agent.prompt.automaton import EVERY, Automaton, Languages, TooLarge
from edge_agent.prompt.ecma_pattern import SUPPORTED, PatternError, language
from edge_agent.prompt.schema_nodes import String
from edge_agent.prompt.schema_place import Place, check_text, refuse, shown

MAX_STRING_CHARS = 512

_DATE = (
    r"(?:[12]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
    r"|(?:[12]\d(?:0[48]|[2468][048]|[13579][26])|(?:12|16|20|24|28)00)-02-29)"
)
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d"
_ZONE = rf"(?:Z|[-+]{_CLOCK})"
_HEX = "[0-9a-fA-F]"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,22}[a-zA-Z0-9])?"
_TOP_LABEL = "[a-zA-Z]{2,12}"
_HOST = rf"(?:{_LABEL}\.){{1,3}}{_TOP_LABEL}"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_GROUP = f"{_HEX}{{1,4}}"
_IPV6 = "|".join(
    [f"(?:{_GROUP}:){{7}}{_GROUP}", f"(?:{_GROUP}:){{1,7}}:", f":(?::{_GROUP}){{1,7}}", "::"]
    + [f"(?:{_GROUP}:){{1,{7 - i}}}(?::{_GROUP}){{1,{i}}}" for i in range(1, 7)]
)
_URI_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})"
_URI = rf"https?://{_HOST}(?::[1-9]\d{{1,3}})?(?:/{_URI_CHAR}{{0,64}}(?:\?{_URI_CHAR}{{0,32}})?)?"
_DURATION_DATE = r"(?:\d{1,4}Y(?:\d{1,2}M(?:\d{1,2}D)?)?|\d{1,2}M(?:\d{1,2}D)?|\d{1,3}D)"
_DURATION_TIME = r"T(?:\d{1,3}H(?:\d{1,2}M(?:\d{1,2}S)?)?|\d{1,3}M(?:\d{1,2}S)?|\d{1,4}S)"


def _uuid(version: str) -> str:
    """RFC 9562. Clients check version and variant too, also when they send the format alone."""
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}"


_LOCAL_TIME = rf"{_CLOCK}:[0-5]\d(?:\.\d{{1,6}})?"
_EMAIL = rf"[a-zA-Z0-9_+-]{{1,24}}(?:\.[a-zA-Z0-9_+-]{{1,24}}){{0,2}}@{_HOST}"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_BASE64 = r"(?:[A-Za-z0-9+/]{4}){0,63}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
FORMATS: dict[str, str] = {
    "date": _DATE,
    "time": f"{_LOCAL_TIME}{_ZONE}",
    "date-time": f"{_DATE}T{_LOCAL_TIME}{_ZONE}",
    "partial-time": _LOCAL_TIME,
    "partial-date-time": f"{_DATE}T{_LOCAL_TIME}",
    "duration": f"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|\\d{{1,3}}W)",
    "uuid": _uuid("[1-8]"),
    **{f"uuid{version}": _uuid(str(version)) for version in range(1, 9)},
    **dict.fromkeys(("email", "idn-email"), _EMAIL),
    **dict.fromkeys(("hostname", "idn-hostname"), _HOST),
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    **dict.fromkeys(("ip", "ipvanyaddress"), f"{_IPV4}|{_IPV6}"),
    **dict.fromkeys(("uri", "url", "uri-reference", "iri", "iri-reference"), _URI),
    **dict.fromkeys(("byte", "base64"), _BASE64),
    "base64url": r"(?:[A-Za-z0-9_-]{4}){0,63}(?:[A-Za-z0-9_-]{2,3})?",
    "int32": r"-?(?:0|[1-9]\d{0,8})",
    "int64": r"-?(?:0|[1-9]\d{0,17})",
    "uint32": r"0|[1-9]\d{0,8}",
    "uint64": r"0|[1-9]\d{0,18}",
}
"""Patterns of whole strings of at most MAX_STRING_CHARS. Dates and times are those of RFC 3339."""
FREE_FORMATS = ("binary", "html", "markdown", "multiline", "password", "path", "text")
"""Formats that leave any text valid."""


def string_node(place: Place) -> String:
    """The node of a place of the type string. Raises SchemaError."""
    layout, patterns = _layout(place), _patterns(place)
    low = place.count("minLength", MAX_STRING_CHARS) or 0
    high = _most(place, is_short=layout in FORMATS)
    if high is not None and low > high:
        refuse(place.at("minLength"), f"{low} is more than maxLength {high}")
    if layout is not None and layout in FORMATS:
        patterns = (*patterns, f"^(?:{FORMATS[layout]})$")
    if not patterns:
        return String(low, high)
    keyword = "pattern" if "pattern" in place.keywords else "format"
    try:
        accepted = automaton(patterns, low, high)
    except PatternError as error:
        refuse(place.at(keyword), f"{shown(patterns[0])}: {error}", SUPPORTED)
    except TooLarge as error:
        hint = "shorten its repetitions {m,n} or the length, or leave it out"
        if layout is not None and keyword == "pattern":
            hint = f"leave the pattern out: format {layout!r} is supported without it"
        refuse(place.at(keyword), f"{shown(patterns[0])} is too large: {error}", hint)
    if not accepted.states:
        refuse(place.at(keyword), "no string satisfies it and its neighbours", "leave one out")
    return String(automaton=accepted)


def _patterns(place: Place) -> tuple[str, ...]:
    """The patterns of a place; a tuple where several subschemas were merged."""
    given: Any = place.schema.get("pattern", ())
    patterns = given if isinstance(given, tuple) else (given,)
    for pattern in patterns:
        check_text(pattern, place.at("pattern"), 10**9)
    return patterns


def _layout(place: Place) -> str | None:
    """The format where it limits the string. Raises SchemaError for one that is not known."""
    layout: Any = place.schema.get("format")
    if isinstance(layout, str) and layout in FORMATS:
        return layout
    if layout is None or layout in FREE_FORMATS or "pattern" in place.keywords:
        return None
    refuse(
        place.at("format"),
        f"format {shown(layout)} is not supported",
        f"supported formats: {', '.join([*FORMATS, *FREE_FORMATS])}; or leave it out",
    )


def _most(place: Place, is_short: bool) -> int | None:
    """maxLength. A format's strings are short: a larger maxLength says nothing about them."""
    most = place.schema.get("maxLength")
    if is_short and type(most) is int and most >= MAX_STRING_CHARS:
        return None
    return place.count("maxLength", MAX_STRING_CHARS)


@lru_cache(maxsize=64)
def automaton(patterns: tuple[str, ...], low: int, high: int | None) -> Automaton:
    """What accepts the strings of `low` to `high` characters that match all patterns."""
    languages = Languages()
    terms = [language(languages, pattern) for pattern in patterns]
    if low or high is not None:
        terms.append(languages.repeat(languages.chars(EVERY), low, high))
    return languages.automaton(languages.both(*terms))
