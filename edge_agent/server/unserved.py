"""Members that other servers obey and this daemon does not: each is refused by its name.

Why it exists: a member that is ignored gives another answer than the one that was asked for. A
value that asks for nothing (null, the default of the other server) passes, because many clients
send every member they know. Flows in: the members of a request. Flows out: a validation error, or
nothing. What only concerns speed or bookkeeping (user, metadata, n_keep, num_thread) is not here,
because no answer depends on it; docs/http.md lists it. Source: OpenAI's API reference,
llama-server's README and server-schema.cpp, Ollama's docs/api.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.records import Sampling
from edge_agent.server.sampling_fields import refused


class Unserved(NamedTuple):
    """`asks(value)`: whether the value asks for what is not served."""

    asks: Callable[[Any], bool]
    why: str
    hint: str = "leave it out"


def _one_of(*neutral: Any) -> Callable[[Any], bool]:
    return lambda value: value not in neutral


def _above(limit: float) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, int | float) or value > limit


def _below_1(value: Any) -> bool:
    return not isinstance(value, int | float) or value < 1


_SAMPLER = "this sampler is not served"
_SERVED = "leave it out; temperature, top_k, top_p, min_p, typical_p and the penalties are served"
_STOPS = "only max_tokens, stop and the end of the model's answer end a generation"
_FORM = "answers have one form here"
_INSIDE = "grammars are made from JSON schemas here"
_THINKING = "no model here thinks aloud: its template is rendered without thoughts"

SAMPLERS: Mapping[str, Unserved] = {
    "mirostat": Unserved(bool, _SAMPLER, _SERVED),
    "dry_multiplier": Unserved(bool, _SAMPLER, _SERVED),
    "xtc_probability": Unserved(bool, _SAMPLER, _SERVED),
    "top_n_sigma": Unserved(_above(0), _SAMPLER, _SERVED),
    "dynatemp_range": Unserved(bool, _SAMPLER, _SERVED),
    "adaptive_target": Unserved(_above(-1e-9), _SAMPLER, _SERVED),
    "min_keep": Unserved(_above(1), "samplers keep one token at least, and no set number"),
}
OPTIONS: Mapping[str, Unserved] = {
    **SAMPLERS,
    "tfs_z": Unserved(_below_1, _SAMPLER, _SERVED),
    "penalize_newline": Unserved(_one_of(True), "the penalties treat a line break as any token"),
}
"""Of Ollama's `options`."""
GENERATION: Mapping[str, Unserved] = {
    **SAMPLERS,
    "t_max_predict_ms": Unserved(_above(0), _STOPS),
    "n_indent": Unserved(_above(0), _STOPS),
    "n_cmpl": Unserved(_one_of(1), "only 1 is served", "send the request again"),
    "id_slot": Unserved(_above(-1), "slots are chosen by the daemon"),
    "post_sampling_probs": Unserved(bool, "probabilities are those before sampling"),
    "timings_per_token": Unserved(bool, "timings come once, with the end of the answer"),
    "return_progress": Unserved(bool, _FORM),
    "sse_ping_interval": Unserved(_above(0), _FORM),
    "verbose": Unserved(bool, _FORM, "leave it out; /apply-template shows a chat's prompt"),
    "grammar": Unserved(bool, "raw grammars are not accepted", "use response_format"),
    "grammar_lazy": Unserved(bool, _INSIDE),
    "grammar_triggers": Unserved(bool, _INSIDE),
    "preserved_tokens": Unserved(bool, _INSIDE),
}
"""Of OpenAI's routes and llama-server's /completion."""
OPENAI: Mapping[str, Unserved] = {
    **GENERATION,
    "return_tokens": Unserved(bool, _FORM, "leave it out; /completion gives token ids"),
    "response_fields": Unserved(bool, _FORM, "leave it out; /completion takes it"),
    "store": Unserved(bool, "no answer is stored for a later request"),
}
CHAT: Mapping[str, Unserved] = {
    **OPENAI,
    "chat_template_kwargs": Unserved(_one_of({}, {"enable_thinking": False}), _THINKING),
    "reasoning_effort": Unserved(_one_of("none"), _THINKING),
    "verbosity": Unserved(_one_of("medium"), "no model here takes it", "ask for it in words"),
    "modalities": Unserved(_one_of(["text"], []), "answers are text"),
    "audio": Unserved(lambda value: True, "answers are text"),
    "web_search_options": Unserved(lambda value: True, "nothing is looked up"),
    "function_call": Unserved(_one_of("none", "auto"), "tool calls are not served"),
    "generation_prompt": Unserved(bool, "the template says how an answer begins"),
}


def refuse_unserved(members: Any, unserved: Mapping[str, Unserved]) -> Any:
    """`members`. Raises a validation error for the first one that asks for what is not served."""
    if isinstance(members, dict):
        for name, value in members.items():
            one = unserved.get(name)
            if one is not None and value is not None and one.asks(value):
                raise refused(name, f"it is {str(value)[:40]}, and {one.why}", one.hint)
    return members


SAMPLER_ORDER = ("penalties", "top_k", "typ_p", "top_p", "min_p", "temperature")
"""The samplers that are served, in their order (llama/sampling.py), by llama-server's names."""
_OFF = ("dry", "top_n_sigma", "xtc", "adaptive_p")
_LETTERS = dict(zip("ekypmtdsxa", (*SAMPLER_ORDER, *_OFF), strict=True))
_OTHER_NAMES = {"typical_p": "typ_p", "typical": "typ_p", "typ": "typ_p", "temp": "temperature"}


def refuse_samplers(samplers: Sequence[str] | str | None, sampling: Sampling) -> None:
    """Raises a validation error unless llama-server's `samplers` gives what this daemon computes:
    its samplers in its order. Samplers that change nothing in this request may stand anywhere."""
    if not samplers:
        return
    known = {**_LETTERS, **_OTHER_NAMES, **{name: name for name in (*SAMPLER_ORDER, *_OFF)}}
    asked = [known.get(one.lower().replace("-", "_"), one) for one in samplers]
    at_work = [name for name in SAMPLER_ORDER if _changes(name, sampling)]
    if [name for name in asked if name in at_work or name not in known.values()] != at_work:
        raise refused(
            "samplers",
            "another order or choice of samplers than this daemon's",
            f"leave it out, or send {list(SAMPLER_ORDER)}",
        )


def _changes(name: str, sampling: Sampling) -> bool:
    """Whether this sampler has any effect with these parameters."""
    if sampling.temperature <= 0.0 and name != "penalties":
        return name == "temperature"  # the likeliest token, whatever the others would leave
    neutral = {
        "penalties": (
            sampling.repeat_last_n == 0
            or (sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty)
            == (1.0, 0.0, 0.0)
        ),
        "top_k": sampling.top_k == 0,
        "typ_p": sampling.typical_p >= 1.0,
        "top_p": sampling.top_p >= 1.0,
        "min_p": sampling.min_p <= 0.0,
        "temperature": sampling.temperature == 1.0,
    }
    return not neutral[name]
