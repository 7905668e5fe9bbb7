"""Rotary position embedding: the settings of config.json, and what llama.cpp can compute of them.

Flows in: a config.json of transformers 4 or 5. Flows out: an HfRope, whose values become metadata
keys (families/family.py) or a tensor (families/llama.py). The order in which transformers 5 looks
at the settings is followed, because it decides which function the model is: `rope_scaling` goes
before `rope_parameters`, and without settings by layer type original_max_position_embeddings at the
top level before the one within. A kind, a setting or a value that llama.cpp cannot compute raises
ConversionError by name. Sources: transformers' modeling_rope_utils; llama.cpp's llama-context.cpp
(YaRN's magnitude) and ggml_rope_yarn_corr_dims. Not here: sizes of heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from converters.config_fields import Config, field_error, is_absent, real

LAYER_KINDS = ("full_attention", "sliding_attention")
_USED = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
             "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor",
               "original_max_position_embeddings"),
}  # fmt: skip
"""rope_type -> the settings that transformers reads for it. Others of these have no effect."""
_EVERYWHERE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_KNOWN = {*_EVERYWHERE, *(name for names in _USED.values() for name in names)}


@dataclass(frozen=True)
class HfRope:
    """Rotary settings of the global layers; `local_theta` is the base of sliding-window layers."""

    kind: str
    theta: float | None
    factor: float | None = None
    original_context: int | None = None
    attention_scale: float = 1.0
    """YaRN: the magnitude of q and k, as a multiple of llama.cpp's 1 + 0.1 ln(factor)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    local_theta: float | None = None


def read_rope(config: Config, kinds: tuple[str, ...], *, nests: bool, is_local: bool) -> HfRope:
    """The settings; `kinds` are those rope_types that the runtime computes for this family.

    `nests`: transformers takes settings by layer type. `is_local`: the sliding-window layers rotate
    by a base of their own, and nothing else counts as settings. Raises ConversionError.
    """
    older, newer = (_block(config, name) for name in ("rope_scaling", "rope_parameters"))
    if is_local:
        return _read_local(config, older, newer, kinds)
    where, found = ("rope_scaling", older) if older else ("rope_parameters", newer)
    if not nests or not set(found) & set(LAYER_KINDS):
        return _rope(found, where, config, kinds)
    full, local = _by_layer(found, where)
    if local and local != full:
        raise field_error(f"{where}.sliding_attention", found, "no layer here has a window")
    return _rope(full, f"{where}.full_attention", _nested(config), kinds)


def _read_local(
    config: Config, older: dict[str, Any], newer: dict[str, Any], kinds: tuple[str, ...]
) -> HfRope:
    """Gemma 3: rope_scaling changes the global layers of rope_parameters."""
    full, local = _by_layer(newer, "rope_parameters")
    if older.get("type", "default") != "default" and "rope_type" not in older:
        why = "transformers 5 overlooks this spelling here, transformers 4 did not: write rope_type"
        raise field_error("rope_scaling.type", older, why)
    where = "rope_scaling" if older else "rope_parameters.full_attention"
    rope = _rope({**full, **older}, where, _nested(config), kinds)
    if rope.attention_scale != 1.0:
        why = "llama.cpp would scale the sliding-window layers too"
        raise field_error(f"{where}.attention_factor", {**full, **older}, why)
    local = {"rope_theta": config.get("rope_local_base_freq"), **local}
    theta = _rope(local, "rope_parameters.sliding_attention", {}, ("default",)).theta
    return replace(rope, local_theta=theta)


def _by_layer(found: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the global and of the sliding-window layers. Raises ConversionError."""
    for name in found:
        if name not in LAYER_KINDS:
            raise field_error(f"{where}.{name}", found, "settings must stand by layer type here")
    full, local = (_block(found, kind) for kind in LAYER_KINDS)
    return full, local


def _nested(config: Config) -> dict[str, Any]:
    """config.json for settings by layer type, which take no original context from its top."""
    name = "original_max_position_embeddings"
    return {key: value for key, value in config.items() if key != name}


def _block(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    if is_absent(value):
        return {}
    if not isinstance(value, dict):
        raise field_error(name, config, "it is no object")
    return {key: inner for key, inner in value.items() if not is_absent(inner)}


def _rope(block: Mapping[str, Any], where: str, config: Config, kinds: tuple[str, ...]) -> HfRope:
    kind = block.get("rope_type", block.get("type", "default"))
    if kind not in kinds:
        raise field_error(
            f"{where}.{'rope_type' if 'rope_type' in block else 'type'}",
            block,
            f"llama.cpp computes {', '.join(kinds)} for this architecture",
        )
    for name in block:
        if name not in _KNOWN:
            raise field_error(f"{where}.{name}", block, "this converter does not know it")
    for holder, prefix in ((block, f"{where}."), (config, "")):
        share = real(holder, "partial_rotary_factor", prefix)
        if share not in (None, 1.0):
            why = "llama.cpp rotates whole heads here"
            raise field_error(f"{prefix}partial_rotary_factor", holder, why)
    theta = real(block, "rope_theta", f"{where}.")
    theta = real(config, "rope_theta") if theta is None else theta
    if theta is not None and theta <= 0:
        raise field_error("rope_theta", {"rope_theta": theta}, "it must be above 0")
    if kind == "default":
        return HfRope(kind, theta)
    original = real(config, "original_max_position_embeddings") or real(
        block, "original_max_position_embeddings", f"{where}."
    )
    longest = real(config, "max_position_embeddings")
    factor = real(block, "factor", f"{where}.")
    if factor is None and kind == "yarn" and original and longest:
        factor = longest / original
    if factor is None or factor <= 0:
        raise field_error(f"{where}.factor", block, f"{kind} needs a number above 0")
    original = original or longest
    context = None if original is None or kind == "linear" else int(original)
    scale = _attention_scale(block, where, factor) if kind == "yarn" else 1.0
    low, high = (real(block, f"{x}_freq_factor", f"{where}.") for x in ("low", "high"))
    return HfRope(kind, theta, factor, context, scale, low or 1.0, high or 4.0)


def _attention_scale(block: Mapping[str, Any], where: str, factor: float) -> float:
    """YaRN's magnitude over the one that llama.cpp computes by itself; checks the ramp's limits."""
    for name, only in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if (real(block, name, f"{where}.") or only) != only:
            raise field_error(f"{where}.{name}", block, f"llama.cpp computes {only:g} only")
    if block.get("truncate", True) is not True:
        raise field_error(f"{where}.truncate", block, "llama.cpp truncates the ramp's limits")
    usual = magnitude(factor)
    given = real(block, "attention_factor", f"{where}.")
    up, down = (real(block, name, f"{where}.") for name in ("mscale", "mscale_all_dim"))
    if given is None and up and down:
        given = magnitude(factor, up) / magnitude(factor, down)
    scale = 1.0 if given is None else given / usual
    return 1.0 if math.isclose(scale, 1.0, rel_tol=1e-6) else scale


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's usual magnitude of q and k for a scaling factor."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
