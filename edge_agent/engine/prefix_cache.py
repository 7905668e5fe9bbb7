"""Which tokens of a prompt are in a slot's KV cache already.

Why it exists: a chat's next turn repeats everything before it; only what is new should be
prefilled. The same text can be spelled by other ids than the ones the model generated (2 of 12
replies re-tokenize differently), so a prompt is matched by text between control tokens and takes
over the slot's own ids where the text is the same. Flows in: a prompt as parts (control ids and
plain text), a slot's ids. Flows out: the prompt's ids, and how many of them are reusable. Pure;
the KV cache itself is context.py's.
"""

from __future__ import annotations

from collections.abc import Sequence


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
