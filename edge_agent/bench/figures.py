"""Which members of a benchmark document are numbers: the check before a report is made of it.

Flows in: a document of this machine, of another one or of llama-bench, which anybody may have
edited. Flows out: the document, or the name of the member that is no figure. A figure may be null
or absent: it was not measured. Not here: what a report says of figures (report.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, defstruct

from edge_agent.errors import EdgeAgentError

_Figure = Annotated[float, Meta(ge=-1e18, le=1e18)]
"""Finite: JSON has neither NaN nor infinity, but Python reads both."""
_Count = Annotated[int, Meta(ge=0, le=10**15)]


class ImportFailed(EdgeAgentError):
    """A document that cannot be used."""

    code = "import_failed"


def _struct(figures: str, **others: Any) -> Any:
    """A struct of these figures and other members, each of which may be null or absent."""
    kinds = {**dict.fromkeys(figures.split(), _Figure), **others}
    return defstruct("Figures", [(name, kind | None, None) for name, kind in kinds.items()])


class _Moment(Struct, array_like=True):
    """A point of `trace`: seconds, watts, degrees Celsius, free bytes, tokens per second."""

    at_s: _Figure
    watts: _Figure | None = None
    celsius: _Figure | None = None
    available_bytes: _Figure | None = None
    tok_s: _Figure | None = None


_Spread = _struct("median min max")
_Figures = _struct(
    "avg_ts median_ts min_ts max_ts temperature_start_celsius temperature_max_celsius "
    "memory_peak_bytes roofline_fraction",
    samples_ts=list[_Figure | None],
    **dict.fromkeys(("n_prompt", "n_gen", "n_depth"), _Count),
    **dict.fromkeys(("ttft_s", "tpot_s", "e2e_s"), _Spread),
    energy=_struct("j_per_token mean_w idle_w"),
    board=dict[str, Any],
    clocks=_struct("cpu_hz"),
    trace=list[_Moment],
)


def checked(document: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The document. Raises ImportFailed with the member that is no figure ("$.energy.mean_w").

    >>> checked({"avg_ts": None}, "line 1")
    {'avg_ts': None}
    """
    try:
        msgspec.convert(document, _Figures)
    except msgspec.ValidationError as error:
        hint = "write a number there, or null for what was not measured; or leave the document out"
        raise ImportFailed(f"{place} cannot be reported", str(error), hint) from error
    return document
