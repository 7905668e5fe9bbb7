"""The sampling parameters that OpenAI's and Ollama's requests share, and their checks.

Flows in: JSON members. Flows out: records.Sampling, with our defaults for members that are absent.
Ranges are OpenAI's for the fields that OpenAI has, llama.cpp's for the others. Not here: sampling
(llama/sampling.py).
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from edge_agent.records import Sampling

MAX_STOPS = 8
MAX_STOP_CHARS = 256
MAX_TOKENS = 131_072
"""The longest context of the supported families; a slot's context usually ends an answer first."""
MAX_PENALTY_WINDOW = 8192
"""The largest window of the penalties: llama.cpp allocates a ring buffer of that many token ids."""
MAX_SEED = 2**64 - 1
_SEEDS = 2**32 - 1
"""Number of usable seeds: llama.cpp's have 32 bits, and the largest value means "random"."""

Number = TypeVar("Number", int, float)
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopList = Annotated[list[StopString], Field(max_length=MAX_STOPS)]


class Body(BaseModel):
    """Base of request models: strict types, finite numbers, unknown members ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class SamplingFields(Body):
    """How the next token is drawn. null means the default, as in both APIs."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="0 or -1 switches it off.")
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(
        None, gt=0, le=10, description="Over generated tokens only; 1 is off."
    )
    repeat_last_n: int | None = Field(
        None, ge=-1, le=MAX_PENALTY_WINDOW, description="Window of the penalties; -1 the largest."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(
        None, ge=-1, le=MAX_SEED, description="-1 is random; others are taken modulo 2**32 - 1."
    )

    def sampling(
        self, logit_bias: dict[int, float] | None = None, repetition_penalty: float | None = None
    ) -> Sampling:
        """The worker's record. `repetition_penalty` applies when there is no repeat_penalty."""
        default = Sampling()
        penalty = self.repeat_penalty if self.repeat_penalty is not None else repetition_penalty
        return Sampling(
            temperature=_or(self.temperature, default.temperature),
            top_k=max(0, _or(self.top_k, default.top_k)),
            top_p=_or(self.top_p, default.top_p),
            min_p=_or(self.min_p, default.min_p),
            repeat_penalty=_or(penalty, default.repeat_penalty),
            repeat_last_n=_window(_or(self.repeat_last_n, default.repeat_last_n)),
            frequency_penalty=_or(self.frequency_penalty, default.frequency_penalty),
            presence_penalty=_or(self.presence_penalty, default.presence_penalty),
            seed=None if self.seed is None or self.seed < 0 else self.seed % _SEEDS,
            logit_bias=logit_bias or {},
        )


def refused(param: str, why: str, hint: str) -> PydanticCustomError:
    """The error that a validator raises for a field that is well-formed but not served."""
    return PydanticCustomError("not_served", "{why}", {"param": param, "why": why, "hint": hint})


def _window(tokens: int) -> int:
    return MAX_PENALTY_WINDOW if tokens < 0 else tokens


def _or(given: Number | None, default: Number) -> Number:
    return default if given is None else given


def stop_list(stop: str | list[str] | None) -> list[str]:
    """The stop strings; both APIs allow one string, a list or nothing."""
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else stop
