"""The general.* keys of a GGUF file: name, licence, tags, recommended sampling.

Flows in: a checkpoint. Flows out: metadata keys. gguf-py reads the model card and guesses a name
from the directory; its keys are used unchanged, because people search for them. Not here: keys
about the network (families/) or the tokenizer (vocabulary.py).
"""

from __future__ import annotations

import logging

from converters.checkpoint import Checkpoint
from converters.extras import load_extra
from converters.gguf_container import Metadata, Value
from edge_agent.gguf.header import TYPE_NAMES


def general_keys(checkpoint: Checkpoint, architecture: str, n_params: int) -> Metadata:
    """The keys, general.architecture first, as llama.cpp expects."""
    gguf = load_extra("gguf", "reading the model card")
    logging.getLogger("metadata").setLevel(logging.ERROR)  # it warns of every missing card
    card = gguf.Metadata.load(None, checkpoint.directory, None, n_params)
    card.name = card.name or checkpoint.directory.resolve().name
    card.size_label = card.size_label or gguf.size_label(n_params, 0, 0, 0)
    collector = gguf.GGUFWriter(None, architecture)
    collector.add_type("model")
    card.set_gguf_meta_model(collector)
    keys = Metadata()
    for key, found in collector.kv_data[0].items():
        is_array = found.type == gguf.GGUFValueType.ARRAY
        element = gguf.GGUFValueType.get_type(found.value[0]) if is_array else found.type
        keys[key] = Value(TYPE_NAMES[int(element)], found.value, is_array)
    # gguf-py 0.19 does not read repetition_penalty, transformers' name of this key.
    penalty = checkpoint.json("generation_config.json").get("repetition_penalty")
    keys.put("f32", "general.sampling.penalty_repeat", penalty)
    return keys
