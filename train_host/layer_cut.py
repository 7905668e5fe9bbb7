"""Makes a shallower model from a deep one: some blocks are kept, in their order.

Why it exists: for distillation, a student that shares its teacher's tokenizer, embedding and head,
and most of its knowledge. Flows in: a model directory and the numbers of the blocks to keep. Flows
out: a directory of the same kind. Where kinds of blocks alternate (Gemma 3: five with a sliding
window, one with full attention) the kept blocks must repeat that pattern, because a GGUF file does
not store another pattern. Not here: teaching the student (distill.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from converters.checkpoint import open_checkpoint, text_tensors
from converters.families import family_of_config
from converters.gguf_to_hf import Weights, write_directory
from converters.hf_to_gguf import n_vocab
from converters.merge import copied_documents
from converters.quantizer import How
from converters.rows import Rows, stored_rows
from converters.safetensors_file import map_file
from edge_agent.errors import UsageError

GEMMA_PATTERN = 6
"""Every sixth block of Gemma 3 has full attention."""
_BLOCK = re.compile(r"(model\.layers\.)(\d+)(\..+)")


def parse_blocks(text: str, n_layer: int) -> list[int]:
    """Numbers of the blocks to keep, ascending. Raises UsageError.

    >>> parse_blocks("0-2,5", 6)
    [0, 1, 2, 5]
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdecimal() or (last and not last.strip().isdecimal()):
            raise _refusal(text, f"{part!r} is neither a number nor a range")
        found += range(int(first), int(last or first) + 1)
    if not found or found != sorted(set(found)) or found[-1] >= n_layer:
        raise _refusal(text, f"the model has the blocks 0 to {n_layer - 1}, each once, ascending")
    return found


def write_cut(source: Path, keep: Sequence[int], directory: Path) -> int:
    """Write the model with the blocks `keep` only, in float32; returns the bytes of its weights.

    Raises UsageError when the pattern of blocks would break, ConversionError.
    """
    checkpoint = open_checkpoint(source)
    documents = copied_documents(checkpoint, "float32")
    config = documents["config.json"]
    family = family_of_config(source, checkpoint.config)
    if family.architecture == "gemma3":
        _check_pattern(keep)
    config["num_hidden_layers"] = len(keep)
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = [config["layer_types"][number] for number in keep]
    stored = text_tensors(checkpoint.tensors)
    rows: dict[str, Rows] = {}
    places = []
    for place in family.placements(config, n_vocab(checkpoint)):
        name = _BLOCK.sub(lambda m: f"{m[1]}{keep[int(m[2])]}{m[3]}", place.source)
        tensor = stored.get(name)
        if tensor is not None:
            rows[place.source] = stored_rows(tensor, map_file(tensor.path))
            places.append(place)
    weights = Weights(rows, tuple(places), "f32")
    return write_directory(directory, weights, documents, How())


def _check_pattern(keep: Sequence[int]) -> None:
    for place, number in enumerate(keep):
        if (place % GEMMA_PATTERN == GEMMA_PATTERN - 1) != (
            number % GEMMA_PATTERN == GEMMA_PATTERN - 1
        ):
            raise _refusal(
                ",".join(map(str, keep)),
                f"block {number} would be in place {place}, where Gemma 3 has the other kind",
                "keep whole groups of six: 0-5,12-17",
            )


def _refusal(text: str, why: str, hint: str = "give numbers and ranges: 0-5,12-17") -> UsageError:
    return UsageError(f"--keep-layers {text[:80]!r} cannot be", why, hint)
