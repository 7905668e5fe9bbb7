"""Sizes and durations: what is none is refused with a sentence, never guessed."""

from __future__ import annotations

import pytest

from edge_agent.units import parse_duration, parse_size


@pytest.mark.parametrize("text", ["", "G", "-1", "2X", "1.2.3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size such as"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "m", "5d", "nan", "1m x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration such as"):
        parse_duration(text)
