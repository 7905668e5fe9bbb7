"""Does a converted LoRA adapter have the same effect in llama.cpp as in PEFT?

Trains a small adapter in PEFT (a few steps on the built-in passages, enough to change something),
converts it, and compares logits: PEFT in torch on the float32 base against llama.cpp with the
float32 base and the adapter, and both against the merged model. Target: a mean KL below 1e-5.
Variants: plain LoRA, and rsLoRA in which some modules have their own rank and alpha.

Needs torch, transformers and peft: run it in an environment of its own.

    HOSTVENV/bin/python benchmarks/convert_adapter.py smol-hf gemma-hf
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from converters import hf_to_gguf, lora_to_gguf, merge
from converters.divergence import Divergence, log_softmax
from converters.gguf_output import write_model
from converters.logits import LlamaLogits, LogitSource
from converters.quantizer import How
from converters.sample_texts import PASSAGES
from edge_agent.llama.type_plan import TypeRequest

LIMIT = 1e-5
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 16, "target_modules": MODULES},
    "rslora, patterns": {
        **{"r": 8, "lora_alpha": 16, "target_modules": MODULES, "use_rslora": True},
        **{"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}},
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", type=Path, nargs="+", help="Hugging Face directories")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    rows = []
    for directory in arguments.directories:
        for name, settings in VARIANTS.items():
            rows.append({"base": directory.name, "variant": name,
                         **compare(directory, settings, arguments.steps)})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    met = all(row[key] < LIMIT for row in rows for key in ("adapter_kl", "merged_kl"))
    print(json.dumps({"rows": rows, "limit": LIMIT, "met": met}))
    return 0 if met else 1


def compare(directory: Path, settings: dict[str, Any], steps: int) -> dict[str, float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    windows = [tokenizer(text)["input_ids"][:160] for text in PASSAGES.values()]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = train(directory, settings, windows, steps)
        model.save_pretrained(scratch / "peft")
        reference = [torch_logits(model, window) for window in windows]
        with model.disable_adapter():
            plain = [torch_logits(model, window) for window in windows]
        del model
        base, adapter = scratch / "base.gguf", scratch / "adapter.gguf"
        write_model(base, *hf_to_gguf.load(directory), TypeRequest("F32"), How())
        lora_to_gguf.convert(scratch / "peft", directory, adapter)
        merged = merge.open_merged(directory, scratch / "peft")
        write_model(
            scratch / "merged.gguf",
            merged.metadata(),
            merged.tensors(),
            TypeRequest("F32"),
            How(),
        )
        found = {
            "change_kl": kl(reference, lambda i: plain[i]),
            "adapter_kl": llama_kl(reference, windows, base, [adapter]),
            "merged_kl": llama_kl(reference, windows, scratch / "merged.gguf", []),
        }
        merge.write_hf(merged, scratch / "merged", "f32", How())
        again = transformers.AutoModelForCausalLM.from_pretrained(
            scratch / "merged", dtype=torch.float32
        )
        found["merged_directory_kl"] = kl(reference, lambda i: torch_logits(again, windows[i]))
    return found


def train(directory: Path, settings: dict[str, Any], windows: list[list[int]], steps: int) -> Any:
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(base, config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    for step in range(steps):
        ids = torch.tensor([windows[step % len(windows)]])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def torch_logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0].float().numpy().copy()


def llama_kl(
    reference: list[np.ndarray], windows: list[list[int]], path: Path, adapters: list[Path]
) -> float:
    source: LogitSource = LlamaLogits(path, exact=True, adapters=adapters)
    try:
        return kl(reference, lambda number: source.logits(windows[number]))
    finally:
        source.close()


def kl(reference: list[np.ndarray], other: Callable[[int], np.ndarray]) -> float:
    divergence = Divergence()
    for number, logits in enumerate(reference):
        divergence.add(log_softmax(logits), log_softmax(np.array(other(number))))
    return divergence.mean


if __name__ == "__main__":
    sys.exit(main())
