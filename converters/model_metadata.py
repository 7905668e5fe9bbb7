"""The general.* keys of a GGUF file: name, licence, tags, recommended sampling.

Flows in: a checkpoint. Flows out: metadata keys. gguf-py guesses a name from the directory and
takes what the model card's front matter says; its keys are used unchanged, because people search
for them. A card is optional: what of it cannot be used is left out with a warning, and so is a
value of generation_config.json that is no number. Not here: keys about the network (families/) or
the tokenizer (vocabulary.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import Checkpoint
from converters.extras import load_extra
from converters.gguf_container import Metadata, Value
from edge_agent.gguf.header import TYPE_NAMES

LOG = logging.getLogger("edge-convert")
SAMPLING = {
    **dict.fromkeys(("top_k", "penalty_last_n", "mirostat"), "i32"),
    **dict.fromkeys(("top_p", "min_p", "xtc_probability", "xtc_threshold", "temperature"), "f32"),
    **dict.fromkeys(("penalty_repeat", "mirostat_tau", "mirostat_eta"), "f32"),
}
"""Members of generation_config.json that gguf-py reads -> their types."""
MAX_CARD_BYTES = 1 << 20


def general_keys(checkpoint: Checkpoint, architecture: str, n_params: int) -> Metadata:
    """The keys, general.architecture first, as llama.cpp expects."""
    logging.getLogger("metadata").setLevel(logging.ERROR)  # gguf-py warns of every missing card
    settings = checkpoint.json("generation_config.json")
    sampling = {name: _number(settings, name, kind) for name, kind in SAMPLING.items()}
    sampling["temp"] = sampling.pop("temperature")

    def keys_of(card: Mapping[str, Any]) -> Metadata:
        return _card_keys(card, sampling, checkpoint, (architecture, n_params))

    keys = keys_of(_usable(_front_matter(checkpoint.directory / "README.md"), keys_of))
    # gguf-py 0.19 does not read repetition_penalty, transformers' name of this key.
    penalty = _number(settings, "repetition_penalty", "f32")
    keys.put("f32", "general.sampling.penalty_repeat", penalty)
    return keys


def _card_keys(
    card: Mapping[str, Any],
    sampling: Mapping[str, float | int | None],
    checkpoint: Checkpoint,
    model: tuple[str, int],
) -> Metadata:
    """The keys of a card; `model` is (architecture, number of parameters). May raise anything."""
    architecture, n_params = model
    gguf = load_extra("gguf", "reading the model card")
    found = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(),
        dict(card),
        checkpoint.json("config.json"),
        checkpoint.directory,
        n_params,
    )
    for name, value in sampling.items():
        setattr(found, f"sampling_{name}", value)
    found.name = found.name or checkpoint.directory.resolve().name
    found.size_label = found.size_label or gguf.size_label(n_params, 0, 0, 0)
    collector = gguf.GGUFWriter(None, architecture)
    collector.add_type("model")
    found.set_gguf_meta_model(collector)
    keys = Metadata()
    for key, value in collector.kv_data[0].items():
        is_array = value.type == gguf.GGUFValueType.ARRAY
        element = gguf.GGUFValueType.get_type(value.value[0]) if is_array else value.type
        _check_texts(value.value if is_array else [value.value], TYPE_NAMES[int(element)])
        keys[key] = Value(TYPE_NAMES[int(element)], value.value, is_array)
    return keys


def _check_texts(values: list[Any], type_name: str) -> None:
    if type_name == "string" and not all(isinstance(value, str) for value in values):
        raise TypeError("a text was expected")
    for value in values if type_name == "string" else ():
        value.encode()


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML between the first two lines of `---`; {} when there is none that can be read."""
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as stream:
            lines = stream.read(MAX_CARD_BYTES).decode("utf-8-sig", "strict").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        LOG.warning("%s is left out: %s", path, error)
        return {}
    lines = [line.rstrip("\r") for line in lines]
    if lines[0] != "---" or "---" not in lines[1:]:
        return {}
    text = "\n".join(lines[1 : lines.index("---", 1)]) + "\n"
    # As gguf-py does: the language code "no" is not false, and a tab is no indentation.
    text = text.replace("- no\n", '- "no"\n').replace("\t", "  ")
    yaml = load_extra("yaml", "reading the model card")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        LOG.warning("the front matter of %s is left out: %s", path, " ".join(str(error).split()))
        return {}
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}


def _usable(card: dict[str, Any], keys_of: Any) -> dict[str, Any]:
    """The members of the card that gguf-py can use."""
    try:
        keys_of(card)
        return card
    except Exception:  # gguf-py's helpers raise whatever a wrong type leads to
        kept: dict[str, Any] = {}
    for name, value in card.items():
        try:
            keys_of({**kept, name: value})
            kept[name] = value
        except Exception as error:
            LOG.warning("README.md: %s is left out, it is %.60r: %s", name, value, error)
    return kept


def _number(settings: Mapping[str, Any], name: str, type_name: str) -> float | int | None:
    value = settings.get(name)
    if value is None or value == "":
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    limit = 2**31 if type_name == "i32" else 3e38
    if is_number and math.isfinite(value) and abs(value) < limit:
        if type_name == "f32":
            return float(value)
        if value == int(value):
            return int(value)
    LOG.warning("generation_config.json: %s is left out, it is %.60r", name, value)
    return None
