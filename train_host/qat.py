"""Quantization-aware training: the types that the export will use, applied to a model that trains.

Why it exists: a quantized model loses least when it was trained with the rounding of its file,
tensor by tensor. The types differ between tensors: k-quants give some layers more bits, a width
that does not divide into blocks gets another type, a tied embedding gets the head's type. llama.cpp
decides that, so it is asked (`type_plan`), and `export` uses the same plan. Flows in: a Hugging
Face directory, a type name, a loaded model. Flows out: the model with fake-quantized weights, and
later a directory with the latent float32 weights, which quantize to exactly the trained ones. Not
here: the rounding (fake_quant.py), the training loop (sft.py).

An importance matrix changes what ggml writes: train and export with the same one, or with none. The
parameters keep their names and stay float32; `module.weight` reads as the quantized weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.checkpoint import Checkpoint, open_checkpoint, text_name, unwrapped
from converters.families import family_of_config
from converters.families.family import TensorPlacement
from converters.gguf_container import Metadata
from converters.gguf_output import planned_types
from converters.gguf_to_hf import Weights, open_model, write_directory
from converters.hf_to_gguf import n_vocab, source_tensors
from converters.merge import copied_documents
from converters.model_metadata import general_keys
from converters.quantizer import How
from converters.rows import F32, ArrayRows
from edge_agent.errors import ConversionError, UsageError
from edge_agent.llama import ggml
from edge_agent.llama.type_plan import FILE_TYPES, TypeRequest

if TYPE_CHECKING:
    from train_host.fake_quant import FakeQuantizer

KEEPER = "_fake_quantizer"
"""The attribute that holds the FakeQuantizer of an attached model."""


def type_plan(
    directory: Path, type_name: str, imatrix: Mapping[str, F32] | None = None
) -> dict[str, str]:
    """Checkpoint name of every stored tensor -> its ggml type in a file of `type_name` ("q4_k_m").

    `imatrix` is importance by GGUF name (Imatrix.importance()), on which some plans depend. Raises
    ConversionError, UsageError for an unknown type.
    """
    name = type_name.upper()
    if name not in FILE_TYPES:
        known = ", ".join(known.lower() for known in FILE_TYPES)
        raise UsageError(f"there is no type {type_name!r}", "llama.cpp has no such type", known)
    checkpoint = open_checkpoint(directory)
    family = family_of_config(directory, checkpoint.config)
    tensors = source_tensors(checkpoint, family)
    n_params = sum(tensor.n_elements for tensor in tensors)
    metadata = general_keys(checkpoint, family.architecture, n_params)
    metadata |= family.hyperparameters(checkpoint.config)
    request = TypeRequest(name, imatrix=dict(imatrix or {}))
    types = planned_types(Metadata(metadata), tensors, request)
    places = _placements(checkpoint)
    return {places[target].source: t for target, t in types.items() if target in places}


def attach(
    model: Any,
    plan: Mapping[str, str],
    importance: Mapping[str, F32] | None = None,
    threads: int | None = None,
) -> list[str]:
    """Fake-quantize every matrix that `plan` does not leave in F32; returns their names.

    A module that shares its weight with a planned one (a tied head) sees the same quantized weight.
    Attach before an optimizer is made and before DDP; FSDP is not possible. Raises ConversionError
    when a weight is missing or not float32, or when its type needs an importance that is not given.

    Example: `attach(model, type_plan(Path("gemma"), "q4_0"))`
    """
    from train_host.fake_quant import FakeQuantizer, Grid

    if getattr(model, KEEPER, None) is not None:
        raise ConversionError("the model is fake-quantized already", "", "load it again")
    modules = dict(_weight_modules(model))
    wanted = {name: type_name for name, type_name in plan.items() if type_name != "F32"}
    keeper = FakeQuantizer(threads)
    for name, type_name in wanted.items():
        grid = Grid(type_name, (importance or {}).get(name))
        _check(name, modules.get(name), grid)
        keeper.add(name, modules[name], grid)
    shared = {id(modules[name]._parameters["weight"]): name for name in wanted}
    for module in list(modules.values()):
        owner = shared.get(id(module._parameters["weight"]))
        if owner is not None:
            _wear(module, owner, keeper)
    setattr(model, KEEPER, keeper)
    model.get_parameter = _LatentParameters(model)
    return list(wanted)


def quantized_weights(model: Any) -> dict[str, F32]:
    """The weights with which an attached model computes, as arrays by checkpoint name."""
    keeper: FakeQuantizer = getattr(model, KEEPER)
    return {name: keeper.weight(name).detach().cpu().numpy() for name in keeper.grids}


def write_latent(model: Any, source: Path, directory: Path) -> int:
    """Write the latent weights as a float32 directory, which `export` quantizes.

    config.json, tokenizer and template are those of the text model in `source`, the directory that
    the model was loaded from. Returns the bytes of the weights. `directory` must not exist. Raises
    ConversionError.
    """
    checkpoint = open_checkpoint(source)
    latent = {plain_name(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    places, rows = [], {}
    for place in _placements(checkpoint).values():
        if place.source not in latent:
            raise _refusal(place.source, "the model has no such weight")
        array = latent[place.source].detach().float().cpu().contiguous().numpy()
        rows[place.source] = ArrayRows(place.source, array.reshape(-1, array.shape[-1]))
        places.append(place)
    documents = copied_documents(checkpoint, "float32")
    documents["config.json"].pop("quantized_from", None)
    return write_directory(directory, Weights(rows, places, "f32"), documents, How())


def differences(model: Any, gguf: Path) -> dict[str, int]:
    """How many elements of each fake-quantized weight differ from the file, bit for bit.

    Only tensors that differ are listed: {} means that the file is what was trained. Raises
    ModelFormatError, ConversionError.
    """
    stored = open_model(gguf).rows()
    found: dict[str, int] = {}
    for name, values in quantized_weights(model).items():
        rows = stored.get(name)
        if rows is None or (rows.n_rows, rows.n_columns) != values.shape:
            raise _refusal(name, f"{gguf} has no tensor of the shape {values.shape} for it")
        array = np.empty(values.shape, np.float32)
        rows.read(0, array)
        n = int(np.count_nonzero(array.view(np.uint32) != values.view(np.uint32)))
        if n:
            found[name] = n
    return found


def plain_name(name: str) -> str:
    """The checkpoint's name of a parameter of a loaded model, also of a multimodal model's text
    part."""
    return text_name(unwrapped(name))


def _placements(checkpoint: Checkpoint) -> dict[str, TensorPlacement]:
    family = family_of_config(checkpoint.directory, checkpoint.config)
    places = family.placements(checkpoint.config, n_vocab(checkpoint))
    return {place.target: place for place in places}


def _weight_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """(checkpoint name of the weight, module); a tied module comes under each of its names."""
    for name, module in model.named_modules(remove_duplicate=False):
        if module._parameters.get("weight") is not None:
            yield plain_name(f"{name}.weight"), module


def _check(name: str, module: Any, grid: Any) -> None:
    if module is None:
        raise _refusal(name, "the model has no such weight")
    latent = module._parameters["weight"]
    if str(latent.dtype) != "torch.float32":
        why = f"its latent weights are {latent.dtype}, in which small steps are lost"
        raise _refusal(name, why, "load the model with dtype=torch.float32; autocast may be bf16")
    if grid.importance is None and ggml.requires_imatrix(grid.type):
        raise _refusal(
            name, f"{grid.type} needs an importance matrix", "give one, or take a larger type"
        )
    if grid.importance is not None and grid.importance.shape != latent.shape[1:]:
        why = f"the imatrix has {grid.importance.size} values for rows of {latent.shape[1]}"
        raise _refusal(name, why, "compute the imatrix with this very model")


def _refusal(
    name: str, why: str, hint: str = "give the directory of this model"
) -> ConversionError:
    return ConversionError(f"cannot fake-quantize {name}", why, hint)


class _OnGrid:
    """Mixed into the class of a module: `weight` is the quantized weight, the parameter is the
    latent."""

    _parameters: dict[str, Any]
    _grid_keeper: FakeQuantizer
    _grid_name: str

    @property
    def weight(self) -> Any:
        return self._grid_keeper.weight(self._grid_name)


def _wear(module: Any, name: str, keeper: FakeQuantizer) -> None:
    base = type(module)
    module.__class__ = type(base.__name__, (_OnGrid, base), {})
    module._grid_keeper, module._grid_name = keeper, name


class _LatentParameters:
    """`model.get_parameter` for code that saves or ties weights; torch's own would read
    `weight`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, target: str) -> Any:
        path, _, name = target.rpartition(".")
        found = self._model.get_submodule(path)._parameters.get(name)
        if found is None:
            raise AttributeError(f"there is no parameter {target}")
        return found
