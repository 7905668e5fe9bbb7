"""A Hugging Face model directory, opened without trusting it.

Why it exists: a checkpoint may bring code (auto_map, *.py), pickles that run code when they are
loaded, and names that lead out of the directory. Only JSON and safetensors files are read, and a
directory that contains anything else that could run is refused as a whole. Flows in: a path. Flows
out: a Checkpoint. There is no network access. Not here: what the tensors mean and what the members
of config.json do (families/), the tokenizer (vocabulary.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.config_fields import TEXT_ONLY, without
from converters.safetensors_file import StoredTensor, map_file, read_header
from edge_agent.errors import ConversionError

MAX_JSON_BYTES = 100_000_000
SLAB_BYTES = 1 << 24
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
LEFTOVERS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"}
"""Pickles that transformers' Trainer leaves beside the weights; allowed, because nothing opens
them."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NOT_TEXT = ("vision_tower.", "vision_model.", "multi_modal_projector.", "visual.", "audio_tower.")
"""Parts of multimodal checkpoints that a text model leaves out."""
COMPUTED = (".rotary_emb.inv_freq", ".attention.bias", ".masked_bias")
"""Buffers that old checkpoints store although code computes them."""
BARE = ("embed_tokens.", "layers.", "norm.")
"""Names of a checkpoint that was saved without its head, by a class that has none."""
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that torch.compile, DDP, FSDP and activation checkpointing add, and that
transformers does not read."""
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Checkpoint:
    """`config` has the settings of a multimodal model's text part at its top level.

    Its tie_word_embeddings is false where the checkpoint has a head unlike its embedding.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of the directory; {} when there is no such file. Raises ConversionError."""
        path = self.directory / name
        return read_json(path) if path.is_file() else {}

    def text(self, name: str) -> str | None:
        """A text file of the directory; None when there is no such file."""
        path = self.directory / name
        if not path.is_file():
            return None
        return path.read_text("utf-8", "replace")


def open_checkpoint(directory: Path, ignored: Sequence[str] = ()) -> Checkpoint:
    """Check a model directory and index its tensors, without `ignored` members of config.json.

    Raises ConversionError.

    Example: `open_checkpoint(Path("gemma-3-270m-it")).tensors["model.norm.weight"].shape`
    """
    if not directory.is_dir():
        raise refusal(directory, "it is not a directory", "give the directory of config.json")
    refuse_code(directory)
    config = without(read_config(directory), ignored)
    tensors = _index(directory)
    if config.get("tie_word_embeddings") in (True, None) and _has_own_head(tensors):
        config["tie_word_embeddings"] = False
    return Checkpoint(directory, config, tensors)


def text_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The text model's tensors, without the prefixes of a multimodal model and of WRAPPERS.

    Raises ConversionError when two tensors then have the same name.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        plain = text_name(unwrapped(name))
        if plain.removeprefix("model.").startswith(NOT_TEXT) or name.endswith(COMPUTED):
            continue
        if plain.startswith(BARE):
            plain = f"model.{plain}"
        if plain in found:
            raise refusal(
                tensor.path,
                f"{found[plain].name} and {name} are both {plain}",
                "save the model again, with one of them",
            )
        found[plain] = tensor
    return found


def text_name(name: str) -> str:
    """The name in a text model of what a multimodal model keeps below `language_model`.

    >>> text_name("language_model.model.norm.weight"), text_name("model.language_model.norm.weight")
    ('model.norm.weight', 'model.norm.weight')
    """
    plain = name.replace("language_model.model.", "model.").replace("language_model.", "")
    return plain.replace("model.model.", "model.")


def unwrapped(name: str) -> str:
    """A tensor's name without the parts of WRAPPERS and PEFT's prefix.

    >>> unwrapped("module.base_model.model.model._orig_mod.norm.weight")
    'model.norm.weight'
    """
    plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    while plain.startswith(PEFT_PREFIX):
        plain = plain.removeprefix(PEFT_PREFIX)
    return plain


def _has_own_head(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether a head is stored that is not the embedding, as after training one of them alone."""
    found = text_tensors(tensors)
    head, embedding = found.get(HEAD), found.get(EMBEDDING)
    if head is None or embedding is None:
        return False
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return True
    a, b = (map_file(t.path)[t.offset : t.offset + t.n_bytes] for t in (head, embedding))
    slabs = range(0, len(a), SLAB_BYTES)
    return any(not np.array_equal(a[i : i + SLAB_BYTES], b[i : i + SLAB_BYTES]) for i in slabs)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json with the members of `text_config` moved to the top; there transformers does not
    look for them, but for tie_word_embeddings there only. Raises ConversionError."""
    path = directory / "config.json"
    if not path.is_file():
        raise refusal(directory, "it has no config.json", "give the directory of config.json")
    config = read_json(path)
    for name in ("config.json", "tokenizer_config.json"):
        other = directory / name
        if other.is_file() and "auto_map" in read_json(other):
            raise refusal(directory, f"{name} asks for code of its own (auto_map)")
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    top = {name: config[name] for name in config if name not in TEXT_ONLY}
    return {**top, **{name: text[name] for name in text if name != "tie_word_embeddings"}}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most MAX_JSON_BYTES. Raises ConversionError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise refusal(path, f"it has over {MAX_JSON_BYTES} bytes")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise refusal(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"it is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise refusal(path, "it is not a JSON object")
    return found


def refusal(path: Path, why: str, hint: str = "") -> ConversionError:
    """The error for a checkpoint that cannot be converted."""
    return ConversionError(
        f"cannot convert {path}",
        why,
        hint or "use a checkpoint of safetensors and JSON files only",
    )


def refuse_code(directory: Path) -> None:
    """Raise ConversionError when the directory contains code or a link that leads out of it."""
    for path in _walk(directory):
        where = path.relative_to(directory)
        if not _stays_inside(path, directory):
            raise refusal(directory, f"{where} is a link out of the directory")
        if path.suffix == ".py":
            raise refusal(directory, f"it brings code: {where}")
        is_leftover = path.name in LEFTOVERS or path.name.startswith("rng_state")
        if path.suffix in PICKLES and not is_leftover:
            raise refusal(
                directory,
                f"it holds a pickle, which can run code: {where}",
                "save it as safetensors, then take the pickle away",
            )


def _walk(directory: Path) -> Iterator[Path]:
    """Files and links below `directory`, hidden directories left out, links not followed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if not path.name.startswith("."):
                yield from _walk(path)
        else:
            yield path


