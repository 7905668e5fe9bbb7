"""The peer of adapt_step.py: the same steps in torch, transformers and peft, in float32 on the CPU.

Flows in: the same job (adapt.py writes it): a Hugging Face directory, or the sizes of a Gemma 3
with random weights; the blocks that get an adapter, rows, threads. Flows out: one line of JSON. The
texts of a row are a batch, so nothing is padded; optimizer, clipping and settings are the
trainer's; the attention is transformers' default. Imports nothing of edge_agent.

Needs torch, transformers and peft; run by adapt.py with its --python.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE, MAX_GRAD_NORM = 2e-3, 1.0
SGEMM_SIZES = (2048, 3072)
SGEMM_REPEATS = 4


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["n_threads"])
    torch.manual_seed(1)
    transformers.logging.set_verbosity_error()
    before = sgemm_flops_s()
    began_s = time.monotonic()
    found = steps(job, model(job))
    found["window_s"] = began_s, time.monotonic()
    best = max(before, sgemm_flops_s())
    found |= {"sgemm_flops_s": best, "attention": job["attention"] or "default"}
    print(json.dumps({**found, "torch": torch.__version__, "peft": peft.__version__}))
    return 0


def sgemm_flops_s() -> float:
    best = 0.0
    for n in SGEMM_SIZES:
        a, out = torch.ones(n, n), torch.empty(n, n)
        for _ in range(SGEMM_REPEATS):
            began_s = time.perf_counter()
            torch.mm(a, a, out=out)
            best = max(best, 2.0 * n**3 / (time.perf_counter() - began_s))
    return best


def model(job: dict[str, Any]) -> Any:
    """The model with adapters, ready to learn."""
    attention = {"attn_implementation": job["attention"]} if job["attention"] else {}
    if job["hf"]:
        base = transformers.AutoModelForCausalLM.from_pretrained(
            job["hf"], dtype=torch.float32, **attention
        )
    else:
        config = transformers.Gemma3TextConfig(**job["config"], **attention)
        base = transformers.Gemma3ForCausalLM(config).float()
    base.config.use_cache = False
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=job["r"],
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=MODULES,
        layers_to_transform=job["blocks"],
    )
    return peft.get_peft_model(base, settings).train()


def steps(job: dict[str, Any], training_step: Any) -> dict[str, Any]:
    """As adapt_step.py's; the first step is not timed."""
    trained = [value for value in training_step.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    walls, processor, losses = [], [], []
    for row in job["rows"]:
        began_s, used_s = time.perf_counter(), time.process_time()
        ids = torch.tensor(row)
        labels = ids.clone()
        labels[:, : ids.shape[1] - round(job["supervised"] * ids.shape[1])] = -100
        optimizer.zero_grad()
        loss = training_step(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        losses.append(float(loss))
        walls.append(time.perf_counter() - began_s)
        processor.append(time.process_time() - used_s)
    return {"step_s": walls[1:], "cpu_s": processor[1:], "losses": losses, "tokens": ids.numel(),
            "n_trained": sum(value.numel() for value in trained)}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
