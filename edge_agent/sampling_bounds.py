"""What a request may ask of the sampler: default, bounds and meaning of each number, once.

Flows in: the defaults of records.Sampling. Flows out: one `Setting` per number, from which the HTTP
bodies (server/sampling_fields.py), the flags of `run` and the chat's /set take theirs. The ranges
are wider than OpenAI's, because llama-server has none at all. Not here: drawing tokens
(llama/sampling.py).
"""

from __future__ import annotations

from typing import Any

from edge_agent.records import Sampling
from edge_agent.setting import Setting

MAX_TOKENS = 131_072
"""The longest context of the supported families; a slot's own context ends a generation earlier."""
MAX_PENALTY_WINDOW = 8192
"""llama.cpp allocates a ring buffer of this many ids, so it must be bounded."""
DEFAULT_MAX_TOKENS = 256

_DEFAULT = Sampling()


def _setting(name: str, description: str, **bounds: Any) -> Setting:
    default = getattr(_DEFAULT, name, DEFAULT_MAX_TOKENS)
    kind = "number" if isinstance(default, float) else "integer"
    return Setting(name, {"type": kind, "description": description, "default": default, **bounds})


SAMPLING_BOUNDS = {
    one.name: one
    for one in (
        _setting("temperature", "0 takes the likeliest token.", minimum=0, maximum=1000),
        _setting("top_k", "Likeliest tokens kept; 0 or -1 all.", minimum=-1, maximum=1_000_000),
        _setting("top_p", "Mass of likely tokens kept.", minimum=0, maximum=1),
        _setting(
            "typical_p",
            "Mass of tokens of typical information kept; 1 is off.",
            exclusiveMinimum=0,
            maximum=1,
        ),
        _setting("min_p", "Least share of the likeliest token's mass.", minimum=0, maximum=1),
        _setting(
            "repeat_penalty",
            "Over generated tokens only; 1 is off.",
            exclusiveMinimum=0,
            maximum=10,
        ),
        _setting(
            "repeat_last_n",
            "Window of the penalties; -1 the largest.",
            minimum=-1,
            maximum=MAX_PENALTY_WINDOW,
        ),
        _setting("presence_penalty", "Once for a token that occurred.", minimum=-100, maximum=100),
        _setting("frequency_penalty", "Each time a token occurred.", minimum=-100, maximum=100),
        _setting(
            "seed",
            "Same seed, same draw; -1 is random; taken modulo 2**32 - 1.",
            minimum=-1,
            maximum=2**64 - 1,
        ),
        _setting(
            "max_tokens",
            "Longest answer; -1 until the context is full, 0 reads the prompt only.",
            minimum=-1,
            maximum=2**31 - 1,
        ),
    )
}
