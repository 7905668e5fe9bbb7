"""The sampling parameters that OpenAI's and Ollama's requests share, and their checks.

Flows in: JSON members. Flows out: records.Sampling, with our defaults for members that are absent.
Ranges are those of sampling_bounds.py. Not here: sampling (llama/sampling.py).
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from edge_agent.records import Sampling
from edge_agent.sampling_bounds import MAX_PENALTY_WINDOW, SAMPLING_BOUNDS

MAX_STOPS = 256
MAX_STOP_CHARS = 256
_SEEDS = 2**32 - 1
"""Number of usable seeds: llama.cpp's have 32 bits, and the largest value means "random"."""

Number = TypeVar("Number", int, float)
StopString = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
StopList = Annotated[list[StopString], Field(max_length=MAX_STOPS)]


class Body(BaseModel):
    """Base of request models: strict types, finite numbers, unknown members ignored. 4.0 is the
    whole number 4, because some languages have one type of number."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_numbers(cls, given: Any) -> Any:
        return int(given) if isinstance(given, float) and given.is_integer() else given


def number(name: str) -> Any:
    """The field `name` with the bounds and the meaning of SAMPLING_BOUNDS; null by default."""
    schema = SAMPLING_BOUNDS[name].schema
    return Field(
        None,
        ge=schema.get("minimum"),
        gt=schema.get("exclusiveMinimum"),
        le=schema.get("maximum"),
        description=SAMPLING_BOUNDS[name].help,
    )


class SamplingFields(Body):
    """How the next token is drawn. null means the default, as in both APIs."""

    temperature: float | None = number("temperature")
    top_k: int | None = number("top_k")
    top_p: float | None = number("top_p")
    min_p: float | None = number("min_p")
    typical_p: float | None = number("typical_p")
    repeat_penalty: float | None = number("repeat_penalty")
    repeat_last_n: int | None = number("repeat_last_n")
    presence_penalty: float | None = number("presence_penalty")
    frequency_penalty: float | None = number("frequency_penalty")
    seed: int | None = number("seed")

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
            typical_p=_or(self.typical_p, default.typical_p),
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
    """The stop strings; both APIs allow one string, a list or nothing. "" stops nothing."""
    given = [stop] if isinstance(stop, str) else stop or []
    return [one for one in given if one]
