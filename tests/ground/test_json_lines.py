"""A document of ours is one line to every reader, and loses nothing."""

from __future__ import annotations

import json
import sys

import msgspec

from edge_agent.json_lines import dumps, escaped, numbered_lines

ENDS = [c for c in map(chr, range(sys.maxunicode + 1)) if len(f"a{c}b".splitlines()) > 1]
"""Every character at which str.splitlines ends a line: \\n, \\v, \\f, \\r, \\x1c-\\x1e, ..."""


def test_each_character_that_ends_a_line_is_escaped_and_comes_back() -> None:
    assert len(ENDS) == 10
    for value in ({"text": f"a{end}b", f"k{end}": [end, "é क 🙂"]} for end in ENDS):
        for line in (dumps(value), escaped(msgspec.json.encode(value)).decode()):
            assert line.splitlines() == [line]
            assert json.loads(line) == value
            assert "é क 🙂" in line, "letters stay readable"


def test_lines_end_at_newlines_alone_and_a_byte_order_mark_is_no_text() -> None:
    text = "\ufeff" + "".join(f'["{end}"]\n' for end in ENDS if end >= "\x85") + "\n[]\r\n[1]"
    lines = numbered_lines(text)
    assert [number for number, _ in lines] == [1, 2, 3, 5, 6]
    assert [json.loads(line) for _, line in lines] == [["\x85"], ["\u2028"], ["\u2029"], [], [1]]
