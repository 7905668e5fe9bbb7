"""The model families that can be converted, one module each, and how to find the right one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import refusal
from converters.families.family import Family
from converters.families.gemma3 import GEMMA3
from converters.families.llama import LLAMA
from converters.families.qwen2 import QWEN2
from converters.families.qwen3 import QWEN3
from edge_agent.errors import ConversionError

FAMILIES = (GEMMA3, QWEN2, QWEN3, LLAMA)


def family_of_config(path: Path, config: Mapping[str, Any]) -> Family:
    """The family of `architectures` in config.json.

    Raises ConversionError that lists those supported, or names a member of config.json whose effect
    llama.cpp does not compute.
    """
    names = config.get("architectures")
    for family in FAMILIES:
        if isinstance(names, list) and set(family.hf_architectures) & set(map(str, names)):
            try:
                family.check(config)
            except ConversionError as error:
                raise ConversionError(f"cannot convert {path}", error.why, error.hint) from None
            return family
    known = ", ".join(name for family in FAMILIES for name in family.hf_architectures)
    raise refusal(path, f"its architecture is {names}", f"supported are {known}")


def family_of_architecture(path: Path, architecture: str) -> Family:
    """The family of general.architecture in a GGUF file. Raises ConversionError."""
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise ConversionError(f"cannot convert {path}", f"it is a {architecture}", f"known: {known}")
