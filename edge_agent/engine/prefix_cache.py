"""Which tokens of a prompt are in a slot's KV cache already.

Why it exists: a chat's next turn repeats everything before it; only what is new should be
prefilled. The same text can be spelled by other ids than the ones the model generated (2 of 12
replies re-tokenize differently), so a prompt is matched by text between control tokens and takes
over the slot's own ids where the text is the same. Flows in: a prompt as parts (control ids and
plain text), a slot's ids. Flows out: the prompt's ids, and how many of them are reusable. Pure;
the KV cache itself is context.py's.
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


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of equal leading ids."""
    n = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        n += 1
    return n


def reusable(common: int, n_prompt: int, first_position: int, n_swa: int, n_known: int) -> int:
    """How many cached positions may stay, given that `common` ids agree.

    At least one prompt token must be decoded to get logits. Where the cache must be cut back
    (common < n_known) its sliding-window layers must still hold everything the next token looks at:
    first_position <= max(0, p - n_swa). llama.cpp cuts without a word when they do not.
    """
    position = min(common, n_prompt - 1)
    if position <= 0 or first_position < 0:
        return 0
    if position == n_known:
        return position
    return position if first_position <= max(0, position - n_swa) else 0
