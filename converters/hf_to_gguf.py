"""A Hugging Face checkpoint becomes one GGUF file.

Flows in: a model directory. Flows out: metadata and tensors for gguf_output.py. There is no torch,
no code from the checkpoint and no intermediate file, and memory does not grow with the model. Not
here: checking the result (verify.py), adapters (lora_to_gguf.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converters.bpe_vocabulary import read_bpe
from converters.checkpoint import EMBEDDING, Checkpoint, open_checkpoint, refusal, text_tensors
from converters.config_fields import IGNORED_KEY
from converters.families import family_of_config
from converters.families.family import Family, TensorPlacement
from converters.families.llama import rope_factors
from converters.gguf_container import Metadata
from converters.gguf_output import SourceTensor
from converters.model_metadata import general_keys
from converters.rows import ArrayRows, PackedRows, reordered, stored_rows
from converters.safetensors_file import StoredTensor, map_file
from converters.special_tokens import special_keys
from converters.spm_vocabulary import is_spm, read_spm
from converters.tokenizer_document import read_document
from converters.vocabulary import Vocabulary

SPACE_KEY = "tokenizer.ggml.add_space_prefix"


def load(directory: Path, ignored: Sequence[str] = ()) -> tuple[Metadata, list[SourceTensor]]:
    """The metadata and tensors of a checkpoint in GGUF's terms. Raises ConversionError.

    `ignored` are members of config.json to leave out; the file names them.

    Example: `metadata, tensors = load(Path("gemma-3-270m-it"))`
    """
    checkpoint = open_checkpoint(directory, ignored)
    family = family_of_config(directory, checkpoint.config)
    tensors = source_tensors(checkpoint, family)
    n_params = sum(tensor.n_elements for tensor in tensors)
    metadata = general_keys(checkpoint, family.architecture, n_params)
    metadata |= family.hyperparameters(checkpoint.config)
    metadata |= tokenizer_keys(checkpoint, family, n_vocab(checkpoint))
    if ignored:
        metadata.put_array("string", IGNORED_KEY, list(ignored))
    return Metadata(metadata), tensors


def n_vocab(checkpoint: Checkpoint) -> int:
    """vocab_size of config.json, else the rows of the embedding. Raises ConversionError."""
    embedding = text_tensors(checkpoint.tensors).get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise refusal(checkpoint.directory, f"it has no matrix {EMBEDDING}")
    size = checkpoint.config.get("vocab_size", embedding.shape[0])
    if not isinstance(size, int) or not 0 < size <= embedding.shape[0]:
        raise refusal(
            checkpoint.directory,
            f"vocab_size is {size}, the embedding has {embedding.shape[0]} rows",
            "save the model again with the vocab_size it was trained with",
        )
    return size


def source_tensors(checkpoint: Checkpoint, family: Family) -> list[SourceTensor]:
    """Every tensor of the model under its GGUF name, its shape checked. Raises ConversionError."""
    stored = text_tensors(checkpoint.tensors)
    files = {tensor.path: map_file(tensor.path) for tensor in stored.values()}
    found, used = [], {"lm_head.weight"} if family.is_tied(checkpoint.config) else set()
    for place in family.placements(checkpoint.config, n_vocab(checkpoint)):
        tensor = stored.get(place.source)
        _check_shape(checkpoint, place, tensor)
        assert tensor is not None
        used.add(place.source)
        rows = stored_rows(tensor, files[tensor.path])
        found.append(SourceTensor(place.target, place.shape, placed(rows, place)))
    _refuse_unknown(checkpoint, set(stored) - used)
    return found + _computed(checkpoint, family)


def placed(rows: PackedRows, place: TensorPlacement) -> PackedRows:
    """The rows as GGUF stores them: shifted, reordered, without rows beyond the vocabulary."""
    rows = reordered(rows, place.n_heads, place.shift, to_gguf=True)
    if len(place.shape) == 2 and rows.n_rows > place.shape[0]:
        return PackedRows(rows.name, rows.type, rows.data[: place.shape[0]], rows.n_columns)
    return rows


def tokenizer_keys(checkpoint: Checkpoint, family: Family, size: int) -> Metadata:
    """tokenizer.*: the vocabulary, special tokens and chat template. Raises ConversionError."""
    vocabulary = _vocabulary(checkpoint, family, size)
    keys = vocabulary.metadata()
    keys |= special_keys(checkpoint, vocabulary)
    settings = checkpoint.json("tokenizer_config.json")
    if vocabulary.model == "llama":
        adds_space = False if family.tokenizer == "spm" else settings.get("add_prefix_space")
        said = vocabulary.adds_space
        keys.put("bool", SPACE_KEY, adds_space if said is None else said)
    elif family.tokenizer == "either" and isinstance(settings.get("add_prefix_space"), bool):
        keys.put("bool", SPACE_KEY, settings["add_prefix_space"])
    add_bos = "tokenizer.ggml.add_bos_token"
    if family.tokenizer == "either" and size == 49152 and keys.get_value(add_bos) is None:
        # llama.cpp's converter recognizes SmolLM and Granite by this number.
        keys.put("bool", add_bos, False)
    return keys


def _vocabulary(checkpoint: Checkpoint, family: Family, size: int) -> Vocabulary:
    document = checkpoint.directory / "tokenizer.json"
    has_model = (checkpoint.directory / "tokenizer.model").is_file()
    if not has_model and not document.is_file():
        raise refusal(checkpoint.directory, "it has neither tokenizer.model nor tokenizer.json")
    if family.tokenizer == "spm" or (family.tokenizer == "either" and has_model):
        return read_spm(checkpoint, size)
    if family.tokenizer == "either" and is_spm(read_document(document)):
        return read_spm(checkpoint, size)
    return read_bpe(checkpoint, size)


def _check_shape(
    checkpoint: Checkpoint, place: TensorPlacement, tensor: StoredTensor | None
) -> None:
    if tensor is None:
        raise refusal(
            checkpoint.directory,
            f"the tensor {place.source} is missing",
            "fetch the missing file, or save the model again",
        )
    shape = tensor.shape
    is_table = place.target in ("token_embd.weight", "output.weight")
    if is_table and len(shape) == 2 and shape[0] >= place.shape[0]:
        shape = (place.shape[0], shape[1])
    if shape != place.shape:
        raise refusal(
            checkpoint.directory,
            f"the tensor {place.source} has the shape {list(tensor.shape)},"
            f" config.json asks for {list(place.shape)}",
            "give the config.json the model was saved with",
        )


def _refuse_unknown(checkpoint: Checkpoint, names: set[str]) -> None:
    if names:
        some = ", ".join(sorted(names)[:3])
        hint = "merge adapters first; mixtures of experts are not supported"
        if all(name.endswith("_proj.bias") for name in names):
            hint = "transformers leaves biases out that config.json does not announce"
        raise refusal(
            checkpoint.directory,
            f"{len(names)} tensors have no place in this architecture: {some}",
            hint,
        )


def _computed(checkpoint: Checkpoint, family: Family) -> list[SourceTensor]:
    """Tensors that a GGUF file contains and that a checkpoint leaves to code."""
    if family.architecture != "llama":
        return []
    sizes = family.sizes(checkpoint.config, n_vocab(checkpoint))
    factors = rope_factors(checkpoint.config, sizes.H)
    if factors is None:
        return []
    rows = ArrayRows("rope_freqs.weight", factors.reshape(1, -1))
    return [SourceTensor("rope_freqs.weight", factors.shape, rows)]
