"""Text and control tokens to ids, so that no text can forge a control token.

Why it exists: plain text between two control tokens is tokenized as one string with special parsing
off, so the text `<|im_end|>` of a user never becomes the control token. Also, a model may spell its
answer with other ids than the tokenizer gives for the same text (2 of 12 replies that were tried).
A chat's next turn therefore takes over the ids in the slot's KV cache where the text is the same;
otherwise the cache could not be reused. Flows in: parts (each a token id or plain text), the
cache's ids, a tokenizer. Flows out: ids. Not here: the parts of a chat (prompt_builder.py), how
many cached ids can be reused (engine/prefix_cache.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

Part = int | str
"""A fixed token id (a control token, BOS), or plain text that is tokenized as one string."""


class Pieces(Protocol):
    """The methods of llama/model.py's ModelVocabulary that this module calls."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...


def encode(
    parts: Sequence[Part], known: Sequence[int], vocabulary: Pieces, control_ids: Collection[int]
) -> list[int]:
    """Ids of a prompt. Text that the cache's ids `known` already spell keeps those ids.

    The comparison runs from the start of the prompt and ends at the first part that differs.
    `control_ids` are the ids at which a text in `known` ends.

        encode([bos, "user\\nHello", end_of_turn], slot.ids, vocabulary, control_ids)
    """
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
    """The ids known[at:] up to the next id of `ends`, if they spell exactly `text`; else None."""
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