def _stays_inside(path: Path, directory: Path) -> bool:
    """Whether a link leads to its own directory, or from a Hub cache's snapshot to the cache's
    blobs."""
    if not path.is_symlink():
        return True
    target, root = path.resolve(), directory.resolve()
    if root in target.parents:
        return True
    return root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"


def _index(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint, from one file or from the shards that the index names."""
    if (directory / SINGLE).is_file():
        return read_header(directory / SINGLE)
    if not (directory / INDEX).is_file():
        raise refusal(directory, f"it has neither {SINGLE} nor {INDEX}")
    wanted = read_json(directory / INDEX).get("weight_map")
    if not isinstance(wanted, dict) or not all(isinstance(n, str) for n in wanted.values()):
        raise refusal(directory / INDEX, "it has no weight_map")
    shards = {name: _shard(directory, name) for name in sorted(set(wanted.values()))}
    for tensor, shard in wanted.items():
        if tensor not in shards[shard]:
            raise refusal(directory / shard, f"the index places tensor {tensor} here, it is not")
    return {tensor: shards[shard][tensor] for tensor, shard in wanted.items()}


def _shard(directory: Path, name: str) -> dict[str, StoredTensor]:
    if Path(name).name != name or name.startswith("."):
        raise refusal(directory / INDEX, f"the shard {name!r} is not a plain file name")
    if not (directory / name).is_file():
        raise refusal(directory, f"the shard {name} is missing", "fetch the missing file")
    return read_header(directory / name)
