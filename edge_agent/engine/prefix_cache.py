"""How many tokens of a prompt are in a slot's KV cache already.

Why it exists: a chat's next turn repeats everything before it, and only the new part should be
prefilled. Flows in: the ids of a prompt and of a slot, and what the cache can do. Flows out: the
number of reusable tokens. The module is pure. Not here: the ids of a prompt (prompt/encoding.py
takes over the slot's own ids where the text is the same), the KV cache itself (llama/context.py).
"""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of equal leading ids.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    n = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        n += 1
    return n


def reusable(common: int, n_prompt: int, first_position: int, n_swa: int, n_known: int) -> int:
    """How many cached positions may stay, given that `common` leading ids agree.

    `n_prompt` and `n_known` are the numbers of ids of the prompt and of the cache, `first_position`
    the smallest position in the cache (-1: empty), `n_swa` the sliding window in tokens (0: none).

    At least one prompt token must be decoded to get logits. If the cache is cut back to position p
    (p < n_known), its sliding-window layers must still hold the n_swa tokens before p: that is,
    first_position <= max(0, p - n_swa). llama.cpp cuts without an error when they do not, so then
    nothing is reused.

    >>> reusable(common=5, n_prompt=5, first_position=0, n_swa=0, n_known=9)
    4
    """
    position = min(common, n_prompt - 1)
    if position <= 0 or first_position < 0:
        return 0
    if position == n_known:
        return position
    return position if first_position <= max(0, position - n_swa) else 0
