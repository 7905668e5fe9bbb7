"""Text and control tokens to ids, so that no text can forge a control token.

Flows in: parts, each a token id or plain text, and a tokenizer. Flows out: ids. Plain text between
two control tokens is tokenized as one string with special parsing off. Not here: which parts a chat
has (chat_template.py), which ids a cache still holds (engine/prefix_cache.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

Part = int | str
"""A token id that is fixed (control, BOS), or plain text to be tokenized as one string."""


class Pieces(Protocol):
    """What is needed of a vocabulary."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...


def encode(
    parts: Sequence[Part], known: Sequence[int], vocabulary: Pieces, control_ids: Collection[int]
) -> list[int]:
    """Ids of a prompt, spelled as `known` spells it for as long as the text agrees."""
    ends = {*control_ids, *(part for part in parts if isinstance(part, int))}
    ids: list[int] = []
    at = 0
    aligned = bool(known)
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
            aligned = aligned and at < len(known) and known[at] == part
            at += 1
            continue
        spelled = _same_text(part, known, at, vocabulary, ends) if aligned else None
        if spelled is None:
            aligned = False
            ids += vocabulary.tokenize(part, add_special=False, parse_special=False)
        else:
            ids += spelled
            at += len(spelled)
    return ids


def _same_text(
    text: str,
    known: Sequence[int],
    at: int,
    vocabulary: Pieces,
    ends: Collection[int],
) -> list[int] | None:
    """known[at:] up to the next of `ends`, if that is exactly `text`."""
    raw = text.encode("utf-8", "surrogatepass")
    end, length = at, 0
    while end < len(known) and length < len(raw) and known[end] not in ends:
        piece = vocabulary.piece(known[end])
        if raw[length : length + len(piece)] != piece:
            return None
        length += len(piece)
        end += 1
    whole = end == len(known) or known[end] in ends
    return list(known[at:end]) if length == len(raw) and whole else None
