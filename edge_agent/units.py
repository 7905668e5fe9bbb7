"""Sizes and durations as people write them: 512M, 1.5GiB, 90s, 5m.

Flows in: text of a flag, a TOML file or the environment. Flows out: bytes or seconds, or a
ValueError that shows what would be right; the caller knows where the text came from and says so.
Not here: durations in Ollama's requests, which are Go's (server/ollama_schema.py).
"""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(-?)((?:\d+(?:\.\d+)?(?:ms|s|m|h))+|\d+(?:\.\d+)?)")
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Bytes. 2G and 2GB are decimal, 2Gi and 2GiB binary. Raises ValueError.

    >>> parse_size("1500M"), parse_size("2GiB"), parse_size("4096")
    (1500000000, 2147483648, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("this is no size such as 1500M, 2G or 2GiB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[unit.lower()])


def parse_duration(text: str) -> float:
    """Seconds; a bare number is seconds, and may be negative. Raises ValueError.

    >>> parse_duration("5m"), parse_duration("1h30m"), parse_duration("-1"), parse_duration("2.5s")
    (300.0, 5400.0, -1.0, 2.5)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("this is no duration such as 300, 5m or 1h30m")
    sign, body = match.groups()
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", body) or [(body, "s")]
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return -seconds if sign else seconds


def parse_unit(name: str, text: str) -> object:
    """`text` in the unit that the name of its setting ends in; other text stays as it is.

    Raises ValueError.

    >>> parse_unit("memory_bytes", "2k"), parse_unit("drain_s", "1m"), parse_unit("model", "1m")
    (2000, 60.0, '1m')
    """
    if name.endswith("_bytes"):
        return parse_size(text)
    return parse_duration(text) if name.endswith("_s") else text
