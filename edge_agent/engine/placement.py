"""Which free slot a request gets: the one whose KV cache holds most of its prompt.

Why it exists: a chat's next turn is answered sooner in the slot that answered the turn before.
Flows in: work and the free slots. Flows out: the work in a slot whose KV cache is cut back to the
reusable tokens. Only tokens that the same adapter computed are reusable. A chat that is scored
begins with an empty cache, so that its score does not depend on earlier requests. Not here: how
many tokens agree (prefix_cache.py), when a slot is free (scheduler.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from edge_agent.engine.prefix_cache import common_prefix, reusable
from edge_agent.engine.scoring import Reading
from edge_agent.engine.slots import Request, Slot, Work
from edge_agent.errors import ContextExceeded
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model
from edge_agent.prompt.encoding import encode
from edge_agent.prompt.prompt_builder import PromptBuilder

Offer = tuple[int, list[int], Slot]
"""Number of reusable tokens, the prompt's ids (with the slot's own ids where the text is the same),
the slot."""


class Placement:
    """Places work in the slots of one context."""

    def __init__(self, model: Model, context: Context, prompts: PromptBuilder) -> None:
        self._vocabulary = model.vocabulary
        self._n_swa = model.n_swa
        self._context = context
        self._prompts = prompts

    def place(self, work: Work, free: Sequence[Slot]) -> None:
        """Start `work` in one of the slots `free`, of which there must be at least one.

        Raises ContextExceeded when a prompt leaves no room for an answer.
        """
        if isinstance(work, Request):
            best, ids, slot = self._best_offer(work, free)
            self._check_length(ids)
            work.prompt_ids = ids
        else:
            best, slot = 0, _cheapest(free)
        self.begin(slot, work, best)

    def begin(self, slot: Slot, work: Work, reuse: int) -> None:
        """Start `work` in `slot` and keep the first `reuse` positions of the slot's cache."""
        if reuse < len(slot.ids) and not self._context.truncate(slot.index, reuse):
            reuse = 0
            self._context.truncate(slot.index, 0)
        slot.begin(work, reuse, time.monotonic())

    def go_on(self, slot: Slot, reading: Reading) -> None:
        """Start the reading's next sequence in the slot that has read the previous one."""
        common = reading.reusable(slot.ids)
        first = self._context.first_position(slot.index)
        n_prompt = len(reading.prompt_ids)
        self.begin(slot, reading, reusable(common, n_prompt, first, self._n_swa, len(slot.ids)))
        reading.at = len(slot.ids)

    def _best_offer(self, request: Request, free: Sequence[Slot]) -> Offer:
        plain = encode(request.parts, [], self._vocabulary, ())
        offers = [self._offer(request, slot, plain) for slot in free]
        best = max(offers, key=lambda offer: (offer[0], -offer[2].last_used))
        if 2 * best[0] >= len(best[2].ids):
            return best
        # Less than half of that slot's conversation would be kept, so take the cheapest slot.
        slot = _cheapest(free)
        return next(offer for offer in offers if offer[2] is slot)

    def _offer(self, request: Request, slot: Slot, plain: list[int]) -> Offer:
        """What `slot` can reuse of the request's prompt. `plain`: the ids for an empty slot."""
        known = slot.ids if slot.key == request.key else []
        if not request.generate.cache_prompt or known[:1] != plain[:1]:
            return 0, plain, slot
        ids = encode(request.parts, known, self._vocabulary, self._prompts.control_ids)
        common = common_prefix(ids, known)
        first = self._context.first_position(slot.index)
        return reusable(common, len(ids), first, self._n_swa, len(known)), ids, slot

    def _check_length(self, ids: Sequence[int]) -> None:
        if len(ids) >= self._context.n_ctx:
            raise ContextExceeded(
                f"the prompt has {len(ids)} tokens",
                f"a slot holds {self._context.n_ctx}, one of them must be left for the answer",
                "shorten the prompt, or start the daemon with a larger --ctx",
            )


def _cheapest(free: Sequence[Slot]) -> Slot:
    """An empty slot, or else the one that was used least recently."""
    return min(free, key=lambda slot: (len(slot.ids) > 0, slot.last_used))
