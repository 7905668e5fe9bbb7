"""JSON documents one a line, which every reader splits where we did.

Why it exists: JSON escapes the control characters below U+0020, but not U+0085, U+2028 and U+2029,
and Python's `str.splitlines` ends a line at them too. So do its users: httpx's `iter_lines`, the
official ollama client, SSE readers built on either. Flows in: values, or JSON text. Flows out: JSON
that holds none of the three, and the lines of a file as \\n alone separates them. Not here: which
documents there are.

>>> dumps({"text": "one\\u2028two क"})
'{"text": "one\\\\u2028two क"}'
>>> numbered_lines('{"a": "\\x85"}\\n\\n{}\\n')
[(1, '{"a": "\\x85"}'), (3, '{}')]
"""

from __future__ import annotations

import json
from typing import Any

_ESCAPES = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TABLE = str.maketrans(_ESCAPES)
_BYTES = [(character.encode(), escape.encode()) for character, escape in _ESCAPES.items()]
_BYTE_ORDER_MARK = "\ufeff"


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` that keeps letters as they are and escapes what could end a line.

    `indent` makes lines of its own. Raises what json.dumps raises.
    """
    return json.dumps(value, ensure_ascii=False, **options).translate(_TABLE)


def escaped(encoded: bytes) -> bytes:
    """UTF-8 JSON with the three characters escaped: they can only stand inside its strings."""
    for character, escape in _BYTES:
        encoded = encoded.replace(character, escape)
    return encoded


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank, without a byte order mark."""
    lines = text.removeprefix(_BYTE_ORDER_MARK).split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
