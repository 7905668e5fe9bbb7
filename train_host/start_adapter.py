"""The adapter from which a run starts, if it is not a fresh one: a PEFT directory or a GGUF file.

Why it exists: an adapter that was trained before, here or on the device, can learn more. Its file
decides r, lora_alpha, layers and modules; an option that contradicts it is refused. Flows in:
--adapter and the model. Flows out: settings, and values in a PEFT model. An adapter is refused
unless it has one r, one scaling, and the same modules in every block it covers. Its optimizer state
is not in the file, so the moments start at 0. Not here: reading either form
(converters/adapter.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converters.adapter import WEIGHTS, Adapter, Pair, read_adapter
from converters.adapter_settings import refusal
from converters.checkpoint import open_checkpoint
from converters.families import family_of_config
from converters.families.family import TensorPlacement
from converters.hf_to_gguf import n_vocab
from converters.merge import as_trained
from edge_agent.adapt.trainer.decoder.lora import TARGETS
from edge_agent.errors import UsageError
from edge_agent.gguf.adapter_file import check_base
from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.header import parse_header
from edge_agent.regular_file import sha256_of
from train_host.model_source import ModelSource
from train_host.settings import SftSettings, Wishes

Slot = tuple[int, str]
"""(block, PEFT's name of the module), as in (3, "q_proj")."""

_WEIGHT = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_MODULE = re.compile(r".*\.layers\.(\d+)\.\w+\.(\w+)")


@dataclass(frozen=True)
class StartAdapter:
    """An adapter whose pairs all have the same rank and scale; `b` has the checkpoint's row
    order."""

    path: Path
    sha256: str
    pairs: Mapping[Slot, Pair]
    n_layer: int

    @property
    def r(self) -> int:
        return next(iter(self.pairs.values())).rank

    @property
    def lora_alpha(self) -> float:
        """For PEFT's plain scaling lora_alpha / r, also when the adapter was trained with
        rsLoRA."""
        return next(iter(self.pairs.values())).scale * self.r

    @property
    def layers(self) -> list[int] | None:
        """As in SftSettings: None for every block."""
        found = sorted({layer for layer, _ in self.pairs})
        return None if len(found) == self.n_layer else found

    @property
    def target_modules(self) -> list[str]:
        found = {module for _, module in self.pairs}
        return [module for module in TARGETS if module in found]


def read_start(path: Path, source: ModelSource) -> StartAdapter:
    """Read an adapter. Raises ConversionError when it is none, or not one for this model."""
    checkpoint = open_checkpoint(source.directory)
    family = family_of_config(source.directory, checkpoint.config)
    places = family.placements(checkpoint.config, n_vocab(checkpoint))
    placements = {place.target: place for place in places}
    adapter = read_adapter(path, placements)
    _check_base(path, source)
    _check_uniform(path, adapter)
    files = [path / "adapter_config.json", path / WEIGHTS] if path.is_dir() else [path]
    sha256 = sha256_of(*files)
    pairs = _by_slot(path, adapter, placements)
    return StartAdapter(path, sha256, pairs, int(checkpoint.config["num_hidden_layers"]))


def settle(settings: SftSettings, wishes: Wishes, start: StartAdapter) -> SftSettings:
    """The settings with what the adapter decides. Raises UsageError for an option that contradicts
    it."""
    if not settings.trains_adapter:
        raise UsageError(
            f"--adapter does not go with --method {settings.method}",
            "that method trains the weights of the model itself",
            "leave one of them out, or merge the adapter first (`edge-convert merge`)",
        )
    _refuse_other("--r", wishes.r, start.r, start)
    is_same_alpha = math.isclose(settings.lora_alpha, start.lora_alpha, rel_tol=1e-6)
    _refuse_other(
        "--lora-alpha", None if is_same_alpha else wishes.lora_alpha, start.lora_alpha, start
    )
    is_same = settings.layers == start.layers
    _refuse_other("--layers", None if is_same else wishes.layers, start.layers or "all", start)
    return replace(
        settings,
        r=start.r,
        lora_alpha=start.lora_alpha,
        layers=start.layers,
        target_modules=start.target_modules,
    )


def put(start: StartAdapter, model: Any) -> None:
    """Overwrite the fresh matrices of a PEFT model. Raises ConversionError when it has other
    modules."""
    import torch

    slots = {}
    for name, module in model.named_modules():
        match = _MODULE.fullmatch(name)
        if match and hasattr(module, "lora_A"):
            slots[int(match[1]), match[2]] = module
    if set(slots) != set(start.pairs):
        other = sorted(set(slots) ^ set(start.pairs))[0]
        raise refusal(
            start.path, f"it and the model differ in {other}", "give the base it was trained on"
        )
    with torch.no_grad():
        for slot, pair in start.pairs.items():
            slots[slot].lora_A["default"].weight.copy_(torch.from_numpy(pair.a))
            slots[slot].lora_B["default"].weight.copy_(torch.from_numpy(pair.b))


def _refuse_other(flag: str, wished: Any, found: Any, start: StartAdapter) -> None:
    """Raise UsageError when the option was given (not None) and contradicts the adapter."""
    if wished is not None and wished != found:
        raise UsageError(
            f"{flag} {wished} contradicts the adapter {start.path}",
            f"it was made with {found}",
            f"leave {flag} out, or start without --adapter",
        )


def _check_base(path: Path, source: ModelSource) -> None:
    """Raise ConversionError when a GGUF adapter names another base, as the device does."""
    if path.is_dir() or source.gguf is None:
        return
    try:
        with path.open("rb") as stream:
            check_base(parse_header(stream, path.stat().st_size), source.sha256)
    except Malformed as error:
        what_next = "give that file as --model, or the directory of the model"
        raise refusal(path, str(error), what_next) from None


def _check_uniform(path: Path, adapter: Adapter) -> None:
    first = next(iter(adapter.values()))
    for name, pair in adapter.items():
        if pair.rank != first.rank or not math.isclose(pair.scale, first.scale, rel_tol=1e-6):
            raise refusal(
                path,
                f"{name} has r {pair.rank} and scale {pair.scale:g}, another weight r {first.rank}"
                f" and {first.scale:g}",
                "a run trains one r and one scaling: merge the adapter and start a fresh one",
            )


def _by_slot(
    path: Path, adapter: Adapter, placements: Mapping[str, TensorPlacement]
) -> dict[Slot, Pair]:
    modules = {weight: module for module, weight in TARGETS.items()}
    found = {}
    for name, pair in adapter.items():
        match = _WEIGHT.fullmatch(name)
        if match is None or match[2] not in modules:
            raise refusal(
                path, f"{name} is not a linear layer of a block", "merge it and start a fresh one"
            )
        found[int(match[1]), modules[match[2]]] = as_trained(pair, placements[name])
    layers, used = {layer for layer, _ in found}, {module for _, module in found}
    if len(found) != len(layers) * len(used):
        raise refusal(
            path,
            "not every block of it has the same modules",
            "a run trains the same in each: merge the adapter and start a fresh one",
        )
    return found
