"""What a model may be called, and what MODEL:TAG means.

The ground of the house: it imports nothing of ours. Flows in: names as users and clients write
them. Flows out: the plain name and the tag. Not here: which model or adapter a name means (the
store and the adapter registry know).
"""

from __future__ import annotations

import re

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

BASE_TAG, LATEST_TAG = "base", "latest"


def split_name(name: str) -> tuple[str, str | None]:
    """MODEL and what stands after its first colon.

    >>> split_name("tiny:latest"), split_name("tiny")
    (('tiny', 'latest'), ('tiny', None))
    """
    model, colon, tag = name.partition(":")
    return model, tag if colon else None
