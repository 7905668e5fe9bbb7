"""A block of lines between three quotes, which is one entry of the chat.

Flows in: an entry. Flows out: whether it is a block, and its text. Not here: reading the lines of a
block from a terminal (chat_screen.py).
"""

from __future__ import annotations

QUOTES = '"""'


def is_quoted(text: str) -> bool:
    """Whether `text` is one block between three quotes. A line of two such blocks is none."""
    inner = text[len(QUOTES) : -len(QUOTES)]
    is_framed = len(text) >= 2 * len(QUOTES) and text.startswith(QUOTES) and text.endswith(QUOTES)
    return is_framed and ("\n" in inner or QUOTES not in inner)


def unquoted(text: str) -> str:
    """`text` without triple quotes around it, which let it span several lines."""
    return text[len(QUOTES) : -len(QUOTES)].strip("\n") if is_quoted(text) else text
