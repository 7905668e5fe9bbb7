"""What a model may be called, and how MODEL:TAG splits.

Ground file: it imports nothing of ours. Flows in: names as users and clients write them. Flows out:
the plain name and the tag. Not here: which model or adapter a name stands for (store/store.py,
models/adapter_registry.py).
"""

from __future__ import annotations

import re

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

BASE_TAG, LATEST_TAG = "base", "latest"
DEFAULT_NAME = "default"
"""Stands for no name at all: OpenAI's clients must send one. No model may be called so."""


def split_name(name: str) -> tuple[str, str | None]:
    """The model, and what stands after the first colon (None without a colon).

    >>> split_name("tiny:latest"), split_name("tiny")
    (('tiny', 'latest'), ('tiny', None))
    """
    model, colon, tag = name.partition(":")
    return model, tag if colon else None
