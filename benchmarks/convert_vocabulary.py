"""Does a converted Qwen tokenize as Qwen does? llama.cpp's own test vectors, through our files.

The real Qwen 2 tokenizer (ggml-vocab-qwen2.gguf of llama.cpp's source) becomes a tokenizer.json
with Qwen 2.5's control tokens and NFC. A random checkpoint with it becomes a GGUF file. Both must
give the ids of every vector (.inp/.out): the file in llama.cpp, tokenizer.json in `tokenizers`.

    .venv/bin/python benchmarks/convert_vocabulary.py --llama-cpp SRC
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import unicodedata
from pathlib import Path

from convert_checkpoints import family, qwen_tokenizer, write_random, write_tokenizer

from converters import hf_to_gguf
from converters.gguf_output import write_model
from converters.quantizer import How
from converters.text_codec import DirectoryCodec, GgufCodec
from edge_agent.llama.type_plan import TypeRequest

SEPARATOR = "\n__ggml_vocab_test__\n"
CONFIG = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 151936},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768},
    **{"rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp's source tree")
    vocabulary = parser.parse_args().llama_cpp / "models/ggml-vocab-qwen2.gguf"
    texts = Path(f"{vocabulary}.inp").read_text("utf-8").split(SEPARATOR)[:-1]  # ends with one
    lines = Path(f"{vocabulary}.out").read_text().splitlines()
    ids = [list(map(int, line.split())) for line in lines]
    with tempfile.TemporaryDirectory() as name:
        directory, path = Path(name) / "hf", Path(name) / "m.gguf"
        write_random(directory, family("qwen2"), CONFIG)
        write_tokenizer(directory, qwen_tokenizer(vocabulary))
        write_model(path, *hf_to_gguf.load(directory), TypeRequest("Q8_0"), How())
        codecs = {"llama.cpp": GgufCodec(path), "tokenizers": DirectoryCodec(directory)}
        pre = codecs["llama.cpp"].pre
        wrong = {
            side: [
                text
                for text, expected in zip(texts, ids, strict=True)
                if codec.encode(text) != expected and unicodedata.is_normalized("NFC", text)
            ]
            for side, codec in codecs.items()
        }
        for codec in codecs.values():
            codec.close()
    not_nfc = sum(not unicodedata.is_normalized("NFC", text) for text in texts)
    print(f"pre {pre!r}; {len(texts)} vectors, {not_nfc} of them not NFC (compared by neither)")
    print(json.dumps({"pre": pre, "vectors": len(texts), "not_nfc": not_nfc, "wrong": wrong}))
    return 0 if pre == "qwen2" and not any(wrong.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
