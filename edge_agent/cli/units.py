"""Sizes and durations as people write them: 512M, 1.5GiB, 90s, 5m.

Flows in: the text of a flag. Flows out: bytes or seconds, or a UsageError that shows what would be
right. Not here: the flags themselves.
"""

from __future__ import annotations

import re

from edge_agent.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Bytes. 2G and 2GB are decimal, 2Gi and 2GiB binary. Raises UsageError.

    >>> parse_size("1500M"), parse_size("2GiB"), parse_size("4096")
    (1500000000, 2147483648, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--memory is {text!r}", "this is no size", "give 1500M, 2G or 2GiB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[unit.lower()])


def parse_duration(text: str) -> float:
    """Seconds; a bare number is seconds, negative means never. Raises UsageError.

    >>> parse_duration("5m"), parse_duration("1h30m"), parse_duration("-1"), parse_duration("2.5s")
    (300.0, 5400.0, -1.0, 2.5)
    """
    match = re.fullmatch(r"(-?)((?:\d+(?:\.\d+)?(?:ms|s|m|h))+|\d+(?:\.\d+)?)", text.strip())
    if match is None:
        hint = "give seconds, or 5m, 1h30m; -1 for never"
        raise UsageError(f"--keep-alive is {text!r}", "this is no duration", hint)
    sign, body = match.groups()
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", body) or [(body, "s")]
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return -seconds if sign else seconds
